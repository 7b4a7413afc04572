"""`python -m study`: many runs, one verdict."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from activations.files import naming
from callbacks.machine import ROOT

from .spec import LOCK, SpecError, check, lock, read_lock, read_spec

ROOM = Path("studies")


def main(args: list[str] | None = None) -> int:
    """Run the command line; the exit code: 0, or 2 for a mistake in it or in the study."""
    parser = argparse.ArgumentParser(
        "python -m study", description="Many runs of train.py, and one verdict on each activation."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="train what is missing, and print the verdict"))
    _add_spec(commands.add_parser("plan", help="runs, hours, and what each look can tell"))
    for name, text in (
        ("status", "what is done, and what is left"),
        ("report", "write the report again"),
        ("pack", "write the finished results, small, into results/studies"),
        ("slurm", "print a SLURM array script for the prepared runs"),
        ("work", "do the prepared runs on this machine"),
        ("judge", "how often such a study is wrong"),
    ):
        each = commands.add_parser(name, help=text)
        each.add_argument("folder", type=Path, nargs="?" if name == "judge" else None)
        if name == "work":
            each.add_argument("run", nargs="?", type=int, help="number of one run, from 0")
            _add_jobs(each)
        if name == "report":
            each.add_argument("--formats", nargs="+", default=["md", "html", "latex"])
        if name == "judge":
            each.add_argument("--train", action="store_true", help="train hidden arms, too")
            _add_jobs(each)
    table = commands.add_parser("table", help="one table of all runs in a folder")
    table.add_argument("folder", type=Path)
    table.add_argument("--out", type=Path, help="a CSV file; by default the table is printed")
    options = parser.parse_args(args)
    try:
        return int(globals()[f"_{options.command}"](options) or 0)
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
    add("--backbone", default="resnet8")
    add("--activations", nargs="+", default=[], help="compared with ReLU; SiLU is always there")
    add("--epochs", type=int, default=30)
    add("--looks", type=int, nargs="+", default=[5, 8, 12, 20])
    add("--margin", type=float, default=0.3, help="points")
    add("--dir", type=Path, help="folder of the study; by default studies/<name>")


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_spec(parser)
    parser.add_argument("--amend", default="", help="why the locked question is changed")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE",
                        help="options of all cells, such as data.root=DIR")  # fmt: skip
    parser.add_argument("--on", default="local", help="local, or ray: auto or ray://...")
    _add_jobs(parser)


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, help="runs at a time; by default one a GPU, or a core")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, for each run")


def asked(options: Any) -> tuple[Path, dict[str, Any]]:
    """The study's folder, and the spec that the command line asks for."""
    given = options.spec
    if given is not None and given.is_dir():
        return given, read_lock(given)["spec"]
    if given is not None:
        spec, name = read_spec(given), given.stem
    elif options.data and options.activations:
        spec, name = (
            typed(options),
            "-".join([options.data, options.backbone, *options.activations]),
        )
    else:
        raise SpecError("name a spec, or give --data and --activations: python -m study run --help")
    changes = dict(each.partition("=")[::2] for each in getattr(options, "set", []))
    for cell in spec["cells"]:
        cell |= changes
    return options.dir or ROOM / re.sub(r"[^\w.-]", "_", name), spec


def typed(options: Any) -> dict[str, Any]:
    """A spec from options: each activation against ReLU, with SiLU beside."""
    names = dict.fromkeys(["torch.nn.ReLU", "torch.nn.SiLU", *options.activations])
    arms = {name.rpartition(".")[2]: {"model.activation": name} for name in names}
    cell = {"data": options.data, **({"data.root": options.root} if options.root else {})}
    question = (
        f"Does {', '.join(options.activations)} beat ReLU in {options.backbone} on {options.data}?"
    )
    return check({
        "question": question, "arms": arms, "second_baselines": ["SiLU"],
        "cells": [{**cell, "model.backbone": options.backbone}],
        "seeds": {"looks": options.looks}, "margin": options.margin,
        "budget": {"trainer.max_epochs": options.epochs},
    })  # fmt: skip


def environment(folder: Path, threads: int) -> dict[str, str]:
    """That of a worker: the study's own copy of the code, and its threads."""
    known = {"PYTHONPATH": str((folder / "code").resolve()), "OMP_NUM_THREADS": str(threads)}
    return {**os.environ, **known, "PYTHONSAFEPATH": "1"}


