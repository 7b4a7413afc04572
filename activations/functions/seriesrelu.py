"""SeriesReLU: VanillaNet's series activation."""

import copy
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from activations.activation import Activation, Options, choice, integer


class SeriesReLU(Activation):
    r"""ReLUs of neighbouring pixels, summed by a convolution whose weights are learned. Fixed.

    .. math:: f(x) = \mathrm{BN}(K * \max(x, 0))

    where K is a depthwise convolution of (2N+1) x (2N+1), stride 1, padding N, without bias,
    drawn from a truncated normal of deviation 0.02, and BN is batch normalisation (eps 1e-6).
    :meth:`function` is the elementwise part, ahead of the convolution.

    Attributes:
        conv: the depthwise convolution, an ordinary weight.
        norm: the batch normalisation, ordinary weights.

    Args:
        channels: C of the input; `replace_activations` passes it.
        order: N, how many neighbours the sum reaches on each side.
        dims: 2 for images, 1 for signals, 3 for video.
        options: see :class:`activations.Options`.

    Shape:
        (N, C, H, W) -> same; (N, C, L) for dims = 1, (N, C, D, H, W) for dims = 3.

    Initialisation:
        the convolution is random.

    Raises:
        ValueError: the input has not `channels` channels and `dims` axes behind them, or a count is
            out of range.

    Reference:
        Chen et al., "VanillaNet: the power of minimalism in deep learning", 2023, arXiv 2305.12972,
        as in the released code, whose normalisation stands in for the paper's biases. Deviation
        from it: none.
    """

    formula = torch.relu  # ahead of the convolution
    size_arguments = ("channels", "dims")

    def __init__(
        self, channels: int = 1, order: int = 3, *, dims: int = 2, **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        self.channels, self.dims = integer("channels", channels), choice("dims", dims, 1, 2, 3)
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        size = 2 * integer("order", order) + 1
        how: dict[str, Any] = {"padding": order, "groups": channels, "bias": False, **self.made_as}
        self.conv = conv(channels, channels, size, **how)
        nn.init.trunc_normal_(self.conv.weight, std=0.02)
        self.norm = norm(channels, eps=1e-6, **self.made_as)

    def reset_parameters(self) -> None:
        """Start anew."""
        super().reset_parameters()
        nn.init.trunc_normal_(self.conv.weight, std=0.02)

    def fuse(self) -> Self:
        """A copy in evaluation mode with the normalisation folded into the convolution."""
        fused = copy.deepcopy(self).eval()
        if not isinstance(fused.norm, nn.Identity):
            fused.conv = fuse_conv_bn_eval(fused.conv, fused.norm)
            fused.norm = nn.Identity()
        return fused

    def forward(self, x: Tensor) -> Tensor:
        """The elementwise part, the depthwise convolution and the batch normalisation."""
        return self.norm(self.conv(super().forward(x))).to(x.dtype)
