"""Which modules are activations as a whole, and copies of networks that hold tensors anywhere."""

import copy
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers.drop import DropPath
from timm.layers.norm_act import BatchNormAct2d
from timm.models.metaformer import Scale, SquaredReLU, StarReLU
from timm.models.nfnet import GammaAct
from torch import Tensor, distributed, nn
from torch.ao import quantization
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from activations import AGLU, Activation, CosLU, DiTAC, FReLU, penalty, replace_activations
from activations.swap import kinds
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


class BNReLU(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class ConvReLU(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class FusedLeakyReLU(nn.Module):
    """A bias and its activation, as in StyleGAN 2."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.bias.view(1, -1, 1, 1), 0.2) * 2**0.5


class FilterReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.avg_pool2d(x, 3, 1, 1))


class OwnPReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.full((8, 1, 1), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)


class LearnedSwish(nn.Module):
    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


class ShiftedReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) - 1


def test_the_name_of_an_activation_does_not_take_layers_away():
    layers = [BNReLU(8), ConvReLU(8, 8, 3, padding=1), FusedLeakyReLU(), FilterReLU()]
    own = [OwnPReLU(), LearnedSwish(), ShiftedReLU()]
    assert [kind_of(module) for module in layers] == [None] * 4
    assert [kind_of(module) for module in own] == ["activation"] * 3
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *layers, *own, nn.Conv2d(8, 2, 1))
    kept = {name for name in model.state_dict() if name[0] not in "567"}
    report = replace_activations(model, CosLU, example_input=torch.zeros(2, 3, 8, 8))
    names = ["1.relu", "2.relu", "3.leaky_relu", "4.relu", "5", "6", "7"]
    assert [call.name for call in report] == names
    assert kept <= set(model.state_dict())


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


class ByConfig(nn.Module):
    """An activation, or nothing, as its configuration says."""

    def __init__(self, config: dict[str, bool]) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square() if self.config["act"] else x


class ByFunction(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(F.relu(x))


def test_modules_of_one_class_may_be_of_different_kinds():
    found = [kind_of(ByConfig({"act": act})) for act in (True, False, True)]
    assert found == ["activation", None, "activation"]
    for _ in range(5):  # the address of a function that is gone is used again
        assert kind_of(ByFunction(lambda x: x * x)) == "activation"
        assert kind_of(ByFunction(lambda x: x.mean() * x)) is None


def test_modules_that_differ_in_nothing_are_tried_once(monkeypatch: pytest.MonkeyPatch):
    tried: list[nn.Module] = []

    def trial(module: nn.Module, *rest: Any) -> str | None:
        tried.append(module)
        return real(module, *rest)

    real = kinds._kind_by_trial
    monkeypatch.setattr(kinds, "_kind_by_trial", trial)

    class Norm(nn.LayerNorm):  # with a tuple of numbers
        pass

    for size in (4, 4, 8, 4):
        assert kind_of(Norm(size)) is None
    assert len(tried) == 2


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


class OnTheSpot(nn.Module):
    """Makes its activations where it calls them, or holds them where no module sees them."""

    def __init__(self):
        super().__init__()
        self.conv, self.held = nn.Conv2d(3, 4, 1), [nn.ReLU()]

    def forward(self, x: Tensor) -> Tensor:
        x = nn.LeakyReLU(0.2, inplace=True)(self.conv(x))
        act = nn.GELU(approximate="tanh")
        x = nn.ReLU().forward(act(x) - 0.1)
        return self.held[0](x - 0.1)


def gammas() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), GammaAct("gelu", 1.7), GammaAct("gelu_tanh", 2.0))


def quantizable() -> nn.Module:
    return torchvision.models.quantization.resnet18(num_classes=3, weights=None)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (OnTheSpot, ["leaky_relu", "gelu", "relu", "relu_2"]),
        (gammas, ["1.gelu", "2.gelu"]),
        (quantizable, ["relu", "layer1.0.relu", "layer1.0.add_relu.relu"]),
    ],
)
def test_functions_behind_modules_and_tables_are_swapped_where_they_are_called(build, names):
    torch.manual_seed(0)
    before = build().eval()
    after, x = copy.deepcopy(before), torch.randn(2, 3, 32, 32)
    report = replace_activations(after, nn.Hardtanh, example_input=x)
    assert [call.name for call in report][: len(names)] == names
    assert not torch.equal(after(x), before(x))
    for call in report:  # the old functions in the new places
        after.set_submodule(call.name, call.reference)
    assert torch.equal(after(x), before(x))
    assert torch.equal(copy.deepcopy(after)(x), before(x))


def test_a_refusal_names_the_users_own_line():
    class Mine(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) ** 2

    class Network(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return Mine()(super().forward(input))

    with pytest.raises(ValueError, match=r"test_kinds.py:\d+: return super\(\).forward\(input\)"):
        replace_activations(Network(3, 3), CosLU)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    url = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=url, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (nn.parallel.DistributedDataParallel, "is a DistributedDataParallel"),
        (lambda model: fully_shard(model) or model, "is a FSDPSequential"),
        (lambda model: torch.compile(model), "is compiled"),
        (lambda model: torch.jit.trace(model, torch.zeros(2, 3, 4, 4)), "is compiled"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.jit.trace is old
def test_networks_that_would_not_know_new_parameters_are_refused_by_name(wrap, name: str):
    model = wrap(network())
    before = repr(model)
    with pytest.raises(ValueError, match=f"the network {name}.*: swap the activations"):
        replace_activations(model, CosLU, example_input=torch.zeros(2, 3, 4, 4))
    assert repr(model) == before


@pytest.mark.usefixtures("one_process")
def test_a_sharded_network_can_be_printed_and_trained():
    model, x = network(), torch.randn(2, 3, 4, 4)
    replace_activations(model, CosLU, example_input=x, share="channel")
    fully_shard(model)
    assert "CosLU(num_parameters=8" in repr(model)
    model(x).sum().backward()
    assert model[1].alpha.grad is not None
    assert "CosLU(num_parameters=8" in repr(model)


@pytest.mark.usefixtures("one_process")
def test_the_penalty_of_a_sharded_network():
    model, x = network(), torch.randn(2, 3, 4, 4)
    replace_activations(model, DiTAC, example_input=x)
    expected = penalty(model)
    fully_shard(model)
    found = penalty(model)
    (model(x).sum() + penalty(model)).backward()
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, expected)
    assert model[1].theta.grad is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # old, and lazy
def test_quantized_and_lazy_networks_are_refused_and_observed_ones_swapped():
    quantized = nn.Sequential(quantization.QuantStub(), network(), quantization.DeQuantStub())
    quantized.eval().qconfig = quantization.get_default_qconfig("x86")  # pyright: ignore[reportArgumentType]
    x = torch.randn(2, 3, 4, 4)
    observed = quantization.prepare(quantized)
    observed(x)
    converted = quantization.convert(observed)
    assert len(replace_activations(observed, CosLU, example_input=x)) == 2
    with pytest.raises(ValueError, match=r"1.0 is quantized: swap the activations before"):
        replace_activations(converted, CosLU, example_input=x)
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU())
    with pytest.raises(ValueError, match="0 has parameters without a size yet: run the network"):
        replace_activations(lazy, CosLU, example_input=x)
    lazy(x)
    assert len(replace_activations(lazy, CosLU, example_input=x)) == 1
    assert len(replace_activations(nn.DataParallel(network()), CosLU, example_input=x)) == 2


def test_a_factory_makes_new_parameters_each_time():
    shared, x = CosLU(), torch.zeros(2, 3, 4, 4)
    for factory in (lambda: shared, lambda: nn.Sequential(shared, nn.Dropout())):
        with pytest.raises(ValueError, match="returns what it has returned before"):
            replace_activations(network(), factory, example_input=x)
    assert len(replace_activations(network(), lambda: shared, example_input=x, share="model")) == 2


def test_a_class_is_no_network():
    with pytest.raises(TypeError, match="an instance, not the class Sequential"):
        replace_activations(nn.Sequential, CosLU)  # pyright: ignore[reportArgumentType]


class TwoHeads(nn.Module):
    """A mean and a variance; the call that comes last makes the mean."""

    def __init__(self):
        super().__init__()
        self.trunk, self.act = nn.Linear(4, 8), nn.Tanh()
        self.variance, self.positive = nn.Linear(8, 1), nn.Softplus()
        self.mean, self.hidden, self.last = nn.Linear(8, 3), nn.SiLU(), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.act(self.trunk(x))
        variance = self.positive(self.variance(x)) + 1e-3
        mean = {"mean": self.last(self.hidden(self.mean(x)))}
        return {**mean, "variance": variance}


class Pooler(nn.Linear):
    def __init__(self):
        super().__init__(8, 8)
        self.act = nn.Tanh()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.cells, self.end = nn.Tanh(), nn.LSTM(4, 5), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.cells(self.act(x))[0])


def generator() -> nn.Module:
    last = nn.utils.parametrizations.spectral_norm(nn.ConvTranspose2d(8, 3, 4, bias=False))
    return nn.Sequential(nn.Conv2d(4, 8, 1), nn.Tanh(), last, nn.Tanh())


@pytest.mark.parametrize(
    ("model", "shape", "swapped", "left"),
    [
        (generator(), (2, 4, 3, 3), ["1"], ["3"]),
        (TwoHeads(), (2, 4), ["act", "hidden"], ["positive"]),
        (nn.Sequential(Pooler(), nn.ReLU(), nn.Linear(8, 2)), (2, 8), ["1"], ["0.act"]),
        (Recurrent(), (2, 3, 4), ["act"], ["end"]),
        (nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Flatten()), (2, 3), ["1"], []),
    ],
)
def test_what_makes_an_output_is_left_unless_it_is_named(model, shape, swapped, left):
    report = replace_activations(copy.deepcopy(model), CosLU, example_input=torch.zeros(shape))
    assert [call.name for call in report] == swapped
    outputs = [each for each in report.left if each.old != "LSTM"]
    assert [name for name, *_ in outputs] == left
    kinds = [old for _, old, _ in outputs]
    for globs, named in ((["*", *left], ()), ("*", kinds)):
        again = replace_activations(
            *(copy.deepcopy(model), CosLU),
            example_input=torch.zeros(shape),
            include=globs,
            include_kinds=named,
        )
        assert {call.name for call in again} == {*swapped, *left}


def test_a_network_of_outputs_alone_says_how_to_name_them():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    with pytest.raises(ValueError, match=r"but outputs \(1\); include or include_kinds can name"):
        replace_activations(model, CosLU)


def test_a_headless_network_has_the_keys_of_one_with_a_head():
    whole, headless = [timm.create_model("test_resnet", num_classes=n) for n in (3, 0)]
    names = [[c.name for c in replace_activations(m, CosLU)] for m in (whole, headless)]
    assert names[0] == names[1]


def test_each_new_activation_lies_where_the_layer_before_it_does():
    model, x = network(), torch.zeros(2, 3, 4, 4)
    model[2].to("meta", torch.bfloat16)  # the device of a second part; trials have no numbers
    weight = model[2].get_parameter("weight")
    model[2].forward = lambda x: F.conv2d(x.bfloat16(), weight).to(x.dtype)
    with pytest.raises(ValueError, match="share='model': 1 is on cpu and 3 on meta"):
        replace_activations(model, CosLU, example_input=x, share="model")
    replace_activations(model, CosLU, example_input=x)
    assert (model[1].alpha.device.type, model[3].alpha.device.type) == ("cpu", "meta")
    assert (model[1].alpha.dtype, model[3].alpha.dtype) == (torch.float32, torch.bfloat16)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, wide: bool = False) -> Tensor:
        x = F.relu(self.conv(x))
        return F.gelu(x) if wide else torch.sigmoid(x)


def test_a_function_in_a_branch_that_no_trial_took_is_listed():
    model = nn.Sequential(Branches())
    report = replace_activations(model, CosLU, example_input=torch.zeros(2, 3, 4, 4))
    line = Branches.forward.__code__.co_firstlineno + 2
    assert [call.name for call in report] == ["0.relu"]
    assert report.left[1:] == (
        (f"0.forward, line {line}", "gelu", "in a branch that no trial took"),
    )


def scripted(x: Tensor) -> Tensor:
    return F.relu(x) + 1


with warnings.catch_warnings(action="ignore"):
    scripted = torch.jit.script(scripted)


@dataclass
class Helper:
    def __call__(self, x):
        return x

    @property
    def ready(self):
        raise RuntimeError("a property is not read")


def twice(function):
    return function


class Ways(nn.Module):
    """The ways in which a call that no trial makes may be written."""

    def __init__(self):
        super().__init__()
        self.conv, self.fn, self.experts = nn.Conv2d(3, 4, 1), F.mish, nn.ModuleList([Branches()])
        self.helper, self.unhashable = Helper(), Helper()

    @property
    def broken(self):
        raise RuntimeError("a property is not read")

    @twice
    @twice
    def other(self, x: Tensor) -> Tensor:
        return F.hardswish(x)

    def short(self, x: Tensor) -> Tensor: return F.selu(x)  # fmt: skip

    def forward(self, x: Tensor, way: int = 0) -> Tensor:
        x = scripted(self.conv(x))
        if way == 1:
            return self.experts[0](x)
        if way == 2:
            return self.fn(self.conv(x).relu())
        if way == 3 and self.helper.ready.wait() and self.unhashable(x):
            return self.broken(self.other(self.short(x)))
        return F.relu(x)


def test_every_way_of_writing_a_call_that_no_trial_made_is_listed():
    report = replace_activations(Ways(), CosLU, example_input=torch.zeros(2, 3, 4, 4))
    assert [call.name for call in report] == ["relu"]
    branch, never = "in a branch that no trial took", "in a module never called"
    found = [(each.name.partition(",")[0], each.old, each.why) for each in report.left]
    assert Counter(found) == Counter([
        ("other", "hardswish", branch), ("short", "selu", branch), ("forward", "mish", branch),
        ("forward", "relu", branch), ("experts.0.forward", "relu", never),
        ("experts.0.forward", "gelu", never),
        ("forward", "scripted", "torch.jit.script hides what it calls"),
    ])  # fmt: skip


class Variance(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x).clamp(min=1e-3)


class Smooth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Wave(Activation):
    @staticmethod
    def formula(x: Tensor) -> Tensor:
        return torch.sin(x)


class OwnSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-x))


class LiSHT(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(x)


def test_what_is_known_is_not_listed_as_unknown():
    model = nn.Sequential(nn.Linear(3, 4), Wave(), OwnSigmoid(), nn.Linear(4, 4), LiSHT())
    report = replace_activations(model, CosLU, example_input=torch.zeros(2, 3))
    assert [call.name for call in report] == ["1", "4"]
    assert report.left == (("2", "OwnSigmoid", "a gate"),)


class Affine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 1


def test_own_modules_that_make_an_output_or_are_not_known_are_listed():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Sine(), Affine(), nn.Linear(4, 4), Variance())
    report = replace_activations(model, CosLU, example_input=torch.zeros(2, 3))
    assert [call.name for call in report] == ["1"]
    assert report.left == (
        ("5", "Variance", "an output, no layer behind it"),
        ("2", "Sine", "elementwise, not known as an activation; include_kinds can name it"),
    )
    model[5] = Smooth()  # negative for some inputs: no output
    assert [call.name for call in replace_activations(model, CosLU)] == ["1", "5"]
    model[5] = nn.Identity()
    report = replace_activations(
        model, CosLU, example_input=torch.zeros(2, 3), include_kinds="Sine"
    )
    assert [call.name for call in report] == ["1", "2"]


class Stepped(Branches):
    def forward(self, x: Tensor, wide: bool = False) -> Tensor:
        x = self.conv(x)
        if wide:
            x = F.gelu(x)
        return x


class Rewritten(Stepped):
    def forward(self, x: Tensor, wide: bool = False) -> Tensor:
        return F.relu(self.conv(x))


class Added(Stepped):
    def forward(self, x: Tensor, wide: bool = False) -> Tensor:
        return F.silu(super().forward(x))


def test_a_method_that_a_subclass_writes_anew_is_not_listed():
    x = torch.zeros(2, 3, 4, 4)
    for kind, count in ((Rewritten, 0), (Added, 1)):
        report = replace_activations(kind(), CosLU, example_input=x)
        assert sum(left.old == "gelu" for left in report.left) == count


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, 6) + x.clamp(min=1e-6)


class Positive(nn.Module):
    """Weights that stay positive, the maps of linear attention, and rectifiers by another name."""

    def __init__(self):
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        self.conv, self.weight_relu, self.elu = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ELU()
        self.kernel_func, self.act, self.cut = nn.ReLU(), nn.ReLU(), Cut()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        weights = self.weight_relu(self.weight) + F.relu(self.other.view(2, 1)).squeeze(1)
        q, k = F.elu(x) + 1, 1 + self.elu(x)
        plain = F.elu(x) + 2
        q, k = q + (F.elu(x.clone(), inplace=True) + 1), k + self.elu(x).add_(1)
        y = self.kernel_func(q * k).clamp(min=0) + torch.clamp_min(x, 0) + self.cut(x)
        return self.act(weights[0] * x + y + plain)


class BiasGELU(nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x if self.bias is None else x + self.bias)


@pytest.mark.parametrize("first", [True, False])
def test_what_a_class_is_depends_on_what_the_module_holds(first: bool):
    one, other = BiasGELU(first), BiasGELU(not first)
    model = nn.Sequential(nn.Linear(4, 4), one, nn.Linear(4, 4), other, nn.Linear(4, 1))
    replace_activations(model, CosLU)
    assert {name for name, _ in model.named_parameters() if name.endswith("bias")} == {
        "0.bias", "2.bias", "4.bias", f"{1 if first else 3}.bias",
    }  # fmt: skip


def test_a_table_of_many_numbers_is_no_activation_that_is_tried():
    module = BiasGELU(True)
    module.bias = nn.Parameter(torch.ones(2**20))
    assert kind_of(module) is None


@pytest.mark.parametrize("last", [nn.Hardtanh(0, 1), nn.Softsign(), nn.Tanh()], ids=str)
def test_a_bounded_output_stays(last: nn.Module):
    report = replace_activations(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1), last),
                                 CosLU)  # fmt: skip
    assert [call.site for call in report] == ["1"]
    [left] = report.left
    assert (left.name, left.why) == ("3", "an output, no layer behind it")


@pytest.mark.filterwarnings("ignore")
def test_a_fused_relu_of_quantization_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()).eval()
    fused = quantization.fuse_modules(model, [["0", "1"]])
    with pytest.raises(ValueError, match=r"^0 has a ReLU that quantization puts back: swap the"):
        replace_activations(fused, CosLU)


class WrittenOut(nn.Module):
    """A hard sigmoid in three ways, GELU by hand, and activations that look like the first."""

    def __init__(self):
        super().__init__()
        self.conv, self.cut, self.act = nn.Conv2d(3, 4, 1), nn.ReLU6(inplace=True), nn.ReLU6()
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x * self.cut(x + 3) / 6 + F.relu6(3.0 + x) / 6
        x = x + F.hardtanh(x.add(3), 0.0, 6.0) + F.relu6(x + 2) + self.act(x) + F.relu(x + 3)
        x = x * torch.sigmoid(x) + x * torch.sigmoid(-x)
        return self.last(0.5 * x * (1 + torch.erf(x / 2**0.5)))


def test_a_hard_sigmoid_that_is_written_out_is_a_gate_and_gelu_is_told():
    model, x = WrittenOut(), torch.randn(2, 3, 4, 4)
    report = replace_activations(model, CosLU, example_input=x)
    assert [call.old for call in report] == ["relu6", "ReLU6", "relu"]
    assert sorted((left.old, left.why) for left in report.left) == [
        ("ReLU6", "a gate"),
        ("erf(x)", "not known as an activation; F.gelu is"),
        ("hardtanh", "a gate"),
        ("relu6", "a gate"),
        ("sigmoid", "a gate"),
        ("sigmoid", "a gate"),
        ("x * sigmoid(x)", "not known as an activation; F.silu is"),
    ]


def test_what_has_to_be_positive_stays_and_a_clamp_is_told():
    model, x = Positive(), torch.randn(2, 3, 4, 4)
    report = replace_activations(model, CosLU, example_input=x)
    assert [(call.old, call.site) for call in report] == [("elu", "elu_3"), ("ReLU", "act")]
    assert sorted(left for left in report.left if left.why == "a gate") == [
        ("elu.0", "ELU", "a gate"),
        ("elu.1", "ELU", "a gate"),
        ("elu_2", "elu", "a gate"),
        ("elu_4", "elu", "a gate"),
        ("kernel_func", "ReLU", "a gate"),
        ("relu", "relu", "a gate"),
        ("weight_relu", "ReLU", "a gate"),
    ]
    told = ("the network", "clamp(min=0)", "not known as an activation; F.relu is")
    assert [each for each in report.left if each.old == "clamp(min=0)"] == [told]
    again = replace_activations(Positive(), CosLU, example_input=x, include_kinds=["ReLU"])
    assert {"weight_relu", "kernel_func", "act"} <= {call.site for call in again}


def test_what_a_transformers_network_does_not_know_is_listed():
    class Pretrained(nn.Sequential):
        def save_pretrained(self, folder: str): ...

    report = replace_activations(Pretrained(nn.Linear(3, 3), nn.ReLU()), CosLU)
    assert "left: save_pretrained and Trainer (they do not know the swap" in str(report)


class Renamed(nn.GELU):
    pass


class Called(nn.LeakyReLU):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


class Normalised(nn.GELU):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.norm(input))


class Multiple(nn.ReLU):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, input: Tensor) -> Tensor:
        return self.factor * super().forward(input)


@pytest.mark.parametrize("kind", [Renamed, Called, Normalised, Multiple])
def test_a_class_made_from_torchs_keeps_what_it_adds(kind: type[nn.Module]):
    model = nn.Sequential(nn.Linear(4, 4), kind(), nn.Linear(4, 4))
    before = set(model.state_dict())
    if kind in (Renamed, Called):
        assert len(replace_activations(model, CosLU, example_input=torch.zeros(2, 4))) == 1
        assert isinstance(model[1], CosLU)
        return
    with pytest.raises(ValueError, match=r"cannot swap .*Make it a module there, or exclude '1\."):
        replace_activations(model, CosLU, example_input=torch.zeros(2, 4))
    assert set(model.state_dict()) == before


def test_aglu_and_gelu_by_tanh_are_no_outputs():
    from timm.layers.activations import GELUTanh

    for last in (AGLU(), GELUTanh()):
        model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), last)
        report = replace_activations(model, CosLU, example_input=torch.zeros(2, 3))
        assert [call.name for call in report] == ["1", "3"]


class OfWeights(nn.Module):
    """A learned graph, as in Graph WaveNet, and a layer that is a transposed parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Parameter(torch.randn(4, 4)) for _ in range(2))
        self.layer, self.query = nn.Linear(4, 4), nn.Parameter(torch.randn(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        graph = F.softmax(F.relu(torch.mm(self.one, self.other) + 0.1), 1)
        hidden = torch.tanh(self.layer(x) + F.gelu(self.layer(self.query)))
        return (graph @ hidden) @ self.one.t()


def test_what_is_computed_from_parameters_is_no_hidden_activation():
    report = replace_activations(OfWeights(), CosLU, example_input=torch.randn(4, 4))
    assert [call.old for call in report] == ["gelu"]  # a layer has made its input
    assert {(each.old, each.why) for each in report.left} == {
        ("relu", "a gate"), ("softmax", "a gate"), ("tanh", "a gate")
    }  # fmt: skip
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Transposed(), nn.Softplus())
    report = replace_activations(model, CosLU, example_input=torch.randn(2, 4))
    assert [call.name for call in report] == ["1"]  # the softplus makes an output


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.act = nn.Linear(8, 8), nn.ReLU()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(self.act(self.head(x)), src_key_padding_mask=padding)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_that_is_excluded_computes_as_before():
    torch.manual_seed(0)
    model, x = Both().eval(), torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        before = model(x, padding)
        options: dict[str, Any] = {"example_input": (x, padding), "match": True}
        replace_activations(model, FReLU, exclude="encoder.*", **options)
        torch.testing.assert_close(model(x, padding), before)
        assert model.encoder.use_nested_tensor
        replace_activations(model, FReLU, include="encoder.*", **options)
        assert not model.encoder.use_nested_tensor  # it would not call the new activation
        torch.testing.assert_close(model(x, padding)[~padding], before[~padding])


def test_functions_that_python_calls_are_refused_with_their_line():
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat(list(map(F.relu, [self.layer(x)])))

    with pytest.raises(ValueError, match=r"cannot swap relu.*not called by its own name"):
        replace_activations(Mapped(), CosLU, example_input=torch.zeros(2, 4))
