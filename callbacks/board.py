"""What goes to TensorBoard and Weights & Biases beyond scalars; only process 0 calls it."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn

_RESULTS = [f"{stage}/{name}" for stage in ("val", "test") for name in ("acc", "f1", "loss")]


def show_layout(loggers: Iterable[Logger], parameters: Iterable[str]) -> None:
    """Add a chart to TensorBoard's custom scalars for each parameter, with a line for each site."""
    # one expression a chart: TensorBoard sends a request for each
    layout = {name: ["Multiline", [f"^{re.escape(name)}/[^/]+$"]] for name in parameters}
    for logger in loggers:
        if layout and isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars({"activations": layout})


def forget_later(loggers: Iterable[Logger], step: int) -> None:
    """Let TensorBoard forget what a killed run has logged after `step`, where it goes on."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

            start = Event(session_log=SessionLog(status=SessionLog.START))
            logger.experiment.file_writer.add_event(start, step + 1)


def show_picture(loggers: Iterable[Logger], picture: Tensor, path: Path, step: int) -> None:
    """Show a picture (H, W, 3), which is also in the file `path` and is named after it."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(path.stem, picture, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(path.stem, [str(path)], step)


def show_histograms(loggers: Iterable[Logger], values: Mapping[str, Tensor], step: int) -> None:
    """Show the distribution of each tensor's finite elements."""
    for logger in loggers:
        for tag, value in values.items():
            finite = value[value.isfinite()].cpu()
            if len(finite) and isinstance(logger, TensorBoardLogger):
                logger.experiment.add_histogram(tag, finite, step, bins="auto", max_bins=100)
            elif len(finite) and isinstance(logger, WandbLogger):
                import wandb  # pyright: ignore[reportMissingImports]

                logger.log_metrics({tag: wandb.Histogram(finite.numpy())}, step)  # pyright: ignore[reportArgumentType]


def show_choices(
    trainer: Trainer, pl_module: LightningModule, sites: Mapping[str, nn.Module]
) -> None:
    """Log what distinguishes this run: activation, sharing, network, data, seed, optimizer.

    It becomes a row of TensorBoard's HParams, with a column for each result.
    """
    known = dict(pl_module.hparams)
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    group = optimizer.param_groups[0] if optimizer else {}
    data = getattr(trainer, "datamodule", None)
    spec = known.get("activation")
    arguments = dict(spec.get("init_args") or {}) if isinstance(spec, Mapping) else {}
    # TensorBoard shows the first five names in alphabetical order, the others on request
    found = {
        "activation": ", ".join(dict.fromkeys(type(m).__name__ for m in sites.values())),
        **{f"activation.{name}": value for name, value in arguments.items()},
        "backbone": known.get("backbone"),
        "data": type(data).__name__ if data else None,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "share": known.get("share"),
        "train.match": str(known["match"]) if known.get("match") else None,
        "train.batch_size": getattr(data, "batch_size", None),
        "train.epochs": trainer.max_epochs,
        "train.lr": group.get("initial_lr", group.get("lr")),
        "train.optimizer": type(optimizer).__name__ if optimizer else None,
        "train.precision": trainer.precision,
        "train.weight_decay": group.get("weight_decay"),
    }
    choices = {name: _plain(value) for name, value in found.items() if value is not None}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # a metric without values becomes a column, and no number is logged before it is known
            logger.log_hyperparams(choices, {name: {} for name in _RESULTS})
        else:
            logger.log_hyperparams(choices)


def _plain(value: Any) -> str | bool | int | float:
    """A value that TensorBoard and YAML can hold, also for torch's and NumPy's own numbers."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return value if isinstance(value, bool | int | float) else str(value)
