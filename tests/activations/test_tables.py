"""Tables instead of formulas: their stated error, and all that a network with them must do."""

import copy
import io
import pickle
import warnings
from collections import UserDict
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import activations as A
from activations import replace_activations, tables, tabulate
from activations.tables import Tabulated
from tests.cases import CASES, Case

ELEMENTWISE = [case for case in CASES if case.scalar]


def tables_of(model: nn.Module) -> list[Tabulated]:
    return [module for module in model.modules() if isinstance(module, Tabulated)]


def functions() -> list[Any]:
    quick = ("CosLU", "ReLUN", "DiTAC", "Rational")
    return [
        pytest.param(c, each, marks=[] if str(c) in quick else pytest.mark.slow, id=f"{c}-{each}")
        for c in ELEMENTWISE
        for each in (False, True)[: 1 + bool(c.per_channel)]
    ]


@pytest.mark.parametrize(("case", "per_channel"), functions())
def test_the_error_is_as_stated(case: Case, per_channel: bool):
    shape = (5, 50, 4) if per_channel else (4, 5, 50)
    sizes = {"num_parameters": 4, "channel_dim": -1} if per_channel else {}
    model = nn.Sequential(case.make(**sizes))
    x = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = model(x).detach()
    (table,) = (report := tabulate(model, x)).tables
    assert not report.left
    assert (table.low, table.high) == (x.min().item(), x.max().item())
    largest = (model(x) - y).abs().max().item() / y.double().std().item()
    assert largest <= table.error + 1e-5 <= 1.1e-3
    (made,) = tables_of(model)
    assert made.low < table.low < table.high < made.high
    assert made.values.shape == (4 if per_channel else 1, table.cells + 1)
    assert "channel_dim" not in sizes or made.channel_dim == -1


@pytest.fixture(name="net")
def swapped() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(),
        nn.Flatten(2), nn.Linear(36, 5), nn.ReLU(), nn.Flatten(), nn.Linear(30, 3),
    )  # fmt: skip
    kinds = {"2": A.DELU, "4": A.CosLU, "*": A.BSpline}
    x = torch.randn(16, 3, 10, 10)
    replace_activations(net, kinds, example_input=x, share="channel")
    return net.eval(), x


def test_a_network_with_tables_travels(net: tuple[nn.Sequential, Tensor], tmp_path: Path):
    model, x = net
    before = model(x).detach()
    report = tabulate(model, x)
    y = model(x).detach()
    assert 0 < (y - before).abs().max() < 2e-3
    assert [table.was for table in report.tables] == ["DELU", "CosLU", "BSpline"]
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = copy.deepcopy(model)
    for parameter in [*fresh.parameters(), *fresh.buffers()]:
        parameter.detach().zero_()
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for twin in (fresh, pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), y)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(model, (x,), dynamic_shapes=(batch,))
    for other in (whole, exported.module()):
        torch.testing.assert_close(other(x[:3]), y[:3], rtol=1e-5, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            model, (x,), tmp_path / "net.onnx", input_names=["x"], dynamo=False,
            dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    found = torch.as_tensor(session.run(None, {"x": x[:3].numpy()})[0])
    torch.testing.assert_close(found, y[:3], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_tables_are_fused(net: tuple[nn.Sequential, Tensor]):
    model, x = net
    tabulate(model, x)
    y = model(x)
    assert A.fuse(model) == 3
    torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = A.Swish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x=x)


def test_a_table_of_what_was_fused_is_fused(net: tuple[nn.Sequential, Tensor]):
    model, x = copy.deepcopy(net[0]), net[1]
    A.fuse(model)
    tabulate(model, x)
    assert [each.fused for each in tables_of(model)] == [True] * len(tables_of(model))


def test_a_table_that_becomes_half_keeps_its_knots():
    x = torch.linspace(-7.6, 8.1, 2001)
    model = nn.Sequential(A.DELU())
    tabulate(model, x)
    whole = copy.deepcopy(model)
    for dtype in (torch.half, torch.bfloat16):
        model.to(dtype)
        error = (model(x.to(dtype)).float() - whole(x.to(dtype).float())).abs()
        assert error.max() <= 1.5 * torch.finfo(dtype).eps * x.abs().max()  # of values alone


def test_inputs_are_compared_without_numpy(net: tuple[nn.Sequential, Tensor]):
    """As the library needs torch alone: `Tensor.numpy` raises where NumPy is missing."""
    model, x = copy.deepcopy(net[0]), net[1]

    def refuse(*_: Any) -> None:
        raise RuntimeError("Numpy is not available")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "numpy", refuse, raising=False)
        assert not tabulate(model, x).moved


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_that_becomes_half_later(dtype: torch.dtype):
    model, x = ByKeyword(), torch.linspace(-4, 4, 1001)
    expected = model(x)
    tabulate(model, x)
    found = model.to(dtype)(x.to(dtype)).float()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=4 * eps, atol=8 * eps)


def test_layout_dtype_and_any_number():
    model = nn.Sequential(A.Swish())
    x = torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)
    tabulate(model, x)
    assert model(x).stride() == x.stride()
    assert model(x.half()).dtype == torch.float16
    far = torch.tensor([torch.nan, -torch.inf, torch.inf, -1e30, 1e30, 3e38])
    y = model(far)
    assert y.isnan().tolist() == [True, False, False, False, False, False]
    assert y[4] / 1e30 == pytest.approx(1, abs=0.1)
    assert abs(y[3]) < 1e29


