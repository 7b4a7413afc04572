"""The page of what the functions learned, from the packed studies alone."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from activations.files import replacing
from callbacks.machine import ROOT

from . import figures
from .page import Block, folded, paragraph, replaced, tabled
from .publish import read_studies
from .runs import Study
from .shapes import CHANGE, RELU, Learned, Values, curves, learned, natural, parameters, properties
from .spec import SpecError

Place = tuple[str, int]  # arm and cell
GROUPS = ("elsewhere", "inside a block", "last")
PAGE = "findings.md"


def findings(pages: Path = ROOT / "docs", results: Path = ROOT / "results") -> str:
    """Draw what was learned in each packed study, write `learned.csv.gz` and the page's tables.

    Raises:
        SpecError: a packed study is damaged.
    """
    rows, drawn, blocks, left = list[dict[str, Any]](), list[Path](), list[Block](), list[str]()
    for study in read_studies():
        known = dict[Place, Learned]()
        for cell, arm in ((cell, arm) for cell in study.cells for arm in study.spec["arms"]):
            try:
                found = learned(study, arm, cell)
            except SpecError as error:
                left.append(f"left out: {study.folder.name}, {study.label(arm, cell)}: {error}")
                continue
            known |= {(arm, cell): found} if found.last else {}
        values, changes = dict[str, Values](), dict[str, Values]()
        for (arm, cell), found in known.items():
            mine, shape = parameters(found), properties(found)
            for name, each in (mine | shape).items():
                rows += _rows(study, arm, cell, name, found.sites, each)
            values |= {f"{study.label(arm, cell)}: {name}": each for name, each in mine.items()}
            if CHANGE in shape and np.isfinite(shape[CHANGE].end).all():
                changes[study.label(arm, cell)] = shape[CHANGE]
        if known:
            blocks += tables(study, known)
            path = pages / f"findings_{study.folder.name}"
            shown = {
                study.label(*place): lines
                for place, found in known.items()
                if (lines := curves(found))
            }
            drawn.append(figures.draw_values(path.with_name(f"{path.name}_values.png"), values))
            if shown:
                name = f"{path.name}_functions.png"
                drawn.append(figures.draw_learned(path.with_name(name), shown, small=True))
            if changes:
                name = f"{path.name}_changes.png"
                drawn.append(figures.draw_changes(path.with_name(name), changes))
    file = results / "learned.csv.gz"
    with replacing(file) as unfinished:  # the same bytes at any time
        packed: Any = {"method": "gzip", "mtime": 0}
        pd.DataFrame(rows).to_csv(unfinished, index=False, compression=packed)
    if (page := pages / PAGE).is_file():
        text = replaced(page.read_text(), "findings", blocks)
        with replacing(page) as unfinished:
            unfinished.write_text(text)
    names = ", ".join(path.name for path in drawn) or "no figure"
    return "\n".join([f"{file}: {len(rows)} rows; {pages}: {names}", *left])


def tables(study: Study, known: Mapping[Place, Learned]) -> list[Block]:
    """How far each function moved and how much of ReLU is in it; all values, on request.

    Layers are together by what follows: the last one goes to the linear layer, those inside a block
    to a convolution and its batch normalisation, the others to a sum or a block.
    """
    shapes, numbers = list[list[Any]](), list[list[Any]]()
    for place, found in known.items():
        same = [each.sites for (_, cell), each in known.items() if cell == place[1]]
        final = max((site for sites in same for site in sites), key=natural)
        groups = [list[int](), list[int](), list[int]()]
        for layer, site in enumerate(found.sites):
            groups[2 if site == final else int(site.endswith(".act1"))].append(layer)
        label, own = study.label(*place), properties(found)
        if own:
            cells = [_grouped(own[name], groups) for name in (CHANGE, RELU)]
            start = _number(own[RELU].start.mean(), 2)
            shapes.append([label, *cells[0], start, *cells[1], len(found.last)])
        for name, each in parameters(found).items():
            for term in range(each.end.shape[2]):
                one = Values(each.layers, each.start[:, [term]], each.end[:, :, [term]])
                numbered = f"{name} {term + 1}" if each.end.shape[2] > 1 else name
                start = _number(each.start[0, term], 3)
                numbers.append([label, numbered, start, *_grouped(one, groups), len(found.last)])
    columns = [*(f"{CHANGE}: {each}" for each in GROUPS), f"{RELU}: start", *GROUPS, "seeds"]
    shapes.sort(key=lambda row: -float(row[3].partition(" ")[0] or 0))
    values = tabled(["function", "parameter", "start", *GROUPS, "seeds"], numbers)
    return [
        Block(f"### {study.folder.name}", ""),
        paragraph(
            "Figures: "
            + ", ".join(
                f"[{each}](findings_{study.folder.name}_{each}.png)"
                for each in ("changes", "functions", "values")
            )
        ),
        tabled(["function", *columns], shapes),
        folded("All values", [values]),
    ]


def _grouped(values: Values, groups: Sequence[Sequence[int]]) -> list[str]:
    """Mean over the layers of each group and over the seeds, and the deviation over the seeds."""
    found = []
    for group in groups:
        mine = values.end[:, [k for k, layer in enumerate(values.layers) if layer in group], 0]
        each = mine.mean(1) if mine.size else np.array([np.nan])
        spread = f" ± {_number(float(each.std(ddof=1)), 2)}" if len(each) > 1 else ""
        found.append("" if np.isnan(each).any() else f"{each.mean():.3g}{spread}")
    return found


def _rows(
    study: Study, arm: str, cell: int, name: str, sites: list[str], found: Values
) -> Iterator[dict[str, Any]]:
    options, seeds = study.spec["cells"][cell], len(found.end)
    for place, term in np.ndindex(found.end.shape[1:]):
        values, start = found.end[:, place, term], found.start[place, term]
        yield {
            "study": study.folder.name, "function": arm, "data": options.get("data"),
            "network": options.get("model.backbone"), "parameter": name,
            "layer": found.layers[place] + 1, "site": sites[found.layers[place]],
            "term": term + 1, "seeds": seeds, "start": _number(float(start), 4),
            "mean": _number(values.mean(), 4),
            "deviation": _number(float(np.std(values, ddof=1)), 2) if seeds > 1 else "",
        }  # fmt: skip


def _number(value: float, digits: int) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}g}"
