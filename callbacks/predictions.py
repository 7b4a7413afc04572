"""Predictions as a CSV file."""

import csv
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from activations.files import check_writable, replacing


class PredictionWriter(Callback):
    """Writes the results of `predict` to a CSV file.

    Its columns are the index of the sample, its label (empty where it is unknown), the predicted
    class and its probability, and the probability of each class. Columns between index and label
    say where a sample comes from: an image's file, or a heart beat's record, time in seconds and
    lead. Batches without positions are counted in their order.

    Args:
        path: the file; `predictions.csv` in the current folder by default. It appears when it is
            complete.
    """

    def __init__(self, path: str = "predictions.csv") -> None:
        self.path = Path(path)
        self._rows: list[tuple[int, int | None, list[float]]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run; raise at once if the file cannot be written."""
        self._rows = []
        if self.path.is_dir():
            raise ValueError(f"--predictions.path {self.path} is a folder; name a file")
        check_writable(self.path.parent)

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
        rows = sorted((row for part in parts for row in part), key=itemgetter(0))
        if not trainer.is_global_zero or not rows:
            return
        datamodule = getattr(trainer, "datamodule", None)
        numbers = [str(number) for number in range(len(rows[0][2]))]
        names = getattr(datamodule, "class_names", numbers)
        describe = getattr(datamodule, "describe", lambda index: {})
        known = [*describe(rows[0][0]), "label", "predicted", "probability"]
        table = [["index", *known, *(f"probability_{name}" for name in names)]]
        for index, label, shares in rows:
            best = max(shares)
            named = ["" if label is None else names[label], names[shares.index(best)]]
            values = [f"{share:.6f}" for share in (best, *shares)]
            table.append([index, *describe(index).values(), *named, *values])
        with replacing(self.path) as unfinished, unfinished.open("w", newline="") as file:
            csv.writer(file).writerows(table)
        print(f"Predictions: {self.path}")
