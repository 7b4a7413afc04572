"""What is packed is whole, small, and goes on in a fresh folder."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from callbacks.machine import code, code_of
from study import __main__ as program
from study import copied, packed
from study.copied import copy_code, options_read
from study.drive import lock_checked
from study.lines import new_image_lines
from study.packed import pack, read_packed, read_samples, take
from study.runs import Study, read_about, read_prepared, write_about
from study.slurm import ranges, slurm_script
from study.spec import SpecError, check, held, lock, read_lock
from study.status import status

from .made import answer, result, small, write

VALUES = {"ReLU": 90.12345678, "SiLU": 80.0, "CosLU": 90.0}
ROOT = Path(__file__).resolve().parents[2]
CELLS = [{"data": "Digits", "model.backbone": f"resnet{depth}"} for depth in (8, 14)]


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of two cells that has ended; what is packed goes to a folder of the test."""
    monkeypatch.setattr(packed, "KEPT", tmp_path / "kept")
    folder = tmp_path / "first" / "mine"
    lock(folder, check(small(cells=CELLS, seeds={"looks": [5]})))
    made = Study.read(folder)
    made.prepare(made.next_runs()[1])
    return answer(made, VALUES, learned={"act.theta": [0.12345679104328156]})


def test_a_file_of_weights_is_known_by_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At another place it is the same question; other weights at the same place are another."""
    monkeypatch.setattr(packed, "KEPT", tmp_path / "kept")
    files = [tmp_path / name / "last.ckpt" for name in ("a", "b", "c")]
    for file, content in zip(files, ("one", "one", "two"), strict=True):
        file.parent.mkdir()
        file.write_text(content)

    def question(file: Path) -> dict[str, Any]:
        cells = [{**CELLS[0], "model.checkpoint_path": str(file)}]
        base = [{"model": {"activation_from": str(file)}}]
        return held(check(small(cells=cells, base=base, seeds={"looks": [5]})))

    folder = tmp_path / "first" / "mine"
    lock(folder, question(files[0]))
    study = Study.read(folder)
    runs = study.next_runs()[1]
    study.prepare(runs)
    prepared = read_prepared(folder)[runs[0].id]
    assert f"--model.checkpoint_path={files[0]}" in prepared["arguments"]
    assert "sha256" not in json.dumps(prepared)
    answer(study, VALUES)
    lock(folder, question(files[1]))
    assert [run.id for run in Study.read(folder).tuning()] == [run.id for run in study.tuning()]
    assert Study.read(folder).next_runs()[1] == []
    for wrong in (files[2], tmp_path / "gone.ckpt"):
        with pytest.raises(SpecError, match=r"holds another study: base, cells differ"):
            lock(folder, question(wrong))
    kept, _ = files[1].read_text(), files[1].write_text("another network")
    with pytest.raises(SpecError, match=r"base \(a file holds other weights\), cells \(a file"):
        lock(folder, question(files[1]))
    files[1].write_text(kept)
    pack(folder)
    written = (tmp_path / "kept/mine/spec.lock.yaml").read_text()
    assert str(tmp_path) not in written
    assert "model.checkpoint_path: FILE" in written
    fresh = tmp_path / "second" / "mine"
    fresh.mkdir(parents=True)
    take(fresh)
    lock(fresh, question(files[1]))
    assert Study.read(fresh, read_packed(fresh)).next_runs()[1] == []
    files[1].write_text("another network")
    assert held(read_lock(fresh)["spec"]) != read_lock(fresh)["spec"]  # `run FOLDER` sees it


def test_a_fresh_folder_goes_on_from_packed_results(done: Study, tmp_path: Path):
    assert pack(done.folder).startswith("34 runs packed into ")
    fresh = tmp_path / "second" / "mine"
    fresh.mkdir(parents=True)
    take(fresh)
    again = Study.read(fresh, read_packed(fresh))
    assert again.lock == done.lock
    assert again.next_runs() == ("", [])
    old, new = done.verdicts(), again.verdicts()
    assert [each.kind for each in new] == [each.kind for each in old]
    assert [each.mean for each in new] == [each.mean for each in old]
    for key, found in done.results.items():
        learned = again.results[key]["learned"]["act.theta"]
        assert np.float32(learned[0]) == np.float32(found["learned"]["act.theta"][0])
        ours, theirs = read_samples(done, key), read_samples(again, key)
        assert ours is not None
        assert theirs is not None
        for name in ("label", "predicted"):  # the labels of the cells differ
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert pack(fresh, tmp_path / "third").startswith("34 runs packed into ")
    for file in (tmp_path / "kept/mine").iterdir():  # packed again, nothing changes
        assert file.read_bytes() == (tmp_path / "third" / file.name).read_bytes()


def test_packed_results_are_copied_and_only_taken_by_the_same_question(done: Study, tmp_path: Path):
    pack(done.folder)
    other, fresh = tmp_path / "other/mine", tmp_path / "second/mine"
    assert take(other, check(small(cells=CELLS, seeds={"looks": [5]}, margin=0.5))) == ""
    assert not other.exists()
    with pytest.raises(SpecError, match="holds no study"):
        status(fresh)
    assert not fresh.exists()
    told = take(fresh, check(small(cells=CELLS, seeds={"looks": [5]})))
    assert told.startswith(f"{fresh} goes on from {tmp_path}/kept/mine: 34 runs, of code {code()}")
    assert take(fresh) == ""  # it is there
    fresh.rename(renamed := tmp_path / "renamed")
    shutil.rmtree(tmp_path / "kept")
    again = Study.read(renamed, read_packed(renamed))
    assert again.next_runs() == ("", [])
    assert read_samples(again, next(iter(done.results))) is not None


def test_a_run_trains_anew_unless_it_is_told_to_go_on(
    done: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pack(done.folder)
    spec = check(small(cells=CELLS, seeds={"looks": [5]}))
    new, again, other = (tmp_path / name / "mine" for name in ("new", "again", "other"))
    lock_checked(new, spec)
    assert "kept/mine holds results of this question: --packed goes on" in capsys.readouterr().out
    assert not read_packed(new)
    lock_checked(again, spec, packed=True)
    lock_checked(again, spec, packed=True)  # the same line again
    assert capsys.readouterr().out.count("goes on from") == 1
    assert len(read_packed(again)) == 34
    with pytest.raises(SpecError, match=r"--packed: .*kept/mine holds no study that asks this"):
        lock_checked(other, check(small(cells=CELLS, seeds={"looks": [5]}, margin=0.5)), "", True)
    assert not (other / "spec.lock.yaml").exists()


def test_a_packed_lock_names_no_folder_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(packed, "KEPT", tmp_path / "kept")
    cells = [{"data": "CIFAR10", "data.root": "/mine/cifar", "model.backbone": "resnet8"}]
    known = lock(tmp_path / "mine", check(small(cells=cells, seeds={"looks": [5]})))
    made = Study.read(tmp_path / "mine")
    made.prepare(made.next_runs()[1])
    pack(answer(made, VALUES).folder)
    kept = read_lock(tmp_path / "kept/mine")  # its sha256 fits
    assert kept["spec"]["cells"] == [{**cells[0], "data.root": "DIR"}]
    assert kept["sha256"] == known["sha256"]
    for file in (ROOT / "results/studies").glob("*/*.yaml"):
        assert not re.search(r": /\w", file.read_text()), file


def test_areas_under_the_curve_need_probabilities_which_are_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(packed, "KEPT", tmp_path / "kept")
    folder, rng = tmp_path / "first" / "mine", np.random.default_rng(1)
    arms = {name: small()["arms"][name] for name in ("ReLU", "SiLU")}
    lock(folder, check(small(arms=arms, seeds={"looks": [5]}, metric={"name": "test/auroc"})))
    made, label, areas = Study.read(folder), rng.integers(0, 3, 60), dict[str, list[float]]()
    runs = made.next_runs()[1]
    made.prepare(runs)
    for run in runs:
        shares = rng.dirichlet(np.ones(3) + (run.arm == "SiLU"), 60)
        area = float(roc_auc_score(label, shares, multi_class="ovr"))
        areas.setdefault(f"{run.arm}, {run.stage}", []).append(100 * area)
        np.savez(folder / "runs" / run.id / "test.npz", label=label, probability=shares)
        content = result(0, run.seed, test={"last": {"test/auroc": area}})
        (folder / "runs" / run.id / "results.json").write_text(json.dumps(content))
    made = Study.read(folder)
    [line] = new_image_lines(made)
    mean = np.mean(areas["SiLU, verdict"]) - np.mean(areas["ReLU, verdict"])
    assert f"SiLU against ReLU on new images of this kind: UNDECIDED: {mean:+.2f} points [" in line
    pack(folder)
    (fresh := tmp_path / "second" / "mine").mkdir(parents=True)
    take(fresh)
    assert new_image_lines(Study.read(fresh, read_packed(fresh))) == [
        "SiLU on new images: not known, since samples of the test are missing (test.npz; packed "
        "results keep no probabilities)"
    ]


def test_settings_that_are_equally_good_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By rounded values the other setting would be chosen, and no run of the verdict be known."""
    monkeypatch.setattr(packed, "KEPT", tmp_path / "kept")
    folder, grid = tmp_path / "mine", {"model.optimizer.lr": [0.1, 0.2]}
    lock(folder, check(small(tune={"grid": grid, "seeds": [1, 2], "metric": "val/acc"})))
    made = Study.read(folder)
    runs = made.next_runs()[1]
    made.prepare(runs)
    seen = {(0, 1): 0.9860140085220337, (0, 2): 1.0}
    for run in runs:
        value = seen.get((run.setting, run.seed), 0.9930070042610168)
        content = result(0, run.seed, test={}, epochs=[{"epoch": 0, "val/acc": value}])
        write(made, run, content)
    made = Study.read(folder)
    pack(folder)
    kept = Study.read(tmp_path / "kept/mine", read_packed(tmp_path / "kept/mine"))
    assert made.tuned("SiLU", 0) == kept.tuned("SiLU", 0) == (0, [0.9930070042610168] * 2)


