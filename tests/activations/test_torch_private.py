"""Each part of torch that it does not promise to keep, by name."""

import functools
import io
import os
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import activations as A
from activations import torch_private
from activations.fusion import kernel

# torch 2.14's own forward-mode differentiation, which only the tests use
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")


def test_is_intercepted():
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(torch_private.is_intercepted())
        return x

    x = torch.zeros(2, 3)
    look(x)
    with FakeTensorMode(allow_non_fake_inputs=True):  # torch._C._len_torch_dispatch_stack
        look(x)
    torch.func.vmap(look)(x)  # torch._C._functorch.maybe_current_level
    torch.func.jvp(look, (x,), (x,))  # forward_ad._current_level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated in new versions
        torch.jit.trace(look, x, check_trace=False)
    assert seen[0] is False
    assert all(seen[1:])


def test_is_exporting():
    class Look(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch_private.is_exporting())
            return x + 1

    seen: list[bool] = []
    x = torch.zeros(2)
    Look()(x)
    torch.compile(Look(), backend="eager")(x)
    assert not any(seen)
    torch.export.export(Look(), (x,), strict=False)
    assert seen[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(Look(), (x,), io.BytesIO(), dynamo=False)  # pyright: ignore
    assert seen[-1]


def test_operations():
    def slope(x: Tensor) -> Tensor:
        return torch.func.vjp(lambda x: x.tanh() * x, x)[1](x)[0]

    x, y = torch.randn(5), torch.randn(5)
    traced = torch_private.operations(slope, [x])
    torch.testing.assert_close(traced(y), slope(y))
    assert torch.ops.aten.tanh.default in {node.target for node in traced.graph.nodes}


def test_compile_once_allows_more_variants_than_dynamo():
    def count(x: Tensor) -> Tensor:
        return x + x.dim()

    compiled = torch_private.compile_once(count, limit=64, backend="eager", options=None)
    for rank in range(1, 14):  # one variant a rank, and Dynamo's own limit is 8
        x = torch.zeros([2] * rank)
        assert torch.equal(compiled(x), x + rank)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(torch.zeros(2, 2, 2))  # still compiled


def test_the_options_are_inductor_s():
    known = set(torch._inductor.list_options())
    for forward in (True, False):
        assert set(kernel._options("cpu", False, forward)) <= known


def test_lacks_compiler():
    compiled = torch_private.compile_once(
        lambda x: x.cos() * 2, limit=8, backend="inductor", options=None
    )
    without = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})  # pyright: ignore[reportAttributeAccessIssue]
    with without, pytest.raises(Exception, match="compiler") as caught:
        compiled(torch.zeros(3))
    assert torch_private.lacks_compiler(caught.value)
    assert not torch_private.lacks_compiler(ValueError("something else"))


def test_take_unchecked():
    table = torch.arange(12.0).view(3, 4)
    index = (torch.tensor([2, 0], dtype=torch.int32), torch.tensor([1, 3], dtype=torch.int32))
    assert torch_private.take_unchecked(table, index).tolist() == [9, 3]


def test_is_compiled():
    module = nn.Linear(2, 2)
    assert not torch_private.is_compiled(module)
    assert torch_private.is_compiled(torch.compile(module, backend="eager"))  # pyright: ignore[reportArgumentType]
    module.compile(backend="eager")
    assert torch_private.is_compiled(module)


def test_has_hooks():
    module = nn.ReLU()
    assert not torch_private.has_hooks(module)
    handle = module.register_forward_hook(lambda *_: None)
    assert torch_private.has_hooks(module)
    handle.remove()
    assert not torch_private.has_hooks(module)
    module.register_forward_pre_hook(lambda *_: None)
    assert torch_private.has_hooks(module)


def test_hooks_of_move_hooks_and_copy_hooks():
    old, new = nn.ReLU(), nn.ReLU()
    seen: list[str] = []
    handle = old.register_forward_hook(lambda *_: seen.append("after"))
    old.register_forward_pre_hook(lambda *_: seen.append("before"))
    old.register_full_backward_hook(lambda *_: seen.append("backward"))
    new.register_forward_hook(lambda *_: seen.append("own"))
    torch_private.move_hooks(old, new)
    torch_private.copy_hooks(new, copied := nn.ReLU())
    assert not any(torch_private.hooks_of(old))
    for module in (new, copied):
        assert sum(map(len, torch_private.hooks_of(module))) == 4
    new(torch.ones(1, requires_grad=True)).backward()
    assert seen == ["before", "after", "own", "backward"]
    handle.remove()
    old(torch.ones(1))
    new(torch.ones(1))
    assert seen[4:] == ["before", "own"]


