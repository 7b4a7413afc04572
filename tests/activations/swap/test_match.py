"""Function-preserving swaps: exact pairs, least squares, Fade, gains."""

import copy
import functools
import itertools
import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import activations as ours
from activations import (
    CosLU,
    Fade,
    FReLU,
    gain,
    match,
    parameter_groups,
    replace_activations,
    set_progress,
    shape_parameters,
)
from models import CifarResNet

EXACT = [
    (lambda: ours.AGLU(0.3, 0.4), nn.SiLU()),
    (lambda: ours.APA(0.3, 0.4), nn.Sigmoid()),
    (lambda: ours.DiTAC(), nn.GELU()),
    (lambda: FReLU(0.7, 0.2), nn.ReLU()),
    (lambda: FReLU(num_parameters=3), nn.LeakyReLU(0.2)),
    (lambda: CosLU(), nn.SiLU()),
    (lambda: ours.SinLU(), nn.SiLU()),
    (lambda: ours.Swish(beta=0.5), nn.SiLU()),
    (lambda: ours.ACONC(num_parameters=2), nn.SiLU()),
    (lambda: ours.ShiLU(), nn.ReLU()),
    (lambda: ours.PELU(a=2.0, b=0.5), nn.ELU()),
    (lambda: ours.ScaledSoftSign(), nn.Softsign()),
    (lambda: ours.EvenCubicReLU(), nn.ReLU()),
    (lambda: ours.LinComb([nn.ReLU, nn.Tanh]), nn.ReLU()),
    (lambda: ours.Polynomial(1), lambda x: 0.5 - 0.25 * x),
    (lambda: nn.PReLU(2), nn.LeakyReLU(0.1)),
]


@pytest.mark.parametrize(("make", "reference"), EXACT)
def test_exact_pairs(make, reference):
    activation = make()
    assert match(activation, reference) < 1e-8  # of float32
    x = torch.linspace(-20, 20, 1001)[:, None].expand(-1, getattr(activation, "num_parameters", 1))
    torch.testing.assert_close(activation(x.contiguous()), reference(x), rtol=1e-6, atol=1e-5)


def test_least_squares_against_numpy():
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 3, 500)
    target = np.maximum(x, 0)
    polynomial = ours.Polynomial(3)
    with pytest.warns(UserWarning, match=r"changes [\d.]+ times .*--model.activation_lr_scale 0.0"):
        error = match(polynomial, nn.ReLU(), torch.tensor(x))
    expected, *_ = np.linalg.lstsq(np.vander(x, 4, increasing=True), target, rcond=None)
    assert polynomial.coefficients.detach().numpy()[0] == pytest.approx(expected, abs=1e-6)
    rest = np.vander(x, 4, increasing=True) @ expected - target
    assert error == pytest.approx(math.sqrt(np.mean(rest**2)), rel=1e-4)


def test_each_channel_has_its_own_samples():
    activation = FReLU(num_parameters=2)
    reference = ours.PELU(a=1.5, b=0.8)
    samples = torch.stack([torch.linspace(0, 1, 50), torch.linspace(-3, 0, 50)], 1)
    with pytest.warns(UserWarning, match=r"match: PELU.* -> FReLU fits only roughly"):
        match(activation, reference, samples)
    assert activation.a[0].item() == pytest.approx(1.5 / 0.8, abs=1e-3)
    low = samples[:, 1].double()
    b = ((low * reference.double()(low)).sum() / low.square().sum()).item()
    assert activation.b[1].item() == pytest.approx(b, rel=1e-5)


def test_error_without_parameters_and_what_has_none():
    x = torch.randn(100, dtype=torch.double)
    expected = (nn.functional.silu(x) - x.relu()).square().mean().sqrt().item()
    relative = expected / x.relu().std(correction=0).item()
    with pytest.warns(UserWarning, match=rf"ReLU.* -> SiLU .* error of {relative:.0%} .*fade"):
        assert match(nn.SiLU(), nn.ReLU(), x) == pytest.approx(expected)
    with pytest.raises(
        ValueError, match=r"LSLU holds a \w+ and is no function of single numbers: use match="
    ):
        match(ours.LSLU(), nn.ReLU())


@pytest.mark.parametrize("share", ["site", "channel", "model"])
def test_matched_network_on_its_own_inputs(share):
    torch.manual_seed(0)
    network, x = CifarResNet(8), torch.randn(8, 3, 32, 32)
    expected = copy.deepcopy(network).train()(x)
    state = copy.deepcopy(network.state_dict())
    report = replace_activations(network, FReLU, example_input=x, share=share, match=True)
    torch.testing.assert_close(network.train()(x), expected)
    after = network.state_dict()
    assert all(
        torch.equal(after[n], v) for n, v in state.items() if "running" not in n and "num" not in n
    )
    assert max(call.error for call in report) < 1e-6  # pyright: ignore[reportArgumentType]
    lines = str(report).splitlines()
    assert "error" in lines[0]
    assert all(line.endswith("0.0%") and "FReLU(a=1, b=0" in line for line in lines[1:8])


