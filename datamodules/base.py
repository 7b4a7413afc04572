"""The base class of all data sets: splits that share no sample, and their loaders."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from .cache import default_cache_dir
from .images import Images
from .loader import ImageLoader

Part = Literal["train", "test"]
Split = Literal["train", "val", "test"]
Data = tuple[Tensor | Images, Tensor]


class ImageDataModule(LightningDataModule):
    """A labelled set of images, or of signals, which are images without a height.

    A subclass sets the class attributes and reads its files in :meth:`load`. Validation is a
    stratified part of the training images. Only `test` and `predict` read the test images.
    A set whose files are not divided into training and test overrides :meth:`choose`.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: images per step and process in validation, test and prediction.
        val_fraction: part of the training images that becomes the validation set.
        split_seed: seed of that split: runs with the same one validate on the same images.
        seed: seed of the order and augmentation of the training images; by default the seed of the
            run (`--seed_everything`).
        crop_padding: pixels of zero padding before the random crop; 0 turns the crop off.
        flip: mirror half of the training images, chosen at random.
        augment: more transforms of each training image, before it is normalised, such as
            torchvision.transforms.v2.RandAugment; no Normalize. They give uint8, or floats in
            [0, 1].
        mix: torchvision.transforms.v2.MixUp or CutMix, applied to each training batch.
        balance: for classes of unequal size: `sampling` draws all classes equally often, `loss`
            weights the classes in the training loss.
        cache_dir: folder for the prepared data of sets that are decoded once; by default
            `$XDG_CACHE_HOME/supple`, or `~/.cache/supple`.

    Attributes:
        dims: 2 for images, 1 for signals (N, C, L).
        image_size: side of the images, or length of the signals.
        will_test: whether a test follows the training: then its data are read before, too.
        reads_files: of the class: whether it has an option `root`, the folder of its files.

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
    reads_files: bool = True
    will_test: bool = False

    # Subclasses pass these options on as `**common: Any`: jsonargparse follows the call of
    # super().__init__ to the defaults here. The keys of an Unpack[TypedDict] have no defaults in
    # its help and printed config, and clash with an option that a subclass defines again.
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
        check_min(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_min(0, crop_padding=crop_padding)
        check_part(val_fraction=val_fraction)
        if balance not in (None, "sampling", "loss"):
            raise ValueError(f"balance must be 'sampling', 'loss' or None, got {balance!r}")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.crop_padding, self.flip = crop_padding, flip
        self.augment, self.mix, self.balance = augment or [], mix, balance
        if any(type(each).__name__ == "Normalize" for each in _within(self.augment)):
            raise ValueError(
                "augment holds Normalize: leave it out. All images are normalised afterwards, with "
                f"the mean {self.mean} and the standard deviation {self.std} of the data set"
            )
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self._train: Data | None = None
        self._test: Data | None = None
        self._train_loader: ImageLoader | None = None
        self._resume: dict[str, int] | None = None

    def load(self, split: Part) -> Data:
        """Read one part: images (M, C, H, W) in uint8, and labels (M,) in int64."""
        raise NotImplementedError(
            f"{type(self).__name__} reads no images: choose a data set, such as Digits, or write "
            "the method load(split)"
        )

    def choose(self, split: Split, labels: Tensor) -> Tensor:
        """Positions of the samples of a split among those that :meth:`load` returned."""
        if split == "test":
            return torch.arange(len(labels))
        return stratified_split(labels, self.val_fraction, self.split_seed)[split == "val"]

    def describe(self, index: int) -> dict[str, Any]:
        """What is known of a test sample besides its label, for the table of predictions."""
        return {}

    def transform_batch(self, images: Tensor) -> Tensor:
        """The last step of every batch, such as a spectrogram; the base class changes nothing."""
        return images

    def prepare_data(self) -> None:
        """Read the data in the first process, so that an error stops a run before it starts.

        Lightning calls :meth:`setup` only after the loggers have made their folders.
        """
        if (trainer := self.trainer) is None:
            return
        if trainer.training or trainer.validating:
            self.setup("fit")
        if trainer.testing or trainer.predicting or self.will_test:
            self.setup("test")
        if trainer.training:
            loader = self.train_dataloader()  # refuses a batch that the data do not fill
            every, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
            if isinstance(every, int) and epochs is not None and every > len(loader):
                raise ValueError(
                    f"val_check_interval {every} is more than the {len(loader)} batches of an "
                    "epoch: lower it, or set check_val_every_n_epoch to null"
                )
            if self.augment or self.mix:
                next(iter(loader))  # refuses transforms that fail
                loader.next_batch = 0

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
        """With `balance: loss`, the weight of each class; its mean over the samples is 1."""
        if self.balance != "loss" or self._train is None:
            return None
        counts = self._train[1][self.train_indices].bincount(minlength=self.num_classes)
        return counts.sum() / ((counts > 0).sum() * counts.clamp(min=1))

    def train_dataloader(self) -> ImageLoader:
        """Shuffled, augmented training batches; after a resume, those that are left."""
        loader = self._train_loader = self._loader(self._train, self.train_indices, training=True)
        if self._resume:
            loader.load_state_dict(self._resume)
            self._resume = None
        return loader

    def val_dataloader(self) -> ImageLoader:
        """The validation images, in order."""
        return self._loader(self._train, self.val_indices)

    def test_dataloader(self) -> ImageLoader:
        """The test images, in order."""
        return self._loader(self._test, self.test_indices)

    predict_dataloader = test_dataloader

    def state_dict(self) -> dict[str, int]:
        """The position of the training loader.

        Lightning stores the state of a loader too, but does not restore it into a loader that was
        made before the checkpoint was read, as for a scheduler that asks for the number of steps.
        """
        return self._train_loader.state_dict() if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the training loader, also the next one, continue from that position."""
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
            fixed=bool(getattr(trainer, "overfit_batches", 0)),
            transform_batch=self.transform_batch,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            device=trainer.strategy.root_device if trainer else "cpu",
        )

    def _take(self, split: Split, labels: Tensor) -> Tensor:
        """The positions of a split; log how many samples of each class it has."""
        indices, name = self.choose(split, labels), f"{type(self).__name__} {split}"
        counts = labels[indices].bincount(minlength=self.num_classes).tolist()
        present = [count for count in counts if count]
        if not present:
            raise ValueError(f"{name}: the split is empty: add samples or choose another split")
        low, high = min(present), max(present)
        each = f"{low}" if low == high else f"{low} to {high}"
        classes = f"{each} in each of {len(present)} classes"
        if min(counts) < high and len(counts) <= 15:
            named = zip(self.class_names, counts, strict=True)
            classes = ", ".join(f"{name} {count}" for name, count in named)
        rank_zero_info(f"{name}: {len(indices)} ({classes})")
        return indices


def _within(transforms: Iterable[Any]) -> Iterator[Any]:
    """All transforms, also those that others hold."""
    for transform in transforms:
        yield transform
        yield from _within(getattr(transform, "transforms", ()))
        yield from _within(transform.children() if isinstance(transform, nn.Module) else ())


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split the positions of `labels` into two sorted parts; `fraction` of each class is second.

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
                f"class {label} has {len(members)} image(s), too few to hold out {fraction:g} of "
                "them: add images to the class, or hold out less"
            )
        second.append(members[:count])
        first.append(members[count:])
    return torch.cat(first).sort().values, torch.cat(second).sort().values


def check_min(low: int, **values: Any) -> None:
    """Raise a ValueError with the name of a value that is no integer, or below `low`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")


def check_part(**values: Any) -> None:
    """Raise a ValueError with the name of a value that is not between 0 and 1."""
    for name, value in values.items():
        if not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value!r}")
