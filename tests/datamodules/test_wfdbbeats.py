"""Folders of WFDB records that are not MIT-BIH: their rate, leads, annotations and splits."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from datamodules import WFDBBeats
from datamodules.records import baseline_of, patient_of, read_notes, read_own
from tests.data import part_of, write_foreign

GROUP = dict(zip("NnBAVrF?S", "NNNSVVFQS", strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    root = tmp_path_factory.mktemp("foreign") / "incart"
    return root, write_foreign(root)


def test_incarts_form(folder: tuple[Path, Any], caplog: pytest.LogCaptureFixture):
    """257 Hz and twelve leads become beats of MIT-BIH's default form; every patient in one split."""
    root, written = folder
    data = WFDBBeats(str(root))
    with caplog.at_level("INFO"):
        data.setup("fit")
        data.setup("test")
    assert "WFDBBeats records: 140/20/20/10/10 beats annotated (N/S/V/F/Q)" in caplog.text
    signals, labels = part_of(data, "train")
    assert signals.shape == (len(labels), 1, 187)
    of = {}
    for split in ("train", "val", "test"):
        index = getattr(data, f"{split}_indices").tolist()
        of[split] = {data.describe(i)["record"] for i in index}
        for i in index:
            about = data.describe(i)
            assert about["lead"] == "II"
            sample = round(float(about["time"]) * 257)
            [symbol] = [s for at, s in written[about["record"]] if at == sample]
            assert data.class_names[int(labels[i])] == GROUP[symbol]
            assert abs(int(signals[i, 0, 40:85].argmax()) + 40 - 62) <= 1
    assert of["train"] | of["val"] | of["test"] == set(written)
    assert [len(each) for each in of.values()] == [6, 2, 2]
    pairs = {frozenset({f"I{n:02}", f"I{n + 1:02}"}) for n in range(1, 10, 2)}  # of one patient
    assert all(pair <= part or not pair & part for pair in pairs for part in of.values())
    named = WFDBBeats(str(root), test_records=["I03", "I04"], val_records=["I01", "I02"])
    named.setup("fit")
    named.setup("test")
    assert {named.describe(int(i))["record"] for i in named.test_indices} == {"I03", "I04"}
    assert {named.describe(int(i))["record"] for i in named.val_indices} == {"I01", "I02"}


@pytest.mark.parametrize(
    "options", [{"test_records": ["I03"]}, {"val_records": ["I03"], "test_records": ["I01", "I02"]}]
)
def test_a_list_of_records_does_not_divide_a_patient(folder: tuple[Path, Any], options: Any):
    data = WFDBBeats(str(folder[0]), **options)
    with pytest.raises(ValueError, match=r"I03 \(\w+\) and I04 \(\w+\) are records of one patient"):
        data.setup("fit")


def test_records_without_beats_are_told(folder: tuple[Path, Any], tmp_path: Path):
    import wfdb

    for suffix in ("hea", "dat"):
        shutil.copy(folder[0] / f"I01.{suffix}", tmp_path)
    wfdb.wrann("I01", "atr", np.array([300]), ["+"], aux_note=["(AFIB"], write_dir=str(tmp_path))
    told = r"no record in .* has an annotated beat whose window lies inside it \(1 records, 0 beats"
    with pytest.raises(ValueError, match=told):
        WFDBBeats(str(tmp_path)).setup("fit")


def test_a_step_of_a_subclass_is_in_the_description(folder: tuple[Path, Any]):
    class Squared(WFDBBeats):
        def transform_batch(self, images):
            return super().transform_batch(images).square()

    assert "Squared.transform_batch" in Squared(str(folder[0])).description["step"]
    assert "step" not in WFDBBeats(str(folder[0])).description


def test_without_validation(folder: tuple[Path, Any]):
    data = WFDBBeats(str(folder[0]), val_fraction=0)
    data.setup("fit")
    data.setup("test")
    assert len(data.val_indices) == 0
    train, test = (
        {data.describe(int(i))["record"] for i in index}
        for index in (data.train_indices, data.test_indices)
    )
    assert (len(train), len(test)) == (8, 2)
    assert not train & test


