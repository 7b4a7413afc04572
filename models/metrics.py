"""What tells how good a classifier is: metrics, numbers for each class, the confusion matrix."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassF1Score,
)

from activations.picture import new_figure, save_figure

_THRESHOLDS = torch.sigmoid(torch.linspace(-25, 15, 201, device="cpu")).tolist()


def classification_metrics(num_classes: int) -> MetricCollection:
    """Accuracy, macro-F1, macro-AUROC and, for ten classes or more, top-5 accuracy.

    `acc_majority` is the accuracy of always naming the commonest class.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "acc": MulticlassAccuracy(num_classes, average="micro"),
        "acc_majority": Majority(num_classes),
        "f1": Macro(MulticlassF1Score(num_classes, average="none"), num_classes),
        # exact for up to 100 classes; above, with thresholds, all scores need not be kept. Most
        # probabilities are small: the thresholds are as dense there
        "auroc": Macro(
            MulticlassAUROC(
                num_classes, "none", thresholds=None if num_classes <= 100 else _THRESHOLDS
            ),
            num_classes,
            compares=True,
        ),
    }
    if num_classes >= 10:
        metrics["acc_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    # With compute groups, metrics that agree after the first batch would share their counts from
    # then on. Top-5 accuracy and F1 agree on a batch of one class and differ later.
    return MetricCollection(metrics, compute_groups=False)


class Majority(Metric):
    """The share of the commonest class.

    Args:
        num_classes: number of classes.

    Attributes:
        samples: (C,), the number of samples of each class.
    """

    samples: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("samples", torch.zeros(num_classes, dtype=torch.long), "sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Take a batch: scores (N, C) and labels (N,)."""
        self.samples += labels.bincount(minlength=len(self.samples))

    def compute(self) -> Tensor:
        """The share."""
        return self.samples.max() / self.samples.sum()


class Calibration(MulticlassCalibrationError):  # noqa: N818
    """The expected calibration error of scores, in 15 bins (Guo et al. 2017, arXiv 1706.04599)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, n_bins=15, norm="l1")

    def update(self, scores: Tensor, labels: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a batch; torchmetrics would take scores that all lie in [0, 1] as probabilities."""
        super().update(scores.softmax(1), labels)


class Macro(Metric):
    """Mean of a measure over the classes that have samples: without samples there is no value.

    It is scikit-learn's macro average with `labels` set to these classes.

    Args:
        measure: gives one value for each class.
        num_classes: number of classes.
        compares: whether it compares the samples of a class with those of the others.

    Attributes:
        samples: (C,), the number of samples of each class.
        absent: classes without samples, over all processes, when it was last computed.
        values: (C,), the measure of each class at that time; NaN for the absent ones.
        hits: (C,), the number of samples of each class that were found.
        accuracy: (C,), the share of each class that was found, when it was last computed.
    """

    samples: Tensor
    values: Tensor
    hits: Tensor
    accuracy: Tensor

    def __init__(self, measure: Metric, num_classes: int, compares: bool = False) -> None:
        super().__init__()
        self.measure, self.compares = measure, compares
        self.absent: list[int] = []
        self.told: list[int] = []
        self.add_state("samples", torch.zeros(num_classes, dtype=torch.long), "sum")
        self.add_state("hits", torch.zeros(num_classes, dtype=torch.long), "sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Take a batch: scores (N, C) and labels (N,)."""
        # torchmetrics would take scores that all lie in [0, 1] as probabilities
        self.measure.update(scores.softmax(1) if self.compares else scores, labels)
        self.samples += labels.bincount(minlength=len(self.samples))
        found = labels[scores.argmax(1) == labels]
        self.hits += found.bincount(minlength=len(self.samples))

    def compute(self) -> Tensor:
        """The mean; NaN if nothing can be measured."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No (positive|negative) samples in targets")
            values = self.measure.compute()
        measured = self.samples > 0
        self.values = values.where(measured, math.nan)
        self.accuracy = self.hits / self.samples
        self.absent = (~measured).nonzero().flatten().tolist()
        if self.compares:
            measured &= self.samples < self.samples.sum()
        return values[measured].mean()

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self.measure.reset()


def warn_of_absent(module: LightningModule, metrics: MetricCollection) -> None:
    """Warn of classes without samples, once `module` was validated or tested with `metrics`."""
    macro = metrics["f1"]
    assert isinstance(macro, Macro)
    new = macro.absent != macro.told
    macro.told = macro.absent
    if new and macro.absent and len(macro.absent) < len(macro.samples):
        names = class_names(module, len(macro.samples))
        shown = ", ".join(names[number] for number in macro.absent[:8])
        more = f" and {len(macro.absent) - 8} more" if macro.absent[8:] else ""
        rank_zero_warn(
            f"{str(metrics.prefix).rstrip('/')}: no sample of {shown}{more}; "
            "f1 and auroc are means over the other classes"
        )


def log_chosen(module: LightningModule, metrics: MetricCollection) -> None:
    """Log measures over the classes that the data choose: `f1_over` and `acc_over`, by name.

    They are means over these classes, of F1 and of the share of each class that was found.

    Args:
        module: what is evaluated; it logs.
        metrics: made by :func:`classification_metrics`, and updated.
    """
    datamodule, macro = getattr(module.trainer, "datamodule", None), metrics["f1"]
    assert isinstance(macro, Macro)
    for over in ("f1_over", "acc_over"):
        for name, classes in getattr(datamodule, over, {}).items():
            macro.compute()  # over all processes; the logger takes the same, stored value
            values = macro.values if over == "f1_over" else macro.accuracy
            module.log(f"{metrics.prefix}{name}", values[list(classes)].nanmean(), sync_dist=True)


def check_validates(trainer: Trainer, who: str) -> None:
    """Raise a ValueError if this training has no validation, which `who` needs."""
    if trainer.limit_val_batches == 0:
        raise ValueError(
            f"{who} needs a validation, and there is none (--data.val_fraction 0 or "
            "--trainer.limit_val_batches 0): leave it out, or keep samples for validation"
        )


def check_monitors(trainer: Trainer) -> None:
    """Refuse a metric of validation by which something is chosen, if the validation has none such.

    Lightning would notice it after the first epoch. Where callbacks or a model are the user's own,
    nothing is said: they may measure it later.

    Raises:
        ValueError: checkpoints, early stopping or the learning rate go by an unknown metric.
    """
    callbacks: list[Any] = cast(Any, trainer).callbacks
    known_code = ("lightning.", "callbacks.", "models.")
    others = [each for each in callbacks if not isinstance(each, SaveConfigCallback)]
    for each in (trainer.lightning_module, *others):
        if not type(each).__module__.startswith(known_code):
            return
    configs = trainer.lr_scheduler_configs
    users: list[Any] = [each for each in configs if each.reduce_on_plateau and each.strict]
    users += [
        each
        for each in callbacks
        if isinstance(each, ModelCheckpoint | EarlyStopping) and getattr(each, "strict", True)
    ]
    known = [name for name in trainer.callback_metrics if name.startswith("val")]
    for each in users:
        part = getattr(each, "scheduler", each)
        mode, kind = getattr(part, "mode", ""), type(part).__name__
        if mode == "min" and str(each.monitor).startswith(("val/acc", "val/f1", "val/auroc")):
            raise ValueError(
                f"{kind} with mode min takes a lower {each.monitor} for the better one: add mode: "
                "max"
            )
        name = str(each.monitor or "epoch")
        unknown = name.startswith("val") or ("/" not in name and name not in ("epoch", "step"))
        if unknown and name not in known:
            raise ValueError(
                f"monitor {each.monitor!r} is not measured: choose one of {', '.join(known)}"
            )


def class_names(module: LightningModule, count: int) -> Sequence[str]:
    """The names of the classes, or their numbers where the data have no names."""
    datamodule = getattr(module.trainer, "datamodule", None)
    names = getattr(datamodule, "class_names", ())
    return names if len(names) == count else [str(number) for number in range(count)]


def class_measures(matrix: Tensor) -> dict[str, Tensor]:
    """Sensitivity, positive predictivity and F1 of each class; NaN if there is nothing to count.

    Args:
        matrix: (C, C) counts, a row for each true class, a column for each predicted one.
    """
    hits, true, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    return {
        "sensitivity": hits / true,
        "predictivity": hits / predicted,
        "f1": 2 * hits / (true + predicted),
    }


def draw_confusion(path: Path, matrix: Tensor, names: Sequence[str]) -> Any:
    """Draw the (C, C) counts, a row for each true class, into the PNG `path`; return the figure."""
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    side = 2.2 + 0.55 * len(names)
    figure = new_figure(side + 0.8, side, dpi=110, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.tolist(), cmap="Blues", vmin=0, vmax=1)
    for row, counts in enumerate(matrix.int().tolist()):
        for column, count in enumerate(counts):
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, count, ha="center", va="center", color=color, fontsize=8)
    turned = {"rotation": 45, "ha": "right"} if max(map(len, names)) > 3 else {}
    names = [name.replace("$", r"\$") for name in names]  # else it is read as mathematics
    axes.set_xticks(range(len(names)), names, **turned)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    save_figure(figure, path)
    return figure


def log_classes(module: LightningModule, matrix: Tensor) -> None:
    """Log the measures of each class, and draw the confusion matrix into the run's folder.

    Where the last and the best weights are tested, there is a picture of each.
    """
    trainer = module.trainer
    which = f"_{module.tested}" if getattr(module, "tested", "") else ""
    names = class_names(module, len(matrix))
    for measure, values in class_measures(matrix).items():
        found = zip(names, values, strict=True)
        known = {f"test_{measure}/{name}": value for name, value in found if value >= 0}
        module.log_dict(known, sync_dist=True)  # pyright: ignore[reportArgumentType]
    folder = trainer.log_dir or trainer.default_root_dir  # all processes must ask for it
    if getattr(trainer, "fast_dev_run", False):
        return
    first = module.loggers[0] if module.loggers else None
    if folder and first and not isinstance(first, TensorBoardLogger | CSVLogger):
        folder = Path(folder, str(first.name), str(first.version))  # that of all runs
        folder.mkdir(parents=True, exist_ok=True)
    if folder and first and trainer.is_global_zero:
        figure = draw_confusion(Path(folder) / f"confusion{which}.png", matrix.cpu(), names)
        for logger in module.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(f"test/confusion{which}", figure, module.global_step)
