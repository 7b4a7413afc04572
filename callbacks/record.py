"""The history of a run's activations: a CSV file, and tables of it."""

import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from .figures import History
from .sites import Values


class Row(NamedTuple):
    """One number.

    Attributes:
        step: optimizer steps done.
        epoch: the epoch it was read in.
        site: the activation's name in the network.
        param: what was read; `theta_1` is the first term of theta, `alpha_std` a deviation.
        channel: whose it is, or None for the mean of all.
        value: the number.
    """

    step: int
    epoch: int
    site: str
    param: str
    channel: int | None
    value: float


class Record:
    """`activations.csv`: written to after each look, in whole lines.

    Args:
        path: the file.
        earlier: that of the run that is resumed, whose rows are taken over.
        step: where the run starts.
    """

    def __init__(self, path: Path, earlier: Path | None = None, step: int = 0) -> None:
        self.path = path
        kept = [row for row in (read(earlier) if earlier else ()) if row.step <= step]
        self._held = {(row.step, *row[2:5]) for row in kept if row.step == step}
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(path.name + ".part")
            unfinished.write_text(_lines([Row._fields, *kept]))
            unfinished.replace(path)

    def write(self, rows: Iterable[Row]) -> None:
        """Append `rows`, but for those that were taken over."""
        new = [row for row in rows if (row.step, *row[2:5]) not in self._held]
        with _writing(self.path), self.path.open("a", newline="") as file:
            file.write(_lines(new if file.tell() else [Row._fields, *new]))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror}; make room there, or choose another folder "
            "(--trainer.logger.init_args.save_dir, --trainer.default_root_dir)"
        ) from error


def read(path: Path) -> Iterator[Row]:
    """The rows of a file; none if there is no such file, and up to where it was cut off."""
    if not path.is_file():
        return
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                step, epoch = int(row["step"]), int(row["epoch"])
                channel = int(row["channel"]) if row["channel"] else None
                yield Row(step, epoch, row["site"], row["param"], channel, float(row["value"]))
            except (TypeError, ValueError):
                return


def _lines(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def terms(name: str, value: Tensor) -> list[str]:
    """What the columns of a parameter are called."""
    count = value.shape[1]
    return [name] if count == 1 else [f"{name}_{term}" for term in range(1, count + 1)]


def scalars_of(values: Values) -> Iterator[tuple[str, str, float]]:
    """Site, name and number: the mean of each term, and the deviation of its channels."""
    for site, named in values.items():
        for name, value in named.items():
            names = terms(name, value)
            for term, number in zip(names, value.mean(0).tolist(), strict=True):
                yield site, term, number
            if len(value) > 1:
                for term, number in zip(names, value.std(0).tolist(), strict=True):
                    yield site, f"{term}_std", number


def history(path: Path, values: Values) -> History:
    """Every parameter of `values` over the whole run, from its CSV file."""
    numbers: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in read(path):
        if row.channel is None:
            numbers.setdefault((row.site, row.param), []).append((row.step, row.value))
    found: History = {}
    for site, named in values.items():
        for name, value in named.items():
            columns = [numbers[site, term] for term in terms(name, value)]
            found[f"{name}/{site}"] = [
                (rows[0][0], [number for _, number in rows]) for rows in zip(*columns, strict=True)
            ]
    return found


def thinned(names: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """At most `most` of the (site, name): no deviations, then every second, third, ... site."""
    if len(names) <= most:
        return names
    means = [(site, name) for site, name in names if not name.endswith("_std")]
    sites = list(dict.fromkeys(site for site, _ in means))
    for every in range(1, len(sites) + 1):
        shown = set(sites[::every])
        if len(chosen := [pair for pair in means if pair[0] in shown]) <= most:
            return chosen
    return means[:most]


def table(first: Values, last: Values) -> str:
    """Site, parameter, first and last value, a line each."""
    rows = [("site", "parameter", "first", "last")]
    for site, values in last.items():
        for name, value in values.items():
            before = first.get(site, {}).get(name, value)
            rows.append((site, name, _text(before), _text(value)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _text(value: Tensor) -> str:
    mean = " ".join(f"{number:.4f}" for number in value.mean(0).tolist())
    return mean if len(value) == 1 else f"{mean} (mean of {len(value)})"


def run_folder(trainer: Trainer) -> Path | None:
    """Where the run's files are; every process asks."""
    found = trainer.log_dir
    if getattr(trainer, "fast_dev_run", False):
        return None
    root = Path(found or trainer.default_root_dir)
    if not trainer.loggers:
        return next(
            p for n in itertools.count() if not (p := root / f"monitor/version_{n}").exists()
        )
    logger = trainer.loggers[0]
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        return root
    version = logger.version
    return root / str(logger.name) / (version if isinstance(version, str) else f"version_{version}")
