"""`python -m bench NAME`: run the measurement of `bench/NAME.py`.

Each of these files has `add_options(parser)` and `measure(options)`, which returns a table, and may
have `CHART`, the name of a column that is drawn.
"""

import importlib
import itertools
import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import torch

import bench
from activations.files import check_writable
from callbacks.machine import machine

from . import report

LISTS = {"activations", "cases", "dtypes", "engines", "modes", "networks", "only", "parts"}
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
    for key in vars(options).keys() & LISTS:
        if given := getattr(options, key):
            setattr(options, key, list(dict.fromkeys(given)))  # each once
    device = getattr(options, "device", getattr(options, "accelerator", "cpu"))
    if device in ("cuda", "gpu") and not torch.cuda.is_available():
        sys.exit(f"python -m bench {name}: there is no GPU here, or torch has no CUDA")
    torch.set_num_threads(options.threads)
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    about = {**machine("cuda" if device == "gpu" else device), "settings": settings}
    print(report.title(about), flush=True)
    try:
        check_writable(options.out)
        path = place(options.out, name, settings)
        table = module.measure(options)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"python -m bench {name}: {error}")
    if table.empty:
        sys.exit(f"python -m bench {name}: nothing was measured")
    print(report.show(table))
    report.write(path, about, table)
    if hasattr(module, "CHART"):
        report.draw(table, module.CHART, report.title(about), path.with_suffix(".png"))
    print(f"written: {path}.*; the columns: python -m bench, {parser.prog} --help")


def place(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    """Where results go, without a suffix: those with other settings are not replaced."""
    name = "-".join([name, *(key for key, value in settings.items() if value is True)])
    now = json.loads(json.dumps(settings, default=str))
    for number in itertools.count(1):
        path = folder / (name if number == 1 else f"{name}_{number}")
        file = path.with_suffix(".json")
        if not file.exists() or json.loads(file.read_text()).get("settings") == now:
            return path
    raise AssertionError


if __name__ == "__main__":
    main()
