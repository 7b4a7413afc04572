"""One pool of images: the splits that its author has made, or parts of every class."""

import math
from abc import abstractmethod
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from .base import Data, ImageDataModule, Part, Split, check_sizes, stratified_split
from .images import Images
from .options import check_part, check_range

# names of the parts of a set, as its author may have called them
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
NUMBER = {"train": 0, "val": 1, "test": 2}
LEFT_OUT = -1


@dataclass(kw_only=True, eq=False, repr=False)
class Pool(ImageDataModule):
    """Images that are read together, with the part of each if their author has divided them.

    Without parts, some of every class are the test set, and some of the rest the validation set. If
    there is one part besides training, it is the test set, and some of every class of the training
    part are the validation set.

    Equal images are never in two splits. Without parts, all copies go to one split. Else copies are
    left out: of training if they are in validation or test, and of validation if they are in test.
    A run logs how many copies there are.

    Args:
        image_size: side in pixels.
        test_fraction: part of each class that becomes the test set, if no parts are given.
        cache_limit: size of the largest prepared set in GB; 0 stores no images.
        random_resized_crop: train on random parts of the whole photos instead of their middle: the
            smallest part of the area, 0.08 in most recipes for ImageNet; the ratio of width to
            height lies between 3/4 and 4/3. The files are read in every epoch.

    Attributes:
        acc_over: a name -> the classes of an accuracy, which is the mean over these classes; see
            :func:`shots`.

    Raises:
        ValueError: an option is out of its range.
    """

    in_channels = 3
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    image_size: int = 224
    test_fraction: float = 0.2
    crop_padding: int | None = None
    cache_limit: float = 20.0
    random_resized_crop: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(8, 4096, image_size=8 if self.image_size is None else self.image_size)
        check_range(0, math.inf, cache_limit=self.cache_limit)
        check_part(test_fraction=self.test_fraction)
        if self.random_resized_crop is not None:
            check_range(0.001, 1, random_resized_crop=self.random_resized_crop)
        self._pool: Data | None = None
        self.acc_over: dict[str, list[int]] = {}

    @abstractmethod
    def read(self) -> tuple[Tensor | Images, Tensor, Tensor, Tensor]:
        """Images, classes, the part of each image, and the position of its first copy.

        The parts are 0 for train, 1 for val and 2 for test; all are 0 if there are none.
        """

    def divide(self, labels: Tensor, parts: Tensor, first: Tensor) -> Tensor:
        """The split of each image, from its class, its part, and its first copy."""
        heldout = parts.unique().tolist()[1:]
        if not heldout:  # one image of each class for each split
            least = 3 if self.val_fraction else 2
            check_sizes(labels[first.unique()].bincount(), least, self.class_names)
        if len(heldout) == 2:
            return keep_apart(parts, first)
        if heldout:
            parts = keep_apart(torch.where(parts > 0, 2, 0), first)
        else:
            test = self._some_of_each(labels, parts == 0, first, self.test_fraction)
            parts = torch.where(test, 2, 0)
        val = self._some_of_each(labels, parts == 0, first, self.val_fraction)
        return torch.where(val, 1, parts)

    @property
    def shared(self) -> bool:
        """All images are loaded for each split."""
        return True

    def load(self, split: Part) -> Data:
        """All images and their classes, whatever the split."""
        if self._pool is None:
            images, labels, parts, first = self.read()
            if self.random_resized_crop is not None and not isinstance(images, Images):
                raise ValueError(
                    "random_resized_crop needs files of photos, as ImageFolder and ImageList have "
                    f"them: {type(self).__name__} has its images as squares"
                )
            self._split_of = self.divide(labels, parts, first)
            self._drawn = (parts == 0).nonzero().flatten()
            self._report(labels, first)
            self._pool = images, labels
            trained = labels[self.choose("train", labels)]
            self.acc_over = shots(trained.bincount(minlength=self.num_classes))
        return self._pool

    def drawn(self, labels: Tensor) -> Tensor:
        """All images, or those of the training part where the set has a test part of its own."""
        return self._drawn

    def choose(self, split: Split, labels: Tensor) -> Tensor:
        """The images that :meth:`divide` has assigned to a split."""
        return (self._split_of == NUMBER[split]).nonzero().flatten()

    def _some_of_each(self, labels: Tensor, among: Tensor, first: Tensor, part: float) -> Tensor:
        """Mask of `part` of each class within the mask `among`; copies stay together."""
        candidates = first[among].unique()
        names = self.class_names
        _, chosen = stratified_split(labels[candidates], part, self.split_seed, names)
        return torch.isin(first, candidates[chosen]) & among

    def _report(self, labels: Tensor, first: Tensor) -> None:
        copies = (first != torch.arange(len(first))).nonzero().flatten()
        if len(copies):
            dropped = int((self._split_of == LEFT_OUT).sum())
            contrary = int((labels[copies] != labels[first[copies]]).sum())
            shown = next(iter(self.describe(int(copies[0])).values()))
            rank_zero_info(
                f"{type(self).__name__}: {len(copies)} of {len(first)} images are copies of "
                f"another, such as {shown!r}. {dropped} images are left out, because a held-out "
                "split has a copy; all other copies are in the same split. "
                f"{contrary} copies have another class than the original"
            )


def keep_apart(splits: Tensor, first: Tensor) -> Tensor:
    """Leave out images of which a later split has a copy: val comes after train, test after val."""
    last = torch.full_like(splits, LEFT_OUT).scatter_reduce(0, first, splits, "amax")
    return torch.where(last[first] == splits, splits, LEFT_OUT)


def first_equal(contents: Iterable[Hashable]) -> list[int]:
    """For each content, the position of the first equal one, often its own."""
    known: dict[Hashable, int] = {}
    return [known.setdefault(content, position) for position, content in enumerate(contents)]


def shots(counts: Tensor) -> dict[str, list[int]]:
    """The classes of many, medium and few training images: above 100, 20 to 100, below 20.

    Liu et al. 2019 (arXiv 1904.05160) report accuracy in this way. Nothing if all classes are of
    one kind.

    Args:
        counts: (C,), the number of training images of each class.
    """
    kinds = {"many": counts > 100, "few": (counts > 0) & (counts < 20)}
    kinds["medium"] = (counts > 0) & ~kinds["many"] & ~kinds["few"]
    found = {f"acc_{name}": kind.nonzero().flatten().tolist() for name, kind in kinds.items()}
    found = {name: classes for name, classes in found.items() if classes}
    return found if len(found) > 1 else {}
