"""`python -m study`: many runs, one verdict."""

import argparse
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from activations.files import naming
from callbacks.machine import ROOT

from .claims import beating, claim, owner
from .copied import FOLDER, copy_code
from .local import DRIVER, LATE
from .packed import read_packed, take
from .slurm import slurm_script
from .spec import LOCK, SpecError, check, lock, read_lock, read_spec, sha256
from .words import counted

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
        ("slurm", "print a SLURM array script for the runs that come next"),
        ("work", "do the prepared runs on this machine"),
        ("cost", "measure the time of a training step of each arm, in turns"),
        ("judge", "how often such a study is wrong"),
    ):
        each = commands.add_parser(name, help=text)
        each.add_argument("folder", type=Path, nargs="?" if name == "judge" else None)
        if name == "slurm":
            each.add_argument("--threads", type=int, default=1, help="of the CPU, for each run")
        if name == "work":
            each.add_argument("run", nargs="?", type=int, help="number of one run, from 0")
            _add_jobs(each)
        if name == "report":
            each.add_argument("--formats", nargs="+", default=["md", "html", "latex"])
        if name == "judge":
            each.add_argument("--train", action="store_true", help="train hidden arms, too")
            each.set_defaults(on="local")
            _add_jobs(each)
    page = commands.add_parser("publish", help="make docs/verdicts.md from all packed studies")
    page.add_argument("--out", type=Path, default=ROOT / "docs", help="the folder of the page")
    commands.add_parser("findings", help="draw what the functions of all packed studies learned")
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
    add("--set", nargs="+", default=[], metavar="FIELD=VALUE",
        help="options of all cells, such as data.root=DIR")  # fmt: skip


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_spec(parser)
    parser.add_argument("--amend", default="", help="why the locked question is changed")
    parser.add_argument("--on", default="local",
                        help="local; Ray: auto or an address; slurm")  # fmt: skip
    _add_jobs(parser)


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, help="runs at a time; by default one a GPU, or a core")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, for each run")
    parser.add_argument("--minutes", type=float, default=math.inf,
                        help="start no run that would end later")  # fmt: skip


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
    for each in options.set:
        field, equals, value = each.partition("=")
        if not equals:
            raise SpecError(f"--set {each!r} is no FIELD=VALUE, such as data.root=DIR")
        for cell in spec["cells"]:
            cell[field] = yaml.safe_load(value)
    for cell in spec["cells"]:
        if isinstance(root := cell.get("data.root"), str):
            cell["data.root"] = os.path.abspath(os.path.expanduser(root))
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
    """That of a worker: the study's own copy of the code, then own modules; and its threads."""
    own = [os.environ.get("PYTHONPATH", ""), os.getcwd()]
    path = os.pathsep.join(filter(None, [str((folder / FOLDER).resolve()), *own]))
    known = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(threads)}
    return {**os.environ, **known}


def _run(options: Any) -> int:
    if options.minutes < math.inf and options.on != "local":
        raise SpecError(f"--minutes is for this machine alone: leave it out with {options.on}")
    end = time.monotonic() + 60 * options.minutes
    folder, spec = asked(options)
    with naming(folder / LOCK):
        folder.mkdir(parents=True, exist_ok=True)

    def does() -> int:
        lock_checked(folder, spec, options.amend)
        return _drive(options, folder, end)

    return _driven(folder, does)


def _driven(folder: Path, does: Callable[[], int]) -> int:
    """The exit code of `does`, which trains the runs of a study, as its only driver."""
    if not claim(folder / "driver"):
        known = owner(folder / "driver") or {}
        raise SpecError(
            f"{folder} is run by another process ({known.get('pid')} on "
            f"{str(known.get('host')).partition(' ')[0]}): wait for it, or add workers with "
            f"python -m study work {folder}"
        )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        with beating(folder / "driver"):
            return does()
    except SystemExit as left:
        print(f"stopped; the same command goes on, or: python -m study run {folder}", flush=True)
        return int(left.code or 0)


