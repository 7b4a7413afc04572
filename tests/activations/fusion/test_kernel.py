"""Fused activations: the same numbers, nothing kept but the input, and plain where they must be."""

import copy
import functools
import itertools
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import activations as A
from activations.fusion import blocks, simplify
from activations.fusion import kernel as fusion
from activations.fusion.layout import view_of
from tests.cases import CASES, Case, variants_later

FUSED = [case for case in CASES if case.kind is not A.DynamicReLU]
PER_CHANNEL = [case for case in FUSED if case.per_channel]
# torch 2.14's own forward-mode differentiation, which only the tests use
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")


@contextmanager
def fused(on: bool = True) -> Iterator[None]:
    """As if every activation had been given to `fuse`, or none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(A.Activation, "fused", on)
        yield


@contextmanager
def plain() -> Iterator[None]:
    """The formula itself, for whole tensors: neither fused nor in blocks."""
    with fused(False), pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", sys.maxsize)
        yield


class Counter:
    """A backend that counts how many graphs it compiled and ran."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    def __call__(self, graph: Any, inputs: Any, **_: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        self.compiled += 1
        inner = aot_eager(graph, inputs)

        def run(*arguments: Any) -> Any:
            self.ran += 1
            return inner(*arguments)

        return run


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """Fusion on, traced and differentiated as ever, but run by torch's own kernels."""
    counter = Counter()
    monkeypatch.setattr(fusion, "_BACKEND", counter)
    monkeypatch.setattr(fusion, "_PLAIN", set())
    fusion._kernel.cache_clear()
    with fused():
        yield counter
    fusion._kernel.cache_clear()


@pytest.fixture
def inductor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fusion on, by the real compiler."""
    fusion._kernel.cache_clear()
    monkeypatch.setattr(fusion, "_PLAIN", set())
    with fused():
        yield
    fusion._kernel.cache_clear()


def numbers(case: Case, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Float64 numbers that are exact in bfloat16, none within 0.01 of a kink."""
    generator = torch.Generator().manual_seed(seed)
    x = (2 * torch.randn(shape, generator=generator)).bfloat16().double()
    for kink in case.kinks:
        x = torch.where((x - kink).abs() < 0.01, kink + 0.0625, x)
    return x


def plain_parts(case: Case, x: Tensor, grad: Tensor, **more: Any) -> dict[str, Tensor]:
    """The plain formula's value and gradients in float64."""
    with plain():
        module = case.make(**more).double()
        x = x.double().clone().requires_grad_()
        y = module(x)
        y.backward(grad.double())
    assert x.grad is not None
    found = {"y": y.detach(), "x": x.grad}
    return found | {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def absolute_terms(case: Case, x: Tensor, grad: Tensor, name: str, **more: Any) -> Tensor:
    """Sum over elements of the absolute terms of a parameter's gradient, element by element."""
    with plain():
        module = case.make(**more).double()
        parameter = dict(module.named_parameters())[name]
        flat = parameter.detach().view(-1)

        def value(theta: Tensor) -> Tensor:
            state = {name: theta.view_as(parameter)}
            return torch.func.functional_call(module, state, (x.double(),)) * grad.double()

        columns = [
            torch.func.jvp(value, (flat,), (unit,))[1].abs().sum()
            for unit in torch.eye(len(flat), dtype=torch.float64)
        ]
    return torch.stack(columns).view_as(parameter)


def check(
    case: Case, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", **more: Any
) -> None:
    """Value and gradients of the fused module against the oracle and against float64."""
    module = case.make(**more).to(device)
    if dtype == torch.float64 or not case.scalar:
        module.to(dtype)
    x64, grad64 = numbers(case, shape), numbers(case, shape, seed=2)
    x, grad = x64.to(device, dtype, copy=True).requires_grad_(), grad64.to(device, dtype)
    y = module(x)
    y.backward(grad)
    assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())
    value, scale = case.expected(module.cpu(), x64.numpy())
    kind = torch.finfo(dtype)
    error = np.abs(y.detach().double().cpu().numpy() - value)
    assert (error <= 4 * kind.eps * scale + kind.tiny + case.oracle_error).all()
    if not case.scalar:
        return
    true = plain_parts(case, x64, grad64, **more)
    assert x.grad is not None
    bound = 16 * kind.eps * (true["x"].abs() + 8 * grad64.abs())
    assert ((x.grad.double().cpu() - true["x"]).abs() <= bound).all()
    for name, parameter in module.named_parameters():
        if parameter.grad is None:
            assert name not in true
            continue
        error = (parameter.grad.double() - true[name]).abs()
        terms = absolute_terms(case, x64, grad64, name, **more)
        assert (error <= 1e-5 * terms + 1e-6 * parameter.numel()).all(), name


@pytest.mark.parametrize("case", variants_later(FUSED), ids=str)
def test_fused_values_and_gradients(case: Case, counter: Counter):
    check(case, case.shape, torch.float32)
    assert counter.ran == 2
    if case.scalar:
        assert_only_the_input_is_kept(case)


