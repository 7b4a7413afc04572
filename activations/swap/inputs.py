"""The inputs of a trial run: one tensor, several inputs, or keyword inputs, nested as they like."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    """What a network is called with: `network(*args, **kwargs)`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, example: Any) -> "Inputs":
        """A tuple holds several inputs, a mapping holds them by name, all else is one input."""
        if isinstance(example, Mapping):
            return cls((), dict(example))
        return cls(tuple(example) if isinstance(example, tuple) else (example,), {})

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same inputs with each tensor changed."""
        changed = {id(x): change(x) for x in tensors_in(self)}
        args, kwargs = copy.deepcopy((self.args, self.kwargs), changed)
        return Inputs(args, kwargs)

    def on(self, device: torch.device | str | None) -> "Inputs":
        """A copy of the inputs on a device, which a network may change; zeros without numbers."""

        def there(x: Tensor) -> Tensor:
            if x.is_meta:
                return torch.zeros_like(x, device=device or "cpu")
            return x.clone() if device is None else x.to(device, copy=True)

        return self.map(there)

    def of_two(self) -> "Inputs":
        """The batch twice where it has one sample: batch normalisation trains on two at least."""
        single = all(x.dim() and len(x) == 1 for x in tensors_in(self))
        return self.map(lambda x: torch.cat([x, x])) if single else self

    def larger(self) -> "Inputs | None":
        """Zeros of twice the height and width, or the length; None where there is neither."""

        def shape(x: Tensor) -> tuple[int, ...]:
            kept = 2 if x.is_floating_point() else 1
            return (*x.shape[:kept], *(2 * size for size in x.shape[kept:]))

        if all(shape(x) == x.shape for x in tensors_in(self)):
            return None
        return self.map(lambda x: x if shape(x) == x.shape else x.new_zeros(shape(x)))

    def __str__(self) -> str:
        """The shapes, each once."""
        return ", ".join(dict.fromkeys(str(tuple(x.shape)) for x in tensors_in(self)))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in `value`: in lists, tuples, mappings and data classes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif dataclasses.is_dataclass(value):
        yield from tensors_in(list(vars(value).values()))
