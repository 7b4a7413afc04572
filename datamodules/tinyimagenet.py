"""Tiny ImageNet, as it is distributed."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from torch import Tensor

from .imagefolder import ImageFolder
from .images import check_classes, class_folders, damaged, require
from .pool import NUMBER


@dataclass(eq=False, repr=False)
class TinyImageNet(ImageFolder):
    """Tiny ImageNet (Le and Yang 2015): 200 classes of ImageNet, 500 images each, 64 x 64.

    `root` holds `train/<wnid>/images/*.JPEG`, and `val/images/*.JPEG` with the classes in
    `val/val_annotations.txt`; or `val/<wnid>/`, as many programs rearrange it. The images of
    `test/` have no classes. So `val/` is the test set, and the validation set is a part of every
    class of `train/`.

    Args:
        root: see above.
        image_size: side in pixels; images are resized if it is not 64.

    Raises:
        FileNotFoundError: `root` does not exist, or an image of the list is missing.
        ValueError: a class is missing, or the list is damaged.
    """

    root: str = "data/tiny-imagenet-200"
    _: KW_ONLY
    image_size: int = 64

    @property
    def annotations(self) -> Path:
        """The file with the classes of `val/images`."""
        return self.folder / "val" / "val_annotations.txt"

    @property
    def _is_listed(self) -> bool:
        """Whether the list counts: programs that rearrange `val/` leave it there."""
        val = self.annotations.parent
        return self.annotations.is_file() and ((val / "images").is_dir() or not class_folders(val))

    def files(self) -> tuple[list[str], Tensor, Tensor]:
        """The image files, their classes, and the folder of each: 0 train, 2 val."""
        files, labels, parts = super().files()
        if not self._is_listed:
            return files, labels, parts
        rows = read_annotations(self.annotations)
        remedy = f"{self.annotations.name!r} names them: unpack Tiny ImageNet again"
        check_classes(self.folder / "val", [name for _, name in rows], self.class_names, remedy)
        heldout = [self.annotations.parent / "images" / file for file, _ in rows]
        require(heldout, remedy)
        classes = torch.tensor([self.class_names.index(name) for _, name in rows])
        numbers = torch.full_like(classes, NUMBER["test"])
        return (
            files + list(map(str, heldout)),
            torch.cat([labels, classes]),
            torch.cat([parts, numbers]),
        )

    def _folders(self) -> dict[str, Path]:
        """Folders of classes: `train/`, and `val/` if it was rearranged."""
        found = super()._folders()
        listed = ["val", "test"] if self._is_listed else ["test"]
        return {part: folder for part, folder in found.items() if part not in listed}


def read_annotations(file: Path) -> list[tuple[str, str]]:
    """File name and class of each line of `val_annotations.txt`; a box follows them.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        rows = [line.split("\t") for line in file.read_text().splitlines()]
    except ValueError as error:
        raise damaged(file, error) from error
    for number, row in enumerate(rows, 1):
        if len(row) < 2 or "/" in row[0]:  # a slash could lead to another folder
            raise damaged(file, f"line {number}")
    return [(row[0], row[1]) for row in rows]
