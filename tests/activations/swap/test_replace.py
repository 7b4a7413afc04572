"""The swap: one instance a call, names kept, outputs kept, refusals that name the site."""

import copy
import itertools
import math
import pickle
import threading
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from activations import DELU, LSLU, CosLU, DSReLU, FReLU, LinComb, Snake, replace_activations
from models import CifarResNet

ReLU = partial(FReLU, 1.0, 0.0)  # a module of ours that equals what it replaces


class Features(nn.Module):
    """Returns the output of every layer."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 4, 3))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x := layer(x) for layer in self.layers]


def test_what_the_network_returns_is_used():
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"layers\.1: it changes its input in place"):
        replace_activations(Features(True), CosLU, example_input=x)
    model = Features(False)
    before = model(x)[0]
    assert len(replace_activations(model, CosLU, example_input=x)) == 1
    assert torch.equal(model(x)[0], before)


class Doubling(nn.Module):
    """Of no known kind, and in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


@pytest.mark.parametrize("factory", [partial(nn.SiLU, inplace=True), Doubling])
def test_a_new_activation_in_place_goes_where_nothing_else_reads_its_input(factory: Any):
    model, x = Features(False), torch.randn(2, 3, 8, 8)
    before = [y.clone() for y in model(x)]
    with pytest.raises(ValueError, match=r"layers\.1: .* changes its input in place.* without inp"):
        replace_activations(model, factory, example_input=x)
    assert all(torch.equal(y, old) for y, old in zip(model(x), before, strict=True))
    alone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert len(replace_activations(alone, factory, example_input=x)) == 1
    assert torch.equal(alone(x), factory()(alone[0](x)))


def test_a_network_without_numbers():
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    assert len(replace_activations(model, CosLU, example_input=torch.zeros(2, 3, 64, 64))) == 17
    assert all(parameter.is_meta for parameter in model.parameters())


class OnOneLine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(self.layers[1], self.dense(self.layers[0], x, F.relu), F.relu)
        return self.layers[3](self.dense(self.layers[2], x, torch.sigmoid))

    def dense(self, layer: nn.Module, x: Tensor, act: Any) -> Tensor:
        return act(layer(x))


def test_an_activation_and_a_gate_on_one_line_are_refused():
    with pytest.raises(ValueError, match="the same line calls different functions"):
        replace_activations(OnOneLine(), CosLU, example_input=torch.zeros(2, 4))


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
    assert lines[1].split() == [
        *["act1", "ReLU", "CosLU(alpha=0.5,", "beta=1)", "16", "1", "of", "4"]
    ]


def test_channels_come_from_the_channel_axis():
    model = timm.create_model("resnet18", num_classes=5)
    replace_activations(model, LSLU, example_input=torch.zeros(2, 3, 64, 64))
    assert model.get_submodule("layer3.0.act1").channels == 256


@pytest.mark.parametrize("dims", [2, 3, 4])
def test_channels_last_of_all(dims: int):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act, self.norm = nn.Linear(3, 7), nn.ReLU(), nn.LayerNorm(7)

        def forward(self, x):
            return self.act(self.norm(self.fc(x)) * 2)

    last = Last()
    x = torch.zeros(2, *range(8, 6 + dims), 3)
    report = replace_activations(last, CosLU, example_input=x, share="channel")
    assert (last.act.num_parameters, last.act.channel_dim) == (7, 1 if dims == 2 else -1)
    assert (report[0].channels, report[0].axis) == (7, dims - 1)


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


