"""The text that a finished run prints."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from .checkpoints import best_path
from .lightning_private import callbacks_of
from .monitor import ActivationMonitor
from .record import run_folder
from .results import Results

_NAMES = {"acc": "accuracy", "acc_majority": "always the commonest class", "f1": "macro-F1",
          "auroc": "AUROC", "ece": "ECE", "acc_top5": "top-5", "acc_many": "many-shot",
          "acc_medium": "medium-shot", "acc_few": "few-shot"}  # fmt: skip


def run_results(trainer: Trainer, stage: str, which: str = "") -> str:
    """The metrics of the last epoch (stage val) or of the last test (stage test).

    Args:
        trainer: of the run.
        stage: val or test.
        which: the weights that were tested, last or best, if both are.
    """
    metrics = trainer.callback_metrics
    results = {name: metrics.get(f"{stage}/{name}") for name in _NAMES}
    found = [f"{_NAMES[name]} {value:.4f}" for name, value in results.items() if value is not None]
    return f"{f'{stage} {which}':<12} {', '.join(found) or 'nothing was measured'}"


def run_summary(trainer: Trainer, results: list[str]) -> str:
    """The learned parameters, the texts of the results, and the paths of the files.

    Every process must call this: Lightning's `log_dir` is agreed on by all of them.
    """
    lines = []
    monitors = callbacks_of(trainer, ActivationMonitor)
    for monitor in (monitor for monitor in monitors if monitor.last):
        lines += ["", "What the activations learned", monitor.table()]
    lines += ["", *results]
    paths: dict[str, object] = {}
    if trainer.loggers and (folder := run_folder(trainer)):
        paths["run"] = folder
        if best := best_path(trainer):
            paths["checkpoint"] = os.path.relpath(best)
        python = Path(sys.executable)
        python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
        if isinstance(trainer.loggers[0], TensorBoardLogger):
            logdir = shlex.quote(str(folder.parent))
            paths["TensorBoard"] = f"{python} -m tensorboard.main --logdir {logdir}"
    for record in (monitor.record for monitor in monitors if monitor.record):
        pictures = sorted(file.name for file in record.path.parent.glob("*s.png"))
        paths["activations"] = ", ".join([str(record.path), *pictures])
    return "\n".join([*lines, *(f"{name:<12} {text}" for name, text in paths.items())])


def run_details(trainer: Trainer) -> list[str]:
    """What the data report of the last test, or its results for each class."""
    reports = [each.report for each in callbacks_of(trainer, Results) if each.report]
    return reports or _classes(trainer.callback_metrics)


def _classes(metrics: Mapping[str, Tensor]) -> list[str]:
    """A line with the test's results for each class, of data with few classes."""
    columns = ("sensitivity", "predictivity", "f1")
    names = {tag.partition("/")[2]: None for tag in metrics if tag.startswith("test_")}
    lines = [] if not names else [f"{'class':<12} sensitivity  predictivity  F1"]
    for name in names:
        values = (metrics.get(f"test_{column}/{name}") for column in columns)
        cells = ("-" if value is None else f"{value:.4f}" for value in values)
        lines.append(f"{name:<12} {next(cells):<12} {next(cells):<13} {next(cells)}")
    return lines
