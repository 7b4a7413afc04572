"""Put the new activations into the network, each at its call.

The new module replaces the old one under all its names; a function call is rewritten (`rewrite`).
Where one module is called several times, a `PerCall` holds one activation for each call.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from activations.torch_private import leave_fast_path

from .calls import Found
from .locate import End
from .rewrite import rewrite
from .trace import Call, Key


class PerCall(nn.ModuleList):
    """Replaces a module that is called several times in a forward pass; each call has its own.

    The calls are distinguished by their order, counted anew in each forward pass of the module that
    they belong to. Recomputing a part of that pass (`torch.utils.checkpoint`) would miscount:
    checkpoint the whole of it.
    """

    def __init__(self, activations: Iterable[nn.Module]) -> None:
        super().__init__(activations)
        self.next = 0

    def restart(self, module: nn.Module, inputs: Any) -> None:
        """Forward pre-hook of the module that the calls belong to."""
        self.next = 0

    def forward(self, x: Tensor) -> Tensor:
        """The next activation's output."""
        activation = self[self.next]
        self.next = (self.next + 1) % len(self)
        return activation(x)


def place(model: nn.Module, found: Found, new: Mapping[str, nn.Module]) -> None:
    """Put `new`, by the names of the calls, into `model`."""
    paths = list(model.named_modules(remove_duplicate=False))
    groups: dict[Key, list[Call]] = {}
    for call in found.calls:
        groups.setdefault(call.key, []).append(call)
    rewritten: dict[str, dict[str, dict[End, str]]] = {}
    for (name, point), calls in groups.items():
        if not any(call.name in new for call in calls):
            continue
        old = model.get_submodule(name)  # for a function, the module that calls it
        calls.sort(key=lambda call: call.index)
        members = [new.get(call.name, call.function or old) for call in calls]
        for member in members:
            member.train(old.training)
        replacement = members[0]
        if len(members) > 1:
            replacement = PerCall(members)
            model.get_submodule(calls[0].home).register_forward_pre_hook(replacement.restart)
        if point:
            method, end = point
            attribute = calls[0].site.rpartition(".")[2]
            rewritten.setdefault(name, {}).setdefault(method, {})[end] = attribute
            targets = [calls[0].site]
        else:  # all its names, except those by which it is called separately
            same = [path for path, child in paths if child is old]
            targets = [path for path in same if path == name or path not in found.counts]
        for target in targets:
            path, _, attribute = target.rpartition(".")
            owner = model.get_submodule(path)
            setattr(owner, attribute, replacement)
            leave_fast_path(owner)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            leave_fast_path(module)
    for name, methods in rewritten.items():
        rewrite(model.get_submodule(name), methods)
