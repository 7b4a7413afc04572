"""One run of a study, from its claim to its result; every engine calls `work(folder)`."""

import json
import shutil
import sys
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from activations.files import is_full, replacing, system_error
from callbacks.machine import code
from callbacks.results import FILE, SCHEMA, TEST

from .claims import beating, claim, is_mine, owner
from .copied import own_code, packages
from .runs import CLAIM, RUN, read_about, read_prepared, write_base
from .spec import OFF, read_lock

CRASHES, LOG = "crashes", "log"
ATTEMPTS = 2  # a run that fails is tried once more
CRASHED = 3
REFUSED = 2  # exit code of a process
TOLD = "refused: "
FULL = "make room there"  # activations.files.naming
# the options may ask for more; by default the result does not depend on how many a machine has
ONE = ["--trainer.devices=1"]
# no pictures, no bars
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
         "--monitor.figure=false"]  # fmt: skip


class RefusedError(ValueError):
    """What is no result of the run, but a mistake or a lack of the machine: it stops the study."""


def ended(folder: Path) -> bool:
    """Whether the run has a result."""
    return (folder / FILE).is_file()


def is_claimed(folder: Path) -> bool:
    """Whether a living process works on the run."""
    return owner(folder / CLAIM) is not None


def work(folder: Path) -> str:
    """Do one run, if no other process does, and publish its result.

    A run that was killed goes on from its last checkpoint. One that failed is tried once more, from
    the beginning; then its failure is its result.

    Returns:
        ok, diverged, failed, stopped (by a signal), or taken (by another process, done, or no
        longer wanted).

    Raises:
        RefusedError: train.py does not accept the options, the data are not there, or the disk is
            full.
    """
    if ended(folder) or not claim(folder / CLAIM):
        return "taken"
    with beating(folder / CLAIM):
        gone = ended(folder) or not (folder / RUN).is_file()
        return "taken" if gone else _attempts(folder)


def _attempts(folder: Path) -> str:
    spec = json.loads((folder / RUN).read_text())
    check_own(folder.parent.parent)
    found, message, attempt = None, "", folder
    for number in range(1, ATTEMPTS + 1):
        attempt = folder / f"attempt_{number}"
        found = _status(attempt)
        if found is None:
            exit_code, message = train_run(folder, attempt, spec)
            if exit_code in (130, 143):
                return "stopped"
            if exit_code == 2 or (exit_code and FULL in message):
                (attempt / FILE).unlink(missing_ok=True)
                raise RefusedError(
                    f"{spec['arm']}, seed {spec['seed']} (runs/{folder.name}): {message}"
                )
            found = _status(attempt)
        if found is None:  # it ended before train.py could write
            found = "failed"
            with replacing(attempt / FILE) as unfinished:
                unfinished.write_text(json.dumps(no_result(message), indent=1))
        if found != "failed":
            break
    if not is_mine(folder / CLAIM):
        return "taken"
    publish(folder, attempt)
    return str(found)


def check_own(study: Path) -> None:
    """Raise RefusedError if a module of the user has changed since the study was locked."""
    known = read_about(study).get("own")
    if not known:
        return
    now = own_code(read_lock(study)["spec"])
    for name in known:
        if now.get(name) != known[name]:
            raise RefusedError(
                f"the module {name} has changed since {study} was locked: runs of different code "
                "do not mix. Put it back, or start a new study in another folder (--dir)"
            )


