"""Processes that read and augment the batches ahead."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def cores() -> int:
    """Number of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepared(
    prepare: Callable[[Tensor], Any],
    parts: Sequence[Tensor],
    workers: int,
    *,
    pinned: bool = False,
) -> Iterator[Any]:
    """What `prepare` makes of each part, in order.

    Args:
        prepare: reads and augments samples; it depends on its argument alone.
        parts: positions of samples.
        workers: number of processes that prepare two parts each in advance; 0 prepares them here.
        pinned: give memory from which a GPU can copy by itself.

    Raises:
        RuntimeError: a process was killed.
    """
    if not workers:
        made = map(prepare, parts)
        yield from (each.pin_memory() for each in made) if pinned else made
        return
    loader = DataLoader(
        _Parts(prepare),
        batch_size=None,
        sampler=parts,
        num_workers=min(workers, len(parts)),
        pin_memory=pinned,
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        generator=torch.Generator(),  # else it draws from the run's own
        worker_init_fn=_ignore_signals,
    )
    try:
        for made in loader:
            if isinstance(made, Exception):
                raise made
            yield made
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"a process that reads the data has ended ({error}): give fewer with --data.workers, "
            "or more shared memory (/dev/shm)"
        ) from error


def _ignore_signals(worker: int) -> None:
    """Ctrl-C reaches all processes, but the run ends its step first, for which it needs batches."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


class _Parts(Dataset[Any]):
    """Errors are given as values: DataLoader would wrap them into text."""

    def __init__(self, prepare: Callable[[Tensor], Any]) -> None:
        self.prepare = prepare

    def __getitem__(self, part: Tensor) -> Any:
        try:
            return self.prepare(part)
        except (OSError, RuntimeError, ValueError) as error:
            return error
