"""What the functions learned: their values after training, from the packed studies alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

import activations
from activations.files import replacing
from callbacks.machine import ROOT

from . import figures
from .publish import read_studies
from .runs import Study

Array = NDArray[np.float64]


class Learned(NamedTuple):
    """One parameter of an arm; the mean over channels where each has its own."""

    start: Array
    """(terms,), before training; NaN where it is drawn at random."""
    end: Array
    """(seeds, layers, terms), after training, in the order of the network's layers."""


def findings(pages: Path = ROOT / "docs", tables: Path = ROOT / "results") -> str:
    """Draw `findings_<study>.png` for each packed study, write `learned.csv`; the line to print.

    Raises:
        SpecError: a packed study is damaged.
    """
    rows, drawn = list[dict[str, Any]](), list[str]()
    for study in read_studies():
        panels = {}
        for cell in study.cells:
            for arm in study.spec["arms"]:
                for name, found in learned(study, arm, cell).items():
                    panels[f"{study.label(arm, cell)}: {name}"] = found
                    rows += _rows(study, arm, cell, name, found)
        if panels:
            path = pages / f"findings_{study.folder.name}.png"
            figures.draw_values(path, panels)
            drawn.append(path.name)
    with replacing(tables / "learned.csv") as unfinished:
        pd.DataFrame(rows).to_csv(unfinished, index=False)
    return f"{tables / 'learned.csv'}: {len(rows)} rows; {pages}: {', '.join(drawn) or 'no figure'}"


def learned(study: Study, arm: str, cell: int) -> dict[str, Learned]:
    """Parameter -> its values, over the runs that ended well."""
    runs = [study.verdict_run(arm, cell, seed) for seed in study.seeds]
    ended = [study.results[run.id]["learned"] for run in runs if study.status(run) == "ok"]
    begin = starts(study.spec["arms"][arm]) if any(ended) else {}
    found = {}
    for name, start in begin.items():
        sites = [site for site in ended[0] if site.rpartition(".")[2] == name]
        end = [[_terms(values[site], start) for site in sites] for values in ended]
        found[name] = Learned(_terms(start.tolist(), start), np.array(end))
    return found


def starts(options: dict[str, Any]) -> dict[str, Array]:
    """Parameter of an arm's activation -> its values before training; NaN if they are random."""
    name, prefix = options["model.activation"], "model.activation."
    kind = getattr(activations, name.rpartition(".")[2], None) or getattr(
        nn, name.rpartition(".")[2]
    )
    given = {n.removeprefix(prefix): v for n, v in options.items() if n.startswith(prefix)}
    given |= {"channels": 1} if "channels" in getattr(kind, "size_arguments", ()) else {}
    drawn = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = activations.shape_parameters(kind(**given))
        drawn.append({n: value.detach().double().numpy() for n, value in made.items()})
    first, second = drawn
    return {n: np.where(first[n] == second[n], first[n], np.nan) for n in first}


def _terms(values: Any, start: Array) -> Array:
    """(terms,) of one layer: values that are not one for each channel."""
    found = np.array(values, float)
    channels = found.ndim > 1 or found.shape != start.shape
    return found.mean(0).reshape(-1) if channels else found


def _rows(study: Study, arm: str, cell: int, name: str, found: Learned) -> Iterator[dict[str, Any]]:
    options, seeds = study.spec["cells"][cell], len(found.end)
    for layer, term in np.ndindex(found.end.shape[1:]):
        values = found.end[:, layer, term]
        yield {
            "study": study.folder.name, "function": arm, "data": options.get("data"),
            "network": options.get("model.backbone"), "parameter": name, "layer": layer + 1,
            "term": term + 1, "seeds": seeds, "start": f"{found.start[term]:.4g}",
            "mean": f"{values.mean():.4g}",
            "deviation": f"{values.std(ddof=1):.2g}" if seeds > 1 else "",
        }  # fmt: skip
