"""MIT-BIH: what is cut out of the records, who is in which split, and what damage is told."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules import MITBIH
from datamodules.beats import AAMI, SYMBOLS, Window, cut, read_beats, spectrogram
from datamodules.mitbih import DS1, DS2, PACED, VALIDATION
from datamodules.records import known_sums
from models.deployed import spectrogram as deployed_spectrogram
from tests.data import part_of, write_kaggle, write_records

CLASS = {symbol: name for name, symbols in AAMI.items() for symbol in symbols}
PLAIN: dict[str, Any] = {"rate": None, "baseline": False, "normalize": "none"}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("physionet") / "with space é"
    return root, write_records(root)


def ready(root: Path, **options: Any) -> MITBIH:
    data = MITBIH(str(root), **options)
    data.setup("fit")
    data.setup("test")
    return data


def split(data: MITBIH, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Signals, labels and positions."""
    signals, labels = part_of(data, "test" if name == "test" else "train")
    index = {"train": data.train_indices, "val": data.val_indices, "test": data.test_indices}[name]
    return signals[index], labels[index], index


def test_lists_of_records():
    assert len({*DS1, *DS2, *PACED}) == 48
    assert (len(DS1), len(DS2)) == (22, 22)
    assert set(VALIDATION) < set(DS1)
    assert "".join(AAMI.values()).translate(str.maketrans("", "", SYMBOLS)) == ""


def test_records_may_be_given_as_text():
    assert MITBIH(val_records=["101", "118"]).val_records == (101, 118)


def test_patients_are_in_one_split_alone(records: Any):
    root, written = records
    data = ready(root)
    for name, wanted in (
        ("train", set(DS1) - set(VALIDATION)),
        ("val", set(VALIDATION)),
        ("test", set(DS2)),
    ):
        _, labels, index = split(data, name)
        beats = [data.describe(int(i)) for i in index]
        assert {beat["record"] for beat in beats} == wanted
        assert {beat["lead"] for beat in beats} == {"MLII"}
        # each annotated beat but those whose 62 + 125 samples leave the 1750 of 14 s
        expected = Counter(
            (record, f"{sample / 360:.3f}", CLASS[symbol])
            for record in wanted
            for sample, symbol in written[record]
            if 62 <= round(sample * 125 / 360) <= 1750 - 125
        )
        found = zip(beats, labels.tolist(), strict=True)
        assert expected == Counter((b["record"], b["time"], data.class_names[y]) for b, y in found)
        assert expected.total() < sum(len(written[record]) for record in wanted)


def test_without_validation_all_of_ds1_trains(records: Any):
    data = ready(records[0], val_fraction=0)
    assert {data.describe(int(i))["record"] for i in data.train_indices} == set(DS1)
    assert len(data.val_indices) == 0
    assert {data.describe(int(i))["record"] for i in data.test_indices} == set(DS2)


def test_what_is_annotated_and_lost_is_told(records: Any, caplog: pytest.LogCaptureFixture):
    root, written = records
    with caplog.at_level("INFO"):
        ready(root, protocol="intra_patient", window=(0.2, 0.2))
    for name, part in (("DS1", DS1), ("DS2", DS2), ("paced", (107, 217))):
        beats = [beat for record in part for beat in written[record]]
        lost = [symbol for s, symbol in beats if not 72 <= s < 14 * 360 - 71]
        counts = (Counter(map(CLASS.get, kinds)) for kinds in ([s for _, s in beats], lost))
        total, gone = ("/".join(str(c[k]) for k in AAMI) for c in counts)
        assert f"MITBIH {name}: {total} beats annotated (N/S/V/F/Q); {gone} of them" in caplog.text
    assert "MITBIH: left out, without a lead MLII: 102, 104" in caplog.text


def test_windows_hold_the_written_samples_of_the_lead(records: Any):
    import wfdb

    root, _ = records
    data = ready(root, window=(0.25, 0.4), **PLAIN)
    signals, _, index = split(data, "train")
    assert signals.shape[1:] == (1, 234)
    assert data.image_size == 234
    checked = set()
    for signal, i in zip(signals, index, strict=True):
        about = data.describe(int(i))
        if about["record"] not in (114, 101, 106):
            continue
        record: Any = wfdb.rdrecord(str(root / str(about["record"])))
        lead = record.sig_name.index("MLII")
        peak = round(float(about["time"]) * 360)
        expected = record.p_signal[peak - 90 : peak + 144, lead]
        np.testing.assert_allclose(signal[0], expected, atol=1e-6)
        checked.add((about["record"], lead))
    assert checked == {(114, 1), (106, 0)}  # 101 validates


