"""Networks by name, and the LightningModule that trains them."""

from .backbones import build_backbone
from .classifier import Classifier
from .resnet import CifarResNet
from .weights import kaiming_, load_weights, read_weights

__all__ = [
    "CifarResNet",
    "Classifier",
    "build_backbone",
    "kaiming_",
    "load_weights",
    "read_weights",
]
