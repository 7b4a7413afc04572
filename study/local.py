"""Runs side by side on this machine: a server with the imports done, one child for each run."""

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from activations.files import naming

from .budget import STAGE
from .runs import read_prepared, read_runs
from .status import START
from .work import LOG, REFUSED, RefusedError, crashed, is_claimed, pending, work

DRIVER = "SUPPLE_STUDY_DRIVER"  # environment variable: the process without which a launcher ends
STAYS = "SUPPLE_STUDY_STAYS"  # set: at the end a launcher waits for more runs of its driver
STOPPED = (130, 143)
LATE = 75  # exit code of a launcher: its time is over, runs are left
SERVER_ENDED = 255  # multiprocessing's code for a child whose server was killed
POLL = 2.0  # seconds


def default_jobs(threads: int) -> int:
    """As many runs as GPUs, or as cores for their threads."""
    import torch

    return torch.cuda.device_count() or max(1, (os.cpu_count() or 1) // threads)


def visible_gpus(slot: int, jobs: int, known: list[str]) -> list[str]:
    """The GPUs of one of several runs side by side: an equal share, at least one."""
    share = max(1, len(known) // jobs)
    return [known[(slot * share + number) % len(known)] for number in range(share)]


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if named else [str(each) for each in range(torch.cuda.device_count())]


def child(folder: Path, devices: list[str], told: Any) -> None:
    """One run in a process of its own; its output goes to the file `log`."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the launcher, which tells its children once
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    try:
        with naming(folder):
            log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(log, stream)
            sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore
            status = work(folder)
    except (RefusedError, OSError) as error:
        told.send(str(error))
        sys.exit(REFUSED)
    sys.exit(143 if status == "stopped" else 0)


def _end_with_launcher() -> None:
    """Save a checkpoint and end when the launcher, or the server of processes, is killed."""
    launcher, server = multiprocessing.parent_process(), os.getppid()
    while launcher and launcher.is_alive() and os.getppid() == server:
        wait([launcher.sentinel], POLL)
    os.kill(os.getpid(), signal.SIGTERM)


class Launcher:
    """Starts a child for each prepared run of a study, at most `jobs` at a time.

    Args:
        study: its folder.
        jobs: how many at a time.
        only: the one run to do.
        minutes: no run is started that would end later, if it took as long as the longest so far,
            or twice that with twice the budget (before one has ended here, nothing is known);
            those that have begun go on.
    """

    def __init__(
        self, study: Path, jobs: int, only: Path | None = None, minutes: float = math.inf
    ) -> None:
        self.study, self.jobs, self.only = study, jobs, only
        self.end = time.monotonic() + 60 * minutes
        about = read_prepared(study)
        self.double = {study / "runs" / k for k in about if about[k].get("stage") == STAGE}
        results = {study / "runs" / key: result for key, result in read_runs(study).items()}
        took = [(result.get("fit_s") or 0.0) / self._times(k) for k, result in results.items()]
        self.longest = max(took, default=0.0) + START  # of the usual budget
        way = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context: Any = multiprocessing.get_context(way)
        if way == "forkserver":
            self.context.set_forkserver_preload(["train", "study.work"])
        # slot -> process, its run, where it tells why it was refused, and when it began
        self.children: dict[int, tuple[Any, Path, Any, float]] = {}
        self.stopping = 0
        self.refused = ""

    def stop(self, number: int, frame: FrameType | None = None) -> None:
        """Let the children save their checkpoints and end; a second time, end at once."""
        self.stopping = number
        for process, *_ in self.children.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)

    def run(self) -> int:
        """Until no run is left; the exit code: 0, 75 when the time is over, 130, 143.

        Raises:
            RefusedError: the options of a run are not accepted, its data are not there, or the
                disk is full. The others have been stopped, and go on later.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        known, driver = gpus(), int(os.environ.get(DRIVER, "0"))
        stays = driver and STAYS in os.environ
        while True:
            self._collect()
            if driver and os.getppid() != driver and not self.stopping:
                self.stop(signal.SIGTERM)  # it was killed; a new one starts its own launcher
            left = [] if self.stopping else pending(self.study)
            left = [run for run in left if self.only in (None, run)]
            rest = self.end - time.monotonic()
            soon = [run for run in left if self._times(run) * self.longest <= rest]
            late = bool(left) and not soon
            if not self.children and (late or not left):
                if self.refused:
                    raise RefusedError(self.refused)
                if stays and not (late or self.stopping):
                    time.sleep(POLL / 4)
                    continue
                return LATE if late else 128 + self.stopping if self.stopping else 0
            mine = {run for _, run, *_ in self.children.values()}
            free = [slot for slot in range(self.jobs) if slot not in self.children]
            waiting = (run for run in soon if run not in mine and not is_claimed(run))
            for slot, run in zip(free, waiting, strict=False):
                self._start(slot, run, visible_gpus(slot, self.jobs, known) if known else [])
            if self.children:
                wait([process.sentinel for process, *_ in self.children.values()], POLL)
            else:  # others work on the last runs
                time.sleep(POLL)

    def _times(self, run: Path) -> int:
        return 2 if run in self.double else 1

    def _start(self, slot: int, run: Path, devices: list[str]) -> None:
        answer, told = self.context.Pipe(duplex=False)
        process = self.context.Process(target=child, args=(run, devices, told))
        with suppress(EOFError, ConnectionError):  # the server was killed; the next one is new
            process.start()
            self.children[slot] = process, run, answer, time.monotonic()
            if self.stopping:  # it came meanwhile
                process.terminate()
        told.close()

    def _collect(self) -> None:
        for slot, (process, run, answer, begin) in list(self.children.items()):
            if process.exitcode is None:
                continue
            del self.children[slot]
            self.longest = max(self.longest, (time.monotonic() - begin) / self._times(run))
            if process.exitcode == REFUSED and not self.stopping:
                with suppress(EOFError):
                    self.refused = answer.recv()
                self.refused = self.refused or f"see {run / LOG}"
                self.stop(signal.SIGTERM)
            elif process.exitcode not in (0, *STOPPED, SERVER_ENDED) and not self.stopping:
                crashed(run, f"its process ended with code {process.exitcode}; see the file log")
