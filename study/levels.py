r"""Nominal levels of a t test that is read at several looks: linear alpha spending.

Notation: the looks are :math:`n_1 < \dots < n_L` paired differences. At look l the interval has the
level :math:`1 - a_l`. The levels :math:`a_l` are such that, if nothing differs, the interval of
look l is the first that leaves out 0 with probability
:math:`\frac{\alpha}{K} \frac{n_l - n_{l-1}}{n_L}`; all looks together spend :math:`\alpha / K`.

Reference: Lan, DeMets, Discrete sequential boundaries for clinical trials, Biometrika 70, 1983,
doi:10.1093/biomet/70.3.659. Jennison, Turnbull, Exact calculations for sequential t, chi-square and
F tests, Biometrika 78, 1991, doi:10.1093/biomet/78.1.133, integrate over two dimensions; one is
enough, see :func:`_chain`.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]

LEAST = 5
"""Pairs that the first look needs: with fewer, the deviation is too badly known."""
CELLS, NODES = 120, 64  # of the integration


def spending_levels(
    looks: Sequence[int], alpha: float = 0.05, hypotheses: float = 1.0
) -> tuple[float, ...]:
    """The nominal two-sided level of each look.

    The first is exact, alpha n_1 / (K n_L). The others come from a numerical integration whose
    relative error is about 0.1%, and up to 0.5% where a look adds a single pair.

    Args:
        looks: numbers of pairs at which the study is read, increasing, the first at least 5.
        alpha: chance of a false verdict, over all looks and hypotheses.
        hypotheses: K, among how many hypotheses alpha is divided; need not be whole.

    Raises:
        ValueError: for looks that do not increase or begin below 5, alpha outside (0, 1), or K < 1.
    """
    looks = check_looks(looks)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha}")
    if hypotheses < 1:
        raise ValueError(f"a study has at least one hypothesis, not {hypotheses}")
    return _levels(looks, alpha / hypotheses)


def check_looks(looks: Sequence[int]) -> tuple[int, ...]:
    """The looks as a tuple.

    Raises:
        ValueError: if they do not increase, or begin below 5.
    """
    looks = tuple(int(look) for look in looks)
    if not looks or looks[0] < LEAST or any(b <= a for a, b in pairwise(looks)):
        raise ValueError(f"looks must increase from {LEAST} pairs or more, not {list(looks)}")
    return looks


@lru_cache(maxsize=1024)
def _levels(looks: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    edges, moves = _edges(), _chain(looks)
    mass, levels = np.diff(edges), []
    for look, before in enumerate((0, *looks[:-1])):
        if look:
            mass = mass @ moves[look - 1]
        below = np.concatenate([[0.0], np.cumsum(mass)])  # mass of p-values up to each edge
        level = float(np.interp(alpha * (looks[look] - before) / looks[-1], below, edges))
        levels.append(level)
        mass = mass * np.clip((edges[1:] - level) / np.diff(edges), 0, 1)
    return tuple(levels)


def _edges() -> Array:
    """Edges of the cells of p-values, dense near 0."""
    return np.linspace(0, 1, CELLS + 1) ** 4


@lru_cache(maxsize=32)
def _chain(looks: tuple[int, ...]) -> list[Array]:
    r"""Chances to move from each cell of p-values at a look to each cell at the next.

    With :math:`S_n` the sum of the first n differences, :math:`V_n` the sum of their squares, let
    :math:`\rho_n = S_n / \sqrt{n V_n}`; then :math:`t_n = \rho_n \sqrt{(n-1)/(1-\rho_n^2)}`. If
    nothing differs, the direction of n normal differences is independent of their length
    :math:`V_n`, so that :math:`\rho` is a Markov chain. With m further differences, n' = n + m,

    .. math:: \rho_{n'} = \sqrt{n B / n'}\, \rho_n + \sqrt{m (1 - B) / n'}\, \rho_{new}

    where :math:`B \sim Beta(n/2, m/2)`, :math:`\rho_{new}^2 \sim Beta(1/2, (m-1)/2)`, with a random
    sign, and both are independent of :math:`\rho_n`. The integral over B is a sum over `NODES`
    quantiles; each cell is represented by its middle.
    """
    edges = _edges()
    middles, moves = (edges[1:] + edges[:-1]) / 2, []
    for n, after in pairwise(looks):
        m = after - n
        share = special.betaincinv(n / 2, m / 2, (np.arange(NODES) + 0.5) / NODES)
        rho = _rho(middles, n)[:, None]
        above = np.empty((CELLS, CELLS + 1))
        for column, bound in enumerate(_rho(edges, after)):
            kept, scale = rho * np.sqrt(n * share), np.sqrt(m * (1 - share))
            bound = bound * np.sqrt(after)
            above[:, column] = (
                _tail((bound - kept) / scale, m) + _tail((bound + kept) / scale, m)
            ).mean(1)
        moves.append(np.diff(above, axis=1))
    return moves


def _rho(p: Array, n: int) -> Array:
    """The correlation whose t statistic of n differences has the two-sided p-value p."""
    return np.sqrt(special.betaincinv(0.5, (n - 1) / 2, 1 - p))


def _tail(x: Array, m: int) -> Array:
    """Chance that rho of m normal differences is above x."""
    if m == 1:  # rho is a sign
        return 0.5 * (x < 1) * (1.0 + (x < -1))
    return np.interp(x, *_tail_table(m))


@lru_cache(maxsize=32)
def _tail_table(m: int) -> tuple[Array, Array]:
    at = -np.cos(np.linspace(0, np.pi, 2001))
    return at, (1 - np.sign(at) * special.betainc(0.5, (m - 1) / 2, at**2)) / 2


def critical_value(level: ArrayLike, n: ArrayLike) -> Array:
    """The t value that n paired differences exceed, in either direction, with chance `level`."""
    return -special.stdtrit(np.asarray(n) - 1, np.asarray(level) / 2)
