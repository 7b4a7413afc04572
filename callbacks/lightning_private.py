"""What Lightning does not promise or does not declare.

`tests/callbacks/test_schedule.py` has a test that fails by name when one of these uses breaks.
"""

from collections.abc import Iterator
from typing import Any, TypeVar, cast

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import AveragedModel

Kind = TypeVar("Kind", bound=Callback)


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """The callbacks of one kind; `Trainer` sets its attribute `callbacks` without declaring it."""
    return [each for each in cast(Any, trainer).callbacks if isinstance(each, kind)]


def averaged_models(trainer: Trainer) -> Iterator[AveragedModel]:
    """The averages of the network that callbacks of `trainer` hold, in attributes of any name."""
    for callback in callbacks_of(trainer, Callback):
        found = [value for value in vars(callback).values() if isinstance(value, AveragedModel)]
        if isinstance(callback, WeightAveraging) and not found:
            raise RuntimeError(
                f"{type(callback).__name__} holds no AveragedModel in this version of lightning: "
                "scheduled activations would be averaged. Use lightning 2.6, or no averaging"
            )
        yield from found
