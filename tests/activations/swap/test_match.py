"""Function-preserving swaps: exact pairs, least squares, Fade, gains."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import activations as ours
from activations import CosLU, Fade, FReLU, Rational, gain, match, replace_activations, set_progress
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
    (lambda: ours.ReLUN(n=2.0), nn.ReLU6()),
    (lambda: ours.ReLUN(n=2.0), nn.ReLU()),
    (lambda: ours.ShiLU(), nn.ReLU()),
    (lambda: ours.PELU(a=2.0, b=0.5), nn.ELU()),
    (lambda: ours.ScaledSoftSign(), nn.Softsign()),
    (lambda: ours.EvenCubicReLU(), nn.ReLU()),
    (lambda: ours.LinComb([nn.ReLU, nn.Tanh]), nn.ReLU()),
    (lambda: ours.Polynomial(3), lambda x: 0.5 - 0.25 * x + 0.125 * x**3),
    (lambda: nn.PReLU(2), nn.LeakyReLU(0.1)),
]


@pytest.mark.parametrize(("make", "reference"), EXACT)
def test_exact_pairs(make, reference):
    activation = make()
    assert match(activation, reference) < 1e-9
    x = torch.linspace(-20, 20, 1001)[:, None].expand(-1, getattr(activation, "num_parameters", 1))
    torch.testing.assert_close(activation(x.contiguous()), reference(x), rtol=1e-6, atol=1e-5)


def test_least_squares_against_numpy():
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 3, 500)
    target = np.maximum(x, 0)
    polynomial = ours.Polynomial(3)
    error = match(polynomial, nn.ReLU(), torch.tensor(x))
    expected, *_ = np.linalg.lstsq(np.vander(x, 4, increasing=True), target, rcond=None)
    assert polynomial.coefficients.detach().numpy()[0] == pytest.approx(expected, abs=1e-6)
    rest = np.vander(x, 4, increasing=True) @ expected - target
    assert error == pytest.approx(math.sqrt(np.mean(rest**2)), rel=1e-4)


def test_each_channel_has_its_own_samples():
    activation = FReLU(num_parameters=2)
    reference = ours.PELU(a=1.5, b=0.8)
    samples = torch.stack([torch.linspace(0, 1, 50), torch.linspace(-3, 0, 50)], 1)
    match(activation, reference, samples)
    assert activation.a[0].item() == pytest.approx(1.5 / 0.8, abs=1e-3)
    low = samples[:, 1].double()
    b = ((low * reference.double()(low)).sum() / low.square().sum()).item()
    assert activation.b[1].item() == pytest.approx(b, rel=1e-5)


def test_error_without_parameters_and_what_has_none():
    x = torch.randn(100, dtype=torch.double)
    expected = (nn.functional.silu(x) - x.relu()).square().mean().sqrt().item()
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
    assert "error" in str(report).splitlines()[0]


def test_one_function_cannot_be_two():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.LeakyReLU(0.3))
    with pytest.raises(
        ValueError,
        match=r'3 was LeakyReLU\(negative_slope=0.3\), another call .* ReLU\(\): match needs share="site"',
    ):
        replace_activations(network, nn.PReLU, match=True, share="model")


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


def test_gains_of_the_papers():
    gains = {
        nn.ReLU(): 1.41421, nn.SiLU(): 1.67653, CosLU(): 1.36327, ours.DELU(): 1.34431,
        ours.ReLUN(): 1.96864, ours.EELU(2): 1.35381, ours.AGLU(0.5, 0.5): 1.99689,
        nn.LeakyReLU(0.3): nn.init.calculate_gain("leaky_relu", 0.3),
    }  # fmt: skip
    for activation, expected in gains.items():
        assert gain(activation) == pytest.approx(expected, abs=1e-5), activation
    with pytest.raises(ValueError, match="has no gain: its mean square is 0"):
        gain(FReLU(0.0, 0.0))


def test_a_trained_network_loses_nothing_at_step_0():
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # pyright: ignore[reportAttributeAccessIssue]
    labels = torch.tensor(digits.target)  # pyright: ignore[reportAttributeAccessIssue]
    train, test = torch.arange(len(labels)) % 4 != 0, torch.arange(len(labels)) % 4 == 0

    def block(a, b):
        return nn.Sequential(
            nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)
        )

    network = nn.Sequential(
        block(1, 8), nn.MaxPool2d(2), block(8, 16), nn.Flatten(), nn.Linear(256, 10)
    )
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[train]), labels[train]).backward()
        optimizer.step()

    def accuracy(model):
        with torch.no_grad():
            return (model.eval()(images[test]).argmax(1) == labels[test]).double().mean().item()

    before = accuracy(network)
    assert before > 0.95
    for factory, how, loss in [(FReLU, True, 0), (CosLU, "fade", 0), (Rational, True, 0.01)]:
        swapped = copy.deepcopy(network)
        replace_activations(swapped, factory, example_input=images[train][:128], match=how)
        assert accuracy(swapped) >= before - loss, factory
        assert loss or accuracy(swapped) == before
