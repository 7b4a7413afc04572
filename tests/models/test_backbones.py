"""Backbones against published sizes and an independent forward pass; the classifier's parts."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from activations import LSLU, CosLU, fuse
from models import CifarResNet, Classifier, build_backbone
from models.metrics import classification_metrics


def reference_resnet(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """He et al.'s CIFAR network in evaluation mode, from its state alone."""

    def conv_norm(x, conv, norm, stride=1):
        y = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        mean, var, weight, bias = (
            state[f"{norm}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-5).sqrt() * weight + bias

    x = conv_norm(x, "conv1", "bn1").relu()
    for stage in (1, 2, 3):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = conv_norm(x, f"{at}.conv1", f"{at}.bn1", stride).relu()
            y = conv_norm(y, f"{at}.conv2", f"{at}.bn2")
            if stride == 2:  # every second pixel, zeros for half of the new channels on each side
                half = torch.zeros_like(y[:, : y.shape[1] // 4])
                x = torch.cat([half, F.max_pool2d(x, 1, 2), half], 1)
            x = (x + y).relu()
            block += 1
    return x.flatten(2).mean(2) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("depth", [8, 20])
def test_cifar_resnet_is_the_papers(depth: int):
    torch.manual_seed(0)
    model = CifarResNet(depth, num_classes=7).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for value in (module.running_mean, module.weight.data, module.bias.data):
                value += torch.rand_like(value) / 5
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 3, 31, 32)
    torch.testing.assert_close(
        model(x), reference_resnet(model.state_dict(), x), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85)],
)
def test_sizes_of_he_et_al(name: str, millions: float):
    model = build_backbone(name, 10)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    "name", ["resnet8", "timm/resnet18", "torchvision/resnet18", "resnet18d", "squeezenet1_1"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_backbones_fit_the_data(name: str, channels: int):
    with torch.device("meta"):  # shapes are computed, numbers are not
        model = build_backbone(name, 6, channels, image_size=32).eval()
        assert model(torch.randn(2, channels, 32, 32)).shape == (2, 6)


def test_small_and_imagenet_stems():
    for name in ("timm/resnet18", "torchvision/resnet18", "resnet18d"):
        sides = []
        settings: list[tuple[int, Any]] = [
            (32, "auto"),
            (224, "small"),
            (32, "imagenet"),
            (224, "auto"),
        ]
        for side, stem in settings:
            with torch.device("meta"):
                model = build_backbone(name, 5, image_size=side, stem=stem)
                stage = model.get_submodule("layer1")
                stage.register_forward_hook(lambda m, i, y, sides=sides: sides.append(y.shape[-1]))  # pyright: ignore
                model.eval()(torch.randn(1, 3, 32, 32))
        assert sides == [32, 32, 8, 8], name
    with pytest.raises(ValueError, match="'vgg11' has no small stem"):
        build_backbone("vgg11", 5, stem="small")


def test_unknown_backbones_answer_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet21'; the nearest: .*resnet20"):
        build_backbone("resnet21", 10)
    with pytest.raises(ValueError, match="the library is timm or torchvision, not 'keras'"):
        build_backbone("keras/resnet18", 10)
    with pytest.raises(ValueError, match=r"6n \+ 2.*got 21"):
        CifarResNet(21)


def test_gradients_reach_every_parameter():
    model = Classifier("resnet8", activation=LSLU)
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    F.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_optimizer_groups_and_scales():
    model = Classifier("resnet8", activation=CosLU, activation_lr_scale=0.1,
                       activation_weight_decay=0.3, optimizer=partial(torch.optim.AdamW, lr=0.02),
                       lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=3))  # fmt: skip
    [optimizer], [schedule] = model.configure_optimizers()
    weights, shapes = optimizer.param_groups
    assert (weights["lr"], weights["weight_decay"]) == (0.02, 0.01)
    assert (shapes["lr"], shapes["weight_decay"]) == (pytest.approx(0.002), 0.3)
    assert len(shapes["params"]) == 14
    assert schedule["interval"] == "epoch"


def test_bad_numbers():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"class_weights": [1.0, 2.0]}, "class_weights has 2 numbers, the data 10 classes"),
        ({"label_smoothing": 1.5}, r"label_smoothing must lie in \[0, 1\], got 1.5"),
        ({"activation_lr_scale": 0.0}, "activation_lr_scale must be > 0, got 0.0"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            Classifier("resnet8", **arguments)


def test_no_top5_below_ten_classes():
    assert "val/acc_top5" in Classifier("resnet8").val_metrics.keys()  # noqa: SIM118
    assert "val/acc_top5" not in Classifier("resnet8", num_classes=9).val_metrics.keys()  # noqa: SIM118


OVERLAYS = sorted((Path(__file__).parents[2] / "configs/backbone").glob("*.yaml"))
# fewer blocks of the same kinds
SMALLER: dict[str, dict[str, Any]] = {
    "convnext_tiny": {"depths": (1, 1, 2, 1)},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "swin_tiny": {"depths": (1, 1, 2, 1)},
    "vanillanet5": {"width": 16},
    "resnet34_1d": {"layers": (1, 1, 1, 1)},
    "seresnet50": {"layers": (1, 1, 1, 1)},
    "timm_resnet34": {"layers": (1, 1, 1, 1)},
}


def alone(model: Any) -> Any:
    """`model` with the parts of a Trainer that a training step needs."""
    model.trainer = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=[])], global_step=0)
    model.log = lambda *arguments, **options: None
    return model


