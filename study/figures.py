"""The pictures of a report, each as PNG and PDF."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activations.files import replacing
from activations.picture import new_figure, save_figure

from .verdict import Kind, Rules, Verdict

Array = NDArray[np.float64]

# Okabe and Ito's colours, which the colour-blind tell apart; the baseline is grey
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = "osD^vP"
BASE, UP, DOWN = "0.35", "#0072b2", "#d55e00"
TOGETHER = 6  # arms in one panel
ACROSS = 4  # panels in a row


Shown = tuple[Verdict, float | None]
"""One row of the picture of intervals: a verdict, and what was published."""


def save(figure: Any, path: Path) -> Path:
    """Write the figure as `path` (a PNG) and as a PDF beside it."""
    save_figure(figure, path)
    with replacing(path.with_suffix(".pdf")) as unfinished:
        figure.savefig(unfinished, format="pdf", metadata={"CreationDate": None})
    return path


def new_panels(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure with so many panels of this size, in inches."""
    across = min(count, ACROSS)
    down = math.ceil(count / across)
    size = max(across * width, 4.0), down * height
    figure = new_figure(*size, dpi=150, layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flatten())
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def draw_intervals(path: Path, rows: Sequence[Shown]) -> Path:
    """Each mean difference with its interval, over the band within the margin."""
    height = 1.1 + (0.42 if len(rows) <= 8 else 0.27) * len(rows)
    figure = new_figure(8.0, height, dpi=150, layout="constrained")
    axis = figure.subplots()
    marks, base = _draw_rows(axis, rows), rows[0][0].baseline.partition(" (")[0]
    axis.set_xlabel(f"difference to {base}, {_unit(rows[0][0].rules)}", fontsize=9)
    figure.legend(marks.values(), marks, loc="outside upper center", ncols=2, frameon=False,
                  fontsize=8)  # fmt: skip
    return save(figure, path)


def draw_verdicts(path: Path, groups: Sequence[tuple[str, Sequence[Shown]]]) -> Path:
    """The intervals of several studies, one panel below the other, each over its own margin.

    A panel shows most intervals whole; a longer one ends in an arrow.
    """
    sizes = [1.2 + 0.2 * len(rows) for _, rows in groups]
    figure = new_figure(8.0, sum(sizes), dpi=110, layout="constrained")
    axes = figure.subplots(len(groups), squeeze=False, height_ratios=sizes)[:, 0]
    for axis, (title, rows) in zip(axes, groups, strict=True):
        marks = _draw_rows(axis, rows)
        rules = rows[0][0].rules
        found = [verdict.interval for verdict, _ in rows]
        ends = [max(-each.low, each.high) for each in found if each is not None]
        bound = 1.2 * max(3 * rules.margin, float(np.quantile(ends, 0.8)) if ends else 0.0)
        axis.set_xlim(-bound, bound)
        for place, each in enumerate(found):
            if each is not None:
                _draw_arrows(axis, place, each.low, each.high, bound)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel(_unit(rules), fontsize=8)
        axis.legend(marks.values(), marks, loc="lower right", bbox_to_anchor=(1, 1), ncols=2,
                    frameon=False, fontsize=8, borderaxespad=0.2)  # fmt: skip
    save_figure(figure, path, colors=64)  # the page is kept, and grows with each study
    return path


def _unit(rules: Rules) -> str:
    """The unit of a difference, and where better is."""
    return f"{rules.unit}; better is to the {'right' if rules.higher_is_better else 'left'}"


def _draw_arrows(axis: Any, place: int, low: float, high: float, bound: float) -> None:
    for marker, outside, edge in (("<", low < -bound, -bound), (">", high > bound, bound)):
        if outside:
            axis.plot(0.985 * edge, place, marker, color=BASE, markersize=5)


