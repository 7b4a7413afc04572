"""`python train.py export`: a trained network as files that other programs run."""

import json
import os
import shutil
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

import datamodules
from activations import tabulate
from activations.activation import positive
from activations.files import check_writable, replacing
from models import Classifier, load
from models.deployed import Raw, deployed
from models.export import (
    CONFIG,
    FILES,
    PROGRAMS,
    TOLERANCE,
    Format,
    check_formats,
    compare,
    tolerance,
    write,
    write_weights,
)
from models.hub import about, card, push
from models.network import find, has_ended
from models.program import read
from models.side import Joined, class_scores, side_of
from options import Parser, parse_yaml

SIZES = ("num_classes", "in_channels", "image_size", "dims", "side_size")
RANDOM = 128  # inputs, where there are no data
CALIBRATION = 512  # at most so many samples give the ranges of int8
INT8, CARD = "model_int8.onnx", "README.md"
PLAIN = (bool, int, float, str, list, type(None))
_NOT_TAKEN = ("augment", "mix", "cache_dir")


def options() -> Parser:
    """The options of the command."""
    parser = Parser(prog="train.py export", description="Write a trained network as files.")
    parser.add_argument(
        "--ckpt_path", required=True, type=str, help="The folder of a run, or a checkpoint."
    )
    parser.add_argument(
        "--format",
        nargs="+",
        type=Format,
        default=["onnx"],
        help="onnx, pt2 (torch.export), openvino, safetensors, hub (safetensors, model card).",
    )
    parser.add_argument(
        "--output",
        type=str | None,
        help="Folder, in which an earlier export is replaced; by default `export` in the run's.",
    )
    parser.add_argument(
        "--include_preprocessing",
        type=bool,
        default=False,
        help="The files take raw data: images in uint8, in the network's size; beats in millivolt.",
    )
    parser.add_argument(
        "--int8",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="Write model_int8.onnx too; its ranges are those of validation samples.",
    )
    parser.add_argument(
        "--tabulate",
        type=float | None,
        metavar="TOLERANCE",
        help="Functions become tables (activations.tabulate) with at most this error, such as "
        "1e-3; their ranges are those of validation samples.",
    )
    parser.add_argument(
        "--license", type=str | None, help="Of the weights, for the model card, such as mit."
    )
    parser.add_argument(
        "--push", type=str | None, help="Upload the folder to this repository, USER/NAME."
    )
    parser.add_trust()
    parser.add_lightning_class_args(LightningDataModule, "data", required=False, subclass_mode=True)
    return parser


