"""`python -m study`: many runs, one verdict."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from callbacks.machine import ROOT

from .packed import read_packed, take
from .spec import SpecError, check, held, read_lock, read_spec
from .words import counted

ROOM = Path("studies")
TYPED = ("data", "root", "backbone", "activations", "epochs", "looks", "margin")


def main(args: list[str] | None = None) -> int:
    """Run the command line; the exit code: 0, or 2 for a mistake in it or in the study."""
    parser = argparse.ArgumentParser(
        "python -m study", description="Many runs of train.py, and one verdict on each activation."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, does: Callable[[Any], int | None], text: str, folder: str | None = "one"):
        each = commands.add_parser(name, help=text)
        each.set_defaults(does=does)
        if folder:
            each.add_argument("folder", type=Path, nargs="?" if folder == "optional" else None)
        return each

    _add_run(add("run", _run, "train what is missing, and print the verdict", None))
    _add_spec(add("plan", _plan, "runs, hours, and what each look can tell", None))
    add("status", _status, "what is done, and what is left")
    each = add("report", _report, "write the report again")
    each.add_argument("--formats", nargs="+", default=["md", "html", "latex"])
    each.add_argument("--packed", action="store_true", help="of results/studies/<name>")
    add("pack", _pack, "write the finished results, small, into results/studies")
    each = add("slurm", _slurm, "print a SLURM array script for the runs that come next")
    each.add_argument("--threads", type=_positive, default=1, help="of the CPU, for each run")
    add_jobs(each := add("work", _work, "do the prepared runs on this machine"))
    each.add_argument("run", nargs="?", type=int, help="number of one run, from 0")
    each = add("cost", _cost, "measure the time of a training step of each arm, in turns")
    each.add_argument("--threads", type=_positive, default=1, help="of the CPU")
    add_jobs(each := add("judge", _judge, "how often such a study is wrong", "optional"))
    each.add_argument("--train", action="store_true", help="train hidden arms, too")
    each.set_defaults(on="local")
    each = add("publish", _publish, "make docs/verdicts.md from all packed studies", None)
    each.add_argument("--out", type=Path, default=ROOT / "docs", help="the folder of the page")
    add("findings", _findings, "draw what the functions of all packed studies learned", None)
    each = add("table", _table, "one table of all runs in a folder")
    each.add_argument("--out", type=Path, help="a CSV file; by default the table is printed")
    options = parser.parse_args(args)
    try:
        return options.does(options) or 0
    except (SpecError, OSError, ValueError) as error:
        if os.environ.get("SUPPLE_TRACEBACK"):
            raise
        sys.stderr.write(f"python -m study: error: {error}\n")
        return 2


def _add_spec(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("spec", type=Path, nargs="?", help="a YAML file, or the folder of a study")
    add("--data", help="without a file: the data set")
    add("--root", help="its folder")
    add("--backbone", help="by default resnet8")
    add(
        "--activations", nargs="+", action="extend", help="compared with ReLU; SiLU is always there"
    )
    add("--epochs", type=int, help="by default 30")
    add("--looks", type=int, nargs="+", action="extend", help="by default 5 8 12 20")
    add("--margin", type=float, help="points, by default 0.3")
    add("--dir", type=Path, help="folder of the study; by default studies/<name>")
    add("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
        help="options of all cells, such as data.root=DIR")  # fmt: skip


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_spec(parser)
    parser.add_argument("--amend", default="", help="why the locked question is changed")
    parser.add_argument("--packed", action="store_true",
                        help="go on from results/studies/<name>, by its code")  # fmt: skip
    parser.add_argument("--on", default="local",
                        help="local; Ray: auto or an address; slurm")  # fmt: skip
    add_jobs(parser)


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """The options of whatever trains runs on this machine."""
    parser.add_argument("--jobs", type=_positive,
                        help="runs at a time; by default one a GPU, or a core")  # fmt: skip
    parser.add_argument("--threads", type=_positive, default=1, help="of the CPU, for each run")
    parser.add_argument("--minutes", type=float, default=math.inf,
                        help="start no run that would end later")  # fmt: skip


def _positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number from 1, got {text}")
    return int(text)


def asked(options: Any) -> tuple[Path, dict[str, Any]]:
    """The study's folder, and the spec that the command line asks for."""
    given: Path | None = options.spec
    vain = [name for name in TYPED if given and getattr(options, name, None) is not None]
    vain += ["dir"] if given and given.is_dir() and options.dir else []
    if vain:
        raise SpecError(
            f"--{vain[0]} has no effect beside {given}: leave it out, or change the file"
        )
    if given and given.is_dir():
        folder, spec = given, read_lock(given, "arms")["spec"]
    elif given:
        spec, folder = read_spec(given), options.dir or _room(given.stem)
    elif options.data and options.activations:
        words = [options.data, options.backbone or "resnet8", *options.activations]
        spec, folder = typed(options), options.dir or _room("-".join(words))
    else:
        raise SpecError("name a spec, or give --data and --activations: python -m study run --help")
    set_fields(spec["cells"], options.set)
    return folder, held(check(spec) if options.set else spec)


