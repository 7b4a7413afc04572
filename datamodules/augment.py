"""What is drawn for each training image: its crop, its flip, and the transforms of the user."""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .images import Box, Images, Place

_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)  # of SplitMix64, as int64


def uniform(seed: int, epoch: int, index: Tensor, below: tuple[int, ...]) -> list[Tensor]:
    """For each bound in `below`, one integer in [0, bound) per sample.

    It depends on (seed, epoch, index) alone: not on the batch, the processes or the device.
    """
    draws = []
    for stream, bound in enumerate(below):
        start = seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + stream * 0xD1B54A32D192ED03
        bits = index * _MIX[1] + start % 2**63
        for multiplier in _MIX:
            bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * multiplier
        draws.append(((bits >> 31) & 0x7FFFFFFF) % bound)
    return draws


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of an epoch; what an image draws depends on (seed, epoch, index) alone.

    Args:
        seed: of the run.
        epoch: number of the epoch.
        padding: pixels of zeros around an image, before it is cropped.
        flip: mirror half of the images.
        transforms: further ones, applied to one image at a time.
        smallest: of a random resized crop, the smallest part of the photo's area; None for no such
            crop.
    """

    seed: int
    epoch: int
    padding: int = 0
    flip: bool = False
    transforms: tuple[Callable[[Any], Any], ...] = ()
    smallest: float | None = None

    def places(self, chosen: Tensor) -> list[Place] | None:
        """The random resized crop of each image; None without such crops."""
        if self.smallest is None:
            return None
        return [
            partial(random_crop, seed, self.smallest) for seed in self._draw(chosen)[4].tolist()
        ]

    def shift(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Crop a window of the padded images, and mirror half of them."""
        crops = self.padding and self.smallest is None
        if not (crops or self.flip):
            return images
        drawn = torch.stack(self._draw(chosen)[:3])
        drawn = drawn.pin_memory() if images.is_cuda else drawn  # so that the host does not wait
        top, left, mirrored = drawn.to(images.device, non_blocking=images.is_cuda)
        if crops:
            images = crop(images, self.padding, top, left)
        if self.flip:
            images = torch.where(mirrored.bool().view(-1, 1, 1, 1), images.flip(3), images)
        return images

    def transform(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Apply the transforms; the result is in the range of the images before."""
        made = []
        with drawing() as seed:
            for image, number in zip(images, self._draw(chosen)[3].tolist(), strict=True):
                seed(number)
                made.append(self._transformed(image))
        batch = torch.stack(made)
        if images.dtype != torch.uint8 or batch.dtype == torch.uint8:
            return batch
        mean, deviation = batch.float().mean().item(), batch.float().std().item()
        if not (batch.is_floating_point() and 0 <= mean <= 1 and deviation <= 0.51):
            raise ValueError(
                f"augment gives {batch.dtype} with mean {mean:.3g} and standard deviation "
                f"{deviation:.3g}: it must give uint8, or floats in [0, 1] "
                "(ToDtype(torch.float32, scale=True)) that are not normalised: leave out "
                "Normalize, the images are normalised afterwards"
            )
        return batch * 255

    def _draw(self, chosen: Tensor) -> list[Tensor]:
        side = 2 * self.padding + 1
        return uniform(self.seed, self.epoch, chosen, (side, side, 2, 2**31, 2**31))

    def _transformed(self, image: Tensor) -> Tensor:
        new: Any = image
        for transform in self.transforms:
            try:
                new = transform(new)
            except Exception as error:
                raise ValueError(
                    f"augment: {named(transform)} fails on a training image, a tensor "
                    f"{tuple(image.shape)} of {image.dtype}: {error}. What takes floats follows "
                    "torchvision.transforms.v2.ToDtype (dtype: torch.float32, scale: true); "
                    "transforms of whole batches, such as MixUp, belong to mix"
                ) from error
        if isinstance(new, Tensor) and new.shape == (1, *image.shape):
            new = new[0]  # kornia makes a batch of one
        if not isinstance(new, Tensor) or new.shape != image.shape:
            found = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(
                f"augment makes {found} of an image {tuple(image.shape)}: it must be a tensor of "
                "the same shape"
            )
        return new.as_subclass(Tensor)


@dataclass(frozen=True)
class Source:
    """Makes the batches of a loader, as far as worker processes do it.

    Args:
        images: stored images, or their files.
        augmentation: of training; without transforms the device crops and flips, by whole batches.
    """

    images: Tensor | Images
    augmentation: Augmentation | None

    def __call__(self, keys: Tensor) -> Tensor:
        """The images at these positions, modulo their number; see `loader.distinct`."""
        chosen = keys % len(self.images)
        places = self.augmentation and self.augmentation.places(keys)
        if isinstance(self.images, Images):
            images = self.images.read(chosen, places)
        else:
            images = self.images[chosen]
        if self.augmentation and self.augmentation.transforms:
            images = self.augmentation.transform(self.augmentation.shift(images, keys), keys)
        return images


def named(transform: Any) -> str:
    """The name of a function, or of the class of a transform."""
    return getattr(transform, "__name__", type(transform).__name__)


@contextmanager
def drawing(device: torch.device | None = None) -> Iterator[Callable[[int], None]]:
    """Give a function that seeds all global generators; restore these at the end.

    They are torch's, Python's and NumPy's: a transform may draw from any of them.
    """
    on_gpu = device is not None and device.type == "cuda"

    def seed(number: int) -> None:
        if on_gpu:
            torch.manual_seed(number)
        else:  # a hundred times as fast
            torch.default_generator.manual_seed(number)
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 - the global one

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng([device] if device is not None and on_gpu else []):
            yield seed
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def random_crop(seed: int, smallest: float, width: int, height: int) -> Box:
    """A part of a photo for a random resized crop (Szegedy et al. 2015), as torchvision draws it.

    Its area is uniform from `smallest` to all of the photo, the logarithm of its ratio of width to
    height uniform from 3/4 to 4/3. If ten draws leave the photo, it is the largest part in the
    middle of such a ratio.
    """
    draw = random.Random(seed)
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * draw.uniform(smallest, 1)
        ratio = math.exp(draw.uniform(math.log(low), math.log(high)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = draw.randint(0, width - across), draw.randint(0, height - down)
            return left, top, left + across, top + down
    across, down = min(width, round(height * high)), min(height, round(width / low))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Pad with zeros, then cut a window of the old size out of each image, at (top, left)."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    each = torch.arange(len(images), device=images.device)
    return windows[each, :, top, left]
