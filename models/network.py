"""A trained network, ready to use: a plain module that knows its data, without Lightning."""

import copy
import json
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from activations import set_progress
from datamodules.preprocess import Preparation

from .build import build_network
from .checkpoints import (
    FACTORIES,
    check_complete,
    check_fits,
    check_options,
    factory,
    read_checkpoint,
)
from .side import class_scores
from .weights import read_weights

OPTIONS = {
    name: option  # of a network; the others are those of a training
    for name, option in signature(build_network).parameters.items()
    if name not in ("pretrained", "init")
}
TRAINING = {"pretrained", "init", "checkpoint_path", "optimizer", "lr_scheduler",
            "lr_scheduler_interval", "loss", "label_smoothing", "class_weights",
            "activation_weight_decay", "activation_lr_scale", "activation_frozen",
            "activation_from", "compile"}  # fmt: skip
CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of an exported folder


class Network(nn.Module):
    """A trained network in evaluation mode, with what it knows of its data.

    Args:
        backbone: the network itself.
        dims: 2 for images, 1 for signals.
        channels: of the input.
        class_names: of the outputs.
        data: the description of the data, as the data module gave it; None if it gave none.
        source: where the network was read, for messages.
    """

    def __init__(
        self,
        backbone: nn.Module,
        dims: int,
        channels: int,
        class_names: Sequence[str],
        data: Mapping[str, Any] | None = None,
        source: str = "the network",
    ) -> None:
        super().__init__()
        self.backbone, self.dims, self.channels = backbone, dims, channels
        self.class_names, self.data, self.source = tuple(class_names), data, source
        self._preparation = Preparation.of(data, source) if data else None
        self.eval()

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Of one sample; None if the network knows nothing of its data."""
        return self._preparation.shape if self._preparation else None

    def forward(self, x: Tensor, side: Tensor | None = None) -> Tensor:
        """Class scores (logits) of a batch, and of its side input, as `preprocess` gives them.

        Raises:
            TypeError: the batch is no tensor.
            ValueError: the batch has another dtype, size or number of channels, or the side input
                is missing.
        """
        if not isinstance(x, Tensor):
            raise TypeError(
                f"a batch must be a tensor, got {type(x).__name__}: convert it by torch.as_tensor, "
                "or give raw data to network.preprocess(sample)"
            )
        shape = self.input_shape
        own = (self.channels, *x.shape[2:]) if shape is None else shape
        if x.dim() != self.dims + 2 or tuple(x.shape[1:]) != own:
            sides = ", ".join(map(str, shape or (self.channels, *("L", "HW")[self.dims - 1])))
            raise ValueError(
                f"a batch of shape {tuple(x.shape)} does not fit: this network takes (N, {sides}), "
                "as network.preprocess(sample) gives it"
            )
        own = next((each.dtype for each in self.parameters()), torch.float32)
        if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"a batch must be of {own}, got {x.dtype}: convert it, or give raw data to "
                "network.preprocess(sample)"
            )
        if side is not None and len(side) != len(x):
            raise ValueError(f"{len(x)} samples need as many rows of side input, got {len(side)}")
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return class_scores(self.backbone, x, side if side is None else side.to(x.dtype))

    def preprocess(
        self, sample: Any, *, rate: float | None = None, peaks: Sequence[int] | None = None
    ) -> Any:
        """A batch of one image, or of the beats of a signal, to the bit as the data set gives it.

        A network with a side input takes two: `network(*network.preprocess(record))`.

        Args:
            sample: an image: its file, an image of PIL, an array (H, W) or (H, W, C), or a tensor
                (C, H, W); uint8 or floats in [0, 1], and only uint8 is resized. Or a signal: a WFDB
                record, or its numbers (L,) in millivolt; one as long as a beat is a beat,
                whose baseline has been subtracted if the network was trained without it.
            rate: samples per second of a signal.
            peaks: R peaks of a signal, in samples; by default XQRS, wfdb's detector, finds them.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the sample does not fit or cannot be read, or the network does not know how
                its data were prepared.
        """
        return self.preparation(sample, rate=rate, peaks=peaks)

    @property
    def preparation(self) -> Preparation:
        """How the data were prepared; ValueError if that is unknown."""
        if self._preparation is None:
            raise ValueError(
                f"{self.source!r} does not know how its data were prepared, since it is of an "
                "earlier version, or its data module has no description: prepare the batch by "
                "your own code, and call the network"
            )
        return self._preparation


def load(path: str | Path, trust: Sequence[str] = (), **changes: Any) -> Network:
    """A trained network, ready to use; opening it runs no code of its files.

    Scheduled activations are at the progress that was stored: this is the network that was tested.

    Args:
        path: the folder of a run (its best checkpoint, else the last), a checkpoint, a folder that
            was exported with its weights, or an exported file for ONNX Runtime or OpenVINO, which
            then runs it.
        trust: packages, besides torch's own and this project's, from which it may name classes.
        changes: options of :class:`models.Classifier` that replace those that are stored, such as
            an `activation` that could not be stored.

    Raises:
        TypeError: a change is no such option.
        FileNotFoundError: there is no such file, or no checkpoint in the folder.
        ValueError: a file is damaged or of another program, or names code that is not trusted.
    """
    file = find(path)
    options = {**OPTIONS, "data": signature(Network).parameters["data"]}
    if strange := changes.keys() - options:
        raise TypeError(
            f"load() takes no {min(strange)!r}; what can be changed are {', '.join(options)}"
        )
    if file.suffix in (".onnx", ".xml", ".pt2"):
        return _of_program(file, **changes)
    if file.name == CONFIG:
        stored, state = _read_exported(file)
        if strange := stored.keys() - options:
            raise ValueError(
                f"{str(file)!r} has the option {min(strange)!r}, which this version does not know: "
                "it is damaged or of a later version"
            )
        stored = {name: stored[name] for name in stored.keys() - changes}
        check_options(stored, state, str(file), options, trust)
    else:
        content = read_checkpoint(file, options, trust, {*TRAINING, *changes})
        check_complete(content, str(file), {*TRAINING, *changes})
        stored, state = content.get("hyper_parameters", {}), content["state_dict"]
        stored = {name: stored[name] for name in stored.keys() & options - changes.keys()}
    known = {name: _made(value, name, str(file)) for name, value in stored.items()} | changes
    data = known.pop("data", None)
    try:
        with torch.random.fork_rng([]):  # the caller's random numbers stay as they are
            backbone, _ = build_network(**known)
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"{str(file)!r} describes no network that can be built: {why}") from error
    arguments = signature(build_network).bind(**known)
    arguments.apply_defaults()
    dims, channels, classes = (
        arguments.arguments[name] for name in ("dims", "in_channels", "num_classes")
    )
    names = _class_names(data, dims, channels, classes, str(file))
    network = Network(backbone, dims, channels, names, data, str(file))
    state = {name: value for name, value in state.items() if name.startswith("backbone.")}
    check_fits(network, {"state_dict": state}, str(file))
    network.load_state_dict(state)
    return network


def _of_program(file: Path, data: Mapping[str, Any] | None = None, **changes: Any) -> Network:
    """An exported file, run by the program that it is made for."""
    from .export import check_formats
    from .program import read

    source = str(file)
    if file.suffix == ".pt2":
        raise ValueError(
            f"{source!r} can hold code: if you trust it, open it by torch.export.load, else load "
            "a folder that was exported with --format safetensors"
        )
    if changes:
        raise ValueError(f"{source!r} is a program, whose {min(changes)} cannot be changed")
    if not file.is_file():
        raise FileNotFoundError(f"no exported file at {source!r}")
    check_formats(["onnx" if file.suffix == ".onnx" else "openvino"])
    try:
        program = read(file)
        own, data = program.about["options"], data or program.about["data"]
        dims, channels, classes = (own[n] for n in ("dims", "in_channels", "num_classes"))
        raw = "raw data (--include_preprocessing)" if program.about["include_preprocessing"] else ""
        other = raw or ("a side input, too" if own.get("side_size") else "")
    except Exception as error:  # of the runtime
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{source!r} is damaged, or no network that this program exported "
            f"({type(error).__name__}: {why})"
        ) from error
    if other:
        raise ValueError(
            f"{source!r} takes {other}: run it by its own program, or load a folder that was "
            "exported with --format safetensors"
        )
    names = _class_names(data, dims, channels, classes, source)
    return Network(program, dims, channels, names, data, source)


def find(path: str | Path) -> Path:
    """The file that `path` means: of a run the best checkpoint, else the last.

    Raises:
        FileNotFoundError: the folder holds no checkpoint and no exported network.
        ValueError: the best checkpoint of the run is in another folder.
    """
    path = Path(path)
    if path.name == WEIGHTS and path.with_name(CONFIG).is_file():  # of an exported folder
        return path.with_name(CONFIG)
    if not path.is_dir():
        return path
    if (path / CONFIG).is_file():
        return path / CONFIG
    for folder in (path / "checkpoints", path):
        for name in (*_best_of_several(folder), "best.ckpt", "last.ckpt"):
            if (folder / name).is_file():
                if name == "last.ckpt" and (best := _best_elsewhere(folder / name)):
                    raise ValueError(
                        f"{str(path)!r} holds its last checkpoint, and its best one is "
                        f"{str(best)!r}: name the file that you want"
                    )
                return folder / name
    raise FileNotFoundError(
        f"{str(path)!r} holds no checkpoint (best.ckpt or last.ckpt) and no exported network: give "
        "the folder of a run that has finished an epoch"
    )


def _best_of_several(folder: Path) -> list[str]:
    """The best of several checkpoints (`save_top_k`), or of those with another name, if any."""
    files = {file.name for file in folder.glob("*.ckpt")}
    if not files - {"best.ckpt", "last.ckpt"} or "last.ckpt" not in files:
        return []
    return [name for path in _recorded(folder / "last.ckpt") if (name := Path(path).name) in files]


def _best_elsewhere(last: Path) -> Path | None:
    """The best checkpoint that `last` names in another folder, if it is there."""
    found = (Path(path) for path in _recorded(last) if path)
    return next((each for each in found if each.parent != last.parent and each.is_file()), None)


def _recorded(last: Path) -> list[str]:
    """The paths of the best checkpoint that a last one names."""
    try:
        states = torch.load(last, map_location="cpu", weights_only=True, mmap=True)["callbacks"]
        return [v["best_model_path"] for k, v in states.items() if k.startswith("Best")]
    except Exception:  # another file than it seems: who loads it is told
        return []


def _read_exported(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The stored options and weights of an exported folder."""
    try:
        if (size := file.stat().st_size) > 2**26:
            raise ValueError(f"{size} bytes are too many")
        content = json.loads(file.read_bytes())
        stored = {**content["options"], "data": content.get("data")}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{str(file)!r} describes no network of this program ({type(error).__name__}: "
            f"{error}): export it again, or give the run"
        ) from error
    weights = file.with_name(WEIGHTS)
    if not weights.is_file():
        raise FileNotFoundError(
            f"{str(file.parent)!r} holds no {WEIGHTS}, from which a network is loaded: export it "
            "with --format safetensors, too"
        )
    return stored, {f"backbone.{name}": value for name, value in read_weights(weights).items()}


