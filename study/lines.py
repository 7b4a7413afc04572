"""What a study says, in plain words: a line for each verdict and for what stands beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from .crossed import METRICS, NewImages, new_images
from .packed import read_samples
from .runs import Study
from .verdict import Kind, Verdict
from .words import counted

EXPLORATORY = "(exploratory) "
AT_THE_EDGE = "At the edge of the grid, so that a wider one might be better"
UNTUNED = (
    "Not tuned: all arms have the same learning rate, which may suit one better than another. "
    "`tune` in the spec gives each its own."
)


def tuning_lines(study: Study) -> list[str]:
    """The setting that the tuning chose for each arm, and what the verdicts owe to that choice."""
    tune = study.spec["tune"]
    if not tune:
        return [UNTUNED]
    if any(study.status(run) == "missing" for run in study.tuning()):
        return []
    chosen: dict[int, list[str]] = {}
    for cell in study.cells:
        for arm in study.spec["arms"]:
            chosen.setdefault(study.tuned(arm, cell)[0], []).append(study.label(arm, cell))
    edge = set(at_the_edge(study))
    listed = []
    for number, arms in sorted(chosen.items()):
        mark = " (the edge of the grid)" if edge.issuperset(arms) else ""
        listed.append(f"{setting_name(study.settings[number])}{mark}: {', '.join(arms)}")
    seeds = counted(len(tune["seeds"]), "seed")
    wider = " At the edge of the grid a wider one might be better." if edge else ""
    return [
        f"Chosen for each arm by {tune['metric']} of {seeds}: {'; '.join(listed)}.{wider} The "
        "verdicts are about these settings; no interval holds the chance in this choice."
    ]


def setting_name(setting: Mapping[str, Any]) -> str:
    """A setting of the grid in short, such as "lr 0.1"."""
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in setting.items())


def at_the_edge(study: Study) -> list[str]:
    """The arms whose chosen setting is the first or last of a grid of one option."""
    last = len(study.settings) - 1
    if last < 2 or len(study.spec["tune"]["grid"]) > 1:
        return []
    places = [(arm, cell) for cell in study.cells for arm in study.spec["arms"]]
    return [study.label(*each) for each in places if study.tuned(*each)[0] in (0, last)]


def verdict_lines(study: Study, verdicts: Sequence[Verdict]) -> list[str]:
    """A sentence for each verdict; exploratory once the question was changed after its lock."""
    mark = EXPLORATORY if study.lock["amendments"] else ""
    return [mark + each.sentence() for each in verdicts]


def new_image_lines(study: Study) -> list[str]:
    """What each difference is worth on other images of this kind, or why that is not known."""
    metric = study.spec["metric"]["name"]
    name = metric.removeprefix("test/")
    if name not in METRICS:
        return [f"On new images: not computed for {metric}, only for {', '.join(METRICS)}."]
    found = []
    for (arm, cell), each in zip(study.hypotheses(), study.verdicts(), strict=True):
        if each.interval is None or each.kind in (Kind.IDENTICAL, Kind.UNSTABLE, Kind.HELD):
            continue
        estimate = on_new_images(study, arm, cell, each)
        found.append(
            f"{each.arm} on new images: not known, since samples of the test are missing "
            f"(test.npz{'; packed results keep no probabilities' if name == 'auroc' else ''})"
            if estimate is None
            else estimate.sentence()
        )
    return found


def on_new_images(study: Study, arm: str, cell: int, verdict: Verdict) -> NewImages | None:
    """The estimate from the predictions of the seeds that the verdict rests on, if it is known."""
    key = arm, cell, verdict.interval
    if key not in study.estimates:  # it takes a second
        study.estimates[key] = _estimate(study, arm, cell, verdict)
    return study.estimates[key]


def _estimate(study: Study, arm: str, cell: int, verdict: Verdict) -> NewImages | None:
    metric = study.spec["metric"]["name"].removeprefix("test/")
    if verdict.interval is None or metric not in METRICS:
        return None
    base, known = study.spec["baseline"], None
    outputs: dict[str, list] = {arm: [], base: []}
    wanted = "probability" if metric == "auroc" else "predicted"
    for name, seed in ((name, s) for s in study.seeds[: verdict.interval.n] for name in outputs):
        samples = read_samples(study, study.verdict_run(name, cell, seed).id)
        known = known or samples
        if samples is None or known is None or len(samples["label"]) != len(known["label"]):
            return None
        if (samples["label"] != known["label"]).any():
            return None
        if wanted not in samples:
            return None
        outputs[name].append(samples[wanted])
    assert known is not None
    return new_images(
        known["label"], outputs[base], outputs[arm], study.rules, verdict.interval.level,
        METRICS[metric], known.get("group"),
        (verdict.arm, verdict.baseline), "records" if "group" in known else "images",
    )  # fmt: skip


def published(study: Study, arm: str, cell: int) -> float | None:
    """The difference that was published for an arm in a cell, in points."""
    value = study.spec["published"].get(arm, {}).get("difference")
    value = value[cell] if isinstance(value, list) else value
    return None if value is None else float(value)