def assert_only_the_input_is_kept(case: Case) -> None:
    module = case.make()
    own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(40, 4, 25, 10, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    assert kept.pop(x.untyped_storage().data_ptr()) == x.nbytes
    # values and tables made from parameters
    assert max(kept.values(), default=0) < 0.05 * x.nbytes


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "sliced": lambda t: t.repeat_interleave(2, -1)[..., ::2],
}


SLOW = pytest.param("cpu", marks=pytest.mark.slow)
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = [SLOW, *([GPU] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("case", FUSED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", DEVICES)
def test_inductor_values_and_gradients(case: Case, dtype: torch.dtype, device: str, inductor: None):
    check(case, case.shape, dtype, device)


@pytest.mark.parametrize("case", PER_CHANNEL, ids=str)
@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("device", DEVICES)
def test_inductor_per_channel(case: Case, channel_dim: int, device: str, inductor: None):
    shape = (6, 4, 20) if channel_dim == 1 else (6, 20, 4)
    check(case, shape, torch.float32, device, num_parameters=4, channel_dim=channel_dim)


@pytest.mark.parametrize("case", variants_later(FUSED), ids=str)
def test_blocks_make_the_same_numbers(case: Case, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    shape = case.shape if np.prod(case.shape) % 8 else (7, *case.shape[1:])
    assert np.prod(shape) % 8  # the last block begins inside the one before
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with fused(False):
            assert fusion.fusible(torch.ones(shape), compiled=False)
            check(case, shape, dtype)
    if case.scalar:
        monkeypatch.setattr(blocks, "BLOCK", 1000)
        with fused(False):
            assert_only_the_input_is_kept(case)


def slow_but(quick: list[Any], *choices: Any) -> list[Any]:
    """All combinations of `choices`; those that are not in `quick` are marked as slow."""
    rows = itertools.product(*choices)
    return [row if row in quick else pytest.param(*row, marks=pytest.mark.slow) for row in rows]


@pytest.mark.parametrize(  # each function along one axis, the next one along the other
    ("case", "channel_dim"),
    slow_but([(c, (1, -1)[n % 2]) for n, c in enumerate(PER_CHANNEL)], PER_CHANNEL, (1, -1)),
    ids=str,
)
def test_blocks_per_channel(case: Case, channel_dim: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "BLOCK", 60)
    with fused(False):
        for shape in ((7, 4, 5), (7, 4, 20)) if channel_dim == 1 else ((7, 5, 4), (7, 20, 4)):
            check(case, shape, torch.float32, num_parameters=4, channel_dim=channel_dim)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_of_every_layout(layout: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "BLOCK", 50)
    module = A.CosLU(num_parameters=4)
    with torch.no_grad():
        module.alpha.copy_(torch.tensor([0.5, 1.0, -1.0, 2.0]))
    x = LAYOUTS[layout](torch.randn(5, 4, 6, 7)).requires_grad_()
    y = module(x)
    assert (y.shape, y.stride()) == (x.shape, torch.empty_like(x).stride())
    grad = torch.randn(5, 4, 6, 7)
    found = torch.autograd.grad(y, (x, *module.parameters()), grad)
    monkeypatch.setattr(blocks, "BLOCK", 10**6)
    expected = torch.autograd.grad(plain := module(x), (x, *module.parameters()), grad)
    torch.testing.assert_close(y, plain)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture(params=[False, True], ids=["blocks", "fused"])
def kernels(
    request: pytest.FixtureRequest, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Each kind of kernels, for the smallest inputs too; none may be given up."""
    monkeypatch.setattr(blocks, "BLOCK", 8)
    monkeypatch.setattr(fusion, "_WHOLE", set())
    with fused(request.param):
        yield
    assert not fusion._WHOLE
    assert not fusion._PLAIN


def test_checkpointing_that_ends_with_an_activation(kernels: None):
    network = nn.Sequential(nn.Linear(6, 4), A.Swish())
    x = torch.randn(9, 6, requires_grad=True)
    checkpoint(network, x, use_reentrant=False).sum().backward()  # pyright: ignore
    torch.testing.assert_close(x.grad, torch.autograd.grad(network(x).sum(), x)[0])


def test_a_batch_of_gradients(kernels: None):
    module, x, grads = A.Swish(), torch.randn(5, 9, requires_grad=True), torch.randn(3, 5, 9)
    expected = torch.stack([torch.autograd.grad(module(x), x, grad)[0] for grad in grads])
    y = module(x)
    (found,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(found, expected)
    of_one = functools.partial(torch.autograd.grad, y, x, retain_graph=True)
    torch.testing.assert_close(torch.func.vmap(lambda grad: of_one(grad)[0])(grads), expected)


def test_saved_tensors_may_come_back_in_another_layout(kernels: None):
    module = A.PELU(num_parameters=4)
    with torch.no_grad():
        module.a.copy_(torch.arange(1.0, 5.0))
    x = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    of = (x, module.a, module.b)
    expected = torch.autograd.grad(module(x).square().sum(), of)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x.contiguous()):
        y = module(x)
    for one, other in zip(torch.autograd.grad(y.square().sum(), of), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_second_derivatives_of_a_mixture_a_channel(kernels: None):
    module = A.LinComb([A.Swish, nn.Tanh], num_parameters=4)
    x = torch.randn(2, 4, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(module.double(), x)


def test_a_tensor_that_cannot_be_saved_is_an_error_of_its_own(kernels: None):
    with torch.inference_mode():
        x = torch.randn(5, 9)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        A.Swish()(x)
    with pytest.raises(RuntimeError, match="device"):
        A.Swish(device="meta")(torch.randn(5, 9))


def test_a_default_device_and_dtype_are_for_new_tensors_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    monkeypatch.setattr(fusion, "_WHOLE", set())
    fusion._kernel.cache_clear()
    simplify._traced.cache_clear()
    x = torch.randn(5, 9, requires_grad=True)
    modules = A.DELU(), A.PELU()
    expected = [module.function(x) for module in modules]
    try:
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float16)
        found = [module(x) for module in modules]
        for y in found:
            y.backward(torch.ones_like(y))
    finally:
        torch.set_default_device(None)  # pyright: ignore
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not fusion._WHOLE


def test_more_sizes_than_are_traced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    monkeypatch.setattr(blocks, "SIZES", 2)
    fusion._kernel.cache_clear()
    module = A.PELU(num_parameters=4)
    with torch.no_grad():
        module.a.copy_(torch.arange(1.0, 5.0))
    for length in range(5, 11):
        x = torch.randn(3, 4, length, requires_grad=True)
        of, y, expected = (x, module.a, module.b), module(x), module.function(x)
        torch.testing.assert_close(y, expected)
        found = torch.autograd.grad(y.square().sum(), of)
        for one, other in zip(found, torch.autograd.grad(expected.square().sum(), of), strict=True):
            torch.testing.assert_close(one, other)


def test_views_of_results_in_another_layout(kernels: None):
    module = A.DiTAC(variant="inf", num_parameters=4)
    x = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    y, expected = module(x), module.function(x)
    torch.testing.assert_close(y, expected)
    of = (x, module.theta)
    found = torch.autograd.grad(y.square().sum(), of)
    for one, other in zip(found, torch.autograd.grad(expected.square().sum(), of), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("size", [(3, 4, 3000), (3, 7, 1001), (1, 2, 8192)])
def test_gradients_of_shared_parameters_are_sums_of_rows(size: tuple[int, ...], counter: Counter):
    module, x = A.PELU(a=1.5, b=0.5), torch.randn(size, requires_grad=True)
    rows = view_of(x, None, tables=False).in_rows()
    assert (len(rows.sizes), math.prod(rows.sizes)) == (2 if x.numel() % 16 == 0 else 1, x.numel())
    of = (x, module.a, module.b)
    found = torch.autograd.grad(module(x).square().sum(), of)
    wide = copy.deepcopy(module).double()
    exact = x.detach().double().requires_grad_()
    expected = wide.function(exact).square().sum()
    true = torch.autograd.grad(expected, (exact, wide.a, wide.b))
    for one, other in zip(found, true, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


class _Looks(A.Activation):
    """A formula that asks for a value of its input."""

    formula = staticmethod(lambda x: x * 2 if x.max() > 0 else x)  # pyright: ignore


class _Mean(A.Activation):
    """A formula that is not elementwise."""

    formula = staticmethod(lambda x: x - x.mean())  # pyright: ignore


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * (2 if grads[0].max() > 0 else 1)


class _OwnBackward(A.Activation):
    """A formula with a gradient of its own, which cannot be traced."""

    formula = staticmethod(lambda x: _Backward.apply(x))  # pyright: ignore


@pytest.mark.parametrize("kind", [_Looks, _Mean, _OwnBackward])
def test_formulas_that_blocks_cannot_compute(kind: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    monkeypatch.setattr(fusion, "_WHOLE", set())
    x, module = torch.randn(5, 9, requires_grad=True), kind()

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        y = module(x)
        return y, torch.autograd.grad(y.sum(), x)[0]

    with pytest.warns(UserWarning, match="computed for whole tensors"):
        y, found = run()
    expected = module.function(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), x)[0])
    run()  # does not warn again


class _Softmax(A.Activation):
    formula = staticmethod(lambda x: x.softmax(-1))  # pyright: ignore


class _Noisy(A.Activation):
    formula = staticmethod(lambda x: x + 1e-3 * torch.randn_like(x))  # pyright: ignore


@pytest.mark.parametrize("kind", [_Mean, _Softmax, _Noisy])
def test_what_is_not_elementwise_is_noticed_in_large_blocks(
    kind: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fusion, "_WHOLE", set())
    module, x = kind(), torch.randn(8, 2**16, generator=torch.manual_seed(1))
    with pytest.warns(UserWarning, match="computed for whole tensors"):
        y = module(x)
    if kind is not _Noisy:
        torch.testing.assert_close(y, module.function(x))


def test_blocks_in_several_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    monkeypatch.setattr(fusion, "_WHOLE", set())
    fusion._kernel.cache_clear()
    module, inputs = A.AGLU(), [torch.randn(100) for _ in range(4)]

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        x.requires_grad_()
        y = module(x)
        return y, torch.autograd.grad(y.sum(), x)[0]

    with ThreadPoolExecutor(len(inputs)) as pool:
        found = list(pool.map(run, inputs))
    for x, (y, slope) in zip(inputs, found, strict=True):
        assert "_Fused" in type(y.grad_fn).__name__
        expected = module.function(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), x)[0])
    assert not fusion._WHOLE


@pytest.mark.parametrize("kind", [A.CosLU, A.DSReLU])
def test_inductor_makes_the_same_numbers(kind: type[A.Activation], inductor: None):
    case = next(case for case in CASES if case.kind is kind)
    for dtype in (torch.float32, torch.bfloat16):
        check(case, (8, 4, 6, 10), dtype)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # y stays alive
def test_a_cuda_graph_follows_parameters_and_schedule(inductor: None):
    model = nn.Sequential(A.CosLU(), A.DSReLU()).cuda()
    x = torch.randn(8, 4, 6, 10, device="cuda", requires_grad=True)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles
        torch.autograd.grad(model(x).sum(), x)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        y = model(x)
        (of_x,) = torch.autograd.grad(y.sum(), x)
    with torch.no_grad():
        x.normal_()
        model.get_parameter("0.alpha").mul_(2)
    A.set_progress(model, 0.7)
    graph.replay()
    expected = model(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(of_x, torch.autograd.grad(expected.sum(), x)[0])


FRELU = next(case for case in CASES if case.kind is A.FReLU)
SHAPES = {
    None: [(7,), (6, 4), (3, 5, 4), (2, 4, 3, 5), (2, 4, 3, 2, 5)],
    1: [(6, 4), (3, 4, 5), (2, 4, 3, 5), (2, 4, 3, 2, 5)],
    -1: [(6, 4), (3, 5, 4), (2, 3, 5, 4), (2, 3, 2, 5, 4)],
}


def one_graph_each_way(
    counter: Counter, x: Tensor, gradient: str, autocast: bool = False, **arguments: Any
) -> None:
    """Fail on eager, or on other numbers than the plain module's in float64."""
    module, twin = FRELU.make(**arguments), FRELU.make(**arguments).double()
    module.b.requires_grad_(gradient in ("all", "parameters", "input and b"))
    module.a.requires_grad_(gradient in ("all", "parameters"))
    wide = x.detach().double().requires_grad_()
    x.requires_grad_(gradient in ("all", "input", "input and b"))
    ran = counter.ran
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = module(x)
    assert counter.ran == ran + 1, "the forward did not run as one graph"
    with fused(False):
        expected = twin(wide)
    eps = torch.finfo(x.dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=4 * eps, atol=0)
    assert y.dtype == x.dtype
    if 1 not in x.shape and x.is_contiguous(memory_format=torch.preserve_format):
        assert y.stride() == x.stride()
    assert y.requires_grad == (gradient != "none")
    if gradient == "none":
        return
    grad = numbers(FRELU, tuple(x.shape), seed=3).to(x.dtype)  # contiguous, whatever x is
    y.backward(grad)
    assert counter.ran == ran + 2, "the backward did not run as one graph"
    expected.backward(grad.double())
    pairs = [(x, wide), *zip(module.parameters(), twin.parameters(), strict=True)]
    for tensor, other in pairs:
        assert (tensor.grad is not None) == tensor.requires_grad
        if tensor.grad is not None and other.grad is not None:
            loose = 4 * eps if tensor is x else 1e-5
            size = (grad.double() * wide.detach()).abs().sum().item()
            torch.testing.assert_close(
                tensor.grad.double(),
                other.grad,
                rtol=loose,
                atol=0 if tensor is x else loose * size,
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_rank_dtype_gradient_and_autocast_is_one_graph_each_way(
    dtype: torch.dtype, counter: Counter
):
    gradients = ("all", "input", "parameters", "input and b", "none")
    for shape, gradient, autocast in itertools.product(SHAPES[None], gradients, (False, True)):
        x = numbers(FRELU, shape).to(dtype)
        one_graph_each_way(counter, x, gradient, autocast)


@pytest.mark.parametrize(
    ("channel_dim", "layout"),
    slow_but(
        [(1, "contiguous"), (1, "channels_last"), (-1, "transposed"), (-1, "sliced")],
        (1, -1),
        LAYOUTS,
    ),
)
def test_every_layout_is_one_graph_each_way(channel_dim: int, layout: str, counter: Counter):
    dtype = torch.float32 if layout in ("contiguous", "transposed") else torch.bfloat16
    for shape in SHAPES[channel_dim]:
        if layout != "channels_last" or len(shape) == 4:
            x = LAYOUTS[layout](numbers(FRELU, shape).to(dtype))
            one_graph_each_way(counter, x, "all", num_parameters=4, channel_dim=channel_dim)
    for shape in ((1, 4, 6, 5), (3, 4, 1, 1), (13, 4, 1, 1), (1, 4, 1, 1)):
        x = LAYOUTS[layout](numbers(FRELU, shape).to(dtype))
        if channel_dim == 1 and layout in ("contiguous", "channels_last"):
            one_graph_each_way(counter, x, "all", num_parameters=4)
    x = LAYOUTS[layout](numbers(FRELU, (2, 5, 3, 4)).to(dtype))
    one_graph_each_way(counter, x, "all")


@pytest.mark.parametrize(
    ("channels", "layout"),
    slow_but([(1, "contiguous"), (4, "channels_last")], (1, 4), ["contiguous", "channels_last"]),
)
def test_no_recompilation_for_new_sizes_and_times(channels: int, layout: str, counter: Counter):
    module = A.CosLU(num_parameters=channels)
    scheduled = A.DSReLU()

    def epoch(batches: list[int]) -> None:
        for batch in batches:
            for side in (6, 5, 3):
                x = LAYOUTS[layout](torch.randn(batch, 4, side, side + 1)).requires_grad_()
                scheduled(module(x)).sum().backward()
        module.eval()
        with torch.no_grad():
            scheduled(module(torch.randn(3, 4, 6, 6)))
        module.train()

    epoch([8, 8, 1])
    compiled, ran = counter.compiled, counter.ran
    for t in (0.2, 0.7):
        scheduled.set_progress(t)
        epoch([12, 7, 2, 1])
        module = copy.deepcopy(module)
    assert counter.compiled == compiled
    assert counter.ran > ran


def test_instances_share_their_kernels(counter: Counter):
    for alpha in (0.1, 0.7, 1.3):
        A.CosLU(alpha)(torch.randn(5, 3, requires_grad=True)).sum().backward()
    assert counter.compiled == 2
    A.EELU(1)(torch.randn(5, 3))
    A.EELU(3)(torch.randn(5, 3))
    assert counter.compiled == 4


@pytest.mark.parametrize("name", ["sin", "cos", "exp", "expm1", "tanh", "sigmoid", "erf"])
def test_shortcuts(name: str):
    from activations.fusion import shortcuts

    own = shortcuts.WIDE[getattr(torch.ops.aten, name).default][0]
    eps, wave = torch.finfo(torch.float32).eps, name in ("sin", "cos")
    for reach in (1e-3, 1.0, 10.0, 88.7, 1e3, 1e4, 1e6, 1e38):
        if name in ("exp", "expm1", "sigmoid") and reach > 89:
            continue
        x = torch.linspace(-reach, reach, 100_001)
        true = getattr(torch, name)(x.double())
        error = (own(x).double() - true).abs()
        bound = torch.where(x.abs() <= 1e3, 2, 2 * x.abs()) if wave else 2 * true.abs()
        assert (error <= eps * bound.clamp(min=1e-30)).all(), reach
        if wave:
            assert own(x).abs().max() <= 1
    far = torch.tensor([-torch.inf, -1e30, -1e3, 1e3, 1e30, torch.inf])
    if not wave:
        assert torch.equal(own(far), getattr(torch, name)(far))
    assert own(far).isfinite().all() or name in ("exp", "expm1")
    assert own(torch.tensor([torch.nan])).isnan().all()


def test_narrow_shortcuts():
    from activations.fusion import shortcuts

    eps = torch.finfo(torch.float32).eps
    x = torch.cat([-torch.linspace(0, 87, 100_001), -torch.logspace(-30, 0, 1_001)])
    wide = torch.cat([x, torch.linspace(0, 88, 100_001)])  # as far as 2^n is finite
    for own, true in ((shortcuts.decay, torch.exp), (shortcuts.decay_m1, torch.expm1)):
        wanted = true(wide.double())
        assert ((own(wide).double() - wanted).abs() <= 2 * eps * wanted.abs()).all()
        assert own(torch.tensor([-torch.inf])).item() == true(torch.tensor(-torch.inf)).item()
    bound = torch.where(x > -8, 3e-5, torch.where(x > -20, 1e-4, 4e-3))
    wanted = x.double().exp()
    assert ((shortcuts.rough_decay(x).double() - wanted).abs() <= bound * wanted).all()
    assert shortcuts.rough_decay(torch.tensor([-1e3, -1e30, -torch.inf])).tolist() == [0, 0, 0]
    e = x.exp()
    wanted = torch.log1p(e.double())
    assert ((shortcuts.log1p(e).double() - wanted).abs() <= 2 * eps * wanted).all()
    assert ((shortcuts.rough_log1p(e).double() - wanted).abs() <= 1e-5 * wanted).all()
    small = torch.logspace(-3, -1, 99)  # what is left of log(1 + x) - x
    left = (shortcuts.rough_log1p(small) - small) / (torch.log1p(small.double()) - small)
    torch.testing.assert_close(left, torch.ones_like(left), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("name", "alone"),
    [("sigmoid", True)]
    + [(n, False) for n in ("exp", "sigmoid", "expm1", "tanh", "erf", "erfc", "sin", "cos")],
)
def test_rough_shortcuts(name: str, alone: bool):
    from activations.fusion import shortcuts

    own = shortcuts.WIDE[getattr(torch.ops.aten, name).default][1]
    if alone:
        own = shortcuts.rough_sigmoid
    for reach in (1e-4, 0.1, 1.0, 10.0, 80.0):
        x = torch.linspace(-reach, reach, 20_001)
        wide = x.double()
        true = torch.special.erfc(wide) if name == "erfc" else getattr(torch, name)(wide)
        exponent = wide.square() if name == "erfc" else wide.abs()
        bound = torch.where(exponent < 8, 3e-5, torch.where(exponent < 20, 1e-4, 4e-3))
        size = true.abs()
        if name in ("sin", "cos"):  # as rounding the angle
            bound, size = 3e-6, 1 + wide.abs()
        elif name in ("expm1", "tanh", "erf"):  # exp(x) - 1, but next to 0
            size = torch.where(wide.abs() < 0.02, size, size + 1)
        assert ((own(x).double() - true).abs() <= bound * size + 1e-37).all(), reach
    assert own(torch.tensor([torch.nan])).isnan().all()
    far = torch.tensor([-torch.inf, -1e30, -200.0, 200.0, torch.inf])
    if name in ("exp", "sigmoid", "tanh", "erf"):
        torch.testing.assert_close(own(far), getattr(torch, name)(far), rtol=3e-5, atol=0)


def test_erfc_shortcut():
    from activations.fusion.shortcuts import erfc

    x = torch.linspace(-9, 9, 100_001)
    true = torch.special.erfc(x.double())
    bound = (4 + 2 * x.double().square()) * torch.finfo(torch.float32).eps * true
    assert ((erfc(x).double() - true).abs() <= bound + 1e-37).all()
    assert erfc(torch.tensor([-torch.inf, torch.inf])).tolist() == [2, 0]


def both_ways(make: Callable[[], A.Activation], x: Tensor) -> list[list[Tensor]]:
    """Value and gradients, plain and fused."""
    found = []
    for fuse in (False, True):
        module, x = make(), x.detach().requires_grad_()
        with fused(fuse):
            y = module(x)
            y.backward(y.detach().cos())
        assert x.grad is not None
        found.append([y, x.grad, *(p.grad for p in module.parameters() if p.grad is not None)])
    return found


@pytest.mark.parametrize(
    ("size", "layout"),
    slow_but(
        [(2, torch.channels_last), (4, torch.contiguous_format)],
        (2, 4),
        (torch.contiguous_format, torch.channels_last),
    ),
)
def test_one_number_beside_one_a_channel(counter: Counter, layout: torch.memory_format, size: int):
    x = torch.randn(3, 5, size, 6).contiguous(memory_format=layout)
    plain, fused = both_ways(lambda: A.LinComb([A.CosLU, nn.SiLU], num_parameters=5), x)
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(one, other)


def _odd(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    e = torch.exp(-x.abs())
    gate = torch.sigmoid(e * torch.tanh(a)) * torch.exp(a)
    return gate * torch.sin(b * x) + torch.log1p(e) * torch.erf(b) + torch.log1p(x.abs() * a.abs())


class OddActivation(A.Activation):
    """Elementary functions of parameters, of x and of each other."""

    def __init__(self, num_parameters: int = 1) -> None:
        super().__init__(num_parameters)
        self.a, self.b = self.learned("a", 0.7), self.learned("b", 1.3)

    def expression(self) -> fusion.Expression:
        return fusion.Expression(_odd, (self.a, self.b))


@pytest.mark.slow
@pytest.mark.parametrize("num_parameters", [1, 5])
def test_shortcuts_in_any_formula(num_parameters: int, inductor: None):
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(3, 5, 4, 6).contiguous(memory_format=layout)
        plain, fused = both_ways(lambda: OddActivation(num_parameters), x)
        for one, other in zip(plain, fused, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)


def _bounded(x: Tensor, a: Tensor, end: int) -> Tensor:
    within, gate = x.clamp(-1000, 1000), torch.sigmoid((a * x).clamp(-1000, 1000))
    steep = torch.tanh(within) + torch.exp((-x * x).clamp(min=-2000))
    erf = torch.erf(torch.exp(x.clamp(max=3))) - torch.erf(a * x)
    near = torch.logical_and(x >= -end, x <= end)
    inner = torch.where(near, torch.log1p(torch.exp(x.clamp(max=88.6))), a)
    outer = torch.expm1(x.clamp(max=1).clamp(min=-1000)) * torch.tanh(x > 0)
    return x * gate + a * within + steep * erf + inner + outer


class BoundedActivation(A.Activation):
    """Bounds that a kernel has built in, and bounds that it has not."""

    def __init__(self) -> None:
        super().__init__()
        self.a = self.learned("a", 0.7)

    def expression(self) -> fusion.Expression:
        return fusion.Expression(_bounded, (self.a,), (89,))


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16], ids=str
)
def test_bounds_in_a_formula(dtype: torch.dtype, inductor: None):
    far = torch.tensor([1e-3, 0.5, 1, 3, 15, 88.5, 90, 999, 1001, 1e5, 1e18, 1e30])
    x = torch.cat([far, -far, torch.zeros(1)]).to(dtype)
    rtol, atol = (2e-6, 2e-6) if dtype == torch.float32 else (8e-3, 2e-3)
    for one, other in zip(*both_ways(BoundedActivation, x), strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def test_long_sums_are_exact(inductor: None):
    n = 3_000_000
    x = torch.full((n,), 0.7)
    grad = torch.linspace(0.5, 1, n)
    module = A.DELU()
    module(x.requires_grad_()).backward(grad)
    assert module.n.grad is not None
    true = (grad.double() * x.detach().double()).sum()
    assert abs(module.n.grad.item() - true.item()) < 1e-6 * true.item()


def test_whole_model_compile_and_export_see_the_plain_formula(counter: Counter):
    model = nn.Sequential(nn.Linear(4, 4), A.CosLU(), nn.Linear(4, 2), A.LinComb())
    x = torch.randn(6, 4)
    y = model(x)
    fused = counter.ran
    assert fused == 2
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), y)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), y)
    assert any("cos" in str(node.target) for node in exported.graph.nodes)
    assert counter.ran == fused


def test_plain_where_something_looks_at_operations(counter: Counter):
    module, x = A.CosLU(), torch.randn(3, 4)
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    y = module(x)
    assert counter.ran == 1
    with FlopCounterMode(display=False):
        torch.testing.assert_close(module(x), y)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert module(x).shape == x.shape
    torch.testing.assert_close(torch.func.vmap(module)(x), y)
    torch.func.jacrev(module)(x)
    torch.func.jvp(module, (x,), (x,))
    module(nn.Parameter(x))
    copy.deepcopy(module).to("meta")(x.to("meta"))
    assert A.CosLU()(torch.randn(0, 4)).shape == (0, 4)
    assert counter.ran == 1


def test_copies_and_pickles_are_fused_too(counter: Counter):
    module, x = A.CosLU(0.4), torch.randn(3, 4)
    y = module(x)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), y)
    assert counter.ran == 3
    assert counter.compiled == 1


