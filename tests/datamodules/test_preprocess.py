"""One sample of one's own is prepared as its data set would prepare it, to the bit."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import CIFAR10, MITBIH, MNIST, Digits, ImageDataModule, ImageFolder
from datamodules.preprocess import Preparation
from datamodules.records import detect
from tests.data import Tiny, write_kaggle, write_mnist, write_records, write_tree


def prepared_by(data: ImageDataModule) -> Preparation:
    """From the description as a file holds it."""
    return Preparation.of(json.loads(json.dumps(data.description)), "a.ckpt")


def samples_of(data: ImageDataModule) -> list[tuple[Any, torch.Tensor]]:
    """What is told of each test sample, and the sample as a batch of one."""
    data.setup("test")
    batches = list(data.test_dataloader())
    return [
        ({"position": int(k)} | data.describe(int(k)), image[None])
        for images, _, index in batches
        for k, image in zip(index, images, strict=True)
    ]


def test_pixels(tmp_path: Path):
    """Digits and MNIST's download: a tensor, an array and an image of PIL are the same sample."""
    write_mnist(tmp_path)
    for data in (Digits(eval_batch_size=50), MNIST(root=str(tmp_path))):
        prepare, samples = prepared_by(data), samples_of(data)
        raw, _ = data.load("test")
        for told, batch in samples:
            pixels = raw[told["position"]]
            assert torch.equal(prepare(pixels), batch)
            if told["position"] % 9 == 0:
                grey = pixels[0].numpy()
                for same in (pixels[0], grey, grey[..., None], Image.fromarray(grey)):
                    assert torch.equal(prepare(same), batch)
                assert torch.equal(prepare(Image.fromarray(grey).convert("RGB")), batch)
        assert prepare.shape == batch.shape[1:]
        assert prepare.class_names == list(data.class_names)


def test_floats_are_parts_of_one():
    prepare = prepared_by(Digits())
    pixels = torch.arange(1024, dtype=torch.uint8).view(1, 32, 32)
    whole, part = prepare(pixels), prepare(pixels.double() / 255)
    torch.testing.assert_close(part, whole)
    assert part.dtype == torch.float32
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 0 to 255: divide it"):
        prepare(pixels.float())


def test_class_folders(tmp_path: Path):
    write_tree(tmp_path)
    data = CIFAR10(root=str(tmp_path))
    prepare = prepared_by(data)
    for told, batch in samples_of(data):
        file = tmp_path / told["file"]
        for same in (file, str(file), Image.open(file), np.asarray(Image.open(file))):
            assert torch.equal(prepare(same), batch)


def write_photos(root: Path) -> None:
    """Photos of odd sizes in every mode that PIL reads from such files, some turned."""
    generator = np.random.default_rng(7)
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for number, mode in enumerate(("RGB", "L", "P", "RGBA", "I;16", "CMYK", "1", "LA")):
            height, width = 17 + 5 * number, 61 - 6 * number
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            image = Image.fromarray(pixels)
            if mode == "I;16":
                image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
            elif mode != "RGB":
                image = image.convert(mode)
            suffix = ".tif" if mode == "CMYK" else ".png"
            image.save(root / name / f"{number}{suffix}", transparency=3 if mode == "P" else None)
        turned = Image.Exif()
        turned[0x0112] = 6
        Image.fromarray(pixels).resize((300, 200)).save(root / name / "turned.jpg", exif=turned)


def test_photos(tmp_path: Path):
    write_photos(tmp_path)
    data = ImageFolder(str(tmp_path), image_size=24, test_fraction=0.8)
    prepare, seen = prepared_by(data), set[str]()
    for told, batch in samples_of(data):
        file = tmp_path / told["file"]
        seen.add(file.stem)
        assert torch.equal(prepare(file), batch)
        if file.suffix == ".png":  # a JPEG in memory is decoded at its full size
            assert torch.equal(prepare(Image.open(file)), batch)
    assert seen > {"turned", "0", "1"}
    grey = np.asarray(Image.open(tmp_path / "ant" / "1.png"))
    assert torch.equal(prepare(grey), prepare(tmp_path / "ant" / "1.png"))


