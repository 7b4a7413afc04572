"""`python train.py predict --predictions.input`: a trained network on files of no data set."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from callbacks.predictions import Row, best_of, check_target, write_table
from datamodules.beats import AAMI, SYMBOLS
from datamodules.images import SUFFIXES, files_within, some
from datamodules.preprocess import Beats
from datamodules.records import SUFFIXES as WFDB
from models.network import Network, load
from options import Parser

INPUT = "--predictions.input"
ANNOTATOR = "--predictions.annotator"
OTHERS = ("--ckpt_path", "--predictions.path", ANNOTATOR, "--trust", "--help", "-h")
BATCH = 128
Refused = dict[str, Exception]  # by the name of the file


def options() -> Parser:
    """The options of the command."""
    parser = Parser(prog="train.py predict", description="Predict files that are in no data set.")
    parser.add_argument(
        "--ckpt_path", required=True, type=str, help="A run's folder, a checkpoint, or an export."
    )
    parser.add_argument(
        INPUT,
        required=True,
        type=str,
        help="An image or a folder of images; a WFDB record or a folder of records.",
    )
    parser.add_argument(
        "--predictions.path", type=str, default="predictions.csv", help="The CSV file to write."
    )
    parser.add_argument(
        ANNOTATOR,
        type=str | None,
        default=None,
        help="Write the beats of record 100 as WFDB annotations too: 100.NAME beside the CSV file.",
    )
    parser.add_trust()
    return parser


def main(args: list[str]) -> None:
    """Predict what `args` name, the words after `train.py predict`."""
    given = [word.partition("=")[0] for word in args if word.startswith("-")]
    if strange := set(given) - {INPUT, *OTHERS}:
        raise ValueError(f"{INPUT} takes all else from the checkpoint: leave out {min(strange)}")
    config = options().parse_args(args)
    target, source = Path(config.predictions.path), Path(config.predictions.input).expanduser()
    if not config.predictions.input:
        raise ValueError(f"{INPUT} is empty: name a folder of images, or a record")
    check_target(target)
    network = load(config.ckpt_path, config.trust)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    beats = network.preparation.representation is not None
    annotator = config.predictions.annotator
    if annotator is not None:
        check_annotator(annotator, beats, network.class_names)
    files = find(source, [".hea"] if beats else sorted(SUFFIXES), "record" if beats else "image")
    refused: Refused = {}
    rows = list((of_records if beats else of_images)(network, files, refused))
    first = next(iter(refused.values()), None)
    if first and not rows:
        raise first
    write_table(target, network.class_names, rows)
    if annotator:
        write_notes(target.parent, annotator, network.class_names, rows)
    if first:
        sys.stderr.write(
            f"{len(refused)} of {len(files)} files have no row, since they cannot be used: "
            f"{some(list(refused))}; the first: {first}\n"
        )
    best = (best_of(row.shares) for row in rows)
    found = Counter("none" if each is None else network.class_names[each] for each in best)
    print(f"{len(rows)} predicted: {', '.join(f'{n} {k}' for n, k in found.most_common(10))}")
    print(f"Predictions: {target}")


def find(source: Path, suffixes: list[str], kind: str) -> dict[str, Path]:
    """The files in a folder, at any depth, by their names within it; or `source` itself.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: the folder holds no such file.
    """
    if source.is_dir():
        files = files_within(source, suffixes)
        if not files:
            raise ValueError(
                f"{str(source)!r} holds no {kind} ({', '.join(suffixes)}), which this network "
                f"takes: give another folder with {INPUT}"
            )
        return {file.relative_to(source).as_posix(): file for file in files}
    if not any(each.is_file() for each in (source, Path(f"{source}.hea"))):
        raise FileNotFoundError(f"no {kind} at {str(source)!r} ({INPUT})")
    return {source.name: source}


def of_images(network: Network, files: dict[str, Path], refused: Refused) -> Iterator[Row]:
    """A row for each image; those that cannot be read are put into `refused`."""
    prepare, number, names = network.preparation, count(), list(files)

    def read(name: str) -> Tensor | ValueError:
        try:
            if files[name].is_file():
                return prepare.numbers(files[name])
            raise ValueError(f"{str(files[name])!r} is no regular file")  # a pipe would wait
        except ValueError as error:
            return error

    with ThreadPoolExecutor() as pool:
        for first in range(0, len(names), BATCH):
            part = names[first : first + BATCH]
            images = dict(zip(part, pool.map(read, part), strict=True))
            good = {name: image for name, image in images.items() if isinstance(image, Tensor)}
            refused |= {name: e for name, e in images.items() if not isinstance(e, Tensor)}
            if good:
                batch = prepare.finish(torch.cat(list(good.values())))
                for name, shares in zip(good, predicted(network, batch), strict=True):
                    yield Row(next(number), {"file": name}, None, shares)


def of_records(network: Network, files: dict[str, Path], refused: Refused) -> Iterator[Row]:
    """A row for each beat; records that cannot be read are put into `refused`."""
    prepare, number, names = network.preparation, count(), list(network.class_names)
    groups = AAMI if names == list(AAMI) else {name: name for name in names}
    class_of = {symbol: names.index(name) for name, each in groups.items() for symbol in each}
    for name, file in files.items():
        try:
            beats = prepare.beats(file)
        except (ValueError, FileNotFoundError) as error:
            refused[name] = error
            continue
        record = name.removesuffix(Path(name).suffix) if Path(name).suffix in WFDB else name
        print(f"{record}: {told(beats, prepare.rate)}")
        labels = [class_of.get(each) for each in beats.symbols or [""] * len(beats.times)]
        for time, label, shares in zip(
            beats.times, labels, predicted(network, beats.batch, beats.side), strict=True
        ):
            known = {"record": record, "time": f"{time:.3f}", "lead": beats.lead}
            yield Row(next(number), known, label, shares, round(time * beats.rate))


def check_annotator(name: str, beats: bool, classes: Sequence[str]) -> None:
    """Raise a ValueError if no annotations can be written under this name."""
    if not beats or not set(classes) <= set(SYMBOLS):
        raise ValueError(
            f"{ANNOTATOR} {name} is for heart beats, but this network knows {some(list(classes))}: "
            "leave it out"
        )
    if not re.fullmatch("[A-Za-z]+", name) or f".{name.lower()}" in WFDB:
        raise ValueError(
            f"{ANNOTATOR} {name!r} must be letters, and no suffix of the records themselves: give "
            "a name such as net"
        )


def write_notes(folder: Path, annotator: str, classes: Sequence[str], rows: Iterable[Row]) -> None:
    """Write a WFDB annotation file for each record."""
    import wfdb

    for record, own in groupby(rows, lambda row: row.known["record"]):
        best = [(row.sample, best_of(row.shares)) for row in own]
        found = [(sample, classes[each]) for sample, each in best if each is not None]
        if not found:
            continue
        file = folder / record
        file.parent.mkdir(parents=True, exist_ok=True)
        samples, symbols = zip(*found, strict=True)
        wfdb.wrann(
            file.name, annotator, np.array(samples), list(symbols), write_dir=str(file.parent)
        )
        print(f"Annotations: {file}.{annotator}")


def told(beats: Beats, rate: float | None) -> str:
    """What is to be known of the beats of a record."""
    how = "detected by wfdb's XQRS, as there are no annotations (.atr)"
    parts = [f"{len(beats.times)} beats, {how if beats.symbols is None else 'as annotated'}"]
    if beats.rate != rate:
        parts.append(f"resampled from {beats.rate:g} to {rate:g} samples a second")
    if beats.outside:
        parts.append(f"{beats.outside} more left out, as their window leaves the record")
    if beats.missing:
        parts.append(f"{beats.missing} missing samples put on a line between their neighbours")
    return "; ".join(parts)


@torch.inference_mode()
def predicted(network: Network, *inputs: Tensor | None) -> Iterable[list[float]]:
    """The class probabilities of each sample, by the batch and its side input, if it has one."""
    device = next(network.parameters(), torch.empty(0)).device  # a file of ONNX has none
    parts = zip(*(each.to(device).split(BATCH) for each in inputs if each is not None), strict=True)
    return torch.cat([network(*part).softmax(1).cpu() for part in parts]).tolist()
