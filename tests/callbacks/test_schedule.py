"""The schedule in real, small trainings."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from activations import DSReLU, Fade, Polynomial, set_progress
from callbacks import ActivationSchedule
from models import Classifier
from tests.data import Tiny
from tests.trainings import GENTLE_DSRELU, Small, classifier, same, trainer


class Slopes(Callback):
    """Remembers the slope that each step and each validation used."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validations: list[float] = []

    def on_before_backward(self, trainer, pl_module: Any, loss):
        self.steps.append(pl_module.backbone.act1.slope.item())

    def on_validation_batch_start(
        self, trainer, pl_module: Any, batch, batch_idx, dataloader_idx=0
    ):
        if not trainer.sanity_checking and batch_idx == 0:
            self.validations.append(pl_module.backbone.act1.slope.item())


def slope(progress: float) -> Any:
    return pytest.approx(GENTLE_DSRELU().slope_at(progress))


def window(share: float, start: float, end: float) -> float:
    return 0.0 if share <= start else 1.0 if share >= end else (share - start) / (end - start)


def slopes(model: nn.Module) -> list[float]:
    return [m.slope.item() for m in model.modules() if isinstance(m, DSReLU)]


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.25, 0.7), (0.0, 0.5), (0.9, 1.0)])
def test_progress_by_step(tmp_path: Path, start: float, end: float):
    seen, model = Slopes(), Small()
    schedule = ActivationSchedule(start=start, end=end)
    trainer(tmp_path, schedule, seen).fit(model, datamodule=Tiny())
    assert seen.steps == [slope(window(step / 24, start, end)) for step in range(24)]
    assert seen.validations == [slope(window(epoch / 3, start, end)) for epoch in (1, 2, 3)]
    assert slopes(model) == [slope(1)]


def test_by_default_steps_end_halfway_and_epochs_with_the_training(tmp_path: Path):
    for start in (0.0, 0.4):
        seen = Slopes()
        trainer(tmp_path, ActivationSchedule(start=start), seen).fit(Small(), datamodule=Tiny())
        expected = [window(step / 24, start, start + (1 - start) / 2) for step in range(24)]
        assert seen.steps == [slope(progress) for progress in expected]
    seen = Slopes()
    trainer(tmp_path, ActivationSchedule("epoch"), seen).fit(Small(), datamodule=Tiny())
    assert seen.steps == [slope(epoch / 2) for epoch in range(3) for _ in range(8)]


@pytest.mark.parametrize(
    ("ends", "warns"),
    [
        (DSReLU(), True),  # at a slope of 1.03
        (DSReLU(normalized=True), False),
        (DSReLU(a=2.0, b=1.2, normalized=True), True),
        (DSReLU(a=2.0, b=1.2, normalized=True, negative_slope=0.0), False),
        (Fade(nn.ReLU(), nn.Identity()), False),  # not a function of ours; the user names its end
        (Polynomial(degree=1, progressive=True), True),
        (Polynomial(degree=3, progressive=True), False),
    ],
)
def test_a_schedule_that_ends_as_a_line_is_told(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, ends: nn.Module, warns: bool
):
    model = Small()
    model.backbone.act1 = ends
    trainer(tmp_path, ActivationSchedule(), max_epochs=1, limit_train_batches=1).fit(
        model, datamodule=Tiny()
    )
    told = [str(each.message) for each in recwarn if "straight line" in str(each.message)]
    assert len(told) == warns
    for text in told:
        assert text.startswith(f"{type(ends).__name__} is nearly a straight line at the end of its")


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.25, 0.75)])
def test_progress_by_epoch(tmp_path: Path, start: float, end: float):
    seen, schedule = Slopes(), ActivationSchedule("epoch", start, end)
    trainer(tmp_path, schedule, seen, max_epochs=5).fit(Small(), datamodule=Tiny())
    expected = [window(epoch / 4, start, end) for epoch in range(5)]
    assert seen.steps == [slope(progress) for progress in expected for _ in range(8)]
    assert seen.validations == [slope(progress) for progress in expected]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"accumulate_grad_batches": 2}, [step // 2 / 12 for step in range(24)]),
        ({"accumulate_grad_batches": 3, "max_epochs": 1}, [0, 0, 0, 1/3, 1/3, 1/3, 2/3, 2/3]),
        ({"max_steps": 10, "max_epochs": -1}, [step / 10 for step in range(10)]),
        ({"max_steps": 10}, [step / 10 for step in range(10)]),
        ({"limit_train_batches": 5, "max_epochs": 2}, [step / 10 for step in range(10)]),
        ({"max_time": "10:00:00:00", "max_epochs": 1}, [step / 8 for step in range(8)]),
    ],
)  # fmt: skip
def test_planned_length(tmp_path: Path, limits: dict[str, Any], expected: list[float]):
    seen = Slopes()
    trainer(tmp_path, ActivationSchedule(end=1.0), seen, **limits).fit(Small(), datamodule=Tiny())
    assert seen.steps == [slope(progress) for progress in expected]


