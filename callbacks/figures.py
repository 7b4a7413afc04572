"""Pictures of what activations became."""

import itertools
from pathlib import Path

from torch import Tensor

_STYLES = ("-", "--", ":", "-.")  # the terms of one parameter

History = dict[str, list[tuple[int, list[float]]]]  # <parameter>/<site> -> (step, terms)


def draw_activations(
    path: Path, x: Tensor, first: dict[str, Tensor], last: dict[str, Tensor], history: History
) -> None:
    """Draw each site's function before and after, beside every parameter over training.

    Args:
        path: the PNG; it appears when it is complete.
        x: the grid that the curves stand on.
        first: site -> curve at the start.
        last: site -> curve at the end; sites are in the order of the network.
        history: parameter and site -> values over time.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    parameters = list(dict.fromkeys(tag.split("/", 1)[0] for tag in history))[:4]
    sites = list(last)
    figure = Figure(figsize=(4.2 * (1 + len(parameters)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 + len(parameters), squeeze=False)[0]
    deepest = max(len(sites) - 1, 1)
    colors = [colormaps["viridis"](position / deepest) for position in range(len(sites))]
    for site, color in zip(sites, colors, strict=True):
        label = "at the start" if site == sites[0] else None
        axes[0].plot(x, first[site], color="0.6", linestyle="--", linewidth=1.2, label=label)
        axes[0].plot(x, last[site], color=color, linewidth=1.2)
    axes[0].set(title="function, before and after", xlabel="x", ylabel="f(x)")
    axes[0].legend(frameon=False)
    for axis, parameter in zip(axes[1:], parameters, strict=True):
        for site, color in zip(sites, colors, strict=True):
            steps, terms = zip(*history.get(f"{parameter}/{site}", [(0, [])]), strict=True)
            for term, style in zip(
                zip(*terms, strict=True), itertools.cycle(_STYLES), strict=False
            ):
                axis.plot(steps, term, style, color=color, linewidth=1.2)
        axis.set(title=f"{parameter} over training", xlabel="optimizer step")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    depth = ScalarMappable(Normalize(0, deepest), "viridis")
    bar = figure.colorbar(depth, ax=list(axes), pad=0.01, ticks=[0, deepest])
    bar.ax.set_yticklabels(["first layer", "last layer"], rotation=90)
    for label, place in zip(bar.ax.get_yticklabels(), ("bottom", "top"), strict=True):
        label.set_verticalalignment(place)
    unfinished = path.with_suffix(".part")
    figure.savefig(unfinished, dpi=110, format="png")
    unfinished.replace(path)
