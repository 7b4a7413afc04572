"""What Lightning does not promise: each test fails by name when a release changes one of them."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from lightning.pytorch.loggers import CSVLogger

from callbacks import ActivationSchedule
from callbacks.lightning_private import (
    at_epoch_end,
    averaged_models,
    logged_in_training,
    logged_next,
    validates_next,
)
from tests.data import Tiny
from tests.trainings import Small, trainer


@pytest.mark.parametrize("average", [WeightAveraging(), EMAWeightAveraging()], ids=["mean", "ema"])
def test_lightning_holds_the_average_where_the_schedule_finds_it(
    tmp_path: Path, average: WeightAveraging
):
    class Found(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            [model] = averaged_models(trainer)
            names.append([name for name, _ in model.module.named_parameters()])

    names: list[list[str]] = []
    model = Small()
    trainer(tmp_path, average, Found(), max_epochs=1).fit(model, datamodule=Tiny())
    assert names == [[name for name, _ in model.named_parameters()]] * 8


def test_an_average_that_is_not_found_is_an_error(tmp_path: Path):
    class Elsewhere(WeightAveraging):
        def on_train_start(self, trainer, pl_module):
            self.hidden = [vars(self).pop("_average_model")]

    run = trainer(tmp_path, Elsewhere(), ActivationSchedule())
    with pytest.raises(RuntimeError, match=r"Elsewhere holds no AveragedModel.*lightning 2\.6"):
        run.fit(Small(), datamodule=Tiny())


def test_lightning_keeps_the_results_of_an_epoch_where_checkpoints_find_them(tmp_path: Path):
    class Logged(Small):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            losses.append(loss.item())
            self.log("loss", loss)
            self.log("mean", loss, on_step=False, on_epoch=True)
            return loss

    class Seen(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert not at_epoch_end(trainer)
            validated.append(validates_next(trainer))
            rows.append(logged_next(trainer))
            [mean] = logged_in_training(trainer).values()
            means.append((mean.value / mean.cumulated_batch_size).item())

        def on_train_epoch_end(self, trainer, pl_module):
            assert at_epoch_end(trainer)
            rows.append(logged_next(trainer))

    losses, means, validated = list[float](), list[float](), list[bool]()
    rows: list[dict[str, float]] = []
    run = trainer(tmp_path, Seen(), logger=CSVLogger(tmp_path, ""), max_epochs=1,
                  val_check_interval=4)  # fmt: skip
    run.fit(Logged(), datamodule=Tiny())
    assert validated == [step in (4, 8) for step in range(1, 9)]
    assert means == pytest.approx([sum(losses[:n]) / n for n in range(1, 9)])
    assert [bool(row) for row in rows] == [step % 2 == 0 for step in range(1, 9)] + [True]
    with (tmp_path / "version_0/metrics.csv").open() as file:
        written = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    steps = [2, 4, 6, 8, 8]
    expected = [
        row | {"step": step - 1} for row, step in zip(filter(None, rows), steps, strict=True)
    ]
    assert [row for row in written if "val/loss" not in row] == expected
    assert expected[-1] == {"mean": pytest.approx(means[-1]), "epoch": 0, "step": 7}
