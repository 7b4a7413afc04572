"""ScaledSoftSign: a softsign with learned height and width."""

from torch import Tensor

from .activation import Activation, at_least, positive
from .compile import Expression


def scaled_softsign(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`alpha x / (beta + |x|)` for beta > 0; parameters broadcast against `x`."""
    return alpha * (x / (beta + x.abs()))


class ScaledSoftSign(Activation):
    r"""Softsign with learned height and width. Learned.

    .. math:: f(x) = \frac{\alpha x}{\beta + |x|}

    Args:
        alpha: initial height of the two asymptotes.
        beta: initial half-width, > 0.
        num_parameters: 1, or C (the size of `channel_dim`).
        channel_dim: axis of the channels.
        inplace: accepted and ignored.

    Shape: (N, C, \*) -> same.

    Attributes: alpha, beta: (num_parameters,), learned, not decayed; beta is used as
    max(beta, 1e-4), with a gradient that is alive below the bound too.

    At initialisation: softsign.

    Raises: ValueError: a number is not finite, beta <= 0, or the channels do not match.

    Reference: Pishchik, "Trainable activations for image classification", 2023, preprints
    202301.0463. Deviation from it: the clamp of
    beta.
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
        self.beta = self.learned("beta", positive("beta", beta))

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        return Expression(scaled_softsign, (self.alpha, at_least(self.beta, 1e-4)))