@pytest.mark.parametrize("case", [c for c in FUSED if c.scalar][::6], ids=str)
@pytest.mark.parametrize("compiled", [True, False])
def test_second_derivatives_are_those_of_the_formula(
    case: Case, compiled: bool, counter: Counter, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    found = []
    for kernels in (True, False):
        with fused(compiled and kernels):
            if not kernels:
                monkeypatch.setattr(blocks, "BLOCK", 10**6)
            module = case.make().double()
            x = numbers(case, case.shape).requires_grad_()
            of = [x, *module.parameters()]
            y = module(x)
            assert kernels == ("_Fused" in type(y.grad_fn).__name__)
            first = torch.autograd.grad((y**2).sum(), of, create_graph=True, materialize_grads=True)
            total = sum((each.sin().sum() for each in first), torch.zeros(()))
            found.append(torch.autograd.grad(total, of, materialize_grads=True))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [A.CosLU, A.AGLU, A.DiTAC, A.BSpline, A.FReLU])
def test_gradients_of_gradients_where_a_function_is_used_twice(
    kind: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    module, x = kind().double(), torch.randn(40, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for each in module.parameters():
            each.add_(0.1 * torch.rand_like(each))
    of = [x, *module.parameters()]
    first, again = (
        torch.autograd.grad(module(module(x)).square().sum(), of, create_graph=graph)
        for graph in (False, True)
    )
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other)
    y = module(module(x)).view(4, -1).sum(1)
    rows = [torch.autograd.grad(each, of, retain_graph=True) for each in y]
    together = torch.autograd.grad(y, of, torch.eye(4).double(), is_grads_batched=True)
    for number, whole in enumerate(together):
        torch.testing.assert_close(whole, torch.stack([row[number] for row in rows]))


def test_the_output_can_be_changed_in_place(counter: Counter):
    x = torch.randn(3, 4, requires_grad=True)
    y = A.CosLU()(x)
    y += 1
    y.relu_().sum().backward()
    assert x.grad is not None


def test_fusion_belongs_to_the_module(counter: Counter):
    x = torch.randn(3, 4)
    with fused(False):  # as without the fixture
        first, second = (nn.Sequential(A.CosLU(), A.LinComb([A.DELU])) for _ in range(2))
        assert A.fuse(first) == 3
        first(x)
        assert counter.ran == 2
        second(x)
        A.CosLU()(x)
        assert counter.ran == 2
        for twin in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
            twin(x)
        assert counter.ran == 6
        A.fuse(first, on=False)
        first(x)
        assert counter.ran == 6
    assert "fused" not in first.state_dict()


def test_without_a_compiler_plain_and_said_once(monkeypatch: pytest.MonkeyPatch):
    from activations.fusion import lowering

    monkeypatch.setattr(fusion, "_PLAIN", set())
    # no kernel comes from a cache
    monkeypatch.setattr(lowering.Shortcuts, "uuid", lambda self: os.urandom(8))
    fusion._kernel.cache_clear()
    x = torch.randn(3, 4)
    y, z = A.CosLU()(x), A.DELU()(x)
    expected = pytest.warns(
        UserWarning, match=r"on cpu stay plain.*apt install g\+\+.*`compile: off`"
    )
    without = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})  # pyright: ignore[reportAttributeAccessIssue]
    with without, fused(), expected as said:
        found = [A.CosLU()(x), A.CosLU()(x), A.DELU()(x)]
    assert sum("stay plain" in str(each.message) for each in said) == 1
    assert all(map(torch.equal, found, (y, y, z)))
    fusion._kernel.cache_clear()


