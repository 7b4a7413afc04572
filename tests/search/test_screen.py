"""Screens: what is told of a function before any training."""

import numpy as np
import pytest

from search.screen import SAME, Screens, Shapes
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


def test_equal_shapes_are_those_of_a_comparison_with_each():
    rng = np.random.default_rng(4)
    seen = Shapes()
    for number in range(300):
        seen.add(rng.normal(size=81 * (1 + number % 2)))
    for number in range(0, 300, 7):
        for size, found in ((0.99 * SAME, number), (1.01 * SAME, None)):
            moved = seen.shapes[number] + size * rng.choice([-1, 1], 81 * (1 + number % 2))
            assert seen.find(moved) == found
    first = seen.shapes[4]
    seen.add(first)
    assert seen.find(first) == 4  # the first of several
    assert seen.find(first[::-1]) is None


def test_one_that_overflows_with_other_constants_hides_no_equal_ones():
    screens = Screens()
    for formula in ("tanh(x) * x / (beta - 1.37)", "x * tanh(beta * x)", "3 * x * tanh(beta * x)"):
        screens.look((formula, "x"))
    assert screens.counts == {"": 2, "equal to an earlier one": 1}
