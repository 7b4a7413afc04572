"""Swap the activations of a network: `replace_activations`, which runs all steps in order.

Find the `calls`, `choose` among them, `make` the new modules, `place` them into a trial copy,
verify and `match` them there, and at last place them into the network itself.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from activations.groups import spare_shapes
from activations.torch_private import is_compiled

from .calls import find_calls, verify
from .choose import Left, choose
from .copies import copied
from .fade import Fade
from .inputs import Inputs, tensors_in
from .kinds import is_activation, plain
from .make import Factory, Share, make_all, near
from .match import match_calls
from .place import place
from .trace import Call

_PARALLEL = ("torch.distributed.", "torch.nn.parallel.distributed", "deepspeed.")
_INTRINSIC = "torch.ao.nn.intrinsic."
_QUANTIZED = ("torch.ao.nn.quantized.modules.", "torch.ao.nn.intrinsic.quantized.")


class SwapReport(list[Call]):
    """The swapped calls in the order of the forward pass; prints as a table.

    Attributes:
        left: activations and gates that were not swapped, with the reason.
    """

    left: tuple[Left, ...] = ()

    def match(self, model: nn.Module, example_input: Any = None) -> None:
        """Start the new functions of `model` as the old ones; see :func:`activations.match`.

        Args:
            model: the swapped network.
            example_input: a batch of real inputs, in a form that :func:`replace_activations` takes;
                by default the input of each call is taken to be standard normal.
        """
        example = None if example_input is None else Inputs.of(example_input)
        match_calls(model, self, example)
        for call in self:
            call.new = _described(model.get_submodule(call.name))

    def __str__(self) -> str:
        """One line for each call, then what was not swapped."""
        matched = any(call.error is not None for call in self)
        rows = [("site", "was", "is", "channels", "axis", *["error"] * matched)]
        for call in self:
            size = "?" if call.axis is None else f"{call.shape[call.axis]}"
            axis = "?" if call.axis is None else f"{call.axis} of {len(call.shape)}"
            error = ["" if call.relative_error is None else f"{call.relative_error:.1%}"] * matched
            rows.append((call.name, call.old, call.new, size, axis, *error))
        return "\n".join([*aligned(rows), *self.remarks()])

    def remarks(self) -> list[str]:
        """What is worth knowing beside the table: calls that share one, and what was left."""
        lines = []
        shared = [f"{call.name} ({call.times})" for call in self if call.times > 1]
        if shared:
            lines.append(f"one activation for several calls in a pass: {', '.join(shared)}")
        return [*lines, *reasons(self.left)]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line for each row, its cells below each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def reasons(left: Sequence[Left]) -> list[str]:
    """One line for each kind of activation that was left, and why."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, old, why in left:
        groups.setdefault((old, why), []).append(name)
    lines = []
    for (old, why), names in groups.items():
        more = f" and {len(names) - 3} more" if names[3:] else ""
        lines.append(f"left: {old} ({why}): {', '.join(names[:3])}{more}")
    return lines


