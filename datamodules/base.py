"""The base class of all data sets: splits that share no sample, and their loaders."""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from .augment import named
from .images import Images, some
from .loader import ImageLoader
from .options import check_part, check_range, check_types

Part = Literal["train", "test"]
Split = Literal["train", "val", "test"]
Data = tuple[Tensor | Images, Tensor]
RESIZE = "shorter side to size, bilinear; then the square in the middle"  # of read_image


@dataclass(kw_only=True, eq=False, repr=False)
class ImageDataModule(LightningDataModule, ABC):
    """A labelled set of images, or of signals, which are images without a height.

    A subclass sets the class attributes and reads its files in :meth:`load`. Validation is a
    stratified part of the training images. Only `test` and `predict` read the test images.
    A set whose files are not divided into training and test overrides :meth:`choose`.
    The options are fields of a dataclass: a subclass that is one too adds its own, or gives one
    another default.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: images per step and process in validation, test and prediction.
        val_fraction: part of the training images that becomes the validation set; 0 trains on all:
            nothing is validated, and `best.ckpt` is the last one.
        split_seed: seed of that split: runs with the same one validate on the same images.
        seed: seed of the order and augmentation of the training images; by default the seed of the
            run (`--seed_everything`).
        crop_padding: pixels of zero padding before the random crop; 0 turns the crop off, and null
            stands for an eighth of the side.
        flip: mirror half of the training images, chosen at random.
        augment: more transforms of each training image, before it is normalised, such as
            torchvision.transforms.v2.RandAugment; no Normalize. They give uint8, or floats in
            [0, 1], and may draw from the global generators of torch, NumPy and Python.
        workers: processes that decode files and apply `augment`, two batches each in advance; null
            for one per core, 0 for none. What is drawn does not depend on it.
        mix: torchvision.transforms.v2.MixUp or CutMix, applied to each training batch.
        balance: for classes of unequal size: `sampling` draws all classes equally often, `loss`
            weights the classes in the training loss.
        cache_dir: folder for the prepared data of sets that are decoded once; by default
            `$XDG_CACHE_HOME/supple`, or `~/.cache/supple`.

    Attributes:
        dims: 2 for images, 1 for signals (N, C, L).
        side_size: how many numbers stand beside each sample, for the side input of a network.
        image_size: side of the images, or length of the signals.
        will_test: whether a test follows the training: then its data are read before, too.
        monitor: the metric that `best.ckpt` follows; None if nothing is validated.

    Raises:
        ValueError: an option has a value of another type, or out of its range.
    """

    num_classes: int = field(init=False)
    in_channels: int = field(init=False)
    image_size: int = field(init=False)
    class_names: tuple[str, ...] = field(init=False)
    mean: tuple[float, ...] = field(init=False)
    std: tuple[float, ...] = field(init=False)
    dims = 2
    side_size = 0
    monitor = "val/acc"
    will_test = False

    batch_size: int = 128
    eval_batch_size: int = 500
    val_fraction: float = 0.1
    split_seed: int = 0
    seed: int | None = None
    crop_padding: int | None = 4
    flip: bool = True
    augment: list[Callable] | None = None
    mix: nn.Module | None = None
    balance: Literal["sampling", "loss"] | None = None
    workers: int | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        super().__init__()
        check_types(self)
        check_range(1, math.inf, batch_size=self.batch_size, eval_batch_size=self.eval_batch_size)
        check_range(0, math.inf, crop_padding=self.crop_padding or 0, workers=self.workers or 0)
        check_range(-(2**63), 2**63 - 1, split_seed=self.split_seed)
        check_part(val_fraction=self.val_fraction, zero=True)
        for each in _within(self.augment or ()):
            if type(each).__name__ == "Normalize":
                raise ValueError(
                    "augment holds Normalize: leave it out. All images are normalised afterwards, "
                    f"with the mean {self.mean} and the standard deviation {self.std} of the set"
                )
            if not callable(each):  # the parser makes only what has a type
                raise ValueError(
                    f"augment: {getattr(each, 'class_path', each)} was not made, as a class of "
                    "torchvision's first version holds it: take the class of the same name from "
                    "torchvision.transforms.v2"
                )
        self._train: Data | None = None
        self._test: Data | None = None
        self._train_loader: ImageLoader | None = None
        self._resume: dict[str, int] | None = None
        self._divided: list[dict[str, Any]] = []  # as in the runs from which this one goes on
        self._division: dict[str, Any] = {}  # of this one, once it is known

    @property
    def description(self) -> dict[str, Any]:
        """What a trained network must know of its data, as plain values: checkpoints store it.

        `step` names code of a subclass that changes batches, which no checkpoint can hold.
        """
        own = type(self).transform_batch
        known = own is ImageDataModule.transform_batch
        return {
            "name": type(self).__name__,
            "class_names": list(self.class_names),
            "dims": self.dims,
            "channels": self.in_channels,
            "size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            **({} if known else {"step": own.__qualname__}),
            **({"resize": RESIZE} if self.dims == 2 else {}),
        }

    @property
    def shared(self) -> bool:
        """Whether :meth:`load` gives the samples of all splits, whatever the part."""
        return False

    @abstractmethod
    def load(self, split: Part) -> Data:
        """Read one part: images (M, C, H, W) in uint8, and labels (M,) in int64."""

    def load_side(self, split: Part) -> Tensor | None:
        """The numbers beside each sample of a part, (M, side_size), if there are some."""
        return None

    def choose(self, split: Split, labels: Tensor) -> Tensor:
        """Positions of the samples of a split among those that :meth:`load` returned."""
        if split == "test":
            return torch.arange(len(labels))
        parts = stratified_split(labels, self.val_fraction, self.split_seed, self.class_names)
        return parts[split == "val"]

    def describe(self, index: int) -> dict[str, Any]:
        """What is known of a test sample besides its label, for the table of predictions."""
        return {}

    def test_report(self, true: Any, predicted: Any, group: Any) -> Any:
        """What is told of a test besides the metrics: a `text`, and `tables` of pandas by name.

        Args:
            true: (M,), the classes.
            predicted: (M,), those that were predicted.
            group: (M,), the `record` of which :meth:`describe` tells; None if it tells none.

        Returns:
            None if there is nothing.
        """
        return None

    def name_of(self, part: Part, index: int) -> str:
        """A sample in words: its file, or its part and its number."""
        return str(next(iter(self.describe(index).values()), f"{part} {index}"))

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
                loader.workers = 0
                first, again = (next(iter(loader))[0] for _ in range(2))  # refuses what fails
                loader.next_batch = 0
                if not torch.equal(first, again):
                    names = ", ".join(map(named, filter(None, [*(self.augment or ()), self.mix])))
                    raise ValueError(
                        f"augment or mix ({names}) makes another image of the same one when it is "
                        "seeded again: a transform must draw from the global generators of torch, "
                        "NumPy or Python, not from one of its own, so that a run can be repeated"
                    )

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
        """With `balance: loss`, the weight of each class; its mean over the samples is 1.

        A class without samples has 1: smoothed labels and BCE count it, too.
        """
        if self.balance != "loss" or self._train is None:
            return None
        counts = self._train[1][self.train_indices].bincount(minlength=self.num_classes)
        weights = counts.sum() / ((counts > 0).sum() * counts.clamp(min=1))
        return torch.where(counts > 0, weights, 1.0)

    @property
    def side_statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation of the numbers beside the training samples, if there are some."""
        if self._train is None or (side := self.load_side("train")) is None:
            return None
        deviation, mean = torch.std_mean(side[self.train_indices].double(), 0, correction=0)
        return mean.float(), deviation.float()

    def train_dataloader(self) -> ImageLoader:
        """Shuffled, augmented training batches; after a resume, those that are left."""
        loader = self._train_loader = self._loader("train", self.train_indices, training=True)
        if self._resume:
            loader.load_state_dict(self._resume)
            self._resume = None
        return loader

    def val_dataloader(self) -> Any:
        """The validation images, in order; no loader if there are none."""
        if not len(self.val_indices):
            return []
        return self._loader("train", self.val_indices)

    def test_dataloader(self) -> ImageLoader:
        """The test images, in order."""
        return self._loader("test", self.test_indices)

    predict_dataloader = test_dataloader

    def state_dict(self) -> dict[str, Any]:
        """The position of the training loader, and how the samples are divided.

        Lightning stores the state of a loader too, but does not restore it into a loader that was
        made before the checkpoint was read, as for a scheduler that asks for the number of steps.
        """
        position = self._train_loader.state_dict() if self._train_loader else {}
        divided = [*self._divided, *filter(None, [self._present_division()])]
        return {**position, "divided": [d for n, d in enumerate(divided) if d not in divided[:n]]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the training loader, also the next one, continue from that position.

        If samples of the same place that are held out now may have been for training, a warning
        says so.
        """
        position = dict(state_dict)
        self._divided, here = position.pop("divided", []), self._present_division()
        known = [d for d in self._divided if here and d["place"] == here["place"]]
        why = next(filter(None, (self._leak(then, here) for then in known)), "")
        if why and not (self.trainer and self.trainer.predicting):
            rank_zero_warn(
                f"the validation and test sets may hold samples on which the network was trained: "
                f"{why}, since files or options of the data have changed"
            )
        self._resume = position
        if self._train_loader and position:
            self._train_loader.load_state_dict(position)

    @property
    def place(self) -> str:
        """Where the samples are from: those of another place are other samples."""
        root = getattr(self, "root", None)
        return os.path.realpath(os.path.expanduser(str(root))) if root else type(self).__qualname__

    @property
    def place_digest(self) -> str:
        """The place, so that a checkpoint does not tell it."""
        return hashlib.sha256(self.place.encode()).hexdigest()[:8]

    def drawn(self, labels: Tensor) -> Tensor:
        """The positions of the samples from which splits are drawn, not those of fixed parts."""
        return torch.arange(len(labels))

    def _present_division(self) -> dict[str, Any]:
        self._division = self._division or self.division()  # not anew for each checkpoint
        return self._division

    def division(self) -> dict[str, Any]:
        """What is held out from training, for checkpoints; nothing if it is not known yet."""
        data = self._train if self._train is not None or not self.shared else self._test
        if data is None:
            return {}
        labels, drawn = data[1], self.drawn(data[1])
        try:
            held = [self.choose(split, labels) for split in ("val", "test")[: 1 + self.shared]]
        except ValueError:  # no sample is for training
            return {}
        mask = torch.isin(drawn, torch.cat(held))
        parts = (labels[drawn].numpy().tobytes(), mask.numpy().tobytes())
        return {
            "held_out": int(mask.sum()),
            "of": len(drawn),
            "digest": hashlib.sha256(b"".join(parts)).hexdigest()[:16],
            "place": self.place_digest,
        }

    def _leak(self, then: dict[str, Any], now: dict[str, Any]) -> str:
        """Why what is held out `now` may have been for training `then`; "" if it was not."""
        if then == now or now["held_out"] == 0:
            return ""
        texts = [f"{each['held_out']:,} of {each['of']:,}" for each in (then, now)]
        return f"{texts[0]} were held out, now other {texts[1]}"

    def _loader(self, part: Part, indices: Tensor, *, training: bool = False) -> ImageLoader:
        data = self._train if part == "train" else self._test
        assert data is not None, "call setup(stage) first"
        side = self.load_side(part)
        if (trainer := self.trainer) is None:
            return ImageLoader(self, *data, indices, side, training=training)
        return ImageLoader(
            self,
            *data,
            indices,
            side,
            training=training,
            fixed=bool(getattr(trainer, "overfit_batches", 0)),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            local=trainer.num_devices,
            device=trainer.strategy.root_device,
        )

    def _take(self, split: Split, labels: Tensor) -> Tensor:
        """The positions of a split; log how many samples of each class it has."""
        indices, name = self.choose(split, labels), f"{type(self).__name__} {split}"
        counts = labels[indices].bincount(minlength=self.num_classes).tolist()
        present = [count for count in counts if count]
        if split == "val" and not present and self.val_fraction == 0:
            rank_zero_info(f"{name}: none (val_fraction is 0); best.ckpt is the last checkpoint")
            self.monitor = None  # pyright: ignore[reportAttributeAccessIssue]
            if self.trainer is not None:  # else Lightning warns of a loader without batches
                self.trainer.limit_val_batches = 0
            return indices
        if self.num_classes < 2:
            raise ValueError(
                f"{name}: there is one class, {self.class_names[0]!r}; give two or more"
            )
        if not present:
            raise ValueError(f"{name}: the split is empty: add samples or choose another split")
        low, high = min(present), max(present)
        each = f"{low}" if low == high else f"{low} to {high}"
        classes = f"{each} in each of {len(present)} classes"
        if min(counts) < high and len(counts) <= 15:
            named = zip(self.class_names, counts, strict=True)
            classes = ", ".join(f"{name} {count}" for name, count in named)
        elif len(present) < len(counts):
            named = zip(self.class_names, counts, strict=True)
            classes += f", none in {some([name for name, count in named if not count])}"
        rank_zero_info(f"{name}: {len(indices)} ({classes})")
        return indices


