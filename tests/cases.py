"""One row per activation: how to make it with distinct parameters, and its formula in NumPy."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import activations as A
from activations.functions.ditac import knot_basis

Reference = Callable[[np.ndarray, dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Case:
    """An activation under test.

    Attributes:
        kind: the class.
        arguments: constructor arguments, none at its default, all distinct.
        reference: NumPy float64 formula: x and the module's state -> value, and the sum of the
            absolute terms, to which rounding errors are proportional.
        shape: of an input.
        per_channel: whether the family takes num_parameters and channel_dim.
        kinks: x where the derivative jumps.
        largest: |x| up to which the function is finite, where that is not the dtype's maximum.
        to_the_end: whether it is finite at the dtype's largest number too, where the true value is.
        scalar: whether each output depends on its own input alone.
        oracle_error: of the reference itself, absolute.
    """

    kind: type[A.Activation]
    arguments: dict[str, Any]
    reference: Reference
    shape: tuple[int, ...] = (3, 4, 5)
    per_channel: bool = True
    kinks: tuple[float, ...] = ()
    largest: Callable[[torch.dtype], float] | None = None
    to_the_end: bool = True
    scalar: bool = True
    oracle_error: float = 0.0

    def __str__(self) -> str:
        extra = [
            str(v)
            for k, v in self.arguments.items()
            if k in ("variant", "m", "dims", "progressive")
        ]
        return "-".join([self.kind.__name__, *extra])

    def make(self, **more: Any) -> A.Activation:
        """The module, its learned values moved to distinct ones, its schedule in the middle."""
        torch.manual_seed(0)
        module = self.kind(**self.arguments, **more)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += torch.linspace(0.05, 0.3, parameter.numel()).view_as(parameter)
            for name, buffer in module.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer += torch.linspace(0.1, 0.7, buffer.numel())
        A.set_progress(module, 0.3)
        return module.eval()

    def expected(self, module: A.Activation, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`reference` with the module's state, per-channel values along its channel axis."""
        state = {}
        for name, value in module.state_dict().items():
            array = value.double().numpy()
            if module.num_parameters > 1 and array.shape[:1] == (module.num_parameters,):
                shape = [1] * x.ndim
                shape[module.channel_dim] = -1
                array = array.reshape(*shape, *array.shape[1:])
            elif array.ndim == 2 and array.shape[0] == 1 and "." not in name:
                array = array[0]
            state[name] = array
        return self.reference(x.astype(np.float64), state)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def coslu(x, p):
    wave, gate = p["alpha"] * np.cos(p["beta"] * x), sigmoid(x)
    # the angle beta x carries a rounding error of its own size
    scale = (np.abs(x) + np.abs(p["alpha"]) * (1 + np.abs(p["beta"] * x))) * gate
    return (x + wave) * gate, scale


def dsrelu(x, p):
    value = np.where(x > 0, p["slope"] * x, 0.4 * x)
    return value, np.abs(value)


def lslu(x, p):
    size = np.abs(x)
    for theta, omega in zip(p["theta"], p["omega"], strict=True):
        x = theta * np.maximum(x, 0) + omega
        size = np.abs(theta) * size + np.abs(omega)
    return series_relu(x, p, size)


def series_relu(x, p, size=None):
    size = np.abs(x) if size is None else size
    x = np.maximum(x, 0)
    kernel = p["conv.weight"][:, 0]
    axes, letters = tuple(range(2, x.ndim)), "ij"[: x.ndim - 2]
    reach = kernel.shape[-1] // 2
    padded = np.pad(x, [(0, 0), (0, 0), *((reach, reach) for _ in axes)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1:], axes)
    einsum = f"nc...{letters},c{letters}->nc..."
    y = np.einsum(einsum, windows, kernel)
    size = np.einsum(einsum, np.abs(windows), np.abs(kernel)) + size

    def per_channel(name):
        return p[name].reshape(1, -1, *(1 for _ in axes))

    scale = per_channel("norm.weight") / np.sqrt(per_channel("norm.running_var") + 1e-6)
    y = (y - per_channel("norm.running_mean")) * scale + per_channel("norm.bias")
    return y, size * np.abs(scale) + np.abs(per_channel("norm.bias")) + 1


