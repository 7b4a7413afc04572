"""Prepared data: built once, whole, by one process, and again when damaged."""

import json
import multiprocessing
import os
import resource
import shutil
import stat
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import CIFAR10, cache
from datamodules.cache import Create, prepare
from tests.data import write_tree


def builder(log: Path, value: int = 7):
    def build(create: Create) -> None:
        with log.open("a") as file:
            file.write("built\n")
        create("numbers", (50, 3), np.float32)[:] = np.arange(150).reshape(50, 3) + value
        create("bytes", (9,), np.uint8)[:] = value

    return build


def expected(value: int = 7) -> torch.Tensor:
    return torch.arange(150.0).view(50, 3) + value


def test_built_once_and_keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = tmp_path / "log"
    for _ in range(3):
        found = prepare(tmp_path / "c", "set", ("key", 1), builder(log))
        assert torch.equal(found["numbers"], expected())
        assert found["bytes"].tolist() == [7] * 9
    other = prepare(tmp_path / "c", "set", ("key", 2), builder(log, 8))
    assert torch.equal(other["numbers"], expected(8))
    assert log.read_text().count("built") == 2
    monkeypatch.setattr(cache, "FORM", cache.FORM + 1)  # other code makes other arrays of the files
    newer = prepare(tmp_path / "c", "set", ("key", 2), builder(log, 9))
    assert torch.equal(newer["numbers"], expected(9))


def test_an_array_may_be_empty(tmp_path: Path):
    found = prepare(tmp_path, "set", 1, lambda create: create("none", (0, 3), np.float32).fill(0))
    assert found["none"].shape == (0, 3)


@pytest.mark.parametrize("damage", range(24))
def test_damage_is_seen_and_repaired(tmp_path: Path, damage: int):
    log = tmp_path / "log"
    prepare(tmp_path / "c", "set", 1, builder(log))
    [stored] = [path for path in (tmp_path / "c").iterdir() if path.is_dir()]
    files = sorted(stored.iterdir())
    assert [file.name for file in files] == ["bytes.npy", "numbers.npy", "sums.json"]
    file, kind = files[damage % 3], damage // 3
    content = bytearray(file.read_bytes())
    if kind == 0:
        file.unlink()
    elif kind == 1:
        file.write_bytes(b"")
    elif kind == 2:
        file.write_bytes(content[: len(content) // 2])
    else:  # one changed byte, at another position each time
        content[len(content) * (kind - 2) // 6 - 1] ^= 0x55
        file.write_bytes(content)
    found = prepare(tmp_path / "c", "set", 1, builder(log))
    assert torch.equal(found["numbers"], expected())
    assert found["bytes"].tolist() == [7] * 9
    assert log.read_text().count("built") == 2


def test_a_cache_names_no_file_of_another_folder(tmp_path: Path):
    prepare(tmp_path / "c", "set", 1, builder(tmp_path / "log"))
    [stored] = [path for path in (tmp_path / "c").iterdir() if path.is_dir()]
    shutil.move(stored / "numbers.npy", tmp_path / "numbers.npy")
    sums = json.loads((stored / "sums.json").read_text())
    sums["../../numbers"] = sums.pop("numbers")
    (stored / "sums.json").write_text(json.dumps(sums))
    found = prepare(tmp_path / "c", "set", 1, builder(tmp_path / "log", 8))
    assert torch.equal(found["numbers"], expected(8))  # built again, not read from there


def test_a_cache_that_declares_more_than_it_holds_is_built_again(tmp_path: Path):
    prepare(tmp_path / "c", "set", 1, builder(tmp_path / "log"))
    [file] = tmp_path.rglob("numbers.npy")
    with file.open("wb") as out:
        declared = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
        np.lib.format.write_array_header_1_0(out, declared)
        out.write(bytes(600))
    sums = json.loads((file.parent / "sums.json").read_text())
    sums["numbers"] = zlib.crc32(file.read_bytes())
    (file.parent / "sums.json").write_text(json.dumps(sums))
    found = prepare(tmp_path / "c", "set", 1, builder(tmp_path / "log", 8))
    assert torch.equal(found["numbers"], expected(8))


def test_a_failed_build_leaves_nothing(tmp_path: Path):
    def fail(create: Create) -> None:
        create("numbers", (5,), np.float32)[:] = 1
        raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        prepare(tmp_path, "set", 1, fail)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    (tmp_path / "set-x.part").mkdir()
    found = prepare(tmp_path, "set", 1, builder(tmp_path / "log"))
    assert torch.equal(found["numbers"], expected())


def start(folder: Path) -> float:
    def slow(create: Create) -> None:
        time.sleep(0.3)
        builder(folder / "log")(create)

    return prepare(folder / "c", "set", 1, slow)["numbers"].sum().item()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_processes_that_start_together_build_once(tmp_path: Path):
    with ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as pool:
        sums = list(pool.map(start, [tmp_path] * 3))
    assert sums == [expected().sum().item()] * 3
    assert (tmp_path / "log").read_text().count("built") == 1


def test_a_read_only_data_folder_is_enough(tmp_path: Path):
    write_tree(tmp_path / "cifar")
    before = sorted(tmp_path.rglob("*"))
    for path in (tmp_path / "cifar").rglob("*"):
        path.chmod(stat.S_IREAD | stat.S_IEXEC)
    try:
        data = CIFAR10(str(tmp_path / "cifar"))
        data.setup("fit")
        assert any(Path(os.environ["XDG_CACHE_HOME"], "supple").glob("CIFAR10-train-*/images.npy"))
        assert sorted(tmp_path.rglob("*")) == before
    finally:
        for path in (tmp_path / "cifar").rglob("*"):
            path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("reserving", ["posix_fallocate", "zeros"])
def test_no_room_for_prepared_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserving: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to .*file.*--data.cache_dir DIR"):
        prepare(tmp_path / "file" / "c", "set", 1, builder(tmp_path / "log"))
    if reserving == "zeros":  # as on macOS
        monkeypatch.delattr(os, "posix_fallocate")
    arrays = prepare(tmp_path / "whole", "set", 1, builder(tmp_path / "log"))
    for file in (tmp_path / "whole").rglob("*.npy"):
        assert file.stat().st_blocks * 512 >= file.stat().st_size  # none is sparse
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(array.nbytes for array in arrays.values())
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # the header has no room
    try:
        with pytest.raises(OSError, match=r"do not fit in .*--data.cache_dir DIR"):
            prepare(tmp_path / "c", "set", 1, builder(tmp_path / "log"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.suffix for path in (tmp_path / "c").iterdir()] == [".lock"]


def test_changed_files_are_read_again(tmp_path: Path):
    from PIL import Image

    write_tree(tmp_path)
    for color in (10, 200):
        Image.new("RGB", (32, 32), (color,) * 3).save(tmp_path / "train/airplane/0.png")
        os.utime(tmp_path / "train/airplane/0.png", (color, color))
        data = CIFAR10(str(tmp_path))
        data.setup("fit")
        assert data._train is not None
        assert isinstance(data._train[0], torch.Tensor)
        assert data._train[0][0].unique().tolist() == [color]