def test_a_folder_with_results_of_its_own_keeps_them(done: Study, tmp_path: Path):
    pack(done.folder)
    run = next(iter(done.results))
    shutil.rmtree(done.folder / "runs" / run)
    again = Study.read(done.folder, read_packed(done.folder))
    assert again.results.keys() == done.results.keys()
    assert again.next_runs() == ("", [])


def test_what_is_known_of_the_code_is_added_and_failed_runs_are_tried_anew(
    done: Study, tmp_path: Path
):
    run = done.verdict_run("SiLU", 0, 1000)
    write(done, run, result(0, 1000, status="failed"))
    pack(done.folder)
    write_about(tmp_path / "kept/mine", {"defaults": {"CosLU": {"alpha": 1.0}}})
    write_about(done.folder, {"options": {"configs/base.yaml": "0"}})
    pack(done.folder)
    about = {"defaults": {"CosLU": {"alpha": 1.0}}, "options": {"configs/base.yaml": "0"}}
    assert read_about(tmp_path / "kept/mine") == about
    take(fresh := tmp_path / "second/mine")
    again = Study.read(fresh, read_packed(fresh))
    assert read_about(fresh) == about
    assert [each.id for each in again.next_runs()[1]] == [run.id]
    shown = Study.read(tmp_path / "kept/mine", read_packed(tmp_path / "kept/mine"))
    assert shown.results[run.id]["status"] == "failed"  # the page of verdicts tells it