def sinlu(x, p):
    gate = sigmoid(x)
    scale = (np.abs(x) + np.abs(p["alpha"]) * (1 + np.abs(p["beta"] * x))) * gate
    return (x + p["alpha"] * np.sin(p["beta"] * x)) * gate, scale


def delu(x, p):
    n = p.get("n", 0.0)
    right = (n + 0.5) * x + np.abs(np.expm1(-np.maximum(x, 0)))
    return np.where(x > 0, right, x * sigmoid(x)), np.abs(x) * (np.abs(n) + 2)


def relun(x, p):
    value = np.minimum(np.maximum(x, 0), np.maximum(p["n"], 0))
    return value, np.abs(value) + np.abs(p["n"])


def shilu(x, p):
    line = p["alpha"] * np.maximum(x, 0)
    return line + p["beta"], np.abs(line) + np.abs(p["beta"])


def softsign(x, p):
    value = p["alpha"] * x / (p["beta"] + np.abs(x))
    return value, np.abs(value)


def frelu(x, p):
    value = np.where(x >= 0, p["a"] * x, p["b"] * x)
    return value, np.abs(value)


def apa(x, p):
    with np.errstate(over="ignore"):
        value = (p["lambd"] * np.exp(-p["kappa"] * x) + 1) ** (-1 / p["lambd"])
    # a power of 1/lambda: the exponent's rounding error counts by its size
    size = np.log1p(p["lambd"] * np.exp(np.minimum(-p["kappa"] * x, 700))) / p["lambd"]
    return value, value * (1 + size + np.abs(p["kappa"] * x) / p["lambd"])


def aglu(x, p):
    value, scale = apa(x, p)
    return x * value, np.abs(x) * scale


def swish(x, p):
    gate = sigmoid(p["beta"] * x)
    return x * gate, np.abs(x) * gate * (1 + np.abs(p["beta"] * x))


def aconc(x, p):
    d = p["p1"] - p["p2"]
    gate = sigmoid(p["beta"] * d * x)
    scale = (np.abs(p["p1"]) + np.abs(p["p2"])) * np.abs(x)
    angle = np.abs(p["beta"]) * scale
    return d * x * gate + p["p2"] * x, scale * (1 + gate * (1 + angle))


def pelu(x, p):
    value = np.where(x >= 0, p["a"] / p["b"] * x, p["a"] * np.expm1(np.minimum(x, 0) / p["b"]))
    return value, np.abs(value) + np.abs(np.minimum(x, 0))


def snake(x, p):
    wave = np.sin(p["alpha"] * x) ** 2 / p["alpha"]
    return x + wave, np.abs(x) * 3 + np.abs(wave)


def even_cubic(x, p):
    value = p["alpha"] * np.maximum(x, 0) + 0.03 * p["beta"] * np.abs(x) ** 3
    return value, np.abs(p["alpha"] * x) + np.abs(0.03 * p["beta"] * x**3)


def erf(x):
    return torch.erf(torch.from_numpy(np.asarray(x))).numpy()


def eelu(variant):
    def formula(x, p):
        with np.errstate(over="ignore"):
            if variant == 1:
                value = x * erf(np.exp(x))
            elif variant == 2:
                value = -x * erf(np.exp(-x))
            elif variant == 3:
                value = x * erf(np.exp(x)) ** 2
            else:
                value = erf(x) * np.logaddexp(0, x)
        return value, np.abs(value) * (2 + 2 * np.abs(x))

    return formula


