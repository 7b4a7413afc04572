"""Runs on a Ray cluster: each is a task that returns its files; this process alone writes."""

import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from activations.files import replacing
from callbacks.results import FILE, TEST

from .claims import beating, claim
from .copied import FOLDER
from .local import STOPPED
from .runs import RUN
from .spec import SpecError
from .work import CLAIM, LOG, REFUSED, TOLD, RefusedError, check_own, crashed, pending

POLL = 2.0  # seconds
# not `-m study.work`: by the name of that module Lightning would start more processes of a run
ALONE = "import study.work; study.work.alone()"


def run_on(address: str, folder: Path, threads: int) -> int:
    """Have all prepared runs of a study done by a Ray cluster; 0 when none is left.

    Every machine needs the packages of this one, and the data in the same place. A run that a lost
    machine had begun is begun again.

    Args:
        address: `auto` joins the cluster of this machine or starts one; else where to join,
            HOST:PORT or ray://HOST:PORT.
        folder: of the study.
        threads: of the CPU, for each run.

    Raises:
        SpecError: Ray is not installed, or there is no cluster at `address`, or it was lost.
        RefusedError: a run's options are not accepted, its data are not there, or a disk is full.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise SpecError("Ray is not installed: pip install ray, or run with --on local") from error
    known = {"OMP_NUM_THREADS": str(threads)}
    environment = {"working_dir": str((folder / FOLDER).resolve()), "env_vars": known}
    try:
        ray.init(None if address == "auto" else address, runtime_env=environment,
                 log_to_driver=False, logging_level="error")  # fmt: skip
    except ConnectionError as error:
        raise SpecError(f"no Ray cluster at {address}: start one with ray start --head") from error
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task: Any = ray.remote(max_retries=0, max_calls=1, num_cpus=threads, num_gpus=gpus)(do)
    tasks: dict[Any, Path] = {}
    try:
        with ExitStack() as held:
            claims: dict[Path, ExitStack] = {}
            while left := pending(folder):
                check_own(folder)
                for run in left:
                    if run not in claims and claim(run / CLAIM):
                        claims[run] = held.enter_context(ExitStack())
                        claims[run].enter_context(beating(run / CLAIM))
                        tasks[task.remote(run.name, read_files(run))] = run
                if not tasks:  # other machines work on the last runs
                    time.sleep(POLL)
                    continue
                for done in ray.wait(list(tasks), num_returns=1, timeout=POLL)[0]:
                    run = tasks.pop(done)
                    try:
                        write(run, *ray.get(done))
                    except ray.exceptions.RayTaskError:
                        raise  # not of the run
                    except ray.exceptions.NodeDiedError:
                        print(f"a machine was lost: {run} is begun again", flush=True)
                    except (
                        ray.exceptions.OutOfMemoryError,
                        ray.exceptions.WorkerCrashedError,
                    ) as error:
                        crashed(run, f"its task was killed: {type(error).__name__}")
                    except ray.exceptions.RayError as error:
                        raise SpecError(
                            f"the Ray cluster was lost ({type(error).__name__}): start it again, "
                            "then the same command goes on"
                        ) from error
                    claims.pop(run).close()
    finally:
        ray.shutdown()
    return 0


def read_files(run: Path) -> dict[str, bytes]:
    """What a task needs of a run, by the names of its files."""
    files = [file for file in run.iterdir() if file.name == RUN or file.suffix == ".ckpt"]
    return {file.name: file.read_bytes() for file in files}


def do(name: str, files: dict[str, bytes]) -> tuple[int, dict[str, bytes]]:
    """Do one run in a temporary folder: exit code of its process, and the files that it leaves."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / name
        run.mkdir()
        for each, content in files.items():
            (run / each).write_bytes(content)
        line = [sys.executable, "-c", ALONE, str(run)]
        with (run / LOG).open("wb") as log:
            code = subprocess.run(line, stdout=log, stderr=log, check=False).returncode
        left = [run / each for each in (TEST, LOG, FILE)]
        return code, {each.name: each.read_bytes() for each in left if each.is_file()}


def write(run: Path, code: int, files: dict[str, bytes]) -> None:
    """Write what a task returned, `results.json` last.

    Raises:
        RefusedError: the run was refused.
    """
    for name in (TEST, LOG, FILE):
        if name in files:
            with replacing(run / name) as unfinished:
                unfinished.write_bytes(files[name])
    if code == REFUSED:
        raise RefusedError(files[LOG].decode(errors="replace").rpartition(TOLD)[2].strip())
    if FILE not in files and code not in STOPPED:  # those have been told to end
        crashed(run, f"its process ended with code {code}; see the file log")
