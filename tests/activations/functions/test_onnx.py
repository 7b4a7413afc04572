"""Every activation as a file that ONNX Runtime loads, by both exporters of torch."""

import warnings
from pathlib import Path

import onnxruntime
import pytest
import torch

from tests.cases import CASES, Case


@pytest.mark.parametrize(
    "dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["older", "dynamo"]
)
@pytest.mark.parametrize(
    ("case", "per_channel"),
    [(case, each) for case in CASES for each in (False, True)[: 1 + bool(case.per_channel)]],
    ids=str,
)
def test_onnx_runtime_computes_the_same(
    case: Case, dynamo: bool, per_channel: bool, tmp_path: Path
):
    module = case.make(**{"num_parameters": case.shape[1]} if per_channel else {})
    file = str(tmp_path / "activation.onnx")
    batch: dict = {"dynamic_axes": {"x": {0: "batch"}}}
    if dynamo:
        batch = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        torch.onnx.export(
            module, (torch.randn(case.shape),), file, input_names=["x"], dynamo=dynamo, **batch
        )
    x = torch.randn(7, *case.shape[1:])
    y = onnxruntime.InferenceSession(file).run(None, {"x": x.numpy()})[0]
    torch.testing.assert_close(torch.as_tensor(y), module(x).detach(), rtol=1e-4, atol=1e-5)
