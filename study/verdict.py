r"""One verdict on each arm of a study, from one interval: better, worse, equivalent, or not yet.

The unit is the paired difference to the baseline of the same seed. At look l, the interval of an
arm is :math:`\bar d \pm t_{1-a_l/2}\, s / \sqrt{n_l}`. Inside :math:`\pm` the margin it says
*equivalent*, else above 0 *better*, below 0 *worse*, else *undecided*. The levels :math:`a_l` spend
alpha over the looks and over K arms (:mod:`study.levels`). The first verdict of an arm stands:
later pairs do not change it, nor does a run of the baseline that diverges later. A run of the arm
that diverges makes it *unstable*, whatever it had shown. A verdict is false if it is better or
worse and the truth is not, or if it is equivalent and the true difference is the margin or more.
With normal errors, at most alpha of all studies have a false verdict, whatever the true differences
are and however the arms depend on each other.

**Step-down.** When j arms are told from 0, the others are read as if they were K - j/2, where
Holm's method would take K - j. An arm that differs can still fail on one side of its interval
(equivalent although it is not, or the wrong sign): only half of its share is free. Proof: let
:math:`k_0` arms have a true difference of 0, :math:`k_1 = K - k_0` another, and let
:math:`K^* = K - k_1/2`. Before the first false verdict at most :math:`k_1` arms are told from 0, so
that no level is above that of :math:`K^*` hypotheses. An arm of the first kind fails with a chance
of at most :math:`\alpha/K^*`, one of the second, by one side alone, of :math:`\alpha/(2K^*)`. The
sum is :math:`\alpha (k_0 + k_1/2) / K^* = \alpha`.

Reference: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6,
1979. Bretz, Maurer, Brannath, Posch, A graphical approach to sequentially rejective multiple test
procedures, Stat. Med. 28, 2009, doi:10.1002/sim.3495: any share of a level may be passed on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .levels import check_looks, critical_value, spending_levels
from .power import POWER, chances, smallest_difference

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Kind(StrEnum):
    """What a verdict says."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"
    IDENTICAL = "identical"  # all differences are 0
    UNSTABLE = "unstable"  # runs diverged
    HELD = "held back"  # a run failed
    TOO_FEW = "no verdict"  # before the first look


DECIDED = (Kind.UNDECIDED, Kind.BETTER, Kind.WORSE, Kind.EQUIVALENT)
"""The kinds that :func:`decide` tells apart, by their numbers."""


@dataclass(frozen=True)
class Rules:
    """How a study is read; fixed before its first run.

    Args:
        margin: the largest difference that does not matter, in units of the metric.
        looks: numbers of pairs at which the study is read.
        alpha: the chance of a false verdict, over all looks and hypotheses.
        unit: of the metric.
        higher_is_better: false for a loss.

    Raises:
        ValueError: for a margin or an alpha that is out of range, or looks that do not increase.
    """

    margin: float
    looks: tuple[int, ...] = (5, 8, 12, 20)
    alpha: float = 0.05
    unit: str = "points"
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "looks", check_looks(self.looks))
        if not 0 < self.margin < np.inf:
            raise ValueError(f"the margin must be above 0, not {self.margin}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be between 0 and 1, not {self.alpha}")

    def levels(self, hypotheses: int) -> Array:
        """(looks, hypotheses) nominal levels; column j is for j arms that are told from 0."""
        rows = [
            spending_levels(self.looks, self.alpha, hypotheses - told / 2)
            for told in range(hypotheses)
        ]
        return np.array(rows).T


@dataclass(frozen=True)
class Runs:
    """The runs of one arm, one for each seed, in the order of the seeds.

    Args:
        name: of the arm.
        values: the metric of each run; NaN where there is none.
        status: "ok", "diverged", "failed" or "missing" for each run; by default "ok" with a value
            and "missing" without.

    Raises:
        ValueError: for a status that does not exist or that does not fit the value.
    """

    name: str
    values: NDArray[Any]
    status: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = np.asarray(self.values, float)
        finite = np.isfinite(values)
        status = tuple(self.status) or tuple("ok" if known else "missing" for known in finite)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "status", status)
        if values.ndim != 1 or len(status) != len(values):
            raise ValueError(f"{self.name}: {len(status)} states for values of {values.shape}")
        for number, (state, known) in enumerate(zip(status, finite, strict=True)):
            if state not in ("ok", "diverged", "failed", "missing"):
                raise ValueError(f"{self.name}: run {number} has the unknown status {state!r}")
            if state == "ok" and not known:
                raise ValueError(f"{self.name}: run {number} is ok, but has no value")

    def are(self, state: str) -> Mask:
        """Which runs have this status."""
        return np.array([each == state for each in self.status], bool)