def main(args: list[str]) -> None:
    """Export what `args` name, the words after `train.py export`."""
    parser = options()
    args, found = with_data(args)
    config = parser.parse_args(args)
    if sum(word.partition("=")[0] == "--format" for word in args) > 1:  # the last alone would count
        raise ValueError("--format is given twice: name all formats behind one, --format onnx pt2")
    formats = list(dict.fromkeys(config.format))
    formats += ["safetensors"] if "hub" in formats and "safetensors" not in formats else []
    if config.int8 and "onnx" not in formats:
        raise ValueError("--int8 makes an ONNX file smaller: add onnx to --format")
    if config.push and "hub" not in formats:
        raise ValueError("--push uploads a folder with a model card: add hub to --format")
    if config.license and "hub" not in formats:
        raise ValueError("--license is for the model card: add hub to --format")
    if config.tabulate is not None:
        positive("--tabulate", config.tabulate)
    for name in ("include_preprocessing", "tabulate"):
        if config[name] and PROGRAMS.isdisjoint(formats):
            raise ValueError(
                f"--{name} changes what a program computes, and {', '.join(formats)} hold weights "
                "alone: add onnx, pt2 or openvino to --format"
            )
    check_formats(formats)
    path = find(config.ckpt_path)
    run = run_of(path)
    output = Path(config.output or run / "export")
    check_target(output)
    model = Classifier.load_from_checkpoint(path, "cpu", trust=config.trust).eval()
    data: Any = None
    try:
        data = parser.instantiate_classes(config)["data"]
        if data is not None:
            check_data(model, data)
        if found and data is not None:
            data.prepare_data()
    except (OSError, RuntimeError, ValueError) as error:  # moved, changed, or of other sizes
        if not found or config.int8 or config.tabulate:
            raise
        print(f"the data of the run are not here as they were, and give no samples: {error}")
        data = None
    for name in ("int8", "tabulate"):
        if config[name] and data is None:
            raise ValueError(f"--{name} needs validation samples: name the data with --data")
    if data is not None and (config.int8 or config.tabulate):
        data.prepare_data()
        data.setup("validate")
        if not len(getattr(data, "val_indices", [0])):  # another data module has none
            raise ValueError(
                "--int8 and --tabulate need validation samples, and the data have none: give "
                "--data.val_fraction above 0"
            )
    content = about(model, path, getattr(data, "description", None))
    raw, network = config.include_preprocessing, model.backbone
    content["include_preprocessing"] = raw
    if raw and not content["data"]:
        raise ValueError(f"{str(path)!r} does not know how its data were normalised: train anew")
    samples = Samples(data, content, raw)
    shown = "x".join(map(str, content["input"]))
    side = content["options"].get("side_size", 0)
    beside = f" and side input (N, {side})" if side else ""
    print(
        f"{path}\n{content['options']['backbone']} with {content['activation'] or 'its own'} "
        f"activations; input (N, {shown}){beside}; compared on {samples}"
    )
    with replacing(output) as folder, torch.no_grad():
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir()
        expected = [class_scores(network, *each) for _, each, _ in samples]
        if not all(each.isfinite().all() for each in expected):
            raise ValueError(
                "the checkpoint's scores are not finite: its weights are damaged; give an earlier "
                "one"
            )
        limit = tolerance(network, *(each[:128] for each in next(iter(samples))[1]))
        if limit > TOLERANCE:
            print(f"the scores differ from those in float64 by up to {limit / 2:.0e} themselves")
        if not has_ended(network):
            print("the checkpoint is of the middle of a schedule, and so are the files")
        made, computed = deployed(network), expected
        if config.tabulate:
            content["tables"] = replace_by_tables(made, data, config.tabulate)
            limit = tolerance(made, *(each[:128] for each in next(iter(samples))[1]))
            computed = [class_scores(made, *each) for _, each, _ in samples]
            same = compare(expected, computed)
            print(
                f"the files hold these tables and are compared with the network that has them: on "
                f"{samples} the class of the checkpoint for {same.same} of {same.samples}"
            )
        made = Raw(made, content["data"]) if raw else Joined(made) if side else made
        (folder / CONFIG).write_text(json.dumps(content, indent=1))
        write(made, samples.example(), formats, folder, content)
        if "safetensors" in formats:
            write_weights(network, folder / FILES["safetensors"], content)
        for name in formats:
            if file := FILES.get(name):
                wanted = expected if name == "safetensors" else computed
                print(check(folder / file, samples, wanted, limit, config.trust))
        if config.int8:
            text, content["int8"] = reduce(folder, Samples(data, content, raw, "val"))
            print(text)
            (folder / CONFIG).write_text(json.dumps(content, indent=1))
        if "hub" in formats:
            names = [each.name for each in folder.iterdir()]
            (folder / CARD).write_text(card(content, names, config.license))
    print(f"written to {output}")
    if config.push:
        print(f"pushed to {push(output, config.push)}")


