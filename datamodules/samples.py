"""Sets that give samples, (image, label), one by one: read once, then stored as the others are."""

import hashlib
import math
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from .cache import Create, home, prepare, stamp
from .options import check_range
from .pool import NUMBER, Pool, first_equal
from .preprocess import Preparation
from .workers import cores, prepared

TWICE = 16  # samples of a part that are read twice
GREY = {"L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F", "1"}  # modes of PIL


class Shape(NamedTuple):
    """Of an image as its set gives it."""

    channels: int
    height: int
    width: int


class Source(NamedTuple):
    """A set that gives samples.

    Attributes:
        title: its name.
        parts: the samples of `train`, and of `val` and `test` if the set has these parts: each has
            a length and gives (image, label) by number.
        names: of the classes; None if the set does not tell.
        key: what the samples depend on, as `repr` shows it.
    """

    title: str
    parts: Mapping[str, Any]
    names: Sequence[str] | None
    key: Any


@dataclass(kw_only=True, eq=False, repr=False)
class Samples(Pool):
    """Samples that a subclass gives one by one, in one part or several.

    An image is one of PIL, a tensor (C, H, W), or an array (H, W, C) or (H, W); in uint8, or in
    floats in [0, 1], which are rounded to 256 steps. A label is the number of a class.

    Args:
        image_size: side in pixels; null takes that of the first image, and refuses others.
        channels: 1 makes all images grey, 3 gives all three channels; null takes those of the first
            image, and refuses others except grey ones among coloured.
        cache_limit: size of the largest set in GB; a larger one is refused.

    Raises:
        ValueError: a sample is something else, or another one when it is read again.
    """

    image_size: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    channels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, 512, channels=self.channels or 1)
        source = self.source()
        self.title = source.title
        self._counts = {part: len(samples) for part, samples in source.parts.items()}
        if empty := [part for part, count in self._counts.items() if not count]:
            raise ValueError(f"{self.title}: the part {empty[0]!r} has no samples")
        channels, height, width = self._sample(source, "train", 0)[1]
        self._any_size, self._any_channels = self.image_size is not None, self.channels is not None
        if height != width and not self._any_size:
            raise ValueError(
                f"{self.title}: the first image has {width} x {height} pixels, which is no square: "
                "choose a side with --data.image_size"
            )
        self._side = self.image_size or height
        self.image_size = self._side  # pyright: ignore[reportIncompatibleVariableOverride]
        self.in_channels = self.channels or channels
        if self.in_channels != len(self.mean):  # then ImageNet's of grey
            self.mean, self.std = ((sum(each) / 3,) for each in (Pool.mean, Pool.std))
        self._arrays = self._prepared(source)
        names = source.names or [str(n) for n in range(int(self._arrays["labels"].max()) + 1)]
        self.class_names, self.num_classes = tuple(names), len(names)

    @property
    def description(self) -> dict[str, Any]:
        """As of other sets, under the name of this one."""
        return {**super().description, "name": self.title}

    @abstractmethod
    def source(self) -> Source:
        """Open the set."""

    def stamp(self, path: Path) -> Any:
        """Name, size and time of a file, or of the files in a folder; None if there are none."""
        path, own = path.expanduser(), home(self.cache_dir)
        within, seen = [path], set[Path]()
        for folder, folders, names in os.walk(path, followlinks=True):
            here = Path(folder)
            if own in (here, *here.parents) or here.resolve() in seen:  # links may lead in circles
                folders.clear()
                continue
            seen.add(here.resolve())
            within += [here / name for name in names]
        files = sorted(file for file in within if os.path.isfile(file))  # of any text
        return stamp(path.parent, files) if files else None

    def read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, classes, the part of each image, and the position of its first copy."""
        parts = [NUMBER[part] for part, count in self._counts.items() for _ in range(count)]
        arrays = self._arrays
        return arrays["images"], arrays["labels"], torch.tensor(parts), arrays["first"]

    def describe(self, index: int) -> dict[str, Any]:
        """The part and the number of a sample."""
        part, number = self._place(index)
        return {"sample": f"{part} {number}"}

    def _prepared(self, source: Source) -> dict[str, Tensor]:
        """The images, labels and first copies, as they are stored."""
        total = sum(self._counts.values())
        shape = (total, self.in_channels, self._side, self._side)
        if (size := math.prod(shape) / 1e9) > self.cache_limit:
            raise ValueError(
                f"{self.title} needs {size:.2g} GB of prepared images, more than "
                f"--data.cache_limit {self.cache_limit:g}: raise it, or lower --data.image_size"
            )

        def build(create: Create) -> None:
            rank_zero_info(f"{self.title}: reading {total} samples")
            images, labels = create("images", shape, np.uint8), create("labels", (total,), np.int64)
            workers = cores() if self.workers is None else self.workers
            processes = min(workers, total // 1000)  # for a few samples they only cost time
            first = 0
            for pixels, found in prepared(
                partial(self._read, source), torch.arange(total).split(128), processes
            ):
                last = first + len(found)
                images[first:last], labels[first:last] = pixels, found
                first = last
            digests = (hashlib.sha256(image).digest() for image in images)
            create("first", (total,), np.int64)[:] = first_equal(digests)

        key = (source.key, self._counts, shape, source.names, self._any_size, self._any_channels)
        return prepare(self.cache_dir, self.title, key, build)

    def _read(self, source: Source, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels and labels, prepared as `predict` prepares images of one's own."""
        prepare = Preparation(
            name=self.title,
            class_names=[],
            dims=2,
            channels=self.in_channels,
            size=self._side,
            mean=list(self.mean),
            std=list(self.std),
        )
        total, images, labels = sum(self._counts.values()), [], []

        def pixels(image: Any) -> Tensor:
            found = prepare.numbers(image)[0]
            return (found * 255).round().byte() if found.is_floating_point() else found

        for position in positions.tolist():
            part, number = self._place(position)
            (image, label), shape = self._sample(source, part, number)
            self._check(shape, name := self._name(part, number))
            try:
                found, label = pixels(image), index(label)
                again = pixels(source.parts[part][number][0]) if number < TWICE else found
            except (OSError, SyntaxError, TypeError, ValueError) as error:
                raise ValueError(f"{name}: {error}") from error
            if not torch.equal(found, again):
                raise ValueError(
                    f"{name} is another one when it is read again, but all are read once: leave "
                    "out what is random, and give it to --data.augment"
                )
            if not 0 <= label < len(source.names or range(total)):
                raise ValueError(f"{name} has the label {label}, which is no class")
            images.append(found)
            labels.append(label)
        return torch.stack(images), torch.tensor(labels)

    def _place(self, position: int) -> tuple[str, int]:
        """The part of a sample, and its number there."""
        for part, count in self._counts.items():
            if position < count:
                return part, position
            position -= count
        raise IndexError(position)

    def _sample(self, source: Source, part: str, number: int) -> tuple[tuple[Any, Any], Shape]:
        """A sample, and the shape of its image."""
        name = self._name(part, number)
        try:
            sample = source.parts[part][number]
        except Exception as error:  # any code may have raised it
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"{name} cannot be read ({why})") from error
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise ValueError(f"{name} is {type(sample).__name__}, not a pair (image, label)")
        image, label = sample
        if hasattr(image, "getexif"):  # an image of PIL
            return (image, label), Shape(1 if image.mode in GREY else 3, image.height, image.width)
        sides: tuple[int, ...] = tuple(getattr(image, "shape", ()))
        if len(sides) == 3 and not isinstance(image, Tensor):
            sides = sides[2], *sides[:2]
        if len(sides) in (2, 3):
            channels = sides[0] if len(sides) == 3 else 1
            return (image, label), Shape(3 if channels == 4 else channels, *sides[-2:])
        raise ValueError(
            f"{name} has {type(image).__name__} {sides or ''} as its image: it must be one of PIL, "
            "a tensor (C, H, W) or an array (H, W, C)"
        )

    def _check(self, shape: Shape, name: str) -> None:
        """Raise a ValueError if an image has not the shape of the first one."""
        channels, height, width = shape
        if not self._any_size and (height, width) != (self._side, self._side):
            raise ValueError(
                f"{name} has {width} x {height} pixels, the first {self._side} x "
                f"{self._side}: choose a side for all with --data.image_size"
            )
        grey = channels == 1 and self.in_channels == 3  # is in all three channels, as in folders
        if not (self._any_channels or grey or channels == self.in_channels):
            raise ValueError(
                f"{name} has {channels} channels, the first {self.in_channels}: choose 1 or 3 for "
                "all with --data.channels"
            )

    def _name(self, part: str, number: int) -> str:
        return f"{self.title}: sample {number} of {part}"
