"""EvenCubicReLU: a ReLU with an even cubic term."""

from typing import Unpack

import torch
from torch import Tensor

from activations.activation import Activation, Channels, finite
from activations.fusion.kernel import Expression


def even_cubic_relu(x: Tensor, alpha: Tensor, beta: Tensor, gamma: float) -> Tensor:
    """`alpha relu(x) + gamma beta |x|^3`; alpha and beta broadcast against `x`."""
    # multiplied from the left, and bounded: beta = 0 gives 0, and the gradient, too, where |x|^3
    # overflows; any other beta overflows there
    size = x.abs().clamp(max=torch.finfo(x.dtype).max ** 0.5 / 2)
    return alpha * x.relu() + gamma * beta * size * size * size


class EvenCubicReLU(Activation):
    r"""ReLU with an even cubic term. Learned.

    .. math:: f(x) = \alpha \max(0, x) + \gamma \beta |x|^3

    Attributes:
        alpha: (num_parameters,), learned, not decayed.
        beta: (num_parameters,), learned, not decayed.
        gamma: a number, fixed.

    Args:
        alpha: initial slope of the ReLU.
        beta: initial coefficient of the cubic term.
        gamma: fixed scale of the cubic term, the same for the whole network.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        ReLU.

    Raises:
        ValueError: a number is not finite, or the channels do not match.

    Reference:
        Yevick, "Nonlinearity enhanced adaptive activation functions", 2024, arXiv 2403.19896.
        Deviation from it: our reading, since sources conflict on x < 0; the defaults are ours.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.0,
        gamma: float = 0.01,
        **channels: Unpack[Channels],
    ) -> None:
        super().__init__(**channels)
        self.alpha = self.learned("alpha", alpha)
        self.beta = self.learned("beta", beta)
        self.gamma = finite("gamma", gamma)

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        return Expression(even_cubic_relu, (self.alpha, self.beta), (self.gamma,))
