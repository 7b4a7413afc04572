"""Which activations a network calls: a copy of it runs once, and every call is recorded.

Hooks see the calls of modules, and a mode of torch sees the calls of functions. The mode also finds
calls that change their input in place although the network uses it again: these cannot be swapped,
because a new module does not change its input.
"""

import copy
import inspect
import re
import types
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .copies import buffers_kept, copied, random_state_kept
from .flow import Flow, mark, of_weights
from .inputs import Inputs, tensors_in
from .kinds import CONVOLUTIONS, GATE_FUNCTIONS, NAME_OF, kind_of, plain
from .locate import Location, locate

_SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
# attributes of a trial's tensors
_OF_ELU, _PLUS_3, _SIGMOID_OF = (f"_supple_{name}" for name in ("of_elu", "plus_3", "sigmoid_of"))
# linear attention maps to positive numbers by them, and divides by their sum
_POSITIVE = re.compile(r"(kernel_func|kernel_fn|feature_map)\d*$")
_PRODUCTS = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"}
_LOOKS = {"__get__", "size", "dim", "numel", "stride", "is_contiguous"}  # they read no values
Key = tuple[str, Any]


class Function(nn.Module):
    """An activation of `torch.nn.functional` as a module, with the arguments of one call."""

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.name = name
        self.kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        self.args = tuple(value for value in args if not isinstance(value, bool))  # not inplace
        # of rrelu, which is random in training
        self.has_modes = name == "rrelu" and (kwargs != self.kwargs or args != self.args)

    @property
    def takes_tensors(self) -> bool:
        """Whether the call takes a second tensor, such as the weight of prelu."""
        return any(isinstance(value, Tensor) for value in (*self.args, *self.kwargs.values()))

    def extra_repr(self) -> str:
        """The name and the arguments, so that different functions are shown as different."""
        named = [f"{name}={value}" for name, value in self.kwargs.items()]
        return ", ".join([self.name, *map(str, self.args), *named])

    def forward(self, x: Tensor) -> Tensor:
        """`torch.nn.functional.<name>(x, ...)`, not in place."""
        modes = {"training": self.training} if self.has_modes else {}
        return getattr(F, self.name)(x, *self.args, **self.kwargs, **modes)


@dataclass(kw_only=True)
class Call:
    """One call of an activation in the forward pass.

    Attributes:
        name: the module's name, followed by `.0`, `.1`, ... where the module is called several
            times; for a function, the name of the module that takes its place.
        old: the class or function that is called.
        new: the module that takes its place.
        shape: the shape of the input.
        axis: the axis of the channels in it; None where it is not known.
        error: root mean square difference from the old function, where the new one was matched.
        relative_error: the same, divided by the deviation of the old function's outputs.
        reference: the old function, as a module of its own.
    """

    name: str = ""
    old: str
    new: str = ""
    shape: tuple[int, ...]
    axis: int | None
    error: float | None = None
    relative_error: float | None = None
    reference: nn.Module = field(default_factory=nn.Identity, repr=False)
    # For a module (its name, None). For a function the `owner` and `point` of its place.
    key: Key = field(repr=False)
    place: Location = field(repr=False)  # the expression that makes the call
    step: int = field(repr=False)  # how often that expression was evaluated before, in one frame
    layer: str = field(repr=False)  # the last linear or convolutional layer that ran before
    before: tuple[str, str] = field(repr=False)  # it, and a module with parameters behind it
    index: int = field(default=0, repr=False)  # among the calls with this key
    count: int = field(default=1, repr=False)  # number of calls with this key
    times: int = field(default=1, repr=False)  # evaluations in a forward pass that share it
    gate: bool = field(repr=False)  # rather than an activation
    last: bool = field(default=False, repr=False)  # no layer takes anything of its result
    dtype: torch.dtype = field(repr=False)
    runs: int = field(default=1, repr=False)  # evaluations in the trial, in both modes together
    function: Function | None = field(default=None, repr=False)  # where no module is called
    why_not: str = field(default="", repr=False)  # the code of the call cannot be rewritten

    @property
    def channels(self) -> int | None:
        """Number of channels."""
        return None if self.axis is None else self.shape[self.axis]

    @property
    def site(self) -> str:
        """The name without the number of the call."""
        return self.name if self.count == 1 else self.name.rpartition(".")[0]

    @property
    def stage(self) -> tuple[int, ...]:
        """The size of the feature map; calls with the same size belong to one stage."""
        return tuple(n for axis, n in enumerate(self.shape) if axis not in (0, self.axis))


