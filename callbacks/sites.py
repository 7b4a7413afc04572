"""The activations of a network: which they are, their values, and what flows through them."""

import copy
import math
from collections.abc import Container, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from activations import Activation, Fade, Scheduled, is_activation, shape_parameters
from activations.torch_private import is_compiled

Named = TypeVar("Named")
Values = dict[str, dict[str, Tensor]]  # site -> parameter -> (channels, terms), on the CPU

SAMPLES, ELEMENTS = 16, 2**14  # how much of a batch is looked at
QUANTILES = 101  # of the inputs of a site, in files
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
        if not name.startswith(inside) and (is_activation(module) or _values(module)):
            sites[name] = module
            inside = f"{name}." if name else ""
    return sites


def short_names(named: Mapping[str, Named]) -> dict[str, Named]:
    """`named` without the prefix `backbone.`, unless two names would become the same."""
    short = {name.removeprefix("backbone."): value for name, value in named.items()}
    return short if len(short) == len(named) else dict(named)


def read_values(sites: dict[str, nn.Module]) -> Values:
    """Every learned and scheduled value of `sites` and of their members, in one transfer."""
    parts = (part for site, module in sites.items() for part in module.named_modules(prefix=site))
    found = {name: values for name, part in parts if (values := _values(part))}
    flat = [value.flatten().float() for values in found.values() for value in values.values()]
    if len({each.device for each in flat}) > 1:
        flat = [each.cpu() for each in flat]
    numbers = torch.cat(flat).cpu() if flat else torch.empty(0)
    read = iter(numbers.split([len(part) for part in flat]))
    for values in found.values():
        values.update({name: next(read).view_as(value) for name, value in values.items()})
    return found


def _values(module: nn.Module) -> dict[str, Tensor]:
    if isinstance(module, Activation):
        return module.shape_values()
    if isinstance(module, nn.PReLU):
        return {"weight": module.weight.detach().view(-1, 1)}
    buffers = module.named_buffers(recurse=False) if isinstance(module, Scheduled) else ()
    return {name: value.view(1, 1) for name, value in buffers if value.dim() == 0}


def columns(values: Values) -> Iterator[tuple[str, str, Tensor]]:
    """Site, name and (channels,) of every term; `theta_1` is the first of theta's terms."""
    for site, named in values.items():
        for name, value in named.items():
            several = value.shape[1] > 1
            for term, column in enumerate(value.unbind(1), start=1):
                yield site, f"{name}_{term}" if several else name, column


