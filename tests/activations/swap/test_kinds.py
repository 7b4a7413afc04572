"""Which modules are activations as a whole, and copies of networks that hold tensors anywhere."""

import pytest
import timm
import torch
from timm.layers.drop import DropPath
from timm.layers.norm_act import BatchNormAct2d
from timm.models.metaformer import Scale, SquaredReLU, StarReLU
from timm.models.nfnet import GammaAct
from torch import Tensor, nn
from torch.nn import functional as F

from activations import CosLU, replace_activations
from activations.swap.copies import copied
from activations.swap.kinds import kind_of


class Holding(nn.Module):
    """Holds an activation, a value for each of seven channels, and one for all."""

    def __init__(self, act: nn.Module | None = None):
        super().__init__()
        self.act, self.scale = act, nn.Parameter(torch.ones(7, 1, 1))
        self.shift = nn.Parameter(torch.zeros(()))

    def inner(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.act is None else self.act(x)


class SwishOfModules(Holding):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.inner(x)


class Squared(Holding):
    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inner(x) ** 2 + self.shift


class Scaled(Holding):
    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inner(x - self.shift)


class HSigmoid(Holding):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 3) / 6


class SquaredGate(Holding):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) ** 2


class SquaredAndNormalised(Holding):
    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(self.inner(x) ** 2)


class SquaredAndDropped(Holding):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.inner(x) ** 2, 0.1, self.training)


class SquaredAndPooled(Holding):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.inner(x) ** 2, 3, 1, 1)


class OfTwo(Holding):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner(x) ** 2 * y


def test_a_module_is_an_activation_as_a_whole_where_numbers_show_it():
    found = {
        "activation": [
            *(StarReLU(), SquaredReLU(), Squared(), Squared(nn.GELU())),
            *(SwishOfModules(nn.Sigmoid()), SwishOfModules(nn.ReLU6(inplace=True))),
        ],
        "gate": [HSigmoid(nn.ReLU6()), SquaredGate(nn.Sigmoid())],
        None: [
            *(GammaAct("gelu", 1.7), Scaled(nn.GELU()), Scaled(), SquaredAndNormalised()),
            *(SquaredAndDropped(), SquaredAndPooled(), OfTwo(), nn.Sequential(nn.ReLU())),
            *(Squared(nn.Dropout()), Squared(nn.Conv2d(7, 7, 1)), Squared(nn.Identity())),
            *(BatchNormAct2d(8), DropPath(0.1), Scale(8)),
        ],
    }
    state = torch.get_rng_state()
    for kind, modules in found.items():
        for module in modules:
            assert kind_of(module) == kind, module
            with torch.device("meta"):
                assert kind_of(copied(module, lambda value: value.to("meta"))) == kind
    assert torch.equal(state, torch.get_rng_state())


def test_composite_activations_are_swapped_as_a_whole():
    model = timm.create_model("caformer_s18", num_classes=3)
    report = replace_activations(model, CosLU, example_input=torch.zeros(2, 3, 64, 64))
    assert {call.old for call in report} == {"StarReLU", "SquaredReLU"}
    kinds = {type(module) for module in model.modules()}
    assert not kinds & {StarReLU, SquaredReLU, nn.ReLU}


def test_an_activation_that_changes_its_input_on_the_way_is_refused():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 1), SquaredReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.act(x) + x

    with pytest.raises(ValueError, match="cannot swap act: it changes its input in place"):
        replace_activations(Network(), CosLU, example_input=torch.zeros(2, 3, 4, 4))


class Remembers(nn.Module):
    """Keeps results of a computation with gradients in every place."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 1), nn.ReLU()
        self.hidden, self.kept = [nn.Parameter(torch.ones(4, 1, 1))], {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(x)) * self.hidden[0].to(x.device)
        self.last, self.kept = y, {"list": [y], "tuple": (y, {"deep": y.mean()})}
        return y


def test_results_kept_anywhere_do_not_stop_a_swap():
    model, x = Remembers(), torch.randn(2, 3, 5, 5)
    before = model(x)
    report = replace_activations(model, nn.Hardtanh, example_input=x)
    assert [call.name for call in report] == ["act"]
    assert model.last is before
    assert model.kept["list"][0] is before
    levit = timm.create_model("levit_128s").eval()
    levit(torch.zeros(1, 3, 224, 224))  # caches its attention biases in a dictionary
    assert len(replace_activations(levit, CosLU)) == 25


def test_a_copy_shares_memory_and_keeps_what_is_one():
    model = Remembers()
    model(torch.randn(2, 3, 5, 5))
    model.tied = model.conv.weight  # pyright: ignore[reportArgumentType]
    twin = copied(model)
    assert twin.tied is twin.conv.weight
    assert twin.conv.weight.data_ptr() == model.conv.weight.data_ptr()
    assert twin.kept["list"][0] is twin.last
    assert twin.last.data_ptr() == model.last.data_ptr()
    bare = copied(model, lambda value: value.to("meta"))
    assert bare.conv.weight.is_meta
    assert bare.conv.weight.requires_grad
    assert bare.hidden[0].is_meta
    assert bare.kept["tuple"][1]["deep"].is_meta
