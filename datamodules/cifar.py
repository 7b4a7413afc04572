"""CIFAR-10 and CIFAR-100, from torchvision's download or from class folders of PNG files."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .base import ImageDataModule

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp"}


class CIFAR10(ImageDataModule):
    """CIFAR-10: 32 x 32 colour images of 10 classes (Krizhevsky 2009).

    Args:
        root: a folder that holds torchvision's download (`cifar-10-batches-py`), or
            `train/<class>/*.png` and `test/<class>/*.png`.
        download: fetch the official archive into `root` where neither is there.
        batch_size: training images a step and process.
        eval_batch_size: images a step and process in validation, test and prediction.
        val_fraction: part of the training images that becomes the validation set.
        split_seed: seed of that split.
        seed: of order and augmentation; by default the run's own.
        crop_padding: pixels of zero padding before the random crop; 0 crops nothing.
        flip: mirror half of the training images.
    """

    num_classes = 10
    in_channels = 3
    image_size = 32
    class_names = ("airplane", "automobile", "bird", "cat", "deer",
                   "dog", "frog", "horse", "ship", "truck")  # fmt: skip
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    archive = "cifar-10-batches-py"

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        seed: int | None = None,
        crop_padding: int = 4,
        flip: bool = True,
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, val_fraction, split_seed, seed, crop_padding, flip
        )
        self.root, self.download = Path(root).expanduser(), download

    def prepare_data(self) -> None:
        """Download the archive where that was asked for and nothing is there yet."""
        if self.download and not self._has_folders() and not self._has_archive():
            self._official("train", download=True)
        super().prepare_data()

    def load(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Read one split from whichever form `root` holds."""
        if self._has_folders():
            return read_class_folders(self.root / split, self.class_names, self.image_size)
        if not self._has_archive():
            raise FileNotFoundError(
                f"no {type(self).__name__} in {str(self.root)!r}: neither {self.archive}/ nor "
                "train/<class>/ is there. Give its folder with --data.root DIR, or add "
                "--data.download true to fetch it"
            )
        data = self._official(split, download=False)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(data.targets, dtype=torch.int64)

    def _has_folders(self) -> bool:
        return (self.root / "train").is_dir()

    def _has_archive(self) -> bool:
        return (self.root / self.archive).is_dir()

    def _official(self, split: str, *, download: bool):
        from torchvision import datasets

        name = type(self).__name__
        try:
            return getattr(datasets, name)(str(self.root), split == "train", download=download)
        except Exception as error:
            remedy = (
                "check the connection" if download else "delete it and add --data.download true"
            )
            raise RuntimeError(
                f"{name} in {str(self.root / self.archive)!r} cannot be had ({error}); {remedy}"
            ) from error


class CIFAR100(CIFAR10):
    """CIFAR-100: 32 x 32 colour images of 100 classes (Krizhevsky 2009); arguments as CIFAR10."""

    num_classes = 100
    class_names = tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge
        bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud
        cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox
        girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
        maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
        pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
        road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
        streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
        trout tulip turtle wardrobe whale willow_tree wolf woman worm
        """.split()  # noqa: SIM905
    )
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    archive = "cifar-100-python"


def read_class_folders(
    folder: Path, class_names: tuple[str, ...], side: int
) -> tuple[Tensor, Tensor]:
    """Read `folder/<class>/<image>` as RGB: images (M, 3, side, side) in uint8, and labels (M,).

    Raises:
        FileNotFoundError: `folder` is not there.
        ValueError: the class folders are not `class_names`, one is empty, or an image is
            unreadable or of another size.
    """
    import numpy as np
    from PIL import Image

    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}; it should hold one folder a class")
    found = {path.name for path in folder.iterdir() if path.is_dir()}
    if found != set(class_names):
        missing, extra = sorted(set(class_names) - found), sorted(found - set(class_names))
        raise ValueError(
            f"{str(folder)!r} holds {len(found)} class folders, not the {len(class_names)} expected"
            f" ones: missing {_some(missing)}, unexpected {_some(extra)}"
        )
    images, labels = [], []
    for label, name in enumerate(class_names):
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in _SUFFIXES)
        if not files:
            raise ValueError(
                f"class folder {str(folder / name)!r} holds no image "
                f"({', '.join(sorted(_SUFFIXES))}): add some"
            )
        for file in files:
            try:
                with Image.open(file) as image:
                    pixels = np.asarray(image.convert("RGB"))
            except (OSError, ValueError, SyntaxError) as error:
                raise ValueError(
                    f"cannot read the image {str(file)!r} ({error}): replace or delete it"
                ) from error
            if pixels.shape[:2] != (side, side):
                raise ValueError(
                    f"{str(file)!r} is {pixels.shape[1]} x {pixels.shape[0]} pixels, "
                    f"not {side} x {side}: resize or delete it"
                )
            images.append(torch.tensor(pixels))
            labels.append(label)
    return torch.stack(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if names[5:] else "") if names else "none"
