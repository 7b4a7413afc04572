"""How far a study is: read from its folder alone."""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

from .budget import STAGE, budget_lines
from .claims import owner
from .packed import read_packed
from .rows import STAGES, runs, state
from .runs import Run, Study
from .words import counted, duration

START = 3.0  # seconds that a run takes besides its training
STATES = ("ok", "running", "waiting", "diverged", "failed")


def status(folder: Path) -> str:
    """Counts for each stage, what runs, what went wrong, and the time left.

    Raises:
        SpecError: the folder holds no study.
    """
    study = Study.read(folder, read_packed(folder))
    known = runs(study)
    lines = [study.spec["question"] or str(folder),
             f"{'stage':<10}" + "".join(f"{each:>10}" for each in STATES)]  # fmt: skip
    for stage, mine in itertools.groupby(known.values(), key=lambda run: run.stage):
        found = [state(study, run) for run in mine]
        counts = "".join(f"{found.count(each):>10}" for each in STATES)
        lines.append(f"{STAGES[stage]:<10}{counts}")
    running = [run for run in known.values() if state(study, run) == "running"]
    lines += [f"running: {_name(study, run)}" for run in running]
    told = [*wrong(study), *budget_lines(study), *_left(study, len(running))]
    return "\n".join([*lines, *told])


def wrong(study: Study) -> list[str]:
    """A line for the diverged and for the failed runs of each arm, with the first one's message."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs(study).values():
        if (word := state(study, run)) in ("diverged", "failed"):
            where = f"{study.label(run.arm, run.cell)}, {STAGES[run.stage]}"
            found.setdefault((word, where), []).append(run)
    lines = []
    for (word, where), each in found.items():
        seeds = ", ".join(map(str, dict.fromkeys(run.seed for run in each)))
        lacks = "is not finite" if word == "diverged" else "is missing"
        other = f"it ended well, but its {study.spec['metric']['name']} {lacks}"
        message = str(study.results[each[0].id].get("message") or other).partition(". ")[0]
        logs = ", ".join(f"runs/{run.id}/log" for run in each)
        lines.append(f"{word}: {where}, {counted(len(each), 'run')}, seed {seeds}: {message} "
                     f"({logs})")  # fmt: skip
    return [*lines, *_versions(study)]


def _versions(study: Study) -> list[str]:
    """A line for each package of which the runs had several versions."""
    known = [found.get("versions") or {} for found in study.results.values()]
    lines = []
    for name in dict.fromkeys(name for each in known for name in each):
        had = sorted({each[name] for each in known if name in each})
        if len(had) > 1:
            lines.append(
                f"the runs had several versions of {name}: {', '.join(had)}. A difference of arms "
                "may come from that; make the study anew with one"
            )
    return lines


def _name(study: Study, run: Run) -> str:
    name = f"{study.label(run.arm, run.cell)}, {STAGES[run.stage]}"
    return f"{name}, seed {run.seed} (runs/{run.id})"


def _left(study: Study, side_by_side: int) -> list[str]:
    """What comes next and how long it takes, and the same up to the last look."""
    stage, missing = study.next_runs()
    if not missing:
        return [f"nothing is left to train: python -m study report {study.folder}"]
    driver = owner(study.folder / "driver")
    jobs = max(side_by_side, 1)
    lines = [f"next: {stage}, {counted(len(missing), 'run')}{_time(study, missing, jobs)}"]
    if not stage.startswith("tuning"):
        every = [study.verdict_run(*arm, s) for s in study.seeds for arm in study.open_arms()]
        rest = [run for run in every if run.id not in study.results]
        lines.append(
            f"at most, if no arm is decided earlier: {counted(len(rest), 'run')} up to "
            f"{len(study.seeds)} seeds{_time(study, rest, jobs)}"
        )
    if not driver:
        lines.append(f"nothing works on it: python -m study run {study.folder}")
    return lines


def _time(study: Study, missing: Sequence[Run], jobs: int) -> str:
    """How long these runs take, from those that have ended."""
    seconds = run_seconds(study)
    if not seconds:
        return ""
    mean = statistics.mean(seconds.values())
    total = sum(length(run) * seconds.get((run.arm, run.cell), mean) for run in missing) / jobs
    return f", about {duration(total)}" + (f" with {jobs} at a time" if jobs > 1 else "")


def run_seconds(study: Study) -> dict[tuple[str, int], float]:
    """Arm and cell -> seconds of a run on the wall, start and test included."""
    found: dict[tuple[str, int], list[float]] = {}
    for run in runs(study).values():
        result = study.results.get(run.id) if run.stage != STAGE else None
        if result and result["status"] == "ok" and result.get("fit_s"):
            found.setdefault((run.arm, run.cell), []).append(result["fit_s"] + START)
    return {key: statistics.median(each) for key, each in found.items()}


def length(run: Run) -> int:
    """Of a run, as a multiple of the study's budget."""
    return 2 if run.stage == STAGE else 1