def detached(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode; calling it cannot disturb the network."""
    copied = {id(part) for part in (*module.modules(), *module.parameters(), *module.buffers())}
    values = [value for part in module.modules() for value in vars(part).values()]
    values += [each for value in values if isinstance(value, dict) for each in value.values()]
    # results of the forward pass cannot be copied, and hooks may belong to anything
    shared = {id(v): v for v in values if id(v) not in copied and not isinstance(v, dict)}
    return copy.deepcopy(module, shared).eval()


@torch.no_grad()
def function(module: nn.Module, x: Tensor) -> Tensor:
    """The elementwise function of a site; that of LSLU is the part ahead of its convolution."""
    if isinstance(module, Fade):
        old, new = function(module.old, x), function(module.new, x)
        return torch.lerp(old, new, module.progress.to(x.dtype))
    if isinstance(module, Activation):
        return module.function(x)
    dtype = next(module.parameters(), x).dtype
    return module.forward(x.to(dtype, copy=True)).to(x.dtype)


def curve(site: str, module: nn.Module, grid: Tensor, shape: Values) -> Tensor:
    """The function of a site on `grid`, (points, channels), with the values in `shape`."""
    twin = detached(module).cpu()
    for name, part in twin.named_modules(prefix=site):
        for parameter, value in shape.get(name, {}).items():
            tensor = getattr(part, parameter)
            tensor.data.copy_(value.view_as(tensor))
        if hasattr(part, "channel_dim"):
            cast(Any, part).channel_dim = 1
    return function(twin, grid[:, None].repeat(1, getattr(module, "num_parameters", 1))).float()


def has_curve(module: nn.Module) -> bool:
    """Whether a site computes each element from one number; a class of the user's may not."""
    try:
        channels = getattr(module, "num_parameters", 1)
        return curve("", module, torch.zeros(3), {}).shape == (3, channels)
    except Exception:
        return False


def compiled_parts(model: nn.Module) -> set[nn.Module]:
    """The modules of `model` to which torch.compile was applied, and all modules inside them."""
    compiled = (module for module in model.modules() if is_compiled(module))
    return {part for module in compiled for part in module.modules()}


class Probe:
    """Reads a training step: what flows into each site and out of it, and the gradients there.

    Of each batch 16 samples and about 16,000 elements are looked at, on the device; nothing is
    transferred before :meth:`read`. In compiled code only gradients can be read.

    Hooks are left off the `compiled` modules, since a change of hooks compiles them anew.

    Attributes:
        watching: whether the present step is looked at.
        drawn: name -> module, of the sites that have an elementwise function.
        inputs: name -> the elements that flowed in at the last step that was watched; after a
            resume 101 of them.
    """

    def __init__(self, sites: dict[str, nn.Module], compiled: Container[nn.Module] = ()) -> None:
        self.sites, self.watching = sites, False
        self.drawn = {name: module for name, module in sites.items() if has_curve(module)}
        self.inputs: dict[str, Tensor] = {}
        self._visible = {n: module for n, module in sites.items() if module not in compiled}
        self._handles: list[Any] = []
        self._health: dict[str, list[Tensor]] = {}
        self._gradients: dict[tuple[str, str], list[Tensor]] = {}

    def watch(self) -> None:
        """Look at every forward pass until :meth:`leave`."""
        self.leave()
        self.watching = True
        for name, module in self._visible.items():
            self._hook(name, module)

    def leave(self) -> None:
        """Stop looking."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.watching = [], False

    def _hook(self, name: str, site: nn.Module) -> None:
        channel_dim = getattr(site, "channel_dim", 1)

        def seen(module: nn.Module, value: Any) -> bool:
            # compiled code runs no Python, and a copy of the network has copies of these hooks
            own = module is site and not torch.compiler.is_compiling()
            return own and isinstance(value, Tensor)

        def before(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            x: Any = next(iter((*args, *named.values())), None)
            if seen(module, x):  # ahead of a call that may work in place
                self.inputs[name] = _sample(x, channel_dim)

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if seen(module, output) and name in self.inputs:
                x, y = self.inputs[name], _sample(output, channel_dim)
                shares = _zeros_and_saturated(self.drawn.get(name), x, y)
                moments = (x.mean(), x.var(correction=0), y.mean(), y.var(correction=0))
                self._health.setdefault(name, []).append(torch.stack([*shares, *moments]))

        self._handles.append(site.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(site.register_forward_hook(after))

    def gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the norm of each gradient that `optimizer` steps by, ahead of clipping."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for site, module in self.sites.items():
            for name, parameter in shape_parameters(module).items():
                if parameter.grad is not None and id(parameter) in held:
                    part, _, own = f"{site}.{name}".rpartition(".")
                    norm = parameter.grad.detach().float().norm()
                    self._gradients.setdefault((part.strip("."), f"grad_{own}"), []).append(norm)

    def state_dict(self) -> dict[str, Any]:
        """What was seen since the last :meth:`read`, for a run that is resumed."""
        gradients = [(*key, _together(norms)) for key, norms in self._gradients.items()]
        return {
            "health": {site: _together(rows) for site, rows in self._health.items()},
            "gradients": gradients,
            "inputs": self.quantiles(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._health = {site: list(rows) for site, rows in state["health"].items()}
        self._gradients = {(site, n): list(norms) for site, n, norms in state["gradients"]}
        self.inputs = dict(state.get("inputs", {}))

    def quantiles(self) -> dict[str, Tensor]:
        """Each site's inputs as 101 of them, each of which stands for an equal share."""
        found: dict[str, Tensor] = {}
        for name, x in self.inputs.items():
            ordered = x[x.isfinite()].cpu().sort().values
            if len(ordered):  # the same again, if they are 101
                middle = (2 * torch.arange(QUANTILES) + 1) * len(ordered) // (2 * QUANTILES)
                found[name] = ordered[middle]
        return found

    def read(self) -> dict[str, dict[str, float]]:
        """Means since the last call: site -> quantity -> value; see `HEALTH`."""
        found: dict[str, dict[str, float]] = {}
        for name, rows in self._health.items():
            table = _together(rows).double()
            numbers, means = table.mean(0), table[:, [2, 4]]
            # the variance within the batches, plus that of the batches' means
            numbers[[3, 5]] = (numbers[[3, 5]] + means.var(0, correction=0)).sqrt()
            found[name] = dict(zip(HEALTH, numbers.tolist(), strict=True))
        for (site, name), norms in self._gradients.items():
            found.setdefault(site, {})[name] = _together(norms).mean().item()
        self._health, self._gradients = {}, {}
        return found


def _together(rows: list[Tensor]) -> Tensor:
    """`rows` stacked, on the CPU; those of a checkpoint are there already."""
    several = len({row.device for row in rows}) > 1
    return torch.stack([row.cpu() for row in rows] if several else rows).cpu()


def _sample(x: Tensor, channel_dim: int) -> Tensor:
    """A copy of some elements of `x`, with all its channels, in float32."""
    x = torch.atleast_1d(x.detach())[:SAMPLES]
    axes = [axis for axis in range(1, x.dim()) if axis != channel_dim % x.dim()]
    step = math.ceil((x.numel() / ELEMENTS) ** (1 / len(axes))) if axes else 1
    every = [slice(None, None, max(step, 1) if axis in axes else None) for axis in range(x.dim())]
    return x[tuple(every)].float().clone()


def _zeros_and_saturated(module: nn.Module | None, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The share of zeros, and the share of other values where the slope is below `FLAT`."""
    if module is None:
        return (y == 0).float().mean(), y.new_full((), math.nan)
    twin, step = detached(module), 1e-3 * (1 + x.abs())
    zero = function(twin, x) == 0  # y may be mixed by LSLU's convolution
    slope = (function(twin, x + step) - function(twin, x - step)) / (2 * step)
    return zero.float().mean(), ((slope.abs() < FLAT) & ~zero).float().mean()