def _uncompilable(x: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return x.sin()


class Uncompilable(A.Activation):
    """A formula that cannot be compiled whole."""

    def expression(self) -> fusion.Expression:
        return fusion.Expression(_uncompilable)


def test_what_cannot_be_compiled_stays_plain_and_is_said_once(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fusion, "_PLAIN", set())
    x = torch.randn(3, 4)
    with pytest.warns(UserWarning, match="_uncompilable stay plain.*torch.compile failed") as said:
        found = [Uncompilable()(x), Uncompilable()(x)]
    assert len(said) == 1
    assert all(torch.equal(y, x.sin()) for y in found)
    A.CosLU()(x)
    assert counter.ran == 1


def _sometimes_uncompilable(x: Tensor, compiles: bool) -> Tensor:
    return x.cos() if compiles else _uncompilable(x)


class SometimesUncompilable(A.Activation):
    """A formula whose constants decide whether it can be compiled, as a mixture's members do."""

    def __init__(self, compiles: bool) -> None:
        super().__init__()
        self.compiles = compiles

    def expression(self) -> fusion.Expression:
        return fusion.Expression(_sometimes_uncompilable, (), (self.compiles,))


def test_one_kind_that_cannot_be_compiled_leaves_the_others_fused(counter: Counter):
    x = torch.randn(3, 4)
    with pytest.warns(UserWarning, match="stay plain"):
        torch.testing.assert_close(SometimesUncompilable(False)(x), x.sin())
    assert counter.ran == 0
    torch.testing.assert_close(SometimesUncompilable(True)(x), x.cos())
    assert counter.ran == 1


def test_what_torch_no_longer_has_is_said_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch._C, "_len_torch_dispatch_stack")
    monkeypatch.setattr(fusion, "_PLAIN", set())
    x = torch.randn(3, 4)
    with fused(), pytest.warns(UserWarning, match="stay plain.*_len_torch_dispatch_stack") as said:
        found = [A.CosLU()(x), A.CosLU()(x)]
    assert len(said) == 1
    assert torch.equal(*found)


