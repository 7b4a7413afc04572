"""What is told of a candidate before any training, and which are not trained at all."""

from bisect import bisect, insort
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

import activations
from activations import Activation, Formula
from activations.functions.formula import Tree, names, text

from .space import Genome, tree

# where values and slopes must be finite: what flows in a network, a few far outliers, and next to 0
_SIDE = torch.cat([2.0 ** torch.arange(-24, -4), torch.arange(1, 81) / 10,
                   torch.tensor([12.0, 20.0, 50.0, 100.0, 1000.0])])  # fmt: skip
GRID = torch.cat([-_SIDE.flip(0), torch.zeros(1), _SIDE]).double()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = 1e3  # the most that a value may be for |x| <= 8, or its slope
BYTES = 4 * (2 + 3)  # that a fused kernel moves for each float32 element, forward and backward
NEAR = torch.arange(-40, 41).double() / 10  # where functions are compared
_WEIGHTS = torch.exp(-(NEAR**2) / 2) / torch.exp(-(NEAR**2) / 2).sum()  # of N(0, 1)
RESOLVED = 1e-2  # error of float32 for |x| <= 8, relative to 1 and to the value
SAME = 2e-4  # the largest difference of equal functions, in deviations
AFFINE = 1e-3  # share of the variance that no line explains
SATURATED = 0.05  # slope of the function that is scaled to unit second moment


@dataclass
class Candidate:
    """A function that passed, or the reason why it did not.

    Attributes:
        formula: as it is written.
        constants: first values of the learned ones.
        reason: "" if it passed.
        shape: its values on a grid, freed of scale, shift and direction; of the learned ones twice,
            with two sets of constants.
        known: name of the known function that it equals.
        operations: elementary ones for each element.
    """

    formula: str
    constants: dict[str, float]
    reason: str = ""
    shape: np.ndarray = field(default_factory=lambda: np.zeros(0))
    known: str = ""
    operations: int = 0

    def make(self, **options: Any) -> Formula:
        """The activation."""
        return Formula(self.formula, self.constants, **options)


class Shapes:
    """Shapes, of which equal ones are found in about the same time however many there are.

    Attributes:
        shapes: in the order in which they came.
    """

    def __init__(self, shapes: Iterable[np.ndarray] = ()) -> None:
        self.shapes: list[np.ndarray] = []
        self._keys: dict[int, list[tuple[float, int]]] = {}  # size -> means in order, and numbers
        for each in shapes:
            self.add(each)

    def add(self, shape: np.ndarray) -> None:
        """Put in one more."""
        insort(self._keys.setdefault(len(shape), []), (_key(shape), len(self.shapes)))
        self.shapes.append(shape)

    def find(self, shape: np.ndarray) -> int | None:
        """The number of the first that equals a shape."""
        keys, key = self._keys.get(len(shape), []), _key(shape)
        first, last = (bisect(keys, (key + 1.01 * side * SAME, 0)) for side in (-1, 1))
        near = (number for _, number in keys[first:last])
        return min((k for k in near if np.abs(self.shapes[k] - shape).max() < SAME), default=None)


def _key(shape: np.ndarray) -> float:
    """A mean of the values, which differs by no more than they do; rising weights tell odd ones."""
    return float(np.average(shape, weights=np.arange(len(shape))))


