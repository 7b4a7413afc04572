"""ReLUN and ShiLU: a ReLU with a learned ceiling, and a scaled and shifted one."""

import torch
from torch import Tensor

from .activation import Activation, at_least
from .compile import Expression


def relun(x: Tensor, n: Tensor) -> Tensor:
    """`min(max(0, x), n)` for n >= 0; `n` broadcasts against `x`."""
    return torch.where(x >= n, n, x.relu())


def shilu(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`alpha relu(x) + beta`; parameters broadcast against `x`."""
    return alpha * x.relu() + beta


class ReLUN(Activation):
    r"""ReLU with a learned ceiling. Learned.

    .. math:: f(x) = \min(\max(0, x), n)

    Args:
        n: initial ceiling.
        num_parameters: 1, or C (the size of `channel_dim`).
        channel_dim: axis of the channels.
        inplace: accepted and ignored.

    Shape: (N, C, \*) -> same.

    Attributes: n: (num_parameters,), learned, not decayed; used as max(n, 0), with a gradient that
    is alive below 0 too.

    At initialisation: min(relu(x), 1).

    Raises: ValueError: n is not finite or < 0, or the channels do not match.

    Reference: Pishchik, "Trainable activations for image classification", 2023, preprints
    202301.0463. Deviation from it: the clamp of n.
    """

    def __init__(
        self,
        n: float = 1.0,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        inplace: bool = False,
    ) -> None:
        super().__init__(num_parameters, channel_dim, inplace=inplace)
        if n < 0:
            raise ValueError(f"n must be >= 0, got {n!r}")
        self.n = self.learned("n", n)

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        return Expression(relun, (at_least(self.n, 0.0),))


class ShiLU(Activation):
    r"""Shifted linear unit. Learned.

    .. math:: f(x) = \alpha \max(0, x) + \beta

    Args:
        alpha: initial slope of the positive side.
        beta: initial offset; 1 in the released code, 0 elsewhere.
        num_parameters: 1, or C (the size of `channel_dim`).
        channel_dim: axis of the channels.
        inplace: accepted and ignored.

    Shape: (N, C, \*) -> same.

    Attributes: alpha, beta: (num_parameters,), learned, not decayed.

    At initialisation: relu(x) + 1.

    Raises: ValueError: a number is not finite, or the channels do not match.

    Reference: Pishchik, "Trainable activations for image classification", 2023, preprints
    202301.0463. Deviation from it: none.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        inplace: bool = False,
    ) -> None:
        super().__init__(num_parameters, channel_dim, inplace=inplace)
        self.alpha = self.learned("alpha", alpha)
        self.beta = self.learned("beta", beta)

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        return Expression(shilu, (self.alpha, self.beta))
