"""Specs: what cannot be searched is named."""

from pathlib import Path
from typing import Any

import pytest

import search.__main__
import study.__main__
from callbacks.machine import ROOT
from search.__main__ import lock_search
from search.evolution import Search
from search.spec import check_search, read_search
from study.spec import SpecError, check, lock
from tests.search.made import begun, small, train
from tests.study.made import small as small_study


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "test/acc"}, "metric must be of the validation, such as val/acc, got 'test/acc'"),
        ({"space": "elu"}, "space: no preset 'elu'"),
        ({"space": {"leaves": ["x"]}}, "space: the space is empty"),
        ({"space": {"unary": ["foo(x)"]}}, "space: a formula has no function 'foo'"),
        ({"space": {"unary": "exp(x)"}}, "space: unary must be a list of formulas, got 'exp"),
        ({"space": {"leaves": ["1"], "unary": ["exp(x)"]}}, "space: no leaf has an x: 1"),
        ({"space": 3}, "space: a space is a preset's name or a mapping, got 3"),
        ({"generations": 0}, "generations must be a whole number from 1, got 0"),
        ({"children": 2}, "children: 2 are too few for one to be left after 2 rungs .* give 3"),
        ({"tournament": 9}, "tournament 9 is more than the population, 8"),
        ({"crossover": 2}, "crossover must be a share between 0 and 1, got 2"),
        ({"surrogate": "forest"}, "surrogate must be true or false, got 'forest'"),
        ({"constants": "model"}, "constants must be site or channel, got 'model'"),
        ({"halving": {"epochs": [6, 2]}}, r"halving.epochs must be rising .* got \[6, 2\]"),
        ({"halving": {"keep": 1}}, "halving.keep must be a whole number from 2, got 1"),
        ({"halving": [2, 6]}, r"halving must be a mapping of epochs and keep, got \[2, 6\]"),
        ({"finalists": {"seeds": [0, 5]}}, "finalists.seeds: 0 is the seed of the search"),
        ({"finalists": {"seeds": [5]}}, "finalists.seeds must be two or more different seeds"),
        ({"finalists": {"number": 0}}, "finalists.number must be a whole number from 1, got 0"),
        ({"population_size": 3}, "unknown field 'population_size'; the nearest: population"),
        ({"cells": []}, "cells: name at least one data set and backbone"),
        ({"cells": [{"data": "Digits", "trainer.max_epochs": 4}]}, r"cells\[0\]: trainer.max_epochs is set by halving.epochs"),
        ({"cells": [{"data": "Digits", "model.activation": {"class_path": "CosLU"}}]}, r"cells\[0\]: model.activation is set by the search"),
        ({"base": [{"trainer": {"callbacks": ["EarlyStopping"]}}]}, "early stopping gives arms"),
        ({"references": {}}, "references must name functions, such as"),
    ],
)  # fmt: skip
def test_bad_specs_are_named(changes: dict[str, Any], message: str):
    with pytest.raises(SpecError, match=message):
        check_search(small(**changes))


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/search/*.yaml")), ids=lambda p: p.stem)
def test_shipped_specs_can_be_locked(path: Path, tmp_path: Path):
    spec = read_search(path)
    if all(cell["data"] == "Digits" for cell in spec["cells"]):
        lock_search(tmp_path, spec)
        assert read_search(path) == search.__main__.asked(options(tmp_path))[1]


def options(folder: Path) -> Any:
    from argparse import Namespace

    return Namespace(spec=folder, dir=None, set=[])


def test_another_search_in_the_folder_is_refused(tmp_path: Path):
    known = begun(tmp_path)
    train(known, known.next_runs()[0])
    with pytest.raises(SpecError, match=r"holds other trainings, see .*: choose another folder"):
        lock_search(tmp_path, check_search(small(space="swish")))
    lock_search(tmp_path, check_search(small()))


def test_a_search_without_results_can_be_changed(tmp_path: Path):
    begun(tmp_path).next_runs()
    lock_search(tmp_path, check_search(small(space="swish")))
    assert Search.read(tmp_path).spec["space"] == "swish"


@pytest.mark.parametrize("option", ["--jobs", "--threads"])
def test_numbers_of_workers_are_checked(option: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        search.__main__.main(["run", "any.yaml", option, "0"])
    assert f"argument {option}: a whole number from 1, got 0" in capsys.readouterr().err


def test_slips_are_not_locked(tmp_path: Path):
    cell = {"data": "Digits", "model.backbone": "resnet9"}
    for changes, message in (
        ({"cells": [cell]}, "resnet9"),
        ({"metric": "val/accuracy"}, "metric 'val/accuracy' is none of these data's: val/acc, "),
        ({"space": {"leaves": ["x"], "unary": ["tanh(x)"], "operators": 3}},
         "space: only 3 different functions of it pass the screens, a generation needs 6"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=message):
            lock_search(tmp_path, check_search(small(**changes)))
        assert not list(tmp_path.iterdir())


def test_a_study_and_a_search_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    begun(tmp_path / "search")
    (tmp_path / "study").mkdir()
    lock(tmp_path / "study", check(small_study()))
    for command in ("status", "report", "run"):
        assert study.__main__.main([command, str(tmp_path / "search")]) == 2
        assert (
            f"search holds a search: python -m search status {tmp_path}" in capsys.readouterr().err
        )
        assert search.__main__.main([command, str(tmp_path / "study")]) == 2
        assert f"study holds a study: python -m study status {tmp_path}" in capsys.readouterr().err
