"""The judge is judged: how often its verdicts are false, and what they find.

Three ways: simulated studies with the study's own noise; splits of real runs of one arm into arms
that do not differ; planted differences, for the power. All use :func:`study.verdict.decide`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .verdict import Decisions, Rules, Runs, decide
from .words import counted

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """How runs of a study vary.

    Args:
        baseline: deviation of the baseline's runs over seeds; (K,) if it is another for each arm.
        arms: (K,), deviation of each arm's.
        correlations: (K,), of each arm with the baseline over seeds.
    """

    baseline: float | Array
    arms: Array
    correlations: Array

    @classmethod
    def alike(cls, deviation: float, arms: int = 1, correlation: float = 0.0) -> "Noise":
        """The same noise in the baseline and in all arms."""
        return cls(deviation, np.full(arms, deviation), np.full(arms, correlation))

    @classmethod
    def measured(cls, baseline: Runs, arms: Sequence[Runs]) -> "Noise":
        """The noise of runs that ended; an arm with fewer than 3 pairs is taken like the baseline.

        Raises:
            ValueError: if fewer than 3 runs of the baseline ended.
        """
        deviation = _deviation(baseline.values[baseline.are("ok")])
        deviations, correlations = [], []
        for arm in arms:
            both = baseline.are("ok") & arm.are("ok")
            old, new = baseline.values[both], arm.values[both]
            known = len(old) > 2 and old.std() > 0 and new.std() > 0
            deviations.append(_deviation(new) if known else deviation)
            correlations.append(float(np.corrcoef(old, new)[0, 1]) if known else 0.0)
        return cls(deviation, np.array(deviations), np.array(correlations))


def _deviation(values: Array) -> float:
    if len(values) < 3:
        raise ValueError(f"the noise of {len(values)} runs is not known: 3 are the fewest")
    return float(values.std(ddof=1))


def simulate(
    noise: Noise,
    differences: ArrayLike,
    rules: Rules,
    studies: int = 2000,
    seed: int = 0,
    tails: float | None = None,
) -> Decisions:
    """Simulated studies, read look by look.

    Args:
        noise: of the runs.
        differences: (K,), true differences of the arms to the baseline; above 0 is better.
        rules: how the studies are read.
        studies: how many.
        seed: of the simulation.
        tails: None for normal errors, or the degrees of freedom (above 2) of Student's.
    """
    rng, arms, pairs = np.random.default_rng(seed), len(noise.arms), rules.looks[-1]
    shape = (studies, arms + 1, pairs)
    if tails is None:
        errors = rng.standard_normal(shape)
    else:
        errors = rng.standard_t(tails, shape) * np.sqrt((tails - 2) / tails)
    shared, own = errors[:, :1], errors[:, 1:]
    rho = noise.correlations[:, None]
    runs = noise.arms[:, None] * (rho * shared + np.sqrt(1 - rho**2) * own)
    found = (
        runs
        - np.reshape(noise.baseline, (-1, 1)) * shared
        + np.broadcast_to(differences, arms)[:, None]
    )
    return read(found, rules)


def read(differences: Array, rules: Rules) -> Decisions:
    """The verdicts on complete studies: (S, K, pairs) differences, above 0 is better."""
    means = [differences[..., :n].mean(-1) for n in rules.looks]
    deviations = [differences[..., :n].std(-1, ddof=1) for n in rules.looks]
    everything = np.ones((1, 1, len(rules.looks)), bool)
    return decide(np.stack(means, -1), np.stack(deviations, -1), everything, rules)


@dataclass(frozen=True)
class Found:
    """What simulated studies find of one arm: shares, and the mean number of pairs at the end."""

    better: float
    worse: float
    equivalent: float
    pairs: float

    @classmethod
    def of(cls, decisions: Decisions, rules: Rules, arm: int = 0) -> "Found":
        """The shares of one arm."""
        kind, look = decisions.kind[:, arm], decisions.look[:, arm]
        shares = [float((kind == code).mean()) for code in (1, 2, 3)]
        return cls(*shares, pairs=float(np.array(rules.looks)[look].mean()))


@dataclass(frozen=True)
class Judgement:
    """What the judge says of a study's rules under the study's noise.

    Attributes:
        false: simulated studies of equal arms with at least one better or worse.
        power: for a true difference of one arm, all others equal, what is found of it.
    """

    rules: Rules
    noise: Noise
    studies: int
    false: int
    power: Mapping[float, Found]

    @property
    def passed(self) -> bool:
        """Whether the share of false verdicts is at most alpha, but for chance (1 in 1,000)."""
        return within(self.false, self.studies, self.rules.alpha)

    def sentence(self) -> str:
        """The report's last line."""
        found = ", ".join(
            f"{difference:g} {self.rules.unit} in {100 * each.better:.0f}%"
            for difference, each in self.power.items()
            if difference
        )
        share = self.false / self.studies
        return (
            f"Judge: {100 * share:.1f}% of {self.studies} simulated studies of equal arms have a "
            f"false verdict ({_told(share, self.studies, self.rules.alpha)}); of one arm that is "
            f"better they find {found}"
        )


