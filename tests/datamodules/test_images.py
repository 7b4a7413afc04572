"""Image files, folders of classes and mini-ImageNet: what is read, and what never leaks."""

import itertools
import os
import pickle
import resource
import shutil
import struct
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules import CIFAR10, ImageFolder, MiniImageNet, Silkworm
from datamodules.imagefolder import first_copies
from datamodules.images import Images, header, read_image
from datamodules.miniimagenet import CLASSES
from tests.data import write_folder, write_mini, write_official, write_tree


def ready(cls: Any, root: Path, **options: Any) -> Any:
    data = cls(str(root), **options)
    data.setup("fit")
    data.setup("test")
    return data


def splits(data: Any) -> dict[str, list[str]]:
    index = {"train": data.train_indices, "val": data.val_indices, "test": data.test_indices}
    return {name: [data.describe(int(i))["file"] for i in i_s] for name, i_s in index.items()}


def grey_ramp() -> np.ndarray:
    return np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1))


KINDS = {
    "grey": lambda ramp: Image.fromarray(ramp),
    "16 bits": lambda ramp: Image.fromarray(ramp.astype(np.uint16) * 257),
    "RGBA": lambda ramp: Image.fromarray(np.stack([ramp, ramp, ramp, 255 - ramp], 2)),
    "grey with alpha": lambda ramp: Image.fromarray(np.stack([ramp, ramp], 2)),
    "palette": lambda ramp: Image.fromarray(ramp).convert("P"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_keeps_its_brightness(tmp_path: Path, kind: str):
    KINDS[kind](grey_ramp()).save(tmp_path / "x.png")
    pixels = read_image(tmp_path / "x.png", 16)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == np.uint8
    for channel in pixels:
        np.testing.assert_array_equal(channel, grey_ramp())


def tiff(values: np.ndarray, bits: int, kind: int) -> bytes:
    """A grey TIFF; `kind` is 1 for whole numbers, 2 for signed ones, 3 for floats."""
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 134), (277, 1),
            (278, height), (279, values.nbytes), (339, kind)]  # fmt: skip
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4)
    return header + values.tobytes()


def pnm(largest: int, values: np.ndarray) -> bytes:
    return b"P5 16 16 %d\n" % largest + values.astype(">u2" if largest > 255 else "u1").tobytes()


RAMP = np.tile(np.arange(0, 256, 17), (16, 1))
DEEP = {
    "16 bits.tif": tiff((RAMP * 257).astype("<u2"), 16, 1),
    "12 bits.tif": tiff((RAMP / 255 * 4095).round().astype("<u2"), 16, 1),
    "unit.tif": tiff((RAMP / 255).astype("<f4"), 32, 3),
    "whole.tif": tiff(RAMP.astype("<f4"), 32, 3),
    "32 bits.tif": tiff((RAMP * 257).astype("<i4"), 32, 2),
    "16 bits.pgm": pnm(65535, RAMP * 257),
    "12 bits.pgm": pnm(4095, (RAMP / 255 * 4095).round()),
    "8 bits.pgm": pnm(255, RAMP),
}


