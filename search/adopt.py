"""Makes a function that was found a class of this project, and writes the study that judges it."""

import keyword
import re
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import activations
from activations import Formula
from activations.files import replacing
from activations.functions.formula import OPERATORS, Tree, evaluate, parse
from callbacks.machine import ROOT
from study.report import mean_deviation
from study.spec import SpecError, check, flatten

from .evolution import EVOLVED, Member, Search

# where the study of an adopted function trains, but where it was searched
PLACES = {"CIFAR10": "resnet20", "CIFAR100": "resnet20", "MITBIH": "timm/resnet34"}
_TRAINED = ("model.optimizer", "model.lr_scheduler", "trainer.")  # options of a cell
LEARNED_BY = 0.05  # how far tests/cases.py moves a parameter


def adopt(search: Search, name: str, number: int | None = None, root: Path = ROOT) -> str:
    """Write the class, its name, its row among the tests, and a study; the lines to print.

    Args:
        search: that has ended.
        name: of the class.
        number: of the candidate; by default the winner.
        root: of the repository.

    Raises:
        SpecError: the name is taken or is none, the search has not ended, or the function is known.
    """
    member = _chosen(search, number)
    if (known := member.candidate.known) and not known.endswith("at the start"):
        raise SpecError(f"#{member.number}, {member.candidate.formula}, is {known}, which is there")
    file = root / f"activations/functions/{name.lower()}.py"
    spec = root / f"configs/study/{name.lower()}.yaml"
    _check_name(name, file, spec)
    rows = _rows(member)
    texts = {
        file: _class(search, member, name),
        (init := root / "activations/__init__.py"): _named(init.read_text(), name),
        (cases := root / "tests/cases.py"): _row(cases.read_text(), name, member, rows),
        (readme := root / "README.md"): _listed(readme.read_text(), name, member),
        spec: _study(search, member, name),
    }
    with ExitStack() as all_or_none:
        for path, text in texts.items():
            all_or_none.enter_context(replacing(path)).write_text(text)
    study = f"{spec.relative_to(root)} --set data.root=DIR"
    return "\n".join([
        f"{name}: #{member.number}, {member.candidate.formula}",
        *(f"written: {path.relative_to(root)}" for path in texts),
        "next: python -m ruff format . && python docs/table.py",
        f"      python -m pytest tests/activations -k {name}",
        f"      python -m study plan {study}",
        f"      python -m study run {study}",
    ])  # fmt: skip


def _chosen(search: Search, number: int | None) -> Member:
    members = search.streams[EVOLVED].members
    if number is not None:
        if not 0 <= number < len(members):
            raise SpecError(f"--number {number}: the search has the candidates 0 to "
                            f"{len(members) - 1}")  # fmt: skip
        return members[number]
    if search.pending:
        raise SpecError(
            f"{search.folder} has no winner yet: python -m search run {search.folder}, or name a "
            "candidate with --number"
        )
    if (winner := search.winner()) is None:
        raise SpecError(f"{search.folder} has found nothing: every training diverged or failed")
    return winner


def _check_name(name: str, *files: Path) -> None:
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) or keyword.iskeyword(name):
        raise SpecError(
            f"{name!r} is no name of a class: a capital, then letters and digits, such as MyLU"
        )
    if name.lower() in {
        each.lower() for each in [*activations.__all__, *dir(torch.nn), *OPERATORS]
    }:
        raise SpecError(f"the name {name} is taken: choose another")
    if there := [file for file in files if file.exists()]:
        raise SpecError(f"the name {name} is taken, by {there[0]}: choose another")


# ---- the class


def _arguments(member: Member) -> dict[str, str]:
    """Constant in the formula of the candidate -> its shorter name in the class."""
    stems = [re.sub(r"\d+$", "", constant) for constant in member.candidate.constants]
    return {
        constant: stem if stems.count(stem) == 1 and stem not in ("x", "y") else constant
        for constant, stem in zip(member.candidate.constants, stems, strict=True)
    }


def _formula(member: Member) -> str:
    """The formula with the class's names."""
    text = member.candidate.formula
    for old, new in _arguments(member).items():
        text = re.sub(rf"\b{old}\b", new, text)
    return text


