"""Time and saved memory of every activation, against ReLU and SiLU in the same run.

Each round times every function once, in a new random order, so that whatever else the machine does
falls on all of them alike; the table shows medians and the spread (half the distance of the
quartiles, in % of the median). A rival is one line in RIVALS.
"""

import argparse
import inspect
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import activations

from .measure import now, saved_bytes, spread
from .report import machine, write

RIVALS: list[tuple[str, Callable[[], nn.Module]]] = [
    ("nn.ReLU", nn.ReLU),
    ("nn.SiLU", nn.SiLU),
    ("nn.GELU", nn.GELU),
    ("nn.Mish", nn.Mish),
    ("nn.ELU", nn.ELU),
    ("nn.Softsign", nn.Softsign),
    ("nn.LeakyReLU", nn.LeakyReLU),
    ("nn.PReLU", nn.PReLU),
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODES = {"off": False, "activations": True}


class Entry:
    """One function in one mode, and its times in seconds."""

    def __init__(self, name: str, module: nn.Module, mode: str) -> None:
        self.name, self.module, self.mode = name, module, mode
        activations.fuse(module, on=MODES.get(mode, False))
        self.forward: list[float] = []
        self.both: list[float] = []

    def run(self, x: Tensor, grad: Tensor) -> None:
        """Time one forward and one backward."""
        for parameter in (x, *self.module.parameters()):
            parameter.grad = None
        start = now(x.device)
        y = self.module(x)
        middle = now(x.device)
        y.backward(grad)
        end = now(x.device)
        self.forward.append(middle - start)
        self.both.append(end - start)

    def saved(self, x: Tensor) -> float:
        """Bytes kept for backward, parameters aside, in multiples of the input."""
        kept = saved_bytes(lambda: self.module(x), self.module.parameters())
        return kept / x.untyped_storage().nbytes()


def entries(options: argparse.Namespace) -> list[Entry]:
    """The rivals, and every public activation in each mode asked for."""
    channels = options.shape[1]
    found = []
    for name, make in RIVALS:
        module = nn.PReLU(channels) if make is nn.PReLU and options.per_channel else make()
        found.append(Entry(name, module, "torch"))
    for name in activations.__all__:
        kind: Any = getattr(activations, name)
        if not (inspect.isclass(kind) and issubclass(kind, activations.Activation)):
            continue
        if kind is activations.Activation or (options.only and name not in options.only):
            continue
        known = kind.size_arguments
        arguments: dict[str, Any] = {"channels": channels} if "channels" in known else {}
        if options.per_channel:
            if "num_parameters" not in known:
                continue
            arguments["num_parameters"] = channels
        if "dims" in known and len(options.shape) == 3:
            arguments["dims"] = 1
        for mode in options.modes:
            torch.manual_seed(0)
            found.append(Entry(name, kind(**arguments), mode))
    return found


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each function, mode and dtype."""
    rows = []
    for name in options.dtypes:
        torch.manual_seed(0)
        x, grad = (
            torch.randn(options.shape, device=options.device).to(DTYPES[name]) for _ in range(2)
        )
        if options.channels_last:
            x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
        x.requires_grad_()
        chosen = entries(options)
        for entry in chosen:
            entry.module.to(options.device)
            ours = isinstance(entry.module, activations.Activation)
            if not ours or any(entry.module.children()):
                entry.module.to(DTYPES[name])  # torch's own, convolutions, linear layers
            entry.run(x, grad)  # compiles, and fills the caches
            entry.forward.clear()
            entry.both.clear()
        order = chosen.copy()
        for k in range(options.rounds):
            random.Random(k).shuffle(order)
            for entry in order:
                entry.run(x, grad)
        silu, relu = (next(e for e in chosen if e.name == f"nn.{n}") for n in ("SiLU", "ReLU"))
        for entry in chosen:
            both = statistics.median(entry.both)
            rows.append(
                {
                    "function": entry.name,
                    "mode": entry.mode,
                    "dtype": name,
                    "forward_ms": 1e3 * statistics.median(entry.forward),
                    "both_ms": 1e3 * both,
                    "least_ms": 1e3 * min(entry.both),
                    "spread_percent": spread(entry.both),
                    "forward_to_silu": statistics.median(entry.forward)
                    / statistics.median(silu.forward),
                    "both_to_silu": both / statistics.median(silu.both),
                    "both_to_relu": both / statistics.median(relu.both),
                    "saved_to_input": entry.saved(x),
                }
            )
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        f"{'function':16} {'mode':11} {'dtype':8} {'forward':>8} {'+backward':>9} {'spread':>6} "
        f"{'forward':>8} {'both':>6} {'both':>6} {'saved':>6}",
        f"{'':37} {'ms':>8} {'ms':>9} {'%':>6} {'/SiLU':>8} {'/SiLU':>6} {'/ReLU':>6} "
        f"{'/input':>6}",
    ]
    lines += [
        f"{row['function']:16} {row['mode']:11} {row['dtype']:8} {row['forward_ms']:8.2f} "
        f"{row['both_ms']:9.2f} {row['spread_percent']:6.1f} {row['forward_to_silu']:8.2f} "
        f"{row['both_to_silu']:6.2f} {row['both_to_relu']:6.2f} {row['saved_to_input']:6.2f}"
        for row in sorted(rows, key=lambda row: (row["dtype"], row["mode"], row["both_to_silu"]))
    ]
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Forward + backward over SiLU, one bar a mode, one panel a dtype, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    modes = [m for m in ("torch", "activations", "off") if any(r["mode"] == m for r in rows)]
    names = sorted(
        {row["function"] for row in rows},
        key=lambda n: min(r["both_to_silu"] for r in rows if r["function"] == n),
    )
    size = (6.5 * len(dtypes), 1.5 + 0.28 * len(names))
    figure = Figure(figsize=size, dpi=90, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(dtypes), squeeze=False, sharey=True)[0]
    colors = {"torch": "0.6", "activations": "C0", "off": "C1"}
    labels = {"torch": "torch's own", "activations": "fused", "off": "plain (off)"}
    for panel, dtype in zip(panels, dtypes, strict=True):
        for mode in modes:
            shift = {"torch": 0.0, "activations": 0.2, "off": -0.2}[mode]
            chosen = [r for r in rows if r["mode"] == mode and r["dtype"] == dtype]
            panel.barh(
                [names.index(r["function"]) + shift for r in chosen],
                [r["both_to_silu"] for r in chosen],
                height=0.38,
                color=colors[mode],
                label=labels[mode],
            )
        panel.axvline(1, color="0.2", linewidth=0.8)
        panel.set_xscale("log")
        ticks = [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set_title(dtype, fontsize=10)
        panel.set_xlabel("forward + backward / nn.SiLU")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].legend(fontsize=8, loc="lower right")
    figure.suptitle(title, fontsize=9)
    unfinished = path.with_name(path.name + ".part")
    canvas.draw()
    canvas.print_png(unfinished)
    unfinished.replace(path)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench activations", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--shape", type=int, nargs="+", default=[128, 64, 32, 32], help="N C [H W | L]")
    add("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    add("--modes", nargs="+", choices=MODES, default=list(MODES), help="off is the plain formula")
    add("--only", nargs="+", metavar="NAME", help="these activations, such as CosLU")
    add("--per_channel", action="store_true", help="one set of parameters a channel")
    add("--channels_last", action="store_true")
    add("--rounds", type=int, default=9)
    add("--threads", type=int, default=1, help="of the CPU")
    add("--device", default="cpu", help="cpu or cuda")
    add("--out", type=Path, default=Path("runs/bench"), help="folder of the JSON, CSV and PNG")
    options = parser.parse_args()
    unknown = set(options.only or ()) - set(activations.__all__)
    if unknown:
        parser.error(f"--only {' '.join(sorted(unknown))}: no such activation")
    if options.rounds < 2:
        parser.error(f"--rounds must be >= 2 for a median and a spread, got {options.rounds}")
    if len(options.shape) not in (2, 3, 4) or min(options.shape) < 1:
        parser.error(f"--shape takes 2 to 4 sizes >= 1, got {options.shape}")
    if options.channels_last and len(options.shape) != 4:
        parser.error(f"--channels_last needs N C H W, got --shape {options.shape}")
    return options


def main() -> None:
    """Measure, print the table, write JSON, CSV and the chart."""
    options = parse()
    torch.set_num_threads(options.threads)
    rows = measure(options)
    settings = {k: v for k, v in vars(options).items() if k != "out"}
    about = {**machine(), "settings": settings}
    layout = "channels_last" if options.channels_last else "contiguous"
    parameters = "one set a channel" if options.per_channel else "one set of parameters"
    where = about["gpu"] if options.device == "cuda" else about["processor"]
    title = (
        f"{tuple(options.shape)} {layout}, {parameters}, {options.threads} thread(s), "
        f"{options.rounds} rounds; {where}, "
        f"torch {about['torch']}, commit {about['commit']}"
    )
    print(title, show(rows), sep="\n")
    name = "-".join(
        [
            "activations",
            *(["per_channel"] * options.per_channel),
            *(["nhwc"] * options.channels_last),
        ]
    )
    write(options.out, name, about, rows)
    draw(rows, title, options.out / f"{name}.png")
    print(f"{options.out / name}.json, .csv, .png")


if __name__ == "__main__":
    main()
