"""The most useful findings in a sentence each, for the README; what is known of their causes."""

from collections import Counter
from collections.abc import Sequence

from callbacks.machine import ROOT

from .budget import scope
from .lines import EXPLORATORY, verdict_lines
from .runs import Study
from .spec import read_yaml
from .verdict import DECIDED, Kind, Verdict

NOTES = ROOT / "results/notes.yaml"


def notes(study: Study) -> dict[str, str]:
    """Arm -> why its verdict is as it is, as far as that was measured."""
    return read_yaml(NOTES).get(study.folder.name, {}) if NOTES.is_file() else {}


def highlights(studies: Sequence[Study]) -> list[str]:
    """How many functions are better, which is best and worst and why; which equal one costs most.

    Three at most.
    """
    found = [
        (study, *place, verdict)
        for study in studies
        for place, verdict in zip(study.hypotheses(), study.verdicts(), strict=True)
        if verdict.interval and verdict.kind in DECIDED
    ]
    if not found:
        return ["No study has a verdict yet."]
    count = Counter(study.folder.name for study, *_ in found)
    largest = max(studies, key=lambda study: count[study.folder.name])
    lines = [_counts(largest, [verdict for study, *_, verdict in found if study is largest])]
    for kind in (Kind.BETTER, Kind.WORSE):
        if decided := [each for each in found if each[-1].kind is kind]:
            study, arm, _, verdict = max(decided, key=lambda each: abs(_difference(each[-1])))
            known = [f"{_told(study, verdict)}.", notes(study).get(arm)]
            lines.append(" ".join(filter(None, known)))
    costly = [
        (study.ratios().get(f"{arm}/{cell}", 0.0), _told(study, verdict))
        for study, arm, cell, verdict in found
        if verdict.kind is Kind.EQUIVALENT
    ]
    if len(lines) < 3 and costly and (most := max(costly, key=lambda each: each[0]))[0]:
        lines.append(
            f"{most[1]}; its training step takes {most[0]:.2f} times as long with that "
            "study's options (fused functions take less: docs/performance.md)."
        )
    return lines


def _told(study: Study, verdict: Verdict) -> str:
    return verdict_lines(study, [verdict])[0]


def _counts(study: Study, verdicts: Sequence[Verdict]) -> str:
    """How many functions of a study have each verdict."""
    kinds = Counter(verdict.kind for verdict in verdicts)
    told = ", ".join(
        f"{kinds[kind] or 'none'} {kind.value}"
        for kind in (Kind.BETTER, Kind.EQUIVALENT, Kind.WORSE, Kind.UNDECIDED)
    )
    pairs = [verdict.interval.n for verdict in verdicts if verdict.interval]
    where = "; ".join(", ".join(scope(study, cell)) for cell in study.cells)
    mark, base = EXPLORATORY if study.lock["amendments"] else "", study.spec["baseline"]
    return (
        f"{mark}Of {len(verdicts)} comparisons with {base} ({where}; {min(pairs)} to {max(pairs)} "
        f"seeds, margin {study.spec['margin']:g} {study.rules.unit}): {told}."
    )


def _difference(verdict: Verdict) -> float:
    return verdict.interval.difference if verdict.interval else 0.0
