"""What a finished run tells its user."""

import os
import sys
from pathlib import Path

from lightning.pytorch import Trainer

from .monitor import ActivationMonitor

_NAMES = {"acc": "accuracy", "f1": "macro-F1", "auroc": "AUROC", "acc_top5": "top-5"}


def run_summary(trainer: Trainer, stage: str) -> str:
    """The learned parameters, the results of `stage` (val or test), and where the files are.

    Every process calls it, since all take part in finding the folder.
    """
    lines = []
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    for monitor in (c for c in callbacks if isinstance(c, ActivationMonitor) and c.last):
        lines += ["", "What the activations learned", monitor.table()]
    results = {name: trainer.callback_metrics.get(f"{stage}/{name}") for name in _NAMES}
    found = [f"{_NAMES[name]} {value:.4f}" for name, value in results.items() if value is not None]
    lines += ["", f"{stage:<12} {', '.join(found)}"]
    if trainer.loggers and trainer.log_dir:
        folder = Path(trainer.log_dir)
        lines.append(f"{'run':<12} {folder}")
        if best := getattr(trainer.checkpoint_callback, "best_model_path", ""):
            lines.append(f"{'checkpoint':<12} {os.path.relpath(best)}")
        if (folder / "activations.png").is_file():
            lines.append(f"{'picture':<12} {folder / 'activations.png'}")
        python = Path(sys.executable)
        python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
        lines.append(f"{'TensorBoard':<12} {python} -m tensorboard.main --logdir {folder.parent}")
    return "\n".join(lines)
