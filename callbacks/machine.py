"""On what a run or a measurement was made: machine, versions, commit, code; its memory."""

import ctypes
import hashlib
import os
import platform
import re
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
# what decides the numbers of a run
CODE = ("activations", "callbacks", "datamodules", "models", "options.py", "train.py")


def machine(device: str = "cuda") -> dict[str, Any]:
    """Processor, cores, load, GPU if the run used it, versions and commit of this run."""
    used = device == "cuda"
    return {
        "date": now(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if used and torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def keep_memory() -> None:
    """Let this process keep the memory that it frees, where the C library is glibc.

    A training step needs the same sizes as the one before. By default, tensors above 32 MiB and
    what is free at the end of the heap go back to the system, and each new page is zeroed again.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        # before glibc 2.35 at most 32 MiB; the second call alone would make small tensors slow
        if mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25):
            mallopt(trim_threshold, 2**31 - 1)


def now() -> str:
    """The time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


@cache
def commit() -> str:
    """The commit; a plus sign says that files of the repository differ from it.

    A copy that a study runs from has a file `COMMIT` instead of a repository.
    """
    if (written := ROOT / "COMMIT").is_file():
        return written.read_text().strip()
    git = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@cache
def code() -> str:
    """The first 12 digits of the SHA-256 of the code that decides the numbers of a run."""
    return code_of(ROOT)


def code_of(root: Path) -> str:
    """That of the code in a folder."""
    files = sorted(file for part in CODE for file in [root / part, *(root / part).rglob("*.py")])
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
