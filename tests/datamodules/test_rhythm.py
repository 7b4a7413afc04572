"""The rhythm around heart beats: counted by hand, of the record alone, the same everywhere."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import wfdb

import models
import train
from datamodules import MITBIH, WFDBBeats
from datamodules.beats import RHYTHM, rhythm
from datamodules.mitbih import DS2
from tests.data import write_records

ONE: dict[str, Any] = {"window": (0.2, 0.3)}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Any]]:
    root = tmp_path_factory.mktemp("rhythm") / "db"
    return root, write_records(root)


def test_intervals_counted_by_hand():
    """Peaks at 0, 1, 3, 3.5 and 5.5 s: intervals of 1, 2, 0.5 and 2 s, 1.375 s on average."""
    found = rhythm(np.array([0, 100, 300, 350, 550]), 100, True)
    #   before, after, mean of all that there are (fewer than ten), before / mean
    rows = [[1, 1, 1.375], [1, 2, 1.375], [2, 0.5, 1.375], [0.5, 2, 1.375], [2, 2, 1.375]]
    expected = [[*row, row[0] / row[2]] for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
    both = rhythm(np.array([0, 100, 300, 350, 550]), 100, "patient")
    np.testing.assert_array_equal(both[:, :4], found)
    np.testing.assert_allclose(both[:, 4:], np.array(rows) / 1.375, rtol=1e-6)
    assert [len(RHYTHM[kind]) for kind in (True, "patient")] == [4, both.shape[1]]  # their names


def test_the_local_mean_is_of_the_ten_intervals_around_a_beat():
    """Intervals of 1 s, but the eighth of 11 s: the means of the five before and five after."""
    intervals = [1] * 7 + [11] + [1] * 12
    found = rhythm(np.cumsum([0, *intervals]), 1, True)[:, 2]
    # beat k stands between intervals k - 1 and k; those from k - 5 to k + 4 count
    expected = [
        np.mean([v for n, v in enumerate(intervals) if k - 5 <= n < k + 5]) for k in range(21)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[10] == 2
    assert found[13] == 1


@pytest.mark.parametrize(("peaks", "why"), [([5], "1, not two"), ([5, 9, 8], "not in the order")])
def test_peaks_without_a_rhythm(peaks: list[int], why: str):
    with pytest.raises(ValueError, match=f"needs all R peaks of a record: these are {why}"):
        rhythm(np.array(peaks), 360, True)


def test_beats_know_the_rhythm_of_their_own_record(records: Any):
    """Also of neighbours whose window leaves the record; the signals and draws are as without."""
    root, written = records
    kinds: dict[Any, int] = {True: 4, "patient": 7}
    for kind, size in kinds.items():
        data, plain = MITBIH(str(root), rr=kind), MITBIH(str(root))
        for each in (data, plain):
            each.setup("fit")
            each.setup("test")
        assert (data.side_size, plain.side_size) == (size, 0)
        seen = set()
        for batch in data.test_dataloader():
            for index, row in zip(batch[2].tolist(), batch[3].numpy(), strict=True):
                told = data.describe(index)
                times = [sample / 360 for sample, _ in written[told["record"]]]
                at = min(range(len(times)), key=lambda k: abs(times[k] - float(told["time"])))
                seen.add((told["record"], at))
                if 0 < at < len(times) - 1:
                    near = [times[at] - times[at - 1], times[at + 1] - times[at]]
                    np.testing.assert_allclose(row[:2], near, rtol=1e-5)
                low, high = max(at - 5, 0), min(at + 5, len(times) - 1)
                local = (times[high] - times[low]) / (high - low)
                np.testing.assert_allclose(row[2:4], [local, row[0] / local], rtol=1e-5)
                if kind == "patient":
                    mean = (times[-1] - times[0]) / (len(times) - 1)
                    np.testing.assert_allclose(row[4:], row[:3] / mean, rtol=1e-5)
        assert {record for record, _ in seen} == set(DS2)
        assert min(at for _, at in seen) == 1  # the first beat is dropped, its time counts
        pairs = zip(data.train_dataloader(), plain.train_dataloader(), strict=True)
        for ours, theirs in pairs:
            assert len(theirs) == 3
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=False))
        assert plain.side_statistics is None
        mean, _ = data.side_statistics or (torch.empty(0), None)
        assert len(mean) == size


def test_files_of_any_rate(tmp_path: Path):
    """At 250 a second; a record with a single beat is named."""
    for name, peaks in (("a", [300, 500, 760]), ("b", [400, 700, 900]), ("c", [100, 400, 650])):
        signal = np.random.default_rng(0).normal(0, 0.1, (1250, 1))
        wfdb.wrsamp(name, 250, ["mV"], ["II"], signal, fmt=["212"], adc_gain=[200], baseline=[0],
                    write_dir=str(tmp_path))  # fmt: skip
        wfdb.wrann(name, "atr", np.array(peaks), ["N"] * 3, write_dir=str(tmp_path))
    data = WFDBBeats(str(tmp_path), rr=True, test_records=["a"], val_records=["b"], **ONE)
    data.setup("test")
    [[_, _, _, side]] = list(data.test_dataloader())
    expected = [[0.8, 0.8], [0.8, 1.04], [1.04, 1.04]]
    np.testing.assert_allclose(side[:, :2], expected, rtol=1e-6)
    wfdb.wrann("c", "atr", np.array([700]), ["N"], write_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"record 'c': the rhythm .* these are 1, not two or more"):
        WFDBBeats(str(tmp_path), rr=True, test_records=["a"], **ONE).setup("test")


def test_kaggles_files_have_no_rhythm():
    with pytest.raises(ValueError, match="do not say whose beats they hold: set rr to false"):
        MITBIH(protocol="kaggle", rr=True)


def test_from_training_to_onnx(records: Any, tmp_path: Path, monkeypatch: Any, capsys: Any):
    """A run, its test, a loaded network, a prediction and an exported file agree beat by beat."""
    root, written = records
    monkeypatch.chdir(tmp_path)
    data = ["--data", "MITBIH", "--data.root", str(root), "--data.rr", "patient"]
    options = ["--model.backbone", "resnet8", "--trainer.max_epochs", "1", "--trainer.accelerator",
               "cpu", "--data.cache_dir", str(tmp_path), "--monitor.figure", "false",
               "--trainer.log_every_n_steps", "1"]  # fmt: skip
    train.main(["fit", *data, *options, "--test_after_fit", "best", "--data.batch_size", "64"])
    [run] = (tmp_path / "runs").glob("*/version_0")
    tested = np.load(run / "test.npz")
    network = models.load(run)
    x, side = network.preprocess(root / "100")
    assert side.shape == (len(x), 7)
    shares = network(x, side).softmax(1).detach().numpy()
    np.testing.assert_allclose(tested["probability"][tested["group"] == 100], shares, atol=1e-5)

    record: Any = wfdb.rdrecord(str(root / "100"))
    peaks = [sample for sample, _ in written[100]]
    again = network.preprocess(record.p_signal[:, 0], rate=360, peaks=peaks)
    assert torch.equal(again[0], x)
    assert torch.equal(again[1], side)
    with pytest.raises(ValueError, match="a beat alone has no rhythm, which this network takes"):
        network.preprocess(np.zeros(187))

    train.main(["predict", "--ckpt_path", str(run), "--predictions.input", str(root / "100")])
    rows = np.genfromtxt("predictions.csv", delimiter=",", names=True, dtype=None, encoding=None)
    np.testing.assert_allclose(rows["probability_N"], shares[:, 0], atol=2e-6)

    raw = ["--include_preprocessing", "true", "--format", "onnx", "hub"]
    train.main(["export", "--ckpt_path", str(run), *raw])
    said = capsys.readouterr().out
    assert "input (N, 1x187) and side input (N, 7); compared on the test set of MITBIH" in said
    session = onnxruntime.InferenceSession(run / "export" / "model.onnx")
    shapes = {each.name: each.shape for each in session.get_inputs()}
    assert shapes == {"input": ["batch", 1, 187], "side": ["batch", 7]}
    found: Any = session.run(None, {"input": x.numpy(), "side": side.numpy()})[0]
    np.testing.assert_allclose(torch.tensor(found).softmax(1), shares, atol=1e-4)
    card = (run / "export" / "README.md").read_text()
    assert (
        "| RR before in s, RR after in s, mean RR of the ten around in s, first / third, " in card
    )
    assert 'network(*network.preprocess("path/of/a/record"))' in card