class Screens:
    """Looks at candidates one after another, and counts.

    Args:
        earlier: candidates that are not to be found again.

    Attributes:
        counts: reason -> number of candidates; "" are those that passed.
    """

    def __init__(self, earlier: Iterable[Candidate] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self._seen = Shapes(each.shape for each in earlier)

    def look(self, genome: Genome) -> Candidate:
        """The candidate of a genome, with the reason if it is not worth a training."""
        found = replace(_looked(genome))
        if not found.reason:
            if self._seen.find(found.shape) is None:
                self._seen.add(found.shape)
            else:
                found.reason = "equal to an earlier one"
        self.counts[found.reason] += 1
        return found


def screen_rows(counts: Mapping[str, int]) -> list[tuple[str, int, str]]:
    """Result, number and share of the candidates that were looked at; the most frequent first."""
    total = sum(counts.values())
    rows = sorted(counts.items(), key=lambda row: (row[0] != "", -row[1], row[0]))
    return [(reason or "passed", n, f"{100 * n / total:.1f}%") for reason, n in rows]


@lru_cache(maxsize=10_000)
def _looked(genome: Genome) -> Candidate:
    formula, constants = tree(genome)
    found = Candidate(text(formula), constants, operations=_operations(formula))
    if "x" not in names(formula):
        found.reason = "constant"
        return found
    double, single = found.make(dtype=torch.float64), found.make()
    exact = _values(double, GRID)
    near = GRID.abs() <= 8
    if not all(value.isfinite().all() for value in exact):
        found.reason = "not finite"
    elif max(value[near].abs().max() for value in exact) > LARGEST:
        found.reason = "explosive"
    elif not all(_finite(single, exact, dtype) for dtype in DTYPES):
        found.reason = "not finite in half or single precision"
    elif not _resolved(single, exact):
        found.reason = "not resolved in single precision"
    else:
        found.reason = _dull(*_values(double, NEAR))
    if not found.reason:
        found.shape = shape(double)
        found.known = _named(found)
    return found


def _dull(y: torch.Tensor, slope: torch.Tensor) -> str:
    """Whether nothing can be learned with it, under N(0, 1)."""
    mean = (_WEIGHTS * y).sum()
    variance = (_WEIGHTS * (y - mean) ** 2).sum()
    moment = (_WEIGHTS * y**2).sum()
    if variance <= 1e-8 * moment or moment == 0:
        return "constant"
    covariance = (_WEIGHTS * (y - mean) * NEAR).sum()
    if 1 - covariance**2 / (variance * (_WEIGHTS * NEAR**2).sum()) < AFFINE:
        return "affine"
    if (_WEIGHTS * slope**2).sum() < SATURATED**2 * moment:
        return "saturated"
    return ""


def _values(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The function and its slope."""
    x = x.clone().requires_grad_()
    y = module(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), slope


def _finite(module: Activation, exact: tuple[torch.Tensor, ...], dtype: torch.dtype) -> bool:
    """Whether value and slope are finite in a dtype wherever it can hold the exact ones."""
    for value, true in zip(_values(module, GRID.to(dtype)), exact, strict=True):
        holds = true.abs() < 0.9 * torch.finfo(dtype).max
        if not value[holds].isfinite().all():
            return False
    return True


def _resolved(module: Activation, exact: tuple[torch.Tensor, ...]) -> bool:
    """Whether float32 finds value and slope where a network works."""
    near = (GRID.abs() <= 8) & (GRID.abs() > 2.0**-20)
    return all(
        ((value - true).abs() <= RESOLVED * (1 + true.abs()))[near].all()
        for value, true in zip(_values(module, GRID.float()), exact, strict=True)
    )


def _operations(formula: Tree) -> int:
    return 1 + sum(map(_operations, formula[1:])) if isinstance(formula, tuple) else 0


def shape(module: nn.Module) -> np.ndarray:
    """The function on a grid, freed of what the next layer absorbs: scale, shift, and x -> -x.

    A function that learns is seen twice: as it starts, and with its parameters moved.
    """
    with torch.no_grad():
        rows = [module(NEAR)]
        parameters = list(module.parameters())
        for k, parameter in enumerate(parameters):
            # a family's own values by different amounts, or a sum of functions just moves up
            parameter += (
                0.37 + 0.11 * k + torch.linspace(0, 0.3, parameter.numel()).view_as(parameter)
            )
        if parameters:
            rows.append(module(NEAR))
    # with its parameters moved it may overflow
    return np.nan_to_num(
        np.concatenate([_free(row.double().numpy()) for row in rows]), posinf=0, neginf=0
    )


def _free(y: np.ndarray) -> np.ndarray:
    weights = _WEIGHTS.numpy()
    y = y - weights @ y
    y = y / max((weights @ y**2) ** 0.5, 1e-300)
    # of the four forms +-f(+-x) the one that rises on average, and then rises more to the right
    y = y if weights @ (y * NEAR.numpy()) >= -1e-9 else -y
    return y if weights @ (y * NEAR.numpy() ** 2) >= 0 else -y[::-1]


@cache
def _known() -> tuple[list[str], Shapes, Shapes]:
    """Names of torch's activations and of this project's, their shapes, and these at the start."""
    found: list[tuple[str, nn.Module]] = [
        (kind.__name__, kind())
        for kind in (nn.SiLU, nn.GELU, nn.ReLU, nn.Mish, nn.ELU, nn.SELU, nn.Tanh, nn.Sigmoid,
                     nn.Softplus, nn.Softsign, nn.Hardswish, nn.ReLU6, nn.LogSigmoid)
    ]  # fmt: skip
    for name in activations.__all__:
        kind = getattr(activations, name)
        if isinstance(kind, type) and issubclass(kind, Activation) and kind is not Activation:
            if kind is Formula or "channels" in kind.size_arguments:
                continue
            for number, arguments in enumerate(kind.variants, start=1):
                label = f"{name}-{number}" if len(kind.variants) > 1 else name
                with torch.random.fork_rng(devices=[]):  # some start at random
                    torch.manual_seed(0)
                    found.append((label, kind(**arguments, dtype=torch.float64)))
    shapes = [shape(module.double()) for _, module in found]
    starts = Shapes(each[: len(NEAR)] for each in shapes)
    return [name for name, _ in found], Shapes(shapes), starts


def _named(candidate: Candidate) -> str:
    """The known function that a candidate equals, "" for none."""
    known, shapes, starts = _known()
    if (number := shapes.find(candidate.shape)) is not None:
        return known[number]
    number = starts.find(candidate.shape[: len(NEAR)])
    return "" if number is None else f"{known[number]} at the start"
