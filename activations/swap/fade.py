"""A gradual swap: the old activation changes into the new one while the network trains."""

import torch
from torch import Tensor, nn

from activations.activation import Leaf, leaves_input


class Fade(Leaf):
    r"""Moves from an old activation to a new one while training proceeds. Scheduled.

    .. math:: f(x; t) = (1 - t) f_\text{old}(x) + t f_\text{new}(x)

    At t = 0 it is the old function to the bit, at t = 1 the new one.

    Args:
        old: the function to start from.
        new: the function to end with.

    Shape:
        Any that both take -> same.

    Attributes:
        progress: (), t, a persistent buffer.
        old: the old function; its parameters keep their groups.
        new: the new function; its parameters keep their groups.
    """

    progress: Tensor

    def __init__(self, old: nn.Module, new: nn.Module) -> None:
        super().__init__()
        self.old, self.new = old, new
        self._leaves = leaves_input(old), leaves_input(new)
        self.register_buffer("progress", torch.tensor(0.0))

    def set_progress(self, progress: float) -> None:
        """Move to `progress`, from 0 (all old) to 1 (all new)."""
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress must lie in [0, 1], got {progress!r}")
        self.progress.fill_(progress)

    def reset_parameters(self) -> None:
        """Begin with the old function, which is also what `to_empty` needs."""
        self.progress.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the mixture."""
        old, new = (
            part(x if leaves else x.clone())
            for part, leaves in zip((self.old, self.new), self._leaves, strict=True)
        )
        dtype = torch.promote_types(old.dtype, new.dtype)  # under autocast they may differ
        old, new = old.to(dtype), new.to(dtype)
        mixed = torch.lerp(old, new, self.progress.to(dtype))
        mixed = torch.where(self.progress == 0, old, mixed)  # 0 times infinity is no number
        return torch.where(self.progress == 1, new, mixed)

    def extra_repr(self) -> str:
        """The progress."""
        return "" if self.progress.is_meta else f"progress={self.progress.item():.4g}"
