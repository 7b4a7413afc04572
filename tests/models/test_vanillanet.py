"""VanillaNet against its published sizes and an independent forward pass; its schedule and fusion."""

import copy
import pickle
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from activations import (
    LSLU,
    CosLU,
    SeriesReLU,
    parameter_groups,
    replace_activations,
    set_progress,
    shape_parameters,
)
from models import VanillaNet
from models.vanillanet import FadingReLU


def lived_in(**arguments) -> VanillaNet:
    """A narrow network with different values in all weights and statistics, during its schedule."""
    torch.manual_seed(0)
    model = VanillaNet(**{"num_classes": 7, "stem": "small", "width": 8} | arguments).eval()
    set_progress(model, 0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.rand_like(parameter) / max(1, parameter[0].numel()) ** 0.5
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += torch.rand_like(buffer)
    return model


def reference(
    state: dict[str, torch.Tensor], x: torch.Tensor, slope: float, pooled: tuple[int, ...]
) -> torch.Tensor:
    """Chen et al.'s network in evaluation mode, from its state alone; `pooled`: pooling of each stage."""

    def norm(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-6).sqrt() * weight + bias

    def conv(x, name, **more):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **more)

    def pair(x, name, **more):
        x = norm(conv(x, f"{name}.conv1", **more), f"{name}.norm1")
        return conv(x.clamp(min=0) + slope * x.clamp(max=0), f"{name}.conv2")

    def layer(x, name, pool, **more):
        x = norm(pair(x, f"{name}.conv", **more), f"{name}.conv.norm2")
        x = x if pool == 1 else x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        kernel = state[f"{name}.act.conv.weight"]
        x = F.conv2d(x.clamp(min=0), kernel, padding=kernel.shape[-1] // 2, groups=len(kernel))
        return norm(x, f"{name}.act.norm")

    side = state["stem.conv.conv1.weight"].shape[-1]
    x = layer(x, "stem", 1, **({"stride": 4} if side == 4 else {"padding": 1}))
    for number, pool in enumerate(pooled):
        x = layer(x, f"stages.{number}", pool)
    return pair(x.flatten(2).mean(2)[:, :, None, None], "head")[:, :, 0, 0]


@pytest.mark.parametrize(
    ("depth", "stem", "pooled", "sides"),
    [
        (5, "imagenet", (2, 2, 2), (71, 64)),
        (6, "small", (2, 2, 2, 1), (16, 19)),
        (7, "small", (1, 2, 2, 2, 1), (8, 8)),
        (9, "small", (1, 2, 2, 1, 1, 2, 1), (9, 17)),
    ],
)
def test_forward_is_the_papers(depth, stem, pooled, sides):
    model = lived_in(depth=depth, stem=stem, in_channels=2).double()
    x = torch.randn(3, 2, *sides, dtype=torch.float64)
    expected = reference(model.state_dict(), x, 0.1 / (1 / 3), pooled)
    assert expected.std() > 1e-3
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-8)


# the paper's table of ImageNet results, millions of parameters after fusion
PUBLISHED = {5: 15.5, 6: 32.5, 7: 32.8, 8: 37.1, 9: 41.4, 10: 45.7, 11: 50.0, 12: 54.3, 13: 58.6}


def deployed_millions(depth: int, **arguments) -> float:
    with torch.device("meta"):
        model = VanillaNet(depth, **arguments)
    for module in model.modules():
        if isinstance(module, FadingReLU):
            module.slope = torch.tensor(1.0)  # fusion looks at its value
    return sum(p.numel() for p in model.fuse().parameters()) / 1e6


@pytest.mark.parametrize("depth", PUBLISHED)
def test_sizes_are_the_papers(depth: int):
    assert deployed_millions(depth) == pytest.approx(PUBLISHED[depth], abs=0.05)


def test_sizes_of_the_wider_network_and_while_training():
    assert deployed_millions(13, width=768) == pytest.approx(127.8, abs=0.05)
    with torch.device("meta"):
        training = VanillaNet(5)
    assert sum(p.numel() for p in training.parameters()) / 1e6 == pytest.approx(22.33, abs=0.005)


