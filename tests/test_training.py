"""Schedule, alternation and monitor together under Lightning's own options."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins import TorchSyncBatchNorm
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from activations import (
    Activation,
    CosLU,
    fuse,
    parameter_groups,
    set_progress,
    shape_parameters,
)
from callbacks import (
    ActivationMonitor,
    ActivationSchedule,
    AlternatingOptimization,
    BestCheckpoint,
)
from models import Classifier, DivergedError
from models.metrics import classification_metrics
from tests.data import Tiny
from tests.trainings import Small, by_hand, classifier, is_shape, is_weight, same, trainer


def together() -> list[Callback]:
    """Turns of three steps, a slope that moves from a quarter to three quarters."""
    return [
        ActivationSchedule(start=0.25, end=0.75),
        AlternatingOptimization(["activations", "weights"], 3, "step"),
        ActivationMonitor(),
    ]


def fit(tmp_path: Path, *more: Callback, model: Small | None = None, **options: Any) -> Small:
    model = model or Small(decay=0.01)
    trainer(tmp_path, *more, *together(), **options).fit(model, datamodule=Tiny())
    return model


def expected(model: Small | None = None, **more: Any) -> Small:
    model = model or Small(decay=0.01)
    by_hand(
        model,
        [is_shape, is_weight],
        lambda step, epoch: step // 3 % 2,
        progress=lambda step, epoch: min(max((step - 6) / 12, 0), 1),
        **more,
    )
    return model


def test_plain(tmp_path: Path):
    assert same(fit(tmp_path).state_dict(), expected().state_dict())


def test_evaluations_before(tmp_path: Path):
    model, own = classifier(nn.ReLU), trainer(tmp_path, max_epochs=1)
    own.validate(model, Tiny(), verbose=False)
    own.test(model, Tiny(), verbose=False)
    own.fit(model, Tiny())
    assert own.global_step > 0


def test_gradient_clipping(tmp_path: Path):
    found = {}
    for name, clip in (
        ("norm", lambda p: nn.utils.clip_grad_norm_(p, 0.3)),
        ("value", lambda p: nn.utils.clip_grad_value_(p, 0.03)),
    ):
        model = fit(tmp_path, gradient_clip_val=0.3 if name == "norm" else 0.03,
                    gradient_clip_algorithm=name)  # fmt: skip
        found[name] = model.state_dict()
        assert same(found[name], expected(clip=clip).state_dict())
    assert not same(found["norm"], found["value"])


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_precision(tmp_path: Path, precision: Any):
    model, oracle = Small(decay=0.01), Small(decay=0.01)
    dtype = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(precision)
    expected(oracle.to(dtype) if dtype else oracle, autocast=precision == "bf16-mixed")
    fit(tmp_path, model=model, precision=precision)
    assert model.backbone.get_parameter("act2.b").dtype == (dtype or torch.float32)
    tolerance = 1e-12 if precision == "64-true" else 0
    for name, value in oracle.state_dict().items():
        found = model.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.gpu  # float16 is scaled there alone
@pytest.mark.parametrize("norm", [None, 0.3])
def test_float16_on_a_gpu(tmp_path: Path, norm: float | None):
    results = []
    for precision in ("16-mixed", "32-true"):
        model = fit(tmp_path, precision=precision, accelerator="gpu", gradient_clip_val=norm)
        results.append(model.cpu().state_dict())
    for name, value in results[1].items():
        torch.testing.assert_close(results[0][name], value, rtol=0.05, atol=0.02, msg=name)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # DDP of torch 2.11
def test_synchronised_normalisation_on_a_gpu(tmp_path: Path):
    model = fit(tmp_path, accelerator="gpu", strategy="ddp", sync_batchnorm=True)
    plain = fit(tmp_path, accelerator="gpu")
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_synchronised_normalisation_keeps_schedule_and_groups():
    model = Small()
    before = shape_parameters(model)
    weights = [id(p) for group in parameter_groups(model) for p in group["params"]]
    converted = TorchSyncBatchNorm().apply(model)
    assert isinstance(converted.get_submodule("backbone.bn1"), nn.SyncBatchNorm)
    assert shape_parameters(converted).keys() == before.keys()
    assert weights == [id(p) for group in parameter_groups(converted) for p in group["params"]]
    assert set_progress(converted, 1.0) == 1


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_balanced_losses_in_every_precision(tmp_path: Path, precision: Any, loss: Any):
    data, run = Tiny(balance="loss"), trainer(tmp_path, precision=precision, max_epochs=1)
    run.fit(classifier(CosLU, loss=loss), datamodule=data)
    assert run.callback_metrics["train/loss"].isfinite()


def test_areas_do_not_depend_on_the_range_of_a_batch():
    from sklearn.metrics import roc_auc_score

    torch.manual_seed(0)
    batches = [torch.rand(20, 3), 4 * torch.randn(20, 3)]  # the first could be probabilities
    labels = [torch.arange(20) % 3, (torch.arange(20) + 1) % 3]
    metrics = classification_metrics(3)
    for scores, label in zip(batches, labels, strict=True):
        metrics.update(scores, label)
    scores, label = torch.cat(batches).softmax(1).double(), torch.cat(labels)
    scores /= scores.sum(1, keepdim=True)
    expected = roc_auc_score(label.numpy(), scores.numpy(), multi_class="ovr", average="macro")
    assert metrics.compute()["auroc"].item() == pytest.approx(expected, abs=1e-6)


def test_averaging_by_swa_needs_the_rate_of_each_group(tmp_path: Path):
    model = classifier(CosLU, activation_lr_scale=0.1)
    run = trainer(tmp_path, StochasticWeightAveraging(0.05), max_epochs=2)
    with pytest.raises(ValueError, match=r"give swa_lrs \d rates, of .*activations"):
        run.fit(model, datamodule=Tiny())


class Mean(WeightAveraging):
    """The plain mean of what follows each step."""


@pytest.mark.parametrize("average", [EMAWeightAveraging(decay=0.8), Mean()], ids=["ema", "mean"])
def test_weight_averaging(tmp_path: Path, average: WeightAveraging):
    mean: dict[str, torch.Tensor] = {}
    weight = (lambda n: 0.8) if isinstance(average, EMAWeightAveraging) else lambda n: n / (n + 1)
    oracle = expected(mean=mean, decay=weight)
    model = fit(tmp_path, average)
    for name, value in model.state_dict().items():
        if name.endswith("slope"):
            assert torch.equal(value, oracle.state_dict()[name])  # set, not averaged
        elif value.is_floating_point():
            torch.testing.assert_close(value.double(), mean[name], rtol=1e-4, atol=1e-6)
    weight = "backbone.fc.weight"
    assert not torch.equal(model.state_dict()[weight], oracle.state_dict()[weight])


def test_pruning(tmp_path: Path):
    """Lightning's ModelPruning needs weights that can be seen as one vector."""
    model = classifier(CosLU)
    pruning = ModelPruning("l1_unstructured", parameter_names=["weight"], amount=0.3)
    trainer(tmp_path, pruning, max_epochs=1, limit_train_batches=2).fit(model, datamodule=Tiny())
    pruned = [m for m in model.modules() if isinstance(getattr(m, "weight", None), nn.Parameter)]
    weights = torch.cat([module.weight.detach().flatten() for module in pruned])  # pyright: ignore
    assert (weights == 0).sum() == round(0.3 * weights.numel())


