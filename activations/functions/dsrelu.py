"""DSReLU: a ReLU-like unit whose positive slope follows training progress."""

import math
from typing import Unpack

import torch
from torch import Tensor

from activations.activation import Activation, Options, choice, finite, positive
from activations.fusion.kernel import Expression


def dsrelu(x: Tensor, slope: Tensor, negative_slope: float = 1.0) -> Tensor:
    """`slope x` where x > 0, else `negative_slope x`."""
    return torch.where(x > 0, slope * x, negative_slope * x)


class DSReLU(Activation):
    r"""Dynamic-slope rectified linear unit. Scheduled.

    .. math::
        f(x; t) = \begin{cases} s(t)\, x & x > 0 \\ x & x \le 0 \end{cases}
        \qquad s(t) = a + \frac{b - a}{1 + e^{-k (t - 0.5)}}

    with t the training progress from 0 to 1, set through :meth:`set_progress`. Where the slope
    still falls while the learning rate goes to 0, the network loses all that it learned; and at
    a slope of 1 it is linear. Let the slope arrive early and away from 1: `normalized=True` and
    `train.py --schedule.end 0.3` were the best of the schedules tried, a constant slope
    (`a = b = 3.49`, as the authors ran it) was better. ReLU was better than all of them:
    docs/findings.md.

    Attributes:
        slope: (), the current s(t), a persistent buffer.

    Args:
        a: slope the schedule comes from; default tan 85 degrees.
        b: slope the schedule goes to; default tan 10 degrees.
        k: steepness of the logistic.
        normalized: stretch the logistic so that s(0) = a and s(1) = b exactly; as published it
            starts at a + 0.076 (b - a) and ends at b - 0.076 (b - a) for k = 5.
        negative_slope: slope for x <= 0; 1 in the paper.
        options: see :class:`activations.Options`.

    Shape:
        any -> same.

    Initialisation:
        t = 0, slope 10.58 on the positive side, the identity on the negative.

    Raises:
        ValueError: a number is not finite, k <= 0, or progress lies outside [0, 1].

    Reference:
        Chakraborti and Chaudhuri, "DSReLU: a novel dynamic slope function for superior model
        training", 2024, arXiv 2408.09156. Deviation from it: none by default. The authors' code
        uses a = tan 75 degrees, b = tan 30 degrees.
    """

    size_arguments = ()
    slope: Tensor

    def __init__(
        self,
        a: float = math.tan(math.radians(85)),
        b: float = math.tan(math.radians(10)),
        k: float = 5.0,
        *,
        normalized: bool = False,
        negative_slope: float = 1.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.a, self.b, self.k = finite("a", a), finite("b", b), positive("k", k)
        self.normalized = choice("normalized", normalized, False, True)
        self.negative_slope = finite("negative_slope", negative_slope)
        self.state("slope", self.slope_at(0.0))

    def slope_at(self, progress: float) -> float:
        """s(t), the slope of the positive side, at t = `progress`."""
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress must lie in [0, 1], got {progress!r}")
        fraction = _sigmoid(self.k * (progress - 0.5))
        if self.normalized:  # (S(t) - S(0)) / (S(1) - S(0)), also for small k
            fraction = 0.5 + 0.5 * math.tanh(self.k * (progress - 0.5) / 2) / math.tanh(self.k / 4)
        return self.a + (self.b - self.a) * fraction

    def set_progress(self, progress: float) -> None:
        """Move the slope to s(progress), in place."""
        self.slope.fill_(self.slope_at(progress))

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        return Expression(dsrelu, (self.slope,), (self.negative_slope,))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(x, -700.0)))