def test_slopes_follow_progress():
    model = VanillaNet(5, 3, width=4, slope_until=0.4)
    slopes = [m for m in model.modules() if isinstance(m, FadingReLU)]
    assert len(slopes) == 5
    buffer = slopes[0].slope
    for progress, slope in ((0, 0), (0.1, 0.25), (0.4, 1), (1, 1), (0.3, 0.75)):
        assert set_progress(model, progress) == 5
        assert [m.slope.item() for m in slopes] == pytest.approx([slope] * 5)
    assert slopes[0].slope is buffer
    x = torch.tensor([-2.0, 0.0, 3.0])
    assert slopes[0](x).tolist() == pytest.approx([-1.5, 0, 3])
    assert slopes[0](x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"progress must lie in \[0, 1\], got 1.2"):
        set_progress(model, 1.2)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize(
    "activation", [SeriesReLU, partial(LSLU, repeats=2, theta=0.7, omega=0.2), nn.GELU]
)
def test_fused_equals_evaluation_mode(stem: str, activation):
    model = lived_in(depth=6, stem=stem, activation=activation, width=24)
    set_progress(model, 0.5)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(4, 3, 40, 32)
    fused, expected = model.fuse(), model(x)
    assert (fused(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    wide = copy.deepcopy(model).double()
    expected = wide(x.double())
    assert (wide.fuse()(x.double()) - expected).abs().max() <= 1e-13 * expected.abs().max()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    kinds = {type(m) for m in fused.modules()}
    assert not kinds & {nn.BatchNorm2d, FadingReLU}
    assert sum(isinstance(m, nn.Conv2d) and m.groups == 1 for m in fused.modules()) == 6
    assert torch.equal(fused.fuse()(x), fused(x))


def test_deployed_weights_load_into_a_fresh_network():
    model = lived_in()
    set_progress(model, 1)
    fresh = VanillaNet(5, 7, stem="small", width=8)
    set_progress(fresh, 1)
    fresh = fresh.fuse()
    fresh.load_state_dict(model.fuse().state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(fresh(x), model.fuse()(x))


def test_pairs_are_not_fused_before_their_time():
    model = lived_in(slope_until=0.5)
    with pytest.raises(ValueError, match=r"the slope .* is 0.2\. Train on to the progress 0.5"):
        model.fuse()


@pytest.mark.parametrize("activation", [SeriesReLU, LSLU, nn.PReLU])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_gradients_reach_every_parameter_at_cifar_size(activation, stem):
    torch.manual_seed(1)
    model = VanillaNet(5, 10, stem=stem, activation=activation, width=8)
    F.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8)).backward()
    zero = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # the mean that a normalisation takes away holds the bias ahead of it
    ahead = [n for n, _ in model.named_parameters() if n.endswith(("conv1.bias", "conv2.bias"))]
    assert set(zero) <= set(ahead) - {"head.conv2.bias"}, zero


def test_one_activation_a_site_passed_in_or_swapped_in():
    passed = VanillaNet(8, 5, stem="small", width=4, activation=partial(LSLU, repeats=1))
    sites = {n: m.channels for n, m in passed.named_modules() if isinstance(m, LSLU)}
    assert sites == {"stem.act": 4, "stages.0.act": 4, "stages.1.act": 8, "stages.2.act": 16,
                     "stages.3.act": 16, "stages.4.act": 32, "stages.5.act": 32}  # fmt: skip
    swapped = VanillaNet(8, 5, stem="small", width=4)
    report = replace_activations(swapped, partial(LSLU, repeats=1))
    assert {call.name for call in report} == set(sites)
    assert swapped.state_dict().keys() == passed.state_dict().keys()
    assert len(shape_parameters(swapped)) == 14
    assert len(parameter_groups(swapped)[1]["params"]) == 14
    replace_activations(swapped, CosLU)
    assert swapped(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    assert set_progress(swapped, 1) == 8
    assert isinstance(swapped.fuse().stem.act, CosLU)


def test_state_copies_compilation_and_export():
    model = lived_in(activation=LSLU)
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    other = VanillaNet(5, 7, stem="small", width=8, activation=LSLU).eval()
    other.load_state_dict(model.state_dict())  # with the slopes
    compiled: Any = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    exported = torch.export.export(model, (x,)).module()
    for twin in (
        other,
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        compiled,
        exported,
    ):
        torch.testing.assert_close(twin(x), expected)
    set_progress(model, 0.3)
    with torch.compiler.set_stance("fail_on_recompile"):
        set_progress(compiled, 0.3)
        torch.testing.assert_close(compiled(x), model(x))


def test_learns():
    torch.manual_seed(0)
    model = VanillaNet(5, 4, stem="small", width=8, activation=LSLU)
    y = torch.arange(32) % 4
    x = torch.randn(32, 3, 8, 8) / 2 + torch.randn(4, 3, 8, 8)[y]
    optimizer = torch.optim.Adam(parameter_groups(model), lr=2e-2)
    losses = []
    for step in range(40):
        set_progress(model, step / 39)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.3
    assert losses[-1] < 0.3
    fused = model.fuse()
    torch.testing.assert_close(fused(x), model.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 4}, ValueError, "5 to 13 layers, got depth 4"),
        ({"depth": 14}, ValueError, "5 to 13 layers, got depth 14"),
        ({"stem": "tiny"}, ValueError, "imagenet or small, got 'tiny'"),
        ({"slope_until": 0.0}, ValueError, r"a progress in \(0, 1\], not at 0.0"),
        ({"activation": lambda: 3}, TypeError, "must make a torch.nn.Module, got 3"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        VanillaNet(**{"width": 4} | arguments)


def test_images_too_small_for_the_strides():
    sides: dict[Literal["imagenet", "small"], int] = {"imagenet": 32, "small": 8}
    for stem, side in sides.items():
        model = VanillaNet(5, 3, stem=stem, width=4).eval()
        assert model(torch.zeros(1, 3, side, side)).shape == (1, 3)
        with pytest.raises(ValueError, match=rf"at least {side} pixels, got .*{side - 1}\)"):
            model(torch.zeros(1, 3, side, side - 1))
