"""Folders of classes: a pool of images, or one split by its maker, as ImageNet is."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from .base import Data, ImageDataModule, Split, stratified_split
from .cache import Create, prepare, stamp
from .images import Images, class_folders, list_images, some

_PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
_NUMBER = {"train": 0, "val": 1, "test": 2}
LEFT_OUT = -1


class ImageFolder(ImageDataModule):
    """Any folder of classes, `<class>/<image>`, each class a folder of image files.

    `root` holds the classes, or `train/`, and `val/` or `test/` or both, which hold them. Of a
    single pool a part of every class is tested on and a part of the rest validated on. Where one
    folder besides `train/` is there, as in ImageNet, it is the test set, and validation a part of
    `train/`. Files with the same content are never in two splits: in a pool they stay together; of
    splits made by others, training loses what is in `val/` or `test/`, and `val/` what is in
    `test/`. Either is told.

    Images are resized (shorter side) and cut in the middle to a square once, and kept in
    `cache_dir`; a set that would take more than `cache_limit` there is read from its files.

    Args:
        root: see above.
        image_size: side in pixels.
        test_fraction: part of each class of a pool that is tested on.
        crop_padding: pixels of zero padding before the random crop; by default an eighth of the
            side.
        cache_limit: largest prepared set in GB; 0 reads every image from its file each time.
        common: see `ImageDataModule`.

    Raises:
        FileNotFoundError: `root` is not there.
        ValueError: it holds no classes, or a number is out of its range.
    """

    in_channels = 3
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: str = "data",
        image_size: int = 224,
        test_fraction: float = 0.2,
        crop_padding: int | None = None,
        cache_limit: float = 20.0,
        **common: Any,
    ) -> None:
        padding = image_size // 8 if crop_padding is None else crop_padding
        super().__init__(crop_padding=padding, **common)
        if image_size < 8:
            raise ValueError(f"image_size must be >= 8, got {image_size}")
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}")
        self.root, self.image_size = Path(root).expanduser(), image_size
        self.test_fraction, self.cache_limit = test_fraction, cache_limit
        self._pool: Data | None = None

    # found when they are asked for, which tells a wrong folder better than a failed construction
    @cached_property
    def class_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The folders' names, in order."""
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"no folder {str(self.root)!r}: give that of the images with --data.root DIR"
            )
        names = class_folders(next(iter(self._folders().values())))
        if len(names) < 2:
            raise ValueError(
                f"{str(self.root)!r} holds {len(names)} class folder(s) ({some(names)}): give the "
                "folder that holds a folder of images for each class with --data.root DIR"
            )
        return tuple(names)

    @property
    def num_classes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Their number."""
        return len(self.class_names)

    def files(self) -> tuple[list[Path], Tensor, Tensor]:
        """The image files, their classes, and the part each came in: 0 train, 1 val, 2 test."""
        files, labels, parts, names = [], [], [], self.class_names
        for part, folder in self._folders().items():
            found, classes = list_images(folder, names)
            files += found
            labels += classes
            parts += [_NUMBER[part]] * len(found)
        return files, torch.tensor(labels), torch.tensor(parts)

    def read(self) -> tuple[Tensor | Images, Tensor, Tensor, Tensor]:
        """Images, classes, the part each came in, and the first copy of each."""
        self._files, labels, parts = self.files()
        images, first = self._images(self._files)
        return images, labels, parts, first

    def divide(self, labels: Tensor, parts: Tensor, first: Tensor) -> Tensor:
        """The split of each image, from its class, the part it came in, and its first copy."""
        heldout = parts.unique().tolist()[1:]
        if len(heldout) == 2:
            return keep_apart(parts, first)
        if heldout:
            parts = keep_apart(torch.where(parts > 0, 2, 0), first)
        else:
            test = self._some_of_each(labels, parts == 0, first, self.test_fraction)
            parts = torch.where(test, 2, 0)
        val = self._some_of_each(labels, parts == 0, first, self.val_fraction)
        return torch.where(val, 1, parts)

    def load(self, split: Literal["train", "test"]) -> Data:
        """All images, of whatever split, and their classes."""
        if self._pool is None:
            images, labels, parts, first = self.read()
            self._splits = self.divide(labels, parts, first)
            self._report(labels, first)
            self._pool = images, labels
        return self._pool

    def choose(self, split: Split, labels: Tensor) -> Tensor:
        """The images that :meth:`divide` put there."""
        return (self._splits == _NUMBER[split]).nonzero().flatten()

    def describe(self, index: int) -> dict[str, Any]:
        """The file."""
        return {"file": str(self._files[index].relative_to(self.root))}

    def _folders(self) -> dict[str, Path]:
        """The parts that are there; a class may be called `train`, but holds images then."""
        parts = {
            part: self.root / name
            for part, known in _PARTS.items()
            for name in class_folders(self.root)
            if name.lower() in known and class_folders(self.root / name)
        }
        return parts if "train" in parts else {"train": self.root}

    def _images(self, files: list[Path]) -> tuple[Tensor | Images, Tensor]:
        side = self.image_size
        shape = (len(files), 3, side, side)
        fits = np.prod(shape) <= self.cache_limit * 1e9

        def build(create: Create) -> dict[str, Any]:
            create("first", (len(files),), np.int64)[:] = first_copies(files)
            if fits:
                Images(files, side).decode_into(create("images", shape, np.uint8))
            return {}

        key = (str(self.root.resolve()), stamp(self.root, files), side if fits else None)
        arrays = prepare(self.cache_dir, type(self).__name__, key, build).arrays
        return arrays.get("images", Images(files, side)), arrays["first"]

    def _some_of_each(self, labels: Tensor, among: Tensor, first: Tensor, part: float) -> Tensor:
        """Mask of `part` of each class in the mask `among`; copies go where their first goes."""
        candidates = first[among].unique()
        _, chosen = stratified_split(labels[candidates], part, self.split_seed)
        return torch.isin(first, candidates[chosen]) & among

    def _report(self, labels: Tensor, first: Tensor) -> None:
        copies = (first != torch.arange(len(first))).nonzero().flatten()
        if len(copies):
            dropped = int((self._splits == LEFT_OUT).sum())
            contrary = int((labels[copies] != labels[first[copies]]).sum())
            name = type(self).__name__
            rank_zero_info(
                f"{name}: {len(copies)} of {len(first)} images are copies of another, "
                f"such as {self.describe(int(copies[0]))['file']!r}: {dropped} images left out, as "
                "their like is in a held-out split, all others in the split of their like; "
                f"{contrary} copies have another class than their like"
            )


class Silkworm(ImageFolder):
    """Photos of silkworms, a folder for each disease and one for healthy ones; as `ImageFolder`.

    The set of Feng et al. 2024 is not public; any folder of classes serves.
    """

    def __init__(self, root: str = "data/silkworm", image_size: int = 128, **common: Any) -> None:
        super().__init__(root, image_size, **common)


def keep_apart(splits: Tensor, first: Tensor) -> Tensor:
    """Leave out images whose like is in a later split: test wins over val, val over train."""
    last = torch.full_like(splits, LEFT_OUT).scatter_reduce(0, first, splits, "amax")
    return torch.where(last[first] == splits, splits, LEFT_OUT)


def first_copies(files: Sequence[Path]) -> list[int]:
    """For each file the position of the first one with the same content, often its own."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for position, file in enumerate(files):
        by_size[file.stat().st_size].append(position)
    first = list(range(len(files)))
    for positions in by_size.values():
        if len(positions) > 1:
            known: dict[bytes, int] = {}
            for position in positions:
                digest = hashlib.sha256(files[position].read_bytes()).digest()
                first[position] = known.setdefault(digest, position)
    return first
