"""A trained network in the form in which it is deployed."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations import fold, set_progress

from .vanillanet import VanillaNet

FLAT = 1e-3  # millivolt, as in datamodules/beats.py


def deployed(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, at the end of all schedules, fused and folded.

    A VanillaNet becomes the plain network; see :func:`activations.fold` for activations.
    """
    network = copy.deepcopy(network)
    set_progress(network, 1.0)
    return fold(network.fuse() if isinstance(network, VanillaNet) else network)


class Raw(nn.Module):
    """A network that takes the data as they are read, and normalises them itself.

    Images are uint8, in the size of the network. Heart beats are in millivolt, cut out around the R
    peak; if the network was trained without the baseline, they come without it, too, since it is
    found in the whole record.

    Args:
        network: takes what the data module gives.
        data: the description of the data set, as checkpoints store it.

    Raises:
        ValueError: the description names code of a data module that no file can hold.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, data: Mapping[str, Any]) -> None:
        super().__init__()
        if "step" in data:
            raise ValueError(
                f"include_preprocessing: the batches of {data.get('name')} are changed by "
                f"{data['step']}, which no file can hold: export without it"
            )
        self.network, self.data = network, dict(data)
        pixels = takes_pixels(data)
        whole, each = (255, (-1, 1, 1)) if pixels else (1, (-1, 1))
        self.register_buffer("shift", whole * torch.tensor(data["mean"]).view(each))
        self.register_buffer("scale", 1 / (whole * torch.tensor(data["std"]).view(each)))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (logits) of a batch as it is read."""
        x = x.float()
        match self.data.get("normalize"):
            case "zscore":
                x = x - x.mean(-1, keepdim=True)
                x = x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=FLAT)
            case "minmax":
                x = x - x.amin(-1, keepdim=True)
                x = x / x.amax(-1, keepdim=True).clamp(min=FLAT)
        x = (x - self.shift) * self.scale
        match self.data.get("representation"):
            case "image":
                x = x.unsqueeze(2)
            case "spectrogram":
                x = spectrogram(x)
        return self.network(x)


def takes_pixels(data: Mapping[str, Any]) -> bool:
    """Whether the raw data are images in uint8; heart beats may become images, but are signals."""
    return data["dims"] == 2 and "representation" not in data


def spectrogram(beats: Tensor) -> Tensor:
    """`datamodules.beats.spectrogram` by a convolution: no runtime computes torch's stft alike."""
    size, hop = 62, max(1, beats.shape[-1] // 31)
    angles = torch.arange(size, dtype=torch.float64) * (2 * math.pi / size)
    waves = torch.arange(size // 2 + 1)[:, None] * angles
    kernels = torch.cat([waves.cos(), waves.sin()]) * (0.5 - 0.5 * angles.cos())
    padded = F.pad(beats, (size // 2, size // 2), mode="reflect")
    parts = F.conv1d(padded, kernels[:, None].to(beats), stride=hop)
    power = parts.square().unflatten(1, (2, -1)).sum(1)
    image = (power[..., :32] + 1e-3).log().flip(1).unsqueeze(1)
    mean = image.mean((2, 3), keepdim=True)
    centred = image - mean
    count = image.shape[2] * image.shape[3]
    deviation = (centred.square().sum((2, 3), keepdim=True) / (count - 1)).sqrt()
    return centred / deviation.clamp(min=1e-6)