def _class(search: Search, member: Member, name: str) -> str:
    values = dict(
        zip(_arguments(member).values(), member.candidate.constants.values(), strict=True)
    )
    arguments = "".join(f"        {each}: float = {value},\n" for each, value in values.items())
    rest, kind = ("channels", "Channels") if values else ("options", "Options")
    pairs = ", ".join(f'"{each}": {each}' for each in values)
    given = f", {{{pairs}}}" if values else ""
    described = "".join(f"        {each}: initial value.\n" for each in values)
    attributes = "".join(f"        {each}: (num_parameters,), learned, not decayed.\n"
                         for each in values)  # fmt: skip
    attributes = f"    Attributes:\n{attributes}\n" if values else ""
    sizes = "" if values else "    size_arguments = ()\n"
    starts = f" with {', '.join(f'{k} = {v:g}' for k, v in values.items())}" if values else ""
    known = member.candidate.known.removesuffix(" at the start")
    return f'''"""{name}: found by `python -m search`."""

from typing import Unpack

from activations.activation import {kind}

from .formula import Formula

{_constant(_formula(member))}


class {name}(Formula):
    r"""Found by evolution. {"Learned" if values else "Fixed"}.

    .. math::
{_wrapped(f"f(x) = {latex(parse(_formula(member)))}", 8)}

{_wrapped(found(search, member), 4)}

{attributes}    Args:
{described}        {rest}: see :class:`activations.{kind}`.

    Shape:
        {"(N, C, *) -> same; any shape when `num_parameters` is 1." if values else "any -> same."}

    Initialisation:
        {f"{known}." if known else f"the formula{starts}."}

    Reference:
        none: it is this project's own.
    """

    variants = ({{}},)
{sizes}
    def __init__(
        self,
{arguments}        **{rest}: Unpack[{kind}],
    ) -> None:
        super().__init__(FORMULA{given}, **{rest})
'''


def found(search: Search, member: Member) -> str:
    """How it was found, in one paragraph."""
    spec = search.spec
    space = spec["space"] if isinstance(spec["space"], str) else "a space of its own"
    cells = "; ".join(f"{c.get('data')}, {c.get('model.backbone')}" for c in spec["cells"])
    final = search.final_values() if not search.pending else {}
    values = final.get(member.candidate.formula)
    tested = ""
    if values is not None and np.isfinite(values).all():
        shown = -values if spec["metric"].endswith("loss") else 100 * values
        tested = (
            f", {spec['metric']} {mean_deviation(shown)} over {len(values)} seeds after "
            f"{spec['halving']['epochs'][-1]} epochs, by which it was chosen"
        )
    text = (
        f"Candidate {member.number} of the search {search.folder.resolve().name} in {space} "
        f"({cells}; seed {spec['seed']}): {member.how} in generation {member.generation + 1}"
        f"{tested}. What it is worth tells a study with other seeds and data."
    )
    return re.sub(r"[^\w .,:;()+/-]", "_", text)  # it becomes code


