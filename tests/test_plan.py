"""The plan of a run (learning rate, order of batches) follows what the run really does."""

import csv
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LinearLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchvision.transforms import v2

from activations import CosLU
from callbacks import PredictionWriter
from models import Classifier
from models.metrics import classification_metrics
from tests.data import Tiny
from tests.trainings import trainer


class Recorder(Callback):
    """The learning rates and the samples of each training step."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []
        self.batches: list[Any] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append((batch[0].clone(), batch[2].tolist()))
        groups = trainer.optimizers[0].param_groups
        self.rates.append({group["name"]: group["lr"] for group in groups})


def recorded(tmp_path: Path, *callbacks: Callback, data: Any = None, **options: Any) -> Recorder:
    names = ("lr_scheduler", "activation_lr_scale", "lr_scheduler_interval")
    of_model = {name: options.pop(name) for name in names if name in options}
    torch.manual_seed(3)
    model = Classifier("resnet8", 3, 1, 8, CosLU, **of_model)
    recorder = Recorder()
    trainer(tmp_path, *callbacks, recorder, **options).fit(model, datamodule=data or Tiny())
    return recorder


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize(("share", "count"), [(2, 2), (0.5, 4)])
def test_overfitting_repeats_the_same_batches(tmp_path: Path, share: float, count: int):
    seen = recorded(tmp_path, overfit_batches=share).batches
    assert len(seen) == 3 * count
    assert len({i for _, index in seen for i in index}) == 6 * count
    assert all(torch.equal(seen[i][0], seen[i % count][0]) for i in range(len(seen)))


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 3, "limit_train_batches": 5}, {"max_steps": 11}],
    ids=str,
)
def test_the_cosine_ends_at_zero(tmp_path: Path, options: dict[str, Any]):
    rates = [rate["weights"] for rate in recorded(tmp_path, **options).rates]
    each = options.get("accumulate_grad_batches", 1)
    batches = options.get("limit_train_batches", 8)
    steps = min(3 * math.ceil(batches / each), options.get("max_steps", 99))
    for batch, rate in enumerate(rates):
        epoch, within = divmod(batch, batches)
        step = epoch * math.ceil(batches / each) + within // each
        assert rate == pytest.approx(0.05 * (1 + math.cos(math.pi * step / steps)))


@pytest.mark.filterwarnings("ignore:.*BatchSizeFinder|.*`trainer.fit")
def test_the_cosine_follows_a_batch_size_that_was_found(tmp_path: Path):
    finder = BatchSizeFinder(max_trials=2, init_val=2)
    rates = [rate["weights"] for rate in recorded(tmp_path, finder).rates]
    expected = [0.05 * (1 + math.cos(math.pi * i / len(rates))) for i in range(len(rates))]
    assert len(rates) != 24
    assert rates == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"OneCycleLR was made.*data.batch_size"):
        recorded(tmp_path, BatchSizeFinder(max_trials=1, init_val=2), lr_scheduler=partial(OneCycleLR, max_lr=0.3))  # fmt: skip


def test_a_rate_that_was_found_is_used(tmp_path: Path):
    finder = LearningRateFinder(min_lr=1e-4, max_lr=0.5, num_training_steps=15)
    rates = recorded(tmp_path, finder, activation_lr_scale=0.5).rates
    found = finder.optimal_lr.suggestion() if finder.optimal_lr else None
    assert found
    assert found != pytest.approx(0.1)
    expected = [found / 2 * (1 + math.cos(math.pi * i / 24)) for i in range(24)]
    assert [rate["weights"] for rate in rates] == pytest.approx(expected)
    assert [rate["activations"] for rate in rates] == pytest.approx([r / 2 for r in expected])
    for make in (
        partial(LinearLR, start_factor=0.1, total_iters=2),
        lambda optimizer: SequentialLR(
            optimizer, [LinearLR(optimizer, 0.1, total_iters=2), StepLR(optimizer, 1)], [2]
        ),
    ):
        finder = LearningRateFinder(min_lr=1e-4, max_lr=0.5, num_training_steps=15)
        rates = recorded(tmp_path, finder, lr_scheduler=make, max_epochs=3).rates
        found = finder.optimal_lr.suggestion() if finder.optimal_lr else None
        assert found
        epochs = [rate["weights"] for rate in rates[::8]]
        assert epochs == pytest.approx([0.1 * found, 0.55 * found, found])
    with pytest.raises(ValueError, match="leave it out, and give them the rate"):
        recorded(tmp_path, LearningRateFinder(num_training_steps=15),
                 lr_scheduler=partial(CyclicLR, base_lr=0.01, max_lr=0.1))  # fmt: skip


@pytest.mark.parametrize(
    ("make", "by_step"),
    [
        (partial(OneCycleLR, max_lr=0.3), True),
        (partial(CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=5), True),
        (partial(ExponentialLR, gamma=0.5), False),
    ],
    ids=["one cycle", "cyclic", "exponential"],
)
def test_a_scheduler_keeps_the_scale_and_moves_when_it_should(
    tmp_path: Path, make: Any, by_step: bool
):
    rates = recorded(tmp_path, lr_scheduler=make, activation_lr_scale=0.2).rates
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    total = {"total_steps": 24} if make.func is OneCycleLR else {}
    scheduler, expected = make(optimizer, **total), []
    for step in range(24):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if by_step or step % 8 == 7:
            scheduler.step()
    assert [rate["weights"] for rate in rates] == pytest.approx(expected)
    assert [rate["activations"] for rate in rates] == pytest.approx([r / 5 for r in expected])


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (partial(CosineAnnealingLR, T_max=10, eta_min=0.01), "CosineAnnealingLR's eta_min 0.01"),
        (partial(ReduceLROnPlateau, monitor="val/loss", min_lr=0.01), "min_lr 0.01"),
        (lambda optimizer: SequentialLR(optimizer, [
            LinearLR(optimizer), OneCycleLR(optimizer, 0.1, 9)], [3]), "OneCycleLR in SequentialLR"),
    ],
    ids=["cosine", "plateau", "sequence"],
)  # fmt: skip
def test_a_scheduler_that_would_lose_the_scale_is_refused(tmp_path: Path, make: Any, what: str):
    with pytest.raises(ValueError, match=f"activation_lr_scale 0.2 would be lost: .*{what}"):
        recorded(tmp_path, lr_scheduler=make, activation_lr_scale=0.2)


def test_a_rate_that_is_a_tensor_keeps_its_scale():
    make = partial(torch.optim.Adam, lr=torch.tensor(0.5))
    model = Classifier("resnet8", 3, 1, 8, CosLU, optimizer=make, activation_lr_scale=0.1)
    groups = model._optimizer(model).param_groups
    rates = {group["name"]: float(group["lr"]) for group in groups}
    assert rates == pytest.approx({"weights": 0.5, "activations": 0.05})


def test_a_scheduler_moves_as_often_as_is_asked(tmp_path: Path):
    rates = recorded(tmp_path, lr_scheduler=partial(ExponentialLR, gamma=0.9),
                     lr_scheduler_interval="step").rates  # fmt: skip
    assert [r["weights"] for r in rates] == pytest.approx([0.1 * 0.9**i for i in range(24)])


def test_bare_bones(tmp_path: Path):
    """Without logging, a run trains as with it."""
    torch.manual_seed(3)
    models = [Classifier("resnet8", 3, 1, 8, CosLU) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    trainer(tmp_path).fit(models[0], datamodule=Tiny())
    from lightning.pytorch import Trainer

    with pytest.warns(UserWarning, match="barebones"):
        Trainer(accelerator="cpu", devices=1, max_epochs=3, barebones=True,
                default_root_dir=tmp_path).fit(models[1], datamodule=Tiny())  # fmt: skip
    both = (model.backbone.state_dict().values() for model in models)
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_macro_averages_leave_absent_classes_out():
    """Against scikit-learn, over the classes that have samples."""
    from sklearn.metrics import f1_score, roc_auc_score

    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(90, 5, generator=generator)
    probabilities = scores.softmax(1)
    labels = torch.tensor([0, 1, 3])[torch.randint(0, 3, (90,), generator=generator)]
    metrics: MetricCollection = classification_metrics(5)
    for part in range(0, 90, 30):
        metrics.update(scores[part : part + 30], labels[part : part + 30])
    found = metrics.compute()
    each = [roc_auc_score(labels == c, probabilities[:, c]) for c in (0, 1, 3)]
    assert found["auroc"] == pytest.approx(sum(each) / 3)
    f1 = f1_score(labels, scores.argmax(1), labels=[0, 1, 3], average="macro")
    assert found["f1"] == pytest.approx(f1)
    metrics.reset()
    metrics.update(scores[:4], torch.zeros(4, dtype=torch.long))
    assert metrics.compute()["auroc"].isnan()  # nothing to compare with


class Foreign(LightningDataModule):
    """A user's own data: batches of two, classes without samples, images alone to predict."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.images = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        self.labels = torch.arange(50) % classes

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.images, self.labels), 10, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.images, self.labels), 16)

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> Any:
        return DataLoader(self.images, batch_size=16)  # pyright: ignore[reportArgumentType]


