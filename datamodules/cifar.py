"""CIFAR-10 and CIFAR-100, from torchvision's download or from class folders of PNG files."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .base import Split
from .official import Official
from .options import check_range
from .pool import shots


@dataclass(kw_only=True, eq=False, repr=False)
class CIFAR10(Official):
    """CIFAR-10 (Krizhevsky 2009): 32 x 32 colour images of 10 classes.

    Args:
        root: a folder that holds torchvision's download (`cifar-10-batches-py`), or
            `train/<class>/*.png` and `test/<class>/*.png`.
        download: fetch what is missing of the download, unless there are class folders.
        imbalance_factor: how many times more training images the first class has than the last;
            the numbers between are a geometric series (Cao et al. 2019, long-tailed CIFAR).
            Validation and test stay balanced.

    Attributes:
        acc_over: of long-tailed CIFAR, a name -> the classes of an accuracy; see
            `datamodules.pool.shots`.

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

    imbalance_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, math.inf, imbalance_factor=self.imbalance_factor)

    def archive(self) -> str:
        """The folder of the download within `root`."""
        return "cifar-10-batches-py"

    @cached_property
    def acc_over(self) -> dict[str, list[int]]:
        """Nothing for the balanced set; else the training images are counted."""
        if self.imbalance_factor == 1:
            return {}
        _, labels = self.load("train")
        trained = labels[self.choose("train", labels)]
        return shots(trained.bincount(minlength=self.num_classes))

    def choose(self, split: Split, labels: Tensor) -> Tensor:
        """The split of the base class; `imbalance_factor` thins out the training images."""
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


class CIFAR100(CIFAR10):
    """CIFAR-100 (Krizhevsky 2009): 32 x 32 colour images of 100 classes; arguments as CIFAR10."""

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

    def archive(self) -> str:
        """The folder of the download within `root`."""
        return "cifar-100-python"
