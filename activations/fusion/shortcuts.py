"""Elementary functions in a few multiplications each, for kernels on the CPU.

The formulas call torch's functions; `lowering.Shortcuts` puts these in their place. Those of torch
are almost exactly rounded, but one of them takes 1 to 4 ns an element, as much as a whole SiLU.
The largest errors here, with the eps of float32 (`relative`: divided by the true value), are:

- sine and cosine: 2 eps up to 1000 radians; beyond, 2 eps |x|, as if the angle were rounded;
- exp, expm1, tanh, erf and sigmoid: 2 eps, relative; erfc: (4 + 2 x^2) eps, relative;
- the `rough` ones, for inputs in half precision, whose results keep three digits: 3e-5, relative,
  for |x| < 8, rising to 4e-3 where exp(x) underflows or overflows; 3e-6 (1 + |x|) for sine and
  cosine.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Shortcut = Callable[..., Tensor]
# for |x| < 2^22, adding this rounds x to an integer, which the lowest bits of the sum hold
_WHOLE = 1.5 * 2.0**23
_SIGN = -(2**31)  # the sign bit of a float32


def sine(x: Tensor) -> Tensor:
    """sin(x) = (-1)^n sin(h), where h = x - n pi."""
    h, sign = _half_wave(x)
    z = h * h
    # minimax polynomial of (sin(h) - h) / h^3: relative error of sin(h) 6e-9
    p = 1.6666659713e-1, -8.333059027791e-3, 1.9809053628705e-4, -2.6045020149468e-6
    return _flipped(h - h * z * _polynomial(z, p), sign)


def cosine(x: Tensor) -> Tensor:
    """cos(x) = (-1)^n cos(h), where h = x - n pi."""
    h, sign = _half_wave(x)
    z = h * h
    # minimax polynomial of (cos(h) - 1) / h^2
    p = (-0.49999999, 4.166663637e-2, -1.38883612e-3, 2.476015e-5, -2.60513e-7)
    return _flipped(1 + z * _polynomial(z, p), sign)


def _half_wave(x: Tensor) -> tuple[Tensor, Tensor]:
    """The angle h = x - n pi in [-pi / 2, pi / 2], and (-1)^n as a sign bit."""
    m = x * (1 / torch.pi) + _WHOLE
    n = m - _WHOLE
    # pi as a sum of two numbers: n times the first is exact for n up to 2^10 (Cody and Waite)
    h = (x - n * 3.141357421875) - n * 2.3523170966655e-4
    return _reduced(x, h), _bits(m) << 31


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int32)


def _flipped(x: Tensor, sign: Tensor) -> Tensor:
    """`x`, negated where the sign bit of `sign` is set."""
    return (_bits(x) ^ sign).view(torch.float32)


def _reduced(x: Tensor, value: Tensor) -> Tensor:
    """`value`, or 0 where |x| >= 1 / eps, since neighbouring angles are then radians apart."""
    return torch.where(x.abs() >= 2.0**23, 0.0, value)


def _polynomial(x: Tensor, factors: tuple[float, ...]) -> Tensor:
    value = factors[-2] + x * factors[-1]
    for factor in factors[-3::-1]:
        value = factor + x * value
    return value


def exp(x: Tensor) -> Tensor:
    """The exponential, or 0 below 2^-125."""
    half, rest = _scale_and_rest(x.clamp_max(89), 126)  # 2^n would overflow before exp(x) does
    return half * (2 + 2 * rest)


def decay(x: Tensor) -> Tensor:
    """exp(x) for x <= 88, or 0 below 2^-126."""
    scale, rest = _scale_and_rest(x)
    return scale + scale * rest


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1."""
    half, rest = _scale_and_rest(x.clamp_max(89), 126)
    return 2 * (half * rest + (half - 0.5))


def decay_m1(x: Tensor) -> Tensor:
    """exp(x) - 1 for x <= 88."""
    scale, rest = _scale_and_rest(x)
    return scale * rest + (scale - 1)


