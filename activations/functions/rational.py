"""Rational: a quotient of polynomials whose denominator is never 0."""

from typing import Unpack

import torch
from torch import Tensor

from activations.activation import Channels, integer
from activations.fusion.kernel import Expression

from .series import Series, fit, silu_samples


def rational(
    x: Tensor,
    numerator: list[Tensor],
    denominator: list[Tensor],
    *degrees: Tensor,
) -> Tensor:
    """`(a_0 + ... + a_m x^m) / (1 + |b_1 x + ... + b_n x^n|)`; coefficients broadcast against `x`.

    For |x| > 1 it is computed in 1 / x, so that no power of x overflows. `degrees` are m and n
    where they are smaller than the lists say, whose other coefficients are 0.
    """
    m, n = degrees or (len(numerator) - 1, len(denominator))
    far = x.abs() > 1
    large = torch.where(far, x, 1.0)
    z = torch.where(far, 1 / large, x)
    top = _either(z, far, numerator, m)
    below = _either(z, far, denominator, n - 1) * torch.where(far, 1.0, z)
    even = isinstance(n, int) and n % 2 == 0
    bottom = torch.where(far, z**n if even else z.abs() ** n, 1.0) + below.abs()
    value = top * (1 / bottom.clamp(min=torch.finfo(x.dtype).tiny))  # one division both ways
    # x^m / |x|^n = sign(x)^n x^(m - n)
    return large ** (m - n) * (value if even else large.sign() ** n * value)


def _either(z: Tensor, far: Tensor, coefficients: list[Tensor], degree: Tensor | int) -> Tensor:
    """`c_0 + c_1 z + ... + c_d z^d`; where `far`, `c_0 z^degree + c_1 z^(degree - 1) + ...`."""
    terms = [coefficient.expand_as(z) for coefficient in coefficients]  # one gradient each
    value = torch.where(far, terms[0], terms[-1])
    for k in range(1, len(terms)):
        factor, term = z, torch.where(far, terms[k], terms[-1 - k])
        if not isinstance(degree, int):
            beyond = far & (degree < k)
            factor, term = torch.where(beyond, 1.0, z), torch.where(beyond, 0.0, term)
        value = value * factor + term
    return value


class Rational(Series):
    r"""Rational function with a safe denominator, optionally progressive. Learned, scheduled.

    .. math:: f(x) = \frac{\sum_{j=0}^{m} a_j x^j}{1 + \left| \sum_{k=1}^{n} b_k x^k \right|}

    Attributes:
        numerator: (num_parameters, m + 1), learned, not decayed.
        denominator: (num_parameters, n), learned, not decayed.
        unlocked: (), the numerator's degree in use (the denominator's is one less), a persistent
            buffer of the progressive mode.

    Args:
        m: degree of the numerator, >= 1.
        n: degree of the denominator, >= 1.
        progressive: start with degrees 2 and 1; the higher terms, one of the numerator and one of
            the denominator at a time, are unlocked at equal steps of training progress, from 0.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        near the least-squares fit of SiLU on [-3, 3] by the terms in use.

    Raises:
        ValueError: a degree < 1, progress outside [0, 1], or the channels do not match.

    Reference:
        Molina et al., "Pade activation units", ICLR 2020, arXiv 1907.06732, equation 3 (the safe
        form). Deviation from it: fitted to SiLU; the progressive mode is our reading.
    """

    gallery_step = 0.1

    def __init__(
        self,
        m: int = 5,
        n: int = 4,
        progressive: bool = False,
        **channels: Unpack[Channels],
    ) -> None:
        integer("m", m)
        integer("n", n)
        super().__init__(max(m, n + 1), 2, progressive, **channels)
        x, target = silu_samples()
        top, bottom = min(m, self.basic), min(n, self.basic - 1)
        powers = [x**j for j in range(top + 1)]
        even = range(2, bottom + 1, 2)  # SiLU(x) - x / 2 is even
        fitted = fit([*powers, *(-target * x**k for k in even)], target)[top + 1 :]
        b = [dict(zip(even, fitted, strict=True)).get(k, 0.0) for k in range(1, n + 1)]
        below = sum((value * x**k for k, value in enumerate(b, start=1)), 0 * x)
        if not even or below.min() < 0:  # not what the absolute value would make of it
            b = [1e-3 if k == min(2, bottom) else 0.0 for k in range(1, n + 1)]
            below = 1e-3 * x ** min(2, bottom)
        under = 1 + below.abs()
        a = fit([power / under for power in powers], target)
        self.numerator = self.learned_terms("numerator", a + [0.0] * (m - top))
        self.denominator = self.learned_terms("denominator", b)

    def expression(self) -> Expression:
        """The formula with the terms in use."""
        top, bottom = self.open(self.numerator, 0), self.open(self.denominator, 2)
        degrees: tuple[Tensor, ...] = ()
        if self.progressive:
            m, n = self.unlocked, self.unlocked - 1
            degrees = m.clamp(max=top.shape[-1] - 1), n.clamp(max=bottom.shape[-1])
        return Expression(rational, (top, bottom, *degrees))
