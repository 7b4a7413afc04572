"""The swap: one instance a call, names kept, refusals that name the site."""

import copy
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from activations import LSLU, CosLU, DSReLU, LinComb, replace_activations
from models import CifarResNet


@pytest.mark.parametrize("factory", [CosLU, partial(LSLU, repeats=1), nn.GELU, DSReLU])
def test_every_call_has_its_own_instance(factory):
    model = timm.create_model("resnet18", num_classes=5).eval()
    names = set(model.state_dict())
    report = replace_activations(model, factory, example_input=torch.zeros(2, 3, 64, 64))
    kind = type(factory())
    placed = [module for module in model.modules() if isinstance(module, kind)]
    assert len(report) == len({id(module) for module in placed}) == 17
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    assert names <= set(model.state_dict())
    assert not any(module.training for module in model.modules())
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_report_is_a_table_in_the_order_of_the_forward_pass():
    report = replace_activations(CifarResNet(8), partial(CosLU, alpha=0.5))
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["site", "act1", "layer1.0.act1"]
    assert lines[1].split()[1:] == ["ReLU", "CosLU(alpha=0.5,", "beta=1)"]


def test_channels_come_from_the_channel_axis():
    model = timm.create_model("resnet18", num_classes=5)
    replace_activations(model, LSLU, example_input=torch.zeros(2, 3, 64, 64))
    assert model.get_submodule("layer3.0.act1").channels == 256

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(3, 7), nn.ReLU()

        def forward(self, x):
            return self.act(self.fc(x.permute(0, 2, 3, 1)))

    last = Last()
    replace_activations(last, partial(LSLU, repeats=1), example_input=torch.zeros(2, 3, 9, 8))
    assert last.act.channels == 7


def test_weights_buffers_and_random_state_are_untouched():
    model = CifarResNet(8)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    replace_activations(model, CosLU, example_input=torch.zeros(2, 3, 32, 32))
    assert torch.equal(random, torch.get_rng_state())
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    assert model.training


def test_a_module_under_two_names_and_a_second_swap():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), self.act)

        def forward(self, x):
            return self.layers(x)

    model, example = Twice(), torch.zeros(2, 3, 8, 8)
    assert (
        len(replace_activations(model, partial(LinComb, [nn.ReLU, CosLU]), example_input=example))
        == 1
    )
    assert isinstance(model.layers[1], LinComb)
    assert model.act is model.layers[1]
    assert len(replace_activations(model, CosLU, example_input=example)) == 1
    assert isinstance(model.layers[1], CosLU)
    with pytest.raises(ValueError, match=r"ReLU is an activation itself: wrap it"):
        replace_activations(nn.ReLU(), CosLU, example_input=example)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 1), nn.ReLU()

    def forward(self, x):
        return F.relu(self.act(self.conv(x)))


class Reused(Functional):
    def forward(self, x):
        return self.act(self.act(self.conv(x)) - 1)


class Gated(Functional):
    def forward(self, x):
        return torch.sigmoid(self.conv(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Functional(),
            r"called as a function.*the network itself \(.*test_swap.py:\d+: return F.relu",
        ),
        (Reused(), r"called more than once.*act \(2 calls\)"),
        (Gated(), "Gated calls no activation module"),
    ],
)
def test_what_it_cannot_swap_it_refuses(model: nn.Module, message: str):
    before = repr(model)
    with pytest.raises(ValueError, match=message):
        replace_activations(model, CosLU, example_input=torch.zeros(2, 3, 8, 8))
    assert repr(model) == before


def test_gates_stay():
    model = timm.create_model("mobilenetv3_small_050", num_classes=5)
    replace_activations(model, CosLU)
    kinds = {type(module).__name__ for module in model.modules()}
    assert "CosLU" in kinds
    assert "Hardsigmoid" in kinds
    assert not kinds & {"ReLU", "Hardswish"}


def test_bad_factory_and_bad_input():
    with pytest.raises(TypeError, match=r"must make a torch.nn.Module, got 3"):
        replace_activations(CifarResNet(8), lambda: 3)
    with pytest.raises(ValueError, match=r"CifarResNet fails on an example input.*\(2, 5, 8, 8\)"):
        replace_activations(CifarResNet(8), CosLU, example_input=torch.zeros(2, 5, 8, 8))


@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factory", [LSLU, nn.PReLU, CosLU])
def test_the_new_modules_have_the_networks_dtype(factory, dtype: torch.dtype):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).to(dtype)
    x = torch.zeros(2, 3, 16, 16, dtype=dtype)
    replace_activations(model, factory, example_input=x)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(x).dtype == dtype


def test_a_transformers_fast_path_does_not_go_on_with_the_old_one():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0, activation=nn.GELU(), batch_first=True)
    model, x = nn.Sequential(layer), torch.randn(2, 5, 16)
    replace_activations(model, partial(CosLU, alpha=5.0), example_input=x)
    model.eval()
    with torch.no_grad():
        fast = model(x)
    torch.testing.assert_close(fast, model(x).detach(), rtol=1e-5, atol=1e-5)


class TrainOnly(Functional):
    def __init__(self):
        super().__init__()
        self.aux = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x):
        x = self.act(input=self.conv(x))
        return x + self.aux(x) if self.training else x


def test_what_was_never_called_is_reported():
    report = replace_activations(TrainOnly(), CosLU, example_input=torch.zeros(2, 3, 8, 8))
    assert [call.name for call in report] == ["act"]
    assert report.left == ("aux.1",)
    assert "aux.1: never called, left as it is" in str(report)
