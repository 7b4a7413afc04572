"""The shipped specs: each is read, and train.py accepts the options of every arm."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train
from callbacks.machine import ROOT
from study.arms import check_arms
from study.runs import Study, arguments, write_base
from study.spec import read_spec

SPECS = sorted(ROOT.glob("configs/study/*.yaml"))


def read(path: Path) -> Study:
    return Study(Path("none"), {"spec": read_spec(path)})


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What train.py understands of options."""
    seen: list[Any] = []

    class Parsed(train.CLI):
        def before_instantiate_classes(self) -> None:
            super().before_instantiate_classes()
            seen.append(self.config[str(self.subcommand)])
            raise SystemExit(0)

    def parse(*words: str) -> Any:
        with pytest.raises(SystemExit) as left:
            train.main([*words, "--trainer.logger=false"], cli=Parsed)
        assert left.value.code == 0, words
        return seen.pop()

    monkeypatch.setattr(logging.getLogger("lightning.fabric"), "level", logging.ERROR)
    return parse


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Arms that an earlier spec has, too."""
    return set()


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_option_is_accepted(
    path: Path, parsed: Callable[..., Any], known: set[str], tmp_path: Path
):
    """Each arm in the first cell, then each other cell: an option does not depend on the others."""
    study = read(path)
    spec, base = study.spec, study.spec["baseline"]
    runs = [study.run("verdict", arm, 0, 1000, 0) for arm in spec["arms"]]
    runs += [study.run("verdict", base, cell, 1000, 0) for cell in range(1, len(spec["cells"]))]
    for number, run in enumerate(runs):
        text = str(spec["arms"][run.arm])
        if number and number < len(spec["arms"]) and text in known:
            continue
        known.add(text)
        chosen = parsed("fit", *write_base(tmp_path, run.base), *arguments(run.options, 0))
        wanted = spec["arms"][run.arm].get("model.activation")
        found = getattr(chosen.model.activation, "class_path", "None")
        assert found.rpartition(".")[2] == str(wanted).rpartition(".")[2]


def test_published_values_fit_the_cells():
    for path in SPECS:
        spec = read_spec(path)
        for value in spec["published"].values():
            assert value["text"]
            difference = value["difference"]
            assert isinstance(difference, int | float) or len(difference) == len(spec["cells"])


@pytest.mark.slow
@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_arm_is_built(path: Path):
    if path.stem != "practitioner":  # needs a checkpoint
        check_arms(read(path))