def _room(name: str) -> Path:
    return ROOM / re.sub(r"[^\w.-]", "_", name)


def set_fields(cells: list[dict[str, Any]], given: list[str]) -> None:
    """Put the fields of `--set` into all cells, and make places absolute."""
    for each in given:
        field, equals, value = each.partition("=")
        if not equals:
            raise SpecError(f"--set {each!r} is no FIELD=VALUE, such as data.root=DIR")
        try:
            known = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SpecError(
                f"--set {each!r}: {value!r} is no YAML; a text with such signs is quoted twice, "
                f"""'{field}="{value}"'"""
            ) from error
        for cell in cells:
            cell[field] = known
    for cell in cells:
        for name in ("data.root", "model.checkpoint_path"):
            if isinstance(place := cell.get(name), str):
                cell[name] = os.path.abspath(os.path.expanduser(place))


def typed(options: Any) -> dict[str, Any]:
    """A spec from options: each activation against ReLU, with SiLU beside."""
    always = ["torch.nn.ReLU", "torch.nn.SiLU"]
    asked = [n for n in options.activations if f"torch.nn.{n}" not in always]
    names = dict.fromkeys([*always, *asked])
    arms = {name.rpartition(".")[2]: {"model.activation": name} for name in names}
    if len(arms) < len(names):
        raise SpecError(f"--activations {' '.join(options.activations)}: two have the same name; "
                        "write a spec, in which arms have names of their own")  # fmt: skip
    backbone = options.backbone or "resnet8"
    cell = {"data": options.data, **({"data.root": options.root} if options.root else {})}
    question = f"Does {', '.join(options.activations)} beat ReLU in {backbone} on {options.data}?"
    return check({
        "question": question, "arms": arms, "second_baselines": ["SiLU"],
        "cells": [{**cell, "model.backbone": backbone}],
        "seeds": {"looks": [5, 8, 12, 20] if options.looks is None else options.looks},
        "margin": 0.3 if options.margin is None else options.margin,
        "budget": {"trainer.max_epochs": 30 if options.epochs is None else options.epochs},
    })  # fmt: skip


def _run(options: Any) -> int:
    from .drive import run

    return run(*asked(options), options)


def _work(options: Any) -> int:
    from .drive import work

    return work(options)


def _status(options: Any) -> None:
    from .status import status

    print(status(options.folder))


def _plan(options: Any) -> None:
    from .plan import plan

    print(plan(*asked(options)))


def _report(options: Any) -> None:
    from .report import report
    from .runs import Study

    if options.packed and (taken := take(options.folder)):
        print(taken)
    print(report(Study.read(options.folder, read_packed(options.folder)), options.formats))


def _cost(options: Any) -> int:
    from .cost import measure, write
    from .drive import by_own_code
    from .runs import Study

    line = [sys.executable, "-m", "study", "cost", str(options.folder.resolve())]
    elsewhere = by_own_code(options.folder, line, options.threads)
    if elsewhere is not None:
        return elsewhere
    table = measure(Study.read(options.folder, read_packed(options.folder)))
    write(options.folder, table)
    for row in table:
        seen = f"{row['step_ms']:.1f} ms, {row['ratio']:.2f} times the baseline's"
        print(f"{row['arm']}, cell {row['cell']}: {seen}")
    return 0


def _pack(options: Any) -> None:
    from .packed import pack

    print(pack(options.folder))


def _publish(options: Any) -> None:
    from .publish import publish

    print(publish(options.out))


def _findings(options: Any) -> None:
    from .findings import findings

    print(findings())


def _slurm(options: Any) -> int:
    parser = argparse.ArgumentParser()
    _add_run(parser)
    words = [str(options.folder), "--on", "slurm", "--threads", str(options.threads)]
    return _run(parser.parse_args(words))


def _table(options: Any) -> None:
    import pandas as pd

    from activations.files import replacing
    from callbacks import read_results

    table = pd.DataFrame(read_results(options.folder))
    if table.empty:
        raise SpecError(f"{options.folder} holds no results.json, in no folder below it")
    if options.out:
        with replacing(options.out) as unfinished:
            table.to_csv(unfinished, index=False)
        print(f"{counted(len(table), 'run')}: {options.out}")
    else:
        columns = ["run", "status", "data", "backbone", "activation", "seed", "max_epochs"]
        columns += [c for c in table if re.fullmatch(r"(last|best) test/(acc|f1)|val/acc", c)]
        print(table[[c for c in columns if c in table]].to_string(index=False, na_rep=""))


def _judge(options: Any) -> int:
    from .drive import train_hidden
    from .judged import judge_folder

    if options.train and options.folder is None:
        raise SpecError("--train needs the folder of a study: python -m study judge DIR --train")
    code = train_hidden(options) if options.train else 0
    if not code:
        print(judge_folder(options.folder))
    return code


if __name__ == "__main__":
    sys.exit(main())
