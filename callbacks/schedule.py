"""Training progress for activations that follow a schedule."""

import math
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer

from activations import set_progress


class ActivationSchedule(Callback):
    """Moves every scheduled activation (DSReLU, ...) through the planned training.

    Progress is a function of the optimizer steps done, so it is right under gradient accumulation,
    on several processes and after a resume, also in the middle of an epoch.

    Args:
        interval: `step`: t = steps done / steps planned, set after each step; t = 1 after the last.
            `epoch`: t = e / (E - 1) during epoch e = 0 ... E - 1, as the papers do; each validation
            sees the function that was trained with.

    Raises:
        ValueError: the planned length cannot be told.
    """

    def __init__(self, interval: Literal["epoch", "step"] = "step") -> None:
        if interval not in ("epoch", "step"):
            raise ValueError(f"interval must be 'epoch' or 'step', got {interval!r}")
        self.interval = interval
        self._active = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start where the run stands: at 0, or where a checkpoint left it."""
        self._active = set_progress(pl_module, 0.0) > 0
        if self._active:
            set_progress(pl_module, self.progress(trainer))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Enter a new epoch's progress before its first step."""
        if self._active and self.interval == "epoch" and batch_idx == 0:
            set_progress(pl_module, self.progress(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow the steps done."""
        if self._active and self.interval == "step":
            set_progress(pl_module, self.progress(trainer))

    def progress(self, trainer: Trainer) -> float:
        """Training progress in [0, 1] at the trainer's present step."""
        if any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks):  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(
                "ActivationSchedule cannot plan with GradientAccumulationScheduler, which changes "
                "the steps of an epoch: use trainer.accumulate_grad_batches"
            )
        planned = trainer.estimated_stepping_batches
        if self.interval == "step" and planned == float("inf"):
            return self._elapsed(trainer)
        if not 0 < planned < float("inf"):
            raise ValueError(
                "ActivationSchedule needs a planned length: set trainer.max_epochs or "
                "trainer.max_steps (or, with interval: step, trainer.max_time)"
            )
        if self.interval == "step":
            return min(trainer.global_step / planned, 1.0)
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        epochs = math.ceil(planned / steps)
        return min(trainer.global_step // steps / max(epochs - 1, 1), 1.0)

    @staticmethod
    def _elapsed(trainer: Trainer) -> float:
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None:
                done = callback.time_elapsed()
                return min(done / max(done + left, 1e-9), 1.0)
        raise ValueError("ActivationSchedule needs trainer.max_epochs, max_steps or max_time")