def test_early_stopping(tmp_path: Path):
    stop = EarlyStopping("val/loss", stopping_threshold=1e9)  # after the first epoch
    oracle = Small(decay=0.01)
    by_hand(oracle, [is_shape, is_weight], lambda step, epoch: step // 3 % 2, epochs=1,
            progress=lambda step, epoch: max(step - 6, 0) / 12)  # fmt: skip
    assert same(fit(tmp_path, stop).state_dict(), oracle.state_dict())


def test_accumulation(tmp_path: Path):
    model, oracle = fit(tmp_path, accumulate_grad_batches=2), Small(decay=0.01)
    by_hand(oracle, [is_shape, is_weight], lambda step, epoch: step // 3 % 2, accumulate=2,
            progress=lambda step, epoch: min(max((step - 3) / 6, 0), 1))  # fmt: skip
    assert same(model.state_dict(), oracle.state_dict())


def fused(model: Classifier) -> set[bool]:
    return {module.fused for module in model.modules() if isinstance(module, Activation)}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0, 2, 1)], ids=str)
def test_each_network_of_a_process_keeps_its_own_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
):
    def evaluate(expression: Any, x: torch.Tensor, *more: Any, compiled: bool) -> None:
        asked.append(len(x))  # and None, so that the plain function answers

    asked: list[int] = []
    monkeypatch.setattr("activations.activation.evaluate", evaluate)
    models = [classifier(CosLU, compile=mode) for mode in ("activations", "off", "off")]
    fuse(models[2].backbone)  # by the user, whose choice `off` leaves alone
    for index in order:
        trainer(tmp_path, fast_dev_run=True).fit(models[index], datamodule=Tiny())
        assert bool(asked) == (index != 1)
        asked.clear()
    assert [fused(model) for model in models] == [{True}, {False}, {True}]


