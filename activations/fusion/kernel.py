"""One fused kernel forward and one backward from a plain formula.

A formula is compiled once, at its first call, and its kernels are shared by all modules. Forward
and backward read the input and the gradient once, and only the input is kept for backward. Which
modules use them is their own setting: :func:`activations.fuse`. Without compilation, the same
kernels run in blocks (`blocks.py`).
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
    is_batched,
    is_intercepted,
    lacks_compiler,
    take_unchecked,
)

from .blocks import Blocks, UntraceableError, worth_it
from .layout import View, packed, view_of

_BACKEND = "inductor"
_PLAIN: set[Hashable] = set()  # devices without a compiler, kinds that did not compile
_WHOLE: set[Hashable] = set()  # kinds of expressions that cannot be computed in blocks
_REMEDIES = {
    "cpu": "Install a C++ compiler (apt install g++), or name one in the variable CXX. ",
    "cuda": "Install triton (pip install triton). ",
}

# Inductor would store intermediate tensors of the input's size; computing them again is faster
_KEEP_NOTHING = {
    "realize_reads_threshold": 10**6,
    "realize_opcount_threshold": 10**6,
    "realize_acc_reads_threshold": 10**6,
}


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

    @property
    def kind(self) -> tuple[Callable[..., Tensor], tuple[Hashable, ...]]:
        """What is compiled: the formula and its constants. All mixtures share one formula."""
        return self.formula, self.constants


def fusible(x: Tensor, compiled: bool) -> bool:
    """Whether a kernel can compute `x`: nothing traces or intercepts the single operations."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.numel() == 0:
        return False
    compiled = compiled and x.device.type in ("cpu", "cuda") and x.device.type not in _PLAIN
    if not (compiled or worth_it(x)):
        return False
    try:
        return not is_intercepted()
    except AttributeError as error:
        _give_up(x.device.type, error)
        return False


def evaluate(
    expression: Expression,
    x: Tensor,
    num_parameters: int,
    channel_dim: int,
    plain: Callable[[Expression, Tensor], Tensor],
    compiled: bool,
) -> Tensor | None:
    """Compute `expression` for `x` by its kernels; keep dtype, shape and memory order of `x`.

    Args:
        expression: of the activation.
        x: that :func:`fusible` accepts.
        num_parameters: of the activation.
        channel_dim: of the activation.
        plain: computes an expression by torch's functions; for derivatives of derivatives.
        compiled: whether the kernels are compiled, or run in blocks.

    Returns:
        The result, or None if no kernel could be compiled; a warning says so once.
    """
    formula, values, constants, tables = expression
    compiled = compiled and expression.kind not in _PLAIN and x.device.type not in _PLAIN
    if not compiled and (expression.kind in _WHOLE or not worth_it(x)):
        return None
    if any(each.device != x.device for each in (*values, *tables)):
        return None  # torch says which
    x = packed(x)
    view = view_of(x, channel_dim if num_parameters > 1 else None, bool(tables))
    half = x.dtype in (torch.bfloat16, torch.float16)
    sums = compiled and x.device.type == "cpu" and values and not tables
    device = x.device.type if compiled else None
    kernel = functools.partial(_kernel, formula, constants, len(values), len(tables), device, half)
    call = _Call(kernel, view, view.in_rows() if sums else view, expression, plain)
    try:
        result: Any = _Fused.apply(call, x, *values, *tables)
    except KernelError as failed:
        error = failed.error
        if not compiled:
            _keep_whole(expression, error)
            return None
        _give_up(x.device.type if lacks_compiler(error) else expression, error)
        return evaluate(expression, x, num_parameters, channel_dim, plain, compiled=False)
    return result


def given_up(expression: Expression, device: str, *, compiled: bool) -> str:
    """What kept an expression from being compiled, or computed in blocks; empty if nothing did."""
    if compiled:
        return "did not compile" if {expression.kind, device} & _PLAIN else ""
    return "is not computed in blocks" if expression.kind in _WHOLE else ""


def _give_up(what: str | Expression, error: Exception) -> None:
    """Compute `what`, a device or a kind of expressions, plainly from now on, and say so."""
    device = isinstance(what, str)
    _PLAIN.add(what if device else what.kind)
    name = f"activations on {what}" if device else _name(what)
    remedy = _REMEDIES.get(what, "") if device and lacks_compiler(error) else ""
    warnings.warn(
        f"{name} stay plain, several times slower than fused, since torch.compile failed "
        f"({_first_line(error)}). {remedy}To compute them plainly without this warning choose "
        "`compile: off`, or do not call activations.fuse",
        stacklevel=4,
    )


def _keep_whole(what: Expression, error: Exception) -> None:
    """Compute this kind of expressions for whole tensors from now on, and say so."""
    _WHOLE.add(what.kind)
    warnings.warn(
        f"{_name(what)} is computed for whole tensors, which is slower "
        f"than in blocks ({_first_line(error)}). To do so without this warning override `function` "
        "instead of naming a `formula`",
        stacklevel=5,
    )


def _name(expression: Expression) -> str:
    return getattr(expression.formula, "__name__", str(expression.formula))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


class KernelError(RuntimeError):
    """A kernel cannot be made, or does not run."""

    def __init__(self, error: Exception) -> None:
        super().__init__(_first_line(error))
        self.error = error


