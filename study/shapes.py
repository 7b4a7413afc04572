"""The activations of an arm, before and after training, made again from its results alone."""

import inspect
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import activations
from activations.groups import learned_values
from callbacks.sites import curve, has_curve

from .runs import Study, read_about
from .spec import SpecError, flatten

Array = NDArray[np.float64]

_OF_CLASSES = ("class_path", "init_args")
CHANGE, RELU = "change of f", "share of ReLU in f"
SHOWN = torch.linspace(-4, 4, 161)
# the standard normal distribution, which is about what batch normalisation hands to a function
INPUTS = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(2001) + 0.5) / 2001)


class Learned(NamedTuple):
    """The activations of an arm, one for each site.

    Attributes:
        sites: their names, in the order of the network.
        first: before training.
        other: before training, with another seed; none where the start was fitted to a network.
        last: for each run that ended well, after training.
    """

    sites: list[str]
    first: list[nn.Module]
    other: list[nn.Module] | None
    last: list[list[nn.Module]]


class Values(NamedTuple):
    """One number or several of each layer; means over channels where each has its own."""

    layers: list[int]
    """The layers that have it, counted from 0."""
    start: Array
    """(layers, terms), before training; NaN where it is drawn at random or not known."""
    end: Array
    """(seeds, layers, terms), after training."""


def learned(study: Study, arm: str, cell: int) -> Learned:
    """What the activations of an arm were before and after the runs that ended well.

    Raises:
        SpecError: an activation of the arm cannot be made here.
    """
    runs = [study.verdict_run(arm, cell, seed) for seed in study.seeds]
    ended = [study.results[run.id]["learned"] for run in runs if study.status(run) == "ok"]
    if not any(ended):
        return Learned([], [], None, [])
    options = started(study, arm, cell) | _options(study, arm, cell)
    numbers = [_by_site(each) for each in ended]
    sites = sorted(numbers[0], key=natural)
    first, other = (
        [made(options, site, numbers[0][site], seed) for site in sites] for seed in (0, 1)
    )
    last = [[_trained(options, site, each[site]) for site in sites] for each in numbers]
    return Learned(sites, first, None if options.get("model.match") else other, last)


