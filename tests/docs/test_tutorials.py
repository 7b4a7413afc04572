"""The tutorials: their blocks run, in order, as a reader runs them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import train

ROOT = Path(__file__).parents[2]
PYTHON = [sys.executable, "-W", "error", "-c"]


def blocks(page: str, language: str) -> str:
    """All blocks of a language as one script."""
    text = (ROOT / "docs/tutorials" / page).read_text()
    return "".join(re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


def run(folder: Path, *command: str, **variables: str) -> str:
    """What a command prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_own_loop(tmp_path: Path):
    script = blocks("own_loop.md", "python")
    script += "\nimport sys; assert 'lightning' not in sys.modules\n"
    printed = run(tmp_path, *PYTHON, script)
    accuracy = re.search(r"accuracy: ([\d.]+)", printed)
    assert accuracy
    assert float(accuracy[1]) > 0.6  # a guess gives 0.33
    assert "DSReLU(slope=0.5)" in printed
    assert (tmp_path / "stripes.pt").exists()


def test_own_data_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    code = blocks("own_modules.md", "python").partition("from functools")[0]
    (tmp_path / "that/folder").mkdir(parents=True)
    (tmp_path / "that/folder/stripes.py").write_text(code)
    command = blocks("own_modules.md", "bash").replace("\\\n", "")
    path, python, program, *arguments = shlex.split(command)
    assert (python, program) == ("python", "train.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(path.removeprefix("PYTHONPATH="))
    train.main([*arguments, "--trainer.accelerator", "cpu"])
    printed = capsys.readouterr().out
    assert float(re.findall(r"^test +accuracy ([\d.]+)", printed, re.M)[0]) > 0.9
    run_folder = tmp_path / "runs/Stripes-resnet8-CosLU/version_0"
    weight = torch.load(run_folder / "checkpoints/last.ckpt")["state_dict"]["backbone.conv1.weight"]
    assert weight.shape[1] == 1  # what the module said, not the default


def test_question_to_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The shell's `python` notes its arguments, with which the program then runs in this process."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" > {tmp_path}/$$.call\n")
    python.chmod(0o755)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    run(tmp_path, "bash", "-ec", blocks("question_to_figure.md", "bash") + "wait\n", PATH=path)
    calls = [file.read_text().split("\0")[:-1] for file in tmp_path.glob("*.call")]
    monkeypatch.chdir(tmp_path)
    for program, *arguments in calls:
        assert program == "train.py"
        train.main(arguments)
    printed = run(tmp_path, *PYTHON, blocks("question_to_figure.md", "python"))
    assert re.search(r"CosLU +0\.\d+ +0\.\d+ +2", printed)
    assert (tmp_path / "question.png").stat().st_size > 10_000
    found = {file.name for file in (tmp_path / "runs/Swish/seed1").iterdir()}
    assert {"activations.png", "parameters.png", "activations.csv", "metrics"} <= found