@pytest.mark.parametrize("name", [*DEEP, "16 bits.png", "12 bits.png"])
def test_many_bits_and_floats_are_not_black(tmp_path: Path, name: str):
    if name.endswith(".png"):
        white = 65535 if "16" in name else 4095
        Image.fromarray((RAMP / 255 * white).round().astype(np.uint16)).save(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(DEEP[name])
    np.testing.assert_array_equal(read_image(tmp_path / name, 16), np.stack([RAMP] * 3))


def test_values_without_a_known_range_are_refused(tmp_path: Path):
    for values, bits, kind in (
        (RAMP.astype("<f4") * 1000, 32, 3),
        (-RAMP.astype("<f4"), 32, 3),
        (np.full((16, 16), np.nan, "<f4"), 32, 3),
        ((RAMP - 9).astype("<i2"), 16, 2),
    ):
        (tmp_path / "x.tif").write_bytes(tiff(values, bits, kind))
        with pytest.raises(ValueError, match=r"x.tif' cannot be shown in 8 bits: .*white is known"):
            read_image(tmp_path / "x.tif", 16)
    (tmp_path / "x.ppm").write_bytes(  # 12 bits as if they were 16
        b"P6 16 16 65535\n" + (np.stack([RAMP] * 3, 2) * 16).astype(">u2").tobytes()
    )
    with pytest.raises(ValueError, match=r"x.ppm' has colours of 12 bits or fewer in 16"):
        read_image(tmp_path / "x.ppm", 16)


def png(values: np.ndarray) -> bytes:
    """Colours of 16 bits, which PIL reads and does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    about = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    parts = ((b"IHDR", about), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def test_twelve_bits_in_sixteen_are_told_from_dark_images(tmp_path: Path):
    colours = np.stack([RAMP] * 3, 2)
    (tmp_path / "x.png").write_bytes(png(colours * 16))
    with pytest.raises(ValueError, match=r"x.png' has colours of 12 bits or fewer in 16"):
        read_image(tmp_path / "x.png", 16)
    (tmp_path / "whole.png").write_bytes(png(colours * 257))
    assert read_image(tmp_path / "whole.png", 16).max() == 255
    dark = np.full((56, 56, 3), 9, np.uint8)  # a row of a BMP has 168 bytes
    Image.fromarray(dark).save(tmp_path / "dark.bmp")
    assert (read_image(tmp_path / "dark.bmp", 56) == 9).all()


def test_too_many_pixels_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it is decoded"))
    with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError, match="are too many"):
        read_image(tmp_path / "x.png", 16)


def test_skipped_files_and_many_bits_are_told_once(tmp_path: Path, caplog: Any):
    write_folder(tmp_path)
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "ant" / ".ipynb_checkpoints").mkdir()
    shutil.copy(tmp_path / "bee/1.jpg", tmp_path / "ant/.ipynb_checkpoints/1.jpg")
    (tmp_path / "bee" / "deep").mkdir()
    (tmp_path / "bee" / "deep" / "boxes.XML").write_text("no image")
    (tmp_path / "bee" / "a.tif").write_bytes(DEEP["unit.tif"])
    data = ready(ImageFolder, tmp_path, image_size=16)
    assert caplog.text.count("2 files are skipped") == 1
    assert "no images (1 .txt, 1 .XML), such as" in caplog.text
    assert "1 of 31 files looked at are grey images of more than 8 bits" in caplog.text
    assert not any("ipynb" in file for files in splits(data).values() for file in files)


def test_folders_that_are_no_splits_are_told(tmp_path: Path, caplog: Any):
    for name in ("Training", "Testing", "more"):
        write_folder(tmp_path / name)
    data = ready(ImageFolder, tmp_path, image_size=16, val_fraction=0.0)
    assert {file.split("/")[0] for file in splits(data)["test"]} == {"Testing"}
    assert caplog.text.count("are left out, as they are no splits, beside Training, Testing") == 1


def test_small_images_are_told(tmp_path: Path, caplog: Any):
    """Of 32 pixels, enlarged to 224, a network costs 49 times as much."""
    write_folder(tmp_path)
    (tmp_path / "bee" / "a.tif").write_bytes(DEEP["unit.tif"])  # 16 x 16
    ready(ImageFolder, tmp_path, image_size=16)
    assert "enlarged" not in caplog.text
    ready(ImageFolder, tmp_path, image_size=17)
    assert "1 of 31 files looked at are smaller than 17 pixels, down to 16" in caplog.text


def test_copies_are_found_by_the_whole_content(tmp_path: Path):
    """Also where size and last 4 kB agree, and with less of the disk read than all."""
    contents = [b"a" * 9000, b"b" + b"a" * 8999, b"a" * 9000, b"a", b"c", b"a", b"d" * 9000]
    files = [tmp_path / f"{number}" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    sizes = [len(content) for content in contents]
    assert first_copies(list(map(str, files)), sizes) == [0, 1, 0, 3, 4, 3, 6]


def test_bits_palettes_cmyk_and_rotation(tmp_path: Path):
    Image.fromarray(grey_ramp() > 100).save(tmp_path / "1bit.png")
    assert set(np.unique(read_image(tmp_path / "1bit.png", 16))) == {0, 255}
    image = Image.fromarray(grey_ramp()).convert("P")
    image.save(tmp_path / "clear.png", transparency=bytes([0] * 128 + [255] * 128))
    assert read_image(tmp_path / "clear.png", 16).shape == (3, 16, 16)
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red = read_image(tmp_path / "cmyk.jpg", 16).mean((1, 2))
    assert red[0] > 200 > 60 > max(red[1:])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: left in the file is at the top
    Image.fromarray(grey_ramp()).save(tmp_path / "turned.jpg", exif=exif)
    turned = read_image(tmp_path / "turned.jpg", 16)[0].astype(int)
    assert np.abs(turned - grey_ramp().T).max() < 12
    wide = np.arange(32 * 16, dtype=np.uint16).reshape(16, 32) // 2
    for place in (1, 6):
        exif[0x0112] = place
        Image.fromarray(wide.astype(np.uint8)).save(tmp_path / f"{place}.tiff", exif=exif)
    upright, turned = (read_image(tmp_path / f"{place}.tiff", 16)[0] for place in (1, 6))
    np.testing.assert_array_equal(turned, upright.T[:, ::-1])  # a quarter clockwise


@pytest.mark.parametrize("highest", [1, 16, 260, 4100])
def test_a_dark_grey_image_of_16_bits_is_scaled(tmp_path: Path, highest: int):
    values = np.linspace(0, highest, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "dark.png")
    whole = next(each for each in (255, 4095, 65535) if highest <= each)
    found = read_image(tmp_path / "dark.png", 16)[0]
    np.testing.assert_allclose(found, values * (255 / whole), atol=0.51)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12",  # it ends too early
        b"Exif\0\0no TIFF at all",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",  # a text
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0",  # 9
    ],
    ids=["short", "none", "text", "nine"],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_notes_beside_whole_pixels(tmp_path: Path, suffix: str, exif: bytes):
    wide = np.repeat(grey_ramp(), 2, axis=1)
    Image.fromarray(wide).save(tmp_path / f"x.{suffix}", exif=exif, quality=100)
    Image.fromarray(wide).save(tmp_path / f"plain.{suffix}", quality=100)
    found, plain = (read_image(tmp_path / f"{name}.{suffix}", 16) for name in ("x", "plain"))
    np.testing.assert_array_equal(found, plain)


def test_sizes_that_only_the_header_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """None of them is decoded: the memory of this process does not grow."""
    file, before = tmp_path / "x.ppm", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for width, height in ((10**5, 10**5), (12_000, 12_000), (2**31 - 1, 1)):
        file.write_bytes(b"P6\n%d %d\n255\n" % (width, height) + bytes(12))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with pytest.raises(
                ValueError, match=r"x.ppm' is damaged \(.*pixels.*replace or delete"
            ):
                read_image(file, 16)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    file.write_bytes(b"P6\n" + b"# a comment\n" * 100_000 + b"2 2\n255\n" + bytes([7] * 12))
    assert read_image(file, 2).tolist() == [[[7, 7], [7, 7]]] * 3


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"P6\n#" + b"x" * 10**7 + b"\n2 2\n255\n" + bytes(12), "2,097,152 bytes name no width"),
        (b"P5" + b" " * 10**7 + b"2 2\n255\n" + bytes(4), "2,097,152 bytes name no width"),
        (b"P3 2 2 255\n" + b"#\n" * 10**6 + b"7 " * 12, "2,000,035 bytes are too many for 4"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n", "cannot identify"),
    ],
)
def test_what_pil_reads_slowly_or_by_a_program(tmp_path: Path, content: bytes, why: str):
    (tmp_path / "x.ppm").write_bytes(content)  # the first three take PIL 2, 2 and 10 s
    with pytest.raises(ValueError, match=rf"x.ppm' is damaged \(.*{why}.*replace or delete"):
        read_image(tmp_path / "x.ppm", 2)


def test_plain_numbers_and_comments(tmp_path: Path):
    (tmp_path / "x.ppm").write_bytes(b"P2\n# a\n # 9 9\n2# so\n\t2 255\n1 2 # 3\n3   4\n")
    assert read_image(tmp_path / "x.ppm", 2).tolist() == [[[1, 2], [3, 4]]] * 3


def test_resizing_is_torchvisions(tmp_path: Path):
    from torchvision.transforms import v2

    generator = np.random.default_rng(0)
    for height, width in ((90, 130), (130, 90), (20, 33), (64, 64)):
        pixels = generator.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        image.save(tmp_path / "x.png")
        expected = np.asarray(v2.Compose([v2.Resize(48), v2.CenterCrop(48)])(image))
        found = read_image(tmp_path / "x.png", 48).transpose(1, 2, 0)
        # the middle of an odd number of rows is half a pixel's choice
        assert np.abs(found.astype(int) - expected).mean() < 3


def test_a_pool_is_split_by_class(tmp_path: Path):
    root = tmp_path / "with space é"
    write_folder(root, per_class=20)
    (root / "ant" / "notes.txt").write_text("not an image")
    (root / "ant" / ".hidden.jpg").write_text("not an image")
    (root / ".git").mkdir()
    (root / "cat" / "deep" / "er").mkdir(parents=True)
    shutil.move(root / "cat" / "3.jpg", root / "cat" / "deep" / "er" / "3.JPG")
    data = ready(ImageFolder, root, image_size=16, test_fraction=0.25, val_fraction=0.2)
    assert (data.num_classes, data.class_names) == (3, ("ant", "bee", "cat"))
    assert (data.in_channels, data.image_size, data.dims) == (3, 16, 2)
    found = splits(data)
    assert sorted(itertools.chain(*found.values())) == sorted(
        str(p.relative_to(root)) for p in root.rglob("*.[jJ]*") if not p.name.startswith(".")
    )
    for name, count in (("train", 12), ("val", 3), ("test", 5)):
        for class_name in data.class_names:
            assert sum(file.startswith(class_name) for file in found[name]) == count
    images, labels, index = next(iter(data.test_dataloader()))
    mean, std = torch.tensor(data.mean).view(3, 1, 1), torch.tensor(data.std).view(3, 1, 1)
    for image, label, i in zip(images, labels, index, strict=True):
        file = data.describe(int(i))["file"]
        assert file.startswith(data.class_names[label])
        pixels = torch.from_numpy(read_image(root / file, 16).copy()) / 255
        torch.testing.assert_close(image, (pixels - mean) / std, rtol=1e-4, atol=1e-4)


def test_copies_stay_in_one_split_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_folder(tmp_path, per_class=20)
    for number in range(8):
        shutil.copy(tmp_path / f"ant/{number}.jpg", tmp_path / f"ant/copy {number}.jpg")
        shutil.copy(tmp_path / f"bee/{number}.jpg", tmp_path / f"cat/bee {number}.jpg")
    for seed in range(4):
        data = ready(ImageFolder, tmp_path, image_size=16, split_seed=seed)
        where = {file: name for name, files in splits(data).items() for file in files}
        assert len(where) == 76
        for number in range(8):
            assert where[f"ant/{number}.jpg"] == where[f"ant/copy {number}.jpg"]
            assert where[f"bee/{number}.jpg"] == where[f"cat/bee {number}.jpg"]
    assert "16 of 76 images are copies of another, such as 'ant/copy 0.jpg'" in caplog.text
    assert "8 copies have another class" in caplog.text


def test_training_loses_what_the_makers_split_tests_on(tmp_path: Path, caplog: Any):
    for part in ("train", "val", "test"):
        write_folder(tmp_path / part, per_class=8)
    shutil.copy(tmp_path / "test/ant/0.jpg", tmp_path / "train/ant/99.jpg")
    shutil.copy(tmp_path / "test/bee/1.jpg", tmp_path / "val/bee/98.jpg")
    shutil.copy(tmp_path / "val/cat/2.jpg", tmp_path / "train/cat/97.jpg")
    data = ready(ImageFolder, tmp_path, image_size=16)
    found = splits(data)
    for name, count in (("train", 24), ("val", 24), ("test", 24)):
        assert len(found[name]) == count
        assert all(file.startswith(f"{name}/") for file in found[name])
    assert "3 of 75 images are copies" in caplog.text
    assert "3 images are left out" in caplog.text


@pytest.mark.parametrize("heldout", ["val", "test", "Validation"])
def test_one_held_out_folder_is_the_test_set(tmp_path: Path, heldout: str):
    write_folder(tmp_path / "train", per_class=10)
    write_folder(tmp_path / heldout, per_class=4)
    shutil.copy(tmp_path / heldout / "ant" / "0.jpg", tmp_path / "train" / "ant" / "99.jpg")
    found = splits(ready(ImageFolder, tmp_path, image_size=16, val_fraction=0.2))
    assert {len(files) for files in found.values()} == {24, 6, 12}
    assert all(file.startswith(heldout) for file in found["test"])
    assert all(file.startswith("train/") for file in found["train"] + found["val"])
    assert "train/ant/99.jpg" not in found["train"] + found["val"]


def test_two_folders_of_one_split_are_refused(tmp_path: Path):
    for name in ("train", "val", "validation", "test"):
        write_folder(tmp_path / name, per_class=2)
    with pytest.raises(ValueError, match="holds val and validation, which mean the same split"):
        ready(ImageFolder, tmp_path, image_size=16)


def test_splits_are_no_classes(tmp_path: Path):
    for name in ("val", "Testing"):
        write_folder(tmp_path / "a" / name, per_class=2)
    with pytest.raises(ValueError, match=r"Testing, val in .* are splits, and there is none to"):
        ready(ImageFolder, tmp_path / "a", image_size=16)
    for name in ("training_set", "test_set"):
        write_folder(tmp_path / "b" / name, per_class=10)
    with pytest.warns(UserWarning, match=r"taken for classes, but hold the same folders .*ant"):
        ready(ImageFolder, tmp_path / "b", image_size=16)


def test_a_class_may_be_called_train(tmp_path: Path):
    write_folder(tmp_path, names=("train", "tram"))
    assert ready(Silkworm, tmp_path, image_size=16).class_names == ("train", "tram")


def test_streamed_images_equal_cached_ones(tmp_path: Path):
    write_folder(tmp_path)
    options = {"image_size": 16, "batch_size": 5, "eval_batch_size": 4, "seed": 3}
    cached = ready(ImageFolder, tmp_path, **options)
    streamed = ready(ImageFolder, tmp_path, cache_limit=0, **options)
    assert isinstance(cached._train[0], Tensor)
    assert isinstance(streamed._train[0], Images)
    for name in ("train", "val", "test"):
        one, other = (getattr(data, f"{name}_dataloader")() for data in (cached, streamed))
        assert len(one) == len(other) > 0
        for first, second in zip(one, other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    loader = streamed.train_dataloader()
    expected = [index.tolist() for _, _, index in loader]
    for _ in zip(range(2), loader, strict=False):
        pass
    resumed = streamed.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert [index.tolist() for _, _, index in resumed] == expected[2:]


def break_image(root: Path) -> str:
    file = root / "bee" / "4.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    return r"bee/4.jpg' is damaged .*replace or delete"


def break_text(root: Path) -> str:
    (root / "bee" / "5.png").write_text("words")
    return r"bee/5.png' is damaged .*replace or delete"


def break_class(root: Path) -> str:
    shutil.rmtree(root / "bee")
    (root / "bee").mkdir()
    return r"class folder .*bee' holds no image .*: add some"


def break_root(root: Path) -> str:
    shutil.rmtree(root)
    return r"no folder .*--data.root DIR"


def break_flat(root: Path) -> str:
    shutil.rmtree(root / "bee")
    shutil.rmtree(root / "cat")
    return r"holds fewer than two class folders \(ant\).*--data.root DIR"


def break_split(root: Path) -> str:
    write_folder(root / "train")
    write_folder(root / "test", names=("ant", "bee"))
    return r"test' does not hold the expected classes: missing cat.*rename or delete"


def break_small(root: Path) -> str:
    for file in list((root / "cat").iterdir())[2:]:
        file.unlink()
    return r"1 of 3 classes have fewer than 3 different samples.*: cat \(2\)\. Add samples"


@pytest.mark.parametrize(
    "damage",
    [break_image, break_text, break_class, break_root, break_flat, break_split, break_small],
)
@pytest.mark.parametrize("cache_limit", [20.0, 0.0])
def test_a_bad_folder_is_named_with_its_remedy(tmp_path: Path, damage: Any, cache_limit: float):
    root = tmp_path / "images"
    write_folder(root)
    message = damage(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_all(root, cache_limit)


def read_all(root: Path, cache_limit: float) -> None:
    data = ready(ImageFolder, root, image_size=16, cache_limit=cache_limit, batch_size=4)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        list(loader)


def test_an_empty_split_is_refused(tmp_path: Path):
    write_folder(tmp_path / "train")
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    with pytest.raises(ValueError, match="ImageFolder train: the split is empty"):
        ready(ImageFolder, tmp_path, image_size=16)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("mini")
    return {
        form: (root / form, write_mini(root / form, form)) for form in ("tree", "flat", "pickle")
    }


@pytest.mark.parametrize("form", ["tree", "flat", "pickle"])
def test_the_forms_of_mini_imagenet(mini: Any, form: str):
    root, pixels = mini[form]
    data = ready(MiniImageNet, root, image_size=84 if form == "tree" else 32)
    images, labels = data._train
    assert data.num_classes == len(data.class_names) == 100
    assert images.shape == (600, 3, data.image_size, data.image_size)
    counts = [labels[i].bincount(minlength=100).unique().tolist()
              for i in (data.train_indices, data.val_indices, data.test_indices)]  # fmt: skip
    assert counts == [[4], [1], [1]]
    index = [*data.train_indices.tolist(), *data.val_indices.tolist(), *data.test_indices.tolist()]
    assert sorted(index) == list(range(600))
    for i in range(0, 600, 37):
        about = data.describe(i)
        if form == "pickle":
            part = about["file"].removeprefix("mini-imagenet-cache-").removesuffix(".pkl")
            name = f"{CLASSES[part][about['row'] // 6]}{about['row'] % 6:08}.jpg"
        else:
            name = Path(about["file"]).name
        assert data.class_names[labels[i]] == name[:9]
        mean = images[i].float().mean((1, 2)).numpy()
        np.testing.assert_allclose(mean, pixels[name].mean((0, 1)), atol=6)


@pytest.mark.parametrize("form", ["tree", "flat", "pickle"])
def test_protocols_of_mini_imagenet(mini: Any, form: str):
    root, _ = mini[form]
    data = ready(MiniImageNet, root, protocol="ravi", image_size=16)
    labels = data._train[1]
    for name, index in (
        ("train", data.train_indices),
        ("val", data.val_indices),
        ("test", data.test_indices),
    ):
        assert {data.class_names[label] for label in labels[index]} == set(CLASSES[name])
        assert len(index) == 6 * len(CLASSES[name])
    data = ready(MiniImageNet, root, protocol="dsrelu", image_size=16)
    parts = [data.train_indices, data.val_indices, data.test_indices]
    assert [len(part) for part in parts] == [408, 102, 90]
    assert torch.cat(parts).unique().numel() == 600
    other = ready(MiniImageNet, root, protocol="dsrelu", image_size=16, split_seed=1)
    assert not torch.equal(other.test_indices, data.test_indices)
    for protocol, name in (("dsrelu", "val_fraction"), ("ravi", "test_fraction")):
        options: dict[str, Any] = {"protocol": protocol, name: 0.3}
        with pytest.raises(ValueError, match=f"{name} 0.3 has no effect with {protocol}, which"):
            MiniImageNet(str(root), **options)
    with pytest.raises(ValueError, match="image_size must be an integer from 8 to 4096, got 0"):
        MiniImageNet(str(root), image_size=0)


def test_mini_imagenet_in_train_and_val_folders(mini: Any, tmp_path: Path):
    root, _ = mini["tree"]
    for folder in root.iterdir():
        for part, numbers in (("train", range(4)), ("val", (4, 5))):
            (tmp_path / part / folder.name).mkdir(parents=True)
            for number in numbers:
                file = f"{folder.name}{number:08}.jpg"
                (tmp_path / part / folder.name / file).symlink_to(folder / file)
    found = splits(ready(MiniImageNet, tmp_path, image_size=16, val_fraction=0.25))
    assert {name: len(files) for name, files in found.items()} == {
        "train": 300,
        "val": 100,
        "test": 200,
    }
    assert all(file.startswith("val/") for file in found["test"])
    # a few-shot tree, whose folders have classes of their own, is one pool
    for part, names in CLASSES.items():
        for name in names:
            (tmp_path / "few" / part).mkdir(parents=True, exist_ok=True)
            (tmp_path / "few" / part / name).symlink_to(root / name)
    few = ready(MiniImageNet, tmp_path / "few", image_size=16)
    assert few._train[1][few.test_indices].bincount().tolist() == [1] * 100
    (tmp_path / "few" / "test" / "n99999999").mkdir()
    with pytest.raises(ValueError, match=r"missing none, unexpected n99999999\. Unpack"):
        ready(MiniImageNet, tmp_path / "few", image_size=16)


def spoil_nothing(root: Path) -> str:
    for file in root.iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    return r"no mini-ImageNet in .*--data.root"


def spoil_list(root: Path) -> str:
    file = root / "val.csv"
    file.write_text(file.read_text().replace(",", ";", 3))
    return r"val.csv' is damaged .*unpack it again"


def spoil_path(root: Path) -> str:
    file = root / "val.csv"
    file.write_text(file.read_text().replace("n0", "../n0", 1))
    return r"val.csv' is damaged \(line 2\)"


def spoil_label(root: Path) -> str:
    file = root / "val.csv"
    file.write_text(file.read_text().replace(",n01855672", ",n99999999"))
    return r"expected classes: missing n01855672, unexpected n99999999.*mini-ImageNet again"


def spoil_file(root: Path) -> str:
    (root / "images" / "n0185567200000002.jpg").unlink()
    return r"1 of 600 files are not in .*images': n0185567200000002.jpg.*unpack mini-ImageNet again"


def spoil_lists(root: Path) -> str:
    (root / "test.csv").unlink()
    return r"1 of 3 files are not in .*test.csv.*beside images/"


@pytest.mark.parametrize(
    "spoil", [spoil_nothing, spoil_list, spoil_path, spoil_label, spoil_file, spoil_lists]
)
def test_a_bad_flat_mini_imagenet_is_named(mini: Any, tmp_path: Path, spoil: Any):
    shutil.copytree(mini["flat"][0], tmp_path / "mini")
    message = spoil(tmp_path / "mini")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ready(MiniImageNet, tmp_path / "mini", image_size=16)


TOUCHED = Path(tempfile.gettempdir(), f"touched-{os.getpid()}.npy")
EVIL = (
    (os.system, (f"touch {TOUCHED}",)),
    (Path.touch, (TOUCHED,)),
    (np.save, (str(TOUCHED), 1)),  # NumPy alone is not enough to be an array
    (np.ndarray.tofile, (np.zeros(3), str(TOUCHED))),
    (np.memmap, (str(TOUCHED), "u1", "w+", 0, 9)),
)


class Evil:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_batches_of_cifar_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Torchvision unpickles what has the checksum that it knows, and nothing else."""
    write_official(tmp_path, monkeypatch)
    folder = tmp_path / "cifar-10-batches-py"
    for name, call in itertools.product(("data_batch_1", "batches.meta"), EVIL):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps({"data": Evil(*call), "labels": []}))
        with pytest.raises(RuntimeError, match=r"cifar-10-batches-py' is damaged.*delete it"):
            CIFAR10(str(tmp_path)).load("train")
        (folder / name).write_bytes(whole)
    assert not TOUCHED.exists()
    CIFAR10(str(tmp_path)).load("train")


