"""One fused kernel forward and one backward from a plain formula.

A formula is compiled once, at its first call, and its kernels are shared by all modules. Forward
and backward read the input and the gradient once, and only the input is kept for backward. Which
modules use them is their own setting: :func:`activations.fuse`.
"""

import functools
import types
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from activations.torch_private import (
    compile_once,
    is_intercepted,
    lacks_compiler,
    take_unchecked,
)

from .layout import View, view_of

_BACKEND = "inductor"
_PLAIN: set[Hashable] = set()  # devices without a compiler, formulas that did not compile
_REMEDIES = {
    "cpu": "Install a C++ compiler (apt install g++), or name one in the variable CXX. ",
    "cuda": "Install triton (pip install triton). ",
}

# Inductor would store what two results share, as large as the input; here it is computed again
_KEEP_NOTHING = {
    "realize_reads_threshold": 10**6,
    "realize_opcount_threshold": 10**6,
    "realize_acc_reads_threshold": 10**6,
}
# and the gradients of `x` and of the parameters come from one walk over (groups, channels, block)
_ONE_WALK = _KEEP_NOTHING | {"pick_loop_orders": False}


class Expression(NamedTuple):
    """A formula and what it is called with.

    Attributes:
        formula: called as `formula(x, *values, *tables, *constants)`, elementwise in x.
        values: 0-dim tensors; (P,), which arrive shaped to broadcast against x; or (P, k), which
            arrive as a list of k such tensors. P is 1 or the number of channels.
        constants: numbers and other hashable things; each set of them is compiled by itself.
        tables: tensors that arrive as they are; the formula then takes `channel_dim` too, and
            `take(table, indices)` for look-ups with int32 indices that are in range.
    """

    formula: Callable[..., Tensor]
    values: tuple[Tensor, ...] = ()
    constants: tuple[Hashable, ...] = ()
    tables: tuple[Tensor, ...] = ()


