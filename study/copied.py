"""The study's own copy of the project's code, from which all its runs are made."""

import ast
import hashlib
import importlib.util
import io
import re
import shutil
import site
import subprocess
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from activations.files import replacing
from callbacks.machine import CODE, ROOT, code, code_of, commit

from .runs import read_about, write_about
from .spec import SpecError

FOLDER = "code"
PARTS = (*CODE, "study", "bench", "configs")
_PROJECT = {"search", *(part.removesuffix(".py") for part in PARTS)}


def copy_code(study: Path, lock: dict[str, Any]) -> Path:
    """The folder `code` of a study, made if it is not there.

    It is a copy of this repository, or of its commit that the lock names.

    Raises:
        SpecError: the copy was changed, or neither has the code that the lock names.
    """
    target, wanted = study / FOLDER, lock["code"]
    if target.is_dir():
        if (found := code_of(target)) != wanted:
            raise SpecError(
                f"{target} is not the code of this study ({found}, not {wanted}): delete the "
                "folder; it is made again"
            )
        _check_options(study, target)
        return target
    unfinished = study / f"{FOLDER}.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    made = lock["commit"]
    if not made.endswith("+"):  # configs/base.yaml, which every run reads, is not in the hash
        _check_out(made, unfinished)
    if code_of(unfinished) != wanted and code() == wanted:
        shutil.rmtree(unfinished, ignore_errors=True)
        made = commit()
        _copy(unfinished)
    elif code_of(unfinished) != wanted:
        shutil.rmtree(unfinished, ignore_errors=True)
        _check_out(made, unfinished)
    if code_of(unfinished) != wanted:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise SpecError(
            f"{study} was begun with code {wanted} (commit {lock['commit']}), which is neither "
            f"here ({code()}) nor in the repository's history: check that commit out, or start "
            "a new study in another folder"
        )
    with replacing(unfinished / "COMMIT") as file:
        file.write_text(made)
    unfinished.replace(target)
    _check_options(study, target)
    return target


def options_read(root: Path) -> dict[str, str]:
    """File -> SHA-256 of the options that every run reads, which are no part of the code's hash."""
    name = "configs/base.yaml"
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest()}


def _check_options(study: Path, target: Path) -> None:
    """Note the options of the first copy; refuse others later."""
    about = read_about(study)
    known = about.get("options")
    if not known:
        write_about(study, {**about, "options": options_read(target)})
    elif known != options_read(target):
        raise SpecError(
            f"{target}/{next(iter(known))} is not as it was when {study} was begun: put it back"
        )


def own_code(spec: dict[str, Any]) -> dict[str, str]:
    """Module -> SHA-256 of its code, of the classes that a spec names and of what these import.

    Modules of this project and of installed packages are left out.
    """
    found, left = dict[str, str](), packages(spec)
    while left:
        name = left.pop()
        if name in found or not (files := _own_files(name)):
            continue
        codes = [each.read_bytes() for each in files]
        found[name] = hashlib.sha256(b"\0".join(codes)).hexdigest()
        left |= {each for code in codes for each in _imported(code)}
    return dict(sorted(found.items()))


def packages(value: Any) -> set[str]:
    """Where the classes are from that are named in options."""
    named = (each for each in _texts(value) if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", each))
    return {each.partition(".")[0] for each in named}


def _own_files(name: str) -> list[Path]:
    """The code of a module or package of the user; [] of others, and where there is none."""
    try:
        known = None if name in _PROJECT else importlib.util.find_spec(name)
    except (ImportError, ValueError):  # such as __main__
        known = None
    if known is None:
        return []
    folders = known.submodule_search_locations
    single = [Path(known.origin)] if known.has_location and known.origin else []
    files = single if folders is None else [f for each in folders for f in Path(each).rglob("*.py")]
    apart = [*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("stdlib")]
    installed = [Path(each).resolve() for each in apart]
    return sorted(f for f in files if not any(map(f.resolve().is_relative_to, installed)))


def _imported(code: bytes) -> set[str]:
    """The modules that a file of Python imports, without those beside it in a package."""
    try:
        nodes = [*ast.walk(ast.parse(code))]
    except (SyntaxError, ValueError):  # compiled
        return set()
    names = [each.name for node in nodes if isinstance(node, ast.Import) for each in node.names]
    names += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom) and not n.level]
    return {each.partition(".")[0] for each in names}


def _texts(value: Any) -> Iterator[str]:
    """The texts among the values of a spec."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _copy(target: Path) -> None:
    """Copy the code and the options of this repository."""
    target.mkdir(parents=True)
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, target / part)


def _check_out(name: str, target: Path) -> None:
    """Write the files of a commit, if the repository has it."""
    if not re.fullmatch(r"[0-9a-f]{4,40}\+?", name):  # an option of git
        return
    git = ["git", "-C", str(ROOT), "archive", name.removesuffix("+")]
    found = subprocess.run(git, capture_output=True, check=False)
    target.mkdir(parents=True)
    if found.returncode == 0:
        with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
            archive.extractall(target, filter="data")
