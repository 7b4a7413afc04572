"""What goes to TensorBoard and Weights & Biases beyond scalars; process 0 alone calls it."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn

RESULTS = tuple(f"{stage}/{name}" for stage in ("val", "test") for name in ("acc", "f1", "loss"))


def show_layout(loggers: Iterable[Logger], parameters: Iterable[str]) -> None:
    """Put each parameter of all sites into one of TensorBoard's custom scalars."""
    # one expression a chart: TensorBoard answers each with a request of its own
    layout = {name: ["Multiline", [f"^{re.escape(name)}/[^/]+$"]] for name in parameters}
    for logger in loggers:
        if layout and isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars({"activations": layout})


def show_picture(
    loggers: Iterable[Logger], tag: str, picture: Tensor, path: Path, step: int
) -> None:
    """Show a picture (H, W, 3), which also lies at `path`."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, picture, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [str(path)], step)


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


def show_choices(loggers: Iterable[Logger], choices: Mapping[str, Any]) -> list[Any]:
    """Make the run a row of TensorBoard's HParams, beside its results.

    Returns:
        What :func:`show_end` needs.
    """
    from torch.utils.tensorboard.summary import hparams

    ends = []
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            experiment, start, end = hparams(dict(choices), dict.fromkeys(RESULTS, 0.0))
            logger.experiment.file_writer.add_summary(experiment)
            logger.experiment.file_writer.add_summary(start)
            ends.append((logger, end))
        else:
            logger.log_hyperparams(dict(choices))
    return ends


def show_end(ends: list[Any]) -> None:
    """Mark the row as finished."""
    for logger, end in ends:
        logger.experiment.file_writer.add_summary(end)


def choices(
    trainer: Trainer, pl_module: LightningModule, sites: Mapping[str, nn.Module]
) -> dict[str, Any]:
    """What tells this run from others: activation, sharing, network, data, seed, optimizer."""
    known = dict(pl_module.hparams)
    group = trainer.optimizers[0].param_groups[0] if trainer.optimizers else {}
    datamodule = getattr(trainer, "datamodule", None)
    # TensorBoard shows the first five names of the alphabet, until asked for more
    found = {
        "activation": ", ".join(dict.fromkeys(type(m).__name__ for m in sites.values())),
        **_arguments(known.get("activation")),
        "backbone": known.get("backbone"),
        "data": type(datamodule).__name__ if datamodule else None,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "share": known.get("share"),
        "train.match": str(known["match"]) if known.get("match") else None,
        "train.batch_size": getattr(datamodule, "batch_size", None),
        "train.epochs": trainer.max_epochs,
        "train.lr": group.get("initial_lr", group.get("lr")),
        "train.optimizer": type(trainer.optimizers[0]).__name__ if trainer.optimizers else None,
        "train.precision": str(trainer.precision),
        "train.weight_decay": group.get("weight_decay"),
    }
    return {name: _plain(value) for name, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    """A value that HParams takes; NumPy and torch have numbers of their own."""
    if hasattr(value, "item") and (getattr(value, "size", 0) == 1 or isinstance(value, Tensor)):
        value = value.item() if not isinstance(value, Tensor) or value.numel() == 1 else str(value)
    return value if isinstance(value, bool | int | float) else str(value)


def _arguments(activation: Any) -> dict[str, Any]:
    """The activation's own arguments, if the command line has chosen them."""
    arguments = dict(getattr(activation, "init_args", None) or {})
    return {f"activation.{name}": value for name, value in arguments.items()}
