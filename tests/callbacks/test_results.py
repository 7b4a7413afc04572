"""What a run leaves when it has ended."""

import hashlib
import json
import math
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger
from sklearn.metrics import f1_score
from torch.utils.data import DataLoader, TensorDataset

import train
from callbacks import BestCheckpoint, Results, read_results, run_details
from callbacks.checkpoints import has_diverged
from datamodules import MITBIH
from datamodules.aami import of_tests
from models import Classifier, DivergedError
from tests.data import Tiny, write_records
from tests.trainings import Small, classifier, trainer

LINE = ("fit --data Digits --model.backbone resnet8 --model.activation CosLU --monitor.figure false "
        "--trainer.limit_train_batches 3 --trainer.logger.save_dir runs --trainer.logger.name x "
        "--trainer.enable_model_summary false --data.batch_size 64 --trainer.log_every_n_steps 2")  # fmt: skip
RUN = Path("runs/x/version_0")


def read(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_results_agree_with_the_files_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    train.main(
        [*LINE.split(), "--trainer.max_epochs=2", "--test_after_fit=both", "--trust", "a", "b"]
    )
    printed = capsys.readouterr().out
    results, samples = read(RUN), np.load(RUN / "test.npz")
    assert (results["status"], results["seed"], results["processes"]) == ("ok", 0, 1)
    assert results["config"] == yaml.safe_load((RUN / "config.yaml").read_text())
    assert results["train_samples"] == 3 * 64
    labels = struct.pack("<359q", *samples["label"].tolist())
    assert results["test_labels"] == hashlib.sha256(labels).hexdigest()[:12]
    assert [each["epoch"] for each in results["epochs"]] == [0, 1]
    best = max(results["epochs"], key=lambda each: each["val/acc"])
    assert results["best"] == {"epoch": best["epoch"], "val/acc": best["val/acc"]}
    assert samples["index"].tolist() == list(range(359))
    for which, name in (("last", "probability"), ("best", "probability_best")):
        predicted, test = samples[name].argmax(1), results["test"][which]
        assert test["test/acc"] == pytest.approx(np.mean(predicted == samples["label"]), abs=1e-6)
        f1 = f1_score(samples["label"], predicted, average="macro")
        assert test["test/f1"] == pytest.approx(f1, abs=1e-5)
        assert f"test {which:<4}    accuracy {test['test/acc']:.4f}" in printed
        assert (RUN / f"confusion_{which}.png").is_file()
    assert printed.count("class        sensitivity  predictivity  F1") == 2
    state = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert (
        results["learned"]["layer2.0.act1.alpha"] == state["backbone.layer2.0.act1.alpha"].tolist()
    )
    assert len(results["learned"]) == 14
    # a resumed run has no results until it ends, and keeps the epochs before
    (RUN / "results.json").write_text("{}")
    (RUN / "test_aami.csv").write_text("of the run before")
    seen: list[bool] = []
    usual = Results.on_train_epoch_end

    def looked(self: Results, *args: Any) -> None:
        seen.append((RUN / "results.json").exists())
        usual(self, *args)

    monkeypatch.setattr(Results, "on_train_epoch_end", looked)
    words = ["fit", "-c", f"{RUN}/config.yaml", "--ckpt_path", f"{RUN}/checkpoints/last.ckpt",
             "--trainer.max_epochs=3", "--test_after_fit=false"]  # fmt: skip
    train.main(words)
    again = read(RUN)
    assert seen == [False]
    assert [each["epoch"] for each in again["epochs"]] == [0, 1, 2]
    assert again["epochs"][:2] == results["epochs"]
    assert again["fit_s"] > results["fit_s"]
    train.main(words)  # a run that was ended after its last epoch
    last = read(RUN)
    assert last["train_samples"] == again["train_samples"] == 3 * 64
    assert last["epochs"] == again["epochs"]
    assert last["config"] == again["config"]
    assert last["config"]["trust"] == results["config"]["trust"] == ["a", "b"]
    assert not (RUN / "test.npz").exists()
    assert not (RUN / "test_aami.csv").exists()
    row = pd.DataFrame(read_results("runs")).iloc[0]
    assert (row["data"], row["activation"], row["max_epochs"]) == ("Digits", "CosLU", 3)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_run_that_is_refused_leaves_the_results_of_the_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    words = [*LINE.split(), "--trainer.max_epochs=1", "--trainer.logger.version=version_0"]
    train.main([*words, "--test_after_fit=last"])
    kept = {file: file.read_bytes() for file in RUN.iterdir() if file.is_file()}
    assert {"results.json", "test.npz", "activations.csv"} <= {file.name for file in kept}
    again = f"--ckpt_path={RUN}/checkpoints/last.ckpt"
    for more, told in (
        ([], "version_0 holds another run: resume it with --ckpt_path"),
        ([again, "--trainer.max_epochs=2", "--trainer.callbacks+=callbacks.HeadFirst",
          "--trainer.callbacks+=callbacks.AlternatingOptimization"], "leave one out"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            train.main([*words, *more])
        assert told in capsys.readouterr().err
        assert {file: file.read_bytes() for file in kept} == kept


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:You're using the WeightAver")
def test_the_best_checkpoint_of_an_average_is_tested_with_the_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    average = "--trainer.callbacks+=EMAWeightAveraging"
    words = [*LINE.split(), "--trainer.max_epochs=1", average, "--trainer.callbacks.decay=0.5"]
    train.main([*words, "--test_after_fit=both"])
    samples = np.load(RUN / "test.npz")  # after one epoch the best weights are the last ones
    np.testing.assert_allclose(samples["probability_best"], samples["probability"], atol=1e-6)
    for name in ("checkpoint", "last_checkpoint"):
        with pytest.raises(SystemExit):
            train.main([*words, f"--{name}.save_weights_only=true"])
        assert f"--{name}.save_weights_only would store the weights of" in capsys.readouterr().err


class Elsewhere(Logger):
    """Its folder is that of all runs, as Weights & Biases' is."""

    def __init__(self, version: str) -> None:
        self._version = version

    @property
    def save_dir(self) -> str:
        return "runs"

    @property
    def name(self) -> str:
        return "x"

    @property
    def version(self) -> str:
        return self._version

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_runs_of_another_logger_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    line = LINE.replace("--trainer.logger.save_dir runs --trainer.logger.name x", "").split()
    kind = "--trainer.logger=tests.callbacks.test_results.Elsewhere"
    for version in ("a", "b"):
        words = [*line, "--trainer.max_epochs=1", kind, f"--trainer.logger.version={version}"]
        train.main([*words, "--test_after_fit=last", "--seed_everything=3"])
    for folder in (Path("runs/x/a"), Path("runs/x/b")):
        assert read(folder)["seed"] == read(folder)["config"]["seed_everything"] == 3
        assert (folder / "confusion.png").is_file()
    assert {each.name for each in Path("runs").iterdir()} == {"x"}


def test_the_best_epoch_is_none_without_a_number(tmp_path: Path):
    best, results = BestCheckpoint(), Results()
    run = trainer(tmp_path, best, results, enable_checkpointing=True)
    best.monitor, best.mode = "val/acc", "max"
    results.epochs = [{"epoch": k, "val/acc": v} for k, v in enumerate([math.nan, 0.5, 0.7, 0.6])]
    assert results._best(run) == {"epoch": 2, "val/acc": 0.7}


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_an_epoch_without_validation_has_no_value_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = ["--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2"]
    train.main([*LINE.split(), *words])
    epochs = read(RUN)["epochs"]
    assert ["val/acc" in each for each in epochs] == [False, True, False]
    assert all("train/loss" in each for each in epochs)
    row = pd.DataFrame(read_results("runs")).iloc[0]
    assert row["val/acc"] == epochs[1]["val/acc"]


def test_a_run_that_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        train.main(
            [
                *LINE.replace("CosLU", "torch.nn.ReLU").split(),
                "--model.optimizer=SGD",
                "--model.optimizer.lr=1e30",
            ]
        )
    assert left.value.code == 3
    results = read(RUN)
    assert results["status"] == "diverged"
    assert "the training loss is" in results["message"]
    assert results["epochs"][0]["train/loss"] is None  # JSON knows no NaN
    # a slip leaves no folder, and no number is lost
    with pytest.raises(SystemExit):
        train.main([*LINE.split(), "--model.activation_from=missing.ckpt"])
    assert [each.name for each in RUN.parent.iterdir()] == ["version_0"]


class Fails(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, *args: Any) -> None:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("no more memory"), SystemExit(143)], ids=repr)
def test_an_error_is_a_result_and_a_signal_is_none(tmp_path: Path, error: BaseException):
    logger = CSVLogger(tmp_path, name="", version="run")
    with pytest.raises(type(error)):
        trainer(tmp_path, Results(), Fails(error), logger=logger).fit(Small(), datamodule=Tiny())
    if isinstance(error, SystemExit):
        assert not (tmp_path / "run/results.json").exists()
    else:
        assert read(tmp_path / "run")["status"] == "failed"
        assert read(tmp_path / "run")["message"] == "no more memory"


@pytest.mark.parametrize(("limit", "samples"), [(1, 6), (1.0, 48), (3, 18)])
def test_training_samples_of_an_epoch(tmp_path: Path, limit: float, samples: int):
    results = Results()
    trainer(tmp_path, results, max_epochs=1, limit_train_batches=limit).fit(
        Small(), datamodule=Tiny()
    )
    assert results.state_dict()["train_samples"] == samples


def test_samples_without_positions_and_groups(tmp_path: Path):
    write_records(tmp_path / "data")
    data = MITBIH(str(tmp_path / "data"), protocol="inter_patient", cache_dir=str(tmp_path))
    data.setup("test")
    assert data.monitor == "val/f1"
    results = Results()
    run = trainer(tmp_path, results, logger=CSVLogger(tmp_path, name="", version="run"))
    results._folder = tmp_path / "run"
    model = Classifier("resnet8", data.num_classes, 1, data.image_size, dims=1)
    run.test(model, data, verbose=False)
    results.write("ok", "", run)
    samples = np.load(tmp_path / "run/test.npz")
    expected = [data.describe(int(index))["record"] for index in samples["index"]]
    assert samples["group"].tolist() == expected
    assert len(set(expected)) > 1
    # EC57's report beside it, as it can be made of it afterwards
    [made] = of_tests([tmp_path / "run/test.npz"]).values()
    assert made.text in results.report
    for name, table in made.tables.items():
        written = pd.read_csv(tmp_path / f"run/test_{name}.csv", index_col="record")
        np.testing.assert_allclose(written.astype(float), table.astype(float), atol=1e-6)
    assert made.tables["aami"].loc["gross", "majority"] == pytest.approx(
        run.callback_metrics["test/acc_majority"].item()
    )
    assert run_details(run) == [results.report]
    images = torch.cat([batch[0] for batch in data.test_dataloader()])
    labels = torch.from_numpy(samples["label"])
    loader = DataLoader(TensorDataset(images, labels), 7)
    run.test(model, loader, verbose=False)
    results.write("ok", "", run)
    again = np.load(tmp_path / "run/test.npz")
    assert np.array_equal(again["index"], np.arange(len(expected)))
    assert np.array_equal(again["label"], samples["label"])


def test_the_best_checkpoint_follows_the_metric_of_the_data(tmp_path: Path):
    data = Tiny()
    data.monitor = "val/f1"
    best = BestCheckpoint(tmp_path, monitor="auto", mode="max", filename="best")
    run = trainer(tmp_path, best, max_epochs=1, enable_checkpointing=True)
    run.fit(classifier(), datamodule=data)
    assert best.monitor == "val/f1"
    assert best.best_model_score == run.callback_metrics["val/f1"]


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path):
    (tmp_path / "x/version_3").mkdir(parents=True)
    (tmp_path / "x/version_old").mkdir()
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda name: train.claim(tmp_path, name), ["x"] * 24))
    assert sorted(int(each.name[8:]) for each in folders) == list(range(4, 28))


def test_a_table_of_runs_names_what_it_cannot_read(tmp_path: Path):
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"config": 3}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    rows = read_results(tmp_path)
    assert [(row["run"], row["status"]) for row in rows] == [(n, "unreadable") for n in "abc"]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_results(tmp_path / "missing")


def test_a_slip_in_arithmetic_is_no_divergence():
    assert has_diverged(DivergedError())
    assert not any(map(has_diverged, (ZeroDivisionError(), OverflowError(), ValueError())))


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_the_best_weights_of_the_middle_of_a_schedule_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = [*LINE.split(), "--model.match=fade", "--trainer.max_epochs=2"]
    first = ["--checkpoint.monitor=train/loss", "--checkpoint.mode=max", "--schedule.end=1.0"]
    with pytest.warns(UserWarning, match="the best checkpoint is of the middle of a schedule"):
        train.main([*words, *first, "--test_after_fit=best"])


def test_pictures_of_an_earlier_test_do_not_stay(tmp_path: Path):
    results = Results()
    results._folder = tmp_path
    for name in ("results.json", "confusion.png", "confusion_best.png", "test_rhythm.csv"):
        (tmp_path / name).touch()
    (tmp_path / "metrics.csv").touch()
    results.on_train_batch_start()
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]
