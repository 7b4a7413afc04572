"""ShiLU: a scaled and shifted ReLU."""

from typing import Unpack

from torch import Tensor

from activations.activation import Activation, Channels


def shilu(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`alpha relu(x) + beta`; parameters broadcast against `x`."""
    return alpha * x.relu() + beta


class ShiLU(Activation):
    r"""Shifted linear unit. Learned.

    .. math:: f(x) = \alpha \max(0, x) + \beta

    Attributes:
        alpha: (num_parameters,), learned, not decayed.
        beta: (num_parameters,), learned, not decayed.

    Args:
        alpha: initial slope of the positive side.
        beta: initial offset; 1 in the released code, 0 elsewhere.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        relu(x) + 1.

    Raises:
        ValueError: a number is not finite, or the channels do not match.

    Reference:
        Pishchik, "Trainable activations for image classification", 2023, preprints 202301.0463.
        Deviation from it: none.
    """

    formula = shilu
    match_starts = ({"alpha": 1.0, "beta": 0.0},)  # ReLU

    def __init__(self, alpha: float = 1.0, beta: float = 1.0, **channels: Unpack[Channels]) -> None:
        super().__init__(**channels)
        self.alpha = self.learned("alpha", alpha)
        self.beta = self.learned("beta", beta)