class Count(TorchFunctionMode):
    """Counts calls of ReLU and its like, whoever makes them."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "").rstrip("_")
        self.calls += name in ("relu", "relu6", "leaky_relu", "gelu", "silu", "hardswish", "elu")
        return func(*args, **(kwargs or {}))


class Net(nn.Module):
    """A network in each of the ways in which people write them; `calls` is what it should count."""

    calls = 1

    def __init__(self):
        super().__init__()
        self.conv, self.more = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.act(self.conv(x)))


class Functional(Net):
    calls = 3

    def forward(self, x, scale=1.0, *, shift=0.0):
        """Docs with a
        second line."""
        x = F.relu(self.conv(x)) if self.training else F.relu(self.conv(x), inplace=True)
        x = F.dropout(x, 0.5, training=self.training)
        return torch.relu(self.more(x)) * scale + shift


class Methods(Net):
    calls = 4

    def forward(self, x):
        x = self.conv(x).relu_()
        x = torch.nn.functional.relu(input=self.more(x) - 0.1)
        y = (
            (x - 0.1)
            .relu()
            .add(1)
        )  # fmt: skip
        return F.relu(y, inplace=True)


class Held(Net):
    calls = 3

    def __init__(self):
        super().__init__()
        self.function, self.bound = F.relu, partial(F.leaky_relu, negative_slope=0.0)

    def forward(self, x):
        act = torch.relu
        return act(self.bound(self.function(self.conv(x)) - 0.1) - 0.1)


class Reused(Net):
    calls = 3

    def forward(self, x):
        x = self.act(self.conv(x))
        return self.act(self.more(self.act(self.more(x))) - 0.1)


class Looped(Net):
    calls = 5

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x):
        x = self.act(self.conv(x))
        for layer in self.layers[:2]:
            x = self.act(layer(x)) + x
        return sum(F.relu(layer(x)) for layer in self.layers[1:])


class Shared(Net):
    calls = 3  # the block is called twice: its calls share one, as they share the weights

    def __init__(self):
        super().__init__()
        act, block = nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.layers = nn.Sequential(self.conv, act, self.more, act)
        self.block, self.also = block, block

    def forward(self, x):
        return self.also(self.block(self.layers(x)))


class Parent(Net):
    def __hidden(self, x):
        return F.relu(self.more(x))

    def forward(self, x):
        return self.__hidden(self.conv(x))


class OldSuper(Parent):
    calls = 2

    def forward(self, x, /):
        return F.relu(super(OldSuper, self).forward(x) - 0.1)


class Inherited(Parent):
    calls = 2

    def forward(self, x):
        outer = math.prod(x.shape[:1])
        return F.relu(super().forward(x) - 0.1) * outer


def closed_over():
    power = 2

    class Closed(Net):
        def forward(self, x):
            return F.relu(self.conv(x)) ** power

    return Closed


class Several(Net):
    calls = 2

    def forward(self, x):
        x = self.conv(x)
        for function in (F.relu, torch.tanh, F.relu):
            x = function(self.more(x))
        return x


class Chunks(Net):
    calls = 1

    def forward(self, x):
        a, b = self.conv(x).chunk(2, 1)
        return torch.cat([F.relu_(a), b], 1)


class OwnKind(Net):
    def __init__(self):
        super().__init__()
        self.act = OwnSwish()

    def forward(self, x):
        return self.act(self.conv(x))


class OwnSwish(nn.Module):
    def forward(self, x):
        return x * F.relu6(x + 3) / 6


class Auxiliary(Net):
    calls = 2

    def __init__(self):
        super().__init__()
        self.aux = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x):
        x = self.act(self.conv(x))
        return x + self.aux(x) if self.training else x


IDIOMS = [
    Net,
    Functional,
    Methods,
    Held,
    Reused,
    Looped,
    Shared,
    Inherited,
    Auxiliary,
    closed_over(),
]


@pytest.mark.parametrize("kind", IDIOMS, ids=lambda kind: kind.__name__)
def test_every_idiom_keeps_its_outputs_names_and_call_counts(kind: type[Net]):
    torch.manual_seed(0)
    before = kind()
    after = copy.deepcopy(before)
    x = torch.randn(2, 3, 6, 5)
    report = replace_activations(after, ReLU, example_input=x)
    assert len(report) == kind.calls
    modules = [after.get_submodule(call.name) for call in report]
    assert len({id(module) for module in modules}) == kind.calls
    assert all(call.channels == 4 and call.axis == 1 for call in report)
    assert before.state_dict().keys() <= after.state_dict().keys()
    again = copy.deepcopy(after)
    if kind.__module__ == __name__ and "<locals>" not in kind.__qualname__:
        again = pickle.loads(pickle.dumps(again))
    assert isinstance(again, kind)
    for training in (True, False, True):
        expected = []
        for model in (before, after, again, after):
            torch.manual_seed(1)
            expected.append(model.train(training)(x))
        for other in expected[1:]:
            assert torch.equal(other, expected[0])
    for index, module in enumerate(modules):  # each call has its own: they differ in effect
        module.a.data.fill_(1 + index)  # pyright: ignore[reportCallIssue]
    (after.train()(x) + after.eval()(x)).sum().backward()
    assert all(module.a.grad is not None for module in modules)
    replace_activations(after, Snake, example_input=x)
    for training in (True, False):
        with Count() as count:
            after.train(training)(x)
        assert count.calls == 0


@pytest.mark.parametrize(
    "kind", [Functional, Methods, Reused, Looped, Shared], ids=lambda k: k.__name__
)
def test_swapped_idioms_compile_and_export(kind: type[Net]):
    model, x = kind().eval(), torch.randn(2, 3, 6, 5)
    report = replace_activations(model, ReLU, example_input=x)
    for index, call in enumerate(report):
        model.get_submodule(call.name).a.data.fill_(1 + index / 4)  # pyright: ignore[reportCallIssue]
    y = model(x)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        torch.testing.assert_close(compiled(x), y)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), y)


def test_threads_do_not_exchange_activations():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval()
    for index, call in enumerate(replace_activations(model, CosLU)):
        model.get_submodule(call.name).alpha.data.fill_(0.2 * index)  # pyright: ignore[reportCallIssue]
    inputs = [torch.randn(1, 3, 32, 32) for _ in range(8)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]

    def evaluate(x: torch.Tensor):
        with torch.no_grad():
            return model(x)

    with ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(evaluate, inputs * 5))
    wrong = [not torch.equal(a, b) for a, b in zip(outputs, expected * 5, strict=True)]
    assert sum(wrong) == 0


class Parts(Net):
    """A method that is called from outside, one that others call, and a decorated one."""

    def features(self, x):
        return self.act(self.more(self.act(self.conv(x))))

    @torch.no_grad()
    def decorated(self, x):
        return self.drop(x)

    def forward(self, x):
        return self.act(self.features(x) - 0.1)


class Deep(Parts):
    """Its calls in the method of a parent cannot be rewritten, so that all share one."""

    def forward(self, x):
        return self.act(super().forward(x) - 0.1)


class Helped(Net):
    def act_of(self, layer, x):
        return self.act(layer(x))

    def forward(self, x):
        return self.act_of(self.more, self.act_of(self.conv, x))


class Recurrent(Net):
    def __init__(self):
        super().__init__()
        self.cell, self.cells = nn.Linear(4, 4), 3

    def forward(self, x):
        x = self.conv(x).movedim(1, -1)
        for _ in range(self.cells):
            x = self.act(self.cell(x))
        return x.movedim(-1, 1)


class LongerInTraining(Net):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x):
        x = self.conv(x)
        for layer in self.layers if self.training else self.layers[1:]:
            x = self.act(layer(x))
        return x


@pytest.mark.parametrize(
    ("kind", "names", "shared"),
    [
        (Parts, ["act.0", "act.1", "act.2"], {}),
        (Deep, ["act"], {"act": 4}),
        (Helped, ["act"], {"act": 2}),
        (Recurrent, ["act"], {"act": 3}),
        (LongerInTraining, ["act"], {"act": 3}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_place_in_the_code_decides(kind: type[Net], names: list[str], shared: dict[str, int]):
    model, x = kind().eval(), torch.randn(2, 3, 6, 5)
    report = replace_activations(model, CosLU, example_input=x)
    assert [call.name for call in report] == names
    assert {call.name: call.times for call in report if call.times > 1} == shared
    assert ("one activation for several calls in a pass: act (" in str(report)) == bool(shared)
    for index, call in enumerate(report):
        model.get_submodule(call.name).alpha.data.fill_(1 + index)  # pyright: ignore[reportCallIssue]
    expected = model(x)
    if isinstance(model, Parts):
        first = model.features(x)
        assert torch.equal(model.features(x), first)
        assert torch.equal(model(x), expected)
    if isinstance(model, Recurrent):
        model.cells = 5  # as many time steps as the data have
        assert model(x).shape == expected.shape


def test_a_call_that_no_trial_saw_is_an_error():
    model, x = Looped().eval(), torch.randn(2, 3, 6, 5)
    replace_activations(model, CosLU, example_input=x)
    layers, model.layers = model.layers, model.layers[1:]  # as if one were skipped at random
    with pytest.raises(RuntimeError, match="fewer calls of its activation than when"):
        model(x)
    model.layers = layers
    model.layers.append(nn.Conv2d(4, 4, 1))
    with pytest.raises(RuntimeError, match="or a loop made more calls than then"):
        model(x)


@pytest.mark.parametrize(
    ("build", "calls"),
    [
        (lambda: torchvision.models.resnet18(), 17),
        (lambda: torchvision.models.googlenet(init_weights=False), 61),
        (lambda: torchvision.models.mobilenet_v3_small(), 33),
        pytest.param(lambda: timm.create_model("res2net50_26w_4s"), 81, marks=pytest.mark.slow),
        (lambda: timm.create_model("test_vit"), 6),
    ],
    ids=["resnet18", "googlenet", "mobilenet_v3_small", "res2net50", "test_vit"],
)
def test_library_networks(build, calls: int):
    model = build()
    report = replace_activations(model, Snake)
    assert len(report) == calls
    assert all(call.axis is not None for call in report)
    with Count() as count, torch.no_grad():
        model.eval()(torch.randn(1, 3, 160, 160))
    assert count.calls == 0


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "helper",
            r"cannot swap relu, which .* calls as a function \(.*test_replace.py:\d+: return F.relu\(x\)\): it is not in a method",
        ),
        ("overwritten", r"cannot swap act: it changes its input in place"),
        ("alias", r"cannot swap relu: it changes its input in place"),
        ("view", r"cannot swap act: it changes its input in place"),
        ("part", r"cannot swap relu: it changes its input in place"),
        ("gated", "calls no activation that could be swapped"),
        ("starred", "not called by its own name"),
        ("decorated", r"the method inner is decorated \(@torch.enable_grad\(\)\)"),
    ],
)
def test_what_it_cannot_swap_it_refuses(kind: str, message: str):
    model = Refused(kind)
    before = repr(model), type(model), list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        replace_activations(model, CosLU, example_input=torch.zeros(2, 3, 8, 8))
    assert (repr(model), type(model), list(model.state_dict())) == before


def helper(x):
    return F.relu(x)


class Refused(Net):
    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    @torch.enable_grad()
    def inner(self, x):
        return F.relu(x)

    def forward(self, x):
        x = self.conv(x)
        if self.kind == "helper":
            return helper(x)
        if self.kind == "decorated":
            return self.inner(x)
        if self.kind == "overwritten":
            return self.act(x) + self.more(x)
        if self.kind == "alias":
            y = x
            F.relu_(x)
            return self.more(y)
        if self.kind == "view":
            flat = x.flatten(2)
            return self.act(x).flatten(2) + flat
        if self.kind == "part":
            part = x[:, :2]
            part.relu_()
            return self.more(x)
        if self.kind == "gated":
            return torch.sigmoid(x)
        arguments = (x,)
        return F.relu(*arguments)


def test_bad_factory_and_bad_input():
    with pytest.raises(TypeError, match=r"must make a torch.nn.Module, got 3"):
        replace_activations(CifarResNet(8), lambda: 3)  # pyright: ignore[reportArgumentType]
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


def test_a_dtype_that_the_factory_sets_stays():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).bfloat16()
    x = torch.zeros(2, 3, 16, 16, dtype=torch.bfloat16)
    replace_activations(model, partial(CosLU, dtype=torch.float32), example_input=x)
    assert {p.dtype for p in model[1].parameters()} == {torch.float32}
    assert model(x).dtype == torch.bfloat16


def test_a_function_of_images_is_refused_behind_a_linear_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4), nn.ReLU())
    model(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"LSLU needs .*, and 4 has .*\(2, 4\): exclude the call"):
        replace_activations(model, LSLU, example_input=torch.zeros(2, 3, 8, 8))


def test_a_transformers_fast_path_does_not_go_on_with_the_old_one():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0, activation=nn.GELU(), batch_first=True)
    model, x = nn.Sequential(layer), torch.randn(2, 5, 16)
    replace_activations(model, partial(CosLU, alpha=5.0), example_input=x)
    model.eval()
    with torch.no_grad():
        fast = model(x)
    torch.testing.assert_close(fast, model(x).detach(), rtol=1e-5, atol=1e-5)


def test_include_exclude_and_several_factories():
    model = CifarResNet(8)
    report = replace_activations(
        model,
        {"layer1.*": CosLU, "*.act2": nn.GELU, "act1": DSReLU},
        example_input=torch.zeros(2, 3, 32, 32),
        exclude=["layer2.*"],
    )
    new = {call.name: call.new.split("(")[0] for call in report}
    assert new == {
        "act1": "DSReLU",
        "layer1.0.act1": "CosLU",
        "layer1.0.act2": "CosLU",
        "layer3.0.act2": "GELU",
    }
    assert {name for name, _, why in report.left if why == "excluded"} == {
        "layer2.0.act1", "layer2.0.act2", "layer3.0.act1"
    }  # fmt: skip
    assert "left: ReLU (excluded): layer2.0.act1, layer2.0.act2, layer3.0.act1" in str(report)


def test_one_call_of_several():
    model, x = Reused(), torch.randn(2, 3, 6, 5)
    report = replace_activations(model, CosLU, example_input=x, include="act.1")
    assert [call.name for call in report] == ["act.1"]
    assert [type(module).__name__ for module in model.act] == ["ReLU", "CosLU", "ReLU"]  # pyright: ignore[reportGeneralTypeIssues]


def test_share():
    x = torch.zeros(2, 3, 64, 64)
    by = {
        share: timm.create_model("resnet18", num_classes=5)
        for share in ("channel", "stage", "model")
    }
    for share, model in by.items():
        replace_activations(model, CosLU, example_input=x, share=share)  # pyright: ignore[reportArgumentType]
        model(x)
    count = {s: sum(isinstance(m, CosLU) for m in model.modules()) for s, model in by.items()}
    assert count == {"channel": 17, "stage": 5, "model": 1}  # the stem's map is larger
    assert by["channel"].layer3[0].act1.alpha.shape == (256,)  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    assert by["stage"].layer2[0].act2 is by["stage"].layer2[1].act1  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    tokens = timm.create_model("test_vit", num_classes=5)
    replace_activations(tokens, CosLU, share="channel")
    assert (tokens.blocks[0].mlp.act.channel_dim, tokens.blocks[0].mlp.act.num_parameters) == (  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
        -1,
        192,
    )
    with pytest.raises(ValueError, match="share='channel': GELU has no parameters a channel"):
        replace_activations(CifarResNet(8), nn.GELU, share="channel")
    with pytest.raises(
        ValueError, match=r"share='channel': PReLU has its channels on axis 1, .* on -1"
    ):
        replace_activations(tokens, nn.PReLU, share="channel")
    with pytest.raises(
        ValueError,
        match=r"share='stage': layer1.0.act1 has 64 channels and layer1.0.act3 256, but LSLU is made",
    ):
        replace_activations(timm.create_model("resnet26"), LSLU, share="stage", include="layer1.*")
    with pytest.raises(
        ValueError, match="share must be one of channel, site, stage, model, got 'all'"
    ):
        replace_activations(tokens, CosLU, share="all")  # pyright: ignore[reportArgumentType]


def test_gates_by_name():
    model = timm.create_model("mobilenetv3_small_050", num_classes=5)
    kinds = {call.old for call in replace_activations(model, nn.GELU)}
    assert kinds == {"ReLU", "Hardswish"}
    assert sum(type(module) is nn.Hardsigmoid for module in model.modules()) == 9
    report = replace_activations(model, CosLU, include="*.gate", include_kinds="Hardsigmoid")
    assert {call.old for call in report} == {"Hardsigmoid"}
    with pytest.raises(ValueError, match="include_kinds names softsine; the network calls"):
        replace_activations(model, CosLU, include_kinds=["SoftSine"])


class EachInTurn(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for layer in self:
            input = F.relu(layer(input))
        return input


class AllThenOne(nn.ModuleDict):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = layer(x)
        return F.relu(x)


class OneByOne(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self[1](F.relu(self[0](input)))


def test_a_module_that_calls_all_its_children_cannot_hold_one_more():
    layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
    x = torch.ones(2, 4)
    for owner in (EachInTurn(*layers), AllThenOne({"a": layers[0], "b": layers[1]})):
        for network, name in ((owner, "the network"), (nn.Sequential(owner), "0")):
            with pytest.raises(ValueError, match=f"relu.*: {name} calls all of its children in"):
                replace_activations(network, CosLU, example_input=x)
    assert len(replace_activations(OneByOne(*layers), CosLU, example_input=x)) == 1


def test_an_own_activation_is_one_call():
    model = OwnKind()
    report = replace_activations(model, CosLU, example_input=torch.zeros(2, 3, 4, 4))
    assert [(call.name, call.old) for call in report] == [("act", "OwnSwish")]


def test_one_expression_calls_several_functions():
    torch.manual_seed(0)
    before, x = Several().eval(), torch.randn(2, 3, 6, 5)
    after = copy.deepcopy(before)
    report = replace_activations(after, ReLU, example_input=x)
    assert [call.old for call in report] == ["relu", "relu"]
    assert torch.equal(after(x), before(x))
    chunks = Chunks().eval()
    with torch.no_grad():
        expected = chunks(x)
        replace_activations(chunks, ReLU, example_input=x)
        assert torch.equal(chunks(x), expected)


def test_a_source_that_has_changed_is_refused(tmp_path, monkeypatch):
    text = "import torch\nfrom torch.nn import functional as F\n\nclass Net(torch.nn.Conv1d):\n    def forward(self, x):\n        return F.relu(super().forward(x)) * 2\n"
    (tmp_path / "edited_network.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import edited_network  # pyright: ignore[reportMissingImports]

    network = edited_network.Net(3, 4, 1)
    (tmp_path / "edited_network.py").write_text(text.replace("* 2", "* 3"))
    import linecache

    linecache.checkcache()
    with pytest.raises(ValueError, match="its source has changed since it was imported"):
        replace_activations(network, CosLU, example_input=torch.zeros(2, 3, 5))


def test_a_kind_of_torchs_own_and_old_weight_norm():
    class Mine(nn.ReLU):
        def forward(self, input):
            return super().forward(input) * 2

    with pytest.warns(FutureWarning):
        conv = nn.utils.weight_norm(nn.Conv1d(3, 4, 1))
    network = nn.Sequential(conv, Mine())
    network(torch.zeros(2, 3, 5))
    report = replace_activations(network, CosLU, example_input=torch.zeros(2, 3, 5))
    assert [call.old for call in report] == ["Mine"]


@pytest.mark.filterwarnings("ignore:match. .* fits only roughly")
def test_hooks_go_with_the_activation_and_no_trial_calls_them():
    seen: list[str] = []
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU())
    handles = [
        model[1].register_forward_hook(lambda *_: seen.append("forward")),
        model[1].register_forward_hook(lambda *_: seen.append("always"), always_call=True),
        model[1].register_forward_hook(lambda *_: seen.append("kwargs"), with_kwargs=True),
        model[1].register_forward_pre_hook(lambda *_: seen.append("before")),
        model[1].register_full_backward_hook(lambda *_: seen.append("backward")),
        model[1].register_full_backward_pre_hook(lambda *_: seen.append("pre-backward")),
        model[0].register_forward_hook(lambda *_: seen.append("convolution")),
        model.register_forward_pre_hook(lambda *_: seen.append("network")),
    ]
    x = torch.randn(2, 3, 5)
    choices: list[Any] = [{}, {"match": True}, {"match": "fade"}]
    for options in choices:
        report = replace_activations(model, CosLU, example_input=x, **options)
        assert not report.left
        assert not seen
        model(x).sum().backward()
        kinds = ["network", "convolution", "before", "forward", "always", "kwargs"]
        assert seen == [*kinds, "pre-backward", "backward"]
        seen.clear()
    handles[3].remove()
    model(x)
    assert "before" not in seen


def test_hooks_of_a_module_with_several_calls_see_each():
    seen: list[torch.Tensor] = []
    model, x = Reused().eval(), torch.randn(2, 3, 6, 5)

    def see(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        seen.append(output)

    model.act.register_forward_hook(see)
    expected = copy.deepcopy(model)(x)
    before = [output.clone() for output in seen]
    seen.clear()
    replace_activations(model, ReLU, example_input=x, include="act.1")
    replace_activations(model, ReLU, example_input=x, include="act.[02]")
    assert torch.equal(model(x), expected)
    assert len(before) == 3
    assert all(torch.equal(a, b) for a, b in zip(seen, before, strict=True))
    twice = nn.Sequential(act := nn.ReLU(), nn.Sequential(act))
    act.register_forward_hook(see)
    replace_activations(twice, CosLU, example_input=torch.zeros(2, 3))
    seen.clear()
    twice(torch.zeros(2, 3))
    assert len(seen) == 2
    shared = nn.Sequential(nn.Conv1d(3, 3, 1), nn.ReLU(), nn.Conv1d(3, 3, 1), nn.ReLU())
    shared[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"cannot swap 1 with this share: its hooks would see"):
        replace_activations(shared, CosLU, example_input=torch.zeros(2, 3, 5), share="model")
    assert [type(module) for module in shared[1::2]] == [nn.ReLU] * 2


def test_timms_features_by_hooks():
    make = partial(timm.create_model, "resnet18", features_only=True, feature_cls="hook")
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = [feature.clone() for feature in model(x)]
        replace_activations(model, ReLU)
        after = model(x)
    assert len(before) == 5
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


class Added(Net):
    """Changes in place what goes into the activation, or comes out of it."""

    kind = "input"

    def forward(self, x):
        x = self.conv(x)
        if self.kind == "input":
            x += self.more(self.act(x))
        elif self.kind == "slice":
            y = self.act(x)
            x[:, 1:] *= 2
            x = x + y
        elif self.kind == "output":
            y = self.act(x)
            y += x
            return y
        elif self.kind == "statistics":  # not through the input's tensor
            y = self.act(x)
            with torch.no_grad():
                x.mul_(0.5)
            return y
        return x


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", ["input", "slice", "statistics"])
def test_what_fails_in_the_backward_pass_is_refused(kind: str, frozen: bool):
    model, x = Added(), torch.randn(2, 3, 6, 5)
    model.kind, model.act.inplace = kind, False
    model.requires_grad_(not frozen)
    before = repr(model), list(model.state_dict())
    with pytest.raises(
        ValueError, match=r"cannot swap act: the new ones fail in the backward pass .*modified by"
    ):
        replace_activations(model, CosLU, example_input=x)
    assert (repr(model), list(model.state_dict())) == before
    assert all(parameter.requires_grad != frozen for parameter in model.parameters())
    model.requires_grad_(True)
    model(x).sum().backward()  # as the old one saves its output


def test_an_output_changed_in_place():
    model, x = Added(), torch.randn(2, 3, 6, 5)
    model.kind, model.act.inplace = "output", False
    replace_activations(model, CosLU, example_input=x)  # it saves its input
    model(x).sum().backward()
    with pytest.raises(ValueError, match="cannot swap act: the new ones fail in the backward"):
        replace_activations(model, nn.Sigmoid, example_input=x)  # it saves its output


def test_a_network_without_a_backward_pass_is_swapped():
    class Broken(Net):
        def forward(self, x):
            y = self.conv(x).exp()
            y += 1
            return self.act(y)

    assert len(replace_activations(Broken(), CosLU, example_input=torch.zeros(2, 3, 6, 5))) == 1


class UNet(Net):
    def __init__(self):
        super().__init__()
        self.time = nn.Linear(1, 4)

    def forward(self, x, t, *, context=None, scale: float = 1.0):
        x = self.conv(x) + F.silu(self.time(t[:, None].float()))[..., None, None]
        x = x if context is None else x + context["text"].mean(1)[..., None, None]
        return {"sample": self.act(x) * scale, "time": t}


class Encoder(nn.Module):
    """Token numbers to a tuple of tensors, with a mask."""

    def __init__(self):
        super().__init__()
        self.words, self.fc = nn.Embedding(9, 6), nn.Linear(6, 6)

    def forward(self, batch):
        x = self.words(batch["ids"]) * batch["mask"][..., None]
        return F.gelu(self.fc(x)), (x.mean(1), None)


@pytest.mark.parametrize(
    ("build", "example", "sites"),
    [
        (UNet, (torch.randn(2, 3, 8, 8), torch.arange(2)), {"silu": 4, "act": 4}),
        (UNet, (torch.randn(1, 3, 8, 8), torch.arange(1)), {"silu": 4, "act": 4}),
        (UNet, {"t": torch.arange(2), "x": torch.randn(2, 3, 8, 8)}, {"silu": 4, "act": 4}),
        (
            UNet,
            {
                "t": torch.arange(2),
                "x": torch.randn(2, 3, 8, 8),
                "context": {"text": torch.randn(2, 5, 4)},
                "scale": 0.5,
            },
            {"silu": 4, "act": 4},
        ),
        (
            lambda: nn.Transformer(8, 2, 1, 1, 12, activation=F.gelu, batch_first=True),
            (torch.randn(2, 5, 8), torch.randn(2, 3, 8)),
            {"encoder.layers.0.gelu": 12, "decoder.layers.0.gelu": 12},
        ),
        (
            Encoder,
            ({"ids": torch.randint(9, (2, 5)), "mask": torch.ones(2, 5)},),
            {"gelu": 6},
        ),
    ],
    ids=["tuple", "one sample", "names", "nested", "transformer", "dict"],
)
@pytest.mark.filterwarnings("ignore:match. ")
def test_several_inputs(build, example, sites: dict[str, int]):
    torch.manual_seed(0)
    before = build().eval()
    after = copy.deepcopy(before)
    kept = copy.deepcopy(example)
    choices: list[Any] = [{}, {"match": True}]
    for options in choices:
        model = copy.deepcopy(before)
        report = replace_activations(model, CosLU, example_input=example, **options)
        assert {call.name: call.channels for call in report} == sites
        assert all((call.error is not None) == bool(options) for call in report)
    assert repr(example) == repr(kept)
    replace_activations(after, nn.Identity, example_input=example)
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    assert repr(after(*args, **kwargs)) != repr(before(*args, **kwargs))


class Force(Net):
    """The gradient of an energy, as networks for molecules give it."""

    def forward(self, x):
        x = x.requires_grad_()
        return torch.autograd.grad(self.act(self.conv(x)).sum(), x, create_graph=True)[0]


class Weighted(nn.Module):
    """A layer of the network's own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return x @ self.weight


