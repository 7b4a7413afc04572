"""Searches made by hand: a small spec, and results as train.py leaves them."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from callbacks.machine import code
from search.evolution import Search
from search.screen import NEAR
from search.spec import check_search
from study.runs import Run
from study.spec import lock, read_lock

TARGET = np.maximum(NEAR.numpy(), 0) - 0.3 * np.exp(-(NEAR.numpy() ** 2))


def small(**changes: Any) -> dict[str, Any]:
    """What a user writes, with `changes` of its fields."""
    spec = {
        "space": {"preset": "eelu", "operators": 4},
        "cells": [{"data": "Digits", "model.backbone": "resnet8"}],
        "generations": 3, "children": 6, "population": 8, "tournament": 3, "surrogate": False,
        "halving": {"epochs": [1, 2], "keep": 3},
        "finalists": {"number": 2, "seeds": [101, 102]},
    }  # fmt: skip
    return {**spec, **changes}


def begun(folder: Path, **changes: Any) -> Search:
    """A search that is locked and not trained."""
    folder.mkdir(parents=True, exist_ok=True)
    lock(folder, check_search(small(**changes)))
    return Search(folder, read_lock(folder))


def worth(run: Run) -> float:
    """Accuracy of a run: how near its function is to a target, by length and seed."""
    from activations import Formula

    if run.options["model.activation"] != "Formula":
        return 0.5
    made = Formula(run.options["model.activation.formula"],
                   run.options.get("model.activation.constants"))  # fmt: skip
    y = made(NEAR.float()).detach().double().numpy()
    near = np.corrcoef(y, TARGET)[0, 1] if np.ptp(y) else 0.0
    seed = 1e-3 * (run.seed % 7) * (1 + abs(near))
    return 0.5 * abs(near) + 0.01 * run.options["trainer.max_epochs"] + seed


def train(search: Search, run: Run, status: str = "ok", value: float | None = None) -> None:
    """Write the results of a run."""
    value = worth(run) if value is None else value
    content = {
        "schema": 1, "status": status, "message": "", "seed": run.seed, "code": code(),
        "epochs": [{"epoch": 0, "val/acc": value}], "best": None, "learned": {}, "test": {},
        "fit_s": 7.0, "config": {},
    }  # fmt: skip
    folder = search.folder / "runs" / run.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content))


def finish(search: Search, order: int = 0) -> Search:
    """Train all that comes next, in a random order, some at a time."""
    rng = random.Random(order)
    while runs := search.next_runs():
        for run in rng.sample(runs, rng.randint(1, len(runs)) if order else len(runs)):
            train(search, run)
    return search
