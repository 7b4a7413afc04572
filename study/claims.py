"""Who works on what: a file that a living process holds."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from activations.files import replacing

HEARTBEAT = 30.0  # seconds
SILENT = 180.0  # so long a claim of another machine is believed


def here() -> str:
    """This machine since it was started, and what in it sees the same processes."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def owner(path: Path) -> dict[str, Any] | None:
    """The living process that holds a claim: host, pid and start; None if there is none.

    A process of this machine is looked up; one of another is believed for three minutes after its
    last heartbeat.
    """
    try:
        found = json.loads(path.read_text())
        host, pid, started = found["host"], found["pid"], found["started"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return {"host": "?", "pid": 0} if _age(path) < SILENT else None
    lives = _started(pid) == started if host == here() else _age(path) < SILENT
    return found if lives else None


def _age(path: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the disk that the machines share."""
    clock = path.with_name(".clock")
    try:
        clock.touch()
        return clock.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return SILENT
    except OSError:  # a full disk
        return time.time() - path.stat().st_mtime


def _started(pid: int) -> str | None:
    """When a process of this machine began; None if it does not live."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except PermissionError:
        return ""
    except OSError:
        return None
    return ""


def claim(path: Path) -> bool:
    """Take `path` for this process; False if another one holds it."""
    mine = {"host": here(), "pid": os.getpid(), "started": _started(os.getpid())}
    with FileLock(path.with_name(f".{path.name}.lock")):
        if owner(path) is not None:
            return False
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(mine))
    return True


def is_mine(path: Path) -> bool:
    """Whether this process holds a claim."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_text())
        return found["host"] == here() and found["pid"] == os.getpid()
    return False


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """Keep a claim alive by touching it every 30 s, and give it up at the end.

    A process that was asleep so long that another one took its claim is told to end.
    """
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT):
            if path.exists() and not is_mine(path):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if is_mine(path):
            path.unlink(missing_ok=True)
