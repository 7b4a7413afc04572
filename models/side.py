"""A side input: numbers beside each image or signal, joined ahead of a network's last layer."""

from typing import Any

import torch
from torch import Tensor, nn

HIDDEN = 32


class Side(nn.Module):
    """What the numbers beside a sample add to the scores of a network.

    They are standardised and pass a hidden layer, whose outputs stand beside the features that the
    network's last linear layer takes. That layer is linear, so its part for them is a layer of its
    own, and the scores add up. So any network can have a side input, and its own layers keep their
    names; the swap leaves this part as it is.

    Args:
        size: how many numbers a sample has.
        num_classes: size of the output.

    Attributes:
        mean: (size,), over the training samples; stored with the weights.
        std: (size,), the deviation; 1 for a number that never changes.

    Shape:
        (N, size) -> (N, num_classes).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.hidden = nn.Linear(size, HIDDEN)
        self.act = nn.ReLU()
        self.out = nn.Linear(HIDDEN, num_classes, bias=False)

    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Take the mean and the deviation of the training samples."""
        self.mean.copy_(mean)
        self.std.copy_(std.where(std > 0, 1))

    def forward(self, numbers: Tensor) -> Tensor:
        """What is added to the scores."""
        if numbers.dim() != 2 or numbers.shape[1] != len(self.mean):
            raise ValueError(
                f"a side input of shape {tuple(numbers.shape)} does not fit: this network takes "
                f"(N, {len(self.mean)})"
            )
        return self.out(self.act(self.hidden((numbers - self.mean) / self.std)))


class Joined(nn.Module):
    """A network as one function of its one or two inputs, for programs that it is exported for.

    Args:
        network: made by :func:`models.build.build_network`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, side: Tensor | None = None) -> Tensor:
        """Class scores (logits)."""
        return class_scores(self.network, x, side)


def side_of(network: nn.Module) -> Side | None:
    """The part for the side input; None for a network without one."""
    part: Any = getattr(network, "side", None)
    return part if isinstance(part, Side) else None


def class_scores(network: nn.Module, x: Tensor, side: Tensor | None = None) -> Tensor:
    """Class scores (logits) of a batch, with its side input where the network has one.

    Raises:
        ValueError: the side input is missing, or the network has none.
    """
    part = side_of(network)
    if part is None and side is None:
        return network(x)
    if part is None or side is None:
        has = "takes no side input: train it with one (side_size)" if part is None else (
            f"takes {len(part.mean)} numbers beside each sample, (N, {len(part.mean)}), which this "
            "batch lacks: give data that have them, such as MITBIH with rr"
        )  # fmt: skip
        raise ValueError(f"this network {has}")
    return network(x) + part(side)
