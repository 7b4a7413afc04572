"""An exported file as a module, run by the program that it is made for."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .export import CONFIG, INPUTS


class Program(nn.Module):
    """What an exported file computes, on the CPU.

    Attributes:
        about: what the file tells of itself, as plain data.
    """

    def __init__(self, run: Callable[[Any], Any], about: Mapping[str, Any]) -> None:
        super().__init__()
        self.run, self.about = run, about

    def forward(self, *inputs: Tensor) -> Tensor:
        """The output for a batch, and for its side input if the network has one."""
        return torch.as_tensor(self.run(*(x.detach().cpu() for x in inputs)))


def read(file: Path) -> Program:
    """Open a file that `models.export.write` has written.

    A pt2 file can hold code, which then runs.
    """
    if file.suffix == ".pt2":
        content = {CONFIG: ""}
        program = torch.export.load(file, extra_files=content)
        return Program(program.module(), json.loads(content[CONFIG]))
    if file.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        texts = session.get_modelmeta().custom_metadata_map
        return Program(lambda *x: session.run(None, named(x))[0], _plain(texts))
    import openvino

    model, own = openvino.Core().read_model(file), ["supple"]
    texts = model.get_rt_info(own).value if model.has_rt_info(own) else {}
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # some processors would use bfloat16
    compiled = openvino.compile_model(model, "CPU", exact)
    return Program(lambda *x: compiled(named(x))[0], _plain(texts))


def named(inputs: Sequence[Tensor]) -> dict[str, Any]:
    """The inputs as arrays, by the names that a file has."""
    return {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=False)}


def _plain(texts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: json.loads(str(text)) for name, text in texts.items()}
