"""ACON-C: a smooth maximum of two learned lines."""

from typing import Unpack

from torch import Tensor

from activations.activation import Activation, Channels, gate


def aconc(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> Tensor:
    """`(p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x`; parameters broadcast against `x`."""
    difference = p1 - p2
    return difference * (x * gate(beta * difference * x)) + p2 * x


class ACONC(Activation):
    r"""ACON-C: a smooth maximum of two lines. Learned.

    .. math:: f(x) = (p_1 - p_2) x\, \sigma(\beta (p_1 - p_2) x) + p_2 x

    Attributes:
        p1: (num_parameters,), learned, not decayed.
        p2: (num_parameters,), learned, not decayed.
        beta: (num_parameters,), learned, not decayed.

    Args:
        p1: initial slope of the first line.
        p2: initial slope of the second line.
        beta: initial steepness of the switch.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        SiLU.

    Raises:
        ValueError: a number is not finite, or the channels do not match.

    Reference:
        Ma et al., "Activate or not: learning customized activation", CVPR 2021, arXiv 2009.04759,
        equation 5. Deviation from it: the released code draws p1 and p2 from a normal distribution.
    """

    formula = aconc
    match_starts = (
        {"p1": 1.0, "p2": 0.0, "beta": 1.0},  # SiLU
        {"p1": 1.0, "p2": 0.0, "beta": 10.0},  # nearly ReLU
    )

    def __init__(
        self,
        p1: float = 1.0,
        p2: float = 0.0,
        beta: float = 1.0,
        **channels: Unpack[Channels],
    ) -> None:
        super().__init__(**channels)
        self.p1 = self.learned("p1", p1)
        self.p2 = self.learned("p2", p2)
        self.beta = self.learned("beta", beta)
