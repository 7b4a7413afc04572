"""Choose the calls to swap, by globs over their names and by kind.

A call that is chosen and cannot be swapped is an error that says why; all calls that are not chosen
go into the report.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from .calls import Found
from .kinds import bounds, is_activation, is_unknown, makes_output, plain
from .make import Factory
from .trace import Call
from .unseen import unseen


class Left(NamedTuple):
    """An activation or gate that was not swapped, and the reason."""

    name: str
    old: str
    why: str


def choose(
    model: nn.Module,
    found: Found,
    rules: Mapping[str, Factory],
    include: Sequence[str],
    exclude: Sequence[str],
    kinds: frozenset[str],
    matched: bool,
) -> tuple[list[tuple[Call, str]], list[Left]]:
    """The calls to swap, each with the glob of its factory; and what is not swapped."""
    calls = [call for call in found.calls if not call.gate or plain(call.old) in kinds]
    if not calls:
        raise ValueError(f"{type(model).__name__} calls no activation that could be swapped")
    for glob in (*rules, *include, *exclude):
        if not any(_fits(call, [glob]) for call in calls):
            names = [call.name for call in calls]
            near = difflib.get_close_matches(glob, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(f"{glob!r} fits none of {len(names)} calls; such as {', '.join(near)}")
    globs = list(rules)
    for number, glob in enumerate(globs):
        ours = [call for call in calls if _fits(call, [glob])]
        if number and glob != "*" and all(_fits(call, globs[:number]) for call in ours):
            earlier = ", ".join(map(repr, globs[:number]))
            raise ValueError(
                f"{glob!r} has no effect: all calls that it fits, such as {ours[0].name}, are "
                f"taken by the globs before it ({earlier}); put it ahead of them"
            )
    if unknown := sorted(kinds - {plain(call.old) for call in found.calls}):
        known = sorted({call.old for call in found.calls if call.gate})
        raise ValueError(f"include_kinds names {', '.join(unknown)}; the network calls {known}")
    chosen, left = [], []
    for call in found.calls:
        glob = next((glob for glob in rules if _fits(call, [glob])), None)
        named = plain(call.old) in kinds or _fits(call, {*rules, *include} - {"*"})
        output = "" if named else _output(model, call)
        if call not in calls:
            left.append(Left(call.name, call.old, output or "a gate"))
        elif glob is None or not _fits(call, include) or _fits(call, exclude):
            left.append(Left(call.name, call.old, "excluded"))
        elif output:
            left.append(Left(call.name, call.old, output))
        else:
            chosen.append((call, glob))
    if not chosen and (outputs := [call.name for call in calls if _output(model, call)]):
        raise ValueError(
            f"include and exclude leave no call to swap but outputs ({', '.join(outputs[:3])}); "
            "include or include_kinds can name them"
        )
    if not chosen:
        raise ValueError("include and exclude leave no call to swap")
    for call, _ in chosen:
        owner, point = call.key
        if call.why_not:
            raise ValueError(
                f"cannot swap {call.old}, which {owner or type(model).__name__} calls as a "
                f"function ({point}): {call.why_not}. Make it a module there, or exclude "
                f"{call.site!r}"
            )
        if call.function and call.function.takes_tensors and (matched or call.count > 1):
            raise ValueError(
                f"cannot match, fade or tell apart {call.name}: {call.old} takes another tensor; "
                f"exclude {call.site!r}"
            )
        if call.key in found.overwritten:
            raise ValueError(
                f"cannot swap {call.name}: it changes its input in place, and the network uses "
                f"that input again. Use the result of the call instead, or exclude {call.site!r}"
            )
    called = {model.get_submodule(name) for name in found.counts}
    for name, module in model.named_modules():
        if is_activation(module) and module not in called:
            left.append(Left(name, type(module).__name__, "never called"))
    for name, module in model.named_modules():
        if module in called and is_unknown(module) and plain(type(module).__name__) not in kinds:
            why = "elementwise, not known as an activation; include_kinds can name it"
            left.append(Left(name, type(module).__name__, why))
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            left.append(Left(name, type(module).__name__, "its activations are part of its kernel"))
    left += [Left(*each) for each in unseen(model, found.calls, found.counts)]
    for place, written, known in sorted(found.by_hand):
        why = f"not known as an activation; {known} is"
        left.append(Left(place or "the network", written, why))
    if hasattr(model, "save_pretrained"):
        why = "they do not know the swap: docs/swap.md, transformers"
        left.append(Left("the network", "save_pretrained and Trainer", why))
    if found.failure:
        why = f"does not run on {found.example}: {found.failure}"
        left.append(Left("the network", "training or evaluation mode", why))
    return chosen, left


def _output(model: nn.Module, call: Call) -> str:
    """Why a bounded or positive activation makes an output, not a hidden value; or empty."""
    of_module = call.last and not call.function
    if not bounds(call.old) and not (of_module and makes_output(model.get_submodule(call.key[0]))):
        return ""
    if call.last:
        return "an output, no layer behind it"
    around = call.key[0].split(".")  # the activation, or the module that calls a function
    modules = (model.get_submodule(".".join(around[:end])) for end in range(len(around) + 1))
    poolers = any(plain(type(module).__name__).endswith("pooler") for module in modules)
    return "in a pooler" if poolers else ""


def _fits(call: Call, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for name in (call.name, call.site) for glob in globs)