def _made(value: Any, option: str, source: str) -> Any:
    """An option as `build_network` takes it; a class is stored by its description or its name."""
    if option not in FACTORIES or value is None:
        return value
    if option == "activation_by_site":
        return {site: _made(each, "activation", source) for site, each in value.items()}
    if isinstance(value, str):
        if "." not in value:  # may be any module: only full names have been compared
            raise ValueError(f"{source!r} names {value[:80]!r} as {option}, which is no class")
        value = {"class_path": value}
    return factory(value)


def _class_names(data: Any, dims: int, channels: int, classes: int, source: str) -> list[str]:
    """The classes by name, and by number where the data name fewer than there are outputs."""
    numbers = [str(number) for number in range(classes)]
    if not data:
        return numbers
    known = Preparation.of(data, source)
    if (known.dims, known.channels) != (dims, channels) or len(known.class_names) > classes:
        raise ValueError(
            f"{source!r} stores data with {known.dims} dimensions, {known.channels} channels and "
            f"{len(known.class_names)} classes for a network of {dims}, {channels} and {classes}: "
            "it is damaged, give another checkpoint, such as an earlier one"
        )
    return [*known.class_names, *numbers[len(known.class_names) :]]


def has_ended(network: nn.Module) -> bool:
    """Whether all schedules of a network are at their end."""
    end = copy.deepcopy(network)
    set_progress(end, 1.0)
    pairs = zip(network.buffers(), end.buffers(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)
