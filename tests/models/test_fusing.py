"""`compile: auto`: what it estimates, what it chooses, and what stays with the choice."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from torch import nn

import activations
from activations import DELU, Activation, CosLU, fuse
from models import Classifier, fusing
from models.fusing import Estimate, estimate
from tests.data import Tiny
from tests.trainings import classifier, trainer

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "backbone", "images", "factor"),
    [("step", "resnet20", 128, 1.4), ("step-small", "resnet8", 8, 2.5)],
)
def test_the_estimate_agrees_with_measured_steps(
    name: str, backbone: str, images: int, factor: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    rows = json.loads((ROOT / f"results/bench/{name}.json").read_text())["rows"]
    measured = {(row["function"], row["mode"], row["dtype"]): row["step_ms"] for row in rows}
    for function, mode, dtype in measured:
        if mode == "activations":
            plain, fused = measured[function, "off", dtype], measured[function, mode, dtype]
            network = Classifier(backbone, 10, 3, 32, getattr(activations, function))
            found = estimate(network.backbone, network.swapped, images, 1, 1).saved
            assert 1 / factor < 1e3 * found / (plain - fused) < factor, (function, dtype)


def test_channels_do_not_count_as_operations():
    one, channels = (fusing._operations(CosLU(num_parameters=n), 4) for n in (1, 3))
    assert one == channels


def test_an_estimate_counts_elements_steps_and_functions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(fusing, "_operations", lambda module, rank: 10 * rank)
    network = Classifier("resnet8", 3, 1, 8, CosLU, activation_by_site={"layer3.*": DELU})
    elements = 3 * 16 * 8 * 8 + 2 * 32 * 4 * 4 + 2 * 64 * 2 * 2
    found = estimate(network.backbone, network.swapped, 6, 50, 100)
    assert found.saved == pytest.approx(40 * fusing.SAVED_SMALL * elements * 6 * 100 / 2)
    assert found[1:] == (fusing.FIRST + 2 * fusing.EACH, 50)
    monkeypatch.setattr(fusing, "least", lambda: 6 * 32 * 4 * 4)
    large = estimate(network.backbone, network.swapped, 6, 50, 100).saved / found.saved
    small = 2 * 64 * 2 * 2 / elements
    assert large == pytest.approx(small + (1 - small) * fusing.SAVED / fusing.SAVED_SMALL)
    for other in (nn.ReLU, nn.SiLU, None):
        network = Classifier("resnet8", 3, 1, 8, other)
        assert estimate(network.backbone, network.swapped, 6, 50, 100).cost == 0


@pytest.mark.parametrize(
    ("found", "device", "mode", "told"),
    [
        (Estimate(310, 25, 4200), "cpu", "activations",
         "4,200 steps save about 310 s, compilation takes about 25 s"),
        (Estimate(2, 19, 40), "cpu", "off",
         "40 steps would save about 2 s, compilation takes about 19 s"),
        (Estimate(math.inf, 19, math.inf), "cpu", "activations", "an open number of steps save"),
        (Estimate(0, 19, math.inf), "cpu", "off", "would save about 0 s"),
        (Estimate(2, 19, 99), "cuda", "off", "99 steps, and on a GPU it pays from 100"),
        (Estimate(310, 25, 4200), "mps", "off", "there are no fused kernels for mps"),
        (Estimate(0, 0, 4200), "cpu", "off", ""),
    ],
)  # fmt: skip
def test_the_choice(found: Estimate, device: str, mode: str, told: str):
    chosen, why = found.decide(device)
    assert chosen == mode
    assert (told in why and why.startswith(f"compile: auto -> {mode}: ")) if told else why == ""


def test_without_a_compiler_nothing_is_fused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    mode, why = Estimate(310, 25, 4200).decide("cpu")
    assert mode == "off"
    assert why.endswith("but there is no C++ compiler no-such-compiler: install it, or set CXX")
    monkeypatch.setattr(fusing, "find_spec", lambda name: None)
    assert Estimate(1, 25, 100).decide("cuda")[1].endswith("no triton: pip install triton")


def test_trainings_add_up():
    several = Estimate(1, 19, 60).plus(Estimate(2, 23, 40))
    assert several == Estimate(3, 42, 40)


def fused(model: nn.Module) -> set[bool]:
    return {module.fused for module in model.modules() if isinstance(module, Activation)}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said; fused activations are computed by the plain formula."""
    lines: list[str] = []
    monkeypatch.setattr("activations.activation.evaluate", lambda *_, compiled: None)
    monkeypatch.setattr("models.classifier.rank_zero_info", lines.append)
    return lines


