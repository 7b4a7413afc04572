"""Heart beats cut out of WFDB records or read from CSV files, and their spectrograms."""

import warnings
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .images import damaged
from .records import baseline_of, leads_of, named, patient_of, positions, read_notes, read_record

FLAT = 1e-3  # millivolt; one step of the converter is 5e-3, so a lead with less is not connected
GAP = 0.5  # beats of which a larger part is missing are dropped
SYMBOLS = "NLRejAaJSVEF/fQ"  # the annotations that AAMI EC57 counts as beats
AAMI = {"N": "NLRej", "S": "AaJS", "V": "VE", "F": "F", "Q": "/fQ"}
Normalize = Literal["zscore", "minmax", "none"]
Representation = Literal["signal", "image", "spectrogram"]
Rhythm = bool | Literal["patient"]
_NEAR = ("RR before in s", "RR after in s", "mean RR of the ten around in s", "first / third")
_SHARES = tuple(f"{each} / mean RR of the record" for each in ("first", "second", "third"))
RHYTHM = {False: (), True: _NEAR, "patient": _NEAR + _SHARES}  # the columns of `rhythm`
AROUND = 5  # intervals before a beat, and after it, of which the local mean is taken


class Window(NamedTuple):
    """How a beat is cut out: the options of `WFDBBeats`, whose `window` is `before` and `after`.

    With `cycles`, a beat lasts from `before` to so many median RR intervals of its record, and
    zeros follow up to `after`.
    """

    lead: tuple[str, ...]
    leads: int
    before: float
    after: float
    rate: float
    baseline: bool
    normalize: Normalize
    cycles: float | None = None

    @property
    def samples(self) -> int:
        """Length of a beat."""
        return round((self.before + self.after) * self.rate)


class Beats(NamedTuple):
    """The annotated beats of one record.

    Attributes:
        signals: (K, C, samples), float32, of the K beats whose window lies inside the record, and
            of which the record has at least half.
        symbols: (M,), positions in `SYMBOLS`.
        peaks: (M,), the R peaks in samples of the record.
        inside: (M,), whether a beat is one of these.
        lead: the names of the leads.
        rate: samples per second of the record.
        patient: whose record it is.
    """

    signals: np.ndarray
    symbols: np.ndarray
    peaks: np.ndarray
    inside: np.ndarray
    lead: str
    rate: float
    patient: str


def read_beats(
    path: Path, window: Window, sums: dict[str, str], rate: float | None = None
) -> Beats | list[str]:
    """The beats of a record, or the names of its signals if it lacks the leads.

    Args:
        path: path of the record, without suffix.
        window: how beats are cut out.
        sums: SHA-256 of files by name, as far as they are known.
        rate: samples per second that the record must have; None accepts 30 to 10,000.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    record = read_record(path, sums, rate)
    peaks, symbols = read_notes(path, sums, record)
    chosen = positions(record.sig_name, window.lead, window.leads)
    if not chosen:
        return record.sig_name
    beat = np.array([symbol in SYMBOLS for symbol in symbols], dtype=bool)
    kinds = np.array([SYMBOLS.index(s) for s in symbols if s in SYMBOLS], dtype=np.int64)
    signal, missing = leads_of(record, chosen, path)
    signals, inside = cut(signal, peaks[beat], window, record.fs)
    seen = _missing(missing, peaks[beat], window, record.fs) <= GAP
    signals, inside = signals[seen[inside]], inside & seen
    told = named(record, chosen), record.fs, patient_of(record)
    return Beats(signals, kinds, peaks[beat], inside, *told)


def _missing(gaps: np.ndarray, peaks: np.ndarray, window: Window, rate: float) -> np.ndarray:
    """The share (M,) of each window's samples that a record (C, L) lacks."""
    before = np.concatenate([[0.0], gaps.mean(0).cumsum()])
    length = max(1, round(window.samples / window.rate * rate))
    first = peaks - round(window.before * rate)
    ends = np.clip([first, first + length], 0, gaps.shape[1])
    return (before[ends[1]] - before[ends[0]]) / length


