"""Start a new activation as the function that it replaces, as closely as possible.

Its parameters are fitted by least squares, for one activation (`match`) or for all calls of a swap
(`match_calls`), each on the inputs that the network gives it. Where the function changes, `gain` is
the factor for the initial weights.
"""

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from activations.activation import Activation

from .copies import copied, random_state_kept
from .fade import Fade
from .inputs import Inputs
from .kinds import is_activation
from .trace import Call, device_of

Function = Callable[[Tensor], Tensor]

CLOSE = 0.1  # the largest relative error without a warning
# Bounds of a parameter's gradient, as a ratio to the one at the start, and of the slope, as a ratio
# to the old function's
_GRADIENT = (0.05, 5.0)
_SLOPE = (0.03, 3.0)


@dataclass(frozen=True)
class Fit:
    """How well a new function fits an old one.

    Attributes:
        error: root mean square of the difference.
        relative: the error divided by the deviation of the old function's outputs.
    """

    error: float
    relative: float


def match(activation: nn.Module, reference: Function, samples: Tensor | None = None) -> float:
    r"""Set the learned parameters of `activation` so that it starts as `reference`.

    They minimise :math:`\sum_i (f(x_i) - g(x_i))^2` by the Levenberg-Marquardt method, in float64
    and channel by channel. If the function is linear in its parameters, one step is enough. Where
    parameters rounded to three decimals fit as well, these are taken, so that exact pairs are
    exact.

    A fit is taken only where the function can go on learning: the gradient of each parameter (root
    mean square over the samples) is 0.05 to 5 times that at the start, and the slope of f 0.03 to 3
    times that of g. Elsewhere the parameters are pulled towards the start, as weakly as is enough.

    Args:
        activation: an elementwise function, changed in place.
        reference: the function to match.
        samples: inputs, (n,) or (n, C) for an activation with C channels; by default 2001 quantiles
            of the standard normal distribution.

    Returns:
        The root mean square of f - g over the samples.

    Raises:
        ValueError: the activation mixes positions (LSLU, DynamicReLU), or a value is not finite.

    Warns:
        UserWarning: the error is more than 10% of the deviation of g over the samples.
    """
    found = fit(activation, reference, samples)
    if found.relative > CLOSE:
        _warn(f"{reference} -> {type(activation).__name__}", found.relative)
    return found.error


