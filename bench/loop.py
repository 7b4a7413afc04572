"""What Lightning, its callbacks, our schedule and monitor, and a logger add to a bare PyTorch loop.

Left out of what `train.py` has: the results, the pictures of the monitor, and the tests.

All variants train the same network on the same batches, made by the project's own loader from
generated images of CIFAR's shape. Each runs in a thread of its own, and they take turns batch by
batch. A variant adds one part to the variant above it. Times are those of an epoch. `more` is the
processor time that the part adds, `inside` the time inside the part's own hooks, both in % of a
bare epoch's.
"""

import contextlib
import io
import logging
import re
import tempfile
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import SimpleProfiler
from pandas import DataFrame
from torch.nn import functional as F

from activations import parameter_groups
from callbacks import ActivationMonitor, ActivationSchedule
from callbacks.machine import ROOT
from models import Classifier

from .measure import Turns, generated, in_turns, summarize
from .report import at_least
from .step import MODES, NAMING, activation, factory

PARTS: dict[str, list[Callable[[], Callback]]] = {  # and its callbacks
    "Trainer": [],
    "schedule": [ActivationSchedule],
    "monitor": [partial(ActivationMonitor, figure=False)],
    "progress bar": [partial(TQDMProgressBar, refresh_rate=20)],
    "TensorBoard": [],
    "checkpoints": [
        partial(ModelCheckpoint, monitor="train/acc", mode="max", filename="best"),
        partial(ModelCheckpoint, filename="last", enable_version_counter=False),
    ],
}
BASE = yaml.safe_load((ROOT / "configs/base.yaml").read_text())["trainer"]
SETTINGS = {name: BASE[name] for name in ("gradient_clip_val", "log_every_n_steps")}


def add_options(parser: ArgumentParser) -> None:
    """The options of this measurement."""
    add = parser.add_argument
    add("--backbone", default="resnet20")
    add("--activation", type=activation, default="CosLU", help=NAMING)
    add("--compile", choices=MODES, default="off")
    add("--batch_size", type=at_least(2), default=128)
    add("--steps", type=at_least(2), default=40, help="batches an epoch")
    add("--epochs", type=at_least(2), default=5, help="epochs that count; one more comes first")
    add("--device", choices=("cpu", "cuda"), default="cpu")


def bare(batches: Turns, model: Classifier, options: Namespace) -> None:
    """The loop without Lightning, with the same optimizer, clipping and schedule."""
    model.to(options.device).setup("validate")  # fuses or compiles
    optimizer = model.optimizer(parameter_groups(model.backbone))
    steps = (options.epochs + 1) * options.steps
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(options.epochs + 1):
        batches.sampler.set_epoch(epoch)
        for images, labels, _ in batches:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS["gradient_clip_val"])
            optimizer.step()
            scheduler.step()


def train(
    options: Namespace,
) -> tuple[dict[str, DataFrame], dict[str, tuple[Classifier, SimpleProfiler]]]:
    """The times of all turns, and the network and the profiler of each variant."""
    count, epochs = options.batch_size * options.steps, options.epochs + 1
    steps, found = {}, {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for parts, name in enumerate(("bare loop", *PARTS)):
            torch.manual_seed(0)
            make, profiler = factory(options.activation), SimpleProfiler()
            model = Classifier(options.backbone, activation=make, compile=options.compile)
            # a loader on the device: with and without a Trainer the batches are made there
            loader = generated(count, options.batch_size, options.device)
            batches, have = Turns(loader, options.device), list(PARTS)[:parts]
            logger = TensorBoardLogger(folder, default_hp_metric=False)
            run = partial(bare, batches, model, options)
            if have:
                trainer = Trainer(
                    **SETTINGS,
                    max_epochs=epochs,
                    accelerator="gpu" if options.device == "cuda" else "cpu",
                    devices=1,
                    callbacks=[make() for part in have for make in PARTS[part]],
                    logger="TensorBoard" in have and logger,
                    enable_checkpointing="checkpoints" in have,
                    enable_progress_bar="progress bar" in have,
                    enable_model_summary=False,
                    limit_val_batches=0,
                    profiler=profiler,
                )
                run = partial(trainer.fit, model, batches)
            batches.start(run)
            steps[name], found[name] = batches.step, (model, profiler)
        return in_turns(steps, 1 + epochs * options.steps), found


def measure(options: Namespace) -> DataFrame:
    """One row for each variant."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # Lightning's advice
    turns, found = train(options)

    def epochs(times: DataFrame) -> Any:
        """Seconds of each epoch that counts, from the turn in which the epoch before it ends."""
        counted = times[options.steps : -1]  # the last turn of all ends the training
        return counted.groupby(np.arange(len(counted)) // options.steps).sum()

    times = {"epoch": epochs(turns["wall"]), "processor": epochs(turns["processor"])}
    table = summarize(times, {"bare": lambda _: "bare loop"}, "s")
    bare_s, work_s = table.loc["bare loop"], table["processor_s"]
    table["more_percent"] = 100 * work_s.diff() / bare_s["processor_s"]
    for name, callbacks in PARTS.items():
        for make in callbacks[:1]:
            inside_s = inside(type(make()), found[name][1]) / (options.epochs + 1)
            table.loc[name, "inside_percent"] = 100 * inside_s / bare_s["epoch_s"]
            table.loc[name, "inside_ms_a_step"] = 1e3 * inside_s / options.steps
    return table.rename_axis("variant").reset_index()


def inside(kind: type, profiler: SimpleProfiler) -> float:
    """Seconds inside the hooks of batches and epochs of the callbacks of class `kind`."""
    return sum(
        sum(seconds)
        for action, seconds in profiler.recorded_durations.items()
        if kind.__name__ in action and re.search("batch|epoch", action.rpartition(".")[2])
    )
