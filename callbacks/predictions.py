"""Predictions as a CSV file."""

import csv
import math
import sys
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from activations.files import check_replaceable, check_writable, replacing


class Row(NamedTuple):
    """A sample in the table.

    Attributes:
        position: in the data set.
        known: what is known of it, by column.
        label: its class, None where it is unknown.
        shares: probability of each class; NaN if the network's output is not finite.
        sample: of the record, the R peak of a heart beat.
    """

    position: int
    known: dict[str, Any]
    label: int | None
    shares: list[float]
    sample: int = 0


class PredictionWriter(Callback):
    """Writes the results of `predict` to a CSV file.

    Its columns are the index of the sample, its label (empty where it is unknown), the predicted
    class and its probability, and the probability of each class. Columns between index and label
    say where a sample comes from: an image's file, or a heart beat's record, time in seconds and
    lead. Batches without positions are counted in their order.

    Args:
        path: the file; `predictions.csv` in the current folder by default. It appears when it is
            complete.
        input: of the command `predict` without `--data`: an image or a folder of images, a WFDB
            record or a folder of records. The checkpoint knows how they are prepared.

    Raises:
        ValueError: `input` is given elsewhere.
    """

    def __init__(self, path: str = "predictions.csv", input: str | None = None) -> None:
        if input is not None:
            raise ValueError(
                f"--predictions.input {input} belongs to the command line of predict: python "
                "train.py predict --ckpt_path RUN --predictions.input DIR"
            )
        self.path = Path(path)
        self._rows: list[tuple[int, int | None, list[float]]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run; raise at once if the file cannot be written."""
        self._rows = []
        check_target(self.path)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the batch's rows."""
        shares = outputs["probability"].tolist()
        index, labels = outputs["index"], outputs["label"]
        if index is None:  # Lightning deals the samples out to the processes in turn
            start, step = len(self._rows), trainer.world_size
            index = range(start * step + trainer.global_rank, (start + len(shares)) * step, step)
        labels = [None] * len(shares) if labels is None else labels.tolist()
        self._rows += zip([int(i) for i in index], labels, shares, strict=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all processes and write the file."""
        parts: list[Any] = [self._rows]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self._rows)
        found = sorted((row for part in parts for row in part), key=itemgetter(0))
        if not trainer.is_global_zero:
            return
        if not found:
            rank_zero_warn(f"no sample was predicted, and {self.path} is not written")
            return
        datamodule = getattr(trainer, "datamodule", None)
        numbers = [str(number) for number in range(len(found[0][2]))]
        names = getattr(datamodule, "class_names", numbers)
        describe = getattr(datamodule, "describe", lambda index: {})
        rows = [Row(index, describe(index), label, shares) for index, label, shares in found]
        write_table(self.path, names, rows)
        print(f"Predictions: {self.path}")


def check_target(path: Path) -> None:
    """Raise at once if the file cannot be written."""
    if path.is_dir():
        raise ValueError(f"--predictions.path {path} is a folder; name a file")
    check_replaceable(path)
    check_writable(path.parent)


def write_table(path: Path, names: Sequence[str], rows: Sequence[Row]) -> None:
    """Write `rows`, of which there is at least one, for classes with these `names`.

    Where the network's output is not finite, the predicted class is left empty, with a warning.
    """
    known = [*rows[0].known, "label", "predicted", "probability"]
    table: list[list[Any]] = [["index", *known, *(f"probability_{name}" for name in names)]]
    lost = 0
    for index, told, label, shares, _ in rows:
        found = best_of(shares)
        lost += found is None
        best = math.nan if found is None else shares[found]
        # a data set may have labels that are no class, such as -1 for an unknown one
        named = [
            "" if number is None else names[number] if 0 <= number < len(names) else number
            for number in (label, found)
        ]
        values = [f"{share:.6f}" for share in (best, *shares)]
        table.append([index, *told.values(), *named, *values])
    if lost:
        sys.stderr.write(
            f"the network's output is not finite for {lost} of {len(rows)} samples: their class is "
            "left empty. If it is so for all, the weights are damaged: give another checkpoint\n"
        )
    # names of files may hold bytes that are no text
    how: Any = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
    with replacing(path) as unfinished, unfinished.open("w", **how) as file:
        csv.writer(file).writerows(table)


def best_of(shares: Sequence[float]) -> int | None:
    """The number of the most probable class; None if a probability is not finite."""
    return shares.index(max(shares)) if all(map(math.isfinite, shares)) else None
