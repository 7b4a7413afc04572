"""A spec that cannot give a fair verdict is refused in one sentence; a locked one stays."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from study.spec import SpecError, check, lock, read_lock, read_spec, read_yaml, sha256

from .made import small

TUNE = {"grid": {"model.optimizer.lr": [0.1, 0.2]}, "seeds": [1, 2], "metric": "val/acc"}
RELU = {"model.activation": "torch.nn.ReLU"}
STOPPING = {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}


def arms(**more: Any) -> dict[str, Any]:
    return {"arms": {"ReLU": RELU, **more}}


SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
BY_MAPPING = {**TUNE, "grid": {"model.optimizer": [SGD, {**SGD, "init_args": {"lr": 0.01}}]}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"margn": 0.3}, "unknown field 'margn'; the nearest: margin"),
        ({"margin": 0}, "margin must be a number above 0"),
        ({"margin": -0.3}, "margin must be a number above 0"),
        ({"margin": "0.3"}, "margin must be a number above 0 (points), got '0.3'"),
        ({"margin": float("nan")}, "margin must be a finite number"),
        ({"alpha": True}, "alpha must be a number"),
        ({"alpha": 5}, "alpha must be a number between 0 and 0.5"),
        (arms(), "two or more"),
        ({"arms": ["ReLU", "SiLU"]}, "arms must be a mapping"),
        ({"arms": {"ReLU": RELU, 3: {}}}, "arms has the name 3"),
        ({"arms": {"ReLU": RELU, True: {}}}, "put it in quotes"),
        (arms(Same=dict(RELU)), "arms.ReLU and arms.Same are the same"),
        (arms(**{"a/b": {"model.share": "model"}}), "a name is of letters"),
        (arms(**{"CosLU frozen": {"model.activation": "CosLU"}}), "the name of a control"),
        (arms(**{"a b": {"x": 1}, "a_b": {"x": 2}}), "the same file"),
        (arms(SiLU="torch.nn.SiLU"), "arms.SiLU must be options"),
        ({"baseline": "GELU"}, "'GELU' is none of the arms"),
        ({"second_baselines": ["GELU"]}, "'GELU' is none of the arms"),
        ({"published": {"GELU": {}}}, "'GELU' is none of the arms"),
        ({"cells": []}, "cells: name at least one"),
        ({"cells": [{"data": "Digits"}, {"data": "Digits"}]}, "are the same"),
        ({"cells": "Digits"}, "cells must be a list"),
        (arms(SiLU={"trainer.max_epochs": 9}), "another budget"),
        (arms(SiLU={"trainer": {"max_epochs": 9}}), "another budget"),
        (arms(SiLU={"data.batch_size": 9}), "another budget or other data"),
        ({**arms(SiLU={"model.optimizer.lr": 1}), "budget": {"model.optimizer.lr": 2}}, "budget"),
        (arms(SiLU={"trainer.callbacks": [STOPPING]}), "early stopping"),
        ({"base": [{"trainer": {"callbacks": [STOPPING]}}]}, "base[0]: early stopping"),
        ({"cells": [{"data": "Digits", "trainer.callbacks+": STOPPING}]}, "early stopping"),
        (arms(SiLU={"checkpoint.monitor": "test/acc"}), "best epoch on the test set"),
        ({"base": [{"checkpoint": {"monitor": "test/acc"}}]}, "best epoch on the test set"),
        (arms(SiLU={"seed_everything": 3}), "seed_everything is set by `seeds`"),
        ({"seeds": {"looks": [3, 5]}}, "5 or more"),
        ({"seeds": {"looks": [8, 5]}}, "rising"),
        ({"seeds": {"looks": ["5", "8"]}}, "rising numbers of seeds"),
        ({"seeds": {"look": [5]}}, "seeds must be a mapping of first and looks"),
        ({"seeds": {"first": -1}}, "a whole number from 0"),
        ({"metric": {"name": "val/acc"}}, "metric.name must be of the test"),
        ({"metric": {"at": "max"}}, "last or best"),
        ({"controls": ["thawed"]}, "controls are frozen"),
        ({"budget": {"trainer.max_epochs": "2"}}, "must be a whole number from 1, got '2'"),
        ({"budget": {"trainer.max_time": "00:01:00:00"}}, "give epochs or steps"),
        ({"base": [{"trainer": {"max_time": {"hours": 1}}}]}, "as far as the machine's load allows"),
        ({"base": [{"ckpt_path": "relu.ckpt"}]}, "base[0]: ckpt_path: every arm would go on"),
        (arms(SiLU={"ckpt_path": "relu.ckpt"}), "start from its weights with model.checkpoint_path"),
        (arms(SiLU={"model.stem": "imagenet"}), "another budget"),
        (arms(SiLU={"checkpoint.mode": "min"}), "another budget"),
        ({"cells": [{"data": "Digits", "model": {"backbone": "resnet8"}}],
          **arms(SiLU={"model": {"activation": "torch.nn.SiLU"}})},
         "arms.SiLU: model would take the place of another mapping, and model.backbone would be"),
        ({"cells": [{"data": "Digits", "trainer": {"limit_train_batches": 3}}],
          "budget": {"trainer": {"max_epochs": 2}}}, "budget: trainer would take the place"),
        ({"cells": [{"data": "Digits", "model.label_smoothing": 0.1}],
          **arms(SiLU={"model": {"label_smoothing": 0.2}})},
         "arms.SiLU: model.label_smoothing in the mapping model has no effect, since an earlier"),
        ({"tune": {**TUNE, "seeds": [1000, 2]}}, "[1000] belong to the verdict (1000 to 1007)"),
        ({"tune": {**TUNE, "seeds": 1}}, "a list of whole numbers"),
        ({"tune": {**TUNE, "metric": "test/acc"}}, "tune.metric must be of the validation"),
        ({"tune": {**TUNE, "grid": {"model.optimizer.lr": 0.1}}}, "{option: [values]}"),
        ({"tune": {**TUNE, "grid": {"trainer.max_epochs": [1, 9]}}}, "another budget"),
        ({"tune": TUNE, **arms(SiLU={"model.optimizer.lr": 1})}, "which tune.grid varies"),
        ({"question": yaml.safe_load("2026-01-01")}, "as a date: put it in quotes"),
        ({"cells": [{"data": "Digits", "trainer": {"max_epochs": 9}}]}, "budget sets it"),
        ({"cells": [{"data": "Digits", "model.activation": "CosLU"}]}, "every arm sets it"),
        ({"tune": TUNE, "cells": [{"data": "Digits", "model.optimizer.init_args.lr": 1}]},
         "cells[0]: model.optimizer.lr has no effect, since tune.grid sets it"),
        ({"tune": TUNE, **arms(SiLU={"model.optimizer.init_args.lr": 1})}, "tune.grid varies"),
        ({"tune": TUNE, **arms(SiLU={"model.optimizer": {"init_args": {"lr": 1}}})}, "varies"),
        ({"tune": {**TUNE, "seeds": [-1]}}, "whole numbers from 0, got [-1]"),
        ({"tune": {**TUNE, "seeds": [2**40]}}, "whole numbers from 0"),
        ({"tune": {**TUNE, "seeds": [1, 1]}}, "tune.seeds has 1 twice"),
        ({"tune": {**TUNE, "grid": {"model.optimizer.lr": [0.1, 0.1]}}}, "lr has 0.1 twice"),
        ({"tune": {**TUNE, "seeds": [0, 0]}}, "tune.seeds has 0 twice"),
        ({"tune": {**TUNE, "grid": {"model.share": [None, None]}}}, "share has None twice"),
        ({"tune": BY_MAPPING, "cells": [{"data": "Digits", "model.optimizer.lr": 0.5}]},
         "cells[0]: model.optimizer.lr has no effect, since tune.grid sets it"),
        ({"tune": BY_MAPPING, "cells": [{"data": "Digits", "model.optimizer.momentum": 0.5}]},
         "cells[0]: model.optimizer.momentum has no effect, since tune.grid sets it"),
        ({"tune": BY_MAPPING, **arms(SiLU={"model.optimizer.lr": 0.5})},
         "arms.SiLU fixes model.optimizer.lr, which tune.grid varies"),
        ({"tune": {**TUNE, "grid": {"trainer": [{"max_epochs": 9}, {"max_epochs": 8}]}}},
         "tune.grid: trainer.max_epochs would give it another budget"),
        ({"controls": ["frozen", "frozen"]}, "controls has 'frozen' twice"),
        ({"second_baselines": ["SiLU", "SiLU"]}, "second_baselines has 'SiLU' twice"),
        ({"second_baselines": [["SiLU"]]}, "['SiLU'] is none of the arms"),
        ({"budget": {"trainer.max_epochs": -1}}, "whole number from 1, got -1"),
        ({"budget": {"trainer.max_epochs": 0}}, "whole number from 1, got 0"),
        ({"budget": {"trainer.max_epochs": -1, "trainer.max_steps": 0}}, "from 1, got -1"),
    ],
)  # fmt: skip
def test_an_unfair_spec_is_refused(changes: dict[str, Any], told: str):
    with pytest.raises(SpecError) as error:
        check(small(**changes))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_another_place_of_data_that_are_a_mapping(tmp_path: Path):
    data = {"class_path": "ImageFolder", "init_args": {"root": "a"}}
    check(small(cells=[{"data": data, "data.root": "b", "model.optimizer.init_args.lr": 1}]))


def test_a_config_of_a_run_is_a_base():
    """It names all options, also those that are not given."""
    base = [{"ckpt_path": None, "trainer": {"max_time": None, "precision": "bf16-mixed"}}]
    assert check(small(base=base))["base"] == base


def test_a_fair_one_gets_its_defaults():
    spec = check(small(tune=TUNE, controls=["frozen", "same_time"]))
    assert spec["alpha"] == 0.05
    assert spec["metric"] == {"name": "test/acc", "at": "last"}
    check(small(budget={"trainer.max_epochs": -1, "trainer.max_steps": 9}))
    check(small(budget={"trainer.max_steps": -1}))  # the default
    rate = {"model.optimizer.lr": 0.1}
    check(small(cells=[{"data": "Digits", **rate}], **arms(SiLU={"model.optimizer.lr": 0.2})))


def test_overlays_are_read_and_a_missing_or_broken_one_is_named(tmp_path: Path):
    file, overlay = tmp_path / "study.yaml", tmp_path / "over.yaml"
    file.write_text(yaml.safe_dump(small(base=["over.yaml"])))
    with pytest.raises(SpecError, match=r"base: no such file: over\.yaml"):
        read_spec(file)
    overlay.write_text("model: {share: channel}")
    assert read_spec(file)["base"] == [{"model": {"share": "channel"}}]
    overlay.write_text("- a list")
    with pytest.raises(SpecError, match="no mapping"):
        read_spec(file)
    file.write_text("margin: 5\narms: {a: {x: 1}, b: {}, a: {x: 2}}")
    with pytest.raises(SpecError, match="'a' is there twice in the mapping at line 2"):
        read_spec(file)
    file.write_text("""question: &Q {z: &Z {k: 1}, y: {a: &A {<<: *Z, k: 2}}, b: {<<: *A}}""")
    assert read_yaml(file) == yaml.safe_load(file.read_text())  # a merge is no repetition
    file.write_text("arms: {}\nbase: " + "[" * 5_000 + "]" * 5_000)
    with pytest.raises(SpecError, match="cannot be read"):
        read_spec(file)
    file.write_text("arms: {")
    with pytest.raises(SpecError, match="cannot be read"):
        read_spec(file)
    with pytest.raises(SpecError, match="no such file"):
        read_spec(tmp_path / "none.yaml")


def test_a_locked_question_changes_only_with_a_reason(tmp_path: Path):
    spec = check(small())
    first = lock(tmp_path, spec)
    assert lock(tmp_path, spec) == first == read_lock(tmp_path)
    other = check(small(margin=0.5))
    with pytest.raises(SpecError, match=r"another study: margin differ.*--amend"):
        lock(tmp_path, other)
    assert read_lock(tmp_path) == first
    amended = lock(tmp_path, other, "0.3 is less than a test image")
    assert amended["amendments"][0]["changed"] == {"margin": 0.3}
    assert amended["commit"] == first["commit"]
    assert read_lock(tmp_path)["spec"]["margin"] == 0.5


def test_before_the_first_result_a_question_may_change(tmp_path: Path):
    lock(tmp_path, check(small()))
    assert lock(tmp_path, check(small(margin=0.5)), begun=False)["amendments"] == []


def test_cells_that_differ_in_places_alone_would_be_one(tmp_path: Path):
    cells = [{"data": "ImageFolder", "data.root": root} for root in ("/birds", "/cars")]
    with pytest.raises(
        SpecError, match=r"cells\[0\] and cells\[1\] are the same, or differ only in"
    ):
        check(small(cells=cells))


def test_another_place_of_the_data_is_no_other_question(tmp_path: Path):
    def at(root: str) -> dict[str, Any]:
        return check(small(cells=[{"data": "CIFAR10", "data.root": root}]))

    assert sha256(at("/a")) == sha256(at("/b"))
    lock(tmp_path, at("/a"))
    assert lock(tmp_path, at("/b"))["spec"]["cells"][0]["data.root"] == "/b"
    assert read_lock(tmp_path)["amendments"] == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("margin: 0.3", "margin: 0.2", "was changed by hand"),
        ("margin: 0.3", "margin: {", "cannot be read"),
        ("sha256:", "sha:", "no lock of a study"),
    ],
)
def test_a_lock_that_was_edited_is_refused(tmp_path: Path, old: str, new: str, told: str):
    lock(tmp_path, check(small()))
    file = tmp_path / "spec.lock.yaml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(SpecError, match=told):
        read_lock(tmp_path)
    with pytest.raises(SpecError, match="holds no study"):
        read_lock(tmp_path / "elsewhere")
