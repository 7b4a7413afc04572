"""The 1-D twin of a network for images: the same layers over signals."""

import copy
import inspect
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations import Activation
from activations.swap.kinds import is_elementwise

SIDE = 256  # of the images and signals on which a network and its twin are compared


def to_1d(network: nn.Module) -> nn.Module:
    """The 1-D twin of a network for images, which takes (N, C, L) instead of (N, C, H, W).

    It works for any ResNet of timm, torchvision or ours, and for other networks that are made of
    elementwise activations, of the layers in `TWINS` and `AS_THEY_ARE`, and of classes whose
    attribute `elementwise` is True. The twin is a copy; names, modes, hooks and sharing are kept.

    The length takes the role of the image width: kernel sizes, strides, paddings and dilations are
    those of the width axis. A weight (out, in, k_h, k_w) becomes (out, in, k_w), its middle row:
    with the usual padding of k_h // 2, an image of height 1 meets no other row. So the twin equals
    the network on images of height 1, in values and in training, with two exceptions: AvgPool2d
    with `count_include_pad` also counts the rows of its padding, and timm's BlurPool2d also blurs
    along the height.

    Args:
        network: the network for images; it is not changed.

    Raises:
        ValueError: a layer has no twin; the message gives its path and type.
    """
    holder = nn.Sequential(copy.deepcopy(network))  # so that the network itself can be replaced
    twins: dict[nn.Module, nn.Module] = {}
    for path, module in list(holder[0].named_modules(remove_duplicate=False)):
        if module not in twins:
            twins[module] = _convert(path, module)
        if twins[module] is not module:
            holder.set_submodule(f"0.{path}".rstrip("."), twins[module])
    _compare(network, holder[0])
    return holder[0]


class BatchNormAct1d(nn.BatchNorm1d):
    """Twin of timm's BatchNormAct2d: batch normalisation, dropout, activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) -> same."""
        return self.act(self.drop(super().forward(input)))


class SqueezeExcite1d(nn.Module):
    """Twin of timm's squeeze-and-excitation modules: their layers, in order, make the gate."""

    add_maxpool: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, L) -> same."""
        gate = x.mean(2, keepdim=True)
        if self.add_maxpool:
            gate = (gate + x.amax(2, keepdim=True)) / 2
        for layer in self.children():
            gate = layer(gate)
        return x * gate


class EfficientAttention1d(nn.Module):
    """Twin of timm's EcaModule, whose layers run along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, L) -> same."""
        gate = x.mean(2).unsqueeze(1)
        for layer in self.children():
            gate = layer(gate)
        return x * gate.transpose(1, 2)


