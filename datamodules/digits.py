"""Scanned digits that scikit-learn contains, so that nothing has to be downloaded."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import ImageDataModule, Part, check_min, stratified_split


class Digits(ImageDataModule):
    """1,797 grey images of handwritten digits from scikit-learn, 8 x 8 enlarged to 32 x 32.

    A fifth of each class, always the same images, is the test set.

    Args:
        image_size: side in pixels to which the images are enlarged, bilinearly.
        batch_size: training images per step and process.
        crop_padding: pixels of zero padding before the random crop; 0 turns the crop off.
        flip: mirror half of the training images; digits are not symmetric, so the default is off.
        common: see `ImageDataModule`.
    """

    num_classes = 10
    in_channels = 1
    image_size = 32
    class_names = tuple("0123456789")
    mean = (0.306,)
    std = (0.324,)
    reads_files = False

    def __init__(
        self,
        image_size: int = 32,
        batch_size: int = 64,
        crop_padding: int = 2,
        flip: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, crop_padding=crop_padding, flip=flip, **common)
        check_min(8, image_size=image_size)
        self.image_size = image_size

    def load(self, split: Part) -> tuple[Tensor, Tensor]:
        """Read one part from scikit-learn's files."""
        from sklearn.datasets import load_digits

        pixels, targets = load_digits(return_X_y=True)
        labels = torch.as_tensor(targets, dtype=torch.int64)
        chosen = stratified_split(labels, 0.2, seed=0)[split == "test"]
        images = torch.as_tensor(pixels[chosen], dtype=torch.float32).view(-1, 1, 8, 8)
        images = F.interpolate(images, self.image_size, mode="bilinear", align_corners=False)
        return (images * (255 / 16)).round().to(torch.uint8), labels[chosen]
