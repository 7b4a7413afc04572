"""Clocks, turns, statistics and generated images that the measurements share."""

import functools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pandas import DataFrame
from torch import Tensor, nn

from activations import Activation
from activations.fusion import kernel
from datamodules import CIFAR10
from datamodules.loader import ImageLoader


def now(device: torch.device | str = "cpu") -> float:
    """Seconds on a clock, read when `device` has finished its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(run: Callable[[], Any], device: torch.device | str = "cpu") -> dict[str, float]:
    """Seconds that `run` takes: elapsed time (`wall`) and processor time (`processor`)."""
    start, processor = now(device), time.process_time()
    run()
    return {"wall": now(device) - start, "processor": time.process_time() - processor}


def in_turns(
    things: Mapping[Any, Callable[[], Mapping[str, float]]], rounds: int
) -> dict[str, DataFrame]:
    """Measure each of `things` once a round, in a new random order in each round.

    Returns for each quantity a table with a row for each round and a column for each thing.
    """
    found: dict[Any, list[Mapping[str, float]]] = {key: [] for key in things}
    for k in range(rounds):
        for key in random.Random(k).sample(list(things), len(things)):
            found[key].append(things[key]())
    tables = {key: DataFrame(results) for key, results in found.items()}
    quantities = next(iter(tables.values()))
    return {name: DataFrame({key: tables[key][name] for key in tables}) for name in quantities}


def summarize(
    times: Mapping[str, DataFrame], references: Mapping[str, Callable[[Any], Any]], unit: str
) -> DataFrame:
    """The statistics of each quantity that :func:`in_turns` has measured, one row for each thing.

    `references` says for each name which thing a given thing is compared with.
    """
    scale, columns = {"s": 1, "ms": 1e3}[unit], {}
    for name, each in times.items():
        median = each.median()
        columns[f"{name}_{unit}"] = scale * median
        columns[f"{name}_least_{unit}"] = scale * each.min()
        between = each.quantile(0.75) - each.quantile(0.25)
        columns[f"{name}_spread_percent"] = 50 * between / median
        for other, of in references.items():
            columns[f"{name}_to_{other}"] = median / [median[of(key)] for key in each]
    return DataFrame(columns)


@contextmanager
def locked(file: str | None, *, alone: bool) -> Iterator[None]:
    """Hold a lock of all processes that name this file, if one is given.

    One holds it `alone`, with nobody else; the others hold it together, and wait meanwhile.
    """
    if not file:
        yield
        return
    import fcntl  # not on Windows

    with open(f"{file}.gate", "a") as gate, open(file, "a") as lock:
        fcntl.flock(gate, fcntl.LOCK_EX)  # who wants it alone lets nobody else in
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def check_kernels(model: nn.Module, mode: str, device: str) -> None:
    """Stop where what was asked for is not what runs, so that its times have the wrong name.

    Raises:
        RuntimeError: an activation was not compiled, or not computed in blocks.
    """
    for module in model.modules():
        expression = module.expression() if isinstance(module, Activation) else None
        failed = expression and kernel.given_up(expression, device, compiled=mode == "activations")
        if failed and mode in ("activations", "off"):
            raise RuntimeError(
                f"{type(module).__name__} in mode {mode} {failed} (see the warning above): mend "
                "that, or measure other modes (--modes)"
            )


def saved_bytes(forward: Callable[[], Any], own: Iterable[Tensor] = ()) -> int:
    """Bytes that `forward` keeps for its backward pass, without the storages of `own`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()
    del kept
    return sum(found.values())


@functools.cache
def _images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def generated(count: int, batch_size: int, device: str = "cpu") -> ImageLoader:
    """Training batches of `count` random images of CIFAR's shape; all loaders share the images."""
    every, data = torch.arange(count), CIFAR10(batch_size=batch_size)
    return ImageLoader(data, _images(count), every % 10, every, training=True, device=device)


class Turns:
    """A loader that waits for its turn before it gives the next batch to its training thread."""

    def __init__(self, loader: Any, device: str = "cpu") -> None:
        self.loader, self.device = loader, device
        self.sampler = loader.sampler  # Lightning calls its `set_epoch`
        self._error: BaseException | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """The loader's batches, one a turn."""
        for batch in self.loader:
            self._back.release()
            self._go.acquire()
            yield batch

    def start(self, train: Callable[[], Any]) -> None:
        """Let `train` begin in a thread of its own, at the first turn."""

        def run() -> None:
            self._go.acquire()
            try:
                train()
            except BaseException as error:
                self._error = error
            self._back.release()

        threading.Thread(target=run, daemon=True).start()

    def step(self) -> dict[str, float]:
        """Let the training go on until it has its next batch; the seconds that this takes."""
        seconds = timed(self._turn, self.device)
        if self._error:
            raise self._error
        return seconds

    def _turn(self) -> None:
        self._go.release()
        self._back.acquire()


def compile_all() -> None:
    """Let torch.compile take any number of networks: after 8 of one class it runs them as they are.

    They share the code of `forward`, and with it Dynamo's limit.
    """
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, name, 10_000)
