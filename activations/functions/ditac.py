"""DiTAC: GELU on top of a learned diffeomorphism (CPAB) of an interval."""

import functools
from collections.abc import Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from activations.activation import (
    Activation,
    Channels,
    choice,
    erfc,
    expm1,
    finite,
    inside,
    integer,
    positive,
    precise,
    rises,
)
from activations.fusion.kernel import Expression
from activations.torch_private import is_intercepted

from .bspline import Take, interpolate, look_up

Variant = Literal["gelu", "leaky", "ge", "inf"]


@functools.cache
def basis(cells: int) -> Tensor:
    """B (2 cells, cells - 1): orthonormal, spans the continuous fields with zero ends.

    Row 2c is the slope and row 2c + 1 the constant of the field v(x) = A[2c] x + A[2c + 1] on
    cell c of [0, 1], where A = B theta.
    """
    rows = torch.zeros(cells + 1, 2 * cells, dtype=torch.float64, device="cpu")
    for knot in range(cells + 1):  # v is 0 at both ends and continuous at the inner knots
        x = torch.tensor([knot / cells, 1.0], dtype=torch.float64, device="cpu")
        if knot > 0:
            rows[knot, 2 * knot - 2 : 2 * knot] = x
        if knot < cells:
            rows[knot, 2 * knot : 2 * knot + 2] -= x
    return torch.linalg.svd(rows).Vh[cells + 1 :].T.contiguous()


@functools.cache
def covariance(cells: int, length: float, variance: float) -> Tensor:
    """Sigma (cells - 1, cells - 1) = B' C B, the smoothness prior of theta.

    C = exp(-d / length)^2 (variance D)^2 for each of the two numbers of a cell by itself, with d
    the distances of the cells' centres on [-1, 1] and D = 2 cells.
    """
    centres = torch.arange(cells, dtype=torch.float64, device="cpu") * 2 / cells
    between = torch.exp(-(centres[:, None] - centres).abs() / length) ** 2
    identity = torch.eye(2, dtype=torch.float64, device="cpu")
    full = torch.kron(between, identity) * (variance * 2 * cells) ** 2
    return basis(cells).T @ full @ basis(cells)


@functools.cache
def knot_basis(cells: int) -> Tensor:
    """(cells - 1, cells + 1): the field of each coordinate of theta at the knots of [0, 1]."""
    slopes, constants = basis(cells)[0::2], basis(cells)[1::2]
    left = torch.arange(cells, dtype=torch.float64, device="cpu")[:, None] / cells
    return torch.cat([slopes * left + constants, slopes.new_zeros(1, cells - 1)]).T.contiguous()


def cpab(x: Tensor, velocities: Tensor) -> Tensor:
    """Flow points of [0, 1] for unit time along a piecewise affine field, in closed form.

    Args:
        x: (K,) points.
        velocities: (P, cells + 1) values of the field v at equidistant knots, 0 at both ends.

    Returns:
        (P, K): the solution at t = 1 of dx/dt = v(x), x(0) = x, differentiable by `velocities`.
    """
    rows, cells = velocities.shape[0], velocities.shape[1] - 1
    slopes = rises(velocities) * cells
    x = x.to(velocities).expand(rows, -1)
    cell = (x.detach() * cells).long().clamp(0, cells - 1)
    left = torch.ones_like(x)  # time that is left
    # elsewhere looking at the values costs more than the remaining steps
    can_stop = x.device.type == "cpu" and not is_intercepted()
    for _ in range(cells + 1):  # a point on a knot first leaves the cell behind it
        if can_stop and not bool(left.any()):
            break
        slope = slopes.gather(1, cell)
        speed = velocities.gather(1, cell) + slope * (x - cell.to(x) / cells)
        forward = (speed.detach() > 0).long()
        way = (cell + forward).to(x) / cells - x  # to the wall
        # the time to it is log(speed there / speed here) / slope, infinite if v is 0 on the way
        steady = torch.where(speed.detach() == 0, 1.0, speed)
        ratio = slope * way / steady
        arrives = (speed.detach() != 0) & (ratio.detach() > -1)
        time = way / steady * _log1p_over(torch.where(arrives, ratio, 0.0))
        leaves = arrives & (time.detach() < left.detach())
        stay = torch.where(leaves, 0.0, left)
        x = torch.where(leaves, x + way, x + speed * stay * _expm1_over(slope * stay))
        left = torch.where(leaves, left - time, 0.0)
        cell = torch.where(leaves, cell + 2 * forward - 1, cell).clamp(0, cells - 1)
    return x


