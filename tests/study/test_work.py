"""One run, from its claim to its result, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callbacks import LastCheckpoint, checkpoints
from study import claims, work
from study.claims import beating, claim, is_mine, owner
from study.copied import own_code
from study.drive import _waited
from study.local import DRIVER, LATE, STAYS, Launcher, gpus, visible_gpus
from study.runs import write_about
from study.spec import check, lock
from study.status import START
from study.work import RefusedError, crashed, ended, is_claimed, pending

from .made import result, small

OWN = {"host": claims.here(), "pid": os.getpid(), "started": claims._started(os.getpid())}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "abc"
    folder.mkdir(parents=True)
    spec = {"number": 0, "arm": "CosLU", "seed": 7, "base": [], "arguments": []}
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def trained(*ends: tuple[int, str | None, str]) -> Callable[..., tuple[int, str]]:
    """A training that ends, one time after the other, with (exit code, status, message)."""
    left = iter(ends)

    def train_run(folder: Path, attempt: Path, spec: dict[str, Any]) -> tuple[int, str]:
        code, status, message = next(left)
        (attempt / "checkpoints").mkdir(parents=True, exist_ok=True)
        if status:
            (attempt / "test.npz").write_text(attempt.name)
            (attempt / "results.json").write_text(json.dumps(result(90, 7, status)))
        return code, message

    return train_run


def test_an_attempt_that_goes_on_trusts_what_its_options_name(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    said: list[list[str]] = []
    monkeypatch.setattr("train.main", said.append)
    options = ["--model.activation=my_lab.acts.Mine", '--model.optimizer={"class_path": "o.Lion"}']
    spec = {"base": [{"data": {"class_path": "d.Own"}}], "arguments": options}
    last = run / "attempt_1/checkpoints/last.ckpt"
    for begun in (False, True):
        assert work.train_run(run, run / "attempt_1", spec) == (0, "")
        last.parent.mkdir(parents=True, exist_ok=True)
        last.write_text("")
        trust = ["--trust=d", "--trust=my_lab", "--trust=o"] if begun else []
        assert [word for word in said[-1] if word.startswith("--trust")] == trust


# ---- claims


def test_a_claim_is_held_by_one_process_and_given_up_at_the_end(run: Path):
    path = run / "claim"
    assert owner(path) is None
    assert claim(path)
    assert not claim(path)
    assert is_mine(path)
    assert owner(path) == OWN
    with beating(path):
        assert is_claimed(run)
    assert not path.exists()


def test_of_many_processes_that_claim_at_once_one_succeeds(run: Path):
    code = (
        "import sys, time, pathlib; from study.claims import claim; print(flush=True); input()\n"
        "print(claim(pathlib.Path(sys.argv[1])), flush=True); input()"
    )
    line = [sys.executable, "-c", code, str(run / "claim")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes: list[Any] = [subprocess.Popen(line, **pipes) for _ in range(4)]
    for each in processes:
        each.stdout.readline()
    for each in processes:
        each.stdin.write("\n")
        each.stdin.flush()
    answers = [each.stdout.readline().strip() for each in processes]
    for each in processes:
        each.communicate("\n")
    assert sorted(answers) == ["False", "False", "False", "True"]


def test_a_claim_of_a_dead_process_is_free(run: Path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held = {**OWN, "pid": process.pid, "started": claims._started(process.pid)}
    (run / "claim").write_text(json.dumps(held))
    assert is_claimed(run)
    process.kill()
    process.communicate()
    assert not is_claimed(run)
    assert claim(run / "claim")


def test_a_later_process_with_the_same_number_is_another(run: Path):
    (run / "claim").write_text(json.dumps({**OWN, "started": "0"}))
    assert not is_claimed(run)


@pytest.mark.parametrize(
    "text",
    [json.dumps({**OWN, "host": "elsewhere", "pid": 1}), "", "{"],
    ids=["of another machine", "empty", "half written"],
)
def test_a_machine_that_vanished_is_believed_for_three_minutes(run: Path, text: str):
    path = run / "claim"
    path.write_text(text)
    assert is_claimed(run)
    os.utime(path, (now := time.time() - 170, now))
    assert not claim(path)
    os.utime(path, (now := time.time() - 190, now))
    assert claim(path)
    assert owner(path) == OWN


def test_a_process_that_slept_until_its_claim_was_taken_is_told_to_end(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(claims, "HEARTBEAT", 0.05)
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    path = run / "claim"
    try:
        assert claim(path)
        with beating(path):
            time.sleep(0.2)
            assert came == []
            path.write_text(json.dumps({**OWN, "host": "elsewhere"}))
            limit = time.monotonic() + 20
            while not came and time.monotonic() < limit:
                time.sleep(0.02)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]
    assert json.loads(path.read_text())["host"] == "elsewhere"  # it is not ours to delete


# ---- attempts


@pytest.mark.parametrize(
    ("ends", "status", "attempts"),
    [
        ([(0, "ok", "")], "ok", 1),
        ([(3, "diverged", "")], "diverged", 1),
        ([(1, "failed", ""), (0, "ok", "")], "ok", 2),
        ([(1, None, "out of memory"), (0, "ok", "")], "ok", 2),
        ([(1, "failed", ""), (1, "failed", "")], "failed", 2),
        ([(1, "failed", ""), (1, None, "out of memory")], "failed", 2),
    ],
)
def test_a_run_that_failed_is_tried_once_more(
    run: Path, monkeypatch: pytest.MonkeyPatch, ends: list[Any], status: str, attempts: int
):
    monkeypatch.setattr(work, "train_run", trained(*ends))
    assert work.work(run) == status
    assert json.loads((run / "results.json").read_text())["status"] == status
    assert len(list(run.glob("attempt_*"))) == attempts
    assert not list(run.glob("attempt_*/checkpoints"))[attempts - 1 :]
    assert not is_claimed(run)
    assert work.work(run) == "taken"


def test_a_run_that_a_signal_stopped_has_no_result_and_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(work, "train_run", trained((143, None, ""), (0, "ok", "")))
    assert work.work(run) == "stopped"
    assert not ended(run)
    assert (run / "attempt_1/checkpoints").is_dir()
    assert work.work(run) == "ok"


@pytest.mark.parametrize(
    ("code", "message"),
    [(2, "unknown backbone 'resnet9'"), (1, "cannot write x: disk full; make room there")],
)
def test_what_is_no_result_stops_the_study_and_loses_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
):
    monkeypatch.setattr(work, "train_run", trained((code, "failed", message), (0, "ok", "")))
    with pytest.raises(RefusedError, match=r"CosLU, seed 7 \(runs/abc\): " + message[:20]):
        work.work(run)
    assert not ended(run)
    assert not is_claimed(run)
    assert work.work(run) == "ok"
    assert len(list(run.glob("attempt_*"))) == 1


def test_an_own_module_that_changed_stops_the_study(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(run.parent.parent))
    (own := run.parent.parent / "my_new_lu.py").write_text("class MyLU: pass\n")
    spec = check(small(arms={"ReLU": {"model.activation": "torch.nn.ReLU"},
                             "Mine": {"model.activation": "my_new_lu.MyLU"}}))  # fmt: skip
    lock(run.parent.parent, spec)
    write_about(run.parent.parent, {"own": own_code(spec)})
    own.write_text("class MyLU: changed = True\n")
    monkeypatch.setattr(work, "train_run", trained((0, "ok", "")))
    with pytest.raises(RefusedError, match="the module my_new_lu has changed since"):
        work.work(run)
    own.write_text("class MyLU: pass\n")
    assert work.work(run) == "ok"


@pytest.mark.parametrize("moved", [False, True])
def test_a_run_that_was_killed_while_it_published_is_not_trained_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
):
    trained((0, "ok", ""))(run, run / "attempt_1", {})
    if moved:
        (run / "attempt_1/test.npz").replace(run / "test.npz")
    monkeypatch.setattr(work, "train_run", trained())
    assert work.work(run) == "ok"
    assert (run / "test.npz").read_text() == "attempt_1"


def test_who_lost_its_claim_publishes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch):
    def train_run(folder: Path, *arguments: Any) -> tuple[int, str]:
        (folder / "claim").write_text(json.dumps({**OWN, "host": "elsewhere"}))
        return trained((0, "ok", ""))(folder, *arguments)

    monkeypatch.setattr(work, "train_run", train_run)
    assert work.work(run) == "taken"
    assert not ended(run)


def test_a_process_that_is_killed_three_times_at_the_same_place_has_failed(run: Path):
    saved = run / "attempt_1/checkpoints/last.ckpt"
    saved.parent.mkdir(parents=True)
    saved.write_text("")
    for number in range(3):
        os.utime(saved, ns=(number, number))  # it came further
        crashed(run, "code -9")
    assert not ended(run)
    crashed(run, "code -9")
    assert not ended(run)
    crashed(run, "code -9")
    found = json.loads((run / "results.json").read_text())
    assert (found["status"], found["message"]) == ("failed", "code -9")


def test_pending_runs_come_in_the_order_in_which_they_were_prepared(run: Path):
    for number, name in ((2, "aaa"), (1, "zzz"), (3, "bad")):
        (run.parent / name).mkdir()
        about = {"number": number, "arm": "CosLU", "cell": 0, "stage": "tune"}
        (run.parent / name / "spec.json").write_text(json.dumps(about))
    (run.parent / "bad" / "spec.json").write_text("{")
    assert [each.name for each in pending(run.parents[1])] == ["abc", "zzz", "aaa"]
    (run / "results.json").write_text("{}")
    assert [each.name for each in pending(run.parents[1])] == ["zzz", "aaa"]


# ---- signals


def test_a_signal_that_a_launcher_passes_on_counts_once(monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    callback = LastCheckpoint()
    callback._wait(signal.SIGINT, None)
    clock[0] += 0.5
    callback._wait(signal.SIGTERM, None)  # SLURM, or a terminal, tells all processes
    clock[0] += 0.6
    with pytest.raises(SystemExit) as left:
        callback._wait(signal.SIGTERM, None)
    assert left.value.code == 143


# ---- the launcher


@pytest.fixture
def handlers():
    """A launcher sets the signals' handlers for its whole process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_no_run_is_started_that_would_end_too_late(tmp_path: Path, run: Path):
    assert Launcher(tmp_path, 2, minutes=0).run() == LATE
    other = tmp_path / "runs" / "other"
    other.mkdir()
    (other / "results.json").write_text(json.dumps(result(90, fit_s=400.0)))
    (other / "test.npz").write_bytes(b"PK\5\6" + bytes(18))  # an empty zip file
    assert Launcher(tmp_path, 2, minutes=5).run() == LATE
    assert not (run / "log").exists()
    (other / "spec.json").write_text(json.dumps({"number": 0, "stage": "budget"}))
    assert Launcher(tmp_path, 2).longest == 200 + START  # the 400 s were of twice the budget
    (run / "results.json").write_text("{}")
    assert Launcher(tmp_path, 2, minutes=0).run() == 0