@pytest.mark.parametrize(
    ("limits", "epochs"),
    [
        ({"max_steps": 20, "max_epochs": -1}, [0, 1, 2]),  # the third is cut short
        ({"max_steps": 16}, [0, 1]),
        ({"accumulate_grad_batches": 3}, [0, 1, 2]),
        ({"max_epochs": 1}, [0]),
    ],
)
def test_planned_epochs(tmp_path: Path, limits: dict[str, Any], epochs: list[int]):
    seen = Slopes()
    trainer(tmp_path, ActivationSchedule("epoch"), seen, **limits).fit(Small(), datamodule=Tiny())
    expected = [slope(epoch / max(len(epochs) - 1, 1)) for epoch in epochs for _ in range(8)]
    assert seen.steps == expected[: len(seen.steps)]
    assert len(seen.steps) == min(limits.get("max_steps", 24), 8 * len(epochs))


class Clock(Timer):
    """A second a step."""

    def __init__(self, seconds: int) -> None:
        super().__init__({"seconds": seconds})
        self.seconds, self.trainer = float(seconds), None

    def on_fit_start(self, trainer, *args, **kwargs):
        self.trainer = trainer

    def time_elapsed(self, stage="train"):
        return float(self.trainer.global_step) if self.trainer else 0.0


@pytest.mark.parametrize(
    ("seconds", "limits", "planned"),
    [
        (10, {"max_epochs": -1}, 10),  # time alone
        (10, {}, 10),  # time ends first
        (100, {}, 24),  # epochs end first
        (100, {"max_steps": 9}, 9),
    ],
)
def test_a_time_limit_counts_as_what_ends_first(
    tmp_path: Path, seconds: int, limits: dict[str, Any], planned: int
):
    seen, model = Slopes(), Small()
    run = trainer(tmp_path, ActivationSchedule(end=1.0), seen, Clock(seconds), **limits)
    run.fit(model, datamodule=Tiny())
    assert seen.steps == [slope(step / planned) for step in range(planned)]
    assert slopes(model) == [slope(1)]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:.*many workers")
def test_data_without_a_length(tmp_path: Path):
    def fit(schedule: ActivationSchedule, **limits: Any) -> Slopes:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(48, 1, 8, 8, generator=generator)

        class Stream(IterableDataset):
            def __iter__(self):
                return iter([(image, i % 3) for i, image in enumerate(images)])

        model, seen = Small(), Slopes()
        run = trainer(tmp_path, schedule, seen, limit_val_batches=0, **limits)
        run.fit(model, DataLoader(Stream(), batch_size=6))
        return seen

    seen = fit(ActivationSchedule(end=1.0), max_steps=10)
    assert seen.steps == [slope(step / 10) for step in range(10)]
    with pytest.raises(ValueError, match=r"needs a planned length.*data without a length"):
        fit(ActivationSchedule())
    with pytest.raises(ValueError, match=r"interval: epoch needs a number of epochs.*length"):
        fit(ActivationSchedule("epoch"), max_steps=10)


