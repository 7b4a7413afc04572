"""Runs side by side on this machine: a server with the imports done, one child for each run."""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from .work import crashed, is_claimed, pending, work

STOPPED = (130, 143)


def default_jobs(threads: int) -> int:
    """As many runs as GPUs, or as cores for their threads."""
    import torch

    return torch.cuda.device_count() or max(1, (os.cpu_count() or 1) // threads)


def child(folder: Path, slot: int, gpus: int) -> None:
    """One run in a process of its own; its output goes to the file `log`."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
    status = work(folder)
    sys.exit(143 if status == "stopped" else 0)


class Launcher:
    """Starts a child for each prepared run of a study, at most `jobs` at a time."""

    def __init__(self, study: Path, jobs: int) -> None:
        self.study, self.jobs = study, jobs
        way = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context: Any = multiprocessing.get_context(way)
        if way == "forkserver":
            self.context.set_forkserver_preload(["train", "study.work"])
        self.children: dict[int, tuple[Any, Path]] = {}  # slot -> process and its run
        self.stopping = 0

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Let the children save their checkpoints and end."""
        self.stopping = number
        for process, _ in self.children.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)

    def run(self) -> int:
        """Until no run is left; the exit code."""
        import torch

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        gpus, parent = torch.cuda.device_count(), os.getppid()
        while True:
            self._collect()
            if os.getppid() != parent:  # the driver was killed; a new one starts its own launcher
                self.stopping = self.stopping or signal.SIGTERM
            free = [run for run in pending(self.study) if not is_claimed(run)]
            mine = {run for _, run in self.children.values()}
            waiting = [run for run in free if run not in mine]
            if not self.children and (self.stopping or not pending(self.study)):
                return 128 + self.stopping if self.stopping else 0
            for slot in range(self.jobs):
                if slot not in self.children and waiting and not self.stopping:
                    run = waiting.pop(0)
                    process = self.context.Process(target=child, args=(run, slot, gpus))
                    process.start()
                    self.children[slot] = process, run
            if self.children:
                wait([process.sentinel for process, _ in self.children.values()], 2.0)
            else:  # another machine works on the last runs
                time.sleep(2.0)

    def _collect(self) -> None:
        for slot, (process, run) in list(self.children.items()):
            if process.exitcode is None:
                continue
            del self.children[slot]
            if process.exitcode not in (0, *STOPPED) and not self.stopping:
                crashed(run, f"its process ended with code {process.exitcode}; see the file log")
