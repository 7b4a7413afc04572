"""The whole engine with real runs: what is killed or stopped goes on to the same results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from callbacks.machine import ROOT
from study.copied import copy_code
from study.runs import Run, Study, arguments
from study.spec import check, lock

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc"),
]
BUDGET = {
    "trainer.max_epochs": 2, "trainer.limit_train_batches": 3, "trainer.limit_val_batches": 1,
    "trainer.limit_test_batches": 2, "trainer.log_every_n_steps": 1,
    "trainer.num_sanity_val_steps": 0,
}  # fmt: skip
SPEC: dict[str, Any] = {
    "arms": {"ReLU": {"model.activation": "torch.nn.ReLU"}, "CosLU": {"model.activation": "CosLU"}},
    "cells": [{"data": "Digits", "model.backbone": "resnet8"}],
    "seeds": {"looks": [5]},
    "budget": BUDGET,
}
FEW = 600.0  # seconds that no step of a test takes


def command(folder: Path, *words: str) -> list[str]:
    line = [sys.executable, "-m", "study", "run", str(folder.with_suffix(".yaml"))]
    return [*line, "--dir", str(folder), *words]


def start(folder: Path, *words: str, **changes: Any) -> subprocess.Popen[str]:
    folder.with_suffix(".yaml").write_text(yaml.safe_dump({**SPEC, **changes}))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(folder, "--jobs", "2", *words), cwd=ROOT, **pipes)


def finish(folder: Path, *words: str, **changes: Any) -> tuple[int, str]:
    process = start(folder, *words, **changes)
    text = process.communicate(timeout=FEW)[0]
    return process.returncode, text


def prepare(folder: Path, count: int, **changes: Any) -> list[Run]:
    """Lock a study and prepare its first runs."""
    lock(folder, check({**SPEC, **changes}))
    study = Study.read(folder)
    runs = study.next_runs()[1][:count]
    study.prepare(runs)
    copy_code(folder, study.lock)
    return runs


def children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def until(condition: Callable[[], Any]) -> Any:
    limit = time.monotonic() + FEW
    while time.monotonic() < limit:
        if found := condition():
            return found
        time.sleep(0.05)
    raise TimeoutError


def find(driver: int, kind: str) -> int | None:
    """The launcher of a driver, its server of processes, or one of the runs' processes."""

    def named(pid: int, text: str) -> list[int]:
        lines = {each: Path(f"/proc/{each}/cmdline") for each in children(pid)}
        return [each for each, line in lines.items() if text.encode() in line.read_bytes()]

    try:
        launcher = next(iter(named(driver, "study\0work")), None)
        if kind == "launcher" or launcher is None:
            return launcher
        server = next(iter(named(launcher, "forkserver")), None)
        return server if kind == "server" or server is None else next(iter(children(server)), None)
    except OSError:
        return None


