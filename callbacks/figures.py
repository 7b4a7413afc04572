"""Pictures of the activations' functions and of their parameters over training."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from activations.picture import new_figure, save_figure

from .record import Row
from .sites import Values, columns, curve

SHOWN = 4  # parameters beside the functions
_PANELS = 100  # beyond it every second, third, ... site is drawn


def grid(inputs: Tensor) -> Tensor:
    """Where a function is drawn: over 99.8% of its finite inputs and 0; [-4, 4] without any."""
    finite = inputs[inputs.isfinite()].clamp(-1e37, 1e37)  # so that differences are finite too
    if len(finite) < 2:
        return torch.linspace(-4, 4, 201)
    low, high = torch.quantile(finite, torch.tensor([0.001, 0.999])).tolist()
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.05 * (high - low) or 1.0
    return torch.linspace(low - room, high + room, 201)


def draw_shapes(
    path: Path,
    sites: Mapping[str, nn.Module],
    shapes: Sequence[tuple[str, Values]],
    inputs: Mapping[str, Tensor],
    health: Mapping[str, Mapping[str, float]],
) -> Tensor:
    """Draw each site's function over its earlier shapes, and the histogram of its inputs behind it.

    `sites` are in the order of the network, `shapes` from the start to now; `inputs` may lack a
    site. The shares in `health` are written above the panels. Returns the picture, (H, W, 3).
    """
    from matplotlib import colormaps

    every = math.ceil(len(sites) / _PANELS)
    shown, looks = list(sites.items())[::every], [label for label, _ in shapes]
    across = min(len(shown), math.ceil(math.sqrt(1.4 * len(shown))))
    down = math.ceil(len(shown) / across)
    width, height = max(2.1 * across, 6.3), 1.75 * down + 0.9
    figure = new_figure(width, height, dpi=110)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    now = len(looks) - 1
    colors = ["0.35", *(colormaps["viridis_r"](t / len(looks)) for t in range(1, len(looks)))]
    widths = [1.1, *[0.9] * (now - 1), 1.8] if now else [1.1]
    for axis, (site, module) in zip(axes, shown, strict=False):
        flowing = inputs.get(site, torch.empty(0))
        flowing, x = flowing[flowing.isfinite()], grid(flowing)
        ends = (x[0].item(), x[-1].item())
        curves = [curve(site, module, x, values) for _, values in shapes]
        axis.set_prop_cycle(color=colors, linestyle=["--", *["-"] * now], linewidth=widths)
        axis.plot(x, torch.stack([each.mean(1) for each in curves], 1))
        low, high = axis.get_ylim()
        counts, edges = torch.histogram(flowing, 40, range=ends)
        heights = low + (high - low) * 0.9 * counts / counts.max().clamp(min=1)
        axis.stairs(heights.numpy(), edges.numpy(), baseline=low, fill=True, color="0.88", zorder=0)
        if curves[-1].shape[1] > 1:
            band = torch.quantile(curves[-1], torch.tensor([0.1, 0.9]), dim=1).numpy()
            axis.fill_between(x, *band, color=colors[-1], alpha=0.3, linewidth=0)
        axis.set(xlim=ends, ylim=(low, high))
        found = health.get(site, {})
        shares = [f"{name} {found[name]:.0%}" for name in ("zeros", "saturated") if name in found]
        title = site or "the network"
        title = title if len(title) < 28 else f"…{title[-26:]}"
        axis.set_title(f"{title}\n{', '.join(shares)}", fontsize=7, pad=3)
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
    sites: Mapping[str, nn.Module],
    first: Values,
    last: Values,
    rows: Iterable[Row],
) -> Tensor:
    """Draw all functions before and after in one panel, beside every parameter over training.

    `rows` are those of the run's CSV file. Returns the picture, (H, W, 3).
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    history = {(site, name): [] for site, name, _ in columns(last)}
    for row in rows:
        if row.channel is None and (row.site, row.param) in history:
            history[row.site, row.param].append((row.step, row.value))
    x = torch.linspace(-4, 4, 401)
    pairs = {
        site: [curve(site, module, x, values).mean(1) for values in (first, last)]
        for site, module in sites.items()
        if any(f"{part}.".startswith(f"{site}.") for part in last)
    }
    deepest = max(len(pairs) - 1, 1)
    depth = ScalarMappable(Normalize(0, deepest), "viridis")
    colors = {site: depth.cmap(position / deepest) for position, site in enumerate(pairs)}
    names = {name: re.sub(r"_\d+$", "", name) for _, name in history}  # theta for theta_2
    every = list(dict.fromkeys(names.values()))
    parameters = every[:SHOWN]
    figure = new_figure(4.2 * (1 + len(parameters)), 3.6, dpi=110, layout="constrained")
    axes = figure.subplots(1, 1 + len(parameters), squeeze=False)[0]
    for site, (before, after) in pairs.items():
        axes[0].plot(x, before, color="0.6", linestyle="--", linewidth=1.2)
        axes[0].plot(x, after, color=colors[site], linewidth=1.2)
    axes[0].set(title="function, before and after", xlabel="x", ylabel="f(x)")
    axes[0].legend(axes[0].lines[:1], ["at the start"][: len(pairs)], frameon=False)
    styles = defaultdict(lambda: itertools.cycle(("-", "--", ":", "-.")))  # of a parameter's terms
    for (part, name), points in history.items():
        if (parameter := names[name]) in parameters:
            holders = (site for site in pairs if f"{part}.".startswith(f"{site}."))
            color = colors.get(next(holders, ""), depth.cmap(0.0))
            axis = axes[1 + parameters.index(parameter)]
            style = next(styles[part, parameter])
            axis.plot(*zip(*points, strict=True), style, color=color, linewidth=1.2)
            axis.set(title=f"{parameter} over training", xlabel="optimizer step")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    if len(every) > SHOWN:
        figure.text(0.01, 0.99, f"{SHOWN} of {len(every)} parameters", fontsize=7, va="top")
    bar = figure.colorbar(depth, ax=list(axes), pad=0.01, ticks=[0, deepest])
    shallow, deep = bar.ax.set_yticklabels(["first layer", "last layer"], rotation=90)
    shallow.set_verticalalignment("bottom")
    deep.set_verticalalignment("top")
    return save_figure(figure, path)
