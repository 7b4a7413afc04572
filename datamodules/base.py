"""The base of the data sets: splits that never leak, and their loaders."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from .cache import default_cache_dir
from .images import Images
from .loader import ImageLoader

Split = Literal["train", "val", "test"]
Data = tuple[Tensor | Images, Tensor]


class ImageDataModule(LightningDataModule):
    """A labelled set of images, or of signals, that are images without a height.

    A subclass states the class attributes and reads its files in :meth:`load`. Validation is a
    stratified part of the training images; the test images are read by `test` and `predict` alone.
    A set that is one pool overrides :meth:`choose` instead of having two parts.

    Args:
        batch_size: training images a step and process.
        eval_batch_size: images a step and process in validation, test and prediction.
        val_fraction: part of the training images that becomes the validation set.
        split_seed: seed of that split: runs with the same one are validated on the same images.
        seed: of the order and augmentation of the training images; by default the run's own
            (`--seed_everything`).
        crop_padding: pixels of zero padding before the random crop; 0 crops nothing.
        flip: mirror half of the training images.
        augment: further transforms.v2 of each training image, before it is normalised, such as
            torchvision.transforms.v2.RandAugment.
        mix: torchvision.transforms.v2.MixUp or CutMix, of each training batch.
        balance: against classes of unequal size: `sampling` draws all classes equally often,
            `loss` weights them in the training loss.
        cache_dir: folder of prepared data, of sets that are decoded once; by default
            `$XDG_CACHE_HOME/supple`, or `~/.cache/supple`.

    Attributes:
        dims: 2 for images, 1 for signals (N, C, L).
        image_size: side of the images, or length of the signals.

    Raises:
        ValueError: a number is out of its range.
    """

    num_classes: int
    in_channels: int
    image_size: int
    dims: int = 2
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        seed: int | None = None,
        crop_padding: int = 4,
        flip: bool = True,
        augment: list[nn.Module] | None = None,
        mix: nn.Module | None = None,
        balance: Literal["sampling", "loss"] | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
        if crop_padding < 0:
            raise ValueError(f"crop_padding must be >= 0, got {crop_padding}")
        if balance not in (None, "sampling", "loss"):
            raise ValueError(f"balance must be 'sampling', 'loss' or None, got {balance!r}")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.crop_padding, self.flip = crop_padding, flip
        self.augment, self.mix, self.balance = augment or [], mix, balance
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self._train: Data | None = None
        self._test: Data | None = None
        self._train_loader: ImageLoader | None = None
        self._resume: dict[str, int] | None = None

    def load(self, split: Literal["train", "test"]) -> Data:
        """Read one part: images (M, C, H, W) in uint8, and labels (M,) in int64."""
        raise NotImplementedError

    def choose(self, split: Split, labels: Tensor) -> Tensor:
        """Positions of a split within what :meth:`load` gave."""
        if split == "test":
            return torch.arange(len(labels))
        return stratified_split(labels, self.val_fraction, self.split_seed)[split == "val"]

    def describe(self, index: int) -> dict[str, Any]:
        """What is known of a test sample besides its label, for the table of predictions."""
        return {}

    def view(self, images: Tensor) -> Tensor:
        """The last step of every batch: nothing."""
        return images

    def prepare_data(self) -> None:
        """Read the data in the first process, so that a bad folder stops a run before it starts."""
        if self.trainer is not None and self.trainer.state.fn is not None:
            self.setup(self.trainer.state.fn.value)
            if self.trainer.state.fn == "fit":
                self.train_dataloader()

    def setup(self, stage: str) -> None:
        """Read what `stage` needs, once."""
        if stage in ("fit", "validate") and self._train is None:
            data = self.load("train")
            self.train_indices = self._take("train", data[1])
            self.val_indices = self._take("val", data[1])
            self._train = data
        if stage in ("test", "predict") and self._test is None:
            data = self.load("test")
            self.test_indices = self._take("test", data[1])
            self._test = data

    @property
    def class_weights(self) -> Tensor | None:
        """With `balance: loss`, weights of the classes in the training loss, of mean 1 a sample."""
        if self.balance != "loss" or self._train is None:
            return None
        counts = self._train[1][self.train_indices].bincount(minlength=self.num_classes)
        return counts.sum() / ((counts > 0).sum() * counts.clamp(min=1))

    def train_dataloader(self) -> ImageLoader:
        """Shuffled, augmented batches of the training part; after a resume, from where it stood."""
        loader = self._train_loader = self._loader(self._train, self.train_indices, training=True)
        if self._resume:
            loader.load_state_dict(self._resume)
            self._resume = None
        return loader

    def val_dataloader(self) -> ImageLoader:
        """The validation part, in order."""
        return self._loader(self._train, self.val_indices)

    def test_dataloader(self) -> ImageLoader:
        """The test images, in order."""
        return self._loader(self._test, self.test_indices)

    def predict_dataloader(self) -> ImageLoader:
        """The test images, in order."""
        return self.test_dataloader()

    def state_dict(self) -> dict[str, int]:
        """Where the training loader stands.

        Lightning keeps a loader's own state too, but misses it when the loader was made before the
        checkpoint was read, as for a scheduler that asks for the number of steps.
        """
        return self._train_loader.state_dict() if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next training loader go on from there."""
        self._resume = state_dict
        if self._train_loader and state_dict:
            self._train_loader.load_state_dict(state_dict)

    def _loader(self, data: Data | None, indices: Tensor, *, training: bool = False) -> ImageLoader:
        assert data is not None, "call setup(stage) first"
        trainer = self.trainer
        return ImageLoader(
            *data,
            indices,
            self.batch_size if training else self.eval_batch_size,
            mean=self.mean,
            std=self.std,
            training=training,
            crop_padding=self.crop_padding,
            flip=self.flip,
            augment=self.augment,
            mix=self.mix,
            classes=self.num_classes,
            balanced=self.balance == "sampling",
            view=self.view,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            device=trainer.strategy.root_device if trainer else "cpu",
        )

    def _take(self, split: Split, labels: Tensor) -> Tensor:
        """The positions of a split; says how many there are of each class."""
        indices, name = self.choose(split, labels), f"{type(self).__name__} {split}"
        counts = labels[indices].bincount(minlength=self.num_classes).tolist()
        present = [count for count in counts if count]
        if not present:
            raise ValueError(f"{name}: it is empty; add samples or choose another split")
        low, high = min(present), max(present)
        each = f"{low}" if low == high else f"{low} to {high}"
        classes = f"{each} in each of {len(present)} classes"
        if min(counts) < high and len(counts) <= 15:
            named = zip(self.class_names, counts, strict=True)
            classes = ", ".join(f"{name} {count}" for name, count in named)
        rank_zero_info(f"{name}: {len(indices)} ({classes})")
        return indices


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split the positions of `labels` into two sorted parts, the second with `fraction` of a class.

    Raises:
        ValueError: a class is too small to be in both parts.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        count = max(1, round(fraction * len(members)))
        if count >= len(members):
            raise ValueError(
                f"class {label} has {len(members)} image(s), too few to hold out {fraction:g} of it"
            )
        second.append(members[:count])
        first.append(members[count:])
    return torch.cat(first).sort().values, torch.cat(second).sort().values
