"""Pictures of the activations' functions and of their parameters over training."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from activations.picture import new_figure, save_figure

_STYLES = ("-", "--", ":", "-.")  # the terms of one parameter
_PANELS = 100  # beyond it every second, third, ... site is drawn


class Panel(NamedTuple):
    """One site of the figure."""

    title: str  # the site, and its health
    x: Tensor  # (points,), the grid
    curves: list[Tensor]  # each (points, channels): at the start, at earlier looks, now
    inputs: Tensor | None  # (elements,), what flows in


def grid(inputs: Tensor | None) -> Tensor:
    """Where a function is drawn: over 99.8% of its finite inputs and 0; [-4, 4] without any."""
    finite = torch.empty(0) if inputs is None else inputs[inputs.isfinite()].flatten()
    finite = finite.clamp(-1e37, 1e37)  # so that differences are finite too
    if len(finite) < 2:
        return torch.linspace(-4, 4, 201)
    low, high = torch.quantile(finite, torch.tensor([0.001, 0.999])).tolist()
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.05 * (high - low) or 1.0
    return torch.linspace(low - room, high + room, 201)


def draw_shapes(path: Path, panels: list[Panel], looks: list[str]) -> Tensor:
    """Draw each site's function over its earlier shapes, and the histogram of its inputs behind it.

    Args:
        path: the PNG; it appears when it is complete.
        panels: the sites, in the order of the network.
        looks: names of the curves of each panel, from first to last.

    Returns:
        The picture, (H, W, 3), in uint8.
    """
    from matplotlib import colormaps

    every = math.ceil(len(panels) / _PANELS)
    shown = panels[::every]
    columns = min(len(shown), math.ceil(math.sqrt(1.4 * len(shown))))
    rows = math.ceil(len(shown) / columns)
    width, height = max(2.1 * columns, 6.3), 1.75 * rows + 0.9
    figure = new_figure(width, height, dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    now = len(looks) - 1
    colors = ["0.35", *(colormaps["viridis_r"](t / len(looks)) for t in range(1, len(looks)))]
    widths = [1.1, *[0.9] * (now - 1), 1.8] if now else [1.1]
    for axis, panel in zip(axes, shown, strict=False):
        axis.set_prop_cycle(color=colors, linestyle=["--", *["-"] * now], linewidth=widths)
        x, means = panel.x.numpy(), torch.stack([curve.mean(1) for curve in panel.curves], 1)
        axis.plot(x, means.numpy())
        low, high = axis.get_ylim()
        if panel.inputs is not None:
            inputs = panel.inputs[panel.inputs.isfinite()].flatten()
            counts, edges = torch.histogram(inputs, 40, range=(x[0].item(), x[-1].item()))
            heights = low + (high - low) * 0.9 * counts / counts.max().clamp(min=1)
            axis.stairs(
                heights.numpy(), edges.numpy(), baseline=low, fill=True, color="0.88", zorder=0
            )
        if panel.curves[-1].shape[1] > 1:
            band = torch.quantile(panel.curves[-1], torch.tensor([0.1, 0.9]), dim=1).numpy()
            axis.fill_between(x, *band, color=colors[-1], alpha=0.3, linewidth=0)
        axis.set(xlim=(x[0], x[-1]), ylim=(low, high))
        title = (line if len(line) < 28 else f"…{line[-26:]}" for line in panel.title.split("\n"))
        axis.set_title("\n".join(title), fontsize=7, pad=3)
        axis.tick_params(labelsize=6, length=2, pad=1.5)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    figure.subplots_adjust(
        left=0.32 / width, right=1 - 0.1 / width, bottom=0.25 / height, top=1 - 0.75 / height,
        wspace=0.28, hspace=0.5,
    )  # fmt: skip
    figure.legend(axes[0].lines, looks, loc="upper center", ncols=5, frameon=False, fontsize=7)
    if every > 1:
        figure.text(0.01, 0.99, f"1 of {every} sites", fontsize=7, va="top")
    return save_figure(figure, path)


def draw_parameters(
    path: Path,
    x: Tensor,
    pairs: Mapping[str, Sequence[Tensor]],
    history: Mapping[tuple[str, str], list[tuple[int, float]]],
) -> Tensor:
    """Draw all functions before and after in one panel, beside every parameter over training.

    Args:
        path: the PNG; it appears when it is complete.
        x: (points,), the grid.
        pairs: site -> curves at the start and at the end, each (points,); sites are in the order of
            the network.
        history: site and parameter -> (step, value) over training; `theta_1` is theta's first term.

    Returns:
        The picture, (H, W, 3), in uint8.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    parameters = list(dict.fromkeys(_split(name)[0] for _, name in history))[:4]
    figure = new_figure(4.2 * (1 + len(parameters)), 3.6, dpi=110, layout="constrained")
    axes = figure.subplots(1, 1 + len(parameters), squeeze=False)[0]
    deepest = max(len(pairs) - 1, 1)
    viridis = colormaps["viridis"]
    colors = {site: viridis(position / deepest) for position, site in enumerate(pairs)}
    for site, (first, last) in pairs.items():
        axes[0].plot(x, first, color="0.6", linestyle="--", linewidth=1.2)
        axes[0].plot(x, last, color=colors[site], linewidth=1.2)
    axes[0].set(title="function, before and after", xlabel="x", ylabel="f(x)")
    axes[0].legend(axes[0].lines[:1], ["at the start"][: len(pairs)], frameon=False)
    for (part, name), rows in history.items():
        parameter, term = _split(name)
        if parameter in parameters:
            sites = (site for site in pairs if f"{part}.".startswith(f"{site}."))
            color = colors.get(next(sites, ""), viridis(0.0))
            style = _STYLES[(term - 1) % len(_STYLES)]
            axis = axes[1 + parameters.index(parameter)]
            axis.plot(*zip(*rows, strict=True), style, color=color, linewidth=1.2)
            axis.set(title=f"{parameter} over training", xlabel="optimizer step")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    depth = ScalarMappable(Normalize(0, deepest), viridis)
    bar = figure.colorbar(depth, ax=list(axes), pad=0.01, ticks=[0, deepest])
    bar.ax.set_yticklabels(["first layer", "last layer"], rotation=90)
    for label, position in zip(bar.ax.get_yticklabels(), ("bottom", "top"), strict=True):
        label.set_verticalalignment(position)
    return save_figure(figure, path)


def _split(name: str) -> tuple[str, int]:
    """A parameter and the number of its term: theta and 2 for theta_2, alpha and 1 for alpha."""
    parameter, _, term = name.rpartition("_")
    return (parameter, int(term)) if parameter and term.isdigit() else (name, 1)