def _leave(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def lock_checked(folder: Path, spec: dict[str, Any], amend: str = "") -> None:
    """Lock a study; a new question is tried first, so that a slip is not locked."""
    from .arms import check_arms
    from .runs import Study, read_runs

    take(folder)
    known = read_lock(folder)["sha256"] if (folder / LOCK).is_file() else ""
    if known != sha256(spec):
        check_arms(Study(folder, {"spec": spec}))
    lock(folder, spec, amend, begun=bool(read_runs(folder) or read_packed(folder)))


def _drive(options: Any, folder: Path, end: float) -> int:
    """Train what is missing, stage by stage; then report."""
    from .report import report
    from .runs import Study

    known, measured = set[str](), False
    while True:
        study = Study.read(folder, read_packed(folder))
        stage, runs = study.next_runs()
        if not runs and not measured and not study.ratios():
            measured = _measure(folder, options.threads)
            continue
        if not runs:
            break
        new = {run.id for run in runs}
        if new == known:
            count = counted(len(runs), "run")
            raise ValueError(f"{folder}: {count} did not end; see runs/*/log")
        known = new
        copy_code(folder, study.lock)
        study.prepare(runs)
        if options.on == "slurm":
            print(slurm_script(folder, runs, options.threads))
            return 0
        print(f"{stage}: {counted(len(runs), 'run')}", flush=True)
        options.minutes = (end - time.monotonic()) / 60
        code = _work_on(options, folder)
        if code == LATE:
            print(f"the time is over; it goes on with python -m study run {folder}", flush=True)
            study = Study.read(folder, read_packed(folder))
            break
        if code:
            raise SystemExit(code if code > 0 else 1)  # below 0: the launcher was killed
    print(report(study))
    return 0


def _measure(folder: Path, threads: int) -> bool:
    """Measure what the arms cost, by the study's own code; true, also where that fails."""
    from .cost import SECONDS

    print(f"measuring a training step of each arm, {SECONDS:.0f} s at most", flush=True)
    line, known = [sys.executable, "-m", "study", "cost", str(folder)], environment(folder, threads)
    subprocess.run(line, env=known, check=False, stdout=subprocess.DEVNULL)
    return True


def _work_on(options: Any, folder: Path) -> int:
    """Have the prepared runs done; the exit code."""
    if options.on != "local":
        from .cluster import run_on

        return run_on(options.on, folder, options.threads)
    known = {**environment(folder, options.threads), DRIVER: str(os.getpid())}
    # in a group of its own: Ctrl-C reaches it once, from here
    process = subprocess.Popen(_work_line(options, folder), env=known, process_group=0)

    def forward(number: int, frame: Any) -> None:
        process.send_signal(number)

    handlers = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        return process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _work_line(options: Any, folder: Path) -> list[str]:
    line = [sys.executable, "-m", "study", "work", str(folder.resolve())]
    line += [str(options.run)] if getattr(options, "run", None) is not None else []
    line += ["--jobs", str(options.jobs)] if options.jobs else []
    line += ["--minutes", f"{options.minutes:.3f}"] if options.minutes < math.inf else []
    return [*line, "--threads", str(options.threads)]


def _work(options: Any) -> int:
    from .local import Launcher, default_jobs
    from .runs import read_prepared

    folder = options.folder.resolve()
    copied = copy_code(folder, read_lock(folder))
    if not ROOT.samefile(copied):
        line, known = _work_line(options, folder), environment(folder, options.threads)
        if hasattr(os, "execve") and os.name == "posix":
            os.execve(line[0], line, known)
        return subprocess.run(line, env=known, check=False).returncode
    if options.run is None:
        jobs = options.jobs or default_jobs(options.threads)
        return Launcher(folder, jobs, minutes=options.minutes).run()
    runs = {each["number"]: folder / "runs" / key for key, each in read_prepared(folder).items()}
    if options.run not in runs:
        raise SpecError(f"run {options.run}: {folder} has the prepared runs {sorted(runs)}")
    return Launcher(folder, 1, runs[options.run]).run()


def _status(options: Any) -> None:
    from .status import status

    print(status(options.folder))


def _plan(options: Any) -> None:
    from .plan import plan

    print(plan(*asked(options)))


def _report(options: Any) -> None:
    from .report import report
    from .runs import Study

    take(options.folder)
    print(report(Study.read(options.folder, read_packed(options.folder)), options.formats))


def _cost(options: Any) -> None:
    from .cost import measure, write
    from .runs import Study

    table = measure(Study.read(options.folder))
    write(options.folder, table)
    for row in table:
        seen = f"{row['step_ms']:.1f} ms, {row['ratio']:.2f} times the baseline's"
        print(f"{row['arm']}, cell {row['cell']}: {seen}")


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
    known = {"spec": options.folder, "dir": None, "amend": "", "on": "slurm", "set": []}
    return _run(argparse.Namespace(**known, threads=options.threads, jobs=None, minutes=math.inf))


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
    from .judged import judge_folder

    if options.train:
        if options.folder is None:
            raise SpecError(
                "--train needs the folder of a study: python -m study judge DIR --train"
            )
        read_lock(options.folder)
        if code := _driven(options.folder, lambda: _train_hidden(options)):
            return code
    print(judge_folder(options.folder))
    return 0


def _train_hidden(options: Any) -> int:
    """Train the judge's hidden arms; the exit code."""
    from .judged import hidden_runs
    from .runs import Study

    folder = options.folder
    study = Study.read(folder, read_packed(folder))
    runs = [run for run in hidden_runs(study) if study.status(run) == "missing"]
    copy_code(folder, study.lock)
    study.prepare(runs)
    print(f"hidden arms: {counted(len(runs), 'run')}", flush=True)
    return _work_on(options, folder) if runs else 0


if __name__ == "__main__":
    sys.exit(main())
