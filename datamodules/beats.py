"""Heart beats cut out of WFDB records or read from CSV files, and their spectrograms."""

import hashlib
import warnings
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .images import damaged, require

RATE = 360  # samples per second of every record
FLAT = 1e-3  # millivolt; one step of the converter is 5e-3, so a lead with less is not connected
SYMBOLS = "NLRejAaJSVEF/fQ"  # the annotations that AAMI EC57 counts as beats
AAMI = {"N": "NLRej", "S": "AaJS", "V": "VE", "F": "F", "Q": "/fQ"}
Normalize = Literal["zscore", "minmax", "none"]
_damaged = partial(damaged, remedy="delete it and fetch it again with --data.download true")


class Window(NamedTuple):
    """How a beat is cut out: the options of `MITBIH`, whose `window` is `before` and `after`."""

    lead: str
    before: float
    after: float
    rate: float | None
    baseline: bool
    normalize: Normalize

    @property
    def samples(self) -> int:
        """Length of a beat."""
        return round((self.before + self.after) * (self.rate or RATE))


class Beats(NamedTuple):
    """The annotated beats of one record.

    Attributes:
        signals: (K, samples), float32, of the K beats whose window lies inside the record.
        symbols: (M,), positions in `SYMBOLS`.
        peaks: (M,), the R peaks in samples of the record.
        inside: (M,), whether the window lies inside the record.
    """

    signals: np.ndarray
    symbols: np.ndarray
    peaks: np.ndarray
    inside: np.ndarray


def read_beats(path: Path, window: Window, sums: dict[str, str]) -> Beats | None:
    """The beats of a record; None if it lacks the lead.

    Args:
        path: path of the record, without suffix.
        window: how beats are cut out.
        sums: SHA-256 of files by name, as far as they are known.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    import wfdb

    header = _read(path, ".hea", sums, lambda: wfdb.rdheader(str(path)))
    names, length = header.sig_name, header.sig_len
    if header.fs != RATE or not names or not length:
        why = f"signals {names}, {length} samples, {header.fs} a second instead of {RATE}"
        raise _damaged(path.with_suffix(".hea"), why)
    _check_size(path, header, length)
    record = _read(path, ".dat", sums, lambda: wfdb.rdrecord(str(path), physical=False))
    checksums = zip(record.calc_checksum(), record.checksum or [], strict=False)
    if any(known is not None and (found - known) % 65536 for found, known in checksums):
        raise _damaged(path.with_suffix(".dat"), "its checksum is not the one in the header")
    notes = _read(path, ".atr", sums, lambda: wfdb.rdann(str(path), "atr"))
    peaks, symbols = np.asarray(notes.sample), list(notes.symbol)
    whole = path.with_suffix(".atr").read_bytes().endswith(b"\0\0")
    if not whole or (len(peaks) and (peaks.min() < 0 or peaks.max() >= length)):
        raise _damaged(path.with_suffix(".atr"), "cut off, or with times outside of the record")
    if window.lead not in names:
        return None
    lead = names.index(window.lead)
    gain, zero = record.adc_gain[lead], record.baseline[lead]
    beat = np.array([symbol in SYMBOLS for symbol in symbols], dtype=bool)
    kinds = np.array([SYMBOLS.index(s) for s in symbols if s in SYMBOLS], dtype=np.int64)
    signal = (record.d_signal[:, lead] - zero) / gain
    signals, inside = cut(signal, peaks[beat], window)
    return Beats(signals, kinds, peaks[beat], inside)


def cut(signal: np.ndarray, peaks: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """The windows (K, samples) that lie inside the signal, and the mask (M,) of their peaks."""
    from scipy import ndimage
    from scipy.signal import resample_poly

    rate = window.rate or RATE
    if rate != RATE:
        ratio = Fraction(rate / RATE).limit_denominator(1000)
        signal = resample_poly(signal, ratio.numerator, ratio.denominator, padtype="line")
        peaks = np.round(peaks * rate / RATE).astype(np.int64)
    if window.baseline:
        slow = signal
        for seconds in (0.2, 0.6):
            slow = ndimage.median_filter(slow, 2 * round(seconds * rate / 2) + 1, mode="nearest")
        signal = signal - slow
    first = peaks - round(window.before * rate)
    inside = (first >= 0) & (first + window.samples <= len(signal))
    beats = signal[first[inside, None] + np.arange(window.samples)]
    if window.normalize == "zscore":
        beats -= beats.mean(1, keepdims=True)
        beats /= np.maximum(beats.std(1, keepdims=True), FLAT)
    elif window.normalize == "minmax":
        beats -= beats.min(1, keepdims=True)
        beats /= np.maximum(beats.max(1, keepdims=True), FLAT)
    return beats.astype(np.float32), inside


def spectrogram(beats: Tensor) -> Tensor:
    """Log power of beats (N, 1, L) as images (N, 1, 32, 32), each with mean 0 and deviation 1.

    Frequency goes from 0 at the bottom to half the sampling rate at the top, time from left to
    right.
    """
    hop = max(1, beats.shape[-1] // 31)
    window = torch.hann_window(62, device=beats.device)
    power = torch.stft(beats[:, 0], 62, hop, window=window, return_complex=True).abs().square()
    image = (power[..., :32] + 1e-3).log().flip(1).unsqueeze(1)
    deviation, mean = torch.std_mean(image, dim=(2, 3), keepdim=True)
    return (image - mean) / deviation.clamp(min=1e-6)


def read_rows(file: Path) -> np.ndarray:
    """The rows of a Kaggle file: 187 samples and a class from 0 to 4.

    Raises:
        ValueError: the file is damaged, or is another one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy only warns of an empty file
            rows = np.loadtxt(file, np.float32, delimiter=",", ndmin=2)
    except (ValueError, UserWarning) as error:
        raise damaged(file, error) from error
    if rows.shape[1] != 188:
        raise damaged(file, f"{rows.shape[1]} columns, not 187 samples and a class")
    bad = ~np.isin(rows[:, 187], range(5)) | ~np.isfinite(rows).all(1)
    if bad.any():
        row = int(bad.argmax())
        why = f"row {row + 1} has the class {rows[row, 187]:g}, not 0 to 4, or an invalid sample"
        raise damaged(file, why)
    return rows


