"""Which functions a search can find: trees of operators that are formulas themselves."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from activations.functions.formula import Tree, names, parse

Genome = str | tuple  # a leaf's formula, or (operator's formula, genome, ...)

# Operators as formulas of x, or of x and y. Other names in them are learned constants, from 1 on;
# each use of an operator has its own.
_SWISH_UNARY = [
    "x", "-x", "abs(x)", "x**2", "x**3", "sqrt(abs(x) + 1e-6)", "beta * x", "x + beta", "exp(x)",
    "log(abs(x) + 1e-6)", "sin(x)", "cos(x)", "sinh(x)", "cosh(x)", "tanh(x)", "asinh(x)",
    "atan(x)", "max(x, 0)", "min(x, 0)", "sigmoid(x)", "softplus(x)", "exp(-x**2)", "erf(x)",
]  # fmt: skip
_PANGAEA_UNARY = [
    "-x", "abs(x)", "1 / x", "x**2", "exp(x)", "erf(x)", "1 - erf(x)", "sinh(x)", "cosh(x)",
    "tanh(x)", "asinh(x)", "atan(x)", "expm1(x)", "sigmoid(x)", "logsigmoid(x)", "relu(x)",
    "elu(x)", "selu(x)", "softplus(x)", "silu(x)", "softsign(x)", "hardsigmoid(x)",
]  # fmt: skip
_ARITHMETIC = ["x + y", "x - y", "x * y", "x / y", "max(x, y)", "min(x, y)"]
PRESETS: dict[str, dict[str, Any]] = {
    # Rahman et al. 2024, arXiv 2409.04915; our reading: its operators are not known to us
    "eelu": {
        "leaves": ["x", "-x", "1", "2", "0.5"],
        "unary": ["-x", "abs(x)", "x**2", "exp(x)", "log(1 + abs(x))", "sin(x)", "cos(x)",
                  "tanh(x)", "atan(x)", "erf(x)", "sigmoid(x)", "softplus(x)", "relu(x)"],
        "binary": _ARITHMETIC, "operators": 6,
    },
    # Ramachandran et al. 2017, arXiv 1710.05941, section 2
    "swish": {
        "leaves": ["x", "beta"], "unary": _SWISH_UNARY,
        "binary": ["x + y", "x * y", "x - y", "x / (abs(y) + 1e-6)", "max(x, y)", "min(x, y)",
                   "sigmoid(x) * y", "exp(-beta * (x - y)**2)", "exp(-beta * abs(x - y))",
                   "beta * x + (1 - beta) * y"],
        "operators": 7,
    },
    # Bingham and Miikkulainen 2023, arXiv 2301.05785: binary of two chains of two unary operators
    "aquasurf": {
        "leaves": ["x", "0", "1"], "unary": ["x", *_PANGAEA_UNARY], "binary": _ARITHMETIC,
        "operators": 5,
    },
    # Bingham and Miikkulainen 2020, arXiv 2006.03179: the same with learned factors on any edge
    "pangaea": {
        "leaves": ["x", "0", "1"], "unary": [*_PANGAEA_UNARY, "alpha * x"], "binary": _ARITHMETIC,
        "operators": 7,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Space:
    """The functions that a search can reach.

    Attributes:
        leaves: formulas of x alone, or numbers.
        unary: operators, formulas of x.
        binary: operators, formulas of x and y.
        operators: the most in one function.

    Raises:
        ValueError: a list is empty, an operator is no formula, or it uses other names than it may.
    """

    leaves: tuple[str, ...] = ("x",)
    unary: tuple[str, ...] = ()
    binary: tuple[str, ...] = ()
    operators: int = 6

    def __post_init__(self) -> None:
        if not self.leaves or not (self.unary or self.binary):
            raise ValueError(
                "the space is empty: give `leaves` such as [x], and `unary` or `binary` operators "
                f"such as ['exp(x)'] and ['x * y'], or a preset: {', '.join(PRESETS)}"
            )
        if (
            isinstance(self.operators, bool)
            or not isinstance(self.operators, int)
            or self.operators < 1
        ):
            raise ValueError(f"operators must be an integer >= 1, got {self.operators!r}")
        for kind, given in (
            ("leaves", self.leaves),
            ("unary", self.unary),
            ("binary", self.binary),
        ):
            for written in given:
                if not isinstance(written, str):
                    raise ValueError(f"{kind} must be formulas such as 'x', got {written!r}")
                found = set(names(parse(written)))
                if kind != "leaves" and "x" not in found:
                    raise ValueError(f"the {kind} operator {written!r} has no x in it")
                if ("y" in found) != (kind == "binary"):
                    wanted = "needs x and y" if kind == "binary" else "may not use y"
                    raise ValueError(f"{kind}: {written!r} {wanted}")
        if not any("x" in names(parse(leaf)) for leaf in self.leaves):
            raise ValueError(f"no leaf has an x: {', '.join(self.leaves)}")

    @classmethod
    def of(cls, given: str | dict[str, Any]) -> "Space":
        """A preset by its name, or a mapping; its `preset` is what the mapping changes."""
        if not isinstance(given, str | dict):
            raise ValueError(f"a space is a preset's name or a mapping, got {given!r}")
        fields = {"preset": given} if isinstance(given, str) else dict(given)
        preset = fields.pop("preset", None)
        if preset is not None and str(preset) not in PRESETS:
            raise ValueError(f"no preset {preset!r}; known are {', '.join(PRESETS)}")
        known = {"leaves", "unary", "binary", "operators"}
        if unknown := fields.keys() - known:
            raise ValueError(
                f"a space has no {min(unknown)!r}; known are {', '.join(sorted(known))}"
            )
        merged: dict[str, Any] = {**PRESETS.get(preset or "", {}), **fields}
        for name in merged.keys() - {"operators"}:
            if not isinstance(merged[name], list):
                raise ValueError(f"{name} must be a list of formulas, got {merged[name]!r}")
            merged[name] = tuple(map(_word, merged[name]))
        return cls(**merged)

    # ---- genomes

    def grown(self, rng: random.Random, operators: int | None = None) -> Genome:
        """A random genome that depends on x, with `operators`, by default 1 to the most."""
        left = rng.randint(1, self.operators) if operators is None else operators
        found = self._grown(rng, left)
        return found if left == 0 or "x" in names(tree(found)[0]) else self.grown(rng, left)

    def _grown(self, rng: random.Random, left: int) -> Genome:
        if left == 0:
            return rng.choice(self.leaves)
        name = rng.choice([*self.unary, *self.binary])
        if name not in self.binary:
            return name, self._grown(rng, left - 1)
        share = rng.randint(0, left - 1)
        return name, self._grown(rng, share), self._grown(rng, left - 1 - share)

    def mutated(self, genome: Genome, rng: random.Random) -> Genome:
        """A neighbour: one part grown anew, one operator exchanged, put in or left out."""
        place = rng.choice([*places(genome)])
        part = at(genome, place)
        room = self.operators - count(genome)
        change = rng.choice(("grow", "exchange", "insert", "remove"))
        if change == "exchange" and isinstance(part, tuple):
            pool = self.unary if len(part) == 2 else self.binary
            new: Genome = (rng.choice(pool), *part[1:])
        elif change == "insert" and room > 0:
            name = rng.choice([*self.unary, *self.binary])
            new = (name, part)
            if name in self.binary:
                pair = [part, rng.choice(self.leaves)]
                rng.shuffle(pair)
                new = (name, *pair)
        elif change == "remove" and isinstance(part, tuple):
            new = rng.choice(part[1:])
        else:
            new = self.grown(rng, rng.randint(0, min(2, room + count(part))))
        return put(genome, place, new)

    def crossed(self, first: Genome, second: Genome, rng: random.Random) -> Genome:
        """`first` with one part of `second`; small enough."""
        place = rng.choice([*places(first)])
        room = self.operators - count(first) + count(at(first, place))
        parts = [at(second, each) for each in places(second)]
        return put(first, place, rng.choice([part for part in parts if count(part) <= room]))


def _word(value: Any) -> Any:
    return f"{value}" if isinstance(value, int | float) and not isinstance(value, bool) else value


def count(genome: Genome) -> int:
    """The operators of a genome."""
    return 1 + sum(map(count, genome[1:])) if isinstance(genome, tuple) else 0


def places(genome: Genome, here: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """The way to each part, the whole first."""
    yield here
    if isinstance(genome, tuple):
        for k, part in enumerate(genome[1:], start=1):
            yield from places(part, (*here, k))


def at(genome: Genome, place: tuple[int, ...]) -> Genome:
    """The part at a place."""
    for k in place:
        genome = genome[k]
    return genome


def put(genome: Genome, place: tuple[int, ...], new: Genome) -> Genome:
    """The genome with another part at a place."""
    if not place:
        return new
    k, *rest = place
    return (*genome[:k], put(genome[k], tuple(rest), new), *genome[k + 1 :])


_parsed = cache(parse)  # of the operators of a space, which are few


def tree(genome: Genome) -> tuple[Tree, dict[str, float]]:
    """The formula's tree of a genome, and the first values of its learned constants."""
    constants: dict[str, float] = {}

    def built(genome: Genome) -> Tree:
        name, *parts = genome if isinstance(genome, tuple) else (genome,)
        inner: dict[str, Tree] = dict(zip("xy", map(built, parts), strict=False)) or {"x": "x"}
        template = _parsed(name)
        for own in dict.fromkeys(names(template)):
            if own not in ("x", "y"):
                fresh = f"{own}{len(constants) + 1}"
                constants[fresh] = 1.0
                inner[own] = fresh
        return _filled(template, inner)

    return built(genome), constants


def _filled(template: Tree, inner: dict[str, Tree]) -> Tree:
    if isinstance(template, str):
        return inner[template]
    if not isinstance(template, tuple):
        return template
    name, *parts = template
    return (name, *(_filled(part, inner) for part in parts))
