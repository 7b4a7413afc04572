"""A classification network by name: ours, timm's or torchvision's."""

import difflib
import re
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from activations.swap.trace import run

from .conv1d import to_1d
from .resnet import CifarResNet
from .vanillanet import VanillaNet
from .weights import load_weights, read_weights

OURS = (
    *(f"resnet{depth}" for depth in (8, 14, 20, 26, 32, 44, 56)),
    *(f"vanillanet{depth}" for depth in range(5, 14)),
)
Stem = Literal["auto", "small", "imagenet"]


def build_backbone(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    dims: int = 2,
    stem: Stem = "auto",
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    *,
    image_size: int = 224,
    **kwargs: Any,
) -> nn.Module:
    """Build a classification network.

    Args:
        name: `resnet8` to `resnet56` (He et al.'s for CIFAR) and `vanillanet5` to `vanillanet13`
            are ours; any other name is timm's, else torchvision's. `timm/resnet26` or
            `torchvision/resnet18` says which where several have it.
        num_classes: size of the output.
        in_channels: channels of the input; pretrained weights are adapted to it.
        dims: 2 for images; 1 makes the 1-D twin of a ResNet, for signals (:func:`models.to_1d`).
        stem: `small` makes the first convolution of a ResNet 3x3 with stride 1 and drops the
            pooling after it, and likewise for a VanillaNet; `imagenet` keeps what the library
            built; `auto` is small for inputs up to 64 pixels, unless the network is pretrained.
        pretrained: load the library's weights, from its server.
        checkpoint_path: load weights from a file; see `models.read_weights`.
        image_size: side of the images in pixels, or length of the signals.
        kwargs: further arguments of the network's constructor.

    Raises:
        ValueError: the name is unknown, the network has no small stem or no 1-D twin, does not take
            an argument, or the weights do not fit.
        FileNotFoundError: no file at `checkpoint_path`.
    """
    library, _, model = name.rpartition("/")
    if library not in ("", "timm", "torchvision"):
        raise ValueError(f"backbone {name!r}: the library is timm or torchvision, not {library!r}")
    if pretrained and checkpoint_path:
        raise ValueError("give pretrained or checkpoint_path, not both")
    if stem not in Stem.__args__:
        raise ValueError(f"stem must be auto, small or imagenet, got {stem!r}")
    if dims not in (1, 2):
        raise ValueError(f"dims must be 1 (signals) or 2 (images), got {dims!r}")
    stem = "imagenet" if stem == "auto" and pretrained else stem
    small = stem == "small" or (stem == "auto" and image_size <= 64)
    state = read_weights(checkpoint_path) if checkpoint_path else None
    try:
        network = None if library else _ours(model, num_classes, in_channels, small, kwargs)
        if network is not None and pretrained:
            raise ValueError(f"{name} has no pretrained weights; a timm or torchvision network has")
        if network is None:
            if library != "torchvision":
                network = _timm(model, num_classes, in_channels, image_size, pretrained, kwargs)
            if network is None and library != "timm":
                network = _torchvision(model, num_classes, in_channels, pretrained, kwargs)
            if network is None:
                nearest = ", ".join(_nearest(model))
                raise ValueError(f"unknown backbone {name!r}; the nearest: {nearest}")
            if small:
                _small_stem(network, name, must=stem == "small")
    except TypeError as error:
        raise ValueError(f"{name} does not take {kwargs} (backbone_kwargs): {error}") from error
    if dims == 1:
        network = to_1d(network)
    if state is not None:
        load_weights(network, state, source=str(checkpoint_path))
    return network


def check_input(network: nn.Module, example: Tensor) -> None:
    """ValueError where `network` does not take a batch like `example`."""
    for meta in (True, False):
        try:
            run(network, example, frozenset(), meta=meta, training=False)
        except Exception as error:
            if not meta:
                raise ValueError(
                    f"{type(network).__name__} does not take an input of shape "
                    f"{tuple(example.shape)}: {error}. Choose a larger data.image_size, "
                    "stem: small, or another backbone"
                ) from error
        else:
            return


def _ours(
    name: str, num_classes: int, in_channels: int, small: bool, kwargs: dict[str, Any]
) -> nn.Module | None:
    if name not in OURS:
        return None
    kind, depth = re.fullmatch(r"([a-z]+)(\d+)", name).groups()  # pyright: ignore[reportOptionalMemberAccess]
    if kind == "resnet":
        return CifarResNet(int(depth), num_classes, in_channels, **kwargs)
    stem = "small" if small else "imagenet"
    return VanillaNet(int(depth), num_classes, in_channels, stem=stem, **kwargs)


def _timm(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: int,
    pretrained: bool,
    kwargs: dict[str, Any],
) -> nn.Module | None:
    import timm

    if not timm.is_model(name):
        return None
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size:  # transformers: position embeddings, windows
        kwargs = {"img_size": image_size, **kwargs}
    options = {"num_classes": num_classes, "in_chans": in_channels, **kwargs}
    if not pretrained:
        return timm.create_model(name, **options)
    try:
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:
        raise _no_weights(name, error) from error


def _torchvision(
    name: str, num_classes: int, in_channels: int, pretrained: bool, kwargs: dict[str, Any]
) -> nn.Module | None:
    from torchvision import models

    if name not in models.list_models(module=models):
        return None
    with_auxiliary_heads = name in ("googlenet", "inception_v3")
    extra = {"aux_logits": False, "init_weights": not pretrained} if with_auxiliary_heads else {}
    network = models.get_model(name, num_classes=num_classes, **{**extra, **kwargs})
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


def _small_stem(network: nn.Module, name: str, *, must: bool) -> None:
    conv, pool = getattr(network, "conv1", None), getattr(network, "maxpool", None)
    if not isinstance(conv, nn.Conv2d | nn.Sequential) or not isinstance(pool, nn.Module):
        if must:
            raise ValueError(
                f"backbone {name!r} has no small stem, only ResNets and VanillaNets: use imagenet"
            )
        return
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
