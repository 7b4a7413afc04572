"""Weights of a network: read from a file, loaded, or drawn anew."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from activations.functions.formula import parse
from activations.groups import shape_parameters
from activations.swap.fade import Fade
from activations.swap.kinds import CONVOLUTIONS

from .checkpoints import read_file


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state of a network from a .safetensors, .pth or .ckpt file.

    From a checkpoint of this project only the backbone is read. Prefixes that wrappers add to all
    names (`module.`, `_orig_mod.`) are removed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or does not hold tensors by name.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and path.is_file():
        from safetensors.torch import load_file

        try:
            content: Any = load_file(path)
        except Exception as error:
            raise ValueError(f"{str(path)!r} cannot be read as weights: {error}") from error
    else:
        content = read_file(path, "--model.checkpoint_path")
    for key in ("state_dict", "model", "model_state_dict", "state_dict_ema"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{str(path)!r} holds no weights by name")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise ValueError(
                f"{str(path)!r} holds {name!r}, of type {type(value).__name__}, among its "
                "weights: save network.state_dict() alone, which holds tensors by name"
            )
    # a checkpoint of this project may also hold class weights
    backbone = {name: value for name, value in content.items() if name.startswith("backbone.")}
    content = backbone or content
    prefixes = ("module.", "_orig_mod.", "backbone.", "model.")
    while prefix := next((p for p in prefixes if all(n.startswith(p) for n in content)), ""):
        content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def trained_with(path: str | Path) -> Any:
    """The activation that a checkpoint of this project describes; None if it tells none, or many.

    Several functions have parameters of the same names and shapes.
    """
    content = read_file(Path(path)) if Path(path).suffix == ".ckpt" else None
    options = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(options, dict) or options.get("activation_by_site"):
        return None
    return options.get("activation")


def is_same(one: Any, other: Any) -> bool:
    """Whether two descriptions are of one class, formula or mixture, whatever its numbers are."""
    first, second = (each.get("init_args") or {} for each in (one, other))
    if _kind(one) != _kind(other):
        return False
    for name, read in (("variant", str), ("formula", parse)):
        if first.get(name) and second.get(name) and read(first[name]) != read(second[name]):
            return False
    members = first.get("members") or (), second.get("members") or ()
    if not all(members):  # those that the class has by default
        return True
    return len(members[0]) == len(members[1]) and all(map(is_same, *members))


def _kind(description: Any) -> str:
    return str(description.get("class_path")).rpartition(".")[2]


def others(network: nn.Module, known: Any, sites: Sequence[str], activation: Any) -> dict[str, str]:
    """The shapes at `sites` that are of another function than `known`: parameter -> function.

    Args:
        network: whose shapes they are; a shared one has several names.
        known: a description, see :func:`trained_with`.
        sites: where activations were swapped in.
        activation: the network's own description; None if it has several, which then are compared
            by their class alone.
    """
    if not known or (activation and is_same(known, activation)):
        return {}
    found = dict[str, str]()
    shapes = {id(each) for each in shape_parameters(network).values()}
    for site in sites:
        module = network.get_submodule(site)
        module = module.new if isinstance(module, Fade) else module
        if activation or type(module).__name__ != _kind(known):
            name = name_of(activation) if activation else type(module).__name__
            own = {id(each) for each in module.parameters()} & shapes
            named = network.named_parameters(remove_duplicate=False)
            found |= {each: name for each, value in named if id(value) in own}
    return found


def without_other_shapes(
    network: nn.Module, state: dict[str, Tensor], path: str, sites: Sequence[str], activation: Any
) -> dict[str, Tensor]:
    """`state` without the shapes of a checkpoint whose activations are another function.

    The network's own stay as they start, and a warning says so. The arguments are those of
    :func:`others`, and the path of the checkpoint.
    """
    known = trained_with(path)
    mine = others(network, known, sites, activation)
    if not (lost := mine.keys() & state.keys()):
        return state
    warnings.warn(
        f"{path} was trained with {name_of(known)}: {', '.join(sorted({mine[n] for n in lost}))} "
        "keeps the values of its own start",
        stacklevel=3,
    )
    return {name: value for name, value in state.items() if name not in lost}


def name_of(activation: Any) -> str:
    """A description in short: the class, and the formula or the members of a mixture."""
    name, given = _kind(activation), activation.get("init_args") or {}
    members = (name_of(each) for each in given.get("members") or ())
    more = given.get("formula") or ", ".join(members)
    return f"{name}({more})" if more else name


def load_weights(
    network: nn.Module, state: dict[str, Tensor], *, source: str, fresh: tuple[str, ...] = ()
) -> None:
    """Load `state` into `network`, all of it or nothing.

    If the number of input channels differs, the first convolution is adapted as in timm. If the
    number of classes differs, the last layer keeps its initial weights, and so do others of its
    size (the second head of a distilled network); a warning says so.

    Args:
        network: changed in place.
        state: tensors by name.
        source: where they come from, for messages.
        fresh: prefixes of names that may be missing in `state`: activations that were swapped in.

    Raises:
        ValueError: names or shapes do not fit; the message lists them.
    """
    own = network.state_dict()
    state = dict(state)
    shapes = shape_parameters(network)
    large = (name for name, value in own.items() if value.dim() > 1 and name in state)
    weights = [name for name in large if not name.startswith("side.") and name not in shapes]
    first, last = (weights[0], weights[-1].rpartition(".")[0]) if weights else ("", "")
    first = next((name for name in weights if own[name].dim() == 4), first)  # not a position
    if first and _differ_at(1, state[first], own[first]) and state[first].shape[1]:
        state[first] = _of_channels(state[first], own[first].shape[1])
    wrong = [n for n, value in state.items() if n in own and value.shape != own[n].shape]
    layers = [name.rpartition(".")[0] for name in wrong]
    heads = [each for each in dict.fromkeys(layers) if each != "side.out"]
    like = [(state.get(f"{each}.weight"), own.get(f"{each}.weight")) for each in (last, *heads)]
    sizes = {tuple(None if each is None else each.shape for each in pair) for pair in like}
    if last in heads and len(sizes) == 1 and _differ_at(0, *like[0]):
        named = " and ".join(map(repr, heads))
        start = f"layer {named} starts" if len(heads) == 1 else f"layers {named} start"
        warnings.warn(
            f"{source} has {len(state[f'{last}.weight'])} classes, the data "
            f"{len(own[f'{last}.weight'])}: the {start} untrained",
            stacklevel=2,
        )
        state |= {name: own[name] for name in wrong}
        wrong = []
    problems = [f"{n}: {tuple(state[n].shape)}, the network {tuple(own[n].shape)}" for n in wrong]
    old = "num_batches_tracked"  # which torch has counted since version 0.4.1
    missing = [n for n in own if n not in state and not n.endswith(old)]
    problems += [f"{n}: missing" for n in missing if not n.startswith(fresh)]
    problems += [f"{n}: the network has no such part" for n in state if n not in own]
    if problems:
        more = f"; and {len(problems) - 6} more" if problems[6:] else ""
        hint = " (weights for large images need stem: imagenet)" if first in wrong else ""
        raise ValueError(
            f"{source} does not fit {type(network).__name__}: {'; '.join(problems[:6])}{more}{hint}"
        )
    network.load_state_dict(own | state)


def _differ_at(axis: int, one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors have sizes that differ at this axis alone."""
    if one is None or other is None or one.dim() != other.dim():
        return False
    sizes = enumerate(zip(one.shape, other.shape, strict=True))
    return all((mine != its) == (k == axis) for k, (mine, its) in sizes)