def _wrapped(text: str, indent: int) -> str:
    space = " " * indent
    return textwrap.fill(text, 100, initial_indent=space, subsequent_indent=space,
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip


def _constant(formula: str) -> str:
    """The formula as a constant of a module, in several lines if it is long."""
    if len(formula) < 85:
        return f'FORMULA = "{formula}"'
    parts = textwrap.wrap(formula, 85, drop_whitespace=False, break_on_hyphens=False)
    return "\n".join(["FORMULA = (", *(f'    "{part}"' for part in parts), ")"])


def latex(tree: Tree, outside: int = 0) -> str:
    """A tree in LaTeX."""
    if isinstance(tree, str):
        return re.sub(r"^([a-z]{2,})(\d*)$", r"\\\1_{\2}", tree).replace("_{}", "")
    if not isinstance(tree, tuple):
        number, _, power = f"{tree:g}".partition("e")
        number += rf" \cdot 10^{{{int(power)}}}" if power else ""
        number = number.removeprefix(r"1 \cdot ")
        return number if tree >= 0 or not outside else f"({number})"
    name, *parts = tree
    match name:
        case "/":  # only a power needs brackets around it
            own, text = 3, rf"\frac{{{latex(parts[0])}}}{{{latex(parts[1])}}}"
        case "**":
            own, text = 3, f"{{{latex(parts[0], 4)}}}^{{{latex(parts[1])}}}"
        case "exp":
            own, text = 3, f"e^{{{latex(parts[0])}}}"
        case "abs":
            return rf"\left|{latex(parts[0])}\right|"
        case "sqrt":
            return rf"\sqrt{{{latex(parts[0])}}}"
        case "neg":
            own, text = 2, f"-{latex(parts[0], 3)}"
        case "*":
            own, text = 2, rf"{latex(parts[0], 2)}\, {latex(parts[1], 3)}"
        case "+" | "-":
            own, text = 1, f"{latex(parts[0], 1)} {name} {latex(parts[1], 2)}"
        case _:
            inner = ", ".join(map(latex, parts))
            return rf"\mathrm{{{name}}}({inner})"
    return f"({text})" if own < outside else text


# ---- its name, its row among the tests, its study


def _named(text: str, name: str) -> str:
    """`activations/__init__.py` with the new name."""
    line = f"from .functions.{name.lower()} import {name}\n"
    lines = text.splitlines(keepends=True)
    after = [
        k for k, each in enumerate(lines) if each.startswith("from .functions.") and each < line
    ]
    lines.insert(max(after, default=0) + 1, line)
    begin = lines.index("__all__ = [\n")
    names = [
        k for k in range(begin + 1, lines.index("]\n", begin)) if lines[k].strip(' ",\n') < name
    ]
    lines.insert(max(names, default=begin) + 1, f'    "{name}",\n')
    return "".join(lines)


def _row(text: str, name: str, member: Member, rows: str) -> str:
    """`tests/cases.py` with the new row."""
    start = text.index("CASES = [\n")
    end = text.index("\n]\n", start)
    return f"{text[:end]}\n    {rows.replace('NAME', name)}{text[end:]}"


def _rows(member: Member) -> str:
    """The row among the tests: arguments, reference, kinks, and how far it is finite."""
    arguments = _arguments(member)
    values = {new: round(member.candidate.constants[old] * 0.8 - 0.1 * k, 3)
              for k, (old, new) in enumerate(arguments.items())}  # fmt: skip
    formula = _formula(member)
    moved = {name: value + LEARNED_BY for name, value in values.items()}
    parts = [f"A.NAME, {values!r}, written({formula!r})".replace("'", '"')]
    if not values:
        parts.append("per_channel=False")
    if bends := kinks(formula, moved):
        parts.append(f"kinks=({', '.join(f'{each:.6g}' for each in bends)},)")
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    found = {dtype: finite_up_to(formula, moved, dtype) for dtype in dtypes}
    table = ", ".join(f"{dtype}: {16 * largest:g}" for dtype, largest in found.items()
                      if largest < torch.finfo(dtype).max / 16)  # fmt: skip
    if table:
        parts.append(f"largest=lambda dtype: {{{table}}}.get(dtype, torch.finfo(dtype).max)")
    if not all(finite_at_the_end(formula, moved, dtype) for dtype in dtypes[1:]):
        parts.append("to_the_end=False")
    return f"Case({', '.join(parts)}),"


def kinks(formula: str, constants: dict[str, float]) -> list[float]:
    """Where the slope jumps: between numbers where an operator changes its branch."""
    x = torch.linspace(-16, 16, 32001, dtype=torch.float64)
    known = {"x": x, **{name: torch.tensor(v, dtype=x.dtype) for name, v in constants.items()}}
    found = set[float]()
    for difference in _branches(parse(formula)):
        y = evaluate(difference, known).expand_as(x)
        at = ((y[:-1] * y[1:] < 0) | ((y[1:] == 0) & (y[:-1] != 0))).nonzero().flatten()
        zeros = x[at] - y[at] * (x[at + 1] - x[at]) / (y[at + 1] - y[at])
        found |= {round(zero, 6) + 0.0 for zero in zeros.tolist()}
    return sorted(found)


def _branches(tree: Tree) -> Iterator[Tree]:
    """Trees that are 0 where an operator of a tree changes its branch."""
    if not isinstance(tree, tuple):
        return
    name, *parts = tree
    bounds = {"abs": (0,), "relu": (0,), "elu": (0,), "selu": (0,), "relu6": (0, 6),
              "softsign": (0,), "hardtanh": (-1, 1), "hardsigmoid": (-3, 3)}  # fmt: skip
    if name in ("max", "min"):
        yield "-", parts[0], parts[1]
    for bound in bounds.get(name, ()):
        yield "-", parts[0], float(bound)
    for part in parts:
        yield from _branches(part)


def finite_up_to(formula: str, constants: dict[str, float], dtype: torch.dtype) -> float:
    """The largest power of 2 up to which values and gradients are finite; at most max / 16."""
    limit = torch.finfo(dtype).max / 16
    steps = 2.0 ** torch.arange(-8, int(np.log2(limit)) + 1, dtype=torch.float64)
    steps = torch.cat([steps, torch.tensor([limit], dtype=torch.float64)])
    bad = (~_finite(formula, constants, steps.to(dtype))).nonzero().flatten()
    return float(steps[bad[0] - 1] / 2 if len(bad) else limit)


def finite_at_the_end(formula: str, constants: dict[str, float], dtype: torch.dtype) -> bool:
    """Whether values and gradients are finite at the largest number, if it can hold the value."""
    end = torch.tensor([torch.finfo(dtype).max], dtype=torch.float64)
    true = Formula(formula, constants, dtype=torch.float64)(torch.cat([end, -end])).abs()
    return not (true <= end).all() or bool(_finite(formula, constants, end.to(dtype)).all())


def _finite(formula: str, constants: dict[str, float], steps: torch.Tensor) -> torch.Tensor:
    """Whether values and gradients are finite at each of `steps` and at its negative."""
    module = Formula(formula, constants).to(steps.dtype)
    good = torch.ones(len(steps), dtype=torch.bool)
    for sign in (1, -1):
        x = (sign * steps).requires_grad_()
        y = module(x)
        (slope,) = torch.autograd.grad(y.sum() / 64, x, retain_graph=True)
        good &= y.isfinite() & slope.isfinite()
        for k in range(len(steps) if constants else 0):
            grads = torch.autograd.grad(y[k] / 64, list(module.parameters()), retain_graph=True)
            good[k] &= all(bool(grad.isfinite().all()) for grad in grads)
    return good


def _listed(text: str, name: str, member: Member) -> str:
    """The README with the new name in its row."""
    row = "| learned | " if member.candidate.constants else "| fixed | "
    return text.replace(row, f"{row}`{name}` ", 1)


def _merged(options: list[dict[str, Any]]) -> dict[str, Any]:
    """Options with dotted names; later ones win."""
    found: dict[str, Any] = {}
    for name, value in (pair for each in options for pair in flatten(each).items()):
        if not isinstance(value, dict):  # another class has other options
            found = {n: x for n, x in found.items() if not n.startswith(f"{name}.")}
        found[name] = value
    return found


def _study(search: Search, member: Member, name: str) -> str:
    """A spec: the function against known ones, on seeds and data that the search has not seen."""
    spec = search.spec
    given = [_merged([*spec["base"], cell]) for cell in spec["cells"]]
    used = {str(each.get("data.class_path", each.get("data"))).rpartition(".")[2] for each in given}
    # one data set alone, so that --set data.root=DIR names its folder
    data = next((each for each in PLACES if each not in used), None)
    if data is None:
        raise SpecError(f"the search has used {', '.join(PLACES)}: no other data are known for a "
                        "study; write its spec yourself")  # fmt: skip
    own: dict[str, object] = {"model.activation": name}
    if member.candidate.constants and spec["constants"] != "site":
        own["model.share"] = spec["constants"]
    arms = {"ReLU": {"model.activation": "torch.nn.ReLU"},
            "SiLU": {"model.activation": "torch.nn.SiLU"}}  # fmt: skip
    arms |= {f"EELU-{k}": {"model.activation": "EELU", "model.activation.variant": k}
             for k in range(1, 5)}  # fmt: skip
    rate = given[0].get("model.optimizer.lr")
    rates = [factor * float(rate) for factor in (0.5, 1, 2)] if rate else []
    grid = {"model.optimizer.lr": rates}
    tune = {"grid": grid, "seeds": [1, 2], "metric": "val/acc"} if rates else None
    plain = {
        name.replace(".init_args", "").removesuffix(".class_path"): value
        for name, value in flatten(spec["cells"][0]).items()
        if name.startswith(_TRAINED) and not isinstance(value, dict)
    }
    trained = {n: each for n, each in plain.items() if not n.startswith(("trainer.max_", *grid))}
    first = max(1000, *spec["finalists"]["seeds"], spec["seed"]) + 1000
    content = {
        "question": f"Is {name}, found by a search, better than ReLU on data that it was not "
                    "searched on?",
        "base": spec["base"], "arms": {**arms, name: own}, "second_baselines": ["SiLU"],
        "cells": [{"data": data, "model.backbone": PLACES[data], **trained}],
        "seeds": {"first": first, "looks": [5, 8, 12, 20]}, "margin": 0.3,
        "budget": {"trainer.max_epochs": 30},
        "tune": tune,
    }  # fmt: skip
    check(content)
    return (
        f"# {name} = {member.candidate.formula}: written by python -m search adopt, before any "
        "result on these data.\n"
        f"# python -m study run configs/study/{name.lower()}.yaml --set data.root=DIR\n"
        + yaml.safe_dump(content, sort_keys=False, width=120)
    )
