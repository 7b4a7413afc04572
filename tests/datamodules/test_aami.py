"""What EC57 asks for, against scikit-learn, against counts by hand, and of annotation files."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, recall_score

from datamodules.aami import KINDS, compare, main, measures, of_tests, report, report_of
from datamodules.beats import AAMI, SYMBOLS


def beats(seed: int = 0, classes: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and predicted classes of 3000 beats of unequal classes, and their records."""
    draw = np.random.default_rng(seed)
    shares = np.geomspace(1, 0.02, classes)
    true = draw.choice(classes, 3000, p=shares / shares.sum())
    predicted = np.where(draw.random(3000) < 0.7, true, draw.integers(0, classes, 3000))
    return true, predicted, draw.choice([100, 103, 105, 200], 3000)


def test_against_scikit_learn():
    true, predicted, record = beats()
    table = report(true, predicted, record).tables["aami"]
    assert list(table.index) == ["gross", "average", "100", "103", "105", "200"]
    for row, inside in [
        ("gross", record > 0),
        *((str(r), record == r) for r in (100, 103, 105, 200)),
    ]:
        t, p = true[inside], predicted[inside]
        found = table.loc[row]
        assert found["accuracy"] == pytest.approx(accuracy_score(t, p))
        assert found["majority"] == pytest.approx(accuracy_score(t, np.zeros(len(t))))
        assert found["kappa"] == pytest.approx(cohen_kappa_score(t, p))
        assert found["beats"] == len(t)
        each: Any = None  # scikit-learn's stubs expect a word
        recalls: Any = recall_score(t, p, average=each)
        for kind, recall in zip(KINDS, recalls, strict=True):
            assert found[f"{kind} Se"] == pytest.approx(recall)
            assert found[f"{kind} beats"] == (t == KINDS.index(kind)).sum()
            # fusion and unknown beats are no false V, unknown ones no false S
            ignored = {"V": "FQ", "S": "Q"}.get(kind, "")
            counted = ~np.isin(t, [KINDS.index(k) for k in ignored]) | (p != KINDS.index(kind))
            binary = [x[counted] == KINDS.index(kind) for x in (t, p)]
            tn, fp, _, tp = confusion_matrix(*binary).ravel()
            assert found[f"{kind} +P"] == pytest.approx(tp / (tp + fp))
            assert found[f"{kind} FPR"] == pytest.approx(fp / (fp + tn))
            assert found[f"{kind} Acc"] == pytest.approx(accuracy_score(*binary))
        four = [found[f"{kind} {part}"] for kind in "SV" for part in ("Se", "+P")]
        assert found["j"] == pytest.approx(sum(four))
        assert found["j-kappa"] == pytest.approx(0.5 * found["kappa"] + 0.125 * sum(four))
    columns = [f"{kind} {part}" for kind in KINDS for part in ("Se", "+P", "FPR")]
    records = table.loc[["100", "103", "105", "200"], columns]
    np.testing.assert_allclose(
        table.loc["average", columns].astype(float), records.mean().astype(float)
    )
    alone = report(true, predicted, None)
    assert list(alone.tables["aami"].index) == ["gross"]
    assert "average" not in alone.text


def test_counted_by_hand():
    """100 N, 10 S, 20 V, 5 F and 2 Q; the formulas are those of WFDB's bxb."""
    matrix = np.zeros((6, 6), dtype=int)
    matrix[0, :3] = 90, 6, 4
    matrix[1, :3] = 3, 6, 1
    matrix[2, :4] = 2, 1, 16, 1
    matrix[3, [0, 2, 3]] = 1, 3, 1
    matrix[4, [1, 2]] = 1, 1
    found = measures(matrix)
    assert found["V Se"] == 16 / 20
    assert found["V +P"] == pytest.approx(16 / (16 + 4 + 1))  # not the 3 F and the 1 Q
    assert found["V FPR"] == pytest.approx(5 / (5 + 96 + 9 + 2 + 1))
    assert found["S Se"] == 6 / 10
    assert found["S +P"] == pytest.approx(6 / (6 + 6 + 1))  # not the Q
    assert found["S FPR"] == pytest.approx(7 / (7 + 94 + 19 + 5 + 1))
    assert found["N +P"] == pytest.approx(90 / 96)
    assert found["F +P"] == 1 / 2
    assert np.isnan(found["Q +P"])
    assert found["Q Se"] == 0
    assert (found["accuracy"], found["majority"]) == (113 / 137, 100 / 137)
    assert "QRS Se" not in found
    counts = report_of({"a": matrix, "b": 2 * matrix}).tables["aami_counts"]
    assert counts.loc[["gross", "a", "b"], "Fv"].tolist() == [9, 3, 6]
    assert "No" not in counts


def test_annotations_are_of_the_class_that_holds_them():
    true, predicted, record = beats(1, len(SYMBOLS))
    of = {symbol: number for number, each in enumerate(AAMI.values()) for symbol in each}
    kind, called = (np.array([of[SYMBOLS[each]] for each in side]) for side in (true, predicted))
    fine, coarse = report(true, predicted, record, SYMBOLS), report(kind, called, record)
    pd.testing.assert_frame_equal(fine.tables["aami"], coarse.tables["aami"])


