"""Make the new activations: one for each call, or one for several calls that share it.

The factory is called with the sizes that its class asks for, such as the number of channels. Each
new module is then tried on an input of the call's shape, before the network is changed.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from activations.activation import Activation

from .copies import copied
from .kinds import sizes_taken
from .trace import Call, without_numbers

Factory = Callable[..., nn.Module]
Share = Literal["channel", "site", "stage", "model"]


def near(model: nn.Module, call: Call) -> Tensor:
    """A parameter of a call's layer, or of the network: what is new goes to its device.

    A network may lie on several devices.
    """
    values = (*model.get_submodule(call.layer).parameters(), *model.parameters())
    return next((p for p in values if p.is_floating_point()), torch.empty(0))


def make_all(
    model: nn.Module,
    chosen: list[tuple[Call, str]],
    rules: Mapping[str, Factory],
    share: Share,
) -> dict[str, nn.Module]:
    """The new module of each call, by name; `rules` are the factories of the `chosen` calls."""
    made: dict[Any, tuple[Call, nn.Module, int | None]] = {}
    new: dict[str, nn.Module] = {}
    taken: dict[int, Any] = {}  # all parts of what was made, kept alive: their ids stay theirs
    for call, glob in chosen:
        beside = near(model, call)
        key = (glob, {"stage": call.stage, "model": None}.get(share, call.name))
        if key not in made:
            module, channels = _make(rules[glob], call, share)
            parts = {id(part): part for part in (module, *module.parameters())}
            if parts.keys() & taken.keys():
                raise ValueError(
                    f"the factory of {type(module).__name__} returns what it has returned before; "
                    'let it make a new one for each call, or give share="model"'
                )
            taken |= parts
            made[key] = (call, _beside(module, beside), channels)
        first, module, channels = made[key]
        if channels not in (None, call.channels):
            raise ValueError(
                f"share={share!r}: {first.name} has {channels} channels and {call.name} "
                f"{call.channels}, but {type(module).__name__} is made for one number of channels"
            )
        device = next(module.parameters(), beside).device
        if device != beside.device:
            raise ValueError(
                f"share={share!r}: {first.name} is on {device} and {call.name} on {beside.device}"
            )
        _check(call, module)
        new[call.name] = module
    return new


def _beside(module: nn.Module, weight: Tensor) -> nn.Module:
    """Bring `module` to a weight's device and dtype, but for what its factory has set."""
    made_as = module.made_as if isinstance(module, Activation) else {}
    return module.to(made_as.get("device") or weight.device, made_as.get("dtype") or weight.dtype)


def _make(factory: Factory, call: Call, share: Share) -> tuple[nn.Module, int | None]:
    """A new module for `call`, and the number of channels that it was made for."""
    if isinstance(factory, nn.Module):
        raise TypeError(
            f"{factory!r} is one module, and each call needs its own: give the class "
            f"{type(factory).__name__} or functools.partial of it"
        )
    try:
        new = factory()
    except TypeError as error:
        raise TypeError(
            f"the activation factory {factory!r} must make a torch.nn.Module when called without "
            f"arguments ({error}): give a class or functools.partial"
        ) from error
    if not isinstance(new, nn.Module):
        raise TypeError(f"the activation factory must make a torch.nn.Module, got {new!r}")
    kind, sizes = type(new).__name__, {}
    takes = sizes_taken(type(new))
    if call.axis == 0 and (share == "channel" or "channels" in takes):
        raise ValueError(
            f"{kind} needs the channels of {call.name}, and its input {call.shape} has no batch: "
            "give a batch as example_input"
        )
    if "channels" in takes:
        sizes["channels"] = call.channels
        if call.axis not in (None, 1) and "channel_dim" not in takes:
            raise ValueError(
                f"{kind} has its channels on axis 1, {call.name} on {call.axis} (input "
                f"{call.shape}): exclude the call"
            )
    if "dims" in takes:
        sizes["dims"] = len(call.shape) - 2
        if not 1 <= sizes["dims"] <= 3:
            raise ValueError(
                f"{kind} needs signals, images or volumes, and {call.name} has an input of "
                f"{len(call.shape)} dimensions {call.shape}: exclude the call"
            )
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
            f"{kind} needs the number of channels, which is not known for the input {call.shape} "
            f"of {call.name}; give a factory that sets it, or exclude the call"
        )
    if sizes:
        try:
            new = factory(**sizes)
        except TypeError as error:
            raise TypeError(
                f"the factory of {kind} must pass {', '.join(sizes)} on to it ({error}): give the "
                "class itself or functools.partial"
            ) from error
    return new, sizes.get("channels")


def _check(call: Call, new: nn.Module) -> None:
    """Raise where `new` does not keep the shape and dtype of its input."""
    device = next(new.parameters(), torch.empty(0)).device
    x = torch.empty(call.shape, dtype=call.dtype, device="meta")
    try:
        with torch.no_grad():
            try:
                y = copied(new, without_numbers).eval()(x)
            except Exception:  # it computes with numbers as it runs
                y = copy.deepcopy(new).eval()(torch.zeros_like(x, device=device))
    except Exception as error:
        raise ValueError(
            f"{type(new).__name__} fails on the input {call.shape} of {call.name}: {error}"
        ) from error
    if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
        became = (tuple(y.shape), y.dtype) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"{type(new).__name__} makes {became} of {(call.shape, x.dtype)} at {call.name}; "
            "an activation keeps shape and dtype"
        )