def test_a_pickle_may_hold_arrays_alone(mini: Any, tmp_path: Path):
    shutil.copytree(mini["pickle"][0], tmp_path / "mini")
    file = tmp_path / "mini" / "mini-imagenet-cache-val.pkl"

    good = file.read_bytes()
    for content in (
        *(pickle.dumps({"image_data": Evil(*call), "class_dict": {}}) for call in EVIL),
        good[: len(good) // 2],
        b"",
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"cache-val.pkl' is damaged .*unpack it again"):
            ready(MiniImageNet, tmp_path / "mini", image_size=16)
    assert not TOUCHED.exists()
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of 3 files are not in .*: mini-imagenet-cache-val.pkl"
    ):
        ready(MiniImageNet, tmp_path / "mini", image_size=16)


def test_cifar_archives_are_checked_before_they_are_unpacked(tmp_path: Path, monkeypatch: Any):
    """A tar that is not the official one, such as one with members in `../`, is never opened."""
    import io
    import tarfile

    from torchvision import datasets

    archive = tmp_path / "root" / datasets.CIFAR10.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../outside"), io.BytesIO(b""))
    monkeypatch.setattr(datasets.CIFAR10, "url", (tmp_path / "nowhere").as_uri())
    with pytest.raises(
        RuntimeError, match=r"CIFAR10 could not be downloaded to .*: check the connection"
    ):
        CIFAR10(str(tmp_path / "root"), download=True).prepare_data()
    assert not (tmp_path / "outside").exists()
    write_tree(tmp_path / "root")
    assert len(ready(CIFAR10, tmp_path / "root")._train[1]) == 40


def test_a_disk_that_fails_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(self: Path) -> bytes:
        raise OSError(5, "Input/output error")  # as a read has it, without a name

    monkeypatch.setattr(Path, "read_bytes", failing)
    for read in (lambda file: read_image(file, 32), header):
        with pytest.raises(OSError, match=r"a.png' cannot be read \(Input/output error\): look at"):
            read(tmp_path / "a.png")