def fit(activation: nn.Module, reference: Function, samples: Tensor | None) -> Fit:
    """Match `activation` as :func:`match` does, without a warning."""
    for part in list(activation.modules())[1:]:
        mixes = not isinstance(part, Activation) and not is_activation(part)
        if mixes and [*part.parameters(recurse=False)]:
            raise ValueError(
                f"{type(activation).__name__} holds a {type(part).__name__} and is no function of "
                'single numbers: use match="fade" (activations.Fade) for it'
            )
    channels = getattr(activation, "num_parameters", 1)
    twin = copy.deepcopy(activation).double().requires_grad_(False)
    device = next(twin.parameters(), torch.empty(0)).device
    normal = torch.special.ndtri((torch.arange(2001, dtype=torch.float64) + 0.5) / 2001)
    x = (normal if samples is None else samples.detach()).to(device, torch.float64)
    x = x.reshape(len(x), -1)
    x = x if x.shape[1] == channels else x.reshape(-1, 1).expand(-1, channels).contiguous()
    tail = torch.tensor([-50.0, -10.0, 10.0, 50.0], dtype=x.dtype, device=device)
    tail = tail[:, None].expand(-1, channels).contiguous()
    old = copy.deepcopy(reference)
    old = old.double() if isinstance(old, nn.Module) else old
    named = list(twin.named_parameters(recurse=False))
    sizes = [parameter.numel() // channels for _, parameter in named]

    def table(values: Iterable[Tensor]) -> Tensor:
        """All parameters as (channels, number of parameters in a channel)."""
        rows = [value.reshape(channels, -1) for value in values]
        return torch.cat([x.new_empty(channels, 0), *rows], 1)

    def assign(module: nn.Module, theta: Tensor) -> None:
        parts = theta.split(sizes, 1)
        for parameter, part in zip(module.parameters(recurse=False), parts, strict=True):
            parameter.copy_(part.reshape(parameter.shape))

    def new(theta: Tensor, x: Tensor) -> Tensor:
        assign(twin, theta)
        return twin(x)

    with torch.no_grad():
        y, tail_y = old(x.clone()), old(tail.clone())
        variance = y.var(0, correction=0)
        unit = torch.where(variance > 0, variance, variance.mean())
        unit = torch.where(unit > 0, unit, 1.0)
        facts = activation if isinstance(activation, Activation) else Activation()
        least = table(torch.full_like(p, facts.least.get(n, -math.inf)) for n, p in named)
        scalable = table(torch.full_like(p, float(n == facts.scalable)) for n, p in named) > 0

        def allowed(theta: Tensor) -> Tensor:
            """The same, clamped as the activation does, and with a sum of 1 where it divides."""
            total = torch.where(scalable, theta, 0).sum(1, keepdim=True)
            return torch.where(scalable, theta / total, torch.maximum(theta, least))

        starts = []
        for values in ({}, *facts.match_starts):
            full = (p if n not in values else torch.full_like(p, values[n]) for n, p in named)
            starts.append(allowed(table(full)))
        usual = torch.stack([_gradients(lambda t: new(t, x), start) for start in starts]).amax(0)
        steep = _slopes(old, x)

        def alive(theta: Tensor) -> Tensor:
            ratio = _gradients(lambda t: new(t, x), theta) / usual
            slope = _slopes(lambda x: new(theta, x), x) / steep
            good = [_within(ratio, _GRADIENT).all(1), _within(slope, _SLOPE)]
            return torch.stack(good).all(0)

        def costs(theta: Tensor) -> Tensor:
            """Mean squares on the samples and, for a choice among equals, beyond them."""
            pairs = ((x, y), (tail, tail_y))
            squares = [(new(theta, at) - to).square().mean(0) for at, to in pairs]
            return torch.stack(squares).nan_to_num(math.inf, math.inf)

        best = starts[0]
        lowest = costs(best)
        for start in starts if sizes else ():
            # the weakest pull that keeps the function alive: none, or found by bisection
            pull, dead, enough = torch.zeros_like(unit), -7.0 * torch.ones_like(unit), 0 * unit + 1
            for _ in range(6):
                theta = _least_squares(lambda t: new(t, x) - y, allowed, start, pull * unit)
                cost, lives = costs(theta), alive(theta)
                better = cost[0] < lowest[0] - 1e-24
                better |= (cost[0] < lowest[0] + 1e-24) & (cost[1] < lowest[1])
                better &= lives
                best = torch.where(better[:, None], theta, best)
                lowest = torch.where(better, cost, lowest)
                if lives.all() and not pull.any():
                    break
                exponent = torch.where(pull > 0, pull.log10(), dead)
                dead = torch.where(lives, dead, exponent)
                enough = torch.where(lives, exponent, enough)
                pull = 10 ** ((dead + enough) / 2)
        assign(activation, best)
        stored = [p.double() for p in activation.parameters(recurse=False)]
        if next(activation.parameters(), x).itemsize < 4:  # half precision rounds visibly
            lowest = costs(table(stored))
        mean = lowest[0].mean()
    if not mean.isfinite():
        raise ValueError(f"{type(activation).__name__} is not finite on the samples")
    relative = (mean / variance.mean()).sqrt().item() if mean else 0.0
    return Fit(math.sqrt(mean.item()), relative)


def _within(ratio: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Whether each ratio lies within the bounds, or has no base (0 / 0 and x / 0)."""
    return ~ratio.isfinite() | (ratio >= bounds[0]) & (ratio <= bounds[1])


def _slopes(function: Function, x: Tensor) -> Tensor:
    """Root mean square of the slope, (channels,)."""
    return ((function(x + 1e-4) - function(x - 1e-4)) / 2e-4).square().mean(0).sqrt()


def _gradients(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """Root mean square of the derivative for each parameter, shaped like `theta`.

    It is the largest of three: also where all other parameters are moved by 0.1 to either side. A
    gradient that is 0 only until another parameter moves (CosLU's beta where alpha is 0) is alive.
    """
    found = torch.zeros_like(theta)
    for index in range(theta.shape[1]):
        for shift in (0.0, 0.1, -0.1):
            near = theta + shift * theta.abs().clamp(min=1)
            near[:, index] = theta[:, index]
            column = _derivative(function, near, index).square().mean(0).sqrt()
            found[:, index] = torch.maximum(found[:, index], column)
    return found


def _derivative(function: Callable[[Tensor], Tensor], theta: Tensor, index: int) -> Tensor:
    """The derivative of `function` by one parameter: central differences, (samples, channels)."""
    step = torch.zeros_like(theta)
    step[:, index] = 1e-5 * theta[:, index].abs().clamp(min=1)
    rise = function(theta + step) - function(theta - step)
    return (rise / (2 * step[:, index])).nan_to_num(0, 0, 0)


def _least_squares(
    difference: Callable[[Tensor], Tensor],
    allowed: Callable[[Tensor], Tensor],
    start: Tensor,
    pull: Tensor,
) -> Tensor:
    """The parameters (channels, k) that minimise the mean square of `difference`.

    `difference` is (samples, channels); each channel has its own parameters. `allowed` moves
    parameters to where they may be. `pull` (channels,) times the squared distance from the start is
    added to the mean square, in units of the start where that is above 1.
    """
    weight = pull[:, None] / start.square().clamp(min=1)

    def costs(theta: Tensor) -> Tensor:
        far = (weight * (theta - start).square()).sum(1)
        return (difference(theta).square().mean(0) + far).nan_to_num(math.inf, math.inf)

    theta = start
    cost = costs(theta)
    damping = torch.full_like(cost, 1e-3)
    steps, least_gain = (30, 1e-5) if pull.any() else (200, 1e-12)
    for _ in range(steps):
        columns = [_derivative(difference, theta, index) for index in range(theta.shape[1])]
        jacobian = torch.stack(columns, -1).transpose(0, 1)  # (channels, samples, k)
        samples = jacobian.shape[1]
        square = jacobian.mT @ jacobian + (samples * weight).diag_embed()
        scale = square.diagonal(dim1=1, dim2=2)
        ridge = damping[:, None] * scale + 1e-12 * scale.amax(1, keepdim=True) + 1e-300
        gradient = jacobian.mT @ difference(theta).T.nan_to_num(0, 0, 0)[..., None]
        gradient += (samples * weight * (theta - start))[..., None]
        step = torch.linalg.lstsq(square + ridge.diag_embed(), gradient).solution[..., 0]
        moved = allowed(theta - step)
        new = costs(moved)
        better = new < cost
        gained = torch.where(better, cost - new, 0).max() > least_gain * cost.max()
        theta = torch.where(better[:, None], moved, theta)
        cost = torch.where(better, new, cost)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-12, 1e9)
        stuck = bool((damping > 1e3).all()) or bool(better.any() & pull.any())
        if (not gained and stuck) or not cost.max():
            break
    rounded = allowed((theta * 1000).round() / 1000)
    as_good = costs(rounded) <= cost + 1e-15
    return torch.where(as_good[:, None], rounded, theta)


def match_calls(model: nn.Module, calls: Iterable[Call], example: Inputs | None) -> None:
    """Match the new activation of each call to its reference, and note the error in the call.

    The samples are the inputs that each call has when the network runs on `example` with its old
    activations: in evaluation mode, or in training mode where its batch normalisation has seen no
    data yet. Without an example they are standard normal.
    """
    groups: dict[nn.Module, list[Call]] = {}
    for call in calls:
        same = groups.setdefault(model.get_submodule(call.name), [])
        same.append(call)
        if repr(call.reference) != repr(same[0].reference):
            raise ValueError(
                f"{call.name} was {call.reference!r}, another call that shares its activation "
                f'{same[0].reference!r}: match needs share="site" or "channel" here'
            )
    samples: dict[nn.Module, list[Tensor]] = {activation: [] for activation in groups}
    if example is not None:
        twin = copied(model, Tensor.clone)
        means = [b for name, b in twin.named_buffers() if name.endswith("running_mean")]
        twin.train(bool(means) and not any(mean.any() for mean in means))
        for activation, same in groups.items():
            references = itertools.cycle([call.reference for call in same])
            recorder = _recorder(samples[activation], references)
            twin.get_submodule(same[0].name).register_forward_hook(recorder)
        here = example.on(device_of(model))
        with random_state_kept(), torch.no_grad():
            twin(*here.args, **here.kwargs)
    poor: dict[str, list[Call]] = {}
    for activation, same in groups.items():
        parts = samples[activation]
        new = activation.new if isinstance(activation, Fade) else activation
        found = fit(new, same[0].reference, torch.cat(parts) if parts else None)
        for call in same:
            call.error, call.relative_error = found.error, found.relative
            if found.relative > CLOSE:
                poor.setdefault(f"{call.old} -> {type(new).__name__}", []).append(call)
    for pair, worse in poor.items():
        worst = max(worse, key=lambda call: call.relative_error or 0)
        more = f" and {len(worse) - 1} more" if worse[1:] else ""
        _warn(f"{pair} at {worst.name}{more}", worst.relative_error or 0)


def _warn(what: str, relative: float) -> None:
    warnings.warn(
        f"match: {what} fits only roughly, with an error of {relative:.0%} of the old outputs' "
        'deviation; match="fade" (--model.match fade) starts without loss',
        stacklevel=4,
    )


def _recorder(into: list[Tensor], references: Iterator[nn.Module]) -> Callable[..., Tensor]:
    """A forward hook that keeps samples of the input and returns what the old function would."""
    generator = torch.Generator().manual_seed(0)

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        module = module.new if isinstance(module, Fade) else module
        channels = getattr(module, "num_parameters", 1)
        axis = getattr(module, "channel_dim", 1) if channels > 1 else -1
        rows = x.movedim(axis, -1).reshape(-1, x.shape[axis] if channels > 1 else 1)
        chosen = torch.randint(len(rows), (2048,), generator=generator).to(x.device)
        into.append(rows[chosen])
        return next(references)(x)

    return record


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
