"""Is the budget long enough? The baseline alone is trained twice as long, and compared."""

import math
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from callbacks.machine import ROOT

from .spec import flatten
from .words import counted

if TYPE_CHECKING:
    from .runs import Run, Study

STAGE = "budget"
SHORT = 1.0  # points that the double budget gains; of a loss, the margin
WORD = "SHORT BUDGET"
_UNITS = {"trainer.max_steps": "step", "trainer.max_epochs": "epoch"}
# of a scheduler
_MOVES = {"milestones", "step_size", "step_size_up", "step_size_down", "T_max", "T_0",
          "total_iters", "total_steps"}  # fmt: skip


class Gain(NamedTuple):
    """What the baseline gains on validation; NaN if a run has no value."""

    gain: float
    """Above 0 if twice the budget is better."""
    usual: float
    """The mean at the study's budget."""
    double: float
    """The mean at twice the budget."""
    limit: float
    """From which gain on the budget is short."""

    @property
    def short(self) -> bool:
        """Whether the verdicts belong to a short budget."""
        return self.gain >= self.limit


def limits(study: "Study", cell: int, times: float = 1) -> dict[str, int]:
    """The options that end a run, as they are for all arms of a cell, or so many times as much."""
    spec, found = study.spec, dict[str, Any]()
    for options in (_usual(), *spec["base"], spec["cells"][cell], spec["budget"]):
        found |= flatten(options)
    return {
        name: _times(n, times) for name in _UNITS if type(n := found.get(name)) is int and n > 0
    }


@cache
def _usual() -> dict[str, Any]:
    """The options that train.py has by default."""
    return yaml.safe_load((ROOT / "configs/base.yaml").read_text())


def words(study: "Study", cell: int, times: float = 1) -> str:
    """The budget as people say it, such as "20 epochs"."""
    found = (counted(n, _UNITS[name]) for name, n in limits(study, cell, times).items())
    return next(found, "no limit")


def scope(study: "Study", cell: int) -> list[str]:
    """To what a verdict belongs: data, network, training samples, budget, and if it is short."""
    runs = [run for pair in compared(study, cell) for run in pair]
    counts = (study.results.get(run.id, {}).get("train_samples") for run in runs)
    count = next((f"{each:,} training samples" for each in counts if each), None)
    gain = measured(study, cell)
    return [
        *study.place(cell),
        *([count] if count else []),
        words(study, cell),
        *([WORD] if gain and gain.short else []),
    ]


def compared(study: "Study", cell: int) -> "list[tuple[Run, Run]]":
    """Pairs of the baseline's runs of one seed: at the budget, and at twice the budget.

    The seeds are those of the tuning, else the first two of the verdict.
    """
    spec = study.spec
    base, setting = spec["baseline"], study.tuned(spec["baseline"], cell)[0]
    stage = "tune" if spec["tune"] else "verdict"
    seeds = spec["tune"]["seeds"] if spec["tune"] else study.seeds[:2]
    double = limits(study, cell, 2)
    return [
        (
            study.run(stage, base, cell, seed, setting),
            study.run(STAGE, base, cell, seed, setting, changes=double, times=2),
        )
        for seed in seeds
    ]


def stretched(value: Any, times: float, place: str = "") -> Any:
    """Options in which the learning rate changes after so many times as many epochs or steps.

    `place` is the name of the option that `value` is.
    """
    if times == 1:
        return value
    if isinstance(value, dict):
        return {name: stretched(each, times, f"{place}.{name}") for name, each in value.items()}
    last = place.rpartition(".")[2]
    if last in _MOVES or (last == "epochs" and "lr_scheduler" in place):  # of OneCycleLR
        return _times(value, times)
    return [stretched(each, times, place) for each in value] if isinstance(value, list) else value


def _times(value: Any, times: float) -> Any:
    if isinstance(value, list):
        return [_times(each, times) for each in value]
    return max(1, round(times * value)) if type(value) is int else value


def measured(study: "Study", cell: int) -> Gain | None:
    """What twice the budget gains; None before all its runs have ended, unless one went wrong."""
    pairs, metric = compared(study, cell), metric_of(study)
    ended = (study.results.get(run.id) for pair in pairs for run in pair)
    if any(found and found["status"] != "ok" for found in ended):  # others may be needless by now
        return Gain(math.nan, math.nan, math.nan, math.nan)
    if any(run.id not in study.results for pair in pairs for run in pair):
        return None
    loss = metric.endswith("loss")
    sign, scale = (-1, 1) if loss else (1, 100)
    usual, double = (
        scale * sum(study.last(run, metric) for run in runs) / len(runs)
        for runs in zip(*pairs, strict=True)
    )
    limit = study.spec["margin"] if loss else SHORT
    return Gain(sign * (double - usual), usual, double, limit)


def metric_of(study: "Study") -> str:
    """The validation metric: that of the tuning, else the verdict's; a loss for a loss alone."""
    mine = study.spec["metric"]["name"].replace("test/", "val/", 1)
    tuned = study.spec["tune"]["metric"] if study.spec["tune"] else mine
    return tuned if tuned.endswith("loss") == mine.endswith("loss") else mine


def budget_lines(study: "Study") -> list[str]:
    """A line for each cell: the budget, and what the baseline gains with twice as much."""
    base, metric, lines = study.spec["baseline"], metric_of(study), []
    for cell in study.cells:
        found = measured(study, cell)
        place = ", ".join(each for each in scope(study, cell) if each != WORD)
        if found is None:
            told = f"not checked yet; {words(study, cell, 2)} of {base} are trained for it"
        elif math.isnan(found.gain):
            told = f"not known, since a run of {base} diverged, failed or lacks {metric}"
        else:
            unit = "nats" if metric.endswith("loss") else "points"
            told = (
                f"{WORD if found.short else 'long enough'}: {metric} of {base} is "
                f"{found.usual:.2f}, and {found.double:.2f} with {words(study, cell, 2)}: "
                f"{found.gain:+z.2f} {unit} (short from {found.limit:g} on)"
            )
        lines.append(f"Budget ({place}): {told}")
    return lines
