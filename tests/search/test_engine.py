"""The whole engine with real trainings: killed twice, it goes on to the same result."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from callbacks.machine import ROOT
from search.evolution import Search
from tests.study.test_engine import FEW, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="kills processes by signals"),
]
SPEC: dict[str, Any] = {
    "space": {"preset": "swish", "operators": 3},
    "cells": [{"data": "Digits", "model.backbone": "resnet8", "trainer.limit_train_batches": 2,
               "trainer.limit_val_batches": 1, "trainer.num_sanity_val_steps": 0}],
    "generations": 2, "children": 2, "population": 4, "tournament": 2, "halving": {"epochs": [1]},
    "references": {"ReLU": {"model.activation": "torch.nn.ReLU"}},
    "finalists": {"number": 1, "seeds": [101, 102]},
}  # fmt: skip


def start(folder: Path) -> subprocess.Popen[str]:
    folder.with_suffix(".yaml").write_text(yaml.safe_dump(SPEC))
    line = [sys.executable, "-m", "search", "run", str(folder.with_suffix(".yaml"))]
    line += ["--dir", str(folder), "--jobs", "2"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(line, cwd=ROOT, **pipes)


def ended(folder: Path) -> int:
    return len(list(folder.glob("runs/*/results.json")))


def result(folder: Path) -> tuple[list[Any], list[str]]:
    search = Search.read(folder)
    members = [
        (m.candidate.formula, m.parents, m.values)
        for s in search.streams.values()
        for m in s.members
    ]
    return members, (folder / "report.md").read_text().splitlines()[2:8]


def test_a_search_that_was_killed_goes_on_to_the_same(tmp_path: Path):
    whole = start(tmp_path / "whole")
    text = whole.communicate(timeout=FEW)[0]
    assert whole.returncode == 0, text
    assert "generation 2 of 2, rung 1 of 1 (1 epoch)" in text
    assert "The winner is #" in text
    folder = tmp_path / "killed"
    for enough in (1, 6):
        process = start(folder)
        until(lambda n=enough: ended(folder) >= n)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout
        process.stdout.close()
    process = start(folder)
    text = process.communicate(timeout=FEW)[0]
    assert process.returncode == 0, text
    assert result(folder) == result(tmp_path / "whole")