def write(folder: Path, suffix: str, notes: list[tuple[float, str]]) -> Path:
    import wfdb

    samples = np.array([round(360 * seconds) for seconds, _ in notes])
    wfdb.wrann("100", suffix, samples, [symbol for _, symbol in notes], write_dir=str(folder))
    return folder / f"100.{suffix}"


def test_two_annotation_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """By hand: one beat is missed, two are none, one is 0.15 s late and one a little more."""
    import wfdb

    wfdb.wrsamp("100", 360, ["mV"], ["MLII"], np.zeros((3600, 1)), fmt=["16"], adc_gain=[200],
                baseline=[0], write_dir=str(tmp_path))  # fmt: skip
    (tmp_path / "out").mkdir()
    truth = [(1, "N"), (1.5, "+"), (2, "V"), (3, "L"), (4, "A"), (5, "F"), (6, "N"), (7, "N")]
    guess = [(1.02, "N"), (1.98, "V"), (2.5, "S"), (3.15, "N"), (5, "V"), (6.16, "N"), (7, "S")]
    reference, test = write(tmp_path, "atr", truth), write(tmp_path / "out", "net", guess)
    counts = compare(reference, test)
    expected = np.zeros((6, 6), dtype=int)
    for cell in ("Nn", "Vv", "Nn", "So", "Fv", "No", "Ns", "Os", "On"):
        expected["NSVFQO".index(cell[0]), "nsvfqo".index(cell[1])] += 1
    assert counts.tolist() == expected.tolist()
    found = measures(counts)
    assert found["QRS Se"] == pytest.approx(5 / 7)
    assert found["QRS +P"] == pytest.approx(5 / 7)
    assert found["N Se"] == 2 / 4
    assert found["S +P"] == 0
    assert found["V +P"] == 1
    words = ["aami", str(tmp_path), str(test), "--to", str(tmp_path / "to")]
    monkeypatch.setattr("sys.argv", words)
    main()
    printed = capsys.readouterr().out
    assert "7 beats of 1 record: accuracy 0.4286" in printed
    assert "QRS Se 0.7143, QRS +P 0.7143" in printed
    table = pd.read_csv(tmp_path / "to" / "aami_counts.csv", index_col="record")
    assert table.loc["gross", ["Nn", "So", "No", "Ns", "Os", "On"]].tolist() == [2, 1, 1, 1, 1, 1]
    late = np.zeros(
        (6, 6), dtype=int
    )  # from 3.1 s: the L and its partner at 3.15 s are not counted
    for cell in ("So", "Fv", "No", "Ns", "On"):
        late["NSVFQO".index(cell[0]), "nsvfqo".index(cell[1])] += 1
    assert compare(reference, test, start=3.1).tolist() == late.tolist()
    write(tmp_path, "atr", sorted([*truth, (2.2, "["), (2.6, "]")]))  # fibrillation
    assert (counts - compare(reference, test)).nonzero() == ([5], [1])
    empty = write(tmp_path / "out", "none", [(0.5, "+")])
    assert compare(reference, empty)[:, 5].tolist() == [4, 1, 1, 1, 0, 0]
    for more, message in {
        (str(test),): "several files are of the record 100: name one of each",
        ("--start", "10"): r"no beat of 100 counts \(--start 10\)",
    }.items():
        monkeypatch.setattr("sys.argv", [*words[:3], *more])
        with pytest.raises(SystemExit, match=message):
            main()
    monkeypatch.setattr("sys.argv", ["aami", "test.npz", "--start", "300"])
    with pytest.raises(SystemExit):
        main()
    assert "--start 300 needs annotation files" in capsys.readouterr().err


def test_tests_of_several_networks_are_one(tmp_path: Path):
    """Such as a network for each patient."""
    true, predicted, record = beats(2)
    files = []
    for each in np.unique(record):
        files.append(tmp_path / f"{each}.npz")
        mine = record == each
        shares = np.eye(5)[predicted[mine]]
        np.savez(files[-1], label=true[mine], probability=shares, group=record[mine])
    whole = report(true, predicted, record)
    [found] = of_tests(files).values()
    assert found.text == whole.text
    pd.testing.assert_frame_equal(found.tables["aami"], whole.tables["aami"])
    with pytest.raises(ValueError, match="several files are of the record 100"):
        of_tests([*files, files[0]])


def test_a_test_file_of_other_data_is_refused(tmp_path: Path):
    file = tmp_path / "test.npz"
    np.savez(file, label=[0, 1], probability=np.eye(2))
    with pytest.raises(ValueError, match=r"test.npz: not the five classes of EC57"):
        of_tests([file])


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_test_file_is_one_sentence(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "test.npz"
    np.savez(file, label=[0, 1], probability=np.eye(5)[:2])
    file.write_bytes(file.read_bytes()[:size])
    monkeypatch.setattr("sys.argv", ["aami", str(file)])
    with pytest.raises(SystemExit, match=r"^error: "):
        main()
