"""Scanned digits that ship with scikit-learn: nothing to download."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import ImageDataModule, stratified_split


class Digits(ImageDataModule):
    """1,797 grey images of handwritten digits, 8 x 8 enlarged to 32 x 32, from scikit-learn.

    A fifth of each class, always the same images, is the test set.

    Args:
        image_size: side in pixels that the images are enlarged to, bilinearly.
        batch_size: training images a step and process.
        crop_padding: pixels of zero padding before the random crop; 0 crops nothing.
        flip: mirror half of the training images; digits are not symmetric.
        common: see `ImageDataModule`.
    """

    num_classes = 10
    in_channels = 1
    image_size = 32
    class_names = tuple("0123456789")
    mean = (0.306,)
    std = (0.324,)

    def __init__(
        self,
        image_size: int = 32,
        batch_size: int = 64,
        crop_padding: int = 2,
        flip: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, crop_padding=crop_padding, flip=flip, **common)
        if image_size < 8:
            raise ValueError(f"image_size must be >= 8, the digits' own side, got {image_size}")
        self.image_size = image_size

    def load(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Read one split from scikit-learn's files."""
        from sklearn.datasets import load_digits

        pixels, targets = load_digits(return_X_y=True)
        labels = torch.as_tensor(targets, dtype=torch.int64)
        chosen = stratified_split(labels, 0.2, seed=0)[split == "test"]
        images = torch.as_tensor(pixels[chosen], dtype=torch.float32).view(-1, 1, 8, 8)
        images = F.interpolate(images, self.image_size, mode="bilinear", align_corners=False)
        return (images * (255 / 16)).round().to(torch.uint8), labels[chosen]