def replace_activations(
    model: nn.Module,
    factory: Factory | Mapping[str, Factory],
    *,
    example_input: Any = None,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    include_kinds: str | Sequence[str] = (),
    share: Share = "site",
    match: bool | Literal["fade"] = False,
) -> SwapReport:
    """Replace every activation that `model` calls, each call by an instance of its own.

    The calls are found by running copies of the network, in training and in evaluation mode: a
    module that is called several times, and functions such as `F.relu(x)` or `x.relu_()`, count
    call by call. Which instance serves a call follows from its place in the code, and in a loop
    from the number of the pass. Calls that cannot be told apart in this way share one: those of a
    block that is itself called several times, of a recurrent cell, of a method that is called
    several times, of a loop whose length changes. The report lists them.

    Weights, buffers and the random state of `model` are not touched, and all other parameters keep
    their names. Gates (Sigmoid, Hardsigmoid, Softmax, GLU; tanh and softplus as functions) are not
    activations; see `activations.swap.kinds.kind_of`.

    Args:
        model: the network, changed in place.
        factory: makes one activation: a class, or `functools.partial` of one; or a mapping of globs
            over the calls' names to factories, of which the first that matches is taken. Where its
            class takes `channels` or `dims`, it receives those of the call's input.
        example_input: a batch such as the network takes: a tensor, a tuple of several inputs, or a
            dict of inputs by name. An input that is itself a dict or a tuple goes into a tuple. By
            default zeros in the size of a timm network's `pretrained_cfg`, else 224 x 224 or the
            first usual size that works.
        include: globs over names (`layer4.*`, `*.act3`): only these calls are swapped.
        exclude: globs over names: these are not.
        include_kinds: gates, or classes that are not recognised as activations, to be swapped
            too, by class or function name: `["Sigmoid"]`.
        share: how widely parameters are shared. `site`: each call has its own, for all channels
            together; `channel`: each call has one set per channel; `stage`: calls on feature maps
            of one size share an instance; `model`: all calls share one.
        match: True starts each new function as close as possible to the old one, on the inputs that
            `example_input` gives it (:func:`activations.match`); `"fade"` moves from the old
            function to the new one during training (:class:`activations.Fade`).

    The network gets a method `no_weight_decay()`, by which timm's optimizers spare the shapes too.

    Returns:
        The swapped calls, and what was not swapped; `print` shows both.

    Raises:
        ValueError: a glob or kind that matches nothing; a function call in code that cannot be
            rewritten; a number of channels that is needed and not known; `share` that the function
            does not allow; a factory whose module changes shape or dtype; a network that does not
            run on `example_input`. The model is then as before.
        TypeError: `factory` does not make a module.
    """
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else repr(model)
        raise TypeError(f"replace_activations needs a network, an instance, not {given}")
    for name, module in model.named_modules():
        if why := _state_in_the_way(module):
            raise ValueError(f"{name or 'the network'} {why}")
    example = None if example_input is None else Inputs.of(example_input)
    own = hasattr(example_input, "__dict__")  # of another library, such as a graph
    if example and not own and not any(True for _ in tensors_in(example)):
        raise TypeError(f"example_input must hold a tensor, got {type(example_input).__name__}")
    if match not in (True, False, "fade"):
        raise ValueError(f'match must be True, False or "fade", got {match!r}')
    if is_activation(model):
        raise ValueError(
            f"{type(model).__name__} is an activation itself: wrap it in torch.nn.Sequential"
        )
    if share not in Share.__args__:
        raise ValueError(f"share must be one of {', '.join(Share.__args__)}, got {share!r}")
    rules = dict(factory) if isinstance(factory, Mapping) else {"*": factory}
    kinds = frozenset(plain(kind) for kind in _listed(include_kinds))
    found = find_calls(model, example, kinds)
    globs = _listed(include), _listed(exclude)
    chosen, left = choose(model, found, rules, *globs, kinds, matched=bool(match))
    report = SwapReport(call for call, _ in chosen)
    report.left = tuple(left)
    made = make_all(model, chosen, rules, share)
    new = dict(made)
    for call in report:
        call.reference = _reference(model, call)
        if match == "fade":
            fade = Fade(copy.deepcopy(call.reference), made[call.name])
            new[call.name] = fade.to(near(model, call).device)
    # a copy that shares all tensors: where anything fails on it, `model` is as before
    trial = copied(model)
    place(trial, found, new)
    verify(trial, model, found, new)
    if match is True:
        report.match(trial, example_input)
    place(model, found, new)
    for call in report:
        call.new = _described(new[call.name])
    spare_shapes(model)
    return report


def _state_in_the_way(module: nn.Module) -> str:
    """Why activations must be swapped before `module` was made or changed; empty if they can be."""
    if isinstance(module, Fade):
        return (
            "is still fading: swap the network before, or train it to the end and fold it "
            "(activations.fold)"
        )
    if is_compiled(module) or isinstance(module, torch.jit.ScriptModule):
        return "is compiled: swap the activations before torch.compile and torch.jit"
    for kind in type(module).__mro__:
        home = kind.__module__
        if home.startswith(_PARALLEL) and not home.startswith("torch.distributed.algorithms."):
            return (
                f"is a {kind.__name__}, which would not know the new parameters: swap the "
                "activations first, then wrap or shard the network"
            )
        if home.startswith(_QUANTIZED) and kind.__name__ != "FloatFunctional":
            return "is quantized: swap the activations before torch.ao.quantization.convert"
        if home.startswith(_INTRINSIC) and "ReLU" in kind.__name__:
            return (
                "has a ReLU that quantization puts back: swap the activations before fuse_modules"
            )
    values = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if any(hasattr(value, "to_local") for value in values):
        return "has sharded parameters (DTensor): swap the activations before it is sharded"
    if any(map(is_lazy, values)):
        return "has parameters without a size yet: run the network once on a batch, then swap"
    return ""


def _described(new: nn.Module) -> str:
    """The class and its parameters."""
    if isinstance(new, Fade):
        return f"Fade to {_described(new.new)}"
    return f"{type(new).__name__}({new.extra_repr()})"


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _reference(model: nn.Module, call: Call) -> nn.Module:
    """The old activation, not in place, as a module that the network does not hold."""
    if call.function:
        return call.function  # with its arguments
    old = copied(model.get_submodule(call.key[0]), Tensor.clone)
    for module in old.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010 - nn.Module does not declare it
    return old
