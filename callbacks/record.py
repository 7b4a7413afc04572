"""The history of a run's activations: a CSV file, and tables of it."""

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from activations.files import append, replacing

from .sites import Values, columns


class Row(NamedTuple):
    """One number of the file."""

    step: int  # optimizer steps done
    epoch: int
    site: str  # the activation's name in the network
    param: str  # theta_1 is the first term of theta, alpha_std a standard deviation
    channel: int | None  # None for the mean of all
    value: float


class Record:
    """`activations.csv`, to which each look adds rows.

    It starts with the first `rows` rows of the file `earlier`, of a run that is resumed, up to its
    `step`.

    Attributes:
        path: the file.
        step: the last step in the rows that were taken over; -1 without any.
        rows: how many rows the file has.
    """

    def __init__(
        self, path: Path, earlier: Path | None = None, step: int = 0, rows: int | None = None
    ) -> None:
        self.path = path
        known = itertools.islice(read(earlier) if earlier else (), rows)
        kept = [row for row in known if row.step <= step]
        self.step, self.rows = kept[-1].step if kept else -1, len(kept)
        with replacing(path) as unfinished:
            unfinished.write_text(_text([Row._fields, *kept]))

    def write(self, rows: Iterable[Row]) -> None:
        """Append `rows`."""
        new = list(rows)
        append(self.path, _text(new))
        self.rows += len(new)


def _text(rows: Iterable[tuple[object, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read(path: Path) -> Iterator[Row]:
    """The rows of a file up to the first incomplete one; none if there is no such file."""
    if not path.is_file():
        return
    with path.open(newline="") as file:
        rows = itertools.islice(csv.reader(file), 1, None)
        while True:
            try:
                row = next(rows)
                step, epoch, site, param, channel, value = row
                index = int(channel) if channel else None
                yield Row(int(step), int(epoch), site, param, index, float(value))
            except (StopIteration, ValueError, csv.Error):
                return


def write_inputs(path: Path, quantiles: Mapping[str, Tensor]) -> None:
    """Write `inputs.csv`: a column for each site, its quantiles below each other."""
    rows = zip(*(values.tolist() for values in quantiles.values()), strict=True)
    text = _text([tuple(quantiles), *(tuple(f"{value:.5g}" for value in row) for row in rows)])
    with replacing(path) as unfinished:
        unfinished.write_text(text)


def means(values: Values) -> Iterator[tuple[str, str, float]]:
    """Site, name and number: each term's mean over its channels, and their standard deviation."""
    for site, name, column in columns(values):
        yield site, name, column.mean().item()
        if len(column) > 1:
            yield site, f"{name}_std", column.std().item()


def single_channels(values: Values, step: int, epoch: int) -> Iterator[Row]:
    """A row for each channel of the parameters that have several."""
    for site, name, column in columns(values):
        for channel, number in enumerate(column.tolist() if len(column) > 1 else ()):
            yield Row(step, epoch, site, name, channel, number)


def thinned(names: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """At most `most` of the (site, name): no deviations, then every second, third, ... site."""
    if len(names) <= most:
        return names
    kept = [(site, name) for site, name in names if not name.endswith("_std")]
    sites = list(dict.fromkeys(site for site, _ in kept))
    for every in range(1, len(sites) + 1):
        shown = set(sites[::every])
        if len(chosen := [pair for pair in kept if pair[0] in shown]) <= most:
            return chosen
    return kept[:most]


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of the run's files; every process calls this, since Lightning agrees on it."""
    if getattr(trainer, "fast_dev_run", False):
        return None
    root = Path(trainer.log_dir or trainer.default_root_dir)
    if not trainer.loggers:
        versions = (root / f"monitor/version_{number}" for number in itertools.count())
        return next(folder for folder in versions if not folder.exists())
    logger = trainer.loggers[0]
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        return root
    version = logger.version
    return root / str(logger.name) / (version if isinstance(version, str) else f"version_{version}")