def _of_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution's weight for other input channels, as in timm, for any number of them.

    One channel gets the sum of all; else the known ones take turns, times known / channels.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    known = weight.shape[1]
    order = torch.arange(channels) % known
    return weight[:, order] * (known / channels)


def load_shapes(
    network: nn.Module, path: str | Path, sites: Sequence[str] = (), activation: Any = None
) -> None:
    """Load what the activations of a trained network learned as their shape, and nothing else.

    A warning is given where progressive functions keep learned terms locked at first.

    Args:
        network: changed in place; its activations are those of the trained network.
        path: a file that :func:`read_weights` reads.
        sites: where activations were swapped in.
        activation: as :func:`models.checkpoints.describe` describes it; None if there are several.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file lacks a value, or has one of another shape, or of another function.
    """
    state, own = read_weights(path), shape_parameters(network)
    known = trained_with(path)
    if mine := others(network, known, sites, activation):
        raise ValueError(
            f"activation_from: {str(path)!r} was trained with {name_of(known)}, this network has "
            f"{next(iter(mine.values()))}: name a checkpoint of the same activation"
        )
    wrong = [n for n, value in own.items() if n not in state or state[n].shape != value.shape]
    if wrong or not own:
        what = (
            f"no {wrong[0]} of shape {tuple(own[wrong[0]].shape)}" if wrong else "nothing to give"
        )
        raise ValueError(
            f"activation_from: {str(path)!r} has {what}: name a checkpoint of a network with the "
            "same backbone, activation and share, whose activations learn"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])
    if any(getattr(module, "progressive", False) for module in network.modules()):
        warnings.warn(
            "activation_from gives learned terms to a progressive function, which lets them in one "
            "after the other as it trains: with --model.activation.progressive false it has them "
            "from the first step on",
            stacklevel=3,
        )


def freeze_shapes(network: nn.Module) -> None:
    """Keep what the activations would learn as their shape at its present values.

    Raises:
        ValueError: they learn nothing.
    """
    own = shape_parameters(network)
    if not own:
        raise ValueError("activation_frozen: the activations of this network learn nothing")
    for value in own.values():
        value.requires_grad_(False)


def kaiming_(network: nn.Module, gain: float) -> None:
    """Draw convolutions and hidden linear layers from N(0, gain^2 / fan), and set biases to 0.

    The fan is that of the output for convolutions, that of the input for linear layers. The last
    layer keeps its initial weights if it is linear.

    Reference:
        He et al., "Delving deep into rectifiers", 2015, section 2.2.
    """
    layers = [m for m in network.modules() if isinstance(m, (nn.Linear, *CONVOLUTIONS))]
    if layers and isinstance(layers[-1], nn.Linear):
        layers.pop()
    for layer in layers:
        if isinstance(layer, nn.Linear):
            fan = layer.in_features
        else:
            fan = layer.out_channels // layer.groups * math.prod(layer.kernel_size)
        nn.init.normal_(layer.weight, std=gain / math.sqrt(fan))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
