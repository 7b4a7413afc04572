"""Damaged files: 300 of them, each either still readable or one error that names the file."""

import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import CIFAR10, MNIST
from datamodules.beats import Window, read_beats, read_rows
from datamodules.images import read_image
from datamodules.miniimagenet import read_list, read_pickle
from tests.data import write_kaggle, write_mini, write_mnist, write_official, write_records

EACH = 30


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Cut off, overwrite, remove, repeat or add some bytes."""
    start = draw.randrange(len(content))
    end = min(len(content), start + draw.choice([1, 4, 50]))
    return draw.choice(
        [
            content[:start],
            content[:start] + draw.randbytes(end - start) + content[end:],
            content[:start] + bytes(end - start) + content[end:],
            content[:start] + content[end:],
            content[:end] + content[start:],
            content[:start] + draw.randbytes(7) + content[start:],
            content + draw.randbytes(40),
            b"",
        ]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC)
    for suffix in ("png", "jpg", "bmp", "webp", "tif", "gif"):
        image.save(root / f"image.{suffix}")
    write_records(root / "mitdb", only=[100])
    write_kaggle(root, rows=12)
    write_mnist(root / "mnist")
    write_mini(root / "flat", "flat", per_class=1)
    write_mini(root / "pickle", "pickle", per_class=1)
    return root


def beats(file: Path) -> Any:
    for lead, rate in (("MLII", 360), ("V1", None)):  # of MIT-BIH, and of any folder
        window = Window((lead,), 1, 0.2, 0.2, 360.0, False, "none")
        found = read_beats(file.with_suffix(""), window, {}, rate)
        assert isinstance(found, list) or np.isfinite(found.signals).all()


def image(file: Path) -> Any:
    pixels = read_image(file, 16)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == np.uint8


def rows(file: Path) -> Any:
    found = read_rows(file)
    assert found.shape[1] == 188
    assert np.isin(found[:, 187], range(5)).all()


def names(file: Path) -> Any:
    assert all(name and label for name, label in read_list(file))


def cache(file: Path) -> Any:
    images, labels = read_pickle(file)
    assert len(images) == len(labels)


def mnist(file: Path) -> Any:
    images, labels = MNIST(str(file.parents[2])).load("train")
    assert images.shape[1:] == (1, 28, 28)
    assert len(images) == len(labels)
    assert set(labels.tolist()) <= set(range(10))


FILES: dict[str, Callable[[Path], Any]] = {
    "mitdb/100.hea": beats,
    "mitdb/100.dat": beats,
    "mitdb/100.atr": beats,
    "mitbih_train.csv": rows,
    "flat/val.csv": names,
    "pickle/mini-imagenet-cache-val.pkl": cache,
    "mnist/MNIST/raw/train-images-idx3-ubyte": mnist,
    "mnist/MNIST/raw/train-labels-idx1-ubyte": mnist,
    "image.png": image,
    "image.jpg": image,
    "image.bmp": image,
    "image.webp": image,
    "image.tif": image,
    "image.gif": image,
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # what PIL finds odd in what it can read
@pytest.mark.parametrize("name", FILES)
def test_damage_is_read_or_named(folder: Path, tmp_path: Path, name: str):
    draw, read, messages = random.Random(name), 0, []
    file = tmp_path / "copy" / name
    shutil.copytree((folder / name).parent, file.parent)
    content = file.read_bytes()
    FILES[name](file)
    for _ in range(EACH):
        damaged = mutate(content, draw)
        if damaged == content:
            continue
        file.write_bytes(damaged)
        try:
            FILES[name](file)
            read += 1
        except (ValueError, FileNotFoundError, RuntimeError) as error:
            messages.append(str(error))
    told = file.stem if "mitdb" in name else file.parent.name if "MNIST" in name else file.name
    assert all(told in message for message in messages), messages
    assert len(messages) >= 5
    assert read + len(messages) >= EACH - 5


def test_a_damaged_archive_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_official(tmp_path, monkeypatch)
    file, draw = tmp_path / "cifar-10-batches-py" / "data_batch_2", random.Random(1)
    content = file.read_bytes()
    for _ in range(EACH):
        file.write_bytes(mutate(content, draw))
        with pytest.raises(RuntimeError, match=r"cifar-10-batches-py' is damaged.*delete it"):
            CIFAR10(str(tmp_path)).load("train")


class Called:
    """Pickles as a call of any function."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_a_pickle_are_read_by_their_bytes(tmp_path: Path, protocol: int):
    images = np.random.default_rng(0).integers(0, 256, (4, 84, 84, 3), dtype=np.uint8)
    for rows in ({"a": [0, 2], "b": [1, 3]}, {"a": np.array([0, 2]), "b": [*np.array([1, 3])]}):
        for pixels in (images, np.asfortranarray(images)):
            content = {"image_data": pixels, "class_dict": rows}
            (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
            found, names = read_pickle(tmp_path / "x.pkl")
            np.testing.assert_array_equal(found, images)
            assert names == ["a", "b", "a", "b"]


def test_a_pickle_makes_no_type_of_its_own(tmp_path: Path):
    """An object type without its flag would take bytes of the file for addresses."""
    dtype = Called(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))
    reconstruct = np.zeros(0).__reduce__()[0]
    array = Called(reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), dtype, False, b"A" * 8))
    content = {"image_data": array, "class_dict": {}}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match=r"x\.pkl' is damaged .*it holds the type 'O8'"):
        read_pickle(tmp_path / "x.pkl")
