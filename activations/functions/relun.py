"""ReLUN: a ReLU with a learned ceiling."""

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from activations.activation import Activation, Channels, finite


def relun(x: Tensor, n: Tensor) -> Tensor:
    """`min(max(0, x), n)` for n >= 0; `n` broadcasts against `x`."""
    return torch.where(x >= n, n, x.relu())


class ReLUN(Activation):
    r"""ReLU with a learned ceiling. Learned.

    .. math:: f(x) = \min(\max(0, x), n)

    Attributes:
        n: (num_parameters,), learned, not decayed; used as max(n, 0), with a gradient that is not 0
            below the bound either.

    Args:
        n: initial ceiling.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        min(relu(x), 1).

    Raises:
        ValueError: n is not finite or < 0, or the channels do not match.

    Reference:
        Pishchik, "Trainable activations for image classification", 2023, preprints 202301.0463.
        Deviation from it: the clamp of n.
    """

    formula = relun
    least: ClassVar[dict[str, float]] = {"n": 0.0}
    match_starts = ({"n": 6.0},)  # ReLU6

    def __init__(self, n: float = 1.0, **channels: Unpack[Channels]) -> None:
        super().__init__(**channels)
        self.n = self.learned("n", finite("n", n, least=0))