def test_packed_results_of_other_code_are_not_used(done: Study, tmp_path: Path):
    pack(done.folder)
    file = tmp_path / "kept/mine/spec.lock.yaml"
    file.write_text(file.read_text().replace(code(), "0123456789ab"))
    assert read_packed(done.folder) == {}


def test_a_packed_run_of_other_code_is_left_out(done: Study, tmp_path: Path):
    pack(done.folder)
    file = tmp_path / "kept/mine/SiLU.json.gz"
    runs = json.loads(gzip.decompress(file.read_bytes()))
    first = min(runs)
    runs[first]["code"] = "0123456789ab"
    file.write_bytes(gzip.compress(json.dumps(runs).encode()))
    assert done.results.keys() - read_packed(done.folder).keys() == {first}


def test_another_study_of_the_name_is_not_replaced(done: Study, tmp_path: Path):
    pack(done.folder)
    kept = tmp_path / "kept/mine"
    before = {file: file.read_bytes() for file in kept.iterdir()}
    other = tmp_path / "other" / "mine"
    lock(other, check(small(cells=CELLS, seeds={"looks": [5]}, margin=0.5)))
    made = Study.read(other)
    made.prepare(made.next_runs()[1])
    answer(made, VALUES)
    with pytest.raises(SpecError, match=r"kept/mine holds another study, of code \w+ \(here"):
        pack(other)
    file = kept / "spec.lock.yaml"
    file.write_text(file.read_text().replace(code(), "0123456789ab"))
    with pytest.raises(SpecError, match="holds another study, of code 0123456789ab"):
        pack(done.folder)
    file.write_bytes(before[file])
    assert {file: file.read_bytes() for file in kept.iterdir()} == before
    amended = check(small(cells=CELLS, seeds={"looks": [5]}, margin=0.4))
    lock(done.folder, amended, "a wider margin")
    assert "packed into" in pack(done.folder)  # it is the same study, later
    lock(other, amended, "a wider margin, in another copy")
    with pytest.raises(SpecError, match="and with 1 amendment"):
        pack(other)


