"""What was learned, as the packed studies say it."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study import packed
from study.findings import findings, starts
from study.packed import pack
from study.runs import Study
from study.spec import check, lock

from .made import result, small, write

ARMS: dict[str, dict[str, Any]] = {
    "ReLU": {"model.activation": "torch.nn.ReLU"},
    "CosLU": {"model.activation": "CosLU", "model.activation.alpha": 0.5},
    "FReLU": {"model.activation": "FReLU", "model.share": "channel"},
    "LSLU": {"model.activation": "LSLU"},
}


def test_the_values_before_training_are_those_of_the_class():
    assert starts(ARMS["ReLU"]) == {}
    assert starts(ARMS["CosLU"]) == {"alpha": [0.5], "beta": [1.0]}
    assert {n: each.tolist() for n, each in starts(ARMS["LSLU"]).items()} == {
        "theta": [1, 1, 1], "omega": [0, 0, 0],
    }  # fmt: skip
    assert np.isnan(starts({"model.activation": "AGLU"})["kappa"]).all()  # drawn
    assert starts({"model.activation": "torch.nn.PReLU"}) == {"weight": [0.25]}


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
    }  # fmt: skip
    for run in runs:
        learned = values[run.arm](float(run.seed % 1000))
        write(study, run, result(90, run.seed, learned=learned))
    pack(study.folder)
    text = findings(tmp_path, tmp_path)
    assert text == f"{tmp_path}/learned.csv: 12 rows; {tmp_path}: findings_mine.png"
    assert (tmp_path / "findings_mine.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "learned.csv").open() as file:
        rows = {tuple(row[n] for n in ("function", "parameter", "layer", "term")): row
                for row in csv.DictReader(file)}  # fmt: skip
    assert rows["CosLU", "alpha", "2", "1"]["mean"] == "4"  # seeds 0 to 4, twice
    assert rows["CosLU", "alpha", "2", "1"]["deviation"] == "3.2"
    assert rows["CosLU", "alpha", "1", "1"]["start"] == "0.5"
    assert rows["FReLU", "a", "1", "1"]["mean"] == "3"
    assert [rows["LSLU", "theta", "1", term]["mean"] for term in "123"] == ["2", "1", "7"]
