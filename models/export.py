"""A trained network as files for other programs, each of them compared with the network."""

import copy
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .side import class_scores

Format = Literal["onnx", "pt2", "safetensors", "openvino", "hub"]
FILES = {
    "onnx": "model.onnx",
    "pt2": "model.pt2",
    "openvino": "openvino/model.xml",
    "safetensors": "model.safetensors",
}
PROGRAMS = {"onnx", "pt2", "openvino"}  # the others hold weights alone
CONFIG = "config.json"
TOLERANCE = 1e-5
INPUTS = ("input", "side")  # their names; a network without a side input has the first
_PACKAGES = {
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "safetensors": ("safetensors",),
    "hub": ("safetensors", "huggingface_hub"),
}


def check_formats(formats: Sequence[str]) -> None:
    """Raise ValueError if a format is unknown, or ImportError if it lacks its package."""
    for name in formats:
        if name not in get_args(Format):
            raise ValueError(f"no format {name!r}: choose of {', '.join(get_args(Format))}")
        for package in _PACKAGES.get(name, ()):
            if find_spec(package) is None:
                raise ImportError(
                    f"the format {name} needs the package {package}: pip install '.[export]'"
                )


def write(
    network: nn.Module,
    example: tuple[Tensor, ...],
    formats: Sequence[str],
    folder: Path,
    about: Mapping[str, Any],
) -> None:
    """Write `network` into `folder`, in each format that holds a program.

    The batch is of any size, all other sizes are those of `example`.

    Args:
        network: in evaluation mode.
        example: a batch of 2, and its side input, if the network has one.
        formats: some of onnx, pt2 and openvino.
        folder: is there already.
        about: plain data that each file holds, too.

    Raises:
        ValueError: torch cannot export the network.
    """
    if PROGRAMS.isdisjoint(formats):
        return
    texts = {name: json.dumps(value) for name, value in about.items()}
    batch = ({0: torch.export.Dim("batch", min=1)},) * len(example)
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(network, example, dynamic_shapes=batch)
        except Exception as error:
            why = str(error).strip().partition("\n")[0]
            raise ValueError(f"torch.export cannot trace this network: {why}") from error
        if "pt2" in formats:
            torch.export.save(
                program, folder / FILES["pt2"], extra_files={CONFIG: json.dumps(about)}
            )
        if {"onnx", "openvino"}.isdisjoint(formats):
            return
        _write_onnx(program, folder / FILES["onnx"], texts, INPUTS[: len(example)])
        if "openvino" in formats:
            _write_openvino(folder / FILES["onnx"], folder / FILES["openvino"], texts)
        if "onnx" not in formats:
            (folder / FILES["onnx"]).unlink()


def write_weights(network: nn.Module, file: Path, about: Mapping[str, Any]) -> None:
    """Write the state of `network` as safetensors, a copy for each of its names."""
    from safetensors.torch import save

    texts = {name: json.dumps(value) for name, value in about.items()}
    state = {name: value.clone().contiguous() for name, value in network.state_dict().items()}
    file.write_bytes(save(state, {"format": "pt"} | texts))


def _write_onnx(program: Any, file: Path, texts: Mapping[str, str], inputs: Sequence[str]) -> None:
    import onnx

    names: Any = {"input_names": list(inputs), "output_names": ["logits"]}
    own: Any = {torch.ops.aten.log1p.default: _log1p}
    made: Any = torch.onnx.export(
        program, dynamo=True, verbose=False, custom_translation_table=own, **names
    )
    model = made.model_proto
    onnx.helper.set_model_props(model, dict(texts))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def _log1p(x: Any) -> Any:
    """log(1 + x) in ONNX's operators; the exporter's own loses all digits of a small x.

    Between -0.5 and 1 it is 2 artanh(x / (2 + x)) by its series, to 2e-8, relative.
    """
    import onnxscript

    op: Any = onnxscript.opset18

    s = op.Div(x, op.Add(x, 2.0))
    square = op.Mul(s, s)
    series: Any = op.Mul(square, 1 / 13)
    for odd in (11, 9, 7, 5, 3):
        series = op.Mul(op.Add(series, 1 / odd), square)
    near = op.Mul(op.Add(s, s), op.Add(series, 1.0))
    inside = op.And(op.GreaterOrEqual(x, -0.5), op.LessOrEqual(x, 1.0))
    return op.Where(inside, near, op.Log(op.Add(x, 1.0)))


def _write_openvino(source: Path, file: Path, texts: Mapping[str, str]) -> None:
    import openvino

    file.parent.mkdir(exist_ok=True)
    model = openvino.convert_model(source)
    for name, text in texts.items():
        model.set_rt_info(text, ["supple", name])
    openvino.save_model(model, file, compress_to_fp16=False)


@dataclass
class Parity:
    """How well a file agrees with the network.

    Attributes:
        samples: how many were compared.
        same: how many of them have the same class.
        difference: the largest difference of two scores, divided by the largest score.
    """

    samples: int = 0
    same: int = 0
    difference: float = 0.0


def tolerance(network: nn.Module, *inputs: Tensor) -> float:
    """By how much a file may differ: 1e-5, or twice the network's own rounding, if that is more.

    Functions that grow quickly, such as polynomials, multiply the rounding errors of float32.
    """
    exact = class_scores(copy.deepcopy(network).double(), *(each.double() for each in inputs))
    return max(TOLERANCE, 2 * compare([exact], [class_scores(network, *inputs)]).difference)


def compare(expected: Iterable[Tensor], found: Iterable[Tensor], limit: float = 0.0) -> Parity:
    """Compare the scores of all samples, batch by batch.

    Args:
        expected: (N, C) of each batch.
        found: those that are compared with them.
        limit: the relative difference that does not matter: classes whose scores lie so close
            together are the same.
    """
    samples = same = 0
    apart = largest = torch.zeros(())
    for want, got in zip(expected, found, strict=True):
        samples += len(want)
        chosen = want.gather(1, got.argmax(1, keepdim=True))
        close = 2 * limit * want.abs().max()  # both scores may differ by the limit
        same += int((chosen >= want.amax(1, keepdim=True) - close).sum())
        apart = torch.maximum(apart, (want - got).abs().max())  # a NaN stays
        largest = torch.maximum(largest, want.abs().max())
    return Parity(samples, same, (apart / largest.clamp(min=1e-30)).item())


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' own remarks, which no user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
