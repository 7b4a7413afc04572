"""A formula computed in blocks that fit the cache, without a compiler.

A chain of torch's functions walks over the whole tensor once for each of them, and keeps most of
their results for the backward pass. Here a block goes through all of them while it stays in the
cache, and only the input is kept: the backward pass computes each block again.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from activations.torch_private import operations

from .program import Program
from .simplify import simplify

BLOCK = 131_072  # elements; smaller ones fit a smaller cache, but more calls cost more
SIZES = 16  # of blocks, for which a function is traced
_TRACING = threading.RLock()  # torch's tracer changes classes for all threads


class UntraceableError(RuntimeError):
    """A formula that asks for values of its input, or is not elementwise."""


def worth_it(x: Tensor) -> bool:
    """Whether `x` has enough elements for several blocks."""
    return x.device.type == "cpu" and x.numel() >= least()


def least() -> int:
    """The elements of an input from which it goes in blocks."""
    return 2 * _size()


def _size() -> int:
    # torch gives each thread 32,768 elements
    return BLOCK * max(1, torch.get_num_threads() // 4)


class Blocks:
    """A forward or backward of a kernel (`needed` is None or given), called block by block.

    The first axis of the input is cut; so are those of its gradient and, in a view of rows, of the
    values, which have a copy for each row. The operations are traced once for a size of blocks.
    """

    def __init__(
        self, function: Callable[..., Any], number_of_values: int, needed: tuple[bool, ...] | None
    ) -> None:
        self.function, self.number, self.needed = function, number_of_values, needed
        self._programs: dict[Any, Program] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        """What the function returns for the whole inputs."""
        return self._forward(*inputs) if self.needed is None else self._backward(*inputs)

    def _forward(self, x: Tensor, *values: Tensor) -> Tensor:
        y, cut, run = torch.empty_like(x), self._cut(x, values), None
        for here, _ in _places(x):
            inputs = x[here], *_at(here, values, cut)
            run = run or self._program(*inputs).start()
            run(y[here], *inputs)
        return y

    def _backward(self, x: Tensor, grad: Tensor, *values: Tensor) -> list[Tensor]:
        assert self.needed is not None
        cut, wide = self._cut(x, values), torch.promote_types(x.dtype, torch.float32)
        found = [torch.zeros_like(value, dtype=wide) for value in values]
        of_x, (of_input, *wanted), run = torch.empty_like(x), self.needed, None
        for here, again in _places(x):
            part, into = grad[here], of_x[here]
            if again:  # the block before has had these
                part, into = part.clone(), into.clone()
                part[:again] = 0
            inputs = x[here], part, *_at(here, values, cut)
            run = run or self._program(*inputs).start()
            new = iter(run(into, *inputs)[of_input:])
            if again:
                of_x[here][again:] = into[again:]
            for total, is_cut, want in zip(found, cut, wanted, strict=True):
                if want:
                    (total[here] if is_cut else total).add_(next(new))
        every = zip((of_x, *found), self.needed, strict=True)
        return [each for each, need in every if need]

    def _cut(self, x: Tensor, values: tuple[Tensor, ...]) -> list[bool]:
        rows = x.dim() == 2
        return [rows and k < self.number and v.dim() > 0 for k, v in enumerate(values)]

    def _program(self, *inputs: Tensor) -> "Program | _AsItIs":
        like = tuple((each.shape, each.stride(), each.dtype) for each in inputs)
        with _TRACING:
            if like not in self._programs:
                if len(self._programs) >= SIZES:
                    return _AsItIs(self.function, self._fills)
                self._programs[like] = self._trace(*inputs)
            return self._programs[like]

    @property
    def _fills(self) -> bool:
        return self.needed is None or self.needed[0]

    def _trace(self, *inputs: Tensor) -> Program:
        try:
            traced = simplify(operations(self.function, inputs))
            program = Program(traced, inputs, self._fills)
        except Exception as error:
            raise UntraceableError(str(error)) from error
        if self.needed is None:
            self._check(*inputs)
        return program

    def _check(self, x: Tensor, *values: Tensor) -> None:
        """Half of a block has the same values by itself."""
        half = slice(len(x) // 2)
        alone = self.function(x[half], *_at(half, values, self._cut(x, values)))
        among = self.function(x, *values)[half]
        most = min(1e-2, 1e3 * torch.finfo(x.dtype).eps)
        sizes = among.nan_to_num(0.0, 0.0, 0.0).abs()
        least = most * float(sizes.amax()) if sizes.numel() else 0.0
        if not torch.allclose(alone, among, most, least, equal_nan=True):
            raise UntraceableError("it is not elementwise")


class _AsItIs(NamedTuple):
    """A function of a block that is not traced: with ever new sizes, tracing costs more."""

    function: Callable[..., Any]
    fills: bool

    def start(self) -> Callable[..., Any]:
        def run(into: Tensor, *inputs: Tensor) -> Any:
            found = self.function(*inputs)
            if self.fills:
                into.copy_(found if isinstance(found, Tensor) else found[0])
            return found

        return run


def _places(x: Tensor) -> Iterator[tuple[slice, int]]:
    """Slices of one size along the first axis; how many rows of each were in the one before."""
    length = len(x)
    step = max(1, min(length, _size() * length // x.numel()))
    for start in range(0, length, step):
        first = min(start, length - step)  # the last one ends with `x`
        yield slice(first, first + step), start - first


def _at(here: slice, values: tuple[Tensor, ...], cut: list[bool]) -> Iterator[Tensor]:
    return (value[here] if is_cut else value for value, is_cut in zip(values, cut, strict=True))
