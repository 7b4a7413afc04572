"""`python -m bench activations | step | loop | start | data`; each has its own `--help`."""

import importlib
import sys

PARTS = ("activations", "step", "loop", "start", "data")


def main() -> None:
    """Run the part that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        sys.exit(f"usage: python -m bench {' | '.join(PARTS)} [--help]")
    importlib.import_module(f"bench.{sys.argv.pop(1)}").main()


if __name__ == "__main__":
    main()
