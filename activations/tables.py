"""Tables instead of formulas: `tabulate` makes slow activations of a trained network quick.

The network runs on inputs; each activation's range is recorded, and its function over that range
becomes a table with linear interpolation, as fine as the tolerance asks for.
"""

import copy
import ctypes
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .activation import Activation, positive, precise
from .folding import Folded
from .functions.bspline import Take, linear_spline, look_up
from .fusion.kernel import Expression
from .swap.choose import Left
from .swap.inputs import Inputs, tensors_in
from .swap.kinds import LIBRARIES, is_activation, is_elementwise
from .swap.replace import aligned, reasons
from .torch_private import hooks_of, is_compiled, leave_fast_path, move_hooks

Outputs = list[tuple[Tensor | None, Tensor | None, bytes]]  # the labels, and a hash of the inputs
Batch = tuple[Inputs, Tensor | None]

_CELLS = [2**k for k in range(4, 15)]
_MOST = 2**23  # numbers of a table: 32 MB
# of the inputs of a call, from which the deviation of the outputs is taken: with 400 batches and 50
# activations they take 320 MB
_SAMPLES = 2_000


def tabulated(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    values: Tensor,
    channel_dim: int = 1,
    take: Take = look_up,
) -> Tensor:
    """Interpolate `values`, (P, K + 1), linearly between `low` and `high`; lines go on outside."""
    return linear_spline(x, precise(values), precise(low), precise(high), channel_dim, take)


class Tabulated(Activation):
    """A function as a table with linear interpolation. Fixed.

    Attributes:
        of: what it was made from.
        low: (), the first knot.
        high: (), the last knot; outside, the first and the last piece continue as lines.
        values: (num_parameters, cells + 1), the function at equidistant knots.
    """

    formula = tabulated
    low: Tensor
    high: Tensor
    values: Tensor

    def __init__(
        self, of: str, low: float, high: float, values: Tensor, channel_dim: int = 1
    ) -> None:
        super().__init__(len(values), channel_dim)
        self.of = of
        self.register_buffer("low", torch.tensor(low, device=values.device))
        self.register_buffer("high", torch.tensor(high, device=values.device))
        self.register_buffer("values", precise(values))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        ends = self.low, self.high
        super()._apply(fn, recurse)
        if self.low.itemsize < 4:  # rounded ends would shift all knots
            self.low, self.high = (each.to(self.values.device) for each in ends)
        return self

    def expression(self) -> Expression:
        """The interpolation in this table."""
        return Expression(tabulated, (self.low, self.high), (), (self.values,))

    def extra_repr(self) -> str:
        """What it was made from, and the number of cells."""
        return f"{self.of}, {self.values.shape[1] - 1} cells"


@dataclass(frozen=True)
class Table:
    """How one activation was tabulated.

    Attributes:
        name: of the activation in the network.
        was: its class.
        low: the smallest input seen.
        high: the largest input seen.
        cells: of the table, which covers this range and half of it more on each side.
        error: largest difference from the function over the inputs' range, divided by the
            deviation of the function's outputs.
        beyond: the same for inputs that lie outside by up to a whole range; beyond the table, its
            first and its last line continue.
    """

    name: str
    was: str
    low: float
    high: float
    cells: int
    error: float
    beyond: float


@dataclass
class TableReport:
    """What :func:`tabulate` did; prints as a table.

    Attributes:
        tables: the activations that became tables.
        left: the others, with the reason.
        samples: how many samples were seen.
        same_class: share of them whose largest output is the same as before; None if the network's
            output is no tensor of (samples, classes), or if the inputs were others the second time.
        accuracy: before and after; None without labels.
        moved: whether the inputs were others, or in another order, the second time.
    """

    tables: list[Table] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    samples: int = 0
    same_class: float | None = None
    accuracy: tuple[float, float] | None = None
    moved: bool = False

    def __str__(self) -> str:
        """One line for each table, what was left, and what the network's outputs say."""
        rows = [("site", "was", "inputs", "cells", "error", "beyond")]
        for each in self.tables:
            seen = f"{each.low:.3g} to {each.high:.3g}"
            errors = f"{each.error:.1e}", f"{each.beyond:.1e}"
            rows.append((each.name, each.was, seen, str(each.cells), *errors))
        lines = [*(aligned(rows) if self.tables else ()), *reasons(self.left)]
        if self.same_class is not None:
            lines.append(f"{self.same_class:.2%} of {self.samples} samples have the same class")
        if self.moved:
            lines.append(
                "the inputs were others the second time, so that no classes are compared: give a "
                "loader that does not shuffle, to a network that leaves its input as it is"
            )
        if self.accuracy:
            lines.append("accuracy: {:.2%} before, {:.2%} after".format(*self.accuracy))
        return "\n".join(lines)

    def compare(self, before: "Outputs", after: "Outputs") -> None:
        """Count the classes that `before` and `after` share, and those that are right."""
        if [each for *_, each in before] != [each for *_, each in after]:
            self.moved = True
            return
        old, new = ([y.argmax(1) for y, *_ in each if y is not None] for each in (before, after))
        if len(old) < len(before):
            return
        old, new = torch.cat(old), torch.cat(new)
        self.samples, self.same_class = len(old), (old == new).double().mean().item()
        labels = [y for _, y, _ in before if y is not None and y.dim() == 1]
        if len(labels) == len(before):
            right = torch.cat(labels).cpu()
            was, now = ((each == right).double().mean().item() for each in (old, new))
            self.accuracy = was, now


