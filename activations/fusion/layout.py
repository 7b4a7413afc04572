"""How the kernels see a tensor: few dimensions, whatever its shape and layout."""

import functools
from typing import NamedTuple

from torch import Tensor

_BLOCK, _ROW = 256, 4096  # elements that one partial sum takes in, channels last and first
_LEAST_ROW = 16  # shorter ones would be outweighed by their copies of the values


class View(NamedTuple):
    """Sizes and strides of a view of all of a tensor.

    (numel,) without channels. Else (rows, block), where each row has its own copy of the values
    and `copies` are those of each channel, (outer, inner); or (groups, C, pieces, block). A
    parameter's gradient is summed over a block within the kernel's loop, then over the rest.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    copies: tuple[int, int] | None = None

    def of(self, x: Tensor) -> Tensor:
        """The view of `x`, without a base, whose layout Dynamo would compile in."""
        return x.as_strided(self.sizes, self.strides, x.storage_offset()).data

    def broadcast(self, value: Tensor) -> Tensor:
        """A value for every row; without rows, the values of one term side by side."""
        if self.copies is None or not value.dim():
            several = len(self.sizes) == 4 and value.dim() == 2
            return value.detach().t().contiguous().t() if several else value.data
        outer, inner = self.copies
        channels = self.sizes[0] // (outer * inner)
        rows = value.detach()[None, :, None].expand(outer, channels, inner, *value.shape[1:])
        return rows.reshape(-1, *value.shape[1:]).contiguous()

    def gather(self, grad: Tensor, value: Tensor) -> Tensor:
        """The gradient of `value` from that of its copies."""
        if self.copies is None or not value.dim():
            return grad
        outer, inner = self.copies
        of_channels = grad.view(outer, -1, inner, *value.shape[1:]).sum((0, 2))
        return of_channels.sum_to_size(value.shape).to(value.dtype)


def view_of(x: Tensor, channel_dim: int | None, tables: bool) -> View | None:
    """How the kernels see `x`, whatever its layout; None where its elements are not packed."""
    if not x.is_contiguous():
        packed = 1
        for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
            if size > 1 and stride != packed:
                return None
            packed *= size
    if channel_dim is None:
        return View((x.numel(),), (1,))
    channels, inner = x.shape[channel_dim], x.stride(channel_dim)
    outer = x.numel() // (channels * inner)
    if inner == 1:
        block = _divisor(outer, _BLOCK)
        sizes, strides = (outer // block, channels, 1, block), (block * channels, 1, 1, channels)
        return View(sizes, strides)
    row = inner if inner <= _ROW else _divisor(inner, _ROW)
    if tables or row < _LEAST_ROW:
        sizes, strides = (outer, channels, inner // row, row), (channels * inner, inner, row, 1)
        return View(sizes, strides)
    return View((x.numel() // row, row), (row, 1), (outer, inner // row))


@functools.cache
def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` in 2 ... `most` that leaves 2 or more; `number` if none."""
    return next((d for d in range(min(most, number // 2), 1, -1) if number % d == 0), number)
