"""One fused kernel each way from a plain formula: the price of a built-in activation.

`with fuse_kernels(): ...` or `fuse_kernels(True)` switches it on, for every activation of the
process. A formula is then compiled once, lazily, and its kernels are shared by all modules: forward
and backward read the input and the gradient once, and the input alone is kept for backward.
"""

import functools
import types
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

Leaves = list[Tensor]

_BACKEND = "inductor"
_ON = False

# Inductor would store what two results share, as large as the input; here it is computed again
_KEEP_NOTHING = {
    "realize_reads_threshold": 10**6,
    "realize_opcount_threshold": 10**6,
    "realize_acc_reads_threshold": 10**6,
}
# and the gradients of `x` and of the parameters come from one walk over (groups, channels, block)
_ONE_WALK = _KEEP_NOTHING | {"pick_loop_orders": False}
_BLOCK, _ROW = 256, 4096  # elements that one partial sum takes in, channels last and first


class Expression(NamedTuple):
    """A formula and what it is called with.

    Attributes:
        formula: called as `formula(x, *values, *tables, *constants)`, elementwise in x.
        values: 0-dim tensors; (P,), which arrive shaped to broadcast against x; or (P, k), which
            arrive as a list of k such tensors. P is 1 or the number of channels.
        constants: numbers and other hashable things; each set of them is compiled by itself.
        tables: tensors that arrive as they are; the formula then takes `channel_dim` too.
    """

    formula: Callable[..., Tensor]
    values: tuple[Tensor, ...] = ()
    constants: tuple[Hashable, ...] = ()
    tables: tuple[Tensor, ...] = ()


class fuse_kernels:  # noqa: N801, a statement and a context, as torch.no_grad
    """Compute activations by fused kernels, or plainly, from here on or within a `with`.

    Plain is the default: compiling takes about 4 s a function, which short runs never win back.
    Fused or plain, the values agree to the rounding of the dtype. Always plain: whole-model
    `torch.compile`, `torch.export`, tracing, `torch.func`, tensor subclasses, devices other than
    CPU and CUDA. Without a compiler everything stays plain, and a warning says so once.

    Args:
        on: whether to fuse.
    """

    def __init__(self, on: bool = True) -> None:
        global _ON  # noqa: PLW0603
        self._before, _ON = _ON, on

    def __enter__(self) -> None:
        """Nothing is left to do."""

    def __exit__(self, *error: object) -> None:
        """Go back to what was."""
        global _ON  # noqa: PLW0603
        _ON = self._before


def fusible(x: Tensor) -> bool:
    """Whether fusion is on and nothing is looking at single operations on `x`."""
    if torch.compiler.is_compiling() or not _ON or type(x) is not Tensor or x.numel() == 0:
        return False
    watched = (
        torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
    )
    return not watched and x.device.type in ("cpu", "cuda") and _has_compiler(x.device.type)


@functools.cache
def _has_compiler(device: str) -> bool:
    if _BACKEND != "inductor":
        return True
    if device == "cuda":
        from torch.utils._triton import has_triton

        found, remedy = has_triton(), "install triton (pip install triton)"
    else:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            found = bool(get_cpp_compiler())
        except InvalidCxxCompiler:
            found = False
        remedy = "install g++ (apt install g++), or name a compiler in the variable CXX"
    if not found:
        warnings.warn(
            f"activations stay plain: torch.compile has no compiler for {device} here. To fuse "
            f"them {remedy}; to be rid of this warning choose `compile: off`",
            stacklevel=2,
        )
    return found


def fused(expression: Expression, x: Tensor, num_parameters: int, channel_dim: int) -> Tensor:
    """`expression` of `x` by its kernels; dtype, shape and memory order of `x` are kept."""
    per_channel = num_parameters > 1
    shape, stride = _arrange(x, channel_dim if per_channel else None)
    if not shape:
        x = x.contiguous()
        shape, stride = _arrange(x, channel_dim if per_channel else None)
    formula, values, constants, tables = expression
    key = (formula, constants, len(tables), per_channel, x.device.type)
    result: Any = _Fused.apply(key, (shape, stride), x, *values, *tables)
    return result


