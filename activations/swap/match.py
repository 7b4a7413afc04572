"""Start an activation as the function that it replaces; gains for the initialisation of weights."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from activations.activation import Activation

from .trace import random_state_kept

Function = Callable[[Tensor], Tensor]


def match(activation: nn.Module, reference: Function, samples: Tensor | None = None) -> float:
    r"""Set the learned parameters of `activation` so that it starts as `reference`.

    They minimise :math:`\sum_i (f(x_i) - g(x_i))^2` by Levenberg's and Marquardt's method, which
    takes one step where the family is linear in its parameters, in float64, channel by channel.
    Where numbers of three decimals are as good, these are taken, so that exact pairs are exact.

    Args:
        activation: an elementwise function, changed in place.
        reference: the function to meet.
        samples: inputs, (n,) or (n, C) for an activation with C channels; by default 2001 quantiles
            of the standard normal distribution.

    Returns:
        The root mean square of f - g over the samples.

    Raises:
        ValueError: the activation mixes positions (LSLU, DynamicReLU), or a value is not finite.
    """
    parts = list(activation.children())
    while parts:
        part = parts.pop()
        if not isinstance(part, Activation) and any(True for _ in part.parameters(recurse=False)):
            raise ValueError(
                f"{type(activation).__name__} holds a {type(part).__name__} and is no function of "
                'single numbers: use match="fade" (activations.Fade) for it'
            )
        parts += part.children()
    channels = getattr(activation, "num_parameters", 1)
    twin = copy.deepcopy(activation).double().requires_grad_(False)
    device = next(twin.parameters(), torch.empty(0)).device
    x = _normal(2001) if samples is None else samples.detach().double().to(device)
    x = x.to(device).reshape(len(x), -1)
    x = x if x.shape[1] == channels else x.reshape(-1, 1).expand(-1, channels).contiguous()
    copied = copy.deepcopy(reference)
    copied = copied.double() if isinstance(copied, nn.Module) else copied
    with torch.no_grad():
        target = copied(x.clone())
        parameters = list(twin.parameters(recurse=False))
        start = [parameter.clone() for parameter in parameters]
        names = [name for name, _ in twin.named_parameters(recurse=False)]
        starts = [start]
        for values in getattr(activation, "match_starts", ()):
            pairs = zip(names, start, strict=True)
            starts.append([torch.full_like(p, values[n]) if n in values else p for n, p in pairs])
        tail = torch.tensor([-50.0, -10.0, 10.0, 50.0], dtype=x.dtype, device=device)
        tail = tail[:, None].expand(-1, channels).contiguous()
        beyond = copied(tail.clone())
        best, least = start, torch.full((2, channels), math.inf, dtype=x.dtype, device=device)
        for first in starts:
            theta, cost = _least_squares(twin, parameters, first, x, target)
            outside = (twin(tail) - beyond).square().mean(0).nan_to_num(math.inf)
            # where two are as good on the samples, what lies beyond them decides
            better = (cost < least[0] - 1e-24) | (cost < least[0] + 1e-24) & (outside < least[1])
            best = [_where(better, new, old) for new, old in zip(theta, best, strict=True)]
            least = torch.where(better, torch.stack([cost, outside]), least)
        least = least[0]
        if not least.isfinite().all():
            raise ValueError(f"{type(activation).__name__} is not finite on the samples")
        for own, value in zip(activation.parameters(recurse=False), best, strict=True):
            own.copy_(value)
    return math.sqrt(least.mean().item())


def _where(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` in the channels where it is better; parameters are (channels, ...) or shared by all."""
    per_channel = len(better) > 1
    return torch.where(better.view(-1, *[1] * (new.dim() - 1)) if per_channel else better, new, old)


