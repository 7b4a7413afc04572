"""A classification network by name: ours, timm's or torchvision's."""

import difflib
import re
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .resnet import CifarResNet
from .weights import load_weights, read_weights

OURS = tuple(f"resnet{depth}" for depth in (8, 14, 20, 26, 32, 44, 56))
Stem = Literal["auto", "small", "imagenet"]


def build_backbone(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    *,
    image_size: int = 224,
    stem: Stem = "auto",
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
) -> nn.Module:
    """Build a classification network.

    Args:
        name: `resnet20` and its siblings are ours; any other name is timm's, else torchvision's.
            `timm/resnet26` or `torchvision/resnet18` says which where several have it.
        num_classes: size of the output.
        in_channels: channels of the input; pretrained weights are adapted to it.
        image_size: side of the images in pixels.
        stem: `small` makes the first convolution of a ResNet 3x3 with stride 1 and drops the
            pooling after it; `imagenet` keeps what the library built; `auto` is small for ResNets
            on images up to 64 pixels, unless they are pretrained.
        pretrained: load the library's weights, from its server.
        checkpoint_path: load weights from a file; see `models.read_weights`.

    Raises:
        ValueError: the name is unknown, the network has no small stem, or the weights do not fit.
        FileNotFoundError: no file at `checkpoint_path`.
    """
    library, _, model = name.rpartition("/")
    if library not in ("", "timm", "torchvision"):
        raise ValueError(f"backbone {name!r}: the library is timm or torchvision, not {library!r}")
    if pretrained and checkpoint_path:
        raise ValueError("give pretrained or checkpoint_path, not both")
    stem = "imagenet" if stem == "auto" and pretrained else stem
    state = read_weights(checkpoint_path) if checkpoint_path else None
    network = None
    if not library and model in OURS:
        if pretrained:
            raise ValueError(f"{name} has no pretrained weights; a timm or torchvision network has")
        network = CifarResNet(int(model.removeprefix("resnet")), num_classes, in_channels)
    elif library != "torchvision":
        network = _timm(model, num_classes, in_channels, pretrained)
    if network is None and library != "timm":
        network = _torchvision(model, num_classes, in_channels, pretrained)
    if network is None:
        raise ValueError(f"unknown backbone {name!r}; the nearest: {', '.join(_nearest(model))}")
    if not isinstance(network, CifarResNet):
        _small_stem(network, name, in_channels, image_size, stem)
    if state is not None:
        load_weights(network, state, source=str(checkpoint_path))
    return network


def _timm(name: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module | None:
    import timm

    if not timm.is_model(name):
        return None
    try:
        return timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels
        )
    except Exception as error:
        raise _no_weights(name, error) if pretrained else error from error


def _torchvision(
    name: str, num_classes: int, in_channels: int, pretrained: bool
) -> nn.Module | None:
    from torchvision import models

    if name not in models.list_models(module=models):
        return None
    with_auxiliary_heads = name in ("googlenet", "inception_v3")
    extra = {"aux_logits": False, "init_weights": not pretrained} if with_auxiliary_heads else {}
    network = models.get_model(name, num_classes=num_classes, **extra)
    if in_channels != 3:
        first = next(n for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
        _replace_conv(network, first, in_channels=in_channels)
    if pretrained:
        try:
            state = models.get_model_weights(name)["DEFAULT"].get_state_dict(check_hash=True)
        except Exception as error:
            raise _no_weights(name, error) from error
        state = {n: value for n, value in state.items() if "aux" not in n.lower()}
        load_weights(network, state, source=f"{name}'s pretrained weights")
    return network


def _no_weights(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"cannot get pretrained weights of {name} ({type(error).__name__}: {error}); "
        "without a network give a file, --model.checkpoint_path"
    )


def _small_stem(
    network: nn.Module, name: str, in_channels: int, image_size: int, stem: Stem
) -> None:
    if stem == "imagenet" or (stem == "auto" and image_size > 64):
        return
    conv, pool = getattr(network, "conv1", None), getattr(network, "maxpool", None)
    if not isinstance(conv, nn.Conv2d | nn.Sequential) or not isinstance(pool, nn.Module):
        if stem == "auto":
            return
        raise ValueError(f"backbone {name!r} has no small stem, only ResNets do: use imagenet")
    first = "conv1" if isinstance(conv, nn.Conv2d) else "conv1.0"
    _replace_conv(network, first, kernel_size=3, stride=1, padding=1)
    network.maxpool = nn.Identity()


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
