"""Images that text files list, a path and a class in each line."""

import os
import re
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .imagefolder import ImageFolder
from .images import damaged, some
from .pool import NUMBER


@dataclass(eq=False, repr=False)
class ImageList(ImageFolder):
    """Images that lists name, such as ImageNet-LT (Liu et al. 2019): a line is `path class`.

    Without `val` a part of each class of `train` is the validation set, and without `test` a part
    of each class the test set; if `val` alone is given it is the test set, as in `ImageFolder`.
    Classes are whole numbers from 0, or names.

    Args:
        root: the folder that the paths start from.
        train: the list of the training images; its path, too, starts from `root`.
        val: the list of the validation images.
        test: the list of the test images.

    Raises:
        FileNotFoundError: a list or an image is missing.
        ValueError: a line of a list cannot be read, leads out of `root`, or has a class that no
            training image has.
    """

    root: str = "data"
    _: KW_ONLY
    train: str = "train.txt"
    val: str | None = None
    test: str | None = None

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The numbers from 0 to the largest, or the names, sorted."""
        names = {name for rows in self._rows.values() for _, name in rows}
        if not all(name.isdecimal() for name in names):
            return tuple(sorted(names))
        largest = max(map(int, names))
        if largest >= sum(map(len, self._rows.values())):
            raise ValueError(
                f"the lists have a class {largest}, but fewer images: classes are numbers from 0"
            )
        return tuple(str(number) for number in range(largest + 1))

    def files(self) -> tuple[list[str], Tensor, Tensor]:
        """The image files, their classes, and the list of each: 0 train, 1 val, 2 test."""
        known = {name: number for number, name in enumerate(self.class_names)}
        files, labels, parts = [], [], []
        for part, rows in self._rows.items():
            files += [str(self.folder / path) for path, _ in rows]
            labels += [known[name] for _, name in rows]
            parts += [NUMBER[part]] * len(rows)
        missing = [file for file in files if not os.path.isfile(file)]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(files)} images of the lists are missing: {some(missing)}. "
                f"Paths start from --data.root, which is {self.root!r}"
            )
        trained = {name for _, name in self._rows["train"]}
        if unknown := {name for rows in self._rows.values() for _, name in rows} - trained:
            raise ValueError(f"no image of {self.train!r} has the classes {some(sorted(unknown))}")
        return files, torch.tensor(labels), torch.tensor(parts)

    @cached_property
    def _rows(self) -> dict[str, list[tuple[str, str]]]:
        """Path and class of each image, by part."""
        lists = {"train": self.train, "val": self.val, "test": self.test}
        return {part: read_lines(self.folder / name) for part, name in lists.items() if name}


def read_lines(file: Path) -> list[tuple[str, str]]:
    """Path and class of each line of a list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line holds something else.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"no list {str(file)!r}: name the lists with --data.train, --data.val and --data.test; "
            "their paths start from --data.root"
        )
    try:
        rows = [
            line.rsplit(maxsplit=1)
            for line in file.read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        ]
    except ValueError as error:
        raise damaged(file, error, "give a text file") from error
    for number, row in enumerate(rows, 1):
        path = Path(row[0])
        inside = not path.is_absolute() and ".." not in path.parts
        if len(row) != 2 or not inside or re.fullmatch(r"-\d+", row[1]):
            line = " ".join(row)[:80]
            remedy = "a line is `path class`, with a path inside --data.root"
            raise damaged(file, f"line {number} is {line!r}", remedy)
    if not rows:
        raise damaged(file, "it is empty", "a line is `path class`")
    return [(path.strip(), str(int(c)) if c.isdecimal() else c) for path, c in rows]
