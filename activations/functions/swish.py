"""Swish: SiLU with a learned steepness."""

from typing import Unpack

from torch import Tensor

from activations.activation import Activation, Channels, gate


def swish(x: Tensor, beta: Tensor) -> Tensor:
    """`x sigmoid(beta x)`; `beta` broadcasts against `x`."""
    return x * gate(beta * x)


class Swish(Activation):
    r"""SiLU with a learned steepness. Learned.

    .. math:: f(x) = x\, \sigma(\beta x)

    Attributes:
        beta: (num_parameters,), learned, not decayed.

    Args:
        beta: initial steepness.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        SiLU.

    Raises:
        ValueError: a number is not finite, or the channels do not match.

    Reference:
        Ramachandran et al., "Searching for activation functions", 2017, arXiv 1710.05941. Deviation
        from it: none.
    """

    formula = swish

    def __init__(self, beta: float = 1.0, **channels: Unpack[Channels]) -> None:
        super().__init__(**channels)
        self.beta = self.learned("beta", beta)
