"""Scanned digits that scikit-learn contains, so that nothing has to be downloaded."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import ImageDataModule, Part, stratified_split
from .options import check_range


@dataclass(kw_only=True, eq=False, repr=False)
class Digits(ImageDataModule):
    """1,797 grey images of handwritten digits from scikit-learn, 8 x 8 enlarged to 32 x 32.

    A fifth of each class, always the same images, is the test set.

    Args:
        image_size: side in pixels to which the images are enlarged, bilinearly.
        flip: mirror half of the training images; digits are not symmetric, so the default is off.
    """

    num_classes = 10
    in_channels = 1
    class_names = tuple("0123456789")
    mean = (0.306,)
    std = (0.324,)

    image_size: int = 32
    batch_size: int = 64
    crop_padding: int | None = 2
    flip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(8, 4096, image_size=self.image_size)

    def load(self, split: Part) -> tuple[Tensor, Tensor]:
        """Read one part from scikit-learn's files."""
        from sklearn.datasets import load_digits

        pixels, targets = load_digits(return_X_y=True)
        labels = torch.as_tensor(targets, dtype=torch.int64)
        chosen = stratified_split(labels, 0.2, seed=0)[split == "test"]
        images = torch.as_tensor(pixels[chosen], dtype=torch.float32).view(-1, 1, 8, 8)
        images = F.interpolate(images, self.image_size, mode="bilinear", align_corners=False)
        return (images * (255 / 16)).round().to(torch.uint8), labels[chosen]