def _draw_rows(axis: Any, rows: Sequence[Shown]) -> dict[str, Any]:
    """Draw intervals below each other over the margin's band; label -> what the legend shows."""
    rules = rows[0][0].rules
    name = f"within the margin, ±{rules.margin:g} {rules.unit}"
    band = axis.axvspan(-rules.margin, rules.margin, color="#009e73", alpha=0.16, linewidth=0)
    axis.axvline(0, color="0.3", linewidth=1)
    marks = {name: band}
    for place, (verdict, published) in enumerate(rows):
        seen, kind = verdict.interval, verdict.kind
        color = {Kind.BETTER: UP, Kind.WORSE: DOWN, Kind.EQUIVALENT: "#00805c"}.get(kind, BASE)
        if seen is not None:
            axis.plot([seen.low, seen.high], [place, place], color=color, linewidth=2.4)
            axis.plot(seen.difference, place, "o", color=color, markersize=6)
        elif math.isfinite(verdict.mean):
            axis.plot(verdict.mean, place, "x", color=color, markersize=6)
        if published is not None:
            (marks["published"],) = axis.plot(
                published, place, "D", color="black", markersize=6, fillstyle="none"
            )
        axis.annotate(kind.value, (1.02, place), xycoords=("axes fraction", "data"), va="center",
                      fontsize=9, color=color)  # fmt: skip
    axis.set_yticks(range(len(rows)), [verdict.arm for verdict, _ in rows], fontsize=9)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    return marks


def draw_pairs(
    path: Path, panels: Mapping[str, tuple[int, Array, Array]], base: str, label: str,
    *, up: bool = True,
) -> Path:  # fmt: skip
    """For each hypothesis, the baseline's and the arm's value of each seed, joined by a line.

    `panels` maps a name to the number of its cell and both arms' values; a cell has one scale.
    """
    figure, axes = new_panels(len(panels), 2.2, 2.7)
    for axis, (name, (cell, old, new)) in zip(axes, panels.items(), strict=True):
        for a, b in zip(old, new, strict=True):
            color = BASE if a == b else UP if (b > a) == up else DOWN
            axis.plot([0, 1], [a, b], "-o", color=color, alpha=0.75, linewidth=1, markersize=3.5)
        if len(old):
            axis.plot([-0.12, 1.12], [old.mean(), new.mean()], "D", color="black", markersize=5)
            axis.plot([0, 1], [old.mean(), new.mean()], color="black", linewidth=2, alpha=0.8)
        same = np.concatenate(
            [np.concatenate(each[1:]) for each in panels.values() if each[0] == cell]
        )
        room = 0.05 * (same.max() - same.min()) or 1.0
        axis.set_ylim(same.min() - room, same.max() + room)
        axis.set_xticks([0, 1], [base, name.partition(" (")[0]], fontsize=8)
        axis.set_xlim(-0.35, 1.35)
        won = int(((new > old) == up)[new != old].sum())
        axis.set_title(f"{name}\nbetter in {won} of {len(old)} seeds", fontsize=8)
    for axis in axes[::ACROSS]:
        axis.set_ylabel(label, fontsize=9)
    return save(figure, path)


def draw_cost(
    path: Path, cells: Mapping[str, Mapping[str, tuple[float, Array]]], base: str, label: str
) -> Path:
    """Each arm's metric, mean and deviation over seeds, against the time of a training step.

    `cells` maps the name of a cell and of an arm to its time over the baseline's and its values.
    """
    figure, axes = new_panels(len(cells), 4.4, 3.4)
    for axis, (cell, arms) in zip(axes, cells.items(), strict=True):
        looks = styles([name for name in arms if name != base])
        for name, (ratio, values) in arms.items():
            color, marker = looks.get(name, (BASE, "s"))
            spread = values.std(ddof=1) if len(values) > 1 else 0.0
            axis.errorbar(ratio, values.mean(), spread, fmt=marker, color=color, markersize=6,
                          linewidth=1.2, capsize=2.5, label=name)  # fmt: skip
        axis.set_title(cell, fontsize=9)
        axis.set_xlabel(f"time of a training step, {base} = 1", fontsize=9)
        axis.grid(alpha=0.25)
        axis.margins(0.15)
    _legend(figure, axes)
    axes[0].set_ylabel(label, fontsize=9)
    return save(figure, path)


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    """One legend for all panels, beside them."""
    known: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            known.setdefault(name, handle)
    figure.legend(known.values(), known, loc="outside right upper", frameon=False, fontsize=8)


def styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name; both together are unique up to 36 names."""
    return {
        name: (COLORS[k % len(COLORS)], MARKERS[(k + k // len(COLORS)) % len(MARKERS)])
        for k, name in enumerate(names)
    }


def draw_learning(
    path: Path, cells: Mapping[str, Mapping[str, Array]], base: str, label: str
) -> Path:
    """The metric on the validation images after each epoch: mean over seeds, band of all seeds.

    `cells` maps the name of a cell and of an arm to (seeds, epochs), NaN where a run has ended.
    More than six arms have a panel each.
    """
    panels: list[tuple[str, dict[str, Array]]] = []
    for cell, arms in cells.items():
        others = [name for name in arms if name != base]
        groups = [others] if len(others) <= TOGETHER else [[name] for name in others]
        for group in groups:
            shown = {name: arms[name] for name in [base, *group] if name in arms}
            panels.append((cell if len(groups) == 1 else f"{group[0]} ({cell})", shown))
    width, height = (4.4, 3.2) if len(panels) <= 2 else (2.8, 2.4)
    figure, axes = new_panels(len(panels), width, height)
    for axis, (title, arms) in zip(axes, panels, strict=True):
        looks = styles([name for name in arms if name != base])
        for name, values in arms.items():
            color, marker = looks.get(name, (BASE, "s"))
            epochs = np.arange(1, values.shape[1] + 1)
            known = np.isfinite(values).any(0)
            middle = np.nanmean(values[:, known], 0)
            axis.plot(epochs[known], middle, color=color, linewidth=1.8, marker=marker,
                      markersize=3.5, markevery=max(1, len(epochs) // 10), label=name)  # fmt: skip
            band = np.nanmin(values[:, known], 0), np.nanmax(values[:, known], 0)
            axis.fill_between(epochs[known], *band, color=color, alpha=0.13, linewidth=0)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("epoch", fontsize=9)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
        _zoom(axis, list(arms.values()))
        if len(panels) > len(cells):
            axis.legend(fontsize=7, frameon=False, loc="lower right")
    if len(panels) == len(cells):
        _legend(figure, axes)
    for axis in axes[::ACROSS]:
        axis.set_ylabel(label, fontsize=9)
    return save(figure, path)


def _zoom(axis: Any, arms: Sequence[Array]) -> None:
    """Leave out of view what lies beyond the means after a quarter of the epochs."""
    later = [np.nanmean(each[:, each.shape[1] // 4 :], 0) for each in arms if each.shape[1] >= 8]
    if later:
        low, high = min(map(np.nanmin, later)), max(map(np.nanmax, later))
        room = 0.1 * (high - low) or 1.0
        axis.set_ylim(low - room, high + room)


def draw_learned(
    path: Path, panels: Mapping[str, tuple[Array, list[Array], list[Array]]], *, small: bool = False
) -> Path:
    """What each arm learned: the function of each layer, mean over seeds, and its start.

    `panels` maps a name to the inputs, the functions at the start and the learned ones, in the
    order of the network's layers. A small file is one for the repository.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, axes = new_panels(len(panels), 2.9, 2.7)
    depth = ScalarMappable(Normalize(0, 1), "viridis")
    for axis, (name, (x, first, last)) in zip(axes, panels.items(), strict=True):
        for place, y in enumerate(last):
            axis.plot(x, y, color=depth.cmap(0.9 * place / max(len(last) - 1, 1)), linewidth=1.3)
        for y in first[:1] if all(np.allclose(y, first[0]) for y in first) else first:
            axis.plot(x, y, ":", color="black", linewidth=1.6, label="at the start")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("input x", fontsize=8)
        axis.grid(alpha=0.25)
    axes[0].legend(*(each[:1] for each in axes[0].get_legend_handles_labels()), fontsize=7,
                   frameon=False)  # fmt: skip
    for axis in axes[::ACROSS]:
        axis.set_ylabel("f(x)", fontsize=8)
    bar = figure.colorbar(depth, ax=axes, pad=0.01, ticks=[0, 1], shrink=0.9)
    bar.ax.set_yticklabels(["first layer", "last layer"], fontsize=8)
    if not small:
        return save(figure, path)
    figure.set_dpi(66)
    save_figure(figure, path, 32)
    return path


