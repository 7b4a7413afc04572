"""Dynamic ReLU: a maximum of lines whose coefficients a small network draws from the input."""

import functools
from typing import Unpack

import torch
from torch import Tensor, nn

from activations.activation import Activation, Options, integer, precise


def dynamic_relu(x: Tensor, slopes: list[Tensor], offsets: list[Tensor]) -> Tensor:
    """`max_k (a_k x + b_k)`; coefficients broadcast against `x`."""
    lines = [a * x + b for a, b in zip(slopes, offsets, strict=True)]
    return functools.reduce(torch.maximum, lines)


class DynamicReLU(Activation):
    r"""Dynamic ReLU, variant B: one pair of lines a sample and channel. Learned.

    .. math::
        f(x_c) = \max_{k=1,2} (a_k^c x_c + b_k^c), \quad
        a_k^c = \alpha_k + \lambda_a\, \Delta a_k^c(x), \quad
        b_k^c = \beta_k + \lambda_b\, \Delta b_k^c(x)

    where the residuals in (-1, 1) are 2 sigmoid(z) - 1, and z comes from global average pooling, a
    linear layer to C / reduction, ReLU and a linear layer to 4 C.

    Attributes:
        squeeze: linear layers, ordinary weights.
        excite: linear layers, ordinary weights.

    Args:
        channels: C of the input; `replace_activations` passes it.
        reduction: C divided by the width of the hidden layer.
        options: see :class:`activations.Options`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        ReLU exactly (alpha = (1, 0), beta = 0, excite starts at 0).

    Raises:
        ValueError: a number < 1, or an input without `channels` on axis 1.

    Reference:
        Chen et al., "Dynamic ReLU", ECCV 2020, arXiv 2003.10027, equations 2 and 3, with lambda_a =
        1, lambda_b = 0.5. Deviation from it: the last layer starts at 0.
    """

    size_arguments = ("channels",)

    def __init__(self, channels: int = 1, reduction: int = 8, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.channels = integer("channels", channels)
        hidden = max(channels // integer("reduction", reduction), 1)
        self.squeeze = nn.Linear(channels, hidden, **self.made_as)
        self.excite = nn.Linear(hidden, 4 * channels, **self.made_as)
        self._start_at_relu()

    def reset_parameters(self) -> None:
        """Start anew."""
        super().reset_parameters()
        self._start_at_relu()

    def _start_at_relu(self) -> None:
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)

    def function(self, x: Tensor) -> Tensor:
        """The curve to draw: the lines for a pooled input of 0, averaged over the channels."""
        return self._lines(x, self._residuals(x.new_zeros(1, self.channels)).mean(1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        """The maximum of each sample's and channel's own lines."""
        self.check_input(x)
        wide = precise(x)
        pooled = wide.flatten(2).mean(2) if x.dim() > 2 else wide
        residuals = self._residuals(pooled.to(x.dtype))
        return self._lines(wide, residuals.view(*x.shape[:2], *[1] * (x.dim() - 2), 4)).to(x.dtype)

    def _residuals(self, pooled: Tensor) -> Tensor:
        pooled = pooled.to(self.squeeze.weight.dtype)
        raw = self.excite(self.squeeze(pooled).relu()).view(-1, self.channels, 4)
        return 2 * torch.sigmoid(precise(raw)) - 1

    @staticmethod
    def _lines(x: Tensor, residuals: Tensor) -> Tensor:
        a1, a2, b1, b2 = residuals.unbind(-1)
        return dynamic_relu(x, [1 + a1, a2], [0.5 * b1, 0.5 * b2])
