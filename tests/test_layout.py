"""The arrows of the floor plan."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"activations", "bench", "callbacks", "datamodules", "models", "train", "tests"}
ALLOWED = {
    "activations": set(),
    "datamodules": set(),
    "models": {"activations"},
    "callbacks": {"activations"},
    "bench": {"activations", "callbacks", "datamodules", "models"},
}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_arrows_run_one_way(package: str):
    for file in (ROOT / package).glob("*.py"):
        assert imports(file) & OURS <= ALLOWED[package] | {package}, file


def test_activations_know_torch_only():
    import sys

    for file in (ROOT / "activations").glob("*.py"):
        drawing = (
            {"activations", "matplotlib", "numpy", "PIL"} if file.name == "__main__.py" else set()
        )
        assert imports(file) <= set(sys.stdlib_module_names) | {"torch"} | drawing, file


def test_no_file_is_long():
    for file in ROOT.glob("*/*.py"):
        if file.parent.name in ALLOWED:
            assert len(file.read_text().splitlines()) <= 300, file
