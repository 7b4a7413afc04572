"""EELU: four fixed units made of error functions and exponentials."""

from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from activations.activation import Activation, Options, choice
from activations.fusion.kernel import Expression


def eelu(x: Tensor, variant: int) -> Tensor:
    """EELU-1 `x erf(e^x)`, -2 `-x erf(e^-x)`, -3 `x erf(e^x)^2` or -4 `erf(x) ln(1 + e^x)`."""
    if variant == 4:
        return torch.erf(x) * F.softplus(x, threshold=50)
    if variant == 2:
        x = -x
    gate = torch.erf(torch.exp(x.clamp(max=5)))  # erf(e^5) is 1 in every dtype
    if variant == 3:
        gate = gate * gate
    return x.clamp(min=-1000) * gate  # e^-1000 is 0 in every dtype


class EELU(Activation):
    r"""Error exponential linear units. Fixed.

    .. math::
        f_1(x) = x\, \mathrm{erf}(e^x), \quad f_2(x) = -x\, \mathrm{erf}(e^{-x}), \quad
        f_3(x) = x\, \mathrm{erf}(e^x)^2, \quad f_4(x) = \mathrm{erf}(x) \ln(1 + e^x)

    Args:
        variant: which of the four, 1 to 4.
        options: see :class:`activations.Options`.

    Shape:
        any -> same.

    Initialisation:
        the curve never changes. EELU-2 is EELU-1 mirrored: it grows to the left.

    Raises:
        ValueError: variant is not 1, 2, 3 or 4.

    Reference:
        Rahman et al., 2024, arXiv 2409.04915 (second hand). Deviation from it: none known.
    """

    size_arguments = ()
    variants = tuple({"variant": number} for number in (1, 2, 3, 4))

    def __init__(self, variant: int = 1, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.variant = choice("variant", variant, 1, 2, 3, 4)

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        return Expression(eelu, (), (self.variant,))

    def extra_repr(self) -> str:
        """The variant."""
        return f"variant={self.variant}"
