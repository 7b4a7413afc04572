"""Whether a module is an activation as a whole, such as s relu(x)^2 + b, which is found by trying.

Such a module is elementwise, and holds activations and scalars or one parameter a channel. If it
is only a sum or a multiple of the activations in it (GammaAct: 1.7 gelu(x)), it is `affine`: the
network keeps these factors, and the activation inside is swapped.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .copies import copied, random_state_kept

_ROWS = 48
_MOST = 2**14  # channels that an activation has; the trial has 48 * 9 numbers for each


class Whole(NamedTuple):
    """What a module is found to be.

    Attributes:
        elementwise: whether each output depends on its own input alone; else nothing more is known.
        names: the activations in it, modules and functions.
        affine: whether it is a constant plus a multiple of each.
        bounded: whether it is constant far from 0, on both sides.
        linear: whether it is a constant plus a multiple of its input.
        positive: whether no output is below 0, and it is constant far from 0 on one side.
    """

    elementwise: bool
    names: set[str]
    affine: bool
    bounded: bool
    linear: bool = False
    positive: bool = False


def try_whole(module: nn.Module, functions: Mapping[Any, str]) -> Whole | None:
    """What `module` is as a whole; None if it has large parameters or does not run on one tensor.

    Args:
        module: any module.
        functions: the names of the activation functions.
    """
    values = [*module.parameters(), *module.buffers()]
    channels = max((value.numel() for value in values), default=1)
    if channels > _MOST or any(
        value.numel() not in (1, max(value.shape, default=1)) for value in values
    ):
        return None
    generator = torch.Generator().manual_seed(0)

    def number(value: Tensor) -> Tensor:  # distinct, so that no factor is 0 or 1
        if not value.is_floating_point():
            return torch.ones(value.shape, dtype=value.dtype)
        return torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5

    sizes = [(channels, 3, 3), (3, 3, channels), (channels, 3), (3, channels), (channels,)]
    with random_state_kept(), torch.no_grad(), torch.device("cpu"):
        for size in sizes:
            x = 3 * torch.randn(_ROWS, *size, generator=generator, dtype=torch.float64)
            try:
                return _try(copied(module, number), x, generator, functions)
            except Exception:
                continue  # it is no function of one such tensor
    return None


def _try(
    module: nn.Module, x: Tensor, generator: torch.Generator, functions: Mapping[Any, str]
) -> Whole:
    kept = torch.rand(x.shape, generator=generator) < 0.5
    other = torch.where(kept, x, x.flip(0) + 1)
    for training in (True, False):
        module.train(training)
        y, again, changed = [module(value.clone()) for value in (x, x, other)]
        same = isinstance(y, Tensor) and y.shape == x.shape and torch.equal(y, again)
        if not same or not torch.equal(y[kept], changed[kept]):  # it is random, or mixes elements
            return Whole(False, set(), affine=False, bounded=False)
    with _Seen(functions, module) as seen:
        y = module(x.clone())
    if not seen.outputs or any(out.shape != x.shape for out in seen.outputs):
        steps = [module(x + value) for value in (1, 2)]
        linear = torch.allclose(steps[1] - steps[0], steps[0] - y, rtol=1e-6, atol=1e-6)
        return Whole(True, set(), affine=False, bounded=False, linear=linear)
    # each position of the batch is a channel with parameters of its own
    terms = [part.flatten(1).T for part in (torch.ones_like(y), *seen.outputs)]
    columns, target = torch.stack(terms, -1), y.flatten(1).T[..., None]
    fit = torch.linalg.lstsq(columns, target, driver="gelsd").solution
    affine = torch.allclose(columns @ fit, target, rtol=1e-6, atol=1e-6)
    far = [module(torch.full_like(x, value)) for value in (-1e4, -1e3, 1e3, 1e4)]
    sides = torch.allclose(far[0], far[1]), torch.allclose(far[2], far[3])
    positive = any(sides) and bool((y >= 0).all())
    return Whole(True, seen.names, affine, bounded=all(sides), positive=positive)


class _Seen(TorchFunctionMode):
    """Keeps what activations in a module return: functions while it is on, and its children."""

    def __init__(self, functions: Mapping[Any, str], module: nn.Module) -> None:
        super().__init__()
        self.functions = functions
        self.names: set[str] = set()
        self.outputs: list[Tensor] = []
        for part in module.children():
            if not isinstance(part, nn.Identity):
                part.register_forward_hook(self._leave)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called in place of every function of torch."""
        out = func(*args, **(kwargs or {}))
        if func in self.functions:
            self.names.add(self.functions[func])
            self.outputs.append(out.clone())
        return out

    def _leave(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.names.add(type(module).__name__.lower())
        self.outputs.append(out.clone())