def _least_squares(
    module: nn.Module, parameters: list[nn.Parameter], start: list[Tensor], x: Tensor, y: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Parameters and mean squares (channels,) from `start`; columns of x and y are channels."""
    channels = x.shape[1]
    sizes = [p.numel() // channels for p in parameters]

    def split(theta: Tensor) -> list[Tensor]:
        parts = theta.split(sizes, 1)
        return [part.reshape(p.shape) for part, p in zip(parts, parameters, strict=True)]

    def residual(theta: Tensor) -> Tensor:
        for parameter, value in zip(parameters, split(theta), strict=True):
            parameter.copy_(value)
        return module(x) - y

    def mean_square(theta: Tensor) -> Tensor:
        return residual(theta).square().mean(0).nan_to_num(math.inf, math.inf)

    rows = [value.reshape(channels, -1) for value in start]
    theta = torch.cat(rows, 1) if rows else x.new_empty(channels, 0)
    cost = mean_square(theta)
    damping = torch.full_like(cost, 1e-3)
    for _ in range(200 if sizes else 0):
        columns = []
        for index in range(theta.shape[1]):  # central differences
            step = torch.zeros_like(theta)
            step[:, index] = 1e-5 * theta[:, index].abs().clamp(min=1)
            slope = residual(theta + step) - residual(theta - step)
            columns.append((slope / (2 * step[:, index])).nan_to_num(0, 0, 0))
        jacobian = torch.stack(columns, -1).transpose(0, 1)  # (channels, samples, parameters)
        square = jacobian.mT @ jacobian
        scale = square.diagonal(dim1=1, dim2=2)
        weight = damping[:, None] * scale + 1e-12 * scale.amax(1, keepdim=True) + 1e-300
        gradient = jacobian.mT @ residual(theta).T.nan_to_num(0, 0, 0)[..., None]
        moved = theta - torch.linalg.lstsq(square + weight.diag_embed(), gradient).solution[..., 0]
        new = mean_square(moved)
        better = new < cost
        gained = torch.where(better, cost - new, 0).max() > 1e-12 * cost.max()
        theta = torch.where(better[:, None], moved, theta)
        cost = torch.where(better, new, cost)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-12, 1e9)
        if (not gained and bool((damping > 1e3).all())) or not cost.max():
            break
    round_numbers = (theta * 1000).round() / 1000
    as_good = mean_square(round_numbers) <= cost + 1e-24
    theta = torch.where(as_good[:, None], round_numbers, theta)
    return split(theta), mean_square(theta)


def _normal(count: int) -> Tensor:
    """Quantiles of the standard normal distribution."""
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(share)


def _recorder(into: list[Tensor], references: Iterator[nn.Module]) -> Callable[..., Tensor]:
    """A forward hook that keeps samples of the input and answers what the old function would."""
    generator = torch.Generator().manual_seed(0)

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        channels = getattr(module, "num_parameters", 1)
        axis = getattr(module, "channel_dim", 1) if channels > 1 else -1
        rows = x.movedim(axis, -1).reshape(-1, x.shape[axis] if channels > 1 else 1)
        chosen = torch.randint(len(rows), (2048,), generator=generator).to(x.device)
        into.append(rows[chosen])
        return next(references)(x)

    return record


def match_sites(
    model: nn.Module,
    activations: Mapping[str, nn.Module],
    references: Mapping[str, nn.Module],
    example: Tensor | None,
) -> dict[str, float]:
    """Match each site's activation to its reference on the inputs that `example` gives the site.

    The network runs as it was, with the references in place: in evaluation mode, or in training
    mode where its batch normalisation has seen no data yet. Without an example the inputs are
    standard normal.

    Returns:
        The root mean square difference at each site.
    """
    seen: dict[int, list[Tensor]] = {}
    kinds: dict[int, str] = {}
    for name, activation in activations.items():
        kind = repr(references[name])
        if kinds.setdefault(id(activation), kind) != kind:
            raise ValueError(
                f"{name} was {kind}, another call that shares its activation "
                f'{kinds[id(activation)]}: match needs share="site" or "channel" here'
            )
    if example is not None:
        twin = copy.deepcopy(model)
        means = [b for name, b in twin.named_buffers() if name.endswith("running_mean")]
        twin.train(bool(means) and not any(mean.any() for mean in means))
        sites: dict[nn.Module, list[str]] = {}
        for name in activations:
            sites.setdefault(twin.get_submodule(name), []).append(name)
        for module, names in sites.items():
            into = seen.setdefault(id(activations[names[0]]), [])
            old = itertools.cycle([references[name] for name in names])
            module.register_forward_hook(_recorder(into, old))
        device = next(model.parameters(), example).device
        with random_state_kept(), torch.no_grad():
            twin(example.to(device))
    errors: dict[int, float] = {}
    for name, activation in activations.items():
        if id(activation) not in errors:
            parts = seen.get(id(activation))
            samples = torch.cat(parts) if parts else None
            errors[id(activation)] = match(activation, references[name], samples)
    return {name: errors[id(activation)] for name, activation in activations.items()}


class Fade(nn.Module):
    r"""Moves from an old activation to a new one while training proceeds. Scheduled.

    .. math:: f(x; t) = (1 - t) f_\text{old}(x) + t f_\text{new}(x)

    At t = 0 it is the old function to the bit, at t = 1 the new one.

    Args:
        old: the function to start from.
        new: the function to end with.

    Shape:
        Any that both take -> same.

    Attributes:
        progress: (), t, a persistent buffer.
        old: the old function; its parameters keep their groups.
        new: the new function; its parameters keep their groups.
    """

    progress: Tensor

    def __init__(self, old: nn.Module, new: nn.Module) -> None:
        super().__init__()
        self.old, self.new = old, new
        self.register_buffer("progress", torch.tensor(0.0))

    def set_progress(self, progress: float) -> None:
        """Move to `progress`, from 0 (all old) to 1 (all new)."""
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress must lie in [0, 1], got {progress!r}")
        self.progress.fill_(progress)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the mixture."""
        old, new = self.old(x), self.new(x)
        return torch.lerp(old, new, self.progress.to(old.dtype))

    def extra_repr(self) -> str:
        """The progress."""
        return "" if self.progress.is_meta else f"progress={self.progress.item():.4g}"


def gain(activation: nn.Module) -> float:
    r"""The factor by which weights keep the second moment through `activation`.

    .. math:: \sqrt{1 / \mathbb{E}\, f(x)^2}, \quad x \sim \mathcal{N}(0, 1)

    Kaiming's initialisation takes it in place of ReLU's sqrt(2): std = gain / sqrt(fan).

    Raises:
        ValueError: the mean square is 0 or not finite.

    Reference:
        He et al., "Delving deep into rectifiers", 2015, section 2.2, for any function.
    """
    channels = getattr(activation, "num_parameters", 1)
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    twin = copy.deepcopy(activation).double().cpu()
    with torch.no_grad():
        y = twin(x[:, None].expand(-1, channels).contiguous())
    moment = torch.trapezoid(y.square().mean(1) * density, x).item()
    if not 0 < moment < math.inf:
        raise ValueError(f"{type(activation).__name__} has no gain: its mean square is {moment}")
    return 1 / math.sqrt(moment)
