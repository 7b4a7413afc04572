"""ScaledSoftSign: a softsign with learned height and width."""

from typing import ClassVar, Unpack

from torch import Tensor

from activations.activation import Activation, Channels, positive


def scaled_softsign(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`alpha x / (beta + |x|)` for beta > 0; parameters broadcast against `x`."""
    return alpha * (x / (beta + x.abs()))


class ScaledSoftSign(Activation):
    r"""Softsign with learned height and width. Learned.

    .. math:: f(x) = \frac{\alpha x}{\beta + |x|}

    Attributes:
        alpha: (num_parameters,), learned, not decayed.
        beta: (num_parameters,), learned, not decayed; used as max(beta, 1e-4), with a gradient that
            is not 0 below the bound either.

    Args:
        alpha: initial height of the two asymptotes.
        beta: initial half-width, > 0.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same.

    Initialisation:
        softsign.

    Raises:
        ValueError: a number is not finite, beta <= 0, or the channels do not match.

    Reference:
        Pishchik, "Trainable activations for image classification", 2023, preprints 202301.0463.
        Deviation from it: the clamp of beta.
    """

    formula = scaled_softsign
    least: ClassVar[dict[str, float]] = {"beta": 1e-4}

    def __init__(self, alpha: float = 1.0, beta: float = 1.0, **channels: Unpack[Channels]) -> None:
        super().__init__(**channels)
        self.alpha = self.learned("alpha", alpha)
        self.beta = self.learned("beta", positive("beta", beta))
