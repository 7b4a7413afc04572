"""The pictures of a search's report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from activations.picture import new_figure
from callbacks.figures import grid
from study.figures import BASE, COLORS, new_panels, save

from .evolution import EVOLVED, RANDOM, Member

Array = NDArray[np.float64]
Points = Sequence[tuple[int, float]]
STYLES: dict[str, str] = {EVOLVED: COLORS[0], RANDOM: BASE}


class Finalist(NamedTuple):
    """What is drawn of a finalist.

    Attributes:
        member: the function.
        learned: constant -> its values, one for each site and channel.
        inputs: of its sites; none if they are not known.
    """

    member: Member
    learned: Mapping[str, Sequence[float]]
    inputs: Array


def draw_finalists(path: Path, functions: Mapping[str, Finalist]) -> Path:
    """Each function over its inputs, and with the constants that layers learned."""
    figure, axes = new_panels(len(functions), 2.6, 2.5)
    for axis, (name, (member, learned, inputs)) in zip(axes, functions.items(), strict=True):
        layers = min((len(values) for values in learned.values()), default=0)
        curves = [member.candidate.make(dtype=torch.float64)]
        for k in range(min(layers, 64)):
            curves.append(member.candidate.make(dtype=torch.float64))
            for constant, values in learned.items():
                getattr(curves[-1], constant).data.fill_(values[k])
        x = grid(torch.from_numpy(inputs).float()).double()
        with torch.no_grad():
            ys = [curve(x) for curve in curves]
        low, high = (float(f(ys[0])) for f in (torch.min, torch.max))
        edges = np.linspace(float(x[0]), float(x[-1]), 41)
        density = np.exp(-((edges[:-1] + edges[1:]) ** 2) / 8)
        counts = np.histogram(inputs, edges)[0] if len(inputs) else density
        heights = low + 0.9 * (high - low) * counts / counts.max()
        axis.stairs(heights, edges, baseline=low, fill=True, color="0.88", zorder=0)
        for y in ys[1:]:
            axis.plot(x, y, color=COLORS[4], linewidth=0.7)
        axis.plot(x, ys[0], color=COLORS[0], linewidth=1.8)
        axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        axis.set_title(name if len(name) < 38 else f"{name[:35]}...", fontsize=8)
    return save(figure, path)


def draw_streams(path: Path, series: Mapping[str, Array], label: str) -> Path:
    """The best so far by generation."""
    figure = new_figure(6.0, 3.2, dpi=150, layout="constrained")
    axis = figure.subplots()
    for name, values in series.items():
        axis.plot(np.arange(1, len(values) + 1), values, "-o", color=STYLES[name], markersize=4,
                  label=name)  # fmt: skip
    axis.xaxis.get_major_locator().set_params(integer=True)
    return save(_finish(figure, axis, "generation", label), path)


def draw_cost(
    path: Path, points: Mapping[str, Points], best: Points, label: str, *, higher: bool
) -> Path:
    """The metric against operations, and the front; what is far worse is left out."""
    figure = new_figure(6.0, 3.6, dpi=150, layout="constrained")
    axis = figure.subplots()
    # rings around points: the same value is often reached by both
    marks = {EVOLVED: {"markersize": 4}, RANDOM: {"markersize": 8, "markerfacecolor": "none"}}
    for name, each in points.items():
        axis.plot(*zip(*each, strict=True) if each else ([], []), "o", color=STYLES[name],
                  label=name, **marks[name])  # fmt: skip
    axis.step(*zip(*best, strict=True), where="post", color=COLORS[1], linewidth=1.2,
              label="front")  # fmt: skip
    values = np.array([value for each in points.values() for _, value in each])
    low, high = np.percentile(values, [10, 100] if higher else [0, 90])
    if math.isfinite(low) and high > low:
        axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axis.xaxis.get_major_locator().set_params(integer=True)
    return save(_finish(figure, axis, "operations for each element", label), path)


def _finish(figure: Any, axis: Any, x: str, y: str) -> Any:
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return figure
