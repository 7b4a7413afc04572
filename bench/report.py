"""How every measurement is reported: options, machine, table, files and chart."""

import json
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame

from activations.files import replacing
from activations.picture import new_figure, save_figure


def at_least(low: int) -> Callable[[str], int]:
    """A type for options: a whole number that is not below `low`."""

    def number(text: str) -> int:
        if int(text) < low:
            raise ArgumentTypeError(f"must be >= {low}, got {text}")
        return int(text)

    return number


def title(about: dict[str, Any]) -> str:
    """The settings, machine, torch and commit in one line."""
    named = {key: about[key] for key in ("processor", "gpu", "load", "torch", "commit")}
    words = {**about["settings"], **named}.items()
    return ", ".join(
        f"{k} {value}" for k, value in words if value is not None and value is not False
    )


def show(table: DataFrame) -> str:
    """The table as text; each column name stands on up to three lines."""
    shown = table.copy()
    names = [(*str(name).split("_", 2), "", "")[:3] for name in table]
    shown.columns = pd.MultiIndex.from_tuples(names)
    return shown.to_string(index=False, sparsify=False, float_format="{:.3f}".format, na_rep="")


def write(path: Path, about: dict[str, Any], table: DataFrame) -> None:
    """Write `path`.json (the rows, settings and machine) and `path`.csv (the rows)."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")  # JSON has no NaN
    with replacing(path.with_suffix(".json")) as unfinished:
        unfinished.write_text(json.dumps({**about, "rows": rows}, indent=1, default=str))
    with replacing(path.with_suffix(".csv")) as unfinished:
        table.to_csv(unfinished, index=False)


def draw(table: DataFrame, column: str, title: str, path: Path) -> None:
    """Draw `column`, a ratio, as bars: the function and mode with the smallest ratio on top."""
    keys = [key for key in ("network", "dtype") if key in table]
    bars: Any = table.pivot(index=["function", "mode"], columns=keys, values=column)
    bars = bars.loc[bars.min(axis=1).sort_values(ascending=False).index]
    bars.index = [" ".join(key) for key in bars.index]
    figure = new_figure(9, 1.5 + 0.1 * len(bars) * (1 + len(bars.columns)), layout="constrained")
    axis = figure.subplots()
    bars.plot.barh(ax=axis, width=0.8, fontsize=8, xlabel=column.replace("_to_", " / "))
    if bars.max(axis=None) > 8:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    axis.axvline(1, color="0.2", linewidth=0.8)
    axis.set_title(title, fontsize=8, wrap=True)
    save_figure(figure, path)