def known_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, from PhysioNet's SHA256SUMS.txt; empty without that file."""
    file = folder / "SHA256SUMS.txt"
    if not file.is_file():
        return {}
    lines = (line.split(maxsplit=1) for line in file.read_text(errors="replace").splitlines())
    return {line[1].strip(): line[0] for line in lines if len(line) == 2}


def _read(path: Path, suffix: str, sums: dict[str, str], read: Any) -> Any:
    file = path.with_suffix(suffix)
    require([file], "Put it there, or fetch it with --data.download true")
    if suffix == ".hea" and (size := file.stat().st_size) > 2**14:  # thousands of signals
        raise _damaged(file, f"{size} bytes are too many for a header")
    known = sums.get(file.name)
    if known and hashlib.sha256(file.read_bytes()).hexdigest() != known:
        raise _damaged(file, "its SHA-256 is not the one in SHA256SUMS.txt")
    try:
        return read()
    except Exception as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def _check_size(path: Path, header: Any, length: int) -> None:
    """Compare sizes before wfdb allocates memory, as a damaged header can give any length."""
    width = {"212": 1.5, "16": 2, "80": 1}
    if any(header.skew) or any(header.byte_offset):  # wfdb allocates as much memory
        raise _damaged(path.with_suffix(".hea"), "its signals are shifted")
    for name, kind in set(zip(header.file_name, header.fmt, strict=False)):
        file = path.parent / str(name)
        if file.name != name:  # a file of another folder
            raise _damaged(path.with_suffix(".hea"), f"it names the file {name!r}")
        if kind not in width or not file.is_file():
            raise _damaged(path.with_suffix(".hea"), f"no file {name} in format {kind}")
        expected = length * header.file_name.count(name) * width[kind]
        if not expected <= (size := file.stat().st_size) < expected + 2:
            raise _damaged(file, f"{size} bytes, but {path.name}.hea says {expected:.0f}")
