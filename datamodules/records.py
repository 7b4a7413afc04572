"""WFDB records: reading them safely, and the beats of a record that belongs to no data set."""

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .images import content_of, damaged, require, some, unreadable

SUFFIXES = (".hea", ".dat", ".atr")
# annotations that MIT-BIH lacks, as those that de Chazal 2004 counts alike: a supraventricular
# escape beat as an atrial one, a bundle branch block as normal, R-on-T as PVC, and an unclassified
# beat as unknown
ALIKE = {"n": "e", "B": "N", "r": "V", "?": "Q"}
# "patient 12", "Patient ID: x12", "<subject_id>: 012"; not "patient: 63 years"
PATIENT = (
    r"\b(?:patient|subject)"
    r"(?:[\W_]{,8}(?:identifier|id|number|no|nr|n|code)(?=[\W_\d])[\W_]{,8}|[\W_]{1,8})"
    r"(?!\d+\W*(?:years?|y/?o)\b)0*((?!_)\w{,40}\d[\w-]*)"
)
MILLIVOLT = {"mV": 1, "uV": 1e-3, "V": 1e3}
_damaged = partial(damaged, remedy="replace it by a whole copy")


class Own(NamedTuple):
    """Leads of a record, and its R peaks.

    Attributes:
        signal: (C, L), in millivolt.
        rate: samples per second.
        peaks: (M,), in samples.
        symbols: the M annotations; None where the peaks were detected.
        missing: samples that the record lacks; they lie on a line between their neighbours.
        lead: the names of the leads.
    """

    signal: np.ndarray
    rate: float
    peaks: np.ndarray
    symbols: list[str] | None
    missing: int
    lead: str


def read_own(path: Path, lead: Sequence[str], leads: int, beats: str) -> Own:
    """Read a record of any rate: its annotated beats, or where none is annotated those detected.

    Args:
        path: path of the record, with or without suffix.
        lead: names of signals, see :func:`positions`.
        leads: how many signals.
        beats: the annotations that are beats.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the record lacks the lead.
    """
    path = path.with_suffix("") if path.suffix in SUFFIXES else path
    record = read_record(path, {})
    chosen = positions(record.sig_name, lead, leads)
    if not chosen:
        other = f" with {leads - 1} more" if leads > 1 else ""
        raise ValueError(
            f"record {str(path)!r} has the leads {some(record.sig_name)}, not "
            f"{' or '.join(lead)}{other}, by which the network was trained: give the numbers of "
            "another lead to network.preprocess (docs/deploy.md), or train with --data.lead"
        )
    signal, gaps = leads_of(record, chosen, path)
    missing = int(gaps.sum())
    lead_names = named(record, chosen)
    peaks, symbols = np.empty(0, np.int64), []
    if path.with_suffix(".atr").is_file():
        peaks, symbols = read_notes(path, {}, record)
    beat = np.array([symbol in beats for symbol in symbols], dtype=bool)
    if not beat.any():  # such as of the rhythm alone
        peaks = detect(signal[0], record.fs)
        return Own(signal, record.fs, peaks, None, missing, lead_names)
    kept = [symbol for symbol in symbols if symbol in beats]
    return Own(signal, record.fs, peaks[beat], kept, missing, lead_names)


def positions(names: Sequence[str], lead: Sequence[str], leads: int) -> list[int]:
    """Which signals are taken: those named in `lead`, in its order, then the others in theirs.

    Args:
        names: of the record's signals.
        lead: the signals that come first.
        leads: how many are taken.

    Returns:
        Their positions; none if no signal is named, or there are too few.
    """
    first = [names.index(each) for each in dict.fromkeys(lead) if each in names]
    order = first + [each for each in range(len(names)) if each not in first]
    return order[:leads] if first and len(order) >= leads else []


def named(record: Any, chosen: Sequence[int]) -> str:
    """The names of some signals of a record, as one word."""
    return "+".join(record.sig_name[each] for each in chosen)


def patient_of(record: Any) -> str:
    """The patient: the number that the comments of a header give, as INCART's do, or the record."""
    found = re.search(PATIENT, " ".join(record.comments or []), re.IGNORECASE)
    return f"patient {found[1]}" if found else record.record_name


