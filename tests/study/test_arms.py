"""What train.py would not accept is told before a study is locked."""

import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from callbacks.machine import code
from models import fusing
from study import __main__ as program
from study.arms import built, check_arms
from study.copied import own_code
from study.drive import lock_checked
from study.runs import Study, read_about, read_prepared, write_about
from study.spec import SpecError, check, lock, read_lock

from .made import result, small, write

RELU = {"model.activation": "torch.nn.ReLU"}
DIGITS = {"data": "Digits", "model.backbone": "resnet8"}
TUNE = {"grid": {"model.label_smoothing": [0.1]}, "seeds": [1], "metric": "val/acc"}


def tried(**changes: Any) -> None:
    check_arms(Study(Path("none"), {"spec": check(small(**changes))}))


def test_a_good_one_is_accepted_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    tried()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_slip_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["run", "--data", "Digits", "--activations", "CosLUU", "--epochs", "1", "--dir"]
    assert program.main([*words, str(tmp_path / "new")]) == 2
    assert "arm CosLUU: --model.activation 'CosLUU' does not fit" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": {"ReLU": RELU, "X": {"model.activation": "CosLUU"}}}, "arm X: .*CosLU"),
        ({"arms": {"ReLU": RELU, "X": {"model.shape": "model"}}}, "arm X: .*--model.shape"),
        ({"cells": [{"data": "Digitz"}]}, "arm ReLU: .*datamodules.Digits"),
        ({"cells": [{"data": "Digits", "model.backbone": "resnet9"}]}, "nearest: resnet8"),
        ({"budget": {"trainer.max_epochs": "many"}}, "trainer.max_epochs"),
        (
            {"cells": [{**DIGITS, "data.val_fraction": 0}], "metric": {"at": "best"}},
            "metric.at best needs a validation, and there is none",
        ),
        (
            {"cells": [{**DIGITS, "data.val_fraction": 0}], "tune": TUNE},
            "tune needs a validation, and there is none",
        ),
        (
            {"cells": [{**DIGITS, "trainer.limit_val_batches": 0}], "tune": TUNE},
            "tune needs a validation, and there is none",
        ),
        (
            {"metric": {"name": "test/f2"}},
            "metric.name 'test/f2' is none of these data's: test/acc, ",
        ),
        (
            {
                "tune": {
                    "grid": {"model.label_smoothing": [0.1]},
                    "seeds": [900],
                    "metric": "val/accuracy",
                }
            },
            "tune.metric 'val/accuracy' is none of these data's: val/acc, ",
        ),
        (
            {
                "cells": [{"data": "Digits", "trainer.check_val_every_n_epoch": 2}],
                "budget": {"trainer.max_epochs": 3},
            },
            "check_val_every_n_epoch 2: the last of 3 epochs has no validation",
        ),
        ({"metric": {"name": "test/acc_majority"}}, "'test/acc_majority' is none of these"),
        (
            {
                "base": [{"model": {"optimizer": {"class_path": "torch.optim.SGD"}}}],
                "tune": {
                    "grid": {"model.optimizer.lr": [0.1, -1]},
                    "seeds": [900],
                    "metric": "val/acc",
                },
            },
            "arm ReLU: .*learning rate",
        ),
        (
            {"base": [{"trainer.callbacks": {"class_path": "lightning.pytorch.callbacks.Timer"}}]},
            "arm ReLU: Timer ends trainings early",
        ),
        # argparse takes the beginning of an option's name
        ({"arms": {"ReLU": RELU, "X": {"trainer.accum": 2}}}, "equal budgets"),
    ],
)
def test_a_slip_is_one_sentence(changes: dict[str, Any], told: str):
    with pytest.raises(SpecError, match=told) as error:
        tried(**changes)
    assert "\n" not in str(error.value)


