"""What the judge says of one study: with its own noise, its own runs, and hidden arms.

Hidden arms show in no verdict of the study. `again` is the baseline once more, with other seeds: a
verdict on it is false. `planted` is the baseline with 95% of the epochs, at least one less, and the
same seeds.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from .judge import Judgement, Noise, judge, splits
from .packed import read_packed
from .runs import Run, Study
from .spec import HIDDEN, SpecError
from .verdict import Kind, Rules, Runs, Verdict, family
from .words import counted

USUAL = 0.25
"""Deviation of a run over seeds, in points, of full trainings on CIFAR-10."""
PART = 0.95  # of the epochs of the planted arm
FOUND = 0.95  # of the studies find 0.5 points at the usual deviation


def judge_folder(folder: Path | None) -> str:
    """The lines on a study; without a folder, on usual noise with one arm and with four.

    Raises:
        SpecError: the folder holds no study.
    """
    if folder is not None:
        return "\n".join(judge_study(Study.read(folder, read_packed(folder))))
    rules, told = Rules(margin=0.3), []
    made = {arms: judge(Noise.alike(USUAL, arms), rules) for arms in (1, 4)}
    for arms, each in made.items():
        told.append(f"{counted(arms, 'arm')}, runs that deviate by {USUAL} points, "
                    "looks at 5, 8, 12, 20:")  # fmt: skip
        told.append(f"  {each.sentence()}")
    return "\n".join([*told, _bars(list(made.values()))])


def _bars(made: list[Judgement]) -> str:
    """Whether the rules keep what this project asks of them."""
    false = max(each.false / each.studies for each in made)
    found = min(each.power[0.5].better for each in made)
    kept = all(each.passed for each in made) and found >= FOUND
    return (
        f"Bars {'kept' if kept else 'MISSED'}: a false verdict in at most 5% of the studies "
        f"({100 * false:.1f}%), 0.5 points found in at least {100 * FOUND:.0f}% "
        f"({100 * found:.1f}%)"
    )


def judge_study(study: Study) -> list[str]:
    """The lines on a study: hidden arms and splits, where there are runs; last, the simulation."""
    return [*_hidden_lines(study), *_split_lines(study), *_simulated(study)]


def _simulated(study: Study) -> list[str]:
    asked = study.hypotheses()
    try:
        parts = [
            Noise.measured(
                study.runs_of(study.spec["baseline"], cell),
                [study.runs_of(arm, cell) for arm, at in asked if at == cell],
            )
            for cell in study.cells
        ]
    except ValueError:  # too few runs
        unit = study.rules.unit
        noise, source = Noise.alike(USUAL, len(asked)), f"a deviation of {USUAL} {unit}, assumed"
    else:
        noise = Noise(
            np.concatenate([np.full(len(each.arms), each.baseline) for each in parts]),
            np.concatenate([each.arms for each in parts]),
            np.concatenate([each.correlations for each in parts]),
        )
        source = "its own noise"
    made = judge(noise, study.rules)
    return [f"{made.sentence()}; simulated with {source}, K = {len(asked)}"]


def _split_lines(study: Study) -> list[str]:
    """Splits of the baseline's runs in each cell, those of the hidden arm `again` too."""
    told = []
    for cell in study.cells:
        runs = [*_values(study.runs_of(study.spec["baseline"], cell)), *_again(study, cell)]
        looks = tuple(n for n in study.rules.looks if 2 * n <= len(runs))
        if not looks:
            continue
        found = splits(runs, replace(study.rules, looks=looks))
        where = "" if len(study.spec["cells"]) == 1 else f" in cell {cell + 1}"
        which = ", ".join(map(str, looks))
        told.append(f"{found.sentence()} (looks {which}{where})")
    return told


def _values(runs: Runs) -> list[float]:
    return [float(each) for each in runs.values if math.isfinite(each)]


def _again(study: Study, cell: int) -> list[float]:
    name = f"{study.spec['baseline']} {HIDDEN[0]}"
    runs = [run for run in hidden_runs(study, len(study.seeds)) if run.cell == cell]
    values = (study.value(run) for run in runs if run.arm == name and study.status(run) == "ok")
    return [each for each in values if math.isfinite(each)]


# ---- hidden arms


def hidden_runs(study: Study, seeds: int = 0) -> list[Run]:
    """The runs of the hidden arms, by default for the seeds that the baseline has run.

    Raises:
        SpecError: the baseline has run too few, or its budget is no number of epochs.
    """
    base, found = study.spec["baseline"], []
    for cell in study.cells:
        ended = len(_values(study.runs_of(base, cell)))
        count = seeds or max((n for n in study.rules.looks if n <= ended), default=0)
        if not count:
            raise SpecError(
                f"{study.folder}: {base} has {ended} runs, the judge needs "
                f"{study.rules.looks[0]}: go on with python -m study run {study.folder}"
            )
        first = max([*study.seeds, *(study.spec["tune"] or {}).get("seeds", [])]) + 1
        plain = [study.verdict_run(base, cell, first + number) for number in range(count)]
        found += [replace(run, stage="judge", arm=f"{base} {HIDDEN[0]}") for run in plain]
        paired = [study.verdict_run(base, cell, seed) for seed in study.seeds[:count]]
        epochs = paired[0].options.get("trainer.max_epochs")
        if type(epochs) is int and epochs > 1:
            changes = {"trainer.max_epochs": min(epochs - 1, round(PART * epochs))}
            found += [
                replace(run, stage="judge", arm=f"{base} {HIDDEN[1]}",
                        options={**run.options, **changes})
                for run in paired
            ]  # fmt: skip
    return found


def _hidden_lines(study: Study) -> list[str]:
    """The verdicts on the hidden arms whose runs have ended."""
    runs = hidden_runs(study, len(study.seeds))
    told, base = [], study.spec["baseline"]
    for cell in study.cells:
        for kind in HIDDEN:
            mine = [run for run in runs if run.cell == cell and run.arm == f"{base} {kind}"]
            if any(run.id in study.results for run in mine):
                values = [study.value(run) for run in mine]
                status = tuple(study.status(run) for run in mine)
                known = [v if s == "ok" else math.nan for v, s in zip(values, status, strict=True)]
                arm = Runs(study.label(f"{base} {kind}", cell), np.array(known), status)
                found = family(study.runs_of(base, cell), [arm], study.rules)[0]
                told.append(f"Judge, {_meaning(study, mine[0], found)}: {found.sentence()}")
    return told


def _meaning(study: Study, run: Run, found: Verdict) -> str:
    told = found.kind in (Kind.BETTER, Kind.WORSE)
    if run.arm.endswith(HIDDEN[0]):
        return f"hidden arm with other seeds, {'A FALSE VERDICT' if told else 'no false verdict'}"
    usual = study.run("verdict", study.spec["baseline"], run.cell, run.seed, 0)
    part, whole = (each.options["trainer.max_epochs"] for each in (run, usual))
    return f"planted arm with {part} of {whole} epochs, {'found' if told else 'not found'}"
