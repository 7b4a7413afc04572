"""Heart beats of any folder of WFDB records with beat annotations, split by patient."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from . import beats
from .aami import Report, report
from .base import ImageDataModule, Part, Split
from .beats import AAMI, SYMBOLS
from .cache import Create, prepare, stamp
from .images import require, some
from .options import check_part, check_range
from .records import PATIENT, check_name, known_sums, signal_files

Names = Sequence[int | str]


@dataclass(eq=False, repr=False)
class WFDBBeats(ImageDataModule):
    """Heart beats of a folder of WFDB records (`I01.hea`, `I01.dat`, `I01.atr`, ...) of any rate.

    Such as those of the St Petersburg INCART or the MIT-BIH Supraventricular Arrhythmia Database.
    The annotations are those of MIT-BIH; records without them are left out. Splits at random have
    each patient in one alone: records whose headers name the same patient number, as INCART's do,
    belong together, and any other record is a patient of its own.

    Beats whose window leaves the record are dropped, and so are records without the leads; both
    are logged.

    Args:
        root: folder of the records.
        representation: `signal` gives beats (C, L) for 1-D networks. For 2-D networks, `image`
            gives (C, 1, L), and `spectrogram` gives (C, 32, 32) with frequency from bottom to top.
        classes: `aami`, the five of EC57 (N S V F Q), or `symbols`, the fifteen annotations.
        lead: names of signals. The first that a record has is taken.
        leads: number of signals, the channels of a beat. After those that `lead` names come the
            others, in the order of the record: with 2, MIT-BIH gives both.
        window: seconds before and after the R peak. At 125 Hz the default gives 187 samples, as
            the Kaggle files have.
        rate: samples per second, to which the records are resampled.
        baseline: subtract the baseline, two running medians of 0.2 s and 0.6 s.
        normalize: scale each lead of a beat to mean 0 and standard deviation 1 (`zscore`) or to
            [0, 1] (`minmax`), or leave it in millivolt (`none`).
        rr: give the network the rhythm around each beat as a side input: the RR intervals before
            and after the beat, the mean of the ten around it, and the first divided by that mean.
            `patient` adds the first three, divided by the mean of the whole record. They are of all
            annotated beats of the record; at its ends, of those that there are
            (`datamodules.beats.rhythm`).
        val_records: the validation set; by default the records of a part `val_fraction` of the
            patients who are not in the test set, at random. With `val_fraction` 0 there is none.
        test_records: the test set; by default the records of a part `test_fraction` of all
            patients, at random.
        test_fraction: see above; with 1 all records are the test set of a network that was trained
            on other data.

    Attributes:
        f1_over: a name -> the classes of a macro-F1: `f1_nsvf` is without Q, the unknown beats.

    Raises:
        ValueError: an option has an impossible value.
    """

    monitor = "val/f1"  # always-N has most beats right
    mean, std = (0.0,), (1.0,)
    native: ClassVar[float | None] = None  # the rate that all records must have
    remedy: ClassVar[str] = (
        "Give the folder of the records with --data.root DIR"  # for missing files
    )

    root: str = "data/wfdb"
    _: KW_ONLY
    representation: beats.Representation = "signal"
    classes: Literal["aami", "symbols"] = "aami"
    lead: Sequence[str] | str = ("MLII", "II", "ECG1")
    leads: int = 1
    window: tuple[float, float] = (0.5, 0.996)
    rate: float | None = 125.0
    baseline: bool = True
    normalize: beats.Normalize = "zscore"
    rr: beats.Rhythm = False
    val_records: Names | None = None
    test_records: Names | None = None
    test_fraction: float = 0.2
    crop_padding: int | None = field(default=0, init=False)
    flip: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_fraction != 1:
            check_part(test_fraction=self.test_fraction)
        check_range(1, 64, leads=self.leads)
        rate = self.native if self.rate is None else self.rate
        if rate is None:
            raise ValueError("rate must be a number: the rates of the records may differ")
        check_range(10, 3600, rate=rate)
        if not (min(self.window) >= 0 and sum(self.window) * rate >= 8 and sum(self.window) <= 600):
            raise ValueError(
                "window must be two times >= 0 that together hold 8 samples and at most 600 "
                f"seconds, got {self.window}"
            )
        if self.representation == "spectrogram" and round(sum(self.window) * rate) < 32:
            raise ValueError(
                f"a spectrogram needs beats of 32 samples or more, and {sum(self.window):g} s at "
                f"{rate:g} a second are {round(sum(self.window) * rate)}: make the window longer"
            )
        lead = (self.lead,) if isinstance(self.lead, str) else tuple(self.lead)
        if not all(lead) or not lead:
            raise ValueError(f"lead must name a signal, such as MLII, got {self.lead!r}")
        self.folder = Path(self.root).expanduser()
        self.cut = beats.Window(
            lead, self.leads, *self.window, float(rate), self.baseline, self.normalize
        )
        self.symbols_of = dict(zip(SYMBOLS, SYMBOLS, strict=True))
        if self.classes == "aami":
            self.symbols_of = AAMI
        self.class_names = tuple(self.symbols_of)
        self.num_classes = len(self.class_names)
        self.f1_over = {"f1_nsvf": (0, 1, 2, 3)} if self.classes == "aami" else {}
        self.in_channels = self.leads
        self.side_size = len(beats.RHYTHM[self.rr])
        self.dims = 1 if self.representation == "signal" else 2
        self.image_size = 32 if self.representation == "spectrogram" else self.cut.samples
        self._beats: dict[str, Tensor] = {}
        # of each record: name, leads, rate, patient
        self._about: list[tuple[str, str, float, str]] = []

    @property
    def description(self) -> dict[str, Any]:
        """What a trained network must know; how beats are cut."""
        known = super().description | {"representation": self.representation}
        if type(self).transform_batch is WFDBBeats.transform_batch:  # as `representation` says
            del known["step"]
        known.pop("resize", None)
        cut, lead = self.cut, list(self.cut.lead)
        return known | {
            "lead": lead[0] if len(lead) == 1 else lead,
            "window": [cut.before, cut.after],
            "rate": cut.rate,
            "baseline": cut.baseline,
            "normalize": cut.normalize,
            "rr": self.rr,
            **({"cycles": cut.cycles} if cut.cycles else {}),
        }

    @property
    def names(self) -> list[str]:
        """The records of the folder that have annotations."""
        if not (names := self._headers(annotated=True)):
            bare = self._headers(annotated=False)
            why = f"no annotations (.atr) of {some(bare)}" if bare else "no records (.hea)"
            raise FileNotFoundError(f"{str(self.folder)!r} holds {why}. {self.remedy}")
        return names

    @property
    def parts(self) -> dict[str, Sequence[str]]:
        """Names of groups of records, of which the log tells the beats."""
        return {"records": self.names}

    @property
    def shared(self) -> bool:
        """All beats are loaded for each split."""
        return True

    def load(self, split: Part) -> tuple[Tensor, Tensor]:
        """All beats (M, C, L) and their classes, whatever the split."""
        if not self._beats:
            annotated = self._annotated()
            self._about = json.loads(annotated.pop("about").numpy().tobytes())
            groups = self.symbols_of.values()
            class_of = torch.tensor([[s in g for g in groups].index(True) for s in SYMBOLS])
            annotated["labels"] = class_of[annotated["symbols"]]
            self._report(annotated)
            if self.rr:
                annotated["side"] = self._rhythm(annotated)
            inside = annotated.pop("inside")
            signals = annotated.pop("signals")
            self._beats = {name: values[inside] for name, values in annotated.items()}
            self._beats["signals"] = signals
        return self._beats["signals"], self._beats["labels"]

    def load_side(self, split: Part) -> Tensor | None:
        """The rhythm around each beat, whatever the split."""
        return self._beats.get("side")

    def choose(self, split: Split, labels: Tensor) -> Tensor:
        """The beats of whole records, and of whole patients."""
        parts = self.records_in()
        assert parts is not None
        if split == "val" and not parts["val"]:
            return torch.arange(0)
        self._check_patients({name: patient for name, _, _, patient in self._about}, parts)
        chosen = parts[split]
        if chosen:
            rank_zero_info(f"{type(self).__name__} {split}: {', '.join(sorted(chosen))}")
        return self.beats_of(chosen)

    def records_in(self) -> dict[str, set[str]] | None:
        """The records of each split; None if single beats are drawn."""
        known = {name: patient for name, _, _, patient in self._about}
        test = self._some(known, self.test_records, self.test_fraction, "test_records")
        rest = {name: patient for name, patient in known.items() if name not in test}
        if self.val_fraction == 0:
            val = set[str]()
        else:
            val = self._some(rest, self.val_records, self.val_fraction, "val_records")
        return {"train": rest.keys() - val, "val": val, "test": test}

    def division(self) -> dict[str, Any]:
        """The records that are for training, and those that are held out."""
        if not self._beats or (parts := self.records_in()) is None:
            return super().division()
        return {
            "trained": sorted(parts["train"]),
            "held_out": sorted(parts["val"] | parts["test"]),
            "place": self.place_digest,
        }

    def _leak(self, then: dict[str, Any], now: dict[str, Any]) -> str:
        if "trained" in then and "trained" in now:
            seen = sorted(set(then["trained"]) & set(now["held_out"]))
            return f"{some(seen)} were for training, and are held out now" if seen else ""
        if "trained" in then or "trained" in now:
            return "the splits were made in another way"
        return super()._leak(then, now)

    def _check_patients(self, known: dict[str, str], parts: Mapping[str, Iterable[str]]) -> None:
        """Refuse a patient with records in two splits, which a list of records may make."""
        homes = {name: part for part, names in parts.items() for name in names}
        first = dict[str, str]()
        for other in sorted(homes):
            name = first.setdefault(known[other], other)
            if homes[name] != homes[other]:
                raise ValueError(
                    f"{name} ({homes[name]}) and {other} ({homes[other]}) are records of one "
                    "patient, whom a network would know from the other split: name both with "
                    "test_records or val_records, or neither"
                )

    def _some(
        self, patients: dict[str, str], given: Names | None, part: float, option: str
    ) -> set[str]:
        """The records that are `given`, or those of a part of the patients."""
        if given is not None:
            wanted = set(map(str, given))
            if strangers := sorted(wanted - patients.keys()):
                raise ValueError(
                    f"{option} {', '.join(strangers)} are not among the records "
                    f"{some(list(patients))}"
                )
            return wanted
        people = sorted(set(patients.values()))
        generator = torch.Generator().manual_seed(self.split_seed)
        order = torch.randperm(len(people), generator=generator).tolist()
        chosen = {people[each] for each in order[: max(1, round(part * len(people)))]}
        return {name for name, patient in patients.items() if patient in chosen}

    def beats_of(self, names: Iterable[int | str], start: float = 0, end: float = inf) -> Tensor:
        """The positions of the beats of records with these names, between two times in seconds.

        Raises:
            ValueError: there are none.
        """
        wanted = set(map(str, names))
        if not wanted:
            people = len({patient for *_, patient in self._about})
            raise ValueError(
                f"{type(self).__name__}: no record is left for a split, of {people} patients: "
                "lower val_fraction or test_fraction, or add records of other patients"
            )
        number = [n for n, (name, *_) in enumerate(self._about) if name in wanted]
        record, rates = self._beats["records"], torch.tensor([each[2] for each in self._about])
        seconds = self._beats["peaks"] / rates[record]
        found = torch.isin(record, torch.tensor(number)) & (seconds >= start) & (seconds < end)
        if not found.any():
            without = sorted(wanted - {each[0] for each in self._about})
            lacking = f"; without {self._wanted}: {some(without)}" if without else ""
            raise ValueError(
                f"{type(self).__name__}: no beat in a split of {len(wanted)} records{lacking}: "
                "choose other records or leads"
            )
        return found.nonzero().flatten()

    def describe(self, index: int) -> dict[str, Any]:
        """Record, time in seconds and leads of a beat."""
        record, peak = (int(self._beats[name][index]) for name in ("records", "peaks"))
        name, lead, rate, _ = self._about[record]
        known = int(name) if name.isdecimal() else name
        return {"record": known, "time": f"{peak / rate:.3f}", "lead": lead}

    def test_report(
        self, true: np.ndarray, predicted: np.ndarray, group: np.ndarray | None
    ) -> Report:
        """What EC57 asks for, of the true and the predicted classes of a test."""
        return report(true, predicted, group, self.class_names)

    def transform_batch(self, images: Tensor) -> Tensor:
        """Bring beats (N, C, L) into the form that `representation` names."""
        return beats.represented(images, self.representation)

    def _headers(self, *, annotated: bool) -> list[str]:
        """The records of the folder that have annotations, or those that have none."""
        files = sorted(self.folder.glob("*.hea"))
        files = [each for each in files if not each.name.startswith(".")]  # a Mac's copies
        return [each.stem for each in files if each.with_suffix(".atr").is_file() == annotated]

    def _files(self, record: str) -> list[Path]:
        check_name(self.folder / record)
        header = self.folder / f"{record}.hea"
        signals = signal_files(header) if header.is_file() else [header.with_suffix(".dat")]
        return [header, *signals, header.with_suffix(".atr")]

    def _annotated(self) -> dict[str, Tensor]:
        """Symbol, record and peak of all annotated beats; the signals of those `inside`."""
        files = [file for record in self.names for file in self._files(record)]
        require(files, self.remedy)

        def build(create: Create) -> None:
            sums = known_sums(self.folder)
            columns, about, without = defaultdict(list), [], []
            for record in self.names:
                found = beats.read_beats(self.folder / record, self.cut, sums, self.native)
                if isinstance(found, list):
                    without.append(f"{record} has {' and '.join(found)}")
                    continue
                columns["records"].append(np.full(len(found.symbols), len(about)))
                about.append((record, found.lead, found.rate, found.patient))
                for name in ("signals", "symbols", "peaks", "inside"):
                    columns[name].append(getattr(found, name))
            if not columns:
                raise ValueError(
                    f"no record in {str(self.folder)!r} has {self._wanted}: {some(without)}"
                )
            if not any(map(len, columns["signals"])):
                raise ValueError(
                    f"no record in {str(self.folder)!r} has an annotated beat whose window lies "
                    f"inside it ({len(about)} records, {sum(map(len, columns['symbols']))} beats): "
                    "annotations of the rhythm alone (.atr) name no beats"
                )
            columns["about"] = [np.frombuffer(json.dumps(about).encode(), np.uint8)]
            for name, parts in columns.items():
                whole = np.concatenate(parts)
                create(name, whole.shape, whole.dtype)[:] = whole

        key = (*stamp(self.folder, files), self.cut, beats.Beats._fields, PATIENT)
        return prepare(self.cache_dir, f"{type(self).__name__}-{len(self.names)}", key, build)

    @property
    def _wanted(self) -> str:
        """The leads, in words."""
        more = f" and {self.leads - 1} more" if self.leads > 1 else ""
        return f"a lead {' or '.join(self.cut.lead)}{more}"

    def _rhythm(self, annotated: dict[str, Tensor]) -> Tensor:
        """The rhythm around each beat, also around those that are dropped: (M, side_size)."""
        found = torch.empty(len(annotated["peaks"]), self.side_size)
        for number, (name, _, rate, _) in enumerate(self._about):
            mine = annotated["records"] == number
            try:
                rows = beats.rhythm(annotated["peaks"][mine].numpy(), rate, self.rr)
            except ValueError as error:
                raise ValueError(f"record {name!r}: {error}; leave the record out") from error
            found[mine] = torch.from_numpy(rows)
        return found

    def _report(self, annotated: dict[str, Tensor]) -> None:
        """Log how many beats of each class are annotated, and how many are dropped."""
        labels, name = annotated["labels"], type(self).__name__
        known = [each[0] for each in self._about]
        last = "they are the last ones of their records"
        why = last if self.cut.cycles else "their window leaves the record"
        why += ", or the record lacks most of it"
        for part, records in self.parts.items():
            number = [n for n, record in enumerate(known) if record in records]
            ours = torch.isin(annotated["records"], torch.tensor(number, dtype=torch.long))
            total, dropped = (
                "/".join(map(str, labels[mask].bincount(minlength=self.num_classes).tolist()))
                for mask in (ours, ours & ~annotated["inside"])
            )
            if ours.any():
                rank_zero_info(
                    f"{name} {part}: {total} beats annotated ({'/'.join(self.class_names)}); "
                    f"{dropped} of them dropped, as {why}"
                )
        if bare := self._headers(annotated=False):
            rank_zero_info(f"{name}: left out, without annotations (.atr): {some(bare)}")
        if without := sorted(set(self.names) - set(known)):
            rank_zero_info(f"{name}: left out, without {self._wanted}: {some(without)}")
