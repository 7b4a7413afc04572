"""What a study will cost and what it can tell, before it starts."""

import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from callbacks.results import FILE

from .arms import quiet
from .budget import compared
from .cost import alone
from .lines import UNTUNED
from .packed import read_packed
from .power import smallest_difference
from .runs import Run, Study
from .spec import LOCK, SpecError, read_lock, sha256
from .status import START, length, run_seconds
from .verdict import Runs
from .words import duration
from .work import train_run

PILOT = 120.0  # seconds at most, for each cell
DEVIATIONS = (0.25, 0.5, 1.0)  # of runs, in points
SHORT = 2.0  # seconds of training steps in a short training of the pilot


def plan(folder: Path, spec: dict[str, Any], seconds: float = PILOT) -> str:
    """Runs of each stage, hours, and the smallest difference that each look can tell.

    The time of a run is that of the runs that have ended in `folder`, if there are some, else of a
    pilot that ends in time: see :func:`pilot`.

    Args:
        folder: of the study; it need not exist.
        spec: checked.
        seconds: the most that the pilot takes for each cell.

    Raises:
        SpecError: `folder` holds another, damaged study; or the data or the network of the spec
            cannot be made.
    """
    study = Study(folder, {"spec": spec, "amendments": []})
    if (folder / LOCK).is_file() and read_lock(folder)["sha256"] == sha256(spec):
        study = Study.read(folder, read_packed(folder))
    times, source = run_seconds(study), "runs that have ended"
    if not times:
        times, source = pilot(study, seconds * len(study.cells))
    return "\n".join([*_runs(study, times, source), "", *_power(study)])


def _runs(study: Study, times: dict[tuple[str, int], float], source: str) -> list[str]:
    looks, cells = study.spec["seeds"]["looks"], study.cells
    arms = [(arm, cell) for cell in cells for arm in study.spec["arms"]]
    stages: list[tuple[str, list[Run]]] = [("tuning", list(study.tuning()))]
    stages.append(("twice the budget", [run for c in cells for _, run in compared(study, c)]))
    for before, look in zip([0, *looks], looks, strict=False):
        runs = [study.run("verdict", a, c, s, 0) for s in study.seeds[before:look] for a, c in arms]
        stages.append((f"seeds {before + 1} to {look}", runs))
    mean = sum(times.values()) / len(times) if times else 0.0
    lines, total, count = [f"{'stage':<18}{'runs':>6}{'one at a time':>18}"], 0.0, 0
    for name, runs in stages:
        if runs:
            took = sum(length(run) * times.get((run.arm, run.cell), mean) for run in runs)
            total, count = total + took, count + len(runs)
            lines.append(f"{name:<18}{len(runs):>6}{duration(took) if times else '?':>18}")
    lines.append(f"{'all, at most':<18}{count:>6}{duration(total) if times else '?':>18}")
    if study.spec["controls"]:
        lines.append(
            f"controls ({', '.join(study.spec['controls'])}): as many runs again as the seeds of "
            "each arm that is better or worse, for each control"
        )
    lines.append("Arms that are decided at an early look need no later runs.")
    lines += [] if study.spec["tune"] else [UNTUNED]
    told = f"The time of a run is known from {source}; {START:g} s are for its start and its test."
    return [*lines, told]


def _power(study: Study) -> list[str]:
    """The smallest true difference that each look finds in 80% of studies."""
    rules, unit = study.rules, study.rules.unit
    hypotheses = len(study.hypotheses())
    levels = rules.levels(hypotheses)[:, 0]
    known = measured(study)
    pairs = {f"{each:g}": each * 2**0.5 for each in DEVIATIONS}
    if known:
        pairs = {"measured": known}
    head = "".join(f"{name:>10}" for name in pairs)
    lines = [f"Smallest true difference, in {unit}, that a look finds in 80% of studies"]
    if known:
        lines.append(f"(the deviation of a pair's difference, measured: {known:.2f} {unit})")
    else:
        lines.append("by the deviation of an arm's runs over seeds, pairs without correlation")
    lines.append(f"{'look':<18}{head}")
    for n, level in zip(rules.looks, levels, strict=True):
        found = "".join(f"{smallest_difference(n, s, float(level)):>10.2f}" for s in pairs.values())
        lines.append(f"{f'{n} seeds':<18}{found}")
    return [*lines, f"with {hypotheses} hypotheses, alpha {rules.alpha:g}, margin {rules.margin:g}"]