def test_a_slip_locks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["run", "--data", "Digits", "--activations", "CosLUU", "--dir", str(tmp_path / "a")]
    assert program.main(words) == 2
    assert capsys.readouterr().err.startswith("python -m study: error: arm CosLUU: ")
    assert not (tmp_path / "a" / "spec.lock.yaml").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("FILE --epochs 9", "--epochs has no effect beside .*question.yaml: leave it out"),
        ("FILE --margin 1", "--margin has no effect"),
        ("FOLDER --dir x", "--dir has no effect beside .*folder"),
        (
            "FILE --set data.root=@here",
            "'@here' is no YAML; a text with such signs is quoted twice",
        ),
        ("FILE --set trainer.max_epochs=2", "max_epochs has no effect, since budget sets it"),
        ("FILE --set model.optimizer.lr=2", "optimizer.lr has no effect, since tune.grid sets"),
        ("FILE --set trainer.max_epochs=2 --set data.batch_size=9", "max_epochs has no effect"),
        ("FILE --set checkpoint.monitor=test/acc", "would choose the best epoch on the test set"),
        ("--data Digits --activations CosLU --margin 0", "margin must be a number above 0"),
        ("--data Digits --activations ReLU CosLUU", "arm CosLUU: "),  # ReLU is there anyway
        (
            "--data Digits --activations mine.CosLU CosLU",
            "mine.CosLU CosLU: two have the same name",
        ),
    ],
)
def test_an_option_without_effect_is_refused(
    tmp_path: Path, words: str, told: str, capsys: pytest.CaptureFixture[str]
):
    tune = {"grid": {"model.optimizer.lr": [0.1]}, "seeds": [1], "metric": "val/acc"}
    spec = small(tune=tune)
    (tmp_path / "question.yaml").write_text(yaml.safe_dump(spec))
    lock(tmp_path / "folder", check(spec))
    words = words.replace("FILE", str(tmp_path / "question.yaml"))
    words = words.replace("FOLDER", str(tmp_path / "folder"))
    assert program.main(["run", *words.split()]) == 2
    assert re.search(told, capsys.readouterr().err)


def test_a_folder_takes_over_a_new_place_of_the_data(tmp_path: Path):
    cells = [{"data": "CIFAR10", "data.root": "/old", "model.backbone": "resnet8"}]
    lock(tmp_path, check(small(cells=cells)))
    folder, spec = program.asked(Namespace(spec=tmp_path, dir=None, set=["data.root=/new"]))
    assert (folder, spec["cells"][0]["data.root"]) == (tmp_path, "/new")


def test_an_amended_study_measures_the_cost_of_its_arms_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("study.drive.check_arms", lambda study: ("off", ""))
    run = lock_checked_with_a_result(tmp_path)
    (tmp_path / "ratios.json").write_text('{"CosLU/0": 2.0}')
    lock_checked(tmp_path, run)
    assert (tmp_path / "ratios.json").is_file()
    lock_checked(tmp_path, check(small(margin=0.5)), "a wider margin")
    assert not (tmp_path / "ratios.json").exists()
    write_about(tmp_path, {"defaults": {"CosLU": {"alpha": 3.0}}, "own": {}})
    more = {**small()["arms"], "Snake": {"model.activation": "Snake"}}
    lock_checked(tmp_path, check(small(arms=more, margin=0.5)), "one more")
    assert read_about(tmp_path)["defaults"] == {
        "CosLU": {"alpha": 3.0}, "Snake": {"alpha": 0.5},
    }  # fmt: skip


def test_own_code_is_what_a_spec_names_and_what_that_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_lab").mkdir()  # a package without __init__.py
    (tmp_path / "my_lab/acts.py").write_text("import my_helper, torch\nfrom . import more\n")
    (tmp_path / "my_helper.py").write_text("import activations\n")
    (tmp_path / "my_other.py").write_text("")
    spec = {"arms": [{"x": "my_lab.acts.Mine"}, "torch.nn.ReLU", "__main__.X", "activations.CosLU"]}
    known = own_code(spec)
    assert list(known) == ["my_helper", "my_lab"]
    (tmp_path / "my_helper.py").write_text("import activations, math\n")
    assert [n for n, each in own_code(spec).items() if each != known[n]] == ["my_helper"]


