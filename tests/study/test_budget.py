"""Whether a budget is short: the baseline at twice the budget, on validation."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from study.budget import budget_lines, compared, measured, metric_of
from study.report import report
from study.runs import Study
from study.spec import check, lock
from study.status import status
from study.verdict import Kind

from .made import answer, result, small, write

TUNE = {"grid": {"model.optimizer.lr": [0.1, 0.2]}, "seeds": [1, 2], "metric": "val/acc"}
VALUES = {"ReLU": 90.0, "SiLU": 80.0, "CosLU": 90.0}


def study(folder: Path, **changes: Any) -> Study:
    lock(folder, check(small(seeds={"looks": [5]}, **changes)))
    return Study.read(folder)


def ended(made: Study, gain: float, **more: Any) -> Study:
    """All runs of a study; at twice the budget, the baseline's value is higher by `gain` points."""
    while runs := made.next_runs()[1]:
        for run in runs:
            value = VALUES[run.arm] + run.seed % 7 / 10 + (gain if run.stage == "budget" else 0)
            write(made, run, result(value, run.seed, train_samples=1151, **more))
        made = Study.read(made.folder)
    return made


@pytest.mark.parametrize(("gain", "short"), [(0.75, False), (1.25, True), (-2.0, False)])
@pytest.mark.parametrize("tune", [None, TUNE])
def test_a_budget_is_short_if_twice_as_much_gains_a_point(
    tmp_path: Path, gain: float, short: bool, tune: Any
):
    made = ended(study(tmp_path, tune=tune), gain)
    found = measured(made, 0)
    assert found
    assert found.gain == pytest.approx(gain)
    assert found.short == short
    place = "Digits, resnet8, 1,151 training samples, 2 epochs"
    text = report(made)
    word = "SHORT BUDGET" if short else "long enough"
    begin = f"Budget ({place}): {word}: val/acc of ReLU is "
    line = next(line for line in text.splitlines() if line.startswith(begin))
    assert f"with 4 epochs: {gain:+.2f} points (short from 1 on)" in line
    assert line in (tmp_path / "report.md").read_text().replace("**", "")
    assert line in status(tmp_path)
    assert f"{found.double:.2f} with 4 epochs" in (tmp_path / "results.tex").read_text()
    ends = f"({place}, SHORT BUDGET)" if short else f"({place})"
    assert [v.scope in ends and v.sentence().endswith(ends) for v in made.verdicts()] == [True] * 2
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    usual = "2 epochs, short" if short else "2 epochs"
    assert {(row["stage"] == "budget", row["budget"]) for row in rows} == {
        (False, usual), (True, "4 epochs"),
    }  # fmt: skip
    assert [row["seed"] for row in rows if row["stage"] == "budget"] == (
        ["1", "2"] if tune else ["1000", "1001"]
    )


def test_the_baseline_alone_is_trained_with_its_tuned_setting_and_without_a_test(tmp_path: Path):
    made = study(tmp_path, tune=TUNE)
    for run in made.next_runs()[1]:
        write(made, run, result(80 + (run.setting == (run.arm == "ReLU")), run.seed, test={}))
    double = [run for run in Study.read(tmp_path).next_runs()[1] if run.stage == "budget"]
    assert [(run.arm, run.seed) for run in double] == [("ReLU", 1), ("ReLU", 2)]
    for run in double:
        assert run.options == {
            "data": "Digits", "model.backbone": "resnet8", "trainer.max_epochs": 4,
            "model.optimizer.lr": 0.2, "model.activation": "torch.nn.ReLU",
        }  # fmt: skip


def test_steps_are_doubled_too_and_the_scheduler_moves_later(tmp_path: Path):
    moves = {"class_path": "MultiStepLR", "init_args": {"milestones": [45, 65], "gamma": 0.1}}
    base = [{"model": {"lr_scheduler": moves}, "trainer": {"max_epochs": 80}}]
    made = study(tmp_path / "both", base=base, budget={"trainer.max_steps": 500})
    _, run = compared(made, 0)[0]
    assert run.options["trainer.max_steps"] == 1000
    assert run.options["trainer.max_epochs"] == 160  # else it would end there
    assert run.base[0]["model"]["lr_scheduler"]["init_args"] == {
        "milestones": [90, 130], "gamma": 0.1,
    }  # fmt: skip
    assert "(Digits, resnet8, 500 steps): not checked yet; 1,000 steps of" in budget_lines(made)[0]
    made = study(tmp_path / "none", budget={})
    assert compared(made, 0)[0][1].options["trainer.max_epochs"] == 180  # of configs/base.yaml


def test_wherever_a_scheduler_is_written_it_moves_later(tmp_path: Path):
    step = "model.lr_scheduler.init_args.step_size"
    base = [{"model.lr_scheduler.init_args.T_max": 90, "model": {"lr_scheduler.total_iters": 5}}]
    cells = [{"data": "Digits", "model.backbone": "resnet8", step: 31, "data.batch_size": 16}]
    made = study(tmp_path, base=base, cells=cells, controls=["same_time"])
    usual, double = compared(made, 0)[0]
    assert usual.base == base
    assert double.base == [
        {"model.lr_scheduler.init_args.T_max": 180, "model": {"lr_scheduler.total_iters": 10}}
    ]
    assert (usual.options[step], double.options[step]) == (31, 62)
    assert double.options["data.batch_size"] == 16
    (tmp_path / "ratios.json").write_text('{"CosLU/0": 1.4}')
    longer = made.control_run("CosLU same_time", 0, 1000)
    assert longer
    assert (longer.options["trainer.max_epochs"], longer.options[step]) == (3, 43)
    assert longer.base[0]["model.lr_scheduler.init_args.T_max"] == 126


