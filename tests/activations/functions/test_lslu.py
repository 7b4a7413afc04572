"""LSLU as the released module has it."""

import pytest
import torch

from activations import LSLU, CosLU, parameter_groups, shape_parameters


def test_shapes_of_the_released_module():
    module = LSLU(channels=5)
    assert module.theta.tolist() == [1, 1, 1]
    assert module.omega.tolist() == [0, 0, 0]
    assert module.conv.weight.shape == (5, 1, 7, 7)
    assert module.conv.bias is None
    assert module.norm.eps == 1e-6
    assert 0.015 < module.conv.weight.std() < 0.025


def test_elementwise_part_starts_as_relu():
    x = torch.linspace(-3, 3, 31)
    assert torch.equal(LSLU().function(x), x.relu())


def test_training_mode_normalises_the_batch():
    y = LSLU(channels=4).train()(torch.randn(8, 4, 6, 6))
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    # eps 1e-6 against a variance of about 0.01
    torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(4), atol=1e-2, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 4, 5, 5), (3, 5)])
def test_wrong_input_is_named(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="LSLU has channels=3"):
        LSLU(channels=3)(torch.randn(shape))


@pytest.mark.parametrize("name", ["channels", "repeats"])
def test_counts_must_be_positive(name: str):
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got 0"):
        LSLU(**{name: 0})  # pyright: ignore[reportArgumentType]


def test_only_theta_and_omega_are_shape():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), LSLU(channels=4), torch.nn.PReLU(4))
    assert set(shape_parameters(model)) == {"1.theta", "1.omega", "2.weight"}
    weights, shapes = parameter_groups(model)
    assert shapes["weight_decay"] == 0
    assert [p.shape for p in shapes["params"]] == [(3,), (3,), (4,)]
    assert len(weights["params"]) == 5
    assert "weight_decay" not in weights
    assert parameter_groups(model, activation_weight_decay=0.2)[1]["weight_decay"] == 0.2
    with pytest.raises(ValueError, match="activation_weight_decay must be >= 0, got -1"):
        parameter_groups(model, activation_weight_decay=-1)


def test_frozen_parameters_and_networks_without_shapes():
    activation = CosLU()
    activation.alpha.requires_grad = False
    groups = parameter_groups(torch.nn.Sequential(torch.nn.Linear(2, 2), activation))
    assert groups[1]["params"] == [activation.beta]
    assert len(parameter_groups(torch.nn.Linear(2, 2))) == 1


def test_video():
    """A kernel of ones sums the rectified values of a neighbourhood."""
    module, x = LSLU(channels=2, repeats=1, dims=3).eval(), torch.randn(2, 2, 4, 5, 6)
    torch.nn.init.ones_(module.conv.weight)
    sums = torch.nn.functional.avg_pool3d(x.relu(), 3, 1, padding=1, divisor_override=1)
    torch.testing.assert_close(module(x), sums / (1 + 1e-6) ** 0.5)
    with pytest.raises(ValueError, match=r"LSLU has channels=2.*D, H, W"):
        module(x[0])