def leads_of(record: Any, chosen: Sequence[int], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Signals of a record (C, L) in millivolt, and which of their samples are missing (C, L).

    Raises:
        ValueError: a signal has another unit, or no sample.
    """
    try:
        signals = record.dac()[:, list(chosen)].T.copy()
    except (ArithmeticError, TypeError) as error:
        raise _damaged(path.with_suffix(".hea"), f"{type(error).__name__}: {error}") from error
    missing = ~np.isfinite(signals)
    for signal, gaps, lead in zip(signals, missing, chosen, strict=True):
        name, unit = record.sig_name[lead], record.units[lead]
        if unit not in MILLIVOLT:
            raise ValueError(f"record {str(path)!r} has {name} in {unit!r}, not in mV, uV or V")
        if MILLIVOLT[unit] != 1:
            signal *= MILLIVOLT[unit]
        known = ~gaps
        if not known.any():
            raise ValueError(f"record {str(path)!r} has no sample of {name}")
        if not known.all():
            every = np.arange(len(signal))
            signal[:] = np.interp(every, every[known], signal[known])
    return signals, missing


def detect(signal: np.ndarray, rate: float) -> np.ndarray:
    """The R peaks of a signal in millivolt, in samples.

    XQRS, the detector of wfdb, finds them. It marks wide beats up to 0.07 s beside the peak: each
    moves to the largest distance from the baseline within 0.1 s.
    """
    from wfdb.processing import xqrs_detect

    try:
        found = np.asarray(xqrs_detect(signal, rate, verbose=False), dtype=np.int64)
    except Exception as error:  # such as a signal that is shorter than its filters
        raise ValueError(f"wfdb cannot look for R peaks in this signal: {error}") from error
    height, reach = np.abs(signal - baseline_of(signal, rate)), round(0.1 * rate)
    starts = np.maximum(found - reach, 0)
    moved = [s + height[s : f + reach + 1].argmax() for s, f in zip(starts, found, strict=True)]
    return np.unique(np.array(moved, dtype=np.int64))


def baseline_of(signal: np.ndarray, rate: float) -> np.ndarray:
    """Two running medians, of 0.2 s and of 0.6 s."""
    from scipy import ndimage

    for seconds in (0.2, 0.6):
        nearest_odd = 2 * int(seconds * rate / 2) + 1
        signal = ndimage.median_filter(signal, nearest_odd, mode="nearest")
    return signal


def read_header(path: Path, sums: dict[str, str], rate: float | None = None) -> Any:
    """The header of a record, with the arguments and errors of :func:`read_record`."""
    import wfdb

    check_name(path)
    file = path.with_suffix(".hea")
    if file.is_file() and (size := file.stat().st_size) > 2**14:  # thousands of signals
        raise _damaged(file, f"{size} bytes are too many for a header")
    header = _read([file], sums, lambda: wfdb.rdheader(str(path)))
    if isinstance(header, wfdb.MultiRecord):
        raise _unread(path, "consists of several segments")
    names, length = getattr(header, "sig_name", None), header.sig_len
    right = header.fs == rate if rate else header.fs and 30 <= header.fs <= 10_000
    if not right or not names or not length:
        wanted = f"{rate:g}" if rate else "30 to 10,000"
        why = f"signals {names}, {length} samples, {header.fs} a second instead of {wanted}"
        raise _damaged(file, why)
    return header


def check_name(path: Path) -> None:
    """Refuse a name for which wfdb calls the header wrong."""
    if not re.fullmatch(r"[-\w]+", path.name):
        raise ValueError(
            f"{path.name!r} is no name of a WFDB record, which has letters, digits, - and _ alone: "
            "rename its files, and the name at the start of its header"
        )


def read_record(path: Path, sums: dict[str, str], rate: float | None = None) -> Any:
    """A record of `wfdb`, with the numbers of its file.

    Args:
        path: path of the record, without suffix.
        sums: SHA-256 of files by name, as far as they are known.
        rate: samples per second that it must have; None accepts 30 to 10,000.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or of a form that is not read.
    """
    import wfdb

    header = read_header(path, sums, rate)
    _check_size(path, header, header.sig_len)
    files = [path.with_name(name) for name in dict.fromkeys(header.file_name)]
    record = _read(files, sums, lambda: wfdb.rdrecord(str(path), physical=False))
    checksums = zip(record.file_name, record.calc_checksum(), record.checksum or [], strict=False)
    for name, found, known in checksums:
        if known is not None and (found - known) % 65536:
            raise _damaged(path.with_name(name), "its checksum is not the one in the header")
    return record


def signal_files(header: Path) -> list[Path]:
    """The files of signals that a header names, whether or not they are there."""
    lines = (line.split() for line in content_of(header).decode(errors="replace").splitlines())
    signals = [words[0] for words in lines if words and not words[0].startswith("#")][1:]
    right = (name for name in dict.fromkeys(signals) if re.fullmatch(r"[-\w]+(\.\w+)?", name))
    return [header.parent / name for name in right]


def read_notes(
    path: Path, sums: dict[str, str], header: Any, suffix: str = ".atr"
) -> tuple[np.ndarray, list[str]]:
    """The samples and the symbols of a record's annotations, with those of `ALIKE` replaced.

    A file may count time in other units than the samples of its record, `header`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged.
    """
    import wfdb

    file = path.with_suffix(suffix)
    notes = _read([file], sums, lambda: wfdb.rdann(str(path), suffix[1:]))
    names = map(str, notes.symbol)  # an unknown code is a NaN
    peaks, symbols = np.asarray(notes.sample), [ALIKE.get(each, each) for each in names]
    if notes.fs and notes.fs != header.fs:
        peaks = np.round(peaks * (header.fs / notes.fs)).astype(np.int64)
    whole = file.read_bytes().endswith(b"\0\0")
    if not whole or (len(peaks) and (peaks.min() < 0 or peaks.max() >= header.sig_len)):
        raise _damaged(file, "cut off, or with times outside of the record")
    return peaks, symbols


def known_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, from PhysioNet's SHA256SUMS.txt; empty without that file."""
    file = folder / "SHA256SUMS.txt"
    if not file.is_file():
        return {}
    lines = (line.split(maxsplit=1) for line in file.read_text(errors="replace").splitlines())
    return {line[1].strip(): line[0] for line in lines if len(line) == 2}


def _read(files: Sequence[Path], sums: dict[str, str], read: Any) -> Any:
    require(files, "Put it there")
    for file in files:
        known = sums.get(file.name)
        if known and hashlib.sha256(content_of(file)).hexdigest() != known:
            raise _damaged(file, "its SHA-256 is not the one in SHA256SUMS.txt")
    try:
        return read()
    except OSError as error:
        raise unreadable(error.filename or files[0], error) from error
    except Exception as error:
        raise _damaged(files[0], f"{type(error).__name__}: {error}") from error


def _unread(path: Path, why: str) -> ValueError:
    remedy = "write it anew in format 16 with wfdb.wrsamp"
    return ValueError(f"record {str(path)!r} {why}, and such records are not read: {remedy}")


def _check_size(path: Path, header: Any, length: int) -> None:
    """Compare sizes before wfdb allocates memory, as a damaged header can give any length."""
    width = {"212": 1.5, "16": 2, "80": 1, "24": 3, "32": 4, "61": 2, "160": 2}
    skew = max(each or 0 for each in header.skew)
    if skew >= length:
        raise _damaged(path.with_suffix(".hea"), "its signals are shifted by more than they last")
    if skew:
        raise _unread(path, "has signals that are shifted against each other")
    if set(header.samps_per_frame) != {1}:
        raise _unread(path, "has signals of several rates")
    offsets = [each or 0 for each in header.byte_offset]
    for name, kind, offset in set(zip(header.file_name, header.fmt, offsets, strict=True)):
        file = path.parent / str(name)
        if file.name != name:  # a file of another folder
            raise _damaged(path.with_suffix(".hea"), f"it names the file {name!r}")
        if not file.is_file():
            raise FileNotFoundError(
                f"{name} is not in {str(path.parent)!r}, and {path.name}.hea names it: put it there"
            )
        if kind not in width:
            raise _unread(path, f"has signals in format {kind}")
        expected = length * header.file_name.count(name) * width[kind] + offset
        if not expected <= (size := file.stat().st_size) < expected + 2:
            raise _damaged(file, f"{size} bytes, but {path.name}.hea says {expected:.0f}")
