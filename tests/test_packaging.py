"""What is installed, and what the source distribution holds."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import activations
from tests.docs.test_tutorials import blocks
from tests.test_layout import FILES, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN = {
    "activations",
    "bench",
    "callbacks",
    "datamodules",
    "export",
    "models",
    "options",
    "predict",
    "search",
    "study",
    "tests",
    "train",
}
OTHERS = {
    "executorch",  # asks for a torch of its own; 1.5.1 runs with ours by pip install --no-deps
    "datasets",  # an extra: imported only by --data HuggingFace
    "ray",  # an extra: imported only with --on auto or an address
    "wandb",  # a logger: imported only where the user chose it
    "edited_network",  # a file that a test writes
}


def run(folder: Path, *arguments: str) -> str:
    """Standard output of Python with `arguments` in `folder`, whose own packages come first."""
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(source: Path, kind: str, out: Path) -> Path:
    """Build the "wheel" or "sdist" of `source` with the setuptools that is installed."""
    hook = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    run(source, "-W", "ignore", "-c", hook)
    return next(out.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution of this checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    ignore = shutil.ignore_patterns(".git", ".venv*", "*.egg-info", "build", "runs", "site")
    shutil.copytree(ROOT, folder / "checkout", ignore=ignore, symlinks=True)
    with tarfile.open(build(folder / "checkout", "sdist", folder)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"{PROJECT['name']}-{activations.__version__}"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, made from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build(sdist, "wheel", folder)) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_the_library_alone(wheel: Path):
    information = f"{PROJECT['name']}-{activations.__version__}.dist-info"
    assert {path.name for path in wheel.iterdir()} == {"activations", information}
    library = ROOT / "activations"
    files = {path.relative_to(library) for path in library.rglob("*.py")} | {Path("py.typed")}
    files |= {path.relative_to(ROOT) for path in (ROOT / "callbacks").glob("*.py")}
    installed = wheel / "activations"
    assert {path.relative_to(installed) for path in installed.rglob("*.*")} == files
    metadata = (wheel / information / "METADATA").read_text()
    assert f"\nVersion: {activations.__version__}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata
    assert metadata.endswith((library / "README.md").read_text())


def test_the_readme_of_the_wheel_runs_and_has_no_dead_link(wheel: Path):
    text = (ROOT / "activations" / "README.md").read_text()
    assert not re.findall(r"\]\((?!https://)", text)
    kinds = [
        kind for name in activations.__all__ if isinstance(kind := getattr(activations, name), type)
    ]
    functions = {kind.__name__ for kind in kinds if activations.Activation in kind.__mro__[1:]}
    assert functions <= set(re.findall(r"\w+", text))
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    code += "\nimport activations; print(activations.__file__)"
    table, file = run(wheel, "-c", code).rsplit("\n", 2)[:2]
    assert "CosLU" in table
    assert Path(file) == wheel / "activations" / "__init__.py"


def test_the_wheel_serves_a_lightning_module_of_ones_own(wheel: Path, tmp_path: Path):
    """The page's example, with the packages of the wheel's extra alone, and away from this folder."""
    allowed = named(EXTRAS["lightning"]) | {"torch"}
    distributions = packages_distributions()
    for package in imports([*(ROOT / "callbacks").glob("*.py")]):
        names = {name.lower() for name in distributions[package]}
        assert names & allowed, package
    code = blocks("own_modules.md", "python").partition("from functools")
    code = "".join(code[1:])
    code += (
        "\nimport activations.callbacks as c, sys; print(c.__file__, 'callbacks' in sys.modules)"
    )
    printed = run(
        tmp_path, "-W", "ignore", "-c", f"import sys; sys.path[0] = {str(wheel)!r}\n{code}"
    )
    assert printed.rstrip().endswith(f"{wheel}/activations/callbacks/__init__.py False")
    assert re.search(r"^net.1 +alpha +1.0000 +(?!1.0000)\d", printed, re.M)
    assert re.search(r"^net.3 +slope +2.0000 +0.5000$", printed, re.M)
    folder = tmp_path / "lightning_logs/version_0"
    assert {"activations.csv", "activations.png", "parameters.png"} <= set(os.listdir(folder))


def test_the_source_distribution_holds_every_source(sdist: Path):
    kinds = ("*.py", "*.yaml", "*.json", "*.md", "*.png", "*.css", "*.js", "*.csv", "run")
    for folder in (
        *(OWN - {"export", "options", "predict", "train"}),
        "configs",
        "docs",
        "results",
        ".ci",
    ):
        for kind in kinds:
            for path in (ROOT / folder).rglob(kind):
                assert (sdist / path.relative_to(ROOT)).exists(), path


@pytest.mark.slow
def test_the_tests_of_the_source_distribution_run(sdist: Path):
    some = ["tests/test_layout.py", "tests/activations/functions/test_dsrelu.py"]
    assert " passed" in run(sdist, "-m", "pytest", "-p", "no:cacheprovider", *some)


def test_the_version_has_one_home():
    assert "version" in PROJECT["dynamic"]
    released = re.findall(r"^## \[(\d\S+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == activations.__version__
    assert f"\nversion: {activations.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def imports(files: list[Path]) -> set[str]:
    """Top-level packages that `files` import, without Python's own and ours."""
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").partition(".")[0])
    return found - set(sys.stdlib_module_names) - OWN - OTHERS


def named(requirements: list[str]) -> set[str]:
    """Names of the distributions in `requirements`; each must state its lowest version."""
    own = [each for each in requirements if each.startswith(f"{PROJECT['name']}[")]
    requirements = [each for each in requirements if each not in own]
    for extra in own:
        requirements += EXTRAS[extra.partition("[")[2].removesuffix("]")]
    for requirement in requirements:
        assert ">=" in requirement, f"{requirement}: state the lowest version"
    return {re.split(r"[\[>]", requirement)[0] for requirement in requirements}


@pytest.mark.parametrize("part", ["product", "tests"])
def test_every_import_is_named_with_its_lowest_version(part: str):
    allowed = named(PROJECT["dependencies"] + EXTRAS["train"] + EXTRAS["export"])
    files = FILES
    if part == "tests":
        allowed |= named(EXTRAS["dev"] + EXTRAS["interop"])
        files = sorted((ROOT / "tests").rglob("*.py"))
    distributions = packages_distributions()
    for package in imports(files):
        names = {name.lower().replace("_", "-") for name in distributions.get(package, [package])}
        assert names & allowed, f"pyproject.toml does not name {package}"
