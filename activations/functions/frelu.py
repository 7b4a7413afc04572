"""FReLU: fully parametric ReLU, a learned slope on each side."""

from typing import Unpack

import torch
from torch import Tensor

from activations.activation import Activation, Channels


def frelu(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a x` for x >= 0, else `b x`; slopes broadcast against `x`."""
    return torch.where(x >= 0, a * x, b * x)


class FReLU(Activation):
    r"""Fully parametric ReLU: two slopes. Learned.

    .. math:: f(x) = \begin{cases} a x & x \ge 0 \\ b x & x < 0 \end{cases}

    Attributes:
        a: (num_parameters,), learned, not decayed.
        b: (num_parameters,), learned, not decayed.

    Args:
        a: initial slope of the positive side.
        b: initial slope of the negative side.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        LeakyReLU(0.01); a = 1 and b = 0 give ReLU exactly.

    Raises:
        ValueError: a number is not finite, or the channels do not match.

    Reference:
        Varshney and Singh, "Optimizing nonlinear activation function for convolutional neural
        networks", 2021, doi 10.1007/s11760-021-01863-z; the paper has two slopes a channel
        (num_parameters = C). Deviation from it: none known; the initial values are those of the
        equivalent DPReLU. Not Funnel ReLU (Ma et al. 2020, a depthwise convolution) and not
        Flexible ReLU (Qiu et al. 2018, a learned offset), which share the acronym.
    """

    formula = frelu

    def __init__(self, a: float = 1.0, b: float = 0.01, **channels: Unpack[Channels]) -> None:
        super().__init__(**channels)
        self.a = self.learned("a", a)
        self.b = self.learned("b", b)
