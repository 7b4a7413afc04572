"""What every measurement is written with: the machine, the versions, the commit."""

import csv
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import torch

ROOT = Path(__file__).resolve().parents[1]


def machine() -> dict[str, Any]:
    """Processor, cores, GPU, versions and commit of this run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def write(folder: Path, name: str, about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Write `name`.json (all of it) and `name`.csv (the rows) into `folder`, each at once."""
    folder.mkdir(parents=True, exist_ok=True)
    _whole(folder / f"{name}.json", lambda file: json.dump({**about, "rows": rows}, file, indent=1))

    def table(file: TextIO) -> None:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

    _whole(folder / f"{name}.csv", table)


def _whole(path: Path, fill: Callable[[TextIO], None]) -> None:
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", newline="") as file:
        fill(file)
    unfinished.replace(path)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
