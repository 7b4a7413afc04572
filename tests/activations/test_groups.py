"""Which parameters are decayed, by our groups and by timm's."""

import copy
import io
from functools import partial
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from timm.utils.model_ema import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from activations import (
    CosLU,
    DSReLU,
    Polynomial,
    parameter_groups,
    replace_activations,
    set_progress,
    shape_parameters,
)
from activations.groups import no_weight_decay


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 3))
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 2)

    def no_weight_decay(self) -> set[str]:
        return {"scale"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.conv(x)).mean((2, 3))) + self.scale.sum()


class Positive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slack = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp() + self.slack


def decayed(model: Any) -> set[str]:
    optimizer = create_optimizer_v2(model, "adamw", lr=0.1, weight_decay=0.05)
    with_decay = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    return {name for name, p in model.named_parameters() if id(p) in with_decay}


def test_timm_spares_shapes_of_two_dimensions():
    model = Net()
    replace_activations(model, partial(Polynomial), share="channel", example_input=torch.zeros(2, 3, 8, 8))  # fmt: skip
    assert any(parameter.dim() == 2 for parameter in shape_parameters(model).values())
    pickled = io.BytesIO()
    torch.save(model, pickled)
    pickled.seek(0)
    for each in (model, copy.deepcopy(model), torch.load(pickled, weights_only=False)):
        assert decayed(each) == {"conv.weight", "fc.weight"}
        assert each.no_weight_decay() == {"scale", *shape_parameters(model)}


class Property(nn.Sequential):
    @property
    def no_weight_decay(self) -> set[str]:
        return {"0.weight"}


class Collection(nn.Sequential):
    no_weight_decay = ("0.weight",)


class Static(nn.Sequential):
    @staticmethod
    def no_weight_decay() -> set[str]:
        return {"0.weight"}


@pytest.mark.parametrize("kind", [Property, Collection, Static])
def test_the_networks_own_list_keeps_its_form(kind: type[nn.Sequential]):
    model: Any = kind(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    replace_activations(model, CosLU, example_input=torch.zeros(2, 3))
    names = {"0.weight", "1.alpha", "1.beta"}
    assert no_weight_decay(model) == names
    if kind is Static:
        assert model.no_weight_decay() == names
    else:
        assert set(model.no_weight_decay) == ({"0.weight"} if kind is Property else names)


def test_a_parametrized_shape_is_a_shape():
    model: Any = nn.Sequential(nn.Linear(3, 3), CosLU(alpha=0.4, beta=0.7))
    parametrize.register_parametrization(model[1], "alpha", Positive(), unsafe=True)
    names = set(shape_parameters(model))
    assert names == {"1.beta", "1.parametrizations.alpha.original", "1.parametrizations.alpha.0.slack"}  # fmt: skip
    weights, shapes = parameter_groups(model)
    assert len(weights["params"]) == 2
    assert len(shapes["params"]) == 3
    assert shapes["weight_decay"] == 0
    torch.testing.assert_close(
        model[1].shape_values()["alpha"].flatten(), torch.tensor([0.4]).exp()
    )


@pytest.mark.parametrize(
    "average",
    [
        partial(ModelEmaV2, decay=0.9),
        partial(ModelEmaV3, decay=0.9),
        partial(AveragedModel, use_buffers=True),
    ],
    ids=["timm 2", "timm 3", "torch"],
)
def test_the_documented_line_sets_an_averaged_schedule(average: Any):
    model: Any = nn.Sequential(nn.Linear(3, 3), DSReLU())
    mean = average(model)
    for step in range(1, 5):
        set_progress(model, step / 4)
        (mean.update_parameters if hasattr(mean, "update_parameters") else mean.update)(model)
    assert not torch.equal(mean.module[1].slope, model[1].slope)  # what docs/schedules.md warns of
    set_progress(mean, 1.0)
    assert torch.equal(mean.module[1].slope, model[1].slope)