@torch.no_grad()
def tabulate(model: nn.Module, inputs: Any, tolerance: float = 1e-3) -> TableReport:
    """Replace each elementwise activation of this package in `model` by a table, for inference.

    A table takes the same time for every function, and learns nothing. Tabulate after training,
    with schedules at their end: `set_progress(model, 1.0)`. What torch.nn has stays, since runtimes
    know it.

    Args:
        model: the network, changed in place.
        inputs: what the network runs on, in evaluation mode, to see the range of each activation:
            one batch, in a form that :func:`replace_activations` takes; or a loader or list of
            batches, each an input, or a tuple of the input, its labels, and whatever else.
        tolerance: the largest difference from the function over the range of its inputs, divided by
            the deviation of its outputs. The table gets as many cells as this needs, 16 to 16384.

    Returns:
        The tables, what was left, and how the network's classes changed; `print` shows all.

    Raises:
        ValueError: `model` is an activation itself, or compiled, or `inputs` hold no batch.
    """
    positive("tolerance", tolerance)
    if is_activation(model):
        raise ValueError(
            f"{type(model).__name__} is an activation itself: wrap it in torch.nn.Sequential"
        )
    if any(map(is_compiled, model.modules())):
        raise ValueError("the network is compiled: tabulate it before torch.compile")
    report, batches = TableReport(), _batches(inputs, model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        sites = _sites(model, report.left)
        hooks = [
            site.module.register_forward_pre_hook(site.see, with_kwargs=True)
            for site in sites.values()
        ]
        try:
            before = _run(model, batches)
        finally:
            for hook in hooks:
                hook.remove()
        fits = {name: _fit(name, site, tolerance) for name, site in sites.items()}
        for name, fit in fits.items():
            if isinstance(fit, str):
                report.left.append(Left(name, _class(sites[name].module), fit))
            else:
                _place(model, sites[name].module, fit[0])
                report.tables.append(fit[1])
        report.compare(before, _run(model, batches))
    finally:
        for module, training in modes:
            module.training = training
    return report


class _Site:
    """An activation, and what it has seen."""

    def __init__(self, module: Activation) -> None:
        self.module, (self.channels, self.axis) = module, max(_channels(module))
        self.low, self.high, self.finite = torch.inf, -torch.inf, True
        self.samples: list[Tensor] = []

    def see(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record an input; a hook."""
        x = next(iter((*args, *kwargs.values()))).detach()
        least, most = x.double().aminmax() if x.numel() else (x.new_zeros(()), x.new_zeros(()))
        self.finite = self.finite and bool(least.isfinite() & most.isfinite())
        self.low, self.high = min(self.low, least.item()), max(self.high, most.item())
        rows = (x.movedim(self.axis, -1) if self.channels > 1 else x).reshape(-1, self.channels)
        step = -(-rows.numel() // _SAMPLES) or 1
        self.samples.append(rows[::step].cpu().double())

    def function(self, dtype: torch.dtype = torch.float64) -> Callable[[Tensor], Tensor]:
        """The activation as a function of (n, channels) in `dtype`."""
        twin = copy.deepcopy(self.module).cpu().to(dtype).eval()
        for hooks in (table for part in twin.modules() for table in hooks_of(part)):
            hooks.clear()

        def call(x: Tensor) -> Tensor:
            # four axes, so that channel_dim may be any of them
            y = twin.function(x[:, :, None, None].movedim(1, self.axis))
            return y.movedim(self.axis, 1).flatten(1)

        return call


def _sites(model: nn.Module, left: list[Left]) -> dict[str, _Site]:
    """The activations of this package that are functions of single numbers, by name."""
    sites: dict[str, _Site] = {}
    seen: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{other}.") for other in seen) or not is_activation(module):
            continue
        seen.append(name)
        parts = [p for p in module.modules() if p is not module]
        mixing = next((p for p in parts if not _is_of_numbers(p)), None)
        if isinstance(module, Tabulated):
            why = "is a table"
        elif not isinstance(module, Activation):
            why = "is not of this package"
        elif mixing is not None:
            why = f"holds a {type(mixing).__name__}: no function of single numbers"
        elif type(module).forward is not Activation.forward:
            why = "has a forward of its own"
        elif len({axis for count, axis in _channels(module) if count > 1}) > 1:
            why = "mixes functions whose channels lie on several axes"
        else:
            sites[name] = _Site(module)
            continue
        left.append(Left(name, _class(module), why))
    return sites


def _channels(module: Activation) -> list[tuple[int, int]]:
    """Number of channels and their axis, of an activation and of the parts of a mixture."""
    return [
        (int(getattr(part, "num_parameters", 1)), int(getattr(part, "channel_dim", 1)))
        for part in module.modules()
    ]


def _is_of_numbers(part: nn.Module) -> bool:
    """Whether a part of a mixture is a function of single numbers, or only holds some."""
    if isinstance(part, Activation):
        return type(part).forward is Activation.forward
    if type(part).__module__.startswith(LIBRARIES):
        return is_elementwise(part)
    return is_activation(part) or not [*part.parameters(recurse=False)]


def _class(module: nn.Module) -> str:
    """The class of an activation, before it was folded."""
    return module.kind if isinstance(module, Folded) else type(module).__name__


def _fit(name: str, site: _Site, tolerance: float) -> tuple[Tabulated, Table] | str:
    """The table of an activation and how good it is, or why it has none."""
    if not site.samples:
        return "was not called"
    if not site.finite:
        return "saw inputs that are not finite"
    function, (low, high) = site.function(), (site.low, site.high)
    deviation = function(torch.cat(site.samples)).std(correction=0).item() or 1.0
    was = _class(site.module)
    of = was if isinstance(site.module, Folded) else f"{was}({site.module.extra_repr()})"
    width = high - low or 1.0
    found = ""
    for cells in _CELLS:
        if cells * site.channels > _MOST:
            return (
                f"{found or 'needs a table'}, and {cells} are too many for {site.channels} channels"
            )
        knots = _knots(low - width / 2, high + width / 2, cells)
        values = function(knots[:, None].expand(-1, site.channels)).T
        table = Tabulated(
            of,
            knots[0].item(),
            knots[-1].item(),
            values.float(),
            site.axis,
        )
        compare = _Site(table).function(torch.float32)  # as it will run
        ranges = (low, high), (low - width, low), (high, high + width)
        errors = [
            torch.stack([
                (compare(x) - function(x.double())).abs().max()
                for x in _between(*each, 8 * cells, site.channels)
            ]).max() / deviation
            for each in ranges
        ]  # fmt: skip
        error, beyond = errors[0].item(), torch.stack(errors[1:]).max().item()  # max keeps NaN
        if error <= tolerance:
            return table, Table(name, was, low, high, cells, error, beyond)
        found = f"has an error of {error:.1e} with {cells} cells, above the tolerance"
    return found


def _knots(low: float, high: float, cells: int) -> Tensor:
    """Equidistant knots over the range; 0, where many functions have a kink, is one of them."""
    if not low < 0 < high:
        return torch.linspace(low, high, cells + 1, dtype=torch.float64, device="cpu")
    below = min(max(round(-cells * low / (high - low)), 1), cells - 1)
    width = max(-low / below, high / (cells - below))
    return width * torch.arange(-below, cells - below + 1, dtype=torch.float64, device="cpu")


def _between(low: float, high: float, count: int, channels: int) -> Iterator[Tensor]:
    """Inputs (*, channels) in float32, some at a time."""
    x = torch.linspace(low, high, count + 1, dtype=torch.float64, device="cpu").float()
    for part in x.split(max(1, 2**20 // channels)):
        yield part[:, None].expand(-1, channels)


def _place(model: nn.Module, old: nn.Module, new: Tabulated) -> None:
    """Put `new` in the place of `old`, under all its names; its hooks go with it."""
    device = next(itertools.chain(old.parameters(), old.buffers()), torch.empty(0)).device
    new.to(device).eval()
    if isinstance(old, Activation):
        new.fused = old.fused
    move_hooks(old, new)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            owner = model.get_submodule(path.rpartition(".")[0])
            setattr(owner, path.rpartition(".")[2], new)
            leave_fast_path(owner)


def _batches(inputs: Any, model: nn.Module) -> Iterable[Batch]:
    """Batches of inputs, and their labels where a loader gives them; can be gone through twice."""
    device = next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0)).device
    one = isinstance(inputs, Tensor | tuple | Mapping)
    many = [inputs] if one else inputs if not isinstance(inputs, Iterator) else list(inputs)

    class Batches:
        def __iter__(self) -> Iterator[Batch]:
            for batch in many:
                parts = list(batch) if not one and isinstance(batch, tuple | list) else [batch]
                x, y = [*parts, None][:2]
                yield Inputs.of(x).on(device), y if isinstance(y, Tensor) else None

    return Batches()


def _run(model: nn.Module, batches: Iterable[Batch]) -> Outputs:
    """The network's output for each batch, where it is a tensor, and the labels."""
    found: Outputs = []
    for inputs, labels in batches:
        seen = hashlib.blake2b()
        for each in tensors_in((inputs.args, inputs.kwargs)):
            flat = each.detach().cpu().contiguous()
            seen.update(ctypes.string_at(flat.data_ptr(), flat.nbytes))  # NumPy may not be there
        y = model(*inputs.args, **inputs.kwargs)
        scores = y.cpu() if isinstance(y, Tensor) and y.dim() == 2 else None
        found.append((scores, labels, seen.digest()))
    if not found:
        raise ValueError("inputs hold no batch: give a tensor, or a loader that has batches")
    return found
