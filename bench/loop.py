"""What Lightning, our callbacks and the loggers add to a bare PyTorch loop.

All variants train the same network on the same batches, made by the project's own loader from
generated images of CIFAR's shape. Each runs in a thread of its own and they take turns, one batch
each in a new random order, so that whatever else the machine does falls on all of them alike. A
variant adds one part to the one above it; `more` is what that adds in processor time, in % of a
bare epoch, and `inside` what was spent inside that part's own hooks, which a busy machine hardly
disturbs. Processor time leaves out what other jobs do to the clock on the wall.
"""

import argparse
import contextlib
import io
import logging
import random
import statistics
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import Profiler
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from activations import fuse, parameter_groups
from callbacks import ActivationMonitor, ActivationSchedule
from datamodules import ImageDataModule
from datamodules.loader import ImageLoader
from models import Classifier

from .measure import Turns, spread
from .report import ROOT, machine, write
from .step import factory

PARTS = {  # and the callback that it is, if it is one
    "Trainer": None,
    "schedule": "ActivationSchedule",
    "monitor": "ActivationMonitor",
    "progress bar": "TQDMProgressBar",
    "TensorBoard": None,
    "checkpoints": "ModelCheckpoint",
}


class Generated(ImageDataModule):
    """Random images of CIFAR's shape: so many whole batches an epoch."""

    num_classes, in_channels, image_size = 10, 3, 32
    class_names = tuple("0123456789")
    mean, std = (0.5,) * 3, (0.25,) * 3

    def __init__(self, batch_size: int, steps: int, turns: Turns) -> None:
        super().__init__(batch_size=batch_size)
        self.steps, self.turns = steps, turns

    def load(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """As many images as one epoch takes."""
        generator, images = torch.Generator().manual_seed(0), self.batch_size * self.steps
        pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return pixels, torch.arange(images) % 10

    def choose(self, split: str, labels: Tensor) -> Tensor:
        """All of them, whatever the split."""
        return torch.arange(len(labels))

    def train_dataloader(self) -> Any:
        """The project's loader, on the device with or without a Trainer; it takes turns."""
        assert self._train is not None
        loader = ImageLoader(
            *self._train, self.train_indices, self.batch_size, mean=self.mean, std=self.std,
            training=True, crop_padding=4, flip=True, device=self.turns.device,
        )  # fmt: skip
        return self.turns.over(loader)


class Inside(Profiler):
    """Processor time inside the callbacks' hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.spent: dict[str, float] = {}
        self._since: dict[str, float] = {}

    def start(self, action_name: str) -> None:
        """Enter a hook."""
        self._since[action_name] = time.process_time()

    def stop(self, action_name: str) -> None:
        """Leave it."""
        seconds = time.process_time() - self._since.pop(action_name)
        self.spent[action_name] = self.spent.get(action_name, 0.0) + seconds

    def of(self, callback: str) -> float:
        """Seconds inside the hooks of batches and epochs of `callback`."""
        return sum(
            seconds
            for action, seconds in self.spent.items()
            if callback in action and ("batch" in action or "epoch" in action)
        )


def bare(data: Generated, model: Classifier, options: argparse.Namespace, inside: Profiler) -> None:
    """The loop that anyone would write, with the same optimizer, clipping and schedule."""
    data.setup("fit")
    model.to(options.device)
    fuse(model, on=model.compile_mode == "activations")
    optimizer = model.optimizer(parameter_groups(model.backbone))
    scheduler = CosineAnnealingLR(optimizer, (options.epochs + 1) * data.steps)
    turns, clip = data.train_dataloader(), _trainer()["gradient_clip_val"]
    for epoch in range(options.epochs + 1):
        turns.loader.set_epoch(epoch)
        for images, labels, _ in turns:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()


def lightning(
    data: Generated,
    model: Classifier,
    options: argparse.Namespace,
    inside: Profiler,
    parts: int,
    folder: str,
) -> None:
    """The same by a Trainer with the first so many of PARTS."""
    have = list(PARTS)[:parts]
    callbacks: list[Callback] = []
    callbacks += [ActivationSchedule()] if "schedule" in have else []
    callbacks += [ActivationMonitor(figure=False)] if "monitor" in have else []
    bar = "progress bar" in have
    callbacks += [TQDMProgressBar(refresh_rate=20)] if bar else []
    logger = TensorBoardLogger(folder, default_hp_metric=False) if "TensorBoard" in have else False
    if "checkpoints" in have:
        last = ModelCheckpoint(filename="last", enable_version_counter=False)
        callbacks += [ModelCheckpoint(monitor="train/acc", mode="max", filename="best"), last]
    trainer = Trainer(
        **_trainer(),
        max_epochs=options.epochs + 1,
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing="checkpoints" in have,
        enable_progress_bar=bar,
        enable_model_summary=False,
        limit_val_batches=0,
        profiler=inside,
    )
    trainer.fit(model, datamodule=data)


def _trainer() -> dict[str, Any]:
    """What base.yaml says of a training run."""
    settings = yaml.safe_load((ROOT / "configs/base.yaml").read_text())["trainer"]
    return {name: settings[name] for name in ("gradient_clip_val", "log_every_n_steps")}


def train(options: argparse.Namespace) -> dict[str, tuple[Turns, Classifier, Inside]]:
    """Let all variants take turns until each has trained; their times and their networks."""
    found: dict[str, tuple[Turns, Classifier, Inside]] = {}
    threads = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for parts, name in enumerate(("bare loop", *PARTS)):
            torch.manual_seed(0)
            model = Classifier(
                options.backbone, activation=factory(options.activation), compile=options.compile
            )
            turns, inside = Turns(options.device), Inside()
            data = Generated(options.batch_size, options.steps, turns)
            run = partial(lightning, parts=parts, folder=f"{folder}/{parts}") if parts else bare
            threads.append(turns.start(partial(run, data, model, options, inside)))
            found[name] = turns, model, inside
        for k in range((options.epochs + 1) * options.steps):
            for name in random.Random(k).sample(list(found), len(found)):
                found[name][0].step()
        for thread in threads:
            thread.join()
    return found


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each variant."""
    rows: list[dict[str, Any]] = []
    for name, (turns, _, inside) in train(options).items():
        counted = range(options.steps, (options.epochs + 1) * options.steps, options.steps)
        wall, processor = (
            [sum(times[k : k + options.steps]) for k in counted]
            for times in (turns.wall, turns.processor)
        )
        row: dict[str, Any] = {
            "variant": f"+ {name}" if rows else name,
            "epoch_s": statistics.median(wall),
            "spread_percent": spread(wall),
            "processor_s": statistics.median(processor),
        }
        bare, before = (rows[0], rows[-1]) if rows else (row, row)
        row["ratio"] = row["epoch_s"] / bare["epoch_s"]
        row["processor_ratio"] = row["processor_s"] / bare["processor_s"]
        more = row["processor_s"] - before["processor_s"]
        row["more_percent"] = 100 * more / bare["processor_s"]
        callback = PARTS.get(name)
        own = inside.of(callback) / (options.epochs + 1) if callback else None
        row["inside_percent"] = None if own is None else 100 * own / bare["processor_s"]
        row["inside_ms_a_step"] = None if own is None else 1e3 * own / options.steps
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        f"{'':15} {'epoch':>8} {'spread':>6} {'ratio':>6}  {'processor':>9} {'ratio':>6} "
        f"{'more':>7} {'inside':>7} {'inside':>9}",
        f"{'':15} {'s':>8} {'%':>6} {'':>6}  {'s':>9} {'':>6} {'%':>7} {'%':>7} {'ms a step':>9}",
    ]
    for row in rows:
        own = [row["inside_percent"], row["inside_ms_a_step"]]
        inside, each = ("" if value is None else f"{value:.2f}" for value in own)
        lines.append(
            f"{row['variant']:15} {row['epoch_s']:8.2f} {row['spread_percent']:6.1f} "
            f"{row['ratio']:6.3f}  {row['processor_s']:9.2f} {row['processor_ratio']:6.3f} "
            f"{row['more_percent']:7.2f} {inside:>7} {each:>9}"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench loop", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--backbone", default="resnet20")
    add("--activation", default="CosLU", help="ours by name, or any class by its full path")
    add("--compile", choices=("off", "activations", "model"), default="off")
    add("--batch_size", type=int, default=128)
    add("--steps", type=int, default=40, help="batches an epoch")
    add("--epochs", type=int, default=5, help="epochs that count; one more comes first")
    add("--threads", type=int, default=1, help="of the CPU")
    add("--device", default="cpu", help="cpu or cuda")
    add("--out", type=Path, default=Path("runs/bench"), help="folder of the JSON and CSV")
    options = parser.parse_args()
    for name, least in (("epochs", 2), ("steps", 2), ("batch_size", 2), ("threads", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be >= {least}, got {getattr(options, name)}")
    return options


def main() -> None:
    """Measure, print the table, write JSON and CSV."""
    options = parse()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # Lightning's advice
    about = {**machine(), "settings": {k: v for k, v in vars(options).items() if k != "out"}}
    where = about["gpu"] if options.device == "cuda" else about["processor"]
    print(
        f"{options.backbone} with {options.activation}, compile {options.compile}, "
        f"{options.epochs} epochs of {options.steps} batches of {options.batch_size}, "
        f"{options.threads} thread(s); {where}, load {about['load']:.1f}, torch {about['torch']}, "
        f"commit {about['commit']}",
        flush=True,
    )
    rows = measure(options)
    print(show(rows))
    write(options.out, "loop", about, rows)
    print(f"{options.out / 'loop'}.json, .csv")


if __name__ == "__main__":
    main()
