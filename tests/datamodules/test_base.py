"""Data sets: formats, splits, order, augmentation, and what bad folders are told."""

import shutil
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback, Trainer
from PIL import Image

import datamodules
from callbacks.checkpoints import BestCheckpoint
from datamodules import CIFAR10, CIFAR100, Digits, ImageDataModule, ImageFolder
from datamodules.augment import Source, crop, uniform
from datamodules.base import stratified_split
from datamodules.loader import ImageLoader, distinct
from datamodules.pool import Pool
from tests.data import Tiny, part_of, write_folder, write_official, write_tree
from tests.trainings import Small, classifier, trainer


def test_digits_splits_never_leak():
    data = Digits(val_fraction=0.2)
    data.setup("fit")
    data.setup("test")
    (pool, labels), (tested, test_labels) = part_of(data, "train"), part_of(data, "test")
    train, val = set(data.train_indices.tolist()), set(data.val_indices.tolist())
    assert not train & val
    assert len(train | val) == len(labels)
    assert len(labels) + len(test_labels) == 1797
    images = torch.cat([pool, tested]).flatten(1)
    assert len(images.unique(dim=0)) == 1797  # no image is in both
    for held in (labels[data.val_indices], test_labels):
        assert (held.bincount(minlength=10).float() / len(held) - 0.1).abs().max() < 0.02
    assert images.float().mean() / 255 == pytest.approx(data.mean[0], abs=0.002)
    assert pool.shape[1:] == (1, 32, 32)


def test_split_is_stratified_seeded_and_refuses_tiny_classes():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 7)
    train, val = stratified_split(labels, 0.1, seed=3)
    assert labels[val].bincount().tolist() == [5, 3, 1]
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(87))
    assert stratified_split(labels, 0.1, seed=3)[1].equal(val)
    assert not stratified_split(labels, 0.1, seed=4)[1].equal(val)
    few = r"1 of 2 classes have fewer than 2 .* in each split: bee \(1\)\. Add samples"
    with pytest.raises(ValueError, match=few):
        stratified_split(torch.tensor([0, 0, 1]), 0.5, 0, ("ant", "bee"))
    train, val = stratified_split(labels, 0, seed=3)
    assert (len(train), len(val)) == (87, 0)


def test_cifar_reads_a_tree_of_png_files(tmp_path: Path):
    root = tmp_path / "with space é"
    write_tree(root)
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    data = CIFAR10(str(root), val_fraction=0.25)
    data.setup("fit")
    data.setup("test")
    images, labels = part_of(data, "train")
    assert images.shape == (40, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.bincount().tolist() == [4] * 10
    assert (len(data.val_indices), len(data.test_indices)) == (10, 30)
    from PIL import Image

    png = np.asarray(Image.open(root / "train" / "cat" / "2.png"))
    assert np.array_equal(images[3 * 4 + 2].permute(1, 2, 0).numpy(), png)


def test_cifar_reads_torchvisions_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raw = write_official(tmp_path, monkeypatch)
    data = CIFAR10(str(tmp_path))
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    images, labels = part_of(data, "train")
    assert np.array_equal(images.flatten(1).numpy(), raw[:100])
    assert np.array_equal(part_of(data, "test")[0].flatten(1).numpy(), raw[100:])
    assert labels[:12].tolist() == [*range(10), 0, 1]
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"broken")
    with pytest.raises(RuntimeError, match=r"cifar-10-batches-py' is damaged.*delete it"):
        CIFAR10(str(tmp_path)).setup("fit")


def test_class_names():
    assert len(set(CIFAR100.class_names)) == CIFAR100.num_classes == 100
    assert list(CIFAR100.class_names) == sorted(CIFAR100.class_names)


def damage_nothing(root: Path) -> str:
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return "no CIFAR10 in .* hold cifar-10-batches-py/ or train/<class>/.*--data.root DIR"