def _within(transforms: Iterable[Any]) -> Iterator[Any]:
    """All transforms, also those that others hold."""
    for transform in transforms:
        yield transform
        yield from _within(getattr(transform, "transforms", ()))
        yield from _within(transform.children() if isinstance(transform, nn.Module) else ())


def stratified_split(
    labels: Tensor, fraction: float, seed: int, names: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Split the positions of `labels` into two sorted parts; `fraction` of each class is second.

    Args:
        labels: (M,), the class of each sample.
        fraction: 0 leaves the second part empty; else it has a sample of each class.
        seed: of the choice.
        names: of the classes, for errors.

    Raises:
        ValueError: a class is too small to be in both parts.
    """
    if fraction == 0:
        return torch.arange(len(labels)), torch.arange(0)
    generator = torch.Generator().manual_seed(seed)
    counts = labels.bincount()
    check_sizes(counts, 2, names)
    first, second = [], []
    for members in labels.argsort(stable=True).split(counts[counts > 0].tolist()):
        chosen = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        second.append(chosen[:count])
        first.append(chosen[count:])
    return torch.cat(first).sort().values, torch.cat(second).sort().values


def check_sizes(counts: Tensor, least: int, names: Sequence[str]) -> None:
    """Raise a ValueError that names the classes with fewer than `least` samples, but with some."""
    small = ((counts > 0) & (counts < least)).nonzero().flatten().tolist()
    if small:
        each = [f"{names[c] if names else c} ({counts[c]})" for c in small]
        raise ValueError(
            f"{len(small)} of {int((counts > 0).sum())} classes have fewer than {least} different "
            f"samples, too few for a sample in each split: {some(each)}. Add samples to them, "
            "leave these classes out, or lower test_fraction and val_fraction"
        )
