"""`python -m bench NAME`: run the measurement `bench/NAME.py`."""

import importlib
import platform
import subprocess
import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).parent


def main() -> None:
    """Print what was measured on, then run the measurement that the first argument names."""
    names = sorted(file.stem for file in FOLDER.glob("[a-z]*.py"))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"usage: python -m bench {{{','.join(names)}}} [--help]")
    name = sys.argv.pop(1)
    git = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    machine = f"{platform.machine()}, {gpu}, torch {torch.__version__}, commit {commit}"
    sys.argv[0] = f"python -m bench {name}"
    print(f"{' '.join(sys.argv)}: {machine}", flush=True)
    importlib.import_module(f"bench.{name}").main()


if __name__ == "__main__":
    main()
