"""The scripts of docs/tasks: they run, every call is swapped, and what is learned moves."""

import itertools
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

import activations
from activations import CosLU, parameter_groups, replace_activations, shape_parameters

TASKS = Path(__file__).parents[2] / "docs/tasks"
# calls of ReLU in a training pass, counted in the networks' code: a Bottleneck has three
CALLS = {
    "segmentation": 1 + 3 * 16 + 2,  # of ResNet-50, and one in each of the two heads
    "detection": 1 + 3 * 16 + 1 + 2 * 4 * 5,  # before P7; two heads of four layers, five levels
    "video": 1 + 2 * 8,
    "regression": 2,
    "generation": 4,
}


def run(task: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """What the script defines, after it has run."""
    monkeypatch.setattr(sys, "argv", [f"{task}.py", *arguments])
    return runpy.run_path(str(TASKS / f"{task}.py"))


def check(task: str, found: dict[str, Any], printed: str, name: str = "CosLU"):
    model, report = found["model"], found["report"]
    kind = getattr(activations, name)
    assert sum(call.times for call in report) == CALLS[task]
    assert all(isinstance(model.get_submodule(call.name), kind) for call in report)
    assert not any(isinstance(module, torch.nn.ReLU) for module in model.modules())
    for name, value in shape_parameters(model).items():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
        assert value.grad.any(), name
    shown = [float(x) for x in re.findall(r"^step \d+: loss (\S+)$", printed, re.M)]
    assert shown[-1] == pytest.approx(found["losses"][-1], abs=0.01)
    assert re.search(rf"^{report[-1].name}: \w+\(.*\) -> {kind.__name__}\(", printed, re.M)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("task", "size"), [("generation", []), ("regression", []), ("video", ["--size", "20"])]
)
def test_in_small(task: str, size: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any):
    check(task, run(task, monkeypatch, "--steps", "1", *size), capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("task", CALLS)
def test_in_full(task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    found = run(task, monkeypatch)
    check(task, found, capsys.readouterr().out)
    losses = found["losses"]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


@pytest.mark.parametrize("file", sorted(TASKS.glob("*.py")), ids=lambda file: file.stem)
def test_each_is_short_and_described(file: Path):
    assert len(file.read_text().splitlines()) <= 80
    page = (TASKS.parent / "tasks.md").read_text()
    assert f"python docs/tasks/{file.name}" in page
    assert file.stem in CALLS


SCHEDULED = '{"a": 2, "b": 0.5, "normalized": true}'
OTHERS = [("DSReLU", SCHEDULED), ("LSLU", "{}"), ("Rational", "{}"), ("DiTAC", "{}")]
OTHERS += [("Formula", '{"formula": "x * sigmoid(beta * x)", "constants": {"beta": 1.0}}')]


@pytest.mark.parametrize(("name", "options"), OTHERS[:1])
def test_other_functions(
    name: str, options: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ("--activation", name, "--options", options, "--steps", "2")
    found = run("regression", monkeypatch, *words)
    check("regression", found, capsys.readouterr().out, name)
    if name == "DSReLU":
        assert found["model"].hidden[1].slope.item() == json.loads(options)["b"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "other"),
    [*itertools.product(["detection", "segmentation", "video"], OTHERS)],
)
def test_other_functions_everywhere(
    task: str, other: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    words = ("--activation", other[0], "--options", other[1], "--steps", "1")
    check(task, run(task, monkeypatch, *words), capsys.readouterr().out, other[0])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "video"])
def test_export_and_compile(task: str, monkeypatch: pytest.MonkeyPatch):
    found = run(task, monkeypatch, "--steps", "1")
    model, x = found["model"].eval(), found["batch"](2)[0]
    with torch.no_grad():
        expected = model(x)
        exported = torch.export.export(model, (x,)).module()(x)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_detection_with_frozen_layers():
    """As with pretrained weights: norms are constants, and the first layers do not learn."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    for name, value in backbone.named_buffers():
        if name.endswith("running_var"):
            value.fill_(4.0)  # else values grow through 16 blocks without a norm
    model = RetinaNet(backbone, 3, min_size=64, max_size=64)
    target = {"boxes": torch.tensor([[10.0, 10.0, 50.0, 50.0]]), "labels": torch.tensor([1])}
    batch = [torch.rand(3, 64, 64)] * 2, [target] * 2
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = replace_activations(model, CosLU, example_input=batch)
    shapes = shape_parameters(model)
    after = model.state_dict()
    assert after.keys() - shapes.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    optimizer = torch.optim.SGD(parameter_groups(model), lr=1e-3)
    torch.stack([*model(*batch).values()]).sum().backward()
    optimizer.step()
    moved = {n for n, v in model.state_dict().items() if n in before and (v != before[n]).any()}
    assert not any(".layer1." in name or ".bn" in name for name in moved)
    assert any(".layer2." in name for name in moved)
    assert shapes["backbone.body.layer1.0.relu.0.alpha"].item() != 1
    assert len(report) == 57  # this pyramid calls no F.relu


def test_functions_in_a_loss_are_left():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x, target=None):
            x = self.layer(F.relu(self.layer(x)))
            return x if target is None else F.relu(1 - target * x).mean()

    inputs = torch.randn(8, 4), torch.ones(8, 4)
    report = replace_activations(Own(), CosLU, example_input=inputs)
    assert [call.name for call in report] == ["relu", "relu_2"]  # no rule can tell the hinge
    report = replace_activations(Own(), CosLU, example_input=inputs, exclude="relu_2")
    assert [call.name for call in report] == ["relu"]
