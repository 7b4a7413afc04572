"""Traced operations, made fewer and faster, in buffers: the values of torch's own functions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from activations.fusion import simplify
from activations.fusion.program import Program
from activations.torch_private import operations


def program(function: Callable[..., Any], *inputs: Tensor) -> Program:
    return Program(simplify.simplify(operations(function, inputs)), inputs, fills=True)


def run(function: Callable[..., Any], *inputs: Tensor) -> Tensor:
    into = torch.empty_like(inputs[0])
    program(function, *inputs).start()(into, *inputs)
    return into


SELECTIONS = {
    "one of two": lambda x, y: torch.where(x > y, x, y),
    "a number": lambda x, y: torch.where(x <= 0.5, 1.0, y),
    "zero": lambda x, y: torch.where(x != 1, x, 0.0),
    "two conditions": lambda x, y: torch.where((x > -1) & (y < 1), x, y),
    "of true and false": lambda x, y: torch.where((x > 0) | (y > 0), x, y),
    "the size": lambda x, y: torch.where(x > 0, -x, x).exp(),
    "a slope": lambda x, y: torch.func.vjp(lambda x: x.clamp(-1, 2), x)[1](y)[0],
    "a slope below": lambda x, y: torch.func.vjp(lambda x: x.clamp(min=-1), x)[1](y)[0],
    "slopes of both": lambda x, y: torch.func.vjp(lambda x: torch.where(x > 0, x, 2 * x), x)[1](y)[0],
}  # fmt: skip


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_selections(name: str, dtype: torch.dtype):
    inf, tiny = torch.inf, torch.finfo(dtype).tiny
    special = torch.tensor([0.0, -0.0, 1, -1, 0.5, 2, -3, inf, -inf, tiny, -tiny], dtype=dtype)
    x, y = (each.flatten() for each in torch.meshgrid(special, special, indexing="ij"))
    expected = SELECTIONS[name](x, y)
    assert torch.equal(run(SELECTIONS[name], x, y), expected)
    if "slope" not in name and name != "the size":
        x[3], y[4] = torch.nan, torch.nan
        found, expected = run(SELECTIONS[name], x, y), SELECTIONS[name](x, y)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_fast_functions():
    x = torch.cat([torch.logspace(-30, 1.9, 5000), -torch.logspace(-30, 8, 5000), torch.zeros(1)])
    for dtype in (torch.float32, torch.float64):
        each, eps = x.to(dtype), torch.finfo(dtype).eps
        true = torch.expm1(each.double())
        torch.testing.assert_close(run(torch.expm1, each).double(), true, rtol=4 * eps, atol=0)
        true = torch.expm1(-each.double().abs())
        found = run(lambda x: torch.expm1(-x.abs()), each)
        torch.testing.assert_close(found.double(), true, rtol=4 * eps, atol=0)
        each = torch.cat([each[each > -1], torch.tensor([3e38, torch.inf], dtype=dtype)])
        found, true = run(torch.log1p, each), torch.log1p(each.double())
        torch.testing.assert_close(found.double(), true, rtol=4 * eps, atol=0)
        assert run(torch.log1p, torch.tensor([-1.0], dtype=dtype)) == -torch.inf


def test_base_2():
    x = torch.linspace(-100, 88, 9999)
    square = run(lambda x: (-(x * x)).exp(), x)
    true = (-(x.double() ** 2)).exp()
    error = (square - true).abs() / true.clamp(min=torch.finfo(torch.float32).tiny)
    assert (error <= torch.finfo(torch.float32).eps * (2 + 1.5 * x * x)).all()
    assert torch.equal(run(torch.exp, x), x.exp())  # exact as ever: `x` has not been rounded


def test_equal_operations_are_one():
    calls: list[int] = []

    def twice(x: Tensor) -> Tensor:
        return x.sin() * 2 + x.sin().cos() + x.sin()

    simplified = simplify.simplify(operations(twice, [torch.ones(3)]))
    calls = [node for node in simplified.graph.nodes if node.target is torch.ops.aten.sin.default]
    assert len(calls) == 1


def test_few_buffers():
    def chain(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        kept = x.sin()
        for _ in range(20):
            x = (x * y).tanh() - y
        return x + kept, (x * kept).sum()

    inputs = torch.randn(50), torch.randn(50)
    copies = [each.clone() for each in inputs]
    made = program(chain, *inputs)
    assert len(made.dtypes) <= 3
    into = torch.empty(50)
    _, total = made.start()(into, *inputs)
    expected = chain(*inputs)
    torch.testing.assert_close((into, total), expected)
    assert all(torch.equal(*pair) for pair in zip(inputs, copies, strict=True))


def test_what_has_no_place_of_its_own_is_copied():
    for function in (lambda x, y: x.cumsum(0), lambda x, y: x.view_as(y), lambda x, y: y):
        x, y = torch.randn(7), torch.randn(7)
        assert torch.equal(run(function, x, y), function(x, y))


def test_two_sums_in_tables_of_one_size():
    def both(x: Tensor, y: Tensor) -> Tensor:
        index = torch.tensor([0, 1, 1])
        one = x.new_zeros(3).index_add_(0, index, x)
        return one - x.new_zeros(3).index_add_(0, index, y)

    x, y = torch.tensor([1.0, 2, 3]), torch.tensor([5.0, 5, 5])
    assert run(both, x, y).tolist() == [-4, -5, 0]
