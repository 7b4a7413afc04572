"""The CIFAR ResNets of He et al. 2016, section 4.2, with parameter-free shortcuts (option A)."""

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; each activation call has its own module."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU()
        self.subsample = nn.AvgPool2d(1, stride) if stride > 1 else nn.Identity()
        self.new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride))."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        x = self.subsample(x)
        if self.new_channels:
            before = self.new_channels // 2
            unpadded = (0, 0) * (x.dim() - 2)
            x = F.pad(x, (*unpadded, before, self.new_channels - before))
        return self.act2(x + y)


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for small images: stages of n blocks with 16, 32 and 64 channels.

    Convolutions start from He's normal distribution (fan out).

    Args:
        depth: 8, 14, 20, 26, 32, 44, 56 or any other 6n + 2.
        num_classes: size of the output.
        in_channels: channels of the input.

    Shape:
        (N, in_channels, H, W) -> (N, num_classes).

    Raises:
        ValueError: depth is not 6n + 2.

    Reference:
        He et al., "Deep residual learning for image recognition", 2016, section 4.2.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"the depth of a CIFAR ResNet is 6n + 2 (8, 14, 20, ...), got {depth}")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = nn.ReLU()
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (logits) of a batch of images."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.flatten(2).mean(2))
