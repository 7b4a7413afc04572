"""LSLU: a series activation with learned amplitudes and offsets ahead of its convolution."""

from collections.abc import Iterable
from typing import Unpack

from torch import Tensor

from activations.activation import Options, integer
from activations.fusion.kernel import Expression

from .seriesrelu import SeriesReLU


def lslu(x: Tensor, theta: Iterable[Tensor], omega: Iterable[Tensor]) -> Tensor:
    """Repeat `x <- theta_i relu(x) + omega_i` for i = 1..N, then a last relu."""
    for scale, shift in zip(theta, omega, strict=True):
        x = scale * x.relu() + shift
    return x.relu()


class LSLU(SeriesReLU):
    r"""Learnable series linear unit, which holds a convolution. Learned.

    .. math::
        x_0 = x, \quad x_i = \theta_i \max(x_{i-1}, 0) + \omega_i \ (i = 1..N), \quad
        f(x) = \mathrm{BN}(K * \max(x_N, 0))

    where K and BN are those of :class:`SeriesReLU`. :meth:`function` is the elementwise part,
    ahead of the convolution.

    Attributes:
        theta: (repeats,), learned, not decayed.
        omega: (repeats,), learned, not decayed.
        conv: the depthwise convolution, an ordinary weight.
        norm: the batch normalisation, ordinary weights.

    Args:
        channels: C of the input; `replace_activations` passes it.
        theta: initial amplitude of every repeat.
        omega: initial offset of every repeat.
        repeats: N, also the padding of the convolution.
        dims: 2 for images, 1 for signals, 3 for video.
        options: see :class:`activations.Options`.

    Shape:
        (N, C, H, W) -> same; (N, C, L) for dims = 1, (N, C, D, H, W) for dims = 3.

    Initialisation:
        the elementwise part is ReLU, so that it is SeriesReLU; the convolution is random.

    Raises:
        ValueError: the input has not `channels` channels and `dims` axes behind them, a count is
            out of range, or a number is not finite.

    Reference:
        Feng et al., "Activation function optimization method: learnable series linear units
        (LSLUs)", 2024, arXiv 2409.08283, as in the released module, where theta and omega are one
        number a repeat.
        Deviation from it: none.
    """

    def __init__(
        self,
        channels: int = 1,
        theta: float = 1.0,
        omega: float = 0.0,
        *,
        repeats: int = 3,
        dims: int = 2,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(channels, integer("repeats", repeats), dims=dims, **options)
        self.theta = self.learned("theta", theta, repeats)
        self.omega = self.learned("omega", omega, repeats)

    def expression(self) -> Expression:
        """The repeats, ahead of the convolution."""
        return Expression(lslu, (self.theta[None], self.omega[None]))
