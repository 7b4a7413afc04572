"""Data sets as LightningDataModules, each imported when it is first asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import ImageDataModule
    from .cifar import CIFAR10, CIFAR100
    from .digits import Digits
    from .fromdataset import FromDataset
    from .huggingface import HuggingFace
    from .imagefolder import ImageFolder, Silkworm
    from .imagelist import ImageList
    from .miniimagenet import MiniImageNet
    from .mitbih import MITBIH
    from .mnist import MNIST
    from .tinyimagenet import TinyImageNet
    from .wfdbbeats import WFDBBeats

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Digits",
    "FromDataset",
    "HuggingFace",
    "ImageDataModule",
    "ImageFolder",
    "ImageList",
    "MITBIH",
    "MNIST",
    "MiniImageNet",
    "Silkworm",
    "TinyImageNet",
    "WFDBBeats",
]
# whoever prepares one sample (preprocess.py) needs no Lightning, which these import
_FILES = {
    "CIFAR100": "cifar",
    "CIFAR10": "cifar",
    "ImageDataModule": "base",
    "Silkworm": "imagefolder",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    file = import_module(f".{_FILES.get(name, name.lower())}", __name__)
    return globals().setdefault(name, getattr(file, name))
