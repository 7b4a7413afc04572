"""A function that was found becomes a class, a row among the tests, and a study."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import search.__main__
from activations import Formula
from activations.functions.formula import parse
from callbacks.machine import ROOT
from models import build_backbone
from search.adopt import PLACES, _study, adopt, finite_at_the_end, finite_up_to, kinks, latex
from search.adopt import found as how_found
from search.evolution import EVOLVED, Search
from search.screen import Candidate
from study.spec import SpecError, read_spec
from tests.cases import written
from tests.search.made import begun, finish

FILES = ("activations/__init__.py", "tests/cases.py", "README.md")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Search:
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.2}}
    folder = tmp_path_factory.mktemp("search") / "found"
    search = finish(begun(folder, base=[{"model": {"optimizer": optimizer}}]))
    known = search.streams[EVOLVED].members
    learned = Candidate("x * erf(exp(beta1 * x)) - max(x, 0.5) * tanh(gamma2 * x) + sin(x) / (1 + abs(x + 0.123456789))",
                        {"beta1": 1.0, "gamma2": 1.0})  # fmt: skip
    known.append(replace(known[0], number=18, candidate=learned))
    known.append(replace(known[0], number=19, candidate=Candidate("x * tanh(exp(x))", {})))
    known.append(replace(known[0], number=20, candidate=Candidate("silu(x)", {}, known="SiLU")))
    return search


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_what_is_written_stays_as_it_is_formatted_and_can_be_read(found: Search, root: Path):
    shutil.copy(ROOT / "pyproject.toml", root)
    told = adopt(found, "NewLU", 18, root)
    adopt(found, "FixedLU", 19, root)
    assert "written: activations/functions/newlu.py" in told
    assert "python -m study run configs/study/newlu.yaml --set data.root=DIR" in told
    for name in (*FILES[:2], "activations/functions/newlu.py", "activations/functions/fixedlu.py"):
        compile((root / name).read_text(), name, "exec")
    ruff = [sys.executable, "-m", "ruff", "check", "-q", "--no-cache", "activations"]
    assert subprocess.run(ruff, cwd=root, check=False).returncode == 0
    text = (root / "activations/functions/newlu.py").read_text()
    assert (
        '"x * erf(exp(beta * x)) - max(x, 0.5) * tanh(gamma * x) + sin(x) / (1 + abs(x + ' in text
    )
    assert (
        "Candidate 18 of the search found in a space of its own (Digits, resnet8; seed 0)" in text
    )
    assert "| learned | `NewLU` `CosLU`" in (root / "README.md").read_text()
    assert "| fixed | `FixedLU` `HELU`" in (root / "README.md").read_text()
    assert (
        "per_channel=False" in (root / "tests/cases.py").read_text().partition("A.FixedLU")[2][:90]
    )


def test_the_study_is_on_other_seeds_and_data(found: Search, root: Path):
    adopt(found, "NewLU", 18, root)
    spec = read_spec(root / "configs/study/newlu.yaml")
    assert list(spec["arms"]) == ["ReLU", "SiLU", "EELU-1", "EELU-2", "EELU-3", "EELU-4", "NewLU"]
    assert spec["cells"] == [{"data": "CIFAR10", "model.backbone": "resnet20"}]
    seeds = found.spec["finalists"]["seeds"]
    assert spec["seeds"]["first"] > max(*seeds, found.spec["seed"])
    assert spec["tune"]["grid"] == {"model.optimizer.lr": [0.1, 0.2, 0.4]}  # around the search's


def test_the_study_reads_all_that_the_search_was_given(found: Search, root: Path):
    """Data and learning rate, wherever and however they are written."""
    (member,) = (each for each in found.streams[EVOLVED].members if each.number == 18)
    for base, cell, data, rates in (
        ([{"data": "CIFAR10"}], {}, "CIFAR100", None),
        ([], {"data": "datamodules.CIFAR10", "model.optimizer.lr": 0.5}, "CIFAR100", [0.25, 0.5, 1]),
        ([{"data": {"class_path": "CIFAR10"}}, {"model.optimizer.init_args.lr": "1e-2"}],
         {"data": "CIFAR100"}, "CIFAR10", [0.005, 0.01, 0.02]),
    ):  # fmt: skip
        search: Any = SimpleNamespace(spec={**found.spec, "base": base, "cells": [cell]})
        spec = yaml.safe_load(_study(search, member, "NewLU"))
        assert spec["cells"][0]["data"] == data
        assert (spec["tune"] or {"grid": {"model.optimizer.lr": None}})["grid"] == {
            "model.optimizer.lr": rates
        }


def test_the_study_trains_as_the_cells_of_the_search_do(found: Search):
    (member,) = (each for each in found.streams[EVOLVED].members if each.number == 18)
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001, "weight_decay": 0.3}}
    cell = {"data": "Digits", "model.backbone": "resnet8", "model.optimizer": adam,
            "trainer": {"precision": "bf16-mixed", "max_steps": 9}}  # fmt: skip
    for other in (cell, {**cell, "model.optimizer": adam["class_path"], "model.optimizer.lr": 1e-3,
                         "model.optimizer.init_args.weight_decay": 0.3}):  # fmt: skip
        search: Any = SimpleNamespace(spec={**found.spec, "base": [], "cells": [other]})
        spec = yaml.safe_load(_study(search, member, "NewLU"))
        assert spec["cells"] == [{
            "data": "CIFAR10", "model.backbone": "resnet20", "model.optimizer": adam["class_path"],
            "model.optimizer.weight_decay": 0.3, "trainer.precision": "bf16-mixed",
        }]  # fmt: skip
        assert spec["tune"]["grid"] == {"model.optimizer.lr": [0.0005, 0.001, 0.002]}


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("CosLU", 18, "the name CosLU is taken"),
        ("Quick", 18, "the name Quick is taken, by .*quick.yaml: choose another"),
        ("coslu", 18, "'coslu' is no name of a class"),
        ("Gelu", 18, "the name Gelu is taken"),
        (
            "New-LU",
            18,
            "'New-LU' is no name of a class: a capital, then letters and digits, such as MyLU",
        ),
        ("None", 18, "'None' is no name"),
        ("NewLU", 99, "--number 99: the search has the candidates 0 to 20"),
        ("NewLU", 20, r"#20, silu\(x\), is SiLU, which is there"),
    ],
)
def test_what_cannot_be_adopted_is_named(found: Search, root: Path, name, number, message):
    (root / "configs/study").mkdir(parents=True)
    (root / "configs/study/quick.yaml").touch()
    before = [(root / each).read_text() for each in FILES]
    with pytest.raises(SpecError, match=message):
        adopt(found, name, number, root)
    assert [(root / each).read_text() for each in FILES] == before


def test_a_name_is_adopted_once(found: Search, root: Path):
    adopt(found, "NewLU", 18, root)
    before = tree(root)
    with pytest.raises(SpecError, match=r"the name NewLU is taken, by .*newlu.py: choose another"):
        adopt(found, "NewLU", 19, root)
    assert tree(root) == before


@pytest.mark.parametrize("lost", [*FILES, "configs/study", "activations/functions"])
def test_nothing_is_half_written(found: Search, root: Path, lost: str):
    """One of the five files cannot be written: no other is, and the next try does it all."""
    for folder in ("configs/study", "activations/functions"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    name = {"configs/study": "/newlu.yaml", "activations/functions": "/newlu.py"}.get(lost, "")
    obstacle = root / f"{lost}{name}.part"
    before = tree(root)
    obstacle.mkdir()
    with pytest.raises(OSError, match=rf"cannot write {root / lost}{name}: "):
        adopt(found, "NewLU", 18, root)
    shutil.rmtree(obstacle, ignore_errors=True)  # an unfinished folder is cleared away
    assert tree(root) == before
    assert "written" in adopt(found, "NewLU", 18, root)


def tree(root: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in root.rglob("*") if path.is_file()}


def test_a_search_without_a_winner_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    begun(tmp_path)
    assert search.__main__.main(["adopt", str(tmp_path), "NewLU"]) == 2
    assert "has no winner yet: python -m search run" in capsys.readouterr().err


def test_kinks_are_where_the_slope_jumps():
    assert kinks("max(x, 0.5) + abs(x + beta) * relu6(x)", {"beta": 1.25}) == [-1.25, 0, 0.5, 6]
    assert kinks("x * tanh(exp(x))", {}) == []
    assert kinks("relu(x**3 - 2)", {}) == [round(2 ** (1 / 3), 6)]
    assert kinks("max(x, x) + relu(exp(x))", {}) == []


def test_how_far_a_formula_is_finite():
    half = torch.finfo(torch.float16).max / 16
    assert finite_up_to("x * sigmoid(x)", {}, torch.float16) == half
    for dtype in (torch.float64, torch.float32, torch.float16):
        limit = finite_up_to("x**2 + beta * x", {"beta": 1.0}, dtype)
        x = torch.tensor([-limit, limit], dtype=dtype, requires_grad=True)
        y = Formula("x**2 + beta * x", {"beta": 1.0})(x)
        (y / 64).sum().backward()
        assert y.isfinite().all()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert not (Formula("x**2")(4.0 * x)).isfinite().all() or dtype == torch.float64


def test_whether_a_formula_is_finite_at_the_largest_number():
    """`x**2` overflows as its true value does; the last two overflow on the way to a small one."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for formula in ("x * sigmoid(x)", "x**2", "tanh(x)"):
            assert finite_at_the_end(formula, {}, dtype)
    for dtype in (torch.float32, torch.bfloat16):
        assert not finite_at_the_end("x**2 / (1 + x**2)", {}, dtype)
        assert not finite_at_the_end("tanh(x / beta)", {"beta": 1e-3}, dtype)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("x * erf(exp(beta * x))", r"x\, \mathrm{erf}(e^{\beta\, x})"),
        ("-(x + 1)**2 / abs(x - 0.5)", r"\frac{-{(x + 1)}^{2}}{\left|x - 0.5\right|}"),
        ("x - (alpha2 - x)", r"x - (\alpha_{2} - x)"),
        ("exp(erf(-x)) ** 2", r"{(e^{\mathrm{erf}(-x)})}^{2}"),
        ("(x**2)**3 * (x / 2)**2", r"{({x}^{2})}^{3}\, {(\frac{x}{2})}^{2}"),
        ("max(x, sqrt(2))", r"\mathrm{max}(x, \sqrt{2})"),
        ("abs(x) + 1e-6 - 2.5e8", r"\left|x\right| + 10^{-6} - 2.5 \cdot 10^{8}"),
    ],
)
def test_formulas_in_latex(formula: str, expected: str):
    assert latex(parse(formula)) == expected


