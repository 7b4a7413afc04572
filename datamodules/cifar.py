"""CIFAR-10 and CIFAR-100, from torchvision's download or from class folders of PNG files."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .base import ImageDataModule, Split
from .cache import Create, prepare, stamp
from .images import Images, list_images


class CIFAR10(ImageDataModule):
    """CIFAR-10: 32 x 32 colour images of 10 classes (Krizhevsky 2009).

    Args:
        root: a folder that holds torchvision's download (`cifar-10-batches-py`), or
            `train/<class>/*.png` and `test/<class>/*.png`.
        download: fetch the official archive into `root` where neither is there.
        imbalance_factor: how many times more training images the first class has than the last;
            those between follow a geometric series (Cao et al. 2019, long-tailed CIFAR).
            Validation and test stay balanced.
        common: see `ImageDataModule`.

    Raises:
        ValueError: a number is out of its range.
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
        imbalance_factor: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not imbalance_factor >= 1:
            raise ValueError(f"imbalance_factor must be >= 1, got {imbalance_factor}")
        self.root, self.download = Path(root).expanduser(), download
        self.imbalance_factor = imbalance_factor
        self._files: list[Path] = []

    def prepare_data(self) -> None:
        """Download the archive where that was asked for and nothing is there yet."""
        if self.download and not self._has_folders() and not self._has_archive():
            self._official("train", download=True)
        super().prepare_data()

    def load(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Read one split from whichever form `root` holds."""
        if self._has_folders():
            return self._from_folders(split)
        if not self._has_archive():
            raise FileNotFoundError(
                f"no {type(self).__name__} in {str(self.root)!r}: neither {self.archive}/ nor "
                "train/<class>/ is there. Give its folder with --data.root DIR, or add "
                "--data.download true to fetch it"
            )
        folder = self.root / self.archive

        def build(create: Create) -> dict[str, Any]:
            data = self._official(split, download=False)
            create("images", (len(data), 3, 32, 32), np.uint8)[:] = data.data.transpose(0, 3, 1, 2)
            create("labels", (len(data),), np.int64)[:] = data.targets
            return {}

        return self._prepare(split, stamp(folder, sorted(folder.iterdir())), build)

    def choose(self, split: Split, labels: Tensor) -> Tensor:
        """As the base has it; of training images, the long tail's."""
        chosen = super().choose(split, labels)
        if split != "train" or self.imbalance_factor == 1:
            return chosen
        generator = torch.Generator().manual_seed(self.split_seed)
        chosen = chosen[torch.randperm(len(chosen), generator=generator)]
        of_class = [chosen[labels[chosen] == number] for number in range(self.num_classes)]
        decay = self.imbalance_factor ** (-1 / (self.num_classes - 1))
        counts = [max(1, round(len(some) * decay**c)) for c, some in enumerate(of_class)]
        kept = [some[:count] for some, count in zip(of_class, counts, strict=True)]
        return torch.cat(kept).sort().values

    def describe(self, index: int) -> dict[str, Any]:
        """The file, where images come as files."""
        return {"file": str(self._files[index].relative_to(self.root))} if self._files else {}

    def _from_folders(self, split: str) -> tuple[Tensor, Tensor]:
        folder = self.root / split
        files, labels = list_images(folder, self.class_names)
        if split == "test":
            self._files = files

        def build(create: Create) -> dict[str, Any]:
            images = create("images", (len(files), 3, 32, 32), np.uint8)
            Images(files, self.image_size).decode_into(images, resize=False)
            create("labels", (len(files),), np.int64)[:] = labels
            return {}

        return self._prepare(split, stamp(folder, files), build)

    def _prepare(self, split: str, files: object, build: Any) -> tuple[Tensor, Tensor]:
        name = f"{type(self).__name__}-{split}"
        arrays = prepare(self.cache_dir, name, (str(self.root.resolve()), files), build).arrays
        return arrays["images"], arrays["labels"]

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
