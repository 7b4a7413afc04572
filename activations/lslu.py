"""LSLU: repeated learned shift-and-scale ReLUs ahead of a depthwise convolution."""

import copy
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor, nn

from .activation import Activation, finite, integer
from .compile import Expression


def lslu(x: Tensor, theta: Iterable[Tensor], omega: Iterable[Tensor]) -> Tensor:
    """Repeat `x <- theta_i relu(x) + omega_i` for i = 1..N, then a last relu."""
    for scale, shift in zip(theta, omega, strict=True):
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
        dims: 2 for images, 1 for signals.
        inplace: accepted and ignored.

    Shape: (N, C, H, W) -> same, or (N, C, L) -> same for dims = 1.

    Attributes: theta, omega: (repeats,), learned, not decayed. conv, norm: ordinary weights.

    At initialisation: the elementwise part is ReLU; the convolution is random.

    Raises: ValueError: the input has not `channels` channels and `dims` axes behind them, a count
    is out of range, or a number is not finite.

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
        dims: int = 2,
        inplace: bool = False,
    ) -> None:
        super().__init__(inplace=inplace)
        if dims not in (1, 2):
            raise ValueError(f"dims must be 1 or 2, got {dims!r}")
        self.channels, self.dims = integer("channels", channels), dims
        self.theta = nn.Parameter(
            torch.full((integer("repeats", repeats),), finite("theta", theta))
        )
        self.omega = nn.Parameter(torch.full((repeats,), finite("omega", omega)))
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv2d, nn.BatchNorm2d)
        self.conv = conv(
            channels, channels, 2 * repeats + 1, padding=repeats, groups=channels, bias=False
        )
        nn.init.trunc_normal_(self.conv.weight, std=0.02)
        self.norm = norm(channels, eps=1e-6)

    def fuse(self) -> Self:
        """A copy for deployment, equal to evaluation mode: the normalisation is in the convolution.

        The repeats stay: no scaling of the kernel can stand in for them.
        """
        fused = copy.deepcopy(self).eval()
        if isinstance(self.norm, nn.Identity):
            return fused
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        fused.conv.weight = nn.Parameter(
            (self.conv.weight * scale.view(-1, *[1] * (self.dims + 1))).detach()
        )
        fused.conv.bias = nn.Parameter((norm.bias - norm.running_mean * scale).detach())
        fused.norm = nn.Identity()
        return fused

    def check_input(self, x: Tensor) -> None:
        """Raise where `x` has other channels or axes."""
        super().check_input(x)
        if x.dim() != self.dims + 2 or x.shape[1] != self.channels:
            axes = "H, W" if self.dims == 2 else "L"
            raise ValueError(
                f"LSLU has channels={self.channels} and needs (N, {self.channels}, {axes}), "
                f"got an input of shape {tuple(x.shape)}"
            )

    def expression(self) -> Expression:
        """The repeats, ahead of the convolution."""
        return Expression(lslu, (self.theta[None], self.omega[None]))

    def forward(self, x: Tensor) -> Tensor:
        """The repeats, the depthwise convolution and the batch normalisation."""
        return self.norm(self.conv(super().forward(x))).to(x.dtype)
