"""The 1-D twin of a network for images: the same layers over signals."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations import Activation
from activations.swap.kinds import is_elementwise

SIDE = 256  # of the images and signals on which a network and its twin are compared


def to_1d(network: nn.Module) -> nn.Module:
    """The 1-D twin of a network for images, which takes (N, C, L) in place of (N, C, H, W).

    Any ResNet of timm, torchvision or ours, and whatever else is made of the layers below. The twin
    is a copy; its parameters and modules keep their names.

    Length is the images' width: kernel sizes, strides, paddings and dilations are those of the
    width axis. A weight (out, in, k_h, k_w) becomes (out, in, k_w), its middle row, which is all
    that an image of height 1 meets under the usual padding of k_h // 2. So the twin equals the
    network on images of height 1, in value and in training, wherever the network takes them, with
    these exceptions:

    - AvgPool2d with padding and `count_include_pad` also counts the rows of the padding; the twin
      counts none of them.
    - timm's BlurPool2d blurs along the length alone.

    A twin of random weights has its network's deviation, as if each output still summed k_h times
    as many numbers; the normalisation behind it makes up for that.

    Raises:
        ValueError: a layer has no twin; the message names its path and type.
    """
    twin = copy.deepcopy(network)
    for path, module in list(twin.named_modules()):
        _convert(path, module)
    _compare(network, twin)
    return twin


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
    padding: tuple[int, int]
    pad_mode: str
    stride: int

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, L) -> (N, C, L')."""
        channels = x.shape[1]
        x = F.pad(x, self.padding, self.pad_mode)
        return F.conv1d(x, self.filt.expand(channels, 1, -1), stride=self.stride, groups=channels)


TWINS: dict[str, type[nn.Module]] = {
    "torch.Conv2d": nn.Conv1d,
    "torch.BatchNorm2d": nn.BatchNorm1d,
    "torch.InstanceNorm2d": nn.InstanceNorm1d,
    "torch.Dropout2d": nn.Dropout1d,
    "torch.MaxPool2d": nn.MaxPool1d,
    "torch.AvgPool2d": nn.AvgPool1d,
    "torch.AdaptiveAvgPool2d": nn.AdaptiveAvgPool1d,
    "torch.AdaptiveMaxPool2d": nn.AdaptiveMaxPool1d,
    "timm.BatchNormAct2d": BatchNormAct1d,
    "timm.SEModule": SqueezeExcite1d,
    "timm.EffectiveSEModule": SqueezeExcite1d,
    "timm.SqueezeExcite": SqueezeExcite1d,
    "timm.EcaModule": EfficientAttention1d,
    "timm.BlurPool2d": BlurPool1d,
}
# layers without layers of their own that take any rank
AS_THEY_ARE = {
    *("torch.Conv1d", "torch.Dropout", "torch.Flatten", "torch.GroupNorm", "torch.Identity"),
    *("torch.Linear", "torch.SyncBatchNorm", "timm.DropPath", "timm.GroupNorm", "timm.Linear"),
    *("torchvision.StochasticDepth", "models.FadingReLU"),
}


def _convert(path: str, module: nn.Module) -> None:
    """Make `module` its own twin: another class over the same state, cut to the width axis."""
    kind = _kind(module)
    if isinstance(module, Activation):
        if hasattr(module, "dims"):  # a convolution is inside
            module.dims = 1  # pyright: ignore[reportArgumentType]
    elif kind in ("timm.FastAdaptiveAvgPool", "timm.FastAdaptiveMaxPool"):
        module.dim = 2  # pyright: ignore[reportArgumentType]
    elif kind in TWINS:
        if getattr(module, "divisor_override", None) is not None:
            raise _no_twin(path, module, "AvgPool1d has no divisor_override")
        module.__class__ = TWINS[kind]
        for name in ("kernel_size", "stride", "padding", "dilation", "output_padding"):
            _cut(module, name)
        _cut(module, "output_size")
        if isinstance(module, nn.Conv1d):
            _middle_row(module.weight)
            module._reversed_padding_repeated_twice = module._reversed_padding_repeated_twice[:2]
        elif isinstance(module, BlurPool1d):
            module.filt = module.filt.sum(2)
            module.padding = module.padding[:2]
    elif not (kind in AS_THEY_ARE or is_elementwise(module) or list(module.children())):
        raise _no_twin(path, module, "its type is not known to have one")


def _cut(module: nn.Module, name: str) -> None:
    """Keep the width's part, which is the last."""
    value = getattr(module, name, None)
    if isinstance(value, tuple):
        setattr(module, name, value[-1:])


def _middle_row(weight: Tensor) -> None:
    if weight.dim() == 4:  # or else another convolution that shares it was here
        weight.data, weight.grad = weight.detach()[:, :, weight.shape[2] // 2].clone(), None


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__.split('.')[0]}.{type(module).__name__}"


def _no_twin(path: str, module: nn.Module, why: str) -> ValueError:
    where = path or "the network itself"
    return ValueError(f"to_1d: no 1-D twin of {where} ({_kind(module)}): {why}")


Call = tuple[str, Any]  # path of a module and whether it is entered or left, shapes of the tensors


class _DepartureError(Exception):
    pass


def _compare(network: nn.Module, twin: nn.Module) -> None:
    """Raise where a module of `twin` gives other shapes than its original; computes no numbers."""
    convolutions = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    if (first := next(convolutions, None)) is None:
        raise ValueError(f"to_1d: {type(network).__name__} holds no Conv2d to make a Conv1d of")
    size = (3, first.in_channels, SIDE, SIDE)
    images = torch.empty(size, dtype=first.weight.dtype, device="meta")
    calls, _, error = _run(network, images)
    if error is not None:
        raise ValueError(
            f"to_1d: {type(network).__name__} fails on images of shape {size}, so its twin cannot "
            f"be checked: {error}"
        ) from error
    _, path, error = _run(twin, images[:, :, 0], calls)
    if error is not None:
        why = f"its forward pass knows images alone: {error}"
        raise _no_twin(path, network.get_submodule(path), why) from error


@torch.no_grad()
def _run(
    network: nn.Module, x: Tensor, expected: list[Call] | None = None
) -> tuple[list[Call], str, Exception | None]:
    """The calls of a forward pass, and where and why it failed or departed from `expected`."""
    weights = (*network.parameters(), *network.buffers())
    hollow = copy.deepcopy(network, {id(weight): weight.to("meta") for weight in weights}).train()
    calls: list[Call] = []
    stack: list[str] = [""]

    def note(what: str, value: Any) -> None:
        call = (what, _shapes(value, drop_height=expected is None))
        if expected is not None and call != expected[len(calls)]:
            raise _DepartureError(f"{what} {call[1]}, not {expected[len(calls)][1]}")
        calls.append(call)

    def enter(path: str, args: Any) -> None:
        note(f"{path} takes", args)
        stack.append(path)

    def leave(path: str, output: Any) -> None:
        note(f"{path} gives", output)
        stack.pop()

    for path, module in hollow.named_modules():
        if path:
            module.register_forward_pre_hook(lambda m, args, path=path: enter(path, args))
            module.register_forward_hook(lambda m, args, y, path=path: leave(path, y))
    try:
        note("the network gives", hollow(x))
    except Exception as error:
        return calls, stack[-1], error
    return calls, "", None


def _shapes(value: Any, drop_height: bool) -> Any:
    if isinstance(value, Tensor):
        shape = tuple(value.shape)
        return shape[:2] + shape[3:] if drop_height and len(shape) == 4 else shape
    if isinstance(value, list | tuple):
        return [_shapes(item, drop_height) for item in value]
    return None
