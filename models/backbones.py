"""A classification network by name: ours, timm's or torchvision's."""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from activations.swap.inputs import Inputs
from activations.swap.trace import run

from .conv1d import arguments_of, to_1d
from .resnet import CifarResNet
from .vanillanet import VanillaNet
from .weights import load_weights, read_weights

OURS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (8, 14, 20, 26, 32, 44, 56)},
    **{f"vanillanet{depth}": partial(VanillaNet, depth) for depth in range(5, 14)},
}
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
            are ours. Any other name is looked up in timm, then in torchvision. `timm/resnet26` or
            `torchvision/resnet18` chooses the library, if several have a network of this name.
        num_classes: size of the output.
        in_channels: channels of the input; pretrained weights are adapted to it.
        dims: 2 for images; 1 makes the 1-D twin of a ResNet, for signals (:func:`models.to_1d`).
        stem: `small` makes the first convolution of a ResNet 3x3 with stride 1 and removes the
            pooling after it; a VanillaNet gets a similar stem. `imagenet` keeps what the library
            built. `auto` is small for inputs up to 64 pixels, unless the network is pretrained.
        pretrained: download the library's weights and load them.
        checkpoint_path: load weights from a file; see `models.read_weights`.
        image_size: side of the images in pixels, or length of the signals.
        kwargs: further arguments of the network's constructor.

    Raises:
        ValueError: the name is unknown, the network has no small stem or no 1-D twin, does not take
            an argument, or the weights do not fit.
        FileNotFoundError: there is no file at `checkpoint_path`.
    """
    if pretrained and checkpoint_path:
        raise ValueError("give pretrained or checkpoint_path, not both")
    if stem not in Stem.__args__:
        raise ValueError(f"stem must be auto, small or imagenet, got {stem!r}")
    if not isinstance(name, str):
        raise ValueError(f"backbone must be the name of a network, got {name!r}")
    if dims not in (1, 2):
        raise ValueError(f"dims must be 1 (signals) or 2 (images), got {dims!r}")
    small = stem == "small" or (stem == "auto" and image_size <= 64 and not pretrained)
    state = read_weights(checkpoint_path) if checkpoint_path else None
    try:
        if name not in OURS:
            network = _from_library(name, num_classes, in_channels, image_size, pretrained, kwargs)
            if small and not _make_stem_small(network) and stem == "small":
                raise ValueError(
                    f"backbone {name!r} has no small stem, as only ResNets and VanillaNets have: "
                    "use stem imagenet"
                )
        elif pretrained:
            raise ValueError(f"{name} has no pretrained weights; a timm or torchvision network has")
        else:
            options: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels}
            if name.startswith("vanillanet"):
                options["stem"] = "small" if small else "imagenet"
            network = OURS[name](**options | kwargs)
    except TypeError as error:
        raise ValueError(f"{name} does not take {kwargs} (backbone_kwargs): {error}") from error
    if dims == 1:
        network = to_1d(network)
    if state is not None:
        load_weights(network, state, source=str(checkpoint_path))
    return network


def check_input(network: nn.Module, example: Tensor) -> None:
    """Raise ValueError if `network` does not take a batch like `example`."""
    failure = None
    for meta in (True, False):  # without numbers first, which is quick; some networks need them
        try:
            run(network, Inputs.of(example), frozenset(), meta=meta, training=False)
        except Exception as error:
            failure = error
        else:
            return
    raise ValueError(
        f"{type(network).__name__} does not take an input of shape {tuple(example.shape)}: "
        f"{failure}. Choose a larger data.image_size, stem: small, or another backbone"
    ) from failure


def _from_library(
    name: str, classes: int, channels: int, side: int, pretrained: bool, kwargs: dict[str, Any]
) -> nn.Module:
    import timm
    from torchvision import models

    library, _, model = name.rpartition("/")
    if library not in ("", "timm", "torchvision"):
        raise ValueError(f"backbone {name!r}: the library is timm or torchvision, not {library!r}")
    of_torchvision = models.list_models(module=models)
    in_timm = library != "torchvision" and timm.is_model(model)
    if not in_timm and (library == "timm" or model not in of_torchvision):
        known = list(dict.fromkeys([*OURS, *timm.list_models(), *of_torchvision]))
        near = difflib.get_close_matches(model, known, n=5)
        near = near or [other for other in known if other.startswith(model[:3])][:5]
        near = ", ".join(near or ["resnet20", "resnet18", "convnext_tiny"])
        raise ValueError(f"unknown backbone {name!r}; the nearest: {near}")
    state = None
    try:
        if in_timm:
            cfg = timm.get_pretrained_cfg(model)
            if cfg is not None and cfg.fixed_input_size:  # position embeddings, windows
                kwargs = {"img_size": side, **kwargs}
            options = {"num_classes": classes, "in_chans": channels, **kwargs}
            return timm.create_model(model, pretrained, **options)
        if pretrained:
            # its own constructor loads them: names in the files may be those of another version
            state = models.get_model(model, weights="DEFAULT").state_dict()
    except Exception as error:
        if not pretrained or isinstance(error, TypeError):
            raise
        raise ValueError(
            f"cannot get pretrained weights of {name} ({type(error).__name__}: {error}); "
            "without internet access give a file, --model.checkpoint_path"
        ) from error
    if model in ("googlenet", "inception_v3"):  # without auxiliary outputs
        inputs = {"transform_input": pretrained and channels == 3}  # as with its weights
        kwargs = {"aux_logits": False, "init_weights": not pretrained, **inputs, **kwargs}
    network = models.get_model(model, num_classes=classes, **kwargs)
    if channels != 3:
        first = next(n for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
        _replace_conv(network, first, in_channels=channels)
    if state is not None:
        state = {n: value for n, value in state.items() if "aux" not in n.lower()}
        load_weights(network, state, source=f"{name}'s pretrained weights")
    return network


def _make_stem_small(network: nn.Module) -> bool:
    conv, pool = getattr(network, "conv1", None), getattr(network, "maxpool", None)
    if not isinstance(conv, nn.Conv2d | nn.Sequential) or not isinstance(pool, nn.Module):
        return False
    first = "conv1" if isinstance(conv, nn.Conv2d) else "conv1.0"
    _replace_conv(network, first, kernel_size=3, stride=1, padding=1)
    network.maxpool = nn.Identity()
    return True


def _replace_conv(network: nn.Module, name: str, **changes: int) -> None:
    arguments: dict[str, Any] = arguments_of(network.get_submodule(name), nn.Conv2d) | changes
    conv = nn.Conv2d(**arguments)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(name, conv)
