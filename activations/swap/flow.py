"""Which activations have a layer behind them: the tensors that come from each are followed.

An activation whose result reaches no parameter is the last one on its way to an output.
"""

from typing import Any

from torch import Tensor, nn

from .inputs import tensors_in
from .kinds import CONVOLUTIONS


class Flow:
    """Follows tensors through a network that runs.

    Attributes:
        used: the numbers of the activations from which a layer takes something.
    """

    def __init__(self) -> None:
        self.used: set[int] = set()

    def through(self, inputs: Any, out: Any, number: int | None = None) -> None:
        """`out` comes from `inputs`, and from activation `number` if it is given."""
        sources = frozenset().union(*map(_sources, tensors_in(inputs)))
        if number is not None:
            sources |= {number}
        for value in tensors_in((out,)) if sources else ():
            value._from_activations = sources | _sources(value)  # pyright: ignore[reportAttributeAccessIssue]

    def into(self, inputs: Any, taker: nn.Module | None = None) -> None:
        """A module, or a function that also takes a parameter, takes `inputs`."""
        if taker is None:
            takes = any(map(of_weights, tensors_in(inputs)))
        else:
            learned = next(taker.parameters(recurse=False), None) is not None
            takes = learned or isinstance(taker, (nn.Linear, *CONVOLUTIONS))
        if takes:
            self.used.update(*map(_sources, tensors_in(inputs)))


def mark(called: str, inputs: Any, out: Any) -> None:
    """Remember what a function computes from parameters alone, unless it is a layer."""
    if called in ("linear", "bilinear", "embedding") or called.startswith("conv"):
        return
    if (found := [*tensors_in(inputs)]) and all(map(of_weights, found)):
        for value in tensors_in((out,)):
            if value.is_floating_point():
                value._of_weights = True  # pyright: ignore[reportAttributeAccessIssue]


def of_weights(value: Any) -> bool:
    """Whether a tensor is a parameter, or computed from parameters alone."""
    return isinstance(value, nn.Parameter) or getattr(value, "_of_weights", False)


def _sources(value: Tensor) -> frozenset[int]:
    return getattr(value, "_from_activations", frozenset())
