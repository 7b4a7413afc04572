"""A training step of whole networks: each activation against ReLU and SiLU in the same run.

A step is forward, cross-entropy, backward and SGD. Each round times every network once, in a new
random order; the table shows medians and the spread (half the distance of the quartiles, in % of
the median). Processor time (proc) leaves out what other jobs do to the clock. A rival is one line
in RIVALS, or a class's full path after `--activations`. Modes are those of `--model.compile` in
train.py; in `model` a row is compared with ReLU and SiLU in `model`. The first step holds the
compilation, nothing being cached but what the rows above it have compiled; `even` is the number of
steps after which the row's mode has won that back against `off`.
"""

import argparse
import importlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations import Activation, fuse, parameter_groups, replace_activations
from models import build_backbone

from .measure import now, saved_bytes, spread
from .report import machine, write

RIVALS: list[tuple[str, Callable[[], nn.Module]]] = [
    ("ReLU", nn.ReLU),
    ("SiLU", nn.SiLU),
    ("ReLU in place", partial(nn.ReLU, inplace=True)),
]
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {  # how it is built, its input
    "resnet8": ({"name": "resnet8", "num_classes": 10}, (3, 32, 32)),
    "resnet20": ({"name": "resnet20", "num_classes": 10}, (3, 32, 32)),
    "resnet18": ({"name": "timm/resnet18", "num_classes": 10}, (3, 32, 32)),
    "resnet34-1d": (
        {"name": "timm/resnet34", "num_classes": 5, "in_channels": 1, "dims": 1},
        (1, 187),
    ),
}
MODES = ("off", "activations", "model")
DTYPES = ("float32", "bfloat16")


class Entry:
    """One network with one activation in one mode, and the times of its steps in seconds."""

    def __init__(
        self,
        function: str,
        make: Callable[[], nn.Module],
        mode: str,
        dtype: str,
        network: str,
        options: argparse.Namespace,
    ) -> None:
        self.function, self.mode, self.dtype, self.network = function, mode, dtype, network
        arguments, size = NETWORKS[network]
        torch.manual_seed(0)
        model = build_backbone(**arguments, image_size=size[-1])
        replace_activations(model, make, example_input=torch.zeros(2, *size))
        x = torch.randn(options.batch_size, *size)
        self.y = torch.randint(arguments["num_classes"], (len(x),), device=options.device)
        channels_last = options.layout == "channels_last" and len(size) == 3
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.x = x.to(options.device).contiguous(memory_format=layout)
        self.model = model.to(options.device, memory_format=layout)  # pyright: ignore[reportCallIssue]
        groups = parameter_groups(self.model)
        self.optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4)
        fuse(self.model, on=mode == "activations")
        if mode == "model":
            self.model.compile()

    def loss(self) -> Tensor:
        """The forward half."""
        half = torch.autocast(self.x.device.type, torch.bfloat16, cache_enabled=False)
        with half if self.dtype == "bfloat16" else nullcontext():
            scores = self.model(self.x)
        return F.cross_entropy(scores.float(), self.y)

    def step(self) -> tuple[float, float]:
        """One training step; its seconds, and those of the processor."""
        start, processor = now(self.x.device), time.process_time()
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return now(self.x.device) - start, time.process_time() - processor

    def saved(self) -> int:
        """Bytes kept for backward, parameters and buffers aside."""
        own = [self.x, self.y, *self.model.parameters(), *self.model.buffers()]
        return saved_bytes(self.loss, own)


