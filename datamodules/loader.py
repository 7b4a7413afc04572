"""Batches of an image set held in memory: shuffled, cropped, flipped and normalised as tensors."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)  # SplitMix64's, as int64


def uniform(seed: int, epoch: int, index: Tensor, below: tuple[int, ...]) -> list[Tensor]:
    """One integer in [0, b) for each b in `below` and each sample, from (seed, epoch, index) alone.

    The same whatever the batch, the number of processes and the device.
    """
    draws = []
    for stream, bound in enumerate(below):
        start = seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + stream * 0xD1B54A32D192ED03
        bits = index * _MIX[1] + start % 2**63
        for multiplier in _MIX:
            bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * multiplier
        draws.append(((bits >> 31) & 0x7FFFFFFF) % bound)
    return draws


class ImageLoader:
    """Iterates over (images, labels, indices), a batch at a time.

    Training batches come in an order drawn from (seed, epoch), each image with its own crop and
    flip drawn from (seed, epoch, index); images that do not fill a last batch wait for the next
    epoch. Evaluation batches come in order and hold every image once, over all processes. The state
    makes a resumed run see exactly the batches that an interrupted epoch had left.

    Args:
        images: (M, C, H, W), uint8.
        labels: (M,), int64.
        indices: which of the images this loader serves.
        batch_size: images a batch and process.
        mean: of each channel, in [0, 1].
        std: of each channel, in [0, 1].
        training: shuffle, augment, drop the incomplete last batch.
        crop_padding: zero pixels added on each side before the random crop.
        flip: mirror half of the training images.
        seed: of order and augmentation.
        rank: this process.
        world_size: number of processes.
        device: where the batches are made.

    Raises:
        ValueError: not even one batch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        training: bool = False,
        crop_padding: int = 0,
        flip: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images, self.labels, self.indices = images, labels, indices
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.training, self.seed, self.device = training, seed, torch.device(device)
        self.crop_padding, self.flip = crop_padding, flip
        self.shift = 255 * torch.tensor(mean, device=self.device).view(-1, 1, 1)
        self.scale = 1 / (255 * torch.tensor(std, device=self.device).view(-1, 1, 1))
        self.sampler, self.batch_sampler = self, None  # Lightning calls sampler.set_epoch
        self.epoch = 0
        self.next_batch = 0
        self._resumed_epoch = -1
        if len(self) == 0 or len(indices) < world_size:
            raise ValueError(
                f"{len(indices)} images do not fill one batch of {batch_size} in each of "
                f"{world_size} process(es): lower batch_size"
            )

    def __len__(self) -> int:
        """Batches an epoch, in this process."""
        if self.training:
            return len(self.indices) // (self.batch_size * self.world_size)
        return -(-len(self.indices[self.rank :: self.world_size]) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and augmentation of the next epoch."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """The epoch and the batch that comes next in it."""
        return {"epoch": self.epoch, "next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on inside the stored epoch."""
        self._resumed_epoch, self.next_batch = state["epoch"], state["next_batch"]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of the current epoch; after a resume, those that are left of it."""
        first = self.next_batch if self._resumed_epoch == self.epoch else 0
        self._resumed_epoch = -1
        order = self.indices
        if self.training:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
            order = order[torch.randperm(len(order), generator=generator)]
        mine = order[self.rank :: self.world_size]
        for batch in range(first, len(self)):
            self.next_batch = batch + 1
            chosen = mine[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield self._images(chosen), self.labels[chosen].to(self.device), chosen.to(self.device)

    def _images(self, chosen: Tensor) -> Tensor:
        images = self.images[chosen].to(self.device, non_blocking=True)
        if self.training:
            side = 2 * self.crop_padding + 1
            top, left, mirrored = uniform(self.seed, self.epoch, chosen, (side, side, 2))
            if self.crop_padding:
                images = crop(images, self.crop_padding, top, left)
            if self.flip:
                images = torch.where(
                    mirrored.to(self.device).bool().view(-1, 1, 1, 1), images.flip(3), images
                )
        return (images.float() - self.shift) * self.scale


def crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Pad all sides with zeros, then cut a window of the old size at each image's (top, left)."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    each = torch.arange(len(images), device=images.device)
    return windows[each, :, top.to(images.device), left.to(images.device)]
