"""An exported network in eight-bit integers, by ONNX Runtime."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from .program import named

LAYERS = ["Conv", "Gemm", "MatMul"]  # functions between them stay in float32: their shape matters


class _Batches(CalibrationDataReader):
    """The inputs from which the ranges of the activations are read."""

    def __init__(self, batches: Iterable[tuple[Tensor, ...]]) -> None:
        self.batches: Iterator[tuple[Tensor, ...]] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One batch, None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else named(batch)


def quantise(source: Path, file: Path, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Write `source`, an ONNX file, with convolutions and linear layers in int8.

    Args:
        source: in float32; it is not changed.
        file: to be written; it holds the metadata of `source`, too.
        batches: as the network takes them; the ranges of the values are read from them.
    """
    whole = file.with_suffix(".whole")
    quant_pre_process(source, whole, skip_symbolic_shape=True)
    quantize_static(
        whole,
        file,
        _Batches(batches),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=LAYERS,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    whole.unlink()
    model, props = onnx.load(file), onnx.load(source).metadata_props
    onnx.helper.set_model_props(model, {each.key: each.value for each in props})
    onnx.save(model, file)
