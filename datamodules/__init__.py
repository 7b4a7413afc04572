"""Data sets as LightningDataModules."""

from .base import ImageDataModule
from .cifar import CIFAR10, CIFAR100
from .digits import Digits
from .imagefolder import ImageFolder, Silkworm
from .miniimagenet import MiniImageNet
from .mitbih import MITBIH
from .mnist import MNIST

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Digits",
    "ImageDataModule",
    "ImageFolder",
    "MITBIH",
    "MNIST",
    "MiniImageNet",
    "Silkworm",
]