def test_beats(tmp_path: Path):
    """In all forms: a record, and its signal with the peaks."""
    import wfdb

    written = write_records(tmp_path / "db")
    forms: list[dict[str, Any]] = [
        {},
        {"representation": "image", "classes": "symbols"},
        {"representation": "spectrogram"},
        {"rate": None, "baseline": False, "normalize": "minmax", "window": (0.3, 0.4)},
        {"leads": 2, "lead": ["V9", "MLII"], "representation": "spectrogram"},
        {"protocol": "kaggle_rebuilt"},
    ]
    for options in forms:
        data = MITBIH(str(tmp_path / "db"), **options)
        prepare = prepared_by(data)
        samples = samples_of(data)
        for record in (100, 234):
            mine = [s for s in samples if s[0]["record"] == record]
            if "protocol" in options:  # all beats of the record, of which the test set has some
                data.test_indices = data.beats_of([record])
                mine = samples_of(data)
            batch = torch.cat([sample for _, sample in mine])
            found = prepare.beats(tmp_path / "db" / f"{record}.hea")
            assert torch.equal(found.batch, batch)
            assert [f"{time:.3f}" for time in found.times] == [told["time"] for told, _ in mine]
            assert found.symbols is not None
            assert len(found.symbols) + found.outside == len(written[record])
            assert prepare.shape == batch.shape[1:]
            assert torch.equal(prepare(tmp_path / "db" / str(record)), batch)
            read: Any = wfdb.rdrecord(str(tmp_path / "db" / str(record)))
            signal = read.p_signal[:, read.sig_name.index("MLII")]
            if data.leads == 2:
                assert read.sig_name == ["MLII", "V1"]
                signal = read.p_signal.T
            peaks = [sample for sample, _ in written[record]]
            assert torch.equal(prepare(signal, rate=360, peaks=peaks), batch)
            seconds: Any = [peak / 360 for peak in peaks]
            for wrong in (seconds, [*peaks, 14 * 360]):
                with pytest.raises(ValueError, match="peaks must be "):
                    prepare(signal, rate=360, peaks=wrong)
    scaled = torch.rand(187, dtype=torch.float64)  # of the last form, as in Kaggle's files
    assert prepared_by(data)(scaled).shape == (1, 1, 187)
    with pytest.raises(
        ValueError, match=r"a beat of MITBIH is scaled over 1.2 RR intervals of its"
    ):
        prepared_by(data)(scaled - 0.5)


def test_rows_of_kaggle(tmp_path: Path):
    write_kaggle(tmp_path)
    data = MITBIH(str(tmp_path), protocol="kaggle")
    prepare, rows = prepared_by(data), data.load("test")[0]
    for told, batch in samples_of(data):
        assert torch.equal(prepare(rows[told["position"], 0]), batch)
    with pytest.raises(
        ValueError, match=r"no beats can be cut out of '100', since those of MITBIH"
    ):
        prepare("100")
    with pytest.raises(ValueError, match="200 samples is no beat of MITBIH, which has 187"):
        prepare(np.zeros(200))
    with pytest.raises(ValueError, match=r"scaled to \[0, 1\] .*goes from -1.5 to 0.9: scale it"):
        prepare(np.linspace(-1.5, 0.9, 187))


def write_record(folder: Path, rate: int, *, lead: str = "MLII", unit: str = "mV") -> np.ndarray:
    """30 s of a narrow bump of 1 mV every 0.8 s, without annotations; the peaks in seconds."""
    import wfdb

    folder.mkdir(parents=True, exist_ok=True)
    times, peaks = np.arange(30 * rate) / rate, np.arange(1, 29, 0.8)
    gap = np.abs(times[:, None] - peaks).min(1)
    signal = np.exp(-0.5 * (gap / 0.012) ** 2) + 0.2 * np.sin(2 * np.pi * 0.3 * times)
    signal *= {"mV": 1, "uV": 1000}[unit]
    wfdb.wrsamp("own", rate, [unit], [lead], signal[:, None], fmt=["16"],
                adc_gain=[2000 / signal.max()], baseline=[0], write_dir=str(folder))  # fmt: skip
    return peaks


@pytest.mark.parametrize(("rate", "unit"), [(250, "mV"), (500, "uV"), (360, "mV")])
def test_a_record_of_another_rate_without_annotations(tmp_path: Path, rate: int, unit: str):
    """The peaks are detected, and the beats are those of the same signal at 360 a second."""
    prepare = prepared_by(MITBIH())
    peaks = write_record(tmp_path / "own", rate, unit=unit)
    found = prepare.beats(tmp_path / "own" / "own")
    assert found.symbols is None
    gap = np.abs(found.times[:, None] - peaks)
    assert len(found.times) >= len(peaks) - 3
    assert gap.min(1).max() <= 0.02
    write_record(tmp_path / "same", 360)
    import wfdb

    same: Any = wfdb.rdrecord(str(tmp_path / "same" / "own"))
    place = np.round(found.times * 360).astype(int).tolist()
    again = prepare(same.p_signal[:, 0], rate=360, peaks=place)
    assert (again - found.batch).abs().mean() < 0.05


def test_a_wide_beat_is_found_at_its_peak():
    """XQRS marks the sharp wave 0.07 s before it."""
    from wfdb.processing import xqrs_detect

    times, peaks = np.arange(40 * 360) / 360, np.arange(1, 39, 0.8)
    signal = 0.2 * np.sin(2 * np.pi * 0.3 * times)
    for number, peak in enumerate(peaks):
        wide = number % 4 == 3
        signal += (1.5 if wide else 1) * np.exp(
            -0.5 * ((times - peak) / (0.03 if wide else 0.012)) ** 2
        )
        signal -= 0.6 * wide * np.exp(-0.5 * ((times - peak + 0.07) / 0.012) ** 2)
    plain = np.asarray(xqrs_detect(signal, 360, verbose=False))
    assert np.abs(plain[:, None] / 360 - peaks).min(1).max() > 0.06
    found = detect(signal, 360)
    assert len(found) == len(peaks)
    assert np.abs(found / 360 - peaks).max() <= 1 / 360


