"""The MIT-BIH Arrhythmia Database: heart beats, split by patient or at random."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from . import beats
from .base import ImageDataModule, Part, Split, stratified_split
from .cache import Create, prepare, stamp
from .images import require
from .options import check_range
from .wfdbbeats import Names, WFDBBeats

# de Chazal, O'Dwyer and Reilly 2004; the paced records 102, 104, 107 and 217 are in neither
DS1 = (101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122,
       124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230)  # fmt: skip
DS2 = (100, 103, 105, 111, 113, 117, 121, 123, 200, 202, 210,
       212, 213, 214, 219, 221, 222, 228, 231, 232, 233, 234)  # fmt: skip
PACED = (102, 104, 107, 217)
VALIDATION = (101, 118, 124, 205, 223)


RATE = 360.0  # samples per second of every record
LEARNING = 300  # seconds at the start of a record, which EC57 leaves to the learning of a patient
KACHUEE = {"before": 0.0, "after": 1.496, "rate": 125.0, "baseline": False, "normalize": "minmax",
           "cycles": 1.2}  # fmt: skip


@dataclass(eq=False, repr=False)
class MITBIH(WFDBBeats):
    """Heart beats of the MIT-BIH Arrhythmia Database (Moody and Mark 2001), 48 half-hour records.

    The protocols:

    - `inter_patient`: training on DS1 and test on DS2 (de Chazal 2004). Validation is on whole
      records of DS1, by default 101, 118, 124, 205 and 223, which hold every class. One person has
      a record in both parts: 201 in DS1 and 202 in DS2.
    - `patient_specific`: `inter_patient`, but the first five minutes of each record of DS2 are
      training samples, and the test is on the rest. With `patient`, of that record alone: one
      network for each patient (de Chazal and Reilly 2006, Ince 2009).
    - `intra_patient`: a random part of every class, over the beats of all records. The same
      patients are in all splits.
    - `kaggle`: the two CSV files of Kachuee et al. 2018, `mitbih_train.csv` and `mitbih_test.csv`,
      which do not name the patients.
    - `kaggle_rebuilt`: beats cut out of the records as Kachuee et al. do, and split as
      `intra_patient`: from the R peak to 1.2 median RR intervals, scaled to [0, 1], zeros up to 187
      samples, without the last beat of each record. Records without the lead give V5. The options
      from `window` to `normalize` are ignored.

    Beats whose window leaves the record are dropped, and so are records without the leads; both
    are logged.

    Args:
        root: folder of PhysioNet's records (`100.hea`, `100.dat`, `100.atr`, ...), or of the CSV
            files.
        download: fetch the records that are missing in `root`, with wfdb.
        protocol: see above.
        representation: `signal` gives beats (C, L) for 1-D networks. For 2-D networks, `image`
            gives (C, 1, L), and `spectrogram` gives (C, 32, 32) with frequency from bottom to top.
        classes: `aami`, the five of EC57 (N S V F Q), or `symbols`, the fifteen annotations.
        lead: name of the signal, or several: the first that a record has is taken. The Kaggle files
            are cut out already and ignore this option and those down to `normalize`.
        leads: 1, or 2 for both signals of each record, the one that `lead` names first.
        window: seconds before and after the R peak. At 125 Hz the default gives 187 samples, as
            the Kaggle files have.
        rate: samples per second after resampling; null keeps the 360 of the record.
        baseline: subtract the baseline, two running medians of 0.2 s and 0.6 s.
        normalize: scale each lead of a beat to mean 0 and standard deviation 1 (`zscore`) or to
            [0, 1] (`minmax`), or leave it in millivolt (`none`).
        rr: give the network the rhythm around each beat as a side input: the RR intervals before
            and after the beat, the mean of the ten around it, and the first divided by that mean.
            `patient` adds the first three, divided by the mean of the whole record. They are of all
            annotated beats of the record; at its ends, of those that there are
            (`datamodules.beats.rhythm`).
        val_records: the records of DS1 that are the validation set. With `val_fraction` 0 there is
            none, and all of DS1 trains.
        test_fraction: part of each class that `intra_patient` and `kaggle_rebuilt` test on.
        patient: the record of DS2 on which `patient_specific` tests; by default all.

    Attributes:
        f1_over: a name -> the classes of a macro-F1: `f1_nsvf` is without Q, the unknown beats, of
            which DS1 and DS2 hold eight and seven.

    Raises:
        ValueError: an option has an impossible value.
    """

    native = RATE
    remedy = f"{WFDBBeats.remedy}, or add --data.download true"

    root: str = "data/mitdb"
    download: bool = False
    _: KW_ONLY
    protocol: Literal[
        "inter_patient", "patient_specific", "intra_patient", "kaggle", "kaggle_rebuilt"
    ] = "inter_patient"
    lead: Sequence[str] | str = "MLII"
    val_records: Names | None = VALIDATION
    test_records: Names | None = field(default=None, init=False)
    patient: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(0, 0.999, test_fraction=self.test_fraction)
        if strangers := sorted({*map(str, self.val_records or ())} - {*map(str, DS1)}):
            raise ValueError(f"val_records {', '.join(strangers)} are not in DS1, {DS1}")
        if self.val_records:
            self.val_records = tuple(map(int, self.val_records))
        if not self.val_records or set(self.val_records) == set(DS1):
            raise ValueError("val_records must be some records of DS1, not none and not all")
        if self.patient is not None and self.patient not in DS2:
            raise ValueError(f"patient {self.patient} is not in DS2, {DS2}")
        if self.patient is not None and self.protocol != "patient_specific":
            raise ValueError(f"patient {self.patient} needs the protocol patient_specific")
        by_records = self.protocol in ("inter_patient", "patient_specific")
        if not by_records and self.val_records != VALIDATION:
            raise ValueError(
                f"val_records has no effect with {self.protocol}, whose validation set is a part "
                "of all beats: set val_fraction"
            )
        if by_records and self.val_fraction not in (0, MITBIH.val_fraction):
            raise ValueError(
                f"val_fraction {self.val_fraction:g} has no effect with {self.protocol}, whose "
                "validation set is val_records: name records, or give 0 for none"
            )
        if self.protocol == "kaggle" and (self.classes == "symbols" or self.leads > 1):
            raise ValueError(
                "the Kaggle files have the five AAMI classes and one lead only: set classes to "
                "aami and leads to 1"
            )
        if self.protocol == "kaggle" and self.rr:
            raise ValueError("the Kaggle files do not say whose beats they hold: set rr to false")
        if self.protocol == "kaggle_rebuilt":
            self.cut = self.cut._replace(lead=(*self.cut.lead, "V5"), **KACHUEE)
        if self.representation != "spectrogram":
            self.image_size = 187 if self.protocol == "kaggle" else self.cut.samples

    @property
    def names(self) -> list[str]:
        """The records of the protocol."""
        paced = PACED if self._at_random else ()
        return [str(record) for record in sorted(DS1 + DS2 + paced)]

    @property
    def parts(self) -> dict[str, Sequence[str]]:
        """Names of groups of records, of which the log tells the beats."""
        groups = {"DS1": DS1, "DS2": DS2, "paced": PACED}
        return {name: [str(record) for record in group] for name, group in groups.items()}

    @property
    def _at_random(self) -> bool:
        return self.protocol in ("intra_patient", "kaggle_rebuilt")

    @property
    def description(self) -> dict[str, Any]:
        """What a trained network must know; how beats are cut, unless Kaggle has cut them."""
        known = super().description
        if self.protocol == "kaggle":
            for name in ("lead", "window", "rate", "baseline", "normalize", "rr"):
                del known[name]
        return known

    def prepare_data(self) -> None:
        """Download the records that are missing, if `download` is set."""
        missing = [r for r in self.names if not all(map(Path.is_file, self._files(r)))]
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
        """All beats (M, C, L) and their classes, whatever the split; of the CSV files, one file."""
        if self.protocol == "kaggle":
            rows = self._kaggle(split)
            return rows["signals"].unsqueeze(1), rows["labels"]
        return super().load(split)

    @property
    def shared(self) -> bool:
        """All beats of the records are loaded for each split; Kaggle's files have two parts."""
        return self.protocol != "kaggle"

    def choose(self, split: Split, labels: Tensor) -> Tensor:
        """The beats of whole records, or a part of every class."""
        if self.protocol == "kaggle":
            return ImageDataModule.choose(self, split, labels)
        if self._at_random:
            return self._random_part(split, labels)
        parts = self.records_in()
        assert parts is not None
        wanted = parts[split]
        if split == "val" and not wanted:
            return torch.arange(0)
        if self.protocol == "inter_patient" or split == "val":
            return self.beats_of(wanted)
        if split == "test":
            return self.beats_of(wanted, start=LEARNING)
        learning = self.beats_of(parts["test"], end=LEARNING)
        return torch.cat([self.beats_of(wanted), learning]).sort().values

    def records_in(self) -> dict[str, set[str]] | None:
        """The records of each split; None if single beats are drawn."""
        if self.protocol == "kaggle" or self._at_random:
            return None
        val = set(map(str, self.val_records or ())) if self.val_fraction else set[str]()
        test = set(map(str, DS2 if self.patient is None else (self.patient,)))
        return {"train": set(map(str, DS1)) - val, "val": val, "test": test}

    def describe(self, index: int) -> dict[str, Any]:
        """Record, time in seconds and leads of a beat; for a CSV file, the row."""
        if self.protocol == "kaggle":
            return {"row": index + 1}
        return super().describe(index)

    def _random_part(self, split: Split, labels: Tensor) -> Tensor:
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
