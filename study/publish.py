"""The page of all verdicts and its figure, made from the packed studies alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from activations.files import replacing
from callbacks.machine import ROOT

from . import figures, packed
from .budget import budget_lines, scope
from .highlights import highlights, notes
from .judged import judge_study
from .levels import critical_value
from .lines import (
    EXPLORATORY,
    new_image_lines,
    on_new_images,
    published,
    tuning_lines,
    verdict_lines,
)
from .page import Block, code, folded, heading, listed, markdown, paragraph, replaced, tabled
from .power import pairs_needed
from .runs import Study
from .spec import LOCK, read_spec
from .verdict import Kind, Verdict

PAGE, PICTURE = "verdicts.md", "verdicts.png"
SPECS = ROOT / "configs/study"
ORDER = (Kind.BETTER, Kind.EQUIVALENT, Kind.IDENTICAL, Kind.UNDECIDED, Kind.WORSE, Kind.UNSTABLE,
         Kind.HELD)  # fmt: skip
_MADE = "<!-- Made by `python -m study publish` from results/studies: change nothing by hand. -->"
_READ = (
    "Each row is one function against the baseline of its study, which is ReLU unless another is "
    "named, on the same data, with the same budget and the same tuning. n is the number of pairs "
    "of runs of the same seed; the difference is the mean of these pairs, with its interval. "
    "**Equivalent**: the interval lies inside ± the margin, so that the difference does not "
    "matter, even where 0 is not in it. Otherwise **better** or **worse**: it leaves out 0. "
    "**Undecided**: none of these; it does not mean equal. **Unstable**: runs diverged. A "
    "verdict belongs to its data, network and budget; a budget is short if twice as much gains "
    "the baseline a point or more on validation. **On other test data** is what the same runs say "
    "of other images, or other records, of this kind: the chance choice of the test set counts, "
    "too. Cost is the time of a training step over the "
    "baseline's. Published is the difference in the paper, often of single runs of another "
    "program. More in [study.md](study.md). What the functions learned: "
    "[findings.md](findings.md)."
)

Row = tuple[tuple[str, int], Verdict]


def publish(target: Path = ROOT / "docs") -> str:
    """Write the page and its figure into a folder; the line to print.

    The README beside the folder, if there is one, gets its sentences, too.

    Raises:
        SpecError: a packed study is damaged.
    """
    studies = read_studies()
    if (first := target.parent / "README.md").is_file():
        text = readme(first.read_text(), studies)
        with replacing(first) as unfinished:
            unfinished.write_text(text)
    with replacing(target / PAGE) as unfinished:
        unfinished.write_text(page(studies))
    groups = [
        (f"{study.folder.name}: difference to {study.spec['baseline']}", [
            (verdict, published(study, *place))
            for place, verdict in rows
        ])
        for study in studies if (rows := _rows(study))
    ]  # fmt: skip
    if groups:
        figures.draw_verdicts(target / PICTURE, groups)
    return f"{len(studies)} studies: {target / PAGE}"


def readme(text: str, studies: Sequence[Study]) -> str:
    """A README with the most useful findings between its marks."""
    return replaced(text, "publish", [listed(highlights(studies))])


def read_studies() -> list[Study]:
    """All packed studies, by their names.

    Raises:
        SpecError: one is damaged.
    """
    folders = sorted(file.parent for file in packed.KEPT.glob(f"*/{LOCK}"))
    return [Study.read(folder, packed.read_packed(folder)) for folder in folders]


def page(studies: Sequence[Study]) -> str:
    """The page as Markdown."""
    blocks: list[Block] = [paragraph(_MADE), paragraph(_READ)]
    shown = [(study, _rows(study)) for study in studies]
    if any(rows for _, rows in shown):
        caption = (
            "Each difference and its interval, over the margin in green. An arrow: it goes on "
            "beyond the picture. A cross: a mean without verdict. A diamond: published."
        )
        blocks += [
            paragraph(f"![{caption}]({PICTURE})\n\n{caption}"),
            heading("All verdicts"),
            _table(shown),
        ]
    for study, rows in shown:
        blocks += _section(study, rows)
    known = {study.folder.name for study in studies}
    left = [file for file in sorted(SPECS.glob("*.yaml")) if file.stem not in known]
    if left:
        lines = [f"`configs/study/{each.name}`: {read_spec(each)['question']}" for each in left]
        blocks += [heading("Not run yet"), listed(lines)]
    return markdown("Verdicts", blocks)


def _rows(study: Study) -> list[Row]:
    """Arm and cell with the verdict, cell by cell, the best first; none before the first look."""
    pairs = zip(study.hypotheses(), study.verdicts(), strict=True)
    found = [(place, verdict) for place, verdict in pairs if verdict.kind is not Kind.TOO_FEW]
    sign = 1 if study.rules.higher_is_better else -1

    def place(row: Row) -> tuple[int, int, float]:
        (_, cell), verdict = row
        seen = verdict.interval.difference if verdict.interval else 0.0
        return cell, ORDER.index(verdict.kind), -sign * seen

    return sorted(found, key=place)


def _table(shown: Sequence[tuple[Study, list[Row]]]) -> Block:
    columns = ["study", "function", "data", "network", "budget", "n", "difference [interval]",
               "verdict", "on other test data", "cost", "published"]  # fmt: skip
    body = []
    for study, rows in shown:
        name, ratios = study.folder.name, study.ratios()
        mark = EXPLORATORY if study.lock["amendments"] else ""
        for (arm, cell), verdict in rows:
            data, network, *budget = scope(study, cell)
            seen, value = verdict.interval, published(study, arm, cell)
            ratio = ratios.get(f"{arm}/{cell}")
            elsewhere = on_new_images(study, arm, cell, verdict)
            body.append([
                f"[{name}](#{name})", arm, data, network, ", ".join(budget),
                seen.n if seen else verdict.pairs,
                seen.numbers if seen else "",
                mark + verdict.kind.value,
                elsewhere.kind.value if elsewhere else "",
                "" if ratio is None else f"{ratio:.2f}",
                "" if value is None else f"{value:+.2f}",
            ])  # fmt: skip
    return tabled(columns, body)


def _section(study: Study, rows: list[Row]) -> list[Block]:
    # what the budget is, the first line says
    spec, verdicts = study.spec, [replace(verdict, scope="") for _, verdict in rows]
    early = len(study.hypotheses()) - len(verdicts)
    stage, missing = study.next_runs()
    told = "All its runs have ended."
    if missing:
        told = f"**Not finished**: {len(missing)} runs of the stage “{stage}” are missing"
        told += f", and {early} functions have no verdict yet." if early else "."
    metric, looks = spec["metric"], ", ".join(map(str, study.rules.looks))
    about = (
        f"{spec['question']} {told} Metric: {metric['name']} of the {metric['at']} epoch; margin "
        f"{spec['margin']:g} {study.rules.unit}; looks at {looks} seeds. Locked on "
        f"{study.lock['time'][:10]} at commit {study.lock['commit']}."
    )
    blocks: list[Block] = [heading(study.folder.name), paragraph(about)]
    blocks.append(listed([*budget_lines(study), *tuning_lines(study), *judge_study(study)]))
    if undecided := [_outlook(each) for each in verdicts if each.kind is Kind.UNDECIDED]:
        text = "Undecided, and the seeds for a verdict in 80% of studies, if the truth is as seen:"
        blocks += [paragraph(text), listed(undecided)]
    if controls := [replace(each, scope="") for each in study.control_verdicts()]:
        blocks += [paragraph("Controls:"), listed(verdict_lines(study, controls))]
    if verdicts:
        lines = [*verdict_lines(study, verdicts), *new_image_lines(study)]
        blocks.append(folded("Each verdict, for this test set and for new images", [listed(lines)]))
    if told := [f"{arm}: {text}" for arm, text in notes(study).items()]:
        blocks += [paragraph("What is known of the causes:"), listed(told)]
    sources = [
        f"{arm}: {each['text']}" for arm, each in spec["published"].items() if "text" in each
    ]
    blocks += [paragraph("Published:"), listed(sources)] if sources else []
    return [*blocks, paragraph("All anew, by the code of that commit:"), code(_command(study))]


def _outlook(verdict: Verdict) -> str:
    """How many pairs in all an undecided arm takes."""
    seen, rules, known = verdict.interval, verdict.rules, None
    assert seen is not None
    error = (seen.high - seen.low) / 2 / float(critical_value(seen.level, seen.n))
    if error:
        deviation = error * seen.n**0.5
        known = pairs_needed(seen.difference, deviation, seen.level, rules.margin, "any")
    told = f"about {known:,} seeds" if known else "more than can be planned"
    return f"{verdict.arm}: {seen.text(rules.unit)}: {told}"


def _command(study: Study) -> str:
    name = study.folder.name
    file = f"configs/study/{name}.yaml" if (SPECS / f"{name}.yaml").is_file() else "SPEC.yaml"
    places = [f"{each}=..." for each in ("data.root", "model.checkpoint_path")
              if any(each in cell for cell in study.spec["cells"])]  # fmt: skip
    commit = study.lock["commit"].rstrip("+")
    words = [f"git checkout {commit}\npython -m study run", file]
    words += ["--set", *places] if places else []
    return " ".join([*words, f"--dir studies/{name}_again"])
