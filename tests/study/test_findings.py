"""What was learned, as the packed studies say it."""

import csv
import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

from activations import APA
from callbacks.machine import ROOT
from study import packed
from study.findings import findings
from study.packed import pack
from study.publish import read_studies
from study.runs import Study, write_about
from study.shapes import (
    CHANGE,
    RELU,
    Learned,
    defaults,
    learned,
    made,
    natural,
    parameters,
    properties,
)
from study.spec import SpecError, check, lock

from .made import result, small, write

ARMS: dict[str, dict[str, Any]] = {
    "ReLU": {"model.activation": "torch.nn.ReLU"},
    "CosLU": {"model.activation": "CosLU", "model.activation.alpha": 0.5},
    "FReLU": {"model.activation": "FReLU", "model.share": "channel"},
    "LSLU": {"model.activation": "LSLU"},
    "PELU": {"model.activation": "PELU"},
    "PReLU": {"model.activation": "torch.nn.PReLU"},
    "AGLU": {"model.activation": "AGLU"},
}


def start(arm: str, **numbers: list[float]) -> dict[str, Any]:
    """Each parameter of an arm's activation before training, from learned `numbers`."""
    known = [made(ARMS[arm], "act1", numbers, seed) for seed in (0, 1)]
    found = Learned(["act1"], [known[0]], [known[1]], [[known[0]]])
    return {name: each.start[0].tolist() for name, each in parameters(found).items()}


def test_the_values_before_training_are_those_of_the_class():
    assert start("CosLU", alpha=[7.0], beta=[7.0]) == {"alpha": [0.5], "beta": [1.0]}
    assert start("LSLU", theta=[7.0] * 3) == {"theta": [1, 1, 1], "omega": [0, 0, 0]}
    assert np.isnan(start("AGLU", kappa=[7.0])["kappa"]).all()  # drawn
    assert start("PReLU", weight=[7.0, 7.0]) == {"weight": [0.25]}


def test_a_start_that_was_fitted_to_a_network_is_not_known(tmp_path: Path):
    arms = {**ARMS, "PReLU": {**ARMS["PReLU"], "model.match": "true"}}
    lock(tmp_path, check(small(arms=arms, seeds={"looks": [5]})))
    study = Study.read(tmp_path)
    run = study.verdict_run("PReLU", 0, study.seeds[0])
    write(study, run, result(90, run.seed, learned={"act1.weight": [0.5]}))
    found = learned(Study.read(tmp_path), "PReLU", 0)
    values, (change, share) = parameters(found)["weight"], properties(found).values()
    assert values.end.tolist() == [[[0.5]]]
    assert np.isnan([values.start.item(), change.end.item(), share.start.item()]).all()
    bent = 1 - 2 / np.pi  # the variance of |x|; f is 0.75 x + 0.25 |x|, and ReLU is 0.5 of both
    wanted = (0.375 + 0.125 * bent) ** 2 / ((0.75**2 + 0.25**2 * bent) * (0.25 + 0.25 * bent))
    assert share.end.item() == pytest.approx(wanted, rel=2e-3)


def test_a_start_is_the_default_that_was_locked(tmp_path: Path):
    """Not that of today's class; what an arm names itself wins."""
    arms = {"ReLU": ARMS["ReLU"], "CosLU": {"model.activation": "CosLU"}, "own": ARMS["CosLU"]}
    spec = check(small(arms=arms, seeds={"looks": [5]}))
    assert defaults(spec) == {"CosLU": {"alpha": 1.0, "beta": 1.0}}
    lock(tmp_path, spec)
    write_about(tmp_path, {"defaults": {"CosLU": {"alpha": 3.0, "beta": 4.0}}})
    study = Study.read(tmp_path)
    for arm in ("CosLU", "own"):
        run = study.verdict_run(arm, 0, study.seeds[0])
        write(study, run, result(90, run.seed, learned={"act1.alpha": [2.0], "act1.beta": [2.0]}))
    found = [parameters(learned(Study.read(tmp_path), arm, 0)) for arm in ("CosLU", "own")]
    starts = [[each[name].start.item() for name in ("alpha", "beta")] for each in found]
    assert starts == [[3.0, 4.0], [0.5, 4.0]]


def test_what_was_faded_in_has_the_site_of_the_old_function(tmp_path: Path):
    fade = {"model.activation": "CosLU", "model.match": "fade"}
    lock(tmp_path, check(small(arms={**ARMS, "CosLU": fade}, seeds={"looks": [5]})))
    study = Study.read(tmp_path)
    run = study.verdict_run("CosLU", 0, study.seeds[0])
    values = {"layer1.0.act1.new.alpha": [0.25], "layer1.0.act1.new.beta": [2.0]}
    write(study, run, result(90, run.seed, learned=values))
    found = learned(Study.read(tmp_path), "CosLU", 0)
    assert found.sites == ["layer1.0.act1"]
    assert parameters(found)["alpha"].end.item() == 0.25


