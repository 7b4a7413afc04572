"""Put the new activations into the network, each at its call.

The new module replaces the old one under all its names; a function call is rewritten (`rewrite`).
Where one module is called several times, a `PerCall` holds one activation for each call, and the
calls are rewritten to name theirs.
"""

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn

from activations.torch_private import copy_hooks, hooks_of, leave_fast_path, move_hooks

from .calls import Found
from .locate import End
from .rewrite import Edit, rewrite
from .trace import Call, Key


class PerCall(nn.ModuleList):
    """Replaces a module that is called several times: each call names the one that serves it."""

    def forward(self, x: Tensor, call: int | None = None) -> Tensor:
        """The output of activation number `call`."""
        if call is None:
            raise RuntimeError(
                f"a call of {type(self[0]).__name__} was not seen when the activations were "
                "swapped, or a loop made more calls than then: swap with an example_input that "
                "takes this way through the network, or exclude the call"
            )
        return self[call](x)


def place(model: nn.Module, found: Found, new: Mapping[str, nn.Module]) -> None:
    """Put `new`, by the names of the calls, into `model`."""
    paths = list(model.named_modules(remove_duplicate=False))
    groups: dict[Key, list[Call]] = {}
    for call in found.calls:
        groups.setdefault(call.key, []).append(call)
    heirs: dict[nn.Module, nn.Module] = {}  # what has the hooks of an old activation
    users = Counter(id(module) for module in new.values())
    for (name, point), calls in groups.items():
        shared = len(calls) == 1 and users[id(new.get(calls[0].name))] > 1
        if shared and not point and any(hooks_of(model.get_submodule(name))):
            raise ValueError(
                f"cannot swap {name} with this share: its hooks would see the calls of others too. "
                'Use share="site", or remove them'
            )
    edits: dict[str, dict[str, dict[End, Edit]]] = {}
    placed: set[nn.Module] = set()
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
        placed.add(replacement)
        if point or len(members) > 1:
            child = calls[0].site.rpartition(".")[2] if point else None
            for call in calls:
                assert not isinstance(call.place.point, str)
                method, end = call.place.point
                ends = edits.setdefault(call.place.owner, {}).setdefault(method, {})
                earlier = ends[end].calls if end in ends else ()
                numbers = (*earlier, call.index) if len(members) > 1 else ()
                ends[end] = Edit(child, numbers)
        if point:
            targets = [calls[0].site]
        else:  # all its names, except those by which it is called separately
            same = [path for path, child in paths if child is old]
            targets = [path for path in same if path == name or path not in found.counts]
            if old in heirs:  # an activation with several names
                copy_hooks(heirs[old], replacement)
            else:
                move_hooks(old, replacement)
                heirs[old] = replacement
        for target in targets:
            path, _, attribute = target.rpartition(".")
            owner = model.get_submodule(path)
            setattr(owner, attribute, replacement)
            leave_fast_path(owner)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and not placed.isdisjoint(module.modules()):
            leave_fast_path(module)
    for name, methods in edits.items():
        rewrite(model.get_submodule(name), methods)
