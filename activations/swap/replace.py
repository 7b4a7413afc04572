"""Swap the activations of a network, one new instance a call."""

import copy
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from activations.torch_private import has_hooks, is_compiled

from .calls import Call, Calls, find_calls
from .kinds import is_activation, plain
from .match import Fade, match_sites
from .place import Factory, Share, check, make, place, verify


class Left(NamedTuple):
    """An activation or gate that was not swapped, and why."""

    name: str
    old: str
    why: str


class SwapReport(list[Call]):
    """The swapped calls in the order of the forward pass; prints as a table.

    Attributes:
        left: what looks like an activation and was left.
    """

    left: tuple[Left, ...] = ()

    def match(self, model: nn.Module, example_input: Tensor | None = None) -> None:
        """Start the new functions of `model` as the old ones; see :func:`activations.match`.

        Args:
            model: the swapped network.
            example_input: a batch of real inputs; by default every site's input counts as standard
                normal.
        """
        references = {call.name: call.reference for call in self}
        new = {name: model.get_submodule(name) for name in references}
        errors = match_sites(model, new, references, example_input)
        for call in self:
            call.error = errors[call.name]

    def __str__(self) -> str:
        """One line a call, then what was left."""
        matched = any(call.error is not None for call in self)
        rows = [("site", "was", "is", "channels", "axis", *["error"] * matched)]
        for call in self:
            size = "?" if call.axis is None else f"{call.shape[call.axis]}"
            axis = "?" if call.axis is None else f"{call.axis} of {len(call.shape)}"
            error = [f"{call.error:.1e}" if call.error is not None else ""] * matched
            rows.append((call.name, call.old, call.new, size, axis, *error))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        groups: dict[tuple[str, str], list[str]] = {}
        for name, old, why in self.left:
            groups.setdefault((old, why), []).append(name)
        for (old, why), names in groups.items():
            more = f" and {len(names) - 3} more" if names[3:] else ""
            lines.append(f"left: {old} ({why}): {', '.join(names[:3])}{more}")
        return "\n".join(lines)


def replace_activations(
    model: nn.Module,
    factory: Factory | Mapping[str, Factory],
    *,
    example_input: Tensor | None = None,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    include_kinds: str | Sequence[str] = (),
    share: Share = "site",
    match: bool | Literal["fade"] = False,
) -> SwapReport:
    """Replace every activation that `model` calls, each call by an instance of its own.

    The calls are found by running copies of the network, in training and in evaluation mode: a
    module that is called several times, and functions such as `F.relu(x)` or `x.relu_()`, count
    call by call. Weights, buffers and the random state of `model` are not touched, and all other
    parameters keep their names. Gates (Sigmoid, Hardsigmoid, Softmax, GLU; tanh and softplus as
    functions) are not activations; see `activations.swap.kinds.kind_of`.

    Args:
        model: the network, changed in place.
        factory: makes one activation: a class, or `functools.partial` of one; or a mapping of globs
            over the calls' names to factories, of which the first that fits is taken. Where its
            class takes `channels` or `dims`, it receives those of the call's input.
        example_input: a batch such as the network takes. By default zeros in the size of a timm
            network's `pretrained_cfg`, else 224 x 224 or the first usual size that works.
        include: globs over names (`layer4.*`, `*.act3`): only these calls are swapped.
        exclude: globs over names: these are not.
        include_kinds: gates, or classes that pass for no activation, to be swapped too, by class or
            function name: `["Sigmoid"]`.
        share: how widely parameters are shared. `site`: each call has its own, for all channels
            together; `channel`: each call has one set a channel; `stage`: calls on feature maps of
            one size share an instance; `model`: all calls share one.
        match: True starts each new function as close as it gets to the old one, on the inputs that
            `example_input` gives it (:func:`activations.match`); `"fade"` moves from the old
            function to the new one during training (:class:`activations.Fade`).

    Returns:
        The swapped calls and what was left; `print` it.

    Raises:
        ValueError: a glob or kind that fits nothing; a function call in code that cannot be
            rewritten; a channel count that is needed and cannot be told; `share` that the function
            does not allow; a factory whose module changes shape or dtype; a network that does not
            run on `example_input`. The model is as before.
        TypeError: `factory` does not make a module.
    """
    for name, module in model.named_modules():
        if is_compiled(module) or isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name or 'the network'} is compiled: swap the activations before torch.compile "
                "and torch.jit"
            )
    if example_input is not None and not isinstance(example_input, Tensor):
        raise TypeError(f"example_input must be one tensor, got {type(example_input).__name__}")
    if match not in (True, False, "fade"):
        raise ValueError(f'match must be True, False or "fade", got {match!r}')
    if is_activation(model):
        raise ValueError(
            f"{type(model).__name__} is an activation itself: wrap it in torch.nn.Sequential"
        )
    if share not in Share.__args__:
        raise ValueError(f"share must be one of {', '.join(Share.__args__)}, got {share!r}")
    rules = dict(factory) if isinstance(factory, Mapping) else {"*": factory}
    kinds = frozenset(plain(kind) for kind in _globs(include_kinds))
    found = find_calls(model, example_input, kinds)
    chosen, left = _choose(model, found, rules, _globs(include), _globs(exclude), kinds)
    _refuse(model, found, chosen, matched=bool(match))
    made: dict[Any, tuple[Call, nn.Module, int | None]] = {}
    new: dict[str, nn.Module] = {}
    for call, glob in chosen:
        key = (glob, {"stage": call.stage, "model": None}.get(share, call.name))
        if key not in made:
            made[key] = (call, *make(model, rules[glob], call, share))
        first, module, channels = made[key]
        if channels not in (None, call.channels):
            raise ValueError(
                f"share={share!r}: {first.name} has {channels} channels and {call.name} "
                f"{call.channels}, but {type(module).__name__} is made for one number of channels"
            )
        check(call, module)
        call.reference = _reference(model, call)
        new[call.name] = module
        if match == "fade":
            new[call.name] = Fade(copy.deepcopy(call.reference), module)
    undo: list[Callable[[], Any]] = []
    try:
        place(model, found, new, undo)
        verify(model, found, new)
        report = SwapReport(call for call in found.calls if call.name in new)
        if match is True:
            report.match(model, example_input)
    except Exception:
        for step in reversed(undo):
            step()
        raise
    report.left = tuple(left)
    for call in report:
        module = new[call.name]
        shown = module.new if isinstance(module, Fade) else module
        call.new = f"{type(shown).__name__}({shown.extra_repr()})"
        call.new = f"Fade to {call.new}" if shown is not module else call.new
    return report


