"""The MIT-BIH Arrhythmia Database: heart beats, split by patient or at random."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from . import beats
from .base import ImageDataModule, Part, Split, stratified_split
from .beats import AAMI, SYMBOLS
from .cache import Create, prepare, stamp
from .images import require, some
from .options import check_part, check_range
from .records import known_sums

# de Chazal, O'Dwyer and Reilly 2004; the paced records 102, 104, 107 and 217 are in neither
DS1 = (101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122,
       124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230)  # fmt: skip
DS2 = (100, 103, 105, 111, 113, 117, 121, 123, 200, 202, 210,
       212, 213, 214, 219, 221, 222, 228, 231, 232, 233, 234)  # fmt: skip
PACED = (102, 104, 107, 217)
VALIDATION = (101, 118, 124, 205, 223)


@dataclass(eq=False, repr=False)
class MITBIH(ImageDataModule):
    """Heart beats of the MIT-BIH Arrhythmia Database (Moody and Mark 2001), 48 half-hour records.

    The protocols:

    - `inter_patient`: training on DS1 and test on DS2 (de Chazal 2004). Validation is on whole
      records of DS1, by default 101, 118, 124, 205 and 223, which hold every class. One person has
      a record in both parts: 201 in DS1 and 202 in DS2.
    - `intra_patient`: a random part of every class, over the beats of all records. The same
      patients are in all splits.
    - `kaggle`: the two CSV files of Kachuee et al. 2018, `mitbih_train.csv` and `mitbih_test.csv`,
      which do not name the patients.

    Beats whose window leaves the record are dropped, and so are records without the lead; both
    are logged.

    Args:
        root: folder of PhysioNet's records (`100.hea`, `100.dat`, `100.atr`, ...), or of the CSV
            files.
        download: fetch the records that are missing in `root`, with wfdb.
        protocol: see above.
        representation: `signal` gives beats (1, L) for 1-D networks. For 2-D networks, `image`
            gives (1, 1, L), and `spectrogram` gives (1, 32, 32) with frequency from bottom to top.
        classes: `aami`, the five of EC57 (N S V F Q), or `symbols`, the fifteen annotations.
        lead: name of the signal. The Kaggle files are cut out already and ignore this option and
            those down to `normalize`.
        window: seconds before and after the R peak. At 125 Hz the default gives 187 samples, as
            the Kaggle files have.
        rate: samples per second after resampling; null keeps the 360 of the record.
        baseline: subtract the baseline, two running medians of 0.2 s and 0.6 s.
        normalize: scale each beat to mean 0 and standard deviation 1 (`zscore`) or to [0, 1]
            (`minmax`), or leave it in millivolt (`none`).
        val_records: the records of DS1 that are the validation set.
        test_fraction: part of each class that `intra_patient` tests on.

    Attributes:
        f1_over: a name -> the classes of a macro-F1: `f1_nsvf` is without Q, the unknown beats, of
            which DS1 and DS2 hold eight and seven.

    Raises:
        ValueError: an option has an impossible value.
    """

    in_channels = 1
    monitor = "val/f1"  # always-N has 90% of the beats right
    mean, std = (0.0,), (1.0,)

    root: str = "data/mitdb"
    download: bool = False
    _: KW_ONLY
    protocol: Literal["inter_patient", "intra_patient", "kaggle"] = "inter_patient"
    representation: beats.Representation = "signal"
    classes: Literal["aami", "symbols"] = "aami"
    lead: str = "MLII"
    window: tuple[float, float] = (0.5, 0.996)
    rate: float | None = 125.0
    baseline: bool = True
    normalize: beats.Normalize = "zscore"
    val_records: Sequence[int] = VALIDATION
    test_fraction: float = 0.2
    crop_padding: int | None = field(default=0, init=False)
    flip: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_part(test_fraction=self.test_fraction)
        rate = beats.RATE if self.rate is None else self.rate
        check_range(10, 3600, rate=rate)
        if not (min(self.window) >= 0 and sum(self.window) * rate >= 8 and sum(self.window) <= 600):
            raise ValueError(
                "window must be two times >= 0 that together hold 8 samples and at most 600 "
                f"seconds, got {self.window}"
            )
        if strangers := sorted(set(self.val_records) - set(DS1)):
            raise ValueError(f"val_records {strangers} are not in DS1, {DS1}")
        if not self.val_records or set(self.val_records) == set(DS1):
            raise ValueError("val_records must be some records of DS1, not none and not all")
        if self.protocol == "kaggle" and self.classes == "symbols":
            raise ValueError(
                "the Kaggle files have the five AAMI classes only: set classes to aami"
            )
        self.folder = Path(self.root).expanduser()
        self.cut = beats.Window(self.lead, *self.window, self.rate, self.baseline, self.normalize)
        self.symbols_of = dict(zip(SYMBOLS, SYMBOLS, strict=True))
        if self.classes == "aami":
            self.symbols_of = AAMI
        self.class_names = tuple(self.symbols_of)
        self.num_classes = len(self.class_names)
        self.f1_over = {"f1_nsvf": (0, 1, 2, 3)} if self.classes == "aami" else {}
        self.dims = 1 if self.representation == "signal" else 2
        length = 187 if self.protocol == "kaggle" else self.cut.samples
        self.image_size = 32 if self.representation == "spectrogram" else length
        paced = PACED if self.protocol == "intra_patient" else ()
        self.records = tuple(sorted(DS1 + DS2 + paced))
        self._beats: dict[str, Tensor] = {}

    @property
    def description(self) -> dict[str, Any]:
        """What a trained network must know; how beats are cut, unless Kaggle has cut them."""
        known = super().description | {"representation": self.representation}
        del known["step"]
        known.pop("resize", None)
        if self.protocol == "kaggle":
            return known
        return known | {
            "lead": self.lead,
            "window": list(self.window),
            "rate": float(beats.RATE if self.rate is None else self.rate),
            "baseline": self.baseline,
            "normalize": self.normalize,
        }

    def prepare_data(self) -> None:
        """Download the records that are missing, if `download` is set."""
        missing = [r for r in self.records if not all(map(Path.is_file, self._files(r)))]
        if self.download and self.protocol != "kaggle" and missing:
            import wfdb

            self.folder.mkdir(parents=True, exist_ok=True)
            names = [file.name for record in missing for file in self._files(record)]
            try:
                wfdb.dl_files("mitdb", str(self.folder), [*names, "SHA256SUMS.txt"])
            except Exception as error:
                raise RuntimeError(
                    f"MIT-BIH could not be downloaded to {str(self.folder)!r} ({error}): check the "
                    "connection and run it again; complete files are kept"
                ) from error
        super().prepare_data()

    def load(self, split: Part) -> tuple[Tensor, Tensor]:
        """All beats (M, 1, L) and their classes, whatever the split; of the CSV files, one file."""
        if self.protocol == "kaggle":
            rows = self._kaggle(split)
            return rows["signals"].unsqueeze(1), rows["labels"]
        if not self._beats:
            annotated = self._annotated()
            groups = self.symbols_of.values()
            class_of = torch.tensor([[s in g for g in groups].index(True) for s in SYMBOLS])
            annotated["labels"] = class_of[annotated["symbols"]]
            self._report(annotated)
            inside = annotated.pop("inside")
            signals = annotated.pop("signals")
            self._beats = {name: values[inside] for name, values in annotated.items()}
            self._beats["signals"] = signals.unsqueeze(1)
        return self._beats["signals"], self._beats["labels"]

    def choose(self, split: Split, labels: Tensor) -> Tensor:
        """The beats of whole records, or a part of every class."""
        if self.protocol == "kaggle":
            return super().choose(split, labels)
        if self.protocol == "inter_patient":
            train = tuple(sorted(set(DS1) - set(self.val_records)))
            wanted = {"train": train, "val": self.val_records, "test": DS2}[split]
            return torch.isin(self._beats["records"], torch.tensor(wanted)).nonzero().flatten()
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
        """Record, time in seconds and lead of a beat; for a CSV file, the row."""
        if self.protocol == "kaggle":
            return {"row": index + 1}
        record, peak = (int(self._beats[name][index]) for name in ("records", "peaks"))
        return {"record": record, "time": f"{peak / beats.RATE:.3f}", "lead": self.lead}

    def transform_batch(self, images: Tensor) -> Tensor:
        """Bring beats (N, 1, L) into the form that `representation` names."""
        return beats.represented(images, self.representation)

    def _files(self, record: int) -> list[Path]:
        return [self.folder / f"{record}{suffix}" for suffix in (".hea", ".dat", ".atr")]

    def _annotated(self) -> dict[str, Tensor]:
        """Symbol, record and peak of all annotated beats; the signals of those `inside`."""
        files = [file for record in self.records for file in self._files(record)]
        require(files, "Give their folder with --data.root DIR, or add --data.download true")

        def build(create: Create) -> None:
            sums = known_sums(self.folder)
            columns = defaultdict(list)
            for record in self.records:
                if found := beats.read_beats(self.folder / str(record), self.cut, sums):
                    columns["records"].append(np.full(len(found.symbols), record))
                    for name, values in found._asdict().items():
                        columns[name].append(values)
            if not columns:
                raise ValueError(f"no record in {str(self.folder)!r} has a lead {self.lead!r}")
            for name, parts in columns.items():
                whole = np.concatenate(parts)
                create(name, whole.shape, whole.dtype)[:] = whole

        key = (*stamp(self.folder, files), self.cut)
        return prepare(self.cache_dir, f"MITBIH-{len(self.records)}", key, build)

    def _report(self, annotated: dict[str, Tensor]) -> None:
        """Log how many beats of each class are annotated, and how many are dropped."""
        labels, record_of = annotated["labels"], annotated["records"]
        for name, records in {"DS1": DS1, "DS2": DS2, "paced": PACED}.items():
            ours = torch.isin(record_of, torch.tensor(records))
            total, dropped = (
                "/".join(map(str, labels[mask].bincount(minlength=self.num_classes).tolist()))
                for mask in (ours, ours & ~annotated["inside"])
            )
            if ours.any():
                rank_zero_info(
                    f"MITBIH {name}: {total} beats annotated ({'/'.join(self.class_names)}); "
                    f"{dropped} of them dropped, as their window leaves the record"
                )
        if without := sorted(set(self.records) - set(record_of.tolist())):
            rank_zero_info(f"MITBIH: left out, without a lead {self.lead}: {some(without)}")

    def _kaggle(self, split: Part) -> dict[str, Tensor]:
        file = self.folder / f"mitbih_{split}.csv"
        remedy = "Unpack Kaggle's heartbeat data there, or give their folder with --data.root DIR"
        require([file], remedy)

        def build(create: Create) -> None:
            rows = beats.read_rows(file)
            create("signals", (len(rows), 187), np.float32)[:] = rows[:, :187]
            create("labels", (len(rows),), np.int64)[:] = rows[:, 187]

        name = f"MITBIH-kaggle-{split}"
        return prepare(self.cache_dir, name, stamp(self.folder, [file]), build)