def with_data(args: list[str]) -> tuple[list[str], bool]:
    """`args` with the data set of the run, where they name none; whether it is all the run's own.

    `--data.root DIR` alone is another place of it.
    """
    known = ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--ckpt_path", "--data"):
        known.add_argument(name)
    named, _ = known.parse_known_args(args)
    options = [word for word in args if word.startswith("--data.")]
    other = named.data or any(word.startswith("--data.class_path") for word in options)
    if other or not named.ckpt_path:
        return args, False
    try:
        path = find(named.ckpt_path)
    except (OSError, ValueError):  # of which the export itself tells
        return args, False
    run = run_of(path)
    if not (spec := data_of(run / "config.yaml")):
        return args, False
    spec["init_args"].pop("download", None)
    return ["--data", json.dumps(spec), *args], not options


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of."""
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else folder


def check_target(folder: Path) -> None:
    """Raise an error unless `folder` can be written, and is new, empty or an earlier export."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder: name another one with --output")
    if os.path.ismount(folder.resolve()):
        raise ValueError(
            f"{str(folder)!r} is where a disk is mounted, and cannot be replaced as a whole: name "
            "a folder in it with --output"
        )
    there = {each.name for each in folder.iterdir()} if folder.is_dir() else set()
    try:
        ours = {"schema", "options", "code"} <= json.loads((folder / CONFIG).read_text()).keys()
    except (OSError, ValueError, AttributeError):
        ours = False
    written = {*(Path(each).parts[0] for each in FILES.values()), CONFIG, INT8, CARD}
    if strange := there - written if ours else there:
        raise ValueError(
            f"{str(folder)!r} holds {min(strange)!r}, which no export wrote: name another folder "
            "with --output"
        )
    check_writable(folder)


class Again:
    """Batches as `tabulate` takes them, read anew each time."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        for images, labels, *more in self.data.val_dataloader():
            yield (images, *more[1:]), labels


def replace_by_tables(network: nn.Module, data: Any, tolerance: float) -> dict[str, Any]:
    """Tabulate a network in place and print how; what is stored of it, as plain data."""
    report = tabulate(Joined(network) if side_of(network) else network, Again(data), tolerance)
    print(report)
    if not report.tables:
        raise ValueError("--tabulate finds no function that can become a table: leave it out")
    if report.accuracy is None:
        raise ValueError(
            "--tabulate needs the same validation samples each time: leave out of the data what is "
            "random in them"
        )
    before, after = report.accuracy
    return {
        "tolerance": tolerance,
        "sites": [each.name.removeprefix("network.") for each in report.tables],
        "largest_error": max(each.error for each in report.tables),
        "samples": report.samples,
        "val/acc before": before,
        "after": after,
    }


def reduce(folder: Path, samples: "Samples") -> tuple[str, dict[str, Any]]:
    """Write model_int8.onnx; a line, and plain data, with the accuracy before and after."""
    from models.quantise import quantise

    whole, small = folder / FILES["onnx"], folder / INT8
    labels = torch.cat([each for _, _, each in samples])
    step = -(-len(labels) // CALIBRATION)
    quantise(whole, small, every(step, (raw for raw, *_ in samples)))
    accuracy = []
    for file in (whole, small):
        run = read(file)
        found = torch.cat([run(*raw).argmax(1) for raw, *_ in samples])
        accuracy.append((found == labels).double().mean().item())
    before, after = (f"{100 * each:.2f}%" for each in accuracy)
    size = small.stat().st_size / 1e6
    text = (
        f"{small.name:<20} {size:6.2f} MB; accuracy on {len(labels)} validation samples "
        f"{before} before, {after} after; the test samples were not used"
    )
    return text, {"samples": len(labels), "val/acc before": accuracy[0], "after": accuracy[1]}


def every(step: int, batches: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Each `step`-th sample, over the ends of batches."""
    skip = 0
    for batch in batches:
        count = len(batch[0])
        if skip < count:
            yield tuple(each[skip::step] for each in batch)
        skip = (skip - count) % step


