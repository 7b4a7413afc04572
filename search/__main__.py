"""`python -m search`: new activation functions, found by evolution and judged by study."""

import argparse
import math
import os
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

from activations.files import naming
from study.__main__ import add_jobs, set_fields
from study.arms import check_arms
from study.copied import copy_code, own_code
from study.drive import driven, kept_launcher
from study.local import LATE, default_jobs
from study.runs import Study, read_about, read_runs, write_about
from study.slurm import slurm_script
from study.spec import LOCK, SpecError, check, held, lock, read_lock, sha256
from study.words import counted

from .evolution import EVOLVED, MEMBERS, Search
from .spec import check_search, read_search, study_spec
from .status import progress, status

ROOM = Path("searches")


def main(args: list[str] | None = None) -> int:
    """Run the command line; the exit code: 0, or 2 for a mistake in it or in the search."""
    parser = argparse.ArgumentParser(
        "python -m search", description="New activation functions, by evolution of formulas."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train what is missing, and write the report")
    run.add_argument("spec", type=Path, help="a YAML file, or the folder of a search")
    run.add_argument("--dir", type=Path, help="folder of the search; by default searches/<name>")
    run.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                     help="options of all cells, such as data.root=DIR")  # fmt: skip
    run.add_argument("--on", default="local", help="local; Ray: auto or an address; slurm")
    add_jobs(run)
    screen = commands.add_parser("screen", help="what random functions of a space are worth")
    screen.add_argument("space", help="a preset, or the YAML file of a search")
    screen.add_argument("-n", type=int, default=10_000, help="how many")
    screen.add_argument("--seed", type=int, default=0)
    for name, text in (
        ("status", "what is done, and what is left"),
        ("report", "write the report again"),
        ("adopt", "make the winner a class of this project"),
    ):
        each = commands.add_parser(name, help=text)
        each.add_argument("folder", type=Path)
        if name == "adopt":
            each.add_argument("name", help="of the class, such as MyLU")
            each.add_argument("--number", type=int, help="of another candidate of the search")
    options = parser.parse_args(args)
    try:
        return int(globals()[f"_{options.command}"](options) or 0)
    except (SpecError, OSError, ValueError) as error:
        if os.environ.get("SUPPLE_TRACEBACK"):
            raise
        sys.stderr.write(f"python -m search: error: {error}\n")
        return 2


def asked(options: Any) -> tuple[Path, dict[str, Any]]:
    """The folder of the search, and the spec that the command line asks for."""
    if options.spec.is_dir():
        if options.dir:
            raise SpecError(f"--dir has no effect beside {options.spec}: leave it out")
        spec, folder = read_lock(options.spec, "space")["spec"], options.spec
    else:
        spec, folder = read_search(options.spec), ROOM / re.sub(r"[^\w.-]", "_", options.spec.stem)
    set_fields(spec["cells"], options.set)
    return options.dir or folder, held(check_search(spec))


def _run(options: Any) -> int:
    if options.minutes < math.inf and options.on != "local":
        raise SpecError(f"--minutes is for this machine alone: leave it out with {options.on}")
    end = time.monotonic() + 60 * options.minutes
    folder, spec = asked(options)
    with naming(folder / LOCK):
        folder.mkdir(parents=True, exist_ok=True)

    def does() -> int:
        lock_search(folder, spec)
        return _drive(options, folder, end)

    return driven(folder, does, "search")


def lock_search(folder: Path, spec: dict[str, Any]) -> None:
    """Lock a search; a new one is tried first, so that a slip is not locked.

    Raises:
        SpecError: the folder holds another search or a study, the space has too few functions, or
            train.py does not accept the options.
    """
    known = read_lock(folder) if (folder / LOCK).is_file() else None
    old, own = read_about(folder).get("own", {}), own_code(spec)
    if known and read_runs(folder) and (other := [n for n, x in old.items() if own.get(n) != x]):
        raise SpecError(
            f"the module {other[0]} has changed since {folder} was locked: trainings of different "
            "code do not mix. Put it back, or start a new search in another folder (--dir)"
        )
    if known is None or known["sha256"] != sha256(spec):
        if known is not None and read_runs(folder):
            raise SpecError(
                f"{folder} holds other trainings, see {folder / LOCK}: choose another folder with "
                "--dir"
            )
        for name in (LOCK, MEMBERS):
            (folder / name).unlink(missing_ok=True)
        stream = Search(folder, {"spec": spec}).streams[EVOLVED]
        if len(found := stream.children()) < spec["children"]:
            raise SpecError(
                f"space: only {len(found)} different functions of it pass the screens, a "
                f"generation needs {spec['children']}"
            )
        study = Study(folder, {"spec": check(study_spec(spec))})
        check_arms(study, {"metric": spec["metric"]}, spec["halving"]["epochs"])
        write_about(folder, {"own": own})
    lock(folder, spec, begun=False)


def _drive(options: Any, folder: Path, end: float) -> int:
    """Train what is missing, rung by rung; then report."""
    from .report import report

    search, known = Search.read(folder), set[str]()
    with kept_launcher(options, folder) as work:
        while runs := search.next_runs():
            new = {run.id for run in runs}
            if new == known:
                raise ValueError(
                    f"{folder}: {counted(len(runs), 'run')} did not end; see runs/*/log"
                )
            known = new
            copy_code(folder, search.lock)
            search.study.prepare(runs)
            if options.on == "slurm":
                print(slurm_script(folder, runs, options.threads, "search"))
                return 0
            jobs = options.jobs or default_jobs(options.threads)
            print(f"{progress(search, jobs)}; now {counted(len(runs), 'training')}", flush=True)
            options.minutes = (end - time.monotonic()) / 60
            code = work()
            if code == LATE:
                print(
                    f"the time is over; it goes on with python -m search run {folder}", flush=True
                )
                search.next_runs()
                break
            if code:
                raise SystemExit(code if code > 0 else 1)  # below 0: the launcher was killed
    print(report(search))
    return 0


def _screen(options: Any) -> None:
    from .screen import Screens, screen_rows
    from .space import Space

    if options.n < 1:
        raise SpecError(f"-n must be 1 or more, got {options.n}")
    file = Path(options.space)
    given = read_search(file)["space"] if file.suffix in (".yaml", ".yml") else options.space
    space, screens = Space.of(given), Screens()
    rng, start = random.Random(options.seed), time.perf_counter()
    found = [screens.look(space.grown(rng)) for _ in range(options.n)]
    seconds = time.perf_counter() - start
    for reason, count, share in screen_rows(screens.counts):
        print(f"{reason:<42}{count:>8}{share:>8}")
    print(f"{options.n} functions in {seconds:.1f} s, {options.n / seconds:.0f} a second")
    known = dict.fromkeys(each.known for each in found if each.known and not each.reason)
    print(f"known functions found: {', '.join(known) or 'none'}")


def _status(options: Any) -> None:
    print(status(Search.read(options.folder)))


def _report(options: Any) -> None:
    from .report import report

    print(report(Search.read(options.folder)))


def _adopt(options: Any) -> None:
    from .adopt import adopt

    print(adopt(Search.read(options.folder), options.name, options.number))


if __name__ == "__main__":
    sys.exit(main())