class Passes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.act = nn.ModuleList(Weighted() for _ in range(3)), nn.ReLU()

    def forward(self, x):
        for layer in self.layers:
            x = self.act(layer(x))
        return x


class SameLayer(nn.Module):
    """The same layer in each pass, with another module that learns behind the activation."""

    def __init__(self):
        super().__init__()
        self.fc, self.act, self.norm = nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4)

    def forward(self, x):
        y = x[:, 0]
        for step in range(x.shape[1]):
            y = self.norm(self.act(self.fc(y + x[:, step])))
        return y


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.gate, self.act = nn.Linear(4, 4), nn.Sigmoid(), nn.ReLU()

    def forward(self, x):
        return self.fc(self.gate(input=self.fc(x)) * self.act(x))


class State(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.fc, self.act = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 2), nn.ReLU()

    def forward(self, x, state):
        return self.fc(self.act(self.gru(x, state)[0]))


class OfGraph(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(4, 2), nn.ReLU()

    def forward(self, graph):
        return self.fc(self.act(self.fc.weight.new_ones(4) * graph.x))


@pytest.mark.parametrize(
    ("build", "example", "names"),
    [
        (Force, torch.randn(2, 3, 6, 5), ["act"]),
        (Passes, torch.randn(5, 4), ["act.0", "act.1", "act.2"]),
        (SameLayer, torch.randn(3, 2, 4), ["act"]),
        (ByKeyword, torch.randn(3, 4), ["act"]),
        (State, (torch.randn(1, 5, 4), torch.randn(1, 1, 4)), ["act"]),
        (Encoder, (UserDict(ids=torch.ones(2, 5).long(), mask=torch.ones(2, 5)),), ["gelu"]),
        (UNet, UserDict(t=torch.arange(2), x=torch.randn(2, 3, 8, 8)), ["silu", "act"]),
        (OfGraph, SimpleNamespace(x=torch.randn(6, 4)), ["act"]),
    ],
    ids=["gradient", "own layers", "recurrent", "keyword", "state", "tokens", "by name", "graph"],
)
def test_networks_of_other_libraries(build, example, names: list[str]):
    report = replace_activations(build(), CosLU, example_input=example)
    assert [call.name for call in report] == names


def test_a_network_on_the_cpu_leaves_cuda_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: pytest.fail("CUDA is begun"))
    replace_activations(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), CosLU)


