"""What a test and a prediction tell of each class and each sample."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

import train
from callbacks import PredictionWriter, run_details, run_summary
from datamodules import CIFAR10, MITBIH
from models import Classifier
from models.metrics import class_measures, draw_confusion
from study.crossed import METRICS
from tests.data import Tiny, write_kaggle, write_records, write_tree


def trainer(tmp_path: Path, *callbacks: Any, **more: Any) -> Trainer:
    more = {"logger": False, "enable_checkpointing": False} | more
    return Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, callbacks=[*callbacks],
                   enable_progress_bar=False, enable_model_summary=False, **more)  # fmt: skip


def test_measures_of_each_class(tmp_path: Path):
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    torch.manual_seed(3)
    model, data = Classifier("resnet8", 3, 1, 8), Tiny()
    logger = TensorBoardLogger(tmp_path, "board")
    run = trainer(tmp_path, logger=logger, max_epochs=2, log_every_n_steps=2)
    run.fit(model, datamodule=data)
    [found] = run.test(model, datamodule=data, verbose=False)
    summary = "\n".join(run_details(run))
    assert run_summary(run, [summary]).startswith(f"\n{summary}\n")
    row = next(line for line in summary.splitlines() if line.startswith("grey")).split()
    assert float(row[1]) == pytest.approx(found["test_sensitivity/grey"], abs=1e-4)
    batches: Any = run.predict(model, datamodule=data)
    assert batches
    guess = torch.cat([b["probability"] for b in batches]).argmax(1)
    label = torch.cat([b["label"] for b in batches])
    assert len(guess.unique()) > 1
    undefined: Any = np.nan  # scikit-learn's stubs expect a word
    scores: Any = precision_recall_fscore_support(label, guess, zero_division=undefined)
    precision, recall, f1, _ = scores
    for i, name in enumerate(data.class_names):
        for measure, expected in (("sensitivity", recall), ("predictivity", precision), ("f1", f1)):
            value = found.get(f"test_{measure}/{name}", np.nan)
            assert value == pytest.approx(expected[i], nan_ok=True)
    picture = Image.open(Path(logger.log_dir) / "confusion.png")
    assert min(picture.size) > 200
    assert np.asarray(picture.convert("L")).std() > 10
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger.experiment.flush()
    assert EventAccumulator(logger.log_dir).Reload().Tags()["images"] == ["test/confusion"]
    matrix = torch.from_numpy(confusion_matrix(label, guess))
    measures = class_measures(matrix)
    np.testing.assert_allclose(measures["sensitivity"], recall, rtol=1e-6)


def test_the_picture_shows_the_rows_as_true_classes(tmp_path: Path):
    matrix = torch.tensor([[50, 0, 0], [0, 0, 7], [1, 2, 3]])
    figure = draw_confusion(tmp_path / "c.png", matrix, ("a", "bee", "sea"))
    axes = figure.axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells[(2, 1)] == "7"  # column 2, row 1
    assert cells[(1, 2)] == "2"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "bee", "sea"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


@pytest.mark.filterwarnings("ignore:test. no sample of 3, 4, 5")
def test_many_classes_have_no_matrix(tmp_path: Path):
    model = Classifier("resnet8", 11, 1, 8)
    assert model.confusion is None
    trainer(tmp_path).test(model, datamodule=Tiny(), verbose=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # Lightning, of a run that only tests
def test_beats_are_tested_and_predicted_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    written = write_records(tmp_path / "mitdb")
    monkeypatch.chdir(tmp_path)

    def command(line: str) -> str:
        train.main(line.split())
        return capsys.readouterr().out

    data = "--data MITBIH --data.root mitdb --data.representation spectrogram"
    quiet = "--trainer.enable_progress_bar false --trainer.enable_model_summary false"
    printed = command(f"fit {data} {quiet} --data.batch_size 32 --trainer.max_epochs 1 "
                      "--trainer.limit_train_batches 2 --trainer.log_every_n_steps 1 --trainer.accelerator cpu "
                      "--model.backbone resnet8 --test_after_fit true")  # fmt: skip
    assert ", always the commonest class 0." in printed
    assert "beats of 22 records: accuracy 0." in printed
    assert "class  beats   Se gross     +P gross     FPR gross    Se average" in printed
    assert sum(line.startswith("V   ") for line in printed.splitlines()) == 1
    best = next(tmp_path.glob("runs/*/version_0/checkpoints/best.ckpt"))
    assert (best.parents[1] / "confusion.png").is_file()
    tested = command(f"test {data} {quiet} --trainer.accelerator cpu --ckpt_path {best}")
    assert "class  beats   Se gross" in tested
    for name in (
        "test_aami.csv",
        "test/test_aami.csv",
        "test/test_aami_counts.csv",
        "test/data.yaml",
    ):
        assert (best.parents[1] / name).is_file()
    known = yaml.safe_load((best.parents[1] / "test/data.yaml").read_text())
    assert known["data"]["init_args"]["root"] == str(tmp_path / "mitdb")
    assert "batch_size" not in known["data"]["init_args"]
    assert train.folder_of_test(best.parents[1], known) == "test"
    for other in ({**known, "checkpoint": "last.ckpt"}, {**known, "data": {"class_path": "x"}}):
        assert train.folder_of_test(best.parents[1], other) == "test_1"
    with pytest.warns(UserWarning, match="trained on other data: normalize zscore, now minmax"):
        command(f"validate {data} {quiet} --trainer.accelerator cpu --ckpt_path {best} "
                "--data.normalize minmax")  # fmt: skip
    command(f"predict {data} {quiet} --trainer.accelerator cpu --ckpt_path {best} "
            "--predictions.path out.csv --trainer.logger false")  # fmt: skip
    with open("out.csv") as file:
        rows = list(csv.DictReader(file))
    first = ["index", "record", "time", "lead", "label", "predicted", "probability"]
    assert list(rows[0]) == [*first, *(f"probability_{name}" for name in "NSVFQ")]
    samples = dict.fromkeys((int(row["record"]), round(float(row["time"]) * 360)) for row in rows)
    assert len(samples) == len(rows)
    for row, (record, sample) in zip(rows, samples, strict=True):
        [symbol] = [symbol for s, symbol in written[record] if s == sample]
        aami = {
            "L": "N",
            "R": "N",
            "e": "N",
            "j": "N",
            "A": "S",
            "a": "S",
            "J": "S",
            "E": "V",
            "f": "Q",
        }
        assert row["label"] == aami.get(symbol, symbol)
        assert row["lead"] == "MLII"


def test_files_and_rows_are_told_in_predictions(tmp_path: Path):
    write_tree(tmp_path / "cifar")
    write_kaggle(tmp_path / "kaggle")
    for data, columns, size, channels in (
        (CIFAR10(str(tmp_path / "cifar")), ["file"], 32, 3),
        (
            MITBIH(str(tmp_path / "kaggle"), protocol="kaggle", representation="spectrogram"),
            ["row"],
            32,
            1,
        ),
    ):
        model = Classifier("resnet8", data.num_classes, channels, size)
        path = tmp_path / "p.csv"
        trainer(tmp_path, PredictionWriter(str(path))).predict(model, datamodule=data)
        with path.open() as file:
            rows = list(csv.DictReader(file))
        shares = [f"probability_{name}" for name in data.class_names]
        assert list(rows[0]) == ["index", *columns, "label", "predicted", "probability", *shares]
        if "file" in columns:
            assert len(rows) == 30
            assert all(Path(row["file"]).parts[:2] == ("test", row["label"]) for row in rows)
            assert all((tmp_path / "cifar" / row["file"]).is_file() for row in rows)
        else:
            assert [int(row["row"]) for row in rows] == list(range(1, 41))


def f1_of(batches: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """Of N, S, V and F, as far as there are some, by scikit-learn; labels and predictions."""
    from sklearn.metrics import f1_score

    label, shares = (torch.cat([b[k] for b in batches]).numpy() for k in ("label", "probability"))
    present, predicted = sorted({0, 1, 2, 3} & set(label)), shares.argmax(1)
    f1 = f1_score(label, predicted, labels=present, average="macro", zero_division=0.0)  # pyright: ignore
    return float(f1), label, predicted


@pytest.mark.filterwarnings("ignore:(test|val).* no sample of")
def test_f1_over_the_classes_that_the_data_choose(tmp_path: Path):
    write_records(tmp_path / "data")
    data = MITBIH(str(tmp_path / "data"), protocol="intra_patient", cache_dir=str(tmp_path))
    run = trainer(tmp_path, max_epochs=1)
    model = Classifier("resnet8", data.num_classes, 1, data.image_size, dims=1)
    run.fit(model, datamodule=data)
    seen = float(run.callback_metrics["val/f1_nsvf"])
    [found] = run.test(model, data, verbose=False)
    assert seen == pytest.approx(f1_of(run.predict(model, data.val_dataloader()))[0], abs=1e-5)
    f1, label, predicted = f1_of(run.predict(model, datamodule=data))
    assert found["test/f1_nsvf"] == pytest.approx(f1, abs=1e-5)
    crossed = METRICS["f1_nsvf"](label, predicted, np.ones((1, len(predicted))))
    assert crossed[0] == pytest.approx(f1, abs=1e-9)
