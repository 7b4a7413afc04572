"""From the command to the first step of training, against importing torch and lightning alone.

Every run is a process of its own. A `cold` case finds nothing compiled, a `warm` one what a run
before, which does not count, has left. Phases, in seconds after the command: the data, the network
and the callbacks exist (parse); the data are read, and training starts (prepare); the first
optimizer step is done, or the imports (step). Processor time includes that of the compilers.
"""

import json
import math
import os
import resource
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback
from pandas import DataFrame

from callbacks.machine import ROOT

from .measure import in_turns, summarize
from .report import at_least

CASES = ["off", "activations cold", "activations warm", "model cold", "model warm"]
IMPORTS = ["import torch, lightning", "import train"]


def add_options(parser: ArgumentParser) -> None:
    """The options of this measurement."""
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=CASES[:3])
    add("--data", default="Digits", help="the data set; Digits needs no files")
    add("--root", help="its folder")
    add("--backbone", default="resnet20")
    add("--activation", default="CosLU")
    add("--accelerator", default="auto")
    add("--rounds", type=at_least(2), default=3)


class Phases(Callback):
    """Ends the run after the first step, and prints when it has reached each phase."""

    def __init__(self) -> None:
        self.reached = {"parse": time.time()}

    def on_train_start(self, *_: Any, **__: Any) -> None:
        """All is ready for the first batch."""
        self.reached["prepare"] = time.time()

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """The first step is done; what comes after it is not measured."""
        print("\n" + json.dumps({**self.reached, "step": time.time()}), flush=True)
        os._exit(0)


def run(code: list[str], threads: int, cache: str | None = None) -> dict[str, float]:
    """Run Python with the arguments `code`; what is compiled is kept in `cache`, if given.

    Returns the seconds to each phase, from the last line of its output, and its processor time.

    Raises:
        RuntimeError: it failed.
    """
    with TemporaryDirectory() as folder:
        settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
        settings["TORCHINDUCTOR_CACHE_DIR"] = cache or folder
        start, before = time.time(), _processor()
        done = subprocess.run([sys.executable, *code], cwd=folder, env={**os.environ, **settings},
                              capture_output=True, text=True)  # fmt: skip
        processor = _processor() - before
    if done.returncode:
        raise RuntimeError(f"{' '.join(code)} failed: {done.stderr[-1000:]}")
    reached = json.loads(done.stdout.splitlines()[-1])
    phases = ("parse", "prepare", "step")
    return {name: reached.get(name, math.nan) - start for name in phases} | {"processor": processor}


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(options: Namespace) -> DataFrame:
    """One row for the imports alone, one for those of train.py, one for each case."""
    fit = [
        *(str(ROOT / "train.py"), "fit", "--data", options.data),
        *("--model.backbone", options.backbone, "--model.activation", options.activation),
        *("--trainer.callbacks+", "bench.start.Phases"),
        *("--trainer.accelerator", options.accelerator),
        *(["--data.root", str(Path(options.root).resolve())] if options.root else []),
    ]  # fmt: skip
    with TemporaryDirectory() as cache:
        runs = {}
        for line in IMPORTS:
            code = f"{line}; import json, time; print(json.dumps({{'step': time.time()}}))"
            runs[line] = partial(run, ["-c", code], options.threads)
        for case in sorted(options.cases, key=CASES.index):
            mode, _, state = case.partition(" ")
            code = [*fit, "--model.compile", mode]
            runs[case] = partial(run, code, options.threads, cache if state == "warm" else None)
            if state == "warm":
                runs[case]()
        times = in_turns(runs, options.rounds)
    phases = {f"{name}_s": times.pop(name).median() for name in ("parse", "prepare")}
    table = summarize(times, {"imports": lambda _: IMPORTS[0]}, "s").assign(**phases)
    return table.rename_axis("case").reset_index()