def test_an_own_class_is_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "its_lab.py").write_text("import torch\n\nclass CosLU(torch.nn.PReLU):\n    pass\n")
    arms = {"ReLU": ARMS["ReLU"], "CosLU": {"model.activation": "its_lab.CosLU"}}
    assert defaults(check(small(arms=arms))) == {}
    own = made(arms["CosLU"], "act1", {"weight": [1.0]})
    assert type(own).__module__ == "its_lab"
    with pytest.raises(SpecError, match=r"'gone.CosLU' of act1 cannot be made here"):
        made({"model.activation": "gone.CosLU"}, "act1", {"weight": [1.0]})


def test_another_activation_has_its_own_arguments(tmp_path: Path):
    """Not those of the overlay's; what cannot be made is told."""
    named = {"class_path": "CosLU", "init_args": {"alpha": 0.5}}
    arms = {"ReLU": ARMS["ReLU"], "PReLU": {"model.activation": "torch.nn.PReLU"}}
    lock(tmp_path, check(small(arms=arms, base=[{"model": {"activation": named}}])))
    study = Study.read(tmp_path)
    run = study.verdict_run("PReLU", 0, study.seeds[0])
    write(study, run, result(90, run.seed, learned={"act1.weight": [2.0]}))
    found = parameters(learned(Study.read(tmp_path), "PReLU", 0))
    assert found["weight"].start.item() == 0.25
    with pytest.raises(SpecError, match="'CosLU' of act1 cannot be made: "):
        made({"model.activation": "CosLU", "model.activation.gamma": 1}, "act1", {"alpha": [1.0]})


def test_a_function_that_the_base_or_the_cell_names_is_found(tmp_path: Path):
    named = {"class_path": "CosLU", "init_args": {"alpha": 0.5}}
    arms = {"ReLU": {"model.share": "model"}, "other": {"model.share": "site"}}
    spec = check(small(arms=arms, base=[{"model": {"activation": named}}], seeds={"looks": [5]}))
    assert defaults(spec) == {"CosLU": {"alpha": 1.0, "beta": 1.0}}
    lock(tmp_path, spec)
    study = Study.read(tmp_path)
    run = study.verdict_run("other", 0, study.seeds[0])
    write(study, run, result(90, run.seed, learned={"act1.alpha": [2.0], "act1.beta": [2.0]}))
    found = parameters(learned(Study.read(tmp_path), "other", 0))
    assert [found[name].start.item() for name in ("alpha", "beta")] == [0.5, 1.0]


def test_each_site_has_the_class_that_its_name_chooses():
    chosen = {"model.activation_by_site": {"*.gate": "APA", "*": "torch.nn.PReLU"}}
    assert isinstance(made(chosen, "layer1.se.gate", {"lambd": [1.0]}), APA)
    assert isinstance(made(chosen, "layer1.act", {"weight": [1.0]}), nn.PReLU)
    assert sorted(["layer10.act", "act1", "layer2.act"], key=natural) == [
        "act1",
        "layer2.act",
        "layer10.act",
    ]


def test_how_far_a_function_moved_and_how_much_of_relu_is_in_it():
    """Against integrals over the standard normal distribution, by quadrature."""
    numbers = [{"a": [2.0], "b": [-1.0]}, {"a": [1.0], "b": [1.0]}]
    last = [[made(ARMS["FReLU"], "act1", each)] for each in numbers]
    for (module,), each in zip(last, numbers, strict=True):
        module.load_state_dict({name: torch.tensor(value) for name, value in each.items()})
    begin = [made(ARMS["FReLU"], "act1", numbers[0])]
    found = properties(Learned(["act1"], begin, begin, last))

    def mean(f: Callable[[float], float]) -> float:
        left, right = (quad(lambda x: f(x) * norm.pdf(x), *ends)[0] for ends in ((-9, 0), (0, 9)))
        return left + right

    def correlation(f: Callable[[float], float], g: Callable[[float], float]) -> float:
        a, b = mean(f), mean(g)
        both = mean(lambda x: (f(x) - a) * (g(x) - b))
        return both / (mean(lambda x: (f(x) - a) ** 2) * mean(lambda x: (g(x) - b) ** 2)) ** 0.5

    def line(a: float, b: float) -> Callable[[float], float]:
        return lambda x: (a if x > 0 else b) * x

    for place, after in enumerate((line(2.0, -1.0), line(1.0, 1.0))):
        change = mean(lambda x, f=after: (f(x) - line(1.0, 0.01)(x)) ** 2) ** 0.5
        share = correlation(after, line(1.0, 0.0)) ** 2
        assert found[CHANGE].end[place].item() == pytest.approx(change, rel=5e-3)
        assert found[RELU].end[place].item() == pytest.approx(share, rel=5e-3)


