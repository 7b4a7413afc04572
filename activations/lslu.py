"""LSLU: repeated learned shift-and-scale ReLUs ahead of a depthwise convolution."""

import torch
from torch import Tensor, nn

from .activation import Activation, finite


def lslu(x: Tensor, theta: Tensor, omega: Tensor) -> Tensor:
    """Repeat `x <- theta_i relu(x) + omega_i` for i = 1..N, then a last relu."""
    for scale, shift in zip(theta.unbind(), omega.unbind(), strict=True):
        x = scale * x.relu() + shift
    return x.relu()


class LSLU(Activation):
    r"""Learnable series linear unit. Learned, and spatial: it holds a convolution.

    .. math::
        x_0 = x, \quad x_i = \theta_i \max(x_{i-1}, 0) + \omega_i \ (i = 1..N), \quad
        f(x) = \mathrm{BN}(K * \max(x_N, 0))

    where K is a depthwise convolution of (2N+1) x (2N+1), stride 1, padding N, without bias,
    drawn from a truncated normal of deviation 0.02, and BN is batch normalisation (eps 1e-6).
    :meth:`function` is the elementwise part, ahead of the convolution.

    Args:
        channels: C of the input; `replace_activations` passes it.
        theta: initial amplitude of every repeat.
        omega: initial offset of every repeat.
        repeats: N, also the padding of the convolution.
        inplace: accepted and ignored.

    Shape: (N, C, H, W) -> same.

    Attributes: theta, omega: (repeats,), learned, not decayed. conv, norm: ordinary weights.

    At initialisation: the elementwise part is ReLU; the convolution is random.

    Raises: ValueError: the input is not (N, C, H, W) with C = channels, repeats < 1, or a number
    is not finite.

    Reference: Feng et al., "Activation function optimization scheme for image classification",
    2024, arXiv 2409.08283, as in the released module, where theta and omega are one number a
    repeat. Deviation from it: none.
    """

    def __init__(
        self,
        channels: int = 1,
        theta: float = 1.0,
        omega: float = 0.0,
        *,
        repeats: int = 3,
        inplace: bool = False,
    ) -> None:
        super().__init__(inplace=inplace)
        for name, value in (("channels", channels), ("repeats", repeats)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        self.channels = channels
        self.theta = nn.Parameter(torch.full((repeats,), finite("theta", theta)))
        self.omega = nn.Parameter(torch.full((repeats,), finite("omega", omega)))
        self.conv = nn.Conv2d(
            channels, channels, 2 * repeats + 1, padding=repeats, groups=channels, bias=False
        )
        nn.init.trunc_normal_(self.conv.weight, std=0.02)
        self.norm = nn.BatchNorm2d(channels, eps=1e-6)

    def check_input(self, x: Tensor) -> None:
        """Raise where `x` is not (N, channels, H, W)."""
        super().check_input(x)
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"LSLU has channels={self.channels} and needs (N, {self.channels}, H, W), "
                f"got an input of shape {tuple(x.shape)}"
            )

    def function(self, x: Tensor) -> Tensor:
        """The repeats, ahead of the convolution."""
        return lslu(x, self.theta, self.omega)

    def forward(self, x: Tensor) -> Tensor:
        """The repeats, the depthwise convolution and the batch normalisation."""
        return self.norm(self.conv(super().forward(x))).to(x.dtype)
