"""Pictures of what activations became."""

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_STYLES = ("-", "--", ":", "-.")  # the terms of one parameter
_PANELS = 100  # beyond it every second, third, ... site is drawn

History = dict[str, list[tuple[int, list[float]]]]  # <parameter>/<site> -> (step, terms)


class Panel(NamedTuple):
    """One site of the figure.

    Attributes:
        title: the site, and how it is doing.
        x: (points,), the grid.
        curves: each (points, channels): at the start, at earlier looks, now.
        inputs: (elements,) what flows in, or None.
    """

    title: str
    x: Tensor
    curves: list[Tensor]
    inputs: Tensor | None


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
    """Draw each site's function over its earlier shapes, what flows in behind it.

    Args:
        path: the PNG; it appears when it is complete.
        panels: the sites, in the order of the network.
        looks: what to call the curves of each panel, from first to last.

    Returns:
        The picture, (H, W, 3), bytes.
    """
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    every = math.ceil(len(panels) / _PANELS)
    shown = panels[::every]
    columns = min(len(shown), math.ceil(math.sqrt(1.4 * len(shown))))
    rows = math.ceil(len(shown) / columns)
    size = (max(2.1 * columns, 6.3), 1.75 * rows + 0.9)
    figure = _figure(size)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    colors = ["0.35", *(colormaps["viridis_r"](t / len(looks)) for t in range(1, len(looks)))]
    styles: list[Any] = ["--", *["-"] * (len(looks) - 1)]
    widths = [1.1, *[0.9] * max(len(looks) - 2, 0), 1.8][: len(looks)]
    for axis, panel in zip(axes, shown, strict=False):
        x, means = panel.x.numpy(), [curve.mean(1) for curve in panel.curves]
        low, high = _limits(means)
        if panel.inputs is not None:
            _draw_inputs(axis, panel, low, high)
        for mean, color, style, width in zip(means, colors, styles, widths, strict=True):
            axis.plot(x, mean.numpy(), style, color=color, linewidth=width)
        now = panel.curves[-1]
        if now.shape[1] > 1:
            quantiles = torch.quantile(now, torch.tensor([0.1, 0.9]), dim=1).numpy()
            axis.fill_between(x, *quantiles, color=colors[-1], alpha=0.3, linewidth=0)
        axis.set(xlim=(x[0], x[-1]), ylim=(low, high))
        lines = [line if len(line) < 28 else f"…{line[-26:]}" for line in panel.title.split("\n")]
        axis.set_title("\n".join(lines), fontsize=7, pad=3)
        axis.tick_params(labelsize=6, length=2, pad=1.5)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    handles = [
        Line2D([], [], color=color, linestyle=style, linewidth=width)
        for color, style, width in zip(colors, styles, widths, strict=True)
    ]
    figure.subplots_adjust(
        left=0.32 / size[0], right=1 - 0.1 / size[0], bottom=0.25 / size[1],
        top=1 - 0.75 / size[1], wspace=0.28, hspace=0.5,
    )  # fmt: skip
    figure.legend(handles, looks, loc="upper center", ncols=5, frameon=False, fontsize=7)
    if every > 1:
        figure.text(0.01, 0.99, f"1 of {every} sites", fontsize=7, va="top")
    return _save(figure, path)


def _limits(means: list[Tensor]) -> tuple[float, float]:
    values = torch.cat(means)
    values = values[values.isfinite()]
    low, high = (values.min().item(), values.max().item()) if len(values) else (0.0, 1.0)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _draw_inputs(axis: Any, panel: Panel, low: float, high: float) -> None:
    """The histogram of what flows in, as high as the panel; the scale of y is the function's."""
    assert panel.inputs is not None
    inputs = panel.inputs[panel.inputs.isfinite()].flatten()
    counts, edges = torch.histogram(inputs, 40, range=(panel.x[0].item(), panel.x[-1].item()))
    heights = low + (high - low) * 0.9 * counts / counts.max().clamp(min=1)
    axis.stairs(heights.numpy(), edges.numpy(), baseline=low, fill=True, color="0.88")


def draw_parameters(
    path: Path, x: Tensor, first: dict[str, Tensor], last: dict[str, Tensor], history: History
) -> Tensor:
    """Draw all functions before and after in one panel, beside every parameter over training.

    Args:
        path: the PNG; it appears when it is complete.
        x: the grid that the curves stand on.
        first: site -> curve at the start.
        last: site -> curve at the end; sites are in the order of the network.
        history: parameter and site -> values over time.

    Returns:
        The picture, (H, W, 3), bytes.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    parameters = list(dict.fromkeys(tag.split("/", 1)[0] for tag in history))[:4]
    sites = list(last)
    figure = _figure((4.2 * (1 + len(parameters)), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(parameters), squeeze=False)[0]
    deepest = max(len(sites) - 1, 1)
    colors = [colormaps["viridis"](position / deepest) for position in range(len(sites))]
    for site, color in zip(sites, colors, strict=True):
        label = "at the start" if site == sites[0] else None
        axes[0].plot(
            x.numpy(), first[site].numpy(), color="0.6", linestyle="--", linewidth=1.2, label=label
        )
        axes[0].plot(x.numpy(), last[site].numpy(), color=color, linewidth=1.2)
    axes[0].set(title="function, before and after", xlabel="x", ylabel="f(x)")
    axes[0].legend(frameon=False)
    for axis, parameter in zip(axes[1:], parameters, strict=True):
        for tag, rows in history.items():
            name, _, site = tag.partition("/")
            depth = next((i for i, s in enumerate(sites) if f"{site}.".startswith(f"{s}.")), 0)
            if name == parameter:
                steps, terms = zip(*rows, strict=True)
                for term, style in zip(
                    zip(*terms, strict=True), itertools.cycle(_STYLES), strict=False
                ):
                    axis.plot(steps, term, style, color=colors[depth], linewidth=1.2)
        axis.set(title=f"{parameter} over training", xlabel="optimizer step")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    depth = ScalarMappable(Normalize(0, deepest), "viridis")
    bar = figure.colorbar(depth, ax=list(axes), pad=0.01, ticks=[0, deepest])
    bar.ax.set_yticklabels(["first layer", "last layer"], rotation=90)
    for label, place in zip(bar.ax.get_yticklabels(), ("bottom", "top"), strict=True):
        label.set_verticalalignment(place)
    return _save(figure, path)


def _figure(size: tuple[float, float], **more: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, **more)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> Tensor:
    """Render once, for the file and for the boards."""
    from PIL import Image

    figure.canvas.draw()
    pixels = torch.frombuffer(bytearray(figure.canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = figure.canvas.get_width_height()
    picture = pixels.view(height, width, 4)[..., :3].contiguous()
    unfinished = path.with_suffix(".part")
    Image.fromarray(picture.numpy()).save(unfinished, format="png")
    unfinished.replace(path)
    return picture
