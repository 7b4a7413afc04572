"""The calls of activations in a network, each with its name, shape and channel axis."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .trace import CONVOLUTIONS, Event, Run, run

_SIZES = (224, 299, 384, 64, 32, 28)  # tried in turn where no example input is given


@dataclass
class Call:
    """One call of an activation in the forward pass.

    Attributes:
        name: its site: the module's name, with `.0`, `.1`, ... where the module is called several
            times; for a function, that of the module that takes its place.
        old: class or function that is called there.
        new: the module that takes its place.
        shape: of the input, for the example batch.
        axis: of the channels in it; None where it cannot be told.
        reference: the old function, as a module of its own.
        error: root mean square difference from the old one, where the new one was matched.
    """

    name: str
    old: str
    shape: tuple[int, ...]
    axis: int | None
    new: str = ""
    error: float | None = None
    reference: nn.Module = field(default_factory=nn.Identity, repr=False)
    event: Event = field(repr=False, kw_only=True)
    index: int = field(repr=False, kw_only=True)  # among the calls of the same module
    count: int = field(repr=False, kw_only=True)
    home: str = field(repr=False, kw_only=True)  # the module whose forward pass counts them
    runs: int = field(repr=False, kw_only=True)  # of the two modes, how many make this call

    @property
    def gate(self) -> bool:
        """Whether it is a gate rather than an activation."""
        return self.event.gate

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
        """The size of the feature map: calls that agree in it are of one stage."""
        return tuple(n for axis, n in enumerate(self.shape) if axis not in (0, self.axis))


@dataclass
class Calls:
    """All calls of a network, and how they were found."""

    calls: list[Call]  # gates included
    modules: Counter[str]  # how often each was called
    overwritten: set[Any]  # keys of calls that change their input in place, where it is used again
    example: Tensor
    meta: bool  # whether it runs without numbers
    failure: str  # why the network does not run in one of the modes; empty where it does


def find_calls(
    model: nn.Module, example_input: Tensor | None, kinds: frozenset[str] = frozenset()
) -> Calls:
    """Run copies of `model` in both modes and at two sizes; ValueError where it does not run.

    Modules whose class is named in `kinds` are watched as well.
    """
    examples = [example_input] if example_input is not None else _examples(model)
    # batch normalisation trains on two samples at least
    examples = [torch.cat([x, x]) if len(x) == 1 else x for x in examples]
    partial: tuple[dict[bool, Run], bool, Tensor, Exception] | None = None
    failed: tuple[Exception, Tensor] | None = None
    # with numbers only where it must be: a network may compute with them as it runs
    for meta, example in itertools.product((True, False), examples):
        runs, error = _runs(model, example, kinds, meta)
        if not error:
            break
        failed = failed or (error, example)
        if False in runs:
            partial = partial or (runs, meta, example, error)
    else:
        assert failed
        if partial is None:
            raise ValueError(
                f"{type(model).__name__} fails on an example input of shape "
                f"{tuple(failed[1].shape)}: {failed[0]}. example_input must be a batch such as "
                "the network takes"
            ) from failed[0]
        runs, meta, example, error = partial
    in_evaluation = {event.key for event in runs[False].events}
    trained = runs[True].events if True in runs else []
    modes = (False,) if all(event.key in in_evaluation for event in trained) else (False, True)
    larger = _larger(example)
    at_twice = {} if larger is None else _runs(model, larger, kinds, meta, modes)[0]
    return Calls(
        _merge(model, runs, at_twice),
        sum((seen.calls for seen in runs.values()), Counter()),
        set().union(*(seen.overwritten for seen in runs.values())),
        example,
        meta,
        str(error or ""),
    )


def count_calls(model: nn.Module, found: Calls) -> Counter[str]:
    """How often each module is called when `model` runs as in `found`; ValueError if it fails."""
    runs, error = _runs(model, found.example, frozenset(), found.meta)
    if error and found.meta:
        runs, error = _runs(model, found.example, frozenset(), False)
    if error and not found.failure:
        raise ValueError(f"with its new activations {type(model).__name__} fails: {error}")
    return sum((seen.calls for seen in runs.values()), Counter())


def _examples(model: nn.Module) -> list[Tensor]:
    """Batches to try: of the size that timm's `pretrained_cfg` names, then of usual sizes."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    known = tuple(cfg.get("input_size", ()))
    sizes: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):  # its channels rather than cfg's
            sides = [known[1:], *((size, size) for size in _SIZES)]
            dims = len(module.kernel_size)
            sizes = [(module.in_channels, *side, *side[:1])[: 1 + dims] for side in sides if side]
            break
        if isinstance(module, nn.Linear):
            sizes = [(module.in_features,)]
            break
    sizes = sizes or [(3, size, size) for size in _SIZES]
    return [torch.zeros(2, *size) for size in dict.fromkeys([*sizes[:1], known, *sizes]) if size]


