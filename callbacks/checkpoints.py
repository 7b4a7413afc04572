"""A run's best and last checkpoint, and what lets a resumed run go on exactly."""

import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.utilities import rank_zero_warn

from activations.files import remove_unfinished, replacing

from .board import forget_later
from .lightning_private import (
    at_epoch_end,
    averaged_models,
    callbacks_of,
    count_by_epochs,
    goes_on_inside,
    has_stopped,
    logged_in_training,
    logged_next,
    resumed_from,
    take_averages,
    validates_next,
)
from .monitor import ActivationMonitor
from .record import run_folder

_OF_A_RUN = ("config.yaml", "results.json", "test.npz", "*.csv", "*.png")
_OF_A_CHOICE = {"monitor": None, "mode": "min", "save_top_k": 1, "save_last": None}
_RESUME = "supple_resume"  # key in a checkpoint
_ANEW = (
    "would begin a resumed run at its first epoch, with trained weights: leave it out, and give "
    "what it has found"
)
_NOT_RESUMED: dict[type, str] = {
    StochasticWeightAveraging: "forgets its average when a run is resumed: use "
    "EMAWeightAveraging, or leave out --ckpt_path",
    ModelPruning: "forgets what it has pruned when a run is resumed: leave out --ckpt_path",
    LearningRateFinder: _ANEW,
    BatchSizeFinder: _ANEW,
}
_FORGETFUL = (StochasticWeightAveraging, ModelPruning)
TWICE = 1.0  # seconds: a program and its launcher are told of the same signal


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it when it is on the disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`; what is not a path of this machine is left to Lightning."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path)) as unfinished, unfinished.open("wb") as file:
            torch.save(checkpoint, file)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint; a resumed run takes over the best score and its file.

    The score is what the file itself says: of a run that was killed after it had saved a better
    network, the file is newer than the checkpoint from which it goes on.

    Args:
        dirpath: its folder; by default that of the logger.
        filename: without suffix.
        monitor: the metric; "auto" is the one that the data set names, or `val/acc`. Data without
            validation name None: then the last checkpoint is the best.
        mode: whether the least (min) or the largest (max) is the best; "auto" is min for a loss or
            an error (a name that ends with loss, error, ece, mae or mse).
        more: other arguments of Lightning's ModelCheckpoint.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        mode: Literal["auto", "min", "max"] = "auto",
        **more: Any,
    ) -> None:
        with_names = more.get("auto_insert_metric_name", True)
        inside = filename if with_names else re.sub(r"\{[^}]*\}", "", filename or "")
        if "/" in (inside or ""):
            raise ValueError(
                f"filename {filename!r} would be a folder: leave out '/', or for the name of a "
                "metric, set auto_insert_metric_name: false"
            )
        self._chooses = mode == "auto"
        mode = _mode(monitor) if mode == "auto" else mode
        super().__init__(dirpath, filename, monitor, mode=mode, **more)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, but no network whose output is NaN: its accuracy is that of the first class."""
        if not trainer.callback_metrics.get("val/loss", torch.tensor(0.0)).isnan():
            super().on_validation_end(trainer, pl_module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the metric, save whole files, and delete what a kill left unfinished."""
        if self.monitor == "auto":
            self.monitor = getattr(getattr(trainer, "datamodule", None), "monitor", "val/acc")
            if self._chooses:
                self.mode = _mode(self.monitor)
                self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            _write_whole_files(trainer)
            folder = run_folder(trainer) if trainer.loggers else None  # all processes must ask
            if trainer.is_global_zero:  # nothing of the user's own
                remove_unfinished(Path(str(self.dirpath)), ["*.ckpt"])
                if folder:
                    remove_unfinished(folder, _OF_A_RUN)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over the best files, also from the folder of another run."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state is None or not resumed_from(trainer):
            return
        if trainer.state.fn != "fit":  # nothing is saved, and Lightning would warn of the folder
            del checkpoint["callbacks"][self.state_key]
            return
        folder, beside = Path(str(self.dirpath)), Path(resumed_from(trainer)).parent
        scores: dict[str, Any] = {}
        # a run may have been killed after it had saved its first best, and before a checkpoint
        recorded = {state["best_model_path"] or self.format_checkpoint_name({}): None}
        for old, score in (recorded | state["best_k_models"]).items():
            name = Path(old).name
            source = next((p for p in (beside / name, Path(old)) if name and p.is_file()), None)
            if source is None:
                continue
            try:
                known = torch.load(source, weights_only=True, mmap=True, map_location="cpu")
            except Exception as error:
                raise ValueError(
                    f"{str(source)!r}, the best checkpoint, cannot be read, it is damaged: delete "
                    "it, and the best epoch of those to come is kept"
                ) from error
            own = known.get("callbacks", {}).get(self.state_key, {})
            named = {Path(path).name: value for path, value in own.get("best_k_models", {}).items()}
            found = named.get(name, score)
            later = known["global_step"] > checkpoint["global_step"]
            elsewhere = source.resolve() != (folder / name).resolve()
            if (later and elsewhere) or (self.monitor and found is None):
                continue  # the run from which this one goes on has not come so far
            if later:
                state["current_score"] = own.get("current_score")
            if elsewhere and trainer.is_global_zero:
                copy(source, folder / name)
            scores[os.path.join(str(self.dirpath), name)] = found
        trainer.strategy.barrier()
        ranked = sorted(
            (path for path, score in scores.items() if score is not None),
            key=lambda path: float(scores[path]),
            reverse=self.mode == "max",
        )
        best = ranked[0] if ranked else next(iter(scores), "")
        worst = ranked[-1] if ranked else ""
        state.update(
            dirpath=self.dirpath,
            best_model_path=best,
            best_model_score=scores.get(best),
            best_k_models={path: scores[path] for path in ranked},
            kth_best_model_path=worst,
            kth_value=scores.get(worst, self.kth_value),
            last_model_path="",
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the latest score too, which Lightning leaves out."""
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]


def _mode(monitor: str | None) -> Literal["min", "max"]:
    return "min" if str(monitor).endswith(("loss", "error", "ece", "mae", "mse")) else "max"


def has_diverged(exception: BaseException) -> bool:
    """Whether it tells of a training that diverged, and not of a slip in somebody's arithmetic."""
    slips = ZeroDivisionError | OverflowError | FloatingPointError
    return isinstance(exception, ArithmeticError) and not isinstance(exception, slips)


class LastCheckpoint(ModelCheckpoint):
    """Saves `last.ckpt` after every epoch, better or not; a run resumed from it goes on exactly.

    A signal to end (SIGTERM, Ctrl-C) ends the training after the present step, with this
    checkpoint saved; a second one, a second later or more, ends it at once. What else a resumed run
    needs is in every checkpoint of the run: the state of the metrics, the means that are logged at
    the end of the epoch, and of the random numbers of dropout.

    Args:
        every_n_train_steps: save in the middle of an epoch too, after so many optimizer steps.
        train_time_interval: save in the middle of an epoch too, after so much time.
        more: other arguments of Lightning's ModelCheckpoint, but those by which it would choose.

    Attributes:
        trained: whether a step has been made since the start.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        **more: Any,
    ) -> None:
        for name, usual in _OF_A_CHOICE.items():
            value = more.get(name, usual)
            if not (value is None or value is False or value == usual):
                raise ValueError(
                    f"last_checkpoint.{name} {more[name]!r} has no effect: the last checkpoint is "
                    f"not chosen. Use --checkpoint.{name}"
                )
        super().__init__(**more)
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps must be >= 1, got {every_n_train_steps}")
        self.every_n_train_steps, self.interval = every_n_train_steps, train_time_interval
        self.trained = False
        self._resume: dict[str, Any] = {}
        self._handlers: dict[int, Any] = {}
        self._saved, self._signal, self._came = "", 0, 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            _write_whole_files(trainer)
            count_by_epochs(trainer)
            stops = callbacks_of(trainer, EarlyStopping)
            self._patience = {id(each): each.patience for each in stops}
            self._resume, self._saved, self._signal = {}, "", 0
            self.trained = self._due = False
            self._step, self._time = -1, time.monotonic()

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.format_checkpoint_name({}))

    def state_dict(self) -> dict[str, Any]:
        """Nothing; see `on_save_checkpoint`."""
        return {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning leaves out."""
        random = {"cpu": torch.get_rng_state()}
        if pl_module.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(pl_module.device)
        metrics = trainer.callback_metrics.items()
        state = {"results": {name: value.item() for name, value in metrics}, "random": random}
        state["log"] = logged_next(trainer)
        if not at_epoch_end(trainer):
            state |= _epoch_so_far(trainer, self._resume.get("means", {}))
        checkpoint[_RESUME] = state

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep it until the training starts."""
        if trainer.state.fn == "fit" and resumed_from(trainer):
            for kind, why in _NOT_RESUMED.items():
                if callbacks_of(trainer, kind):
                    raise ValueError(f"Lightning's {kind.__name__} {why}")
            self._resume = checkpoint.get(_RESUME, {})
            if self._resume and goes_on_inside(checkpoint):
                self._resume = {"metrics": {}, "means": {}} | self._resume
            if self._goes_on_here(trainer):
                self._saved = _position(checkpoint["epoch"], checkpoint["global_step"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put back what was measured; let a run stay ended that early stopping had ended."""
        if resumed_from(trainer):
            self._put_results_back(trainer)
            for each in callbacks_of(trainer, EarlyStopping):
                each.patience = self._patience[id(each)]  # not that of the checkpoint
                trainer.should_stop |= has_stopped(each)

    def _put_results_back(self, trainer: Trainer) -> None:
        results = self._resume.get("results", {}).items()
        trainer.callback_metrics.update({n: torch.tensor(x).double() for n, x in results})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the state back, and let signals wait for the end of a step."""
        _check_average_begins(trainer)
        self._step, self._time = trainer.global_step, time.monotonic()
        if self._resume:
            if self._goes_on_here(trainer) and trainer.is_global_zero:
                forget_later(trainer.loggers, trainer.global_step)
            self._log_again(trainer)
            if "metrics" not in self._resume:  # saved at an epoch's end, ahead of ReduceLROnPlateau
                self._put_results_back(trainer)  # the sanity check has removed them
                progress: Any = trainer.fit_loop.epoch_progress.current
                progress.completed -= 1  # it counts from the epoch that has ended
                trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", True)
                progress.completed += 1
            for name, states in self._resume.get("metrics", {}).items():
                metric = pl_module.get_submodule(name)
                if not states.keys() <= getattr(metric, "metric_state", {}).keys():
                    raise ValueError(f"the checkpoint has a state of {name}, which is no metric's")
                for key, value in states.items() if trainer.is_global_zero else ():
                    # a checkpoint is read to the CPU
                    setattr(metric, key, move_data_to_device(value, pl_module.device))
            torch.set_rng_state(self._resume["random"]["cpu"])
            if "cuda" in self._resume["random"] and pl_module.device.type == "cuda":
                torch.cuda.set_rng_state(self._resume["random"]["cuda"], pl_module.device)
        if threading.current_thread() is threading.main_thread():
            for each in (signal.SIGTERM, signal.SIGINT):
                self._handlers[each] = signal.signal(each, self._wait)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Save in the middle of an epoch when it is time or a signal has come."""
        self.trained = True
        if means := self._resume.get("means"):
            _add_means(trainer, means)
        if trainer.global_step == self._step:  # gradients are being accumulated
            return
        self._step, every = trainer.global_step, self.every_n_train_steps
        late = self.interval and time.monotonic() - self._time >= self.interval.total_seconds()
        self._due |= bool(every and self._step % every == 0)
        self._due |= bool(self.interval and trainer.strategy.broadcast(late))
        asked = self._asked(trainer)
        if (self._due or asked) and not trainer.is_last_batch and not validates_next(trainer):
            self._save(trainer)
            if asked:
                raise SystemExit(128 + self._signal)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self._resume = {}
        done = trainer.current_epoch + 1
        ends = trainer.should_stop or done == trainer.max_epochs
        ends |= trainer.global_step == trainer.max_steps
        if ends or done % (self.every_n_epochs or 1) == 0:
            self._save(trainer)
            if self._asked(trainer):
                raise SystemExit(128 + self._signal)
        if trainer.fit_loop.restarting:  # Lightning leaves it out in a resumed run's first epoch
            trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", True)

    def on_validation_end(self, *args: Any, **kwargs: Any) -> None:
        """Save nothing: Lightning's class would."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals end the program at once again."""
        self._restore_handlers()
        if any(each.n_averaged == 0 for each in averaged_models(trainer)):
            rank_zero_warn(
                "the training ended before the average of the weights began: the checkpoints and "
                "the network hold the weights of the start. Let the average begin earlier"
            )
        if self._signal:
            raise SystemExit(128 + self._signal)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have a last checkpoint in the folder of a run that had nothing left to do."""
        if resumed_from(trainer) and not self.trained:
            progress: Any = trainer.fit_loop.epoch_progress.current
            progress.completed = progress.processed  # Lightning leaves out the last epoch
            self._log_again(trainer)
            self._put_results_back(trainer)  # the sanity check has removed them
            take_averages(trainer, pl_module)
            if trainer.is_global_zero and not self.path.exists():
                copy(Path(resumed_from(trainer)), self.path)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any) -> None:
        """Say how to go on."""
        self._restore_handlers()
        goes_on = not any(callbacks_of(trainer, kind) for kind in _FORGETFUL)
        if goes_on and self._saved and trainer.is_global_zero and not has_diverged(exception):
            config = self.path.parent.parent / "config.yaml"
            command = f"python train.py fit -c {shlex.quote(str(config))}"
            command = command if config.is_file() else "the same command"
            sys.stderr.write(
                f"Stopped; {self.path} holds {self._saved}. To go on: {command} "
                f"--ckpt_path {shlex.quote(str(self.path))}\n"
            )

    def _log_again(self, trainer: Trainer) -> None:
        """Log what a kill may have prevented Lightning from logging after the checkpoint."""
        for logger in trainer.loggers if self._resume.get("log") else ():
            logger.log_metrics(self._resume["log"], trainer.global_step - 1)

    def _goes_on_here(self, trainer: Trainer) -> bool:
        path = resumed_from(trainer)
        return bool(path) and Path(path).resolve() == self.path.resolve()

    def _save(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # what was logged before the checkpoint is on the disk before it
        trainer.save_checkpoint(self.path, self.save_weights_only)
        self._saved = _position(trainer.current_epoch, trainer.global_step)
        self._due, self._time = False, time.monotonic()

    def _asked(self, trainer: Trainer) -> bool:
        """Whether the run shall end; all processes agree on it, every few steps."""
        if trainer.world_size > 1:
            if trainer.global_step % 20 and not at_epoch_end(trainer):
                return False
            if trainer.strategy.reduce_boolean_decision(bool(self._signal), all=False):
                self._signal = self._signal or signal.SIGTERM
        return bool(self._signal)

    def _wait(self, number: int, frame: FrameType | None) -> None:
        if self._signal and time.monotonic() - self._came > TWICE:
            raise SystemExit(128 + number)
        if self._signal:
            return
        self._signal, self._came = number, time.monotonic()
        name = signal.Signals(number).name
        sys.stderr.write(f"{name}: ends after this step; a second one ends at once\n")

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def _check_average_begins(trainer: Trainer) -> None:
    """Refuse an average of the weights that would never begin, and say if it begins late.

    Until then every validation and checkpoint has the weights of the start.
    """
    steps = trainer.estimated_stepping_batches
    begun = any(each.n_averaged > 0 for each in averaged_models(trainer))
    for each in callbacks_of(trainer, EMAWeightAveraging):
        if begun or not 0 < steps < math.inf:  # its length is not known
            continue
        epochs = trainer.max_epochs or 0
        epochs = range(epochs if epochs > 0 else int(steps))
        first = next((k for k in range(int(steps)) if each.should_update(step_idx=k)), None)
        epoch = next((k for k in epochs if each.should_update(epoch_idx=k)), None)
        if first is None and epoch is None:
            raise ValueError(
                f"{type(each).__name__} would begin after the {steps:,} steps of this training, "
                "whose results would be those of the first weights: lower update_starting_at_step, "
                "or train longer"
            )
        if first != 0 and epoch != 0:
            when = f"step {first:,}" if first is not None else f"the end of epoch {epoch}"
            rank_zero_warn(
                f"{type(each).__name__} begins at {when}: until then the weights of the start are "
                "validated and saved"
            )


def best_path(trainer: Trainer) -> str:
    """The best checkpoint of train.py's own callback, whatever others there are; "" without."""
    own = callbacks_of(trainer, BestCheckpoint)
    return own[0].best_model_path if own else ""


def finish(trainer: Trainer, pl_module: LightningModule) -> str:
    """End a resumed run that had nothing left to do like any other, and say so."""
    last = callbacks_of(trainer, LastCheckpoint)
    if not last or last[0].trained or not resumed_from(trainer):
        return ""
    for monitor in callbacks_of(trainer, ActivationMonitor):
        monitor.on_train_start(trainer, pl_module)
        monitor.on_train_end(trainer, pl_module)
    option = "trainer.max_epochs (or trainer.max_steps)"
    if any(map(has_stopped, callbacks_of(trainer, EarlyStopping))):
        option = "the patience of EarlyStopping, which has ended it, or leave EarlyStopping out,"
    elif trainer.should_stop and callbacks_of(trainer, Timer):
        option = "trainer.max_time"
    return (
        f"\nalready finished: epoch {trainer.current_epoch}, step {trainer.global_step}; "
        f"raise {option} to go on"
    )


def _write_whole_files(trainer: Trainer) -> None:
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeFiles()


def _position(epoch: int, step: int) -> str:
    return f"epoch {epoch}, step {step}"


def copy(source: Path, target: Path) -> None:
    """Copy a file; the copy appears when it is complete."""
    with replacing(target) as unfinished:
        shutil.copyfile(source, unfinished)


def _epoch_so_far(trainer: Trainer, left: dict[str, Any]) -> dict[str, Any]:
    """States of the metrics, and of the means, that the epoch's training steps have logged."""
    metrics, means = {}, dict(left)
    for key, result in logged_in_training(trainer).items():
        if result.is_tensor:
            values = {"value": result.value}
            if result.meta.is_mean_reduction:
                values["cumulated_batch_size"] = result.cumulated_batch_size.to(result.value)
            means[key] = {
                n: trainer.strategy.reduce(v.clone(), None, "mean") for n, v in values.items()
            }
        elif result.meta.metric_attribute:
            with result.value.sync_context():  # the sum of all processes
                metrics[result.meta.metric_attribute] = {
                    name: value.clone() if isinstance(value, torch.Tensor) else list(value)
                    for name, value in result.value.metric_state.items()
                }
    return {"metrics": metrics, "means": means}


def _add_means(trainer: Trainer, means: dict[str, Any]) -> None:
    """Add the steps before a resume to the means, once they are logged again."""
    for key, result in logged_in_training(trainer).items():
        earlier = means.pop(key, None)
        if earlier and (result.meta.is_mean_reduction or result.meta.is_sum_reduction):
            for name, value in earlier.items():
                setattr(result, name, getattr(result, name) + value.to(result.value.device))
        elif earlier:
            both = torch.stack([result.value, earlier["value"].to(result.value.device)])
            result.value = result.meta.reduce_fx(both)
