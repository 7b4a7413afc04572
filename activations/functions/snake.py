"""Snake: a line with learned periodic steps."""

from typing import Unpack

import torch
from torch import Tensor

from activations.activation import Activation, Channels, inside


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """`x + sin(alpha x)^2 / alpha`, continued by x at alpha = 0; `alpha` broadcasts against `x`."""
    angle = inside(alpha * x)
    sine, tiny = torch.sin(angle), angle.abs() < torch.finfo(x.dtype).eps ** 0.5
    inverse = 1 / torch.where(tiny, 1.0, angle)  # one division both ways
    ratio = torch.where(tiny, 1.0, sine * inverse)
    return x + x * sine * ratio


class Snake(Activation):
    r"""A line with learned periodic steps. Learned.

    .. math:: f(x) = x + \frac{\sin^2(\alpha x)}{\alpha}

    Attributes:
        alpha: (num_parameters,), learned, not decayed.

    Args:
        alpha: initial angular frequency, in radians per unit of `x`; 0 gives the identity.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        x + 1 - cos(x).

    Raises:
        ValueError: a number is not finite, or the channels do not match.

    Reference:
        Ziyin et al., "Neural networks fail to learn periodic functions and how to fix it", NeurIPS
        2020, arXiv 2006.08195. Deviation from it: none in the formula. alpha starts at
        0.5; other packages start at 1, from where networks become worse than with ReLU:
        docs/findings.md.
    """

    formula = snake

    def __init__(self, alpha: float = 0.5, **channels: Unpack[Channels]) -> None:
        super().__init__(**channels)
        self.alpha = self.learned("alpha", alpha)
