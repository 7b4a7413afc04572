"""A classification network by name: ours, timm's or torchvision's."""

import difflib
import re
from typing import Any, Literal

from torch import nn

from .resnet import CifarResNet

OURS = tuple(f"resnet{depth}" for depth in (8, 14, 20, 26, 32, 44, 56))
Stem = Literal["auto", "small", "imagenet"]


def build_backbone(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    *,
    image_size: int = 224,
    stem: Stem = "auto",
) -> nn.Module:
    """Build a classification network with random weights.

    Args:
        name: `resnet20` and its siblings are ours; any other name is timm's, else torchvision's.
            `timm/resnet26` or `torchvision/resnet18` says which where several have it.
        num_classes: size of the output.
        in_channels: channels of the input.
        image_size: side of the images in pixels.
        stem: `small` makes the first convolution of a ResNet 3x3 with stride 1 and drops the
            pooling after it; `imagenet` keeps what the library built; `auto` is small for ResNets
            on images up to 64 pixels.

    Raises:
        ValueError: the name is unknown, or the network has no small stem.
    """
    library, _, model = name.rpartition("/")
    if library not in ("", "timm", "torchvision"):
        raise ValueError(f"backbone {name!r}: the library is timm or torchvision, not {library!r}")
    if not library and model in OURS:
        return CifarResNet(int(model.removeprefix("resnet")), num_classes, in_channels)
    if library != "torchvision" and (network := _timm(model, num_classes, in_channels)):
        return _small_stem(network, name, in_channels, image_size, stem)
    if library != "timm" and (network := _torchvision(model, num_classes, in_channels)):
        return _small_stem(network, name, in_channels, image_size, stem)
    raise ValueError(f"unknown backbone {name!r}; the nearest: {', '.join(_nearest(model))}")


def _timm(name: str, num_classes: int, in_channels: int) -> nn.Module | None:
    import timm

    if not timm.is_model(name):
        return None
    return timm.create_model(name, num_classes=num_classes, in_chans=in_channels)


def _torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module | None:
    from torchvision import models

    if name not in models.list_models(module=models):
        return None
    with_auxiliary_heads = name in ("googlenet", "inception_v3")
    extra = {"aux_logits": False, "init_weights": True} if with_auxiliary_heads else {}
    network = models.get_model(name, num_classes=num_classes, **extra)
    if in_channels != 3:
        first = next(n for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
        _replace_conv(network, first, in_channels=in_channels)
    return network


def _small_stem(
    network: nn.Module, name: str, in_channels: int, image_size: int, stem: Stem
) -> nn.Module:
    if stem == "imagenet" or (stem == "auto" and image_size > 64):
        return network
    conv, pool = getattr(network, "conv1", None), getattr(network, "maxpool", None)
    if not isinstance(conv, nn.Conv2d | nn.Sequential) or not isinstance(pool, nn.Module):
        if stem == "auto":
            return network
        raise ValueError(f"backbone {name!r} has no small stem, only ResNets do: use imagenet")
    first = "conv1" if isinstance(conv, nn.Conv2d) else "conv1.0"
    _replace_conv(network, first, kernel_size=3, stride=1, padding=1)
    network.maxpool = nn.Identity()
    return network


def _replace_conv(network: nn.Module, name: str, **changes: int) -> None:
    old = network.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    same = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    arguments: dict[str, Any] = {key: getattr(old, key) for key in same} | changes
    conv = nn.Conv2d(**arguments, bias=old.bias is not None)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    owner, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(owner), attribute, conv)


def _nearest(name: str) -> list[str]:
    import timm
    from torchvision import models

    known = [*OURS, *timm.list_models(), *models.list_models(module=models)]
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    family = re.match(r"[a-z]+", name)
    alike = [other for other in known if family and other.startswith(family[0])][:5]
    return list(dict.fromkeys(close or alike)) or [*OURS[:3], "resnet18", "convnext_tiny"]
