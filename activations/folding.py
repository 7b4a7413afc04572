"""A network for deployment: what follows from its parameters alone is computed once."""

import copy
from typing import Any, TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .activation import Activation
from .functions.relun import ReLUN
from .functions.seriesrelu import SeriesReLU
from .fusion.kernel import Expression
from .swap.fade import Fade
from .torch_private import has_hooks

Network = TypeVar("Network", bound=nn.Module)


class Folded(Activation):
    """An activation whose formula is called with fixed numbers: clamps and tables are computed.

    Args:
        whole: an activation with an expression; it is not changed.

    Attributes:
        kind: the class of `whole`.
    """

    def __init__(self, whole: Activation) -> None:
        super().__init__(whole.num_parameters, whole.channel_dim)
        expression = whole.expression()
        assert expression is not None, "only what has an expression can be folded"
        self.kind, self.fused = type(whole).__name__, whole.fused
        self.rule, self.constants = expression.formula, expression.constants
        self.sizes = len(expression.values), len(expression.tables)
        rows = self.num_parameters  # of a mixture a part may have one value for all channels
        values = (
            each.expand(rows, *each.shape[1:]) if each.dim() else each for each in expression.values
        )
        for k, tensor in enumerate((*values, *expression.tables)):
            self.register_buffer(f"number{k}", tensor.detach().clone())

    def expression(self) -> Expression:
        """The formula with the numbers."""
        numbers: list[Any] = [getattr(self, f"number{k}") for k in range(sum(self.sizes))]
        values, tables = numbers[: self.sizes[0]], numbers[self.sizes[0] :]
        return Expression(self.rule, tuple(values), self.constants, tuple(tables))

    def shape_values(self) -> dict[str, Tensor]:
        """None has a name any more."""
        return {}

    def extra_repr(self) -> str:
        """The class that it was."""
        return self.kind


@torch.no_grad()
def fold(network: Network) -> Network:
    """A copy for deployment, in evaluation mode.

    Clamped parameters, exponentials of parameters and tables, such as DiTAC's, are computed once
    instead of at each call; of a :class:`Fade` that has ended the new function is left; the
    normalisation of LSLU and SeriesReLU becomes part of their convolution; ReLUN with one ceiling
    becomes torch's Hardtanh. Schedules stay where they are. What is left has no parameters of
    activations to train.

    Args:
        network: is not changed.
    """
    network = copy.deepcopy(network).eval()
    return _folded(network, {})  # pyright: ignore[reportReturnType]


def _folded(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """What stands for `module`, often itself with its parts folded; `made` are those so far."""
    if module in made:  # one module may be at several places
        return made[module]
    kept = has_hooks(module)  # only its parts are folded
    if not kept and isinstance(module, Fade) and module.progress == 1:
        result = _folded(module.new, made)
    elif not kept and isinstance(module, SeriesReLU) and _is_plain(module):
        fused = module.fuse()
        result = nn.Sequential(Folded(fused), fused.conv)
    elif not kept and type(module) is ReLUN and module.n.numel() == 1 and module.n > 0:
        result = nn.Hardtanh(0, module.n.item())  # ONNX Runtime makes it part of a convolution
    elif not kept and _is_foldable(module):
        result = Folded(module)
    else:
        result = module
        for name, part in [*module.named_modules(remove_duplicate=False)]:
            if name and "." not in name:
                setattr(module, name, _folded(part, made))
    return made.setdefault(module, result)


def _is_plain(series: SeriesReLU) -> bool:
    """Whether convolution and normalisation are as they were made, and so can become one."""
    conv, norm = series.conv, series.norm
    made = type(conv) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and type(norm) in (
        nn.Identity,
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
    )
    made &= getattr(norm, "running_mean", conv.weight) is not None
    own = type(series).forward is not SeriesReLU.forward or series.expression() is None
    changed = any(has_hooks(part) or is_parametrized(part) for part in (conv, norm))
    return made and not own and not changed


def _is_foldable(module: nn.Module) -> TypeGuard[Activation]:
    """Whether a module does nothing but call a formula with what follows from its parameters."""
    plain = isinstance(module, Activation) and type(module).forward is Activation.forward
    return plain and cast(Activation, module).expression() is not None
