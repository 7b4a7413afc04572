"""Batches of a labelled set, shuffled, cropped, flipped and normalised as whole tensors."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Sampler

from .augment import Augmentation, Source, drawing, uniform
from .images import Images, normalisation
from .workers import cores, prepared

if TYPE_CHECKING:
    from .base import ImageDataModule


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


def distinct(order: Tensor, count: int) -> Tensor:
    """`order`, with `count` added for each time that a sample is drawn again.

    Balanced sampling draws the samples of rare classes several times, each with a crop of its own.
    """
    sample, place = order.sort(stable=True)
    again = torch.empty_like(order)
    again[place] = torch.arange(len(order)) - torch.searchsorted(sample, sample)
    return order + count * again


class ImageLoader:
    """Iterates over (images, labels, indices) or (images, labels, indices, side), batch by batch.

    Training batches come in an order drawn from (seed, epoch); the crop and flip of each image are
    drawn from (seed, epoch, index), and from how often the epoch had it before. Images that do not
    fill the last training batch are left out of that epoch. Evaluation batches come in order and
    hold every image once, over all processes.
    After a resume, the loader gives exactly the batches that were left of the interrupted epoch.

    Args:
        data: the set, for its options, mean, standard deviation and `transform_batch`.
        images: (M, C, H, W) in uint8, or (M, C, *) in a floating dtype, or image files.
        labels: (M,), int64.
        indices: positions of the images that this loader serves.
        side: (M, K), numbers beside each image; they are not augmented.
        training: shuffle, augment, drop the incomplete last batch.
        fixed: all epochs are like the first.
        rank: number of this process.
        world_size: number of processes.
        local: number of them on this machine.
        device: device of the batches.

    Raises:
        ValueError: the images do not fill one batch, or images are mixed that have numbers beside
            them.
    """

    def __init__(
        self,
        data: "ImageDataModule",
        images: Tensor | Images,
        labels: Tensor,
        indices: Tensor,
        side: Tensor | None = None,
        *,
        training: bool = False,
        fixed: bool = False,
        rank: int = 0,
        world_size: int = 1,
        local: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data, self.images, self.labels, self.indices = data, images, labels, indices
        self.training, self.rank, self.world_size = training, rank, world_size
        self.side = side
        if training and side is not None and data.mix is not None:
            raise ValueError(
                f"mix cannot mix the {side.shape[1]} numbers beside each sample (the side input): "
                "leave out mix, or those numbers"
            )
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
        # stored images alone need no processes: a batch of them is cropped as a whole
        works = isinstance(images, Images) or bool(training and data.augment)
        each = max(1, cores() // local) if data.workers is None else data.workers
        self.workers = each if works else 0
        self._resumed_epoch, self._resumed_size = -1, None
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
        """The epoch, the number of its next batch, and the samples of a batch in all processes."""
        size = self.batch_size * self.world_size
        return {"epoch": self.sampler.epoch, "next_batch": self.next_batch, "size": size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue inside the stored epoch."""
        self._resumed_epoch, self.next_batch = state["epoch"], state["next_batch"]
        self._resumed_size = state.get("size")

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """The batches of the epoch; after a resume, those that are left of it.

        Raises:
            ValueError: the epoch began with batches of another size.
        """
        first = self.next_batch if self._resumed_epoch == self.sampler.epoch else 0
        size = self.batch_size * self.world_size
        if first and self._resumed_size not in (size, None):
            raise ValueError(
                f"the checkpoint is inside epoch {self.sampler.epoch}, whose batches have "
                f"{self._resumed_size} samples in all processes, here {size}: go on with the same "
                "batch_size and devices, or from a checkpoint between two epochs"
            )
        self._resumed_epoch = -1
        order = self.sampler.draw() if self.training else self.indices
        mine = distinct(order, len(self.labels))[self.rank :: self.world_size]
        batches = mine[first * self.batch_size : len(self) * self.batch_size].split(self.batch_size)
        augmentation = self._augmentation() if self.training else None
        source, pinned = Source(self.images, augmentation), self.device.type == "cuda"
        pixels = prepared(source, batches, self.workers, pinned=pinned)
        for batch, keys in enumerate(batches, start=first):
            chosen = keys % len(self.labels)
            images = next(pixels).to(self.device, non_blocking=pinned)
            if augmentation and not augmentation.transforms:  # else the source has shifted them
                images = augmentation.shift(images, keys)
            images = (images.float() - self.shift) * self.scale
            labels, index = self._send(self.labels[chosen]), self._send(chosen)
            if self.training and self.data.mix is not None:
                images, labels = self._mix(images, labels, self.data.mix, batch)
            self.next_batch = batch + 1
            beside = () if self.side is None else (self._send(self.side[chosen]),)
            yield self.data.transform_batch(images), labels, index, *beside

    def _augmentation(self) -> Augmentation:
        data = self.data
        return Augmentation(
            self.seed,
            self.sampler.drawn,
            self.crop_padding,
            data.flip,
            tuple(data.augment or ()),
            getattr(data, "random_resized_crop", None),
        )

    def _send(self, tensor: Tensor) -> Tensor:
        """Copy to the device; from pinned memory, so that the host does not wait."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _mix(
        self, images: Tensor, labels: Tensor, mix: nn.Module, batch: int
    ) -> tuple[Tensor, Tensor]:
        number = torch.tensor(batch * self.world_size + self.rank)
        [drawn] = uniform(self.seed, self.sampler.drawn, number, (2**31,))
        with drawing(self.device) as seed:
            seed(int(drawn))
            return mix(images, F.one_hot(labels, self.data.num_classes).float())