def pays(monkeypatch: pytest.MonkeyPatch, yes: bool) -> None:
    for name in ("SAVED", "SAVED_SMALL"):
        monkeypatch.setattr(fusing, name, 1.0 if yes else 0.0)


def fit(tmp_path: Path, model: Classifier, ckpt: Path | None = None, **more: Any) -> Trainer:
    run = trainer(tmp_path, **{"max_epochs": 1, **more})
    run.fit(model, datamodule=Tiny(), ckpt_path=ckpt)
    return run


def test_a_choice_stays_with_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
):
    model, file = classifier(CosLU), tmp_path / "x.ckpt"
    pays(monkeypatch, True)
    evaluated = classifier(CosLU)
    trainer(tmp_path).validate(evaluated, Tiny(), verbose=False)
    assert (evaluated.compiled, fused(evaluated), told) == ("", {False}, [])
    fit(tmp_path, model).save_checkpoint(file)
    assert (model.compiled, fused(model), len(told)) == ("activations", {True}, 1)
    assert "compile: auto -> activations: 8 steps save about " in told[0]

    pays(monkeypatch, False)
    resumed = classifier(CosLU)
    fit(tmp_path, resumed, file, max_epochs=2)
    assert (resumed.compiled, fused(resumed), len(told)) == ("activations", {True}, 1)
    tested = Classifier.load_from_checkpoint(file)
    trainer(tmp_path).test(tested, Tiny(), verbose=False)
    assert (tested.hparams["compile"], fused(tested)) == ("auto", {False})

    fit(tmp_path, model)  # again, from here
    assert (model.compiled, fused(model), len(told)) == ("off", {False}, 2)
    fuse(model)  # by the user, whose choice `auto` leaves alone
    fit(tmp_path, model)
    assert fused(model) == {True}


def test_the_steps_that_are_left_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
):
    model, file = classifier(CosLU, compile="off"), tmp_path / "x.ckpt"
    fit(tmp_path, model).save_checkpoint(file)
    content = torch.load(file, weights_only=True)
    content["hyper_parameters"]["compile"] = "auto"
    del content["compiled"]  # of a run that had not decided
    torch.save(content, file)
    fit(tmp_path, classifier(CosLU), file, max_epochs=3, accumulate_grad_batches=2)
    assert told[-1].startswith("compile: auto -> off: 4 steps would save")  # 3 x 4, 8 are done
    fit(tmp_path, classifier(CosLU), max_epochs=-1, max_steps=7)
    assert told[-1].startswith("compile: auto -> off: 7 steps would save")
    fit(tmp_path, classifier(CosLU), fast_dev_run=True)
    assert told[-1].startswith("compile: auto -> off: 1 step would save")
    before = len(told)
    fit(tmp_path, classifier(nn.ReLU), fast_dev_run=True)
    assert len(told) == before


@pytest.mark.filterwarnings("ignore:.*`trainer.fit")
def test_a_finder_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]):
    pays(monkeypatch, True)
    finder = LearningRateFinder(min_lr=1e-4, max_lr=0.5, num_training_steps=12)
    run = trainer(tmp_path, finder, max_epochs=2)
    run.fit(model := classifier(CosLU), datamodule=Tiny())
    assert model.compiled == "activations"
    assert [line[:40] for line in told] == ["compile: auto -> activations: 16 steps s"]


@pytest.mark.parametrize("value", ["fast", True, None])
def test_a_bad_value_is_one_sentence(value: Any):
    with pytest.raises(ValueError, match="compile must be auto, off, activations or model, got"):
        Classifier("resnet8", compile=value)
