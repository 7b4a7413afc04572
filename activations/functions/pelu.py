"""PELU: ELU with a learned depth and width of its negative side."""

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from activations.activation import Activation, Channels, expm1, finite, precise
from activations.fusion.kernel import Expression


def pelu(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`(a / b) x` for x >= 0, else `a (exp(x / b) - 1)`; a, b > 0 broadcast against `x`."""
    return _pelu(x, a, 1 / b)


# called with the inverse: a kernel would divide for every element
def _pelu(x: Tensor, a: Tensor, inverse: Tensor) -> Tensor:
    u = inverse * x
    right = u > 0
    return a * torch.where(right, u, expm1(torch.where(right, -u, u)))


class PELU(Activation):
    r"""Parametric exponential linear unit. Learned.

    .. math:: f(x) = \begin{cases} \frac{a}{b} x & x \ge 0 \\ a (e^{x / b} - 1) & x < 0 \end{cases}

    Attributes:
        a: (num_parameters,), learned, not decayed; used as max(a, 0.1), with a gradient that is
            not 0 below the bound either.
        b: (num_parameters,), learned, not decayed; used as max(b, 0.1), likewise.

    Args:
        a: initial depth of the negative side, >= 0.1.
        b: initial width of the negative side, >= 0.1.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        ELU.

    Raises:
        ValueError: a number is not finite or < 0.1, or the channels do not match.

    Reference:
        Trottier et al., "Parametric exponential linear unit for deep convolutional neural
        networks", 2017, arXiv 1605.09332, equation 3. Deviation from it: none.
    """

    least: ClassVar[dict[str, float]] = {"a": 0.1, "b": 0.1}

    def __init__(self, a: float = 1.0, b: float = 1.0, **channels: Unpack[Channels]) -> None:
        super().__init__(**channels)
        self.a = self.learned("a", finite("a", a, least=0.1))
        self.b = self.learned("b", finite("b", b, least=0.1))

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        return Expression(_pelu, (self.used("a"), 1 / precise(self.used("b"))))
