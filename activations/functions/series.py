"""What the families share whose terms can be unlocked while a network trains."""

from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from activations.activation import Activation, Channels, choice


class Series(Activation):
    """Terms beyond the first `basic` ones are locked at 0 until progress unlocks them."""

    unlocked: Tensor

    def __init__(
        self, terms: int, basic: int, progressive: bool, **channels: Unpack[Channels]
    ) -> None:
        super().__init__(**channels)
        self.number_of_terms = terms
        self.progressive = choice("progressive", progressive, False, True)
        self.basic = min(basic, terms) if progressive else terms
        if progressive:
            self.state("unlocked", self.basic)

    def set_progress(self, progress: float) -> None:
        """Unlock terms: the basic ones at 0, one more at equal steps, all of them before 1."""
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress must lie in [0, 1], got {progress!r}")
        if self.progressive:
            more = self.number_of_terms - self.basic
            self.unlocked.fill_(self.basic + min(int(progress * (more + 1)), more))

    def open(self, coefficients: Tensor, first: int, share: int = 1) -> Tensor:
        """Columns of term `first` and on, `share` a term; 0 without a gradient if locked."""
        if not self.progressive:
            return coefficients
        columns = torch.arange(coefficients.shape[-1], device=coefficients.device)
        return torch.where(self.unlocked >= first + columns // share, coefficients, 0.0)


def fit(columns: list[Tensor], target: Tensor) -> list[float]:
    """Least-squares coefficients of `columns` for `target`, the same to the bit in every run."""
    matrix = torch.stack(columns, 1)
    scale = matrix.abs().amax(0)  # powers of 3 grow fast
    found = torch.linalg.lstsq(matrix / scale, target[:, None]).solution[:, 0]
    return (found.round(decimals=12) / scale).tolist()


def silu_samples() -> tuple[Tensor, Tensor]:
    """X in [-3, 3] and SiLU(x)."""
    x = torch.linspace(-3, 3, 301, dtype=torch.float64, device="cpu")  # meta has no numbers
    return x, F.silu(x)
