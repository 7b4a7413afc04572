"""Studies made by hand: a small spec, and results as train.py leaves them."""

import json
from typing import Any

import numpy as np

from callbacks.machine import code
from study.budget import compared
from study.runs import Run, Study


def small(**changes: Any) -> dict[str, Any]:
    """What a user writes, with `changes` of its fields."""
    spec = {
        "question": "Which is best?",
        "arms": {
            "ReLU": {"model.activation": "torch.nn.ReLU"},
            "SiLU": {"model.activation": "torch.nn.SiLU"},
            "CosLU": {"model.activation": "CosLU"},
        },
        "cells": [{"data": "Digits", "model.backbone": "resnet8"}],
        "seeds": {"first": 1000, "looks": [5, 8]},
        "budget": {"trainer.max_epochs": 2},
    }
    return {**spec, **changes}


def result(value: float, seed: int = 0, status: str = "ok", **more: Any) -> dict[str, Any]:
    """What a run leaves whose test accuracy is `value` points."""
    return {
        "schema": 1, "status": status, "message": "", "config": {}, "seed": seed, "code": code(),
        "epochs": [{"epoch": 1, "val/acc": value / 100}], "best": None, "learned": {},
        "test": {"last": {"test/acc": value / 100}} if status == "ok" else {}, **more,
    }  # fmt: skip


def write(study: Study, run: Run, content: dict[str, Any]) -> None:
    """Put a result into the folder of a run, as if it had ended."""
    folder = study.folder / "runs" / run.id
    folder.mkdir(parents=True, exist_ok=True)
    if content["test"]:
        probability = np.eye(3, dtype=np.float32)[[0, 1, 2, run.seed % 3]]
        label = np.array([0, 1, 2, run.cell])
        np.savez(folder / "test.npz", index=np.arange(4), label=label, probability=probability)
    (folder / "results.json").write_text(json.dumps(content))


def checked(study: Study, gain: float = 0.0) -> Study:
    """Give the baseline's runs at twice the budget 90 points and a gain; read again."""
    for cell in range(len(study.spec["cells"])):
        for _, double in compared(study, cell):
            write(study, double, result(90 + gain, double.seed, test={}))
    return Study.read(study.folder)


def answer(study: Study, values: dict[str, float], noise: float = 0.1, **more: Any) -> Study:
    """Give each run that comes next the value of its arm, with a little noise; read again."""
    for run in study.next_runs()[1]:
        wave = np.random.default_rng([run.seed, *run.arm.encode()]).normal()
        write(study, run, result(values[run.arm] + noise * wave, run.seed, **more))
    return Study.read(study.folder)