class Detector(Net):
    """A list of images, and in training targets; it computes with numbers as torchvision's do."""

    def __init__(self):
        super().__init__()
        self.tried: list[bool] = []

    def forward(self, images, targets=None):
        Detector.runs.append(self.training)
        if self.training and targets is None:
            raise ValueError("targets should not be none when in training mode")
        x = self.act(self.conv(torch.stack(list(images))))
        size = int(x.mean().item() * 0) + 1  # what the meta device cannot
        if targets is not None and self.training:
            return {"loss": (x.mean() - targets[0]["boxes"].mean()) ** 2}
        return [{"boxes": x[:, :size]}]

    runs: list[bool] = []  # noqa: RUF012


def test_detection_takes_few_trial_runs():
    Detector.runs.clear()
    report = replace_activations(Detector(), CosLU)
    assert [call.name for call in report] == ["act"]
    assert "targets should not be none" in str(report)
    assert len(Detector.runs) <= 7
    images = [torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)]
    targets = [{"boxes": torch.ones(1, 4)}, {"boxes": torch.ones(1, 4)}]
    report = replace_activations(Detector(), CosLU, example_input=(images, targets))
    assert not report.left
    assert report[0].runs == 2


def test_a_long_trial_shows_what_it_does(caplog, monkeypatch):
    clock = itertools.count(step=1000)  # each look at the clock is far later
    monkeypatch.setattr("activations.swap.calls.time.monotonic", lambda: next(clock))

    class Slow(Net):
        def forward(self, x):
            for _ in range(100):
                if caplog.records:
                    break
                threading.Event().wait(0.1)
            return super().forward(x)

    replace_activations(Slow(), CosLU, example_input=torch.zeros(2, 3, 4, 4))
    assert "Slow: trial run in training mode on (2, 3, 4, 4)" in caplog.messages


