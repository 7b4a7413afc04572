"""Plain formulas, for whole tensors and in blocks: the table of docs/performance.md.

Each value is a ratio to torch's SiLU in the same run, for forward and backward together, and what
is kept for the backward pass, over the input. Copy blocks.csv to results/performance_blocks.csv.
"""

from argparse import ArgumentParser, Namespace

from pandas import DataFrame

from . import activations


def add_options(parser: ArgumentParser) -> None:
    """The options of `python -m bench activations`, for float32."""
    activations.add_options(parser)
    parser.set_defaults(dtypes=["float32"], modes=["whole", "off"], rounds=5)


def measure(options: Namespace) -> DataFrame:
    """One row for each function, and dtype if there are several."""
    table = activations.measure(options)
    index = ["function", "dtype"][: len(options.dtypes)]
    ours = table[table["mode"] != "torch"].pivot(index=index, columns="mode")
    both, kept = ours["both_to_silu"], ours["saved_to_input"]
    columns = {
        "time over nn.SiLU, whole tensors": both["whole"],
        "in blocks": both["off"],
        "kept for the backward pass over the input, whole tensors": kept["whole"],
        "in blocks ": kept["off"],
    }
    return DataFrame(columns).round(1).sort_values("in blocks").reset_index()