def within(false: int, studies: int, alpha: float) -> bool:
    """Whether `false` of `studies` is not above alpha by more than chance, 1 in 1,000."""
    return bool(stats.binom.sf(false - 1, studies, alpha) > 0.001)


def _told(share: float, studies: int, alpha: float) -> str:
    """How a share of false verdicts compares with what alpha allows."""
    if share <= alpha:
        return f"at most {100 * alpha:g}%"
    kept = within(round(share * studies), studies, alpha)
    return f"{100 * alpha:g}%, and what chance adds" if kept else f"MORE THAN {100 * alpha:g}%"


def judge(
    noise: Noise,
    rules: Rules,
    differences: Sequence[float] = (0.2, 0.3, 0.5, 1.0),
    studies: int = 2000,
    seed: int = 0,
    tails: float | None = None,
) -> Judgement:
    """Simulate equal arms, and one arm with each true difference; takes a second or two.

    Args:
        noise: of the study's runs.
        rules: how the study is read.
        differences: true differences for the power.
        studies: simulated studies for each.
        seed: of the simulation.
        tails: None for normal errors, or the degrees of freedom (above 2) of Student's.
    """
    equal = simulate(noise, 0.0, rules, studies, seed, tails)
    false = int(((equal.kind == 1) | (equal.kind == 2)).any(1).sum())
    power = {0.0: Found.of(equal, rules)}
    for number, difference in enumerate(differences, seed + 1):
        planted = np.where(np.arange(len(noise.arms)) == 0, difference, 0.0)
        power[difference] = Found.of(simulate(noise, planted, rules, studies, number, tails), rules)
    return Judgement(rules, noise, studies, false, power)


@dataclass(frozen=True)
class Splits:
    """What splits of real runs of one arm into equal arms say.

    Attributes:
        values: runs that were split.
        count: splits.
        false: splits with a false verdict.
        independent: how many independent studies tell as much as the splits, which share runs.
    """

    rules: Rules
    values: int
    arms: int
    count: int
    false: int
    independent: float

    def sentence(self) -> str:
        """The line of the report."""
        share = self.false / self.count
        alike = round(self.independent) if math.isfinite(self.independent) else 0
        arms = counted(self.arms, "equal arm")
        return (
            f"Judge: {100 * share:.1f}% of {self.count} random splits of {self.values} runs of one "
            f"arm into a baseline and {arms} have a false verdict "
            f"({_told(share, alike, self.rules.alpha)}); the splits share runs and tell as much as "
            f"{alike} independent studies"
        )


def splits(
    values: ArrayLike, rules: Rules, arms: int = 1, count: int = 1000, seed: int = 0
) -> Splits:
    """Split real runs of one arm into a baseline and arms, many times, and read each as a study.

    Splits of the same runs depend on each other: their share of false verdicts varies more from one
    set of runs to another than that of as many independent studies. How much more is simulated
    with 200 sets of normal values: with p the mean share and v its variance between sets, `count`
    splits tell as much as p (1 - p) / v independent studies.

    Args:
        values: runs of one arm, of different seeds.
        rules: how the studies are read.
        arms: K; a study takes (K + 1) times the pairs of the last look.
        count: splits.
        seed: of the splits.

    Raises:
        ValueError: for too few runs.
    """
    runs, need = np.asarray(values, float), (arms + 1) * rules.looks[-1]
    if len(runs) < need or not np.isfinite(runs).all():
        raise ValueError(f"a split takes {need} finite values, there are {np.isfinite(runs).sum()}")
    rng, trial = np.random.default_rng(seed), min(count, 200)
    false = int(_split(runs, rules, arms, count, rng).sum())
    normal = rng.standard_normal((200, len(runs))) * runs.std(ddof=1)
    shares = np.array([_split(each, rules, arms, trial, rng).mean() for each in normal])
    p = shares.mean()
    noise = p * (1 - p)
    between = max(0.0, float(shares.var(ddof=1)) - noise / trial)
    independent = float(noise / (between + noise / count)) if noise else float("nan")
    return Splits(rules, len(runs), arms, count, false, independent)


def _split(
    values: Array, rules: Rules, arms: int, count: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which of `count` random splits have a false verdict."""
    order = rng.permuted(np.tile(np.arange(len(values)), (count, 1)), axis=1)
    taken = values[order[:, : (arms + 1) * rules.looks[-1]]].reshape(count, arms + 1, -1)
    found = read(taken[:, 1:] - taken[:, :1], rules)
    return np.any((found.kind == 1) | (found.kind == 2), axis=1)