def _scale_and_rest(x: Tensor, bias: int = 127) -> tuple[Tensor, Tensor]:
    """2^(n + bias - 127), made from its bits, and exp(r) - 1, where x = n log(2) + r."""
    x = x.clamp_min(39 - bias)  # there 2^n is already 0
    m = x * 1.4426950408889634 + (_WHOLE + bias)
    n = m - (_WHOLE + bias)
    r = (x - n * 0.693359375) - n * -2.12194440e-4
    # minimax polynomial of (exp(r) - 1 - r) / r^2: relative error of exp(r) 2e-9
    p = (0.49999992, 0.1666642, 4.166823e-2, 8.37482e-3, 1.38368e-3)
    return (_bits(m) << 23).view(torch.float32), r + r * r * _polynomial(r, p)


def sigmoid(x: Tensor, exp: Shortcut = decay) -> Tensor:
    """1 / (1 + exp(-x)), from exp(-|x|), which the kernel computes once for all its functions."""
    e = exp(-x.abs())
    return torch.where(x > 0, 1.0, e) / (1 + e)


def tanh(x: Tensor) -> Tensor:
    """-m / (2 + m), where m = exp(-2 |x|) - 1, with the sign of `x`."""
    m = decay_m1(-2 * x.abs())
    return _flipped(-m / (2 + m), _bits(x) & _SIGN)


def log1p(x: Tensor) -> Tensor:
    """log(1 + x) for x in [0, 1]: minimax polynomial, relative error 5e-9."""
    p = (
        *(1.0, -0.49999902, 0.33329962, -0.24954134, 0.1967594),
        *(-0.15305593, 0.10603655, -0.05695952, 0.01985145, -0.00324402),
    )
    return x * _polynomial(x, p)


def erfc(x: Tensor, exp: Shortcut = decay) -> Tensor:
    """exp(-x^2) t p(t), or 2 minus it: p is a minimax polynomial, relative error 2^-22."""
    t = 1 / (1 + 0.4 * x.abs())
    p = (
        *(0.22567586185747, 0.22566960736336, 0.20784245719675, 0.16854436019365, 0.14142014274226),
        *(-0.00557902194131, 0.16904618210483, -0.18287372158117, 0.05025425220188),
    )
    tail = exp(-(x * x)) * (t * _polynomial(t, p))
    return torch.where(x > 0, tail, 2 - tail)


def erf(x: Tensor) -> Tensor:
    """The value for |x|, with the sign of `x`."""
    return _flipped(positive_erf(x.abs()), _bits(x) & _SIGN)


def positive_erf(x: Tensor) -> Tensor:
    """erf(x) for x >= 0: below 1 a minimax polynomial, relative error 4e-8; then 1 - q(x)^8."""
    p = 1.128379122, -0.3761232619, 0.1128018013, -0.02671131151, 0.004917551512, -0.0005631422131
    # minimax polynomial of erfc(x)^(1 / 8): error of its eighth power 1.7e-8
    q = (
        *(1.000821947, -0.1450100766, -0.0615077687, -0.01130520701),
        *(0.01289437485, -0.002462189403, 0.0001491160395),
    )
    return torch.where(x < 1, x * _polynomial(x * x, p), _from_eighth_root(x, 4, q))


def _from_eighth_root(x: Tensor, end: float, q: tuple[float, ...]) -> Tensor:
    """1 - q(x)^8; beyond `end`, 1 up to the error of `q`, it stays constant."""
    root = _polynomial(x.clamp_max(end), q)
    square = root * root
    fourth = square * square
    return 1 - fourth * fourth


def rough_exp(x: Tensor) -> Tensor:
    """exp(x / 128)^128: a minimax polynomial that is negative where exp(x) underflows."""
    p = (1.0, 1.0, 0.4999979, 0.16666861, 0.04220175, 0.00830965)
    return _root_to_power(x, p, 7)


def rough_decay(x: Tensor) -> Tensor:
    """exp(x) for x <= 0, as exp(x / 64)^64."""
    p = (0.99999977, 0.99997749, 0.49965321, 0.16489183, 0.037909415, 0.0048235768)
    return _root_to_power(x, p, 6)