def _arrange(x: Tensor, channel_dim: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides of a view of all of `x`; empty where its elements are not packed.

    (numel,) without channels. Else (groups, C, block), whatever the layout: a parameter's gradient
    is summed over the block within the kernel's loop, then over the groups.
    """
    packed = x.is_contiguous()
    if not packed:
        expected = 1
        for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
            if size > 1 and stride != expected:
                return (), ()
            expected *= size
    if channel_dim is None:
        return (x.numel(),), (1,)
    channels = x.shape[channel_dim]
    inner = x.stride(channel_dim)
    outer = x.numel() // (channels * inner)
    if inner == 1:
        block = _divisor(outer, _BLOCK)
        return (outer // block, channels, block), (channels * block, 1, channels)
    row = inner if inner <= _ROW else _divisor(inner, _ROW)
    return (outer, x.numel() // (outer * row), row), (channels * inner, row, 1)


@functools.cache
def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` up to `most` and below `number`, or `number` if prime."""
    return next((d for d in range(min(most, number // 2), 1, -1) if number % d == 0), number)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, key: tuple, view: tuple, x: Tensor, *values: Tensor) -> Tensor:
        ctx.key, ctx.view = key, view
        ctx.save_for_backward(x, *values)
        y = _kernel(*key, None)(_flat(x, view), *_repeated(values, key, view))
        return y.as_strided(x.shape, x.stride()).data

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a fused activation has no second derivative; for create_graph=True compute it "
                "plainly: `compile: off`, or activations.compile.fuse_kernels(False)"
            )
        (grad,) = grads
        x, *values = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        if grad.stride() != x.stride():
            grad = torch.empty_like(x).copy_(grad)
        kernel = _kernel(*ctx.key, needed)
        inputs = _flat(x, ctx.view), _flat(grad, ctx.view), *_repeated(values, ctx.key, ctx.view)
        found = iter(kernel(*inputs))
        result = [next(found) if need else None for need in needed]
        if result[0] is not None:
            result[0] = result[0].as_strided(x.shape, x.stride()).data
        for k, value in enumerate(values, start=1):
            if (sums := result[k]) is not None:
                # rows longer than _ROW were split: several sums a channel
                sums = sums if sums.shape == value.shape else _folded(sums, value)
                result[k] = sums.to(value.dtype)
        return None, None, *result


def _flat(x: Tensor, view: tuple) -> Tensor:
    # .data: of a view Dynamo would compile the base's layout in
    return x.as_strided(*view, x.storage_offset()).data


def _repeated(values: Sequence[Tensor], key: tuple, view: tuple) -> Leaves:
    """Values with a row for each of the view's channels, base-less for Dynamo."""
    if not key[3]:
        return [value.data for value in values]
    rows = view[0][1]
    return [
        value.data.repeat_interleave(rows // len(value), 0)
        if value.dim() and 1 < len(value) < rows
        else value.data
        for value in values
    ]


def _folded(sums: Tensor, value: Tensor) -> Tensor:
    return sums.view(len(value), -1, *value.shape[1:]).sum(1)


@functools.cache
def _kernel(
    formula: Callable[..., Tensor],
    constants: tuple,
    tables: int,
    per_channel: bool,
    device: str,
    needed: tuple[bool, ...] | None,
) -> Callable[..., Any]:
    """The forward (needed is None) or the backward of `formula`, compiled at its first call."""

    def call(x: Tensor, values: Sequence[Leaves], whole: Sequence[Tensor]) -> Tensor:
        listed = [columns if more else columns[0] for columns, more in values]
        extra = {"channel_dim": 1} if whole else {}
        y = formula(_wide(x), *listed, *whole, *constants, **extra)
        return y.to(x.dtype)

    def split(values: Sequence[Tensor], groups: int) -> list[tuple[Leaves, bool]]:
        return [_columns(_wide(value), groups, per_channel) for value in values]

    def forward(x: Tensor, *tensors: Tensor) -> Tensor:
        count = len(tensors) - tables
        return call(x, split(tensors[:count], 1), [_wide(table) for table in tensors[count:]])

    def backward(x: Tensor, grad: Tensor, *tensors: Tensor) -> Leaves:
        count = len(tensors) - tables
        values = split(tensors[:count], x.shape[0])
        leaves = [[x], *(columns for columns, _ in values)]
        leaves += [[_wide(table)] for table in tensors[count:]]
        assert needed is not None
        wanted = [leaf for group, need in zip(leaves, needed, strict=True) if need for leaf in group]

        def function(*chosen: Tensor) -> Tensor:
            rest = iter(chosen)
            now = [
                [next(rest) for _ in group] if need else group
                for group, need in zip(leaves, needed, strict=True)
            ]
            listed = [
                (group, more) for group, (_, more) in zip(now[1 : count + 1], values, strict=True)
            ]
            return call(now[0][0], listed, [group[0] for group in now[count + 1 :]])

        grads = iter(torch.func.vjp(function, *wanted)[1](grad))
        found = []
        for k, (group, need) in enumerate(zip(leaves, needed, strict=True)):
            if not need:
                continue
            parts = [next(grads) for _ in group]
            if 0 < k <= count:
                parts = [_summed(part, tensors[k - 1], per_channel) for part in parts]
                found.append(torch.stack(parts, -1) if values[k - 1][1] else parts[0])
            else:
                found.append(parts[0])
        return found

    options = _KEEP_NOTHING if needed is None or device == "cuda" else _ONE_WALK
    chosen = forward if needed is None else backward
    name = f"{getattr(formula, '__name__', 'activation')}_{chosen.__name__}"
    # Dynamo counts recompilations by code object: each kernel has its own
    chosen = types.FunctionType(
        chosen.__code__.replace(co_name=name), globals(), name, None, chosen.__closure__
    )
    return torch.compile(
        chosen,
        dynamic=True,
        fullgraph=True,
        recompile_limit=64,
        isolate_recompiles=True,
        backend=_BACKEND,
        options=options if _BACKEND == "inductor" else None,
    )


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _columns(value: Tensor, groups: int, per_channel: bool) -> tuple[Leaves, bool]:
    """The broadcastable tensors that `value` stands for, and whether they arrive as a list."""
    if value.dim() == 0:
        return [value], False
    several = value.dim() == 2
    columns = value.unbind(-1) if several else (value,)
    if not per_channel:
        return [column.view(()) for column in columns], several
    return [column[None, :, None].expand(groups, -1, 1) for column in columns], several


def _summed(grad: Tensor, value: Tensor, per_channel: bool) -> Tensor:
    if value.dim() == 0:
        return grad
    return grad.sum((0, 2)) if per_channel else grad.view(1)
