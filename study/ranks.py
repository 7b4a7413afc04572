"""Ranks of the arms over cells: the tests of Friedman and Nemenyi, as papers on activations use."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .page import Block, heading, paragraph, tabled
from .runs import Study

FEWEST = 3  # cells, and arms
_TEXT = (
    "Rank 1 is the best arm of a cell, by the mean over its seeds. These tests answer another "
    "question than the verdicts: whether ranks differ among cells, of which each counts once, "
    "whatever the size of a difference and the deviation of its seeds; and cells that share data "
    "or a network are no independent sample, as the tests assume. They decide nothing here."
)


class Ranks(NamedTuple):
    """Mean ranks of arms over cells."""

    mean: NDArray[np.float64]
    """Of each arm; 1 is the best."""
    p: float
    """Of Friedman's test: that the arms do not differ."""
    pairs: NDArray[np.float64]
    """p-values of Nemenyi's test, arms x arms."""
    critical: float
    """The difference of mean ranks that Nemenyi's test finds at a level of 5%."""


def ranks(values: NDArray[np.float64]) -> Ranks:
    """Ranks of arms (columns) over cells (rows); the largest value is the best.

    Reference: Demsar 2006, Journal of Machine Learning Research 7, section 3.2.
    """
    cells, arms = values.shape
    mean = stats.rankdata(-values, axis=1).mean(0)
    error = np.sqrt(arms * (arms + 1) / (6 * cells))
    distance = np.abs(mean[:, None] - mean) / error * np.sqrt(2)
    return Ranks(
        mean,
        float(stats.friedmanchisquare(*values.T)[1]),
        stats.studentized_range.sf(distance, arms, np.inf),
        float(stats.studentized_range.isf(0.05, arms, np.inf) / np.sqrt(2) * error),
    )


def rank_blocks(study: Study) -> list[Block]:
    """The section of a report; none with few cells, or few arms with a value in each cell."""
    cells, loss = range(len(study.spec["cells"])), study.spec["metric"]["name"].endswith("loss")
    found: dict[str, list[float]] = {}
    for arm in study.spec["arms"]:
        means = []
        for cell in cells:
            runs = study.runs_of(arm, cell)
            ended = runs.values[runs.are("ok")]
            means.append(float(np.mean(ended)) if len(ended) else np.nan)
        if np.isfinite(means).all():
            found[arm] = means
    if len(cells) < FEWEST or len(found) < FEWEST:
        return []
    table = np.array(list(found.values())).T
    if np.ptp(table, axis=1).max() == 0:
        return []
    known, names = ranks(-table if loss else table), list(found)
    order, base = np.argsort(known.mean, kind="stable"), study.spec["baseline"]
    against = known.pairs[names.index(base)] if base in names else np.full(len(names), np.nan)
    rows = [
        [names[k], f"{known.mean[k]:.2f}",
         "" if names[k] == base or np.isnan(against[k]) else f"{against[k]:.3f}"]
        for k in order
    ]  # fmt: skip
    told = (
        f"Friedman's test over {len(cells)} cells and {len(names)} arms: p = {known.p:.3f}. By "
        f"Nemenyi's test two arms differ at 5% if their mean ranks are {known.critical:.2f} apart."
    )
    return [
        heading("Ranks over cells"), paragraph(_TEXT), paragraph(told),
        tabled(["arm", "mean rank", f"Nemenyi's p against {base}"], rows),
    ]  # fmt: skip
