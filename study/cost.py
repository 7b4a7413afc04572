"""What the arms of a study cost: training steps of all of them, in turns, in one process."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from activations import parameter_groups, penalty
from activations.files import replacing
from bench.measure import in_turns, timed
from callbacks.machine import machine

from .arms import built, length, quiet
from .packed import COSTS
from .runs import Study
from .words import counted

if TYPE_CHECKING:
    import train

FILE, ABOUT = COSTS
LEAST, MOST = 5, 31  # rounds
SECONDS = 90.0  # for all arms and cells
WARM = 3  # steps that do not count: they compile, and fill the caches


def measure(study: Study, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """For each arm and cell the time of a training step, and its ratio to the baseline's.

    The arms of a cell take turns in a random order, each with a real batch; the ratio is the median
    over the rounds. The number of rounds is such that all takes about `seconds`, but at least 5.
    """
    found, cells = [], study.cells
    for cell in cells:
        begin, steps, sizes, device = time.perf_counter(), {}, {}, ""
        for arm in study.spec["arms"]:
            made = built(study.verdict_run(arm, cell, study.seeds[0]))
            device = made.trainer.strategy.root_device.type
            steps[arm], sizes[arm] = _step(made), length(made)
            for _ in range(WARM):
                steps[arm]()
        start = time.perf_counter()
        for step in steps.values():
            step()
        left = seconds / len(cells) - (time.perf_counter() - begin)
        rounds = round(left / (time.perf_counter() - start))
        times = in_turns(steps, min(max(rounds, LEAST), MOST))
        table = times["processor" if alone(device) else "wall"]
        for arm in steps:
            ratio = table[arm] / table[study.spec["baseline"]]
            found.append({
                "arm": arm, "cell": cell, "step_ms": 1e3 * statistics.median(table[arm]),
                "ratio": statistics.median(ratio), "low": ratio.quantile(0.25),
                "high": ratio.quantile(0.75), "rounds": len(table), "device": device,
                **sizes[arm],
            })  # fmt: skip
    return found


def alone(device: str) -> bool:
    """Whether the processor's time tells, which other processes disturb less than the wall's."""
    return device == "cpu" and torch.get_num_threads() == 1


def write(folder: Path, table: list[dict[str, Any]]) -> None:
    """Write the ratios, which `same_time` and the report read, and how they were measured."""
    about = {
        "machine": machine(table[0]["device"]),
        "threads": torch.get_num_threads(),
        "steps": table,
    }
    with replacing(folder / ABOUT) as unfinished:
        unfinished.write_text(json.dumps(about, indent=1))
    ratios = {f"{row['arm']}/{row['cell']}": row["ratio"] for row in table}
    with replacing(folder / FILE) as unfinished:
        unfinished.write_text(json.dumps(ratios, indent=1))


def _step(made: "train.CLI") -> Callable[[], dict[str, float]]:
    """One training step on a batch of the data, as a run makes it."""
    model, data, trainer = made.model, made.datamodule, made.trainer
    device = trainer.strategy.root_device
    with quiet():
        data.setup("fit")
    model.setup("validate")  # fuses or compiles
    model.to(device).train()
    batch = next(iter(data.train_dataloader()))
    images, labels, *more = (part.to(device) for part in batch)
    optimizer = model.optimizer(parameter_groups(model.backbone))
    parameters, bound = list(model.parameters()), trainer.gradient_clip_val

    def step() -> None:
        optimizer.zero_grad()
        with trainer.precision_plugin.forward_context():
            loss = F.cross_entropy(model(images, *more[1:]), labels) + penalty(model.backbone)
        loss.backward()
        if bound:
            torch.nn.utils.clip_grad_norm_(parameters, bound)
        optimizer.step()

    return lambda: timed(step, device)


def about_steps(folder: Path) -> str:
    """Where and how the steps were measured, for a caption."""
    file = folder / ABOUT
    if not file.is_file():
        return ""
    about = json.loads(file.read_text())
    device = (
        about["machine"]["gpu"]
        or f"{about['machine']['processor']}, {counted(about['threads'], 'thread')}"
    )
    rounds = min(row["rounds"] for row in about["steps"])
    return f", median of {rounds} steps in turns with the baseline's in one process on {device}"
