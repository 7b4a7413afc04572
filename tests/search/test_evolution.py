"""The search itself: what is trained, in which order, and that it does not depend on luck."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.evolution import EVOLVED, RANDOM, Search
from search.surrogate import FACTOR
from study.spec import SpecError
from tests.search.made import begun, finish, train


def seen(search: Search) -> list[Any]:
    """All that a search has decided."""
    return [
        [(m.number, m.candidate.formula, m.how, m.parents, m.values) for m in stream.members]
        for stream in search.streams.values()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return finish(begun(tmp_path_factory.mktemp("search") / "whole"))


def test_as_many_are_trained_as_the_spec_says(whole: Search):
    for stream in whole.streams.values():
        assert [m.number for m in stream.members] == list(range(18))
        assert Counter(m.generation for m in stream.members) == {0: 6, 1: 6, 2: 6}
        reached = Counter((m.generation, len(m.values)) for m in stream.members)
        assert all(reached[generation, 2] == 2 for generation in range(3))
        assert len({m.candidate.formula for m in stream.members}) == 18
    assert whole.pending == []


def test_the_best_of_each_generation_are_trained_longer(whole: Search):
    for stream in whole.streams.values():
        for generation in range(3):
            mine = [m for m in stream.members if m.generation == generation]
            longer = [m.values[0] for m in mine if len(m.values) == 2]
            shorter = [m.values[0] for m in mine if len(m.values) == 1]
            assert min(longer) >= max(shorter)


def test_parents_are_living_and_random_search_has_none(whole: Search):
    evolved = whole.streams[EVOLVED].members
    assert {m.how for m in evolved if m.generation} <= {"mutation", "crossover"}
    for member in evolved:
        first = 6 * member.generation
        assert all(first - 8 <= parent < first for parent in member.parents)
        assert bool(member.parents) == (member.generation > 0)
    assert {m.how for m in whole.streams[RANDOM].members} == {"random"}


def test_the_order_in_which_runs_end_changes_nothing(whole: Search, tmp_path: Path):
    for order in (1, 2):
        assert seen(finish(begun(tmp_path / str(order)), order)) == seen(whole)


def test_a_search_that_was_killed_goes_on_to_the_same(whole: Search, tmp_path: Path):
    search = begun(tmp_path / "killed")
    for part in (3, 7, 2):
        for run in search.next_runs()[:part]:
            train(search, run)
        search = Search(search.folder, search.lock)  # all that was in memory is lost
    assert seen(finish(search)) == seen(whole)
    assert seen(Search.read(search.folder)) == seen(whole)


def test_candidates_on_other_data_do_not_compete(tmp_path: Path):
    search = begun(tmp_path / "mixed")
    runs = search.next_runs()
    search.study.prepare(runs)
    for run, samples in zip(runs, (100, 100, 90), strict=False):
        train(search, run)
        file = search.folder / "runs" / run.id / "results.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "train_samples": samples}))
    with pytest.raises(SpecError, match=r"made on other data \(train samples: (90|100) and"):
        search.next_runs()


def test_all_cells_and_seeds_count(tmp_path: Path):
    cells = [{"data": "Digits", "model.backbone": name} for name in ("resnet8", "resnet14")]
    search = begun(tmp_path / "cells", cells=cells, generations=1)
    assert len(search.next_runs()) == 2 * 2 * 6
    finish(search)
    member = search.streams[EVOLVED].members[0]
    runs = search.runs(member.candidate, 1)
    assert [run.options["model.backbone"] for run in runs] == ["resnet8", "resnet14"]
    values = [search.study.last(run, "val/acc") for run in runs]
    assert member.values[0] == np.mean(values)
    final = search.final_runs()
    assert {"ReLU", "SiLU"} < final.keys()
    assert all([run.seed for run in runs] == [101, 101, 102, 102] for runs in final.values())
    assert {run.options["trainer.max_epochs"] for runs in final.values() for run in runs} == {2}


def test_a_run_that_diverged_is_the_worst_and_no_parent_of_many(tmp_path: Path):
    search = begun(tmp_path / "diverged", generations=2)
    first = search.next_runs()
    lost = {run.id for run in first[1::2]}
    for run in first:
        train(search, run, "diverged" if run.id in lost else "ok")
    finish(search)
    stream = search.streams[EVOLVED]
    bad = {m.number for m in stream.members if m.values[0] == -np.inf}
    assert bad
    assert all(stream.members[n].rank == (0, -np.inf) for n in bad)
    assert not bad & {m.number for m in stream.best(18)}
    assert all(len(stream.members[n].values) == 1 for n in bad)


def test_a_search_in_which_all_diverges_ends(tmp_path: Path):
    search = begun(tmp_path / "lost")
    while runs := search.next_runs():
        for run in runs:
            train(search, run, "failed")
    assert search.winner() is None
    assert all(len(stream.members) == 18 for stream in search.streams.values())


def test_a_space_with_few_functions_ends_early(tmp_path: Path):
    space = {"leaves": ["x"], "unary": ["tanh(x)", "silu(x)"], "operators": 2}
    search = finish(begun(tmp_path / "few", space=space))
    assert [len(stream.members) for stream in search.streams.values()] == [6, 6]
    counts = [dict(stream.counts) for stream in search.streams.values()]
    search.next_runs()
    assert [dict(stream.counts) for stream in search.streams.values()] == counts


def test_the_surrogate_ranks_more_than_are_trained(tmp_path: Path, whole: Search):
    search = finish(begun(tmp_path / "ranked", surrogate=True))
    evolved, other = (search.streams[name] for name in (EVOLVED, RANDOM))
    assert evolved.counts[""] == 6 + 2 * FACTOR * 6
    assert other.counts[""] == 18
    assert seen(search)[1] == seen(whole)[1]
    later = [m for m in evolved.members if m.generation]
    found = np.array([(m.predicted, m.values[0]) for m in later])
    assert np.isfinite(found).all()
    assert all(np.isnan(m.predicted) for m in evolved.members[:6])
    assert found[:, 1].mean() > np.mean([m.values[0] for m in evolved.members[:6]])
    assert seen(Search.read(search.folder)) == seen(search)


def test_learned_constants_are_options_of_the_run(tmp_path: Path):
    space = {"leaves": ["x"], "unary": ["beta * x", "tanh(x)"], "binary": ["x * y"], "operators": 5}
    search = begun(tmp_path / "constants", space=space, constants="channel")
    found = [run.options for run in search.next_runs()
             if "model.activation.constants" in run.options]  # fmt: skip
    assert found
    for options in found:
        assert options["model.share"] == "channel"
        for name in options["model.activation.constants"]:
            assert name in options["model.activation.formula"]


def test_other_code_is_noticed(whole: Search):
    file = whole.folder / "candidates.json"
    text = file.read_text()
    content = json.loads(text)
    old = content["search"][4]["formula"]
    content["search"][4]["formula"] = "x * tanh(x)"
    file.write_text(json.dumps(content))
    with pytest.raises(SpecError, match=r"candidate 4 of search was x \* tanh\(x\), and is now"):
        Search.read(whole.folder)
    file.write_text(text)
    assert Search.read(whole.folder).streams[EVOLVED].members[4].candidate.formula == old