def measured(study: Study) -> float | None:
    """The deviation of a pair's difference: the mean over arms and cells with 3 pairs or more."""
    found = []
    for arm, cell in study.hypotheses():
        base, new = study.runs_of(study.spec["baseline"], cell), study.runs_of(arm, cell)
        differences = _differences(base, new)
        if len(differences) > 2:
            found.append(differences.var(ddof=1))
    return float(np.mean(found) ** 0.5) or None if found else None


def _differences(base: Runs, new: Runs) -> Any:
    both = base.are("ok") & new.are("ok")
    return new.values[both] - base.values[both]


def pilot(study: Study, seconds: float) -> tuple[dict[tuple[str, int], float], str]:
    """Arm and cell -> seconds of a run, and the words for where they are from.

    Three short trainings of the baseline in each cell tell what a run, an epoch and a batch take;
    a batch of another arm takes as much longer as its training step does. All is made in a process
    of its own, which is ended when the time is over.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "steps.json"
        process = context.Process(target=_pilot, args=(study.spec, file, seconds / 3))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
        if not file.is_file():
            return {}, f"nothing: a pilot of {seconds:g} s did not end, or failed (see above)"
        rows = json.loads(file.read_text())
    if isinstance(rows, str):
        raise SpecError(rows)
    found = {(row["arm"], row["cell"]): START + row["fit_s"] for row in rows}
    return found, "a pilot on this machine: short trainings of the baseline, and steps of all arms"


def _pilot(spec: dict[str, Any], file: Path, seconds: float) -> None:
    """Measure in a process of its own, or write what is wrong with the spec."""
    from .cost import measure

    study = Study(file.parent, {"spec": spec})
    try:
        rows = measure(study, seconds)
        for cell in study.cells:
            mine = [row for row in rows if row["cell"] == cell]
            base = next(row for row in mine if row["arm"] == spec["baseline"])
            fixed, epoch, batch = _parts(study, base)
            for row in mine:
                step = batch + (row["step_ms"] - base["step_ms"]) / 1e3
                row["fit_s"] = fixed + row["epochs"] * (epoch + row["batches"] * step)
    except (OSError, ValueError) as error:
        rows = str(error)
    file.with_suffix(".part").write_text(json.dumps(rows))
    file.with_suffix(".part").replace(file)


def _parts(study: Study, base: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds that a training of the baseline takes once, in each epoch, and for each batch.

    With `e` epochs of `n` batches it takes `once + e (epoch + n batch)`: three trainings tell all.
    """
    step = base["step_ms"] / 1e3
    few = max(1, min(base["batches"] // 2, round(SHORT / step)))
    epochs = max(3, round(SHORT / step / few))
    one = _seconds(study, base, 1, few)
    some = _seconds(study, base, epochs, few)
    double = _seconds(study, base, epochs, 2 * few)
    whole = max((some - one) / (epochs - 1), 0.0)  # an epoch of few batches
    batch = min(max((double - some) / epochs, 0.0), whole) / few
    return max(one - whole, 0.0), whole - few * batch, batch


def _seconds(study: Study, base: dict[str, Any], epochs: int, batches: int) -> float:
    """What a training of the baseline takes, on the clock of :func:`study.cost.measure`."""
    changes = {"trainer.max_epochs": epochs, "trainer.max_steps": -1,
               "trainer.limit_train_batches": batches}  # fmt: skip
    arm, cell = study.spec["baseline"], base["cell"]
    run = study.run("tune", arm, cell, study.seeds[0], 0, changes=changes)
    with tempfile.TemporaryDirectory() as name, quiet() as told:
        folder = Path(name)
        about = {"base": run.base, "arguments": run.arguments,
                 "compiled": run.compiled}  # fmt: skip
        code, _ = train_run(folder, folder / "attempt_1", about)
        if code:
            raise SpecError(told.getvalue().partition("error: ")[2].partition("\n")[0])
        found = json.loads((folder / "attempt_1" / FILE).read_text())
    return found["cpu_s" if alone(base["device"]) else "fit_s"]
