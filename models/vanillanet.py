"""VanillaNet: few wide layers without shortcuts; each is two convolutions while it is trained."""

import copy
from collections.abc import Callable
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from activations import SeriesReLU, replace_activations


class FadingReLU(nn.Module):
    r"""Leaky ReLU that fades into the identity. Scheduled.

    .. math:: f(x; t) = \max(x, 0) + s \min(x, 0), \qquad s = \min(t / \mathrm{until}, 1)

    with t the training progress from 0 to 1. It is not an `Activation`, so `replace_activations`
    does not replace it: it stands between two convolutions that become one.

    Args:
        until: training progress at which it is the identity, in (0, 1].

    Attributes:
        slope: (), the current s, a persistent buffer.

    Raises:
        ValueError: `until` or the progress is out of range.
    """

    elementwise: ClassVar[bool] = True  # takes any shape, for `models.to_1d`
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


class ConvPair(nn.Sequential):
    """Convolution, normalisation, FadingReLU, 1x1 convolution and, by default, normalisation.

    Once the FadingReLU is the identity, at the progress `until`, :meth:`fuse` makes one convolution
    of it.
    """

    def __init__(
        self, first: nn.Conv2d, channels: int, until: float, *, last_norm: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = first
        self.norm1 = nn.BatchNorm2d(first.out_channels, eps=1e-6)
        self.fade = FadingReLU(until)
        self.conv2 = nn.Conv2d(first.out_channels, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels, eps=1e-6) if last_norm else nn.Identity()
        for conv in (self.conv1, self.conv2):
            nn.init.trunc_normal_(conv.weight, std=0.02)
            nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """One convolution that equals this module in evaluation mode.

        Raises:
            ValueError: the FadingReLU is not the identity yet.
        """
        if (slope := self.fade.slope.item()) != 1:
            raise ValueError(
                f"two convolutions become one only if the slope between them is 1; it is "
                f"{slope:.7g}. Train on to the progress {self.fade.until:.4g}, which "
                "set_progress(model, t) tells the model"
            )
        first, second = fuse_conv_bn_eval(self.conv1, self.norm1), self.conv2
        if not isinstance(self.norm2, nn.Identity):
            second = fuse_conv_bn_eval(second, self.norm2)
        assert first.bias is not None
        assert second.bias is not None
        matrix = second.weight.flatten(1)
        weight = (matrix @ first.weight.flatten(1)).view(-1, *first.weight.shape[1:])
        first.bias = nn.Parameter(second.bias + matrix @ first.bias)
        first.weight = nn.Parameter(weight)
        first.out_channels = second.out_channels
        return first


class Layer(nn.Sequential):
    """One layer of the deployed network: convolution, max pooling, series activation."""

    def __init__(self, conv: ConvPair, stride: int) -> None:
        super().__init__()
        self.conv: ConvPair | nn.Conv2d = conv
        self.pool = nn.MaxPool2d(stride) if stride > 1 else nn.Identity()
        self.act: nn.Module = SeriesReLU(conv.conv2.out_channels)


class VanillaNet(nn.Module):
    """Plain network of 5 to 13 layers without shortcuts; a series activation follows all but one.

    During training each layer is two convolutions with a :class:`FadingReLU` between them, whose
    slope follows the training progress (`activations.set_progress`). :meth:`fuse` makes the plain
    network of it.

    Args:
        depth: 5 to 13, the number of layers of the plain network, including the classifier.
        num_classes: size of the output.
        in_channels: channels of the input.
        stem: `imagenet`: 4x4 patches, for sides of 32 pixels or more (made for 224). `small`: a 3x3
            convolution of stride 1, for sides of 8 or more (made for 32); later layers get 16 times
            as many pixels.
        activation: makes the activation that follows a layer: a class, or `functools.partial` of
            one; see `activations.replace_activations`.
        width: channels after the stem; later layers have 2, 4 and 8 times as many. 768 is the
            paper's "1.5x".
        dropout: probability of dropping a feature before the classifier.
        slope_until: training progress at which the slopes reach 1; 1/3 is `decay_epochs` 100 of 300
            in the released recipe, if progress ends with the training (`--schedule.end 1.0`).

    Shape:
        (N, in_channels, H, W) -> (N, num_classes).

    Raises:
        ValueError: an argument is out of range, or an image is too small for the strides.
        TypeError: `activation` does not make a module.

    Reference:
        Chen et al., "VanillaNet: the power of minimalism in deep learning", 2023, arXiv 2305.12972;
        channels, strides and order of layers as in the released code. Deviation from it: the small
        stem is ours.
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
        first = nn.Conv2d(in_channels, width, kernel_size, stride, padding)
        self.stem = Layer(ConvPair(first, width, slope_until), 1)
        self.stages = nn.Sequential()
        before = width
        for multiple, pool in _plan(depth):
            pair = ConvPair(nn.Conv2d(before, before, 1), multiple * width, slope_until)
            before = multiple * width
            self.stages.append(Layer(pair, pool))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        first = nn.Conv2d(before, num_classes, 1)
        self.head: ConvPair | nn.Conv2d = ConvPair(first, num_classes, slope_until, last_norm=False)
        if activation is not SeriesReLU:
            example = torch.zeros(2, in_channels, self.smallest, self.smallest)
            replace_activations(self, activation, example_input=example)

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
        """A copy for deployment that equals evaluation mode: each pair of convolutions is one.

        Raises:
            ValueError: the slopes between the convolutions are not 1 yet.
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
