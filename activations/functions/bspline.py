"""A piecewise linear function with learned values at equidistant knots, and its look-up."""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from activations.activation import Activation, Channels, finite, integer, precise, rises
from activations.fusion.kernel import Expression
from activations.torch_private import is_exporting

Take = Callable[[Tensor, tuple[Tensor, ...]], Tensor]


def look_up(table: Tensor, index: tuple[Tensor, ...]) -> Tensor:
    """`table[index]` in the memory format of the last index, by int64, which ONNX asks for."""
    *row, cell = (part.long() for part in index)
    if row:
        cell = row[0] * table.shape[-1] + cell
    if cell.dim() == 0:  # torch.vmap cannot index by a single number
        return table.reshape(-1).index_select(0, cell.reshape(1))[0]
    if is_exporting():  # five times as fast in ONNX Runtime
        return table.reshape(-1).gather(0, cell.flatten()).view(cell.shape)
    return table.reshape(-1)[cell]


def interpolate(
    x: Tensor,
    table: Tensor,
    low: float,
    high: float,
    channel_dim: int,
    take: Take = look_up,
) -> tuple[Tensor, Tensor]:
    """Linear interpolation in `table`, (P, K + 1) values at equidistant knots from `low` to `high`.

    Row c serves channel c of `channel_dim`; a single row serves all. `x` lies in [low, high].
    Gradients are exact for both `x` and `table`. Returns the value and the interval's slope.
    `take(table, index)` looks up; a kernel has a faster one.
    """
    rows, cells = table.shape[0], table.shape[1] - 1
    scale = cells / (high - low)
    position = (x - low) * scale
    cell = position.to(torch.int32).clamp(0, cells - 1)  # whatever a NaN becomes
    fraction = position - cell
    table = table if rows > 1 else table[0]
    index = *row_of(x, rows, channel_dim), cell
    left = take(table[..., :-1], index)
    rise = take(rises(table), index)
    return left + rise * fraction, rise * scale


def row_of(x: Tensor, rows: int, channel_dim: int) -> tuple[Tensor, ...]:
    """The row of the table for each channel of `x`, or nothing where one row serves all."""
    if rows == 1:
        return ()
    shape = [1] * x.dim()
    shape[channel_dim] = rows
    return (torch.arange(rows, device=x.device, dtype=torch.int32).view(shape),)


def linear_spline(
    x: Tensor,
    values: Tensor,
    low: float | Tensor,
    high: float | Tensor,
    channel_dim: int = 1,
    take: Take = look_up,
) -> Tensor:
    """Interpolate `values` (P, K + 1) linearly; outside, continue the first and the last piece."""
    values = precise(values)
    rows, cells = values.shape[0], values.shape[1] - 1
    width = (high - low) / cells
    slopes = rises(values) / width
    left = low + width * torch.arange(cells, device=x.device, dtype=values.dtype)
    cell = ((x - low) / width).clamp(0, cells - 1).to(torch.int32)
    index = *row_of(x, rows, channel_dim), cell.clamp(0, cells - 1)  # whatever a NaN becomes
    lines = slopes, values[:, :-1] - slopes * left
    slope, start = (take(line if rows > 1 else line[0], index) for line in lines)
    return slope * x + start


class BSpline(Activation):
    r"""Uniform B-spline of degree 1, a piecewise linear unit (PWLU-like). Learned.

    .. math:: f(x) = \sum_{k=0}^{K} c_k B\left(\frac{x - l}{h} - k\right), \quad
        B(u) = \max(0, 1 - |u|), \quad h = (r - l) / K

    on [l, r]; outside, the first and the last piece continue as lines.

    Attributes:
        values: (num_parameters, pieces + 1), f at the knots, learned, not decayed.

    Args:
        pieces: K, >= 1.
        low: l, the first knot.
        high: r, the last knot.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        ReLU, up to rounding, if 0 is a knot.

    Raises:
        ValueError: pieces < 1, low >= high, or the channels do not match.

    Reference:
        Zhou et al., "Learning specialized activation functions with the piecewise linear unit",
        ICCV 2021, arXiv 2104.03693. Deviation from it: fixed, not statistics-based, bounds.
    """

    def __init__(
        self,
        pieces: int = 16,
        low: float = -3.0,
        high: float = 3.0,
        **channels: Unpack[Channels],
    ) -> None:
        super().__init__(**channels)
        self.low, self.high = finite("low", low), finite("high", high)
        if low >= high:
            raise ValueError(f"low must be < high, got {low!r} and {high!r}")
        count = integer("pieces", pieces) + 1
        knots = torch.linspace(low, high, count, dtype=torch.float64, device="cpu")
        self.values = self.learned_terms("values", knots.relu().tolist())

    def expression(self) -> Expression:
        """The spline with the current values."""
        return Expression(linear_spline, (), (self.low, self.high), (self.values,))
