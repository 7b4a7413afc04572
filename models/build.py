"""The network that a classifier's options describe, without Lightning."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from activations import SwapReport, gain, replace_activations

from .backbones import Stem, build_backbone, check_input
from .side import Side
from .weights import kaiming_


def _gain(activation: Callable[[], nn.Module] | None) -> float:
    function = activation() if activation else nn.ReLU()
    try:
        return gain(function)
    except ValueError as error:
        if "has no gain" in str(error):
            raise
        raise ValueError(
            f"init: kaiming measures a function of single numbers, and {type(function).__name__} "
            "takes whole images: use init: library"
        ) from error


def build_network(
    backbone: str = "resnet20",
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    activation: Callable[[], nn.Module] | None = None,
    activation_by_site: dict[str, Callable[[], nn.Module]] | None = None,
    share: Literal["channel", "site", "stage", "model"] = "site",
    match: bool | Literal["fade"] = False,
    include: list[str] | str = "*",
    exclude: list[str] | str | None = None,
    include_kinds: list[str] | str | None = None,
    dims: int = 2,
    stem: Stem = "auto",
    backbone_kwargs: dict[str, Any] | None = None,
    side_size: int = 0,
    *,
    pretrained: bool = False,
    init: Literal["library", "kaiming"] = "library",
) -> tuple[nn.Module, SwapReport]:
    """Build a network in channels-last format, and swap its activations.

    Args: those of :class:`models.Classifier` that a network has in common with its checkpoints;
        `pretrained` and `init` choose the weights with which a training starts.

    Raises:
        ValueError: the backbone is unknown, or its activations cannot be swapped.
    """
    for name in ("weights", "weights_backbone", "pretrained", "checkpoint_path"):
        if (backbone_kwargs or {}).get(name):  # a checkpoint that stores it would read other files
            raise ValueError(
                f"backbone_kwargs asks for weights ({name}): leave it out; pretrained and "
                "checkpoint_path of the model itself load them"
            )
    options = {"image_size": image_size, **(backbone_kwargs or {})}
    network = build_backbone(
        backbone, num_classes, in_channels, dims, stem, pretrained, **options
    ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    example = torch.zeros(2, in_channels, *[image_size] * dims)
    check_input(network, example)
    if init == "kaiming" and activation_by_site and not activation:
        raise ValueError(
            "init: kaiming draws all weights with the gain of one activation: give activation "
            "beside activation_by_site, or use init: library"
        )
    if init == "kaiming":
        kaiming_(network, _gain(activation))
    factories = dict(activation_by_site or {}) | ({"*": activation} if activation else {})
    report = SwapReport()
    if factories:
        report = replace_activations(
            network,
            factories,
            example_input=example,
            include=include,
            exclude=exclude or (),
            include_kinds=include_kinds or (),
            share=share,
            match="fade" if match == "fade" else False,
        )
    if side_size:  # last: the network draws the same weights without it
        network.side = Side(side_size, num_classes)
    return network, report