def test_own_code_in_the_repository_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("study.copied.ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "beside.py").write_text("")
    assert list(own_code({"activation": "beside.Mine"})) == ["beside"]


def test_an_own_module_does_not_change_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("study.drive.check_arms", lambda study: ("off", ""))  # it takes seconds
    file = tmp_path / "my_functions.py"
    file.write_text("from torch.nn import Tanh as Mine\n")
    arms = {"ReLU": RELU, "Mine": {"model.activation": "my_functions.Mine"}}
    spec, folder = check(small(arms=arms)), tmp_path / "study"
    lock_checked(folder, spec)
    assert list(read_about(folder)["own"]) == ["my_functions"]
    study = Study.read(folder)
    attempt = folder / "runs" / study.verdict_run("Mine", 0, 1000).id / "attempt_1"
    attempt.mkdir(parents=True)
    lock_checked(folder, spec)
    assert attempt.is_dir()
    file.write_text("from torch.nn import Sigmoid as Mine\n")
    lock_checked(folder, spec)  # nothing has been trained to the end, and what was begun is gone
    assert not attempt.exists()
    assert (
        capsys.readouterr().out.count("the code has changed: what has begun is trained anew") == 1
    )
    attempt.mkdir()
    other = check(small(arms=arms, margin=0.7))
    lock_checked(folder, other)
    assert attempt.is_dir()  # of the same code
    monkeypatch.setattr("study.spec.code", lambda: "other")
    lock_checked(folder, spec)
    assert not attempt.exists()
    monkeypatch.setattr("study.spec.code", code)
    lock_checked(folder, other)
    lock_checked(folder, spec)
    write(study, study.verdict_run("ReLU", 0, 1000), result(90, 1000))
    lock_checked(folder, spec)
    file.write_text("from torch.nn import Tanh as Mine\n")
    with pytest.raises(SpecError, match="the module my_functions has changed since"):
        lock_checked(folder, spec)


def lock_checked_with_a_result(folder: Path) -> dict[str, Any]:
    spec = check(small())
    lock_checked(folder, spec)
    study = Study.read(folder)
    write(study, study.verdict_run("ReLU", 0, 1000), result(90, 1000))
    return spec


def test_auto_is_decided_once_for_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    spec = check(small(arms={"ReLU": RELU, "X": {"model.activation": "CosLU"}}))
    study = Study(tmp_path, {"spec": spec})
    decided, why = check_arms(study)
    assert decided == "off"
    assert re.match(r"compile: auto -> off: 40 steps would save about \d s, .* about 10 s", why)
    monkeypatch.setattr(fusing, "SAVED", 1e-6)
    assert check_arms(study, {"metric": "val/acc"})[0] == "off"  # a search
    lock_checked(tmp_path, spec)
    assert "compile: auto -> activations: 40 steps save about" in capfd.readouterr().out
    monkeypatch.setattr(fusing, "SAVED", 0.0)  # on another machine
    lock_checked(tmp_path, spec)
    assert capfd.readouterr().out == ""
    locked = Study.read(tmp_path)
    assert read_about(tmp_path)["defaults"]["CosLU"] == {"alpha": 1.0, "beta": 1.0}
    _, runs = locked.next_runs()
    assert {run.compiled for run in runs} == {"activations"}
    assert {run.id for run in runs} == {run.id for run in study.next_runs()[1]}
    locked.prepare(runs)
    assert {each["compiled"] for each in read_prepared(tmp_path).values()} == {"activations"}
    both = [built(replace(runs[-1], compiled=each)).model for each in ("activations", "off")]
    assert [each.compile_mode for each in both] == ["activations", "off"]
    for more, decided in (
        ({"options": {**runs[-1].options, "model.compile": "off"}}, "off"),
        ({"options": {**runs[-1].options, "model.compile": "auto"}}, "activations"),
        ({"base": [{"model": {"compile": "auto"}}]}, "activations"),
        ({"base": [{"model": {"compile": "auto"}}, {"model": {"compile": "off"}}]}, "off"),
    ):
        assert built(replace(runs[-1], **more)).model.compile_mode == decided


def test_a_lock_that_names_no_compilation_is_of_plain_runs(tmp_path: Path):
    spec = check(small())
    lock(tmp_path, spec)
    assert "compiled" not in read_lock(tmp_path)
    assert {run.compiled for run in Study.read(tmp_path).next_runs()[1]} == {"off"}
