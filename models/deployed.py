"""A trained network in the form in which it is deployed."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from activations import fold
from datamodules.beats import FLAT, columns
from datamodules.preprocess import Preparation

from .side import class_scores, side_of
from .vanillanet import ConvPair, VanillaNet

KAGGLE = 187  # samples of a beat in Kaggle's files


def deployed(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, folded (:func:`activations.fold`).

    A VanillaNet becomes the plain network, if its schedule has ended.
    """
    if isinstance(network, VanillaNet) and isinstance(pair := network.stem.conv, ConvPair):
        side, network = side_of(network), network.fuse() if pair.fade.slope == 1 else network
        if side:
            network.side = side
    return fold(network)


class Raw(nn.Module):
    """A network that takes the data as they are read, and normalises them itself.

    Images are uint8, in the size of the network. Heart beats are in millivolt, cut out around the R
    peak; if the network was trained without the baseline, they come without it, too, since it is
    found in the whole record.

    Args:
        network: takes what the data module gives.
        data: the description of the data set, as checkpoints store it.

    Raises:
        ValueError: the description names code of a data module that no file can hold, or beats that
            are scaled by the rhythm of their record.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, data: Mapping[str, Any]) -> None:
        super().__init__()
        own = self.preparation = Preparation.of(data, "the checkpoint")
        if own.step:
            raise ValueError(
                f"include_preprocessing: the batches of {own.name} are changed by {own.step}, "
                "which no file can hold: export without it"
            )
        if own.cycles:
            raise ValueError(
                f"include_preprocessing: a beat of {own.name} is scaled over {own.cycles:g} RR "
                "intervals of its record, which no beat alone tells: export without it"
            )
        self.network = network
        # heart beats may become images, but are signals
        self.pixels = own.dims == 2 and own.representation is None
        whole, each = (255, (-1, 1, 1)) if self.pixels else (1, (-1, 1))
        self.register_buffer("shift", whole * torch.tensor(own.mean).view(each))
        self.register_buffer("scale", 1 / (whole * torch.tensor(own.std).view(each)))

    def forward(self, x: Tensor, side: Tensor | None = None) -> Tensor:
        """Class scores (logits) of a batch as it is read; a side input is as it always is."""
        x = x.float()
        match self.preparation.normalize:
            case "zscore":
                x = x - x.mean(-1, keepdim=True)
                x = x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=FLAT)
            case "minmax":
                x = x - x.amin(-1, keepdim=True)
                x = x / x.amax(-1, keepdim=True).clamp(min=FLAT)
            case _:
                pass
        x = (x - self.shift) * self.scale
        match self.preparation.representation:
            case "image":
                x = x.unsqueeze(2)
            case "spectrogram":
                x = spectrogram(x)
            case _:
                pass
        return class_scores(self.network, x, side)

    def random(self, count: int, generator: Generator) -> Tensor:
        """A batch of random numbers in the form and range of raw data."""
        own = self.preparation
        if self.pixels:
            size = (count, *own.shape)
            return torch.randint(256, size, generator=generator, dtype=torch.uint8)
        length = own.cut.samples if own.window else KAGGLE
        return torch.randn(
            count, own.channels, length if own.dims == 2 else own.size, generator=generator
        )


def spectrogram(beats: Tensor) -> Tensor:
    """`datamodules.beats.spectrogram` by a convolution: no runtime computes torch's stft alike."""
    size, hop = 62, max(1, beats.shape[-1] // 31)
    angles = torch.arange(size, dtype=torch.float64) * (2 * math.pi / size)
    waves = torch.arange(size // 2 + 1)[:, None] * angles
    kernels = torch.cat([waves.cos(), waves.sin()]) * (0.5 - 0.5 * angles.cos())
    leads = beats.shape[1]
    padded = F.pad(beats, (size // 2, size // 2), mode="reflect")
    kernels = kernels[:, None].to(beats).repeat(leads, 1, 1)
    parts = F.conv1d(padded, kernels, stride=hop, groups=leads)
    power = columns(parts.square().unflatten(1, (leads, 2, -1)).sum(2))
    image = (power + 1e-3).log().flip(2)
    mean = image.mean((2, 3), keepdim=True)
    centred = image - mean
    count = image.shape[2] * image.shape[3]
    deviation = (centred.square().sum((2, 3), keepdim=True) / (count - 1)).sqrt()
    return centred / deviation.clamp(min=1e-6)
