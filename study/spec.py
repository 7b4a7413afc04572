"""What a study asks: read, checked, and locked before its first run."""

import difflib
import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from activations.files import replacing
from callbacks.machine import CODE, ROOT, code, commit

LOCK = "spec.lock.yaml"
DEFAULTS: dict[str, Any] = {
    "question": "",
    "base": [],
    "baseline": "ReLU",
    "second_baselines": [],
    "arms": {},
    "cells": [],
    "seeds": {"first": 1000, "looks": [5, 8, 12, 20]},
    "metric": {"name": "test/acc", "at": "last"},
    "margin": 0.3,
    "alpha": 0.05,
    "budget": {},
    "tune": None,
    "controls": [],
    "published": {},
}
CONTROLS = ("frozen", "retrained", "same_time")
# options that decide how much an arm is trained, or on what
_BUDGET = ("trainer.max_", "trainer.min_", "trainer.limit_", "trainer.overfit", "trainer.devices",
           "trainer.accumulate", "data", "model.backbone", "model.pretrained",
           "model.checkpoint_path")  # fmt: skip


class SpecError(ValueError):
    """A study that cannot be run as it is written."""


def read_spec(path: Path) -> dict[str, Any]:
    """The spec in a YAML file, with the content of its overlays and all defaults.

    Raises:
        SpecError: a field is unknown, missing or cannot give a verdict; the message names it.
    """
    try:
        found = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise SpecError(f"no such file: {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise SpecError(f"{path} holds no mapping {{name: value}}")
    found["base"] = [_overlay(each, path.parent) for each in found.get("base") or []]
    return check(found)


def _overlay(name: Any, beside: Path) -> dict[str, Any]:
    """The options in an overlay of train.py, given by its path or already read."""
    if isinstance(name, dict):
        return name
    for folder in (Path(), beside, ROOT):
        if (file := folder / str(name)).is_file():
            return yaml.safe_load(file.read_text())
    raise SpecError(f"base: no such file: {name}")


def check(spec: dict[str, Any]) -> dict[str, Any]:
    """`spec` with defaults.

    Raises:
        SpecError: it cannot give a verdict; the message names the field and the remedy.
    """
    for name in spec:
        if name not in DEFAULTS:
            near = difflib.get_close_matches(str(name), DEFAULTS, n=1)
            hint = f"; the nearest: {near[0]}" if near else f": choose from {', '.join(DEFAULTS)}"
            raise SpecError(f"unknown field {name!r}{hint}")
    full = {**DEFAULTS, **spec}
    for name in ("seeds", "metric"):
        if not isinstance(full[name], dict) or (more := full[name].keys() - DEFAULTS[name].keys()):
            raise SpecError(
                f"{name} must be a mapping of {', '.join(DEFAULTS[name])}, got {more or full[name]}"
            )
        full[name] = {**DEFAULTS[name], **full[name]}
    _check_arms(full)
    _check_numbers(full)
    _check_tuning(full)
    return full


def _check_arms(spec: dict[str, Any]) -> None:
    arms, cells = spec["arms"], spec["cells"]
    for name, kind in (("arms", dict), ("cells", list), ("budget", dict), ("published", dict)):
        if not isinstance(spec[name], kind):
            raise SpecError(f"{name} must be a {kind.__name__}, got {spec[name]!r}")
    if len(arms) < 2:
        raise SpecError(f"arms: a verdict compares two or more, got {len(arms)}")
    for name in (spec["baseline"], *spec["second_baselines"]):
        if name not in arms:
            raise SpecError(f"baseline {name!r} is none of the arms: {', '.join(arms)}")
    if not cells:
        raise SpecError("cells: name at least one data set and backbone")
    for place, options in [*(("arms." + n, o) for n, o in arms.items()),
                           *((f"cells[{i}]", o) for i, o in enumerate(cells)),
                           ("budget", spec["budget"])]:  # fmt: skip
        if not isinstance(options, dict):
            raise SpecError(f"{place} must be options {{name: value}}, got {options!r}")
        if "seed_everything" in options:
            raise SpecError(f"{place}: seed_everything is set by `seeds`")
        if "trainer.callbacks" in options and "EarlyStopping" in str(options):
            raise SpecError(f"{place}: early stopping gives arms unequal budgets: leave it out")
        if str(options.get("checkpoint.monitor", "")).startswith("test"):
            raise SpecError(
                f"{place}: checkpoint.monitor would choose the best epoch on the test set: use val/"
            )
    for number, overlay in enumerate(spec["base"]):
        if "EarlyStopping" in str(overlay):
            raise SpecError(
                f"base[{number}]: early stopping gives arms unequal budgets: leave it out"
            )
    for name, options in arms.items():
        if unequal := [
            each for each in options if each in spec["budget"] or each.startswith(_BUDGET)
        ]:
            raise SpecError(
                f"arms.{name}: {unequal[0]} would give it another budget or other data: arms may "
                "differ in the activation and in how it is trained alone"
            )
    known: dict[str, str] = {}
    for name, options in arms.items():
        if (same := known.setdefault(json.dumps(options, sort_keys=True), name)) != name:
            raise SpecError(f"arms {same} and {name} are the same")


def _check_numbers(spec: dict[str, Any]) -> None:
    margin, alpha, seeds, metric = (spec[name] for name in ("margin", "alpha", "seeds", "metric"))
    if not _is_number(margin) or margin <= 0:
        raise SpecError(f"margin must be above 0 points, got {margin!r}")
    if not _is_number(alpha) or not 0 < alpha < 0.5:
        raise SpecError(f"alpha must lie between 0 and 0.5, got {alpha!r}")
    looks = seeds["looks"]
    whole = isinstance(looks, list) and looks and all(type(each) is int for each in looks)
    if not whole or sorted(set(looks)) != looks or looks[0] < 5:
        raise SpecError(f"seeds.looks must be rising numbers of seeds, 5 or more, got {looks!r}")
    if type(seeds["first"]) is not int or seeds["first"] < 0:
        raise SpecError(f"seeds.first must be a whole number from 0, got {seeds['first']!r}")
    if not str(metric["name"]).startswith("test/"):
        raise SpecError(
            f"metric.name must be of the test, such as test/acc, got {metric['name']!r}"
        )
    if metric["at"] not in ("last", "best"):
        raise SpecError(f"metric.at must be last or best (on validation), got {metric['at']!r}")
    if not isinstance(spec["controls"], list) or (
        wrong := [c for c in spec["controls"] if c not in CONTROLS]
    ):
        raise SpecError(f"controls are {', '.join(CONTROLS)}, got {wrong or spec['controls']!r}")


def _check_tuning(spec: dict[str, Any]) -> None:
    tune = spec["tune"]
    if tune is None:
        return
    if not isinstance(tune, dict) or set(tune) != {"grid", "seeds", "metric"}:
        raise SpecError(f"tune must be a mapping of grid, seeds and metric, got {tune!r}")
    if not str(tune["metric"]).startswith("val/"):
        raise SpecError(
            f"tune.metric must be of the validation, such as val/acc, got {tune['metric']!r}"
        )
    if not isinstance(tune["grid"], dict) or not all(
        isinstance(v, list) and v for v in tune["grid"].values()
    ):
        raise SpecError(f"tune.grid must be {{option: [values]}}, got {tune['grid']!r}")
    verdict = set(
        range(spec["seeds"]["first"], spec["seeds"]["first"] + spec["seeds"]["looks"][-1])
    )
    if not tune["seeds"] or (both := sorted(verdict & set(tune["seeds"]))):
        raise SpecError(
            f"tune.seeds {both or tune['seeds']} must be others than those of the verdict"
        )
    for name, options in spec["arms"].items():
        if fixed := sorted(options.keys() & tune["grid"].keys()):
            raise SpecError(
                f"arms.{name} fixes {fixed[0]}, which tune.grid varies for all arms alike"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def sha256(spec: dict[str, Any]) -> str:
    """Of a checked spec."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def lock(folder: Path, spec: dict[str, Any], amend: str = "") -> dict[str, Any]:
    """The lock of the study in `folder`: written at its first run, compared later.

    The lock holds the spec, its SHA-256, the commit and the time. The code of the project is copied
    to `code/`: the study runs from there, whatever happens to the repository.

    Args:
        folder: of the study.
        spec: checked.
        amend: why the spec was changed after the lock; every verdict is exploratory from then on.

    Raises:
        SpecError: the spec is not the locked one, or the lock was changed by hand.
    """
    path = folder / LOCK
    if not path.exists():
        copy_code(folder / "code")
        about = {"sha256": sha256(spec), "commit": commit(), "code": code(), "time": _now()}
        content = {**about, "amendments": [], "spec": spec}
        return write_lock(folder, content)
    known = read_lock(folder)
    if known["spec"] == spec:
        return known
    changed = [name for name in DEFAULTS if known["spec"][name] != spec[name]]
    if not amend:
        raise SpecError(
            f"{folder} holds another study: {', '.join(changed)} differ from {path}. Choose another "
            'folder (--dir), or change the question with --amend "why": its verdicts are then '
            "exploratory"
        )
    entry = {"why": amend, "time": _now(), "changed": {n: known["spec"][n] for n in changed}}
    amendments = [*known["amendments"], entry]
    return write_lock(
        folder, {**known, "sha256": sha256(spec), "amendments": amendments, "spec": spec}
    )


def read_lock(folder: Path) -> dict[str, Any]:
    """The lock of a study.

    Raises:
        SpecError: there is none, or it was changed by hand.
    """
    path = folder / LOCK
    try:
        known = yaml.safe_load(path.read_text())
        unchanged = sha256(known["spec"]) == known["sha256"]
    except FileNotFoundError as error:
        raise SpecError(f"{folder} holds no study: there is no {LOCK}") from error
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise SpecError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not unchanged:
        raise SpecError(f"{path} was changed by hand: its sha256 does not match. Put it back, or "
                        "start a new study in another folder")  # fmt: skip
    return known


def write_lock(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write the lock, whole."""
    with replacing(folder / LOCK) as unfinished:
        unfinished.write_text(yaml.safe_dump(content, sort_keys=False))
    return content


def copy_code(target: Path) -> None:
    """Copy the project's code and options to `target`, with the commit in a file."""
    unfinished = target.with_name("code.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    for part in (*CODE, "study", "bench", "configs", "messages.py"):
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, unfinished / part, ignore=ignored)
        elif source.is_file():
            shutil.copy2(source, unfinished / part)
    (unfinished / "COMMIT").write_text(commit())
    unfinished.replace(target)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