class Learned(Net):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.25]))

    def forward(self, x):
        return F.prelu(self.conv(x), self.slope)


def test_a_function_of_another_tensor():
    x = torch.zeros(2, 3, 5, 5)
    assert len(replace_activations(Learned(), CosLU, example_input=x)) == 1
    for match in (True, "fade"):
        with pytest.raises(
            ValueError, match=r"cannot match, fade or tell apart prelu: .* takes another tensor"
        ):
            replace_activations(Learned(), CosLU, example_input=x, match=match)


class Wide(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"factory": Wide},
            r"Wide makes .*\(2, 32, 224, 224\).* of .* at act1; an activation keeps",
        ),
        (
            {"factory": lambda: nn.Linear(7, 7)},
            r"Linear fails on the input \(2, 16, 224, 224\) of act1",
        ),
        (
            {"factory": {"*": CosLU, "layer3.*": FReLU}},
            r"'layer3.\*' has no effect: .* such as layer3.0.act1, are taken by .*'\*'.* ahead",
        ),
        ({"include": "layer9.*"}, r"'layer9.\*' fits none of 7 calls; such as"),
        ({"factory": {"act1": CosLU, "laier1*": CosLU}}, r"'laier1\*' fits none"),
        (
            {"example_input": torch.zeros(2, 4, 8, 8)},
            r"fails on an example input of shape \(2, 4, 8, 8\)",
        ),
        ({"factory": CosLU()}, r"is one module, and each call needs its own: give the class CosLU"),
        ({"factory": F.relu}, "when called without arguments"),
        ({"match": "Fade"}, r"match must be True, False or \"fade\", got 'Fade'"),
        ({"exclude": "*"}, "leave no call to swap"),
        ({"example_input": (2, 3, 8, 8)}, "example_input must hold a tensor, got tuple"),
        ({"factory": lambda: LSLU(channels=16)}, "must pass channels, dims on to it"),
    ],
    ids=[
        "shape",
        "fails",
        "no effect",
        "glob",
        "rule",
        "example",
        "instance",
        "function",
        "match",
        "none",
        "tuple",
        "lambda",
    ],
)
def test_bad_arguments(options, message: str):
    model = CifarResNet(8)
    before = repr(model)
    with pytest.raises((ValueError, TypeError), match=message):
        replace_activations(model, **{"factory": CosLU, **options})
    assert repr(model) == before