class Interval(NamedTuple):
    """The mean difference of the first n pairs and its interval at one look."""

    n: int
    difference: float
    low: float
    high: float
    level: float
    """The nominal level: the interval has the confidence 1 - level."""

    @property
    def numbers(self) -> str:
        """As tables print it: -1.83 [-3.19, -0.47]."""
        return f"{self.difference:+z.2f} [{self.low:+z.2f}, {self.high:+z.2f}]"

    def text(self, unit: str) -> str:
        """The interval as the reports print it."""
        return f"{self.numbers.replace(' ', f' {unit} ', 1)} over {self.n} paired seeds"


@dataclass(frozen=True)
class Verdict:
    """What a study says of one arm.

    Attributes:
        kind: the verdict.
        interval: what it rests on: of the look that decided, else of the last one that was read.
        history: the interval at each look that was read, the later ones too.
        look: number of the look that decided, from 1; None before.
        needed: further pairs to the look that decides with 80% power if the truth is as seen.
        smallest: the true difference that the last look finds with 80% power.
        pairs: pairs with both values.
        diverged: runs of the arm that diverged, `ended` those that diverged or have a value;
            `baseline_diverged` and `baseline_ended` are those of the baseline.
        fisher: p-value of Fisher's exact test between the two.
        failed: runs that failed, by their number among the seeds.
        scope: to what the verdict belongs, such as "CIFAR10, resnet8, 20 epochs".
    """

    arm: str
    baseline: str
    kind: Kind
    rules: Rules
    interval: Interval | None = None
    history: tuple[Interval, ...] = ()
    look: int | None = None
    needed: int | None = None
    smallest: float | None = None
    pairs: int = 0
    mean: float = float("nan")
    diverged: int = 0
    ended: int = 0
    baseline_diverged: int = 0
    baseline_ended: int = 0
    fisher: float | None = None
    failed: tuple[int, ...] = ()
    scope: str = ""

    @property
    def below_margin(self) -> bool:
        """Whether the arm is equivalent although it differs: real, but below the margin."""
        told = self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)
        return self.kind is Kind.EQUIVALENT and told

    def sentence(self) -> str:
        """The verdict in one line, as in "PELU: WORSE than ReLU: -0.35 points [-0.67, -0.03]"."""
        return self._told() + (f" ({self.scope})" if self.scope else "")

    def _told(self) -> str:
        arm, base, unit = self.arm, self.baseline, self.rules.unit
        match self.kind:
            case Kind.TOO_FEW:
                return (
                    f"{arm}: NO VERDICT against {base}: {self.pairs} of the "
                    f"{self.rules.looks[0]} paired seeds that the first look needs"
                )
            case Kind.UNSTABLE:
                text = (
                    f"{arm}: UNSTABLE against {base}: {self.diverged} of {self.ended} runs "
                    f"diverged, {self.baseline_diverged} of {self.baseline_ended} of {base} "
                    f"(Fisher's exact test: p = {self.fisher:.2g})"
                )
                seen = f"; {self.mean:+z.2f} {unit} over {self.pairs} pairs that ended"
                return text + seen if self.pairs else text
            case Kind.IDENTICAL:
                assert self.interval is not None
                return f"{arm}: IDENTICAL to {base} in all {self.interval.n} paired seeds"
            case Kind.HELD:
                which = ", ".join(str(number + 1) for number in self.failed)
                which = f"of pair {which}" if which else "of the tuning"
                seen = f"; so far {self.interval.text(unit)}" if self.interval else ""
                return (
                    f"{arm}: HELD BACK against {base}: a run {which} failed{seen}; "
                    "`status` names its folder: delete it, and it is run again"
                )
            case _:
                assert self.interval is not None
                seen = self.interval.text(unit)
        if self.kind is Kind.UNDECIDED:
            return f"{arm}: UNDECIDED against {base}: {seen}; {self._outlook(self.interval)}"
        if self.kind is Kind.EQUIVALENT:
            small = ", real but below the margin" if self.below_margin else ""
            text = f"{arm}: EQUIVALENT to {base} within {self.rules.margin:g} {unit}: {seen}{small}"
        else:
            text = f"{arm}: {self.kind.upper()} than {base}: {seen}"
        later = self.history[-1]
        if later.n > self.interval.n:  # the decision stands, and the reader sees what came after
            text += f" (decided there; by now {later.text(unit)})"
        if self.baseline_diverged:
            text += f" (decided before {self.baseline_diverged} of {self.baseline_ended} runs of "
            text += f"{base} diverged)"
        return text

    def _outlook(self, seen: Interval) -> str:
        if seen.low == seen.high:
            return "all differences are the same, which a t test cannot judge"
        if self.needed:
            return f"needs {self.needed} more if the truth is as seen"
        if self.smallest is None:
            return "it has the seeds of its arm's verdict, and no more"
        last = self.rules.looks[-1]
        known = "" if seen.n == last else "beyond the last look if the truth is as seen; "
        return (
            f"{known}the smallest difference that {last} pairs find in 80% of studies is "
            f"{self.smallest:.2f} {self.rules.unit}"
        )


