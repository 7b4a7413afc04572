"""Small data sets, made in the real formats."""

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules import CIFAR10, ImageDataModule


@dataclass(kw_only=True, eq=False, repr=False)
class Tiny(ImageDataModule):
    """60 training and 23 test images of 8 x 8 in three classes that differ in brightness."""

    num_classes, in_channels, image_size = 3, 1, 8
    class_names = ("dark", "grey", "light")
    mean, std = (0.5,), (0.3,)

    batch_size: int = 6
    eval_batch_size: int = 7
    crop_padding: int | None = 1
    val_fraction: float = 0.2

    def load(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        count = 60 if split == "train" else 23
        generator = torch.Generator().manual_seed(count)
        labels = torch.arange(count) % 3
        noise = torch.randint(0, 60, (count, 1, 8, 8), generator=generator)
        return (noise + 80 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


def part_of(data: ImageDataModule, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """The images and labels that `setup` has read."""
    found = data._train if split == "train" else data._test
    assert found is not None
    assert isinstance(found[0], Tensor)
    return found[0], found[1]


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
        names = [f"{name}_{i}.png" for i in range(20)]
        content = pickle.dumps(
            {"data": data, "labels": [i % 10 for i in range(20)], "filenames": names}
        )
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


def write_records(
    root: Path, only: Sequence[int] | None = None
) -> dict[int, list[tuple[int, str]]]:
    """48 records, or `only` some, of 14 s in PhysioNet's format; the annotations of each: (sample, symbol).

    MLII holds a bump of 1 mV at each beat, of a width that is the class's own, on a slow drift. As
    in the real ones, record 114 has it second, and 102 and 104 lack it. A beat lies at each edge.
    """
    import wfdb

    from datamodules.mitbih import DS1, DS2, PACED

    root.mkdir(parents=True)
    written = {}
    for number, record in enumerate(only or sorted(DS1 + DS2 + PACED)):
        generator = np.random.default_rng(record)
        length = 14 * 360
        times = np.arange(length) / 360
        kinds = "NNNNLRejAaJSVVEFFf" if record not in PACED else "////ffVVN/////"
        peaks = np.linspace(50, length - 60, len(kinds)).astype(int)
        peaks[1:-1] += generator.integers(-30, 30, len(kinds) - 2)
        shift = int(generator.integers(len(kinds)))
        symbols = [kinds[(i + shift) % len(kinds)] for i in range(len(kinds))]
        mlii = 0.4 * np.sin(2 * np.pi * 0.25 * times + number)
        for peak, symbol in zip(peaks, symbols, strict=True):
            width = {"V": 0.05, "E": 0.05, "/": 0.03, "f": 0.03}.get(symbol, 0.015)
            mlii += np.exp(-0.5 * ((times - peak / 360) / width) ** 2)
        other = generator.normal(0, 0.1, length)
        names = ["MLII", "V1"] if record != 114 else ["V5", "MLII"]
        names = ["V5", "V2"] if record in (102, 104) else names
        signals = np.stack([other, mlii] if names[1] == "MLII" else [mlii, other], axis=1)
        wfdb.wrsamp(str(record), 360, ["mV", "mV"], names, signals, fmt=["212", "212"],
                    adc_gain=[200, 200], baseline=[0, 0], write_dir=str(root))  # fmt: skip
        # rhythm changes and noise are annotations too, but no beats
        noted = sorted([*zip(peaks.tolist(), symbols, strict=True), (20, "+"), (900, "~")])
        wfdb.wrann(str(record), "atr", np.array([s for s, _ in noted]), [s for _, s in noted],
                   write_dir=str(root))  # fmt: skip
        written[record] = [(s, symbol) for s, symbol in noted if symbol not in "+~"]
    return written


LEADS12 = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")


def write_foreign(
    root: Path, rate: int = 257, leads: Sequence[str] = LEADS12, records: int = 10
) -> dict[str, list[tuple[int, str]]]:
    """Records of 20 s as INCART (257 Hz, 12 leads) or SVDB have them; the annotations of each.

    Lead k holds a bump of k + 1 mV at each beat, of a width that is the class's own. Two records
    are of one patient, as their headers say.
    """
    import wfdb

    root.mkdir(parents=True)
    written = {}
    for number in range(1, records + 1):
        kinds = "NNNNVnNANBNrNFNN?NSN"
        peaks = np.linspace(0.4, 19.3, len(kinds)) + 0.01 * (number % 7)
        samples = np.round(peaks * rate).astype(int)
        times, bump = np.arange(20 * rate) / rate, np.zeros(20 * rate)
        for sample, symbol in zip(samples, kinds, strict=True):
            width = 0.05 if symbol in "Vr" else 0.02
            bump += np.exp(-0.5 * ((times - sample / rate) / width) ** 2)
        name = f"I{number:02}"
        wfdb.wrsamp(name, rate, ["mV"] * len(leads), list(leads),
                    np.stack([(k + 1) * bump for k in range(len(leads))], axis=1),
                    fmt=["16"] * len(leads), adc_gain=[300 + k for k in range(len(leads))],
                    baseline=[-7] * len(leads), write_dir=str(root),
                    comments=["<age>: 65", f"patient {(number + 1) // 2}"])  # fmt: skip
        wfdb.wrann(name, "atr", samples, list(kinds), write_dir=str(root))
        written[name] = list(zip(samples.tolist(), kinds, strict=True))
    return written


def write_kaggle(root: Path, rows: int = 40) -> np.ndarray:
    """mitbih_train.csv and mitbih_test.csv with the same rows."""
    generator = np.random.default_rng(2)
    table = generator.random((rows, 188), dtype=np.float32)
    table[:, 187] = np.arange(rows) % 5
    root.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        np.savetxt(root / f"mitbih_{split}.csv", table, "%.18e", ",")
    return table


def write_folder(
    root: Path, per_class: int = 10, names: tuple[str, ...] = ("ant", "bee", "cat")
) -> None:
    """`<class>/<n>.jpg`, 24 x 20, every picture another."""
    generator = np.random.default_rng(len(str(root)))
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((24, 20), Image.Resampling.NEAREST)
            image.save(root / name / f"{number}.jpg")


def write_mini(root: Path, form: str, per_class: int = 6) -> dict[str, np.ndarray]:
    """Mini-ImageNet of 84 x 84 pictures in three of its forms; the pixels by file name."""
    from datamodules.miniimagenet import CLASSES

    generator = np.random.default_rng(4)
    pixels = {}
    for part, names in CLASSES.items():
        images, rows, lines = [], {}, ["filename,label"]
        for name in names:
            for number in range(per_class):
                color = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
                image = Image.fromarray(color).resize((84, 84), Image.Resampling.NEAREST)
                file = f"{name}{number:08}.jpg"
                folder = root / {"tree": name, "flat": "images", "pickle": "."}[form]
                folder.mkdir(parents=True, exist_ok=True)
                pixels[file] = np.asarray(image)
                if form != "pickle":
                    image.save(folder / file, quality=30)
                rows.setdefault(name, []).append(len(images))
                images.append(pixels[file])
                lines.append(f"{file},{name}")
        if form == "flat":
            (root / f"{part}.csv").write_text("\n".join(lines) + "\n")
        elif form == "pickle":
            content = {"image_data": np.stack(images), "class_dict": rows}
            (root / f"mini-imagenet-cache-{part}.pkl").write_bytes(pickle.dumps(content, 2))
    return pixels


def write_mnist(root: Path) -> np.ndarray:
    """MNIST's four files with 40 images for each of training and test; the pixels."""
    import struct

    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(5).integers(0, 256, (80, 28, 28), dtype=np.uint8)
    for part, first in (("train", 0), ("t10k", 40)):
        images = pixels[first : first + 40].tobytes()
        labels = bytes(i % 10 for i in range(40))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">HBBIII", 0, 8, 3, 40, 28, 28) + images
        )
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">HBBI", 0, 8, 1, 40) + labels
        )
    return pixels