def test_a_new_module_that_is_never_reached_is_an_error():
    class Peeking(Net):
        def forward(self, x):
            x = self.conv(x)
            return self.act(x) if isinstance(self.act, nn.ReLU) else x

    model = Peeking()
    with pytest.raises(
        ValueError, match="cannot swap act: the network calls the new module 0 times"
    ):
        replace_activations(model, CosLU, example_input=torch.zeros(2, 3, 4, 4))
    assert isinstance(model.act, nn.ReLU)


def test_trained_weights_load_without_the_command_line(tmp_path):
    trained, x = timm.create_model("resnet18", num_classes=5).eval(), torch.randn(2, 3, 64, 64)
    replace_activations(trained, CosLU)
    trained.layer1[0].act1.alpha.data.fill_(0.3)  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    fresh = timm.create_model("resnet18", num_classes=5).eval()
    replace_activations(fresh, CosLU)
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    assert torch.equal(trained(x), fresh(x))


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.rrelu(self.conv(x), 0.2, 0.4, self.training).mean((2, 3))


def test_a_function_with_modes_is_one_function():
    model, x = Random(), torch.randn(2, 3, 4, 4)
    [call] = replace_activations(model, CosLU, example_input=x, match="fade")
    old: Any = model.get_submodule(call.name).old
    z = torch.full((1000,), -1.0)
    assert old.train()(z).unique().numel() > 900
    torch.testing.assert_close(old.eval()(z), 0.3 * z)


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory, self.act = nn.GRU(3, 4, batch_first=True), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.memory(x)[0])


