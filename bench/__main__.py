"""`python -m bench NAME`: run the measurement `bench/NAME.py`; each has its own `--help`."""

import importlib
import sys
from pathlib import Path


def main() -> None:
    """Run the measurement that the first argument names."""
    files = Path(__file__).parent.glob("[a-z]*.py")
    names = sorted({file.stem for file in files} - {"measure", "report"})
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"usage: python -m bench {' | '.join(names)} [--help]")
    name = sys.argv.pop(1)
    sys.argv[0] = f"python -m bench {name}"
    importlib.import_module(f"bench.{name}").main()


if __name__ == "__main__":
    main()
