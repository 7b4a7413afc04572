"""The report says what the trainings say, also where that is little."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import search.__main__
from search.evolution import EVOLVED, STREAMS, Search
from search.report import family, front, inputs, interval, report
from search.status import progress
from tests.search.made import begun, finish, train


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, str]:
    search = finish(begun(tmp_path_factory.mktemp("search") / "made", surrogate=True))
    return search, report(search)


def test_printed_lines(made: tuple[Search, str]):
    search, text = made
    values = search.final_values()
    pair = []
    for name in STREAMS:
        best = max(search.finalists(name), key=lambda m: values[m.candidate.formula].mean())
        assert search.winner(name) == best
        pair.append(values[best.candidate.formula])
    lines = text.splitlines()
    winner = search.winner()
    assert winner is not None
    assert lines[0].startswith(f"The winner is #{winner.number}, ")
    assert (
        f"val/acc {100 * pair[0].mean():.2f} ± {100 * pair[0].std(ddof=1):.2f} over 2" in lines[0]
    )
    differences = 100 * (pair[0] - pair[1])
    low, high = differences.mean() + stats.sem(differences) * stats.t.ppf([0.025, 0.975], 1)
    word = "beats" if low > 0 else "is worse than" if high < 0 else "does not beat"
    assert lines[1].startswith(f"The search {word} random search with the same trainings: ")
    assert f"{differences.mean():+.2f} points [{low:+.2f}, {high:+.2f}] over 2 paired" in lines[1]
    assert [line.partition(":")[0] for line in lines[2:4]] == ["Against ReLU", "Against SiLU"]


def test_pages_and_table(made: tuple[Search, str]):
    search, _ = made
    page = (search.folder / "report.md").read_text()
    for heading in ("Finalists", "Search against random", "The family of the winner",
                    "Accuracy against cost", "Known functions", "Screens before training",
                    "The surrogate"):  # fmt: skip
        assert f"## {heading}" in page
    assert "The inputs of 4 of 4 are not known" in page
    html = (search.folder / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 3
    table = pd.read_csv(search.folder / "candidates.csv")
    assert len(table) == sum(len(stream.members) for stream in search.streams.values())
    assert table["number"][table["by"] == EVOLVED].tolist() == list(range(18))


def test_finalists_are_drawn_over_their_inputs(tmp_path: Path):
    search = begun(tmp_path, generations=1, finalists={"number": 1, "seeds": [101, 102]})
    finish(search)
    mine = search.final_runs()[search.finalists(EVOLVED)[0].candidate.formula]
    for number, run in enumerate(mine):
        for attempt in (1, 2):  # the first one failed
            folder = tmp_path / "runs" / run.id / f"attempt_{attempt}"
            folder.mkdir()
            pd.DataFrame({"act1": [5.0 * attempt + number, 0.0]}).to_csv(
                folder / "inputs.csv", index=False
            )
    found = {name: inputs(search, name).tolist() for name in search.final_runs()}
    formula = search.finalists(EVOLVED)[0].candidate.formula
    assert {name for name, each in found.items() if each} == {formula}
    assert found[formula] == [10, 0, 11, 0]
    report(search)
    assert "The inputs of 1 of 2 are not known" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("gain", "word"), [(0.03, "beats"), (0.0, "does not beat"), (-0.03, "is worse than")]
)
def test_search_against_random_in_each_direction(tmp_path: Path, gain: float, word: str):
    search = begun(tmp_path, generations=1, finalists={"number": 1, "seeds": [101, 102, 103]})
    while runs := search.next_runs():
        for run in runs:
            found = {
                name: [m.candidate.formula for m in search.finalists(name)] for name in STREAMS
            }
            noise = 0.001 * (run.seed - 102)
            value = 0.9 + (gain + noise if run.arm in found[EVOLVED] else -noise / 10)
            train(search, run, value=value if run.seed else None)
    told = report(search).splitlines()[1]
    assert told.startswith(f"The search {word} random search with the same trainings")
    assert f"difference {100 * gain:+.2f} points" in told
    assert ("not more than" in told) == (gain == 0)


def test_equal_differences_tell_no_spread():
    assert interval(np.array([0.1, 0.1, 0.1]) - 0.09) == (-math.inf, math.inf)
    assert interval(np.zeros(3)) == (0, 0)


def test_a_report_before_the_end_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    search_ = begun(tmp_path)
    assert search.__main__.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(
        "generation 1 of 3, rung 1 of 2 (1 epoch); 0 trainings"
    )
    for run in search_.next_runs()[:5]:
        train(search_, run)
    assert search.__main__.main(["status", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    left = 2 * 3 * (6 + 2) + (2 * 2 + 2) * 2 - 5
    assert f"5 trainings done, at most {left} left" in told
    assert "python -m search run" in told
    for run in search_.next_runs():
        train(search_, run)
    search_.next_runs()
    report(search_)
    assert "best so far #" in progress(search_)
    page = (tmp_path / "report.md").read_text()
    assert "## The family of the best so far" in page
    assert "No function has been trained to the last length yet." in page


def test_a_search_in_which_all_fails_says_so(tmp_path: Path):
    search = begun(tmp_path, generations=1)
    while runs := search.next_runs():
        for run in runs:
            train(search, run, "diverged")
    assert report(search).startswith("Nothing was found: every training diverged or failed.")


def test_family_and_front(made: tuple[Search, str]):
    search, _ = made
    members = search.streams[EVOLVED].members
    last = next(m for m in reversed(members) if m.parents)
    lines = family(search, last)
    assert lines[0].startswith(f"#{last.number} ")
    assert lines[1].startswith(f"    #{last.parents[0]} ")
    shown = front(members)
    cost = [member.candidate.operations for member in shown]
    assert cost == sorted(set(cost))
    for member in members:
        cheaper = [s for s in shown if s.candidate.operations <= member.candidate.operations]
        assert max(s.values[-1] for s in cheaper) >= member.values[-1]


def test_known_functions_and_their_places(tmp_path: Path):
    worths = {"x * sigmoid(x)": 0.7, "x * erf(exp(x))": 0.9, "tanh(x)": 0.5, "sin(x)": 0.8,
              "abs(x)": 0.6, "x * tanh(exp(x))": 0.95}  # fmt: skip
    search = begun(tmp_path, space={"leaves": ["x"], "unary": [*worths], "operators": 1})
    while runs := search.next_runs():
        for run in runs:
            worth = worths.get(run.options.get("model.activation.formula", ""), 0.5)
            train(search, run, value=worth + 0.01 * run.options["trainer.max_epochs"])
    report(search)
    lines = (tmp_path / "report.md").read_text().partition("## Known functions")[2]
    lines = lines.partition("## ")[0].splitlines()
    rows = [[*map(str.strip, line.split("|")[1:-1])] for line in lines if "| search |" in line]
    assert [(row[0], row[1], row[4], row[5], row[6]) for row in rows] == [
        ("EELU-1", "x * erf(exp(x))", "2 of 6", "92.00", "2"),
        ("SiLU", "x * sigmoid(x)", "4 of 6", "71.00", "1"),
        ("Tanh", "tanh(x)", "6 of 6", "51.00", "1"),
    ]


def test_screens_are_counted(capsys: pytest.CaptureFixture[str]):
    assert search.__main__.main(["screen", "swish", "-n", "60"]) == 0
    lines = capsys.readouterr().out.splitlines()
    counts = [int(line.split()[-2]) for line in lines if line.endswith("%")]
    assert sum(counts) == 60
    assert lines[0].startswith("passed")
    assert any(line.startswith("60 functions in") for line in lines)
    assert search.__main__.main(["screen", "swsh"]) == 2
    assert "no preset 'swsh'; known are eelu, swish, aquasurf, pangaea" in capsys.readouterr().err