class _Call(NamedTuple):
    """What a call of an activation needs for its gradient, besides its tensors."""

    kernel: Callable[[int, tuple[bool, ...] | None], Callable[..., Any]]
    view: View
    backward_view: View
    expression: Expression
    plain: Callable[[Expression, Tensor], Tensor]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, *values: Tensor) -> Tensor:
        ctx.call, ctx.strides = call, x.stride()
        ctx.save_for_backward(x, *values)
        view, number = call.view, len(call.expression.values)
        kernel = call.kernel(len(view.sizes), None)
        try:
            y = kernel(view.of(x), *_arguments(view, number, values))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise KernelError(error) from error
        return y.as_strided(x.shape, x.stride()).data

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        x, *values = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        kernel, _, view, expression, plain = ctx.call
        number = len(expression.values)
        again = torch.is_grad_enabled()  # create_graph=True
        if again or is_batched(grad) or expression.kind in _WHOLE:
            options = {"create_graph": again, "allow_unused": True}
            with torch.enable_grad():
                # x may come from these values, by an earlier call: they are no part of that one
                x, *values = (each.view_as(each) for each in (x, *values))
                expression = expression._replace(values=values[:number], tables=values[number:])
                y = plain(expression, x)
            of = [each for each, need in zip((x, *values), needed, strict=True) if need]
            found = iter(torch.autograd.grad(y, of, grad, **options))
            return None, *(next(found) if need else None for need in needed)
        if x.stride() != ctx.strides:  # a hook of saved tensors has laid it out anew
            x = x.new_empty_strided(x.shape, ctx.strides).copy_(x)
        if grad.stride() != x.stride():
            grad = torch.empty_like(x).copy_(grad)
        inputs = view.of(x), view.of(grad), *_arguments(view, number, values)
        try:
            found = iter(kernel(len(view.sizes), needed)(*inputs))
        except UntraceableError as error:
            _keep_whole(expression, error)
            return _Fused.backward(ctx, grad)
        of_x = next(found).as_strided(x.shape, x.stride()).data if needed[0] else None
        of_values = [
            view.gather(next(found), value) if need else None
            for value, need in zip(values, needed[1:], strict=True)
        ]
        return None, of_x, *of_values


def _arguments(view: View, number: int, values: Sequence[Tensor]) -> Iterator[Tensor]:
    """The first `number` tensors (values) as `view` needs them; the tables as they are."""
    for k, value in enumerate(values):
        yield view.broadcast(value) if k < number else value.data


@functools.cache
def _kernel(
    formula: Callable[..., Tensor],
    constants: tuple,
    number_of_values: int,
    number_of_tables: int,
    device: str | None,
    half: bool,
    dims: int,
    needed: tuple[bool, ...] | None,
) -> Callable[..., Any]:
    """The forward (needed is None) or the backward of `formula`, compiled at its first call.

    Without a device it is not compiled and runs in blocks.
    """
    take = take_unchecked if device else _take
    options: dict[str, Any] = {"channel_dim": 1, "take": take} if number_of_tables else {}
    laid_out = _laid_out if device else _as_it_is

    def call(x: Tensor, *tensors: Tensor) -> Tensor:
        values = [_shaped(value, x) for value in tensors[:number_of_values]]
        tables = tensors[number_of_values:]
        return formula(_wide(x), *values, *tables, *constants, **options).to(x.dtype)

    def forward(x: Tensor, *tensors: Tensor) -> Tensor:
        return laid_out(call(x, *map(_wide, tensors)), x)

    def backward(x: Tensor, grad: Tensor, *tensors: Tensor) -> list[Tensor]:
        # the compiler leaves out what is not returned
        of_x, *of_tensors = torch.func.vjp(call, x, *map(_wide, tensors))[1](grad)
        found = [laid_out(of_x, x), *of_tensors]
        return [each for each, need in zip(found, needed or (), strict=True) if need]

    chosen: Any = forward if needed is None else backward
    if device is None:
        return Blocks(chosen, number_of_values, needed)
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

    contract = "fast"  # a x + b is rounded once
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        # For Intel's processors GCC copies vectors in halves. What reads a whole one of them then
        # waits for the memory: float32 took up to five times as long.
        contract += " -mprefer-vector-width=512"
    return _KEEP_NOTHING | {
        "cpp.enable_floating_point_contract_flag": contract,
        # one loop over (groups, channels, block) computes the gradients of x and of the parameters
        "pick_loop_orders": forward,
        "post_grad_custom_post_pass": Shortcuts(half),
    }


def _shaped(value: Tensor, x: Tensor) -> Tensor | tuple[Tensor, ...]:
    """A value as the formula takes it, once for each partial sum of its gradient."""
    shaped = value
    if value.dim() and x.dim() == 1:
        shaped = value.squeeze(0)
    elif value.dim() and x.dim() == 2:
        shaped = value[:, None]
    elif value.dim():
        groups, _, pieces, _ = x.shape
        shaped = value[None, :, None, None].expand(groups, -1, pieces, 1, *value.shape[1:])
    return shaped.unbind(-1) if value.dim() == 2 else shaped


def _laid_out(y: Tensor, x: Tensor) -> Tensor:
    """`y` in the memory order of `x`; a look-up in a table does not keep it."""
    return torch.empty_like(x).copy_(y)


def _as_it_is(y: Tensor, _: Tensor) -> Tensor:
    return y


def _take(table: Tensor, index: tuple[Tensor, ...]) -> Tensor:
    """`table[index]`, for a kernel in blocks: a tenth of the time of torch's own indexing."""
    *row, cell = index
    if row:
        cell = row[0] * table.shape[-1] + cell
    return table.reshape(-1).index_select(0, cell.reshape(-1)).view(cell.shape)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
