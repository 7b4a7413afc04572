"""The report of a study whose results are written here."""

import csv
import json
import multiprocessing
import re
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from scipy import stats

import study.cost
import study.plan
from activations import CosLU
from study import figures
from study.__main__ import main
from study.cost import measure
from study.latex import escape
from study.learned import learned_functions
from study.lines import new_image_lines, tuning_lines
from study.page import code, folded, heading, html, listed, markdown, paragraph, tabled
from study.plan import plan
from study.report import report
from study.rows import rows
from study.runs import Study, read_prepared, write_about
from study.spec import check, lock
from study.status import status

from .made import checked, result, small, write

LOOK = 5
VALUES = {  # points, of the seeds 1000 to 1004
    "ReLU": [90.0, 90.5, 89.8, 90.2, 90.1],
    "SiLU": [90.1, 90.4, 89.9, 90.1, 90.3],
    "CosLU": [88.0, 88.6, 87.7, 88.3, 88.0],  # less by 2.0, 1.9, 2.1, 1.9, 2.1
    "A&B_1": [91.0, 0.0, 90.0, 90.0, 90.0],
}
GRID = {"ReLU": [60, 70], "SiLU": [80, 70], "CosLU": [65, 66], "A&B_1": [50, 40]}


def test_the_chosen_settings_are_told(tmp_path: Path):
    study = made(tmp_path)
    chosen = {
        arm: study.settings[study.tuned(arm, 0)[0]]["model.optimizer.weight_decay"]
        for arm in study.spec["arms"]
    }
    (line,) = tuning_lines(study)
    assert line.startswith("Chosen for each arm by val/acc of 1 seed: weight_decay ")
    found = dict(re.findall(r"weight_decay ([\d.]+): (.*?)[;.](?= )", line))
    told = {arm: float(value) for value, arms in found.items() for arm in arms.split(", ")}
    assert told == chosen
    assert len(set(chosen.values())) == 2
    run = next(study.tuning())
    del study.results[run.id]
    assert tuning_lines(study) == []  # not over


def test_the_edge_of_the_grid_is_told(tmp_path: Path):
    tune = {"grid": {"model.optimizer.lr": [0.1, 0.2, 0.4]}, "seeds": [1], "metric": "val/acc"}
    lock(tmp_path, check(small(tune=tune)))
    study = Study.read(tmp_path)
    best = {"ReLU": 1, "SiLU": 0, "CosLU": 2}
    for run in study.tuning():
        write(study, run, {**result(90 - abs(run.setting - best[run.arm])), "test": {}})
    (line,) = tuning_lines(Study.read(tmp_path))
    assert (
        "lr 0.1 (the edge of the grid): SiLU; lr 0.2: ReLU; lr 0.4 (the edge of the grid): Co"
        in line
    )
    assert "At the edge of the grid a wider one might be better." in line


def made(folder: Path, **changes: Any) -> Study:
    """Four arms with five seeds, of which one run of the last arm has diverged."""
    arms = {**small()["arms"], "A+B_1": {"model.activation": "torch.nn.Tanh"}}
    spec = check(small(
        question="Is <b>CosLU</b> better & faster?", arms=arms, second_baselines=["SiLU"],
        seeds={"first": 1000, "looks": [LOOK]},
        tune={"grid": {"model.optimizer.weight_decay": [0.1, 0.2]}, "seeds": [1], "metric": "val/acc"},
        published={"CosLU": {"text": "Table 3", "difference": [0.9]}},
        **changes,
    ))  # fmt: skip
    folder.mkdir(exist_ok=True)
    lock(folder, spec)
    study = Study.read(folder)
    for run in study.tuning():
        write(study, run, {**result(GRID[run.arm.replace("+", "&")][run.setting]), "test": {}})
    study = Study.read(folder)
    machine = {"processor": "a processor"}
    for arm in arms:
        for seed, value in zip(study.seeds, VALUES[arm.replace("+", "&")], strict=True):
            bad = "diverged" if value == 0 else "ok"
            content = result(value, seed, bad, fit_s=7.5, cpu_s=7.0, machine=machine, commit="1234567",
                             start="2026-01-01T10:00:00+00:00", end="2026-01-01T10:01:00+00:00")  # fmt: skip
            content["message"] = "the training loss is nan. Lower it" if value == 0 else ""
            write(study, study.verdict_run(arm, 0, seed), content)
    return Study.read(folder)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, str]:
    study = made(tmp_path_factory.mktemp("study") / "digits")
    (study.folder / "ratios.json").write_text(json.dumps({"ReLU/0": 1.0, "CosLU/0": 1.9}))
    return study, report(study)