def test_as_much_time_is_as_many_more_steps_where_steps_are_the_budget(tmp_path: Path):
    limits = {"trainer.max_epochs": -1, "trainer.max_steps": 40}
    made = study(tmp_path, budget=limits, controls=["same_time"])
    (tmp_path / "ratios.json").write_text('{"CosLU/0": 1.4}')
    longer = made.control_run("CosLU same_time", 0, 1000)
    assert longer
    assert longer.options.items() >= {"trainer.max_epochs": -1, "trainer.max_steps": 56}.items()


def test_a_baseline_that_diverges_leaves_the_budget_unknown(tmp_path: Path):
    made = study(tmp_path)
    write(made, compared(made, 0)[0][0], result(0, 1000, "diverged"))  # the next seed is needless
    assert "not known, since a run of ReLU diverged" in budget_lines(Study.read(tmp_path))[0]


def test_a_scheduler_that_is_told_its_length_is_told_the_longer_one(tmp_path: Path):
    cycle = {"class_path": "OneCycleLR", "init_args": {"max_lr": 1, "epochs": 2}}
    base = [{"model": {"lr_scheduler": {**cycle, "total_steps": 34}}, "schedule": {"epochs": 3}}]
    callback = "trainer.callbacks.epochs"
    cells = [{"data": "Digits", "model.backbone": "resnet8", callback: 1,
              "model.lr_scheduler.epochs": 2}]  # fmt: skip
    _, double = compared(study(tmp_path, base=base, cells=cells), 0)[0]
    found = double.base[0]["model"]["lr_scheduler"]
    assert found == {**cycle, "init_args": {"max_lr": 1, "epochs": 4}, "total_steps": 68}
    assert double.base[0]["schedule"] == {"epochs": 3}
    assert (double.options[callback], double.options["model.lr_scheduler.epochs"]) == (1, 4)


def test_each_cell_has_a_line_and_its_verdicts_the_word(tmp_path: Path):
    cells = [{"data": "Digits", "model.backbone": f"resnet{depth}"} for depth in (8, 14)]
    made = ended(study(tmp_path, cells=cells), 0.0)
    for _, run in compared(made, 1):
        write(made, run, result(95, run.seed, test={}))
    made = Study.read(tmp_path)
    assert [": SHORT BUDGET: " in line for line in budget_lines(made)] == [False, True]
    assert [v.sentence().endswith("2 epochs, SHORT BUDGET)") for v in made.verdicts()] == [
        False, False, True, True,
    ]  # fmt: skip
    assert "resnet14" not in made.verdicts()[2].scope  # its name says it


def test_the_check_of_a_finished_study_leaves_its_verdicts_alone(tmp_path: Path):
    made = study(tmp_path)
    runs = [run for run in made.next_runs()[1] if run.stage == "verdict"]
    for run in runs:
        write(made, run, result(VALUES[run.arm] + (run.seed * ord(run.arm[0])) % 7 / 10, run.seed))
    made = Study.read(tmp_path)
    before = made.verdicts()
    assert before[0].kind is Kind.WORSE
    stage, missing = made.next_runs()
    assert (stage, len(missing)) == ("twice the budget", 2)
    for run in missing:
        write(made, run, result(0, run.seed, "diverged"))
    made = Study.read(tmp_path)
    assert made.next_runs() == ("", [])
    assert made.verdicts() == before
    found = measured(made, 0)
    assert found
    assert math.isnan(found.gain)
    assert not found.short
    assert "not known, since a run of ReLU diverged" in budget_lines(made)[0]


def test_a_loss_by_which_was_tuned_says_nothing_of_an_accuracy(tmp_path: Path):
    made = study(tmp_path / "acc", tune={**TUNE, "metric": "val/loss"})
    assert metric_of(made) == "val/acc"
    made = study(tmp_path / "f1", tune={**TUNE, "metric": "val/f1"})
    assert metric_of(made) == "val/f1"


def test_of_a_loss_the_margin_is_the_limit_and_less_is_better(tmp_path: Path):
    metric = {"name": "test/loss", "at": "last"}
    made = study(tmp_path, metric=metric, margin=0.05)
    for run in made.next_runs()[1]:
        loss = 0.5 if run.stage == "budget" else 0.6
        write(made, run, result(0, run.seed, epochs=[{"epoch": 1, "val/loss": loss}],
                                test={"last": {"test/loss": loss}}))  # fmt: skip
    made = answer(Study.read(tmp_path), VALUES)
    assert (
        "SHORT BUDGET: val/loss of ReLU is 0.60, and 0.50 with 4 epochs: +0.10 nats"
        in (budget_lines(made)[0])
    )
