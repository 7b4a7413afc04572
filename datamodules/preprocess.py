"""A sample of one's own, prepared as the data set of a trained network prepares its samples."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from .beats import (
    SYMBOLS,
    Normalize,
    Representation,
    Rhythm,
    Window,
    cut,
    normalised,
    represented,
    rhythm,
)
from .images import normalisation, read_image, rgb, square
from .options import check_range, check_types
from .records import Own, detect, read_own

LARGEST = 2**27  # numbers in a sample


class Beats(NamedTuple):
    """The beats of a record whose window lies inside it.

    Attributes:
        batch: (K, ...), ready for the network.
        times: (K,), of the R peaks in seconds.
        symbols: the K annotations; None where the R peaks were detected.
        outside: beats whose window leaves the record.
        missing: samples that the record lacks; they lie on a line between their neighbours.
        rate: of the record, in samples per second.
        lead: the names of the leads.
        side: (K, S), the rhythm around each beat, if the network takes it.
    """

    batch: Tensor
    times: np.ndarray
    symbols: list[str] | None
    outside: int
    missing: int
    rate: float
    lead: str
    side: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a data set prepares its samples: what the `description` of its data module tells.

    Args:
        name: of the data set.
        class_names: in the order of the network's outputs.
        dims: 2 for images, 1 for signals.
        channels: of the samples.
        size: side of the images, or length of the signals.
        mean: of each channel.
        std: of each channel.
        step: code of the data module that changes its batches, which is not stored.
        representation: of heart beats; None for others.
        lead: names of the leads of heart beats that are cut out of records, the first that a record
            has; None where beats come cut out.
        window: seconds before and after the R peak.
        cycles: median RR intervals after the R peak, with zeros up to the end of the window; None
            fills the window.
        rate: samples per second.
        baseline: subtract the baseline.
        normalize: how each beat is scaled.
        rr: the rhythm around each beat that the network takes beside it.

    Raises:
        ValueError: a value has another type, or is out of its range.
    """

    name: str
    class_names: list[str]
    dims: int
    channels: int
    size: int
    mean: list[float]
    std: list[float]
    step: str | None = None
    representation: Representation | None = None
    lead: str | list[str] | None = None
    window: list[float] | None = None
    cycles: float | None = None
    rate: float | None = None
    baseline: bool = False
    normalize: Normalize = "none"
    rr: Rhythm = False

    def __post_init__(self) -> None:
        check_types(self)
        check_range(1, 2, dims=self.dims)
        check_range(1, LARGEST, channels=self.channels, size=self.size)
        check_range(1, LARGEST, **{"channels * size ** dims": math.prod(self.shape)})
        for name, values in (("mean", self.mean), ("std", self.std)):
            right = len(values) in (1, self.channels) and all(map(math.isfinite, values))
            if not right or (name == "std" and min(values) <= 0):
                raise ValueError(f"{name} must hold {self.channels} numbers, got {values}")
        if self.representation is None or self.lead is None:
            return
        if self.window is None or len(self.window) != 2 or self.rate is None:
            raise ValueError(
                f"beats need a window of two times and a rate, got {self.window}, {self.rate}"
            )
        check_range(0, 600, **{"window[0]": self.window[0], "window[1]": self.window[1]})
        check_range(10, 3600, rate=self.rate)
        if self.representation != "spectrogram" and self.cut.samples != self.size:
            raise ValueError(f"size must be {self.cut.samples} for this window, got {self.size}")

    @classmethod
    def of(cls, description: Mapping[str, Any], source: str) -> Self:
        """The preparation that a checkpoint describes; the file `source` is named in errors."""
        known = {
            each.name: description[each.name] for each in fields(cls) if each.name in description
        }
        try:
            return cls(**known)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{source!r} stores a description of its data that cannot be right "
                f"({str(error)[:200]}): it is damaged, give another checkpoint, such as an earlier "
                "one"
            ) from error

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample as the network takes it."""
        if self.representation == "image":
            return (self.channels, 1, self.size)
        return (self.channels, *[self.size] * self.dims)

    @property
    def cut(self) -> Window:
        """How beats are cut out of a record."""
        assert self.window is not None, "of heart beats alone"
        before, after = self.window
        return Window(
            self.leads,
            self.channels,
            before,
            after,
            self.rate or math.nan,
            self.baseline,
            self.normalize,
            self.cycles,
        )

    @property
    def leads(self) -> tuple[str, ...]:
        """The names of the leads."""
        return (self.lead,) if isinstance(self.lead, str) else tuple(self.lead or ())

    def __call__(
        self, sample: Any, *, rate: float | None = None, peaks: Sequence[int] | None = None
    ) -> Any:
        """Prepare one sample, as a batch; with `rr`, as a batch and its side input.

        Args:
            sample: an image: its file, an image of PIL, an array (H, W) or (H, W, C), or a tensor
                (C, H, W); uint8 or floats in [0, 1], and only uint8 is resized. Or a signal: a
                WFDB record, or the numbers (L,), in millivolt, from which beats are cut; (C, L) for
                a network of several leads. A signal as long as a beat is one,
                whose baseline has been subtracted if `baseline` is true.
            rate: samples per second of a signal.
            peaks: R peaks of a signal, in samples; by default XQRS, wfdb's detector, finds them.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the sample does not fit the network, or cannot be read.
        """
        if self.representation is None:
            return self.finish(self.numbers(sample))
        if isinstance(sample, str | os.PathLike):
            return self._inputs(self.beats(Path(sample)))
        signal = np.asarray(sample, dtype=np.float64)
        shape = signal.shape
        signal = signal[None] if signal.ndim == 1 else signal
        if signal.ndim != 2 or len(signal) != self.channels or not np.isfinite(signal).all():
            several = f"{self.channels} leads, ({self.channels}, L)"
            wanted = several if self.channels > 1 else "one lead, (L,)"
            raise ValueError(f"a signal must be finite numbers of {wanted}, got shape {shape}")
        length = signal.shape[1]
        if peaks is None and self._is_beat(length) and rate in (None, self.rate):
            if self.rr:
                raise ValueError(
                    "a beat alone has no rhythm, which this network takes beside it (rr): give the "
                    "record, or the whole signal with its rate"
                )
            scaled = signal.min() >= 0 and signal.max() <= 1
            if self.lead is None and not scaled:
                raise ValueError(
                    f"a beat of {self.name} is scaled to [0, 1] as in Kaggle's files, this one "
                    f"goes from {signal.min():.3g} to {signal.max():.3g}: scale it so"
                )
            if self.cycles and not scaled:
                raise ValueError(
                    f"a beat of {self.name} is scaled over {self.cycles:g} RR intervals of its "
                    "record, which no beat alone tells: give the record, the whole signal with its "
                    "rate, or a beat that is scaled to [0, 1] as in Kaggle's files"
                )
            beat = normalised(signal[None], self.normalize).astype(np.float32)
            return self.finish(torch.from_numpy(beat))
        if self.lead is None:
            raise ValueError(
                f"a signal of {length} samples is no beat of {self.name}, which has "
                f"{self.size} and came cut out"
            )
        if rate is None or not 30 <= rate <= 10_000:
            raise ValueError(
                f"a signal of {length} samples needs its rate, from 30 to 10,000 a second, "
                f"got {rate}: rate=360; a single beat has {self.cut.samples} samples at "
                f"{self.rate:g} a second"
            )
        found = detect(signal[0], rate) if peaks is None else _peaks(peaks, length)
        own = Own(signal, rate, found, None, 0, "")
        return self._inputs(self._cut(own, "the signal"))

    def beats(self, path: Path) -> Beats:
        """The beats of a WFDB record, annotated or detected.

        Raises:
            FileNotFoundError: a file of it is missing.
            ValueError: it is damaged, lacks the lead, or has no beat.
        """
        if self.lead is None:
            raise ValueError(
                f"no beats can be cut out of {str(path)!r}, since those of {self.name} came cut "
                "out: give beats of that kind"
            )
        own = read_own(path, self.leads, self.channels, SYMBOLS)
        return self._cut(own, f"record {str(path)!r}")

    def finish(self, raw: Tensor) -> Tensor:
        """Normalise a batch, and bring heart beats into their form."""
        if self.step:
            raise ValueError(
                f"{self.name} changes its batches by {self.step}, which no checkpoint holds: "
                "prepare the batch by your own code, and call the network"
            )
        shift, scale = normalisation(self.mean, self.std, raw)
        batch = (raw.float() - shift) * scale
        return represented(batch, self.representation) if self.representation else batch

    def _cut(self, own: Own, source: str) -> Beats:
        beats, inside = cut(own.signal, own.peaks, self.cut, own.rate)
        if not len(beats):
            raise ValueError(
                f"{source} has no beat with {self.window} seconds around its R peak, among "
                f"{len(own.peaks)} peaks"
            )
        batch = self.finish(torch.from_numpy(beats))
        symbols = own.symbols and [s for s, kept in zip(own.symbols, inside, strict=True) if kept]
        outside = int((~inside).sum())
        times = own.peaks[inside] / own.rate
        side = None
        if self.rr:
            side = torch.from_numpy(rhythm(own.peaks, own.rate, self.rr)[inside])
        return Beats(batch, times, symbols, outside, own.missing, own.rate, own.lead, side)

    def _inputs(self, beats: Beats) -> Any:
        return beats.batch if beats.side is None else (beats.batch, beats.side)

    def _is_beat(self, length: int) -> bool:
        return length == (self.size if self.lead is None else self.cut.samples)

    def numbers(self, sample: Any) -> Tensor:
        """An image, or a sample of another kind, as a batch of one that is not normalised."""
        if isinstance(sample, str | os.PathLike):
            if not Path(sample).is_file():
                raise FileNotFoundError(f"no image at {str(sample)!r}")
            return self._of_photo(read_image(Path(sample), self.size))
        if hasattr(sample, "getexif"):  # an image of PIL
            return self._of_photo(square(rgb(sample), self.size))
        numbers = sample if isinstance(sample, Tensor) else torch.from_numpy(np.array(sample))
        if numbers is not sample and numbers.ndim == 3 and self.dims == 2:
            numbers = numbers.permute(2, 0, 1)
        if numbers.ndim == self.dims:
            numbers = numbers.unsqueeze(0)
        shape, pixels = tuple(numbers.shape), numbers.dtype == torch.uint8
        if not (pixels or numbers.is_floating_point()):
            raise ValueError(f"a sample must be uint8 or floats, got {numbers.dtype}")
        if self.dims == 2 and pixels and len(shape) == 3 and shape != self.shape and min(shape) > 0:
            return self._of_array(numbers)
        if shape != self.shape:
            raise ValueError(
                f"a sample of shape {shape} does not fit: this network takes {self.shape}, one "
                "sample at a time" + ("; only uint8 is resized" if self.dims == 2 else "")
            )
        if not pixels and self._is_unit and not (numbers.min() >= 0 and numbers.max() <= 1):
            raise ValueError(
                f"an image of floats must lie in [0, 1], got {numbers.min():.3g} to "
                f"{numbers.max():.3g}: divide it, or give uint8"
            )
        return numbers.unsqueeze(0)

    @property
    def _is_unit(self) -> bool:
        """Whether mean and deviation are those of values in [0, 1], as images have them."""
        return self.dims == 2 and all(0 <= m <= 1 for m in self.mean) and max(self.std) <= 0.5

    def _of_array(self, numbers: Tensor) -> Tensor:
        from PIL import Image

        if len(numbers) not in (1, 3, 4):
            raise ValueError(
                f"an image of shape {tuple(numbers.shape)} has {len(numbers)} channels, not 1, 3 "
                "or 4: give a tensor (C, H, W) or an array (H, W, C)"
            )
        array = np.ascontiguousarray(numbers.permute(1, 2, 0).numpy(force=True))
        image = Image.fromarray(array[..., 0] if len(numbers) == 1 else array)
        return self._of_photo(square(rgb(image), self.size))

    def _of_photo(self, pixels: np.ndarray) -> Tensor:
        """RGB (3, side, side) with the channels of the network."""
        from PIL import Image

        if self.dims != 2 or self.channels not in (1, 3):
            raise ValueError(
                f"an image does not fit: this network takes {self.shape}; give such a tensor"
            )
        if self.channels == 1:  # for a grey one these are the numbers of each channel
            grey = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).convert("L")
            pixels = np.asarray(grey)[None]
        return torch.from_numpy(np.array(pixels, order="C")).unsqueeze(0)


def _peaks(given: Any, length: int) -> np.ndarray:
    """R peaks in samples, as whole numbers within a signal."""
    peaks = np.asarray(given)
    if peaks.dtype.kind not in "iu" and not (peaks == np.round(peaks)).all():
        raise ValueError("peaks must be in samples, whole numbers: multiply seconds by the rate")
    if peaks.ndim != 1 or (peaks.size and not (peaks.min() >= 0 and peaks.max() < length)):
        raise ValueError(f"peaks must be (M,), from 0 to {length - 1}, the samples of the signal")
    return peaks.astype(np.int64)