def test_leads_by_name_and_number(folder: tuple[Path, Any]):
    root, _ = folder
    plain: Any = {"baseline": False, "normalize": "none", "window": (0.3, 0.3)}
    data = WFDBBeats(str(root), lead=["V6", "AVR"], leads=3, test_fraction=1, **plain)
    data.setup("test")
    signals, _ = part_of(data, "test")
    assert data.in_channels == 3
    assert signals.shape[1:] == (3, 75)  # 0.6 s at 125 a second
    heights = signals.amax(-1).median(0).values
    np.testing.assert_allclose(heights, [12, 4, 1], rtol=0.05)
    assert data.describe(0)["lead"] == "V6+AVR+I"
    assert len(data.test_indices) == len(signals)


def test_all_records_are_the_test_set_of_another_network(folder: tuple[Path, Any]):
    data = WFDBBeats(str(folder[0]), test_fraction=1)
    data.setup("test")
    assert len({data.describe(int(i))["record"] for i in data.test_indices}) == 10
    with pytest.raises(ValueError, match="no record is left for a split, of 5 patients: lower"):
        data.setup("fit")


def test_another_rate_gives_the_same_beats(
    folder: tuple[Path, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """SVDB's 128 Hz and names; a record without annotations is left out, and named."""
    write_foreign(tmp_path / "svdb", 128, ["ECG1", "ECG2"])
    (tmp_path / "svdb" / "I10.atr").unlink()
    slow, quick = WFDBBeats(str(tmp_path / "svdb")), WFDBBeats(str(folder[0]))
    with caplog.at_level("INFO"):
        for data in (slow, quick):
            data.setup("fit")
    assert caplog.text.count("left out, without annotations (.atr): I10") == 1
    val = sorted({quick.describe(int(i))["record"] for i in quick.val_indices})
    assert f"WFDBBeats val: {', '.join(val)}\n" in caplog.text
    assert {each[0] for each in slow._about} == {f"I{n:02}" for n in range(1, 10)}
    beats = [part_of(data, "train")[0][:150, 0] for data in (slow, quick)]
    gap = (beats[0] - beats[1]).abs()
    assert gap.mean() < 0.1  # the peaks lie up to half a sample beside each other
    assert slow.describe(0)["lead"] == "ECG1"


def test_what_is_wrong_is_named(folder: tuple[Path, Any], tmp_path: Path):
    wrong: dict[str, dict[str, Any]] = {
        "rate must be a number: the rates of the records may differ": {"rate": None},
        "test_fraction must lie between 0 and 1": {"test_fraction": 1.5},
        "a spectrogram needs beats of 32 samples or more, and 0.2 s at 125 a second are 25": {
            "representation": "spectrogram",
            "window": (0.1, 0.1),
        },
        "no record in .* has a lead V9: I01 has I and II": {"lead": "V9"},
        "test_records I99 are not among the records I01, I02": {"test_records": ["I99"]},
    }
    for message, options in wrong.items():
        with pytest.raises(ValueError, match=message):
            WFDBBeats(str(folder[0]), **options).setup("fit")
    for name, message in {
        "": r"holds no records \(.hea\). Give the folder of the records with --data.root",
        "bare.hea": r"holds no annotations \(.atr\) of bare. Give",
        "bare.atr": r"bare.hea' is damaged \(.*: replace it by a whole copy",
    }.items():
        (tmp_path / name).touch()
        (tmp_path / "bare.dat").touch()
        with pytest.raises((FileNotFoundError, ValueError), match=message) as error:
            WFDBBeats(str(tmp_path)).setup("fit")
        assert "download" not in str(error.value)  # which this set has not


@pytest.mark.parametrize("name", ["pat 7", "pat.7"])
def test_a_name_that_wfdb_does_not_allow(folder: tuple[Path, Any], tmp_path: Path, name: str):
    for file in folder[0].glob("I01.*"):
        shutil.copy(file, tmp_path / f"{name}{file.suffix}")
    with pytest.raises(ValueError, match=f"'{name}' is no name of a WFDB record.*rename"):
        WFDBBeats(str(tmp_path)).setup("fit")
    with pytest.raises(ValueError, match=f"'{name}' is no name of a WFDB record"):
        read_own(tmp_path / f"{name}.hea", ["II"], 1, "N")


def test_a_running_median_has_the_length_that_was_asked_for():
    """0.6 s are 75 samples at 125 Hz: a pulse of 38 stays in the baseline, one of 37 does not."""
    for width, stays in ((37, False), (38, True)):
        pulse = np.zeros(801)
        pulse[400 : 400 + width] = 1
        assert baseline_of(pulse, 125).any() == stays


def test_beats_that_a_record_lacks_are_dropped(folder: tuple[Path, Any], tmp_path: Path):
    import wfdb

    for name in folder[1]:
        record: Any = wfdb.rdrecord(str(folder[0] / name))
        signals = record.p_signal
        signals[: len(signals) // 2] = np.nan
        wfdb.wrsamp(name, record.fs, record.units, record.sig_name, signals, comments=record.comments,
                    fmt=["16"] * record.n_sig, write_dir=str(tmp_path))  # fmt: skip
        shutil.copy(folder[0] / f"{name}.atr", tmp_path)
        shutil.copy(folder[0] / f"{name}.atr", tmp_path / f"._{name}.hea")  # a Mac's copies
    data = WFDBBeats(str(tmp_path), leads=1, lead=["II"])
    data.setup("fit")
    header: Any = wfdb.rdheader(str(tmp_path / "I01"))
    times = [float(data.describe(int(i))["time"]) for i in data.train_indices]
    assert min(times) > header.sig_len / header.fs / 2 - 0.3
    signals = data.load("train")[0][data.train_indices]
    assert (signals.flatten(1).std(1) > 0.01).all()


def test_annotations_count_time_in_units_of_their_own(folder: tuple[Path, Any], tmp_path: Path):
    import wfdb

    for suffix in ("hea", "dat"):
        shutil.copy(folder[0] / f"I01.{suffix}", tmp_path)
    notes: Any = wfdb.rdann(str(folder[0] / "I01"), "atr")
    wfdb.wrann("I01", "atr", notes.sample * 2, notes.symbol, fs=514, write_dir=str(tmp_path))
    header = wfdb.rdheader(str(tmp_path / "I01"))
    peaks, symbols = read_notes(tmp_path / "I01", {}, header)
    assert (peaks.tolist(), len(symbols)) == (notes.sample.tolist(), len(notes.symbol))


@pytest.mark.parametrize(
    ("comment", "patient"),
    [
        ("patient 1", "patient 1"), ("Patient ID: 2", "patient 2"), ("Subject x12, male", "patient x12"),
        ("patient_id: 12", "patient 12"), ("PatientID: 12", "patient 12"), ("<subject_id>: 012", "patient 12"),
        ("Patient identifier: 12", "patient 12"), ("patient code A12", "patient A12"), ("patient n. 7", "patient 7"),
        ("patient 007", "patient 7"), ("patient 100", "patient 100"), ("patient nr7", "patient 7"), ("patient 0", "patient 0"),
        ("patient" + 20_000 * "_" + "12", "r1"), ("12 patients", "r1"), ("patients 12", "r1"), ("patient no. of beats 12", "r1"),
        ("Patient: 63 years, male", "r1"), ("patient: 63-year-old", "r1"), ("age 63", "r1"),
    ],
)  # fmt: skip
def test_whose_record_it_is(comment: str, patient: str):
    assert patient_of(SimpleNamespace(comments=[comment], record_name="r1")) == patient


def test_a_record_whose_annotations_are_no_beats_has_its_beats_detected(
    folder: tuple[Path, Any], tmp_path: Path
):
    for file in folder[0].glob("I01.*"):
        shutil.copy(file, tmp_path / file.name)
    import wfdb

    wfdb.wrann("I01", "atr", np.array([5]), ["+"], aux_note=["(N"], write_dir=str(tmp_path))
    found = read_own(tmp_path / "I01", ["II"], 1, "N")
    (tmp_path / "I01.atr").unlink()
    assert len(found.peaks) > 3
    assert found.symbols is None
    assert (found.peaks == read_own(tmp_path / "I01", ["II"], 1, "N").peaks).all()


def test_records_that_were_trained_on_are_told(folder: tuple[Path, Any], tmp_path: Path):
    root = tmp_path / "own"
    shutil.copytree(folder[0], root)

    def read(*stages: str, **options: Any) -> WFDBBeats:
        data = WFDBBeats(str(root), cache_dir=str(tmp_path), **options)
        for stage in stages:
            data.setup(stage)
        return data

    data = read("fit")
    state, parts = data.state_dict(), data.records_in()
    assert parts is not None
    for stage in ("fit", "test"):
        read(stage).load_state_dict(state)  # warnings are errors
    people = {name: patient for name, *_, patient in data._about}
    first = people[min(parts["train"])]
    trained = sorted(name for name, patient in people.items() if patient == first)
    for stage in ("fit", "test"):
        other = read(stage, test_records=trained)
        with pytest.warns(UserWarning, match=f"{trained[0]}.* were for training, and are held out"):
            other.load_state_dict(state)
    never = sorted(parts["val"] | parts["test"])
    read("test", test_records=never, val_fraction=0).load_state_dict(state)


def test_signals_may_lie_in_files_of_any_name(folder: tuple[Path, Any], tmp_path: Path):
    """As MAT-files of the Challenges (a head of 24 bytes), or one file for each lead."""
    import wfdb

    own = read_own(folder[0] / "I01", ["II"], 2, "NV")
    whole: Any = wfdb.rdrecord(str(folder[0] / "I01"), physical=False)
    digital = whole.d_signal.astype("<i2")[:, :2]
    _, *lines = (folder[0] / "I01.hea").read_text().splitlines()
    number, rate, length = whole.record_name, whole.fs, whole.sig_len
    rest = [line.split(maxsplit=2)[2] for line in lines[:2]]
    forms = {
        "mat": (["I01.mat 16+24"] * 2, {"I01.mat": bytes(24) + digital.tobytes()}),
        "leads": (
            [f"I01_{lead}.dat 16" for lead in (1, 2)],
            {f"I01_{lead}.dat": digital[:, lead - 1].tobytes() for lead in (1, 2)},
        ),
    }
    for form, (names, files) in forms.items():
        root = tmp_path / form
        root.mkdir()
        text = [f"{number} 2 {rate:g} {length}", *map(" ".join, zip(names, rest, strict=True))]
        (root / "I01.hea").write_text("\n".join([*text, *lines[len(whole.sig_name) :]]) + "\n")
        shutil.copy(folder[0] / "I01.atr", root)
        for name, content in files.items():
            (root / name).write_bytes(content)
        found = read_own(root / "I01", ["II"], 2, "NV")
        np.testing.assert_array_equal(found.signal, own.signal)
        assert found.symbols == own.symbols
        last = root / list(files)[-1]
        assert last in WFDBBeats(str(root))._files("I01")  # so that the cache sees its changes
        last.write_bytes(last.read_bytes()[:-9])
        with pytest.raises(ValueError, match=rf"{last.name}' is damaged \(\d+ bytes, but I01"):
            read_own(root / "I01", ["II"], 2, "NV")
        last.unlink()
        with pytest.raises(FileNotFoundError, match=rf"{last.name} is not in .*put it there"):
            read_own(root / "I01", ["II"], 2, "NV")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (".dat 16 ", ".dat 16:7 ", "has signals that are shifted against each other"),
        (".dat 16 ", ".dat 16x2 ", "has signals of several rates"),
        (".dat 16 ", ".dat 311 ", "has signals in format 311"),
        (None, "I01/2 12 257 5140\nI02 2000\nI03 3140\n", "consists of several segments"),
    ],
)
def test_a_form_that_is_not_read_is_not_called_damaged(
    folder: tuple[Path, Any], tmp_path: Path, old: str | None, new: str, why: str
):
    for file in folder[0].glob("I01.*"):
        shutil.copy(file, tmp_path)
    header = (tmp_path / "I01.hea").read_text()
    assert old is None or old in header
    (tmp_path / "I01.hea").write_text(header.replace(old, new, 1) if old else new)
    with pytest.raises(ValueError, match=rf"I01' {why}, .*wfdb\.wrsamp") as error:
        read_own(tmp_path / "I01", ["II"], 1, "N")
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize("suffix", [".hea", ".dat", ".atr"])
def test_a_disk_that_fails_is_not_called_damage(
    folder: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, suffix: str
):
    import builtins

    fsspec = sys.modules["fsspec"]  # with which wfdb opens files

    def failing(true: Any) -> Any:
        def opened(file: Any, *args: Any, **kwargs: Any) -> Any:
            if str(file).endswith("I01" + suffix):
                raise OSError(5, "Input/output error", str(file))
            return true(file, *args, **kwargs)

        return opened

    monkeypatch.setattr(builtins, "open", failing(open))
    monkeypatch.setattr(fsspec, "open", failing(fsspec.open))
    monkeypatch.setattr(np, "fromfile", failing(np.fromfile))
    with pytest.raises(OSError, match=rf"I01{suffix}' cannot be read \(Input/output error\)"):
        read_own(folder[0] / "I01", ["II"], 1, "N")
