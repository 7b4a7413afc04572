"""The study's own copy of the project's code, from which all its runs are made."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from activations.files import replacing
from callbacks.machine import CODE, ROOT, code, code_of, commit

from .spec import SpecError

FOLDER = "code"
PARTS = (*CODE, "study", "bench", "configs")


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
    return target


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
    git = ["git", "-C", str(ROOT), "archive", name.removesuffix("+")]
    found = subprocess.run(git, capture_output=True, check=False)
    target.mkdir(parents=True)
    if found.returncode == 0:
        with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
            archive.extractall(target, filter="data")
