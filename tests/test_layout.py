"""The floor plan: which part imports which, and where a newcomer finds what."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# a part is a file or folder; the longest that fits counts
ALLOWED = {
    "activations": {"activations"},  # what it offers and the gallery
    "activations/torch_private": set(),
    "activations/fusion": {"activations/torch_private"},
    "activations/activation": {"activations/fusion"},
    "activations/groups": {"activations/activation"},
    "activations/functions": {
        "activations/activation",
        "activations/fusion",
        "activations/torch_private",
    },
    "activations/swap": {
        "activations/activation",
        "activations/groups",
        "activations/torch_private",
    },
    "bench": {"activations", "callbacks", "datamodules", "models"},
    "callbacks": {"activations"},
    "datamodules": set(),
    "export": {"activations", "datamodules", "models", "options"},
    "models": {"activations"},
    "models/deployed": {"activations", "datamodules", "models"},
    "models/hub": {"activations", "datamodules", "models"},
    "models/network": {"activations", "datamodules", "models"},
    "options": {"activations", "models"},
    "predict": {"activations", "callbacks", "datamodules", "models", "options"},
    "search": {"activations", "callbacks", "study"},
    "study": {"activations", "bench", "callbacks", "options", "train"},
    "train": {"activations", "callbacks", "datamodules", "export", "models", "options", "predict"},
}
NAMES = sorted({part.split("/")[0] for part in ALLOWED})
FILES = [
    file
    for name in NAMES
    for file in sorted([*ROOT.glob(f"{name}.py"), *(ROOT / name).rglob("*.py")])
]


def imported(file: Path) -> set[str]:
    """Modules that `file` imports, with a slash for each dot; names of a package's modules too."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.replace(".", "/") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = "/".join([*base, *(node.module or "").split(".")]).strip("/")
            modules = [f"{origin}/{alias.name}" for alias in node.names]
            inner = [m for m in modules if (ROOT / f"{m}.py").exists() or (ROOT / m).is_dir()]
            found |= set(inner) if len(inner) == len(modules) else {origin, *inner}
    return found


def part_of(module: str) -> str:
    fits = [part for part in ALLOWED if f"{module}/".startswith(f"{part}/")]
    return max(fits, key=len, default="")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_arrows_run_one_way(file: Path):
    own = part_of(file.relative_to(ROOT).with_suffix("").as_posix())
    for module in imported(file):
        part = part_of(module)
        allowed = {own, *ALLOWED[own]}
        inside = any(f"{part}/".startswith(f"{each}/") for each in allowed)
        assert not part or inside, f"{own} imports {module}"


def test_activations_know_torch_only():
    for file in (ROOT / "activations").rglob("*.py"):
        drawing = {"matplotlib", "PIL"} if file.name == "picture.py" else set()
        known = {*sys.stdlib_module_names, "activations", "torch", *drawing}
        assert {module.split("/")[0] for module in imported(file)} <= known, file


def test_no_module_is_hidden_by_a_name():
    for file in FILES:
        parts = file.relative_to(ROOT).with_suffix("").parts
        if len(parts) > 1 and parts[-1] not in ("__init__", "__main__"):
            module = importlib.import_module(".".join(parts))
            assert getattr(importlib.import_module(".".join(parts[:-1])), parts[-1]) is module


WHERE = {
    "What is CosLU's formula?": ("activations/functions/coslu.py", "def coslu("),
    "Where does DSReLU's slope come from?": ("activations/functions/dsrelu.py", "def slope_at("),
    "How are activations replaced in a network?": (
        "activations/swap/replace.py",
        "def replace_activations(",
    ),
    "How does a function become a table?": ("activations/tables.py", "def tabulate("),
    "How does a new function start as the old one?": ("activations/swap/match.py", "def match("),
    "Where does a fused kernel come from?": ("activations/fusion/kernel.py", "def evaluate("),
    "Which parameters have no weight decay?": ("activations/groups.py", "def parameter_groups("),
    "Where is the ResNet for CIFAR?": ("models/resnet.py", "class CifarResNet("),
    "Which metrics are computed?": ("models/metrics.py", "def classification_metrics("),
    "How are MIT-BIH beats split by patient?": ("datamodules/mitbih.py", "DS1 = ("),
    "What is computed once for deployment?": ("activations/folding.py", "def fold("),
    "Who writes an ONNX file?": ("models/export.py", "def _write_onnx("),
    "When is a function better than another?": ("study/verdict.py", "def decide("),
    "Which function does a search train next?": ("search/evolution.py", "def children("),
    "Who moves scheduled functions during training?": (
        "callbacks/schedule.py",
        "class ActivationSchedule(",
    ),
}


@pytest.mark.parametrize("question", WHERE)
def test_things_are_where_the_tree_suggests(question: str):
    file, text = WHERE[question]
    assert text in (ROOT / file).read_text()