def interval() -> tuple[str, str]:
    """Of CosLU minus ReLU, with one look and three hypotheses."""
    differences = np.subtract(VALUES["CosLU"], VALUES["ReLU"])
    error = stats.sem(differences) * stats.t.ppf(1 - 0.05 / 3 / 2, LOOK - 1)
    return f"{differences.mean() - error:+.2f}", f"{differences.mean() + error:+.2f}"


def test_lines_that_are_printed(reported: tuple[Study, str]):
    _, text = reported
    lines = text.splitlines()
    low, high = interval()
    assert (
        lines[1]
        == f"CosLU: WORSE than ReLU: -2.00 points [{low}, {high}] over 5 paired seeds (Digits, resnet8, 2 epochs)"
    )
    assert lines[2].startswith("A+B_1: UNSTABLE against ReLU: 1 of 5 runs diverged")
    assert lines[-1].startswith("Judge: ")
    assert sum("written into" in line for line in lines) == 1


class Reader(HTMLParser):
    """What a page loads, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.seen: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.loaded += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag


def test_page_is_whole_and_loads_nothing(reported: tuple[Study, str]):
    study, _ = reported
    page = (study.folder / "report.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert not reader.tags
    assert "script" not in reader.seen
    assert "b" not in page.partition("<h1>")[2].partition("</h1>")[0].replace("&lt;b&gt;", "").split("<")  # fmt: skip
    assert "Is &lt;b&gt;CosLU&lt;/b&gt; better &amp; faster?" in page
    assert reader.seen["img"] == 4  # nothing was learned in these results
    assert all(each.startswith("data:image/png;base64,") for each in reader.loaded)
    assert not re.search(r"url\(|@import", page)


def test_markdown_says_what_was_found(reported: tuple[Study, str]):
    study, _ = reported
    page = (study.folder / "report.md").read_text()
    assert "- CosLU: **WORSE** than ReLU" in page
    assert "## Against SiLU" in page
    low, high = interval()
    assert f"| CosLU | +0.90 | -2.00 [{low}, {high}] | worse |" in page
    assert "- CosLU: Table 3" in page
    assert "| ReLU | 60.00 | 70.00 * |" in page
    assert "| SiLU | 80.00 * | 70.00 |" in page
    assert "diverged: A+B_1, verdict, 1 run, seed 1001: the training loss is nan (" in page
    assert "code " + study.lock["code"] in page
    for picture in re.findall(r"\]\((figures/\w+)\.png\)", page):
        assert (study.folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert (study.folder / f"{picture}.pdf").read_bytes().startswith(b"%PDF")


def test_one_row_a_run(reported: tuple[Study, str]):
    study, _ = reported
    with (study.folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(study.results) == 8 + 20
    assert [row["stage"] for row in table] == ["tuning"] * 8 + ["verdict"] * 20
    for arm, values in VALUES.items():
        mine = [
            row
            for row in table
            if row["arm"] == arm.replace("&", "+") and row["stage"] == "verdict"
        ]
        assert [int(row["seed"]) for row in mine] == [1000, 1001, 1002, 1003, 1004]
        known = [float(row["test/acc"]) for row in mine if row["status"] == "ok"]
        assert known == pytest.approx([value for value in values if value])
        assert {row["machine"] for row in mine} == {"a processor"}
    assert sum(row["status"] == "diverged" for row in table) == 1
    assert {row["id"] for row in table} == study.results.keys()


def test_latex_table_has_equal_rows(reported: tuple[Study, str]):
    study, _ = reported
    text = (study.folder / "results.tex").read_text()
    assert escape("A_1 & 50% {x} \\") == r"A\_1 \& 50\% \{x\} \textbackslash{}"
    assert re.findall(r"\\(begin|end)\{(\w+)\}", text) == [
        ("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table"),
    ]  # fmt: skip
    columns = re.search(r"\\begin\{tabular\}\{(.*)\}$", text, re.M)
    assert columns
    count = len(re.sub(r"@\{[^}]*\}", "", columns[1]))
    body = text.partition("\\midrule")[2].partition("\\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.strip()]
    assert len(lines) == 4
    for line in lines:
        assert line.endswith(r"\\")
        assert len(re.findall(r"(?<!\\)&", line)) == count - 1
    assert r"A+B\_1 & 90.25 & 0.50 & 4" in text
    low, high = interval()
    seen = rf"$-2.00$ $[{low},\,{high}]$"
    assert rf"CosLU & 88.12 & 0.34 & 5 & {seen} & worse & $+0.90$ \\" in text


def test_unknown_format(reported: tuple[Study, str]):
    with pytest.raises(ValueError, match="no format 'pdf': choose from md, html, latex"):
        report(reported[0], ["pdf"])


def test_verdicts_after_an_amendment_are_exploratory(tmp_path: Path):
    study = made(tmp_path / "digits")
    lock(study.folder, {**study.spec, "margin": 3.0}, "a margin of 0.3 was a slip")
    text = report(Study.read(study.folder), ["md"])
    verdicts = text.splitlines()[:3]
    assert all(line.startswith("(exploratory) ") for line in verdicts)
    page = (study.folder / "report.md").read_text()
    assert "because: a margin of 0.3 was a slip (changed: margin)" in page
    assert not (study.folder / "report.html").exists()


def test_new_images_are_those_of_the_samples(tmp_path: Path):
    study = made(tmp_path / "digits")
    lines = new_image_lines(study)
    assert [line.partition(" ")[0] for line in lines] == ["SiLU", "CosLU"]  # not the unstable one
    assert all("over 5 paired seeds and 4 images" in line for line in lines)
    (study.folder / "runs" / study.verdict_run("SiLU", 0, 1002).id / "test.npz").unlink()
    study.estimates.clear()
    assert "SiLU on new images: not known" in new_image_lines(study)[0]


def test_status_counts(tmp_path: Path):
    study = checked(made(tmp_path / "digits"))
    gone = study.verdict_run("CosLU", 0, 1004)
    study.prepare([gone])
    (study.folder / "runs" / gone.id / "results.json").unlink()
    lines = status(study.folder).splitlines()
    assert lines[1].split() == ["stage", "ok", "running", "waiting", "diverged", "failed"]
    assert lines[2].split() == ["tuning", "8", "0", "0", "0", "0"]
    assert lines[3].split() == ["budget", "1", "0", "0", "0", "0"]
    assert lines[4].split() == ["verdict", "18", "0", "1", "1", "0"]
    assert "next: seeds up to look 5, 1 run, about 10 s" in lines  # 7.5 s, and 3 s to start
    assert rows(Study.read(study.folder))[-6]["status"] == "waiting"


def test_runs_of_no_stage_come_last(tmp_path: Path):
    study = made(tmp_path / "digits")
    other = study.run("judge", "ReLU", 0, 7, 0)
    study.prepare([other])
    write(study, other, result(50.0, 7))
    table = rows(Study.read(study.folder))
    assert (table[-1]["id"], table[-1]["stage"]) == (other.id, "judge")
    assert read_prepared(study.folder)[other.id]["stage"] == "judge"


def test_plan_before_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = check(small(arms={**small()["arms"]}, seeds={"looks": [5, 20]}, controls=["frozen"]))
    times = {(arm, 0): 36.0 for arm in spec["arms"]}
    monkeypatch.setattr(study.plan, "pilot", lambda study, seconds: (times, "a pilot"))
    text = plan(tmp_path / "none", spec)
    assert re.search(r"^seeds 1 to 5 +15 +9 min$", text, re.M)
    assert re.search(r"^seeds 6 to 20 +45 +27 min$", text, re.M)
    assert re.search(r"^twice the budget +2 +2 min$", text, re.M)
    assert re.search(r"^all, at most +62 +38 min$", text, re.M)
    found = re.search(r"^5 seeds +([\d.]+) +([\d.]+) +([\d.]+)$", text, re.M)
    assert found
    level = 0.05 * 5 / 20 / 2  # spent at the first look, by one of two hypotheses
    bound = stats.t.ppf(1 - level / 2, 4)
    for written, deviation in zip(found.groups(), (0.25, 0.5, 1.0), strict=True):
        shift = float(written) / (deviation * 2**0.5 / 5**0.5)
        assert stats.nct.sf(bound, 4, shift) == pytest.approx(0.8, abs=0.02)
    assert not (tmp_path / "none").exists()


def test_plan_knows_what_was_measured(tmp_path: Path):
    done = made(tmp_path / "digits")
    text = plan(done.folder, done.spec)
    assert "The time of a run is known from runs that have ended; 3 s are for" in text
    arms = [np.subtract(VALUES[arm], VALUES["ReLU"]) for arm in ("SiLU", "CosLU")]
    arms.append(np.subtract([91, 90, 90, 90], [90.0, 89.8, 90.2, 90.1]))
    known = np.mean([each.var(ddof=1) for each in arms]) ** 0.5
    assert f"measured: {known:.2f} points" in text


def test_plan_of_a_changed_question_is_of_the_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(study.plan, "pilot", lambda study, seconds: ({}, "a pilot"))
    lock(tmp_path, check(small()))
    changed = check(small(seeds={"first": 1000, "looks": [5, 11]}))
    assert "seeds 6 to 8" in plan(tmp_path, check(small()))
    assert "seeds 6 to 11" in plan(tmp_path, changed)


def test_where_less_is_better_it_is_to_the_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    labels: list[str] = []
    monkeypatch.setattr(Axes, "set_xlabel", lambda self, text, **_: labels.append(text))
    metric = {"name": "test/loss", "at": "last"}
    lock(tmp_path, check(small(metric=metric, margin=0.05, seeds={"looks": [5]})))
    done = Study.read(tmp_path)
    for run in done.next_runs()[1]:
        loss = 0.5 + run.seed * len(run.arm) % 7 / 100
        write(done, run, result(0, run.seed, test={"last": {"test/loss": loss}}))
    (tmp_path / "ratios.json").write_text('{"ReLU/0": 1, "SiLU/0": 1.1, "CosLU/0": 2}')
    report(Study.read(tmp_path))
    assert "difference to ReLU, nats; better is to the left" in labels
    assert "Down and to the left is better" in (tmp_path / "report.md").read_text()


def _sleep(spec: dict, file: Path, seconds: float) -> None:
    time.sleep(3600)


def test_pilot_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(study.plan, "_pilot", _sleep)
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(plan, tmp_path / "none", check(small()), 0.5).result(timeout=60)
    assert not multiprocessing.active_children()
    assert re.search(r"^seeds 1 to 5 +15 +\?$", text, re.M)
    assert "a pilot of 0.5 s did not end, or failed" in text


def test_parts_of_a_run_follow_from_three_trainings(monkeypatch: pytest.MonkeyPatch):
    def seconds(study: Any, cell: int, epochs: int, batches: int) -> float:
        assert batches <= 40
        return 1.5 + epochs * (0.2 + batches * 0.015)

    monkeypatch.setattr(study.plan, "_seconds", seconds)
    base = {"cell": 0, "step_ms": 10.0, "batches": 40, "epochs": 12}
    assert study.plan._parts(Study(Path(), {}), base) == pytest.approx((1.5, 0.2, 0.015))


def test_plan_without_the_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    spec = "configs/study/cifar10_part.yaml"
    assert main(["plan", spec, "--set", f"data.root={tmp_path / 'none'}"]) == 2
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert f"python -m study: error: no CIFAR10 in '{tmp_path / 'none'}'" in told


def test_cost_is_the_median_of_paired_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The machine is ten times slower in every second round, for all arms alike."""
    done = made(tmp_path / "digits")
    cost = {"ReLU": 1.0, "SiLU": 1.25, "CosLU": 2.0, "A+B_1": 0.5}
    calls = dict.fromkeys(cost, 0)

    def step(arm: str) -> Any:
        def taken() -> dict[str, float]:
            calls[arm] += 1
            slow = 10 if calls[arm] % 2 else 1
            return {"wall": slow * cost[arm], "processor": slow * cost[arm]}

        return taken

    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    monkeypatch.setattr(
        study.cost,
        "built",
        lambda run: SimpleNamespace(arm=run.arm, trainer=SimpleNamespace(strategy=strategy)),
    )
    monkeypatch.setattr(study.cost, "_step", lambda made: step(made.arm))
    monkeypatch.setattr(study.cost, "length", lambda made: {"batches": 20, "epochs": 2})
    table = measure(done, 0.01)
    assert {row["arm"]: row["ratio"] for row in table} == cost
    study.cost.write(done.folder, table)
    assert Study.read(done.folder).ratios() == {f"{arm}/0": ratio for arm, ratio in cost.items()}