def test_what_cannot_be_planned_is_refused(tmp_path: Path):
    def fit(*callbacks: Callback, **limits: Any) -> None:
        trainer(tmp_path, *callbacks, **limits).fit(Small(), datamodule=Tiny())

    with pytest.raises(ValueError, match="cannot plan: GradientAccumulationScheduler changes"):
        fit(ActivationSchedule(), GradientAccumulationScheduler({0: 1, 1: 2}))
    with pytest.raises(ValueError, match="cannot plan: StochasticWeightAveraging adds an epoch"):
        fit(ActivationSchedule(), StochasticWeightAveraging(0.01))
    with pytest.raises(
        ValueError, match=r"interval: epoch needs a number of epochs.*no trainer.max"
    ):
        fit(ActivationSchedule("epoch"), max_time="00:01:00:00")
    with pytest.raises(ValueError, match=r"2 ActivationSchedule callbacks .*--schedule.interval"):
        fit(ActivationSchedule(), ActivationSchedule("epoch"))
    with pytest.raises(ValueError, match="schedule needs a planned length"):
        trainer(tmp_path, max_epochs=-1).fit(classifier(), datamodule=Tiny())


def test_arguments_are_checked():
    unknown: Any = "day"
    with pytest.raises(ValueError, match="interval must be 'epoch' or 'step', got 'day'"):
        ActivationSchedule(unknown)
    for start, end in ((0.5, 0.5), (0.6, 0.2), (-0.1, 1), (0, 1.2), (math.nan, 1), (0, math.nan)):
        with pytest.raises(ValueError, match=f"start < end <= 1, got start {start} and end {end}"):
            ActivationSchedule(start=start, end=end)


def test_a_network_without_schedule_needs_no_plan(tmp_path: Path):
    accumulation = GradientAccumulationScheduler({0: 1, 1: 2})
    model = Small()
    model.backbone.act1 = nn.ReLU()
    trainer(tmp_path, ActivationSchedule(), accumulation, max_epochs=2).fit(
        model, datamodule=Tiny()
    )


@pytest.mark.filterwarnings("ignore:Be aware that when using")
@pytest.mark.parametrize(
    "schedule", [{}, {"interval": "epoch"}, {"start": 0.1, "end": 0.6},
                 {"interval": "epoch", "start": 0.1, "end": 0.9}], ids=str
)  # fmt: skip
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, schedule: dict[str, Any]):
    def fit(path: str | None, *more: Callback) -> tuple[Slopes, dict[str, Any]]:
        model, seen = Small(), Slopes()
        run = trainer(tmp_path, ActivationSchedule(**schedule), seen, *more,
                      enable_checkpointing=bool(more))  # fmt: skip
        run.fit(model, datamodule=Tiny(), ckpt_path=path)
        return seen, {"model": model.state_dict(), "optimizer": run.optimizers[0].state_dict()}

    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    seen, whole = fit(None, save)
    for steps in (5, 8, 11, 16):  # within an epoch and at its end
        after, resumed = fit(str(tmp_path / f"step={steps}.ckpt"))
        assert after.steps == seen.steps[steps:]
        assert after.validations[-1] == seen.validations[-1]
        assert same(resumed, whole)


class Late(WeightAveraging):
    """The plain mean of the weights from step 10 on, and again after each epoch."""

    def __init__(self, use_buffers: bool) -> None:
        super().__init__(use_buffers=use_buffers)

    def should_update(self, step_idx=None, epoch_idx=None):
        return step_idx is None or step_idx >= 10


def shrunk(average: torch.Tensor, now: torch.Tensor, count: Any) -> torch.Tensor:
    """No mean at all: of two equal slopes it makes a smaller one."""
    return 0.5 * average + 0.4 * now