def _root_to_power(x: Tensor, p: tuple[float, ...], n: int) -> Tensor:
    """p(x / 2^n)^(2^n), or 0 where p(x / 2^n) is negative."""
    value = torch.relu(_polynomial(x, tuple(factor / 2 ** (n * k) for k, factor in enumerate(p))))
    for _ in range(n):
        value = value * value
    return value


def rough_sine(x: Tensor) -> Tensor:
    """sin(x): minimax polynomial of the angle in turns (of 2 pi), relative error 1e-7."""
    f, p = _turn(x), (6.2831828, -41.341421, 81.596184, -76.580100, 41.205393, -12.271260)
    return f * _polynomial(f * f, p)


def rough_cosine(x: Tensor) -> Tensor:
    """cos(x): minimax polynomial of the angle in turns, error 9e-7."""
    f, p = _turn(x), (1.0, -19.739050, 64.930279, -85.286852, 58.852545, -21.162594)
    return _polynomial(f * f, p)


def _turn(x: Tensor) -> Tensor:
    """The angle `x` in turns, without the whole ones: between -1/2 and 1/2."""
    t = x * (0.5 / torch.pi)
    return _reduced(x, t - torch.round(t))


def rough_sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), for a kernel without another exponential."""
    return 1 / (1 + rough_exp(-x))


def rough_expm1(x: Tensor, exp: Shortcut = rough_exp) -> Tensor:
    """exp(x) - 1; its Taylor series near 0."""
    return torch.where(x.abs() < 0.02, x + x * x * (1 / 2 + x * (1 / 6)), exp(x) - 1)


def rough_log1p(x: Tensor) -> Tensor:
    """log(1 + x) for x in [0, 1]: minimax polynomial, relative error 1e-5.

    Its slope at 0 is 1: a gradient takes log(1 + x) - x for small x.
    """
    return x * _polynomial(x, (1.0, -0.49953988, 0.32622814, -0.21240827, 0.10359575, -0.02473524))


def rough_tanh(x: Tensor) -> Tensor:
    """2 / (1 + exp(-2 |x|)) - 1 with the sign of `x`; its Taylor series near 0."""
    e = rough_decay(-x.abs())
    far = torch.where(x > 0, 1.0, -1.0) * (2 / (1 + e * e) - 1)
    return torch.where(x.abs() < 0.03, x - x * x * x * (1 / 3), far)


def rough_erf(x: Tensor) -> Tensor:
    """The value for |x|, with the sign of `x`."""
    value = rough_positive_erf(x.abs())
    return torch.where(x > 0, value, -value)


def rough_positive_erf(x: Tensor) -> Tensor:
    """Like `positive_erf`; relative error 1e-5 below 0.6, then 3e-5."""
    p, q = (
        (1.1283666, -0.37445915, 0.099499504),
        (0.99662923, -0.12544653, -0.096544763, 0.018924366),
    )
    return torch.where(x < 0.6, x * _polynomial(x * x, p), _from_eighth_root(x, 3.2, q))


# torch's operation: what replaces it for inputs in float32, and in half precision
WIDE: dict[Any, tuple[Shortcut, Shortcut]] = {
    aten.sin.default: (sine, rough_sine),
    aten.cos.default: (cosine, rough_cosine),
    aten.sigmoid.default: (sigmoid, functools.partial(sigmoid, exp=rough_decay)),
    aten.expm1.default: (expm1, rough_expm1),
    aten.tanh.default: (tanh, rough_tanh),
    aten.erf.default: (erf, rough_erf),
    aten.erfc.default: (erfc, functools.partial(erfc, exp=rough_decay)),
    aten.exp.default: (exp, rough_exp),
}
# faster ones for some arguments: exp and expm1 of -|x| or -x^2, or of what a clamp keeps <= 88;
# log1p of exp(-|x|) or exp(-x^2); erf of any exponential
NARROW: dict[Any, tuple[Shortcut, Shortcut]] = {
    aten.log1p.default: (log1p, rough_log1p),
    aten.erf.default: (positive_erf, rough_positive_erf),
    aten.exp.default: (decay, rough_decay),
    aten.expm1.default: (decay_m1, functools.partial(rough_expm1, exp=rough_decay)),
}