def family(
    baseline: Runs | Sequence[Runs],
    arms: Sequence[Runs],
    rules: Rules,
    hypotheses: int | None = None,
) -> list[Verdict]:
    """The verdicts on all arms of a study, against one baseline or one for each arm.

    A second baseline is a second question: call it once more; each call has an alpha of its own.

    Args:
        baseline: the runs of the baseline; a sequence if arms belong to several cells, each with
            a baseline of its own.
        arms: the runs of each arm, of the same seeds as the baseline's.
        rules: how the study is read.
        hypotheses: K; more than the arms if some have not begun.

    Raises:
        ValueError: for arms of other lengths, or more arms than hypotheses.
    """
    bases = [baseline] * len(arms) if isinstance(baseline, Runs) else list(baseline)
    count = len(arms) if hypotheses is None else hypotheses
    if not arms or count < len(arms) or len(bases) != len(arms):
        raise ValueError(f"{len(arms)} arms, {len(bases)} baselines, {count} hypotheses do not fit")
    for base, arm in zip(bases, arms, strict=True):
        if len(base.values) != len(arm.values):
            raise ValueError(
                f"{arm.name} has {len(arm.values)} seeds and {base.name} {len(base.values)}: "
                "give a NaN where a run is missing"
            )
    sign = 1.0 if rules.higher_is_better else -1.0
    pairs = [_Pairs(base, arm, rules, sign) for base, arm in zip(bases, arms, strict=True)]
    levels = rules.levels(count)
    found = decide(
        np.array([[each.means for each in pairs]]),
        np.array([[each.deviations for each in pairs]]),
        np.array([[each.read for each in pairs]]),
        rules,
        levels,
    )
    return [each.verdict(k, found, levels) for k, each in enumerate(pairs)]


class Decisions(NamedTuple):
    """What :func:`decide` finds for each of S studies with K arms."""

    kind: NDArray[np.intp]
    """(S, K), a number in `DECIDED`."""
    look: NDArray[np.intp]
    """(S, K), the look that decided, from 0; -1 before."""
    level: Array
    """(S, K), the nominal level at which it was decided."""
    told: NDArray[np.intp]
    """(S, looks), arms that are told from 0, when a look has been read."""


def decide(
    means: Array, deviations: Array, read: Mask, rules: Rules, levels: Array | None = None
) -> Decisions:
    """Read all looks of many studies in their order; the only place where a verdict is made.

    Args:
        means: (S, K, looks), mean of the differences up to each look; better is above 0.
        deviations: (S, K, looks), their deviations.
        read: (S, K, looks), which looks an arm has reached; it can be broadcast. An arm whose
            differences are all the same (deviation 0) is left undecided.
        rules: how the study is read.
        levels: (looks, hypotheses) of :meth:`Rules.levels`; by default for K hypotheses.
    """
    studies, arms, looks = means.shape
    levels = rules.levels(arms) if levels is None else levels
    sizes = np.array(rules.looks)
    critical = critical_value(levels, sizes[:, None])
    kind = np.zeros((studies, arms), np.intp)
    look = np.full((studies, arms), -1)
    level, told = np.zeros((studies, arms)), np.zeros((studies, looks), np.intp)
    free = np.zeros(studies, np.intp)
    for at, n in enumerate(rules.looks):
        mean, error = means[..., at], deviations[..., at] / np.sqrt(n)
        open_ = read[..., at] & (error > 0)
        for _ in range(arms):
            column = np.minimum(free, levels.shape[1] - 1)
            half = critical[at, column][:, None] * error
            inside, differs = np.abs(mean) + half < rules.margin, np.abs(mean) > half
            new = open_ & (kind == 0) & (inside | differs)
            kind[new] = np.where(inside, 3, np.where(mean > 0, 1, 2))[new]
            look[new] = at
            level[new] = np.broadcast_to(levels[at, column][:, None], new.shape)[new]
            step = (new & differs).sum(1)
            free += step
            if not step.any():
                break
        told[:, at] = free
    return Decisions(kind, look, level, told)