def test_a_compiled_network(tmp_path: Path):
    model = Small(decay=0.01)
    model.backbone.compile(backend="eager")
    fit(tmp_path, model=model)
    for name, value in expected().state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_a_network_that_gives_no_numbers_is_not_chosen(tmp_path: Path):
    class Break(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 3:
                pl_module.backbone.fc.bias.data.fill_(math.nan)

    def fit(**options: Any) -> Any:
        best = [BestCheckpoint(tmp_path, "best", "val/acc")] * ("limit_val_batches" not in options)
        run = trainer(tmp_path, Break(), *best, enable_checkpointing=bool(best), max_epochs=1,
                      limit_train_batches=3, num_sanity_val_steps=0, **options)  # fmt: skip
        return run, classifier(CosLU)

    told = "output is no number for some samples"
    for every in (1.0, 1):
        run, model = fit(val_check_interval=every)
        with pytest.raises(DivergedError, match=f"{told} of the validation in epoch 0: the run"):
            run.fit(model, datamodule=Tiny())
        kept = tmp_path / "best.ckpt"
        assert every == 1.0 or kept.exists()  # of the steps before
        if kept.exists():
            state = torch.load(kept, weights_only=True)["state_dict"]
            assert all(value.isfinite().all() for value in state.values())
        assert run.callback_metrics["train/loss"].isfinite()  # told, too
    run, model = fit(limit_val_batches=0)
    run.fit(model, datamodule=Tiny())
    with pytest.raises(DivergedError, match=f"{told} of the test: the run has diverged"):
        run.test(model, datamodule=Tiny(), verbose=False)
    loaded = classifier(CosLU)
    loaded.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match=f"{told}, which count as the first class"):
        trainer(tmp_path).test(loaded, datamodule=Tiny(), verbose=False)


def test_a_plan_by_steps_refuses_a_number_of_steps_that_changes(tmp_path: Path):
    for scheduler in (None, partial(OneCycleLR, max_lr=0.1)):
        run = trainer(tmp_path, GradientAccumulationScheduler({0: 4, 2: 1}))
        with pytest.raises(
            ValueError, match=r"planned by steps, .*--trainer.accumulate_grad_batches"
        ):
            run.fit(classifier(nn.ReLU, lr_scheduler=scheduler), datamodule=Tiny())
    by_epochs = partial(StepLR, step_size=1)
    run = trainer(tmp_path, GradientAccumulationScheduler({0: 4, 1: 1}), max_epochs=2)
    run.fit(classifier(nn.ReLU, lr_scheduler=by_epochs), datamodule=Tiny())


def test_options_of_shapes_that_no_activation_learns_are_told(tmp_path: Path):
    for options in ({"activation_lr_scale": 0.1}, {"activation_weight_decay": 0.01}):
        run = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
        with pytest.warns(UserWarning, match=rf"--model.{next(iter(options))} has no effect"):
            run.fit(classifier(nn.SiLU, **options), datamodule=Tiny())
