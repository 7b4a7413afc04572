"""Polynomial, rational and Fourier families whose terms can be unlocked while a network trains."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .activation import Activation, inside, integer, positive
from .compile import Expression


def polynomial(x: Tensor, coefficients: list[Tensor]) -> Tensor:
    """`c_0 + c_1 x + ... + c_d x^d`, by Horner's rule; coefficients broadcast against `x`."""
    value = coefficients[-1].expand_as(x)
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


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


class _Series(Activation):
    """Terms beyond the first `basic` ones are locked at 0 until progress unlocks them."""

    unlocked: Tensor

    def __init__(
        self, terms: int, basic: int, progressive: bool, num_parameters: int, channel_dim: int
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        self.progressive, self.number_of_terms = progressive, terms
        self.basic = min(basic, terms) if progressive else terms
        if progressive:
            self.register_buffer("unlocked", torch.tensor(float(self.basic)))

    def set_progress(self, progress: float) -> None:
        """Unlock terms: the basic ones at 0, one more at equal steps, all of them before 1."""
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress must lie in [0, 1], got {progress!r}")
        if self.progressive:
            more = self.number_of_terms - self.basic
            self.unlocked.fill_(self.basic + min(int(progress * (more + 1)), more))

    def open(self, coefficients: Tensor, first: int, share: int = 1) -> Tensor:
        """Columns of term `first` and on, `share` a term; 0 without a gradient if locked."""
        if not self.progressive:
            return coefficients
        columns = torch.arange(coefficients.shape[-1], device=coefficients.device)
        return torch.where(self.unlocked >= first + columns // share, coefficients, 0.0)


def _fit(columns: list[Tensor], target: Tensor) -> list[float]:
    return torch.linalg.lstsq(torch.stack(columns, 1), target[:, None]).solution[:, 0].tolist()


def _silu_samples() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)
    return x, F.silu(x)


class Polynomial(_Series):
    r"""Polynomial with learned coefficients, optionally progressive. Learned, scheduled.

    .. math:: f(x) = \sum_{k=0}^{d} c_k x^k

    Args:
        degree: d, >= 1.
        progressive: start with degree 2; each higher term is unlocked at equal steps of training
            progress, from 0, so that the function never jumps.
        num_parameters: 1, or C (the size of `channel_dim`).
        channel_dim: axis of the channels.
        inplace: accepted and ignored.

    Shape: (N, C, \*) -> same.

    Attributes: coefficients: (num_parameters, degree + 1), learned, not decayed. unlocked: (), the
    number of powers in use, a persistent buffer of the progressive mode.

    At initialisation: the least-squares fit of SiLU on [-3, 3] by the terms in use.

    Raises: ValueError: degree < 1, progress outside [0, 1], or the channels do not match.

    Reference: Chelly et al., ECCV 2024, arXiv 2407.07564, name polynomial families and progressive
    complexity (second hand). Deviation from it: our reading.
    """

    def __init__(
        self,
        degree: int = 3,
        progressive: bool = False,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        inplace: bool = False,
    ) -> None:
        integer("degree", degree)
        super().__init__(degree, 2, progressive, num_parameters, channel_dim)
        x, target = _silu_samples()
        fitted = _fit([x**k for k in range(self.basic + 1)], target)
        self.coefficients = self.learned("coefficients", fitted + [0.0] * (degree - self.basic))

    def expression(self) -> Expression:
        """The formula with the terms in use."""
        return Expression(polynomial, (self.open(self.coefficients, 0),))


class Rational(_Series):
    r"""Rational function with a safe denominator, optionally progressive. Learned, scheduled.

    .. math:: f(x) = \frac{\sum_{j=0}^{m} a_j x^j}{1 + \left| \sum_{k=1}^{n} b_k x^k \right|}

    Args:
        m: degree of the numerator, >= 1.
        n: degree of the denominator, >= 1.
        progressive: start with degrees 2 and 1; the higher terms, one of the numerator and one of
            the denominator at a time, are unlocked at equal steps of training progress, from 0.
        num_parameters: 1, or C (the size of `channel_dim`).
        channel_dim: axis of the channels.
        inplace: accepted and ignored.

    Shape: (N, C, \*) -> same.

    Attributes: numerator: (num_parameters, m + 1); denominator: (num_parameters, n); learned, not
    decayed. unlocked: (), the numerator's degree in use (the denominator's is one less), a
    persistent buffer of the progressive mode.

    At initialisation: near the least-squares fit of SiLU on [-3, 3] by the terms in use.

    Raises: ValueError: a degree < 1, progress outside [0, 1], or the channels do not match.

    Reference: Molina et al., "Pade activation units", ICLR 2020, arXiv 1907.06732, equation 3 (the
    safe form). Deviation from it: fitted to SiLU; the progressive mode is our reading.
    """

    def __init__(
        self,
        m: int = 5,
        n: int = 4,
        progressive: bool = False,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        inplace: bool = False,
    ) -> None:
        integer("m", m)
        integer("n", n)
        super().__init__(max(m, n + 1), 2, progressive, num_parameters, channel_dim)
        x, target = _silu_samples()
        top, bottom = min(m, self.basic), min(n, self.basic - 1)
        powers = [x**j for j in range(top + 1)]
        even = range(2, bottom + 1, 2)  # SiLU(x) - x / 2 is even
        fitted = _fit([*powers, *(-target * x**k for k in even)], target)[top + 1 :]
        b = [dict(zip(even, fitted, strict=True)).get(k, 0.0) for k in range(1, n + 1)]
        below = sum((value * x**k for k, value in enumerate(b, start=1)), 0 * x)
        if not even or below.min() < 0:  # not what the absolute value would make of it
            b = [1e-3 if k == min(2, bottom) else 0.0 for k in range(1, n + 1)]
            below = 1e-3 * x ** min(2, bottom)
        under = 1 + below.abs()
        a = _fit([power / under for power in powers], target)
        self.numerator = self.learned("numerator", a + [0.0] * (m - top))
        self.denominator = self.learned("denominator", b)

    def expression(self) -> Expression:
        """The formula with the terms in use."""
        top, bottom = self.open(self.numerator, 0), self.open(self.denominator, 2)
        degrees: tuple[Tensor, ...] = ()
        if self.progressive:
            m, n = self.unlocked, self.unlocked - 1
            degrees = m.clamp(max=top.shape[-1] - 1), n.clamp(max=bottom.shape[-1])
        return Expression(rational, (top, bottom, *degrees))


class Fourier(_Series):
    r"""A line and a Fourier series, optionally progressive. Learned, scheduled.

    .. math:: f(x) = l_0 + l_1 x + \sum_{k=1}^{K} (s_k \sin(k \omega x) + c_k \cos(k \omega x))

    Args:
        harmonics: K, >= 1.
        omega: initial fundamental angular frequency, > 0, in radians per unit of `x`.
        progressive: start with the first harmonic; each higher one is unlocked at equal steps of
            training progress, from 0, so that the function never jumps.
        num_parameters: 1, or C (the size of `channel_dim`).
        channel_dim: axis of the channels.
        inplace: accepted and ignored.

    Shape: (N, C, \*) -> same.

    Attributes: line: (num_parameters, 2); waves: (num_parameters, 2 K), s_1, c_1, s_2, ...; omega:
    (num_parameters,); learned, not decayed. unlocked: (), the number of harmonics in use, a
    persistent buffer of the progressive mode.

    At initialisation: the least-squares fit of SiLU on [-3, 3] by the terms in use.

    Raises: ValueError: harmonics < 1, omega <= 0, progress outside [0, 1], or the channels do not
    match.

    Reference: Chelly et al., ECCV 2024, arXiv 2407.07564, name trigonometric families and
    progressive complexity (second hand). Deviation from it: our reading.
    """

    def __init__(
        self,
        harmonics: int = 2,
        omega: float = 0.7853981633974483,
        progressive: bool = False,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        inplace: bool = False,
    ) -> None:
        integer("harmonics", harmonics)
        super().__init__(harmonics, 1, progressive, num_parameters, channel_dim)
        x, target = _silu_samples()
        angles = [k * positive("omega", omega) * x for k in range(1, self.basic + 1)]
        columns = [x**0, x, *(wave for angle in angles for wave in (angle.sin(), angle.cos()))]
        fitted = _fit(columns, target)
        self.line = self.learned("line", fitted[:2])
        self.waves = self.learned("waves", fitted[2:] + [0.0] * (2 * (harmonics - self.basic)))
        self.omega = self.learned("omega", omega)

    def expression(self) -> Expression:
        """The formula with the terms in use."""
        return Expression(fourier, (self.line, self.open(self.waves, 1, share=2), self.omega))