def draw_values(path: Path, panels: Mapping[str, tuple[Sequence[int], Array, Array]]) -> Path:
    """The learned values of each parameter, mean over seeds, and its start as a dashed line.

    `panels` maps a name to the numbers of its layers, the values at the start (layers, terms) and
    at the end (seeds, layers, terms). One number a layer: against the layer, with the deviation
    over seeds. Several: against their number, a line a layer from the first (dark) to the last
    (yellow).
    """
    from matplotlib import colormaps

    viridis = colormaps["viridis"]
    figure, axes = new_panels(len(panels), 2.4, 1.9)
    figure.set_dpi(75)
    for axis, (name, (layers, start, end)) in zip(axes, panels.items(), strict=True):
        mean, terms, places = end.mean(0), end.shape[2], [layer + 1 for layer in layers]
        if terms == 1:
            spread = end.std(0, ddof=1)[:, 0] if len(end) > 1 else None
            axis.errorbar(places, mean[:, 0], spread, fmt="-o", color=UP,
                          markersize=3.5, linewidth=1.2, capsize=2)  # fmt: skip
            axis.axhline(start[0, 0], color="0.4", linestyle="--", linewidth=1)
        else:
            for place, values in enumerate(mean):
                color = viridis(0.9 * place / max(len(mean) - 1, 1))
                axis.plot(range(1, terms + 1), values, "-o", color=color, markersize=2.5,
                          linewidth=1)  # fmt: skip
            axis.plot(range(1, terms + 1), start[0], "--", color="black", linewidth=1.2)
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("layer" if terms == 1 else "term, a line a layer", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
    save_figure(figure, path, 64)
    return path


def draw_changes(path: Path, rows: Mapping[str, tuple[Sequence[int], Array, Array]]) -> Path:
    """A number for each function and layer, mean over seeds, as a table with colours.

    `rows` maps a function to the numbers of its layers and the values, as in :func:`draw_values`.
    The function with the largest one is at the top.
    """
    known = {name: end.mean(0)[:, 0] for name, (_, _, end) in rows.items()}
    order = sorted(known, key=lambda name: -known[name].max())
    table = np.full((len(order), 1 + max(max(rows[name][0]) for name in order)), np.nan)
    for row, name in zip(table, order, strict=True):
        row[list(rows[name][0])] = known[name]
    figure = new_figure(1.9 + 0.62 * table.shape[1], 0.9 + 0.24 * len(order), dpi=100,
                        layout="constrained")  # fmt: skip
    axis = figure.subplots()
    axis.imshow(table, cmap="Blues", vmin=0, vmax=np.nanquantile(table, 0.97), aspect="auto")
    dark = 0.6 * np.nanquantile(table, 0.97)
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5,
                      color="white" if value > dark else "black")  # fmt: skip
    axis.set_yticks(range(len(order)), order, fontsize=8)
    axis.set_xticks(range(table.shape[1]), range(1, table.shape[1] + 1), fontsize=8)
    axis.set_xlabel("layer", fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    save_figure(figure, path, 64)
    return path
