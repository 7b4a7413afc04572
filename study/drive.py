"""The driver of a study: stage by stage, until nothing is left to train."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from activations.files import naming
from callbacks.machine import ROOT

from .arms import check_arms
from .claims import beating, claim, owner
from .copied import FOLDER, copy_code, own_code
from .cost import SECONDS
from .judged import hidden_runs
from .local import DRIVER, LATE, POLL, STAYS, Launcher, default_jobs
from .packed import COSTS, kept, offered, read_packed, take
from .report import report
from .runs import Study, read_about, read_prepared, read_runs, write_about
from .shapes import defaults
from .slurm import slurm_script
from .spec import LOCK, OFF, SpecError, lock, read_lock, sha256
from .words import counted
from .work import pending


def run(folder: Path, spec: dict[str, Any], options: Any) -> int:
    """Train what is missing of a study, and report; the exit code.

    Args:
        folder: of the study, made if it is not there.
        spec: checked; it is locked by the first run.
        options: of the command line.

    Raises:
        SpecError: the spec is not the locked one, or another process works on the study.
    """
    if options.minutes < math.inf and options.on != "local":
        raise SpecError(f"--minutes is for this machine alone: leave it out with {options.on}")
    end = time.monotonic() + 60 * options.minutes
    with naming(folder / LOCK):
        folder.mkdir(parents=True, exist_ok=True)

    def does() -> int:
        lock_checked(folder, spec, options.amend, options.packed)
        return _drive(options, folder, end)

    return driven(folder, does)


def train_hidden(options: Any) -> int:
    """Train the judge's hidden arms; the exit code."""
    folder = options.folder
    read_lock(folder)

    def does() -> int:
        study = Study.read(folder, read_packed(folder))
        runs = [run for run in hidden_runs(study) if study.status(run) == "missing"]
        copy_code(folder, study.lock)
        study.prepare(runs)
        print(f"hidden arms: {counted(len(runs), 'run')}", flush=True)
        return work_on(options, folder) if runs else 0

    return driven(folder, does)


def driven(folder: Path, does: Callable[[], int], program: str = "study") -> int:
    """The exit code of `does`, which trains the runs of a study or search, as its only driver."""
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
        print(
            f"stopped; the same command goes on, or: python -m {program} run {folder}", flush=True
        )
        return int(left.code or 0)
    finally:
        alone = folder / ".driver.lock"
        if list(folder.iterdir()) == [alone]:  # a new question has a slip, and is not locked
            with suppress(OSError):  # it is another's by now
                alone.unlink()
                folder.rmdir()


