"""Where a network's activations are, what they hold, and how they are doing."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from activations import Activation, Fade, Scheduled, is_activation

Values = dict[str, dict[str, Tensor]]  # site -> parameter -> (channels, terms), on the CPU
Function = Callable[[Tensor], Tensor]

SAMPLES, ELEMENTS = 16, 2**14  # of a batch, that the health of a site is read from
GROWTH = 1000.0
FLAT = 0.01  # a slope below it counts as saturated
HEALTH = ("zeros", "saturated", "in_mean", "in_std", "out_mean", "out_std")


def activation_sites(model: nn.Module) -> dict[str, nn.Module]:
    """Name and module of every activation in `model`, in its order.

    These are `Activation`, what follows a schedule, and the activations of `torch.nn` and timm. The
    members of a combination are part of it.
    """
    sites: dict[str, nn.Module] = {}
    inside = "\0"
    for name, module in model.named_modules():
        if not name.startswith(inside) and _is_site(module):
            sites[name] = module
            inside = f"{name}." if name else ""
    return sites


def _is_site(module: nn.Module) -> bool:
    scheduled = isinstance(module, Scheduled) and bool(_schedule(module))
    return isinstance(module, Activation) or scheduled or is_activation(module)


def _schedule(module: nn.Module) -> dict[str, Tensor]:
    return {name: b for name, b in module.named_buffers(recurse=False) if b.dim() == 0}


def read_values(sites: dict[str, nn.Module]) -> Values:
    """Every learned and scheduled value of `sites` and of their members, in one transfer."""
    found: dict[str, dict[str, Tensor]] = {}
    for site, outer in sites.items():
        for name, module in outer.named_modules():
            if values := _values(module):
                found[f"{site}.{name}".strip(".")] = values
    flat = [value.flatten().float() for values in found.values() for value in values.values()]
    numbers = torch.cat(flat).cpu() if flat else torch.empty(0)
    read = iter(numbers.split([len(part) for part in flat]))
    return {
        site: {name: next(read).view(value.shape).clone() for name, value in values.items()}
        for site, values in found.items()
    }


def _values(module: nn.Module) -> dict[str, Tensor]:
    if isinstance(module, Activation):
        return module.shape_values()
    if isinstance(module, nn.PReLU):
        return {"weight": module.weight.detach().view(-1, 1)}
    if isinstance(module, Scheduled):
        return {name: value.view(1, 1) for name, value in _schedule(module).items()}
    return {}


def odd_values(first: Values, last: Values) -> Iterator[tuple[str, str, str]]:
    """Site, parameter and what is wrong: not finite, or a thousand times as large as at first."""
    for site, values in last.items():
        for name, value in values.items():
            before = first.get(site, {}).get(name, value).abs().max().item()
            largest = value.abs().max().item()
            if not math.isfinite(largest):
                yield site, name, f"its {name} is {largest}"
            elif largest >= GROWTH * (before or 1.0):
                grown = f"its {name} has grown from {before:.4g} to {largest:.4g}"
                yield site, name, f"a lower --model.activation_lr_scale may help: {grown}"


def function_of(module: nn.Module) -> Function:
    """The elementwise function of a site; that of LSLU is the part ahead of its convolution."""
    if isinstance(module, Fade):
        old, new = function_of(module.old), function_of(module.new)
        return lambda x: torch.lerp(old(x), new(x), module.progress.to(x.dtype))
    if isinstance(module, Activation):
        return lambda x: cast(Activation, _twin(module)).function(x)

    def function(x: Tensor) -> Tensor:
        own = next(module.parameters(), x)
        return _twin(module).forward(x.to(own.dtype, copy=True)).to(x.dtype)

    return function


def _twin(module: nn.Module) -> nn.Module:
    """A copy at rest: it draws no random slopes, and what it keeps of a call stays its own."""
    twin = copy.copy(module)  # deepcopy refuses what a class keeps of a forward pass
    twin.training = False
    parameters = module._parameters.items()
    twin._parameters = {
        n: p if p is None else nn.Parameter(p.detach().clone()) for n, p in parameters
    }
    twin._buffers = {n: b if b is None else b.clone() for n, b in module._buffers.items()}
    twin._modules = {n: m if m is None else _twin(m) for n, m in module._modules.items()}
    return twin


@torch.no_grad()
def is_drawn(module: nn.Module) -> bool:
    """Whether a site has a function of single numbers; a class of one's own need not."""
    own = next((t for t in (*module.parameters(), *module.buffers())), torch.empty(0))
    channels = max(getattr(module, "num_parameters", 1), 1)
    x = torch.linspace(-1, 1, 3, device=own.device)[:, None].repeat(1, channels)
    try:
        return function_of(module)(x).shape == x.shape
    except Exception:
        return False


