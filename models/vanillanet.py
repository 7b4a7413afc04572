"""VanillaNet: a few wide layers without shortcuts; depth that is there only while training."""

import copy
import inspect
from collections.abc import Callable
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from activations import SeriesReLU


class FadingReLU(nn.Module):
    r"""Leaky ReLU that fades into the identity. Scheduled.

    .. math:: f(x; t) = \max(x, 0) + s \min(x, 0), \qquad s = \min(t / \mathrm{until}, 1)

    with t the training progress from 0 to 1. It is no `Activation`, so that `replace_activations`
    leaves it where it is: between two convolutions that are to become one.

    Args:
        until: training progress at which it is the identity, in (0, 1].

    Shape: any -> same.

    Attributes: slope: (), the current s, a persistent buffer.
    """

    elementwise: ClassVar[bool] = True
    slope: Tensor

    def __init__(self, until: float) -> None:
        super().__init__()
        if not 0 < until <= 1:
            raise ValueError(f"the slope must reach 1 at a progress in (0, 1], not at {until!r}")
        self.until = until
        self.register_buffer("slope", torch.tensor(0.0))

    def set_progress(self, progress: float) -> None:
        """Move the slope, in place."""
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1], got {progress!r}")
        self.slope.fill_(min(progress / self.until, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """The formula with the current slope."""
        return torch.where(x > 0, x, self.slope * x)


class ConvPair(nn.Module):
    """Convolution, normalisation, FadingReLU, 1x1 convolution and, if asked for, normalisation.

    Once the FadingReLU is the identity, :meth:`fuse` makes one convolution of it.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        until: float,
        kernel_size: int = 1,
        stride: int = 1,
        padding: int = 0,
        *,
        last_norm: bool = True,
    ) -> None:
        super().__init__()
        before, between, after = channels
        self.conv1 = nn.Conv2d(before, between, kernel_size, stride, padding)
        self.norm1 = nn.BatchNorm2d(between, eps=1e-6)
        self.fade = FadingReLU(until)
        self.conv2 = nn.Conv2d(between, after, 1)
        self.norm2 = nn.BatchNorm2d(after, eps=1e-6) if last_norm else nn.Identity()
        for conv in (self.conv1, self.conv2):
            nn.init.trunc_normal_(conv.weight, std=0.02)
            nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, after, H', W')."""
        return self.norm2(self.conv2(self.fade(self.norm1(self.conv1(x)))))

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The one convolution that equals this module in evaluation mode; ValueError before."""
        slope = self.fade.slope.item()
        if slope != 1:
            raise ValueError(
                f"two convolutions become one only where the slope between them is 1; it is "
                f"{slope:.7g}. Train on to the progress {self.fade.until:.4g}, which "
                "set_progress(model, t) tells the model"
            )
        first = fuse_conv_bn_eval(self.conv1, self.norm1)
        norm2, second = self.norm2, self.conv2
        if not isinstance(norm2, nn.Identity):
            second = fuse_conv_bn_eval(second, norm2)
        assert first.bias is not None
        assert second.bias is not None
        matrix = second.weight.flatten(1)
        weight = (matrix @ first.weight.flatten(1)).view(-1, *first.weight.shape[1:])
        first.bias = nn.Parameter(second.bias + matrix @ first.bias)
        first.weight = nn.Parameter(weight)
        first.out_channels = second.out_channels
        return first


class Layer(nn.Module):
    """One layer of the deployed network: convolution, max pooling, activation."""

    def __init__(self, conv: ConvPair, stride: int, act: nn.Module) -> None:
        super().__init__()
        self.conv: ConvPair | nn.Conv2d = conv
        self.pool = nn.MaxPool2d(stride) if stride > 1 else nn.Identity()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        return self.act(self.pool(self.conv(x)))


class VanillaNet(nn.Module):
    """Plain network of 5 to 13 layers, a series activation after each but the last, no shortcut.

    While it is trained each layer is two convolutions with a :class:`FadingReLU` between them,
    whose slope follows training progress (`activations.set_progress`). :meth:`fuse` makes the plain
    network of it.

    Args:
        depth: 5 to 13, the number of layers of the plain network, the classifier among them.
        num_classes: size of the output.
        in_channels: channels of the input.
        stem: `imagenet`: 4x4 patches, for sides of 32 pixels or more (made for 224). `small`: a 3x3
            convolution of stride 1, for 8 or more (made for 32); its layers see 16 times as many
            pixels.
        activation: makes the activation of one site: a class, or `functools.partial` of one. Where
            its class takes `channels`, it receives the number of the site's channels.
        width: channels after the stem; later layers have 2, 4 and 8 times as many. 768 is the
            paper's "1.5x".
        dropout: chance of dropping a feature ahead of the classifier.
        slope_until: training progress at which the slopes reach 1; 1/3 is the released recipe's
            `decay_epochs` of 100 in 300.

    Shape: (N, in_channels, H, W) -> (N, num_classes).

    Raises: ValueError: an argument is out of range, or an image is too small for the strides.
    TypeError: `activation` does not make a module.

    Reference: Chen et al., "VanillaNet: the power of minimalism in deep learning", 2023, arXiv
    2305.12972; channels, strides and order of layers as in the released code. Deviation from it:
    the small stem is ours.
    """

    def __init__(
        self,
        depth: int = 5,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        stem: Literal["imagenet", "small"] = "imagenet",
        activation: Callable[..., nn.Module] = SeriesReLU,
        width: int = 512,
        dropout: float = 0.0,
        slope_until: float = 1 / 3,
    ) -> None:
        super().__init__()
        if depth not in range(5, 14):
            raise ValueError(f"VanillaNet has 5 to 13 layers, got depth {depth!r}")
        if stem not in ("imagenet", "small"):
            raise ValueError(f"the stem of a VanillaNet is imagenet or small, got {stem!r}")
        kernel_size, stride, padding = (4, 4, 0) if stem == "imagenet" else (3, 1, 1)
        self.smallest = 8 * stride  # three poolings by 2 follow
        pair = ConvPair((in_channels, width, width), slope_until, kernel_size, stride, padding)
        self.stem = Layer(pair, 1, _make(activation, width))
        self.stages = nn.Sequential()
        before = width
        for multiple, pool in _plan(depth):
            pair = ConvPair((before, before, multiple * width), slope_until)
            before = multiple * width
            self.stages.append(Layer(pair, pool, _make(activation, before)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        channels = (before, num_classes, num_classes)
        self.head: ConvPair | nn.Conv2d = ConvPair(channels, slope_until, last_norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (logits) of a batch of images."""
        if min(x.shape[2:]) < self.smallest:
            raise ValueError(
                f"this VanillaNet needs sides of at least {self.smallest} pixels, got an input of "
                f"shape {tuple(x.shape)}; stem='small' takes 8"
            )
        x = self.stages(self.stem(x))
        return self.head(self.dropout(self.pool(x))).flatten(1)

    def fuse(self) -> Self:
        """A copy for deployment, equal to evaluation mode: each pair of convolutions is one.

        Raises: ValueError: the slopes between the pairs are not 1 yet.
        """
        fused = copy.deepcopy(self).eval()
        for name, module in list(fused.named_modules()):
            if isinstance(module, ConvPair | SeriesReLU):
                fused.set_submodule(name, module.fuse())
        return fused


def _plan(depth: int) -> list[tuple[int, int]]:
    """Channels, in multiples of the width, and max pooling of the layers after the stem."""
    plan = [(2, 2), (4, 2), *[(4, 1)] * (depth - 7), (8, 2)]
    if depth >= 6:
        plan.append((8, 1))
    if depth >= 7:
        plan.insert(0, (1, 1))
    return plan


def _make(activation: Callable[..., nn.Module], channels: int) -> nn.Module:
    made = activation()
    if not isinstance(made, nn.Module):
        raise TypeError(f"the activation factory must make a torch.nn.Module, got {made!r}")
    if "channels" in inspect.signature(type(made)).parameters:
        return activation(channels=channels)
    return made
