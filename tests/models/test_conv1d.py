"""1-D twins against their 2-D networks on images of height 1, layer by layer and whole."""

import copy
import importlib
import pickle
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from activations import LSLU, CosLU, SeriesReLU, replace_activations, set_progress
from models import CifarResNet, VanillaNet, to_1d

layers: Any = importlib.import_module("timm.layers")
blocks: Any = importlib.import_module("timm.models._efficientnet_blocks")
senet: Any = importlib.import_module("timm.models.senet")


def lived_in(network: nn.Module) -> nn.Module:
    """The network in float64, with all weights and statistics moved to different values."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.rand_like(parameter) / max(1, parameter[0].numel()) ** 0.5
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += torch.rand_like(buffer)
    return network.double()


def signals(channels: int = 3, length: int = 61) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, channels, length, generator=generator, dtype=torch.float64)


def same(value: torch.Tensor, expected: torch.Tensor) -> None:
    assert value.shape == expected.shape
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10)


SHALLOW: dict[str, Any] = {"layers": (1, 1, 1, 1)}
NETWORKS = {
    "ours/resnet8": partial(CifarResNet, 8),
    "ours/resnet20": partial(CifarResNet, 20, in_channels=2),
    "torchvision/resnet18": torchvision.models.resnet18,
    "torchvision/bottlenecks": partial(torchvision.models.ResNet, Bottleneck, [1, 1, 1, 1]),
    "torchvision/regnet_y_400mf": torchvision.models.regnet_y_400mf,
    **{
        f"timm/{name}": partial(timm.create_model, name, **more)
        for name, more in (
            ("resnet18", {}),
            ("resnet26", SHALLOW),
            ("resnet34d", SHALLOW),
            ("seresnet50", SHALLOW),
            ("ecaresnet50d", SHALLOW),
            ("resnext50_32x4d", SHALLOW),
            ("resnetv2_50", SHALLOW),
            ("regnety_002", {}),
        )
    },
}
WHOLE = [partial(getattr(torchvision.models, name)) for name in ("resnet34", "resnet50")] + [
    partial(timm.create_model, name)
    for name in (
        "resnet26",
        "resnet34d",
        "resnet50",
        "seresnet50",
        "wide_resnet50_2",
        "regnetx_032",
    )
]


@pytest.mark.parametrize("name", NETWORKS)
def test_twin_is_the_network_on_images_of_height_1(name: str):
    compare(lived_in(NETWORKS[name]()))


@pytest.mark.slow
@pytest.mark.parametrize("make", WHOLE, ids=str)
def test_whole_twins(make):
    compare(lived_in(make()))


def compare(network: nn.Module) -> None:
    """Evaluation, training, gradients and statistics of a network and its twin."""
    twin = to_1d(network)
    x = signals(next(network.parameters()).shape[1])
    same(twin.eval()(x), network.eval()(x[:, :, None]))

    torch.manual_seed(2)
    expected = network.train()(x[:, :, None])
    torch.manual_seed(2)
    value = twin.train()(x)
    same(value, expected)
    value[:, 0].square().sum().backward()
    expected[:, 0].square().sum().backward()
    weights = dict(network.named_parameters())
    assert [n for n, _ in twin.named_parameters()] == list(weights)
    for key, parameter in twin.named_parameters():
        weight, gradient = weights[key], weights[key].grad
        assert gradient is not None
        assert parameter.grad is not None
        if weight.dim() == 4:
            middle = weight.shape[2] // 2
            assert parameter.shape == (*weight.shape[:2], weight.shape[3])
            assert torch.equal(parameter, weight[:, :, middle])
            gradient = gradient[:, :, middle]
        error = (parameter.grad - gradient).abs().max()
        assert error <= 1e-8 * gradient.abs().max() + 1e-9, key
    for key, buffer in network.named_buffers():
        torch.testing.assert_close(twin.get_buffer(key), buffer, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnetaa50d", SHALLOW),
        ("resnetblur18", SHALLOW),
        ("legacy_seresnet18", {}),
        ("densenetblur121d", {"block_config": (2, 2, 2, 2)}),
    ],
)
def test_twin_is_the_network_on_equal_rows_that_do_not_mix(name: str, arguments: dict):
    """For networks whose pooling takes no images of height 1."""
    network = lived_in(timm.create_model(name, **arguments)).eval()
    twin = to_1d(network).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            rows = torch.zeros_like(module.weight)
            middle = module.kernel_size[0] // 2
            rows[:, :, middle] = module.weight[:, :, middle]
            module.weight.data = rows
    x = signals(length=64)[:2]
    same(twin(x), network(x[:, :, None].expand(-1, -1, 64, -1)))


def gate(kind, **arguments) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), kind(8, **arguments))


LAYERS = {
    "oblong": nn.Conv2d(3, 4, (3, 5), (1, 2), (1, 2), groups=1, bias=False),
    "dilated": nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3),
    "same": nn.Conv2d(3, 4, 5, padding="same"),
    "circular": nn.Conv2d(3, 4, (1, 5), padding=(0, 2), padding_mode="circular"),
    "replicated": nn.Conv2d(3, 4, (1, 5), padding=(0, 2), padding_mode="replicate"),
    "maximum": nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 2, 1)),
    "oblong maximum": nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d((1, 4), (1, 3), (0, 1))),
    "ceiling": nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2, 2, ceil_mode=True)),
    "average": nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(2, 2, 0, True)),
    "inner average": nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False)
    ),
    "adaptive": nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d((1, 7)), nn.Flatten()),
    "adaptive maximum": nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveMaxPool2d((1, 7))),
    "instance": nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, affine=True)),
    "group": nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.PReLU(4)),
    "dropout": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout2d(0.4), nn.Dropout(0.3)),
    "squeeze": gate(layers.SEModule, add_maxpool=True),
    "normed squeeze": gate(layers.SEModule, norm_layer=nn.BatchNorm2d),
    "legacy squeeze": gate(partial(senet.SEModule, reduction=2)),
    "mobile squeeze": gate(partial(blocks.SqueezeExcite)),
    "effective squeeze": gate(layers.EffectiveSEModule),
    "channels' neighbours": gate(layers.EcaModule),
    "channels' mixer": gate(layers.EcaModule, use_mlp=True),
    "torchvision squeeze": gate(partial(torchvision.ops.SqueezeExcitation, squeeze_channels=2)),
    "normed activation": gate(layers.BatchNormAct2d, drop_layer=partial(nn.Dropout2d, 0.4)),
    "grouped activation": gate(layers.GroupNormAct, num_groups=4),
    **{
        pool: nn.Sequential(nn.Conv2d(3, 4, 1), layers.SelectAdaptivePool2d(1, pool, flatten=True))
        for pool in ("avg", "max", "fast", "fastmax")
    },
    "LSLU": gate(partial(LSLU, repeats=2, theta=0.8, omega=0.1)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_one_by_one(name: str):
    network = lived_in(nn.Sequential(copy.deepcopy(LAYERS[name])))
    twin = to_1d(network)
    x = signals()
    for training in (True, False):
        torch.manual_seed(3)
        expected = network.train(training)(x[:, :, None])
        torch.manual_seed(3)
        value = twin.train(training)(x)
        same(value, expected.squeeze(2) if expected.dim() == 4 else expected)


def test_shared_layers_and_weights_stay_shared():
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    network = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), first).double()
    twin: Any = to_1d(network)
    assert twin[2].weight is twin[0].weight
    assert twin[4] is twin[0]
    same(twin(signals()), network(signals()[:, :, None]).squeeze(2))


def test_modes_hooks_and_frozen_weights_stay():
    norm = nn.BatchNorm2d(4).eval()
    conv = nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False)
    conv.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    conv.register_forward_hook(lambda module, inputs, output: -output)  # pyright: ignore[reportOperatorIssue]
    vars(conv)["note"] = "of the user"
    network = nn.Sequential(conv, norm).double()
    twin: Any = to_1d(network)
    assert type(twin[0]) is nn.Conv1d
    assert [module.training for module in twin.modules()] == [True, True, False]
    assert [p.requires_grad for p in twin.parameters()] == [False, False, True, True]
    assert twin[0].note == "of the user"
    same(twin(signals()), network(signals()[:, :, None]).squeeze(2))


def test_twin_of_one_layer():
    conv = nn.Conv2d(3, 4, (1, 5), padding=(0, 2), padding_mode="reflect").double()
    same(to_1d(conv)(signals()), conv(signals()[:, :, None]).squeeze(2))


def test_where_the_twin_is_not_the_network_on_height_1():
    x = signals()
    padded: Any = to_1d(nn.Sequential(nn.Conv2d(3, 3, 1), nn.AvgPool2d(3, 1, 1)).double())
    y = padded[0](x)
    wide = F.pad(y, (1, 1))
    same(padded(x), (wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]) / 3)

    for kind in (layers.BlurPool2d, partial(layers.BlurPool2d, filt_size=5, pad_mode="constant")):
        blur = nn.Sequential(nn.Conv2d(3, 4, 1), kind(4)).double()
        tall = x[:, :, None].expand(-1, -1, 12, -1)  # of equal rows, which a blur leaves equal
        same(to_1d(blur)(x), blur(tall)[:, :, 3])


class Silent(nn.Module):
    """A network whose forward pass also runs on signals, but computes something else there."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.conv, self.fc, self.what = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.what == "mean":
            return x.mean((-2, -1))
        if self.what == "pool":
            return F.max_pool2d(x, 2)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), layers.AttentionPool2d(4, 7, head_dim=2)),
            r"1 \(timm.Att",
        ),
        (lambda: timm.create_model("skresnet18"), r"layer1.0.conv1 \(timm.SelectiveKernel\)"),
        (lambda: timm.create_model("resnetv2_50x1_bit"), r"stem.conv \(timm.StdConv2d\): its type"),
        (torchvision.models.densenet121, r"the network itself \(torchvision.DenseNet\): its forw"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax2d()), r"1 \(torch.Softmax2d\)"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2)), r"1 \(torch.PixelShuffle"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(2, divisor_override=3)),
            r"1 \(torch.AvgPool2d\): AvgPool1d has no divisor_override",
        ),
        *((lambda w=w: nn.Sequential(Silent(w)), r"0 \(tests.Silent\)") for w in ("mean", "pool")),
        (lambda: Silent("head"), r"the network itself \(tests.Silent\): its forward pass is for"),
        (lambda: nn.Linear(3, 2), "Linear holds no Conv2d"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(7, 2)),
            r"Sequential fails on images of shape \(3, 3, 256, 256\)",
        ),
    ],
)
def test_what_has_no_twin_is_named(network, message: str):
    with pytest.raises(ValueError, match=message):
        to_1d(network())


