"""Screens: what is told of a function before any training."""

import pytest

from search.screen import Screens
from search.space import Genome


def reason(formula: Genome) -> str:
    return Screens().look(formula).reason


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("3 + 0 * x", "constant"),
        ("2 * 3", "constant"),
        ("2 * x - 1", "affine"),
        ("x + 1e-3 * tanh(x)", "affine"),
        ("100 + sigmoid(x)", "saturated"),
        ("1 / x", "not finite"),
        ("log(x)", "not finite"),
        ("sqrt(abs(x))", "not finite"),  # its slope at 0
        ("x**4 * abs(x)", "explosive"),
        ("exp(2 * x)", "explosive"),
        ("x**15 / (1 + x**14)", "not finite in half or single precision"),
        ("x * sigmoid(x)", ""),
        ("x * erf(exp(x))", ""),
        ("sin(x)", ""),
    ],
)
def test_reasons(formula: str, expected: str):
    assert reason(formula) == expected


@pytest.mark.parametrize(
    ("formula", "name"),
    [
        ("x * sigmoid(x)", "SiLU"),
        ("x / (1 + exp(-x))", "SiLU"),
        ("4 - 3 * x * sigmoid(-x)", "SiLU"),  # of -x, scaled and shifted
        ("(abs(x) + x) / 7", "ReLU"),
        ("x * (1 + erf(x * 0.70710678))", "GELU"),
        ("x * tanh(softplus(x))", "Mish"),
        ("x * erf(exp(x))", "EELU-1"),
        ("x * erf(exp(x))**2", "EELU-3"),
        ("erf(x) * log1p(exp(x))", "EELU-4"),
        ("x * sigmoid(beta * x)", "Swish"),
        ("x * sigmoid(x) * beta", "SiLU at the start"),
        ("x * tanh(exp(x))", ""),
        ("x * sigmoid(1.1 * x)", ""),
    ],
)
def test_known_functions_are_named(formula: str, name: str):
    genome = formula if "beta" not in formula else (formula, "x")
    assert Screens().look(genome).known == name


def test_equal_functions_are_found_once():
    screens = Screens()
    for formula in ("x * tanh(exp(x))", "5 - 2 * x * tanh(exp(x))", "x * tanh(exp(-x))"):
        screens.look(formula)
    screens.look("x * tanh(exp(1.2 * x))")
    screens.look("2 * x")
    assert screens.counts == {"": 2, "equal to an earlier one": 2, "affine": 1}
