"""The MIT-BIH Arrhythmia Database: heart beats, by patient or not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from .base import ImageDataModule, Split, stratified_split
from .beats import (
    AAMI,
    RATE,
    SYMBOLS,
    Beats,
    Normalize,
    Window,
    known_sums,
    read_beats,
    read_rows,
    spectrogram,
)
from .cache import Create, Prepared, prepare, stamp
from .images import some

# de Chazal, O'Dwyer and Reilly 2004; the paced records 102, 104, 107 and 217 are in neither
DS1 = (101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122,
       124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230)  # fmt: skip
DS2 = (100, 103, 105, 111, 113, 117, 121, 123, 200, 202, 210,
       212, 213, 214, 219, 221, 222, 228, 231, 232, 233, 234)  # fmt: skip
PACED = (102, 104, 107, 217)
VALIDATION = (101, 118, 124, 205, 223)


class MITBIH(ImageDataModule):
    """Heart beats of the MIT-BIH Arrhythmia Database (Moody and Mark 2001), 48 half-hour records.

    `inter_patient` trains on DS1 and tests on DS2 (de Chazal 2004; the records 201 and 202, one in
    each, come from one person), and validates on whole records of DS1, by default 101, 118, 124,
    205 and 223, which hold every class. `intra_patient` splits the beats of all records at random,
    a part of every class: the same patient is in all splits. `kaggle` reads the two CSV files of
    Kachuee et al. 2018, `mitbih_train.csv` and `mitbih_test.csv`, whose beats know no patient.

    Beats whose window leaves the record are lost, and records without the lead; both are told.

    Args:
        root: folder of PhysioNet's records (`100.hea`, `100.dat`, `100.atr`, ...) or CSV files.
        download: fetch the records that are missing in `root`, with wfdb.
        protocol: see above.
        representation: `signal` gives beats (1, L) for 1-D networks; `image` (1, 1, L), and
            `spectrogram` (1, 32, 32), frequency from bottom to top, for 2-D ones.
        classes: `aami`, the five of EC57 (N S V F Q), or `symbols`, the fifteen annotations.
        lead: name of the signal.
        window: seconds before and after the R peak. The default gives, at 125 Hz, the 187 samples
            of the Kaggle files; so do these have no need of the options from here to `normalize`.
        rate: samples a second to resample to; null keeps the record's 360.
        baseline: subtract the baseline, two running medians of 0.2 s and 0.6 s.
        normalize: each beat to mean 0 and deviation 1 (`zscore`), to [0, 1] (`minmax`), or leave
            it in millivolt (`none`).
        val_records: the records of DS1 to validate on.
        test_fraction: part of each class that `intra_patient` tests on.
        common: see `ImageDataModule`.

    Raises:
        ValueError: an option has no such value.
    """

    in_channels = 1
    mean, std = (0.0,), (1.0,)

    def __init__(
        self,
        root: str = "data/mitdb",
        download: bool = False,
        protocol: Literal["inter_patient", "intra_patient", "kaggle"] = "inter_patient",
        representation: Literal["signal", "image", "spectrogram"] = "signal",
        classes: Literal["aami", "symbols"] = "aami",
        lead: str = "MLII",
        window: tuple[float, float] = (0.5, 0.996),
        rate: float | None = 125.0,
        baseline: bool = True,
        normalize: Normalize = "zscore",
        val_records: Sequence[int] = VALIDATION,
        test_fraction: float = 0.2,
        **common: Any,
    ) -> None:
        super().__init__(crop_padding=0, flip=False, **common)
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}")
        if rate is not None and not 10 <= rate <= 3600:
            raise ValueError(f"rate must lie between 10 and 3600 samples a second, got {rate}")
        if min(window) < 0 or sum(window) * (rate or RATE) < 8:
            raise ValueError(f"window must be two times >= 0 that span 8 samples, got {window}")
        if strangers := sorted(set(val_records) - set(DS1)):
            raise ValueError(f"val_records {strangers} are not in DS1, {DS1}")
        if not val_records or set(val_records) == set(DS1):
            raise ValueError("val_records must be some records of DS1, not none and not all")
        if protocol == "kaggle" and classes == "symbols":
            raise ValueError(
                "the Kaggle files know the five AAMI classes alone: classes must be aami"
            )
        self.root, self.download, self.protocol = Path(root).expanduser(), download, protocol
        self.window = Window(lead, *window, rate, baseline, normalize)
        self.val_records, self.test_fraction = tuple(val_records), test_fraction
        self.representation = representation
        self.class_names = tuple(AAMI) if classes == "aami" else tuple(SYMBOLS)
        self.num_classes = len(self.class_names)
        self.dims = 1 if representation == "signal" else 2
        length = 187 if protocol == "kaggle" else self.window.samples
        self.image_size = 32 if representation == "spectrogram" else length
        self._arrays: dict[str, Tensor] = {}

    @property
    def records(self) -> tuple[int, ...]:
        """Those that the protocol uses."""
        return tuple(sorted(DS1 + DS2 + (PACED if self.protocol == "intra_patient" else ())))

    def prepare_data(self) -> None:
        """Download the records where that was asked for and some are missing."""
        if self.download and self.protocol != "kaggle":
            missing = [r for r in self.records if not all(map(Path.is_file, self._files(r)))]
            if missing:
                self._fetch(missing)
        super().prepare_data()

    def load(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """All beats (M, 1, L), of whatever split, and their classes; of the CSV files, one."""
        if self.protocol == "kaggle":
            self._arrays = self._kaggle(split).arrays
            return self._arrays["signals"].unsqueeze(1), self._arrays["labels"]
        fresh = not self._arrays
        prepared = self._records()
        self._arrays = prepared.arrays
        if fresh:
            self._report(prepared.notes)
        symbols = self._arrays["symbols"]
        return self._arrays["signals"].unsqueeze(1), self._class_of_symbol()[symbols]

    def choose(self, split: Split, labels: Tensor) -> Tensor:
        """Whole records, or a part of every class."""
        if self.protocol == "kaggle":
            return super().choose(split, labels)
        if self.protocol == "inter_patient":
            train = tuple(sorted(set(DS1) - set(self.val_records)))
            wanted = {"train": train, "val": self.val_records, "test": DS2}[split]
            return torch.isin(self._arrays["records"], torch.tensor(wanted)).nonzero().flatten()
        # a class of one or two beats cannot be in three parts: it stays in training
        several = (labels.bincount() >= 3)[labels].nonzero().flatten()
        rest, test = stratified_split(labels[several], self.test_fraction, self.split_seed)
        if split == "test":
            return several[test]
        train, val = stratified_split(labels[several][rest], self.val_fraction, self.split_seed)
        if split == "val":
            return several[rest][val]
        few = torch.isin(torch.arange(len(labels)), several, invert=True).nonzero().flatten()
        return torch.cat([several[rest][train], few]).sort().values

    def describe(self, index: int) -> dict[str, Any]:
        """Record, time in seconds and lead of a beat; its row in a CSV file."""
        if self.protocol == "kaggle":
            return {"row": index + 1}
        record = int(self._arrays["records"][index])
        time = float(self._arrays["times"][index])
        return {"record": record, "time": f"{time:.3f}", "lead": self.window.lead}

    def view(self, images: Tensor) -> Tensor:
        """Beats (N, 1, L) as `representation` says."""
        if self.representation == "image":
            return images.unsqueeze(2)
        return spectrogram(images) if self.representation == "spectrogram" else images

    def _files(self, record: int) -> list[Path]:
        return [self.root / f"{record}{suffix}" for suffix in (".hea", ".dat", ".atr")]

    def _class_of_symbol(self) -> Tensor:
        if self.class_names == tuple(SYMBOLS):
            return torch.arange(len(SYMBOLS))
        return torch.tensor([[s in AAMI[c] for c in AAMI].index(True) for s in SYMBOLS])

    def _records(self) -> Prepared:
        files = [file for record in self.records for file in self._files(record)]
        if missing := [file.name for file in files if not file.is_file()]:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(files)} files of MIT-BIH are not in "
                f"{str(self.root)!r}: {some(missing)}. Give their folder with --data.root DIR, or "
                "add --data.download true to fetch them"
            )

        def build(create: Create) -> dict[str, Any]:
            sums = known_sums(self.root)
            found = {r: read_beats(self.root / str(r), self.window, sums) for r in self.records}
            beats = {record: these for record, these in found.items() if these is not None}
            if not beats:
                raise ValueError(f"no record in {str(self.root)!r} has a lead {self.window.lead!r}")
            _fill(create, beats)
            return {
                "annotated": {record: these.annotated for record, these in beats.items()},
                "kept": {record: these.kept for record, these in beats.items()},
                "without": [record for record, these in found.items() if these is None],
            }

        key = (str(self.root.resolve()), stamp(self.root, files), self.window)
        return prepare(self.cache_dir, f"MITBIH-{len(self.records)}", key, build)

    def _report(self, notes: dict[str, Any]) -> None:
        """Say what is annotated, and what is lost."""
        classes = self._class_of_symbol().numpy()

        def counts(name: str, records: Sequence[int]) -> list[int]:
            rows = [notes[name][str(record)] for record in records if str(record) in notes[name]]
            total = np.sum(rows, axis=0)
            return [int(total[classes == c].sum()) for c in range(self.num_classes)]

        parts = {"DS1": DS1, "DS2": DS2, "paced": PACED}
        for part, records in parts.items():
            if set(records) <= set(self.records):
                annotated, kept = (counts(name, records) for name in ("annotated", "kept"))
                lost = [a - k for a, k in zip(annotated, kept, strict=True)]
                rank_zero_info(
                    f"MITBIH {part}: {_slashed(annotated)} beats annotated "
                    f"({_slashed(self.class_names)}); {_slashed(lost)} of them too near the "
                    "record's edge for the window"
                )
        if notes["without"]:
            rank_zero_info(f"MITBIH: no {self.window.lead} in {some(notes['without'])}: left out")

    def _kaggle(self, split: str) -> Prepared:
        file = self.root / f"mitbih_{split}.csv"
        if not file.is_file():
            raise FileNotFoundError(
                f"no file {str(file)!r}: unpack mitbih_train.csv and mitbih_test.csv of Kaggle's "
                "heartbeat data there, or give their folder with --data.root DIR"
            )

        def build(create: Create) -> dict[str, Any]:
            rows = read_rows(file)
            create("signals", (len(rows), 187), np.float32)[:] = rows[:, :187]
            create("labels", (len(rows),), np.int64)[:] = rows[:, 187]
            return {}

        key = (str(self.root.resolve()), stamp(self.root, [file]))
        return prepare(self.cache_dir, f"MITBIH-kaggle-{split}", key, build)

    def _fetch(self, records: Sequence[int]) -> None:
        import wfdb

        self.root.mkdir(parents=True, exist_ok=True)
        names = [file.name for record in records for file in self._files(record)]
        try:
            wfdb.dl_files("mitdb", str(self.root), [*names, "SHA256SUMS.txt"])
        except Exception as error:
            raise RuntimeError(
                f"MIT-BIH cannot be downloaded to {str(self.root)!r} ({error}): check the "
                "connection and run it again; what is there is kept"
            ) from error


def _fill(create: Create, beats: dict[int, Beats]) -> None:
    total = sum(len(these.symbols) for these in beats.values())
    length = next(iter(beats.values())).signals.shape[1]
    signals = create("signals", (total, length), np.float32)
    symbols = create("symbols", (total,), np.int64)
    records = create("records", (total,), np.int64)
    times = create("times", (total,), np.float64)
    first = 0
    for record, these in beats.items():
        part = slice(first, first := first + len(these.symbols))
        signals[part], symbols[part], records[part] = these.signals, these.symbols, record
        times[part] = these.peaks / RATE


def _slashed(values: Sequence[object]) -> str:
    return "/".join(map(str, values))