def _log1p_over(r: Tensor) -> Tensor:
    """log(1 + r) / r for r > -1, 1 at r = 0."""
    small = r.detach().abs() < 1e-4
    safe, near = torch.where(small, 1.0, r), r.clamp(-1e-4, 1e-4)
    return torch.where(small, 1 - near / 2 + near * near / 3, torch.log1p(safe) / safe)


def _expm1_over(z: Tensor) -> Tensor:
    """(exp(z) - 1) / z, 1 at z = 0."""
    small = z.detach().abs() < 1e-4
    safe, near = torch.where(small, 1.0, z), z.clamp(-1e-4, 1e-4)
    return torch.where(small, 1 + near / 2 + near * near / 6, expm1(safe) / safe)


def transform(
    x: Tensor,
    ends: Sequence[Tensor],
    table: Tensor,
    a: float,
    b: float,
    variant: Variant,
    channel_dim: int = 1,
    take: Take = look_up,
) -> Tensor:
    """T(x), interpolated in `table`; `ends` are T's slopes at a and b."""
    if variant != "inf":
        within = (x > a) & (x < b)
        value, _ = interpolate(torch.where(within, x, a), table, a, b, channel_dim, take)
        return torch.where(within, value, x)
    below, above = (end.clamp(max=torch.finfo(x.dtype).max) for end in ends)  # inf * 0 is no number
    value, _ = interpolate(x.clamp(a, b), table, a, b, channel_dim, take)
    outside = below * torch.where(x < a, x - a, 0.0) + above * torch.where(x > b, x - b, 0.0)
    return value + outside


def ditac(
    x: Tensor,
    ends: Sequence[Tensor],
    table: Tensor,
    a: float,
    b: float,
    variant: Variant,
    **how: Any,
) -> Tensor:
    """The variant's formula; the arguments are those of `transform`, which computes T(x)."""
    moved = transform(x, ends, table, a, b, variant, **how)
    if variant == "ge":
        return torch.where(x >= 0, moved, F.gelu(x))
    if variant == "leaky":
        return F.leaky_relu(moved, 0.01)
    normal_cdf = 0.5 * erfc(x * -(0.5**0.5))
    return inside(moved) * normal_cdf


