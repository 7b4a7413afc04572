"""Networks by name, and the LightningModule that trains them."""

from .backbones import build_backbone
from .classifier import Classifier
from .conv1d import to_1d
from .resnet import CifarResNet
from .vanillanet import VanillaNet

__all__ = ["CifarResNet", "Classifier", "VanillaNet", "build_backbone", "to_1d"]
