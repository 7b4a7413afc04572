"""Put new activations into a network, each at its call."""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from activations.torch_private import leave_fast_path

from .calls import Call, Calls, count_calls
from .kinds import sizes_taken
from .rewrite import End, rewrite

Factory = Callable[..., nn.Module]
Share = Literal["channel", "site", "stage", "model"]


class PerCall(nn.ModuleList):
    """Stands for a module that is called several times a forward pass; each call has its own.

    The calls are told apart by their order, counted anew by each forward pass of the module that
    they belong to. Recomputing a part of that pass (`torch.utils.checkpoint`) would miscount:
    checkpoint the whole of it.
    """

    def __init__(self, activations: Iterable[nn.Module]) -> None:
        super().__init__(activations)
        self.next = 0

    def forward(self, x: Tensor) -> Tensor:
        """The next activation's output."""
        activation = self[self.next]
        self.next = (self.next + 1) % len(self)
        return activation(x)


class Restart:
    """Forward pre-hook that starts the count of a `PerCall`."""

    def __init__(self, calls: PerCall) -> None:
        self.calls = calls

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        """Called before the forward pass of the module that the calls belong to."""
        self.calls.next = 0


def place(
    model: nn.Module,
    found: Calls,
    new: Mapping[str, nn.Module],
    undo: list[Callable[[], Any]],
) -> None:
    """Put the new modules in; each step has its counterpart in `undo`."""
    paths = list(model.named_modules(remove_duplicate=False))
    sites: dict[Any, list[Call]] = {}
    for call in found.calls:
        sites.setdefault(call.event.key, []).append(call)
    rewritten: dict[str, dict[str, dict[End, str]]] = {}
    placed: set[str] = set()
    for (owner_name, function), calls in sites.items():
        if not any(call.name in new for call in calls):
            continue
        old = calls[0].event.function or model.get_submodule(owner_name)
        ordered = sorted(calls, key=lambda call: call.index)
        members = [new.get(call.name, call.event.function or old) for call in ordered]
        owner = model.get_submodule(owner_name) if function else None
        for member in members:
            member.train((owner or old).training)
        replacement = members[0]
        if len(members) > 1:
            replacement = PerCall(members)
            home = model.get_submodule(calls[0].home)
            undo.append(home.register_forward_pre_hook(Restart(replacement)).remove)
        if owner is not None:
            attribute = calls[0].site.rpartition(".")[2]
            owner.add_module(attribute, replacement)
            undo.append(partial(delattr, owner, attribute))
            rewritten.setdefault(owner_name, {}).setdefault(function[0], {})[function[1]] = (
                attribute
            )
            undo += leave_fast_path(owner)
            continue
        for name, child in paths:
            other_call = name != owner_name and name in found.modules
            if child is old and not other_call and name not in placed:
                placed.add(name)
                path, _, attribute = name.rpartition(".")
                owner = model.get_submodule(path)
                setattr(owner, attribute, replacement)
                undo.append(partial(setattr, owner, attribute, child))
                undo += leave_fast_path(owner)
    for owner in model.modules():
        if isinstance(owner, nn.TransformerEncoder):
            undo += leave_fast_path(owner)
    for name, methods in rewritten.items():
        owner = model.get_submodule(name)
        undo.append(partial(setattr, owner, "__class__", type(owner)))
        rewrite(owner, methods)


def make(
    model: nn.Module, factory: Factory, call: Call, share: Share
) -> tuple[nn.Module, int | None]:
    """A new module for `call`, and the number of channels that it was made for."""
    try:
        new = None if isinstance(factory, nn.Module) else factory()
    except TypeError as error:
        raise TypeError(
            f"the activation factory {factory!r} must make a torch.nn.Module when called without "
            f"arguments ({error}): give a class or functools.partial"
        ) from error
    if isinstance(factory, nn.Module):
        raise TypeError(
            f"{factory!r} is one module, and each call needs its own: give the class "
            f"{type(factory).__name__} or functools.partial of it"
        )
    if not isinstance(new, nn.Module):
        raise TypeError(f"the activation factory must make a torch.nn.Module, got {new!r}")
    kind, sizes = type(new).__name__, {}
    takes = sizes_taken(type(new))
    if "channels" in takes:
        sizes["channels"] = call.channels
    if "dims" in takes:
        sizes["dims"] = len(call.shape) - 2
    if share == "channel":
        if "num_parameters" not in takes:
            raise ValueError(f"share='channel': {kind} has no parameters a channel")
        sizes["num_parameters"] = call.channels
        axis = -1 if call.axis == len(call.shape) - 1 > 1 else call.axis
        if "channel_dim" in takes:
            sizes["channel_dim"] = axis
        elif axis != 1:
            raise ValueError(
                f"share='channel': {kind} has its channels on axis 1, {call.name} on {axis}"
            )
    if None in sizes.values():
        raise ValueError(
            f"{kind} needs the number of channels, which the input {call.shape} of {call.name} "
            "does not tell; give a factory that sets it, or exclude the call"
        )
    if sizes:
        try:
            new = factory(**sizes)
        except TypeError as error:
            raise TypeError(
                f"the factory of {kind} must pass {', '.join(sizes)} on to it ({error}): give the "
                "class itself or functools.partial"
            ) from error
    near = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return new.to(near.device, near.dtype), sizes.get("channels")


def check(call: Call, new: nn.Module) -> None:
    """Raise where `new` does not keep the shape and dtype of its input."""
    for device in ("meta", next(new.parameters(), torch.empty(0)).device):
        x = torch.zeros(call.shape, dtype=call.event.dtype, device=device)
        try:
            with torch.no_grad():
                y = copy.deepcopy(new).to(device).eval()(x)
        except Exception as error:
            if device == "meta":
                continue  # it may need numbers
            raise ValueError(
                f"{type(new).__name__} fails on the input {call.shape} of {call.name}: {error}"
            ) from error
        if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
            became = (tuple(y.shape), y.dtype) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"{type(new).__name__} makes {became} of {(call.shape, x.dtype)} at {call.name}; "
                "an activation keeps shape and dtype"
            )
        return


def verify(model: nn.Module, found: Calls, new: Mapping[str, nn.Module]) -> None:
    """Run the swapped network: each new module must be called as often as the old ones were."""
    expected: Counter[int] = Counter()
    for call in found.calls:
        if call.name in new:
            expected[id(new[call.name])] += call.runs
    called = count_calls(model, found)
    counted: Counter[int] = Counter()
    for name, module in model.named_modules(remove_duplicate=False):
        counted[id(module)] += called[name]
    for name, module in new.items():
        if counted[id(module)] != expected[id(module)]:
            raise ValueError(
                f"cannot swap {name}: the network calls the new module {counted[id(module)]} times "
                f"in a trial, not {expected[id(module)]}; exclude it"
            )