def factory(name: str) -> Callable[[], nn.Module]:
    """What makes the activation `name`: a rival, one of ours, or a class by its full path."""
    if name in dict(RIVALS):
        return dict(RIVALS)[name]
    place, _, kind = (name if "." in name else f"activations.{name}").rpartition(".")
    return getattr(importlib.import_module(place), kind)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each network, activation, mode and dtype."""
    rows = []
    with (
        tempfile.TemporaryDirectory() as cache,  # where nothing is compiled yet
        patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": cache}),
    ):
        once = 0.0 if options.modes == ["off"] else _start_compiler(options.device)
        for network in options.networks:
            for dtype in options.dtypes:
                rows += _compare(network, dtype, once, options)
    return rows


def _start_compiler(device: str) -> float:
    """Seconds that a process spends on its first compilation, whatever it is."""
    start, x = now(device), torch.ones(64, device=device, requires_grad=True)
    torch.compile(lambda x: x.sin() + 1)(x).sum().backward()
    return now(device) - start


def _compare(
    network: str, dtype: str, once: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    chosen: dict[tuple[str, str], Entry] = {}
    first: dict[tuple[str, str], float] = {}
    for function in dict.fromkeys([*dict(RIVALS), *options.activations]):
        modes = options.modes
        if not isinstance(factory(function)(), Activation):  # not ours to fuse
            modes = ["off", *({"model"} & {*modes})]
        for mode in modes:
            entry = Entry(function, factory(function), mode, dtype, network, options)
            first[function, mode] = entry.step()[0] + (0.0 if mode == "off" else once)
            for _ in range(2):
                entry.step()
            chosen[function, mode] = entry
    times: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in chosen}
    order = list(chosen)
    for k in range(options.rounds):
        random.Random(k).shuffle(order)
        for key in order:
            times[key].append(chosen[key].step())
    wall, busy = ({k: [both[i] for both in found] for k, found in times.items()} for i in (0, 1))
    step, processor = (
        {key: statistics.median(found) for key, found in each.items()} for each in (wall, busy)
    )
    saved = {key: entry.saved() for key, entry in chosen.items()}
    rows = []
    for key in chosen:
        function, mode = key
        like, plain = "model" if mode == "model" else "off", (function, "off")
        gain = step.get(plain, 0.0) - step[key]
        rows.append(
            {
                "network": network,
                "function": function,
                "mode": mode,
                "dtype": dtype,
                "step_ms": 1e3 * step[key],
                "least_ms": 1e3 * min(wall[key]),
                "spread_percent": spread(wall[key]),
                "step_to_relu": step[key] / step["ReLU", like],
                "step_to_silu": step[key] / step["SiLU", like],
                "processor_ms": 1e3 * processor[key],
                "processor_to_relu": processor[key] / processor["ReLU", like],
                "processor_to_silu": processor[key] / processor["SiLU", like],
                "saved_mb": saved[key] / 1e6,
                "saved_to_silu": saved[key] / saved["SiLU", like],
                "saved_to_relu_in_place": saved[key] / saved["ReLU in place", like],
                "first_step_s": first[key],
                "even_steps": (first[key] - first[plain]) / gain if gain > 0 else None,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        f"{'network':11} {'function':14} {'mode':11} {'dtype':8} {'step':>7} {'spread':>6} "
        f"{'step':>6} {'step':>6} {'proc':>6} {'proc':>6} {'saved':>6} {'saved':>6} {'saved':>6} "
        f"{'first':>6} {'even':>6}",
        f"{'':47} {'ms':>7} {'%':>6} {'/ReLU':>6} {'/SiLU':>6} {'/ReLU':>6} {'/SiLU':>6} {'MB':>6} "
        f"{'/SiLU':>6} {'/ReLU_':>6} {'s':>6} {'steps':>6}",
    ]
    for row in rows:
        even = "" if row["even_steps"] is None else f"{row['even_steps']:.0f}"
        lines.append(
            f"{row['network']:11} {row['function']:14} {row['mode']:11} {row['dtype']:8} "
            f"{row['step_ms']:7.1f} {row['spread_percent']:6.1f} {row['step_to_relu']:6.3f} "
            f"{row['step_to_silu']:6.3f} {row['processor_to_relu']:6.3f} "
            f"{row['processor_to_silu']:6.3f} {row['saved_mb']:6.1f} {row['saved_to_silu']:6.2f} "
            f"{row['saved_to_relu_in_place']:6.2f} {row['first_step_s']:6.1f} {even:>6}"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """A step over ReLU's, one bar a mode, one panel a network and dtype."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row["network"], row["dtype"]) for row in rows))
    names = list(dict.fromkeys(row["function"] for row in rows))[::-1]
    colors = {"off": "C1", "activations": "C0", "model": "C2"}
    modes = [mode for mode in colors if any(row["mode"] == mode for row in rows)]
    size = (1.5 + 4 * len(panels), 1.6 + 0.3 * len(names) * len(modes))
    figure = Figure(figsize=size, dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for place, mode in enumerate(modes):
            chosen = [r for r in rows if (r["network"], r["dtype"], r["mode"]) == (*panel, mode)]
            shift = 0.8 * ((len(modes) - 1) / 2 - place) / len(modes)
            axis.barh(
                [names.index(r["function"]) + shift for r in chosen],
                [r["step_to_relu"] for r in chosen],
                height=0.75 / len(modes),
                color=colors[mode],
                label=mode,
            )
        axis.axvline(1, color="0.2", linewidth=0.8)
        axis.set_title(" ".join(panel), fontsize=10)
        axis.set_xlabel("training step / ReLU's")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(title, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    figure.savefig(unfinished, format="png")
    unfinished.replace(path)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench step", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=["resnet20"])
    add("--activations", nargs="+", metavar="NAME", default=["CosLU", "DELU", "ReLUN"],
        help="ours by name, or any class by its full path, such as torch.nn.Mish")  # fmt: skip
    add("--modes", nargs="+", choices=MODES, default=["off", "activations"])
    add("--dtypes", nargs="+", choices=DTYPES, default=["float32"], help="bfloat16 is autocast")
    add("--layout", choices=("channels_last", "contiguous"), default="channels_last")
    add("--batch_size", type=int, default=128)
    add("--rounds", type=int, default=9)
    add("--threads", type=int, default=1, help="of the CPU")
    add("--device", default="cpu", help="cpu or cuda")
    add("--out", type=Path, default=Path("runs/bench"), help="folder of the JSON, CSV and PNG")
    options = parser.parse_args()
    for name in options.activations:
        try:
            factory(name)()
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            parser.error(f"--activations {name}: {error}")
    for name, least in (("rounds", 2), ("batch_size", 2), ("threads", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be >= {least}, got {getattr(options, name)}")
    return options


def main() -> None:
    """Measure, print the table, write JSON, CSV and the chart."""
    options = parse()
    torch.set_num_threads(options.threads)
    about = {**machine(), "settings": {k: v for k, v in vars(options).items() if k != "out"}}
    where = about["gpu"] if options.device == "cuda" else about["processor"]
    title = (
        f"batch {options.batch_size}, {options.threads} thread(s), {options.rounds} rounds; "
        f"{where}, load {about['load']:.1f}, torch {about['torch']}, commit {about['commit']}"
    )
    print(title, flush=True)
    rows = measure(options)
    print(show(rows))
    print(
        "/ReLU_: over ReLU in place; first: the first step, compilation included; even: see above"
    )
    write(options.out, "step", about, rows)
    draw(rows, title, options.out / "step.png")
    print(f"{options.out / 'step'}.json, .csv, .png")


if __name__ == "__main__":
    main()