def test_resampling_keeps_the_time_axis():
    times = np.arange(20 * 360) / 360
    window = Window(("MLII",), 2, 0.5, 0.996, 125.0, False, "none")
    peaks = np.array([100, 1800, 3601, 7100])
    waves = np.stack([np.sin(2 * np.pi * 5 * times), np.sin(2 * np.pi * 3 * times)])
    beats, inside = cut(waves, peaks, window, 360)
    assert inside.tolist() == [False, True, True, False]
    assert beats.shape == (2, 2, 187)
    for beat, peak in zip(beats, peaks[inside], strict=True):
        start = (round(peak * 125 / 360) - round(0.5 * 125)) / 125
        for lead, hertz in zip(beat, (5, 3), strict=True):
            expected = np.sin(2 * np.pi * hertz * (start + np.arange(187) / 125))
            np.testing.assert_allclose(lead, expected, atol=0.01)


@pytest.mark.parametrize("rate", [249.89, 124.945, 1000.1])
def test_beats_stay_under_their_peaks_at_odd_rates(rate: float):
    peaks = np.round(np.arange(1, 1700) * rate).astype(int)  # one a second, for half an hour
    wave = np.zeros((1, int(1702 * rate)))
    wave[0, peaks] = 1
    beats, inside = cut(wave, peaks, Window(("",), 1, 0.2, 0.2, 125.0, False, "none"), rate)
    assert inside.all()
    assert (np.abs(beats[:, 0].argmax(1) - 25) <= 1).all()


def test_the_peak_stands_where_the_window_says(records: Any):
    signals, labels, _ = split(ready(records[0]), "train")
    narrow = signals[labels == 0, 0]
    at = narrow[:, 40:85].argmax(1) + 40
    assert signals.shape[1:] == (1, 187)
    assert ((at - 62).abs() <= 1).float().mean() > 0.95


def test_baseline_and_normalisation(records: Any):
    def signals(**options: Any) -> Tensor:
        found = read_beats(records[0] / "101", MITBIH(**options).cut, {})
        assert not isinstance(found, list)
        return torch.from_numpy(found.signals[:, 0])

    drifting, flat = signals(normalize="none", baseline=False), signals(normalize="none")
    assert drifting.median(-1).values.abs().mean() > 0.2
    assert flat.median(-1).values.abs().mean() < 0.05
    assert flat.amax(-1).mean() > 0.8  # the beats are still there
    scaled = signals(normalize="zscore")
    torch.testing.assert_close(scaled.mean(-1), torch.zeros(len(scaled)), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(-1, correction=0), torch.ones(len(scaled)))
    unit = signals(normalize="minmax")
    assert unit.amin(-1).eq(0).all()
    assert unit.amax(-1).sub(1).abs().max() < 1e-6
    window = Window(("",), 1, 0.5, 0.5, 125.0, False, "zscore")
    constant, _ = cut(np.ones((1, 2000)), np.array([900]), window, 360)
    assert np.abs(constant).max() < 0.1  # a dead lead is no division by zero


def test_intra_patient_splits_every_class(records: Any):
    data = ready(records[0], protocol="intra_patient", test_fraction=0.25, val_fraction=0.2)
    parts = {name: split(data, name) for name in ("train", "val", "test")}
    index = torch.cat([part[2] for part in parts.values()])
    labels = torch.cat([part[1] for part in parts.values()])
    assert data._train is not None
    assert index.sort().values.tolist() == list(range(len(data._train[1])))
    counts = {name: part[1].bincount(minlength=5) for name, part in parts.items()}
    total = labels.bincount(minlength=5)
    assert torch.equal(counts["test"], (total * 0.25).round().long())
    assert torch.equal(counts["val"], ((total - counts["test"]) * 0.2).round().long())
    found = {data.describe(int(i))["record"] for i in index}
    assert found == {*DS1, *DS2, 107, 217}
    again = ready(records[0], protocol="intra_patient", test_fraction=0.25, val_fraction=0.2)
    assert torch.equal(again.test_indices, data.test_indices)
    other = ready(records[0], protocol="intra_patient", test_fraction=0.25, split_seed=1)
    assert not torch.equal(other.test_indices, data.test_indices)