def test_missing_samples_lie_on_a_line(tmp_path: Path):
    import wfdb

    wfdb.wrsamp("gap", 360, ["mV"], ["MLII"], np.r_[np.zeros(720), [np.nan] * 9, np.ones(720)][:, None],
                fmt=["16"], adc_gain=[200], baseline=[0], write_dir=str(tmp_path))  # fmt: skip
    wfdb.wrann("gap", "atr", np.array([724]), ["N"], write_dir=str(tmp_path))
    options: Any = {"baseline": False, "normalize": "none", "rate": None, "window": (0.1, 0.1)}
    found = prepared_by(MITBIH(**options)).beats(tmp_path / "gap")
    assert found.missing == 9
    middle = found.batch[0, 0, 31:42].tolist()
    assert middle == pytest.approx(np.linspace(0, 1, 11).tolist(), abs=1e-6)


class Stepping(Tiny):
    def transform_batch(self, images: torch.Tensor) -> torch.Tensor:
        return images.square()


REFUSED: list[tuple[ImageDataModule, Any, dict[str, Any], str]] = [
    (Digits(), torch.zeros(2, 1, 32, 32), {}, r"shape \(2, 1, 32, 32\) does not fit.*one sample"),
    (Digits(), torch.zeros(1, 16, 16), {}, r"takes \(1, 32, 32\).*only uint8 is resized"),
    (Digits(), torch.zeros(5, 16, 16, dtype=torch.uint8), {}, "has 5 channels, not 1, 3 or 4"),
    (Digits(), np.zeros((32, 32), np.int64), {}, "must be uint8 or floats, got torch.int64"),
    (Digits(), "none.png", {}, "no image at 'none.png'"),
    (Stepping(), torch.zeros(1, 8, 8), {}, "changes its batches by Stepping.transform_batch"),
    (MITBIH(), np.zeros(3000), {}, "needs its rate.*got None: rate=360; a single beat has 187"),
    (MITBIH(), np.zeros(187), {"rate": 360}, r"window|no beat with \[0.5, 0.996\] seconds"),
    (MITBIH(), np.zeros(3000), {"rate": 1e9, "peaks": [300]}, "needs its rate.*got 1000000000"),
    (MITBIH(), np.full(187, np.nan), {}, "must be finite numbers of one lead"),
    (MITBIH(), np.zeros((2, 187)), {}, r"one lead, \(L,\), got shape \(2, 187\)"),
    (MITBIH(), "none/100", {}, "files are not in 'none': 100.hea"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "sample", "options", "sentence"), REFUSED, ids=lambda x: str(x)[:30]
)
def test_what_does_not_fit_gets_one_sentence(
    data: ImageDataModule, sample: Any, options: dict[str, Any], sentence: str
):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as raised:
        prepared_by(data)(sample, **options)
    assert "\n" not in str(raised.value)


def test_another_lead_and_another_unit(tmp_path: Path):
    prepare = prepared_by(MITBIH())
    write_record(tmp_path, 250, lead="V5")
    with pytest.raises(ValueError, match=r"own' has the leads V5, not MLII"):
        prepare(tmp_path / "own")
    header = tmp_path / "own.hea"
    header.write_text(header.read_text().replace("/mV", "/mmHg").replace("V5", "MLII"))
    with pytest.raises(ValueError, match=r"has MLII in 'mmHg', not in mV, uV or V"):
        prepare(tmp_path / "own")
    header.write_text(re.sub(r" 250 ", " 1e12 ", header.read_text()))
    with pytest.raises(ValueError, match=r"a second instead of 30 to 10,000"):
        prepare(tmp_path / "own")


WRONG: list[dict[str, Any]] = [
    {"dims": 3}, {"dims": True}, {"size": 10**9}, {"size": -1}, {"size": "32"}, {"channels": 2**40},
    {"mean": [0.5, 0.5]}, {"mean": "0.5"}, {"mean": [math.nan]}, {"std": [0.0]}, {"std": [[1.0]]},
    {"class_names": "abc"}, {"class_names": [1, 2]}, {"name": None}, {"representation": "picture"},
    {"window": [0.5]}, {"window": [-1.0, 2.0]}, {"window": [1e9, 1.0]}, {"rate": math.inf},
    {"rate": None}, {"rate": "125"}, {"lead": 3}, {"baseline": 1}, {"normalize": "softmax"},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_description_is_data_that_may_be_wrong(wrong: dict[str, Any]):
    right = MITBIH().description
    with pytest.raises(ValueError, match=r"^'a.ckpt' stores a description.*it is damaged") as told:
        Preparation.of(right | wrong, "a.ckpt")
    assert len(str(told.value)) < 300
    Preparation.of(right | {"unknown": 3}, "a.ckpt")  # a data module may tell more
    del right["mean"]
    with pytest.raises(ValueError, match="mean"):
        Preparation.of(right, "a.ckpt")
