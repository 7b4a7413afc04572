"""How the kernels see a tensor: few dimensions, whatever its shape and layout."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK, _ROW = 256, 4096  # elements in one partial sum, with channels last and first
_VECTOR = 16  # elements
_LEAST_ROW = 16  # for a shorter row, its own copy of the values would cost too much


class View(NamedTuple):
    """Sizes and strides of a view of all of a tensor.

    The sizes are (numel,) without channels, or (rows, block) where each row has its own copy of the
    values. With channels they are (groups, C, pieces, block), or (rows, block) where each channel
    has outer * inner rows (`copies`). With channels last, several pixels may be seen as one that
    has a copy of each channel, so that they fill a vector of the processor. The gradient of a
    parameter is summed over each block, then over the rest.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    copies: tuple[int, int] | None = None

    def of(self, x: Tensor) -> Tensor:
        """The view of `x`, detached from it: Dynamo would specialise on the layout of `x`."""
        return x.as_strided(self.sizes, self.strides, x.storage_offset()).data

    def in_rows(self) -> "View":
        """The same as rows, if it has one size and many elements.

        Where a kernel sums more than 4096, Inductor keeps the sum in memory, and each step waits.
        """
        row = _row(self.sizes[0]) if len(self.sizes) == 1 else None
        return View((self.sizes[0] // row, row), (row, 1)) if row else self

    def broadcast(self, value: Tensor) -> Tensor:
        """The copies of `value`; with four sizes, each term is contiguous in memory."""
        value, apart = value.detach(), len(self.sizes) == 4
        if len(self.sizes) == 2 and self.copies is None:
            return value.expand(self.sizes[0], *value.shape[1:]).contiguous()
        if self.copies is not None and value.dim():
            outer, inner = self.copies
            channels = self.sizes[apart] // (outer * inner)
            rows = value[None, :, None].expand(outer, channels, inner, *value.shape[1:])
            value = rows.reshape(-1, *value.shape[1:]).contiguous()
        return value.t().contiguous().t() if apart and value.dim() == 2 else value.data

    def gather(self, grad: Tensor, value: Tensor) -> Tensor:
        """The gradient of `value`, from the gradients of its copies."""
        if self.copies is not None and value.dim():
            outer, inner = self.copies
            grad = grad.view(outer, -1, inner, *value.shape[1:]).sum((0, 2))
        return grad.sum_to_size(value.shape).to(value.dtype)


def packed(x: Tensor) -> Tensor:
    """`x`, or a copy of it if its elements have gaps between them or share memory."""
    fits = x.is_contiguous() or x.stride() == torch.empty_like(x, device="meta").stride()
    return x if fits else x.clone()


def view_of(x: Tensor, channel_dim: int | None, tables: bool) -> View:
    """How the kernels see a packed `x`, whatever its layout."""
    if channel_dim is None:
        return View((x.numel(),), (1,))
    channels, inner = x.shape[channel_dim], x.stride(channel_dim)
    outer = x.numel() // (channels * inner)
    if inner == 1:
        pixels = 1 if tables or x.device.type != "cpu" else _pixels(channels, outer)
        channels, outer = channels * pixels, outer // pixels
        block = _divisor(outer, _BLOCK)
        sizes, strides = (outer // block, channels, 1, block), (block * channels, 1, 1, channels)
        return View(sizes, strides, (pixels, 1) if pixels > 1 else None)
    row = inner if inner <= _ROW else _divisor(inner, _ROW)
    if tables or row < _LEAST_ROW:
        return View((outer, channels, inner // row, row), (channels * inner, inner, row, 1))
    return View((x.numel() // row, row), (row, 1), (outer, inner // row))


def _pixels(channels: int, outer: int) -> int:
    """How many of the `outer` pixels are seen as one, so that they fill vectors; 1 if all would."""
    several = math.gcd(_VECTOR // math.gcd(_VECTOR, channels), outer)
    return several if several < outer else 1


@functools.cache
def _row(number: int) -> int | None:
    """The largest divisor of a large `number` that is a row of whole vectors; None if none is."""
    rows = range(_ROW, _BLOCK - 1, -_VECTOR)
    return next((d for d in rows if number > _ROW and number % d == 0), None)


@functools.cache
def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` in 2 ... `most` that leaves 2 or more; `number` if none."""
    return next((d for d in range(min(most, number // 2), 1, -1) if number % d == 0), number)
