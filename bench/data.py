"""Data sets: seconds to prepare, memory, and training samples a second against torchvision."""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import datamodules
from datamodules import ImageDataModule
from datamodules.base import stratified_split
from datamodules.images import class_folders
from datamodules.loader import ImageLoader

from .report import machine

SECONDS = 5.0
BATCH = 128


def main() -> None:
    """Measure generated CIFAR images, then every data set whose folder is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [name for name in datamodules.__all__ if "root" in _arguments(name)]
    for name in names:
        parser.add_argument(f"--{name}", metavar="DIR", help=f"measure {name} from this folder")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    rows: list[tuple[str, ...]] = [
        ("", "prepare s", "later s", "memory MB", "samples/s", "torchvision's", "ratio")
    ]
    pixels = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(50_000) % 10
    ours = ImageLoader(pixels, labels, torch.arange(50_000), BATCH, mean=(0.5,) * 3,
                       std=(0.25,) * 3, training=True, crop_padding=4, flip=True)  # fmt: skip
    rows.append(("CIFAR, generated", "", "", "", *_rates(ours, _torchvision(pixels, labels))))
    with tempfile.TemporaryDirectory() as cache:
        given = [(name, root) for name in names if (root := getattr(options, name))]
        rows += [(name, *_measure(name, root, cache)) for name, root in given]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        print(f"{row[0]:<{len(first)}}", *others, sep="  ")
    print("memory: growth of the process / size of the training images, once all are read")


def _measure(name: str, root: str, cache: str) -> tuple[str, ...]:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as new:
        first, _ = new.submit(_start, name, root, cache).result()
        later, memory = new.submit(_start, name, root, cache).result()
    data = _set_up(name, root, cache)
    assert data._train is not None
    images, labels = data._train
    rival = None
    if isinstance(images, Tensor) and images.shape[1:] == (3, 32, 32):
        rival = _torchvision(images, labels)
    elif data.in_channels == 3:
        rival = _torchvision_folder(data, Path(root))
    return f"{first:.2f}", f"{later:.2f}", memory, *_rates(data.train_dataloader(), rival)


def _start(name: str, root: str, cache: str) -> tuple[float, str]:
    """Seconds until the data are ready, and the memory they then take, in a new process."""
    torch.set_num_threads(1)
    stratified_split(torch.arange(1000) % 10, 0.1, 0)  # torch loads parts of itself when first used
    before, start = _resident(), time.perf_counter()
    data = _set_up(name, root, cache)
    seconds = time.perf_counter() - start
    assert data._train is not None
    images, _ = data._train
    if not isinstance(images, Tensor):
        return seconds, "streamed"
    for part in images.split(100):
        part.max()
    megabytes = (_resident() - before) / 1e6, images.nbytes / 1e6
    return seconds, f"{megabytes[0]:.0f} / {megabytes[1]:.0f}"


def _set_up(name: str, root: str, cache: str) -> ImageDataModule:
    data = getattr(datamodules, name)(root=root, cache_dir=cache, batch_size=BATCH)
    data.setup("fit")
    return data


def _rates(ours: ImageLoader, rival: Iterable[Any] | None) -> tuple[str, str, str]:
    mine = _rate(ours)
    if rival is None:
        return f"{mine:.0f}", "", ""
    theirs = _rate(rival)
    return f"{mine:.0f}", f"{theirs:.0f}", f"{mine / theirs:.1f}"


def _rate(loader: Iterable[Any]) -> float:
    """Samples a second, after one batch that does not count."""
    count, start = -1, 0.0
    while True:
        for batch in loader:
            if count < 0:
                start, count = time.perf_counter(), 0
                continue
            count += len(batch[0])
            if (passed := time.perf_counter() - start) > SECONDS:
                return count / passed


def _torchvision(pixels: Tensor, labels: Tensor) -> DataLoader:
    """CIFAR10 of torchvision with its usual transforms, on the same pixels."""
    from torchvision import datasets

    class InMemory(datasets.CIFAR10):
        def __init__(self) -> None:
            self.data = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
            self.targets, self.target_transform = labels.tolist(), None
            self.transform = _transforms(32, 4)

    return DataLoader(InMemory(), BATCH, shuffle=True, drop_last=True)


def _torchvision_folder(data: ImageDataModule, root: Path) -> DataLoader | None:
    """ImageFolder of torchvision, where the set is a tree."""
    from torchvision import datasets, transforms

    side = data.image_size
    folder = root / "train" if (root / "train").is_dir() else root
    if set(class_folders(folder)) != set(data.class_names):
        return None
    resize = [transforms.Resize(side), transforms.CenterCrop(side)]
    files = datasets.ImageFolder(folder, _transforms(side, data.crop_padding, *resize))
    return DataLoader(files, BATCH, shuffle=True)


def _transforms(side: int, padding: int, *first: Any) -> Any:
    from torchvision import transforms

    return transforms.Compose(
        [
            *first,
            transforms.RandomCrop(side, padding=padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.25,) * 3),
        ]
    )


def _arguments(name: str) -> set[str]:
    import inspect

    return set(inspect.signature(getattr(datamodules, name).__init__).parameters)


def _resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