def test_the_network_stays_and_the_twin_is_a_module_like_any_other():
    network: Any = timm.create_model("resnet18", **SHALLOW, in_chans=1, num_classes=5).eval()
    network.layer1.requires_grad_(False)
    network(torch.randn(2, 1, 32, 32)).sum().backward()
    before, state = str(network), copy.deepcopy(network.state_dict())
    torch.manual_seed(5)
    twin = to_1d(network)
    assert torch.initial_seed() == 5
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert str(network) == before
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert twin.state_dict().keys() == state.keys()
    assert not twin.training
    assert all(p.grad is None for p in twin.parameters())
    frozen = {n for n, p in twin.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, p in network.named_parameters() if n.startswith("layer1.")}
    assert "Conv1d(1, 64, kernel_size=(7,), stride=(2,), padding=(3,), bias=False)" in str(twin)

    twin = to_1d(CifarResNet(8, in_channels=1)).eval()
    x = torch.randn(2, 1, 187)
    expected = twin(x)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    exported = torch.export.export(twin, (x,)).module()
    for other in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin)), compiled, exported):
        torch.testing.assert_close(other(x), expected)


def test_twins_take_activations_and_learn():
    torch.manual_seed(0)
    twin = to_1d(CifarResNet(8, num_classes=2, in_channels=1))
    time = torch.linspace(0, 12, 187)
    x = torch.stack([torch.sin((1 + k % 2) * time + k) for k in range(16)])[:, None]
    report = replace_activations(twin, partial(LSLU, dims=1), example_input=x)
    assert len(report) == 7
    optimizer = torch.optim.SGD(twin.parameters(), 0.05, momentum=0.9)
    for _ in range(25):
        loss = F.cross_entropy(twin(x), torch.arange(16) % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    replace_activations(twin, CosLU, example_input=x)
    assert twin(x).shape == (16, 2)


def test_vanillanet_in_one_dimension():
    network = lived_in(VanillaNet(5, 6, 1, stem="small", width=4))
    twin: Any = to_1d(network)
    x = signals(1)
    assert twin.eval()(x).shape == (4, 6)
    assert {m.dims for m in twin.modules() if isinstance(m, SeriesReLU)} == {1}
    set_progress(twin, 1)
    same(twin.fuse()(x), twin(x))
