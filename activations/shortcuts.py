"""Elementary functions in a few multiplications each, for kernels on the CPU.

The vector library behind torch rounds them almost perfectly, at 1 to 4 ns an element, which is what
a whole SiLU costs. For float32 the error here is at most 3 eps for sine and cosine up to 10^3
radians, and 2 eps |x| beyond, as much as a rounding of the angle makes; 2 eps of the value for
exp, expm1, tanh, erf and sigmoid; (4 + 2 x^2) eps of it for erfc. For an input in half precision,
whose result keeps three digits, it is 3e-5 of exp and what is made of it while |x| < 8, growing to
4e-3 where exp(x) leaves the range of numbers, and 3e-6 (1 + |x|) for sine and cosine. The formulas
still say `torch.cos`; `lowering.Shortcuts` puts these in.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Shortcut = Callable[..., Tensor]


def sine(x: Tensor) -> Tensor:
    """sin(x) = 2 sin(h) cos(h), h = x / 2 + n pi, whatever n."""
    s, c = _half_waves(x)
    return 2 * s * c


def cosine(x: Tensor) -> Tensor:
    """cos(x) = cos(h)^2 - sin(h)^2, h = x / 2 + n pi, whatever n."""
    s, c = _half_waves(x)
    return (c - s) * (c + s)


def _half_waves(x: Tensor) -> tuple[Tensor, Tensor]:
    """sin(h) and cos(h) of h = x / 2 - n pi in [-pi / 2, pi / 2]."""
    n = torch.round(x * (0.5 / torch.pi))
    # pi in three parts, of which n takes the first two exactly up to 2^15 (Cody and Waite)
    h = ((x * 0.5 - n * 3.140625) - n * 9.67502593994140625e-4) - n * 1.509957990978376e-7
    h = _known(x, h)
    z = h * h
    # minimax of (sin(h) - h) / h^3, relative error 6e-9 of sin(h), and of (cos(h) - 1) / h^2
    p = 1.6666659713e-1, -8.333059027791e-3, 1.9809053628705e-4, -2.6045020149468e-6
    q = (-0.49999999, 4.166663637e-2, -1.38883612e-3, 2.476015e-5, -2.60513e-7)
    return h - h * z * _polynomial(z, p), 1 + z * _polynomial(z, q)


def _known(x: Tensor, value: Tensor) -> Tensor:
    """`value`, or 0 where rounding leaves nothing of the angle `x`: from 1 / eps radians on."""
    return torch.where(x.abs() >= 2.0**23, 0.0, value)


def _polynomial(x: Tensor, factors: tuple[float, ...]) -> Tensor:
    value = factors[-2] + x * factors[-1]
    for factor in factors[-3::-1]:
        value = factor + x * value
    return value


def exp(x: Tensor) -> Tensor:
    """By its decay, also for x > 0; infinite above 88.37."""
    return decay(torch.where(x > 89, 89.0, x))


def decay(x: Tensor) -> Tensor:
    """exp(x) = 2^n exp(r), |r| <= log(2) / 2, for x <= 0; 0 below the least normal number."""
    scale, rest = _scale_and_rest(x)
    return scale * (1 + rest)


def expm1(x: Tensor) -> Tensor:
    """2^n (exp(r) - 1) + (2^n - 1), where 2^n is finite."""
    return torch.where(x > 88, torch.inf, decay_m1(torch.where(x > 88, 0.0, x)))


def decay_m1(x: Tensor) -> Tensor:
    """exp(x) - 1 for x <= 0."""
    scale, rest = _scale_and_rest(x)
    return scale * rest + (scale - 1)


def _scale_and_rest(x: Tensor) -> tuple[Tensor, Tensor]:
    """2^n, by its bits, and exp(r) - 1, where x = n log(2) + r."""
    x = torch.where(x < -88, -88.0, x)
    n = torch.round(x * 1.4426950408889634)
    r = (x - n * 0.693359375) - n * -2.12194440e-4
    # minimax of (exp(r) - 1 - r) / r^2, error 2e-9 of exp(r)
    p = (0.49999992, 0.1666642, 4.166823e-2, 8.37482e-3, 1.38368e-3)
    scale = (n * 2.0**23 + 127 * 2.0**23).to(torch.int32).view(torch.float32)
    return scale, r + r * r * _polynomial(r, p)


def sigmoid(x: Tensor, exp: Shortcut = decay) -> Tensor:
    """1 / (1 + exp(-x)), by an exponential that other functions can share."""
    e = exp(-x.abs())
    return torch.where(x > 0, 1.0, e) / (1 + e)


def tanh(x: Tensor) -> Tensor:
    """-m / (2 + m), m = exp(-2 |x|) - 1, with the sign of `x`."""
    m = decay_m1(-2 * x.abs())
    value = m / (2 + m)
    return torch.where(x > 0, -value, value)


def log1p(x: Tensor) -> Tensor:
    """log(1 + x) for x in [0, 1], by a minimax polynomial, relative error 5e-9."""
    p = (
        *(1.0, -0.49999902, 0.33329962, -0.24954134, 0.1967594),
        *(-0.15305593, 0.10603655, -0.05695952, 0.01985145, -0.00324402),
    )
    return x * _polynomial(x, p)


def erfc(x: Tensor, exp: Shortcut = decay) -> Tensor:
    """1 - erf(x)."""
    tail = _normal_tail(x, exp)
    return torch.where(x > 0, tail, 2 - tail)


def erf(x: Tensor, exp: Shortcut = decay) -> Tensor:
    """1 - erfc(|x|) with the sign of `x`; near 0 by a minimax polynomial, relative error 2e-9."""
    p = (
        *(1.128379166, -0.3761262582, 0.1128358515, -0.02685381196),
        *(0.005188327711, -0.0008010193686, 7.853861122e-05),
    )
    far = 1 - _normal_tail(x, exp)
    far = torch.where(x > 0, far, -far)
    return torch.where(x.abs() < 1, x * _polynomial(x * x, p), far)


def _normal_tail(x: Tensor, exp: Shortcut) -> Tensor:
    """erfc(|x|) = exp(-x^2) t p(t), with a minimax polynomial, relative error 2^-22."""
    t = 1 / (1 + 0.4 * x.abs())
    p = (
        *(0.22567586185747, 0.22566960736336, 0.20784245719675, 0.16854436019365, 0.14142014274226),
        *(-0.00557902194131, 0.16904618210483, -0.18287372158117, 0.05025425220188),
    )
    return exp(-(x * x)) * (t * _polynomial(t, p))


def rough_exp(x: Tensor) -> Tensor:
    """exp(x / 128)^128, by a minimax polynomial that is negative where exp(x) is 0."""
    p = _polynomial(x * (1 / 128), (1.0, 1.0, 0.4999979, 0.16666861, 0.04220175, 0.00830965))
    p = torch.relu(p)
    for _ in range(7):
        p = p * p
    return p


def rough_sine(x: Tensor) -> Tensor:
    """sin(x), by a minimax polynomial in turns, relative error 1e-7."""
    f, p = _turn(x), (6.2831828, -41.341421, 81.596184, -76.580100, 41.205393, -12.271260)
    return f * _polynomial(f * f, p)


def rough_cosine(x: Tensor) -> Tensor:
    """cos(x), by a minimax polynomial in turns, error 9e-7."""
    f, p = _turn(x), (1.0, -19.739050, 64.930279, -85.286852, 58.852545, -21.162594)
    return _polynomial(f * f, p)


def _turn(x: Tensor) -> Tensor:
    """The angle `x` in turns, between -1/2 and 1/2."""
    t = x * (0.5 / torch.pi)
    return _known(x, t - torch.round(t))


def rough_sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), for a formula without another exponential."""
    return 1 / (1 + rough_exp(-x))