class DiTAC(Activation):
    r"""Diffeomorphic trainable activation. Learned.

    .. math:: f(x) = T(x)\, \Phi(x), \qquad T = \text{the flow of } \dot x = v_\theta(x)
        \text{ for unit time on } [a, b], \text{ the identity outside}

    with Phi the standard normal distribution function and v a continuous field, affine on each of
    `cells` equal cells and 0 at a and b (CPAB). T is computed in closed form at `table` + 1
    equidistant knots and interpolated linearly between them, with an error of at most
    h^2 max|T''| / 8, h = (b - a) / table, wherever T'' exists. Gradients are those of the
    interpolant, exact.

    Attributes:
        theta: (num_parameters, cells - 1), learned, not decayed.

    Args:
        cells: of the field, >= 2.
        a: left end of the interval; by default -0.5, and 0 for the variant ge.
        b: right end.
        theta: `zero` makes T the identity; `prior` draws it from the smoothness prior.
        length: correlation length of the prior, > 0.
        variance: scale of the prior, > 0.
        penalty_weight: of theta' Sigma^-1 theta, which `activations.penalty` adds to the loss.
        table: intervals of the look-up table.
        variant: our readings of the paper's others: `leaky` LeakyReLU(T(x)), slope 0.01; `ge` T(x)
            for x >= 0, GELU(x) for x < 0; `inf` DiTAC whose T continues outside as its
            tangents at a and b.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        GELU, up to the rounding of the table.

    Raises:
        ValueError: cells < 2, a >= b, a number out of range, or the channels do not match.

    Reference:
        Chelly et al., "Trainable highly-expressive activation functions", ECCV 2024, arXiv
        2407.07564. Deviation from it: theta starts at 0, not from the prior, whose released
        constants move points by several interval widths a unit time, so that T is almost a step;
        interpolation instead of rounding in the table; the penalty is a loss term; the released
        gradient of theta is 9 times too large.
    """

    variants = tuple({"variant": variant} for variant in ("gelu", "leaky", "ge", "inf"))
    gallery_step = 4.0

    knots: Tensor
    precision: Tensor

    def __init__(
        self,
        cells: int = 10,
        a: float | None = None,
        b: float = 2.0,
        *,
        theta: Literal["zero", "prior"] = "zero",
        length: float = 5.0,
        variance: float = 2.0,
        penalty_weight: float = 0.1,
        table: int = 2048,
        variant: Variant = "gelu",
        **channels: Unpack[Channels],
    ) -> None:
        super().__init__(**channels)
        self.variant: Variant = choice("variant", variant, "gelu", "leaky", "ge", "inf")
        self.table = integer("table", table)
        start = 0.0 if variant == "ge" else -0.5
        self.a, self.b = finite("a", start if a is None else a), finite("b", b)
        if self.a >= self.b:
            raise ValueError(f"a must be < b, got {self.a!r} and {b!r}")
        self.penalty_weight = finite("penalty_weight", penalty_weight, least=0)
        self.drawn = choice("theta", theta, "prior", "zero") == "prior"
        self.prior = (
            integer("cells", cells, 2),
            positive("length", length),
            positive("variance", variance),
        )
        self.theta = self.learned_terms("theta", [0.0] * (cells - 1))
        self.register_buffer("knots", torch.empty(cells - 1, cells + 1, **self.made_as))
        self.register_buffer("precision", torch.empty(cells - 1, cells - 1, **self.made_as))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew."""
        super().reset_parameters()
        prior = covariance(*self.prior)
        self.knots.copy_(knot_basis(self.prior[0]))
        self.precision.copy_(prior.inverse())
        if self.drawn:
            factor = torch.linalg.cholesky(prior).to(self.theta)
            self.theta.copy_(torch.randn_like(self.theta) @ factor.T)

    def penalty(self) -> Tensor | None:
        """`penalty_weight theta' Sigma^-1 theta`, summed over the channels."""
        if self.penalty_weight == 0:
            return None
        whole = getattr(self.theta, "full_tensor", None)  # of what is sharded
        theta = precise(whole() if whole else self.theta)
        # no matrix product, which autocast would make one of half precision
        product = (theta[:, :, None] * self.precision.to(theta)).sum(1)
        return self.penalty_weight * (product * theta).sum()

    def table_and_ends(self) -> tuple[Tensor, Tensor]:
        """T at the knots of the table, and its slopes at a and b: (P, table + 1) and (P, 2)."""
        wide = torch.float32 if self.theta.device.type == "mps" else torch.float64
        velocities = self.theta.to(wide) @ self.knots.to(wide)
        grid = torch.linspace(0, 1, self.table + 1, dtype=wide, device=self.theta.device)
        flowed = self.a + (self.b - self.a) * cpab(grid, velocities)
        # the flow's slope at an end is exp of the field's slope there
        ends = (rises(velocities) * (velocities.shape[1] - 1)).exp()[:, [0, -1]]
        dtype = precise(self.theta).dtype
        return flowed.to(dtype), ends.to(dtype)

    def transform(self, x: Tensor) -> Tensor:
        """T(x), interpolated."""
        table, ends = self.table_and_ends()
        terms = self.terms(ends, x)
        return transform(x, terms, table, self.a, self.b, self.variant, self.channel_dim)

    def expression(self) -> Expression:
        """The variant's formula."""
        table, ends = self.table_and_ends()
        return Expression(ditac, (ends,), (self.a, self.b, self.variant), (table,))
