"""Predictions as a CSV file."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from activations.picture import replacing


class PredictionWriter(Callback):
    """Writes the results of `predict` to a CSV file: index, label, predicted class, probability.

    Columns between index and label say where a sample comes from: an image's file, or a heart
    beat's record, time in seconds and lead.

    Args:
        path: the file; `predictions.csv` in the current folder by default. It appears when it is
            complete.
    """

    def __init__(self, path: str = "predictions.csv") -> None:
        self.path = Path(path)
        self._rows: list[tuple[int, int, int, float]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run."""
        self._rows = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the batch's rows."""
        best = outputs["probability"].max(1)
        columns = (outputs["index"], outputs["label"], best.indices, best.values)
        self._rows += zip(*(column.tolist() for column in columns), strict=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all processes and write the file."""
        parts: list[Any] = [self._rows]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self._rows)
        if not trainer.is_global_zero:
            return
        datamodule = getattr(trainer, "datamodule", None)
        names = getattr(datamodule, "class_names", None)
        describe = getattr(datamodule, "describe", lambda index: {})
        rows = sorted(row for part in parts for row in part)
        with replacing(self.path) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.writer(file)
            known = describe(rows[0][0]) if rows else {}
            writer.writerow(["index", *known, "label", "predicted", "probability"])
            for index, label, predicted, probability in rows:
                named = (names[label], names[predicted]) if names else (label, predicted)
                writer.writerow([index, *describe(index).values(), *named, f"{probability:.6f}"])
        print(f"Predictions: {self.path}")
