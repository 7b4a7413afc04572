"""Which runs come next: every stage, from the results in the folder alone."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from study import budget
from study.claims import claim
from study.rows import rows
from study.runs import Study, arguments, read_prepared, read_result, read_runs
from study.shapes import _options
from study.spec import SpecError, check, lock
from study.status import status, wrong
from study.verdict import Kind
from study.work import pending, work

from .made import answer, checked, result, small, write

APART = {"ReLU": 90.0, "SiLU": 80.0, "CosLU": 90.0}
GRID = {"model.optimizer.lr": [0.1, 0.2], "model.optimizer.weight_decay": [0.0, 0.1]}


def study(folder: Path, **changes: Any) -> Study:
    lock(folder, check(small(**changes)))
    return checked(Study.read(folder))


def test_the_number_of_a_run_stays_what_it_is_in_studies_that_are_packed(tmp_path: Path):
    found = study(tmp_path).run("verdict", "CosLU", 0, 1000, 0)
    assert found.options == {
        "data": "Digits", "model.backbone": "resnet8", "trainer.max_epochs": 2,
        "test_after_fit": "last", "model.activation": "CosLU",
    }  # fmt: skip
    text = (
        '[[], {"data": "Digits", "model.activation": "CosLU", "model.backbone": "resnet8", '
        '"test_after_fit": "last", "trainer.max_epochs": 2}, 1000, ""]'
    )
    assert found.id == hashlib.sha256(text.encode()).hexdigest()[:12] == "f5a7747ea763"


def test_options_seed_and_overlays_make_another_run_and_the_place_of_the_data_does_not(
    tmp_path: Path,
):
    def number(name: str, seed: int = 1000, root: str = "/a", **changes: Any) -> str:
        cells = [{"data": "CIFAR10", "data.root": root, "model.backbone": "resnet8"}]
        made = study(tmp_path / name, cells=cells, **changes)
        return made.run("verdict", "CosLU", 0, seed, 0).id

    first = number("first")
    assert number("moved", root="/b") == first
    assert number("inside", base=[{"data": {"init_args": {"root": "/c"}}}]) == number(
        "inside2", base=[{"data": {"init_args": {"root": "/d"}}}]
    )
    others = {
        number("seed", 1001), number("epochs", budget={"trainer.max_epochs": 3}),
        number("base", base=[{"model": {"share": "channel"}}]),
    }  # fmt: skip
    assert len({first, *others}) == 4


def test_an_arm_with_a_verdict_needs_no_more_seeds(tmp_path: Path):
    made = study(tmp_path)
    stage, runs = made.next_runs()
    assert stage == "seeds up to look 5"
    assert [(run.seed, run.arm) for run in runs[:4]] == [
        (1000, "ReLU"), (1000, "SiLU"), (1000, "CosLU"), (1001, "ReLU"),
    ]  # fmt: skip
    assert len(runs) == 15
    made = answer(made, APART, noise=0.5)
    stage, runs = made.next_runs()
    assert stage == "seeds up to look 8"
    assert {run.arm for run in runs} == {"ReLU", "CosLU"}  # SiLU is worse already
    assert len(runs) == 6
    made = answer(made, APART, noise=0.5)
    assert made.next_runs() == ("", [])
    assert made.verdicts()[0].kind is Kind.WORSE


def test_cells_are_hypotheses_of_their_own(tmp_path: Path):
    cells = [{"data": "Digits", "model.backbone": f"resnet{depth}"} for depth in (8, 14)]
    made = study(tmp_path, cells=cells)
    assert len(made.next_runs()[1]) == 30
    made = answer(made, APART)
    assert [verdict.arm for verdict in made.verdicts()] == [
        "SiLU (Digits, resnet8)", "CosLU (Digits, resnet8)",
        "SiLU (Digits, resnet14)", "CosLU (Digits, resnet14)",
    ]  # fmt: skip


def test_tuning_takes_the_same_grid_for_every_arm_and_the_best_mean_on_validation(tmp_path: Path):
    tune = {"grid": GRID, "seeds": [1, 2], "metric": "val/acc"}
    made = study(tmp_path, tune=tune)
    stage, runs = made.next_runs()
    assert stage == "tuning"
    assert len(runs) == 3 * 4 * 2
    for arm in APART:
        grids = [{name: run.options[name] for name in GRID} for run in runs if run.arm == arm]
        assert sorted(map(str, grids)) == sorted(
            str({"model.optimizer.lr": lr, "model.optimizer.weight_decay": decay})
            for lr in (0.1, 0.2) for decay in (0.0, 0.1) for _ in (1, 2)
        )  # fmt: skip
    assert not any("test_after_fit" in run.options for run in runs)
    best = {"ReLU": 2, "SiLU": 0, "CosLU": 3}
    for run in runs:
        # by one seed alone another setting would be chosen
        lucky = 3 if run.setting == 1 and run.seed == 1 else 0
        content = result(80 + 2 * (run.setting == best[run.arm]) + lucky, run.seed)
        content["test"] = {}
        if run.arm == "CosLU" and run.setting == 0:
            content = result(99, run.seed, "diverged" if run.seed == 1 else "ok", test={})
        write(made, run, content)
    made = Study.read(tmp_path)
    assert [made.tuned(arm, 0)[0] for arm in APART] == [2, 0, 3]
    assert made.tuned("ReLU", 0)[1] == pytest.approx([0.8, 0.815, 0.82, 0.8])
    stage, runs = made.next_runs()
    assert stage == "seeds up to look 5"
    chosen = {run.arm: run.options["model.optimizer.lr"] for run in runs}
    assert chosen == {"ReLU": 0.2, "SiLU": 0.1, "CosLU": 0.2}


def test_controls_follow_a_verdict(tmp_path: Path):
    controls = ["frozen", "retrained", "same_time"]
    made = study(tmp_path, controls=controls, seeds={"first": 1000, "looks": [5]})
    values = {"ReLU": 90.0, "SiLU": 90.0, "CosLU": 80.0}
    for run in made.next_runs()[1]:
        learned = {"act.theta": [run.seed / 7]} if run.arm == "CosLU" else {}
        wave = 0.1 * np.cos(run.seed * len(run.arm))
        write(made, run, result(values[run.arm] + wave, run.seed, learned=learned))
    made = Study.read(tmp_path)
    stage, runs = made.next_runs()
    assert stage == "controls"
    assert {run.arm for run in runs} == {"CosLU frozen", "CosLU retrained"}  # without a ratio yet
    (tmp_path / "ratios.json").write_text(json.dumps({"CosLU/0": 2.0}))
    made = Study.read(tmp_path)
    runs = made.next_runs()[1]
    assert {run.arm for run in runs} == {f"CosLU {control}" for control in controls}
    assert len(runs) == 15
    for run in runs:
        frozen = run.options.get("model.activation_frozen", False)
        assert frozen == (not run.arm.endswith("same_time"))
        if run.arm.endswith("same_time"):
            assert run.options["model.activation"] == "torch.nn.ReLU"
            assert run.options["trainer.max_epochs"] == 4
    made.prepare(runs)
    retrained = next(run for run in runs if run.arm == "CosLU retrained" and run.seed == 1003)
    shapes = torch.load(tmp_path / "runs" / retrained.id / "shapes.ckpt")
    assert shapes["state_dict"]["act.theta"].tolist() == pytest.approx([1003 / 7])
    done = {"CosLU frozen": 89.0, "CosLU retrained": 91.0, "CosLU same_time": 95.0}
    made = answer(made, done)
    assert [verdict.arm for verdict in made.control_verdicts()] == list(done)
    assert [verdict.kind for verdict in made.control_verdicts()] == [
        Kind.WORSE, Kind.BETTER, Kind.WORSE,
    ]  # fmt: skip
    trained = [row["arm"] for row in rows(made) if row["stage"] == "controls"]
    assert set(trained) == {"CosLU frozen", "CosLU retrained", "ReLU (CosLU same_time)"}
    told = made.control_verdicts()[2].sentence()  # 80 points against 95
    assert told.startswith("CosLU same_time: WORSE than ReLU (4 epochs): -14.9")
    assert made.next_runs() == ("", [])


def test_controls_of_what_is_decided_come_ahead_of_later_looks(tmp_path: Path):
    made = study(tmp_path, controls=["frozen"], seeds={"first": 1000, "looks": [5, 8]})
    for run in made.next_runs()[1]:
        noise = {"ReLU": 0.0, "SiLU": 3.0 * np.cos(run.seed), "CosLU": -10 + 0.1 * np.cos(run.seed)}
        write(made, run, result(90 + noise[run.arm], run.seed, learned={"act.theta": [1.0]}))
    made = Study.read(tmp_path)
    stage, runs = made.next_runs()
    assert (stage, {run.arm for run in runs}, len(runs)) == ("controls", {"CosLU frozen"}, 5)
    made = answer(made, {"CosLU frozen": 89.0}, learned={"act.theta": [1.0]})
    stage, runs = made.next_runs()
    assert (stage, {run.arm for run in runs}) == ("seeds up to look 8", {"ReLU", "SiLU"})


def test_what_alternates_has_no_control_of_frozen_shapes(tmp_path: Path):
    alternates = [{"class_path": "callbacks.AlternatingOptimization"}]
    arms = {
        "ReLU": {"model.activation": "torch.nn.ReLU"},
        "FReLU": {"model.activation": "FReLU", "trainer.callbacks+": alternates},
        "CosLU": {"model.activation": "CosLU", "model.match": True},
    }
    looks, controls = {"looks": [5]}, ["frozen", "retrained", "same_time"]
    made = study(tmp_path, arms=arms, controls=controls, seeds=looks)
    (tmp_path / "ratios.json").write_text(json.dumps({"CosLU/0": 2.0, "FReLU/0": 2.0}))
    values = {"ReLU": 90.0, "FReLU": 80.0, "CosLU": 80.0}
    made = answer(made, values, learned={"act.theta": [1.0]})
    runs = {run.arm: run for run in made.next_runs()[1]}
    same, frozen, retrained = (f"CosLU {control}" for control in ("same_time", *controls[:2]))
    assert {arm for arm, *_ in made.controlled()} == {"FReLU same_time", same, frozen, retrained}
    # a match and shapes that are given both say where a function starts
    assert [runs[each].options["model.match"] for each in (frozen, retrained)] == [True, False]


def test_a_learned_shape_is_used_from_the_start(tmp_path: Path):
    """No learned term of a progressive function waits for its turn."""
    options = {"class_path": "Polynomial", "init_args": {"degree": 4, "progressive": True}}
    arms = {
        "ReLU": {"model.activation": "torch.nn.ReLU"},
        "one": {"model.activation": "Fourier", "model.activation.progressive": True},
        "other": {"model.activation": options},
        "all": {"model.activation": "Rational"},
    }
    looks, controls = {"looks": [5]}, ["frozen", "retrained"]
    made = study(tmp_path, arms=arms, controls=controls, seeds=looks)
    values = {"ReLU": 90.0, "one": 80.0, "other": 80.0, "all": 80.0}
    made = answer(made, values, learned={"act.theta": [1.0]})
    asked = {
        run.arm: run.options.get("model.activation.progressive") for run in made.next_runs()[1]
    }
    assert asked == {"one frozen": True, "one retrained": False, "other frozen": None,
                     "other retrained": False, "all frozen": None, "all retrained": None}  # fmt: skip


def test_what_an_arm_starts_from_is_that_of_its_setting(tmp_path: Path):
    """A grid over options of the activation: the tuned one tells of the arm, not the first one."""
    arms = {"ReLU": {"model.activation": "torch.nn.ReLU"}, "CosLU": {"model.activation": "CosLU"}}
    grid = {"model.match": [False, "fade"], "model.activation.alpha": [1, 2]}
    tune = {"grid": grid, "seeds": [1], "metric": "val/acc"}
    made = study(tmp_path, arms=arms, controls=["retrained"], seeds={"looks": [5]}, tune=tune)
    for run in made.next_runs()[1]:
        write(made, run, result(80 + run.setting, run.seed))
    made = checked(Study.read(tmp_path))
    made = answer(made, {"ReLU": 90.0, "CosLU": 80.0}, learned={"act1.new.alpha": [2.0]})
    assert made.given("model.match", "CosLU", 0) == "fade"
    assert _options(made, "CosLU", 0)["model.activation.alpha"] == 2
    runs = [run for run in made.next_runs()[1] if run.arm == "CosLU retrained"]
    assert {run.options["model.match"] for run in runs} == {False}
    made.prepare(runs)
    shapes = torch.load(tmp_path / "runs" / runs[0].id / "shapes.ckpt")
    assert list(shapes["state_dict"]) == ["act1.alpha"]


def test_a_second_baseline_asks_for_no_seeds_that_nobody_trains(tmp_path: Path):
    made = study(tmp_path, second_baselines=["SiLU"])
    values = {"ReLU": 80.0, "SiLU": 90.0, "CosLU": 90.05}
    for run in made.next_runs()[1]:
        noise = np.cos(run.seed * sum(run.arm.encode()))
        write(made, run, result(values[run.arm] + noise, run.seed))
    made = Study.read(tmp_path)
    assert [each.kind for each in made.verdicts()] == [Kind.BETTER, Kind.BETTER]
    found = {each.arm: each for each in made.verdicts("SiLU")}["CosLU"]
    assert made.next_runs()[0] == ""
    assert found.kind is Kind.UNDECIDED
    assert "it has the seeds of its arm's verdict, and no more" in found.sentence()


def test_shapes_that_were_faded_in_start_where_they_belong(tmp_path: Path):
    """A control fades nothing: its functions have the names of the old ones."""
    fades = {"model.activation": "CosLU", "model.match": "fade"}
    arms = {"ReLU": {"model.activation": "torch.nn.ReLU"}, "CosLU": fades}
    made = study(tmp_path, arms=arms, controls=["retrained"], seeds={"looks": [5]})
    learned = {"act1.new.alpha": [2.0]}
    made = answer(made, {"ReLU": 90.0, "CosLU": 80.0}, learned=learned)
    runs = [run for run in made.next_runs()[1] if run.arm == "CosLU retrained"]
    made.prepare(runs)
    shapes = torch.load(tmp_path / "runs" / runs[0].id / "shapes.ckpt")
    assert list(shapes["state_dict"]) == ["act1.alpha"]


def test_a_test_value_that_is_not_finite_is_a_divergence(tmp_path: Path):
    made = study(tmp_path, seeds={"looks": [5]})
    run = made.verdict_run("CosLU", 0, 1000)
    for tests, word in (({"test/acc": None}, "diverged"), ({}, "failed")):
        write(made, run, result(90, 1000, test={"last": {"test/loss": 1.0, **tests}}))
        assert Study.read(tmp_path).status(run) == word
        lacks = "is not finite" if word == "diverged" else "is missing"
        assert f"its test/acc {lacks}" in wrong(Study.read(tmp_path))[0]


def test_several_versions_of_a_package_are_told(tmp_path: Path):
    made = study(tmp_path, seeds={"looks": [5]})
    for seed, torch_version in ((1000, "2.11.0"), (1001, "2.14.0")):
        versions = {"torch": torch_version, "timm": "1.0"}
        run = made.verdict_run("CosLU", 0, seed)
        write(made, run, result(90, seed, versions=versions))
    [told] = wrong(Study.read(tmp_path))
    assert told.startswith("the runs had several versions of torch: 2.11.0, 2.14.0.")


def test_parameters_that_are_no_known_shapes_have_no_control_and_that_is_told(tmp_path: Path):
    made = study(tmp_path, controls=["frozen"], seeds={"looks": [5]})
    for run in made.next_runs()[1]:
        wave = 0.1 * np.cos(run.seed * len(run.arm))
        value, count = (80.0, 107) if run.arm == "CosLU" else (90.0, 100)
        write(made, run, result(value + wave, run.seed, parameters=count))
    [told] = Study.read(tmp_path).uncontrolled()
    assert told.startswith("CosLU has no control: its 7 parameters are not known as learned shapes")


def test_ratios_of_another_device_are_not_used(tmp_path: Path):
    made = study(tmp_path, controls=["same_time"], seeds={"looks": [5]})
    (tmp_path / "ratios.json").write_text(json.dumps({"CosLU/0": 2.0}))
    (tmp_path / "steps.json").write_text(json.dumps({"machine": {"gpu": None}}))
    elsewhere = "measured on a CPU, while the runs are of H100"
    for gpu, known, told in ((None, {"CosLU/0": 2.0}, ""), ("H100", {}, elsewhere)):
        made = answer(Study.read(tmp_path), APART, machine={"gpu": gpu})
        assert (made.ratios(), made.measured_elsewhere()) == (known, told)
        for file in tmp_path.glob("runs/*/results.json"):
            file.unlink()


def test_one_more_control_changes_no_verdict_of_another(tmp_path: Path):
    made = study(tmp_path, controls=["frozen"], seeds={"looks": [5]})
    made = answer(made, {"ReLU": 90.0, "SiLU": 80.0, "CosLU": 90.0}, learned={"act.theta": [1.0]})
    made = answer(made, {"SiLU frozen": 80.0})
    [alone] = made.control_verdicts()
    assert alone.interval
    assert alone.interval.level == pytest.approx(made.verdicts()[0].interval.level, rel=0.5)  # pyright: ignore
    for seed in made.seeds:  # another arm is decided later
        write(made, made.verdict_run("CosLU", 0, seed), result(70 + seed % 7 / 10, seed,
                                                               learned={"act.theta": [1.0]}))  # fmt: skip
    both = Study.read(tmp_path).control_verdicts()
    assert [each.arm for each in both] == ["SiLU frozen", "CosLU frozen"]
    assert both[0] == alone


def test_a_setting_that_was_not_tried_holds_the_arm_back(tmp_path: Path):
    tune = {"grid": {"model.optimizer.lr": [0.1, 0.2]}, "seeds": [1], "metric": "val/acc"}
    made = study(tmp_path, tune=tune, seeds={"looks": [5]})
    made = answer(made, APART)
    lost = made.run("tune", "SiLU", 0, 1, 1)
    write(made, lost, result(0, 1, "failed"))
    made = Study.read(tmp_path)
    assert {run.arm for run in made.next_runs()[1]} == {"ReLU", "CosLU"}
    held = made.verdicts()[0]
    assert held.sentence().startswith("SiLU: HELD BACK against ReLU: a run of the tuning failed;")
    worst = made.run("tune", "CosLU", 0, 1, 1)  # the last loss is not finite: never chosen
    write(made, worst, {**result(90, 1), "epochs": [{"val/acc": 0.99}, {"val/acc": None}]})
    made = Study.read(tmp_path)
    assert np.isnan(made.tuned("CosLU", 0)[1][1])
    assert made.tuned("CosLU", 0)[0] == 0
    assert made.verdicts()[1].kind is Kind.TOO_FEW
    unknown = made.run("tune", "ReLU", 0, 1, 0)  # a budget in steps may end before a validation
    write(made, unknown, {**result(90, 1), "epochs": [{"epoch": 0}]})
    assert {each.kind for each in Study.read(tmp_path).verdicts()} == {Kind.HELD}


def test_an_arm_may_have_spaces_in_its_name(tmp_path: Path):
    arms = {
        "ReLU": {"model.activation": "torch.nn.ReLU"},
        "CosLU": {"model.activation": "CosLU"},
        "CosLU of the channel": {"model.activation": "CosLU", "model.share": "channel"},
    }
    made = study(tmp_path, arms=arms, controls=["frozen"], seeds={"looks": [5]})
    values = {"ReLU": 90.0, "CosLU": 90.0, "CosLU of the channel": 80.0}
    made = answer(made, values, learned={"act.theta": [1.0]})
    stage, runs = made.next_runs()
    assert stage == "controls"
    assert {run.arm for run in runs} == {"CosLU of the channel frozen"}
    assert runs[0].options["model.share"] == "channel"


def test_a_diverged_run_is_kept_and_a_failed_one_too(tmp_path: Path):
    made = study(tmp_path)
    made = answer(made, APART)
    write(made, made.verdict_run("CosLU", 0, 1002), result(0, 1002, "diverged"))
    write(made, made.verdict_run("SiLU", 0, 1002), result(0, 1002, "failed"))
    made = Study.read(tmp_path)
    assert [verdict.kind for verdict in made.verdicts()] == [Kind.HELD, Kind.UNSTABLE]
    assert not {made.verdict_run(arm, 0, 1002).id for arm in APART} & {
        run.id for run in made.next_runs()[1]
    }


@pytest.mark.parametrize("damage", ["deleted", "cut", "no JSON object", "no test", "cut test"])
def test_a_deleted_or_damaged_result_is_run_again(tmp_path: Path, damage: str):
    made = answer(study(tmp_path, seeds={"first": 1000, "looks": [5]}), APART)
    assert made.next_runs() == ("", [])
    run = made.verdict_run("SiLU", 0, 1003)
    folder = tmp_path / "runs" / run.id
    results, samples = folder / "results.json", folder / "test.npz"
    if damage == "deleted":
        results.unlink()
    elif damage == "cut":
        results.write_text(results.read_text()[:40])
    elif damage == "no JSON object":
        results.write_text("[]")
    elif damage == "no test":
        samples.unlink()
    else:
        samples.write_bytes(samples.read_bytes()[:-30])
    made = Study.read(tmp_path)
    assert [each.id for each in made.next_runs()[1]] == [run.id]
    made.prepare([run])
    assert not results.exists()
    assert read_result(folder) is None
    assert len(read_runs(tmp_path)) == 14 + 2


def test_a_run_of_other_code_is_refused(tmp_path: Path):
    made = study(tmp_path)
    run = made.verdict_run("SiLU", 0, 1003)
    write(made, run, result(90, 1003, code="0123456789ab"))
    with pytest.raises(SpecError, match=rf"runs/{run.id} was made by other code \(0123456789ab.*"):
        Study.read(tmp_path)


@pytest.mark.parametrize("other", [{"train_samples": 90}, {"test_labels": "bb"}])
def test_runs_on_other_data_do_not_mix(tmp_path: Path, other: dict[str, Any]):
    cells = [{"data": "Digits", "model.backbone": f"resnet{depth}"} for depth in (8, 14)]
    lock(tmp_path, check(small(cells=cells)))
    study = Study.read(tmp_path)
    runs = study.next_runs()[1]
    study.prepare(runs)
    data = [{"train_samples": 100, "test_labels": "aa"}, {"train_samples": 50, "test_labels": "cc"}]
    runs = [run for run in runs if run.stage == "verdict"]
    for run in runs[:12]:
        write(study, run, result(90, run.seed, **data[run.cell]))
    bad = result(0, 0, status="diverged", train_samples=7)  # in its first epoch
    write(study, runs[12], bad)
    assert len(Study.read(tmp_path).results) == 13
    swapped = check(small(cells=cells[::-1]))  # and one that is not asked any more
    lock(tmp_path, swapped, "the other order")
    assert len(Study.read(tmp_path).results) == 13
    lock(tmp_path, check(small(cells=cells)), "as before")
    write(study, runs[0], result(90, runs[0].seed, **data[runs[0].cell] | other))
    with pytest.raises(SpecError, match="were made on other data") as error:
        Study.read(tmp_path)
    assert runs[0].id in str(error.value)


def test_controls_and_the_double_budget_on_other_data_do_not_mix(tmp_path: Path):
    lock(tmp_path, check(small(controls=["frozen"])))
    study = Study.read(tmp_path)
    usual, double = budget.compared(study, 0)[0]
    control = study.control_run("CosLU frozen", 0, 1000)
    assert control is not None
    study.prepare([usual, double, control])
    write(study, usual, result(90, usual.seed, train_samples=100))
    for run in (double, control):
        write(study, run, result(90, run.seed, train_samples=50))
        with pytest.raises(SpecError, match="were made on other data"):
            Study.read(tmp_path)
        write(study, run, result(90, run.seed, train_samples=100))
    assert len(Study.read(tmp_path).results) == 3


def test_a_failed_run_holds_its_arm_back_until_it_is_deleted(tmp_path: Path):
    made = study(tmp_path)
    made.prepare(made.next_runs()[1])
    failed = made.verdict_run("CosLU", 0, 1002)
    write(made, failed, result(0, 1002, status="failed"))
    made = Study.read(tmp_path)
    assert all(run.arm != "CosLU" for run in made.next_runs()[1])
    shutil.rmtree(tmp_path / "runs" / failed.id)
    made = Study.read(tmp_path)
    assert failed.id in {run.id for run in made.next_runs()[1]}


def test_prepared_runs_keep_their_numbers_and_take_over_a_new_place_of_the_data(tmp_path: Path):
    def at(root: str) -> Study:
        cells = [{"data": "CIFAR10", "data.root": root, "model.backbone": "resnet8"}]
        return study(tmp_path, cells=cells)

    def prepared() -> dict[str, dict[str, Any]]:
        files = tmp_path.glob("runs/*/spec.json")
        return {file.parent.name: json.loads(file.read_text()) for file in files}

    made = at("/a")
    runs = made.next_runs()[1]
    made.prepare(runs[:4])
    made.prepare(runs)
    first = prepared()
    assert [first[run.id]["number"] for run in runs] == list(range(15))
    at("/b").prepare(runs := at("/b").next_runs()[1])
    second = prepared()
    assert [second[run.id]["number"] for run in runs] == list(range(15))
    assert "--data.root=/b" in second[runs[0].id]["arguments"]


def test_runs_that_nobody_needs_are_not_trained(tmp_path: Path):
    """An arm diverges in the middle of a stage; then the question is changed."""
    made = study(tmp_path)
    made.prepare(made.next_runs()[1])
    bad = made.verdict_run("SiLU", 0, 1000)
    write(made, bad, result(0, 1000, "diverged"))
    assert Counter(arm_of(run) for run in pending(tmp_path)) == {"ReLU": 5, "CosLU": 5}
    lines = status(tmp_path).splitlines()
    assert lines[3].split() == ["verdict", "0", "0", "10", "1", "0"]
    assert lines[-2].startswith("at most, if no arm is decided earlier: 16 runs up to 8 seeds")
    assert sum(row["status"] == "waiting" for row in rows(Study.read(tmp_path))) == 10
    held = made.verdict_run("SiLU", 0, 1001)
    assert claim(tmp_path / "runs" / held.id / "claim")
    assert "running: SiLU, verdict, seed 1001" in status(tmp_path)

    made = Study.read(tmp_path)
    made.prepare(made.next_runs()[1])
    known = Counter(each["arm"] for each in read_prepared(tmp_path).values())
    assert known == {"ReLU": 5, "CosLU": 5, "SiLU": 2}  # that with a result, and that which runs
    assert work(tmp_path / "runs" / made.verdict_run("SiLU", 0, 1002).id) == "taken"

    write(made, made.verdict_run("ReLU", 0, 1000), result(0, 1000, "diverged"))
    assert not pending(tmp_path)
    assert Study.read(tmp_path).next_runs() == ("", [])


def test_a_divergence_stops_its_own_cell_and_question_alone(tmp_path: Path):
    cells = [{"data": "Digits", "model.backbone": f"resnet{depth}"} for depth in (8, 14)]
    made = study(tmp_path, cells=cells)
    made.prepare(made.next_runs()[1])
    for cell, arm in ((0, "ReLU"), (1, "SiLU")):
        write(made, made.verdict_run(arm, cell, 1000), result(0, 1000, "diverged"))
    known = {run.name: json.loads((run / "spec.json").read_text()) for run in pending(tmp_path)}
    left = {(each["cell"], each["arm"]) for each in known.values()}
    assert left == {(1, "ReLU"), (1, "CosLU")}
    lock(tmp_path, check(small(cells=cells[:1])), "one cell, trained longer")
    spec = check(small(cells=cells[:1], budget={"trainer.max_epochs": 3}))
    lock(tmp_path, spec, "trained longer")
    made = Study.read(tmp_path)
    made.prepare(made.next_runs()[1])
    assert {run.name for run in pending(tmp_path)} >= {run.id for run in made.next_runs()[1]}


def test_cells_of_the_same_data_and_network_are_told_apart(tmp_path: Path):
    same = {"data": "Digits", "model.backbone": "resnet8"}
    cells = [same, {**same, "data.batch_size": 16}, {**same, "model.backbone": "resnet14"}]
    made = study(tmp_path, cells=cells)
    assert [made.label("CosLU", cell) for cell in made.cells] == [
        "CosLU (Digits, resnet8, batch_size as usual)",
        "CosLU (Digits, resnet8, batch_size 16)",
        "CosLU (Digits, resnet14)",
    ]


def arm_of(run: Path) -> str:
    return json.loads((run / "spec.json").read_text())["arm"]


def test_options_are_typed_as_on_the_command_line():
    options = {"a": True, "b": None, "c": "x", "d": [1, 2], "e": {"class_path": "X"}, "f": 0.1}
    assert arguments(options, 7) == [
        "--a=true", "--b=null", "--c=x", "--d=[1, 2]", '--e={"class_path": "X"}', "--f=0.1",
        "--seed_everything=7",
    ]  # fmt: skip


def test_our_activations_are_named_in_full():
    timm = "timm.layers.Swish"
    for given, typed in (("Swish", "activations.Swish"), (timm, timm), ("PReLU", "PReLU")):
        assert f"--model.activation={typed}" in arguments({"model.activation": given}, 0)
