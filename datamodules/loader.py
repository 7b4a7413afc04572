"""Batches of a labelled set, shuffled, cropped, flipped and normalised as whole tensors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Sampler

from .images import Images, normalisation

if TYPE_CHECKING:
    from .base import ImageDataModule

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


class EpochOrder(Sampler[int]):
    """The order of the training samples in an epoch, drawn from (seed, epoch).

    Before each epoch Lightning calls `set_epoch` of a loader's `sampler`.

    Args:
        indices: (M,), the samples.
        seed: seed of the order.
        weights: (M,): draw samples with replacement, in proportion to them; None shuffles.
        fixed: the same order in all epochs.
    """

    def __init__(
        self, indices: Tensor, seed: int, weights: Tensor | None = None, *, fixed: bool = False
    ) -> None:
        self.indices, self.seed, self.weights, self.epoch = indices, seed, weights, 0
        self.fixed = fixed

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that comes next."""
        self.epoch = epoch

    @property
    def drawn(self) -> int:
        """The epoch from which the order and the augmentation are drawn."""
        return 0 if self.fixed else self.epoch

    def draw(self) -> Tensor:
        """The samples of the epoch, in order."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.drawn) % 2**63)
        if self.weights is None:
            return self.indices[torch.randperm(len(self), generator=generator)]
        return self.indices[torch.multinomial(self.weights, len(self), True, generator=generator)]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw().tolist())


class ImageLoader:
    """Iterates over (images, labels, indices), one batch at a time.

    Training batches come in an order drawn from (seed, epoch); the crop and flip of each image are
    drawn from (seed, epoch, index). Images that do not fill the last training batch are left out
    of that epoch. Evaluation batches come in order and hold every image once, over all processes.
    After a resume, the loader gives exactly the batches that were left of the interrupted epoch.

    Args:
        data: the set, for its options, mean, standard deviation and `transform_batch`.
        images: (M, C, H, W) in uint8, or (M, C, *) in a floating dtype, or image files.
        labels: (M,), int64.
        indices: positions of the images that this loader serves.
        training: shuffle, augment, drop the incomplete last batch.
        fixed: all epochs are like the first.
        rank: number of this process.
        world_size: number of processes.
        device: device of the batches.

    Raises:
        ValueError: the images do not fill one batch.
    """

    def __init__(
        self,
        data: "ImageDataModule",
        images: Tensor | Images,
        labels: Tensor,
        indices: Tensor,
        *,
        training: bool = False,
        fixed: bool = False,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data, self.images, self.labels, self.indices = data, images, labels, indices
        self.training, self.rank, self.world_size = training, rank, world_size
        self.device = torch.device(device)
        self.batch_size = data.batch_size if training else data.eval_batch_size
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if data.seed is None else data.seed
        eighth = data.image_size // 8
        self.crop_padding = eighth if data.crop_padding is None else data.crop_padding
        shift, scale = normalisation(data.mean, data.std, images)
        self.shift, self.scale = shift.to(self.device), scale.to(self.device)
        served = labels[indices]
        weights = 1 / served.bincount()[served].float() if data.balance == "sampling" else None
        self.sampler = EpochOrder(indices, self.seed, weights, fixed=fixed)
        self.batch_sampler = None  # Lightning asks for it where there is a sampler
        self.next_batch = 0
        self._checked = False
        self._resumed_epoch = -1
        if len(self) == 0 or len(indices) < world_size:
            raise ValueError(
                f"{len(indices)} images do not fill one batch of {self.batch_size} in each of "
                f"{world_size} process(es): lower batch_size"
            )

    def __len__(self) -> int:
        """Batches an epoch, in this process."""
        if self.training:
            return len(self.indices) // (self.batch_size * self.world_size)
        return -(-len(self.indices[self.rank :: self.world_size]) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and augmentation of the next epoch."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """The epoch, and the number of its next batch."""
        return {"epoch": self.sampler.epoch, "next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue inside the stored epoch."""
        self._resumed_epoch, self.next_batch = state["epoch"], state["next_batch"]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of the epoch; after a resume, those that are left of it."""
        first = self.next_batch if self._resumed_epoch == self.sampler.epoch else 0
        self._resumed_epoch = -1
        order = self.sampler.draw() if self.training else self.indices
        mine = order[self.rank :: self.world_size]
        batches = mine[first * self.batch_size : len(self) * self.batch_size].split(self.batch_size)
        if isinstance(source := self.images, Images):
            pixels = source.stream(batches)
        else:
            pixels = map(source.__getitem__, batches)
        for batch, chosen in enumerate(batches, start=first):
            images = self._images(next(pixels), chosen)
            labels, index = self._send(self.labels[chosen]), self._send(chosen)
            if self.training and self.data.mix is not None:
                images, labels = self._mix(images, labels, self.data.mix, batch)
            self.next_batch = batch + 1
            yield self.data.transform_batch(images), labels, index

    def _images(self, images: Tensor, chosen: Tensor) -> Tensor:
        images = self._send(images)
        if self.training:
            side = 2 * self.crop_padding + 1
            bounds = (side, side, 2, 2**31)
            top, left, mirrored, seeds = uniform(self.seed, self.sampler.drawn, chosen, bounds)
            if self.crop_padding:
                images = crop(images, self.crop_padding, self._send(top), self._send(left))
            if self.data.flip:
                mirrored = self._send(mirrored).bool().view(-1, 1, 1, 1)
                images = torch.where(mirrored, images.flip(3), images)
            if self.data.augment:
                drawn = zip(images, seeds, strict=True)
                images = self._augmented([self._augment(image, seed) for image, seed in drawn])
        return (images.float() - self.shift) * self.scale

    def _send(self, tensor: Tensor) -> Tensor:
        """Copy to the device; from pinned memory, so that the host does not wait."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _augment(self, image: Tensor, seed: Tensor) -> Tensor:
        new: Any = image
        with self._drawing(seed):
            for transform in self.data.augment or ():
                try:
                    new = transform(new)
                except Exception as error:
                    raise ValueError(
                        f"augment: {type(transform).__name__} fails on a training image, a tensor "
                        f"{tuple(image.shape)} of {image.dtype}: {error}. Transforms of whole "
                        "batches, such as MixUp, belong to mix"
                    ) from error
        if not isinstance(new, Tensor) or new.shape != image.shape:
            found = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(
                f"augment makes {found} of an image {tuple(image.shape)}: it must be a tensor of "
                "the same shape"
            )
        return new.as_subclass(Tensor)

    def _augmented(self, images: list[Tensor]) -> Tensor:
        """One batch of augmented images, in the range of the images before."""
        batch = torch.stack(images)
        if self.images.dtype != torch.uint8 or batch.dtype == torch.uint8:
            return batch
        if not self._checked:  # once: the host waits for the numbers
            mean, deviation = batch.float().mean().item(), batch.float().std().item()
            if not (batch.is_floating_point() and 0 <= mean <= 1 and deviation <= 0.5):
                raise ValueError(
                    f"augment gives {batch.dtype} with mean {mean:.3g} and standard deviation "
                    f"{deviation:.3g}: it must give uint8, or floats in [0, 1] "
                    "(ToDtype(torch.float32, scale=True)) that are not normalised: leave out "
                    "Normalize, the images are normalised afterwards"
                )
            self._checked = True
        return batch * 255

    def _mix(
        self, images: Tensor, labels: Tensor, mix: nn.Module, batch: int
    ) -> tuple[Tensor, Tensor]:
        number = torch.tensor(batch * self.world_size + self.rank)
        [seed] = uniform(self.seed, self.sampler.drawn, number, (2**31,))
        with self._drawing(seed):
            return mix(images, F.one_hot(labels, self.data.num_classes).float())

    @contextmanager
    def _drawing(self, seed: Tensor) -> Iterator[None]:
        """Seed torch's generator, and restore it at the end."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(seed))
            yield


def crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Pad with zeros, then cut a window of the old size out of each image, at (top, left)."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    each = torch.arange(len(images), device=images.device)
    return windows[each, :, top, left]
