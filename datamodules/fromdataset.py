"""Any data set class of samples (image, label), such as those of torchvision."""

import hashlib
import inspect
import io
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from . import cache
from .samples import Samples, Source

# how the classes of torchvision choose a part
CHOICES = {"train": {"train": True, "test": False}, "split": {"train": "train", "test": "test"}}


@dataclass(kw_only=True, eq=False, repr=False)
class FromDataset(Samples):
    """The samples of a data set class, each (image, label).

    The class is made once for each part, with the arguments of `dataset` and those of the part. By
    default these are `train: true` and `train: false` for a class that takes `train`, else
    `split: train` and `split: test` for one that takes `split`. Of a class that takes neither, some
    samples of every class are the test set.

    Args:
        dataset: a Dataset of torch with `__len__` and `__getitem__`, such as
            torchvision.datasets.SVHN, and its arguments.
        train: arguments of the training part.
        val: arguments of the validation part; without them it is a part of the training samples.
        test: arguments of the test part.

    Raises:
        ValueError: the class cannot be made, or gives no such samples.
    """

    dataset: Callable[[], Dataset] | None = None
    train: dict[str, Any] | None = None
    val: dict[str, Any] | None = None
    test: dict[str, Any] | None = None

    @property
    def place(self) -> str:
        """The class and its arguments."""
        return self._set

    def source(self) -> Source:
        """Make the class for each part."""
        make: Any = self.dataset  # a class, or a partial of one; jsonargparse has it as an argument
        made_of = (make, getattr(make, "func", None), *getattr(make, "args", ()))
        kind = next((each for each in made_of if isinstance(each, type)), None)
        if kind is None:
            raise ValueError("FromDataset needs the class of a data set: --data.dataset CLASS")
        if issubclass(kind, IterableDataset) or not hasattr(kind, "__len__"):
            raise ValueError(
                f"{kind.__name__} cannot be split, as its samples have no numbers: name a class "
                "with __len__ and __getitem__"
            )
        known = inspect.signature(kind).parameters
        name = next((name for name in CHOICES if name in known), None)
        plainly = {part: {name: value} for part, value in CHOICES[name].items()} if name else {}
        own = {"train": self.train, "val": self.val, "test": self.test}
        given = {part: plainly.get(part) if its is None else its for part, its in own.items()}
        given = {part: its for part, its in given.items() if its is not None}
        parts = {
            p: self._made(make, kind, arguments) for p, arguments in ({"train": {}} | given).items()
        }
        names = {part: named(getattr(samples, "classes", None)) for part, samples in parts.items()}
        if other := [part for part in parts if names[part] != names["train"]]:
            raise ValueError(f"{kind.__name__}: {other[0]} has other classes than train")
        plain = [each for each in made_of[2:] if not callable(each)]
        of_all = getattr(make, "keywords", {})
        arguments = [plain, of_all, given]
        of_parts = ({"train": {}} | given).values()
        chosen = {*of_all, *set[str].intersection(*map(set, of_parts))}
        which = (kind.__module__, kind.__qualname__, told(arguments))
        self._set = repr(which)
        usual = [each.default for name, each in known.items() if name not in chosen]
        files = [self.stamp(path) for path in paths([arguments, usual])]
        code = [code_of(each) for each in kind.__mro__[:-1]]
        return Source(kind.__name__, parts, names["train"], (*which, files, code))

    def _made(self, make: Any, kind: type, arguments: dict[str, Any]) -> Any:
        try:
            return make(**arguments)
        except Exception as error:  # of any code
            shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise ValueError(
                f"{kind.__name__}({shown}) cannot be made ({type(error).__name__}: {error}): give "
                "the arguments of a part with --data.train, --data.val and --data.test, those of "
                "all with --data.dataset.NAME VALUE"
            ) from error


def paths(value: Any) -> Iterator[Path]:
    """The texts among arguments that may be paths."""
    if isinstance(value, str | os.PathLike):
        if str(value):  # else the current folder
            yield Path(value)
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from paths(each)


class _Pickler(pickle.Pickler):
    """Notes the classes and functions of what it pickles by name alone: their code may change."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.code = dict[str, Any]()

    def reducer_override(self, value: Any) -> Any:
        kind = value if hasattr(value, "__qualname__") else type(value)
        for each in getattr(kind, "__mro__", (kind,)):
            name = f"{getattr(each, '__module__', '')}.{each.__qualname__}"
            self.code[name] = code_of(each)
        return NotImplemented


def told(value: Any) -> Any:
    """What a value is, for the key of a cache; its `repr` may leave out numbers, or show a place.

    What cannot be told is another thing each time.
    """
    if isinstance(value, Tensor):
        half = value.dtype == torch.bfloat16  # NumPy has no such type
        return str(value.dtype), told((value.float() if half else value).numpy(force=True))
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, dict):
        return [(repr(name), told(each)) for name, each in value.items()]
    if isinstance(value, list | tuple):
        return [told(each) for each in value]
    if value is None or isinstance(value, str | bytes | int | float | complex | os.PathLike):
        return repr(value)
    pickler = _Pickler(whole := io.BytesIO())
    try:
        pickler.dump(value)
    except Exception:  # of any code
        return os.urandom(16)
    return hashlib.sha256(whole.getvalue()).hexdigest(), sorted(pickler.code.items())


def code_of(kind: Any) -> Any:
    """The file of a class or function as it is now; its code if it has none, as in a notebook."""
    name = getattr(kind, "__module__", None)  # methods of compiled classes have none
    if file := getattr(sys.modules.get(name or ""), "__file__", None):
        return cache.stamp(Path(file).parent, [file])
    if inspect.isbuiltin(kind) or name is None or name in sys.builtin_module_names:
        return None
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return os.urandom(16)


def named(classes: Any) -> list[str] | None:
    """The names of classes; one that has several, as in ImageNet, has them all."""
    if not isinstance(classes, list | tuple) or not classes:
        return None
    return [", ".join(each) if isinstance(each, list | tuple) else str(each) for each in classes]
