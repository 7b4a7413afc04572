"""`python docs/performance.py`: write results/performance.csv from what `python -m bench` wrote.

Measure first, on a machine that does nothing else:
`python -m bench activations --modes whole off activations --out results/bench`.
"""

import json
import sys
from pathlib import Path

from pandas import DataFrame

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "results/bench/activations.json"
TABLE = ROOT / "results/performance.csv"


def table(measured: Path = MEASURED) -> DataFrame:
    """Each function over SiLU, for forward and backward together, in each form."""
    rows = DataFrame(json.loads(measured.read_text())["rows"])
    rows = rows.set_index(["dtype", "mode", "function"])
    forms = {
        "whole tensors": ("float32", "whole"),
        "plain": ("float32", "off"),
        "fused": ("float32", "activations"),
        "plain, bfloat16": ("bfloat16", "off"),
        "fused, bfloat16": ("bfloat16", "activations"),
    }
    columns = {}
    for title, (dtype, mode) in forms.items():
        part = rows.loc[dtype]
        ours, rivals = part.loc[mode], part.loc["torch"]
        columns[title] = {**ours["both_to_silu"], **rivals["both_to_silu"]}
        if title in ("whole tensors", "plain"):
            columns[f"kept, {title}"] = {**ours["saved_to_input"], **rivals["saved_to_input"]}
    found = DataFrame(columns).sort_values(["fused", "plain"])
    kept = [column for column in found if column.startswith("kept")]
    return found.round(2).round(dict.fromkeys(kept, 1)).rename_axis("function").reset_index()


if __name__ == "__main__":
    table(*map(Path, sys.argv[1:])).to_csv(TABLE, index=False)