def test_an_arm_with_the_file_name_of_a_control_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(packed, "KEPT", tmp_path / "kept")
    arms = {"ReLU": small()["arms"]["ReLU"], "PELU": {"model.activation": "PELU"},
            "PELU_frozen": {"model.activation": "PELU", "model.activation.a": 2.0}}  # fmt: skip
    folder = tmp_path / "first" / "mine"
    lock(folder, check(small(arms=arms, controls=["frozen"], seeds={"looks": [5]})))
    values = {"ReLU": 90.0, "PELU": 80.0, "PELU_frozen": 90.0, "PELU frozen": 85.0}
    made = Study.read(folder)
    while runs := made.next_runs()[1]:
        made.prepare(runs)
        for run in runs:
            wave = run.seed * ord(run.arm[0]) % 7 / 10
            write(made, run, result(values[run.arm] + wave, run.seed, learned={"act.a": [1.0]}))
        made = Study.read(folder)
    assert {run["arm"] for run in read_prepared(folder).values()} == set(values)
    pack(folder)
    assert read_packed(folder).keys() == made.results.keys()


def test_a_damaged_pack_is_named(done: Study, tmp_path: Path):
    pack(done.folder)
    file = tmp_path / "kept/mine/SiLU.json.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(SpecError, match=r"SiLU\.json\.gz is damaged"):
        read_packed(done.folder)


def test_nothing_to_pack_is_said(tmp_path: Path):
    with pytest.raises(SpecError, match="holds no study"):
        pack(tmp_path)
    lock(tmp_path, check(small()))
    with pytest.raises(SpecError, match="no run has ended"):
        pack(tmp_path)


def test_twenty_seeds_of_a_large_test_set_stay_below_200_kb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 10, 10_000)
    lock(tmp_path, check(small(seeds={"looks": [20]}, margin=3.0)))
    made = Study.read(tmp_path)
    runs = made.next_runs()[1]
    made.prepare(runs)
    for run in runs:
        wrong = rng.random(10_000) < 0.08
        predicted = np.where(wrong, rng.integers(0, 10, 10_000), label)
        folder = tmp_path / "runs" / run.id
        np.savez(folder / "test.npz", label=label, probability=np.eye(10, dtype="f2")[predicted])
        epochs = [{"epoch": n, **{f"val/{m}": rng.random() for m in "abcdef"}} for n in range(90)]
        content = {"status": "ok", "code": code(), "epochs": epochs,
                   "test": {"last": {"test/acc": float(rng.random())}}}  # fmt: skip
        (folder / "results.json").write_text(json.dumps(content))
    pack(tmp_path, tmp_path / "kept")
    files = list((tmp_path / "kept").iterdir())
    assert len(files) == 7
    assert max(file.stat().st_size for file in files) < 200_000
    with gzip.open(tmp_path / "kept" / "CosLU.json.gz") as text:
        assert len(json.loads(text.read())) == 20


# ---- the study's own code


def test_a_study_has_its_own_copy_of_the_code(tmp_path: Path):
    known = lock(tmp_path, check(small()))
    target = copy_code(tmp_path, known)
    assert code_of(target) == known["code"] == code()
    assert (target / "COMMIT").read_text().strip() == known["commit"]
    assert (target / "study/work.py").is_file()
    assert not list(target.rglob("__pycache__"))
    assert copy_code(tmp_path, known) == target  # it is not made twice
    write_about(tmp_path, {"options": options_read(ROOT)})
    assert copy_code(tmp_path, known) == target
    (target / "configs/base.yaml").write_text("trainer: {max_epochs: 777}")
    with pytest.raises(SpecError, match=r"code/configs/base\.yaml is not as it was when"):
        copy_code(tmp_path, known)
    (target / "train.py").write_text("# changed")
    with pytest.raises(SpecError, match="is not the code of this study"):
        copy_code(tmp_path, known)


def test_code_that_is_neither_here_nor_in_the_history_is_refused(tmp_path: Path):
    known = {**lock(tmp_path, check(small())), "code": "0123456789ab", "commit": "0123456"}
    with pytest.raises(SpecError, match="neither here"):
        copy_code(tmp_path, known)
    assert not list(tmp_path.glob("code*"))


