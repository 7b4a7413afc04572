"""What every activation of this package shares, and the schedule protocol."""

import inspect
import math
import reprlib
import sys
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Protocol, TypedDict, TypeVar, runtime_checkable

import torch
from torch import Tensor, fx, nn
from torch.types import Device

from .fusion.kernel import Expression, evaluate, fusible

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LAYOUTS = (torch.strided, torch.jagged)
Known = TypeVar("Known")


@runtime_checkable
class Scheduled(Protocol):
    """A module whose state follows training progress."""

    def set_progress(self, progress: float) -> None:
        """Move to `progress`, from 0 (training starts) to 1 (training ends)."""
        ...


def set_progress(model: nn.Module, progress: float) -> int:
    """Move every scheduled module in `model` to `progress` in [0, 1]; return how many there are."""
    scheduled = [module for module in model.modules() if isinstance(module, Scheduled)]
    for module in scheduled:
        module.set_progress(progress)
    return len(scheduled)


def fuse(model: nn.Module, on: bool = True) -> int:
    """Compute the activations in `model` by fused kernels, or plainly again with `on=False`.

    A module is plain at first: compiling takes about 4 s for each kind of function, more than a
    short run saves. The choice belongs to these modules alone and is copied and pickled with them;
    activations that are put into `model` later are plain. Fused and plain values differ only by
    the rounding of the dtype.

    On a CPU the plain formula of a large input is computed in blocks that fit the cache, and keeps
    the input alone for the backward pass, as a fused kernel does.

    The plain path is always used in whole-model `torch.compile`, `torch.export`, tracing and
    `torch.func`, for tensor subclasses, and on devices other than CPU and CUDA. Without a compiler
    everything stays plain, and a warning says so once.

    Returns:
        The number of activations in `model`.
    """
    found = [module for module in model.modules() if isinstance(module, Activation)]
    for module in found:
        module.fused = on
    return len(found)


def penalty(model: nn.Module) -> Tensor | float:
    """Sum of the terms that the activations of `model` add to the training loss; 0.0 if none does.

    Add it to the loss before the backward pass: loss scaling and gradient accumulation then apply
    to it too.
    """
    terms = (module.penalty() for module in model.modules() if isinstance(module, Activation))
    return sum((term for term in terms if term is not None), 0.0)


class Options(TypedDict, total=False):
    """Constructor arguments of every activation.

    Attributes:
        inplace: ignored; accepted because libraries pass it to every activation; default False.
        device: of the parameters and buffers; default torch's.
        dtype: of the parameters and buffers; default torch's.
    """

    inplace: bool
    device: Device
    dtype: torch.dtype | None


class Channels(Options, total=False):
    """Constructor arguments of every activation that can learn one set of parameters a channel.

    Attributes:
        num_parameters: 1 (shared by all channels) or C, the size of `channel_dim`; default 1.
        channel_dim: axis of the channels: 1, or -1 for channels-last tokens; default 1.
        inplace: ignored; accepted because libraries pass it to every activation; default False.
        device: of the parameters and buffers; default torch's.
        dtype: of the parameters and buffers; default torch's.
    """

    num_parameters: int
    channel_dim: int