def test_one_function_cannot_be_two():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.LeakyReLU(0.3))
    with pytest.raises(
        ValueError,
        match=r'3 was LeakyReLU\(negative_slope=0.3\), another call .* ReLU\(\): match needs share="site"',
    ):
        replace_activations(network, nn.PReLU, match=True, share="model")
    network[1], network[3] = nn.PReLU(init=0.1), nn.PReLU(init=0.2)
    with pytest.raises(ValueError, match=r"PReLU\(num_parameters=1\) with other numbers: match"):
        replace_activations(network, CosLU, match=True, share="model")
    network[3] = nn.PReLU(init=0.1)
    replace_activations(network, FReLU, match=True, share="model")


@pytest.mark.parametrize("old", [nn.PReLU(8), FReLU(num_parameters=8)])
def test_a_function_of_each_channel_needs_one_of_each_channel(old: nn.Module):
    def network() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 8, 3), copy.deepcopy(old), nn.Conv2d(8, 2, 3))

    with pytest.raises(ValueError, match=r'so must CosLU: share="channel"'):
        replace_activations(network(), CosLU, match=True)
    replace_activations(network(), FReLU, match=True, share="channel")


def test_a_failed_match_leaves_the_network():
    network = CifarResNet(8)
    before = repr(network)
    with pytest.raises(ValueError, match="no function of single numbers"):
        replace_activations(network, ours.LSLU, match=True)
    assert repr(network) == before


def test_fade_is_the_old_one_then_the_new_one():
    network, x = CifarResNet(8).eval(), torch.randn(2, 3, 32, 32)
    old = network(x)
    by_hand = copy.deepcopy(network)
    replace_activations(network, CosLU, example_input=x, match="fade")
    assert torch.equal(network(x), old)
    assert set_progress(network, 1.0) == 7
    replace_activations(by_hand, CosLU, example_input=x)
    torch.testing.assert_close(network(x), by_hand(x))
    fade = Fade(nn.ReLU(), CosLU())
    fade.set_progress(0.25)
    z = torch.randn(50, dtype=torch.bfloat16)
    assert fade(z).dtype == torch.bfloat16
    z = z.double()
    torch.testing.assert_close(fade(z), 0.75 * z.relu() + 0.25 * CosLU().double()(z))
    with pytest.raises(ValueError, match=r"progress must lie in \[0, 1\], got 1.5"):
        fade.set_progress(1.5)


class Overwriting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(torch.sigmoid(x))


@pytest.mark.parametrize("old", [nn.ReLU(inplace=True), Overwriting()])
def test_a_fade_from_what_works_in_place(old: nn.Module):
    fade, x = Fade(old, CosLU()), torch.randn(50)
    for progress, expected in ((0.0, old(x.clone())), (1.0, CosLU()(x))):
        fade.set_progress(progress)
        given = x.clone()
        torch.testing.assert_close(fade(given), expected)
        assert torch.equal(given, x)


def test_a_fade_to_what_works_in_place():
    fade, x = Fade(nn.Hardswish(), nn.ReLU(inplace=True)), torch.randn(9, requires_grad=True)
    fade.set_progress(0.5)
    y = fade(x * 1)
    torch.testing.assert_close(y, (nn.functional.hardswish(x) + x.relu()) / 2)
    y.sum().backward()


