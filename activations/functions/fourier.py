"""Fourier: a line and a Fourier series."""

from typing import Unpack

from torch import Tensor

from activations.activation import Channels, inside, integer, positive
from activations.fusion.kernel import Expression

from .series import Series, fit, silu_samples


def fourier(x: Tensor, line: list[Tensor], waves: list[Tensor], omega: Tensor) -> Tensor:
    """`l_0 + l_1 x + sum_k (s_k sin(k omega x) + c_k cos(k omega x))`, waves = [s_1, c_1, ...]."""
    value = line[1] * x + line[0]
    angle = inside(omega * x)
    first_sine, first_cosine = sine, cosine = angle.sin(), angle.cos()
    for k in range(1, len(waves) // 2 + 1):
        if k > 1:
            sine, cosine = (
                sine * first_cosine + cosine * first_sine,
                cosine * first_cosine - sine * first_sine,
            )
        value = value + waves[2 * k - 2] * sine + waves[2 * k - 1] * cosine
    return value


class Fourier(Series):
    r"""A line and a Fourier series, optionally progressive. Learned, scheduled.

    .. math:: f(x) = l_0 + l_1 x + \sum_{k=1}^{K} (s_k \sin(k \omega x) + c_k \cos(k \omega x))

    Attributes:
        line: (num_parameters, 2), learned, not decayed.
        waves: (num_parameters, 2 K), s_1, c_1, s_2, c_2, ..., learned, not decayed.
        omega: (num_parameters,), learned, not decayed.
        unlocked: (), the number of harmonics in use, a persistent buffer of the progressive mode.

    Args:
        harmonics: K, >= 1.
        omega: initial fundamental angular frequency, > 0, in radians per unit of `x`.
        progressive: start with the first harmonic; each higher one is unlocked at equal steps of
            training progress, from 0, so that the function never jumps.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        the least-squares fit of SiLU on [-3, 3] by the terms in use.

    Raises:
        ValueError: harmonics < 1, omega <= 0, progress outside [0, 1], or the channels do not
            match.

    Reference:
        Chelly et al., ECCV 2024, arXiv 2407.07564, name trigonometric families and progressive
        complexity (second hand). Deviation from it: our reading.
    """

    gallery_step = 0.3

    def __init__(
        self,
        harmonics: int = 2,
        omega: float = 0.7853981633974483,
        progressive: bool = False,
        **channels: Unpack[Channels],
    ) -> None:
        integer("harmonics", harmonics)
        super().__init__(harmonics, 1, progressive, **channels)
        x, target = silu_samples()
        angles = [k * positive("omega", omega) * x for k in range(1, self.basic + 1)]
        columns = [x**0, x, *(wave for angle in angles for wave in (angle.sin(), angle.cos()))]
        fitted = fit(columns, target) + [0.0] * (2 * (harmonics - self.basic))
        self.line = self.learned_terms("line", fitted[:2])
        self.waves = self.learned_terms("waves", fitted[2:])
        self.omega = self.learned("omega", omega)

    def expression(self) -> Expression:
        """The formula with the terms in use."""
        return Expression(fourier, (self.line, self.open(self.waves, 1, share=2), self.omega))
