"""LinComb and NormLinComb: learned mixtures of other activations."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.activation import Activation, Channels, finite, precise
from activations.fusion.kernel import Expression
from activations.torch_private import has_hooks


def lincomb(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """`sum_i w_i v_i`; weights broadcast against the values."""
    products = [weight * value for weight, value in zip(weights, values, strict=True)]
    return functools.reduce(torch.add, products)


def _mixture(x: Tensor, weights: list[Tensor], *rest: Any) -> Tensor:
    """The mixture by a recipe, the last of `rest`: (formula, number of values, constants) each."""
    *given, recipe = rest
    outputs = []
    for formula, count, constants in recipe:
        outputs.append(formula(x, *given[:count], *constants))
        given = given[count:]
    return lincomb(outputs, weights)


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    return torch.where(x > 0, x, weight * x)


def _gelu(x: Tensor, kind: str) -> Tensor:
    return F.gelu(x, approximate=kind)


# torch's own activations: formula, and the attributes that are its arguments
_TORCH: dict[type[nn.Module], tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    nn.ELU: (F.elu, ("alpha",)),
    nn.GELU: (_gelu, ("approximate",)),
    nn.Hardswish: (F.hardswish, ()),
    nn.Identity: (torch.clone, ()),
    nn.LeakyReLU: (F.leaky_relu, ("negative_slope",)),
    nn.Mish: (F.mish, ()),
    nn.ReLU: (torch.relu, ()),
    nn.ReLU6: (F.relu6, ()),
    nn.SELU: (F.selu, ()),
    nn.SiLU: (F.silu, ()),
    nn.Sigmoid: (torch.sigmoid, ()),
    nn.Softplus: (F.softplus, ("beta", "threshold")),
    nn.Softsign: (F.softsign, ()),
    nn.Tanh: (torch.tanh, ()),
}


def _part(member: nn.Module) -> Expression | None:
    """The expression of an activation, ours or torch's; None for any other module."""
    if has_hooks(member):
        return None
    if isinstance(member, Activation):
        return member.expression() if type(member).forward is Activation.forward else None
    if type(member) is nn.PReLU:
        return Expression(_prelu, (member.weight,))
    if type(member) not in _TORCH:
        return None
    formula, names = _TORCH[type(member)]
    return Expression(formula, (), tuple(getattr(member, name) for name in names))


class LinComb(Activation):
    r"""Linear combination of activations. Learned.

    .. math:: f(x) = \sum_{i=1}^{n} w_i F_i(x)

    Attributes:
        weights: (num_parameters, n), learned, not decayed.
        members: a ModuleList.

    Args:
        members: factories of the F_i, any elementwise modules, learned ones included; by default
            ReLU, sigmoid, tanh and softsign.
        weights: initial w_i; by default 1 / n each.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        the mean of the members.

    Raises:
        ValueError: no members, another number of weights, or the channels do not match.
        TypeError: a member is not a factory of modules.

    Reference:
        Pishchik, "Trainable activations for image classification", 2023, preprints 202301.0463.
        Deviation from it: none; the default members are our choice.
    """

    def __init__(
        self,
        members: list[Callable[[], nn.Module]] | None = None,
        weights: list[float] | None = None,
        **channels: Unpack[Channels],
    ) -> None:
        super().__init__(**channels)
        if members is None:
            members = [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Softsign]
        if not isinstance(members, list | tuple) or not members:
            raise ValueError(f"members must be a list such as [torch.nn.ReLU], got {members!r}")
        modules = []
        for member in members:
            made = None if isinstance(member, nn.Module) or not callable(member) else member()
            if not isinstance(made, nn.Module):
                raise TypeError(f"a member must be a factory such as torch.nn.ReLU, got {member!r}")
            for part in made.modules():
                if hasattr(part, "inplace"):
                    setattr(part, "inplace", False)  # noqa: B010 - all take the same input
            modules.append(made)
        self.members = nn.ModuleList(modules).to(**self.made_as)
        weights = [1 / len(modules)] * len(modules) if weights is None else weights
        if not isinstance(weights, list | tuple) or len(weights) != len(modules):
            raise ValueError(f"{len(modules)} members need as many weights, got {weights!r}")
        self.weights = self.learned_terms("weights", weights)

    def shares(self) -> Tensor:
        """The factors of the members."""
        return self.weights

    def expression(self) -> Expression | None:
        """One formula for the whole mixture, if every member is ours or torch's."""
        parts = [_part(member) for member in self.members]
        known = [part for part in parts if part and not part.tables]
        mixed = [value for part in known for value in part.values]
        # PReLU's channels are on axis 1; our members' where they say, which must be here
        axes = {
            getattr(member, "channel_dim", 1)
            for member in [self, *self.members]
            if getattr(member, "num_parameters", 1) > 1
        }
        sizes = {len(value) for value in mixed if value.dim()} - {1, self.num_parameters}
        if len(known) < len(parts) or sizes or len(axes) > 1:
            return None
        recipe = tuple((part.formula, len(part.values), part.constants) for part in known)
        return Expression(_mixture, (self.shares(), *mixed), (recipe,))

    def function(self, x: Tensor) -> Tensor:
        """The mixture with the current weights."""
        values = [self._value(member, x) for member in self.members]
        return lincomb(values, self.terms(self.shares(), x))

    @staticmethod
    def _value(member: nn.Module, x: Tensor) -> Tensor:
        if isinstance(member, Activation):
            return member(x)
        # torch's PReLU takes no other dtype than its own
        dtype = [*(parameter.dtype for parameter in member.parameters()), x.dtype][0]
        return member(x.to(dtype)).to(x.dtype)


class NormLinComb(LinComb):
    r"""Linear combination of activations divided by the sum of its weights. Learned.

    .. math:: f(x) = \frac{\sum_i w_i F_i(x)}{\sum_i w_i + \epsilon}

    Attributes:
        weights: (num_parameters, n), learned, not decayed.
        members: a ModuleList.

    Args:
        members: factories of the F_i, any elementwise modules, learned ones included; by default
            ReLU, sigmoid, tanh and softsign.
        weights: initial w_i; by default 1 / n each.
        eps: added to the sum.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        the mean of the members.

    Raises:
        ValueError: no members, another number of weights, or the channels do not match.
        TypeError: a member is not a factory of modules.

    Reference:
        Pishchik, "Trainable activations for image classification", 2023, preprints 202301.0463.
        Deviation from it: the sum is the released code's; the paper writes a norm of w.
        As published, the function has a pole where the weights sum to -eps.
    """

    scalable = "weights"

    def __init__(
        self,
        members: list[Callable[[], nn.Module]] | None = None,
        weights: list[float] | None = None,
        eps: float = 1e-8,
        **channels: Unpack[Channels],
    ) -> None:
        super().__init__(members, weights, **channels)
        self.eps = finite("eps", eps)

    def shares(self) -> Tensor:
        """The weights, divided by their sum."""
        weights = precise(self.weights)
        return weights / (weights.sum(1, keepdim=True) + self.eps)