def fusible(x: Tensor) -> bool:
    """Whether `x` can go through a kernel: nothing looks at single operations on it."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.numel() == 0:
        return False
    if x.device.type not in ("cpu", "cuda") or x.device.type in _PLAIN:
        return False
    try:
        return not is_intercepted()
    except AttributeError as error:
        _give_up(x.device.type, error)
        return False


def evaluate(
    expression: Expression, x: Tensor, num_parameters: int, channel_dim: int
) -> Tensor | None:
    """`expression` of `x` by its kernels; dtype, shape and memory order of `x` are kept.

    Returns:
        The result, or None where no kernel could be compiled, which a warning has said once.
    """
    formula, values, constants, tables = expression
    if formula in _PLAIN:
        return None
    axis = channel_dim if num_parameters > 1 else None
    view = view_of(x, axis, bool(tables))
    if view is None:
        x = x.contiguous()
        view = view_of(x, axis, bool(tables))
    assert view is not None
    half = x.dtype in (torch.bfloat16, torch.float16)
    sizes = len(values), len(tables), len(view.sizes)
    kernel = functools.partial(_kernel, formula, constants, *sizes, x.device.type, half)
    try:
        result: Any = _Fused.apply(kernel, view, len(values), x, *values, *tables)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _give_up(x.device.type if lacks_compiler(error) else formula, error)
        return None
    return result


def _give_up(what: Hashable, error: Exception) -> None:
    """Compute `what`, a device or a formula, plainly from now on, and say so."""
    _PLAIN.add(what)
    name = f"activations on {what}" if isinstance(what, str) else getattr(what, "__name__", what)
    remedy = _REMEDIES.get(str(what), "") if lacks_compiler(error) else ""
    warnings.warn(
        f"{name} stay plain, several times slower than fused, since torch.compile failed "
        f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). "
        f"{remedy}To compute them plainly without this warning choose "
        "`compile: off`, or do not call activations.fuse",
        stacklevel=4,
    )


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: Callable, view: View, number: int, x: Tensor, *values: Tensor
    ) -> Tensor:
        ctx.kernel, ctx.view, ctx.number = kernel, view, number
        ctx.save_for_backward(x, *values)
        y = kernel(None)(view.of(x), *_arguments(view, number, values))
        return y.as_strided(x.shape, x.stride()).data

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a fused activation has no second derivative; for create_graph=True compute it "
                "plainly: `compile: off`, or activations.fuse(model, on=False)"
            )
        (grad,) = grads
        x, *values = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if grad.stride() != x.stride():
            grad = torch.empty_like(x).copy_(grad)
        view, number = ctx.view, ctx.number
        inputs = view.of(x), view.of(grad), *_arguments(view, number, values)
        found = iter(ctx.kernel(needed)(*inputs))
        of_x, *rest = (next(found) if need else None for need in needed)
        if of_x is not None:
            of_x = of_x.as_strided(x.shape, x.stride()).data
        for k, value in enumerate(values[:number]):
            if rest[k] is not None:
                rest[k] = view.gather(rest[k], value)
        return None, None, None, of_x, *rest


def _arguments(view: View, number: int, values: Sequence[Tensor]) -> Iterator[Tensor]:
    """The first `number` tensors as `view` wants them, and the tables as they are."""
    for k, value in enumerate(values):
        yield view.broadcast(value) if k < number else value.data


@functools.cache
def _kernel(
    formula: Callable[..., Tensor],
    constants: tuple,
    number_of_values: int,
    number_of_tables: int,
    dims: int,
    device: str,
    half: bool,
    needed: tuple[bool, ...] | None,
) -> Callable[..., Any]:
    """The forward (needed is None) or the backward of `formula`, compiled at its first call."""
    options: dict[str, Any] = {"channel_dim": 1, "take": take_unchecked} if number_of_tables else {}
    mask = needed or ()
    is_value = [True] * number_of_values + [False] * number_of_tables

    def broadcast(tensors: Sequence[Tensor], x: Tensor, copies: bool) -> list[Tensor]:
        """Each value once for every partial sum of its gradient, in float32 or better."""
        found = []
        for tensor, value in zip(map(_wide, tensors), is_value, strict=True):
            if value and tensor.dim() and x.dim() == 1:
                tensor = tensor.view(tensor.shape[1:])
            elif value and tensor.dim() and x.dim() == 2:
                tensor = tensor[:, None]
            elif value and tensor.dim():
                groups, _, pieces, _ = x.shape if copies else (1, 1, 1, 1)
                channels = tensor[None, :, None, None]
                tensor = channels.expand(groups, -1, pieces, 1, *tensor.shape[1:])
            found.append(tensor)
        return found

    def call(x: Tensor, wide_tensors: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
        arguments = [
            wide.unbind(-1) if value and tensor.dim() == 2 else wide
            for wide, tensor, value in zip(wide_tensors, tensors, is_value, strict=True)
        ]
        return formula(_wide(x), *arguments, *constants, **options).to(x.dtype)

    def forward(x: Tensor, *tensors: Tensor) -> Tensor:
        return _laid_out(call(x, broadcast(tensors, x, False), tensors), x)

    def backward(x: Tensor, grad: Tensor, *tensors: Tensor) -> list[Tensor]:
        inputs = [x, *broadcast(tensors, x, True)]

        def function(*chosen: Tensor) -> Tensor:
            rest = iter(chosen)
            now = [next(rest) if need else i for i, need in zip(inputs, mask, strict=True)]
            return call(now[0], now[1:], tensors)

        wanted = [i for i, need in zip(inputs, mask, strict=True) if need]
        of_wanted = iter(torch.func.vjp(function, *wanted)[1](grad))
        found = []
        for k, need in enumerate(mask):
            if not need:
                continue
            grad = next(of_wanted)
            if k == 0:
                found.append(_laid_out(grad, x))
                continue
            tensor, value = tensors[k - 1], is_value[k - 1] and tensors[k - 1].dim() > 0
            if value and x.dim() == 4:
                grad = grad.sum((0, 2, 3))
            grad = grad.view(tensor.shape)
            found.append(grad if value and x.dim() == 2 else grad.to(tensor.dtype))
        return found

    chosen: Any = forward if needed is None else backward
    name = f"{getattr(formula, '__name__', 'activation')}_{chosen.__name__}"
    # Dynamo counts recompilations by code object: each kernel has its own
    chosen = types.FunctionType(
        chosen.__code__.replace(co_name=name), globals(), name, None, chosen.__closure__
    )
    settings = _options(device, half, needed is None) if _BACKEND == "inductor" else None
    return compile_once(chosen, limit=64, backend=_BACKEND, options=settings)


def _options(device: str, half: bool, forward: bool) -> dict[str, Any]:
    if device != "cpu":
        return _KEEP_NOTHING
    from .lowering import Shortcuts  # imports the compiler

    options = _KEEP_NOTHING if forward else _ONE_WALK
    contract = {"cpp.enable_floating_point_contract_flag": "fast"}  # a x + b is rounded once
    return options | contract | {"post_grad_custom_post_pass": Shortcuts(half)}


def _laid_out(y: Tensor, x: Tensor) -> Tensor:
    """`y` in the memory order of `x`, which a look-up, for one, does not keep."""
    return torch.empty_like(x).copy_(y)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
