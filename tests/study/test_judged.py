"""What the judge says of a study, from results that are written here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import study.drive
from study.__main__ import main
from study.judged import hidden_runs, judge_folder, judge_study
from study.runs import Run, Study, read_prepared
from study.spec import SpecError, check, lock
from tests.study.made import answer, result, small, write

SPEC = {
    "arms": {"ReLU": {"model.activation": "torch.nn.ReLU"}, "CosLU": {"model.activation": "CosLU"}},
    "cells": [{"data": "Digits", "model.backbone": "resnet8"}],
    "budget": {"trainer.max_epochs": 40},
    "tune": {"grid": {"model.optimizer.lr": [0.1]}, "seeds": [2000], "metric": "val/acc"},
}


def ended(study: Study, runs: list[Run], values: Any) -> None:
    for run, value in zip(runs, values, strict=True):
        study.results[run.id] = {
            "status": "ok", "test": {"last": {"test/acc": float(value) / 100}}, "epochs": [{"val/acc": 0.5}],
        }  # fmt: skip


def made(count: int, deviation: float = 0.25) -> Study:
    """A study whose ReLU and CosLU differ by chance alone."""
    study, rng = Study(Path("none"), {"spec": check(SPEC)}), np.random.default_rng(3)
    ended(study, list(study.tuning()), [50, 50])
    for arm in ("ReLU", "CosLU"):
        runs = [study.verdict_run(arm, 0, seed) for seed in study.seeds[:count]]
        ended(study, runs, rng.normal(90, deviation, count))
    return study


def test_usual_noise():
    text = judge_folder(None)
    assert text.splitlines()[-1].startswith("Bars kept: a false verdict in at most 5%")
    assert text.count("simulated studies of equal arms") == 2


def test_the_noise_is_the_study_s_own():
    few, known, noisy = made(2), made(8), made(8, deviation=5)
    (line,) = judge_study(few)
    assert line.endswith("simulated with a deviation of 0.25 points, assumed, K = 1")
    assert judge_study(known)[-1].endswith("simulated with its own noise, K = 1")
    power = [judge_study(each)[-1].rpartition("0.5 points in ")[2].partition("%")[0] for each in (known, noisy)]  # fmt: skip
    assert int(power[0]) > 80
    assert int(power[1]) < 20


def test_hidden_arms_are_new_runs_that_change_no_verdict():
    study = made(20)
    before = [each.sentence() for each in study.verdicts()], study.next_runs()
    runs = hidden_runs(study)
    again, planted = ([r for r in runs if r.arm.endswith(kind)] for kind in ("again", "planted"))
    assert [r.seed for r in again] == list(range(2001, 2021))  # neither the verdict's nor tuning's
    assert [r.seed for r in planted] == study.seeds
    assert {r.options["trainer.max_epochs"] for r in again} == {40}
    assert {r.options["trainer.max_epochs"] for r in planted} == {38}
    assert not {r.id for r in runs} & study.results.keys()
    rng = np.random.default_rng(4)
    ended(study, again, rng.normal(90, 0.25, 20))
    ended(study, planted, rng.normal(88, 0.25, 20))
    assert ([each.sentence() for each in study.verdicts()], study.next_runs()) == before
    first, second, split, last = judge_study(study)
    assert first.startswith("Judge, hidden arm with other seeds, no false verdict: ReLU again")
    assert second.startswith("Judge, planted arm with 38 of 40 epochs, found: ReLU planted: WORSE")
    assert "random splits of 40 runs" in split
    assert split.endswith("(looks 5, 8, 12, 20)")
    assert "simulated studies" in last


def test_a_false_verdict_is_named():
    study = made(5)
    again = [run for run in hidden_runs(study) if run.arm == "ReLU again"]
    ended(study, again, np.linspace(80, 80.5, 5))
    assert "A FALSE VERDICT: ReLU again: WORSE than ReLU" in judge_study(study)[0]


def test_hidden_arms_are_trained_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    lock(tmp_path, check(small()))
    known = answer(Study.read(tmp_path), {"ReLU": 90, "SiLU": 90, "CosLU": 50})
    before = [each.sentence() for each in known.verdicts()]

    def trained(options: Any, folder: Path) -> int:
        prepared = read_prepared(folder)
        assert {each["stage"] for each in prepared.values()} == {"judge"}
        for run in hidden_runs(known):
            words = prepared[run.id]["arguments"]
            assert f"--seed_everything={run.seed}" in words
            assert f"--trainer.max_epochs={1 if run.arm == 'ReLU planted' else 2}" in words
            value = 80 if run.arm == "ReLU planted" else 90
            write(known, run, result(value + 0.1 * (run.seed % 3), run.seed))
        return 0

    monkeypatch.setattr(study.drive, "work_on", trained)
    monkeypatch.setattr(study.drive, "copy_code", lambda *_: None)
    assert main(["judge", str(tmp_path), "--train"]) == 0
    told = capsys.readouterr().out
    assert "hidden arms: 10 runs" in told
    assert "planted arm with 1 of 2 epochs, found: ReLU planted: WORSE" in told
    assert "random splits of 10 runs of one arm" in told
    assert [each.sentence() for each in Study.read(tmp_path).verdicts()] == before
    assert main(["judge", str(tmp_path), "--train"]) == 0
    assert "hidden arms: 0 runs" in capsys.readouterr().out


def test_training_hidden_arms_needs_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["judge", "--train"]) == 2
    assert main(["judge", str(tmp_path), "--train"]) == 2
    assert "holds no study" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_too_few_runs():
    with pytest.raises(SpecError, match="ReLU has 4 runs, the judge needs 5"):
        hidden_runs(made(4))
