"""Schedules, monitor and predictions in real, small trainings."""

import csv
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint

from activations import LSLU, CosLU, DSReLU
from callbacks import ActivationMonitor, ActivationSchedule, PredictionWriter
from models import Classifier
from tests.data import Tiny

GENTLE = {"a": 1.5, "b": 0.5}  # the paper's slopes need more care than these short runs take


GENTLE_DSRELU = partial(DSReLU, **GENTLE)


def classifier(activation: Any = GENTLE_DSRELU) -> Classifier:
    torch.manual_seed(4)
    return Classifier("resnet8", 3, 1, 8, activation)


def trainer(tmp_path: Path, *callbacks: Callback, **more: Any) -> Trainer:
    more = {"max_epochs": 3, "logger": False, "enable_checkpointing": False} | more
    return Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, log_every_n_steps=2,
                   enable_progress_bar=False, enable_model_summary=False,
                   callbacks=list(callbacks), **more)  # fmt: skip


class Slopes(Callback):
    """Remembers the slope that each step and each validation used."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validations: list[float] = []

    def on_before_backward(self, trainer, pl_module, loss):
        self.steps.append(pl_module.backbone.act1.slope.item())

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validations.append(pl_module.backbone.act1.slope.item())


def slope(progress: float) -> Any:
    return pytest.approx(DSReLU(**GENTLE).slope_at(progress))


def test_progress_by_step(tmp_path: Path):
    seen, model = Slopes(), classifier()
    trainer(tmp_path, ActivationSchedule(), seen).fit(model, datamodule=Tiny())
    assert len(seen.steps) == 3 * 8
    assert seen.steps == [slope(step / 24) for step in range(24)]
    assert seen.validations == [slope(epoch / 3) for epoch in (1, 2, 3)]
    slopes = [m.slope.item() for m in model.modules() if isinstance(m, DSReLU)]
    assert slopes == [slope(1)] * 7


def test_progress_by_epoch(tmp_path: Path):
    seen = Slopes()
    trainer(tmp_path, ActivationSchedule("epoch"), seen).fit(classifier(), datamodule=Tiny())
    assert seen.steps == [slope(epoch / 2) for epoch in (0, 1, 2) for _ in range(8)]
    assert seen.validations == [slope(epoch / 2) for epoch in (0, 1, 2)]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"accumulate_grad_batches": 2}, [step // 2 / 12 for step in range(24)]),
        ({"max_steps": 10, "max_epochs": -1}, [step / 10 for step in range(10)]),
        ({"limit_train_batches": 5, "max_epochs": 2}, [step / 10 for step in range(10)]),
    ],
)
def test_planned_length(tmp_path: Path, limits: dict[str, Any], expected: list[float]):
    seen = Slopes()
    trainer(tmp_path, ActivationSchedule(), seen, **limits).fit(classifier(), datamodule=Tiny())
    assert seen.steps == [slope(progress) for progress in expected]


def test_an_unplannable_length_is_refused(tmp_path: Path):
    changing = GradientAccumulationScheduler({0: 1, 1: 2})
    with pytest.raises(ValueError, match="cannot plan with GradientAccumulationScheduler"):
        trainer(tmp_path, ActivationSchedule(), changing).fit(classifier(), datamodule=Tiny())
    with pytest.raises(ValueError, match="interval must be 'epoch' or 'step', got 'day'"):
        ActivationSchedule("day")
    with pytest.raises(ValueError, match="default cosine needs a planned length"):
        trainer(tmp_path, max_epochs=-1).fit(classifier(), datamodule=Tiny())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("steps", [5, 8, 11, 16])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, steps: int, interval: Any):
    whole, seen = classifier(), Slopes()
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=steps, save_top_k=-1)
    schedule, monitor = ActivationSchedule(interval), ActivationMonitor(figure=False)
    run = trainer(tmp_path, schedule, monitor, save, seen, enable_checkpointing=True)
    run.fit(whole, datamodule=Tiny())

    resumed, after = classifier(), Slopes()
    schedule, monitor_after = ActivationSchedule(interval), ActivationMonitor(figure=False)
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=steps, save_top_k=-1)
    run = trainer(tmp_path, schedule, monitor_after, save, after, enable_checkpointing=True)
    run.fit(resumed, datamodule=Tiny(), ckpt_path=str(tmp_path / f"step={steps}.ckpt"))
    assert after.steps == seen.steps[steps:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert monitor_after.table() == monitor.table()


def test_the_same_seed_gives_the_same_bits(tmp_path: Path):
    models = [classifier(LSLU), classifier(LSLU)]
    for model in models:
        trainer(tmp_path).fit(model, datamodule=Tiny())
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_predictions_are_a_complete_csv(tmp_path: Path):
    path, data = tmp_path / "new" / "p.csv", Tiny()
    run = trainer(tmp_path, PredictionWriter(str(path)))
    run.predict(classifier(), datamodule=data, return_predictions=False)
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(23))
    assert [row["label"] for row in rows] == [data.class_names[i % 3] for i in range(23)]
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)
    assert {row["predicted"] for row in rows} <= set(data.class_names)
    assert list(path.parent.iterdir()) == [path]


def test_metrics_are_right(tmp_path: Path):
    from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

    model, data = classifier(None), Tiny()
    run = trainer(tmp_path)
    [found] = run.test(model, datamodule=data, verbose=False)
    batches = run.predict(model, datamodule=data)
    assert batches
    probability = torch.cat([b["probability"] for b in batches]).double().numpy()
    probability /= probability.sum(1, keepdims=True)
    label = torch.cat([b["label"] for b in batches]).numpy()
    guess = probability.argmax(1)
    assert found["test/acc"] == pytest.approx(accuracy_score(label, guess))
    assert found["test/f1"] == pytest.approx(f1_score(label, guess, average="macro"))
    assert found["test/loss"] == pytest.approx(log_loss(label, probability), rel=1e-4)
    auroc = roc_auc_score(label, probability, multi_class="ovr", average="macro")
    assert found["test/auroc"] == pytest.approx(auroc, rel=1e-4)


def test_a_checkpoint_made_in_python_loads_with_weights_only(tmp_path: Path):
    save = ModelCheckpoint(tmp_path, "x")
    model = classifier(CosLU)
    run = trainer(tmp_path, save, enable_checkpointing=True, max_epochs=1)
    run.fit(model, datamodule=Tiny())
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["backbone"] == "resnet8"
    again = Classifier.load_from_checkpoint(tmp_path / "x.ckpt", activation=CosLU)
    assert torch.equal(again.backbone.act1.alpha, model.backbone.act1.alpha)


def test_a_diverged_run_stops_and_says_so(tmp_path: Path):
    model = classifier(None)
    model.optimizer = lambda groups: torch.optim.SGD(groups, lr=1e30)
    with pytest.raises(
        ValueError, match=r"training loss is (nan|inf) at the end of epoch 0.*--model.optimizer.lr"
    ):
        trainer(tmp_path).fit(model, datamodule=Tiny())


def test_a_longer_resume_follows_the_new_plan(tmp_path: Path):
    save = ModelCheckpoint(tmp_path, "x")
    first = trainer(tmp_path, save, enable_checkpointing=True, max_epochs=1)
    first.fit(classifier(), datamodule=Tiny())
    model, rates = classifier(), []

    class Rates(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    save = ModelCheckpoint(tmp_path / "again", "x")
    longer = trainer(tmp_path, Rates(), save, enable_checkpointing=True, max_epochs=2)
    with pytest.warns(UserWarning, match="dirpath has changed"):
        longer.fit(model, datamodule=Tiny(), ckpt_path=str(tmp_path / "x.ckpt"))
    assert rates[1:] == [
        pytest.approx(0.05 * (1 + math.cos(math.pi * step / 16))) for step in range(9, 16)
    ]
