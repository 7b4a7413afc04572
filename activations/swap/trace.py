"""Which activations a network calls, found by running a copy of it without its weights."""

import copy
import inspect
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .kinds import GATE_FUNCTIONS, NAME_OF, kind_of, plain
from .rewrite import Location, locate

# Functions whose result has its channels on the same axis as their input.
_SAME_AXIS = {
    *("add", "sub", "mul", "div", "iadd", "imul", "radd", "rmul"),
    *("contiguous", "clone", "to", "float"),
    *("dropout", "batch_norm", "layer_norm", "group_norm", "chunk", "split", "cat", "max_pool2d"),
    *("avg_pool2d", "adaptive_avg_pool2d", *NAME_OF.values()),
}
CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_LOOKS = {"__get__", "size", "dim", "numel", "stride", "is_contiguous"}  # reads no values


class Function(nn.Module):
    """An activation of `torch.nn.functional` as a module, with the arguments of one call."""

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.kwargs = name, kwargs
        self.args = tuple(value for value in args if not isinstance(value, bool))  # not inplace

    @property
    def takes_tensors(self) -> bool:
        """Whether the call takes other tensors, as prelu its weight, which only the call knows."""
        return any(isinstance(value, Tensor) for value in (*self.args, *self.kwargs.values()))

    def forward(self, x: Tensor) -> Tensor:
        """`torch.nn.functional.<name>(x, ...)`, not in place."""
        return getattr(F, self.name)(x, *self.args, **self.kwargs)


@dataclass
class Event:
    """One call of an activation or gate during a run.

    `key` says which: (module's name, None), or (owner's name, location in its source).
    """

    key: tuple[str, Any]
    old: str
    gate: bool
    shape: tuple[int, ...]
    dtype: torch.dtype
    axis: int | None
    stack: tuple[str, ...]
    location: Location | None = None
    function: Function | None = None


@dataclass
class Run:
    """What a run saw: events in order, calls of each module, inputs changed in place and used."""

    events: list[Event] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    overwritten: set[Any] = field(default_factory=set)


def run(
    model: nn.Module, example: Tensor, kinds: frozenset[str], *, meta: bool, training: bool
) -> Run:
    """Run a copy of `model` on `example` and list its calls; `model` is not touched.

    With `meta` the copy has shapes and no numbers. `kinds` are names of further gates.
    """
    memo: dict[int, Any] = {}
    if meta:
        for parameter in model.parameters():
            empty = torch.empty_like(parameter, device="meta")
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        memo |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    for module in model.modules():  # what old-style weight_norm leaves behind cannot be copied
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().to("meta" if meta else value.device)
    twin = copy.deepcopy(model, memo).train(training)
    seen: set[int] = set()
    for path, module in list(twin.named_modules(remove_duplicate=False)):
        if kind_of(module):
            if id(module) in seen:  # one activation under several names: tell its calls apart
                twin.set_submodule(path, copy.deepcopy(module))
            seen.add(id(module))
    device = "meta" if meta else next(model.parameters(), example).device
    with random_state_kept(), torch.no_grad():
        return _watch(twin, example.to(device), kinds)


def _watch(twin: nn.Module, example: Tensor, kinds: frozenset[str]) -> Run:
    result = Run()
    names = {id(module): name for name, module in twin.named_modules()}
    stack: list[str] = []
    running: list[str] = []  # activations and gates
    overwritten: dict[int, tuple[Any, Any, Any]] = {}  # by the id of a storage that is kept alive
    kind_by_id = {
        id(module): kind_of(module) or (plain(type(module).__name__) in kinds and "gate")
        for module in twin.modules()
    }

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            called = getattr(func, "__name__", "")
            if called not in _LOOKS:
                result.overwritten.update(key for x in _tensors(args) if (key := stale(x)))
            name = NAME_OF.get(func)
            if name and not running:
                return self.activation(func, name, args, kwargs)
            out = func(*args, **kwargs)
            if called.strip("_") in _SAME_AXIS:
                _keep_axis(args, out)
            return out

        def activation(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
            x, rest = (args[0], args[1:]) if args else (kwargs["input"], ())
            options = {k: v for k, v in kwargs.items() if k not in ("input", "inplace")}
            frame: Any = inspect.currentframe()  # of this method, which __torch_function__ called
            location = locate(frame.f_back.f_back, name, names)
            inplace = func.__name__.endswith("_") or kwargs.get("inplace") is True
            # F.relu(weight) keeps a weight positive
            gate = name in GATE_FUNCTIONS or isinstance(x, nn.Parameter)
            key = (location.owner if location.method else stack[-1], location.key)
            function = Function(name, rest, options)
            note(x, key, name, gate, location=location, function=function)
            out = func(*args, **kwargs)
            if inplace:
                out = overwrite(x, key)
            _keep_axis((x,), out)
            return out

    def overwrite(x: Tensor, key: Any) -> Tensor:
        """Remember that `x` was changed in place; its copy, so that the result is told from it."""
        memory, copied = x.untyped_storage(), x.clone()
        view = (x.storage_offset(), x.shape, x.stride())
        whole = x.numel() * x.element_size() >= memory.nbytes()
        overwritten[id(memory)] = (key, memory, None if whole else view)
        _keep_axis((x,), copied)
        return copied

    def stale(x: Tensor) -> Any:
        """The call that has changed `x` in place, if one has."""
        if not overwritten or x.layout != torch.strided:
            return None
        key, memory, view = overwritten.get(id(x.untyped_storage()), (None, None, None))
        if view is None or memory is None:
            return key
        whole = x.numel() * x.element_size() >= memory.nbytes()
        return key if whole or (x.storage_offset(), x.shape, x.stride()) == view else None

    def note(x: Tensor, key: Any, old: str, gate: bool, **details: Any) -> None:
        axis = getattr(x, "_channel_axis", None)
        event = Event(key, old, gate, tuple(x.shape), x.dtype, axis, tuple(stack), **details)
        result.events.append(event)

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name, kind = names[id(module)], kind_by_id[id(module)]
        result.calls[name] += 1
        if kind:
            if not running:
                x = (*args, *kwargs.values())[0]
                note(x, (name, None), type(module).__name__, kind == "gate")
            running.append(name)
        stack.append(name)

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        name, kind = stack.pop(), kind_by_id[id(module)]
        maker = type(module).__name__
        if isinstance(module, nn.Linear):
            out._channel_axis = out.dim() - 1
        elif isinstance(module, CONVOLUTIONS):
            out._channel_axis = 1
        elif kind or re.search("Norm|Drop|Identity", maker):
            _keep_axis(args, out)
        if kind:
            running.pop()
            if not running and args and out is args[0]:
                return overwrite(out, (name, None))
        return None

    for module in twin.modules():
        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, with_kwargs=True)
    with Watch():
        twin(example)
    return result


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _keep_axis(inputs: Any, output: Any) -> None:
    axes = ((getattr(x, "_channel_axis", None), x.dim()) for x in _tensors(inputs))
    known = {(axis, dim) for axis, dim in axes if axis is not None}
    if len(known) == 1:
        axis, dim = known.pop()
        for out in _tensors((output,)):
            if out.dim() == dim:
                out._channel_axis = axis  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random states of torch, Python and NumPy on leaving."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(state)