def cut(
    signal: np.ndarray, peaks: np.ndarray, window: Window, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """The windows (K, C, samples) that lie inside the signal, and the mask (M,) of their peaks.

    Args:
        signal: (C, L), in millivolt, with `rate` samples per second.
        peaks: (M,), the R peaks in samples of the signal.
        window: how beats are cut out; the signal is resampled to its rate.
        rate: see above.
    """
    from scipy.signal import resample_poly

    wanted = window.rate
    if wanted != rate:
        ratio = Fraction(wanted / rate).limit_denominator(1000)
        signal = resample_poly(signal, ratio.numerator, ratio.denominator, axis=1, padtype="line")
        # by the same ratio, else the peaks drift away from their beats
        peaks = np.round(peaks * float(ratio)).astype(np.int64)
    if window.baseline:
        signal = signal - np.stack([baseline_of(each, wanted) for each in signal])
    first = peaks - round(window.before * wanted)
    if window.cycles:
        return _cycles(signal, first, window)
    inside = (first >= 0) & (first + window.samples <= signal.shape[1])
    beats = signal[:, first[inside, None] + np.arange(window.samples)].swapaxes(0, 1)
    return normalised(beats, window.normalize).astype(np.float32), inside


def _cycles(signal: np.ndarray, first: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Beats of `window.cycles` median RR intervals, followed by zeros; without the last beat."""
    inside = (first >= 0) & (np.arange(len(first)) < len(first) - 1)
    beats = np.zeros((int(inside.sum()), len(signal), window.samples), np.float32)
    assert window.cycles is not None
    length = round(window.cycles * np.median(np.diff(first))) if len(first) > 1 else 0
    for beat, start in zip(beats, first[inside], strict=True):
        part = signal[:, start : start + min(length, window.samples)]
        beat[:, : part.shape[1]] = normalised(part, window.normalize)
    return beats, inside


def normalised(beats: np.ndarray, how: Normalize) -> np.ndarray:
    """Beats (..., samples), each lead scaled as `how` says."""
    if how == "zscore":
        beats = beats - beats.mean(-1, keepdims=True)
        return beats / np.maximum(beats.std(-1, keepdims=True), FLAT)
    if how == "minmax":
        beats = beats - beats.min(-1, keepdims=True)
        return beats / np.maximum(beats.max(-1, keepdims=True), FLAT)
    return beats


def rhythm(peaks: np.ndarray, rate: float, kind: Rhythm) -> np.ndarray:
    """The rhythm around each beat of a record, (M, 4) or (M, 7) in float32.

    The columns are the RR intervals before and after the beat, the mean of the ten around it (five
    before, five after, at the ends of the record those that there are), in seconds, and the first
    divided by the third. `patient` adds the first three, divided by the mean of the whole record.
    The first beat has no interval before it and takes the one after it; the last beat takes the one
    before it for the one after it.

    Args:
        peaks: (M,), the R peaks of all beats of the record in samples, in the order of time.
        rate: samples per second.
        kind: True or `patient`.

    Raises:
        ValueError: the record has a single beat, or its peaks are not in the order of time.
    """
    intervals = np.diff(peaks) / rate
    if not len(intervals) or (intervals < 0).any():
        why = "not in the order of time" if len(intervals) else f"{len(peaks)}, not two or more"
        raise ValueError(f"the rhythm (rr) needs all R peaks of a record: these are {why}")
    before = np.concatenate([intervals[:1], intervals])
    after = np.concatenate([intervals, intervals[-1:]])
    ends, beat = np.concatenate([[0], intervals.cumsum()]), np.arange(len(peaks))
    first, last = np.maximum(beat - AROUND, 0), np.minimum(beat + AROUND, len(intervals))
    local = np.maximum((ends[last] - ends[first]) / (last - first), 1 / rate)
    columns = [before, after, local, before / local]
    if kind == "patient":
        columns += [each / intervals.mean() for each in columns[:3]]
    return np.stack(columns, 1).astype(np.float32)


def represented(beats: Tensor, representation: Representation) -> Tensor:
    """Beats (N, C, L) as they are (`signal`), as (N, C, 1, L), or as spectrograms."""
    if representation == "image":
        return beats.unsqueeze(2)
    return spectrogram(beats) if representation == "spectrogram" else beats


def spectrogram(beats: Tensor) -> Tensor:
    """Log power of beats (N, C, L) as images (N, C, 32, 32), each with mean 0 and deviation 1.

    Frequency goes from 0 at the bottom to half the sampling rate at the top, time from left to
    right. Beats have 32 samples or more; if that makes more than 32 frames, they are averaged.
    """
    hop = max(1, beats.shape[-1] // 31)
    window = torch.hann_window(62, device=beats.device)
    flat = beats.flatten(0, 1)
    power = torch.stft(flat, 62, hop, window=window, return_complex=True).abs().square()
    image = (columns(power) + 1e-3).log().flip(1).unflatten(0, beats.shape[:2])
    deviation, mean = torch.std_mean(image, dim=(2, 3), keepdim=True)
    return (image - mean) / deviation.clamp(min=1e-6)


def columns(power: Tensor) -> Tensor:
    """The frames of a spectrogram, in the last axis, as 32 columns: means of those that overlap."""
    frames, column = power.shape[-1], np.arange(32)
    if frames == len(column):
        return power
    first, last = column * frames // 32, -(-(column + 1) * frames // 32)
    frame = np.arange(frames)[:, None]
    shares = ((first <= frame) & (frame < last)) / (last - first)
    return power @ torch.from_numpy(shares).to(power)


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