@pytest.mark.usefixtures("handlers")
def test_a_launcher_that_stays_waits_for_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(STAYS, "1")
    assert Launcher(tmp_path, 1).run() == 0  # nobody could end it
    monkeypatch.setenv(DRIVER, str(os.getppid()))
    launcher = Launcher(tmp_path, 1)
    threading.Timer(1, launcher.stop, [signal.SIGTERM]).start()
    assert launcher.run() == 128 + signal.SIGTERM
    monkeypatch.setenv(DRIVER, "1" if os.getppid() != 1 else "2")  # it has died
    assert Launcher(tmp_path, 1).run() == 128 + signal.SIGTERM


def test_a_launcher_is_waited_for_until_all_is_done_or_it_ends():
    stays = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    looks = iter([False, False, True])
    assert _waited(stays, lambda: next(looks)) == 0
    assert stays.poll() is None
    stays.kill()
    assert _waited(stays, lambda: False) == -signal.SIGKILL
    late = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({LATE})"])
    assert _waited(late, lambda: False) == LATE


# ---- GPUs


@pytest.mark.parametrize(
    ("jobs", "known", "shares"),
    [
        (2, "01", ["0", "1"]),
        (1, "0123", ["0123"]),
        (2, "0123", ["01", "23"]),
        (3, "0123", ["0", "1", "2"]),
        (3, "01", ["0", "1", "0"]),
        (6, "0", ["0"] * 6),
    ],
)
def test_runs_share_the_gpus(jobs: int, known: str, shares: list[str]):
    assert [visible_gpus(n, jobs, list(known)) for n in range(jobs)] == list(map(list, shares))


def test_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert gpus() == ["3", "5"]