def test_learned_functions_are_means_over_seeds(tmp_path: Path):
    spec = check(small(seeds={"first": 1000, "looks": [5]}))
    lock(tmp_path, spec)
    write_about(tmp_path, {"defaults": {"CosLU": {"alpha": 0.25}}})  # as they were in its code
    empty = Study.read(tmp_path)
    assert learned_functions(empty, "CosLU", 0) is None
    alphas = [0.5, 1.0, 3.0]
    sites = [f"layer{stage}.0.act{k}" for stage in (1, 2, 3) for k in (1, 2)]
    for seed, alpha in zip(empty.seeds, alphas, strict=False):
        learned = {f"{site}.alpha": [alpha] for site in ("act1", *sites)}
        learned |= {f"{site}.beta": [0.2 * alpha] for site in ("act1", *sites)}
        write(empty, empty.verdict_run("CosLU", 0, seed), result(90.0, seed) | {"learned": learned})
    found = learned_functions(Study.read(tmp_path), "CosLU", 0)
    assert found
    x, first, last = found

    def formula(alpha: float, beta: float) -> np.ndarray:
        return (x + alpha * np.cos(beta * x)) / (1 + np.exp(-x))

    start = CosLU(alpha=0.25)
    with torch.no_grad():
        assert first[0] == pytest.approx(start(torch.tensor(x)).numpy(), abs=1e-5)
    assert len(first) == len(last) == 7
    mean = np.mean([formula(alpha, 0.2 * alpha) for alpha in alphas], axis=0)
    assert last[3] == pytest.approx(mean, abs=1e-5)