def defaults(spec: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Class -> its default numbers, of all activations that a spec names.

    A study keeps them beside its lock: what its functions started from must be known, also when the
    defaults of the classes have changed.
    """
    options = map(flatten, (*spec["base"], *spec["cells"], *spec["arms"].values()))
    asked = list[Any]()
    for each in options:
        asked += [
            each.get("model.activation"),
            *(each.get("model.activation_by_site") or {}).values(),
        ]
    found = dict[str, dict[str, float]]()
    for kind in dict.fromkeys(filter(None, map(known_class, asked))):
        name, known = kind.__name__, inspect.signature(kind).parameters
        sizes = {*activations.Channels.__annotations__, *getattr(kind, "size_arguments", ())}
        values = {n: each.default for n, each in known.items()
                  if type(each.default) in (int, float) and n not in sizes}  # fmt: skip
        found |= {name: values} if values else {}
    return found


def started(study: Study, arm: str, cell: int) -> dict[str, Any]:
    """The default numbers of an arm's activation as they were then, of those that it is not given.

    They are options of train.py.
    """
    options = _options(study, arm, cell)
    kind = known_class(options.get("model.activation"))
    known = read_about(study.folder).get("defaults", {}).get(kind.__name__ if kind else "", {})
    named = {f"model.activation.{name}": value for name, value in known.items()}
    return {name: value for name, value in named.items() if name not in options}


def _options(study: Study, arm: str, cell: int) -> dict[str, Any]:
    """The options of an arm, with those of the overlays; another activation has its own alone."""
    run = study.verdict_run(arm, cell, study.seeds[0])
    found: dict[str, Any] = {}
    for each in map(flatten, (*run.base, run.options)):
        if "model.activation" in each:
            found = {n: v for n, v in found.items() if not n.startswith("model.activation.")}
        found |= each
    return found


def known_class(activation: Any) -> type[nn.Module] | None:
    """The class of this project or of torch that an option names; None of another."""
    place, _, name = _class_path(activation).rpartition(".")
    first = place.partition(".")[0]
    kind = getattr(activations, name, None) if first in ("", "activations") else None
    kind = kind or (getattr(nn, name, None) if first in ("", "torch") else None)
    return kind if inspect.isclass(kind) and issubclass(kind, nn.Module) else None


def _class_path(activation: Any) -> str:
    named = activation.get("class_path") if isinstance(activation, dict) else activation
    return str(named or "")


def _by_site(learned: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = dict[str, dict[str, Any]]()
    for name, value in learned.items():
        whole = name.partition(".members.")[0] if ".members." in name else name.rpartition(".")[0]
        site = whole.removesuffix(".new")  # of what was faded in
        found.setdefault(site, {})[name.removeprefix(f"{whole}.")] = value
    return found


def natural(site: str) -> list[tuple[int, str]]:
    """The key by which layer10 comes after layer2."""
    return [
        (int(part or -1), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", site)
    ]


def made(options: dict[str, Any], site: str, numbers: dict[str, Any], seed: int = 0) -> nn.Module:
    """The activation of an arm at a site, before training, with as many channels as `numbers`.

    Raises:
        SpecError: its class is not here.
    """
    by_site = options.get("model.activation_by_site") or {}
    named = (each for pattern, each in by_site.items() if fnmatch(site, pattern))
    asked, prefix = next(named, options.get("model.activation")), "model.activation."
    place, _, name = _class_path(asked).rpartition(".")
    try:
        kind: Any = known_class(asked) or getattr(import_module(place), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError(f"{asked!r} of {site} cannot be made here: {error}") from error
    if by_site:
        given = dict(asked.get("init_args") or {}) if isinstance(asked, dict) else {}
    else:
        given = {n.removeprefix(prefix): v for n, v in options.items() if n.startswith(prefix)}
        given = {n: v for n, v in given.items() if n not in _OF_CLASSES and "." not in n}
    sizes = getattr(kind, "size_arguments", ("num_parameters",))  # torch's PReLU has it
    if "channels" in sizes:
        given["channels"] = 1  # of a convolution, which is no shape
    elif "num_parameters" in sizes:
        given["num_parameters"] = len(next(iter(numbers.values())))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return kind(**given)
        except (TypeError, ValueError) as error:
            raise SpecError(f"{asked!r} of {site} cannot be made: {error}") from error


@torch.no_grad()
def _trained(options: dict[str, Any], site: str, numbers: dict[str, Any]) -> nn.Module:
    module = made(options, site, numbers)
    for name, parameter in activations.shape_parameters(module).items():
        parameter.copy_(torch.tensor(numbers[name]).view_as(parameter))
    activations.set_progress(module, 1.0)
    return module


def parameters(found: Learned) -> dict[str, Values]:
    """Parameter -> its values, as the functions use them."""
    named = [_terms(module) for module in found.first]
    result = {}
    for name in dict.fromkeys(name for each in named for name in each):
        layers = [k for k, each in enumerate(named) if name in each]
        start, other = (
            np.array([_terms(modules[k])[name] if modules else [np.nan] for k in layers])
            for modules in (found.first, found.other)
        )
        end = np.array([[_terms(each[k])[name] for k in layers] for each in found.last])
        result[name] = Values(layers, np.where(start == other, start, np.nan), end)
    return result


def _terms(module: nn.Module) -> dict[str, Array]:
    """(terms,) of each parameter, the mean over the channels."""
    channels = getattr(module, "num_parameters", 1)
    return {
        name: value.double().reshape(channels if len(value) == channels else 1, -1).mean(0).numpy()
        for name, value in learned_values(module).items()
    }


def properties(found: Learned) -> dict[str, Values]:
    """How far each function moved, and how much of ReLU is in it, for standard normal inputs.

    The change is the root of the mean squared difference between the functions after and before
    training. The share of ReLU is that of the function's variance which `a relu(x) + b` explains.
    """
    layers = [k for k, module in enumerate(found.first) if has_curve(module)]
    if not layers:
        return {}
    start, other = (
        _on(INPUTS, [modules[k] for k in layers]) if modules else [INPUTS[:0]] * len(layers)
        for modules in (found.first, found.other)
    )
    end = [_on(INPUTS, [each[k] for k in layers]) for each in found.last]
    moved = [[_change(*both) for both in zip(start, each, strict=True)] for each in end]
    shares = [[_share(y) for y in each] for each in end]
    same = [torch.equal(*both) for both in zip(start, other, strict=True)]
    before = [_share(y) if known else np.nan for y, known in zip(start, same, strict=True)]
    moved = np.where(same, moved, np.nan)
    return {
        CHANGE: Values(layers, np.where(same, 0.0, np.nan)[:, None], moved[..., None]),
        RELU: Values(layers, np.array(before)[:, None], np.array(shares)[..., None]),
    }


def _on(x: Tensor, modules: Sequence[nn.Module]) -> list[Tensor]:
    """(points, channels) of each function."""
    return [curve("", module, x, {}).double() for module in modules]


def _change(before: Tensor, after: Tensor) -> float:
    return (after - before).square().mean().sqrt().item()


def _share(y: Tensor) -> float:
    """Of ReLU in a function, the mean over its channels."""
    relu, own = INPUTS.relu().double(), y - y.mean(0)
    relu = (relu - relu.mean())[:, None]
    explained = (own * relu).mean(0).square() / relu.square().mean()
    return (explained / own.square().mean(0)).mean().item()


def curves(found: Learned) -> tuple[Array, list[Array], list[Array]] | None:
    """Inputs, and for each layer the function at the start and the mean of the learned ones."""
    layers = [k for k, module in enumerate(found.first) if has_curve(module)]
    if not layers:
        return None
    first = [y.mean(1).numpy() for y in _on(SHOWN, [found.first[k] for k in layers])]
    last = [
        [y.mean(1).numpy() for y in _on(SHOWN, [each[k] for k in layers])] for each in found.last
    ]
    return SHOWN.double().numpy(), first, list(np.mean(last, axis=0))