def outcome(folder: Path) -> dict[str, Any]:
    """What all runs came to, without times, places and speeds."""
    found = {}
    for file in folder.glob("runs/*/results.json"):
        content = json.loads(file.read_text())
        epochs = [{n: v for n, v in e.items() if n != "images_per_s"} for e in content["epochs"]]
        arrays = {}
        if content["test"]:  # the runs that check the budget have none
            with np.load(file.with_name("test.npz")) as samples:
                arrays = {name: samples[name].tolist() for name in samples}
        kept = {name: content[name] for name in ("status", "seed", "best", "test", "learned")}
        found[file.parent.name] = {**kept, "epochs": epochs, "samples": arrays}
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nothing disturbed."""
    folder = tmp_path_factory.mktemp("plain") / "study"
    code, text = finish(folder)
    assert code == 0, text
    return folder


def test_whatever_is_killed_the_same_command_goes_on_to_the_same_results(
    plain: Path, tmp_path: Path
):
    folder = tmp_path / "study"
    for kind in ("child", "driver", "server", "launcher", "child"):
        process = start(folder)
        try:
            before = len(outcome(folder))
            # in the middle of a run: some have ended since the start
            until(lambda: len(list(folder.glob("runs/*/results.json"))) > before)  # noqa: B023
            target = process.pid if kind == "driver" else until(lambda: find(process.pid, kind))  # noqa: B023
            os.kill(target, signal.SIGKILL)
            if kind in ("child", "server"):  # the study goes on by itself; stop it for the next
                until(lambda: len(list(folder.glob("runs/*/results.json"))) > before + 1)  # noqa: B023
                process.terminate()
            process.wait(timeout=FEW)
        finally:
            process.kill()
            process.communicate()
    code, text = finish(folder)
    assert code == 0, text
    assert outcome(folder) == outcome(plain)
    assert len(outcome(folder)) == 12


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_within_seconds_and_says_how_to_go_on(
    plain: Path, tmp_path: Path, number: int
):
    folder = tmp_path / "study"
    process = start(folder, budget={**BUDGET, "trainer.max_epochs": 500})
    child = until(lambda: find(process.pid, "child"))
    until(lambda: list(folder.glob("runs/*/attempt_1/checkpoints/last.ckpt")))
    process.send_signal(number)
    text = process.communicate(timeout=60)[0]  # on a machine that does much else
    assert process.returncode == 128 + number
    assert f"the same command goes on, or: python -m study run {folder}" in text
    assert not Path(f"/proc/{child}").exists()
    assert list(folder.glob("runs/*/attempt_1/checkpoints/last.ckpt"))
    assert not list(folder.glob("runs/*/claim"))


def test_a_second_driver_is_refused_and_a_moved_study_goes_on(plain: Path, tmp_path: Path):
    folder = tmp_path / "study"
    process = start(folder)
    until(lambda: list(folder.glob("runs/*/results.json")))
    code, text = finish(folder)
    assert code == 2
    assert f"is run by another process ({process.pid} on " in text
    process.terminate()
    process.communicate(timeout=FEW)
    moved = tmp_path / "elsewhere" / "study"
    moved.parent.mkdir()
    shutil.move(folder, moved)
    code, text = finish(moved)
    assert code == 0, text
    assert outcome(moved) == outcome(plain)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_runs_of_two_processes_are_those_of_train_py_and_leave_none_behind(tmp_path: Path):
    folder, options = tmp_path / "study", {"trainer.devices": 2, "trainer.accelerator": "cpu"}
    cells = [{**SPEC["cells"][0], **options}]
    process = start(folder, "--jobs", "1", cells=cells, budget={**BUDGET, "trainer.max_epochs": 99})
    child = until(lambda: find(process.pid, "child"))
    until(lambda: list(folder.glob("runs/*/attempt_1/checkpoints/last.ckpt")))
    second = until(lambda: children(child))
    os.kill(child, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{each}").exists() for each in second))
    child = until(lambda: find(process.pid, "child"))
    second = until(lambda: children(child))
    process.terminate()
    process.communicate(timeout=FEW)
    assert not any(Path(f"/proc/{each}").exists() for each in (child, *second))

    study = tmp_path / "short"
    [run] = prepare(study, 1, cells=cells)
    subprocess.run([sys.executable, "-m", "study", "work", str(study)], cwd=ROOT, check=True)
    alone = tmp_path / "alone" / "runs"
    line = [sys.executable, "train.py", "fit", *arguments(run.options, run.seed),
            "--monitor.figure=false", "--trainer.logger.name=", f"--trainer.logger.version={run.id}",
            "--trainer.logger.class_path=lightning.pytorch.loggers.CSVLogger",
            f"--trainer.logger.save_dir={alone}"]  # fmt: skip
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    assert outcome(study)[run.id]["status"] == "ok"
    assert outcome(study) == outcome(tmp_path / "alone")


def test_the_server_of_processes_does_not_touch_a_gpu():
    # a process that is forked from one that has used a GPU can use none
    code = (
        "import torch\n"
        "def used(*args): raise AssertionError('the GPU was asked for')\n"
        "for name in ('is_available', 'device_count', '_lazy_init'): setattr(torch.cuda, name, used)\n"
        "import train, study.work"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