def _leave(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def lock_checked(folder: Path, spec: dict[str, Any], amend: str = "", packed: bool = False) -> None:
    """Lock a study; a new question is tried first, so that a slip is not locked.

    With `packed`, a new folder begins with the packed results of its name.
    """
    asked = None if amend else spec
    if packed and (taken := take(folder, asked)):
        print(taken, flush=True)
    elif packed and not (folder / LOCK).is_file():
        raise SpecError(
            f"--packed: {kept(folder)} holds no study that asks this: leave out --packed, or name "
            "the folder with --dir studies/NAME"
        )
    elif offered(folder, asked):
        print(f"{kept(folder)} holds results of this question: --packed goes on from them")
    before = read_lock(folder) if (folder / LOCK).is_file() else {}
    known = before.get("sha256", "")
    old, own = read_about(folder), own_code(spec)
    begun, compiled = bool(read_runs(folder) or read_packed(folder)), OFF
    if begun and (other := [n for n, held in old.get("own", {}).items() if own.get(n) != held]):
        raise SpecError(
            f"the module {other[0]} has changed since {folder} was locked: runs of different code "
            "do not mix. Put it back, or start a new study in another folder (--dir)"
        )
    if known != sha256(spec):
        compiled, why = check_arms(Study(folder, {"spec": spec}))
        if why and not begun:
            print(f"{why}; so in every run", flush=True)
    after = lock(folder, spec, amend, begun=begun, compiled=compiled)
    same = all(before.get(name) == after.get(name) for name in ("code", "compiled"))
    if not begun and not (same and old.get("own", own) == own):
        attempts = [*folder.glob("runs/*/attempt_*")]
        if attempts:
            print("the code has changed: what has begun is trained anew", flush=True)
        for attempt in attempts:
            shutil.rmtree(attempt)
    about = {"defaults": defaults(spec), "own": own, "options": {}}
    if not begun or known != sha256(spec):
        earlier = old if begun else {}
        write_about(folder, {name: each | earlier.get(name, {}) for name, each in about.items()})
    if known and known != sha256(spec):  # other arms or networks may have another cost
        for name in COSTS:
            (folder / name).unlink(missing_ok=True)


def _drive(options: Any, folder: Path, end: float) -> int:
    """Train what is missing, stage by stage; then report."""
    known, measured = set[str](), False
    while True:
        study = Study.read(folder, read_packed(folder))
        stage, runs = study.next_runs()
        known_arms = {f"{arm}/{cell}" for cell in study.cells for arm in study.spec["arms"]}
        lacking = known_arms - study.ratios().keys() and not study.measured_elsewhere()
        if not runs and not measured and lacking:
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
        code = work_on(options, folder)
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
    print(f"measuring a training step of each arm, {SECONDS:.0f} s at most", flush=True)
    line, known = [sys.executable, "-m", "study", "cost", str(folder)], environment(folder, threads)
    subprocess.run(line, env=known, check=False, stdout=subprocess.DEVNULL)
    return True


def work_on(options: Any, folder: Path) -> int:
    """Have the prepared runs done; the exit code."""
    if options.on != "local":
        from .cluster import run_on

        return run_on(options.on, folder, options.threads)
    return _waited(_launcher(options, folder), lambda: False)


@contextmanager
def kept_launcher(options: Any, folder: Path) -> Iterator[Callable[[], int]]:
    """What has the prepared runs done, time after time, by one launcher: its imports take long."""
    kept: list[subprocess.Popen[bytes]] = []

    def work() -> int:
        if options.on != "local":
            return work_on(options, folder)
        if not kept or kept[-1].poll() is not None:  # one of an older code does not stay
            kept.append(_launcher(options, folder, STAYS))
        return _waited(kept[-1], lambda: not pending(folder))

    try:
        yield work
    finally:
        for process in kept:
            process.terminate()
            process.wait()


def _launcher(options: Any, folder: Path, *flags: str) -> "subprocess.Popen[bytes]":
    known = {**environment(folder, options.threads), DRIVER: str(os.getpid())}
    known |= dict.fromkeys(flags, "1")
    # in a group of its own: Ctrl-C reaches it once, from here
    return subprocess.Popen(_work_line(options, folder), env=known, process_group=0)


def _waited(process: "subprocess.Popen[bytes]", done: Callable[[], bool]) -> int:
    """The exit code of a launcher; 0 if it still stays when all is done."""

    def forward(number: int, frame: Any) -> None:
        process.send_signal(number)

    handlers = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not done():
            with suppress(subprocess.TimeoutExpired):
                return process.wait(POLL / 4)
        return process.poll() or 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def environment(folder: Path, threads: int) -> dict[str, str]:
    """That of a worker: the study's own copy of the code, then own modules; and its threads."""
    own = [os.environ.get("PYTHONPATH", ""), os.getcwd()]
    path = os.pathsep.join(filter(None, [str((folder / FOLDER).resolve()), *own]))
    known = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(threads)}
    return {**os.environ, **known}


def _work_line(options: Any, folder: Path) -> list[str]:
    line = [sys.executable, "-m", "study", "work", str(folder.resolve())]
    line += [str(options.run)] if getattr(options, "run", None) is not None else []
    line += ["--jobs", str(options.jobs)] if options.jobs else []
    line += ["--minutes", f"{options.minutes:.3f}"] if options.minutes < math.inf else []
    return [*line, "--threads", str(options.threads)]


def work(options: Any) -> int:
    """Do the prepared runs of a study on this machine, by its own code; the exit code."""
    folder = options.folder.resolve()
    elsewhere = by_own_code(folder, _work_line(options, folder), options.threads)
    if elsewhere is not None:
        return elsewhere
    if options.run is None:
        jobs = options.jobs or default_jobs(options.threads)
        return Launcher(folder, jobs, minutes=options.minutes).run()
    runs = {each["number"]: folder / "runs" / key for key, each in read_prepared(folder).items()}
    if options.run not in runs:
        raise SpecError(f"run {options.run}: {folder} has the prepared runs {sorted(runs)}")
    return Launcher(folder, 1, runs[options.run]).run()


def by_own_code(folder: Path, line: list[str], threads: int) -> int | None:
    """The exit code of a command line, run by the study's own code; None if this is that code."""
    if ROOT.samefile(copy_code(folder, read_lock(folder))):
        return None
    known = environment(folder, threads)
    if hasattr(os, "execve") and os.name == "posix":
        os.execve(line[0], line, known)
    return subprocess.run(line, env=known, check=False).returncode