def test_what_a_kernel_holds_is_reported():
    model = Remembering()
    report = replace_activations(model, CosLU, example_input=torch.zeros(2, 5, 3))
    assert [(left.name, left.old, left.why) for left in report.left] == [
        ("memory", "GRU", "its activations are part of its kernel")
    ]


def test_a_fading_network_is_not_swapped():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    replace_activations(model, CosLU, match="fade")
    with pytest.raises(ValueError, match="1 is still fading: swap the network before"):
        replace_activations(model, DELU)


def test_what_was_never_called_is_reported():
    model = Net()
    model.unused = nn.ReLU()
    report = replace_activations(model, CosLU, example_input=torch.zeros(2, 3, 8, 8))
    assert [call.name for call in report] == ["act"]
    assert report.left == (("unused", "ReLU", "never called"),)


def test_sizes_are_tried_where_none_is_given():
    class Fixed(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(1, 2, 5), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 24 * 24, 3))

    assert replace_activations(Fixed(), CosLU)[0].shape == (2, 2, 24, 24)
    assert replace_activations(nn.Sequential(nn.Linear(7, 5), nn.ReLU()), CosLU)[0].shape == (2, 5)
    signal = nn.Sequential(nn.Conv1d(2, 5, 3), nn.ReLU())
    assert replace_activations(signal, CosLU)[0].channels == 5


class Noting(nn.Module):
    numbers = 0  # the most that an input held

    def forward(self, x):
        Noting.numbers = max(Noting.numbers, 0 if x.is_meta else x.numel())
        return x.relu()


def test_a_network_for_video_is_tried_without_numbers():
    network = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool3d((16, 7, 7)))
    report = replace_activations(network, Noting)
    assert report[0].shape == (2, 8, 16, 224, 224)
    assert Noting.numbers < 100_000  # a few to see which kind of function it is


