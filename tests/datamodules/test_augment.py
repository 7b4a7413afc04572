"""Augmentation beyond crop and flip, mixing, class balance, and what they are drawn from."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

from datamodules import CIFAR10, MNIST, Digits, ImageDataModule
from datamodules.loader import ImageLoader
from models import Classifier
from tests.data import Tiny, part_of, write_kaggle, write_mnist, write_tree


class Draw(nn.Module):
    """Paints the image in a shade drawn from torch's generator."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.full_like(image, int(torch.randint(0, 256, ())))


class Shades(ImageDataModule):
    """Each image has its number as its only shade."""

    num_classes, image_size = 4, 8
    mean, std = (0.0,) * 3, (1 / 255,) * 3

    def load(self, split: Any) -> Any:
        raise AssertionError("the loader is given its images")


def loader(batch_size: int = 8, *, processes: dict[str, Any] | None = None, training: bool = True,
           **options: Any) -> ImageLoader:  # fmt: skip
    images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 3, 8, 8).contiguous()
    options = {"batch_size": batch_size, "seed": 5, "crop_padding": 0, "flip": False} | options
    every = torch.arange(40)
    return ImageLoader(
        Shades(**options), images, every % 4, every, training=training, **processes or {}
    )


def shades(loader: ImageLoader, epoch: int = 0) -> dict[int, float]:
    loader.set_epoch(epoch)
    return {
        int(i): float(image.mean())
        for images, _, index in loader
        for i, image in zip(index, images, strict=True)
    }


def test_every_image_draws_its_own_whatever_the_batch_and_the_processes():
    """transforms.v2 draws once for a batch; here each image draws, from (seed, epoch, index)."""
    batch = torch.zeros(64, 1, 4, 4, dtype=torch.uint8)
    batch[..., 0] = 255
    flipped = v2.RandomHorizontalFlip(0.5)(batch)
    assert len(flipped.flatten(1).unique(dim=0)) == 1  # what ours must not do
    one = shades(loader(augment=[Draw()]))
    assert len(set(one.values())) > 30
    small = shades(loader(augment=[Draw()], batch_size=5))
    halves = [
        shades(loader(4, processes={"rank": rank, "world_size": 2}, augment=[Draw()]))
        for rank in (0, 1)
    ]
    assert one == small == halves[0] | halves[1]
    assert one != shades(loader(augment=[Draw()]), epoch=1)
    assert one != shades(loader(augment=[Draw()], seed=6))


def test_flips_and_crops_of_a_batch_differ():
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(200, 1, 8, 8).contiguous()
    many = ImageLoader(Tiny(batch_size=200, crop_padding=2), images,
                       torch.zeros(200, dtype=torch.int64), torch.arange(200), training=True)  # fmt: skip
    [(batch, _, _)] = many
    assert 35 <= len(batch.flatten(1).unique(dim=0)) <= 50  # 5 x 5 positions, either way round


def test_the_generator_of_the_run_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    list(loader(augment=[Draw()], mix=v2.MixUp(alpha=0.4)))
    assert torch.equal(torch.rand(3), expected)


def test_evaluation_is_not_augmented():
    plain = shades(loader(training=False, augment=[Draw()], mix=v2.MixUp(alpha=0.4)))
    assert plain == pytest.approx({i: float(i) for i in range(40)}, abs=1e-3)


@pytest.mark.parametrize("mix", [v2.MixUp(alpha=0.8), v2.CutMix(alpha=0.8)])
def test_mixing_mixes_labels_as_it_mixes_pixels(mix: nn.Module):
    epochs = []
    for epoch in (0, 0, 1):
        mixed = loader(mix=mix)
        mixed.set_epoch(epoch)
        epochs.append(list(mixed))
    (first, again, other) = epochs
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(first, other, strict=True))
    for images, labels, index in first:
        assert labels.shape == (8, 4)
        torch.testing.assert_close(labels.sum(1), torch.ones(8))
        # an image's pixels are its index: the share of it and of its partner tells both labels
        partner = index.roll(1)
        own = (images.mean((1, 2, 3)) - partner) / (index - partner)
        expected = own.view(-1, 1) * F.one_hot(index % 4, 4)
        expected += (1 - own).view(-1, 1) * F.one_hot(partner % 4, 4)
        torch.testing.assert_close(labels, expected, rtol=1e-3, atol=1e-3)