# other depths of the same code
LATER = ("resnet26", "resnet32", "resnet44", "resnet56", "timm_resnet18", "torchvision_resnet18")


@pytest.mark.parametrize(
    "file",
    [pytest.param(f, marks=[pytest.mark.slow] * (f.stem in LATER), id=f.stem) for f in OVERLAYS],
)
def test_every_overlay_builds_swaps_steps_and_predicts(file: Path):
    torch.manual_seed(0)
    options = yaml.safe_load(file.read_text())["model"]
    options.pop("optimizer", None)
    dims = 1 if file.stem.endswith("_1d") else 2
    side = 32 if dims == 2 else 70
    options |= {"num_classes": 5, "in_channels": 1, "image_size": side, "dims": dims}
    options |= {"activation": CosLU}
    model = alone(Classifier(backbone_kwargs=SMALLER.get(file.stem), **options))
    assert len(model.swapped) >= 4
    images, labels = torch.randn(2, 1, *[side] * dims), torch.tensor([3, 1])
    loss = model.training_step((images, labels), 0)
    loss.backward()
    learned = [model.backbone.get_submodule(call.name).alpha for call in model.swapped]
    assert all(alpha.grad is not None and alpha.grad.isfinite().all() for alpha in learned)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    optimizer.step()
    probability = model.eval().predict_step((images, labels, labels), 0)["probability"]
    assert probability.shape == (2, 5)


def test_networks_in_one_dimension():
    for name in ("resnet20", "timm/resnet18", "torchvision/resnet18"):
        model = build_backbone(name, 4, 2, 1, image_size=187).eval()
        assert model(torch.randn(3, 2, 187)).shape == (3, 4)
    signal = Classifier("resnet8", 5, 1, 187, dims=1, activation=LSLU)
    assert signal(torch.randn(3, 1, 187)).shape == (3, 5)
    with pytest.raises(ValueError, match="dims must be 1"):
        build_backbone("resnet20", 4, dims=3)


def test_vanillanet_by_name_in_both_stems():
    small = build_backbone("vanillanet5", 4, image_size=32, width=8).eval()
    assert small(torch.randn(2, 3, 32, 32)).shape == (2, 4)
    large = build_backbone("vanillanet5", 4, image_size=224, width=8)
    assert large.smallest == 32
    model = Classifier("vanillanet5", 4, activation=LSLU, backbone_kwargs={"width": 8})
    assert [call.old for call in model.swapped] == ["SeriesReLU"] * 4


def test_arguments_and_inputs_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"timm/resnet18 does not take \{'wdith': 3\} \(backbone_kwargs\)"
    ):
        build_backbone("timm/resnet18", 4, wdith=3)
    with pytest.raises(
        ValueError,
        match=r"AlexNet does not take an input of shape \(2, 3, 16, 16\): .*larger data.image_size",
    ):
        Classifier("torchvision/alexnet", 4, image_size=16)


def test_binary_cross_entropy_of_each_class():
    model = alone(Classifier("resnet8", 3, loss="bce", label_smoothing=0.1))
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 2, 1, 1])
    loss = model.training_step((images, labels), 0)
    scores = model(images).sigmoid()
    shares = torch.eye(3)[labels] * 0.9 + 0.1 / 3
    expected = -(shares * scores.log() + (1 - shares) * (1 - scores).log()).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_metrics_do_not_share_counts():
    """On a first batch of one class, top-5 accuracy and F1 agree, and torchmetrics would merge them."""
    from sklearn.metrics import f1_score

    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(10).repeat_interleave(5)
    scores = torch.randn(50, 10, generator=generator)
    scores[:5] = -scores.new_ones(5, 10).cumsum(1).flip(1)  # the first class is never among five
    metrics = classification_metrics(10)
    for part in range(10):
        metrics.update(scores[5 * part :][:5], labels[5 * part :][:5])
    found = metrics.compute()
    best, top = scores.argmax(1), scores.topk(5).indices
    assert found["acc"].item() == pytest.approx((best == labels).double().mean().item())
    assert found["f1"].item() == pytest.approx(f1_score(labels, best, average="macro"))
    hits = (top == labels[:, None]).any(1).double().mean().item()
    assert found["acc_top5"].item() == pytest.approx(hits)


def test_compilation_concerns_one_network(monkeypatch: pytest.MonkeyPatch):
    own, other = (Classifier("resnet8", activation=CosLU) for _ in range(2))
    fuse(own.backbone)
    own.setup("validate")  # compile: off leaves what the user has fused
    assert all(module.fused for module in own.modules() if isinstance(module, CosLU))
    asked = Classifier("resnet8", activation=CosLU, compile="activations")
    asked.setup("validate")
    assert all(module.fused for module in asked.modules() if isinstance(module, CosLU))
    assert not any(module.fused for module in other.modules() if isinstance(module, CosLU))

    compiled = []
    compile_ = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self: (compiled.append(self), compile_(self, backend="eager"))
    )
    whole = Classifier("resnet8", compile="model")
    for stage in ("fit", "validate", "test"):
        whole.setup(stage)
    assert compiled == [whole.backbone]
