"""Runs that are killed, stopped or out of room, and go on."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

import train
from activations import CosLU
from activations.files import append, check_writable
from callbacks import ActivationMonitor, BestCheckpoint, LastCheckpoint, WholeFiles
from models.network import find
from tests.data import Tiny
from tests.trainings import Small, classifier, same, trainer

ROOT = Path(train.__file__).parent
FIT: str = ("fit --data Digits --data.batch_size 64 --model.backbone resnet8 --model.activation CosLU "
       "--trainer.max_epochs 3 --trainer.limit_train_batches 6 --trainer.log_every_n_steps 2 "
       "--trainer.enable_model_summary false --trainer.accelerator cpu --test_after_fit true "
       "--last_checkpoint.every_n_train_steps 4")  # fmt: skip
RUN = Path("runs/Digits-resnet8-CosLU/version_0")
RESUME: str = f"fit -c {RUN}/config.yaml --ckpt_path {RUN}/checkpoints/last.ckpt"
# runs of one command in folders of their names: each dies in the middle of that write
KILLED: str = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import train
def fsync(handle):
    global write
    write -= 1
    if write == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
real, os.fsync = os.fsync, fsync
for write in WRITES:
    run = os.fork()  # the imports take longest
    if not run:
        os.chdir(str(write))
        train.main(sys.argv[1:])
    assert os.waitpid(run, 0)[1] == signal.SIGKILL
"""
WRITES = (19, 33)  # while a checkpoint is written, and while a table is

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


def start(folder: Path, line: str, code: str = "") -> subprocess.Popen[bytes]:
    """Start `train.py` in another process, or `code` with the same arguments."""
    program = ["-c", code] if code else [str(ROOT / "train.py")]
    with (folder / "log").open("a") as log:
        one = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, *program, *line.split()],
                                cwd=folder, stdout=log, stderr=log, env=one)  # fmt: skip


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run), size_guidance={"scalars": 0})
    board.Reload()
    tags = board.Tags()["scalars"]
    return {tag: sorted({(e.step, e.value) for e in board.Scalars(tag)}) for tag in tags}


def assert_equal(run: Path, whole: Path) -> None:
    """Equal to the bit: checkpoints with all that is in them, tables and logged numbers."""
    for name in ("best", "last"):
        files = [folder / f"checkpoints/{name}.ckpt" for folder in (run, whole)]
        found, expected = (torch.load(file, weights_only=True) for file in files)
        for each in (found, expected):
            del each["callbacks"]["ActivationMonitor"]["csv"]  # an absolute path
            results = each["callbacks"]["Results"]
            del results["fit_s"], results["cpu_s"], results["epoch"]["seconds"]
            for epoch in results["epochs"]:
                del epoch["images_per_s"]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert same(found[key], value), (name, key)
    assert (run / "activations.csv").read_text() == (whole / "activations.csv").read_text()
    assert scalars(run) == scalars(whole)
    assert not list(run.rglob("*.part"))
    assert {file.name for file in whole.iterdir() if "tfevents" not in file.name} == {
        file.name for file in run.iterdir() if "tfevents" not in file.name
    }