def test_a_run_with_everything(tmp_path: Path):
    """RandAugment, erasing and CutMix in a real, small training."""
    data = Tiny(augment=[v2.RandAugment(), v2.RandomErasing(p=0.5)], mix=v2.CutMix())
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=2, logger=False,
                      enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(Classifier("resnet8", 3, 1, 8), datamodule=data)
    assert 0 <= trainer.callback_metrics["train/acc"] <= 1
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_data_can_weight_the_loss(tmp_path: Path):
    """With weights n / (k n_c), the loss equals scikit-learn's balanced log loss."""
    from sklearn.metrics import log_loss
    from sklearn.utils.class_weight import compute_sample_weight

    losses, batches = [], []

    class Watched(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            losses.append(loss.item())
            batches.append((self(batch[0]).softmax(1).detach().double(), batch[1]))
            return loss

    class Skewed(Tiny):
        def choose(self, split: Any, labels: torch.Tensor) -> torch.Tensor:
            kept = super().choose(split, labels)
            return kept[(labels[kept] != 2) | (kept % 2 == 0)] if split == "train" else kept

    torch.manual_seed(0)
    data = Skewed(batch_size=40, balance="loss")
    trainer = Trainer(accelerator="cpu", devices=1, max_steps=1, logger=False,
                      enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    model = Watched("resnet8", 3, 1, 8, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    trainer.fit(model, datamodule=data)
    [(probability, labels)], [loss] = batches, losses
    whole = data.load("train")[1][data.train_indices].numpy()
    assert data.class_weights is not None
    weights = data.class_weights.numpy()
    np.testing.assert_allclose(weights[whole], compute_sample_weight("balanced", whole), rtol=1e-6)
    probability = probability / probability.sum(1, keepdim=True)
    expected = log_loss(labels, probability, sample_weight=weights[labels])
    assert loss == pytest.approx(expected, rel=1e-4)
    assert "class_weights" not in model.state_dict()


def test_a_class_without_samples_does_not_decide_the_loss():
    data = Digits(balance="loss")
    data.setup("fit")
    labels = data.load("train")[1]
    data.train_indices = data.train_indices[labels[data.train_indices] != 3]
    assert data.class_weights is not None
    assert data.class_weights[3] == 1
    assert data.class_weights.max() < 1.1


def test_balanced_sampling_is_seeded_and_resumes():
    images, labels = Tiny().load("train")
    skewed = torch.cat(
        [(labels == 0).nonzero()[:3], (labels == 1).nonzero(), (labels == 2).nonzero()[:9]]
    )
    data = Tiny(batch_size=4, balance="sampling", seed=2)
    balanced = ImageLoader(data, images, labels, skewed.flatten(), training=True)
    drawn, batches = [], []
    for epoch in range(60):
        balanced.set_epoch(epoch)
        batches = list(balanced)
        assert len(batches) == 32 // 4
        drawn += [label for _, batch, _ in batches for label in batch.tolist()]
    assert (np.bincount(drawn) / len(drawn)) == pytest.approx([1 / 3] * 3, abs=0.04)
    again = [index.tolist() for _, _, index in balanced]
    assert again == [index.tolist() for _, _, index in batches]


def test_the_long_tail(tmp_path: Path):
    write_tree(tmp_path, per_class=40)
    data = CIFAR10(str(tmp_path), imbalance_factor=9.0, val_fraction=0.1)
    data.setup("fit")
    data.setup("test")
    assert data._train is not None
    labels = data._train[1]
    counts = labels[data.train_indices].bincount(minlength=10).tolist()
    assert counts == [round(36 * 9 ** (-c / 9)) for c in range(10)]
    assert (counts[0], counts[-1]) == (36, 4)
    assert labels[data.val_indices].bincount().tolist() == [4] * 10
    assert not set(data.train_indices.tolist()) & set(data.val_indices.tolist())
    with pytest.raises(ValueError, match=r"imbalance_factor must be a number >= 1, got 0\.01"):
        CIFAR10(imbalance_factor=0.01)
    with pytest.raises(
        ValueError, match="balance must be 'sampling' or 'loss' or None, got 'both'"
    ):
        CIFAR10(balance=cast(Any, "both"))


def test_mnist(tmp_path: Path):
    pixels = write_mnist(tmp_path)
    data = MNIST(str(tmp_path))
    data.setup("fit")
    data.setup("test")
    for (images, labels), first in ((part_of(data, "train"), 0), (part_of(data, "test"), 40)):
        np.testing.assert_array_equal(images[:, 0].numpy(), pixels[first : first + 40])
        assert labels.tolist() == [i % 10 for i in range(40)]
    with pytest.raises(FileNotFoundError, match=r"no MNIST in .*--data.root DIR.*--data.download"):
        MNIST(str(tmp_path / "none")).setup("fit")
    assert data.describe(0) == {}
    for name, value in (("train/3", 90), ("test/3", 180)):  # the same set as class folders
        for digit in range(10):
            folder = tmp_path / "png" / name.replace("3", str(digit))
            folder.mkdir(parents=True)
            Image.new("L", (28, 28), value).save(folder / "a.png")
    (tmp_path / "png" / "train" / "0" / "b.png").write_bytes(
        (tmp_path / "png" / "train" / "0" / "a.png").read_bytes()
    )
    images, labels = MNIST(str(tmp_path / "png"), download=True).load("train")
    colours = Image.effect_noise((28, 28), 60).convert("RGB")
    colours.paste((9, 20, 250), (4, 4, 20, 9))
    colours.save(tmp_path / "png/train/4/colours.png")
    grey = MNIST(str(tmp_path / "png")).load("train")[0][5 + 1, 0]  # as `predict` reads it
    np.testing.assert_array_equal(grey, np.asarray(colours.convert("L")))
    assert images.shape == (11, 1, 28, 28)
    assert images.unique().tolist() == [90]
    assert labels.tolist() == [0, *range(10)]
    file = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    content = file.read_bytes()
    for damaged in (content[:-3], content[:-1] + b"\x0b", b"", content[:5]):
        file.write_bytes(damaged)
        with pytest.raises(RuntimeError, match=r"MNIST in .*raw' is damaged .*: delete it"):
            MNIST(str(tmp_path)).setup("fit")


@pytest.mark.parametrize("representation", ["signal", "spectrogram"])
def test_a_batch_can_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, representation: str):
    from datamodules.__main__ import main

    write_kaggle(tmp_path)
    line = f"x MITBIH {tmp_path} {tmp_path}/p.png protocol=kaggle representation={representation}"
    monkeypatch.setattr("sys.argv", line.split())
    main()
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("L"))
    assert pixels.std() > 10
    assert not list(tmp_path.glob("*.part*"))
    monkeypatch.setattr("sys.argv", ["x", "CIFAR"])
    with pytest.raises(SystemExit, match="NAME is one of CIFAR10"):
        main()
