"""What a search asks: read, checked, and locked before its first run."""

from pathlib import Path
from typing import Any

from study.spec import SpecError, check, filled, flatten, read_overlaid

from .space import Space

DEFAULTS: dict[str, Any] = {
    "question": "",
    "space": "eelu",
    "base": [],
    "cells": [],
    "references": {
        "ReLU": {"model.activation": "torch.nn.ReLU"},
        "SiLU": {"model.activation": "torch.nn.SiLU"},
    },
    "metric": "val/acc",
    "seed": 0,
    "generations": 8,
    "children": 12,
    "population": 36,
    "tournament": 5,
    "crossover": 0.3,
    "surrogate": True,
    "constants": "site",
    "halving": {"epochs": [2, 6], "keep": 3},
    "finalists": {"number": 3, "seeds": [101, 102, 103]},
}
FOUND = "Formula"  # the arm of a candidate, where a search is checked like a study


def read_search(path: Path) -> dict[str, Any]:
    """The spec in a YAML file, with the content of its overlays and all defaults.

    Raises:
        SpecError: a field is unknown, missing or of no use; the message names it.
    """
    return check_search(read_overlaid(path))


def check_search(spec: dict[str, Any]) -> dict[str, Any]:
    """`spec` with defaults.

    Raises:
        SpecError: it cannot be searched as it is written; the message names field and remedy.
    """
    full = filled(spec, DEFAULTS, ("halving", "finalists"))
    if not isinstance(full["question"], str):
        raise SpecError(f"question must be a text, got {full['question']!r}")
    _check_numbers(full)
    try:
        Space.of(full["space"])
    except (TypeError, ValueError) as error:
        raise SpecError(f"space: {error}") from None
    metric = full["metric"]
    if not isinstance(metric, str) or not metric.startswith("val/"):
        raise SpecError(
            f"metric must be of the validation, such as val/acc, got {metric!r}: what is chosen on "
            "the test set cannot be judged on it"
        )
    if FOUND in full["references"]:
        raise SpecError(f"references: {FOUND!r} is what is searched: choose another name")
    cells = full["cells"] if isinstance(full["cells"], list) else []
    for number, cell in enumerate(cells):
        for name, by in (("trainer.max_epochs", "halving.epochs"), ("model.share", "constants"),
                         ("model.activation", "the search")):  # fmt: skip
            given = flatten(cell) if isinstance(cell, dict) else {}
            if any(f"{each}.".startswith(f"{name}.") for each in given):
                raise SpecError(f"cells[{number}]: {name} is set by {by}: leave it out")
    check(study_spec(full))  # what is unfair in a study is unfair here
    return full


def _check_numbers(spec: dict[str, Any]) -> None:
    for name, least in (("seed", 0), ("generations", 1), ("children", 2), ("population", 2),
                        ("tournament", 1)):  # fmt: skip
        if type(spec[name]) is not int or not least <= spec[name] < 2**32:
            raise SpecError(f"{name} must be a whole number from {least}, got {spec[name]!r}")
    if spec["tournament"] > spec["population"]:
        raise SpecError(
            f"tournament {spec['tournament']} is more than the population, {spec['population']}"
        )
    share = spec["crossover"]
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise SpecError(f"crossover must be a share between 0 and 1, got {share!r}")
    if not isinstance(spec["surrogate"], bool):
        raise SpecError(f"surrogate must be true or false, got {spec['surrogate']!r}")
    if spec["constants"] not in ("site", "channel"):
        raise SpecError(f"constants must be site or channel, got {spec['constants']!r}")
    epochs, keep = spec["halving"]["epochs"], spec["halving"]["keep"]
    if not _whole(epochs) or sorted(set(epochs)) != epochs or epochs[0] < 1:
        raise SpecError(f"halving.epochs must be rising whole numbers from 1, got {epochs!r}")
    if type(keep) is not int or keep < 2:
        raise SpecError(f"halving.keep must be a whole number from 2, got {keep!r}: one in so many")
    if spec["children"] < (least := keep ** (len(epochs) - 1)):
        raise SpecError(
            f"children: {spec['children']} are too few for one to be left after {len(epochs)} "
            f"rungs of halving that keep one in {keep}: give {least} or more"
        )
    number, seeds = spec["finalists"]["number"], spec["finalists"]["seeds"]
    if type(number) is not int or number < 1:
        raise SpecError(f"finalists.number must be a whole number from 1, got {number!r}")
    possible = _whole(seeds) and all(0 <= each < 2**32 for each in seeds)
    if not possible or len(set(seeds)) < len(seeds) or len(seeds) < 2:
        raise SpecError(f"finalists.seeds must be two or more different seeds, got {seeds!r}")
    if spec["seed"] in seeds:
        raise SpecError(f"finalists.seeds: {spec['seed']} is the seed of the search: use others")


def _whole(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(each) is int for each in values)


def study_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """A study of a formula against the references: same data, networks and options."""
    references = spec["references"]
    if not isinstance(references, dict) or not references:
        raise SpecError(
            f"references must name functions, such as {DEFAULTS['references']}, got {references!r}"
        )
    return {
        "base": spec["base"], "baseline": next(iter(references)), "cells": spec["cells"],
        "arms": {**references, FOUND: {"model.activation": "Formula"}},
        "budget": {"trainer.max_epochs": max(spec["halving"]["epochs"])},
    }  # fmt: skip