def test_a_table_for_many_channels_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "_MOST", 2**10)
    network = nn.Sequential(nn.Linear(3, 16), A.ReLUN(0.7, num_parameters=16), nn.Linear(16, 2))
    report = tabulate(network, torch.randn(50, 3), 1e-5)
    [left] = report.left
    assert left.why.endswith(
        "with 64 cells, above the tolerance, and 128 are too many for 16 channels"
    )


def test_what_a_tokenizer_gives_is_one_batch():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(3, 4), A.Swish()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.fc(x))

    assert len(tabulate(Named(), UserDict(x=torch.randn(9, 3)), 1e-2).tables) == 1


def test_what_is_left_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lslu, self.never, self.relu = A.LSLU(3), A.CosLU(), nn.ReLU()
            self.one = self.again = A.Swish()
            self.steep = A.ReLUN(n=1e-4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.again(self.one(self.relu(self.lslu(x))))
            return y + self.steep(x)

    model, x = Net().eval(), 100 * torch.randn(2, 3, 4, 4)
    report = tabulate(model, x)
    assert model.one is model.again
    assert isinstance(model.one, Tabulated)
    assert isinstance(model.relu, nn.ReLU)
    assert [table.name for table in report.tables] == ["one"]
    reasons = {left.name: left.why for left in report.left}
    assert reasons == {
        "lslu": "holds a Conv2d: no function of single numbers",
        "never": "was not called",
        "relu": "is not of this package",
        "steep": reasons["steep"],
    }
    assert "with 16384 cells, above the tolerance" in reasons["steep"]
    assert "left: CosLU (was not called): never" in str(report)
    x[0, 0, 0, 0] = torch.nan
    left = tabulate(nn.Sequential(A.CosLU()), x).left
    assert [each.why for each in left] == ["saw inputs that are not finite"]


def test_classes_and_labels_are_counted(net: tuple[nn.Sequential, Tensor]):
    model, x = net
    y = model(x).argmax(1)
    y[:4] = (y[:4] + 1) % 3  # wrong
    seen: list[int] = []
    model[2].register_forward_hook(lambda *_: seen.append(1))
    model.train()
    mean = model[1].state_dict()["running_mean"].clone()
    batches = ((x[k : k + 8], y[k : k + 8], k) for k in (0, 8))  # a generator
    report = tabulate(model, batches)
    assert model.training
    assert torch.equal(model[1].state_dict()["running_mean"], mean)
    assert len(seen) == 4  # the hook has moved to the table
    assert (report.samples, report.same_class, report.accuracy) == (16, 1.0, (0.75, 0.75))
    assert str(report).endswith("accuracy: 75.00% before, 75.00% after")
    again = tabulate(model, x)
    assert again.tables == []
    assert str(again).startswith("left: Tabulated (is a table): 2, 4, 7\n")


def test_a_loader_that_shuffles_is_not_compared(net: tuple[nn.Sequential, Tensor]):
    model, x = net
    loader = DataLoader(TensorDataset(x, model(x).argmax(1)), 8, shuffle=True)
    report = tabulate(model, loader)
    assert len(report.tables) == 3
    assert (report.same_class, report.accuracy, report.moved) == (None, None, True)
    assert "give a loader that does not shuffle" in str(report)


class Gated(A.CosLU):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean(1, keepdim=True).sigmoid()


def test_mixtures_of_each_channel_and_of_what_is_no_function_of_numbers():
    x = torch.randn(4, 8, 3, 3)
    mixed = A.LinComb([partial(A.CosLU, num_parameters=8), partial(nn.PReLU, 8)])
    with torch.no_grad():
        mixed.members[0].alpha += torch.arange(8) / 8  # pyright: ignore
    model = nn.Sequential(
        mixed, A.LinComb([partial(nn.Softmax, 1), nn.ReLU]), A.LinComb([Gated]), Gated()
    )
    before = model(x)
    report = tabulate(model, x)
    assert [each.name for each in report.tables] == ["0"]
    assert {each.name: each.why for each in report.left} == {
        "1": "holds a Softmax: no function of single numbers",
        "2": "holds a Gated: no function of single numbers",
        "3": "has a forward of its own",
    }
    torch.testing.assert_close(model(x), before, rtol=0, atol=5e-3)
    last = partial(A.CosLU, num_parameters=3, channel_dim=-1)
    model = nn.Sequential(A.LinComb([last]), A.LinComb([last, partial(nn.PReLU, 8)]))
    report = tabulate(model, x)
    assert [each.name for each in report.tables] == ["0"]
    assert [each.why for each in report.left] == [
        "mixes functions whose channels lie on several axes"
    ]


def test_a_folded_function_keeps_its_name(net: tuple[nn.Sequential, Tensor]):
    model, x = net
    model = A.fold(model)
    report = tabulate(model, x)
    assert [table.was for table in report.tables] == ["DELU", "CosLU", "BSpline"]
    assert "Folded" not in f"{report}{tables_of(model)}"


def test_slips_are_named():
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"CosLU is an activation itself: wrap it"):
        tabulate(A.CosLU(), x)
    model = nn.Sequential(A.CosLU())
    with pytest.raises(ValueError, match="inputs hold no batch"):
        tabulate(model, [])
    with pytest.raises(ValueError, match="tolerance must be > 0, got 0"):
        tabulate(model, x, 0)
    with pytest.raises(ValueError, match="is compiled: tabulate it before"):
        tabulate(torch.compile(model), x)  # pyright: ignore
    assert isinstance(model[0], A.CosLU)
