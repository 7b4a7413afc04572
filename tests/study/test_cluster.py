"""The Ray engine without Ray: a stand-in runs each task when its answer is asked for."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callbacks.machine import ROOT
from study import cluster
from study.claims import claim
from study.cluster import do, run_on, write
from study.spec import SpecError
from study.work import RefusedError, is_claimed

from .made import result

Answer = Callable[[str, dict[str, bytes]], tuple[int, dict[str, bytes]]]


class RayError(Exception):
    """All that Ray raises, such as when the cluster is lost."""


class LostError(RayError):
    """What Ray raises when a machine is lost."""


class KilledError(RayError):
    """What Ray raises when the process of a task is killed."""


class TaskError(RayError):
    """What Ray raises when a task raises."""


def stand_in(answer: Answer, seen: list[Any]) -> Any:
    """A module with what is used of Ray."""

    def remote(**options: Any) -> Any:
        seen.append(options)
        return lambda do: SimpleNamespace(remote=lambda *task: partial(answer, *task))

    return SimpleNamespace(
        init=lambda address, **options: seen.append((address, options)),
        cluster_resources=lambda: {"CPU": 2.0},
        remote=remote,
        wait=lambda tasks, num_returns, timeout: (tasks[:1], tasks[1:]),
        get=lambda task: task(),
        exceptions=SimpleNamespace(
            RayError=RayError,
            RayTaskError=TaskError,
            NodeDiedError=LostError,
            OutOfMemoryError=KilledError,
            WorkerCrashedError=KilledError,
        ),
        shutdown=lambda: seen.append("shutdown"),
    )


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "b")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text(json.dumps({"number": number}))
        (folder / "shapes.ckpt").write_bytes(b"shapes")
    return tmp_path


def test_without_ray_one_sentence_says_what_to_install(
    study: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpecError, match="Ray is not installed: pip install ray"):
        run_on("auto", study, 1)


def test_the_driver_writes_what_the_tasks_return(study: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []

    def answer(name: str, files: dict[str, bytes]) -> tuple[int, dict[str, bytes]]:
        assert files.keys() == {"spec.json", "shapes.ckpt"}
        assert is_claimed(study / "runs" / name)
        files = {"results.json": json.dumps(result(90)).encode(), "test.npz": name.encode()}
        return 0, {**files, "log": b"said"}

    monkeypatch.setitem(sys.modules, "ray", stand_in(answer, seen))
    assert run_on("auto", study, 3) == 0
    address, options = seen[0]
    assert address is None
    assert options["runtime_env"]["working_dir"] == str(study / "code")
    assert options["runtime_env"]["env_vars"] == {"OMP_NUM_THREADS": "3"}
    assert seen[1] == {"max_retries": 0, "max_calls": 1, "num_cpus": 3, "num_gpus": 0}
    assert seen[-1] == "shutdown"
    for name in ("a", "b"):
        folder = study / "runs" / name
        assert json.loads((folder / "results.json").read_text())["status"] == "ok"
        assert (folder / "test.npz").read_text() == name
        assert (folder / "log").read_text() == "said"
        assert not is_claimed(folder)


def test_a_run_is_begun_again_and_one_that_is_always_killed_has_failed(
    study: Path, monkeypatch: pytest.MonkeyPatch
):
    count = {"a": 0, "b": 0}

    def answer(name: str, files: dict[str, bytes]) -> tuple[int, dict[str, bytes]]:
        count[name] += 1
        if name == "b":
            raise KilledError
        if count[name] < 5:  # that is not the run's fault
            raise LostError
        return 0, {"results.json": json.dumps(result(90)).encode()}

    monkeypatch.setitem(sys.modules, "ray", stand_in(answer, []))
    assert run_on("auto", study, 1) == 0
    assert count == {"a": 5, "b": 3}
    status = [json.loads((study / f"runs/{n}/results.json").read_text())["status"] for n in "ab"]
    assert status == ["ok", "failed"]


def test_a_lost_cluster_is_no_result_of_the_runs(study: Path, monkeypatch: pytest.MonkeyPatch):
    def answer(name: str, files: dict[str, bytes]) -> tuple[int, dict[str, bytes]]:
        raise RayError

    monkeypatch.setitem(sys.modules, "ray", stand_in(answer, []))
    with pytest.raises(SpecError, match=r"cluster was lost .* the same command goes on"):
        run_on("auto", study, 1)
    assert not list(study.glob("runs/*/results.json"))
    assert not list(study.glob("runs/*/crashes"))
    assert not any(is_claimed(run) for run in (study / "runs").iterdir())


def test_a_refused_run_stops_the_study(study: Path, monkeypatch: pytest.MonkeyPatch):
    told = b"noise\nrefused: CosLU, seed 3: no data\n"
    monkeypatch.setitem(sys.modules, "ray", stand_in(lambda *task: (2, {"log": told}), []))
    with pytest.raises(RefusedError, match=r"^CosLU, seed 3: no data$"):
        run_on("auto", study, 1)
    assert not any(is_claimed(run) for run in (study / "runs").iterdir())
    assert not list(study.glob("runs/*/results.json"))


def test_a_process_without_a_result_counts_as_a_crash(study: Path):
    run = study / "runs/a"
    assert claim(run / "claim")
    for _ in range(3):
        write(run, 143, {"log": b"told to end"})
    assert not (run / "results.json").is_file()
    for _ in range(3):
        write(run, -9, {"log": b"killed"})
    assert "code -9" in json.loads((run / "results.json").read_text())["message"]


def test_a_task_runs_in_a_folder_of_its_own_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
):
    places: list[Path] = []

    def process(line: list[str], stdout: Any, **options: Any) -> Any:
        run = Path(line[-1])
        places.append(run)
        assert line[:-1] == [sys.executable, "-c", cluster.ALONE]
        assert (run / "spec.json").read_bytes() == b"{}"
        stdout.write(b"said")
        (run / "results.json").write_bytes(b"result")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(cluster.subprocess, "run", process)
    assert do("abc", {"spec.json": b"{}"}) == (0, {"log": b"said", "results.json": b"result"})
    assert places[0].name == "abc"
    assert not places[0].parent.exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
def test_a_cluster_that_loses_a_machine_gives_the_results_of_one_machine(tmp_path: Path):
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    from .test_engine import FEW, outcome, prepare, until

    ray, local = tmp_path / "ray", tmp_path / "local"
    for folder in (ray, local):
        prepare(folder, 4)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        lost = cluster.add_node(num_cpus=1)
        code = "import sys, pathlib; from study.cluster import run_on\n"
        code += "run_on(sys.argv[1], pathlib.Path(sys.argv[2]), 1)"
        line = [sys.executable, "-c", code, cluster.address, str(ray)]
        driver = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        until(lambda: list(ray.glob("runs/*/results.json")) or driver.poll() is not None)
        cluster.remove_node(lost, allow_graceful=False)
        text = driver.communicate(timeout=FEW)[0]
        assert driver.returncode == 0
        assert "a machine was lost" in text  # a task was on it
    finally:
        cluster.shutdown()
    subprocess.run([sys.executable, "-m", "study", "work", str(local)], cwd=ROOT, check=True)
    assert outcome(ray) == outcome(local)
    assert len(outcome(ray)) == 4
