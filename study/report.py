"""The report of a study: one page for a reader, one table for a program, one for a paper."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from activations.files import replacing

from . import figures
from .budget import budget_lines
from .cost import about_steps
from .judged import judge_study
from .latex import latex
from .learned import learned_functions
from .lines import (
    AT_THE_EDGE,
    UNTUNED,
    at_the_edge,
    new_image_lines,
    published,
    setting_name,
    verdict_lines,
)
from .page import (
    Block,
    code,
    folded,
    heading,
    html,
    listed,
    markdown,
    paragraph,
    picture,
    tabled,  # fmt: skip
)
from .power import pairing
from .ranks import rank_blocks
from .rows import rows
from .runs import Study
from .spec import SpecError
from .status import wrong
from .verdict import Verdict

SHOWN = 6  # verdicts beside the main ones
FORMATS = ("md", "html", "latex")
_SCOPE = (
    "A verdict holds for this budget, these data and this network; it does not say what longer "
    "training, other data or another network would give. Undecided does not mean equal: equal is "
    "called equivalent, and only within the margin."
)
_IMAGES = (
    "The verdict speaks of this test set, and of other seeds. These lines speak of other test sets "
    "of this kind, too: both seeds and images are samples."
)


def report(study: Study, formats: Sequence[str] = FORMATS) -> str:
    """Write the report of `study` into its folder; the lines to print.

    `results.csv` and the figures are always written.

    Args:
        study: read, with all results.
        formats: md, html, latex.

    Raises:
        ValueError: a format is unknown.
    """
    if unknown := [each for each in formats if each not in FORMATS]:
        raise ValueError(f"no format {unknown[0]!r}: choose from {', '.join(FORMATS)}")
    folder, table, verdicts = study.folder, rows(study), study.verdicts()
    lines = verdict_lines(study, verdicts)
    judged = judge_study(study)
    with replacing(folder / "results.csv") as unfinished:
        pd.DataFrame(table).to_csv(unfinished, index=False)
    if "latex" in formats:
        _write(folder / "results.tex", latex(study, verdicts))
    if {"md", "html"} & set(formats):
        title = study.spec["question"] or f"The study {folder.resolve().name}"
        page = _page(study, table, verdicts, lines, judged)
        if "md" in formats:
            _write(folder / "report.md", markdown(title, page))
        if "html" in formats:
            _write(folder / "report.html", html(title, page))
    written = {"md": "report.md", "html": "report.html", "latex": "results.tex"}
    names = ", ".join([*(written[each] for each in formats), "results.csv"])
    return "\n".join([*lines, *budget_lines(study), f"written into {folder}: {names}", *judged])


def _write(path: Path, text: str) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(text)


def _page(
    study: Study,
    table: list[dict[str, Any]],
    verdicts: list[Verdict],
    lines: list[str],
    judged: list[str],
) -> list[Block]:
    spec, lock = study.spec, study.lock
    changes = [
        f"The question was changed after its lock, on {_minute(amended['time'])} UTC, because: "
        f"{amended['why']} (changed: {', '.join(amended['changed'])}). From then on every verdict "
        "is exploratory."
        for amended in lock["amendments"]
    ]
    page: list[Block] = [
        paragraph(_about(study)),
        listed(lines, verdicts=True),
        *map(paragraph, changes),
    ]
    page += map(paragraph, budget_lines(study))
    page += [paragraph(_SCOPE), _intervals(study, verdicts)]
    if images := new_image_lines(study):
        many = len(images) > SHOWN
        block = folded(f"all {len(images)} lines", [listed(images)]) if many else listed(images)
        page += [heading("On new images"), paragraph(_IMAGES), block]
    for each in spec["second_baselines"]:
        if each != spec["baseline"]:
            page += [heading(f"Against {each}"), *_beside(study, study.verdicts(each))]
    if controls := study.control_verdicts():
        shown = [(each, None) for each in controls]
        caption = "The same picture for the controls."
        page += [heading("Controls"), paragraph(_controls(spec["controls"]))]
        page += [*_beside(study, controls), _interval_picture(study, "controls", shown, caption)]
    page += map(paragraph, study.uncontrolled())
    page += [*rank_blocks(study), heading("The judge"), listed(judged)]
    if spec["published"]:
        page += [heading("Published and here"), *_published(study, verdicts)]
    page += [heading("Figures"), *_pictures(study, verdicts)]
    page += [heading("All values"), _values(study, verdicts)]
    page += [heading("Tuning"), *(_tuning(study) if spec["tune"] else [paragraph(UNTUNED)])]
    page += [heading("Runs and their cost"), *_cost(study, table)]
    lock_text = yaml.safe_dump({k: v for k, v in lock.items() if k != "spec"}, sort_keys=False)
    return [
        *page,
        folded(f"All {len(table)} runs", [_runs(study, table)]),
        folded("The locked question", [
            code(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)), code(lock_text),
        ]),
    ]  # fmt: skip


def _beside(study: Study, verdicts: list[Verdict]) -> list[Block]:
    """Verdicts that stand beside the main ones; many are counted, and shown on request."""
    lines = listed(verdict_lines(study, verdicts), verdicts=True)
    if len(verdicts) <= SHOWN:
        return [lines]
    kinds = [each.kind.value for each in verdicts]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return [folded(f"{counts}: all {len(kinds)} lines", [lines])]


def _about(study: Study) -> str:
    """What was compared, in one paragraph."""
    spec = study.spec
    arms = [arm for arm in spec["arms"] if arm != spec["baseline"]]
    cells = "; ".join(", ".join(study.place(cell)) for cell in study.cells)
    budget = ", ".join(
        f"{name.removeprefix('trainer.').removeprefix('max_')}: {value}"
        for name, value in spec["budget"].items()
    )
    at = {"last": "of the last epoch", "best": "of the epoch that is best on validation"}
    several = "es" if len(arms) * len(spec["cells"]) > 1 else "is"
    return (
        f"{', '.join(arms)} against {spec['baseline']}, on {cells}. Budget of every run: "
        f"{budget or 'that of the base file'}. Compared is {spec['metric']['name']} "
        f"{at[spec['metric']['at']]}, by pairs of runs of the same seed; margin "
        f"{spec['margin']:g} {study.rules.unit}; "
        f"the chance of a false verdict is at most {100 * spec['alpha']:g}% over all looks "
        f"(at {', '.join(map(str, spec['seeds']['looks']))} seeds) and all "
        f"{len(arms) * len(spec['cells'])} hypothes{several} together."
    )


def _controls(controls: Sequence[str]) -> str:
    told = {
        "frozen": "frozen: the function stays as it is at the start",
        "retrained": "retrained: the shape that the same seed has learned is used from the start "
        "and does not change",
        "same_time": "same_time: the function as it is, but against a baseline that trained for as "
        "much longer as the arm's steps take longer",
    }
    return f"{'; '.join(told[each] for each in controls)}. Each is compared with the baseline."


def _interval(verdict: Verdict) -> str:
    seen = verdict.interval
    if seen is None:
        return f"{verdict.mean:+z.2f}" if math.isfinite(verdict.mean) else "none"
    return seen.numbers


def _published(study: Study, verdicts: list[Verdict]) -> list[Block]:
    """The published differences beside those of this study, and where they are from."""
    sources, body = study.spec["published"], []
    for (arm, cell), verdict in zip(study.hypotheses(), verdicts, strict=True):
        if arm in sources:
            value = published(study, arm, cell)
            known = "none" if value is None else f"{value:+.2f}"
            body.append([verdict.arm, known, _interval(verdict), verdict.kind.value])
    unit = study.rules.unit
    columns = ["arm", f"published, {unit}", f"here, {unit} [interval]", "verdict"]
    texts = [f"{arm}: {each['text']}" for arm, each in sources.items() if each.get("text")]
    return [tabled(columns, body), *([listed(texts)] if texts else [])]


def _values(study: Study, verdicts: list[Verdict]) -> Block:
    """Mean and deviation of each arm in each cell."""
    told = dict(zip(study.hypotheses(), verdicts, strict=True))
    body = []
    for cell in study.cells:
        for arm in study.spec["arms"]:
            runs = study.runs_of(arm, cell)
            values = runs.values[runs.are("ok")]
            verdict = told.get((arm, cell))
            body.append([
                runs.name, mean_deviation(values), len(values),
                int(runs.are("diverged").sum()), int(runs.are("failed").sum()),
                *([_interval(verdict), *_pairing(study, arm, cell), verdict.kind.value]
                  if verdict else ["", "", "", "baseline"]),
            ])  # fmt: skip
    unit = study.rules.unit
    columns = ["arm", f"{study.spec['metric']['name']}, {unit}: mean ± deviation", "runs",
               "diverged", "failed", f"difference, {unit} [interval]", "correlation over seeds",
               "its gain", "verdict"]  # fmt: skip
    return tabled(columns, body)


def _pairing(study: Study, arm: str, cell: int) -> tuple[str, str]:
    """The correlation with the baseline over seeds, and what the pairs are worth by it."""
    base, new = study.runs_of(study.spec["baseline"], cell), study.runs_of(arm, cell)
    both = base.are("ok") & new.are("ok")
    if both.sum() < 4 or (base.values - new.values)[both].std() == 0:
        return "", ""
    found = pairing(base.values[both], new.values[both])
    if not math.isfinite(found.correlation):
        return "", ""
    return (
        f"{found.correlation:+.2f} [{found.low:+.2f}, {found.high:+.2f}]",
        f"{both.sum()} pairs tell as much as {found.unpaired:.0f} unpaired",
    )


def mean_deviation(values: Any) -> str:
    """Mean and deviation over seeds, as the tables print them."""
    if len(values) == 0:
        return ""
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else mean


def _tuning(study: Study) -> list[Block]:
    """The whole grid; the chosen setting of each arm has a star."""
    spec, parts = study.spec, list[Block]()
    tune = spec["tune"]
    scale = 1 if tune["metric"].endswith("loss") else 100
    parts.append(paragraph(
        f"The same grid for every arm; mean of {tune['metric']} over the seeds "
        f"{', '.join(map(str, tune['seeds']))}, which no verdict uses. A star marks the setting "
        "that was chosen; n/a: a run diverged or failed, which is chosen only if all are so."
    ))  # fmt: skip
    names = [setting_name(each) for each in study.settings]
    body = []
    for cell in study.cells:
        for arm in spec["arms"]:
            best, means = study.tuned(arm, cell)
            texts = ["n/a" if math.isnan(m) else f"{scale * m:.2f}" for m in means]
            texts[best] += " *"
            body.append([study.label(arm, cell), *texts])
    if edge := at_the_edge(study):
        parts.append(paragraph(f"{AT_THE_EDGE}: {', '.join(edge)}."))
    return [*parts, tabled(["arm", *names], body)]


def _cost(study: Study, table: list[dict[str, Any]]) -> list[Block]:
    ended = [row for row in table if row["cpu_s"] is not None]
    stages = dict.fromkeys(row["stage"] for row in table)
    body = []
    for stage in stages:
        mine = [row for row in table if row["stage"] == stage]
        count = {s: sum(row["status"] == s for row in mine) for s in ("ok", "diverged", "failed")}
        body.append([stage, len(mine), *count.values(),
                     f"{sum(row['fit_s'] or 0 for row in mine) / 3600:.2f}",
                     f"{sum(row['cpu_s'] or 0 for row in mine) / 3600:.2f}"])  # fmt: skip
    columns = ["stage", "runs", "ok", "diverged", "failed", "hours", "processor hours"]
    machines = sorted({str(row["machine"]) for row in ended if row["machine"]})
    commits = sorted({f"{row['commit']}{' with changes' if row['dirty'] else ''}"
                      for row in ended if row["commit"]})  # fmt: skip
    times = [row[n] for row in ended for n in ("start", "end") if row[n]]
    parts: list[Block] = [tabled(columns, body)]
    if bad := wrong(study):
        parts.append(listed(bad))
    if times:
        parts.append(paragraph(
            f"From {_minute(min(times))} to {_minute(max(times))} UTC. "
            f"Machines: {'; '.join(machines) or 'unknown'}. "
            f"Commits: {', '.join(commits)}; code {study.lock['code']} in all runs."
        ))  # fmt: skip
    return parts


def _minute(time: str) -> str:
    """A time in UTC without seconds."""
    return time[:16].replace("T", " ")


def _runs(study: Study, table: list[dict[str, Any]]) -> Block:
    metric = study.spec["metric"]["name"]
    names = ["stage", "arm", "data", "backbone", "seed", "setting", "status", metric, "fit_s", "id"]

    def text(value: Any) -> Any:
        return f"{value:.2f}" if isinstance(value, float) else value

    columns = [*names[:7], f"{metric}, {study.rules.unit}", "fit, s", "run"]
    return tabled(columns, [[text(row[name]) for name in names] for row in table])


def _intervals(study: Study, verdicts: list[Verdict]) -> Block:
    """The picture of the verdicts."""
    told, spec = zip(study.hypotheses(), verdicts, strict=True), study.spec
    shown = [(verdict, published(study, *place)) for place, verdict in told]
    return _interval_picture(study, "intervals", shown, (
        f"Mean difference to {spec['baseline']} and its interval, by which the verdict is made: "
        "better or worse if the interval leaves out 0, equivalent if it lies inside the green "
        f"band. Its confidence is above {100 * (1 - spec['alpha']):g}%, since alpha is shared "
        "among looks and hypotheses. A cross is a mean without verdict."
    ))  # fmt: skip


def _interval_picture(
    study: Study, name: str, shown: Sequence[figures.Shown], caption: str
) -> Block:
    path = study.folder / f"figures/{name}.png"
    figures.draw_intervals(path, shown)
    return picture(study.folder, f"figures/{name}.png", caption)


def _pictures(study: Study, verdicts: list[Verdict]) -> list[Block]:
    """Draw all figures that the runs allow; the blocks with their captions."""
    folder, unit, spec = study.folder / "figures", study.rules.unit, study.spec
    label = f"{spec['metric']['name']}, {unit}"
    told = [*zip(study.hypotheses(), verdicts, strict=True)]
    parts: list[Block] = []
    pairs = {}
    for (arm, cell), verdict in told:
        base, new = study.runs_of(spec["baseline"], cell), study.runs_of(arm, cell)
        both = base.are("ok") & new.are("ok")
        if both.any():
            pairs[verdict.arm] = cell, base.values[both], new.values[both]
    if pairs:
        up = study.rules.higher_is_better
        figures.draw_pairs(folder / "pairs.png", pairs, spec["baseline"], label, up=up)
        parts.append(picture(study.folder, "figures/pairs.png", (
            "Each thin line is a seed: blue where the arm is better than the baseline, orange "
            "where it is worse. Black: the means."
        )))  # fmt: skip
    parts += [block for block in (_draw_cost(study, label), _draw_learning(study)) if block]
    return [*parts, *_draw_learned(study)]


def _draw_cost(study: Study, label: str) -> Block | None:
    ratios, spec = study.ratios(), study.spec
    cells = {}
    for cell in study.cells:
        arms = {}
        for arm in spec["arms"]:
            runs, ratio = study.runs_of(arm, cell), ratios.get(f"{arm}/{cell}")
            if ratio is not None and runs.are("ok").any():
                arms[arm] = ratio, runs.values[runs.are("ok")]
        if arms:
            cells[", ".join(study.place(cell))] = arms
    if not cells:
        where = study.measured_elsewhere()
        told = f"was {where}; measure it there" if where else "is not measured yet"
        return paragraph(f"The cost of the arms {told}: python -m study cost {study.folder}")
    path, up = study.folder / "figures/cost.png", "Up" if study.rules.higher_is_better else "Down"
    figures.draw_cost(path, cells, spec["baseline"], label)
    return picture(study.folder, "figures/cost.png", (
        f"{label} (mean and deviation over seeds) against the time of a training step"
        f"{about_steps(study.folder)}. {up} and to the left is better. Arms without a run "
        "that ended well are left out."
    ))  # fmt: skip


def _draw_learning(study: Study) -> Block | None:
    spec = study.spec
    metric = spec["metric"]["name"].replace("test/", "val/", 1)
    scale = 1 if metric.endswith("loss") else 100
    cells = {}
    for cell in study.cells:
        arms = {}
        for arm in spec["arms"]:
            runs = [study.verdict_run(arm, cell, seed) for seed in study.seeds]
            found = [study.results[run.id]["epochs"] for run in runs if run.id in study.results]
            size = max(map(len, found), default=0)
            values = np.full((len(found), size), math.nan)
            for place, epochs in enumerate(found):
                known = [each.get(metric) for each in epochs]
                values[place, : len(known)] = [math.nan if v is None else scale * v for v in known]
            if np.isfinite(values).any():
                arms[arm] = values
        if arms:
            cells[", ".join(study.place(cell))] = arms
    if not cells:
        return None
    path = study.folder / "figures/learning.png"
    figures.draw_learning(path, cells, spec["baseline"], f"{metric}, {study.rules.unit}")
    return picture(study.folder, "figures/learning.png", (
        f"{metric} after each epoch: the line is the mean over seeds, the band holds all of them. "
        "The first quarter may lie outside the picture. No verdict is made from it."
    ))  # fmt: skip


def _draw_learned(study: Study) -> list[Block]:
    panels, left = {}, dict[str, list[str]]()
    for cell in study.cells:
        for arm in study.spec["arms"]:
            try:
                found = learned_functions(study, arm, cell)
            except SpecError as error:
                why = str(error).removeprefix(f"arm {arm}: ")
                left.setdefault(why, []).append(study.label(arm, cell))
                continue
            if found:
                panels[study.label(arm, cell)] = found
    told: list[Block] = [
        paragraph(f"Not drawn: {', '.join(each)}: {why}.") for why, each in left.items()
    ]
    if not panels:
        return told
    figures.draw_learned(study.folder / "figures/learned.png", panels)
    return [picture(study.folder, "figures/learned.png", (
        "What was learned: the function of each layer, mean over seeds, from the first layer "
        "(dark) to the last (yellow); dotted: at the start."
    )), *told]  # fmt: skip
