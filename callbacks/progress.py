"""The progress of a run: a bar in a terminal, elsewhere a line an epoch."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """A bar in a terminal; elsewhere, such as in a log file, one line an epoch.

    Args:
        refresh_rate: steps between two updates; for each update the CPU waits for the GPU.
    """

    def __init__(self, refresh_rate: int = 20) -> None:
        super().__init__(refresh_rate)
        if not sys.stdout.isatty():
            self.disable()

    def enable(self) -> None:
        """Show the bar in a terminal; Lightning's finders of a rate or a batch size call this."""
        if sys.stdout.isatty():
            super().enable()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Add the training loss; logged with `prog_bar=True` it would be read at every step."""
        loss = trainer.callback_metrics.get("train/loss")
        shown = {} if loss is None else {"train/loss": loss.item()}
        return shown | super().get_metrics(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line if there is no bar."""
        if not self.is_disabled:
            super().on_train_epoch_end(trainer, pl_module)
        elif trainer.is_global_zero and not sys.stdout.isatty():
            metrics = self.get_metrics(trainer, pl_module).items()
            found = [f"{name} {value:.4g}" for name, value in metrics if isinstance(value, float)]
            print(f"epoch {trainer.current_epoch}: {', '.join(found)}", flush=True)
