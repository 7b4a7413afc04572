"""All runs of a study, in one order: its stages, and one row a run."""

import math
from collections.abc import Iterator
from typing import Any

from .budget import STAGE, compared, measured, words
from .claims import owner
from .runs import CLAIM, Run, Study, read_prepared, split

STAGES = {"tune": "tuning", "budget": "budget", "verdict": "verdict", "control": "controls"}


def runs(study: Study) -> dict[str, Run]:
    """Id -> run, of all that ended, are prepared or run, in the order of stage, cell, arm, seed.

    A prepared run that no verdict needs any more is left out. A control that is the same run as
    another one, such as ReLU at equal time, is there once.
    """
    needed, prepared = {run.id for run in study.next_runs()[1]}, read_prepared(study.folder)
    begun = study.results.keys() | {k for k in prepared if k in needed or _works(study, k)}
    found: dict[str, Run] = {}
    for run in _planned(study):
        if run.id in begun:
            found.setdefault(run.id, run)
    return found


def _planned(study: Study) -> Iterator[Run]:
    yield from study.tuning()
    for cell in study.cells:
        yield from (double for _, double in compared(study, cell))
    for cell in study.cells:
        for arm in study.spec["arms"]:
            yield from (study.verdict_run(arm, cell, seed) for seed in study.seeds)
    for arm, cell, n in study.controlled():
        controls = (study.control_run(arm, cell, seed) for seed in study.seeds[:n])
        yield from (run for run in controls if run)


def state(study: Study, run: Run) -> str:
    """Ok, diverged, failed, running or waiting."""
    known = study.status(run)
    if known != "missing":
        return known
    return "running" if _works(study, run.id) else "waiting"


def _works(study: Study, key: str) -> bool:
    return owner(study.folder / "runs" / key / CLAIM) is not None


def rows(study: Study) -> list[dict[str, Any]]:
    """One row a run; runs in the folder that belong to no stage, such as the judge's, come last."""
    known, about = runs(study), read_prepared(study.folder)
    table = [_row(study, run, state(study, run)) for run in known.values()]
    about = {k: each for k, each in about.items() if k in study.results or each["stage"] == "judge"}
    for key in sorted((study.results.keys() | about.keys()) - known.keys()):
        spec = about.get(key) or study.results[key]
        stage = "judge" if spec.get("stage") == "judge" else "other"
        run = Run(stage, spec.get("arm", "?"), spec.get("cell", 0), spec.get("seed") or 0, {})
        status = study.results[key]["status"] if key in study.results else "waiting"
        table.append(_row(study, run, status, key))
    for cell in study.cells:
        gain = measured(study, cell)
        budget = words(study, cell) + (", short" if gain and gain.short else "")
        other = {STAGES[STAGE]: words(study, cell, 2)}
        for row in table:
            if row["cell"] == cell and "same_time" not in row["arm"]:  # its column `epochs` tells
                row["budget"] = other.get(row["stage"], budget)
    return table


def _row(study: Study, run: Run, status: str, key: str = "") -> dict[str, Any]:
    found = study.results.get(key or run.id) or {}
    cells, settings = study.spec["cells"], study.settings
    options = cells[run.cell] if run.cell < len(cells) else {}
    setting = settings[run.setting] if run.setting < len(settings) else {}
    last = {name: value for each in found.get("epochs") or [] for name, value in each.items()}
    machine = (found.get("machine") or {}).get("processor", found.get("processor"))
    metric = study.value(run) if not key else math.nan
    return {
        "id": key or run.id,
        "stage": STAGES.get(run.stage, run.stage),
        # at the same time it is the baseline that is trained
        "arm": f"{study.spec['baseline']} ({run.arm})"
        if split(run.arm)[1] == "same_time"
        else run.arm,
        "data": options.get("data"),
        "backbone": options.get("model.backbone"),
        "cell": run.cell,
        "seed": run.seed,
        "setting": ", ".join(f"{name}={value}" for name, value in setting.items()),
        "status": status,
        "message": found.get("message"),
        study.spec["metric"]["name"]: None if math.isnan(metric) else metric,
        **{name: value for name, value in last.items() if name.startswith("val/")},
        **{
            f"{at} {name}": value
            for at, tests in (found.get("test") or {}).items()
            for name, value in tests.items()
        },
        "budget": None,
        "train_samples": found.get("train_samples"),
        "epochs": len(found.get("epochs") or []),
        **{n: found.get(n) for n in ("parameters", "fit_s", "cpu_s", "images_per_s")},
        **{n: found.get(n) for n in ("start", "end", "code", "commit", "dirty")},
        "machine": machine,
        "attempt": _attempt(study, key or run.id),
    }


def _attempt(study: Study, key: str) -> int | None:
    """The number of the attempt that gave the result; None for a packed run."""
    found = (study.folder / "runs" / key).glob("attempt_*")
    numbers = [int(each.name.rpartition("_")[2]) for each in found]
    return max(numbers, default=None)