def _run(options: Any) -> int:
    from .packed import read_packed
    from .report import report
    from .runs import Study

    folder, spec = asked(options)
    with naming(folder / LOCK):
        folder.mkdir(parents=True, exist_ok=True)
    lock(folder, spec, options.amend)
    packed = read_packed(folder)
    known: set[str] = set()
    while True:
        study = Study.read(folder, packed)
        stage, runs = study.next_runs()
        if not runs:
            break
        new = {run.id for run in runs}
        if new == known:
            raise ValueError(f"{folder}: {len(runs)} runs did not end; see runs/*/log")
        known = new
        _check_arms(study, runs) if not study.results else None
        study.prepare(runs)
        print(f"{stage}: {len(runs)} runs", flush=True)
        if code := _work_on(options, folder):
            print(f"stopped; the same command goes on: python -m study run {folder}")
            return code
    print(report(study))
    return 0


def _work_on(options: Any, folder: Path) -> int:
    """Have the prepared runs done; the exit code."""
    if options.on != "local":
        from .ray import run_on

        return run_on(options.on, folder, options.threads)
    jobs = ["--jobs", str(options.jobs)] if options.jobs else []
    line = [
        sys.executable,
        "-m",
        "study",
        "work",
        str(folder.resolve()),
        *jobs,
        "--threads",
        str(options.threads),
    ]
    process = subprocess.Popen(line, env=environment(folder, options.threads))

    def forward(number: int, frame: Any) -> None:
        if number == signal.SIGTERM:  # Ctrl-C reaches the whole group by itself
            process.terminate()

    handlers = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        return process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _work(options: Any) -> int:
    from .local import Launcher, default_jobs
    from .work import pending, work

    folder = options.folder.resolve()
    read_lock(folder)
    if not Path(ROOT).samefile(folder / "code"):  # a helper on another machine
        words = [str(options.run)] if options.run is not None else []
        jobs = ["--jobs", str(options.jobs)] if options.jobs else []
        line = [
            sys.executable,
            "-m",
            "study",
            "work",
            str(folder),
            *words,
            *jobs,
            "--threads",
            str(options.threads),
        ]
        return subprocess.run(
            line, env=environment(folder, options.threads), check=False
        ).returncode
    if options.run is None:
        return Launcher(folder, options.jobs or default_jobs(options.threads)).run()
    runs = sorted(file.parent for file in folder.glob("runs/*/spec.json"))
    if not 0 <= options.run < len(runs):
        raise SpecError(f"run {options.run}: {folder} has {len(runs)} prepared runs, from 0")
    return (
        143 if runs[options.run] in pending(folder) and work(runs[options.run]) == "stopped" else 0
    )


def _check_arms(study: Any, runs: list[Any]) -> None:
    """Have train.py read the options of each arm, before any run starts."""
    from .runs import arguments, write_base

    firsts = {(run.arm, run.cell): run for run in reversed(runs)}
    for run in firsts.values():
        words = [*write_base(study.folder, study.spec["base"]), *arguments(run.options, run.seed)]
        line = [
            sys.executable,
            str(study.folder / "code/train.py"),
            "fit",
            *words,
            "--print_config",
        ]
        done = subprocess.run(
            line, env=environment(study.folder, 1), capture_output=True, text=True, check=False
        )
        if done.returncode:
            told = [each for each in done.stderr.splitlines() if "error:" in each] or [
                done.stderr[-300:]
            ]
            raise SpecError(f"arm {run.arm}: {told[-1].partition('error: ')[2] or told[-1]}")


def _status(options: Any) -> None:
    from .status import status

    print(status(options.folder))


def _plan(options: Any) -> None:
    from .plan import plan

    print(plan(*asked(options)))


def _report(options: Any) -> None:
    from .packed import read_packed
    from .report import report
    from .runs import Study

    print(report(Study.read(options.folder, read_packed(options.folder)), options.formats))


def _pack(options: Any) -> None:
    from .packed import pack

    print(pack(options.folder))


def _slurm(options: Any) -> None:
    from .slurm import script

    print(script(options.folder))


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
        print(f"{len(table)} runs: {options.out}")
    else:
        columns = ["run", "status", "data", "backbone", "activation", "seed", "max_epochs"]
        columns += [c for c in table if re.fullmatch(r"(last|best) test/(acc|f1)|val/acc", c)]
        print(table[[c for c in columns if c in table]].to_string(index=False, na_rep=""))


def _judge(options: Any) -> None:
    from .judge import judge_folder

    print(json.dumps(judge_folder(options.folder), indent=1))


if __name__ == "__main__":
    sys.exit(main())
