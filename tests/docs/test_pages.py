"""What the pages say about the code holds: names, tables, links."""

import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from torch import nn

import activations
from activations import match

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TABLE: dict[str, Any] = runpy.run_path(str(ROOT / "docs/table.py"))
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_the_table_of_functions_is_what_the_classes_say():
    written = (ROOT / "docs/activations.md").read_text()
    assert written == TABLE["page"](), "run: python docs/table.py"


def test_readme_lists_each_function_by_how_it_changes():
    rows = re.findall(
        r"^\| (learned|scheduled|fixed) \| (.*) \|$", (ROOT / "README.md").read_text(), re.M
    )
    written = {name: row for row, text in rows for name in re.findall(r"`(\w+)`", text)}
    last = {kind.__name__: TABLE["changes"](kind).split(", ")[-1] for kind in TABLE["kinds"]()}
    assert written == last


def test_every_public_name_has_an_entry_in_the_reference():
    """Functions and classes of `activations.functions` enter by themselves."""
    page = (ROOT / "docs/api/network.md").read_text()
    entries = re.findall(r"^::: activations\.(\w+)$", page, re.M)
    home = {name: inspect.getmodule(getattr(activations, name)) for name in activations.__all__}
    others = [
        name
        for name, module in home.items()
        if module is None or not module.__name__.startswith("activations.functions.")
    ]
    assert sorted(entries) == sorted(others)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_to_files(page: Path):
    for link in LINK.findall(CODE.sub("", page.read_text())):
        if not link.startswith(("http://", "https://", "#")):
            assert (page.parent / link.partition("#")[0]).is_file(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_of_results_exist(page: Path):
    for file in re.findall(r"\{\{ read_csv\('([^']+)'", page.read_text()):
        assert len(pandas.read_csv(ROOT / file)), file


@pytest.mark.parametrize(
    "names",
    [
        ["ReLUN", "Swish", "ScaledSoftSign", "Rational"],
        pytest.param(None, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:match. :UserWarning")
def test_errors_of_the_fits_are_as_written(names):
    table = pandas.read_csv(ROOT / "results/match.csv", index_col="function")
    x = torch.special.ndtri((torch.arange(2001, dtype=torch.float64) + 0.5) / 2001)
    for name in names or table.index:
        for old in table.columns:
            torch.manual_seed(0)
            reference = getattr(nn, old)()
            error = match(getattr(activations, name)(), reference)
            relative = 100 * error / reference(x).std(correction=0).item()
            written = float(table.loc[name, old].removesuffix("%"))
            assert written == pytest.approx(relative, rel=0.02, abs=0.06), (name, old)
