"""What a study asks: read, checked, and locked before its first run."""

import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from activations.files import replacing
from callbacks.machine import ROOT, code, commit, now
from options import parse_yaml

LOCK = "spec.lock.yaml"
OFF = "off"  # of `compile`
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
HIDDEN = ("again", "planted")  # arms of the judge
# options that decide how much an arm is trained, on what, which network, and which epoch is tested
BUDGET = ("trainer.max_", "trainer.min_", "trainer.limit_", "trainer.overfit", "trainer.devices",
           "trainer.num_nodes", "trainer.accumulate", "trainer.fast_dev_run", "trainer.val_check",
           "trainer.check_val", "data", "checkpoint", "last_checkpoint", "model.backbone",
           "model.stem", "model.pretrained", "model.checkpoint_path")  # fmt: skip
# options that no study can have, and why
_REFUSED = {
    "ckpt_path": "every arm would go on with the network of that checkpoint: start from its "
    "weights with model.checkpoint_path",
    "trainer.max_time": "arms would be trained as far as the machine's load allows: give epochs or "
    "steps",
}
_PLACES = ("root", "cache_dir")  # where the same data lie
_FILES = ("checkpoint_path", "activation_from")  # what they hold decides, wherever they lie
_HELD = "_sha256"  # behind the name of such an option


class SpecError(ValueError):
    """A study that cannot be run as it is written."""


def read_spec(path: Path) -> dict[str, Any]:
    """The spec in a YAML file, with the content of its overlays and all defaults.

    Raises:
        SpecError: a field is unknown, missing or cannot give a verdict; the message names it.
    """
    return check(read_overlaid(path))