class Leaf(nn.Module):
    """A module that torch.fx does not look into, as it does not look into those of torch.nn."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module; torch.fx records this as one step."""
        if args and isinstance(args[0], fx.Proxy):
            tracer: Any = args[0].tracer

            def leaf(*args: Any, **kwargs: Any) -> fx.Proxy:
                return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)

            return tracer.call_module(self, leaf, args, kwargs)
        return super().__call__(*args, **kwargs)

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script calls first."""
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__name__}: use torch.export.export, or "
            "torch.jit.trace with an example input"
        )


class Activation(Leaf):
    r"""Base class: an elementwise function :math:`f(x)` with its own parameters.

    A subclass registers its parameters with :meth:`learned` and names its `formula`. One whose
    formula is called with something else than these parameters overrides :meth:`expression`; one
    that cannot be fused overrides :meth:`function`. Its *direct* parameters are its shape
    (`activations.parameter_groups` keeps them from weight decay); those of child modules, such as
    LSLU's convolution, are weights. The arguments are those of :class:`Channels`.

    Shape:
        (N, C, \*) -> same; any shape when `num_parameters` is 1. Half precision is computed in
        float32 and rounded once.

    Attributes:
        fused: whether fused kernels compute it; set by :func:`activations.fuse`.
        formula: of the class: called with the input and the learned parameters, in their order.
        channels: of the input, 0 for any number; `dims` are the axes behind them, 0 for any number.
        size_arguments: of the class: constructor arguments that `replace_activations` may set from
            the input of a call: num_parameters, channel_dim, channels or dims.
        match_starts: of the class: values of the parameters from which `activations.match` also
            starts, if least squares does not reach a known function from the defaults.
        least: of the class: the values below which parameters are clamped, by name.
        scalable: of the class: the parameter of which a factor changes nothing.
        variants: of the class: constructor arguments under which the gallery shows it.
        gallery_step: of the class: how far the gallery moves a parameter.

    Raises:
        TypeError: the input is not a dense floating-point tensor.
        ValueError: an argument is out of range, or the input has other channels or axes.
    """

    formula: ClassVar[Callable[..., Tensor] | None] = None
    size_arguments: ClassVar[tuple[str, ...]] = ("num_parameters", "channel_dim")
    match_starts: ClassVar[tuple[dict[str, float], ...]] = ()
    least: ClassVar[dict[str, float]] = {}
    scalable: ClassVar[str] = ""
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    gallery_step: ClassVar[float] = 0.5
    fused: bool = False
    channels: int = 0
    dims: int = 0

    def __init__(
        self,
        num_parameters: int = 1,
        channel_dim: int = 1,
        *,
        inplace: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_parameters = integer("num_parameters", num_parameters)
        self.channel_dim = integer("channel_dim", channel_dim, least=None)
        dtype = choice("dtype", dtype, None, *_DTYPES)
        try:
            torch.empty(0, device=device)
        except (RuntimeError, TypeError, AssertionError) as error:
            why = str(error).partition("\n")[0]
            raise ValueError(
                f"device must be one that torch has here, such as 'cpu', got {device!r}: {why}"
            ) from error
        self.made_as: dict[str, Any] = {"device": device, "dtype": dtype}
        self._starts: dict[str, float | list[float]] = {}

    def learned(self, name: str, value: float, size: int | None = None) -> nn.Parameter:
        """A learned parameter of shape `(size,)`, by default `(num_parameters,)`."""
        start = self._starts[name] = finite(name, value)
        return nn.Parameter(torch.full((size or self.num_parameters,), start, **self.made_as))

    def learned_terms(self, name: str, values: Sequence[float]) -> nn.Parameter:
        """A learned parameter of shape `(num_parameters, k)` for k values."""
        start = self._starts[name] = [finite(name, value) for value in values]
        row = torch.tensor(start, **self.made_as)
        return nn.Parameter(row.repeat(self.num_parameters, 1))

    def state(self, name: str, value: float) -> None:
        """Register `name`, the state of a schedule: a number that training progress changes."""
        self.register_buffer(name, torch.tensor(float(value), **self.made_as))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew: also what `to_empty` needs after a construction on the meta device."""
        for part in _inside(self):
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
        for name, start in self._starts.items():
            parameter = getattr(self, name)
            start = torch.tensor(start, dtype=parameter.dtype, device=parameter.device)
            parameter.copy_(start.expand_as(parameter))
        if isinstance(self, Scheduled):
            self.set_progress(0.0)

    def shaped(self, parameter: Tensor, x: Tensor) -> Tensor:
        """View `parameter` so that it broadcasts against `x` along `channel_dim`."""
        if parameter.numel() == 1:
            return parameter.view(())
        shape = [1] * x.dim()
        shape[self.channel_dim] = self.num_parameters
        return parameter.view(shape)

    def terms(self, parameter: Tensor, x: Tensor) -> list[Tensor]:
        """The k columns of a `(num_parameters, k)` parameter, each shaped for `x`."""
        return [self.shaped(column, x) for column in parameter.unbind(-1)]

    def used(self, name: str) -> Tensor:
        """The parameter `name` as the function uses it, clamped from below by `least`.

        Its gradient is 1 everywhere.
        """
        value = getattr(self, name)
        return at_least(value, self.least[name]) if name in self.least else value

    def penalty(self) -> Tensor | None:
        """A term for the training loss, or None; see :func:`penalty`."""
        return None

    def __init_subclass__(cls) -> None:
        """A class that overrides `function` alone does not inherit the formula of its parent."""
        if "function" in vars(cls) and "expression" not in vars(cls):
            cls.expression, cls.formula = Activation.expression, None
        # torch.nn.utils.skip_init looks for `device` in the signature, where **channels hides it
        _, *own = inspect.signature(cls.__init__).parameters.values()
        if own and own[-1].kind is own[-1].VAR_KEYWORD and own[-1].name in ("options", "channels"):
            rest = own.pop()
            wanted = (Channels if rest.name == "channels" else Options).__annotations__
            known = inspect.signature(Activation.__init__).parameters
            own += [known[k].replace(kind=rest.KEYWORD_ONLY) for k in known if k in wanted]
        cls.__signature__ = inspect.Signature(own)  # pyright: ignore

    def expression(self) -> Expression | None:
        """The formula and what it is called with; None if it cannot be fused."""
        if (formula := type(self).formula) is None:
            return None
        return Expression(formula, tuple(self.used(name) for name in self._starts))

    def function(self, x: Tensor) -> Tensor:
        """The formula with this module's parameters, for `x` in float32 or float64."""
        expression = self.expression()
        if expression is None:
            raise NotImplementedError(f"{type(self).__name__} writes no expression and no function")
        return self._written(expression, x)

    def _written(self, expression: Expression, x: Tensor) -> Tensor:
        formula, values, constants, tables = expression
        shaped = [
            self.terms(value, x) if value.dim() == 2 else self.shaped(value, x)
            for value in map(precise, values)
        ]
        axis = {"channel_dim": self.channel_dim} if tables else {}
        return formula(x, *shaped, *tables, *constants, **axis)

    def _plain(self, expression: Expression, x: Tensor) -> Tensor:
        return self._written(expression, precise(x)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function; dtype, shape and memory format of `x` are kept."""
        self.check_input(x)
        if fusible(x, self.fused) and (expression := self.expression()) is not None:
            sizes = self.num_parameters, self.channel_dim
            y = evaluate(expression, x, *sizes, self._plain, compiled=self.fused)
            if y is not None:
                return y
        return self.function(precise(x)).to(x.dtype)

    def check_input(self, x: Tensor) -> None:
        """Raise if `x` is no dense floating-point tensor, or has other channels or axes."""
        name = type(self).__name__
        if not isinstance(x, Tensor) or x.dtype not in _DTYPES or x.layout not in _LAYOUTS:
            got = f"one of {x.dtype}, {x.layout}" if isinstance(x, Tensor) else reprlib.repr(x)
            raise TypeError(
                f"{name} needs a dense tensor of float32, bfloat16, float16 or float64, got {got}: "
                "convert it with torch.as_tensor(x), x.to_dense() or x.float()"
            )
        axis, size = self.channel_dim, self.num_parameters
        if size == 1 and not self.channels:
            return
        shape, rank = tuple(x.shape), x.dim()
        if self.channels and (shape[1:2] != (self.channels,) or self.dims not in (0, rank - 2)):
            axes = ("...", "L", "H, W", "D, H, W")[self.dims]
            raise ValueError(
                f"{name} has channels={self.channels} and needs (N, {self.channels}, {axes}), "
                f"got an input of shape {shape}"
            )
        if size > 1 and (not -rank <= axis < rank or shape[axis] != size):
            raise ValueError(
                f"{name} has num_parameters={size} and needs {size} channels on axis {axis} "
                f"(channel_dim), got an input of shape {shape}"
            )

    def shape_values(self) -> dict[str, Tensor]:
        """Each shape parameter and schedule buffer as it is used: (channels, terms)."""
        learned = [name for name, _ in self.named_parameters(recurse=False)]
        # what torch.nn.utils.parametrize computes
        computed = getattr(self, "parametrizations", ())
        schedule = [name for name, b in self.named_buffers(recurse=False) if b.dim() == 0]
        values = {name: self.used(name).detach() for name in (*learned, *computed, *schedule)}
        return {
            name: value.reshape(self.num_parameters if value.dim() else 1, -1)
            for name, value in values.items()
        }

    def extra_repr(self) -> str:
        """The parameters' current values."""
        parts = []
        for name, value in self.shape_values().items():
            if value.is_meta or hasattr(value, "to_local"):  # a DTensor: sharded by FSDP
                continue
            terms = [f"{term:.4g}" for term in value.cpu().double().mean(0).tolist()]
            text = terms[0] if len(terms) == 1 else f"[{', '.join(terms)}]"
            parts.append(f"{name}={text}")
        if self.num_parameters > 1:
            parts.append(f"num_parameters={self.num_parameters} (means shown)")
        return ", ".join(parts)


def finite(name: str, value: float, least: float = -math.inf) -> float:
    """`value`, a finite number of at least `least`, as a float; else ValueError, naming it."""
    known = isinstance(value, Real) and not isinstance(value, bool)
    if not known or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be >= {least:g}, got {value!r}")
    return float(value)


def integer(name: str, value: int, least: int | None = 1) -> int:
    """`value`, an integer of at least `least`; else ValueError, naming it."""
    known = isinstance(value, Integral) and not isinstance(value, bool)
    if not known or (least is not None and value < least):
        bound = "" if least is None else f" >= {least}"
        raise ValueError(f"{name} must be an integer{bound}, got {value!r}")
    return int(value)


def positive(name: str, value: float) -> float:
    """`value` as a float; ValueError, naming it, when it is not a finite number above 0."""
    if finite(name, value) <= 0:
        raise ValueError(f"{name} must be > 0, got {value!r}")
    return float(value)


def choice(name: str, value: Known, *known: Known) -> Known:
    """`value`, if it is one of `known`, True not being 1; else ValueError, naming it."""
    if not any(type(value) is type(each) and value == each for each in known):
        *others, last = map(str, known)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {value!r}")
    return value


def at_least(parameter: Tensor, bound: float) -> Tensor:
    """`parameter` clamped from below; its gradient is 1 everywhere, so that it can come back."""
    fixed = parameter.detach()
    return fixed.clamp(min=bound) + (parameter - fixed)


def leaves_input(module: nn.Module) -> bool:
    """Whether it is known that `module` does not change its input in place."""
    return all(
        isinstance(part, Activation)
        or (type(part).__module__.startswith("torch.nn.") and not getattr(part, "inplace", False))
        for part in module.modules()
    )


def precise(x: Tensor) -> Tensor:
    """`x` in float32 or better, so that what is computed from it is rounded once, at the end."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1; the older exporter to ONNX (`dynamo=False`) has no operator for it."""
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():  # pyright: ignore
        return x.exp() - 1
    return torch.expm1(x)


def erfc(x: Tensor) -> Tensor:
    """1 - erf(x); the older exporter to ONNX has no operator for it either."""
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():  # pyright: ignore
        return 1 - torch.erf(x)
    return torch.erfc(x)


def rises(table: Tensor) -> Tensor:
    """What each value of the last axis adds to the one before it; ONNX has no `diff`."""
    return table[..., 1:] - table[..., :-1]


def gate(x: Tensor) -> Tensor:
    """sigmoid(x); its gradient is exactly 0 far from 0, whatever it is multiplied by."""
    if torch.compiler.is_exporting() and not torch.is_grad_enabled():
        return torch.sigmoid(x)  # with a product it is one kernel in ONNX Runtime
    return torch.sigmoid(x.clamp(-1000, 1000))


def inside(x: Tensor) -> Tensor:
    """`x` with infinities moved to the largest finite number, so that sin and cos stay finite."""
    largest = torch.finfo(x.dtype).max
    return x.clamp(-largest, largest)


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    """All parts of a module, each behind its own parts."""
    for part in module.children():
        yield from _inside(part)
        yield part
