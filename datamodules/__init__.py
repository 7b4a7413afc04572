"""Data sets as LightningDataModules."""

from .base import ImageDataModule
from .cifar import CIFAR10, CIFAR100
from .digits import Digits

__all__ = ["CIFAR10", "CIFAR100", "Digits", "ImageDataModule"]