def run(
    model: nn.Module,
    inputs: Inputs,
    kinds: frozenset[str] = frozenset(),
    *,
    meta: bool,
    training: bool,
    backward: bool = False,
    gradients: bool = False,
    watched: Collection[str] = (),
) -> "Run":
    """Run a copy of `model` on `inputs`; `model` and the random states stay as they are.

    With `meta` the copy has shapes and no numbers. `kinds` are names of further gates. `backward`
    adds a backward pass, for which inputs and outputs of the modules `watched` must not change.
    `gradients` are for a network that takes some in its forward pass.
    """
    twin = copied(model, without_numbers if meta else Tensor.clone).train(training)
    seen: set[nn.Module] = set()
    for path, module in list(twin.named_modules(remove_duplicate=False)):
        transform: Any = module
        if type(module).__name__ == "GeneralizedRCNNTransform" and not transform.fixed_size:
            # torchvision's detection networks enlarge all images to 800 pixels: minutes on a CPU
            transform.min_size, transform.max_size = (128,), 256
        if kind_of(module):
            if module in seen:  # one activation with several names: count their calls separately
                twin.set_submodule(path, copy.deepcopy(module))
            seen.add(module)
    here = inputs.on("meta" if meta else device_of(model))
    watch = Run(twin, kinds, watched)
    with random_state_kept(), buffers_kept(model), torch.set_grad_enabled(backward or gradients):
        if backward:  # what is frozen now may learn later
            for parameter in twin.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
        with watch:
            out = twin(*here.args, **here.kwargs)
            watch.note_stale(out)  # what it returns is used, too
        watch.backward(out)
    for number, call in enumerate(watch.calls):
        call.last = number not in watch.flow.used
    watch._changed.clear()  # frees the memory
    watch._frames.clear()
    watch._kept.clear()
    return watch


def without_numbers(value: Tensor) -> Tensor:
    """The shape of `value` on torch's meta device."""
    return value.to("meta")


def device_of(model: nn.Module) -> torch.device | None:
    """Where its inputs go; None where it has no parameters."""
    return next((parameter.device for parameter in model.parameters()), None)


