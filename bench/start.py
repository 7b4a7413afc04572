"""From the command to the first step of training, against importing torch and lightning alone.

Every run is a process of its own, and they take turns. `cold` finds nothing compiled, `warm` what
the cold run before it has left. Phases, in seconds after the command: the data, the network and the
callbacks exist (parse); training starts (prepare: data read, network set up); the first optimizer
step is done (step). `import train` is the share of train.py's own imports. Processor time, of a
run and the compilers that it starts, leaves out what other jobs do to the clock on the wall.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .measure import spread
from .report import ROOT, machine, write

CASES = ("off", "activations cold", "activations warm", "model cold", "model warm")
PHASES = ("parse", "prepare", "step")
_MARK = "bench start:"


class Phases(Callback):
    """Says when the run reaches each phase, and ends it after the first step."""

    def __init__(self) -> None:
        self._say("parse")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything stands ready."""
        self._say("prepare")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The first step is done; what comes after it is not measured."""
        self._say("step")
        os._exit(0)

    @staticmethod
    def _say(phase: str) -> None:
        print(f"\n{_MARK} {phase} {time.time()}", flush=True)


def run(code: list[str], cache: str, threads: int) -> dict[str, float]:
    """Seconds from starting Python on `code` to each phase it tells of, and to its `end`.

    Raises:
        RuntimeError: it failed.
    """
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(ROOT),
    }
    start, before = time.time(), _processor()
    done = subprocess.run(
        [sys.executable, *code], cwd=cache, env=environment, capture_output=True, text=True
    )
    found = {"end": time.time() - start, "processor": _processor() - before}
    if done.returncode:
        raise RuntimeError(f"{' '.join(code)} failed: {done.stderr[-1000:]}")
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            phase, when = line.removeprefix(_MARK).split()
            found[phase] = float(when) - start
    return found


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for the imports alone, one for those of train.py, one for each case."""
    fit = [
        *(str(ROOT / "train.py"), "fit", "--data", options.data),
        *("--model.backbone", options.backbone, "--model.activation", options.activation),
        *("--trainer.callbacks+", "bench.start.Phases"),
        *("--trainer.accelerator", options.accelerator),
        *([] if options.root is None else ["--data.root", str(options.root.resolve())]),
    ]  # fmt: skip
    times: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            codes = {"import torch, lightning": ["-c", "import torch, lightning"],
                     "import train": ["-c", "import train"]}  # fmt: skip
            for case in options.cases:
                codes[case] = [*fit, "--model.compile", case.split()[0]]
            for name, code in codes.items():
                mode, _, state = name.partition(" ")
                own = Path(cache, mode if state in ("cold", "warm") else "none")
                own.mkdir(exist_ok=True)
                times.setdefault(name, []).append(run(code, str(own), options.threads))
    rows = []
    base, of_processor = (
        statistics.median(each[key] for each in times["import torch, lightning"])
        for key in ("end", "processor")
    )
    for name, found in times.items():
        last = "step" if "step" in found[0] else "end"
        ends = [each[last] for each in found]
        processor = statistics.median(each["processor"] for each in found)
        row: dict[str, Any] = {
            "case": name,
            "seconds": statistics.median(ends),
            "least_s": min(ends),
            "spread_percent": spread(ends),
            "ratio": statistics.median(ends) / base,
            "processor_s": processor,
            "processor_ratio": processor / of_processor,
        }
        for phase in PHASES:
            row[phase] = statistics.median(e[phase] for e in found) if last == "step" else None
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [f"{'':24} {'seconds':>7} {'spread %':>8} {'ratio':>6} {'processor':>9} {'ratio':>6} "
             f"{'parse':>8} {'prepare':>8} {'step':>8}"]  # fmt: skip
    for row in rows:
        phases = ["" if row[phase] is None else f"{row[phase]:.1f}" for phase in PHASES]
        lines.append(
            f"{row['case']:24} {row['seconds']:7.1f} {row['spread_percent']:8.1f} "
            f"{row['ratio']:6.2f} {row['processor_s']:9.1f} {row['processor_ratio']:6.2f} "
            + " ".join(f"{phase:>8}" for phase in phases)
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench start", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    cases = ["off", "activations cold", "activations warm"]
    add("--cases", nargs="+", choices=CASES, default=cases, help="a cold one before its warm one")
    add("--data", default="Digits", help="the data set; Digits needs no files")
    add("--root", type=Path, help="its folder")
    add("--backbone", default="resnet20")
    add("--activation", default="CosLU")
    add("--accelerator", default="auto")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=1, help="of the CPU")
    add("--out", type=Path, default=Path("runs/bench"), help="folder of the JSON and CSV")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds must be >= 2 for a median and a spread, got {options.rounds}")
    for case in options.cases:
        mode, _, state = case.partition(" ")
        if state == "warm" and f"{mode} cold" not in options.cases:
            parser.error(f"--cases '{case}' needs '{mode} cold' before it")
    return options


def main() -> None:
    """Measure, print the table, write JSON and CSV."""
    options = parse()
    options.cases.sort(key=CASES.index)
    settings = {k: v if k != "root" else str(v) for k, v in vars(options).items() if k != "out"}
    about = {**machine(), "settings": settings}
    print(
        f"{options.backbone} with {options.activation} on {options.data}, {options.rounds} rounds, "
        f"{options.threads} thread(s); {about['processor']}, load {about['load']:.1f}, "
        f"torch {about['torch']}, commit {about['commit']}",
        flush=True,
    )
    rows = measure(options)
    print(show(rows))
    write(options.out, "start", about, rows)
    print(f"{options.out / 'start'}.json, .csv")


if __name__ == "__main__":
    main()