class _Pairs:
    """The pairs of one arm up to each look."""

    def __init__(self, base: Runs, arm: Runs, rules: Rules, sign: float) -> None:
        self.base, self.arm, self.rules, self.sign = base, arm, rules, sign
        both = base.are("ok") & arm.are("ok")
        self.differences = np.where(both, arm.values - base.values, np.nan)
        self.count = int(both.sum())
        size = np.abs(np.stack([base.values, arm.values])[:, both]).max(initial=0)
        self.read = np.array([n <= len(both) and bool(both[:n].all()) for n in rules.looks])
        self.means, self.deviations = np.zeros(len(rules.looks)), np.zeros(len(rules.looks))
        for at, n in enumerate(rules.looks):
            if self.read[at]:
                first = self.differences[:n]
                found = np.array([sign * first.mean(), first.std(ddof=1)])
                found[np.abs(found) < 1e-12 * size] = 0.0  # what rounding leaves of equal values
                self.means[at], self.deviations[at] = found

    def interval(self, look: int, level: float) -> Interval:
        n, mean = self.rules.looks[look], self.sign * self.means[look]
        half = float(critical_value(level, n)) * self.deviations[look] / np.sqrt(n)
        return Interval(n, float(mean), float(mean - half), float(mean + half), level)

    def verdict(self, k: int, found: Decisions, levels: Array) -> Verdict:
        """The verdict on this arm, number k of those that were found."""
        arm, base, rules = self.arm, self.base, self.rules
        column = np.minimum(found.told[0], levels.shape[1] - 1)
        reached = int(self.read.sum())  # a look is read only if all before it are
        history = tuple(self.interval(at, float(levels[at, column[at]])) for at in range(reached))
        lost, base_lost = (int(runs.are("diverged").sum()) for runs in (arm, base))
        ended, base_ended = (int(runs.are("ok").sum()) for runs in (arm, base))
        failed = np.flatnonzero(arm.are("failed") | base.are("failed"))
        made = Verdict(
            arm.name,
            base.name,
            Kind.TOO_FEW,
            rules,
            interval=history[-1] if history else None,
            history=history,
            pairs=self.count,
            mean=float(np.nanmean(self.differences)) if self.count else float("nan"),
            diverged=lost,
            ended=ended + lost,
            baseline_diverged=base_lost,
            baseline_ended=base_ended + base_lost,
            failed=tuple(int(number) for number in failed),
        )
        kind, look = DECIDED[found.kind[0, k]], int(found.look[0, k])
        if kind is not Kind.UNDECIDED and not lost:
            interval = self.interval(look, float(found.level[0, k]))
            return replace(made, kind=kind, look=look + 1, interval=interval)
        if lost or base_lost:
            exact = stats.fisher_exact([[lost, ended], [base_lost, base_ended]])
            chance = float(exact.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
            return replace(made, kind=Kind.UNSTABLE, fisher=chance)
        if reached < len(rules.looks) and (failed < rules.looks[reached]).any():
            return replace(made, kind=Kind.HELD)
        if not reached:
            return made
        mean, deviation = float(self.means[reached - 1]), float(self.deviations[reached - 1])
        if not deviation:
            return replace(made, kind=Kind.UNDECIDED if mean else Kind.IDENTICAL)
        n, ahead = rules.looks[reached - 1], levels[:, column[reached - 1]]
        later = [
            size - n
            for size, level in zip(rules.looks[reached:], ahead[reached:], strict=True)
            if chances(mean, deviation, size, level, rules.margin).decided >= POWER
        ]
        smallest = smallest_difference(rules.looks[-1], deviation, float(ahead[-1]))
        needed = later[0] if later else None
        return replace(made, kind=Kind.UNDECIDED, needed=needed, smallest=smallest)
