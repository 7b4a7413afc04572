"""APA and AGLU: a gate between Gompertz and logistic, and the unit that it gates."""

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from activations.activation import Activation, Channels, positive, precise
from activations.fusion.kernel import Expression


def apa(x: Tensor, lambd: Tensor, kappa: Tensor) -> Tensor:
    """`(lambd exp(-kappa x) + 1)^(-1 / lambd)` for lambd > 0; parameters broadcast against `x`."""
    return _apa(x, lambd.log(), 1 / lambd, kappa)


def aglu(x: Tensor, lambd: Tensor, kappa: Tensor) -> Tensor:
    """`x apa(x)`; parameters broadcast against `x`."""
    return x * apa(x, lambd, kappa)


# called with the logarithm and the inverse: a kernel would compute them for every element
def _apa(x: Tensor, log_lambd: Tensor, inverse: Tensor, kappa: Tensor) -> Tensor:
    softplus = _softplus(log_lambd - kappa * x)
    # exp(-1000) is 0 in every dtype; the clamp stops the gradient beyond it
    return torch.exp((-inverse * softplus).clamp(min=-1000))


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), whose two sides share exp(-|x|)."""
    right = x > 0
    decay = torch.where(right, -x, x).clamp(min=-1000)
    return torch.where(right, x, 0.0) + torch.log1p(torch.exp(decay))


def _aglu(x: Tensor, log_lambd: Tensor, inverse: Tensor, kappa: Tensor) -> Tensor:
    return x * _apa(x, log_lambd, inverse, kappa)


class APA(Activation):
    r"""Adaptive parametric activation, a gate between 0 and 1. Learned.

    .. math:: f(x) = (\lambda e^{-\kappa x} + 1)^{-1 / \lambda}

    Attributes:
        lambd: (num_parameters,), learned, not decayed; used as max(lambd, 1e-4), with a gradient
            that is not 0 below the bound either.
        kappa: (num_parameters,), learned, not decayed.

    Args:
        lambd: initial lambda, > 0; None draws it from U(0, 1).
        kappa: initial kappa; None draws it from U(0, 1).
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        random; lambda = kappa = 1 is the sigmoid, lambda -> 0 the Gompertz function.

    Raises:
        ValueError: a number is not finite, lambda <= 0, or the channels do not match.

    Reference:
        Alexandridis et al., "Adaptive parametric activation", ECCV 2024, arXiv 2407.08567.
        Deviation from it: none; computed in the log domain.
    """

    least: ClassVar[dict[str, float]] = {"lambd": 1e-4}  # as in the paper
    match_starts = ({"lambd": 1.0, "kappa": 1.0},)  # sigmoid; of AGLU, SiLU

    def __init__(
        self,
        lambd: float | None = None,
        kappa: float | None = None,
        **channels: Unpack[Channels],
    ) -> None:
        super().__init__(**channels)
        self.lambd = self.learned("lambd", 1.0 if lambd is None else positive("lambd", lambd))
        self.kappa = self.learned("kappa", 1.0 if kappa is None else kappa)
        self.drawn = [name for name, of in (("lambd", lambd), ("kappa", kappa)) if of is None]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start anew."""
        super().reset_parameters()
        for name in self.drawn:
            torch.nn.init.uniform_(getattr(self, name))

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        lambd = precise(self.used("lambd"))
        return Expression(_apa, (lambd.log(), 1 / lambd, self.kappa))


class AGLU(APA):
    r"""Adaptive gated linear unit. Learned.

    .. math:: f(x) = x\, (\lambda e^{-\kappa x} + 1)^{-1 / \lambda}

    Attributes:
        lambd: (num_parameters,), learned, not decayed; used as max(lambd, 1e-4), as in APA.
        kappa: (num_parameters,), learned, not decayed.

    Args:
        lambd: initial lambda, > 0; None draws it from U(0, 1).
        kappa: initial kappa; None draws it from U(0, 1).
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        random; lambda = kappa = 1 is SiLU.

    Raises:
        ValueError: a number is not finite, lambda <= 0, or the channels do not match.

    Reference:
        Alexandridis et al., "Adaptive parametric activation", ECCV 2024, arXiv 2407.08567.
        Deviation from it: none; computed in the log domain.
    """

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        return Expression(_aglu, super().expression().values)