@dataclass(frozen=True)
class Rounded:
    """A value, and a first-order bound of its rounding error in units of the last place."""

    value: Any
    error: Any = 0.0

    def apply(self, function: Callable[[Any], Any]) -> "Rounded":
        value, step = function(self.value), 1e-6
        moved = np.abs(function(self.value + step * self.error) - value) / step
        moved = np.fmax(moved, np.abs(function(self.value - step * self.error) - value) / step)
        return Rounded(value, np.nan_to_num(moved) + np.abs(value))

    def join(self, other: Any, function: Callable[[Any, Any], Any]) -> "Rounded":
        other = other if isinstance(other, Rounded) else Rounded(other)
        first = self.apply(lambda value: function(value, other.value))
        second = other.apply(lambda value: function(self.value, value))
        return Rounded(first.value, first.error + second.error)

    def __neg__(self):
        return Rounded(-self.value, self.error)

    def __add__(self, other):
        return self.join(other, np.add)

    def __sub__(self, other):
        return self.join(other, np.subtract)

    def __mul__(self, other):
        return self.join(other, np.multiply)

    def __truediv__(self, other):
        return self.join(other, np.divide)

    def __pow__(self, other):
        return self.join(other, np.power)

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other):
        return Rounded(other) - self

    def __rtruediv__(self, other):
        return Rounded(other) / self

    def __rpow__(self, other):
        return Rounded(other) ** self