def test_volumes_that_are_no_video():
    network = nn.Sequential(nn.Conv3d(1, 4, 32, stride=32), nn.ReLU())
    assert replace_activations(network, CosLU)[0].shape == (2, 4, 2, 2, 2)


class OfNumbers(nn.Module):
    def forward(self, x):
        return x.relu() if x.mean().item() < 1 else x


def test_an_activation_that_computes_with_numbers():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert replace_activations(network, OfNumbers)[0].new == "OfNumbers()"


class NoReturn(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(3)])
        self.skipped: set[int] = set()

    def run(self, maps):
        for number, conv in enumerate(self.convs):
            if number not in self.skipped:
                maps.append(F.relu(conv(maps[-1])))

    def forward(self, x):
        maps = [x]
        self.run(maps)
        return maps[-1]


def test_a_loop_in_a_method_without_return_makes_all_of_its_calls():
    model, x = NoReturn(), torch.zeros(2, 3, 4, 4)
    report = replace_activations(model, CosLU, example_input=x)
    assert [call.name for call in report] == ["relu.0", "relu.1", "relu.2"]
    model(x)
    model.skipped = {0}
    with pytest.raises(RuntimeError, match="a loop made fewer calls of its activation"):
        model(x)


class FastGELU(nn.Module):
    """A kernel that this device does not have; the network below takes another way then."""

    def forward(self, x):
        raise NotImplementedError("not on this device")


class Fallback(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.fast, self.slow = nn.Linear(3, 4), FastGELU(), nn.GELU()
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.linear(x)
        try:
            x = self.fast(x)
        except NotImplementedError:
            x = self.slow(x)
        return F.silu(self.act(x))


def test_calls_behind_an_exception_that_the_network_catches_are_found():
    model: Any = Fallback()
    report = replace_activations(model, CosLU, example_input=torch.zeros(2, 3), exclude="fast")
    assert [call.name for call in report] == ["slow", "act", "silu"]


def test_a_registry_of_classes_does_not_get_the_rewritten_one():
    registry: dict[str, type] = {}

    class Registered(nn.Module):
        def __init_subclass__(cls, label: str) -> None:
            registry[label] = cls

    class Part(Registered, label="part"):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x)

    model: Any = nn.Sequential(nn.Linear(3, 4), Part())
    assert [call.name for call in replace_activations(model, CosLU)] == ["1.relu"]
    assert registry == {"part": Part}
    assert Part()(torch.tensor([-1.0, 1.0])).tolist() == [0.0, 1.0]


def test_tokens_are_not_taken_for_channels():
    model: Any = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(ValueError, match="LSLU has its channels on axis 1, 1 on 2"):
        replace_activations(model, LSLU, example_input=torch.zeros(2, 16, 8))


def test_a_forward_that_holds_the_network_leaves_its_buffers_as_they_are():
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))
    old = model[2].forward
    for forward in (lambda x: old(x) * 0.5, lambda x, old=old: old(x) * 0.5):
        model[2].forward = forward
        replace_activations(model, CosLU, example_input=torch.rand(4, 3, 5, 5))
        assert model[2].num_batches_tracked.item() == 0
        assert model[2].running_var.tolist() == [1.0] * 4


def test_what_cannot_be_copied_is_named():
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    model[0].cache = torch.ones(2, requires_grad=True) * 2  # which copy.deepcopy refuses
    model[0].guard = threading.Lock()
    with pytest.raises(ValueError, match=r"cannot pickle .*lock.*Set 0.guard after the swap"):
        replace_activations(model, CosLU)


class Changing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x):
        return F.threshold(self.linear(x.sub_(1.0)), 0.0, 0.0)


@pytest.mark.filterwarnings("ignore:match. threshold")  # by its weights, of two samples far out
def test_an_example_that_the_network_changes_stays_as_it_is():
    example = torch.ones(2, 3)
    report = replace_activations(Changing(), FReLU, example_input=example, match=True)
    assert [call.old for call in report] == ["threshold"]  # as F names it: _threshold
    assert (example == 1).all()


def test_a_network_that_was_parametrized_after_a_swap_is_swapped_again():
    model: Any = nn.Sequential(Net())
    x = torch.zeros(2, 3, 8, 8)
    replace_activations(model, CosLU, example_input=x)
    torch.nn.utils.parametrize.register_parametrization(model[0].conv, "weight", nn.Identity())
    assert len(replace_activations(model, DELU, example_input=x)) == 1


def test_a_random_function_is_matched_by_what_it_is_in_evaluation():
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.RReLU())
    replace_activations(model, FReLU, match=True)
    assert model[1].b.item() == pytest.approx((1 / 8 + 1 / 3) / 2)


def test_a_fade_on_no_device_begins_with_the_old_function():
    with torch.device("meta"):
        model: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    replace_activations(model, CosLU, match="fade")
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert model[1].progress.item() == 0
    x = torch.randn(5, 3)
    assert torch.equal(model(x), model[0](x).relu())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 8, 1), (3, 16, 20)),
        (nn.Conv1d(3, 8, 1), (3, 16)),
        (nn.ConvTranspose1d(3, 8, 1), (3, 8)),
        (nn.Linear(3, 8), (3,)),
    ],
)
def test_an_example_without_a_batch_does_not_tell_the_channels(
    layer: nn.Module, shape: tuple[int, ...]
):
    model, example = nn.Sequential(layer, nn.ReLU()), torch.zeros(shape)
    with pytest.raises(ValueError, match="has no batch: give a batch as example_input"):
        replace_activations(model, FReLU, share="channel", example_input=example)
    with pytest.raises(ValueError, match="LSLU needs the channels of 1, and its input"):
        replace_activations(model, LSLU, example_input=example)
    assert len(replace_activations(model, FReLU, example_input=example)) == 1
