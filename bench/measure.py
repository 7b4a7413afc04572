"""The clock and the scales that the measurements share."""

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def now(device: torch.device | str = "cpu") -> float:
    """Seconds, once `device` has done what it was asked for."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def spread(times: Sequence[float]) -> float:
    """Half the distance of the quartiles, in % of the median."""
    low, middle, high = statistics.quantiles(times, n=4)
    return 50 * (high - low) / middle


def saved_bytes(forward: Callable[[], Any], own: Iterable[Tensor] = ()) -> int:
    """Bytes that `forward` keeps for its backward, each storage once, those of `own` not at all."""
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


class Turns:
    """A loader that waits for its turn before it hands out a batch.

    Attributes:
        wall: seconds of each turn: a batch is processed, and the next one made.
        processor: the same in processor time.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.loader = device, None
        self.wall: list[float] = []
        self.processor: list[float] = []
        self._error: BaseException | None = None
        self._go, self._back = threading.Event(), threading.Event()

    def over(self, loader: Any) -> "Turns":
        """Take turns with the batches of `loader`."""
        self.loader = self.sampler = loader  # Lightning calls sampler.set_epoch
        return self

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.loader)  # pyright: ignore[reportArgumentType]

    def __iter__(self) -> Iterator[Any]:
        """The loader's batches, one a turn."""
        for batch in self.loader:  # pyright: ignore[reportOptionalIterable]
            self._pause()
            yield batch

    def start(self, train: Callable[[], Any]) -> threading.Thread:
        """Run `train` up to its first batch, then let it wait."""

        def run() -> None:
            try:
                self._begin()
                train()
            except BaseException as error:
                self._error = error
            self._back.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._wait()
        return thread

    def step(self) -> None:
        """Give it one turn."""
        self._go.set()
        self._wait()

    def _wait(self) -> None:
        self._back.wait()
        self._back.clear()
        if self._error:
            raise self._error

    def _begin(self) -> None:
        self._wall, self._processor = now(self.device), time.process_time()

    def _pause(self) -> None:
        self.wall.append(now(self.device) - self._wall)
        self.processor.append(time.process_time() - self._processor)
        self._back.set()
        self._go.wait()
        self._go.clear()
        self._begin()
