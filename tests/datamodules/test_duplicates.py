"""Near-copies in two splits: found in all positions, and named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import CIFAR10, Digits, ImageFolder
from datamodules.duplicates import find, main
from tests.data import Tiny, write_tree

NAMES = ("ant", "bee")


def write_photos(root: Path) -> None:
    """24 different photos in `train`, 8 in `test`, and 8 more that are those of `train`, changed."""
    generator = np.random.default_rng(0)
    for number in range(32):
        blobs = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        photo = Image.fromarray(blobs).resize((80, 80), Image.Resampling.BICUBIC)
        part = "train" if number < 24 else "test"
        folder = root / part / NAMES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        photo.save(folder / f"{number}.png")
        if number < 8:
            photo = photo.rotate(90 * (number % 4))
            photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number >= 4 else photo
            copy = root / "test" / NAMES[number % 2]
            copy.mkdir(parents=True, exist_ok=True)
            photo.resize((61, 61)).save(copy / f"copy {number}.jpg", quality=60)


@pytest.mark.parametrize("cache_limit", [0.0, 1.0])
def test_turned_mirrored_and_compressed_copies_are_found(tmp_path: Path, cache_limit: float):
    write_photos(tmp_path)
    data = ImageFolder(str(tmp_path), image_size=32, val_fraction=0.1, cache_limit=cache_limit)
    pairs = find(data)
    named = {(data.name_of("train", one.position), data.name_of("test", other.position))
             for _, one, other in pairs if other.split == "test"}  # fmt: skip
    expected = {(f"train/{NAMES[n % 2]}/{n}.png", f"test/{NAMES[n % 2]}/copy {n}.jpg")
                for n in range(8)}  # fmt: skip
    assert named == expected
    assert all(0.98 <= pair.correlation <= 1.0001 for pair in pairs)
    for _, one, other in pairs:
        assert one.label == other.label
        assert one.position in getattr(data, f"{one.split}_indices")
        assert other.position in getattr(data, f"{other.split}_indices")


def test_pairs_are_printed_with_their_files(tmp_path: Path, monkeypatch: Any, capsys: Any):
    write_tree(tmp_path, per_class=10)
    copy = Image.open(tmp_path / "train/dog/3.png").transpose(Image.Transpose.ROTATE_90)
    copy.save(tmp_path / "test/cat/1.png")
    monkeypatch.setattr("sys.argv", f"x CIFAR10 {tmp_path} least=0.999 split_seed=2".split())
    main()
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("1.000  ")
    assert first.endswith("train/dog/3.png (dog)  =  test test/cat/1.png (cat)")
    assert last.startswith("1 pairs correlate by 0.999 or more: 1 of 40 images of val and test")
    assert CIFAR10("nowhere").name_of("train", 7) == "train 7"
    for line, message in (
        (f"x CIFAR10 {tmp_path} least=x", "error: could not convert string to float"),
        ("x Nothing x", "error: module 'datamodules' has no attribute 'Nothing'"),
        ("x", "near-copies across splits"),
    ):
        monkeypatch.setattr("sys.argv", line.split())
        with pytest.raises(SystemExit, match=message):
            main()


def test_images_of_one_shade_and_sets_without_validation():
    assert find(Tiny(val_fraction=0.0), 1.1) == []
    assert find(Digits(), 0.9999) == []