class Wide(nn.Softplus):
    """In float32, as CUDA's autocast computes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float())


@pytest.mark.parametrize("parts", [(nn.ReLU(), Wide()), (Wide(), nn.ReLU())])
def test_the_ends_of_a_fade_keep_the_digits_of_the_functions(parts: tuple[nn.Module, nn.Module]):
    fade, x = Fade(*parts), torch.randn(50, dtype=torch.bfloat16)
    for progress, part in enumerate(parts):
        fade.set_progress(progress)
        assert torch.equal(fade(x), part(x).float())


def test_the_ends_of_a_fade_are_the_functions_where_the_other_one_is_infinite():
    fade = Fade(nn.ReLU(), ours.Polynomial()).half()
    x = torch.tensor([1000.0, -2.0], dtype=torch.float16)
    assert fade(x).tolist() == [1000, 0]
    turned = Fade(ours.Polynomial().half(), nn.ReLU())
    turned.set_progress(1.0)
    assert turned(x).tolist() == [1000, 0]


def test_gains_of_the_papers():
    gains = {
        nn.ReLU(): 1.41421, nn.SiLU(): 1.67653, CosLU(): 1.36327, ours.DELU(): 1.34431,
        ours.ReLUN(): 1.96864, ours.EELU(2): 1.35381, ours.AGLU(0.5, 0.5): 1.99689,
        nn.LeakyReLU(0.3): nn.init.calculate_gain("leaky_relu", 0.3),
    }  # fmt: skip
    for activation, expected in gains.items():
        assert gain(activation) == pytest.approx(expected, abs=1e-5), activation
    assert gain(ours.Swish(0.7, num_parameters=3, channel_dim=2)) == gain(ours.Swish(0.7))
    with pytest.raises(ValueError, match="has no gain: its mean square is 0"):
        gain(FReLU(0.0, 0.0))


@pytest.mark.parametrize("kind", [nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Hardswish])
def test_an_activation_in_place_counts_as_any(kind: type[nn.Module]):
    here = kind(inplace=True)  # pyright: ignore[reportCallIssue]
    assert gain(here) == gain(kind())
    assert match(here, kind()) == 0


def test_samples_have_a_column_for_each_channel():
    for shape in ((50, 3), (5, 4, 6, 6)):
        with pytest.raises(ValueError, match=r"samples must be \(n,\) or \(n, 4\), .*got \("):
            match(CosLU(num_parameters=4), nn.SiLU(), torch.randn(shape))
    assert match(CosLU(), nn.SiLU(), torch.randn(50, 3)) < 1e-3  # all are numbers of one function


@functools.cache
def digits():
    """Images in [-1, 1], labels, and which are for training."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1  # pyright: ignore[reportAttributeAccessIssue]
    labels = torch.tensor(found.target)  # pyright: ignore[reportAttributeAccessIssue]
    return images, labels, torch.arange(len(labels)) % 4 != 0


def train(network, steps, seed, lr, scale=1.0):
    images, labels, training = digits()
    images, labels = images[training], labels[training]
    groups = parameter_groups(network)
    groups[-1]["lr"] = lr * scale
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(images), (64,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network.train()(images[batch]), labels[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    return network


@torch.no_grad()
def evaluate(network):
    """Loss on the training images, accuracy on the others."""
    images, labels, training = digits()
    scores = network.eval()(images)
    loss = nn.functional.cross_entropy(scores[training], labels[training]).item()
    return loss, (scores.argmax(1) == labels)[~training].double().mean().item()


@functools.cache
def trained(old):
    """A network of two convolutions after 300 steps."""

    def block(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), old())

    torch.manual_seed(0)
    head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    return train(nn.Sequential(block(1, 8), nn.MaxPool2d(2), block(8, 16), head), 300, 0, 0.1)


def later(network, orders, lr, scale=1.0):
    """The loss after 200 more steps, a mean over orders of the data."""
    runs = [train(copy.deepcopy(network), 200, order, lr, scale) for order in orders]
    return sum(evaluate(run)[0] for run in runs) / len(runs)


@functools.cache
def best(old, orders, rates):
    """The lowest later loss of the old function, and its learning rate."""
    return min((later(trained(old), orders, lr), lr) for lr in rates)


def test_a_trained_network_loses_nothing_at_step_0():
    network = trained(nn.ReLU)
    images, _, training = digits()
    before = evaluate(network)[1]
    assert before > 0.95
    for factory, how, loss in [(FReLU, True, 0), (CosLU, "fade", 0), (ours.Swish, True, 0.01)]:
        swapped = copy.deepcopy(network)
        replace_activations(swapped, factory, example_input=images[training][:128], match=how)
        after = evaluate(swapped)[1]
        assert after >= before - loss, factory
        assert loss or after == before


OLD = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh)
SMOOTH = (
    "ACONC",
    "AGLU",
    "APA",
    "CosLU",
    "DiTAC",
    "PELU",
    "ScaledSoftSign",
    "SinLU",
    "Snake",
    "Swish",
)
NEW = [
    *SMOOTH, "BSpline", "DELU", "EvenCubicReLU", "FReLU", "Fourier", "LinComb", "NormLinComb",
    "Polynomial", "Rational", "ReLUN", "ShiLU", "HELU", "EELU", "DSReLU",
]  # fmt: skip
QUICK = [("FReLU", nn.ReLU), ("Swish", nn.ReLU), ("ScaledSoftSign", nn.ReLU), ("Fourier", nn.Tanh)]
PAIRS = [
    *((name, old, (1,), (0.1,)) for name, old in QUICK),
    *(
        pytest.param(name, old, (1, 2, 3), (0.02, 0.05, 0.1), marks=pytest.mark.slow)
        for name, old in itertools.product(NEW, OLD)
    ),
]


