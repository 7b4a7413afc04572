"""CosLU and SinLU: the input plus a cosine or sine wave, times a sigmoid gate."""

from typing import Unpack

import torch
from torch import Tensor

from activations.activation import Activation, Channels, inside


def coslu(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`(x + alpha cos(beta x)) sigmoid(x)`; parameters broadcast against `x`."""
    return (x + alpha * torch.cos(inside(beta * x))) * torch.sigmoid(x)


def sinlu(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`(x + alpha sin(beta x)) sigmoid(x)`; parameters broadcast against `x`."""
    return (x + alpha * torch.sin(inside(beta * x))) * torch.sigmoid(x)


class CosLU(Activation):
    r"""Cosine linear unit. Learned.

    .. math:: f(x) = (x + \alpha \cos(\beta x))\, \sigma(x)

    Attributes:
        alpha: (num_parameters,), learned, not decayed.
        beta: (num_parameters,), learned, not decayed.

    Args:
        alpha: initial amplitude of the wave.
        beta: initial angular frequency, in radians per unit of `x`.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        its own curve, f(0) = alpha / 2; alpha = 0 gives SiLU.

    Raises:
        ValueError: alpha or beta is not finite, or the channels do not match.

    Reference:
        Pishchik, "Trainable activations for image classification", 2023, preprints 202301.0463.
        Deviation from it: none.
    """

    formula = coslu
    match_starts = ({"alpha": 0.0},)  # SiLU

    def __init__(self, alpha: float = 1.0, beta: float = 1.0, **channels: Unpack[Channels]) -> None:
        super().__init__(**channels)
        self.alpha = self.learned("alpha", alpha)
        self.beta = self.learned("beta", beta)


class SinLU(CosLU):
    r"""Sine linear unit. Learned.

    .. math:: f(x) = (x + \alpha \sin(\beta x))\, \sigma(x)

    Attributes:
        alpha: (num_parameters,), learned, not decayed.
        beta: (num_parameters,), learned, not decayed.

    Args:
        alpha: initial amplitude of the wave.
        beta: initial angular frequency, in radians per unit of `x`.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        its own curve, f(0) = 0; alpha = 0 gives SiLU.

    Raises:
        ValueError: alpha or beta is not finite, or the channels do not match.

    Reference:
        Paul et al., "SinLU: sinu-sigmoidal linear unit", Mathematics 10(3), 2022; Pishchik 2023,
        preprints 202301.0463. Deviation from it: none.
    """

    formula = sinlu