def test_leave_fast_path():
    calls = []

    class Seen(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(x.shape)
            return super().forward(x)

    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    for part in encoder.layers:
        part.activation = Seen()
    with torch.no_grad():
        x = torch.randn(2, 3, 8)
        encoder(x)
        before = len(calls)
        for owner in encoder.modules():
            torch_private.leave_fast_path(owner)
        encoder(x)
    assert len(calls) == before + 2  # each layer calls its activation


class Rules:
    """Counts how often each rule of `lowering` changes a graph."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from activations.fusion import lowering

        self.changed: dict[str, int] = {}
        rules = [(target, self.watched(rule)) for target, rule in lowering._RULES]
        monkeypatch.setattr(lowering, "_RULES", rules)
        lowered = lowering._lowered

        def replace(shortcut: Any) -> Any:
            name = getattr(getattr(shortcut, "func", shortcut), "__name__", "")
            self.changed[name] = self.changed.get(name, 0) + 1
            return lowered(shortcut)

        monkeypatch.setattr(lowering, "_lowered", replace)
        # no kernel comes from a cache
        monkeypatch.setattr(lowering.Shortcuts, "uuid", lambda self: os.urandom(8))

    def watched(self, rule: Any) -> Any:
        def run(node: Any) -> None:
            before = [(each.target, each.args) for each in node.graph.nodes]
            rule(node)
            if before != [(each.target, each.args) for each in node.graph.nodes]:
                self.changed[rule.__name__] = self.changed.get(rule.__name__, 0) + 1

        return run


def test_lower_pointwise_subgraph(monkeypatch: pytest.MonkeyPatch):
    from activations.fusion import lowering, shortcuts

    def other(x: Tensor) -> Tensor:
        return x * x + 3

    monkeypatch.setitem(shortcuts.WIDE, torch.ops.aten.sin.default, (other, other))
    monkeypatch.setattr(lowering.Shortcuts, "uuid", lambda self: os.urandom(8))
    options = {"post_grad_custom_post_pass": lowering.Shortcuts(rough=False)}
    compiled = torch_private.compile_once(
        lambda x: x.sin() + 1, limit=8, backend="inductor", options=options
    )
    x = torch.linspace(-2, 2, 7)
    torch.testing.assert_close(compiled(x), x * x + 4)


ANGLE = {"_unmask_angle", "_unbound_angle"}
later = functools.partial(pytest.param, marks=pytest.mark.slow)  # 20 s each to compile


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        (A.CosLU, torch.float32, {"sine", "cosine", "sigmoid"} | ANGLE),
        (A.DELU, torch.float32, {"decay_m1", "sigmoid"}),
        (A.Swish, torch.float32, {"sigmoid", "_drop_far_bound", "_find_size_in_mask"}),
        later(A.AGLU, torch.float32, {"log1p", "exp", "decay", "_find_size", "_join_branches"}),
        (A.EELU, torch.float32, {"positive_erf", "exp"}),
        later(A.DiTAC, torch.float32, {"erfc", "exp"}),
        (A.CosLU, torch.bfloat16, {"rough_sine", "rough_cosine"} | ANGLE),
        (A.DELU, torch.bfloat16, {"rough_expm1", "sigmoid"}),
        later(A.AGLU, torch.bfloat16, {"rough_log1p", "rough_exp", "rough_decay"}),
    ],
)
def test_every_shortcut_still_applies(
    kind: type[A.Activation],
    dtype: torch.dtype,
    expected: set[str],
    monkeypatch: pytest.MonkeyPatch,
):
    rules = Rules(monkeypatch)
    monkeypatch.setattr(kernel, "_PLAIN", set())
    kernel._kernel.cache_clear()
    module = kind()
    A.fuse(module)
    x = torch.randn(64, dtype=dtype, requires_grad=True)
    module(x).sum().backward()
    kernel._kernel.cache_clear()
    assert not expected - set(rules.changed)


def test_count_operations():
    x, p = torch.zeros(7, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    count = torch_private.count_operations
    # forward exp; backward ones, and the product with the result
    assert count(torch.exp, x, []) == 3
    assert count(lambda x: x.view(3, 7).t().exp().t(), x, []) == 3  # no memory of its own
    # forward *; backward ones, a product for each factor; sums and `exp` have three elements
    assert count(lambda x: x * p.exp(), x, [p]) == 4