def _status(attempt: Path) -> str | None:
    try:
        return str(json.loads((attempt / FILE).read_text())["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def train_run(folder: Path, attempt: Path, spec: dict[str, Any]) -> tuple[int, str]:
    """Train in this process; the exit code of train.py, and its last line if it is not 0."""
    import train

    last = attempt / "checkpoints/last.ckpt"
    log = folder / LOG
    begin = log.stat().st_size if log.is_file() else 0
    words = ["fit", *ONE, f"--model.compile={spec.get('compiled', OFF)}",
             *write_base(folder, spec["base"]), *spec["arguments"], *QUIET,
             "--trainer.logger.class_path=lightning.pytorch.loggers.CSVLogger",
             f"--trainer.logger.save_dir={folder}", "--trainer.logger.name=",
             f"--trainer.logger.version={attempt.name}"]  # fmt: skip
    if "shapes" in spec:
        words.append(f"--model.activation_from={folder / spec['shapes']}")
    if last.is_file():
        words.append(f"--ckpt_path={last}")
        values = [_value(word) for word in spec["arguments"]]
        words += [f"--trust={each}" for each in sorted(packages([spec["base"], values]))]
    elif attempt.exists():  # killed before its first checkpoint
        shutil.rmtree(attempt)
    try:
        train.main(words)
    except SystemExit as left:
        return int(left.code or 0), _message(log, begin)
    except KeyboardInterrupt:
        return 130, ""
    except Exception as error:  # what train.py does not explain
        with suppress(OSError):
            traceback.print_exc()
        if (system := system_error(error)) and is_full(system):
            return 1, f"cannot write {folder}: {system.strerror}; {FULL}"
        return 1, f"{type(error).__name__}: {error}"
    return 0, ""


def _value(word: str) -> Any:
    """What stands behind the = of an argument."""
    text = word.partition("=")[2]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _message(log: Path, begin: int) -> str:
    """The last error that was written to the log after `begin`."""
    sys.stderr.flush()
    text = log.read_bytes()[begin:].decode(errors="replace") if log.is_file() else ""
    known = [line.partition("error: ")[2] for line in text.splitlines() if "error: " in line]
    return known[-1].partition(" [SUPPLE_")[0] if known else "it ended without a message"


def publish(folder: Path, attempt: Path) -> None:
    """Move the result up, `results.json` last, and delete the checkpoints."""
    if (attempt / TEST).is_file():
        (attempt / TEST).replace(folder / TEST)
    shutil.rmtree(attempt / "checkpoints", ignore_errors=True)
    (attempt / FILE).replace(folder / FILE)


def crashed(folder: Path, message: str) -> None:
    """Note that the process of a run was killed, such as by a system that is out of memory.

    Three times without a new checkpoint between them, and the run has failed.
    """
    saved = [file.stat().st_mtime_ns for file in folder.glob("attempt_*/checkpoints/last.ckpt")]
    with (folder / CRASHES).open("a") as file:
        file.write(f"{max(saved, default=0)}\n")
    lines = (folder / CRASHES).read_text().splitlines()
    if len(lines) >= CRASHED and len(set(lines[-CRASHED:])) == 1 and not ended(folder):
        with replacing(folder / FILE) as unfinished:
            unfinished.write_text(json.dumps(no_result(message), indent=1))


def no_result(message: str) -> dict[str, Any]:
    """The results of a run that could not write its own."""
    return {"schema": SCHEMA, "status": "failed", "message": message, "code": code(), "epochs": [],
            "test": {}, "config": None, "seed": None, "learned": {}}  # fmt: skip


def pending(study: Path) -> list[Path]:
    """The prepared runs that have not ended, in the order in which they were prepared.

    Without those of the verdict that no verdict needs: the arm, or the baseline, has diverged.
    """
    about = read_prepared(study)
    seeds = {key: (each["arm"], each["cell"]) for key, each in about.items()
             if each.get("stage") == "verdict"}  # fmt: skip
    latest = {}  # an amended question has other options
    for key in sorted(seeds, key=lambda key: about[key]["number"]):
        latest[seeds[key]] = _options(about[key])
    lost = {arm for key, arm in seeds.items()
            if _options(about[key]) == latest[arm] and _diverged(study / "runs" / key)}  # fmt: skip
    base = read_lock(study)["spec"]["baseline"] if lost else ""
    left = []
    for key in sorted(about, key=lambda key: about[key]["number"]):
        needless = key in seeds and lost & {seeds[key], (base, seeds[key][1])}
        if not needless and not ended(study / "runs" / key):
            left.append(study / "runs" / key)
    return left


def _options(prepared: dict[str, Any]) -> list[Any]:
    """What a prepared run trains, without its seed."""
    words = [each for each in prepared["arguments"] if not each.startswith("--seed_everything=")]
    return [prepared.get("base"), words]


def _diverged(run: Path) -> bool:
    return ended(run) and _final(run) == "diverged"


@cache
def _final(run: Path) -> str | None:
    """The status of a run that has ended; it is asked for every two seconds."""
    return _status(run)


def alone() -> None:
    """Do the run that is named as argument, in this process, which is for it alone."""
    try:
        sys.exit(143 if work(Path(sys.argv[1])) == "stopped" else 0)
    except (RefusedError, OSError) as error:
        sys.stderr.write(f"{TOLD}{error}\n")
        sys.exit(REFUSED)
