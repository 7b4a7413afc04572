"""Find the calls of activations in a network, before the swap, and count them again after it.

Copies of the network run in training and in evaluation mode (`trace`). The calls of both runs are
merged, and each gets its name and its channel axis.
"""

import functools
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .copies import check_copies, copied
from .inputs import Inputs
from .kinds import CONVOLUTIONS
from .locate import Location
from .trace import Call, Key, Run, run

_log = logging.getLogger(__name__)
# tried in turn where no example input is given
_SIZES = (224, 299, 384, 64, 32, 28)
_VOLUMES = ((16, 224, 224), (64, 64, 64), (32, 32, 32))  # time or depth, height, width


@dataclass
class Found:
    """All calls of a network, and how they were found."""

    calls: list[Call]  # gates included
    counts: Counter[str]  # how often each module was called
    overwritten: set[Key]  # see Run
    by_hand: set[tuple[str, str, str]]  # see Run
    example: Inputs
    meta: bool  # whether the network runs without numbers
    failure: str  # why the network does not run in one of the modes; empty where it does
    started: float  # the time when the trial began


def find_calls(
    model: nn.Module, example: Inputs | None, kinds: frozenset[str] = frozenset()
) -> Found:
    """Find the calls of `model`, and of modules whose class is named in `kinds`.

    Raises:
        ValueError: the network does not run, or cannot be copied.
    """
    started = time.monotonic()
    check_copies(model)
    examples = [example] if example else [Inputs.of(x) for x in _examples(model)]
    doubled = [inputs.of_two() for inputs in examples]
    if example and doubled[0] is not example:  # also as it is: a state has its layers ahead
        doubled.append(example)
    examples = doubled
    attempts: list[tuple[dict[bool, Run], Exception | None, Inputs, bool]] = []
    said: set[str] = set()
    # without numbers first, which is quick; some networks compute with them as they run
    for meta in (True, False):
        for inputs in examples:
            runs, error = _runs(model, inputs, meta, started, kinds)
            attempts.append((runs, error, inputs, meta))
            # the same words again: another size does not help
            if not error or (str(error) in said and (meta or False in runs)):
                break
            said |= {str(error)} - {""}
        if not attempts[-1][1]:
            break
    # the first one that ran in both modes, else the first one that ran in evaluation mode
    runs, error, inputs, meta = min(attempts, key=lambda a: (a[1] is not None, False not in a[0]))
    if False not in runs:
        raise ValueError(
            f"{type(model).__name__} fails on an example input of shape {inputs}: {error}. "
            "example_input must be a batch such as the network takes: a tensor, a tuple of its "
            "inputs, or a dict of them by name"
        ) from error
    larger = inputs.larger()
    at_twice = {}
    if larger is not None:
        places = {mode: {call.place for call in seen.calls} for mode, seen in runs.items()}
        modes = [mode for mode in runs if not mode or places[mode] - places[False]]
        at_twice = _runs(model, larger, meta, started, kinds, modes=modes)[0]
    return Found(
        _merge(model, runs, at_twice),
        _total(runs),
        set().union(*(seen.overwritten for seen in runs.values())),
        set().union(*(seen.by_hand for seen in runs.values())),
        inputs,
        meta,
        str(error or ""),
        started,
    )


def verify(model: nn.Module, old: nn.Module, found: Found, new: Mapping[str, nn.Module]) -> None:
    """Run the swapped network: each new module must be called as often as the old ones were.

    It must have a backward pass too, if the network `old` has one.
    """
    watched = {name for name, module in model.named_modules() if module in set(new.values())}
    try_on = functools.partial(_runs, inputs=found.example, started=found.started)
    meta = found.meta
    runs, error = try_on(model, meta=meta, backward=True, watched=watched)
    if meta and not _passed(found, runs, error):
        meta = False
        runs, error = try_on(model, meta=meta, backward=True, watched=watched)
    overwritten = {owner for seen in runs.values() for owner, _ in seen.overwritten}
    for name in watched:
        if any(f"{owner}.".startswith(f"{name}.") for owner in overwritten):
            raise ValueError(
                f"cannot swap {name}: the new {type(model.get_submodule(name)).__name__} changes "
                "its input in place, and the network uses the input again: make it without inplace"
            )
    if not _passed(found, runs, error):
        if _passed(found, *try_on(old, meta=meta, backward=True)):
            for seen in runs.values():
                if seen.error:
                    raise ValueError(
                        f"cannot swap {', '.join(seen.changed) or 'the activations'}: the new ones "
                        f"fail in the backward pass ({_first_part(seen.error)}). The network "
                        "changes in place what goes into the call or comes out of it: write "
                        "x = x + y for x += y there, or exclude the call"
                    )
        else:  # the network has no backward pass with its old activations either
            runs, error = try_on(model, meta=meta)
    if error and not found.failure:
        _refuse_one_more(old, found, new)
        raise ValueError(f"with its new activations {type(model).__name__} fails: {error}")
    expected: Counter[nn.Module] = Counter()
    for call in found.calls:
        if call.name in new:
            expected[new[call.name]] += call.runs
    called: Counter[nn.Module] = Counter()
    counts = _total(runs)
    for name, module in model.named_modules(remove_duplicate=False):
        called[module] += counts[name]
    for name, module in new.items():
        if called[module] != expected[module]:
            _refuse_one_more(old, found, new)
            raise ValueError(
                f"cannot swap {name}: the network calls the new module {called[module]} times "
                f"in a trial, not {expected[module]}; exclude it"
            )