def _larger(example: Tensor) -> Tensor | None:
    kept = 2 if example.is_floating_point() else 1
    shape = (*example.shape[:kept], *(2 * size for size in example.shape[kept:]))
    return example.new_zeros(shape) if len(shape) > kept else None


def _runs(
    model: nn.Module,
    example: Tensor,
    kinds: frozenset[str],
    meta: bool,
    modes: tuple[bool, ...] = (True, False),
) -> tuple[dict[bool, Run], Exception | None]:
    """Runs by mode (True is training), and the error of a mode that failed."""
    runs: dict[bool, Run] = {}
    error = None
    for training in modes:
        try:
            runs[training] = run(model, example, kinds, meta=meta, training=training)
        except Exception as failure:
            error = failure
    return runs, error


def _merge(model: nn.Module, runs: dict[bool, Run], at_twice: dict[bool, Run]) -> list[Call]:
    """The calls of both modes, in the order of training and then of evaluation."""
    seen, larger = (
        {mode: _numbered(run.events) for mode, run in each.items()} for each in (runs, at_twice)
    )
    events = [event for run in runs.values() for event in run.events]
    names, homes = _names(model, events), _homes(events, runs)
    order = list(dict.fromkeys(at for mode in seen for at in seen[mode]))
    counts = Counter(key for key, _ in order)
    calls = []
    for at in order:
        key, index = at
        modes = [mode for mode in seen if at in seen[mode]]
        mode = min(modes)  # evaluation, if it can be
        event = seen[mode][at]
        name = names[key] if counts[key] == 1 else f"{names[key]}.{index}"
        axis = _channel_axis(event, larger.get(mode, {}).get(at))
        calls.append(
            Call(
                name,
                event.old,
                event.shape,
                axis,
                event=event,
                index=index,
                count=counts[key],
                home=homes[key],
                runs=len(modes),
            )
        )
    return calls


def _numbered(events: list[Event]) -> dict[tuple[Any, int], Event]:
    """Events by key and number among those of the same key."""
    counts: Counter[Any] = Counter()
    numbered = {}
    for event in events:
        numbered[event.key, counts[event.key]] = event
        counts[event.key] += 1
    return numbered


def _names(model: nn.Module, events: list[Event]) -> dict[Any, str]:
    """A name for every key; a function's is free among the children of the module that calls it."""
    names: dict[Any, str] = {}
    for event in events:
        owner, location = event.key
        if event.key in names:
            continue
        name = owner
        if location is not None:
            for number in itertools.count(1):
                attribute = event.old + (f"_{number}" if number > 1 else "")
                name = f"{owner}.{attribute}" if owner else attribute
                if name not in names.values() and not hasattr(
                    model.get_submodule(owner), attribute
                ):
                    break
        names[event.key] = name
    return names


def _homes(events: list[Event], runs: dict[bool, Run]) -> dict[Any, str]:
    """For each key the innermost module that makes all its calls and is called once at most."""
    stacks: dict[Any, tuple[str, ...]] = {}
    for event in events:
        pairs = zip(stacks.get(event.key, event.stack), event.stack, strict=False)
        shared = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        stacks[event.key] = tuple(name for name, _ in shared)
    return {
        key: next((n for n in reversed(stack) if all(r.calls[n] <= 1 for r in runs.values())), "")
        for key, stack in stacks.items()
    }


def _channel_axis(event: Event, larger: Event | None) -> int | None:
    """The axis whose size stays when the input grows, else the one of the layer that made it."""
    if len(event.shape) == 2:
        return 1
    if larger and len(larger.shape) == len(event.shape):
        axes = range(1, len(event.shape))
        kept = [axis for axis in axes if event.shape[axis] == larger.shape[axis]]
        kept = [axis for axis in kept if event.shape[axis] > 1] or kept
        if len(kept) == 1:
            return kept[0]
    return event.axis
