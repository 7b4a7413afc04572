"""Data sets: seconds to prepare, memory, and training samples a second against torchvision.

Generated images of CIFAR's shape are always measured, and each data set whose folder is given.
`prepare_s` is the time to prepare it for the first time, `later_s` that in a later process, which
finds what the first has stored. `memory_mb` is by how much the process has grown once all training
images, of `images_mb`, are read; it is empty if they are decoded anew in each epoch. Then both
loaders have as many worker processes, one per core.
"""

import multiprocessing
import os
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from pandas import DataFrame
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

import datamodules
from datamodules import ImageDataModule
from datamodules.base import stratified_split
from datamodules.images import class_folders
from datamodules.loader import ImageLoader

from .measure import generated, in_turns, now

OFFERED = {name: getattr(datamodules, name) for name in datamodules.__all__}
KINDS = {name: kind for name, kind in OFFERED.items() if hasattr(kind, "root")}
BATCH, ROUNDS, SECONDS = 128, 3, 2.0


def add_options(parser: ArgumentParser) -> None:
    """The options of this measurement."""
    for name in KINDS:
        parser.add_argument(f"--{name}", metavar="DIR", help=f"measure {name} from this folder")


def measure(options: Namespace) -> DataFrame:
    """One row for generated CIFAR images, and one for each data set whose folder is given."""
    for name in KINDS:
        if (root := getattr(options, name)) and not Path(root).is_dir():
            raise FileNotFoundError(f"--{name} {root}: no such folder")
    rows = [{"data": "CIFAR, generated", **rates(generated(50_000, BATCH))}]
    with tempfile.TemporaryDirectory() as cache:
        for name in KINDS:
            if root := getattr(options, name):
                rows += [{"data": name, **_measure(name, root, cache)}]
    return DataFrame(rows)


def _measure(name: str, root: str, cache: str) -> dict[str, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as new:
        first, later = (new.submit(_start, name, root, cache).result() for _ in range(2))
    data = _set_up(name, root, cache)
    folder = Path(root, "train") if Path(root, "train").is_dir() else Path(root)
    is_tree = data.in_channels == 3 and set(class_folders(folder)) == set(data.class_names)
    speed = rates(data.train_dataloader(), folder if is_tree else None)
    return {**speed, "prepare_s": first["later_s"], **later}


def _set_up(name: str, root: str, cache: str) -> ImageDataModule:
    data = KINDS[name](root=root, cache_dir=cache, batch_size=BATCH)
    data.setup("fit")
    return data


def _start(name: str, root: str, cache: str) -> dict[str, float]:
    """Seconds until the data are ready, and the memory they then take, in a new process."""
    torch.set_num_threads(1)
    stratified_split(torch.arange(1000) % 10, 0.1, 0)  # torch loads parts of itself when first used
    before, start = _resident(), time.perf_counter()
    images = _set_up(name, root, cache).train_dataloader().images
    found = {"later_s": time.perf_counter() - start}
    if isinstance(images, Tensor):
        for part in images.split(100):
            part.max()
        found |= {"memory_mb": (_resident() - before) / 1e6, "images_mb": images.nbytes / 1e6}
    return found


def _resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def rates(ours: ImageLoader, folder: Path | None = None) -> dict[str, float]:
    """Samples a second, ours and torchvision's in turns."""
    loaders = {"ours": ours, "torchvision": _torchvision(ours, folder)}
    runs = {name: partial(rate, loader) for name, loader in loaders.items() if loader is not None}
    speed = in_turns(runs, ROUNDS)["rate"].median().to_dict()
    ratio = {"ours_to_torchvision": speed["ours"] / speed.get("torchvision", float("nan"))}
    return {f"{name}_samples_a_second": rate for name, rate in speed.items()} | ratio


def rate(loader: Iterable[Any], device: str = "cpu") -> dict[str, float]:
    """Samples a second, after one batch that does not count."""
    batches, count = chain.from_iterable(repeat(loader)), 0
    next(batches)
    start = now(device)
    while time.perf_counter() - start <= SECONDS:
        count += len(next(batches)[0])
    return {"rate": count / (now(device) - start)}


def _torchvision(ours: ImageLoader, folder: Path | None) -> DataLoader | None:
    """Torchvision's usual transforms: of CIFAR images one by one, or of its ImageFolder."""
    from torchvision import datasets, transforms

    images = ours.images
    side = images.shape[-1] if isinstance(images, Tensor) else images.side
    usual = [
        transforms.RandomCrop(side, padding=ours.crop_padding),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.5,) * 3, (0.25,) * 3),
    ]
    if isinstance(images, Tensor) and images.shape[1:] == (3, 32, 32):
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        transform = transforms.Compose(usual)

        def collate(chosen: list[int]) -> Any:
            return default_collate([(transform(Image.fromarray(pixels[i])), i) for i in chosen])

        every: Any = range(len(pixels))
        return DataLoader(every, BATCH, shuffle=True, drop_last=True, collate_fn=collate)
    if folder is None:
        return None
    sized = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side), *usual])
    found = datasets.ImageFolder(folder, sized)
    return DataLoader(found, BATCH, shuffle=True, num_workers=ours.workers)
