"""`python -m bench NAME`: run the measurement of `bench/NAME.py`.

Each of these files has `add_options(parser)` and `measure(options)`, which returns a table, and may
have `CHART`, the name of a column that is drawn.
"""

import importlib
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import torch

import bench
from callbacks.machine import machine

from . import report

NAMES = ("activations", "step", "infer", "loop", "data", "start", "gpu")


def main() -> None:
    """Run the measurement that the first argument names; without it, list all of them."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(bench.__doc__)
        return
    if name not in NAMES:
        sys.exit(f"python -m bench: no measurement {name!r}: choose from {', '.join(NAMES)}")
    module = importlib.import_module(f"bench.{name}")
    parser = ArgumentParser(f"python -m bench {name}", description=module.__doc__)
    parser.formatter_class = RawDescriptionHelpFormatter
    module.add_options(parser)
    parser.add_argument("--threads", type=report.at_least(1), default=1, help="of the CPU (1)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the files")
    options = parser.parse_args(sys.argv[2:])
    torch.set_num_threads(options.threads)
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    about = {**machine(), "settings": settings}
    print(report.title(about), flush=True)
    table = module.measure(options)
    print("nothing was measured" if table.empty else report.show(table))
    flags = [key for key, value in settings.items() if value is True]
    path = options.out / "-".join([name, *flags])
    report.write(path, about, table)
    if hasattr(module, "CHART"):
        report.draw(table, module.CHART, report.title(about), path.with_suffix(".png"))
    print(f"written: {path}.*; the columns: python -m bench, {parser.prog} --help")


if __name__ == "__main__":
    main()