@torch.no_grad()
def curves(site: str, module: nn.Module, grid: Tensor, shapes: list[Values]) -> list[Tensor]:
    """The function of a site on `grid`, (points, channels), for each of several `shapes`."""
    twin = _twin(module).cpu()
    channels = max(getattr(module, "num_parameters", 1), 1)
    x = grid[:, None].expand(-1, channels).contiguous()
    drawn = []
    for values in shapes:
        for name, part in twin.named_modules():
            known = {**dict(part.named_parameters()), **dict(part.named_buffers())}
            for parameter, value in values.get(f"{site}.{name}".strip("."), {}).items():
                known[parameter].copy_(value.view_as(known[parameter]))
        if getattr(twin, "channel_dim", 1) not in (1, -1):
            setattr(twin, "channel_dim", 1)  # noqa: B010 - the grid's; nn.Module does not declare it
        drawn.append(function_of(twin)(x).float())
    return drawn


class Probe:
    """Reads a training step: what flows into each site and out of it, and the gradients there.

    Of each batch 16 samples and about 16,000 elements are looked at, on the device; nothing is
    transferred before :meth:`read`.

    Args:
        sites: name -> module.

    Attributes:
        functions: name -> elementwise function, of those that have one.
        inputs: name -> the elements that flowed in at the last step that was watched.
    """

    def __init__(self, sites: dict[str, nn.Module]) -> None:
        self.sites = sites
        self.functions = {n: function_of(module) for n, module in sites.items() if is_drawn(module)}
        self.inputs: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self._health: dict[str, list[Tensor]] = {}
        self._gradients: dict[tuple[str, str], list[Tensor]] = {}

    def watch(self) -> None:
        """Look at every forward pass until :meth:`leave`."""
        self.leave()
        for name, module in self.sites.items():
            # ahead of the call too, which may work in place
            into = module.register_forward_pre_hook(self._before(name), with_kwargs=True)
            self._handles += [into, module.register_forward_hook(self._after(name))]

    def leave(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def watching(self) -> bool:
        """Whether forward passes are looked at."""
        return bool(self._handles)

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = next(iter((*args, *named.values())), None)
            # a copy of the network has a copy of this hook
            if module is self.sites[name] and isinstance(x, Tensor):
                self.inputs[name] = _sample(x, getattr(module, "channel_dim", 1))

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        @torch.no_grad()
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            x = self.inputs.get(name)
            if module is not self.sites[name] or x is None or not isinstance(output, Tensor):
                return
            y = _sample(output, getattr(module, "channel_dim", 1))
            moments = (x.mean(), x.var(correction=0), y.mean(), y.var(correction=0))
            row = torch.stack([*_ends(self.functions.get(name), x, y), *moments])
            self._health.setdefault(name, []).append(row)

        return hook

    def gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the norm of each gradient that `optimizer` steps by, ahead of clipping."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for site, outer in self.sites.items():
            for name, module in outer.named_modules():
                if isinstance(module, Activation | nn.PReLU):
                    key = f"{site}.{name}".strip(".")
                    for parameter, value in module.named_parameters(recurse=False):
                        if value.grad is not None and id(value) in held:
                            norms = self._gradients.setdefault((key, f"grad_{parameter}"), [])
                            norms.append(value.grad.detach().float().norm())

    def read(self) -> dict[str, dict[str, float]]:
        """Means since the last call: site -> quantity -> value; see `HEALTH`."""
        found: dict[str, dict[str, float]] = {}
        for name, rows in self._health.items():
            table = torch.stack(rows).cpu().double()
            zeros, saturated, x, _, y, _ = table.mean(0).tolist()
            # within the batches, and between them
            spread = [
                (table[:, i + 1].mean() + table[:, i].var(correction=0)).sqrt().item()
                for i in (2, 4)
            ]
            numbers = (zeros, saturated, x, spread[0], y, spread[1])
            found[name] = dict(zip(HEALTH, numbers, strict=True))
        for (site, name), norms in self._gradients.items():
            found.setdefault(site, {})[name] = torch.stack(norms).mean().item()
        self._health, self._gradients = {}, {}
        return found


def _sample(x: Tensor, channel_dim: int) -> Tensor:
    """Some elements of `x`, with all its channels, in float32 and apart from it."""
    x = torch.atleast_1d(x.detach())[:SAMPLES]
    axes = [axis for axis in range(1, x.dim()) if axis != channel_dim % x.dim()]
    step = math.ceil((x.numel() / ELEMENTS) ** (1 / len(axes))) if axes else 1
    every = [slice(None, None, max(step, 1) if axis in axes else None) for axis in range(x.dim())]
    return x[tuple(every)].float().clone()


def _ends(function: Function | None, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of zeros, and of other values where the function is flat; see FLAT."""
    if function is None:
        return (y == 0).float().mean(), y.new_full((), math.nan)
    zero = function(x) == 0  # what LSLU's convolution mixes afterwards
    step = 1e-3 * (1 + x.abs())
    slope = (function(x + step) - function(x - step)) / (2 * step)
    return zero.float().mean(), ((slope.abs() < FLAT) & ~zero).float().mean()
