"""Networks by name, and the LightningModule that trains them."""

from .backbones import build_backbone
from .classifier import Classifier, DivergedError
from .conv1d import to_1d
from .resnet import CifarResNet
from .vanillanet import VanillaNet
from .weights import kaiming_, load_weights, read_weights

__all__ = [
    "CifarResNet",
    "Classifier",
    "DivergedError",
    "VanillaNet",
    "build_backbone",
    "kaiming_",
    "load_weights",
    "read_weights",
    "to_1d",
]
