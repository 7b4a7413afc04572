"""Copies of a network to try things on, which leave the network and the random states as they are.

A copy shares the network's tensors, or has their shapes without numbers. Tensors are found where
they are: parameters, buffers, attributes, and entries of lists, dictionaries and other objects.
"""

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from activations.torch_private import hooks_of

Module = TypeVar("Module", bound=nn.Module)


def copied(module: Module, taken: Callable[[Tensor], Tensor] = Tensor.detach) -> Module:
    """A deep copy of `module` in which `taken` says what becomes of each tensor.

    By default the copy shares the memory of all tensors. A tensor that is the result of a
    computation with gradients, which `copy.deepcopy` refuses, is taken like all others. Hooks of
    users stay behind.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in part.parameters(recurse=False):
            memo[id(value)] = nn.Parameter(taken(value.detach()), value.requires_grad)
        for hooks in hooks_of(part):
            # torch's own, as of weight_norm and of lazy modules, are part of the network
            if not all(_module_of(hook).startswith("torch.") for hook in hooks.values()):
                memo[id(hooks)] = type(hooks)()
    with _Taking(taken):
        return copy.deepcopy(module, memo)


def _module_of(hook: Any) -> str:
    return getattr(hook, "__module__", None) or type(hook).__module__


class _Taking(TorchFunctionMode):
    """While it is on, deep copies of tensors are made by `taken`."""

    def __init__(self, taken: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.taken = taken

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called in place of every function of torch."""
        if func is Tensor.__deepcopy__:
            value, memo = args
            if id(value) not in memo:
                memo[id(value)] = self.taken(value.detach())
            return memo[id(value)]
        if func is Tensor.clone:  # by which a parameter that is not registered is copied
            return self.taken(args[0].detach())
        return func(*args, **(kwargs or {}))


def check_copies(model: nn.Module) -> None:
    """Raise ValueError if `model` cannot be copied; the message names the attribute."""
    try:
        copied(model, Tensor.detach)
    except Exception as error:
        text = f"{type(model).__name__} cannot be copied for a trial run: {error}"
        for name, module in model.named_modules():
            hooks = [*map(id, hooks_of(module))]  # they stay behind
            left = {n for n, each in vars(module).items() if id(each) in hooks}
            left |= {"_parameters", "_buffers", "_modules"}
            for attribute, value in vars(module).items():
                try:
                    if attribute not in left:
                        with _Taking(Tensor.detach):
                            copy.deepcopy(value)
                except Exception:
                    path = f"{name}.{attribute}".lstrip(".")
                    raise ValueError(f"{text}. Set {path} after the swap") from error
        raise ValueError(text) from error


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore the buffers on leaving, where a copy of `model` may run its own parts.

    A function that holds a part of this network, such as a new `forward`, holds it in a copy too.
    """
    held = any(_holds(each) for module in model.modules() for each in vars(module).values())
    kept = {buffer: buffer.clone() for buffer in model.buffers()} if held else {}
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept.items():
                buffer.copy_(value)


def _holds(function: Any) -> bool:
    """Whether a function has a module, or a method of one, from outside."""
    if not isinstance(function, FunctionType):
        return False
    values = [*(function.__defaults__ or ())]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it is empty
            values.append(cell.cell_contents)
    return any(isinstance(getattr(v, "__self__", v), nn.Module) for v in values)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random states of torch, Python and NumPy on leaving."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy else None
    try:
        # a network on the CPU leaves CUDA alone, which processes cannot be forked with
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(state)
