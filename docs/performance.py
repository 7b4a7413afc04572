"""`python docs/performance.py`: the table and the figure of docs/performance.md.

Measure first, on a machine that does nothing else:
`python -m bench activations --modes whole off activations --out results/bench`.
"""

import json
import sys
from pathlib import Path

from pandas import DataFrame

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from activations.picture import new_figure, save_figure  # noqa: E402

MEASURED = ROOT / "results/bench/activations.json"
TABLE = ROOT / "results/performance.csv"
FIGURE = Path(__file__).with_suffix(".png")


def table(measured: Path = MEASURED) -> DataFrame:
    """Each function over SiLU, for forward and backward together, in each form."""
    rows = DataFrame(json.loads(measured.read_text())["rows"])
    rows = rows.set_index(["dtype", "mode", "function"])
    forms = {
        "whole": ("float32", "whole"),
        "plain": ("float32", "off"),
        "fused": ("float32", "activations"),
        "plain bf16": ("bfloat16", "off"),
        "fused bf16": ("bfloat16", "activations"),
    }
    columns = {}
    for title, (dtype, mode) in forms.items():
        part = rows.loc[dtype]
        ours, rivals = part.loc[mode], part.loc["torch"]
        columns[title] = {**ours["both_to_silu"], **rivals["both_to_silu"]}
        if title in ("whole", "plain"):
            columns[f"kept {title}"] = {**ours["saved_to_input"], **rivals["saved_to_input"]}
    found = DataFrame(columns).sort_values(["fused", "plain"])
    kept = [column for column in found if column.startswith("kept")]
    return found.round(2).round(dict.fromkeys(kept, 1)).rename_axis("function").reset_index()


def draw(found: DataFrame, path: Path) -> None:
    """Bars of each function in float32: the formula as torch computes it, plain, and fused."""
    forms = ["fused", "plain", "whole"]  # from below
    figure = new_figure(9, 11, layout="constrained")
    axis = figure.subplots()
    bars = found.set_index("function")[forms].iloc[::-1]
    bars.plot.barh(ax=axis, width=0.8, fontsize=8, color=["tab:green", "tab:blue", "0.7"])
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.axvline(1, color="0.2", linewidth=0.8)
    axis.set(xlabel="forward and backward over nn.SiLU, float32, one thread", ylabel="")
    save_figure(figure, path)


if __name__ == "__main__":
    measured = table(*map(Path, sys.argv[1:]))
    measured.to_csv(TABLE, index=False, na_rep="-")
    draw(measured, FIGURE)