def test_batches_of_two_and_absent_classes(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    model, path = Classifier("resnet8", 3, 1, 8), tmp_path / "p.csv"
    run = trainer(tmp_path, PredictionWriter(str(path)))
    with pytest.warns(UserWarning, match="val: no sample of 2; f1 and auroc are means over"):
        run.fit(model, datamodule=Foreign())
    with pytest.warns(UserWarning, match="test: no sample of 2;"):
        run.test(model, datamodule=Foreign(), verbose=False)
    outputs: Any = run.predict(model, datamodule=Foreign())
    rows = list(csv.DictReader(path.open()))
    assert [int(row["index"]) for row in rows] == list(range(50))
    assert {row["label"] for row in rows} == {""}
    shares = torch.cat([each["probability"] for each in outputs])
    columns = [[float(row[f"probability_{c}"]) for c in range(3)] for row in rows]
    torch.testing.assert_close(torch.tensor(columns), shares, rtol=0, atol=1e-6)


def test_floats_of_augmentation_are_normalised_once(tmp_path: Path):
    """The usual recipe without Normalize gives what uint8 gives."""
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    plain, floats = Tiny(), Tiny(augment=to_float)
    batches = []
    for data in (plain, floats):
        data.setup("fit")
        batches.append(next(iter(data.train_dataloader()))[0])
    torch.testing.assert_close(*batches)


def without_a_name(image: torch.Tensor) -> torch.Tensor:
    return (image / 255 - 0.5) / 0.1


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (v2.Normalize((0.5,), (0.3,)), r"leave it out.*\(0.5,\)"),
        (v2.Compose([v2.RandomApply([v2.Normalize((0.5,), (0.3,))])]), "holds Normalize"),
        (v2.Lambda(without_a_name), "not normalised: leave out Normalize"),
        (v2.ToDtype(torch.float32), r"floats in \[0, 1\]"),
        (v2.Resize(4), r"makes \(1, 4, 4\) of an image \(1, 8, 8\)"),
        (v2.ToPILImage(), "makes Image of an image"),
        (v2.MixUp(num_classes=3), "MixUp fails.*belong to mix"),
    ],
    ids=["normalize", "nested", "own", "not scaled", "resize", "pil", "mix"],
)
def test_augmentation_that_cannot_be_right_is_refused(
    tmp_path: Path, augment: nn.Module, message: str
):
    with pytest.raises(ValueError, match=message):
        recorded(tmp_path, data=Tiny(augment=[augment]))