def test_another_lead_where_a_record_lacks_the_first(
    records: Any, caplog: pytest.LogCaptureFixture
):
    import wfdb

    root, _ = records
    data = ready(root, protocol="intra_patient", lead=["MLII", "V5"], window=(0.2, 0.2), **PLAIN)
    told = [data.describe(i) for i in range(len(part_of(data, "train")[1]))]
    by_lead = {name: {t["record"] for t in told if t["lead"] == name} for name in ("MLII", "V5")}
    assert by_lead == {"MLII": {*DS1, *DS2, *PACED} - {102, 104}, "V5": {102, 104}}
    signals, _ = part_of(data, "train")
    for about, signal in zip(told, signals, strict=True):
        if about["record"] not in (102, 114):
            continue
        record: Any = wfdb.rdrecord(str(root / str(about["record"])))
        peak = round(float(about["time"]) * 360)
        lead = record.p_signal[peak - 72 : peak + 72, record.sig_name.index(about["lead"])]
        np.testing.assert_allclose(signal[0], lead, atol=1e-6)
    assert data.description["lead"] == ["MLII", "V5"]
    with pytest.raises(ValueError, match="in a split of 5 records; without a lead V5: 101, 118"):
        ready(root, lead="V5")
    with pytest.raises(ValueError, match=r"a lead MLII and 2 more: 100 has MLII and V1"):
        ready(root, leads=3)


def test_both_leads_are_the_channels_of_a_beat(records: Any):
    root, _ = records
    one, two = (ready(root, leads=n, batch_size=8) for n in (1, 2))
    assert (two.in_channels, two.image_size) == (2, 187)
    first, second = part_of(one, "train")[0], part_of(two, "train")[0]
    assert torch.equal(first[:, 0], second[:, 0])
    assert second.shape == (len(first), 2, 187)
    assert not torch.allclose(second[:, 0], second[:, 1])
    leads = {two.describe(i)["record"]: two.describe(i)["lead"] for i in range(len(second))}
    assert (leads[100], leads[114]) == ("MLII+V1", "MLII+V5")  # 114 has V5 first
    for representation, shape in (("image", (8, 2, 1, 187)), ("spectrogram", (8, 2, 32, 32))):
        data = ready(root, leads=2, batch_size=8, representation=representation)
        images, _, index = next(iter(data.train_dataloader()))
        assert images.shape == shape
        of_one = ready(root, representation=representation).transform_batch(first[index])
        torch.testing.assert_close(images[:, :1], of_one)


def test_kaggles_beats_cut_anew(records: Any):
    """By hand: from R to 1.2 median RR at 125 Hz, in [0, 1], then zeros; all records but their last beat."""
    import wfdb
    from scipy.signal import resample_poly

    root, written = records
    data = ready(root, protocol="kaggle_rebuilt", test_fraction=0.25)
    signals, labels = part_of(data, "train")
    assert len(labels) == sum(len(beats) - 1 for beats in written.values())
    assert signals.shape[1:] == (1, 187)
    position = 0
    for record in sorted(written):
        lead = "V5" if record in (102, 104) else "MLII"
        read: Any = wfdb.rdrecord(str(root / str(record)), channel_names=[lead])
        signal = resample_poly(read.p_signal[:, 0], 25, 72, padtype="line")
        peaks = np.array([round(sample * 125 / 360) for sample, _ in written[record]])
        length = round(1.2 * float(np.median(peaks[1:] - peaks[:-1])))
        assert length < 187
        for peak, (_, symbol) in list(zip(peaks, written[record], strict=True))[:-1]:
            part = signal[peak : peak + length]
            expected = np.zeros(187)
            expected[: len(part)] = (part - part.min()) / (part.max() - part.min())
            np.testing.assert_allclose(signals[position, 0], expected, atol=1e-5)
            assert data.class_names[int(labels[position])] == CLASS[symbol]
            position += 1
    index = torch.cat([data.train_indices, data.val_indices, data.test_indices])
    assert index.sort().values.tolist() == list(range(len(labels)))


