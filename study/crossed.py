r"""What a difference is worth on new images: seeds and images are both samples.

The verdict speaks of the test set at hand, whose images are the same for all seeds. On other images
of this kind the mean difference of n seeds has the variance

.. math:: \frac{s_d^2}{n} + v, \qquad
    v = \frac{1}{n (n-1)} \sum_{s \ne t} \mathrm{cov}^*(d^*_s, d^*_t)

where :math:`d^*_s` is the difference of seed s on a resampled test set. The first term holds the
seeds, and how seeds and images act together; v, the part that all seeds share, is what another
test set would change. (The variance of the mean of :math:`d^*` would count the joint part twice.)
Where images come in groups, such as the beats of a record, whole groups are resampled.

Each term has its own t quantile, and the half widths add up as squares (Howe), so that the interval
is never narrower than that of the seeds alone. One t quantile with Satterthwaite's degrees of
freedom for both made it so with five seeds: at a level of 0.0007 it missed up to six times too
often.

References: Owen, The pigeonhole bootstrap, Ann. Appl. Stat. 1, 2007, doi:10.1214/07-AOAS122, on
what resampling of crossed factors counts twice. Howe, Approximate confidence limits on the mean of
X + Y, J. Am. Stat. Assoc. 69, 1974, page 789.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .verdict import Kind, Rules

Array = NDArray[np.float64]
Metric = Callable[[NDArray[np.int64], NDArray[np.generic], Array], Array]
"""Labels (I,), predictions (I,) or probabilities (I, C), and weights (B, I) to values (B,)."""

Outputs = Sequence[ArrayLike] | NDArray[Any]
"""Predictions (I,) or probabilities (I, C) of each run."""


def accuracy(labels: NDArray[np.int64], outputs: NDArray[np.generic], weights: Array) -> Array:
    """Weighted share of right predictions."""
    return weights @ (predictions(outputs) == labels) / weights.sum(1)


def macro_f1(
    labels: NDArray[np.int64],
    outputs: NDArray[np.generic],
    weights: Array,
    classes: Sequence[int] | None = None,
) -> Array:
    """Weighted F1, the mean over `classes` that have samples; by default over all classes."""
    predicted = predictions(outputs)
    chosen = np.unique(labels) if classes is None else np.array(classes)
    true, told = labels[:, None] == chosen, predicted[:, None] == chosen
    counted = np.concatenate([true & told, true, told], 1).astype(float)
    hits, true, told = np.split(weights @ counted, 3, axis=1)  # the weights are read once
    with np.errstate(invalid="ignore"):
        return np.where(true > 0, 2 * hits / (true + told), 0).sum(1) / (true > 0).sum(1)


def auroc(labels: NDArray[np.int64], outputs: NDArray[np.generic], weights: Array) -> Array:
    """Weighted area under the ROC curve: of scores (I,) of class 1, or the mean, one against rest.

    A class without samples, or without samples of others, has no value.
    """
    scores = np.asarray(outputs, float)
    if scores.ndim == 1:
        return _area(labels == 1, scores, weights)
    areas = np.stack([_area(labels == k, column, weights) for k, column in enumerate(scores.T)])
    return np.nanmean(areas, axis=0)


def _area(positive: NDArray[np.bool_], scores: Array, weights: Array) -> Array:
    """Chance that a positive has a higher score than a negative; a tie counts half."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    ups, downs = (
        np.add.reduceat(weights[:, order] * chosen[order], starts, axis=1)
        for chosen in (positive, ~positive)
    )
    below = downs.cumsum(1) - downs / 2
    with np.errstate(invalid="ignore"):
        return (ups * below).sum(1) / (ups.sum(1) * downs.sum(1))


def predictions(outputs: NDArray[np.generic]) -> NDArray[np.int64]:
    """Classes (I,), from classes or from probabilities (I, C)."""
    return np.asarray(outputs.argmax(1) if outputs.ndim == 2 else outputs, np.int64)


METRICS: dict[str, Metric] = {
    "acc": accuracy,
    "f1": macro_f1,
    "f1_nsvf": partial(macro_f1, classes=(0, 1, 2, 3)),  # MIT-BIH without Q, the unknown beats
    "auroc": auroc,
}
"""By the names of a study's metric."""


