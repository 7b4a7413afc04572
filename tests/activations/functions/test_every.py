"""What every activation keeps, row by row of tests/cases.py."""

import copy
import inspect
import io
import pickle
import re
import reprlib
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import activations as A
from activations.groups import learned_values
from tests.cases import CASES, Case, variants_later

each = pytest.mark.parametrize("case", CASES, ids=str)
each_per_channel = pytest.mark.parametrize(
    "case", [case for case in CASES if case.per_channel], ids=str
)
each_but_variants = pytest.mark.parametrize("case", variants_later(CASES), ids=str)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["cpu", *([GPU] if torch.cuda.is_available() else [])]


def sample(case: Case, seed: int = 1) -> torch.Tensor:
    """Numbers on both sides of 0, none within 0.01 of a kink."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(case.shape, generator=generator, dtype=torch.float64)
    for kink in case.kinks:
        x = torch.where((x - kink).abs() < 0.01, kink + 0.02, x)
    return x


@each
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_is_the_formula(case: Case, dtype: torch.dtype, device: str):
    module = case.make().to(device)
    if dtype == torch.float64 or not case.scalar:  # a convolution's weights have the input's dtype
        module.to(dtype)
    x = sample(case).to(device, dtype)
    y = module(x)
    assert y.dtype == dtype
    value, scale = case.expected(module.cpu(), x.double().cpu().numpy())
    error = np.abs(y.detach().double().cpu().numpy() - value)
    kind = torch.finfo(dtype)
    bound = 4 * kind.eps * scale + kind.tiny * kind.eps + case.oracle_error
    assert (error <= bound).all(), (error / scale).max()


@each
@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=8))
def test_value_for_any_input(case: Case, numbers: list[float]):
    module = case.make()
    size = int(np.prod(case.shape))
    x = torch.tensor(numbers).repeat(size)[:size].view(case.shape)
    value, scale = case.expected(module, x.numpy())
    error = np.abs(module(x).detach().numpy() - value)
    assert (error <= 4 * torch.finfo(x.dtype).eps * scale + 1e-37 + case.oracle_error).all()


@each_but_variants
def test_gradients(case: Case):
    module = case.make().double()
    names = [name for name, _ in module.named_parameters()]

    def run(x, *parameters):
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, state, (x,))

    x = sample(case).requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in module.parameters()]
    assert torch.autograd.gradcheck(run, (x, *parameters))


@each
def test_shape_dtype_layout_are_kept_and_the_input_untouched(case: Case):
    module = case.make()
    signals = case.arguments.get("dims") == 1  # whose inputs have no such layout
    shape = case.shape if signals else (2, case.shape[1], 6, 5)
    for memory_format in (torch.contiguous_format, torch.channels_last)[: 1 if signals else 2]:
        x = torch.randn(shape).contiguous(memory_format=memory_format)
        before = x.clone()
        for autocast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y = module(x)
            assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())
        assert torch.equal(x, before)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.randn(shape).bfloat16()).dtype == torch.bfloat16


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_finite_up_to_the_largest_numbers(case: Case, dtype: torch.dtype):
    module = case.make().to(dtype)
    largest = case.largest(dtype) if case.largest else torch.finfo(dtype).max
    # a slope above 1 leaves the dtype's range below its end; a convolution, a mean or a square earlier
    largest = largest / 16 if case.scalar else 100.0
    numbers = [0.0, torch.finfo(dtype).tiny, 1.0, 10.0, min(100.0, largest), largest]
    if case.scalar and case.to_the_end and dtype != torch.float64:
        numbers.append(torch.finfo(dtype).max)  # where the true value still fits
    for number in (sign * number for number in numbers for sign in (1, -1)):
        if abs(number) > largest:
            with np.errstate(all="ignore"):
                true, _ = case.expected(module, np.full(case.shape, number))
            if not (np.abs(true) <= torch.finfo(dtype).max).all():
                continue
        x = torch.full(case.shape, number, dtype=dtype, requires_grad=True)
        y = module(x)
        assert y.isfinite().all(), number
        (y * (1 / (64 * y.numel()))).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all(), number
        for name, parameter in A.shape_parameters(module).items():
            if parameter.grad is None:
                assert name.startswith("members"), name
                continue
            assert parameter.grad.isfinite().all(), (number, name)


@each
def test_nan_stays_nan(case: Case):
    x = torch.full(case.shape, torch.nan)
    assert case.make()(x).isnan().all()


@each
def test_state_copies_and_pickles(case: Case):
    module, x = case.make(), sample(case).float()
    y = module(x)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = case.kind(**case.arguments).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for twin in (fresh, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), y)


@each_but_variants
def test_compiles_and_exports_whole(case: Case):
    torch._dynamo.reset()  # all rows share one forward, whose variants are counted
    module, x = case.make(), sample(case).float()
    y = module(x)
    torch.testing.assert_close(
        torch.compile(module, fullgraph=True, backend="aot_eager")(x), y, rtol=1e-6, atol=1e-6
    )
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x), y, rtol=1e-6, atol=1e-6)


@each
def test_fx_records_one_step(case: Case):
    network = nn.Sequential(nn.Identity(), case.make())
    traced, x = torch.fx.symbolic_trace(network), sample(case).float()
    assert torch.equal(traced(x), network(x))
    assert [node.target for node in traced.graph.nodes] == ["input", "0", "1", "output"]


@each
def test_tracing_and_function_transforms(case: Case):
    module, x = case.make(), sample(case).float()
    y = module(x)
    state = dict(module.named_parameters())

    def run(state, x):
        return torch.func.functional_call(module, state, (x,))

    torch.testing.assert_close(torch.vmap(run, (None, 0))(state, x[None])[0], y)
    torch.func.grad(lambda state: run(state, x).sum())(state)
    if case.scalar and not case.kind.channels:
        alone = torch.vmap(torch.func.grad(lambda x: run(state, x)))(x.flatten())
        whole = torch.func.grad(lambda x: run(state, x).sum())(x)
        torch.testing.assert_close(alone, whole.flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and sizes become constants
        traced = torch.jit.trace(module, (x,), check_trace=False)
        torch.testing.assert_close(traced(x), y)  # pyright: ignore[reportCallIssue]
        with pytest.raises(
            TypeError, match=f"cannot compile {case.kind.__name__}: use torch.export"
        ):
            torch.jit.script(module)


@each
def test_device_and_dtype(case: Case):
    torch.manual_seed(0)
    start = case.kind(**case.arguments).state_dict()
    placed = case.kind(**case.arguments, device="meta", dtype=torch.float64)
    with torch.device("meta"):
        made = case.kind(**case.arguments)
    for name, value in placed.state_dict().items():
        assert value.is_meta
        assert made.state_dict()[name].is_meta
        assert value.dtype == (torch.float64 if value.is_floating_point() else torch.int64)
    fresh = made.to_empty(device="cpu")
    with torch.no_grad():
        for value in fresh.state_dict().values():
            value.fill_(7)
    torch.manual_seed(0)
    fresh.reset_parameters()
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, start[name]), name
    assert type(nn.utils.skip_init(case.kind, **case.arguments)) is case.kind


@each
def test_inputs_of_all_kinds(case: Case):
    module, x = case.make(), sample(case).float()
    y = module(x)
    with torch.inference_mode():
        assert torch.equal(module(x), y)
    module.requires_grad_(False)
    moved = torch.stack([x, x], -1)[..., 0]  # not contiguous
    torch.testing.assert_close(module(moved), y)
    assert module(x[:0]).shape == x[:0].shape
    if case.scalar:
        torch.testing.assert_close(module(x.flatten()[0]), y.flatten()[0])
    torch.use_deterministic_algorithms(True)
    try:
        case.make()(x.requires_grad_()).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@each
def test_inplace_is_accepted_and_ignored(case: Case):
    module, x = case.make(inplace=True), sample(case).float()
    before = x.clone()
    module(x)
    assert torch.equal(x, before)


@each
def test_repr_shows_the_current_values(case: Case):
    module = case.make()
    shown = [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", module.extra_repr())]
    for values in module.shape_values().values():
        for value in values.mean(0).tolist():
            assert any(abs(value - number) <= 1e-3 * abs(value) for number in shown)


@pytest.mark.parametrize("case", [case for case in CASES if case.kind.least], ids=str)
def test_values_below_a_bound_are_read_as_the_function_uses_them(case: Case):
    module, x = case.make(), sample(case)
    with torch.no_grad():
        for name, bound in case.kind.least.items():
            getattr(module, name).fill_(bound - 0.7)
    read, plain = learned_values(module), case.make()
    for name, bound in case.kind.least.items():
        torch.testing.assert_close(read[name], torch.full_like(read[name], bound))
        assert f"{name}={bound:g}" in module.extra_repr()
    plain.load_state_dict({**plain.state_dict(), **read})  # another one, made with what is read
    torch.testing.assert_close(plain(x), module(x))
    assert module(x).isfinite().all()


@each
def test_other_inputs_are_refused(case: Case):
    module, x = case.make(), torch.ones(case.shape)
    others: list[Any] = [[1.0, 2.0], None, 1.0, x.numpy(), x.to_sparse()]
    others += [x.to(d) for d in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)]
    for other in others:
        got = str(other.dtype) if isinstance(other, torch.Tensor) else reprlib.repr(other)[:9]
        wanted = f"{case.kind.__name__} needs a dense tensor of float32.*{re.escape(got)}.*convert"
        with pytest.raises(TypeError, match=wanted):
            module(other)
    if module.channels:
        for shape in ((2, 5, 6, 6), (2, 5, 6), (2,)):
            wanted = rf"{case.kind.__name__} has channels=\d and needs .*{re.escape(str(shape))}"
            with pytest.raises(ValueError, match=wanted):
                module(torch.ones(shape))


@each
def test_arguments_must_be_of_their_kind(case: Case):
    others: list[Any] = [float("nan"), True, "x", b"x", [1.0], 1j, torch.ones(1), 10**400]
    for name, value in (case.arguments | {"channel_dim": 1, "num_parameters": 1}).items():
        known = case.per_channel or name in case.arguments
        for other in others if known and isinstance(value, int | float | str) else ():
            if isinstance(value, bool | int) and other in (True, 10**400):
                continue  # a value of this kind, or a size that memory does not hold
            if name == "formula" and other == "x":
                continue  # it is one
            with pytest.raises(ValueError, match=f"{name} must .*, got {re.escape(repr(other))}"):
                case.kind(**case.arguments | {name: other})


@each_per_channel
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_one_value_a_channel(case: Case, channel_dim: int):
    module = case.make(num_parameters=4, channel_dim=channel_dim)
    for shape in ((3, 4), (3, 4, 5, 4), (2, 4, 4)):
        x = torch.randn(shape)
        value, scale = case.expected(module, x.numpy())
        error = np.abs(module(x).detach().numpy() - value)
        assert (error <= 4 * torch.finfo(x.dtype).eps * scale + case.oracle_error).all()
    for rank, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        x = torch.randn((2, 4, 4, 4, 4)[:rank]).contiguous(memory_format=memory_format)
        assert module(x).stride() == x.stride()
    for shape in ((3, 3), (4,)[:channel_dim]):
        with pytest.raises(ValueError, match=r"num_parameters=4 and needs 4 channels on axis.*\("):
            module(torch.randn(shape))
    with pytest.raises(ValueError, match="num_parameters must be an integer >= 1, got 0"):
        case.kind(num_parameters=0)


@each
def test_default_arguments_suffice(case: Case):
    assert isinstance(case.kind(), nn.Module)


def test_every_public_activation_has_its_row_and_its_docstring():
    public = {getattr(A, name) for name in A.__all__}
    kinds = {
        kind
        for kind in public
        if isinstance(kind, type) and issubclass(kind, A.Activation) and kind is not A.Activation
    }
    assert kinds == {case.kind for case in CASES}
    for kind in kinds:
        text = inspect.getdoc(kind) or ""
        sections = ["Args", "Shape", "Initialisation", "Raises", "Reference"]
        sections += ["Attributes"] * bool(A.shape_parameters(kind()))
        for section in sections:  # as documentation tools read them
            assert f"\n{section}:\n    " in text, (kind.__name__, section)
        assert ".. math::" in text
        assert "Deviation from it:" in " ".join(text.split())
        change = text.split("\n")[0].rstrip(".").rpartition(". ")[2]
        assert change in ("Learned", "Scheduled", "Learned, scheduled", "Fixed"), kind.__name__


def test_sides_of_the_kink_are_the_papers():
    module = A.DSReLU()
    x = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([1.0, 1.0, module.slope.item()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_far_inputs_have_a_gradient_at_the_default_parameters(dtype: torch.dtype):
    """Where a term of the value is 0 times what overflows, its gradient must not be NaN."""
    far = torch.finfo(dtype).max
    x = torch.tensor([-far, -1e19, -7.0, 7.0, 1e19, far], dtype=dtype, requires_grad=True)
    y = A.EvenCubicReLU()(x)
    y.sum().backward()
    assert torch.equal(y, x.relu())
    assert x.grad is not None
    assert torch.equal(x.grad, (x > 0).to(dtype))