def test_learned_values_of_other_code_are_told(tmp_path: Path):
    lock(tmp_path, check(small(seeds={"looks": [5]})))
    study = Study.read(tmp_path)
    learned = {"learned": {"act1.alfa": [1.0], "act1.beta": [0.5]}}
    write(study, study.verdict_run("CosLU", 0, study.seeds[0]), result(90) | learned)
    report(Study.read(tmp_path), ["md"])
    page = (tmp_path / "report.md").read_text()
    assert "Not drawn: CosLU: in this code its values have other names or sizes (act1.alfa" in page
    assert f"report it with commit {study.lock['commit']}" in page


def test_many_arms_have_looks_of_their_own():
    looks = figures.styles([f"arm {k}" for k in range(30)])
    assert len(set(looks.values())) == 30


def test_pages_show_what_is_special_as_it_is():
    blocks = [
        heading("a < b"),
        paragraph("x & y: BETTER"),
        listed(["A: WORSE than <i>"], verdicts=True),
        tabled(["a|b"], [["1|2"], [None]]),
        folded("more", [code("<script>")]),
    ]
    page = html("T", blocks)
    assert "<h2>a &lt; b</h2>" in page
    assert "x &amp; y: <b>BETTER</b>" in page
    assert '<li class="worse">A: <b>WORSE</b> than &lt;i&gt;</li>' in page
    assert "<pre>&lt;script&gt;</pre>" in page
    assert "| a\\|b |\n| --- |\n| 1\\|2 |\n|  |" in markdown("T", blocks)