@dataclass(frozen=True)
class NewImages:
    """The mean difference as an estimate for new images of this kind.

    Attributes:
        test_deviation: what another test set would change in the difference, as a deviation.
        seed_deviation: what other seeds would change; the deviation of their mean.
        groups: how many images, or groups of images, were resampled; `thing` is their name.
    """

    arm: str
    baseline: str
    rules: Rules
    difference: float
    low: float
    high: float
    n: int
    groups: int
    thing: str
    seed_deviation: float
    test_deviation: float

    @property
    def coarse(self) -> bool:
        """Whether the test set's own deviation exceeds half the margin."""
        return self.test_deviation > self.rules.margin / 2

    @property
    def kind(self) -> Kind:
        """What the interval says."""
        if max(-self.low, self.high) < self.rules.margin:
            return Kind.EQUIVALENT
        if self.low <= 0 <= self.high:
            return Kind.UNDECIDED
        return Kind.BETTER if (self.low > 0) == self.rules.higher_is_better else Kind.WORSE

    def sentence(self) -> str:
        """The line that stands below the verdict."""
        told, unit = self.kind.upper(), self.rules.unit
        text = (
            f"{self.arm} against {self.baseline} on new images of this kind: {told}: "
            f"{self.difference:+z.2f} {unit} [{self.low:+z.2f}, {self.high:+z.2f}] "
            f"over {self.n} paired seeds and {self.groups} {self.thing}"
        )
        if self.coarse:
            text += (
                f"; from one such test set to another it moves by {self.test_deviation:.2f} "
                f"{unit} (standard deviation), more than half the margin"
            )
        return text


def new_images(
    labels: ArrayLike,
    baseline: Outputs,
    arm: Outputs,
    rules: Rules,
    level: float,
    metric: Metric = accuracy,
    groups: ArrayLike | None = None,
    names: tuple[str, str] = ("arm", "baseline"),
    thing: str = "images",
    scale: float = 100.0,
    replicates: int = 400,
    seed: int = 0,
) -> NewImages:
    """The interval of the mean difference for new seeds and new images.

    Args:
        labels: (I,), the true classes, in one order for all runs.
        baseline: predictions (I,) or probabilities (I, C) of each run, in the order of the seeds.
        arm: the same of the arm.
        rules: of the study.
        level: the nominal level of the verdict's interval.
        metric: of one run, for many weightings of its images.
        groups: (I,), what belongs together, as beats of a record do.
        names: of the arm and of the baseline.
        thing: the name of what is resampled, in the plural, as in "records".
        scale: of the metric's values; 100 makes points.
        replicates: resampled test sets; 400 give the test set's deviation to about 4%.
        seed: of the resampling.

    Raises:
        ValueError: for runs that do not pair, fewer than two pairs or fewer than two groups.
    """
    truth = np.asarray(labels, np.int64)
    if len(baseline) != len(arm) or len(arm) < 2:
        raise ValueError(f"{len(arm)} and {len(baseline)} runs do not make two pairs or more")
    _, member = np.unique(np.arange(len(truth)) if groups is None else groups, return_inverse=True)
    count, n = int(member.max()) + 1, len(arm)
    if count < 2 or len(member) != len(truth):
        raise ValueError(f"{len(truth)} images in {count} groups cannot be resampled")
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), replicates)
    drawn = np.concatenate([np.ones((1, count), np.int64), drawn])  # first the test set itself
    values = np.stack([
        _values(metric, truth, new, member, drawn) - _values(metric, truth, old, member, drawn)
        for old, new in zip(baseline, arm, strict=True)
    ])  # fmt: skip
    seen, again = scale * values[:, 0], scale * values[:, 1:]
    again = again[:, np.isfinite(again).all(0)]  # AUROC has no value without one of the classes
    covariance = np.cov(again) * count / (count - 1)
    shared = (covariance.sum() - np.trace(covariance)) / (n * (n - 1))
    by_seeds, by_images = seen.var(ddof=1) / n, max(0.0, float(shared))
    squares = by_seeds * stats.t.isf(level / 2, n - 1) ** 2
    squares += by_images * stats.t.isf(level / 2, count - 1) ** 2
    half = float(squares**0.5)
    mean = float(seen.mean())
    return NewImages(
        *names,
        rules,
        mean,
        mean - half,
        mean + half,
        n,
        count,
        thing,
        float(by_seeds**0.5),
        float(by_images**0.5),
    )


def _values(
    metric: Metric, truth: NDArray[np.int64], outputs: ArrayLike, member: Any, drawn: Any
) -> Array:
    """The metric of a run for each of the drawn test sets (B, groups)."""
    outputs, counts = np.asarray(outputs), np.ones(len(truth))
    if outputs.ndim == 1:  # what is equal within a group counts together: thousands of heart beats
        size = int(max(truth.max(), outputs.max())) + 1
        key = (member * size + truth) * size + outputs.astype(np.int64)
        _, first, counts = np.unique(key, return_index=True, return_counts=True)
        member, truth, outputs = member[first], truth[first], outputs[first]
    most = max(1, 4_000_000 // len(truth))  # replicates at once, for 32 MB
    parts = (drawn[start : start + most] for start in range(0, len(drawn), most))
    weights = (part[:, member] * counts.astype(float) for part in parts)
    return np.concatenate([metric(truth, outputs, each) for each in weights])