def _refuse_one_more(old: nn.Module, found: Found, new: Mapping[str, nn.Module]) -> None:
    """Refuse function calls of a module that calls all of its children, whatever they are."""
    twin = copied(old)
    calls = [call for call in found.calls if call.function and call.name in new]
    for owner in {call.key[0] for call in calls}:
        twin.get_submodule(owner).add_module("one_more", nn.Identity())
    counts = _total(_runs(twin, found.example, found.meta, found.started)[0])
    for call in calls:
        owner = call.key[0]
        if counts[f"{owner}.one_more".removeprefix(".")]:
            raise ValueError(
                f"cannot swap {call.name}: {owner or 'the network'} calls all of its children in "
                "turn, and the new module would be one more. Call the function in a module that "
                f"holds this one, or exclude {call.site!r}"
            )


def _passed(found: Found, runs: dict[bool, Run], error: Exception | None) -> bool:
    """Whether all modes ran, backward too, that ran before the swap."""
    return not any(seen.error for seen in runs.values()) and (not error or bool(found.failure))


def _first_part(error: Exception) -> str:
    return str(error).partition(", which")[0]


def _examples(model: nn.Module) -> list[Tensor]:
    """Batches to try, without memory: of the size in timm's `pretrained_cfg`, then usual sizes."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    known = tuple(cfg.get("input_size", ()))
    sizes: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):  # its channels rather than those of the cfg
            dims = len(module.kernel_size)
            usual = _VOLUMES if dims == 3 else [(size, size) for size in _SIZES]
            sides = [side for side in (known[1:], *usual) if len(side) >= dims]
            sizes = [(module.in_channels, *side[:dims]) for side in sides]
            break
        if isinstance(module, nn.Linear):
            sizes = [(module.in_features,)]
            break
    sizes = sizes or [(3, size, size) for size in _SIZES]
    shapes = [(2, *size) for size in dict.fromkeys([*sizes[:1], known, *sizes]) if size]
    return [torch.empty(shape, device="meta") for shape in shapes]


def _runs(
    model: nn.Module,
    inputs: Inputs,
    meta: bool,
    started: float,
    kinds: frozenset[str] = frozenset(),
    *,
    modes: Iterable[bool] = (True, False),
    backward: bool = False,
    **options: Any,
) -> tuple[dict[bool, Run], Exception | None]:
    """Runs by mode (True is training), and the error of a mode that failed.

    What runs without numbers stops at the first failure: with numbers it may run in both modes.
    `backward` adds a backward pass to the first mode that runs.
    """
    runs: dict[bool, Run] = {}
    error = None
    for training in modes:
        if error and meta:
            break
        mode = "training" if training else "evaluation"
        doing = f"{type(model).__name__}: trial run in {mode} mode on {inputs}"
        alive = threading.Timer(max(0, started + 5 - time.monotonic()), _log.warning, [doing])
        alive.daemon = True
        alive.start()
        how = {"meta": meta, "training": training, "backward": backward and not runs, **options}
        try:
            try:
                runs[training] = run(model, inputs, kinds, **how)
            except RuntimeError as failure:
                if "grad" not in str(failure):
                    raise
                runs[training] = run(model, inputs, kinds, gradients=True, **how)
        except Exception as failure:
            error = failure
        finally:
            alive.cancel()
    return runs, error


def _total(runs: dict[bool, Run]) -> Counter[str]:
    return sum((seen.counts for seen in runs.values()), Counter())


def _merge(model: nn.Module, runs: dict[bool, Run], at_twice: dict[bool, Run]) -> list[Call]:
    """The calls of both modes, in the order of training and then of evaluation.

    The evaluations of an expression within one call of its method (a loop) have an activation each,
    if their number is always the same and each follows a layer of its own. Otherwise, and where
    the method itself is called several times, they share one.
    """
    all_runs = [*runs.values(), *at_twice.values()]
    groups: dict[Key, list[Call]] = {}
    called: dict[Location, set[Key]] = {}
    for call in (call for seen in all_runs for call in seen.calls):
        groups.setdefault(call.key, []).append(call)
        called.setdefault(call.place, set()).add(call.key)
    alone = {key for key, calls in groups.items() if not _distinct(calls, called)}

    def instance(call: Call) -> tuple[Key, Location | None, int]:
        if call.key in alone:
            return call.key, None, 0
        same = [other for other in groups[call.key] if other.place == call.place]
        return call.key, call.place, call.step if _is_fixed_loop(same) else 0

    found: dict[Any, list[list[Call]]] = {}
    for seen in runs.values():
        once: dict[Any, list[Call]] = {}
        for call in seen.calls:
            once.setdefault(instance(call), []).append(call)
        for key, calls in once.items():
            found.setdefault(key, []).append(calls)
    larger: dict[Any, tuple[int, ...]] = {}
    for call in (call for seen in at_twice.values() for call in seen.calls):
        larger[instance(call)] = call.shape
    counts = Counter(key for key, *_ in found)
    names: dict[Key, str] = {}
    indices: Counter[Key] = Counter()
    for (key, place, step), by_run in found.items():
        call = by_run[-1][-1]  # that in evaluation mode, if there is one
        same = [other for calls in by_run for other in calls]
        if key not in names:
            names[key] = _name(model, call, names.values())
        call.last = all(other.last for other in same)
        differ = len({(c.old, repr(c.function)) for c in same}) > 1
        call.gate = (all if differ else any)(other.gate for other in same)
        call.index, call.count = indices[key], counts[key]
        indices[key] += 1
        call.name = names[key] if call.count == 1 else f"{names[key]}.{call.index}"
        axis = _channel_axis(call.shape, larger.get((key, place, step)), call.axis)
        if axis is not None and len({c.shape[axis] for c in same if len(c.shape) > axis}) > 1:
            axis = None  # they share an activation and differ in their number of channels
        call.axis, call.runs, call.times = axis, len(same), max(map(len, by_run))
        if not call.why_not and differ:
            call.why_not = "the same line calls different functions"
    return [by_run[-1][-1] for by_run in found.values()]


def _distinct(calls: list[Call], called: Mapping[Location, set[Key]]) -> bool:
    """Whether the calls with one key can be rewritten to differ, where that is needed."""
    if len({call.place for call in calls}) == 1 and not any(call.step for call in calls):
        return True
    return all(not call.place.why and len(called[call.place]) == 1 for call in calls)


def _is_fixed_loop(calls: list[Call]) -> bool:
    """Whether a loop, in each of its passes, has the same number of `calls` after as many layers.

    The same layer again makes it a recurrent loop, whose number of passes is that of time steps.
    """
    passes: list[list[Call]] = []
    for call in calls:
        if not call.step:
            passes.append([])
        passes[-1].append(call)
    functions = {repr(call.function) for call in calls}
    own = all(len({call.before for call in each}) == len(each) for each in passes)
    return len({len(each) for each in passes}) == 1 and (own or len(functions) > 1)


def _name(model: nn.Module, call: Call, taken: Collection[str]) -> str:
    """The module's name; for a function, one that is free in the module that calls it."""
    owner, point = call.key
    if point is None:
        return owner
    module, prefix = model.get_submodule(owner), f"{owner}." if owner else ""
    numbered = (f"{call.old}_{number}" for number in itertools.count(2))
    attributes = itertools.chain([call.old], numbered)
    return next(
        prefix + attribute
        for attribute in attributes
        if not hasattr(module, attribute) and prefix + attribute not in taken
    )


def _channel_axis(
    shape: tuple[int, ...], larger: tuple[int, ...] | None, known: int | None
) -> int | None:
    """The axis whose size stays when the input grows from `shape` to `larger`, else `known`."""
    if known == 0:  # no batch
        return 0
    if len(shape) == 2:
        return 1
    if larger and len(larger) == len(shape):
        kept = [axis for axis in range(1, len(shape)) if shape[axis] == larger[axis]]
        kept = [axis for axis in kept if shape[axis] > 1] or kept
        if len(kept) == 1:
            return kept[0]
    return known
