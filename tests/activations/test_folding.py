"""A network for deployment: what depends on parameters alone is computed once."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from activations import (
    AGLU,
    LSLU,
    CosLU,
    DiTAC,
    DynamicReLU,
    Fade,
    LinComb,
    SeriesReLU,
    fold,
    fuse,
    replace_activations,
    set_progress,
)
from activations.folding import Folded
from models import CifarResNet, build_backbone
from models.deployed import deployed
from tests.cases import CASES, Case


class Doubled(SeriesReLU):
    def function(self, x: Tensor) -> Tensor:
        return 2 * x.relu()


@pytest.mark.parametrize(
    ("case", "per_channel"),
    [(case, each) for case in CASES for each in (False, True)[: 1 + bool(case.per_channel)]],
    ids=str,
)
def test_a_folded_function_is_the_function(case: Case, per_channel: bool):
    module = case.make(**{"num_parameters": case.shape[1]} if per_channel else {})
    state, x = copy.deepcopy(module.state_dict()), 3 * torch.randn(case.shape)
    folded = fold(module)
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(folded(x), module(x), rtol=1e-6, atol=1e-6)
        for twin in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
            assert torch.equal(twin(x), folded(x))
    weights = {id(each) for part in [*module.modules()][1:] for each in part.parameters()}
    left = [name for name, _ in folded.named_parameters(recurse=False)]
    assert not left, f"{left} are computed with at each call"
    assert weights or not list(folded.parameters())


def test_a_table_is_made_once():
    """Changing what DiTAC's table is computed from changes nothing any more."""
    module, x = DiTAC(), torch.linspace(-1, 3, 50)
    with torch.no_grad():
        module.theta.add_(2.0)
    folded, before = fold(module), module(x)
    assert torch.equal(folded(x), before)
    [table] = [each for each in folded.buffers() if each.numel() > 1000]
    with torch.no_grad():
        table.zero_()
    assert not torch.equal(folded(x), before)


def test_of_a_fade_that_has_ended_the_new_function_is_left():
    fading, x = Fade(nn.ReLU(), AGLU(lambd=0.3)), torch.randn(5, 3)
    for progress in (0.5, 1.0):  # one module at two places
        set_progress(fading, progress)
        folded = fold(nn.Sequential(fading, fading))
        assert any(isinstance(each, Fade) for each in folded.modules()) == (progress < 1)
        torch.testing.assert_close(folded(x), fading(fading(x)))


class Added(SeriesReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x


def test_hooks_and_own_forwards_stay():
    doubled, x = nn.Sequential(AGLU(lambd=0.3)), torch.randn(2, 4, 5, 5)

    def double(module: Any, inputs: Any, output: Any) -> Any:
        return 2 * output

    doubled[0].register_forward_hook(double)
    for network in (doubled, nn.Sequential(Added(channels=4)).eval()):
        torch.testing.assert_close(fold(network)(x), network(x))
    inside = nn.Sequential(AGLU())  # a hook on the network does not keep its parts
    inside.register_forward_hook(double)
    assert isinstance(fold(inside)[0], Folded)
    torch.testing.assert_close(fold(inside)(x), inside(x))
    fused = nn.Sequential(AGLU())
    fuse(fused)
    assert fold(fused)[0].fused
    mixture = LinComb([nn.GELU, nn.ReLU])
    folded = pickle.loads(pickle.dumps(fold(mixture)))
    torch.testing.assert_close(folded(x), mixture(x))


@pytest.mark.parametrize("change", ["hook", "weight_norm", "group_norm", "function"])
def test_a_convolution_that_was_changed_stays(change: str):
    torch.manual_seed(0)
    made: Any = Doubled(4) if change == "function" else LSLU(4)
    if change == "hook":
        made.norm.register_forward_hook(lambda *given: 2 * given[2])
    elif change == "weight_norm":
        nn.utils.parametrizations.weight_norm(made.conv)
    elif change == "group_norm":
        made.norm = nn.GroupNorm(2, 4)
    x, network = torch.randn(2, 4, 6, 6), nn.Sequential(made).eval()
    assert torch.equal(fold(network)(x), network(x))


def test_what_cannot_be_computed_once_stays():
    """DynamicReLU's lines depend on the input; a mixture with a table is folded inside."""
    assert isinstance(fold(DynamicReLU(channels=4)), DynamicReLU)
    mixture, x = LinComb([DiTAC, nn.ReLU]), torch.randn(7, 3)
    folded = fold(mixture)
    assert isinstance(folded, LinComb)
    assert not isinstance(folded.members[0], DiTAC)
    assert torch.equal(folded(x), mixture(x))


@pytest.mark.parametrize("share", ["channel", "site", "stage", "model"])
def test_a_whole_network_keeps_its_output(share: str):
    torch.manual_seed(0)
    network = CifarResNet(8, in_channels=1).eval()
    replace_activations(network, CosLU, example_input=torch.zeros(2, 1, 8, 8), share=share)  # pyright: ignore
    with torch.no_grad():
        for each in network.modules():
            if isinstance(each, CosLU):
                each.alpha.normal_()
        x = torch.randn(3, 1, 8, 8)
        assert torch.equal(fold(network)(x), network(x))
        assert not any(type(each) is CosLU for each in fold(network).modules())


def test_a_vanillanet_becomes_plain():
    torch.manual_seed(0)
    network = build_backbone("vanillanet5", 3, 1, image_size=8, width=8, activation=LSLU)
    network(torch.randn(16, 1, 8, 8))  # its normalisations have seen something
    x = torch.randn(4, 1, 8, 8)
    for progress in (0.1, 1.0):
        set_progress(network.eval(), progress)
        made = deployed(network)
        torch.testing.assert_close(made(x), network(x), rtol=1e-4, atol=1e-5)
        plain = not any(isinstance(each, nn.BatchNorm2d) for each in made.modules())
        assert plain == (progress == 1)