def test_a_subclass_with_its_own_function_is_not_fused_as_its_parent(counter: Counter):
    class Twice(A.CosLU):
        def function(self, x: Tensor) -> Tensor:
            return 2 * x

    x = torch.randn(3, 4)
    assert torch.equal(Twice()(x), 2 * x)
    assert counter.ran == 0


class Odd(nn.Module):
    """A member that nobody knows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


@pytest.mark.parametrize("kind", [A.LinComb, A.NormLinComb])
def test_mixtures_are_one_kernel(kind: type[A.LinComb], counter: Counter):
    from activations.functions.lincomb import _TORCH

    x = torch.randn(4, 3, 5)
    members = [*_TORCH, nn.PReLU, A.CosLU, A.Fourier, lambda: A.EELU(2)]
    mixture = kind(members, [0.1 * k - 0.7 for k in range(len(members))])
    y = mixture(x)
    assert counter.ran == 1
    with fused(False):
        torch.testing.assert_close(y, mixture(x))
    per_channel = kind([lambda: nn.PReLU(3), lambda: A.CosLU(num_parameters=3)], num_parameters=3)
    y = per_channel(x)
    assert counter.ran == 2
    with fused(False):
        torch.testing.assert_close(y, per_channel(x))


@pytest.mark.parametrize(
    "members",
    [[Odd], [lambda: A.LSLU(3), nn.ReLU], [lambda: A.CosLU(num_parameters=3)], [A.BSpline]],
)
def test_mixtures_of_other_members_stay_right(members: list[Any], counter: Counter):
    mixture = A.LinComb(members).eval()
    x = torch.randn(2, 3, 5, 4)
    y = mixture(x)
    with fused(False):
        torch.testing.assert_close(y, mixture(x))


TWO_PROCESSES = """
import torch, torch.distributed as dist, torch.multiprocessing as mp
from activations import CosLU, fuse
from activations.fusion import blocks
from activations.fusion import kernel as fusion

def work(rank, port):
    fusion._BACKEND = "aot_eager"
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), CosLU(num_parameters=4))
    fuse(model)
    twin = torch.nn.parallel.DistributedDataParallel(model)
    x = torch.randn(8, 3)
    twin(x[rank * 4 : rank * 4 + 4]).sum().backward()
    shared = model[1].alpha.grad.clone()
    model.zero_grad()
    (model(x).sum() / 2).backward()
    torch.testing.assert_close(shared, model[1].alpha.grad)
    dist.destroy_process_group()

if __name__ == "__main__":
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(work, (port,), nprocs=2)
    print("same gradients")
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert "same gradients" in done.stdout, done.stderr[-2000:]


def test_vectors_are_copied_whole_where_they_have_512_bits(monkeypatch: pytest.MonkeyPatch):
    """A look at the flag alone: what it saves is measured by `python -m bench activations`."""
    flag = "cpp.enable_floating_point_contract_flag"
    for capability, expected in (("AVX512", "fast -mprefer-vector-width=512"), ("AVX2", "fast")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        assert fusion._options("cpu", False, True)[flag] == expected