def averagings(use_buffers: bool) -> list[WeightAveraging]:
    return [WeightAveraging(use_buffers=use_buffers, avg_fn=shrunk), Late(use_buffers)]


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("use_buffers", [True, False], ids=["buffers", "parameters"])
@pytest.mark.parametrize("kind", [0, 1], ids=["shrunk", "mean"])
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_averaged_weights_keep_the_present_slope(
    tmp_path: Path, kind: int, use_buffers: bool, first: bool, interval: Any
):
    seen, model = Slopes(), Small()
    callbacks = [ActivationSchedule(interval, end=1.0), averagings(use_buffers)[kind]]
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    each = ModelCheckpoint(tmp_path, "end-{epoch}", save_top_k=-1)
    callbacks = callbacks if first else callbacks[::-1]
    run = trainer(tmp_path, *callbacks, seen, save, each, enable_checkpointing=True, max_epochs=2)
    run.fit(model, datamodule=Tiny())
    by_epoch = interval == "epoch"
    at = (lambda step: (step - 1) // 8) if by_epoch else (lambda step: step / 16)
    assert seen.steps == [slope(at(step + 1) if by_epoch else at(step)) for step in range(16)]
    assert seen.validations == [slope(at(8)), slope(at(16))]
    assert slopes(model) == [slope(1)]
    expected = {f"step={step}.ckpt": at(step) for step in range(3, 16, 3)}
    expected |= {f"end-epoch={epoch}.ckpt": at(8 + 8 * epoch) for epoch in (0, 1)}
    for name, progress in expected.items():
        stored = torch.load(tmp_path / name, weights_only=True)
        for part in ("state_dict", "current_model_state"):
            assert stored[part]["backbone.act1.slope"] == slope(progress), (name, part)
    weight = stored["state_dict"]["backbone.conv1.weight"]
    assert not torch.equal(weight, stored["current_model_state"]["backbone.conv1.weight"])
    assert torch.equal(weight, model.backbone.conv1.weight)


def test_the_average_itself_is_untouched(tmp_path: Path):
    """The oracle: an exponential mean kept by hand, of everything but the slopes."""

    class ByHand(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            for name, value in pl_module.state_dict().items():
                value = value.detach().double()
                if trainer.global_step == 1:
                    mean[name] = value.clone()
                else:
                    mean[name] = 0.9 * mean[name] + 0.1 * value

    mean: dict[str, torch.Tensor] = {}
    model, average = Small(), EMAWeightAveraging(decay=0.9)
    trainer(tmp_path, average, ActivationSchedule(), ByHand(), max_epochs=2).fit(
        model, datamodule=Tiny()
    )
    for name, value in model.backbone.state_dict().items():
        if name.endswith("slope"):
            assert value == slope(1)
        elif value.is_floating_point():
            torch.testing.assert_close(
                value.double(), mean[f"backbone.{name}"], rtol=1e-4, atol=1e-6
            )


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("steps", [5, 8])
@pytest.mark.parametrize("use_buffers", [True, False])
def test_a_resumed_average_equals_an_uninterrupted_one(
    tmp_path: Path, steps: int, use_buffers: bool
):
    def fit(path: str | None) -> tuple[Slopes, dict[str, Any]]:
        model, seen = Small(), Slopes()
        save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=steps, save_top_k=-1)
        average = EMAWeightAveraging(decay=0.8, use_buffers=use_buffers)
        run = trainer(tmp_path, average, ActivationSchedule(end=0.8), save, seen, max_epochs=2,
                      enable_checkpointing=True)  # fmt: skip
        run.fit(model, datamodule=Tiny(), ckpt_path=path)
        return seen, model.state_dict()

    seen, whole = fit(None)
    after, resumed = fit(str(tmp_path / f"step={steps}.ckpt"))
    assert after.steps == seen.steps[steps:]
    assert after.validations[-1] == seen.validations[-1] == slope(1)
    assert same(resumed, whole)


def test_an_averaged_vanillanet_fuses(tmp_path: Path):
    torch.manual_seed(0)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for average in (EMAWeightAveraging(decay=0.99), WeightAveraging(avg_fn=shrunk)):
        model = Classifier("vanillanet5", 3, 1, 8, backbone_kwargs={"width": 4, "slope_until": 1.0})
        run = trainer(tmp_path, ActivationSchedule(), average, max_epochs=1, limit_val_batches=0)
        run.fit(model, datamodule=Tiny())
        backbone: Any = model.backbone
        expected = model.eval().backbone(images)
        torch.testing.assert_close(backbone.fuse()(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Be aware that when using")
def test_testing_on_its_own_uses_the_stored_value(tmp_path: Path):
    class Used(Callback):
        def __init__(self) -> None:
            self.slopes: set[float] = set()

        def note(self, trainer: Any, pl_module: Any, *more: Any) -> None:
            self.slopes.add(pl_module.backbone.act1.slope.item())

        on_validation_batch_end: Any = note
        on_test_batch_end: Any = note
        on_predict_batch_end: Any = note

    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1)
    run = trainer(tmp_path, ActivationSchedule("epoch", 0.2, 0.9), save, enable_checkpointing=True)
    model = Small()
    run.fit(model, datamodule=Tiny())
    path = str(tmp_path / "step=12.ckpt")  # in the second of three epochs
    stored = slope(window(0.5, 0.2, 0.9))
    runs: list[Any] = [run, trainer(tmp_path, ActivationSchedule("epoch"))]
    for again in runs:
        used = Used()
        again.callbacks.append(used)
        for stage in (again.validate, again.test, again.predict):
            set_progress(model, 0.0)
            stage(model, datamodule=Tiny(), ckpt_path=path, weights_only=True)
            assert [*used.slopes] == [stored]
    runs[-1].save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)["state_dict"]
    assert saved["backbone.act1.slope"] == stored


def test_a_run_that_stops_early_says_where(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = Small()
    stop = EarlyStopping("val/loss", stopping_threshold=1e9)
    with caplog.at_level("INFO"):
        trainer(tmp_path, ActivationSchedule(end=1.0), stop).fit(model, datamodule=Tiny())
    assert "ended with the scheduled activations at t = 0.333 of 1" in caplog.text
    assert slopes(model) == [slope(1 / 3)]


def test_progressive_terms_open_within_the_window(tmp_path: Path):
    class Terms(Callback):
        def on_before_backward(self, trainer, pl_module: Any, loss):
            terms.append(pl_module.backbone.act1.unlocked.item())

    terms: list[float] = []
    model = Small()
    model.backbone.act1 = Polynomial(4, progressive=True)
    schedule, average = ActivationSchedule(start=0.25, end=0.75), EMAWeightAveraging(decay=0.9)
    trainer(tmp_path, Terms(), average, schedule).fit(model, datamodule=Tiny())
    # t runs over steps 6 to 18; terms 3 and 4 open at t = 1/3 and 2/3
    assert terms == [2.0] * 10 + [3.0] * 4 + [4.0] * 10
    assert model.backbone.act1.unlocked == 4


def test_fade_and_average(tmp_path: Path):
    model = classifier(match="fade")
    trainer(tmp_path, ActivationSchedule(end=0.9), EMAWeightAveraging(), max_epochs=1).fit(
        model, datamodule=Tiny()
    )
    assert {m.progress.item() for m in model.modules() if isinstance(m, Fade)} == {1.0}


def test_a_second_training_begins_again_and_says_so(tmp_path: Path):
    model, message = Small(), r"begins again at t = 0, although backbone.act1 moved"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message)
        trainer(tmp_path, ActivationSchedule(), max_epochs=1).fit(model, datamodule=Tiny())
    with pytest.warns(UserWarning, match=message):
        trainer(tmp_path, ActivationSchedule(), max_epochs=1).fit(model, datamodule=Tiny())
    model.backbone.act1 = DSReLU(0.2, 0.2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The schedule begins again")
        for _ in range(2):
            trainer(tmp_path, ActivationSchedule(), max_epochs=1).fit(model, datamodule=Tiny())


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_longer_plan_moves_the_schedule_back_and_says_so(tmp_path: Path):
    def run(epochs: int) -> Any:
        save = ModelCheckpoint(tmp_path, f"{epochs}", every_n_epochs=1)
        return trainer(tmp_path, ActivationSchedule(end=1.0), save, enable_checkpointing=True,
                       max_epochs=epochs)  # fmt: skip

    run(2).fit(Small(), datamodule=Tiny())
    with pytest.warns(UserWarning, match=r"go back from t = 1 to 0\.5: the training is planned"):
        run(4).fit(Small(), datamodule=Tiny(), ckpt_path=tmp_path / "2.ckpt")
