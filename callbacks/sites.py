"""The activations of a network: which they are, their values, and what flows through them."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from activations import Activation, Fade, Scheduled, is_activation

Named = TypeVar("Named")
Values = dict[str, dict[str, Tensor]]  # site -> parameter -> (channels, terms), on the CPU

SAMPLES, ELEMENTS = 16, 2**14  # how much of a batch is looked at
GROWTH = 1000.0
FLAT = 0.01  # a slope below it counts as saturated
HEALTH = ("zeros", "saturated", "in_mean", "in_std", "out_mean", "out_std")


def activation_sites(model: nn.Module) -> dict[str, nn.Module]:
    """Name and module of every activation in `model`, in its order.

    These are `Activation`, modules that follow a schedule, and the activations of `torch.nn` and
    timm. The members of a combination are part of it.
    """
    sites: dict[str, nn.Module] = {}
    inside = "\0"
    for name, module in model.named_modules():
        if not name.startswith(inside) and _is_site(module):
            sites[name] = module
            inside = f"{name}." if name else ""
    return sites


def short_names(named: Mapping[str, Named]) -> dict[str, Named]:
    """`named` without the prefix `backbone.`, unless two names would become the same."""
    short = {name.removeprefix("backbone."): value for name, value in named.items()}
    return short if len(short) == len(named) else dict(named)


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
                found[_joined(site, name)] = values
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


def _joined(site: str, name: str) -> str:
    """The name of a part of a site; the site itself has the name ""."""
    return f"{site}.{name}".strip(".")


def columns(values: Values) -> Iterator[tuple[str, str, Tensor]]:
    """Site, name and (channels,) of every term; `theta_1` is the first of theta's terms."""
    for site, named in values.items():
        for name, value in named.items():
            several = value.shape[1] > 1
            for term, column in enumerate(value.unbind(1), start=1):
                yield site, f"{name}_{term}" if several else name, column


def odd_values(first: Values, last: Values) -> Iterator[tuple[str, str, str]]:
    """Site, parameter and warning: not finite, or a thousand times as large as at the start."""
    for site, values in last.items():
        for name, value in values.items():
            before = first.get(site, {}).get(name, value).abs().max().item()
            largest = value.abs().max().item()
            if not math.isfinite(largest):
                yield site, name, f"its {name} is {largest}"
            elif largest >= GROWTH * (before or 1.0):
                grown = f"its {name} has grown from {before:.4g} to {largest:.4g}"
                yield site, name, f"a lower --model.activation_lr_scale may help: {grown}"


class _Function(nn.Module):
    """The elementwise function of a site, without hooks; of LSLU, ahead of its convolution."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        module = self.module
        if isinstance(module, Fade):
            old, new = _Function(module.old)(x), _Function(module.new)(x)
            return torch.lerp(old, new, module.progress.to(x.dtype))
        if isinstance(module, Activation):
            return module.function(x)
        dtype = next(module.parameters(), x).dtype
        return module.forward(x.to(dtype, copy=True)).to(x.dtype)


@torch.no_grad()
def evaluate(
    module: nn.Module,
    x: Tensor,
    values: Mapping[str, Tensor] | None = None,
    channel_dim: int | None = None,
) -> Tensor:
    """The elementwise function of a site at `x`, in evaluation mode; the site stays as it is.

    Args:
        module: the site.
        x: the inputs.
        values: name -> value of parameters and buffers that differ from the present ones.
        channel_dim: axis of the channels of `x`, if it is not the module's.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers()), **(values or {})}
    copies = {f"module.{name}": t.detach().to(x.device, copy=True) for name, t in tensors.items()}
    before = [(part, dict(vars(part))) for part in module.modules()]
    try:
        module.eval()
        for part in module.modules():
            if channel_dim is not None and hasattr(part, "channel_dim"):
                cast(Any, part).channel_dim = channel_dim
        return functional_call(_Function(module), copies, (x,))
    finally:
        for part, attributes in before:
            vars(part).clear()
            vars(part).update(attributes)


def curve(site: str, module: nn.Module, grid: Tensor, shape: Values) -> Tensor:
    """The function of a site on `grid`, (points, channels), with the values in `shape`."""
    values = {
        f"{name}.{parameter}".strip("."): value.view_as(getattr(part, parameter))
        for name, part in module.named_modules()
        for parameter, value in shape.get(_joined(site, name), {}).items()
    }
    x = grid[:, None].repeat(1, channels_of(module))
    return evaluate(module, x, values, channel_dim=1).float()