def test_the_oracle_of_formulas_bounds_rounding():
    """Errors of float32 stay below the bound, and the bound is no gift: within 100 times."""
    x = np.linspace(-9, 9, 4001, dtype=np.float32)
    for formula in ("x * erf(exp(x))", "tanh(x)**2 / (1 + abs(x))", "exp(x) - exp(x + 1e-3)"):
        exact, bound = written(formula)(x.astype(np.float64), {})
        single, _ = written(formula)(x, {})
        error = np.abs(single.astype(np.float64) - exact)
        bound = np.finfo(np.float32).eps * bound
        assert (error <= 4 * bound + 1e-37).all()
        assert error.max() > bound.max() / 100


@pytest.mark.parametrize("backbone", sorted(set(PLACES.values())))
def test_the_networks_of_the_studies_exist(backbone: str):
    with torch.device("meta"):
        assert build_backbone(backbone, 4) is not None


def test_what_a_search_says_of_itself_is_no_code(found: Search):
    member = found.streams[EVOLVED].members[0]
    spec, evil = found.spec, 'Digits""";open("x","w");r"""'
    spec = {**spec, "cells": [{**spec["cells"][0], "data": evil}]}
    other: Any = SimpleNamespace(spec=spec, pending=["x"], folder=found.folder)
    text = how_found(other, member)
    assert '"' not in text
    assert "\\" not in text
    assert "Digits" in text