class BlurPool1d(nn.Module):
    """Twin of timm's BlurPool2d: a binomial filter and a stride, along the length."""

    filt: Tensor
    padding: list[int]
    pad_mode: str
    stride: int

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, L) -> (N, C, L')."""
        channels = x.shape[1]
        x = F.pad(x, self.padding[:2], self.pad_mode)
        kernel = self.filt.sum(2).expand(channels, 1, -1)
        return F.conv1d(x, kernel, stride=self.stride, groups=channels)


_BY_RANK = (
    *("Conv", "BatchNorm", "InstanceNorm", "Dropout"),
    *("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool"),
)
TWINS: dict[str, type[nn.Module]] = {
    **{f"torch.{name}2d": getattr(nn, f"{name}1d") for name in _BY_RANK},
    "timm.BatchNormAct2d": BatchNormAct1d,
    "timm.SEModule": SqueezeExcite1d,
    "timm.EffectiveSEModule": SqueezeExcite1d,
    "timm.SqueezeExcite": SqueezeExcite1d,
    "timm.EcaModule": EfficientAttention1d,
    "timm.BlurPool2d": BlurPool1d,
}
# layers without submodules that accept inputs of any rank
AS_THEY_ARE = {
    *("torch.Conv1d", "torch.Dropout", "torch.Flatten", "torch.GroupNorm", "torch.Identity"),
    *("torch.Linear", "torch.SyncBatchNorm", "timm.DropPath", "timm.GroupNorm", "timm.Linear"),
    "torchvision.StochasticDepth",
}


def _convert(path: str, module: nn.Module) -> nn.Module:
    """The twin of one layer; `module` itself if its class also takes signals."""
    kind = _kind(module)
    if kind in TWINS:
        if getattr(module, "divisor_override", None) is not None:
            raise _no_twin(path, module, "AvgPool1d has no divisor_override")
        return _rebuild(module, TWINS[kind])
    if isinstance(module, Activation):
        if module.dims:  # it holds a convolution
            module.dims = 1
    elif kind in ("timm.FastAdaptiveAvgPool", "timm.FastAdaptiveMaxPool"):
        module.dim = 2  # pyright: ignore[reportArgumentType]
    elif not (
        kind in AS_THEY_ARE
        or is_elementwise(module)
        or getattr(module, "elementwise", False)
        or list(module.children())
    ):
        why = "its type is not known to have one; if it takes any shape, give it elementwise = True"
        raise _no_twin(path, module, why)
    return module


def arguments_of(layer: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    """The arguments with which `kind` makes a layer like `layer`, read from its attributes."""
    known = [name for name in inspect.signature(kind).parameters if hasattr(layer, name)]
    arguments = {name: getattr(layer, name) for name in known}
    return arguments | {"bias": layer.bias is not None} if "bias" in arguments else arguments


def _rebuild(old: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A `kind` with the arguments of `old` for the width axis, and with all else that it holds."""
    arguments = {
        name: value[-1:] if isinstance(value, tuple) else value
        for name, value in arguments_of(old, kind).items()
    }
    with torch.device("meta"):  # no random numbers are drawn
        new = kind(**arguments)
    every_module = vars(nn.Module())  # parameters, buffers, submodules, hooks, mode
    kept = {n: v for n, v in vars(old).items() if n in every_module or n not in vars(new)}
    vars(new).update(kept)
    if isinstance(new, nn.Conv1d) and new.weight.dim() == 4:  # it is 3 if a shared weight is cut
        new.weight.data = new.weight.detach()[:, :, new.weight.shape[2] // 2].clone()
    return new


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__.split('.')[0]}.{type(module).__name__}"


def _no_twin(path: str, module: nn.Module, why: str) -> ValueError:
    where = path or "the network itself"
    return ValueError(f"to_1d: no 1-D twin of {where} ({_kind(module)}): {why}")


def _compare(network: nn.Module, twin: nn.Module) -> None:
    """Raise if a module of `twin` gives other shapes than its original; computes no numbers."""
    convolutions = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    if (first := next(convolutions, None)) is None:
        raise ValueError(f"to_1d: {type(network).__name__} holds no Conv2d to make a Conv1d of")
    size = (3, first.in_channels, SIDE, SIDE)
    images = torch.empty(size, dtype=first.weight.dtype, device="meta")
    expected, error = _trace(network, images, drop_height=True)
    if error is not None:
        raise ValueError(
            f"to_1d: {type(network).__name__} fails on images of shape {size}, so its twin cannot "
            f"be checked: {error}"
        ) from error
    found, error = _trace(twin, images[:, :, 0], drop_height=False)
    for entry, other in zip_longest(expected, found):
        if entry != other:
            path, what, shapes = entry
            why = f"{path} {what} {other[2]}, not {shapes}" if other else error
            path = path if what == "gives" else path.rpartition(".")[0]  # the module that calls it
            where = network.get_submodule(path)
            raise _no_twin(path, where, f"its forward pass is for images only: {why}") from error


@torch.no_grad()
def _trace(
    network: nn.Module, x: Tensor, *, drop_height: bool
) -> tuple[list[tuple[str, str, Any]], Exception | None]:
    """The shapes of the inputs and outputs of all modules, and the error that ended the pass."""
    hollow = copy.deepcopy(network).to("meta").train()
    entries: list[tuple[str, str, Any]] = []

    def shapes(value: Any) -> Any:
        if isinstance(value, Tensor):
            shape = tuple(value.shape)
            return shape[:2] + shape[3:] if drop_height and len(shape) == 4 else shape
        return [shapes(item) for item in value] if isinstance(value, list | tuple) else None

    def note(path: str, module: nn.Module, inputs: Any, *outputs: Any) -> None:
        what = "gives" if outputs else "takes"
        entries.append((path, what, shapes(outputs or inputs)))

    for path, module in hollow.named_modules():
        module.register_forward_pre_hook(partial(note, path))
        module.register_forward_hook(partial(note, path))
    try:
        hollow(x)
    except Exception as error:
        return entries, error
    return entries, None