def rough_expm1(x: Tensor) -> Tensor:
    """exp(x) - 1; near 0 by its Taylor series."""
    return torch.where(x.abs() < 0.02, x + x * x * (1 / 2 + x * (1 / 6)), rough_exp(x) - 1)


def rough_log1p(x: Tensor) -> Tensor:
    """log(1 + x) for x in [0, 1], by a minimax polynomial, relative error 6e-5."""
    return x * _polynomial(x, (0.99994328, -0.49697782, 0.30630095, -0.15742719, 0.04134728))


def rough_tanh(x: Tensor) -> Tensor:
    """2 / (1 + exp(-2 |x|)) - 1 with the sign of `x`; near 0 by its Taylor series."""
    e = rough_exp(-x.abs())
    far = torch.where(x > 0, 1.0, -1.0) * (2 / (1 + e * e) - 1)
    return torch.where(x.abs() < 0.03, x - x * x * x * (1 / 3), far)


EXACT: dict[Any, Shortcut] = {
    aten.sin.default: sine,
    aten.cos.default: cosine,
    aten.sigmoid.default: sigmoid,
    aten.expm1.default: expm1,
    aten.tanh.default: tanh,
    aten.erf.default: erf,
    aten.erfc.default: erfc,
    aten.exp.default: exp,
}
ROUGH: dict[Any, Shortcut] = {
    aten.sin.default: rough_sine,
    aten.cos.default: rough_cosine,
    aten.sigmoid.default: functools.partial(sigmoid, exp=rough_exp),
    aten.expm1.default: rough_expm1,
    aten.tanh.default: rough_tanh,
    aten.erf.default: functools.partial(erf, exp=rough_exp),
    aten.erfc.default: functools.partial(erfc, exp=rough_exp),
    aten.exp.default: rough_exp,
}
# of -|x|, and of exp(-|x|)
NARROW: dict[Any, Shortcut] = {aten.exp.default: decay, aten.expm1.default: decay_m1}
NARROW_EXACT: dict[Any, Shortcut] = NARROW | {aten.log1p.default: log1p}
NARROW_ROUGH: dict[Any, Shortcut] = {aten.log1p.default: rough_log1p}
