"""Sets of samples that a class gives: what is read of each, their parts, and what is refused."""

import gzip
import importlib
import struct
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from torchvision import datasets
from torchvision.transforms import v2

import models
from datamodules import FromDataset
from datamodules.fromdataset import paths, told
from models import Classifier
from tests.data import part_of
from tests.trainings import trainer

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
FORMS = {
    "PIL": (3, Image.fromarray),
    "PIL, grey": (1, lambda x: Image.fromarray(x[..., 0])),
    "PIL, 16 bits": (1, lambda x: Image.fromarray(x[..., 0].astype(np.uint16) * 257)),
    "array": (3, lambda x: x),
    "array, grey": (1, lambda x: x[..., 0]),
    "array, transparent": (3, lambda x: np.concatenate([x, x[..., :1]], axis=2)),
    "tensor": (3, lambda x: torch.from_numpy(x).permute(2, 0, 1)),
    "tensor, grey": (1, lambda x: torch.from_numpy(x[..., 0])),
    "tensor of floats": (3, lambda x: torch.from_numpy(x / 255).permute(2, 0, 1).float()),
    "array of floats": (3, lambda x: x / 255),
}
LABELS = {int: int, np.int64: np.int64, torch.tensor: torch.tensor}


class Made(Dataset[Any]):
    """`PIXELS`, the last 10 for the test; the rest for training."""

    classes = ("even", "odd")

    def __init__(self, train: bool = True, form: Any = "PIL", label: Any = int) -> None:
        self.numbers = range(30) if train else range(30, 40)
        self.form, self.label, self.train = form, label, train

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Any:
        index = self.numbers[number]
        form = FORMS[self.form][1] if isinstance(self.form, str) else self.form
        return form(PIXELS[index]), self.label(index % 2)


def read(dataset: Any, tmp_path: Path, **options: Any) -> FromDataset:
    data = FromDataset(dataset=dataset, cache_dir=str(tmp_path / "cache"), **options)
    data.setup("fit")
    data.setup("test")
    return data


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_image_keeps_its_numbers(tmp_path: Path, form: str):
    label = list(LABELS.values())[len(form) % 3]
    data = read(partial(Made, form=form, label=label), tmp_path)
    channels = FORMS[form][0]
    images, labels = part_of(data, "train")
    assert (data.in_channels, data.image_size, data.class_names) == (channels, 8, ("even", "odd"))
    np.testing.assert_array_equal(images, PIXELS.transpose(0, 3, 1, 2)[:, :channels])
    assert labels.tolist() == [0, 1] * 20
    assert len(data.mean) == len(data.std) == channels
    assert data.test_indices.tolist() == [*range(30, 40)]
    assert len(data.train_indices) + len(data.val_indices) == 30
    assert data.describe(31) == {"sample": "test 1"}
    assert data.description["name"] == "Made"


def test_sizes_and_channels_that_are_chosen(tmp_path: Path):
    data = read(partial(Made, form="tensor"), tmp_path, image_size=16, channels=1)
    images, _ = part_of(data, "train")
    assert images.shape == (40, 1, 16, 16)
    expected = Image.fromarray(PIXELS[5]).resize((16, 16), Image.Resampling.BILINEAR).convert("L")
    np.testing.assert_array_equal(images[5, 0], np.asarray(expected))


def test_a_grey_image_among_coloured_ones(tmp_path: Path):
    images, _ = part_of(read(partial(Other, odd=lambda x: x.convert("L")), tmp_path), "train")
    grey = np.asarray(Image.fromarray(PIXELS[3]).convert("L"))
    np.testing.assert_array_equal(images[3], np.stack([grey] * 3))
    np.testing.assert_array_equal(images[4], PIXELS[4].transpose(2, 0, 1))


def test_the_parts_of_a_class_that_has_three(tmp_path: Path):
    class Split(Made):
        def __init__(self, split: str = "train") -> None:
            super().__init__()
            first = ["train", "val", "test"].index(split) * 12
            self.numbers = range(first, first + 12)

    split = read(Split, tmp_path, val={"split": "val"})
    assert [split.train_indices.tolist(), split.val_indices.tolist(), split.test_indices.tolist()] == [
        [*range(12)], [*range(12, 24)], [*range(24, 36)]
    ]  # fmt: skip
    whole = read(Split, tmp_path / "other", test={"split": "val"})
    assert whole.test_indices.tolist() == [*range(12, 24)]


