r"""What n paired differences can tell: chances of each verdict, pairs needed, smallest difference.

A difference is found when the interval :math:`\bar d \pm t_{1-a/2, n-1}\, s / \sqrt n` leaves out
0, and equivalence when the interval lies inside :math:`\pm` the margin. The half width depends on s
alone, which is independent of :math:`\bar d`; given s, each chance is that of a normal variable.

Reference: Phillips, Power of the two one-sided tests procedure, J. Pharmacokinet. Biopharm. 18,
1990, doi:10.1007/BF01063556, integrates over s in the same way. With margin 0 the result is the
noncentral t distribution's.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from .levels import critical_value

Array = NDArray[np.float64]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)
_QUANTILES = (_NODES + 1) / 2  # of the deviation
POWER = 0.8
"""The power that a plan asks for."""
MOST = 100_000
"""Pairs beyond which no plan is made."""


class Chances(NamedTuple):
    """Chance of each verdict; what remains is undecided."""

    better: Array
    worse: Array
    equivalent: Array

    @property
    def decided(self) -> Array:
        """Chance of any verdict."""
        return self.better + self.worse + self.equivalent


def chances(
    difference: ArrayLike, deviation: ArrayLike, n: ArrayLike, level: ArrayLike, margin: float = 0.0
) -> Chances:
    """Chances of the verdicts of one look; the arguments are broadcast.

    Args:
        difference: the true mean difference.
        deviation: the true deviation of a pair's difference.
        n: pairs.
        level: the nominal two-sided level of the look.
        margin: half width of the region of equivalence; 0 asks for the t test alone.
    """
    difference, deviation, n, level = (
        np.asarray(each, float)[..., None] for each in (difference, deviation, n, level)
    )
    freedom, error = n - 1, deviation / np.sqrt(n)
    scale = np.sqrt(2 * special.gammaincinv(freedom / 2, _QUANTILES) / freedom)  # s / deviation
    half = critical_value(level, n) * scale * error
    bound = np.maximum(half, margin - half)  # beyond it a difference is told, and not equivalence
    above = special.ndtr((difference - bound) / error)
    below = special.ndtr((-difference - bound) / error)
    room = np.maximum(margin - half, 0)
    inside = special.ndtr((room - difference) / error) - special.ndtr((-room - difference) / error)
    return Chances(*(each @ _WEIGHTS / 2 for each in (above, below, inside)))


def pairs_needed(
    difference: float,
    deviation: float,
    level: float = 0.05,
    margin: float = 0.0,
    verdict: Literal["difference", "equivalent", "any"] = "difference",
) -> int | None:
    """The smallest number of pairs with 80% power in one look.

    Args:
        difference: the true mean difference.
        deviation: the true deviation of a pair's difference.
        level: the nominal two-sided level of the look.
        margin: half width of the region of equivalence.
        verdict: which one they find.

    Returns:
        The number; None if 100,000 pairs are not enough.
    """

    def power(n: float) -> float:
        found = chances(difference, deviation, n, level, margin)
        told = found.better + found.worse
        return float({"equivalent": found.equivalent, "any": found.decided}.get(verdict, told))

    low, high = 1, 2
    while power(high) < POWER:
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def smallest_difference(n: int, deviation: float, level: float) -> float:
    """The smallest true difference that a look at n pairs finds with 80% power."""

    def lack(ratio: float) -> float:
        found = chances(ratio, np.sqrt(n), n, level)
        return float(found.better) - POWER

    high = float(critical_value(level, n)) * 4 + 4  # in standard errors
    return float(optimize.brentq(lack, 0, high)) * deviation / float(np.sqrt(n))  # pyright: ignore[reportArgumentType]


class Pairing(NamedTuple):
    """What pairs of the same seed gain over unpaired runs."""

    correlation: float
    low: float
    high: float
    unpaired: float
    """As many unpaired runs of each arm tell as much."""


def pairing(baseline: ArrayLike, arm: ArrayLike) -> Pairing:
    """The correlation over seeds with its 95% interval, by Fisher's transformation.

    Args:
        baseline: values of at least 4 runs.
        arm: values of the same seeds.
    """
    old, new = np.asarray(baseline, float), np.asarray(arm, float)
    half = float(stats.norm.isf(0.025)) / np.sqrt(len(old) - 3)
    with np.errstate(divide="ignore", invalid="ignore"):  # runs may be equal
        r = float(np.corrcoef(old, new)[0, 1])
        low, high = np.tanh(np.arctanh(r) + np.array([-half, half]))
        gain = (old.var(ddof=1) + new.var(ddof=1)) / (new - old).var(ddof=1)
    return Pairing(r, float(low), float(high), float(len(old) * gain))
