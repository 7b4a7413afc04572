"""The page of verdicts: from the packed studies alone, and never edited by hand."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callbacks.machine import ROOT
from study import highlights, packed, publish
from study.lines import new_image_lines
from study.packed import pack
from study.power import chances
from study.runs import Study
from study.spec import check, lock

from .made import result, small, write

VALUES = {"ReLU": 90.0, "SiLU": 80.0, "CosLU": 90.3}


def test_the_page_in_the_repository_is_what_the_command_writes():
    written = (ROOT / "docs/verdicts.md").read_text()
    assert written == publish.page(publish.read_studies()), "run: python -m study publish"


def test_the_numbers_of_the_readme_are_those_of_the_page():
    text = (ROOT / "README.md").read_text()
    assert text == publish.readme(text, publish.read_studies()), "run: python -m study publish"
    page = (ROOT / "docs/verdicts.md").read_text()
    begin, end = text.index("by python -m study publish -->"), text.index("<!-- end of publish")
    counts, *others = text[begin:end].strip().splitlines()[-3:]
    study = [line.split(" | ") for line in page.splitlines() if line.startswith("| [digits_elem")]
    for kind in ("better", "equivalent", "worse", "undecided"):
        number = sum(line[7] == kind for line in study)
        assert f"{number or 'none'} {kind}" in counts
    assert f"Of {len(study)} comparisons with ReLU" in counts
    for line in others:
        arm, difference = re.findall(r"^- (.+?): \*\*.*? ([+-][\d.]+) points", line)[0]
        assert re.search(rf"\| {arm} \| .* \| {re.escape(difference)} \[", page)


@pytest.mark.parametrize("name", ["README.md", "docs/study.md"])
def test_verdicts_that_pages_quote_are_verdicts(name: str):
    page = (ROOT / "docs/verdicts.md").read_text().replace("**", "")
    quoted = re.findall(r"`(\w+: [A-Z]{5,} [^`]*)`", (ROOT / name).read_text())
    assert quoted
    for line in quoted:
        assert f"- {line}\n" in page


def kept(folder: Path, stages: int, noise: float = 0.1, **changes: Any) -> Study:
    """A packed study of which so many stages are done."""
    folder.mkdir(parents=True)
    lock(folder, check(small(**changes)))
    study = Study.read(folder)
    rng = np.random.default_rng(0)
    for _ in range(stages):
        runs = study.next_runs()[1]
        study.prepare(runs)
        for run in runs:
            value = VALUES[run.arm.partition(" ")[0]] + noise * rng.normal()
            write(study, run, result(value, run.seed, learned={"a": [1.0]}, train_samples=1295))
        study = Study.read(folder)
    pack(folder)
    return study


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packed, "KEPT", tmp_path / "kept")
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def rows(page: str) -> dict[str, list[str]]:
    lines = [line[2:-2].split(" | ") for line in page.splitlines() if line.startswith("| [")]
    return {f"{line[0]} {line[1]}": line for line in lines}


def test_finished_and_unfinished_studies_are_shown_as_what_they_are(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
):
    done = kept(
        tmp_path / "done", 3, seeds={"looks": [5]}, controls=["frozen"], margin=1.0,
        published={"CosLU": {"text": "Table 3", "difference": 0.9}},
    )  # fmt: skip
    (tmp_path / "done/ratios.json").write_text(json.dumps({"SiLU/0": 1.1, "CosLU/0": 1.9}))
    pack(done.folder)
    kept(tmp_path / "begun", 1, seeds={"looks": [5, 8]}, noise=2.0)
    marks = "<!-- written by python -m study publish -->\nold\n<!-- end of publish -->\n"
    (tmp_path / "README.md").write_text(f"# It\n\n{marks}\nBy hand.\n")
    (tmp_path / "notes.yaml").write_text("{done: {SiLU: Too steep.}, begun: {SiLU: Too steep.}}\n")
    monkeypatch.setattr(highlights, "NOTES", tmp_path / "notes.yaml")
    assert publish.publish(out) == f"2 studies: {out / 'verdicts.md'}"
    page = (out / "verdicts.md").read_text()
    assert (out / "verdicts.png").read_bytes().startswith(b"\x89PNG")
    sentences = (tmp_path / "README.md").read_text().split("\n- ")[1:]
    assert len(sentences) == 3
    assert sentences[0].startswith("Of 2 comparisons with ReLU (Digits, resnet8, ")
    assert "1,295 training samples, 2 epochs). On other images of this kind it is " in sentences[1]
    assert sentences[1].strip().endswith("]. Too steep.")
    assert "; its training step takes 1.90 times as long with" in sentences[2]
    assert "- SiLU: Too steep." in page
    seen = rows(page)
    assert list(seen) == [
        "[begun](#begun) CosLU", "[begun](#begun) SiLU", "[done](#done) CosLU", "[done](#done) SiLU",
    ]  # fmt: skip
    verdict = done.verdicts()[0]
    assert verdict.interval
    low, high = verdict.interval.low, verdict.interval.high
    on_new = next(line for line in new_image_lines(done) if line.startswith("SiLU "))
    elsewhere = on_new.split(": ")[1].lower()
    assert seen["[done](#done) SiLU"][2:] == [
        "Digits", "resnet8", "1,295 training samples, 2 epochs", "5",
        f"{verdict.interval.difference:+.2f} [{low:+.2f}, {high:+.2f}]", "worse", elsewhere, "1.10", "",
    ]  # fmt: skip
    assert seen["[done](#done) CosLU"][-2:] == ["1.90", "+0.90"]
    parts = dict(zip(*[iter(re.split(r"^## (.*)$", page, flags=re.M)[1:])] * 2, strict=True))
    assert "All its runs have ended." in parts["done"]
    assert "**Not finished**: " in parts["begun"]
    assert "SiLU frozen: **WORSE** than ReLU" in parts["done"]
    assert "CosLU: Table 3" in parts["done"]
    assert "Budget (Digits, resnet8, 1,295 training samples, 2 epochs): " in parts["done"]
    # the site reads Markdown inside of it
    assert '<details markdown="1"><summary>Each verdict' in parts["done"]
    assert "on new images" in parts["done"]
    assert "Judge: " in parts["begun"]
    assert "- `configs/study/quick.yaml`: " in parts["Not run yet"]


def test_the_baselines_function_trained_in_another_way_is_no_finding(tmp_path: Path, out: Path):
    relu = {"model.activation": "torch.nn.ReLU"}
    arms = {"ReLU": relu, "SiLU": {**relu, "model.label_smoothing": 0.2},
            "CosLU": {"model.activation": "CosLU"}}  # fmt: skip
    study = kept(tmp_path / "done", 1, seeds={"looks": [5]}, arms=arms, margin=1.0)
    assert [each.kind.value for each in study.verdicts()] == ["worse", "equivalent"]
    found = highlights.highlights(publish.read_studies())
    assert found[0].startswith("Of 1 comparison with ReLU")
    assert not any("SiLU" in each for each in found)


def test_the_seeds_that_an_undecided_function_takes(tmp_path: Path, out: Path):
    kept(tmp_path / "begun", 1, seeds={"looks": [5]}, noise=2.0, margin=0.5)
    study = publish.read_studies()[0]
    verdict = study.verdicts()[1]
    assert verdict.kind == "undecided"
    assert verdict.interval
    differences = study.runs_of("CosLU", 0).values - study.runs_of("ReLU", 0).values
    seen, deviation = differences.mean(), differences.std(ddof=1)
    level = verdict.interval.level
    number = next(
        n for n in range(2, 1000) if chances(seen, deviation, n, level, 0.5).decided >= 0.8
    )
    page = publish.page(publish.read_studies())
    assert re.search(rf"^- CosLU: .* over 5 paired seeds: about {number:,} seeds$", page, re.M)
