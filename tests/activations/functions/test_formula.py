"""Formulas as text: reading, writing, and the same values as Python's own reading of the text."""

import math
import warnings
from pathlib import Path

import hypothesis.strategies as st
import onnxruntime
import pytest
import torch
from hypothesis import given, settings

from activations import EELU, CosLU, Formula
from activations.functions.formula import OPERATORS, TWO, parse, text

X = torch.linspace(-3, 3, 61, dtype=torch.float64)
KNOWN = {"x": X, "alpha": torch.tensor(0.7), "abs": abs, "max": torch.maximum, "tanh": torch.tanh}

leaves = st.one_of(
    st.sampled_from(["x", "alpha"]), st.floats(-9, 9).filter(bool), st.integers(-5, -1).map(float)
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(
            st.sampled_from(["neg", "tanh"]), inner.filter(lambda t: isinstance(t, tuple | str))
        ),
        st.tuples(st.sampled_from([*TWO]), inner, inner),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(trees)
def test_what_is_written_is_read_again(tree):
    assert parse(text(tree)) == tree


@pytest.mark.parametrize(
    "written",
    ["alpha - (x - 2) - 3", "-x**2 + (-x)**2", "2 / x / alpha", "x * -alpha", "2**x**2", "(2**x)**2",
     "max(x, alpha * x) - tanh(abs(x))", "-(x + alpha) * 3", "x - -2"],
)  # fmt: skip
def test_precedence_is_pythons(written: str):
    constants = {"alpha": 0.7} if "alpha" in written else {}
    module = Formula(written, constants, dtype=torch.float64)
    torch.testing.assert_close(module(X), eval(written, KNOWN), rtol=1e-6, atol=1e-6)
    again = Formula(text(parse(written)), constants, dtype=torch.float64)
    assert torch.equal(module(X), again(X))


def test_known_functions_by_their_formula():
    wave = Formula("(x + alpha * cos(beta * x)) * sigmoid(x)", {"alpha": 0.7, "beta": 1.9})
    torch.testing.assert_close(wave(X), CosLU(0.7, 1.9)(X))
    for variant, written in enumerate(
        ("x*erf(exp(x))", "-x*erf(exp(-x))", "x*erf(exp(x))**2", "erf(x)*softplus(x)"), start=1
    ):
        torch.testing.assert_close(Formula(written)(X), EELU(variant)(X))


@pytest.mark.parametrize(
    "written", [f"{name}(abs(x) + 0.1)" for name in OPERATORS if name.isidentifier() and name not in TWO]
    + ["sinh(x) + asinh(x)", "cosh(x) * max(x, min(x**2, 0.3))"],
)  # fmt: skip
def test_every_operator_is_exported_by_the_older_exporter(written: str, tmp_path: Path):
    module, file = Formula(written), str(tmp_path / "formula.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(module, (torch.randn(3, 4),), file, input_names=["x"], dynamo=False)
    x = torch.randn(3, 4)
    y = onnxruntime.InferenceSession(file).run(None, {"x": x.numpy()})[0]
    torch.testing.assert_close(torch.as_tensor(y), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sinh", "cosh", "asinh"])
def test_hyperbolic_functions_are_exact(name: str):
    x = torch.logspace(-8, 1.9, 100, dtype=torch.float64)
    x = torch.cat([-x, x]).float().requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, expected = Formula(f"{name}(x)")(x), getattr(torch, name)(exact)
    torch.testing.assert_close(y.double(), expected, rtol=4e-7 if name == "asinh" else 2e-6, atol=0)
    slopes = [torch.autograd.grad(each.sum(), at)[0] for each, at in ((y, x), (expected, exact))]
    torch.testing.assert_close(slopes[0].double(), slopes[1], rtol=2e-6, atol=0)


def test_exponentials_stop_where_they_end():
    x = torch.tensor([-1e4, 1e4], requires_grad=True)
    y = Formula("x * erf(exp(x))")(x)
    y.sum().backward()
    assert x.grad is not None
    assert y.tolist() == pytest.approx([0, 1e4])
    assert x.grad.tolist() == pytest.approx([0, 1])
    assert math.isfinite(Formula("cosh(x)")(x)[0].item())


def test_the_printed_module_shows_formula_and_values():
    module = Formula("x*sigmoid( beta*x )", {"beta": 0.5})
    assert repr(module) == "Formula('x * sigmoid(beta * x)', beta=0.5)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["exp", "expm1", "sinh", "cosh"])
def test_no_exponential_is_infinite(name: str, dtype: torch.dtype):
    x = torch.tensor([-1e5, -89.0, 88.7228, 88.73, 709.79, 1e5], dtype=dtype, requires_grad=True)
    y = Formula(f"{name}(x)")(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all()
    assert slope.isfinite().all()


def test_second_derivatives_of_every_function():
    x = torch.linspace(-2.9, 2.9, 40, dtype=torch.float64, requires_grad=True)
    for name in ("hardsigmoid", "hardtanh", "relu6", "softsign", "logsigmoid", "mish"):
        formula = Formula(f"{name}(x) * x").double()
        assert torch.autograd.gradgradcheck(formula, x), name