class Run(TorchFunctionMode):
    """What is seen while a network runs.

    Attributes:
        calls: the calls of activations and gates, in order.
        flow: which of them have a layer behind them.
        counts: how often each module was called.
        overwritten: keys of the calls that change their input in place where it is used again.
        by_hand: activations written in another way: the module, what it calls, and what is known.
        error: why the backward pass failed; None where it did not.
        changed: names of the watched modules whose input or output was changed in place later.
    """

    def __init__(
        self, network: nn.Module, kinds: frozenset[str], watched: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.flow = Flow()
        self.counts: Counter[str] = Counter()
        self.overwritten: set[Key] = set()
        self.by_hand: set[tuple[str, str, str]] = set()
        self._names = {id(module): name for name, module in network.named_modules()}
        self._kinds = {
            m: _kind(name, m, kinds) or ("new" if name in watched else None)
            for name, m in network.named_modules()
        }
        self._watched = watched
        self.error: Exception | None = None
        self.changed: list[str] = []
        self._kept: list[tuple[str, Tensor, int]] = []  # what watched modules took and gave
        self._stack: list[str] = []
        # the last frame that made a call, by the call's key and place, and its number of calls
        self._frames: dict[Any, tuple[types.FrameType | None, int]] = {}
        # shapes of outputs, their channel axes, and the layers' names
        self._layers: list[tuple[torch.Size, int, str]] = []
        self._other = ""  # a module with parameters that has run since the last of them
        self._version: int | None = None  # of the input of the activation that is running
        self._inside = 0  # how many activations and gates are running, one within the other
        # the part that a call has changed, by the id of its memory, which is kept alive
        self._changed: dict[int, tuple[Any, Key, Any]] = {}
        for module in network.modules():
            module.register_forward_pre_hook(self._enter, with_kwargs=True)
            # also after an exception, which the network may catch
            module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name, kind = self._names[id(module)], self._kinds[module]
        self.counts[name] += 1
        running, outside = self._stack[-1] if self._stack else "", not self._inside
        self._inside += bool(kind)
        self._stack.append(name)  # first: `_leave` takes it off after an exception, too
        if not kind and outside:
            self.flow.into((args, kwargs), module)
        if kind and outside:
            x = (*args, *kwargs.values())[0]
            place = locate(_caller(), module, self._names, running)
            old = type(module).__name__
            gate = kind == "gate" or _makes_gate(old, x)
            self._record(x, (name, None), old, gate, place)
            self._version = _version(x)

    def _leave(self, module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
        name, kind = self._stack.pop(), self._kinds[module]
        if out is None:
            self._inside -= bool(kind)
            return None
        if isinstance(module, nn.Linear):
            self._layers.append((out.shape, out.dim() - 1, name))
            self._other = ""
        elif isinstance(module, CONVOLUTIONS):
            batched = out.dim() - len(module.kernel_size) - 1  # 0 without a batch
            self._layers.append((out.shape, batched, name))
            self._other = ""
        elif not kind and next(module.parameters(recurse=False), None) is not None:
            self._other = name
        self._inside -= bool(kind)
        number = len(self.calls) - 1 if kind and not self._inside else None
        self.flow.through((args, kwargs), out, number)
        if name in self._watched:
            self._kept += [(name, x, x._version) for x in tensors_in((args, out))]
        if kind and not self._inside and args and self._version != _version(args[0]):
            changed = self._overwrite(args[0], (name, None))
            out = changed if out is args[0] else out
        if number is not None and isinstance(module, nn.ELU):
            setattr(out, _OF_ELU, number)
        if number is not None and isinstance(module, nn.Sigmoid):
            setattr(out, _SIGMOID_OF, (*args, *kwargs.values())[0])
        return out

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called in place of every function of torch."""
        kwargs, number = kwargs or {}, len(self.calls)
        out = self._run(func, args, kwargs, _caller())
        if not self._inside and number == len(self.calls):
            self.flow.into((args, kwargs))
        changed = args[0] if getattr(func, "__name__", "") == "__setitem__" else out
        self.flow.through((args, kwargs), changed, number if number < len(self.calls) else None)
        called = getattr(func, "__name__", "")
        mark(called, (args, kwargs), out)
        if called in _SUMS:
            numbers = [each for each in args if type(each) in (int, float)]
            for each in tensors_in(args) if 1 in numbers else ():
                if (found := getattr(each, _OF_ELU, None)) is not None:
                    self.calls[found].gate = True
            for each in tensors_in(out) if 3 in numbers else ():
                setattr(each, _PLUS_3, True)
        return out

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any], caller: Any) -> Any:
        called = getattr(func, "__name__", "")
        if called not in _LOOKS:
            self.note_stale((args, kwargs))
        name = NAME_OF.get(func)
        if not name or self._inside:
            written = None if self._inside else _by_hand(called, args, kwargs)
            if written:
                self.by_hand.add((self._stack[-1] if self._stack else "", *written))
            return func(*args, **kwargs)
        x, rest = (args[0], args[1:]) if args else (kwargs["input"], ())
        options = {k: v for k, v in kwargs.items() if k not in ("input", "inplace")}
        place = locate(caller, name, self._names, self._stack[-1])
        key = (place[0].owner, place[0].point)
        gate = name in GATE_FUNCTIONS or _makes_gate(name, x)
        function = Function(name, rest, options)
        self._record(x, key, name, gate, place, function=function, why_not=place[0].why)
        out = func(*args, **kwargs)
        if called.endswith("_") or kwargs.get("inplace") is True:
            out = self._overwrite(x, key)
        if name == "elu":
            setattr(out, _OF_ELU, len(self.calls) - 1)
        if name == "sigmoid":
            setattr(out, _SIGMOID_OF, x)
        return out

    def note_stale(self, used: Any) -> None:
        """Note which calls have changed a tensor of `used` in place."""
        self.overwritten.update(key for x in tensors_in(used) if (key := self._stale(x)))

    def backward(self, out: Any) -> None:
        """Run the backward pass of what the network returned, if it has one."""
        counts = self.counts.copy()
        self.changed = list(dict.fromkeys(n for n, x, before in self._kept if x._version > before))
        roots = [x for x in tensors_in(out) if x.requires_grad]
        try:
            if roots:
                torch.autograd.backward(roots, [torch.ones_like(x) for x in roots])
        except Exception as error:
            self.error = error
        self.counts = counts  # checkpoints call modules again

    def _record(
        self,
        x: Tensor,
        key: Key,
        old: str,
        gate: bool,
        located: tuple[Location, types.FrameType | None],
        **details: Any,
    ) -> None:
        place, frame = located
        last, step = self._frames.get((key, place), (None, 0))
        step = step if frame and frame is last else 0
        self._frames[key, place] = (frame, step + 1)
        call = Call(
            old=old,
            shape=tuple(x.shape),
            axis=self._axis(x.shape),
            key=key,
            place=place,
            step=step,
            layer=(layer := self._layers[-1][2] if self._layers else ""),
            before=(layer, self._other),
            gate=gate,
            dtype=x.dtype,
            **details,
        )
        self.calls.append(call)

    def _axis(self, shape: torch.Size) -> int | None:
        """The channel axis of the last layer whose output differs from `shape` at most there."""
        for made, axis, _ in reversed(self._layers):
            if made[:axis] + made[axis + 1 :] == shape[:axis] + shape[axis + 1 :]:
                return axis
        return None

    def _overwrite(self, x: Tensor, key: Key) -> Tensor:
        """Remember that `x` was changed in place; return a copy, which is not out of date."""
        memory, copied = x.untyped_storage(), x.clone()
        self._changed[id(memory)] = (memory, key, _part(x))
        return copied

    def _stale(self, x: Tensor) -> Key | None:
        """The call that has changed `x` in place, if there is one."""
        if not self._changed or x.layout != torch.strided:
            return None
        _, key, part = self._changed.get(id(x.untyped_storage()), (None, None, None))
        return key if part is None or _part(x) in (None, part) else None


def _caller() -> Any:
    """The frame that called the function that calls this."""
    return inspect.currentframe().f_back.f_back  # pyright: ignore[reportOptionalMemberAccess]


def _kind(name: str, module: nn.Module, gates: frozenset[str]) -> str | None:
    kind = kind_of(module) or ("gate" if plain(type(module).__name__) in gates else None)
    return "gate" if kind and _POSITIVE.search(name) else kind


def _makes_gate(name: str, x: Any) -> bool:
    """Whether the activation `name` of `x` is a gate: of weights, or as in relu6(x + 3) / 6."""
    return of_weights(x) or (plain(name) in ("relu6", "hardtanh") and hasattr(x, _PLUS_3))


def _by_hand(called: str, args: Any, kwargs: dict[str, Any]) -> tuple[str, str] | None:
    """What an activation is written as, and the function that is known, if a call is one."""
    if called in ("erf", "erf_"):
        return "erf(x)", "F.gelu"
    if called in _PRODUCTS and len(args) == 2:
        one, other = args
        if getattr(one, _SIGMOID_OF, args) is other or getattr(other, _SIGMOID_OF, args) is one:
            return "x * sigmoid(x)", "F.silu"
    if called not in ("clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "clip_") or not args:
        return None
    least = kwargs.get("min", args[1] if len(args) > 1 else None)
    most = kwargs.get("max", args[2] if len(args) > 2 else None)
    rectifies = isinstance(least, int | float) and least == 0 and most is None
    return ("clamp(min=0)", "F.relu") if rectifies else None


def _version(x: Tensor) -> int | None:
    """It grows with every change in place."""
    return None if x.is_inference() else x._version


def _part(x: Tensor) -> tuple[Any, ...] | None:
    """Which part of its memory `x` is; None for all of it."""
    if x.numel() * x.element_size() >= x.untyped_storage().nbytes():
        return None
    return x.storage_offset(), x.shape, x.stride()