ONE: dict[str, Callable[[Any], Any]] = {
    **{name: getattr(np, name) for name in ("abs", "sqrt", "log", "log1p", "exp", "expm1", "sin",
                                            "cos", "sinh", "cosh", "tanh")},
    "atan": np.arctan, "asinh": np.arcsinh, "erf": erf, "sigmoid": sigmoid,
    "softplus": lambda x: np.logaddexp(0, x), "logsigmoid": lambda x: -np.logaddexp(0, -x),
    "softsign": lambda x: x / (1 + np.abs(x)), "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6), "hardtanh": lambda x: np.clip(x, -1, 1),
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6, "silu": lambda x: x * sigmoid(x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "selu": lambda x: 1.0507009873554805 * np.where(
        x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: x * (1 + erf(x / 2**0.5)) / 2,
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
}  # fmt: skip


def _either(first: Any, second: Any, function: Callable[[Any, Any], Any]) -> Any:
    if isinstance(first, Rounded):
        return first.join(second, function)
    return Rounded(first).join(second, function)


def written(formula: str) -> Reference:
    """A formula as Python itself reads it, with NumPy's functions."""
    known: dict[str, Any] = {
        name: lambda x, f=function: x.apply(f) if isinstance(x, Rounded) else f(x)
        for name, function in ONE.items()
    }
    known |= {"max": lambda a, b: _either(a, b, np.maximum),
              "min": lambda a, b: _either(a, b, np.minimum)}  # fmt: skip

    def reference(x, p):
        constants = {name: Rounded(value, np.abs(value)) for name, value in p.items()}
        with np.errstate(all="ignore"):
            found = eval(formula, {**known, **constants, "x": Rounded(x)})
        return found.value, found.error

    return reference


def terms(p, name):
    """The columns of a (channels, k) parameter."""
    return [p[name][..., k] for k in range(p[name].shape[-1])]


def powers(x, coefficients, first=0):
    parts = [c * x**k for k, c in enumerate(coefficients, start=first)]
    return sum(parts), sum(np.abs(part) for part in parts)


def unlocked(p, name, first):
    """The terms of a parameter, those still locked set to 0."""
    least = p.get("unlocked", np.inf)
    return [c if k <= least else 0 * c for k, c in enumerate(terms(p, name), start=first)]


def polynomial(x, p):
    value, size = powers(x, unlocked(p, "coefficients", 0))
    return value, 4 * size


def rational(x, p):
    top, top_size = powers(x, unlocked(p, "numerator", 0))
    bottom, bottom_size = powers(x, unlocked(p, "denominator", 2), first=1)
    bottom = 1 + np.abs(bottom)
    return top / bottom, 6 * (top_size + np.abs(top) * (1 + bottom_size) / bottom) / bottom


def fourier(x, p):
    line, waves = terms(p, "line"), terms(p, "waves")
    waves = [w if k // 2 + 1 <= p.get("unlocked", np.inf) else 0 * w for k, w in enumerate(waves)]
    value, scale = line[0] + line[1] * x, np.abs(line[0]) + np.abs(line[1] * x)
    for k in range(1, len(waves) // 2 + 1):
        angle = k * p["omega"] * x
        value = value + waves[2 * k - 2] * np.sin(angle) + waves[2 * k - 1] * np.cos(angle)
        size = np.abs(waves[2 * k - 2]) + np.abs(waves[2 * k - 1])
        scale = scale + size * (1 + 2 * np.abs(angle))
    return value, 2 * scale


def members(x, p):
    slope = p["members.1.beta"].item()
    return [np.maximum(x, 0), x * sigmoid(slope * x), np.tanh(x)]


def lincomb(x, p):
    parts = [w * v for w, v in zip(terms(p, "weights"), members(x, p), strict=True)]
    return sum(parts), 3 * sum(np.abs(part) for part in parts) + np.abs(x)


def normlincomb(x, p):
    value, scale = lincomb(x, p)
    total = sum(terms(p, "weights")) + 1e-8
    size = sum(np.abs(w) for w in terms(p, "weights"))
    return value / total, scale / np.abs(total) * (1 + size / np.abs(total))


def bspline(x, p):
    """The sum of hat functions; outside, a line through the last two knots."""
    table, (low, high) = p["values"], (-2.0, 2.5)
    knots = np.linspace(low, high, table.shape[-1])
    width = knots[1] - knots[0]
    inside = np.clip(x, low, high)
    value = sum(
        table[..., k] * np.maximum(0, 1 - np.abs(inside - knot) / width)
        for k, knot in enumerate(knots)
    )
    first, second, third, last = (table[..., k] for k in (0, 1, -2, -1))
    value = value + np.minimum(x - low, 0) * (second - first) / width
    value = value + np.maximum(x - high, 0) * (last - third) / width
    return value, 4 * (1 + np.abs(x)) * np.abs(table).max() * (2 / width + 1)


def dynamic_relu(x, p):
    """One sample at a time, in the paper's symbols."""
    y = np.empty_like(x)
    for n, sample in enumerate(x):
        pooled = sample.reshape(len(sample), -1).mean(1)
        hidden = np.maximum(p["squeeze.weight"] @ pooled + p["squeeze.bias"], 0)
        delta = 2 * sigmoid(p["excite.weight"] @ hidden + p["excite.bias"]) - 1
        for c, (da1, da2, db1, db2) in enumerate(delta.reshape(-1, 4)):
            y[n, c] = np.maximum((1 + da1) * sample[c] + 0.5 * db1, da2 * sample[c] + 0.5 * db2)
    mean = np.abs(x).reshape(*x.shape[:2], -1).mean(-1).max()
    return y, 8 * (np.abs(x) + 1) * (1 + mean)


def flow(points, velocities, steps=400):
    """Runge-Kutta of fourth order through the piecewise linear field."""
    knots = np.linspace(0, 1, len(velocities))

    def speed(x):
        return np.interp(x, knots, velocities)

    h = 1 / steps
    for _ in range(steps):
        k1 = speed(points)
        k2 = speed(points + h / 2 * k1)
        k3 = speed(points + h / 2 * k2)
        points = points + h / 6 * (k1 + 2 * k2 + 2 * k3 + speed(points + h * k3))
    return points


def ditac(variant, a, b, cells, table):
    """T by Runge-Kutta at the table's knots and NumPy's own linear interpolation."""

    def one(x, theta):
        velocities = knot_basis(cells).numpy().T @ theta
        grid = np.linspace(0, 1, table + 1)
        t = a + (b - a) * np.interp((x - a) / (b - a), grid, flow(grid, velocities))
        if variant == "inf":
            first, last = np.exp(np.diff(velocities)[[0, -1]] * cells)
            t = np.where(x < a, a + first * (x - a), np.where(x > b, b + last * (x - b), t))
        else:
            t = np.where((x <= a) | (x >= b), x, t)
        gate = 0.5 * (1 + erf(x / np.sqrt(2)))
        if variant == "ge":
            return np.where(x >= 0, t, x * gate)
        if variant == "leaky":
            return t * np.where(t >= 0, 1, 0.01)
        return t * gate

    def formula(x, p):
        theta = p["theta"].reshape(-1, cells - 1)
        if len(theta) == 1:
            value = one(x, theta[0])
        else:
            axis = next(i for i, n in enumerate(p["theta"].shape[:-1]) if n > 1)
            rows = zip(np.moveaxis(x, axis, 0), theta, strict=True)
            value = np.moveaxis(np.stack([one(*row) for row in rows]), 0, axis)
        # the flow's error and the closeness of neighbouring knots, whose differences are slopes
        return value, 8 * (np.abs(value) + (b - a) + np.abs(x))

    return formula


DITAC = {"cells": 5, "a": -1.0, "b": 2.5, "theta": "zero", "table": 64}
LEARNED_MEMBERS = [torch.nn.ReLU, partial(A.Swish, beta=0.7), torch.nn.Tanh]
OWN = "x * erf(exp(beta * x)) - max(x, gamma) * tanh(gamma * x)"

CASES = [
    Case(A.CosLU, {"alpha": 0.7, "beta": 1.9}, coslu),
    Case(A.SinLU, {"alpha": 0.7, "beta": 1.9}, sinlu),
    Case(A.DELU, {"n": 0.3}, delu, kinks=(0.0,)),
    Case(A.HELU, {}, delu, per_channel=False, kinks=(0.0,)),
    Case(A.ReLUN, {"n": 1.7}, relun, kinks=(0.0, 1.75, 1.75 + 0.25 / 3, 1.75 + 0.5 / 3, 2.0)),
    Case(A.ShiLU, {"alpha": 0.6, "beta": 0.3}, shilu, kinks=(0.0,)),
    Case(A.ScaledSoftSign, {"alpha": 0.8, "beta": 1.6}, softsign),
    Case(
        A.LinComb,
        {"members": LEARNED_MEMBERS, "weights": [0.2, 0.5, 0.9]},
        lincomb,  # pyright: ignore[reportArgumentType]
        kinks=(0.0,),
    ),
    Case(
        A.NormLinComb,
        {"members": LEARNED_MEMBERS, "weights": [0.2, 0.5, 0.9]},
        normlincomb,  # pyright: ignore[reportArgumentType]
        kinks=(0.0,),
    ),
    Case(A.FReLU, {"a": 0.9, "b": 0.2}, frelu, kinks=(0.0,)),
    Case(A.APA, {"lambd": 0.4, "kappa": 0.7}, apa),
    Case(A.AGLU, {"lambd": 0.4, "kappa": 0.7}, aglu),
    *(Case(A.EELU, {"variant": v}, eelu(v), per_channel=False) for v in (1, 2, 3, 4)),
    Case(
        A.Formula,
        {
            "formula": OWN,
            "constants": {"beta": 0.7, "gamma": 0.4},
        },
        written(OWN),
        kinks=(0.45, 0.45 + 0.25 / 3, 0.45 + 0.5 / 3, 0.7),
    ),
    Case(
        A.EvenCubicReLU,
        {"alpha": 0.9, "beta": 0.4, "gamma": 0.03},
        even_cubic,
        kinks=(0.0,),
        largest=lambda dtype: (torch.finfo(dtype).max / 4) ** (1 / 3),
    ),
    Case(
        A.Polynomial,
        {"degree": 4},
        polynomial,  # pyright: ignore[reportArgumentType]
        largest=lambda dtype: (torch.finfo(dtype).max / 64) ** (1 / 4),
    ),
    Case(A.Rational, {"m": 3, "n": 2}, rational, kinks=(-1.0, 1.0)),
    Case(A.Rational, {"m": 5, "n": 4}, rational, kinks=(-1.0, 1.0)),
    Case(A.Fourier, {"harmonics": 3, "omega": 0.6}, fourier),
    Case(
        A.Polynomial,
        {"degree": 6, "progressive": True},
        polynomial,  # pyright: ignore[reportArgumentType]
        largest=lambda dtype: (torch.finfo(dtype).max / 64) ** (1 / 6),
    ),
    Case(
        A.Rational,
        {"m": 5, "n": 4, "progressive": True},
        rational,
        kinks=(-1.0, 1.0),
        largest=lambda dtype: min(1e9, torch.finfo(dtype).max),
    ),
    Case(A.Fourier, {"harmonics": 4, "omega": 0.6, "progressive": True}, fourier),
    Case(A.Swish, {"beta": 1.4}, swish),
    Case(A.ACONC, {"p1": 0.9, "p2": 0.2, "beta": 1.3}, aconc),
    Case(A.PELU, {"a": 0.7, "b": 1.6}, pelu, kinks=(0.0,)),
    Case(A.Snake, {"alpha": 0.8}, snake),
    Case(
        A.BSpline,
        {"pieces": 6, "low": -2.0, "high": 2.5},
        bspline,
        kinks=tuple(-2.0 + 0.75 * k for k in range(7)),
    ),
    Case(
        A.DynamicReLU,
        {"channels": 4, "reduction": 2},
        dynamic_relu,
        per_channel=False,
        scalar=False,
    ),
    Case(A.DiTAC, DITAC, ditac("gelu", -1.0, 2.5, 5, 64), oracle_error=1e-8),
    Case(
        A.DiTAC, DITAC | {"variant": "leaky"}, ditac("leaky", -1.0, 2.5, 5, 64), oracle_error=1e-8
    ),
    Case(
        A.DiTAC,
        DITAC | {"variant": "ge", "a": 0.0},
        ditac("ge", 0.0, 2.5, 5, 64),
        oracle_error=1e-8,
    ),
    Case(A.DiTAC, DITAC | {"variant": "inf"}, ditac("inf", -1.0, 2.5, 5, 64), oracle_error=1e-8),
    Case(
        A.DSReLU,
        {"a": 3.0, "b": 0.6, "k": 4.0, "negative_slope": 0.4},
        dsrelu,
        per_channel=False,
        kinks=(0.0,),
    ),
    *(
        Case(
            A.SeriesReLU,
            {"channels": 3, "order": 2, "dims": dims},
            series_relu,
            shape=(2, 3, 6, 5)[: 2 + dims],
            per_channel=False,
            kinks=(0.0,),
            scalar=False,
        )
        for dims in (1, 2)
    ),
    Case(
        A.LSLU,
        {"channels": 3, "theta": 0.8, "omega": 0.2, "repeats": 2},
        lslu,
        shape=(2, 3, 6, 5),
        per_channel=False,
        kinks=(0.0,),
        scalar=False,
    ),
    Case(
        A.LSLU,
        {"channels": 3, "theta": 0.8, "omega": 0.2, "repeats": 2, "dims": 1},
        lslu,
        shape=(2, 3, 9),
        per_channel=False,
        kinks=(0.0,),
        scalar=False,
    ),
]


def variants_later(cases: list[Case]) -> list[Any]:
    """`cases`, of which variants with the code of another row are marked as slow.

    They have fewer terms, or differ outside an interval alone. Quicker tests hold their values.
    """
    later = (
        "DiTAC-leaky",
        "DiTAC-ge",
        "DiTAC-inf",
        "Rational-3",
        "Rational-5",
        "Fourier",
        "Polynomial",
    )
    return [pytest.param(c, marks=[pytest.mark.slow] if str(c) in later else []) for c in cases]
