"""Ranks functions before they are trained, by those that were."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .screen import NEAR

if TYPE_CHECKING:
    from .evolution import Member

FACTOR = 4  # children that are ranked, for each that is trained


def predict(trained: "Sequence[Member]", new: "Sequence[Member]") -> NDArray[np.float64]:
    """The expected fitness of new members at the first rung, from their values on a grid."""
    from sklearn.ensemble import RandomForestRegressor

    fitness = np.array([member.values[0] for member in trained])
    ended = np.isfinite(fitness)
    if not ended.any():
        return np.zeros(len(new))
    fitness[~ended] = fitness[ended].min()
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=0)
    forest.fit(_features(trained), fitness)
    return forest.predict(_features(new))


def _features(members: "Sequence[Member]") -> NDArray[np.float64]:
    """Values at the start, freed of scale, shift and direction, and the slopes."""
    values = np.array([member.candidate.shape[: len(NEAR)] for member in members])
    return np.concatenate([values[:, ::4], np.diff(values[:, ::4], axis=1)], axis=1)
