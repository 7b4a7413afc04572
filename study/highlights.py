"""The most useful findings in a sentence each, for the README; what is known of their causes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from callbacks.machine import ROOT

from .budget import scope
from .lines import EXPLORATORY, on_new_images, verdict_lines
from .runs import Study
from .spec import read_yaml
from .verdict import Kind, Verdict
from .words import counted

NOTES = ROOT / "results/notes.yaml"


def notes(study: Study) -> dict[str, str]:
    """Arm -> why its verdict is as it is, as far as that was measured."""
    return read_yaml(NOTES).get(study.folder.name, {}) if NOTES.is_file() else {}


def highlights(studies: Sequence[Study]) -> list[str]:
    """How many functions are better, which is best and worst and why; which equal one costs most.

    Three at most. What holds on other test data, too, comes first. An arm that has the functions of
    its baseline, trained in another way, is no finding about functions.
    """
    found = [
        (study, *place, verdict)
        for study in studies
        for place, verdict in zip(study.hypotheses(), study.verdicts(), strict=True)
        if verdict.kind is not Kind.TOO_FEW
        and _functions(study, *place) != _functions(study, study.spec["baseline"], place[1])
    ]
    if not found:
        return ["No study has a verdict yet."]
    count = Counter(study.folder.name for study, *_ in found)
    largest = max(studies, key=lambda study: count[study.folder.name])
    lines = [_counts(largest, [verdict for study, *_, verdict in found if study is largest])]
    for kind in (Kind.BETTER, Kind.WORSE):
        if decided := [each for each in found if each[-1].kind is kind]:
            study, arm, cell, verdict = max(decided, key=_rank)
            known = [f"{_told(study, verdict)}.", _elsewhere(study, arm, cell, verdict)]
            known.append(notes(study).get(arm, ""))
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


def _functions(study: Study, arm: str, cell: int) -> list[Any]:
    """What decides which functions an arm has."""
    names = ("model.activation", "model.activation_by_site")
    return [study.given(name, arm, cell) for name in names]


def _rank(found: tuple[Study, str, int, Verdict]) -> tuple[bool, float]:
    """Whether a verdict is the same on other test data, and the size of its difference."""
    verdict, elsewhere = found[-1], on_new_images(*found)
    return elsewhere is not None and elsewhere.kind is verdict.kind, _size(verdict)


def _told(study: Study, verdict: Verdict) -> str:
    return verdict_lines(study, [verdict])[0]


def _counts(study: Study, verdicts: Sequence[Verdict]) -> str:
    """How many functions of a study have each verdict."""
    kinds = Counter(verdict.kind for verdict in verdicts)
    always = (Kind.BETTER, Kind.EQUIVALENT, Kind.WORSE, Kind.UNDECIDED)
    rest = (kind for kind in kinds if kind not in always)
    told = ", ".join(f"{kinds[kind] or 'none'} {kind.value}" for kind in (*always, *rest))
    pairs = [v.interval.n if v.interval else v.pairs for v in verdicts]
    where = "; ".join(", ".join(scope(study, cell)) for cell in study.cells)
    mark, base = EXPLORATORY if study.lock["amendments"] else "", study.spec["baseline"]
    return (
        f"{mark}Of {counted(len(verdicts), 'comparison')} with {base} ({where}; {min(pairs)} to "
        f"{max(pairs)} seeds, margin {study.spec['margin']:g} {study.rules.unit}): {told}."
    )


def _size(verdict: Verdict) -> float:
    """The difference in margins, which do not depend on the unit."""
    return abs(verdict.interval.difference) / verdict.rules.margin if verdict.interval else 0.0


def _elsewhere(study: Study, arm: str, cell: int, verdict: Verdict) -> str:
    """What the difference is on other test data of the kind, if that is not the same verdict."""
    seen = on_new_images(study, arm, cell, verdict)
    if seen is None or seen.kind is verdict.kind:
        return ""
    return (
        f"On other {seen.thing} of this kind it is {seen.kind.value}: [{seen.low:+z.2f}, "
        f"{seen.high:+z.2f}]."
    )
