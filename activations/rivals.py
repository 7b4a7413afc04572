"""Learned functions that a comparison needs: Swish, ACON-C, PELU, Snake."""

import torch
from torch import Tensor

from .activation import Activation, at_least, finite, inside, precise
from .compile import Expression


def gate(x: Tensor) -> Tensor:
    """sigmoid(x), whose gradient is an exact 0 far out, whatever comes back to it."""
    return torch.sigmoid(x.clamp(-1000, 1000))


def swish(x: Tensor, beta: Tensor) -> Tensor:
    """`x sigmoid(beta x)`; `beta` broadcasts against `x`."""
    return x * gate(beta * x)


def aconc(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> Tensor:
    """`(p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x`; parameters broadcast against `x`."""
    difference = p1 - p2
    return difference * (x * gate(beta * difference * x)) + p2 * x


def pelu(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`(a / b) x` for x >= 0, else `a (exp(x / b) - 1)`; a, b > 0 broadcast against `x`."""
    return _pelu(x, a, 1 / b)


# a kernel would divide once an element
def _pelu(x: Tensor, a: Tensor, inverse: Tensor) -> Tensor:
    u = inverse * x
    right = u > 0
    return a * torch.where(right, u, torch.expm1(torch.where(right, -u, u)))


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """`x + sin(alpha x)^2 / alpha`, continued by x at alpha = 0; `alpha` broadcasts against `x`."""
    angle = inside(alpha * x)
    sine, tiny = torch.sin(angle), angle.abs() < torch.finfo(x.dtype).eps ** 0.5
    inverse = 1 / torch.where(tiny, 1.0, angle)  # one division both ways
    ratio = torch.where(tiny, 1.0, sine * inverse)
    return x + x * sine * ratio


class Swish(Activation):
    r"""SiLU with a learned steepness. Learned.

    .. math:: f(x) = x\, \sigma(\beta x)

    Args:
        beta: initial steepness.
        num_parameters: 1, or C (the size of `channel_dim`).
        channel_dim: axis of the channels.
        inplace: accepted and ignored.

    Shape: (N, C, \*) -> same.

    Attributes: beta: (num_parameters,), learned, not decayed.

    At initialisation: SiLU.

    Raises: ValueError: a number is not finite, or the channels do not match.

    Reference: Ramachandran et al., "Searching for activation functions", 2017, arXiv 1710.05941.
    Deviation from it: none.
    """

    def __init__(
        self,
        beta: float = 1.0,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        inplace: bool = False,
    ) -> None:
        super().__init__(num_parameters, channel_dim, inplace=inplace)
        self.beta = self.learned("beta", beta)

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        return Expression(swish, (self.beta,))


class ACONC(Activation):
    r"""ACON-C: a smooth maximum of two lines. Learned.

    .. math:: f(x) = (p_1 - p_2) x\, \sigma(\beta (p_1 - p_2) x) + p_2 x

    Args:
        p1: initial slope of the first line.
        p2: initial slope of the second line.
        beta: initial steepness of the switch.
        num_parameters: 1, or C (the size of `channel_dim`).
        channel_dim: axis of the channels.
        inplace: accepted and ignored.

    Shape: (N, C, \*) -> same.

    Attributes: p1, p2, beta: (num_parameters,), learned, not decayed.

    At initialisation: SiLU.

    Raises: ValueError: a number is not finite, or the channels do not match.

    Reference: Ma et al., "Activate or not: learning customized activation", CVPR 2021, arXiv
    2009.04759, equation 5. Deviation from it: the released code draws p1 and p2 from a normal
    distribution.
    """

    def __init__(
        self,
        p1: float = 1.0,
        p2: float = 0.0,
        beta: float = 1.0,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        inplace: bool = False,
    ) -> None:
        super().__init__(num_parameters, channel_dim, inplace=inplace)
        self.p1 = self.learned("p1", p1)
        self.p2 = self.learned("p2", p2)
        self.beta = self.learned("beta", beta)

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        return Expression(aconc, (self.p1, self.p2, self.beta))


class PELU(Activation):
    r"""Parametric exponential linear unit. Learned.

    .. math:: f(x) = \begin{cases} \frac{a}{b} x & x \ge 0 \\ a (e^{x / b} - 1) & x < 0 \end{cases}

    Args:
        a: initial depth of the negative side, >= 0.1.
        b: initial width of the negative side, >= 0.1.
        num_parameters: 1, or C (the size of `channel_dim`).
        channel_dim: axis of the channels.
        inplace: accepted and ignored.

    Shape: (N, C, \*) -> same.

    Attributes: a, b: (num_parameters,), learned, not decayed; used as max(a, 0.1) and max(b, 0.1),
    with gradients that are alive below the bound too.

    At initialisation: ELU.

    Raises: ValueError: a number is not finite or < 0.1, or the channels do not match.

    Reference: Trottier et al., "Parametric exponential linear unit for deep convolutional neural
    networks", 2017, arXiv 1605.09332, equation 3. Deviation from it: none.
    """

    def __init__(
        self,
        a: float = 1.0,
        b: float = 1.0,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        inplace: bool = False,
    ) -> None:
        super().__init__(num_parameters, channel_dim, inplace=inplace)
        for name, value in (("a", a), ("b", b)):
            if finite(name, value) < 0.1:
                raise ValueError(f"{name} must be >= 0.1, got {value!r}")
        self.a, self.b = self.learned("a", a), self.learned("b", b)

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        return Expression(_pelu, (at_least(self.a, 0.1), 1 / precise(at_least(self.b, 0.1))))


class Snake(Activation):
    r"""A line with learned periodic steps. Learned.

    .. math:: f(x) = x + \frac{\sin^2(\alpha x)}{\alpha}

    Args:
        alpha: initial angular frequency, in radians per unit of `x`; 0 gives the identity.
        num_parameters: 1, or C (the size of `channel_dim`).
        channel_dim: axis of the channels.
        inplace: accepted and ignored.

    Shape: (N, C, \*) -> same.

    Attributes: alpha: (num_parameters,), learned, not decayed.

    At initialisation: x + sin(x)^2.

    Raises: ValueError: a number is not finite, or the channels do not match.

    Reference: Ziyin et al., "Neural networks fail to learn periodic functions and how to fix it",
    NeurIPS 2020, arXiv 2006.08195. Deviation from it: none.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        inplace: bool = False,
    ) -> None:
        super().__init__(num_parameters, channel_dim, inplace=inplace)
        self.alpha = self.learned("alpha", alpha)

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        return Expression(snake, (self.alpha,))