def damage_class(root: Path) -> str:
    (root / "train" / "cat").rename(root / "train" / "lion")
    return "train' does not hold the expected classes: missing cat, unexpected lion"


def damage_count(root: Path) -> str:
    (root / "train" / "lion").mkdir()
    return "does not hold the expected classes: missing none, unexpected lion"


def damage_empty(root: Path) -> str:
    for file in (root / "train" / "dog").iterdir():
        file.unlink()
    return "class folder .*dog' holds no image"


def damage_image(root: Path) -> str:
    file = root / "train" / "frog" / "1.png"
    file.write_bytes(file.read_bytes()[:200])
    return "frog/1.png' is damaged .*replace or delete"


def damage_text(root: Path) -> str:
    (root / "train" / "frog" / "0.png").write_text("no picture")
    return "frog/0.png' is damaged .*replace or delete"


def damage_size(root: Path) -> str:
    from PIL import Image

    Image.new("RGB", (31, 32)).save(root / "train" / "ship" / "0.png")
    return "ship/0.png' is damaged .it has 31 x 32 pixels, not 32 x 32.: replace or delete"


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing,
        damage_class,
        damage_count,
        damage_empty,
        damage_image,
        damage_text,
        damage_size,
    ],
)
def test_a_bad_folder_is_named_with_its_remedy(tmp_path: Path, damage):
    write_tree(tmp_path / "cifar")
    message = damage(tmp_path / "cifar")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        CIFAR10(str(tmp_path / "cifar")).setup("fit")


