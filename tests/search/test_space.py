"""Spaces: every genome is a formula of the space, also after changes."""

import random
from typing import Any

import pytest
import torch

from activations import Formula
from activations.functions.formula import text
from search.space import PRESETS, Space, at, count, places, put, tree


@pytest.mark.parametrize("preset", PRESETS)
def test_genomes_stay_in_the_space(preset: str):
    space, rng = Space.of(preset), random.Random(3)
    known = {*space.leaves, *space.unary, *space.binary}
    pool = [space.grown(rng) for _ in range(40)]
    assert {count(genome) for genome in pool} == set(range(1, space.operators + 1))
    for _ in range(300):
        first, second = rng.sample(pool, 2)
        child = rng.choice([space.mutated(first, rng), space.crossed(first, second, rng)])
        pool.append(child)
        assert count(child) <= space.operators
        for place in places(child):
            part = at(child, place)
            assert (part[0] if isinstance(part, tuple) else part) in known
        written, constants = tree(child)
        if "x" in text(written).replace("exp", "").replace("max", ""):
            assert Formula(text(written), constants)(torch.randn(2, 3)).shape == (2, 3)
    assert len(set(pool)) > 200


def test_the_same_seed_finds_the_same():
    space = Space.of("swish")
    first, second = ([space.grown(rng) for _ in range(30)] for rng in map(random.Random, (5, 5)))
    assert first == second


def test_operators_are_put_into_each_other():
    genome = ("sigmoid(x) * y", ("beta * x", "x"), ("max(x, y)", "x", ("beta * x", "x")))
    written, constants = tree(genome)
    assert text(written) == "sigmoid(beta1 * x) * max(x, beta2 * x)"
    assert constants == {"beta1": 1.0, "beta2": 1.0}
    assert put(genome, (2, 2), "x") == (
        "sigmoid(x) * y",
        ("beta * x", "x"),
        ("max(x, y)", "x", "x"),
    )
    x = torch.randn(50)
    expected = torch.sigmoid(x) * torch.maximum(x, x)
    torch.testing.assert_close(Formula(text(written), constants)(x), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("elu", "no preset 'elu'; known are eelu, swish, aquasurf, pangaea"),
        ({"leaves": ["x"]}, "the space is empty: give `leaves`"),
        ({"unary": ["expo(x)"]}, "a formula has no function 'expo'; the nearest: exp"),
        ({"unary": ["2 * 3"]}, r"the unary operator '2 \* 3' has no x in it"),
        ({"unary": ["x * y"]}, r"unary: 'x \* y' may not use y"),
        ({"binary": ["exp(x)"]}, r"binary: 'exp\(x\)' needs x and y"),
        ({"preset": "eelu", "operators": 0}, "operators must be an integer >= 1, got 0"),
        ({"preset": "eelu", "depth": 3}, "a space has no 'depth'; known are"),
        ({"unary": [True]}, "unary must be formulas such as 'x', got True"),
    ],
)
def test_bad_spaces_are_named(given: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Space.of(given)