class Samples:
    """The test or validation samples, or random ones where there are no data.

    Iterating gives batches: the inputs as the file takes them, as the network takes them, and
    labels.
    """

    def __init__(
        self, data: Any, about: dict[str, Any], raw: bool, part: Literal["test", "val"] = "test"
    ) -> None:
        self.data, self.about, self.raw, self.part = data, about, raw, part
        self.unread = None  # the data as they are read, where the files take these
        if data is None:
            return
        data.prepare_data()
        data.setup("test" if part == "test" else "validate")
        if raw:
            unit = {"normalize": "none", "representation": "signal"}
            try:
                known = {each.name for each in fields(data)}
                plain = replace(data, **{n: v for n, v in unit.items() if n in known})
            except TypeError:
                raise ValueError(
                    f"--include_preprocessing needs the data as they are read, which "
                    f"{type(data).__name__}, no data class as those of this project are, does not "
                    "give: export without it"
                ) from None
            self.unread, _ = plain.load("test" if part == "test" else "train")

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]]:
        if self.data is None:
            yield from self._random()
            return
        test = self.part == "test"
        loader = self.data.test_dataloader() if test else self.data.val_dataloader()
        for images, labels, *more in loader:
            read = images if self.unread is None else self.unread[more[0]]
            yield (read, *more[1:]), (images, *more[1:]), labels

    def _random(self) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]]:
        generator, none = torch.Generator().manual_seed(0), torch.empty(0)
        size = self.about["options"].get("side_size", 0)
        for _ in range(RANDOM // 32):
            if self.raw:
                prepare = Raw(nn.Identity(), self.about["data"])
                x = prepare.random(32, generator)
                y = prepare(x)
            else:
                x = y = torch.randn(32, *self.about["input"], generator=generator)
            side = (torch.randn(32, size, generator=generator),) if size else ()
            yield (x, *side), (y, *side), none

    def example(self) -> tuple[Tensor, ...]:
        """The inputs for a batch of two, as the files take them."""
        return tuple(each[:2] for each in next(self._random())[0])

    def __str__(self) -> str:
        if self.data is None:
            return f"{RANDOM} random inputs, since no data were given (--data)"
        return f"the test set of {type(self.data).__name__}"


def check(
    file: Path, samples: Samples, expected: list[Tensor], limit: float, trust: list[str]
) -> str:
    """A line for a file that agrees with the network; ValueError for one that does not."""
    weights = file.suffix == ".safetensors"  # of a network that takes what the data module gives
    run = load(file.parent, trust) if weights else read(file)
    first = next(iter(samples))[weights]
    parities = [
        compare([expected[0][:count]], [run(*(each[:count] for each in first))], limit)
        for count in (1, 7)
    ]
    parities.append(compare(expected, (run(*each[weights]) for each in samples), limit))
    *small, whole = parities
    if any(each.same < each.samples or not each.difference <= limit for each in parities):
        raise ValueError(
            f"{file.name} does not compute what the checkpoint does: the same class for "
            f"{whole.same} of {whole.samples}, relative difference {whole.difference:.1e}, at most "
            f"{limit:.0e}; nothing was written, choose another format"
        )
    files = file.parent.iterdir() if file.suffix == ".xml" else [file]
    size = sum(each.stat().st_size for each in files)
    one, seven = (f"{each.difference:.0e}" for each in small)
    return (
        f"{file.name:<20} {size / 1e6:6.2f} MB; same class {whole.same} of {whole.samples}; "
        f"relative difference {whole.difference:.0e}, batch of 1: {one}, of 7: {seven}"
    )


def check_data(model: Classifier, data: Any) -> None:
    """Raise ValueError if a checkpoint is not of such data."""
    for name in SIZES:
        stored, given = model.hparams.get(name), getattr(data, name, None)
        if given is not None and stored != given:
            raise ValueError(
                f"the checkpoint is of data with {name} {stored}, {type(data).__name__} has "
                f"{given}: give the data that it was trained on"
            )


def data_of(file: Path) -> dict[str, Any] | None:
    """The data set of a run, if it is one of this project: a file may not name other code."""
    try:
        spec = parse_yaml(file.read_text())["data"]
        kind = spec if isinstance(spec, str) else spec["class_path"]
        given = {} if isinstance(spec, str) else spec.get("init_args") or {}
        known = getattr(datamodules, kind.rpartition(".")[2])
        ours = kind in (known.__name__, f"datamodules.{known.__name__}")
        if not ours or "dataset" in given:  # FromDataset's, a class of any package
            return None
        if known is datamodules.HuggingFace and not Path(str(given.get("path"))).is_dir():
            return None  # it would be fetched
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None
    kept = {n: v for n, v in given.items() if isinstance(v, PLAIN) and n not in _NOT_TAKEN}
    return {"class_path": f"datamodules.{known.__name__}", "init_args": kept}