def _globs(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _fits(call: Call, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for name in (call.name, call.site) for glob in globs)


def _choose(
    model: nn.Module,
    found: Calls,
    rules: Mapping[str, Factory],
    include: list[str],
    exclude: list[str],
    kinds: frozenset[str],
) -> tuple[list[tuple[Call, str]], list[Left]]:
    """The calls to swap, each with the glob of its factory; and the others."""
    calls = [call for call in found.calls if not call.gate or plain(call.old) in kinds]
    if not calls:
        raise ValueError(f"{type(model).__name__} calls no activation that could be swapped")
    for glob in (*rules, *include, *exclude):
        if not any(_fits(call, [glob]) for call in calls):
            names = [call.name for call in calls]
            near = difflib.get_close_matches(glob, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(f"{glob!r} fits none of {len(names)} calls; such as {', '.join(near)}")
    if unknown := sorted(kinds - {plain(call.old) for call in found.calls}):
        known = sorted({call.old for call in found.calls if call.gate})
        raise ValueError(f"include_kinds names {', '.join(unknown)}; the network calls {known}")
    chosen, left = [], []
    for call in found.calls:
        glob = next((glob for glob in rules if _fits(call, [glob])), None)
        if call not in calls:
            left.append(Left(call.name, call.old, "a gate"))
        elif glob is None or not _fits(call, include) or _fits(call, exclude):
            left.append(Left(call.name, call.old, "excluded"))
        else:
            chosen.append((call, glob))
    if not chosen:
        raise ValueError("include and exclude leave no call to swap")
    for call, _ in chosen:
        old = None if call.event.function else model.get_submodule(call.event.key[0])
        if old is not None and has_hooks(old):
            left.append(Left(call.name, "forward hooks", "not carried over"))
    called = {id(model.get_submodule(name)) for name in found.modules}
    for name, module in model.named_modules():
        if is_activation(module) and id(module) not in called:
            left.append(Left(name, type(module).__name__, "never called"))
    if found.failure:
        why = f"does not run on {tuple(found.example.shape)}: {found.failure}"
        left.append(Left("the network", "training or evaluation mode", why))
    return chosen, left


def _refuse(
    model: nn.Module, found: Calls, chosen: list[tuple[Call, str]], *, matched: bool
) -> None:
    for call, _ in chosen:
        at, name = call.event.location, call.event.key[0] or type(model).__name__
        if at and at.why:
            raise ValueError(
                f"cannot swap {call.old}, which {name} calls as a function ({at.where}): "
                f"{at.why}. Make it a module there, or exclude {call.site!r}"
            )
        function = call.event.function
        if function and function.takes_tensors and (matched or call.count > 1):
            raise ValueError(
                f"cannot match, fade or tell apart {call.name}: {call.old} takes another tensor; "
                f"exclude {call.site!r}"
            )
        if call.event.key in found.overwritten:
            raise ValueError(
                f"cannot swap {call.name}: it changes its input in place, and the network goes on "
                f"to use that input. Use its result there, or exclude {call.site!r}"
            )


def _reference(model: nn.Module, call: Call) -> nn.Module:
    """The old activation, not in place, as a module that the network does not hold."""
    if call.event.function:
        return call.event.function  # with its arguments
    old = copy.deepcopy(model.get_submodule(call.event.key[0]))
    for module in old.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010 - nn.Module does not declare it
    return old