@pytest.mark.parametrize(("name", "old", "orders", "rates"), PAIRS)
def test_a_matched_network_goes_on_learning(name, old, orders, rates, record_property):
    """At most 0.05 nats are lost, or the pair is warned of.

    The protocol was written down before any pair was run by it: a network is trained with the old
    function for 300 steps. A copy gets the matched function. Both train for 200 more steps, at
    the learning rate out of 0.02, 0.05 and 0.1 that serves the *old* function best. Losses are
    means over all training images and over three orders of the batches (seeds 1, 2 and 3), the
    same orders for both functions.

    Added after Fourier had failed for Tanh: a pair with a close fit that is warned of for its
    steepness passes with the learning-rate scale that the warning names.
    """
    expected, lr = best(old, orders, rates)
    swapped = copy.deepcopy(trained(old))
    images, _, training = digits()
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        report = replace_activations(
            swapped, getattr(ours, name), example_input=images[training][:256], match=True
        )
    warned = [str(w.message) for w in said if str(w.message).startswith("match: ")]
    assert len(warned) <= 1
    text = "".join(warned)
    assert not text or f"{old.__name__} -> {name} at " in text
    worst = max(call.relative_error or 0.0 for call in report)
    rough = "match fade" in text
    assert rough == (worst > 0.1)
    for parameter in shape_parameters(swapped).values():
        assert parameter.abs().max() < 1000
    scale = re.search(r"activation_lr_scale (\S+)\)", text)
    scale = float(scale[1]) if scale and not rough else 1.0
    lost = later(swapped, orders, lr, scale) - expected
    record_property(
        "match", f"{name},{old.__name__},{lr},{expected:.4f},{worst},{lost:.4f},{scale}"
    )
    assert rough or lost < 0.05


@pytest.mark.parametrize("share", ["site", "channel"])
@pytest.mark.parametrize(
    "name", ["ScaledSoftSign", "AGLU", "CosLU", "PELU", "NormLinComb", "ReLUN"]
)
@pytest.mark.parametrize("old", [nn.ReLU, nn.GELU], ids=["ReLU", "GELU"])
def test_no_fit_is_dead_or_explosive(name, old, share):
    """The gradients where every other parameter has moved a little."""
    torch.manual_seed(0)
    channels = 3 if share == "channel" else 1
    start = getattr(ours, name)(num_parameters=channels)
    if name == "AGLU":  # whose own start is random
        start = ours.AGLU(1.0, 1.0, num_parameters=channels)
    x = torch.randn(4000, channels, dtype=torch.double)
    fitted = copy.deepcopy(start)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "match: ")
        match(fitted, old(), x)

    @torch.no_grad()
    def gradients(activation, name):
        """Central differences, all other numbers moved by 0.05."""
        squares = []
        for index in range(getattr(activation, name).numel() // channels):
            moved = copy.deepcopy(activation).double()
            column = getattr(moved, name).view(channels, -1)[:, index]
            at = column.clone()
            for parameter in moved.parameters(recurse=False):
                parameter += 0.05
            column.copy_(at + 1e-6)
            above = moved(x)
            column.copy_(at - 1e-6)
            squares.append(((above - moved(x)) / 2e-6).square().mean(0))
        return torch.stack(squares).sqrt()

    for name, _ in start.named_parameters(recurse=False):
        assert getattr(fitted, name).abs().max() < 100
        ratio = gradients(fitted, name) / gradients(start, name)
        assert ratio.min() > 0.02
        assert ratio.max() < 12


def test_a_ceiling_is_fitted_to_where_inputs_end():
    x = 3 * torch.randn(4000, dtype=torch.double)
    exact, near = ours.ReLUN(), ours.ReLUN()
    assert match(exact, nn.ReLU6(), x) == 0
    assert exact.n.item() == 6
    assert 0 < match(near, nn.ReLU(), x) < 0.05 * x.relu().std()
    assert x.quantile(0.99) < near.n.item() < x.max()


def test_what_is_clamped_is_printed_as_it_is_used():
    activation = ours.PELU()
    with pytest.warns(UserWarning, match="PELU fits only roughly"):
        match(activation, nn.ReLU())
    assert activation.a.item() >= 0.1
    with torch.no_grad():
        activation.a.fill_(-0.808)
    assert activation.extra_repr().startswith("a=0.1, ")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.GELU()).to(dtype)
    x = torch.randn(4, 3, 16, 16, dtype=dtype)
    expected = network(x)
    report = replace_activations(network, ours.Swish, example_input=x, match=True)
    worst = max(call.relative_error or 0.0 for call in report)
    assert worst < 0.1
    assert (network(x) - expected).std() < 3 * worst * expected.std()


def test_fade_to_a_matched_function():
    network, x = CifarResNet(8).eval(), torch.randn(2, 3, 32, 32)
    old = network(x)
    report = replace_activations(network, FReLU, example_input=x, match="fade")
    report.match(network, x)
    assert "Fade to FReLU(a=1, b=0)" in str(report)
    for progress in (0.0, 0.5, 1.0):
        set_progress(network, progress)
        torch.testing.assert_close(network(x), old)
