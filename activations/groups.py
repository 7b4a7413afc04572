"""Which parameters are an activation's shape, and optimizer groups that respect it."""

import inspect
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from torch import Tensor, nn

from .activation import Activation


def shape_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name and value of every parameter that an activation of `model` learns as its shape.

    These are the direct parameters of `Activation` and `torch.nn.PReLU` modules, also where
    `torch.nn.utils.parametrize` computes them from others. LSLU's convolution and batch
    normalisation sit in child modules and are weights.
    """
    return {
        f"{site}.{name}" if site else name: parameter
        for site, module in model.named_modules()
        if isinstance(module, Activation | nn.PReLU)
        for name, parameter in _own(module)
    }


def learned_values(model: nn.Module) -> dict[str, Tensor]:
    """The values of :func:`shape_parameters` as the functions use them, clamped where they are."""
    return {name: _used(model, name).detach() for name in shape_parameters(model)}


def _used(model: nn.Module, name: str) -> Tensor:
    site, _, own = name.rpartition(".")
    module = model.get_submodule(site)
    return module.used(own) if isinstance(module, Activation) else getattr(module, own)


def _own(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    yield from module.named_parameters(recurse=False)
    if isinstance(parametrized := getattr(module, "parametrizations", None), nn.Module):
        yield from parametrized.named_parameters("parametrizations")


def no_weight_decay(model: nn.Module) -> set[str]:
    """Names of the parameters that are not decayed: the network's own list, and all shapes.

    The swap makes it the method `no_weight_decay()` of a network, which timm's optimizers call.
    """
    own: Any = inspect.getattr_static(type(model), "no_weight_decay", ())
    if hasattr(own, "__get__"):  # a method or a property
        own = own.__get__(model, type(model))
    names: Any = own() if callable(own) else own
    return {*names, *shape_parameters(model)}


def spare_shapes(model: nn.Module) -> None:
    """Let the network's `no_weight_decay`, a method or a collection, name the shapes, too."""
    with suppress(AttributeError):  # a property cannot be set
        own: Any = getattr(model, "no_weight_decay", None)
        names: Any = partial(no_weight_decay, model)
        if own is not None and not callable(own):
            names = {*own, *shape_parameters(model)}
        model.no_weight_decay = names


def parameter_groups(
    model: nn.Module, *, activation_weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Optimizer groups of `model`: "weights" and, if there are any, "activations", their shapes.

    Args:
        model: the network; frozen parameters are left out.
        activation_weight_decay: weight decay of the second group; the first has the optimizer's.

    Raises:
        ValueError: a negative weight decay.
    """
    if not activation_weight_decay >= 0:
        raise ValueError(f"activation_weight_decay must be >= 0, got {activation_weight_decay!r}")
    shapes = {id(parameter) for parameter in shape_parameters(model).values()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    learned = [parameter for parameter in trained if id(parameter) in shapes]
    weights = [parameter for parameter in trained if id(parameter) not in shapes]
    groups: list[dict[str, Any]] = [{"name": "weights", "params": weights}]
    if learned:
        decay = activation_weight_decay
        groups.append({"name": "activations", "params": learned, "weight_decay": decay})
    return groups
