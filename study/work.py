"""One run of a study, from its claim to its result; every engine calls `work(folder)`."""

import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from activations.files import replacing
from callbacks.machine import code
from callbacks.results import FILE, SCHEMA, TEST

from .runs import RUN, write_base

HEARTBEAT = 30.0  # seconds
SILENT = 180.0  # so long a claim of another machine is believed
CLAIM, CRASHES = "claim", "crashes"
ATTEMPTS = 2  # a run that fails is tried once more
CRASHED = 3


def ended(folder: Path) -> bool:
    """Whether the run has a result."""
    return (folder / FILE).is_file()


def is_claimed(folder: Path) -> bool:
    """Whether a living process works on the run.

    A process of this machine is looked up; one of another is believed for three minutes after its
    last heartbeat.
    """
    path = folder / CLAIM
    try:
        age, text = time.time() - path.stat().st_mtime, path.read_text()
    except FileNotFoundError:
        return False
    try:
        owner = json.loads(text)
        host, pid, started = owner["host"], owner["pid"], owner["started"]
    except (ValueError, KeyError, TypeError):
        return age < SILENT
    if host != socket.gethostname():
        return age < SILENT
    return _started(pid) == started


def _started(pid: int) -> str | None:
    """When a process of this machine began; None if it does not live."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        with suppress(OSError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            return None if fields[0] == "Z" else fields[19]
        return None
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return ""


def claim(folder: Path) -> bool:
    """Take the run for this process; False if another one works on it."""
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    with FileLock(folder / ".lock"):
        if ended(folder) or is_claimed(folder):
            return False
        with replacing(folder / CLAIM) as unfinished:
            unfinished.write_text(json.dumps(mine))
    return True


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """Touch `path` every 30 s, so that other machines see that the run lives."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def work(folder: Path) -> str:
    """Do one run, if no other process does, and publish its result.

    A run that was killed goes on from its last checkpoint. One that failed is tried once more, from
    the beginning; then its failure is its result.

    Returns:
        ok, diverged, failed, stopped (by a signal), or taken.
    """
    if not claim(folder):
        return "taken"
    try:
        with beating(folder / CLAIM):
            return _attempts(folder)
    finally:
        (folder / CLAIM).unlink(missing_ok=True)


def _attempts(folder: Path) -> str:
    spec = json.loads((folder / RUN).read_text())
    first = next(n for n in range(1, ATTEMPTS + 2) if not _failed(folder / f"attempt_{n}"))
    for number in range(first, ATTEMPTS + 1):
        attempt = folder / f"attempt_{number}"
        exit_code, message = train_run(folder, attempt, spec)
        if exit_code in (130, 143):
            return "stopped"
        found = _status(attempt)
        if found is None:  # it ended before train.py could write
            found = "failed"
            with replacing(attempt / FILE) as unfinished:
                unfinished.write_text(json.dumps(no_result(message), indent=1))
        if found != "failed" or number == ATTEMPTS:
            publish(folder, attempt)
            return found
    publish(folder, folder / f"attempt_{ATTEMPTS}")
    return "failed"


def _status(attempt: Path) -> str | None:
    try:
        return json.loads((attempt / FILE).read_text())["status"]
    except (OSError, ValueError, KeyError):
        return None


def _failed(attempt: Path) -> bool:
    return _status(attempt) == "failed"


def train_run(folder: Path, attempt: Path, spec: dict[str, Any]) -> tuple[int, str]:
    """Train in this process; the exit code of train.py, and its last line if it is not 0."""
    import train

    last = attempt / "checkpoints/last.ckpt"
    words = ["fit", *write_base(folder, spec["base"]), *spec["arguments"],
             "--trainer.logger.class_path=lightning.pytorch.loggers.CSVLogger",
             f"--trainer.logger.save_dir={folder}", "--trainer.logger.name=",
             f"--trainer.logger.version={attempt.name}"]  # fmt: skip
    if "shapes" in spec:
        words.append(f"--model.activation_from={folder / spec['shapes']}")
    if last.is_file():
        words.append(f"--ckpt_path={last}")
    elif attempt.exists():  # killed before its first checkpoint
        shutil.rmtree(attempt)
    try:
        train.main(words)
    except SystemExit as left:
        return int(left.code or 0), _last_line(folder / "log")
    except KeyboardInterrupt:
        return 130, ""
    except Exception as error:  # what train.py does not explain
        import traceback

        traceback.print_exc()
        return 1, f"{type(error).__name__}: {error}"
    return 0, ""


def _last_line(log: Path) -> str:
    sys.stderr.flush()
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    known = [line for line in lines if "error:" in line]
    return known[-1] if known else "it ended without a message"


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
    """The prepared runs that have not ended, in the order in which they were prepared."""
    files = sorted(
        study.glob(f"runs/*/{RUN}"), key=lambda file: (file.stat().st_mtime, file.parent.name)
    )
    return [file.parent for file in files if not ended(file.parent)]
