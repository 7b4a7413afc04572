"""Folders of classes: one pool of images, or folders that divide it."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from .cache import Create, prepare, stamp
from .images import Images, class_folders, header, list_images, some
from .pool import NUMBER, PARTS, Pool, first_equal
from .workers import cores

LOOKED = 64  # files whose kind is looked at


@dataclass(eq=False, repr=False)
class ImageFolder(Pool):
    """Any folder of classes, `<class>/<image>`: each class is a folder of image files.

    `root` holds the classes themselves (a pool), or `train/` and also `val/`, `test/` or both, each
    of which holds the classes. A part of every class of a pool is the test set, and a part of the
    rest is the validation set. If there is one folder besides `train/`, as in ImageNet, it is the
    test set, and a part of `train/` is the validation set.

    Files with the same content are never in two splits. In a pool, all copies go to one split. If
    the folders are the splits, copies are left out: of `train/` if they are in `val/` or `test/`,
    and of `val/` if they are in `test/`. A run logs how many copies there are.

    Images are resized (shorter side), cut to a square in the middle, and stored in `cache_dir`.
    A set that would need more than `cache_limit` there is read from its files in every epoch.

    Args:
        root: see above.
        image_size: side in pixels.
        test_fraction: part of each class of a pool that becomes the test set.
        cache_limit: size of the largest prepared set in GB; 0 stores no images.

    Raises:
        FileNotFoundError: `root` does not exist.
        ValueError: it holds no classes, or an option is out of its range.
    """

    root: str = "data"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.folder = Path(self.root).expanduser()

    # found when first needed: the message of a wrong folder is clearer outside the constructor
    @cached_property
    def class_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The names of the class folders, sorted."""
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"no folder {str(self.folder)!r}: give the folder of the images with "
                "--data.root DIR"
            )
        names = class_folders(next(iter(self._folders().values())))
        if len(names) < 2:
            raise ValueError(
                f"{str(self.folder)!r} holds fewer than two class folders ({some(names)}): give "
                "the folder that holds a folder of images for each class with --data.root DIR"
            )
        return tuple(names)

    @property
    def num_classes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of class folders."""
        return len(self.class_names)

    def files(self) -> tuple[list[str], Tensor, Tensor]:
        """The image files, their classes, and the folder of each: 0 train, 1 val, 2 test."""
        files, labels, parts, skipped, names = [], [], [], [], self.class_names
        for part, folder in self._folders().items():
            found = list_images(folder, names)
            files += found.files
            labels += found.labels
            parts += [NUMBER[part]] * len(found.files)
            skipped += found.skipped
        if skipped:
            kinds = Counter(Path(file).suffix or "no suffix" for file in skipped).most_common(4)
            rank_zero_info(
                f"{type(self).__name__}: {len(skipped)} files are skipped, as they are no images "
                f"({', '.join(f'{count} {kind}' for kind, count in kinds)}), such as {skipped[0]!r}"
            )
        return files, torch.tensor(labels), torch.tensor(parts)

    def read(self) -> tuple[Tensor | Images, Tensor, Tensor, Tensor]:
        """Images, classes, the folder of each image, and the position of its first copy."""
        self._files, labels, parts = self.files()
        side, files = self.image_size, self._files
        shape = len(files), 3, side, side
        self._tell(files[:: len(files) // LOOKED + 1])
        fits = self.random_resized_crop is None and math.prod(shape) <= self.cache_limit * 1e9

        place, status = stamp(self.folder, files)

        def build(create: Create) -> None:
            sizes = [size for _, size, _ in status]
            create("first", (len(files),), np.int64)[:] = first_copies(files, sizes)
            if fits:
                Images(files, side).decode_into(create("images", shape, np.uint8), self.workers)

        key = (place, status, side if fits else None)
        arrays = prepare(self.cache_dir, type(self).__name__, key, build)
        return arrays.get("images", Images(files, side)), labels, parts, arrays["first"]

    def describe(self, index: int) -> dict[str, Any]:
        """The file of an image."""
        return {"file": str(Path(self._files[index]).relative_to(self.folder))}

    def _tell(self, files: list[str]) -> None:
        """Log what happens to images of more than 8 bits, and to small ones, among `files`."""
        headers, name = [found for file in files if (found := header(file))], type(self).__name__
        if deep := sum(each.deep for each in headers):
            rank_zero_info(
                f"{name}: {deep} of {len(files)} files looked at are grey images of more than 8 "
                "bits: each is scaled by the smallest of 1 (floats), 255, 4095 and 65535 that no "
                "value exceeds; convert them to 8 bits to choose another"
            )
        sides = [each.side for each in headers if each.side < self.image_size]
        if sides:
            rank_zero_info(
                f"{name}: {len(sides)} of {len(files)} files looked at are smaller than "
                f"{self.image_size} pixels, down to {min(sides)}, and are enlarged; choose the "
                "side with --data.image_size"
            )

    def _folders(self) -> dict[str, Path]:
        """The folders of the splits; `root` alone for a pool, of which a class may be `train`."""
        return self._splits

    @cached_property
    def _splits(self) -> dict[str, Path]:
        there = class_folders(self.folder)
        found = [name for name in there if class_folders(self.folder / name)]
        if not found and there and all(any(n.lower() in p for p in PARTS.values()) for n in there):
            raise ValueError(
                f"{some(there)} in {str(self.folder)!r} hold images themselves: put them into a "
                "folder for each class, train/<class>/*"
            )
        same = {part: [n for n in found if n.lower() in known] for part, known in PARTS.items()}
        if not same["train"]:
            self._check_pool(there, found)
            return {"train": self.folder}
        if several := [" and ".join(names) for names in same.values() if len(names) > 1]:
            raise ValueError(
                f"{str(self.folder)!r} holds {', '.join(several)}, which mean the same split: "
                "move one of them out"
            )
        splits = {part: names[0] for part, names in same.items() if names}
        if other := sorted({*found} - {*splits.values()}):
            rank_zero_info(
                f"{type(self).__name__}: {some(other)} in {str(self.folder)!r} are left out, as "
                f"they are no splits, beside {some(list(splits.values()))}"
            )
        return {part: self.folder / name for part, name in splits.items()}

    def _check_pool(self, there: list[str], found: list[str]) -> None:
        """Refuse folders of splits as classes, and tell of folders that may be such."""
        if not there or there != found:
            return
        if all(any(n.lower() in p for p in PARTS.values()) for n in there):
            raise ValueError(
                f"{some(there)} in {str(self.folder)!r} are splits, and there is none to train on: "
                "add train/<class>/*"
            )
        inside = {tuple(class_folders(self.folder / name)) for name in there}
        if len(there) > 1 and len(inside) == 1 and len(min(inside)) > 1:
            rank_zero_warn(
                f"{some(there)} in {str(self.folder)!r} are taken for classes, but hold the same "
                f"folders ({some(list(min(inside)))}): if they are splits, name them train and test"
            )


@dataclass(eq=False, repr=False)
class Silkworm(ImageFolder):
    """Photos of silkworms, a folder for each disease and one for healthy ones; as `ImageFolder`.

    The data set of Feng et al. 2024 is not public; any folder of classes can take its role.
    """

    root: str = "data/silkworm"
    _: KW_ONLY
    image_size: int = 128


def first_copies(files: Sequence[str], sizes: Sequence[int]) -> list[int]:
    """For each file, the position of the first one with the same content, often its own.

    Files of one size are compared by their last 4 kB, and only where these agree by all.
    """
    contents: list[Hashable] = list(sizes)
    for length in (4096, None):
        several = Counter(contents)
        doubtful = [position for position, each in enumerate(contents) if several[each] > 1]
        parts = [doubtful[first : first + 1000] for first in range(0, len(doubtful), 1000)]
        with ThreadPoolExecutor(2 * cores()) as pool:  # they wait for the disk
            digests = pool.map(partial(_ends, files, length), parts)
            for position, digest in zip(doubtful, chain.from_iterable(digests), strict=True):
                contents[position] = digest
    return first_equal(contents)


def _ends(files: Sequence[str], length: int | None, positions: list[int]) -> list[bytes]:
    """The digest of the last `length` bytes of some files, or of all their bytes."""
    digests = []
    for position in positions:
        with open(files[position], "rb") as opened:
            if length:
                opened.seek(max(0, opened.seek(0, os.SEEK_END) - length))
            digests.append(hashlib.sha256(opened.read()).digest())
    return digests