def test_a_later_commit_does_not_disturb_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The code of the locked commit comes from the repository's history."""
    repository = tmp_path / "repository"
    (repository / "models").mkdir(parents=True)
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.c"]

    def committed(text: str) -> str:
        (repository / "models" / "net.py").write_text(text)
        (repository / "train.py").write_text(text)
        for words in (["add", "-A"], ["commit", "-qm", text]):
            subprocess.run([*git, *words], check=True)
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True)
        return found.stdout.decode().strip()

    subprocess.run([*git[:3], "init", "-q"], check=True)
    (repository / "configs").mkdir()
    (repository / "configs/base.yaml").write_text("old: 1")
    first = committed("first = 1")
    locked = {"commit": first[:7], "code": code_of(repository)}
    committed("second = 2")
    monkeypatch.setattr(copied, "ROOT", repository)
    monkeypatch.setattr(copied, "code", lambda: code_of(repository))
    target = copy_code(tmp_path / "study", locked)
    assert (target / "models/net.py").read_text() == "first = 1"
    assert (target / "COMMIT").read_text() == first[:7]
    (repository / "models/net.py").write_text("first = 1")
    (repository / "train.py").write_text("first = 1")
    (repository / "configs/base.yaml").write_text("new: 1")  # its hash does not hold it
    target = copy_code(tmp_path / "fresh", locked)
    assert (target / "configs/base.yaml").read_text() == "old: 1"
    target = copy_code(tmp_path / "dirty", {**locked, "commit": f"{first[:7]}+"})
    assert (target / "configs/base.yaml").read_text() == "new: 1"


# ---- SLURM


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([0], "0"), ([0, 1, 2, 3], "0-3"), ([0, 2, 3, 7], "0,2-3,7"), ([5, 6], "5-6")],
)
def test_numbers_of_an_array(numbers: list[int], text: str):
    assert ranges(numbers) == text


def test_an_array_is_no_larger_than_clusters_take(tmp_path: Path):
    lock(tmp_path, check(small(seeds={"first": 0, "looks": [400]})))
    made = Study.read(tmp_path)
    runs = made.next_runs()[1]
    made.prepare(runs)
    text = slurm_script(tmp_path, runs[5:], 1)
    assert "#SBATCH --array=0-1000\n" in text
    assert f"# 1001 of the {len(runs) - 5} runs that come next." in text


def test_the_command_prints_the_script_that_names_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("signal.signal", lambda *args: None)  # this process keeps its own
    spec = check(small())
    lock(tmp_path, spec)
    write_about(tmp_path, {"own": {}})
    assert program.main(["slurm", str(tmp_path), "--threads", "3"]) == 0
    said = capsys.readouterr().out
    assert f"-m study run {tmp_path} --on slurm\n" in said
    assert "--cpus-per-task=3\n" in said
    runs = Study.read(tmp_path).next_runs()[1]
    assert "-m search run " in slurm_script(tmp_path, runs, 1, "search")


@pytest.mark.skipif(os.name != "posix", reason="a script for bash")
@pytest.mark.parametrize("code", [0, 2, 143])
def test_the_array_script_does_one_run_and_is_queued_again_when_time_is_over(
    tmp_path: Path, code: int
):
    folder = tmp_path / "a study"
    lock(folder, check(small()))
    made = Study.read(folder)
    runs = made.next_runs()[1]
    made.prepare(runs)
    text = slurm_script(folder, runs[3:], 2)
    assert "#SBATCH --array=0-13\n" in text
    assert len(text.splitlines()) <= 24
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, ends in (("srun", code), ("scontrol", 0)):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho {name} "$@" $OMP_NUM_THREADS >> "$OUT"\nexit {ends}\n')
        tool.chmod(0o755)
    known = {"PATH": f"{tools}:{os.environ['PATH']}", "OUT": str(tmp_path / "out"),
             "SLURM_ARRAY_TASK_ID": "7", "SLURM_JOB_ID": "99"}  # fmt: skip
    script = tmp_path / "job.sh"
    script.write_text(text)
    assert subprocess.run(["bash", str(script)], env=known, check=False).returncode == code
    first, *more = (tmp_path / "out").read_text().splitlines()
    assert first == (
        f"srun --job-name=interactive {sys.executable} -m study work {folder} 10 --threads 2 2"
    )
    assert more == (["scontrol requeue 99 2"] if code == 143 else [])


def test_nothing_is_packed_outside_its_folder(done: Study, tmp_path: Path):
    key = next(iter(done.results))
    file = done.folder / "runs" / key / "spec.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"arm": "../outside/victim"}))
    (tmp_path / "kept/outside").mkdir(parents=True)
    with pytest.raises(SpecError, match=r"names the arm '\.\./outside/victim': delete"):
        pack(done.folder)
    assert not list((tmp_path / "kept/outside").iterdir())


def test_the_commit_of_a_lock_is_no_option_of_git(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    copied._check_out(f"--output={victim}", tmp_path / "target")
    assert victim.read_text() == "kept"
