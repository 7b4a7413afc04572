"""What the data sets that torchvision downloads have in common."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .base import ImageDataModule, Part
from .cache import Create, prepare, stamp
from .images import Images, list_images


@dataclass(eq=False, repr=False)
class Official(ImageDataModule):
    """A set of the same name in torchvision: its download, or the same images as class folders.

    Args:
        root: a folder that holds torchvision's download, or `train/<class>/*.png` and
            `test/<class>/*.png`.
        download: fetch what is missing of the download, unless there are class folders.
    """

    root: str = "data"
    download: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.folder = Path(self.root).expanduser()
        self._files: dict[Part, Sequence[str]] = {}

    @abstractmethod
    def archive(self) -> str:
        """The folder of the download within `root`."""

    @property
    def in_folders(self) -> bool:
        """Whether `root` holds folders of this set's classes."""
        return any((self.folder / "train" / name).is_dir() for name in self.class_names)

    def prepare_data(self) -> None:
        """Download what is missing, if `download` is set."""
        if self.download and not self.in_folders:
            self._official("train", download=True)
        super().prepare_data()

    def load(self, split: Part) -> tuple[Tensor, Tensor]:
        """Read one part, in the form that `root` holds."""
        labels: list[int] = []
        if self.in_folders:
            files, labels, _ = list_images(self.folder / split, self.class_names)
            self._files[split] = files
        elif (self.folder / self.archive()).is_dir():
            files = sorted((self.folder / self.archive()).iterdir())
        else:
            raise FileNotFoundError(
                f"no {type(self).__name__} in {str(self.folder)!r}, which should hold "
                f"{self.archive()}/ or train/<class>/: give the right folder with --data.root DIR, "
                "or add --data.download true"
            )

        def build(create: Create) -> None:
            if labels:
                pixels = np.empty((len(files), 3, self.image_size, self.image_size), np.uint8)
                Images(files, self.image_size).decode_into(pixels, self.workers, resize=False)
                images = grey(pixels) if self.in_channels == 1 else pixels
                targets = np.array(labels)
            else:
                images, targets = self._official(split)
            create("images", images.shape, np.uint8)[:] = images
            create("labels", targets.shape, np.int64)[:] = targets

        name, key = f"{type(self).__name__}-{split}", (*stamp(self.folder, files), "luminance")
        arrays = prepare(self.cache_dir, name, key, build)
        return arrays["images"], arrays["labels"]

    def describe(self, index: int) -> dict[str, Any]:
        """The file of an image in a class folder."""
        return {"file": self.name_of("test", index)} if "test" in self._files else {}

    def name_of(self, part: Part, index: int) -> str:
        """The file of an image in a class folder, or its part and number."""
        if part not in self._files:
            return f"{part} {index}"
        return str(Path(self._files[part][index]).relative_to(self.folder))

    def _official(self, split: Part, *, download: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Images (M, C, H, W) and labels (M,) of torchvision's class."""
        from torchvision import datasets

        name, folder = type(self).__name__, str(self.folder / self.archive())
        try:
            found = getattr(datasets, name)(str(self.folder), split == "train", download=download)
            images, labels = np.asarray(found.data), np.asarray(found.targets)
            images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
            if len(images) != len(labels) or set(images.shape[2:]) != {self.image_size}:
                raise ValueError(f"{len(labels)} labels of images {images.shape}")
            if not 0 <= labels.min() <= labels.max() < self.num_classes:
                raise ValueError(f"a label is not in the range 0 to {self.num_classes - 1}")
        except Exception as error:
            raise RuntimeError(
                f"{name} could not be downloaded to {folder!r} ({error}): check the connection"
                if download
                else f"{name} in {folder!r} is damaged ({error}): delete it and add "
                "--data.download true"
            ) from error
        return images, labels


def grey(pixels: np.ndarray) -> np.ndarray:
    """The luminance of colours (M, 3, H, W), as Pillow rounds it: ITU-R 601-2."""
    weights = np.array([19595, 38470, 7471], np.uint32)
    sums = np.einsum("c,mchw->mhw", weights, pixels, dtype=np.uint32)
    return ((sums + 2**15) >> 16).astype(np.uint8)[:, None]
