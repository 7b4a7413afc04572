"""`predict --predictions.input`: rows for files that are in no data set."""

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

import train
from activations import CosLU
from callbacks.predictions import check_target
from datamodules import MITBIH, Digits, ImageDataModule, ImageFolder
from datamodules.aami import compare
from models import Classifier
from tests.data import write_folder, write_records
from tests.models.test_checkpoints import refused


def save(file: Path, data: ImageDataModule, **options: Any) -> None:
    """A checkpoint of a network for `data`, as a training stores it."""
    torch.manual_seed(2)
    sizes = data.num_classes, data.in_channels, data.image_size
    model = Classifier("resnet8", *sizes, CosLU, dims=data.dims, **options)
    model.hparams["data"] = data.description
    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(file)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, and the checkpoint of a network for them."""
    root = tmp_path_factory.mktemp("photos")
    write_folder(root / "db", 6)
    save(root / "a.ckpt", ImageFolder(str(root / "db"), image_size=16))
    return root


def test_a_folder_is_predicted_as_the_data_set_is(photos: Path, tmp_path: Path):
    """The same rows for the same files, with the data set and without."""
    given = ["--ckpt_path", str(photos / "a.ckpt"), "--predictions.path"]
    own, known = tmp_path / "own.csv", tmp_path / "known.csv"
    train.main(["predict", *given, str(own), "--predictions.input", str(photos / "db")])
    data = ["--data", "ImageFolder", "--data.root", str(photos / "db"), "--data.image_size", "16"]
    train.main(["predict", *given, str(known), *data, "--trainer.accelerator", "cpu"])
    found = {row.pop("file"): row for row in rows(own)}
    assert len(found) == 18
    assert [int(row["index"]) for row in found.values()] == list(range(18))
    assert len(rows(known)) > 2
    for row in rows(known):
        mine = found[row.pop("file")]
        assert mine.pop("label") == ""
        assert row.pop("label") in ("ant", "bee", "cat")
        assert {**mine, "index": ""} == {**row, "index": ""}


def test_odd_names_links_and_outputs_that_are_not_finite(photos: Path, tmp_path: Path, capsys: Any):
    folder, real, out = tmp_path / "own", tmp_path / "real.csv", tmp_path / "p.csv"
    shutil.copytree(photos / "db" / "ant", tmp_path / "elsewhere")
    folder.mkdir()
    shutil.copy(photos / "db/ant/0.jpg", folder / os.fsdecode(b"\xff.jpg"))
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "round").symlink_to(folder)
    (folder / "self").symlink_to("self")
    out.symlink_to(real)
    train.main(["predict", "--ckpt_path", str(photos / "a.ckpt"), f"--predictions.path={out}",
                f"--predictions.input={folder}"])  # fmt: skip
    assert out.is_symlink()
    with real.open(encoding="utf-8", errors="surrogateescape") as file:
        found = [row["file"] for row in csv.DictReader(file)]
    assert found == [*(f"more/{number}.jpg" for number in range(6)), os.fsdecode(b"\xff.jpg")]
    known = torch.load(photos / "a.ckpt", weights_only=True)
    known["state_dict"]["backbone.fc.bias"][0] = torch.nan
    torch.save(known, broken := tmp_path / "nan.ckpt")
    words = ["predict", "--ckpt_path", str(broken), "--predictions.path"]
    train.main([*words, str(out), f"--predictions.input={photos / 'db/ant'}"])
    said = capsys.readouterr()
    assert "6 predicted: none 6" in said.out
    assert "not finite for 6 of 6 samples: their class is left empty" in said.err
    assert {row["predicted"] for row in rows(real)} == {""}
    os.mkfifo(pipe := tmp_path / "pipe")
    said = refused([*words, str(pipe), f"--predictions.input={folder}"], capsys)
    assert "pipe' is a pipe, not a file" in said
    os.mkfifo(tmp_path / "there")
    with pytest.raises(ValueError, match="there is a device, a pipe or a socket: name a file"):
        check_target(tmp_path / "there")


def test_what_cannot_be_read_is_named(photos: Path, tmp_path: Path, capsys: Any):
    folder, out = tmp_path / "own", tmp_path / "p.csv"
    shutil.copytree(photos / "db" / "ant", folder / "a" / "b")
    for number, text in enumerate((b"", b"hello", (photos / "db/ant/0.jpg").read_bytes()[:99])):
        (folder / f"{number}.jpg").write_bytes(text)
    os.mkfifo(folder / "pipe.png")
    (folder / "notes.txt").write_text("no image")
    given = ["predict", "--ckpt_path", str(photos / "a.ckpt"), f"--predictions.path={out}"]
    train.main([*given, f"--predictions.input={folder}"])
    said = capsys.readouterr()
    assert "4 of 10 files have no row, since they cannot be used: 0.jpg, 1.jpg, 2.jpg" in said.err
    assert "6 predicted: " in said.out
    assert [row["file"] for row in rows(out)] == [f"a/b/{number}.jpg" for number in range(6)]
    said = refused(
        [*given, "--predictions.input", str(folder), "--predictions.annotator", "net"], capsys
    )
    assert "net is for heart beats, but this network knows ant, bee, cat: leave it out" in said
    for target, sentence in (
        (str(folder / "1.jpg"), "1.jpg' is damaged"),
        (str(tmp_path / "none"), "no image at"),
        (str(Path(train.__file__).parent / "configs"), "holds no image (.bmp, "),
        ("", "--predictions.input is empty"),
    ):
        assert sentence in refused([*given, "--predictions.input", target], capsys)
    said = refused([*given, "--predictions.input", str(folder), "--data", "Digits"], capsys)
    assert "takes all else from the checkpoint: leave out --data" in said
    assert "belongs to the command line of predict" in refused(
        ["fit", "--data", "Digits", "--predictions.input", "x"], capsys
    )
    nothing = tmp_path / "run"
    nothing.mkdir()
    assert "holds no checkpoint" in refused(
        ["predict", "--ckpt_path", str(nothing), "--predictions.input", str(folder)], capsys
    )


def test_records_are_predicted_beat_by_beat(tmp_path: Path, capsys: Any):
    import wfdb

    written = write_records(tmp_path / "db", [100, 101, 102])
    (tmp_path / "db" / "101.atr").unlink()
    save(tmp_path / "a.ckpt", MITBIH(), stem="imagenet")
    out = tmp_path / "p.csv"
    given = ["predict", "--ckpt_path", str(tmp_path / "a.ckpt"), "--predictions.path", str(out)]
    train.main([*given, "--predictions.input", str(tmp_path / "db")])
    said = capsys.readouterr()
    assert (
        "100: 15 beats, as annotated; resampled from 360 to 125 samples a second; 3 more"
        in said.out
    )
    assert "beats, detected by wfdb's XQRS, as there are no annotations" in said.out
    assert "1 of 3 files have no row, since they cannot be used: 102.hea" in said.err
    assert "has the leads V5, V2, not MLII" in said.err
    found = rows(out)
    mine = [row for row in found if row["record"] == "100"]
    groups = {"NLRej": "N", "AaJS": "S", "VE": "V", "F": "F", "/fQ": "Q"}
    known = {s: name for symbols, name in groups.items() for s in symbols}
    assert [(row["time"], row["label"]) for row in mine] == [
        (f"{sample / 360:.3f}", known[symbol])
        for sample, symbol in written[100]
        if 0.5 <= sample / 360 <= 14 - 0.996
    ]
    others = [row for row in found if row["record"] == "101"]
    assert len(others) > 5
    assert {row["label"] for row in others} == {""}
    for path in ("100", "100.hea", "100.dat"):
        train.main([*given, "--predictions.input", str(tmp_path / "db" / path)])
        found = [(row["record"], row["time"]) for row in rows(out)]
        assert found == [("100", row["time"]) for row in mine]
    said = refused([*given, "--predictions.input", str(tmp_path / "db" / "102")], capsys)
    assert "has the leads V5, V2, not MLII" in said
    # the same beats as annotations, which WFDB's tools compare with the reference
    one = [*given, "--predictions.input", str(tmp_path / "db" / "100"), "--predictions.annotator"]
    train.main([*one, "net"])
    assert f"Annotations: {tmp_path / '100'}.net" in capsys.readouterr().out
    notes = wfdb.rdann(str(tmp_path / "100"), "net")
    assert notes.symbol == [row["predicted"] for row in mine]
    assert [f"{sample / 360:.3f}" for sample in notes.sample] == [row["time"] for row in mine]
    counts = compare(tmp_path / "db" / "100.atr", tmp_path / "100.net")
    assert counts.sum() == len(written[100])
    assert counts[:, 5].sum() == 3  # those whose window leaves the record
    for suffix in ("atr", "ATR"):
        assert "must be letters, and no suffix of the records" in refused([*one, suffix], capsys)


def test_a_checkpoint_that_does_not_know_its_data(tmp_path: Path, capsys: Any):
    class Earlier(Digits):
        description = None  # pyright: ignore

    save(tmp_path / "a.ckpt", Earlier())
    (tmp_path / "x.png").write_bytes(b"")
    given = ["predict", "--ckpt_path", str(tmp_path / "a.ckpt")]
    said = refused([*given, "--predictions.input", str(tmp_path)], capsys)
    assert "does not know how its data were prepared" in said