def has_curve(module: nn.Module) -> bool:
    """Whether a site computes each element from one number; a class of the user's may not."""
    try:
        return curve("", module, torch.zeros(3), {}).shape == (3, channels_of(module))
    except Exception:
        return False


def channels_of(module: nn.Module) -> int:
    """The number of functions at a site."""
    return max(getattr(module, "num_parameters", 1), 1)


class Probe:
    """Reads a training step: what flows into each site and out of it, and the gradients there.

    Of each batch 16 samples and about 16,000 elements are looked at, on the device; nothing is
    transferred before :meth:`read`. Compiled code is left alone: nothing is seen in it.

    Args:
        sites: name -> module.

    Attributes:
        drawn: name -> module, of the sites that have an elementwise function.
        inputs: name -> the elements that flowed in at the last step that was watched.
    """

    def __init__(self, sites: dict[str, nn.Module]) -> None:
        self.sites = sites
        self.drawn = {name: module for name, module in sites.items() if has_curve(module)}
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
        """Stop looking."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def watching(self) -> bool:
        """Whether forward passes are looked at."""
        return bool(self._handles)

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                return
            x = next(iter((*args, *named.values())), None)
            # a copy of the network has a copy of this hook
            if module is self.sites[name] and isinstance(x, Tensor):
                self.inputs[name] = _sample(x, getattr(module, "channel_dim", 1))

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if torch.compiler.is_compiling():
                return
            x = self.inputs.get(name)
            if module is not self.sites[name] or x is None or not isinstance(output, Tensor):
                return
            y = _sample(output, getattr(module, "channel_dim", 1))
            shares = _zeros_and_saturated(self.drawn.get(name), x, y)
            moments = (x.mean(), x.var(correction=0), y.mean(), y.var(correction=0))
            self._health.setdefault(name, []).append(torch.stack([*shares, *moments]))

        return hook

    def gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the norm of each gradient that `optimizer` steps by, ahead of clipping."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for site, outer in self.sites.items():
            for name, module in outer.named_modules():
                if isinstance(module, Activation | nn.PReLU):
                    for parameter, value in module.named_parameters(recurse=False):
                        if value.grad is not None and id(value) in held:
                            key = (_joined(site, name), f"grad_{parameter}")
                            norm = value.grad.detach().float().norm()
                            self._gradients.setdefault(key, []).append(norm)

    def read(self) -> dict[str, dict[str, float]]:
        """Means since the last call: site -> quantity -> value; see `HEALTH`."""
        found: dict[str, dict[str, float]] = {}
        for name, rows in self._health.items():
            table = torch.stack(rows).cpu().double()
            zeros, saturated, x, x_var, y, y_var = table.mean(0).tolist()
            # the variance within the batches, plus that of the batches' means
            x_between, y_between = table[:, [2, 4]].var(0, correction=0).tolist()
            stds = math.sqrt(x_var + x_between), math.sqrt(y_var + y_between)
            numbers = (zeros, saturated, x, stds[0], y, stds[1])
            found[name] = dict(zip(HEALTH, numbers, strict=True))
        for (site, name), norms in self._gradients.items():
            found.setdefault(site, {})[name] = torch.stack(norms).mean().item()
        self._health, self._gradients = {}, {}
        return found


def _sample(x: Tensor, channel_dim: int) -> Tensor:
    """A copy of some elements of `x`, with all its channels, in float32."""
    x = torch.atleast_1d(x.detach())[:SAMPLES]
    axes = [axis for axis in range(1, x.dim()) if axis != channel_dim % x.dim()]
    step = math.ceil((x.numel() / ELEMENTS) ** (1 / len(axes))) if axes else 1
    every = [slice(None, None, max(step, 1) if axis in axes else None) for axis in range(x.dim())]
    return x[tuple(every)].float().clone()


def _zeros_and_saturated(module: nn.Module | None, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Share of zeros, and share of the other values where the slope is below FLAT."""
    if module is None:
        return (y == 0).float().mean(), y.new_full((), math.nan)
    zero = evaluate(module, x) == 0  # y may be mixed by LSLU's convolution
    step = 1e-3 * (1 + x.abs())
    slope = (evaluate(module, x + step) - evaluate(module, x - step)) / (2 * step)
    return zero.float().mean(), ((slope.abs() < FLAT) & ~zero).float().mean()
