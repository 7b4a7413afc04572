"""Networks by name, trained or not, and the LightningModule that trains them.

Each part is imported when it is first asked for: a trained network needs no Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones import build_backbone
    from .classifier import Classifier, DivergedError
    from .conv1d import to_1d
    from .network import Network, load
    from .resnet import CifarResNet
    from .vanillanet import VanillaNet
    from .weights import kaiming_, load_weights, read_weights

_FILES = {
    "CifarResNet": "resnet",
    "Classifier": "classifier",
    "DivergedError": "classifier",
    "Network": "network",
    "VanillaNet": "vanillanet",
    "build_backbone": "backbones",
    "kaiming_": "weights",
    "load": "network",
    "load_weights": "weights",
    "read_weights": "weights",
    "to_1d": "conv1d",
}
__all__ = [
    "CifarResNet",
    "Classifier",
    "DivergedError",
    "Network",
    "VanillaNet",
    "build_backbone",
    "kaiming_",
    "load",
    "load_weights",
    "read_weights",
    "to_1d",
]


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(f".{_FILES[name]}", __name__), name))