def test_a_missing_test_folder(tmp_path: Path):
    write_tree(tmp_path, test_per_class=0)
    for folder in (tmp_path / "test").iterdir():
        folder.rmdir()
    (tmp_path / "test").rmdir()
    data = CIFAR10(str(tmp_path))
    data.setup("fit")
    with pytest.raises(FileNotFoundError, match=r"no folder .*test'"):
        data.setup("test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"val_fraction": 1.0}, "val_fraction must be 0 or lie between 0 and 1, got 1.0"),
        ({"crop_padding": -2}, "crop_padding must be an integer >= 0, got -2"),
        ({"split_seed": 2**64}, "split_seed must be an integer from -9223372036854775808"),
        ({"image_size": 4}, "image_size must be an integer from 8 to 4096, got 4"),
    ],
)
def test_bad_numbers(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Digits(**arguments)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Digits", {"seed": "x"}, "seed must be an integer or None, got 'x'"),
        ("Digits", {"flip": 1}, "flip must be True or False, got 1"),
        ("Digits", {"batch_size": True}, "batch_size must be an integer, got True"),
        ("Digits", {"image_size": 8.5}, r"image_size must be an integer, got 8\.5"),
        (
            "Digits",
            {"augment": 3},
            "augment must be a list, each a class or a function or None, got 3",
        ),
        ("Digits", {"augment": [3]}, r"augment must be .*, got \[3\]"),
        ("CIFAR100", {"root": None}, "root must be text, got None"),
        (
            "MITBIH",
            {"protocol": "x"},
            "must be 'inter_patient', 'patient_specific', .*'kaggle' or 'kaggle_rebuilt', got",
        ),
        ("MITBIH", {"window": (0.5,)}, r"window must be \(a number, a number\), got \(0\.5,\)"),
        (
            "MITBIH",
            {"val_records": "101"},
            "val_records must be a list, each an integer or text or None, got '101'",
        ),
    ],
)
def test_values_of_another_type(name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        getattr(datamodules, name)(**options)


def test_every_option_of_every_set_checks_its_type():
    for name in set(datamodules.__all__) - {"ImageDataModule"}:  # which is abstract
        kind = getattr(datamodules, name)
        for option in (option.name for option in fields(kind) if option.init):
            with pytest.raises(ValueError, match=rf"^{option} must be .*, got 1j$"):
                kind(**{option: 1j})
    number: Any = np.int64(16)  # what only looks like another type
    assert Digits(image_size=number, batch_size=number, val_fraction=np.float64(0.5)).seed is None
    root: Any = Path("x")
    assert CIFAR10(root).folder == root


def loaders(world_size: int, *, training: bool, epoch: int = 2, batch_size: int = 6):
    data = Tiny(batch_size=batch_size, eval_batch_size=batch_size, seed=5)
    images, labels = data.load("train")
    for rank in range(world_size):
        loader = ImageLoader(data, images, labels, torch.arange(53), training=training, rank=rank,
                             world_size=world_size)  # fmt: skip
        loader.set_epoch(epoch)
        yield loader


def test_training_batches_are_the_same_for_any_number_of_processes():
    [one] = loaders(1, training=True)
    seen = {int(i): x for images, _, index in one for i, x in zip(index, images, strict=True)}
    halves = [list(loader) for loader in loaders(2, training=True, batch_size=3)]
    assert len(halves[0]) == len(halves[1]) == len(one) == 53 // 6
    for (_, _, index), *parts in zip(one, *halves, strict=True):
        both = torch.cat([part[2] for part in parts])
        assert set(both.tolist()) == set(index.tolist())
        for images, _, part in parts:
            assert all(torch.equal(x, seen[int(i)]) for i, x in zip(part, images, strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_counts_every_image_once(world_size: int):
    indices = [i for loader in loaders(world_size, training=False) for _, _, x in loader for i in x]
    assert sorted(int(i) for i in indices) == list(range(53))


def test_order_and_augmentation_follow_seed_and_epoch():
    [first], [again], [other] = (list(loaders(1, training=True, epoch=e)) for e in (2, 2, 3))
    a, b, c = (list(loader) for loader in (first, again, other))
    assert all(torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(x[2], y[2]) for x, y in zip(a, c, strict=True))


def test_every_image_draws_its_own_crop_and_flip():
    index = torch.arange(20_000)
    top, left, mirrored = uniform(3, 7, index, (9, 9, 2))
    for draw, bound in ((top, 9), (left, 9), (mirrored, 2)):
        share = draw.bincount(minlength=bound) / len(index)
        assert (share - 1 / bound).abs().max() < 0.012
    assert np.abs(np.corrcoef(torch.stack([top, left, mirrored]).numpy()) - np.eye(3)).max() < 0.03
    assert not torch.equal(top, uniform(3, 8, index, (9,))[0])
    assert torch.equal(top[777:779], uniform(3, 7, index[777:779], (9,))[0])


def test_an_image_that_is_drawn_again_has_another_crop():
    order = torch.tensor([3, 0, 3, 1, 3, 0])
    assert distinct(order, 10).tolist() == [3, 0, 13, 1, 23, 10]
    images = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8)
    found = Source(images, None)(distinct(order, 10))
    assert torch.equal(found, images[order])
    labels = torch.tensor([0] * 9 + [1])
    data = CIFAR10(batch_size=10, balance="sampling", seed=0)
    loader = ImageLoader(data, images, labels, torch.arange(10), training=True)
    x, _, index, *_ = next(iter(loader))
    rare = x[index == 9]
    assert 3 < len(rare) == len(rare.flatten(1).unique(dim=0))


def test_crop_cuts_where_it_is_told():
    images = torch.arange(1, 1 + 2 * 3 * 4).view(2, 1, 3, 4).to(torch.uint8)
    shifted = crop(images, 1, torch.tensor([0, 2]), torch.tensor([1, 0]))
    assert shifted[0, 0].tolist() == [[0] * 4, [1, 2, 3, 4], [5, 6, 7, 8]]
    assert shifted[1, 0].tolist() == [[0, 17, 18, 19], [0, 21, 22, 23], [0] * 4]


def test_images_are_normalised():
    [loader] = loaders(1, training=False)
    images, _, index = next(iter(loader))
    raw = Tiny().load("train")[0][index].double() / 255
    torch.testing.assert_close(images.double(), (raw - 0.5) / 0.3, rtol=1e-5, atol=1e-5)


def test_an_interrupted_epoch_goes_on_where_it_stopped():
    [whole] = loaders(1, training=True)
    expected = [index.tolist() for _, _, index in whole]
    [loader] = loaders(1, training=True)
    for _ in zip(range(3), loader, strict=False):
        pass
    state = loader.state_dict()
    [resumed] = loaders(1, training=True)
    resumed.load_state_dict(state)
    iterator = iter(resumed)
    assert [index.tolist() for _, _, index in iterator] == expected[state["next_batch"] :]
    assert len(list(resumed)) == len(expected)  # the epoch after it is whole again


def test_an_epoch_goes_on_with_batches_of_its_size_alone():
    [loader] = loaders(1, training=True)
    next(iter(loader))
    for batch_size, processes, fits in ((6, 1, True), (3, 2, True), (12, 1, False), (6, 2, False)):
        for resumed in loaders(processes, training=True, batch_size=batch_size):
            resumed.load_state_dict(loader.state_dict())
            if fits:
                next(iter(resumed))
                continue
            with pytest.raises(ValueError, match="inside epoch 2, whose batches have 6 samples"):
                next(iter(resumed))
            resumed.load_state_dict(loader.state_dict())
            resumed.set_epoch(3)  # the checkpoint was of an epoch's end
            next(iter(resumed))


def test_a_division_that_is_not_that_of_a_checkpoint_is_told(tmp_path: Path):
    write_folder(tmp_path / "photos")
    options: Any = {"root": str(tmp_path / "photos"), "image_size": 16, "cache_dir": str(tmp_path)}

    def read(*stages: str, **more: Any) -> ImageFolder:
        data = ImageFolder(**options | more)
        for stage in stages:
            data.setup(stage)
        return data

    state = read("fit").state_dict()
    for stages in (("fit",), ("test",), ("fit", "test"), ()):
        read(*stages).load_state_dict(state)  # warnings are errors
    with pytest.warns(UserWarning, match="may hold samples on which the network was"):
        read("test", split_seed=7).load_state_dict(state)
    shutil.copytree(tmp_path / "photos", tmp_path / "others")
    shutil.copy(tmp_path / "photos/ant/3.jpg", tmp_path / "photos/bee/new.jpg")
    shutil.copy(tmp_path / "photos/ant/3.jpg", tmp_path / "others/bee/new.jpg")
    read("test", root=str(tmp_path / "others")).load_state_dict(state)  # other data, on purpose
    for stage in ("fit", "test"):
        data = read(stage)
        told = r"\d+ of 30 were held out, now other \d+ of 31"
        with pytest.warns(UserWarning, match=told):
            data.load_state_dict(state)
        both = data.state_dict()  # it goes on to be trained on others
        with pytest.warns(UserWarning, match=told):
            read(stage).load_state_dict(both)
    predicting: Any = SimpleNamespace(predicting=True)
    data.trainer = predicting
    data.load_state_dict(state)
    fresh = Tiny()
    fresh.setup("fit")
    fresh.load_state_dict({})  # of a checkpoint that does not tell
    every, some = Tiny(val_fraction=0), Tiny(val_fraction=0.2)
    every.setup("fit")
    some.setup("fit")
    every.load_state_dict(some.state_dict())  # nothing is held out
    for state in (Tiny(val_fraction=0), every):  # all were for training, at first or later
        state.setup("fit")
        with pytest.warns(UserWarning, match="0 of 60 were held out, now other 12 of 60"):
            some.load_state_dict(state.state_dict())


def test_a_test_set_of_its_own_may_grow(tmp_path: Path):
    for part, count in (("train", 8), ("test", 3)):
        write_folder(tmp_path / "photos" / part, per_class=count)
    options: Any = {"root": str(tmp_path / "photos"), "image_size": 16, "cache_dir": str(tmp_path)}
    data = ImageFolder(**options)
    data.setup("fit")
    (tmp_path / "photos/test/ant/2.jpg").rename(tmp_path / "photos/test/ant/3.jpg")
    Image.new("RGB", (24, 20), (9, 99, 9)).save(tmp_path / "photos/test/ant/1.png")
    for stage in ("fit", "test"):
        other = ImageFolder(**options)
        other.setup(stage)
        other.load_state_dict(data.state_dict())  # warnings are errors
    Image.new("RGB", (24, 20), (99, 9, 9)).save(tmp_path / "photos/train/ant/9.png")
    other = ImageFolder(**options)
    other.setup("fit")  # the validation set is a part of these
    with pytest.warns(UserWarning, match="of 24 were held out, now other"):
        other.load_state_dict(data.state_dict())


def test_lightning_sets_the_epoch_of_the_sampler(tmp_path: Path):
    """Without that call every epoch would silently repeat the order and crops of epoch 0."""
    seen: list[list[int]] = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append([])

        def on_train_batch_start(
            self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            seen[-1] += batch[2].tolist()

    trainer(tmp_path, Watch()).fit(Small(), datamodule=Tiny())
    data = Tiny()
    data.setup("fit")
    loader, expected = data.train_dataloader(), []
    for epoch in range(3):
        loader.set_epoch(epoch)
        expected.append([i for _, _, index in loader for i in index.tolist()])
    assert seen == expected
    assert len({tuple(order) for order in seen}) == 3


@pytest.mark.parametrize("name", [n for n in datamodules.__all__ if n != "ImageDataModule"])
def test_every_set_has_the_shared_options(name: str):
    """On the command line: with the default of the base class or its own, and with a help text."""
    kind = getattr(datamodules, name)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "data")
    defaults = parser.get_defaults()["data"].as_dict()
    shared = {option.name: option.default for option in fields(ImageDataModule) if option.init}
    own: dict[str, dict[str, Any]] = {
        "Digits": {"batch_size": 64, "crop_padding": 2, "flip": False},
        "MNIST": {"crop_padding": 2, "flip": False},
    }
    folder = {"crop_padding": None} if issubclass(kind, Pool) else {}
    shared |= own.get(name, folder)
    if name in ("MITBIH", "WFDBBeats"):  # a beat is not cropped and not flipped
        del shared["crop_padding"], shared["flip"]
        assert "crop_padding" not in defaults
    assert {option: defaults[option] for option in shared} == shared
    options = [action for action in parser._actions if action.dest.startswith("data.")]
    assert {action.dest.removeprefix("data.") for action in options if action.help} >= {*defaults}
    assert ("root" in defaults) == (name not in ("Digits", "FromDataset", "HuggingFace"))
    with pytest.raises(ArgumentError, match="nonsense"):
        parser.parse_args(["--data.nonsense", "3"])


def test_too_few_images_for_a_batch():
    with pytest.raises(ValueError, match="53 images do not fill one batch of 27 in each of 2"):
        list(loaders(2, training=True, batch_size=27))


def test_without_validation_the_last_checkpoint_is_the_best(tmp_path: Path, caplog: Any):
    data, best = Tiny(val_fraction=0.0), BestCheckpoint(tmp_path, "best", "auto", mode="max")
    run = trainer(tmp_path, best, enable_checkpointing=True, max_epochs=2)
    run.fit(classifier(None), datamodule=data)
    assert len(data.train_indices) == 60
    assert list(data.val_dataloader()) == []
    assert "Tiny val: none (val_fraction is 0); best.ckpt is the last checkpoint" in caplog.text
    assert torch.load(best.best_model_path, weights_only=True)["epoch"] == 1
    assert not any(name.startswith("val/") for name in run.callback_metrics)
