"""A listed part of CIFAR-10 out of torchvision's download."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from callbacks.machine import ROOT
from datamodules import CIFAR10, part
from tests.data import write_official


def made(tmp_path: Path, lines: str) -> list[Path]:
    listed = tmp_path / "list.txt.gz"
    listed.write_bytes(gzip.compress(lines.encode()))
    return [listed, tmp_path / "root", tmp_path / "out"]


def test_the_listed_images_are_written_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pixels = write_official(tmp_path / "root", monkeypatch).reshape(-1, 3, 32, 32)
    lines = "train/cat/data_batch_2_3.png\ntrain/airplane/data_batch_1_10.png\n"
    places = made(tmp_path, f"{lines}test/truck/test_batch_9.png\n")
    monkeypatch.setattr(sys, "argv", ["part", *map(str, places)])
    part.main()
    assert capsys.readouterr().out == f"3 images written into {places[2]}\n"
    assert len(list(places[2].rglob("*.*"))) == 3
    with Image.open(places[2] / "train/cat/data_batch_2_3.png") as image:
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), pixels[20 + 3])
    with Image.open(places[2] / "test/truck/test_batch_9.png") as image:
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), pixels[100 + 9])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train/dog/data_batch_2_3.png", "1 images are not in the download, such as train/dog/da"),
        ("../../x.png", "1 images are not in the download"),
    ],
)
def test_a_slip_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, told: str
):
    places = made(tmp_path, line)
    monkeypatch.setattr(sys, "argv", ["part", *map(str, places)])
    with pytest.raises(SystemExit, match="error: Dataset not found or corrupted"):
        part.main()
    write_official(tmp_path / "root", monkeypatch)
    with pytest.raises(SystemExit, match=f"error: {told}"):
        part.main()
    assert not (tmp_path / "x.png").exists()
    assert not places[2].exists()  # all of it, or nothing
    places[2].mkdir()
    (places[2] / "other.png").touch()
    with pytest.raises(SystemExit, match="is there: delete it, or name another folder"):
        part.main()


def test_an_empty_list_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"list.txt.gz' names no image"):
        part.write(*made(tmp_path, ""))


def test_the_list_of_the_studies_has_1000_and_200_images_of_each_class():
    content = gzip.decompress((ROOT / "results/cifar10_part.txt.gz").read_bytes())
    lines = content.decode().split()
    assert len(set(lines)) == 12_000
    for name in CIFAR10.class_names:
        counts = [sum(f"{half}/{name}/" in line for line in lines) for half in ("train", "test")]
        assert counts == [1000, 200]
