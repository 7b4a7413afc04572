"""Swap the activations of a network, one new instance a call site."""

import copy
import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .activation import Activation

# Gates and normalisations: they bound or share out, and a network breaks without them.
_NOT_SWAPPED = {"Sigmoid", "Hardsigmoid", "HardSigmoid", "HardSigmoidMe", "LogSigmoid", "Softmax",
                "Softmax2d", "LogSoftmax", "Softmin", "GLU", "MultiheadAttention"}  # fmt: skip
_NAMES = ("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
          "hardtanh", "softplus", "prelu", "rrelu")  # fmt: skip
_FUNCTIONS = {
    getattr(owner, name + suffix)
    for owner in (F, torch, Tensor)
    for name in _NAMES
    for suffix in ("", "_")
    if hasattr(owner, name + suffix)
}


def is_activation(module: nn.Module) -> bool:
    """Whether the swap replaces `module`: ours, torch's and timm's activations, gates excepted."""
    if isinstance(module, Activation):
        return True
    kind = type(module)
    where = kind.__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations"))
    return where and kind.__name__ not in _NOT_SWAPPED


@dataclass
class Call:
    """One activation module and how the network calls it."""

    name: str
    old: str
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    new: str = ""


class SwapReport(list[Call]):
    """The calls that were swapped, in the order of the forward pass; prints as a table.

    Attributes:
        left: names of activations that the forward pass in evaluation mode did not call, and that
            were therefore left as they are.
    """

    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line a call: name, old, new."""
        rows = [("site", "was", "is"), *((call.name, call.old, call.new) for call in self)]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
        return "\n".join([*lines, *(f"{name}: never called, left as it is" for name in self.left)])


def replace_activations(
    model: nn.Module,
    factory: Callable[..., nn.Module],
    *,
    example_input: Tensor | None = None,
) -> SwapReport:
    """Replace every activation that `model` calls by an instance of its own from `factory`.

    The calls are found by running a copy of the network; the weights, the buffers and the random
    state of `model` are not touched. All other parameters keep their names.

    Args:
        model: the network, changed in place.
        factory: makes one activation: a class, or `functools.partial` of one. Where its class
            takes `channels`, it receives the size of the call's channel axis.
        example_input: a batch such as the network takes. By default 2 x `input_size` of a timm
            network's `pretrained_cfg`, else (2, 3, 224, 224).

    Returns:
        The swapped calls.

    Raises:
        ValueError: an activation is called more than once, or as a function (`F.relu`); a channel
            count is needed and cannot be told; no activation is called; the network fails on
            `example_input`. The model is as before.
        TypeError: `factory` does not make a module.
    """
    if example_input is None:
        cfg = getattr(model, "pretrained_cfg", None) or {}
        example_input = torch.zeros(2, *cfg.get("input_size", (3, 224, 224)))
    if is_activation(model):
        raise ValueError(
            f"{type(model).__name__} is an activation itself: wrap it in torch.nn.Sequential"
        )
    probe = factory()
    if not isinstance(probe, nn.Module):
        raise TypeError(f"the activation factory must make a torch.nn.Module, got {probe!r}")
    calls = _calls(model, example_input)
    sized = "channels" in inspect.signature(type(probe)).parameters
    channels = _channels(model, example_input, calls, type(probe).__name__) if sized else {}
    parameters = (p for p in model.parameters() if p.is_floating_point())
    parameter = next(parameters, example_input)
    replacements = {}
    for call in calls:
        new = factory(channels=channels[call.name]) if sized else factory()
        call.new = f"{type(new).__name__}({new.extra_repr()})"
        old = model.get_submodule(call.name)
        replacements[call.name] = new.to(parameter.device, parameter.dtype).train(old.training)
    new_of = {model.get_submodule(name): new for name, new in replacements.items()}
    for name, module in list(model.named_modules(remove_duplicate=False)):  # under all its names
        if module in new_of:
            owner_name, _, attribute = name.rpartition(".")
            owner = model.get_submodule(owner_name)
            setattr(owner, attribute, new_of[module])
            if isinstance(owner, nn.TransformerEncoderLayer):
                owner.activation_relu_or_gelu = 0  # else its fast path goes on with the old one
    report = SwapReport(calls)
    inner = {id(part) for module in new_of.values() for part in module.modules()}
    report.left = tuple(
        name
        for name, module in model.named_modules()
        if is_activation(module) and id(module) not in inner
    )
    return report


def _calls(model: nn.Module, example_input: Tensor) -> list[Call]:
    """The activation calls of one forward pass; ValueError for those that cannot be swapped."""
    calls, functional = _dry_run(model, example_input)
    if functional:
        more = f"; and {len(functional) - 3} more" if functional[3:] else ""
        raise ValueError(
            "cannot swap an activation that is called as a function, not as a module: "
            + "; ".join(functional[:3])
            + more
        )
    if reused := [f"{call.name} ({len(call.shapes)} calls)" for call in calls if call.shapes[1:]]:
        raise ValueError(
            "cannot swap a module that is called more than once, since its calls would share one "
            f"activation: {', '.join(reused)}. Try timm's version of the network, whose modules "
            "are mostly called once"
        )
    if not calls:
        raise ValueError(f"{type(model).__name__} calls no activation module that could be swapped")
    return calls


def _channels(
    model: nn.Module, example_input: Tensor, calls: list[Call], name: str
) -> dict[str, int]:
    """The size of each call's channel axis: the one that stays when the input is twice as large."""
    n, c, *spatial = example_input.shape
    larger, _ = _dry_run(model, example_input.new_zeros(n, c, *(2 * size for size in spatial)))
    channels = {}
    for call, other in zip(calls, larger, strict=True):
        pairs = list(zip(call.shapes[0], other.shapes[0], strict=True))[1:]
        kept = {size for size, size_then in pairs if size == size_then}
        if len(kept) > 1:
            kept.discard(1)
        if len(kept) != 1:
            raise ValueError(
                f"{name} needs the number of channels, which the input {call.shapes[0]} "
                f"of {call.name} does not tell"
            )
        channels[call.name] = kept.pop()
    return channels


