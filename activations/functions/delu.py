"""DELU and HELU: SiLU on the left, a line and a decaying exponential on the right."""

from typing import Unpack

import torch
from torch import Tensor

from activations.activation import Activation, Channels, Options, expm1
from activations.fusion.kernel import Expression


def delu(x: Tensor, n: Tensor | float) -> Tensor:
    """`x sigmoid(x)` for x <= 0, else `(n + 0.5) x + |exp(-x) - 1|`; `n` broadcasts against `x`."""
    return torch.where(x > 0, (n + 0.5) * x - expm1(-x.abs()), x * torch.sigmoid(x))


class DELU(Activation):
    r"""Difference exponential linear unit. Learned.

    .. math::
        f(x) = \begin{cases} x\,\sigma(x) & x \le 0 \\
        (n + 0.5)\, x + |e^{-x} - 1| & x > 0 \end{cases}

    Attributes:
        n: (num_parameters,), learned, not decayed.

    Args:
        n: initial extra slope of the positive side.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        HELU; the slope jumps from 0.5 to 1.5 at 0.

    Raises:
        ValueError: n is not finite, or the channels do not match.

    Reference:
        Pishchik, "Trainable activations for image classification", 2023, preprints 202301.0463.
        Deviation from it: finite for every input, where the released formula gives NaN far on the
        left.
    """

    formula = delu

    def __init__(self, n: float = 0.0, **channels: Unpack[Channels]) -> None:
        super().__init__(**channels)
        self.n = self.learned("n", n)


class HELU(Activation):
    r"""DELU with n = 0. Fixed.

    .. math::
        f(x) = \begin{cases} x\,\sigma(x) & x \le 0 \\
        0.5 x + |e^{-x} - 1| & x > 0 \end{cases}

    Args:
        options: see :class:`activations.Options`.

    Shape:
        any -> same.

    Initialisation:
        the curve never changes; the slope jumps from 0.5 to 1.5 at 0.

    Raises:
        TypeError: the input is not a real floating-point tensor.

    Reference:
        Pishchik, "Trainable activations for image classification", 2023, preprints 202301.0463.
        Deviation from it: none.
    """

    size_arguments = ()

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(**options)

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        return Expression(delu, (), (0.0,))