def result(text: str) -> str:
    return re.findall(r"^test +accuracy.*", text, re.MULTILINE)[-1]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The order of a sum, and so its last bit, depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which nothing happened to the run."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.main(FIT.split())
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a folder for each killed run."""
    folder = tmp_path_factory.mktemp("killed")
    for write in WRITES:
        (folder / str(write)).mkdir()
    run = start(folder, FIT, KILLED.replace("WRITES", str(WRITES)))
    assert run.wait(240) == 0, (folder / "log").read_text()[-2000:]
    return folder


@pytest.mark.parametrize("write", WRITES)
def test_a_killed_run_goes_on_as_if_never_killed(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, killed: Path, whole: Path, write: int
):
    folder = killed / str(write)
    monkeypatch.chdir(folder)
    train.main(RESUME.split())
    assert_equal(folder / RUN, whole / RUN)
    assert [path.name for path in (folder / RUN).parent.iterdir()] == ["version_0"]
    if write != WRITES[0]:
        return
    found = result(capsys.readouterr().out)
    train.main(RESUME.split())  # nothing is left to do
    printed = capsys.readouterr().out
    assert result(printed) == found
    assert "already finished: epoch 3, step 18; raise trainer.max_epochs" in printed
    assert "nothing was measured" not in printed
    assert_equal(folder / RUN, whole / RUN)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_kills_at_random_moments(tmp_path: Path, whole: Path, number: int):
    draw = random.Random(number)
    began = time.monotonic()
    assert start(tmp_path, FIT).wait(600) == 0
    length = time.monotonic() - began
    shutil.rmtree(tmp_path / "runs")
    line, code = FIT, -1
    for _ in range(2):
        run = start(tmp_path, line)
        try:
            code = run.wait(draw.uniform(0.3, 1) * length)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
        if (tmp_path / RUN / "checkpoints/last.ckpt").is_file():
            line = RESUME
        else:
            shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    if code != 0:
        assert start(tmp_path, line).wait(600) == 0, (tmp_path / "log").read_text()[-2000:]
    assert_equal(tmp_path / RUN, whole / RUN)


@pytest.mark.parametrize(
    ("number", "code", "steps"),  # a step whose results are logged, and the last one
    [(signal.SIGTERM, 143, 10), pytest.param(signal.SIGINT, 130, 18, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_says_how_to_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    whole: Path,
    number: int,
    code: int,
    steps: int,
):
    monkeypatch.chdir(tmp_path)

    def send(model: train.Classifier, optimizer: Any) -> None:
        if model.global_step == steps - 1:  # in the middle of a step
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        patch.setattr(train.Classifier, "on_before_optimizer_step", send)
        with pytest.raises(SystemExit) as stop:
            train.main(FIT.split())
    assert stop.value.code == code
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    text = capsys.readouterr().err
    assert f"holds epoch {steps // 7}, step {steps}. To go on: python train.py {RESUME}" in text
    train.main(RESUME.split())
    assert_equal(tmp_path / RUN, whole / RUN)


@pytest.mark.slow
def test_two_processes_go_on_as_if_never_stopped(tmp_path: Path):
    line, folders = f"{FIT} --trainer.devices 2", [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    assert start(folders[0], line).wait(600) == 0, (folders[0] / "log").read_text()[-2000:]
    stopped = start(folders[1], line)
    while stopped.poll() is None and not (folders[1] / RUN / "checkpoints/last.ckpt").is_file():
        time.sleep(0.1)
    stopped.terminate()  # the first process alone: it tells the other
    assert stopped.wait(600) == 143, (folders[1] / "log").read_text()[-2000:]
    assert start(folders[1], RESUME).wait(600) == 0, (folders[1] / "log").read_text()[-2000:]
    assert_equal(folders[1] / RUN, folders[0] / RUN)


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path):
    file, table = tmp_path / "last.ckpt", tmp_path / "table.csv"
    WholeFiles().save_checkpoint({"step": 1}, file)
    table.write_text("a,b\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        message = r"cannot write .*last.ckpt: File too large.*MB are free.*earlier file is whole"
        with pytest.raises(OSError, match=message):
            WholeFiles().save_checkpoint({"step": torch.rand(100_000)}, file)
        with pytest.raises(OSError, match=r"cannot write .*table.csv"):
            append(table, "1,2\n" * 50_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(file, weights_only=True) == {"step": 1}
    assert table.read_text() == "a,b\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_of_the_users_own_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "movie.zip.part").write_text("mine")
    (tmp_path / "folder.part").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.ckpt.part").write_text("of a run that was killed")
    line = f"{FIT} --trainer.max_epochs 1 --trainer.logger false --test_after_fit false"
    train.main(line.split())
    assert (tmp_path / "movie.zip.part").read_text() == "mine"
    assert (tmp_path / "folder.part").is_dir()
    assert not (tmp_path / "checkpoints/best.ckpt.part").exists()
    with pytest.raises(SystemExit):  # it would replace the last checkpoint
        train.main(line.split())


def test_a_home_folder_means_the_same_for_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    train.main(f"{FIT} --trainer.max_epochs 1 --trainer.default_root_dir=~/exp "
               "--test_after_fit false --last_checkpoint.every_n_epochs 2".split())  # fmt: skip
    assert [each.name for each in tmp_path.iterdir()] == ["home"]
    [run] = (tmp_path / "home/exp").glob("*/version_0")
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 6  # the last weights, whatever `every_n_epochs` is


def test_a_place_that_cannot_be_written_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises(SystemExit) as stop:
        train.main(["fit", "--data", "Digits", "--model.backbone", "resnet8"])
    assert stop.value.code == 2
    assert "cannot write runs: " in capsys.readouterr().err
    check_writable(tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_another_folder_takes_the_best_over(tmp_path: Path):
    def fit(folder: str, epochs: int, path: Path | None = None) -> BestCheckpoint:
        best = BestCheckpoint(tmp_path / folder, "best", monitor="val/loss")
        last = LastCheckpoint(dirpath=tmp_path / folder, filename="last",
                              enable_version_counter=False)  # fmt: skip
        run = trainer(tmp_path, best, last, max_epochs=epochs, enable_checkpointing=True)
        run.fit(Small(), datamodule=Tiny(), ckpt_path=path)
        return best

    first = fit("a", 1)
    assert first.best_model_score is not None
    score = torch.tensor(-1.0)  # no later epoch is better
    file = tmp_path / "a/last.ckpt"
    for each in ("best", "last"):
        known = torch.load(tmp_path / f"a/{each}.ckpt", weights_only=True)
        state = known["callbacks"][first.state_key]
        state["best_k_models"] = {first.best_model_path: score}
        torch.save(known, tmp_path / f"a/{each}.ckpt")
    expected = (tmp_path / "a/best.ckpt").read_bytes()
    best = fit("b", 2, file)
    assert best.best_model_score == score
    assert Path(best.best_model_path) == tmp_path / "b/best.ckpt"
    assert (tmp_path / "b/best.ckpt").read_bytes() == expected
    assert (tmp_path / "a/best.ckpt").read_bytes() == expected
    (tmp_path / "a/best.ckpt").write_bytes(expected[: len(expected) // 2])
    with pytest.raises(ValueError, match=r"a/best\.ckpt', the best checkpoint, cannot be read"):
        fit("c", 2, file)
    (tmp_path / "a/best.ckpt").unlink()  # without the file the score is worth nothing
    best = fit("c", 2, file)
    assert best.best_model_score is not None
    assert best.best_model_score > 0


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # own.yaml is left out
def test_a_users_own_checkpoints_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
        "init_args: {dirpath: own, every_n_epochs: 1}}]}"
    )
    paths: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "test", lambda *_, ckpt_path, **__: paths.append(ckpt_path))
        train.main([*FIT.split(), "--trainer.max_epochs", "1", "-c", "own.yaml"])
    assert paths == [f"{RUN}/checkpoints/best.ckpt"]
    assert re.search(rf"checkpoint +{RUN}/checkpoints/best.ckpt", capsys.readouterr().out)
    assert (tmp_path / "own/epoch=0-step=6.ckpt").is_file()
    for name in ("test", "predict", "validate"):
        best = f"{RUN}/checkpoints/best.ckpt"
        train.main([name, "--data", "Digits", "--ckpt_path", best, "--trainer.accelerator", "cpu"])
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]
    assert (RUN / "test/confusion.png").is_file()


class Noisy(Small):
    """Dropout, means that are logged at the end of an epoch, and a rate that follows results."""

    every = 1

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        plateau = ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)
        config = {"scheduler": plateau, "monitor": "val/loss", "frequency": self.every}
        return [optimizer], [config]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(nn.functional.dropout(batch[0], 0.3), batch[1])
        self.log("mean", loss, on_step=False, on_epoch=True)
        self.log("most", loss, on_step=False, on_epoch=True, reduce_fx=max)
        return loss


@pytest.mark.parametrize(("done", "every"), [(1, 1), (2, 2), (3, 2)])
def test_a_rate_that_follows_results_goes_on_from_the_end_of_an_epoch(
    tmp_path: Path, done: int, every: int
):
    def fit(name: str, epochs: int, path: Path | None = None) -> Any:
        last, model = LastCheckpoint(dirpath=tmp_path / name, filename="last"), Noisy()
        model.every = every
        run = trainer(tmp_path, last, enable_checkpointing=True, max_epochs=epochs,
                      check_val_every_n_epoch=every, num_sanity_val_steps=2,
                      limit_train_batches=2)  # fmt: skip
        run.fit(model, datamodule=Tiny(), ckpt_path=path)
        return [model.state_dict(), run.lr_scheduler_configs[0].scheduler.state_dict()]

    torch.manual_seed(7)
    whole = fit("whole", 4)
    assert whole[1]["num_bad_epochs"] == 0  # the rate fell each time
    torch.manual_seed(7)
    fit("part", done)
    assert same(whole, fit("again", 4, tmp_path / "part/last.ckpt"))


@pytest.mark.gpu
def test_the_middle_of_an_epoch_on_a_gpu(tmp_path: Path):
    for path in (None, tmp_path / "last.ckpt"):
        last = LastCheckpoint(5, dirpath=tmp_path, filename="last", every_n_epochs=9)
        run = trainer(tmp_path, last, enable_checkpointing=True, accelerator="gpu",
                      max_steps=-1 if path else 6)  # fmt: skip
        run.fit(classifier(CosLU), datamodule=Tiny(), ckpt_path=path)
    assert run.global_step == 8 * run.current_epoch


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # Lightning's own checkpoints
@pytest.mark.parametrize("stop", [5, 11, 12])
def test_the_middle_of_an_epoch_is_exact(tmp_path: Path, stop: int):
    def fit(name: str, path: Path | None = None) -> Any:
        last = LastCheckpoint(stop, dirpath=tmp_path / name, filename="last")
        own = ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=1, save_top_k=-1)
        logger, model = CSVLogger(tmp_path, name), Noisy()
        run = trainer(tmp_path, own, last, ActivationMonitor(2, figure=False), logger=logger,
                      enable_checkpointing=True, max_epochs=2)  # fmt: skip
        run.fit(model, datamodule=Tiny(), ckpt_path=path)
        return [model.state_dict(), run.lr_scheduler_configs[0].scheduler.state_dict()]

    torch.manual_seed(7)
    whole = fit("whole")
    torch.manual_seed(8)
    again = fit("again", path=tmp_path / f"whole/step={stop}.ckpt")
    assert same(whole, again)
    found, expected = (
        [row for row in (tmp_path / name / "version_0/metrics.csv").read_text().splitlines() if row]
        for name in ("again", "whole")
    )
    assert [row for row in found[1:] if row in expected] == found[1:]
    tables = [tmp_path / name / "version_0/activations.csv" for name in ("again", "whole")]
    assert tables[0].read_text() == tables[1].read_text()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("stop", [5, 8, 11])
def test_max_steps_end_no_epoch(tmp_path: Path, stop: int):
    seen: list[tuple[int, list[int]]] = []

    class Watched(Small):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            seen.append((self.current_epoch, batch[2].tolist()))
            return super().training_step(batch, batch_idx)

    def fit(name: str, steps: int, path: Path | None = None) -> Any:
        last = LastCheckpoint(dirpath=tmp_path / name, filename="last")
        run = trainer(tmp_path, last, enable_checkpointing=True, max_epochs=9, max_steps=steps)
        model = Watched()
        run.fit(model, datamodule=Tiny(), ckpt_path=path)
        return model.state_dict()

    whole = fit("whole", 20)
    batches, seen[:] = [*seen], []
    fit("part", stop)
    path = tmp_path / "part/last.ckpt"
    fit("more", stop + 1, path)
    assert same(fit("again", 20, tmp_path / "more/last.ckpt"), whole)
    assert seen == batches


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_early_stopping_and_time_over_a_resume(tmp_path: Path):
    def fit(stop: Callback, epochs: int, path: Path | None = None) -> int:
        last = LastCheckpoint(dirpath=tmp_path, filename="last", enable_version_counter=False)
        run = trainer(tmp_path, last, stop, enable_checkpointing=True, max_epochs=epochs)
        run.fit(Small(), datamodule=Tiny(), ckpt_path=path)
        return run.current_epoch

    last = tmp_path / "last.ckpt"
    assert fit(EarlyStopping("val/loss", patience=0), 1) == 1
    assert fit(EarlyStopping("val/loss", patience=0, min_delta=-9), 2, last) == 2  # it improves
    never = {"min_delta": 1e9, "check_finite": False}
    assert fit(EarlyStopping("val/loss", patience=1, **never), 9) == 2
    assert fit(EarlyStopping("val/loss", patience=1, **never), 9, last) == 2
    assert fit(EarlyStopping("val/loss", patience=3, **never), 9, last) == 4
    assert fit(EarlyStopping("val/loss", stopping_threshold=1e9), 9) == 1
    assert fit(EarlyStopping("val/loss", stopping_threshold=1e9), 9, last) == 1
    assert fit(Timer(timedelta(hours=1)), 1) == 1
    assert fit(Timer(timedelta(seconds=0)), 9, last) == 1


@pytest.mark.parametrize("monitor", ["val/loss", "auto"])
def test_the_best_loss_is_the_least(tmp_path: Path, monitor: str):
    class Rising(Small):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", float(self.current_epoch))

    data, best = Tiny(), BestCheckpoint(tmp_path, "best", monitor)
    data.monitor = "val/loss"
    trainer(tmp_path, best, enable_checkpointing=True).fit(Rising(), datamodule=data)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 0
    assert BestCheckpoint(monitor="val/acc").mode == BestCheckpoint(monitor="auto").mode == "max"
    assert BestCheckpoint(monitor="val/acc", mode="min").mode == "min"
    assert BestCheckpoint(monitor="val_rmse").mode == "min"


def test_the_best_of_several_checkpoints_is_found(tmp_path: Path):
    class Rising(Small):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/acc", float(self.current_epoch))

    best = BestCheckpoint(tmp_path, "best", "val/acc", save_top_k=3)
    last = LastCheckpoint(dirpath=tmp_path, filename="last")
    trainer(tmp_path, best, last, enable_checkpointing=True).fit(Rising(), datamodule=Tiny())
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 0
    assert torch.load(find(tmp_path), weights_only=True)["epoch"] == 2


def test_a_best_checkpoint_in_another_folder_is_named(tmp_path: Path):
    best = BestCheckpoint(tmp_path / "scratch", "best", "val/loss")
    last = LastCheckpoint(dirpath=tmp_path / "run/checkpoints", filename="last")
    run = trainer(tmp_path, best, last, enable_checkpointing=True, max_epochs=1)
    run.fit(Small(), datamodule=Tiny())
    with pytest.raises(ValueError, match=r"its best one is '.*scratch/best.ckpt': name the file"):
        find(tmp_path / "run")
    shutil.rmtree(tmp_path / "scratch")
    assert find(tmp_path / "run").name == "last.ckpt"


def test_the_best_of_another_run_in_the_folder_is_not_taken_over(tmp_path: Path):
    def fit(epochs: int, path: Path | None = None) -> BestCheckpoint:
        best = BestCheckpoint(tmp_path, "best", "val/loss")
        last = LastCheckpoint(dirpath=tmp_path / "run", filename="last")
        run = trainer(tmp_path, best, last, enable_checkpointing=True, max_epochs=epochs)
        run.fit(Small(), datamodule=Tiny(), ckpt_path=path)
        return best

    torch.save({"global_step": 1, "callbacks": {}}, tmp_path / "best.ckpt")  # of the other one
    assert Path(fit(1).best_model_path).name == "best-v1.ckpt"
    assert Path(fit(2, tmp_path / "run/last.ckpt").best_model_path).name.startswith("best-v1")
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 1


def test_a_tuner_and_a_rate_that_follows_results(tmp_path: Path):
    last = LastCheckpoint(dirpath=tmp_path, filename="last")
    tuner = LearningRateFinder(num_training_steps=3)
    model: Any = Noisy()
    model.lr = 0.1
    run = trainer(tmp_path, last, tuner, enable_checkpointing=True, max_epochs=1)
    run.fit(model, datamodule=Tiny())
    assert run.global_step == 8


def test_a_one_cycle_is_not_made_longer(tmp_path: Path):
    def fit(epochs: int, path: Path | None = None) -> None:
        model = classifier(CosLU, lr_scheduler=partial(OneCycleLR, max_lr=0.1))
        last = LastCheckpoint(dirpath=tmp_path, filename="last")
        run = trainer(tmp_path, last, enable_checkpointing=True, max_epochs=epochs,
                      limit_train_batches=2)  # fmt: skip
        run.fit(model, datamodule=Tiny(), ckpt_path=path)

    fit(1)
    with pytest.raises(ValueError, match="planned for 2 steps and cannot be made longer, to 4"):
        fit(2, tmp_path / "last.ckpt")
    model = classifier(CosLU, lr_scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=6))
    run = trainer(tmp_path, max_epochs=2, limit_train_batches=2)
    with pytest.warns(UserWarning, match="planned for 6 steps and the training ends after 4"):
        run.fit(model, datamodule=Tiny())


def fit_and_save(
    folder: Path, *callbacks: Callback, path: Path | None = None, **options: Any
) -> Any:
    """Train four steps, with a checkpoint after each."""
    model = classifier(CosLU)
    save = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    last = LastCheckpoint(dirpath=folder, filename="last")
    run = trainer(folder, save, last, *callbacks, enable_checkpointing=True, max_epochs=2,
                  limit_train_batches=2, **options)  # fmt: skip
    run.fit(model, datamodule=Tiny(), ckpt_path=path)
    return model.state_dict()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_float64_goes_on_unrounded(tmp_path: Path):
    whole = fit_and_save(tmp_path / "whole", precision="64-true")
    path = tmp_path / "whole/step=2.ckpt"
    assert same(fit_and_save(tmp_path / "again", path=path, precision="64-true"), whole)


def test_what_lightning_forgets_of_a_resumed_run_is_refused(tmp_path: Path):
    fit_and_save(tmp_path)
    for callback, why in (
        (StochasticWeightAveraging(0.01), "forgets its average"),
        (ModelPruning("l1_unstructured", parameter_names=["weight"]), "forgets what it has pruned"),
        (LearningRateFinder(), "would begin a resumed run at its first epoch"),
        (BatchSizeFinder(), "would begin a resumed run at its first epoch"),
    ):
        with pytest.raises(ValueError, match=f"{type(callback).__name__} {why}"):
            fit_and_save(tmp_path, callback, path=tmp_path / "step=2.ckpt")


@pytest.mark.filterwarnings("ignore:The dirpath has changed|.*Checkpoint directory")
def test_an_average_is_tested_when_nothing_is_left_to_train(tmp_path: Path):
    whole = fit_and_save(tmp_path, EMAWeightAveraging(decay=0.8))
    again = fit_and_save(tmp_path, EMAWeightAveraging(decay=0.8), path=tmp_path / "last.ckpt")
    assert same(again, whole)
    raw = torch.load(tmp_path / "last.ckpt", weights_only=True)["current_model_state"]
    assert not same(again, raw)


def test_an_average_that_never_begins_is_refused_and_a_late_one_told(tmp_path: Path):
    with pytest.raises(ValueError, match="EMAWeightAveraging would begin after the 4 steps"):
        fit_and_save(tmp_path / "never", EMAWeightAveraging(update_starting_at_step=4))
    with pytest.warns(UserWarning, match="begins at step 2: until then the weights of the start"):
        fit_and_save(tmp_path / "late", EMAWeightAveraging(update_starting_at_step=2))

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = True

    by_epoch: Any = {"update_every_n_steps": 0, "update_starting_at_epoch": 1}
    with pytest.warns(UserWarning, match="begins at the end of epoch 1: until then"):
        fit_and_save(tmp_path / "epoch", EMAWeightAveraging(**by_epoch))
    run = trainer(tmp_path, EMAWeightAveraging(**by_epoch), LastCheckpoint(dirpath=tmp_path),
                  enable_checkpointing=True, max_epochs=-1, max_steps=16)  # fmt: skip
    with pytest.warns(UserWarning, match="begins at the end of epoch 1"):
        run.fit(classifier(CosLU), datamodule=Tiny())
    ended = pytest.warns(UserWarning, match="ended before the average of the weights began")
    with ended, pytest.warns(UserWarning, match="begins at step 3"):
        fit_and_save(tmp_path / "stop", EMAWeightAveraging(update_starting_at_step=3), Stop())
