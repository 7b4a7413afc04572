"""Screens: what is told of a function before any training."""

import numpy as np
import pytest

from activations.functions.formula import names, parse
from search.screen import SAME, Screens, Shapes
from search.space import PRESETS, Genome, Space, at, count, places


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
        ("log(abs(x) + 1e-6)", "explosive"),  # its slope next to 0
        ("x**15 / (1 + x**14)", "not finite in half or single precision"),
        ("x**2 + ((x + 1e8) - 1e8)", "not resolved in single precision"),
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
        ("max(x, 0) * beta", "ShiLU"),
        ("x * tanh(exp(x))", ""),
        ("x * sigmoid(1.1 * x)", ""),
    ],
)
def test_known_functions_are_named(formula: str, name: str):
    genome = formula if "beta" not in formula else (formula, "x")
    assert Screens().look(genome).known == name


X = "x"
SILU = ("x * y", X, ("sigmoid(x)", X))
FIRST = ("x * y", X, ("erf(x)", ("exp(x)", X)))
SECOND = ("-x", ("x * y", X, ("erf(x)", ("exp(x)", ("-x", X)))))
THIRD = ("x * y", X, ("x**2", ("erf(x)", ("exp(x)", X))))
FOURTH = ("x * y", ("erf(x)", X), ("softplus(x)", X))
CHANGED = {  # the same to the next layer
    "eelu": [("-x", FIRST), ("x / y", FOURTH, "2"), ("x - y", "1", THIRD)],
    "swish": [("-x", FIRST), ("x * y", FOURTH, ("cos(x)", ("x - y", X, X)))],
    "aquasurf": [("-x", FIRST), ("x - y", "1", THIRD)],
    "pangaea": [("-x", FIRST), ("x - y", "1", THIRD)],
}
SWISH = {"swish": ("sigmoid(x) * y", ("beta * x", X), X), "pangaea": ("silu(x)", ("alpha * x", X))}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_known_works_are_in_the_spaces(preset: str):
    """The four EELU and SiLU are in each space, Swish where there are learned constants."""
    space, screens = Space.of(preset), Screens()
    found = {"SiLU": SILU, "EELU-1": FIRST, "EELU-3": THIRD, "EELU-4": FOURTH}
    found |= {"Swish": SWISH[preset]} if preset in SWISH else {}
    for name, genome in found.items():
        look = screens.look(genome)
        assert (look.reason, look.known) == ("", name)
    for genome in (SECOND, *CHANGED[preset]):
        look = screens.look(genome)
        assert (look.reason, look.known in found) == ("equal to an earlier one", True)
    assert screens.look(SECOND).known == "EELU-1"  # its mirror image
    for genome in (*found.values(), SECOND, *CHANGED[preset]):
        assert count(genome) <= space.operators
        parts = [at(genome, place) for place in places(genome)]
        known = {*space.leaves, *space.unary, *space.binary}
        assert {part[0] if isinstance(part, tuple) else part for part in parts} <= known
    learned = any(len(set(names(parse(each))) - {"x", "y"}) for each in known)
    assert learned == (preset in SWISH)


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
