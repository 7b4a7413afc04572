"""A piecewise linear function with learned values at equidistant knots, and its look-up."""

import operator
from collections.abc import Callable

import torch
from torch import Tensor

from .activation import Activation, finite, integer
from .compile import Expression

Take = Callable[[Tensor, Tensor], Tensor]


def interpolate(
    x: Tensor,
    table: Tensor,
    low: float,
    high: float,
    channel_dim: int,
    take: Take = operator.getitem,
) -> tuple[Tensor, Tensor]:
    """Linear interpolation in `table`, (P, K + 1) values at equidistant knots from `low` to `high`.

    Row c serves channel c of `channel_dim`; a single row serves all. Gradients are exact for both
    `x` and `table`. Returns the value, outside of [low, high] that of the nearest end, and the
    interval's slope. `take(values, index)` looks up; a kernel has a faster one.
    """
    rows, cells = table.shape[0], table.shape[1] - 1
    width = (high - low) / cells
    position = (x.clamp(low, high) - low) / width
    inside = position.detach().clamp(max=cells - 1)
    cell = torch.where(inside > 0, inside, 0.0).to(torch.int32)  # of NaN: 0
    fraction = position - cell
    if rows > 1:
        shape = [1] * x.dim()
        shape[channel_dim] = rows
        rows_before = torch.arange(rows, device=x.device, dtype=torch.int32).view(shape)
        cell = cell + rows_before * (cells + 1)
    values = table.reshape(-1)
    left = take(values, cell)
    rise = take(values, cell + 1) - left
    return left + rise * fraction, rise / width


def linear_spline(
    x: Tensor,
    values: Tensor,
    low: float,
    high: float,
    channel_dim: int = 1,
    take: Take = operator.getitem,
) -> Tensor:
    """Interpolate `values` (P, K + 1) linearly, going on along the end pieces outside."""
    inner, slope = interpolate(x, values, low, high, channel_dim, take)
    return inner + slope * (x - x.clamp(low, high))


class BSpline(Activation):
    r"""Uniform B-spline of degree 1, a piecewise linear unit (PWLU-like). Learned.

    .. math:: f(x) = \sum_{k=0}^{K} c_k B\left(\frac{x - l}{h} - k\right), \quad
        B(u) = \max(0, 1 - |u|), \quad h = (r - l) / K

    on [l, r]; outside, the end pieces go on as lines.

    Args:
        pieces: K, >= 1.
        low: l, the first knot.
        high: r, the last knot.
        num_parameters: 1, or C (the size of `channel_dim`).
        channel_dim: axis of the channels.
        inplace: accepted and ignored.

    Shape: (N, C, \*) -> same.

    Attributes: values: (num_parameters, pieces + 1), f at the knots, learned, not decayed.

    At initialisation: ReLU exactly, if 0 is a knot.

    Raises: ValueError: pieces < 1, low >= high, or the channels do not match.

    Reference: Zhou et al., "Learning specialized activation functions with the piecewise linear
    unit", ICCV 2021, arXiv 2104.03693. Deviation from it: fixed, not statistics-based, bounds.
    """

    def __init__(
        self,
        pieces: int = 16,
        low: float = -3.0,
        high: float = 3.0,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        inplace: bool = False,
    ) -> None:
        super().__init__(num_parameters, channel_dim, inplace=inplace)
        self.low, self.high = finite("low", low), finite("high", high)
        if low >= high:
            raise ValueError(f"low must be < high, got {low!r} and {high!r}")
        knots = torch.linspace(low, high, integer("pieces", pieces) + 1, dtype=torch.float64)
        self.values = self.learned("values", knots.relu().tolist())

    def expression(self) -> Expression:
        """The spline with the current values."""
        return Expression(linear_spline, (), (self.low, self.high), (self.values,))