def test_the_first_minutes_of_a_patient_are_for_training(
    records: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("datamodules.mitbih.LEARNING", 5)  # the records last 14 s
    apart = ready(records[0])
    for patient, tested in ((None, set(DS2)), (200, {200})):
        data = ready(records[0], protocol="patient_specific", patient=patient)
        assert torch.equal(data.val_indices, apart.val_indices)
        added = set(data.train_indices.tolist()) - set(apart.train_indices.tolist())
        assert set(apart.train_indices.tolist()) < set(data.train_indices.tolist())
        whole = [int(i) for i in apart.test_indices if data.describe(int(i))["record"] in tested]
        early = {i for i in whole if float(data.describe(i)["time"]) < 5}
        assert added == early
        assert set(data.test_indices.tolist()) == set(whole) - early
        assert early
        assert len(early) < len(whole) / 2


def test_symbols_and_a_class_too_small_to_split(records: Any, tmp_path: Path):
    root = tmp_path / "few"
    shutil.copytree(records[0], root)
    for record in (set(DS1) | set(DS2)) - {100}:  # only record 100 keeps its e and j
        rewrite(root, record, lambda symbol: "N" if symbol in "ej" else symbol)
    data = ready(root, classes="symbols", protocol="intra_patient")
    assert data.class_names == tuple("NLRejAaJSVEF/fQ")
    assert data.num_classes == 15
    counts = {
        name: split(data, name)[1].bincount(minlength=15) for name in ("train", "val", "test")
    }
    for symbol in "ej":
        at = data.class_names.index(symbol)
        assert [counts[name][at].item() for name in ("train", "val", "test")] == [1, 0, 0]
    assert all((counts[name][[0, 1, 5, 9]] > 0).all() for name in counts)


def rewrite(root: Path, record: int, change: Any) -> None:
    import wfdb

    notes = wfdb.rdann(str(root / str(record)), "atr")
    symbols = [change(symbol) for symbol in notes.symbol or []]
    wfdb.wrann(str(record), "atr", np.asarray(notes.sample), symbols, write_dir=str(root))


def test_kaggles_files(tmp_path: Path):
    table = write_kaggle(tmp_path)
    data = ready(tmp_path, protocol="kaggle", val_fraction=0.25)
    signals, labels, index = split(data, "test")
    np.testing.assert_allclose(signals[:, 0].numpy(), table[:, :187], rtol=1e-6)
    assert labels.tolist() == [row % 5 for row in range(40)]
    assert data.describe(int(index[7])) == {"row": 8}
    train, val = split(data, "train"), split(data, "val")
    assert not set(train[2].tolist()) & set(val[2].tolist())
    assert val[1].bincount().tolist() == [2] * 5
    assert train[1].bincount().tolist() == [6] * 5
    assert (data.image_size, data.num_classes, data.dims) == (187, 5, 1)


@pytest.mark.parametrize(
    ("representation", "dims", "size", "shape"),
    [
        ("signal", 1, 187, (1, 187)),
        ("image", 2, 187, (1, 1, 187)),
        ("spectrogram", 2, 32, (1, 32, 32)),
    ],
)
def test_representations(records: Any, representation: Any, dims: int, size: int, shape: tuple):
    data = ready(records[0], representation=representation, batch_size=16)
    assert (data.dims, data.image_size, data.in_channels) == (dims, size, 1)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        images, labels, index = next(iter(loader))
        assert images.shape[1:] == shape
        assert images.dtype == torch.float32
        assert images.isfinite().all()
        assert len(images) == len(labels) == len(index)


def test_spectrogram_shows_frequency_and_time():
    times = torch.arange(187) / 125
    for hertz in (10, 20, 40):
        image = spectrogram(torch.sin(2 * torch.pi * hertz * times).view(1, 1, -1))[0, 0]
        assert image.shape == (32, 32)
        assert 31 - image[:, 8:24].mean(1).argmax() == round(hertz * 62 / 125)
    click = torch.zeros(1, 1, 187)
    click[..., 130] = 1
    assert spectrogram(click)[0, 0].mean(0).argmax() == pytest.approx(130 / 6, abs=1)
    assert spectrogram(torch.zeros(1, 1, 187)).isfinite().all()


@pytest.mark.parametrize("length", [32, 61, 88, 260, 500])
def test_a_spectrogram_shows_the_whole_of_a_beat_of_any_length(length: int):
    click = torch.zeros(length // 8, 1, length)
    places = torch.arange(length // 8) * 8 + 4
    click[torch.arange(len(places)), 0, places] = 1
    images = spectrogram(click)
    assert images.shape[1:] == (1, 32, 32)
    found = images[:, 0].mean(1).argmax(1)
    assert (found - places * 32 / length).abs().max() < 3
    torch.testing.assert_close(deployed_spectrogram(click), images, rtol=1e-3, atol=1e-3)


def test_balance(records: Any):
    data = ready(records[0], balance="sampling", batch_size=32)
    drawn = torch.cat([y for _ in range(20) for _, y, _ in epochs(data, _)])
    shares = drawn.bincount(minlength=5) / len(drawn)
    assert (shares - 0.2).abs().max() < 0.05
    assert data.class_weights is None
    data = ready(records[0], balance="loss")
    labels = split(data, "train")[1]
    weights = data.class_weights
    assert weights is not None
    assert weights[labels].mean() == pytest.approx(1)
    products = weights * labels.bincount(minlength=5)
    torch.testing.assert_close(products, products.mean().expand(5))


def epochs(data: MITBIH, epoch: int):
    loader = data.train_dataloader()
    loader.set_epoch(epoch)
    return loader


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_records": [100, 101]}, "val_records 100 are not in DS1"),
        ({"patient": 101, "protocol": "patient_specific"}, "patient 101 is not in DS2"),
        ({"patient": 100}, "patient 100 needs the protocol patient_specific"),
        ({"val_fraction": 0.5}, "val_fraction 0.5 has no effect with inter_patient"),
        ({"protocol": "kaggle", "val_records": [101]}, "val_records has no effect with kaggle"),
        ({"leads": 0}, "leads must be an integer from 1"),
        ({"lead": []}, "lead must name a signal, such as MLII"),
        ({"test_fraction": 1}, "test_fraction must be"),
        ({"val_records": []}, "not none and not all"),
        ({"val_records": list(DS1)}, "not none and not all"),
        ({"rate": 0}, "rate must be an integer from 10 to 3600"),
        ({"window": (-0.1, 0.5)}, "window must be two times >= 0"),
        ({"window": (float("nan"), 0.5)}, "window must be two times >= 0"),
        ({"window": (0.0, 0.001)}, "together hold 8 samples"),
        ({"rate": 1.0}, "rate must be a number from 10 to 3600"),
        ({"test_fraction": 1.5}, "test_fraction must lie between 0 and 1"),
        ({"protocol": "kaggle", "classes": "symbols"}, "set classes to aami and leads to 1"),
    ],
)
def test_bad_options(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MITBIH("nowhere", **options)


def test_missing_files_are_named(records: Any, tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match=r"132 of 132 files .*100.hea.*--data.root DIR.*--data.download"
    ):
        ready(tmp_path)
    shutil.copytree(records[0], tmp_path / "copy")
    (tmp_path / "copy" / "203.atr").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 132 files .*203.atr"):
        ready(tmp_path / "copy")
    with pytest.raises(FileNotFoundError, match=r"mitbih_train.csv.*--data.root DIR"):
        ready(tmp_path, protocol="kaggle")
    with pytest.raises(ValueError, match=r"has a lead MLIII: 100 has MLII and V1, 101 has MLII"):
        ready(records[0], lead="MLIII")


def test_download_fetches_what_is_missing(
    records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import wfdb
    from lightning.pytorch import Trainer

    asked = []

    def fetch(database: str, folder: str, files: list[str], **_: Any) -> None:
        asked.append((database, len(files)))
        for number, name in enumerate(files):
            if len(asked) == 1 and number == 50:
                raise ConnectionError("cut off")
            if name != "SHA256SUMS.txt":
                shutil.copy(records[0] / name, folder)

    monkeypatch.setattr(wfdb, "dl_files", fetch)
    data = MITBIH(str(tmp_path / "new"), download=True)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(
        RuntimeError,
        match=r"could not be downloaded .*cut off.*run it again; complete files are kept",
    ):
        data.prepare_data()
    data.prepare_data()
    data.setup("fit")
    assert asked == [("mitdb", 133), ("mitdb", 85)]  # 16 records of three files had come whole
    data.prepare_data()
    assert len(asked) == 2


DAMAGE = {
    "dat cut off": (".dat", lambda c: c[: len(c) // 2], "bytes, but 100.hea says"),
    "dat changed": (".dat", lambda c: c[:999] + bytes([c[999] ^ 5]) + c[1000:], "checksum"),
    "dat empty": (".dat", lambda c: b"", "bytes, but 100.hea says"),
    "hea cut off": (".hea", lambda c: c[:9], "damaged"),
    "hea empty": (".hea", lambda c: b"", "damaged"),
    "hea rate": (".hea", lambda c: c.replace(b" 360 ", b" 250 "), "250 a second instead of 360"),
    "hea length": (".hea", lambda c: c.replace(b" 5040", b" 5040000000"), "100.hea says"),
    "hea elsewhere": (".hea", lambda c: c.replace(b"100.dat", b"../100.dat"), "invalid syntax"),
    "hea of thousands of signals": (
        ".hea",
        lambda c: c + c.splitlines(True)[1] * 100_000,
        "too many",
    ),
    "hea shifted": (".hea", lambda c: c.replace(b" 212 ", b" 212:100000000000 "), "are shifted"),
    "hea noise": (".hea", lambda c: bytes(range(128, 228)), "damaged"),
    "atr cut off": (".atr", lambda c: c[: len(c) // 2 // 2 * 2], "cut off"),
    "atr empty": (".atr", lambda c: b"", "damaged"),
    "atr late": (".atr", lambda c: c[:-2] + b"\x00\xec\x0f\x00\x00\x00\x05\x04\x00\x00", "outside"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named_with_its_remedy(records: Any, tmp_path: Path, name: str):
    suffix, change, message = DAMAGE[name]
    for file in records[0].glob("100.*"):
        shutil.copy(file, tmp_path)
    file = tmp_path / f"100{suffix}"
    file.write_bytes(change(file.read_bytes()))
    window = Window(("MLII",), 1, 0.2, 0.2, 360, False, "none")
    with pytest.raises(
        ValueError, match=r"100.\w+' is damaged \(.*replace it by a whole copy"
    ) as error:
        read_beats(tmp_path / "100", window, {}, 360)
    assert message in str(error.value)
    assert f"100{suffix}" in str(error.value)


def test_checksums_of_physionet_are_believed(records: Any, tmp_path: Path):
    root = tmp_path / "copy"
    shutil.copytree(records[0], root)
    rewrite(
        root, 215, lambda symbol: "V" if symbol == "N" else symbol
    )  # whole, but not the original
    import hashlib

    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()} {f.name}" for f in records[0].iterdir()]
    (root / "SHA256SUMS.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"215.atr' is damaged \(its SHA-256"):
        ready(root)
    (root / "SHA256SUMS.txt").write_bytes(bytes(range(256)))  # another file of that name
    assert known_sums(root) == {}


CSV_DAMAGE = {
    "column count": (lambda rows: [*rows[:3], rows[3].rsplit(",", 1)[0], *rows[4:]], "is damaged"),
    "all too short": (lambda rows: [row.split(",", 1)[1] for row in rows], "187 columns, not 187 samples and"),
    "a label out of range": (lambda rows: [*rows[:5], rows[5].rsplit(",", 1)[0] + ",5"], "row 6 has the class 5"),
    "no number": (lambda rows: [*rows[:2], "nan" + rows[2][24:], *rows[3:]], "row 3 .*invalid sample"),
    "words": (lambda rows: ["a,b,c", *rows], "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", CSV_DAMAGE)
def test_a_damaged_csv_is_named(tmp_path: Path, name: str):
    write_kaggle(tmp_path)
    change, message = CSV_DAMAGE[name]
    file = tmp_path / "mitbih_train.csv"
    file.write_text("\n".join(change(file.read_text().splitlines())))
    with pytest.raises(ValueError, match=rf"mitbih_train.csv'.*{message}"):
        ready(tmp_path, protocol="kaggle")
