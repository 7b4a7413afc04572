"""Polynomial: learned coefficients, whose higher terms can be unlocked during training."""

from typing import Unpack

from torch import Tensor

from activations.activation import Channels, integer
from activations.fusion.kernel import Expression

from .series import Series, fit, silu_samples


def polynomial(x: Tensor, coefficients: list[Tensor]) -> Tensor:
    """`c_0 + c_1 x + ... + c_d x^d`, by Horner's rule; coefficients broadcast against `x`."""
    value = coefficients[-1].expand_as(x)
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


class Polynomial(Series):
    r"""Polynomial with learned coefficients, optionally progressive. Learned, scheduled.

    .. math:: f(x) = \sum_{k=0}^{d} c_k x^k

    Attributes:
        coefficients: (num_parameters, degree + 1), learned, not decayed.
        unlocked: (), the number of powers in use, a persistent buffer of the progressive mode.

    Args:
        degree: d, >= 1.
        progressive: start with degree 2; each higher term is unlocked at equal steps of training
            progress, from 0, so that the function never jumps.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        the least-squares fit of SiLU on [-3, 3] by the terms in use.

    Raises:
        ValueError: degree < 1, progress outside [0, 1], or the channels do not match.

    Reference:
        Chelly et al., ECCV 2024, arXiv 2407.07564, name polynomial families and progressive
        complexity (second hand). Deviation from it: our reading.
    """

    gallery_step = 0.1

    def __init__(
        self,
        degree: int = 3,
        progressive: bool = False,
        **channels: Unpack[Channels],
    ) -> None:
        integer("degree", degree)
        super().__init__(degree, 2, progressive, **channels)
        x, target = silu_samples()
        fitted = fit([x**k for k in range(self.basic + 1)], target) + [0.0] * (degree - self.basic)
        self.coefficients = self.learned_terms("coefficients", fitted)

    def expression(self) -> Expression:
        """The formula with the terms in use."""
        return Expression(polynomial, (self.open(self.coefficients, 0),))
