"""What Lightning does not promise or does not declare.

`tests/callbacks/test_lightning_private.py` fails by name when one of these uses breaks.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from torch.optim.swa_utils import AveragedModel

Kind = TypeVar("Kind", bound=Callback)


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """The callbacks of one kind; `Trainer` sets its attribute `callbacks` without declaring it."""
    return [each for each in cast(Any, trainer).callbacks if isinstance(each, kind)]


def averaged_models(trainer: Trainer) -> Iterator[AveragedModel]:
    """The averages of the network that callbacks of `trainer` hold, in attributes of any name."""
    for callback in callbacks_of(trainer, Callback):
        found = [value for value in vars(callback).values() if isinstance(value, AveragedModel)]
        if isinstance(callback, WeightAveraging) and not found:
            raise RuntimeError(
                f"{type(callback).__name__} holds no AveragedModel in this version of lightning: "
                "scheduled activations would be averaged. Use lightning 2.6, or no averaging"
            )
        yield from found


def forget_averages(trainer: Trainer) -> None:
    """Let a test of a checkpoint take its averaged weights, by which it was chosen.

    A callback that averages would put back those of the training, which the file holds, too.
    """
    for callback in callbacks_of(trainer, WeightAveraging):
        callback._average_model = None


def take_averages(trainer: Trainer, module: LightningModule) -> None:
    """Give the network its averaged weights, as at the end of a training, which may be left out."""
    for callback in callbacks_of(trainer, WeightAveraging):
        if callback._average_model is not None:
            callback._copy_average_to_current(module)


def count_by_epochs(trainer: Trainer) -> None:
    """Let a resumed run go on behind a whole epoch; with `max_steps` Lightning would end it twice.

    Its batches would then be those of the epoch after it.
    """
    cast(Any, trainer).fit_loop._iteration_based_training = lambda: False


def resumed_from(trainer: Trainer) -> str:
    """The checkpoint from which the run goes on, not that which a tuner restores; or nothing."""
    path = str(trainer.ckpt_path or "")
    tuner = Path(path).name.startswith((".lr_find_", ".scale_batch_size_"))
    return "" if tuner else path


def goes_on_inside(checkpoint: dict[str, Any]) -> bool:
    """Whether `max_steps` has cut the epoch of a checkpoint, whose end is then taken back."""
    loops = checkpoint["loops"]["fit_loop"]
    progress = loops["epoch_progress"]
    counts = progress["current"]
    cut = not loops["epoch_loop.batch_progress"]["is_last_batch"]
    if not cut or counts["processed"] != counts["completed"] + 1:
        return False
    for each in progress.values():
        each["processed"] -= 1
    return True


def has_stopped(stop: EarlyStopping) -> bool:
    """Whether early stopping had ended the run, and would with its present patience."""
    waits = stop.stopping_reason.name in ("NOT_STOPPED", "PATIENCE_EXHAUSTED")
    return not waits or stop.wait_count >= max(stop.patience, 1)


def spawns(trainer: Trainer) -> bool:
    """Whether the processes of the strategy are not started by their own command."""
    return type(trainer.strategy.launcher).__name__ == "_MultiProcessingLauncher"


def at_epoch_end(trainer: Trainer) -> bool:
    """Whether the present epoch's steps and validation are done, or none has begun."""
    progress = cast(Any, trainer).fit_loop.epoch_progress.current
    return progress.processed >= progress.started


def validates_next(trainer: Trainer) -> bool:
    """Whether Lightning validates after the present step: a run resumed from here would not."""
    loop = cast(Any, trainer).fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def logged_next(trainer: Trainer) -> dict[str, float]:
    """What Lightning logs after the hooks, and so the checkpoints, of a step or of an epoch."""
    whole = at_epoch_end(trainer)
    if not (whole or cast(Any, trainer)._logger_connector.should_update_logs):
        return {}
    found = cast(Any, trainer).fit_loop.epoch_loop._results.metrics(on_step=not whole)["log"]
    now = {"epoch": float(trainer.current_epoch)} if found else {}
    return {name: value.item() for name, value in found.items()} | now


def logged_in_training(trainer: Trainer) -> dict[str, Any]:
    """Key -> what the training steps of this epoch have logged, for its end."""
    results = cast(Any, trainer).fit_loop.epoch_loop._results
    return {key: each for key, each in results.items() if each.meta.on_epoch and not each.has_reset}
