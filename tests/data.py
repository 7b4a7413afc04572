"""Small data sets, made in the real formats."""

import hashlib
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules import CIFAR10, ImageDataModule


class Tiny(ImageDataModule):
    """60 training and 23 test images of 8 x 8 in three classes that differ in brightness."""

    num_classes, in_channels, image_size = 3, 1, 8
    class_names = ("dark", "grey", "light")
    mean, std = (0.5,), (0.3,)

    def __init__(self, batch_size: int = 6, crop_padding: int = 1, **more: Any) -> None:
        super().__init__(batch_size, 7, crop_padding=crop_padding, val_fraction=0.2, **more)

    def load(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        count = 60 if split == "train" else 23
        generator = torch.Generator().manual_seed(count)
        labels = torch.arange(count) % 3
        noise = torch.randint(0, 60, (count, 1, 8, 8), generator=generator)
        return (noise + 80 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


def write_tree(root: Path, per_class: int = 4, test_per_class: int = 3) -> None:
    """CIFAR-10 as <split>/<class>/<n>.png, lossless."""
    generator = np.random.default_rng(0)
    for split, count in (("train", per_class), ("test", test_per_class)):
        for label, name in enumerate(CIFAR10.class_names):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 60, (32, 32, 3), dtype=np.uint8) + 19 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


def write_official(root: Path, monkeypatch: Any) -> np.ndarray:
    """CIFAR-10's python archive with 20 images a file, and torchvision told its checksums."""
    from torchvision import datasets

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    sums, images = {}, []
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
        images.append(data)
        content = pickle.dumps({"data": data, "labels": [i % 10 for i in range(20)]})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    meta = pickle.dumps({"label_names": list(CIFAR10.class_names)})
    (folder / "batches.meta").write_bytes(meta)
    patched = {
        "train_list": [[name, sums[name]] for name in sums if name != "test_batch"],
        "test_list": [["test_batch", sums["test_batch"]]],
        "meta": {"filename": "batches.meta", "key": "label_names",
                 "md5": hashlib.md5(meta).hexdigest()},
    }  # fmt: skip
    for name, value in patched.items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    return np.concatenate(images)