def read_overlaid(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with the content of the overlays that its `base` names."""
    found = read_yaml(path)
    base = found.get("base") or []
    if not isinstance(base, list):
        raise SpecError(f"base must be a list of files, got {base!r}")
    found["base"] = [_overlay(each, path.parent) for each in base]
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        found = parse_yaml(path.read_text())
    except FileNotFoundError as error:
        raise SpecError(f"no such file: {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise SpecError(f"{path} holds no mapping {{name: value}}")
    return found


def _overlay(name: Any, beside: Path) -> dict[str, Any]:
    """The options in an overlay of train.py, given by its path or already read."""
    if isinstance(name, dict):
        return name
    for folder in (Path(), beside, ROOT):
        if (file := folder / str(name)).is_file():
            return read_yaml(file)
    raise SpecError(f"base: no such file: {name}")


def check(spec: dict[str, Any]) -> dict[str, Any]:
    """`spec` with defaults.

    Raises:
        SpecError: it cannot give a verdict; the message names the field and the remedy.
    """
    _check_plain(spec, "")
    full = filled(spec, DEFAULTS, ("seeds", "metric"))
    for name, default in DEFAULTS.items():
        kind = type(default)
        if kind in (dict, list, str) and not isinstance(full[name], kind):
            word = {dict: "a mapping {name: value}", list: "a list", str: "a text"}[kind]
            raise SpecError(f"{name} must be {word}, got {full[name]!r}")
    _check_arms(full)
    _check_options(full)
    _check_numbers(full)
    _check_tuning(full)
    return full


def filled(
    spec: dict[str, Any], defaults: dict[str, Any], closed: tuple[str, ...]
) -> dict[str, Any]:
    """`spec` with defaults, also inside the mappings `closed`, which have no other names.

    Raises:
        SpecError: a name is unknown; the message tells the nearest.
    """
    for name in spec:
        if name not in defaults:
            near = difflib.get_close_matches(str(name), defaults, n=1)
            hint = f"; the nearest: {near[0]}" if near else f": choose from {', '.join(defaults)}"
            raise SpecError(f"unknown field {name!r}{hint}")
    full = {**defaults, **spec}
    for name in closed:
        if not isinstance(full[name], dict) or not full[name].keys() <= defaults[name].keys():
            raise SpecError(
                f"{name} must be a mapping of {' and '.join(defaults[name])}, got {full[name]!r}"
            )
        full[name] = {**defaults[name], **full[name]}
    return full


def _check_plain(value: Any, place: str) -> None:
    """Refuse what YAML makes of a name or a value that was meant to be a text."""
    if isinstance(value, dict):
        for name, each in value.items():
            if not isinstance(name, str):
                raise SpecError(
                    f"{place or 'the spec'} has the name {name!r}, which YAML reads as no text: "
                    "put it in quotes"
                )
            _check_plain(each, f"{place}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            _check_plain(each, f"{place}[{number}]")
    elif not isinstance(value, str | int | float | None):
        raise SpecError(
            f"{place}: YAML reads {value} as a {type(value).__name__}: put it in quotes"
        )
    elif isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{place} must be a finite number, got {value}")


def _check_arms(spec: dict[str, Any]) -> None:
    arms, cells = spec["arms"], spec["cells"]
    if len(arms) < 2:
        raise SpecError(f"arms: a verdict compares two or more, got {len(arms)}")
    for name in arms:
        if not re.fullmatch(r"[\w.,+()-]+( [\w.,+()-]+)*", name):
            raise SpecError(
                f"arm {name!r}: a name is of letters, digits, single spaces and . , + - _ ( )"
            )
        if name.rpartition(" ")[2] in (*CONTROLS, *HIDDEN):
            raise SpecError(
                f"arm {name!r} has the name of a control or of the judge: choose another"
            )
    files: dict[str, str] = {}
    for name in arms:
        if (same := files.setdefault(file_name(name).lower(), name)) != name:
            raise SpecError(f"arms {same!r} and {name!r} would have the same file: rename one")
    for name in (spec["baseline"], *spec["second_baselines"], *spec["published"]):
        if not isinstance(name, str) or name not in arms:
            raise SpecError(f"{name!r} is none of the arms: {', '.join(arms)}")
    _check_published(spec)
    if not cells:
        raise SpecError("cells: name at least one data set and backbone")
    for place, options in _places(spec):
        if not isinstance(options, dict):
            raise SpecError(f"{place} must be options {{name: value}}, got {options!r}")
    for names, group in (
        ([f"arms.{name}" for name in arms], arms.values()),
        ([f"cells[{number}]" for number in range(len(cells))], cells),
    ):
        known: dict[str, str] = {}
        for name, options in zip(names, group, strict=True):
            text = json.dumps(decides(options), sort_keys=True)
            if (same := known.setdefault(text, name)) != name:
                raise SpecError(
                    f"{same} and {name} are the same, or differ only in where their data lie: make "
                    "a study of each"
                )


def _check_published(spec: dict[str, Any]) -> None:
    """Each is {text, difference}; the difference one number, or one (or null) for each cell."""
    for name, found in spec["published"].items():
        if not isinstance(found, dict) or not found.keys() <= {"text", "difference"}:
            raise SpecError(f"published.{name} must be {{text, difference}}, got {found!r}")
        value, cells = found.get("difference"), len(spec["cells"])
        values = value if isinstance(value, list) else [value] * cells
        if len(values) != cells or not all(v is None or _is_number(v) for v in values):
            raise SpecError(
                f"published.{name}.difference must be a number, or a list of {cells}, one for each "
                f"cell, got {value!r}"
            )


def _check_options(spec: dict[str, Any]) -> None:
    """Refuse what makes a comparison unfair, wherever it is written."""
    settings = written_out(spec["tune"])
    varied = set[str]().union(*map(flatten, settings))
    for name, options in spec["arms"].items():
        if fixed := sorted(flatten(options).keys() & varied):
            raise SpecError(
                f"arms.{name} fixes {fixed[0]}, which tune.grid varies for all arms alike"
            )
    for place, options in [*_places(spec), *(("tune.grid", each) for each in settings)]:
        flat = flatten(options)
        if "EarlyStopping" in str(options):
            raise SpecError(f"{place}: early stopping gives arms unequal budgets: leave it out")
        if "test" in str(flat.get("checkpoint.monitor", "")):
            raise SpecError(
                f"{place}: checkpoint.monitor would choose the best epoch on the test set: use val/"
            )
        for name, why in _REFUSED.items():
            if flat.get(name) is not None:
                raise SpecError(f"{place}: {name}: {why}")
        if "seed_everything" in flat and not place.startswith("base"):
            raise SpecError(f"{place}: seed_everything is set by `seeds`")
        if place.startswith(("arms", "tune")) and (
            unequal := [n for n in flat if n in spec["budget"] or n.startswith(BUDGET)]
        ):
            raise SpecError(
                f"{place}: {unequal[0]} would give it another budget or other data: arms may "
                "differ in the activation and in how it is trained alone"
            )
    for number, cell in enumerate(spec["cells"]):
        arms = (_leaves(each) for each in spec["arms"].values())
        by = {"every arm": set.intersection(*arms), "budget": _leaves(spec["budget"])}
        by["tune.grid"] = set[str]().union(*map(_leaves, settings))
        for place, names in by.items():
            if vain := sorted(_leaves(cell) & names):
                raise SpecError(
                    f"cells[{number}]: {vain[0]} has no effect, since {place} sets it: leave it out"
                )
    for number, cell in enumerate(spec["cells"]):
        for setting in settings or [{}]:
            _check_lost(spec, number, setting)
        _check_budget(number, [*spec["base"], cell, spec["budget"]])


def _places(spec: dict[str, Any]) -> list[tuple[str, Any]]:
    """Each part of a spec that holds options of train.py, with its name."""
    return [
        *((f"base[{number}]", each) for number, each in enumerate(spec["base"])),
        *((f"arms.{name}", each) for name, each in spec["arms"].items()),
        *((f"cells[{number}]", each) for number, each in enumerate(spec["cells"])),
        ("budget", spec["budget"]),
    ]


def _leaves(options: dict[str, Any]) -> set[str]:
    """The names of options that are no mappings."""
    return {name for name, each in flatten(options).items() if not isinstance(each, dict)}


def written_out(tune: Any) -> list[dict[str, Any]]:
    """Every setting of the grid of `tune`; none without a grid of lists."""
    grid = tune.get("grid") if isinstance(tune, dict) else None
    if not isinstance(grid, dict) or not all(isinstance(each, list) for each in grid.values()):
        return []
    return [dict(zip(grid, each, strict=True)) for each in itertools.product(*grid.values())]


def _check_lost(spec: dict[str, Any], cell: int, setting: dict[str, Any]) -> None:
    """Refuse a mapping that would hide options of an earlier part, or that they would win over.

    A mapping with `class_path`, or one that is a value by itself, means all of it.
    """
    for arm, options in spec["arms"].items():
        found: dict[str, Any] = {}
        for place, each in (("cells", spec["cells"][cell]), ("budget", spec["budget"]),
                            ("tune.grid", setting), (f"arms.{arm}", options)):  # fmt: skip
            for name in sorted(found.keys() & each.keys()):
                whole = name.endswith(("activation_by_site", "backbone_kwargs"))
                if whole or not isinstance(each[name], dict) or "class_path" in each[name]:
                    continue
                if lost := sorted(_leaves({name: found[name]}) - _leaves({name: each[name]})):
                    raise SpecError(
                        f"{place}: {name} would take the place of another mapping, and {lost[0]} "
                        f"would be lost: write options with dots, such as {lost[0]}"
                    )
            for name in sorted(n for n in each if isinstance(each[n], dict)):
                if hidden := sorted((_leaves({name: each[name]}) - {name}) & found.keys()):
                    raise SpecError(
                        f"{place}: {hidden[0]} in the mapping {name} has no effect, since an "
                        "earlier part sets it by itself: write it with dots, too"
                    )
            found |= each


def _check_budget(cell: int, options: list[dict[str, Any]]) -> None:
    """Refuse a training that does not begin, or does not end."""
    found: dict[str, Any] = {}
    for each in options:
        found |= flatten(each)
    for name, other in itertools.permutations(("trainer.max_epochs", "trainer.max_steps")):
        usual = int(other == "trainer.max_epochs")  # train.py has a number of epochs by default
        value, limit = found.get(name), found.get(other, usual)
        ends = type(limit) is int and limit > 0
        whole = type(value) is int and (value > 0 or (value == -1 and ends))
        if value is not None and not whole:
            raise SpecError(f"cells[{cell}]: {name} must be a whole number from 1, got {value!r}")


def flatten(options: dict[str, Any]) -> dict[str, Any]:
    """Options with dotted names, also those that are written as mappings in mappings.

    `init_args` in a name is left out: train.py takes `model.optimizer.init_args.lr` for
    `model.optimizer.lr`.
    """
    flat: dict[str, Any] = {}
    for written, value in options.items():
        name = written.replace(".init_args", "")
        flat[name] = value
        if isinstance(value, dict):
            nested = value.get("init_args")
            inside = {**value, **nested} if isinstance(nested, dict) else value
            flat |= {f"{name}.{inner}": each for inner, each in flatten(inside).items()}
    return flat


def _check_numbers(spec: dict[str, Any]) -> None:
    margin, alpha, seeds, metric = (spec[name] for name in ("margin", "alpha", "seeds", "metric"))
    if not _is_number(margin) or margin <= 0:
        raise SpecError(f"margin must be a number above 0 (points), got {margin!r}")
    if not _is_number(alpha) or not 0 < alpha < 0.5:
        raise SpecError(f"alpha must be a number between 0 and 0.5, got {alpha!r}")
    looks = seeds["looks"]
    whole = isinstance(looks, list) and looks and all(type(each) is int for each in looks)
    if not whole or sorted(set(looks)) != looks or looks[0] < 5:
        raise SpecError(f"seeds.looks must be rising numbers of seeds, 5 or more, got {looks!r}")
    if type(seeds["first"]) is not int or not 0 <= seeds["first"] < 2**32 - looks[-1]:
        raise SpecError(f"seeds.first must be a whole number from 0, got {seeds['first']!r}")
    if not str(metric["name"]).startswith("test/"):
        raise SpecError(
            f"metric.name must be of the test, such as test/acc, got {metric['name']!r}"
        )
    if metric["at"] not in ("last", "best"):
        raise SpecError(f"metric.at must be last or best (on validation), got {metric['at']!r}")
    for name in ("controls", "second_baselines"):
        _check_different(name, spec[name])
    if wrong := [each for each in spec["controls"] if each not in CONTROLS]:
        raise SpecError(f"controls are {', '.join(CONTROLS)}, got {wrong}")


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
    grid, seeds = tune["grid"], tune["seeds"]
    if (
        not isinstance(grid, dict)
        or not grid
        or not all(isinstance(v, list) and v for v in grid.values())
    ):
        raise SpecError(f"tune.grid must be {{option: [values]}}, got {grid!r}")
    for name, values in grid.items():
        _check_different(f"tune.grid.{name}", values)
    whole = isinstance(seeds, list) and all(type(each) is int for each in seeds)
    if not whole or not seeds or not all(0 <= each < 2**32 for each in seeds):
        raise SpecError(f"tune.seeds must be a list of whole numbers from 0, got {seeds!r}")
    _check_different("tune.seeds", seeds)
    first, last = spec["seeds"]["first"], spec["seeds"]["first"] + spec["seeds"]["looks"][-1] - 1
    if both := sorted({each for each in seeds if first <= each <= last}):
        raise SpecError(
            f"tune.seeds {both} belong to the verdict ({first} to {last}): tune with others"
        )


def _check_different(name: str, values: list[Any]) -> None:
    if twice := [each for each in values if values.count(each) > 1]:
        raise SpecError(f"{name} has {twice[0]!r} twice: leave out one")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def file_name(arm: str) -> str:
    """The name of an arm in the name of a file."""
    return arm.replace(" ", "_")


def held(value: Any) -> Any:
    """Options with the SHA-256 of each file of weights that they name, as `<option>_sha256`.

    A study goes on with the same weights alone, wherever they lie.
    """

    def hashed(options: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, each in options.items():
            if name.rpartition(".")[2] in _FILES and Path(str(each)).is_file():
                with Path(each).open("rb") as file:
                    found[f"{name}{_HELD}"] = hashlib.file_digest(file, "sha256").hexdigest()
        return options | found

    return _changed(value, hashed)


def for_train(value: Any) -> Any:
    """Options as train.py takes them: without the SHA-256 of files."""
    return _changed(value, lambda o: {n: each for n, each in o.items() if not n.endswith(_HELD)})


def decides(value: Any) -> Any:
    """What decides the result of a run: options without the places of data and weights."""
    return _changed(value, lambda o: {n: each for n, each in o.items() if not _place(n, o)})


def placeless(value: Any) -> Any:
    """Options with DIR and FILE for the places, which tell of one machine alone."""
    return _changed(value, lambda o: {n: (each and _place(n, o)) or each for n, each in o.items()})


def _changed(value: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """`value` after a change of each mapping in it."""
    if isinstance(value, dict):
        return {name: _changed(each, change) for name, each in change(value).items()}
    return [_changed(each, change) for each in value] if isinstance(value, list) else value


def _place(name: str, options: dict[str, Any]) -> str:
    """The word for an option that is a place alone; "" for others."""
    folder = name.rpartition(".")[2] in _PLACES
    return "DIR" if folder else "FILE" if f"{name}{_HELD}" in options else ""


def sha256(spec: dict[str, Any]) -> str:
    """Of a checked spec, without the places of data."""
    return hashlib.sha256(json.dumps(decides(spec), sort_keys=True).encode()).hexdigest()


def lock(
    folder: Path,
    spec: dict[str, Any],
    amend: str = "",
    *,
    begun: bool = True,
    compiled: str = OFF,
) -> dict[str, Any]:
    """The lock of the study in `folder`: written at its first run, compared later.

    The lock holds the spec, its SHA-256, the commit, the hash of the code, and the time. Other
    places of the same data are no change of the question.

    Args:
        folder: of the study.
        spec: checked.
        amend: why the spec was changed after the lock; every verdict is exploratory from then on.
        begun: whether a run has ended; before that, a spec may be changed.
        compiled: what `compile: auto` is in every run, by :func:`study.arms.check_arms`; a lock
            that names nothing is of runs without compilation.

    Raises:
        SpecError: the spec is not the locked one, or the lock was changed by hand.
    """
    path = folder / LOCK
    if not path.exists():
        about = {"sha256": sha256(spec), "commit": commit(), "code": code(), "time": now()}
        about |= {"compiled": compiled} if compiled != OFF else {}
        return write_lock(folder, {**about, "amendments": [], "spec": spec})
    known = read_lock(folder)
    if known["sha256"] == sha256(spec):
        return known if known["spec"] == spec else write_lock(folder, {**known, "spec": spec})
    if not begun:
        path.unlink()
        return lock(folder, spec, compiled=compiled)
    old = known["spec"]
    changed = [name for name in spec if decides(old.get(name)) != decides(spec[name])]
    if not amend:
        other = " (a file holds other weights)"
        told = [
            name + other * (for_train(old.get(name)) == for_train(spec[name])) for name in changed
        ]
        raise SpecError(
            f"{folder} holds another study: {', '.join(told)} differ from {path}. Choose "
            'another folder (--dir), or change the question with --amend "why": its verdicts are '
            "then exploratory"
        )
    entry = {"why": amend, "time": now(), "changed": {name: old[name] for name in changed}}
    amendments = [*known["amendments"], entry]
    return write_lock(
        folder, {**known, "sha256": sha256(spec), "amendments": amendments, "spec": spec}
    )


def read_lock(folder: Path, wanted: str = "") -> dict[str, Any]:
    """The lock of a study or of a search, whichever has the field `wanted`.

    Raises:
        SpecError: there is none, it is the other's, or it was changed by hand.
    """
    path = folder / LOCK
    if not path.is_file():
        raise SpecError(f"{folder} holds no study or search: there is no {LOCK}")
    known = read_yaml(path)
    parts = {"sha256", "commit", "code", "time", "amendments", "spec"}
    if known.keys() - {"compiled"} != parts or not isinstance(known["spec"], dict):
        raise SpecError(f"{path} is no lock of a study: it needs {', '.join(sorted(parts))}")
    if wanted and wanted not in known["spec"]:
        kind = "search" if "space" in known["spec"] else "study"
        raise SpecError(f"{folder} holds a {kind}: python -m {kind} status {folder}")
    if sha256(known["spec"]) != known["sha256"]:
        raise SpecError(f"{path} was changed by hand: its sha256 does not match. Put it back, or "
                        "start a new study in another folder")  # fmt: skip
    return known


def write_lock(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write the lock, whole."""
    with replacing(folder / LOCK) as unfinished:
        unfinished.write_text(yaml.safe_dump(content, sort_keys=False))
    return content