def test_a_class_without_parts_is_a_pool(tmp_path: Path):
    class Whole(Made):
        def __init__(self) -> None:
            super().__init__()

    data = read(Whole, tmp_path, test_fraction=0.2)
    indices = [data.train_indices, data.val_indices, data.test_indices]
    assert [len(each) for each in indices] == [22, 2, 6]
    assert torch.cat(indices).sort().values.tolist() == [*range(30)]


def test_equal_images_are_never_in_two_splits(tmp_path: Path):
    class Twins(Made):
        def __getitem__(self, number: int) -> Any:
            return FORMS["PIL"][1](PIXELS[number]), number % 2

    data = read(Twins, tmp_path)  # all test images are copies of the first ten training images
    trained = [*data.train_indices.tolist(), *data.val_indices.tolist()]
    assert sorted(trained) == [*range(10, 30)]
    assert data.test_indices.tolist() == [*range(30, 40)]


@pytest.mark.filterwarnings("ignore:(test|val).* no sample of")
def test_torchvisions_own_files(tmp_path: Path):
    """FashionMNIST, as it lies on the disk, by the command line; the set need not be there later."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(1).integers(0, 256, (80, 28, 28), dtype=np.uint8)
    for part, some in (("train", slice(60)), ("t10k", slice(60, None))):
        count, labels = len(pixels[some]), bytes(i % 10 for i in range(80)[some])
        idx = {
            "images-idx3": struct.pack(">HBBIII", 0, 8, 3, count, 28, 28) + pixels[some].tobytes(),
            "labels-idx1": struct.pack(">HBBI", 0, 8, 1, count) + labels,
        }
        for name, content in idx.items():
            (raw / f"{part}-{name}-ubyte").write_bytes(content)
            (raw / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FromDataset, "data", fail_untyped=False)
    given = ["--data.dataset=torchvision.datasets.FashionMNIST", f"--data.dataset.root={tmp_path}",
             "--data.batch_size=25", f"--data.cache_dir={tmp_path / 'cache'}"]  # fmt: skip
    data = parser.instantiate_classes(parser.parse_args(given))["data"]
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    run.fit(model := Classifier("resnet8", 10, 1, 28), datamodule=data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    batches: Any = run.predict(model, datamodule=data)
    np.testing.assert_array_equal(part_of(data, "test")[0][:, 0], pixels)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert "torchvision" not in str(content["hyper_parameters"])  # it would be imported
    network = models.load(tmp_path / "a.ckpt")
    assert network.class_names[0] == "T-shirt/top"
    assert network.preparation.name == "FashionMNIST"
    shares, index = (
        torch.cat([each[name] for each in batches]) for name in ("probability", "index")
    )
    found = network(network.preprocess(pixels[70])).softmax(1)[0]
    torch.testing.assert_close(found, shares[index.tolist().index(70)], rtol=0, atol=1e-5)


def test_samples_are_read_once_until_their_files_change(tmp_path: Path):
    calls: list[int] = []

    class Watched(Made):
        def __init__(self, root: str, train: bool = True) -> None:
            super().__init__(train)

        def __getitem__(self, number: int) -> Any:
            calls.append(number)
            return super().__getitem__(number)

    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_text("1")
    read(partial(Watched, root=str(tmp_path / "files")), tmp_path)
    assert len(calls) > 40
    calls.clear()
    read(partial(Watched, root=str(tmp_path / "files")), tmp_path)
    assert calls == [0]
    (tmp_path / "files" / "a").write_text("12")
    read(partial(Watched, root=str(tmp_path / "files")), tmp_path)
    assert len(calls) > 40
    for changed in ("123", "1234"):  # an argument without a name counts, too
        calls.clear()
        read(partial(Watched, str(tmp_path / "files")), tmp_path)
        assert len(calls) > 40
        (tmp_path / "files" / "a").write_text(changed)


def test_processes_read_what_one_reads(tmp_path: Path):
    class Many(Made):
        def __init__(self, train: bool = True, last: int = 0) -> None:
            super().__init__(train)
            self.many, self.last = 1500 if train else 600, last

        def __len__(self) -> int:
            return self.many

        def __getitem__(self, number: int) -> Any:
            image = (PIXELS[number % 40].astype(int) + number // 40) % 256
            return image.astype(np.uint8), self.last if number == 1499 else number % 2

    one, two = (read(Many, tmp_path / str(n), workers=n) for n in (0, 2))
    for some, same in zip(part_of(one, "train"), part_of(two, "train"), strict=True):
        assert torch.equal(some, same)
    assert torch.equal(one.train_indices, two.train_indices)
    with pytest.raises(ValueError, match="sample 1499 of train has the label -3"):
        read(partial(Many, last=-3), tmp_path / "3", workers=2)


class Other(Made):
    """Not as the other half."""

    classes = None  # pyright: ignore

    def __init__(
        self, train: bool = True, odd: Any = None, label: Any = None, form: str = "PIL"
    ) -> None:
        super().__init__(train, form)
        self.odd, self.own = odd, label

    def __getitem__(self, number: int) -> Any:
        image, label = super().__getitem__(number)
        odd = number == 3
        image = self.odd(image) if self.odd and odd else image
        return image, self.own if self.own is not None and odd else label


class Bare:
    def __getitem__(self, number: int) -> Any:
        return PIXELS[0], 0


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (None, {}, "needs the class of a data set: --data.dataset CLASS"),
        (lambda: Made(), {}, "needs the class of a data set"),
        (Bare, {}, "Bare cannot be split"),
        (IterableDataset, {}, "IterableDataset cannot be split"),
        (Made, {"test": {"size": 3}}, r"Made\(size=3\) cannot be made \(TypeError.*--data.test"),
        (partial(Made, form=lambda x: x.tolist()), {}, r"sample 0 of train has list  ?as its image"),
        (partial(Other, odd=lambda x: x.resize((9, 8))), {}, "sample 3 of train has 9 x 8 pixels.*8 x 8.*image_size"),
        (partial(Other, form="PIL, grey", odd=lambda x: x.convert("RGB")), {}, "has 3 channels, the first 1.*--data.channels"),
        (partial(Other, label=1.5), {}, "sample 3 of train: 'float'"),
        (partial(Other, label=-1), {}, "sample 3 of train has the label -1, which is no class"),
        (partial(Other, label=10**9), {}, "has the label 1000000000"),
        (partial(Other, odd=lambda x: 1 / 0), {}, r"sample 3 of train cannot be read \(ZeroDivisionError"),
        (partial(Made, form=lambda x: v2.RandomCrop(8, padding=4)(Image.fromarray(x))), {}, "is another one.*--data.augment"),
        (partial(Made, form=lambda x: x.astype(np.float32)), {}, r"must lie in \[0, 1\]"),
        (partial(Made, form=lambda x: x[:, :6]), {}, "first image has 6 x 8 pixels, which is no square"),
        (Made, {"cache_limit": 1e-9}, "needs 7.7e-06 GB of prepared images, more than --data.cache_limit"),
        (Made, {"dataset": 3}, "dataset must be a class or a function or None, got 3"),
        (Made, {"test": 3}, "test must be a mapping or None, got 3"),
    ],
)  # fmt: skip
def test_sets_that_cannot_be_right(tmp_path: Path, dataset: Any, options: Any, message: str):
    with pytest.raises(ValueError, match=message):
        read(**{"dataset": dataset, "tmp_path": tmp_path, **options})


def test_parts_with_other_classes(tmp_path: Path):
    for part, names in (("train", "ab"), ("test", "ac")):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(PIXELS[ord(name) % 40]).save(tmp_path / part / name / "0.png")
    with pytest.raises(ValueError, match="ImageFolder: test has other classes than train"):
        read(datasets.ImageFolder, tmp_path, train={"root": str(tmp_path / "train")},
             test={"root": str(tmp_path / "test")})  # fmt: skip


class Arrays(Dataset[Any]):
    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Any:
        return self.images[number], number % 2


def test_large_arrays_are_told_apart(tmp_path: Path):
    first = np.zeros((40, 16, 16, 3), np.uint8)
    first[:, 4:12, 4:12] = np.arange(40)[:, None, None, None]
    second = first + (first > 0).astype(np.uint8)
    assert repr(first) == repr(second)  # only the borders are shown
    for images in (first, second, first):
        data = read(partial(Arrays, images), tmp_path)
        pixels = data.load("train")[0][torch.arange(len(images))]
        assert pixels.amax((1, 2, 3)).tolist() == images.max((1, 2, 3)).tolist()
    assert len(list((tmp_path / "cache").glob("Arrays-*[0-9a-f]"))) == 2


def test_an_edited_transform_and_its_base_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_base", "own_form"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "own_base.py").write_text("class Base:\n    step = 1\n")
    code = "import own_base\nclass Add(own_base.Base):\n    def __call__(self, x): return x + self.step\n"
    (tmp_path / "own_form.py").write_text(code)
    form = importlib.import_module("own_form").Add()
    compose = v2.Compose([form])
    first = part_of(read(partial(Made, form=compose), tmp_path), "train")[0]
    assert read(partial(Made, form=compose), tmp_path)._arrays  # nothing has changed
    assert len(list((tmp_path / "cache").glob("Made-*[0-9a-f]"))) == 1
    (tmp_path / "own_base.py").write_text("class Base:\n    step = 20\n")
    type(form).step = 20  # as after a new start
    second = part_of(read(partial(Made, form=compose), tmp_path), "train")[0]
    np.testing.assert_array_equal(second, (first + 19).byte())


def test_files_behind_a_linked_folder_are_told(tmp_path: Path):
    folder, far = tmp_path / "root", tmp_path / "far"
    folder.mkdir()
    far.mkdir()
    (far / "a.bin").write_bytes(b"1")
    (folder / "link").symlink_to(far)
    (far / "circle").symlink_to(folder)
    data = read(Made, tmp_path)
    before = data.stamp(folder)
    (far / "a.bin").write_bytes(b"12")
    assert data.stamp(folder) != before
    assert [name for name, *_ in before[1]] == ["root/link/a.bin"]
    assert data.stamp(Path(300 * "no path")) is None


def test_a_folder_that_is_the_default_of_a_class_is_told(tmp_path: Path):
    file = tmp_path / "labels.txt"
    file.write_text("0 1")

    class Own(Made):
        def __init__(self, train: bool = True, place: str = str(file)) -> None:
            super().__init__(train)
            self.label = lambda n: int(Path(place).read_text().split()[n])

    assert part_of(read(Own, tmp_path), "train")[1].tolist() == [0, 1] * 20
    file.write_text("1 0 ")
    assert part_of(read(Own, tmp_path), "train")[1].tolist() == [1, 0] * 20
    other = tmp_path / "other.txt"
    other.write_text("1 1")
    for _ in range(2):  # the default is not used, and nothing of it matters
        file.write_text(file.read_text() + " ")
        read(partial(Own, place=str(other)), tmp_path)
    assert len([*(tmp_path / "cache").glob("Own-*[0-9a-f]")]) == 3
    parts: Any = {"test": {"train": False, "place": str(other)}, "train": {"train": True}}
    for text in ("0 1", "1 0"):  # the training part has the default
        file.write_text(text)
        first = part_of(read(Own, tmp_path, **parts), "train")[1][0].item()
        assert first == int(text[0])


def test_paths_in_lists_are_told():
    assert [*paths([{"a": ["x", Path("y")]}, 3, "", "z"])] == [Path("x"), Path("y"), Path("z")]


def test_keys_of_values():
    assert told({"a": [1, None, np.arange(3)]}) == told({"a": [1, None, np.arange(3)]})
    assert told(torch.ones(2, dtype=torch.bfloat16)) == told(torch.ones(2, dtype=torch.bfloat16))
    assert told(torch.ones(2)) != told(torch.ones(2).double())
    assert told(lambda x: x) != told(lambda x: x)  # cannot be told
    for method in (
        torch.Tensor.float,
        np.ndarray.astype,
        str.upper,
        [v2.Lambda(torch.Tensor.byte)],
    ):
        assert told(method) == told(method)