def _dry_run(model: nn.Module, example_input: Tensor) -> tuple[list[Call], list[str]]:
    """Run a copy of `model` in evaluation mode: without weights or, where that fails, with them."""
    try:
        return _run(copy.deepcopy(model).to("meta"), example_input.to("meta"))
    except Exception:  # a network may compute with real numbers in its forward pass
        device = next(model.parameters(), example_input).device
        with torch.random.fork_rng(devices=[]):
            try:
                return _run(copy.deepcopy(model), example_input.to(device))
            except Exception as error:
                raise ValueError(
                    f"{type(model).__name__} fails on an example input of shape "
                    f"{tuple(example_input.shape)}: {error}"
                ) from error


@torch.no_grad()
def _run(twin: nn.Module, example_input: Tensor) -> tuple[list[Call], list[str]]:
    """The calls of activation modules, and of activation functions outside of such modules."""
    calls: dict[str, Call] = {}
    functional: list[str] = []
    stack: list[tuple[str, nn.Module]] = [("the network itself", twin)]

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in _FUNCTIONS and not within_activation():
                functional.append(f"{stack[-1][0] or 'the network itself'} ({_caller()})")
            return func(*args, **(kwargs or {}))

    def within_activation() -> bool:
        return any(is_activation(module) for _, module in stack)

    def enter(name: str, module: nn.Module, args: tuple[Tensor, ...], kwargs: Any) -> None:
        if is_activation(module) and not within_activation():
            call = calls.setdefault(name, Call(name, type(module).__name__))
            call.shapes.append(tuple((*args, *kwargs.values())[0].shape))
        stack.append((name, module))

    for name, module in twin.eval().named_modules():
        module.register_forward_pre_hook(
            lambda m, args, kwargs, name=name: enter(name, m, args, kwargs), with_kwargs=True
        )
        module.register_forward_hook(lambda m, inputs, output: stack.pop() and None)
    with Watch():
        twin(example_input)
    return list(calls.values()), list(dict.fromkeys(functional))


def _caller() -> str:
    """File, line and text of the innermost code outside torch and this file."""
    frames = reversed(traceback.extract_stack())
    outside = (f for f in frames if f.filename != __file__ and "/torch/" not in f.filename)
    frame = next(outside)
    return f"{frame.filename}:{frame.lineno}: {frame.line}"
