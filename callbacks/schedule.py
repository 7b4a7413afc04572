"""Training progress for activations that follow a schedule."""

import math
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from activations import Activation, Scheduled, set_progress

from .lightning_private import averaged_models, callbacks_of, resumed_from
from .sites import curve, detached

_UNPLANNABLE = {
    GradientAccumulationScheduler: "changes an epoch's steps: use trainer.accumulate_grad_batches",
    StochasticWeightAveraging: "adds an epoch: use WeightAveraging or EMAWeightAveraging",
}

_STORED = "supple_schedule"  # key in a checkpoint
_LINE = 0.99  # of the variance is that of a line; of ReLU it is 0.73


class ActivationSchedule(Callback):
    """Moves every scheduled activation (DSReLU, ...) from t = 0 to t = 1 during training.

    Progress is a function of the optimizer steps done, so it is right under gradient accumulation,
    on several processes and after a resume, also in the middle of an epoch. In averaged networks
    (WeightAveraging, EMAWeightAveraging) the schedule is set, not averaged: for validation, in
    checkpoints and at the end. Validation, testing and prediction without training use the value
    that was stored.

    Args:
        interval: `step`: u = steps done / steps planned, set after each step; u = 1 after the last.
            `epoch`: u = e / (E - 1) during epoch e = 0 ... E - 1, as in the papers; each validation
            uses the function of the epoch before it.
        start: the share u of the training up to which the activations stay at t = 0.
        end: the share u from which they are at t = 1; between, t = (u - start) / (end - start).
            None is 1 with `epoch`, as in the papers, and halfway from `start` to 1 with `step`:
            weights follow a function only while the learning rate is large.

    The planned length is trainer.max_epochs or trainer.max_steps, whichever ends first. With
    trainer.max_time u is the larger share, of the steps or of the time; `epoch` needs a number of
    epochs.

    A warning is given when a scheduled activation ends as nearly a straight line.

    Raises:
        ValueError: an argument is out of range, the planned length is unknown, or there are two
            schedules.
    """

    def __init__(
        self,
        interval: Literal["epoch", "step"] = "step",
        start: float = 0.0,
        end: float | None = None,
    ) -> None:
        if interval not in ("epoch", "step"):
            raise ValueError(f"interval must be 'epoch' or 'step', got {interval!r}")
        if end is None:
            end = 1.0 if interval == "epoch" else (1 + start) / 2
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"the schedule needs 0 <= start < end <= 1, got start {start} and end {end}"
            )
        self.interval, self.start, self.end = interval, start, end
        self._stored = 0.0
        self._progress: float | None = None  # None outside of training, or with nothing to move

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise if there is a second schedule."""
        self._progress = None
        count = len(callbacks_of(trainer, ActivationSchedule))
        if stage == "fit" and count > 1:
            raise ValueError(
                f"{count} ActivationSchedule callbacks would move the same functions; keep one "
                "(train.py has one: --schedule.interval, --schedule.start, --schedule.end)"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at 0, or at the progress of the checkpoint; raise if the length is unknown."""
        scheduled = (module for module in pl_module.modules() if isinstance(module, Scheduled))
        # a series that is not progressive does not change
        if not any(getattr(module, "progressive", True) for module in scheduled):
            return
        for kind, why in _UNPLANNABLE.items():
            if callbacks_of(trainer, kind):
                raise ValueError(f"ActivationSchedule cannot plan: {kind.__name__} {why}")
        by_steps = trainer.max_steps > 0 and trainer.max_epochs == -1
        if not pl_module.automatic_optimization and not by_steps:
            raise ValueError(
                "ActivationSchedule cannot plan manual optimization, where every optimizer's steps "
                "count: set trainer.max_steps, and trainer.max_epochs to -1"
            )
        for name in _lines(pl_module):
            rank_zero_warn(
                f"{name} is nearly a straight line at the end of its schedule, and a network of "
                "lines is linear: give it another end (DSReLU: --model.activation.normalized true)"
            )
        now, loaded = self.progress(trainer), _states(pl_module)
        if resumed_from(trainer) and now < self._stored - 1e-3:
            rank_zero_warn(
                f"The scheduled activations go back from t = {self._stored:.3g} to {now:.3g}: the "
                "training is planned longer than the one that goes on"
            )
        self._move(trainer, now)
        moved = [
            name
            for name, state in _states(pl_module).items()
            if not torch.allclose(loaded[name], state)
        ]
        if moved and not resumed_from(trainer):
            others = f" and {len(moved) - 1} more" if moved[1:] else ""
            rank_zero_warn(
                f"The schedule begins again at t = {now:.3g}, although {moved[0]}{others} moved in "
                "an earlier training: the network computes other values than at its end. To go on "
                "with the functions as they were, give them no schedule (DSReLU: the same a and b; "
                "a series: progressive: false; a fade: fold it first, activations.fold)"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set a new epoch's progress before its first step."""
        if self._progress is not None and self.interval == "epoch":
            self._move(trainer, self.progress(trainer))

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Set the progress after each step."""
        if self._progress is not None and self.interval == "step":
            self._move(trainer, self.progress(trainer))

    def on_validation_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Set averaged networks too, which are validated and stored in checkpoints."""
        self._move(trainer, self._progress)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set averaged networks too; store the progress."""
        self._move(trainer, self._progress)
        if self._progress is not None:
            checkpoint[_STORED] = self._progress

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the stored progress, to compare the present plan with it."""
        self._stored = checkpoint.get(_STORED, 0.0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set averaged networks too, which replace the trained one; say where t ended."""
        self._move(trainer, self._progress)
        if self._progress is not None and self._progress < 1:
            rank_zero_info(
                f"Training ended with the scheduled activations at t = {self._progress:.3g} of 1."
            )
        self._progress = None

    def progress(self, trainer: Trainer) -> float:
        """The schedule's t in [0, 1] at the trainer's present step."""
        done, planned = trainer.global_step, trainer.estimated_stepping_batches
        is_planned = 0 < planned < math.inf  # -1 and inf stand for an unknown number
        timers = callbacks_of(trainer, Timer)
        timers = [timer for timer in timers if timer.time_remaining() is not None]
        if self.interval == "epoch":
            batches = trainer.num_training_batches
            if not is_planned or batches == math.inf or timers:
                raise ValueError(
                    "a schedule with interval: epoch needs a number of epochs: set "
                    "trainer.max_epochs or trainer.max_steps, data with a length, and no "
                    "trainer.max_time; or choose interval: step"
                )
            steps = math.ceil(batches / trainer.accumulate_grad_batches)
            last = math.ceil(planned / steps) - 1
            share = min(done // steps, last) / max(last, 1)
        else:
            shares = [done / planned] if is_planned else []
            for timer in timers:
                elapsed, left = timer.time_elapsed(), timer.time_remaining() or 0.0
                # each process has its own clock
                shares.append(trainer.strategy.broadcast(elapsed / max(elapsed + left, 1e-9)))
            if not shares:
                raise ValueError(
                    "ActivationSchedule needs a planned length: set trainer.max_epochs, "
                    "trainer.max_steps (data without a length need it) or trainer.max_time"
                )
            share = max(shares)
        return min(max((share - self.start) / (self.end - self.start), 0.0), 1.0)

    def _move(self, trainer: Trainer, progress: float | None) -> None:
        self._progress = progress
        if progress is not None:
            for model in (trainer.lightning_module, *averaged_models(trainer)):
                set_progress(model, progress)


def _states(model: nn.Module) -> dict[str, Tensor]:
    """Where each scheduled activation is, by its name."""
    names = [name for name, module in model.named_modules() if isinstance(module, Scheduled)]
    states = {name: [*model.get_submodule(name).buffers(recurse=False)] for name in names}
    return {
        name: torch.cat([each.detach().flatten().double().cpu() for each in state])
        for name, state in states.items()
        if state
    }


@torch.no_grad()
def _lines(model: nn.Module) -> list[str]:
    """The kinds of scheduled activations that end as a line, for standard normal inputs."""
    found, grid = dict[str, bool](), torch.special.ndtri((torch.arange(99) + 0.5) / 99)
    for module in model.modules():
        name = type(module).__name__
        if isinstance(module, Activation) and isinstance(module, Scheduled) and name not in found:
            twin: Any = detached(module)
            twin.set_progress(1.0)
            x, y = grid.double(), curve("", twin, grid, {}).double().mean(1)
            found[name] = float(torch.corrcoef(torch.stack([x, y]))[0, 1] ** 2) > _LINE
    return [name for name, line in found.items() if line]