def test_means_over_seeds_and_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed, "KEPT", tmp_path / "kept")
    lock(tmp_path / "mine", check(small(arms=ARMS, seeds={"looks": [5]})))
    study = Study.read(tmp_path / "mine")
    runs = study.next_runs()[1]
    study.prepare(runs)
    values = {
        "CosLU": lambda s: {"act1.alpha": [s], "act1.beta": [1.0], "act2.alpha": [2 * s], "act2.beta": [3.0]},
        "FReLU": lambda s: {"act1.a": [s, s + 2], "act1.b": [0.0, 1.0]},
        "LSLU": lambda s: {"act1.theta": [s, 1.0, 7.0], "act1.omega": [0.0, 0.0, 0.5]},
        "ReLU": lambda s: {},
        "PELU": lambda s: {"act1.a": [2.0], "act1.b": [0.6 - s]},  # used as 0.1 at least
        "PReLU": lambda s: {"act1.weight": [s]},
        "AGLU": lambda s: {"act1.lambd": [-s], "act1.kappa": [1.0]},
    }  # fmt: skip
    for run in runs:
        ends = values[run.arm](float(run.seed % 1000))
        write(study, run, result(90, run.seed, learned=ends))
    pack(study.folder)
    marks = "<!-- written by python -m study findings -->\n", "<!-- end of findings -->\n"
    (tmp_path / "findings.md").write_text(f"# Findings\n\n{marks[0]}old\n{marks[1]}\nBy hand.\n")
    text = findings(tmp_path, tmp_path)
    page = (tmp_path / "findings.md").read_text()
    assert "old" not in page
    assert page.endswith("\nBy hand.\n")
    assert "| PELU | b | 1 | 0.2 ± 0.22 |  |  | 5 |" in page
    names = [f"findings_mine_{name}.png" for name in ("values", "functions", "changes")]
    assert text == f"{tmp_path}/learned.csv.gz: 31 rows; {tmp_path}: {', '.join(names)}"
    for name in names:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with gzip.open(tmp_path / "learned.csv.gz", "rt") as file:
        rows = {tuple(row[n] for n in ("function", "parameter", "layer", "term")): row
                for row in csv.DictReader(file)}  # fmt: skip
    assert rows["CosLU", "alpha", "2", "1"]["mean"] == "4"  # seeds 0 to 4, twice
    assert rows["CosLU", "alpha", "2", "1"]["deviation"] == "3.2"
    assert rows["CosLU", "alpha", "1", "1"]["start"] == "0.5"
    assert rows["FReLU", "a", "1", "1"]["mean"] == "3"
    assert rows["PELU", "b", "1", "1"]["mean"] == "0.2"  # 0.6, and four times the bound
    assert rows["AGLU", "lambd", "1", "1"]["mean"] == "0.0001"
    assert rows["AGLU", "lambd", "1", "1"]["start"] == ""
    assert [rows["LSLU", "theta", "1", term]["mean"] for term in "123"] == ["2", "1", "7"]


def test_the_numbers_of_the_page_are_those_of_its_tables():
    text, _, tables = (ROOT / "docs/findings.md").read_text().partition("## Tables")
    heads = ["start", "elsewhere", "inside a block", "last"]
    count = 0
    for section in text.split("\n## "):
        named = re.search(r"numbers are those of `(\w+)`", " ".join(section.split()))
        study = f"### {named[1] if named else 'digits_elementwise'}\n"
        known = tables.partition(study)[2].partition("\n### ")[0]
        words = " ".join(section.split())
        quoted = re.findall(r"(-?[\d.]+) \(([\w .]+), ([a-z ]+)\)", words)
        for number, name, group in quoted:
            rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| (.*) \|$", known, re.M)
            (row,) = (rest for arm, parameter, rest in rows if f"{arm} {parameter}" == name)
            value = float(row.split(" | ")[heads.index(group)].partition(" ")[0])
            decimals = len(number.partition(".")[2])
            assert float(number) == pytest.approx(value, abs=0.6 * 10**-decimals), name
        count += len(quoted)
    assert count > 35


def test_the_tables_in_the_repository_are_those_of_the_packed_studies():
    """One function for all: `python -m study findings` takes half a minute."""
    study = next(each for each in read_studies() if each.folder.name == "digits_elementwise")
    found = parameters(learned(study, "PReLU", 0))["weight"].end
    with gzip.open(ROOT / "results/learned.csv.gz", "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["study"] == study.folder.name]
    means = [
        row["mean"] for row in rows if (row["function"], row["parameter"]) == ("PReLU", "weight")
    ]
    assert means == [f"{each:.4g}" for each in found.mean(0)[:, 0]], "run: python -m study findings"
