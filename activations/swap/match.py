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
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn

from activations.activation import Activation

from .copies import copied, random_state_kept
from .fade import Fade
from .inputs import Inputs
from .kinds import is_activation
from .trace import Call, device_of

Function = Callable[[Tensor], Tensor]

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
        steepness: how far a small step in the parameters moves the outputs at most, divided by how
            far it would move them as a factor in front of the old function.
    """

    error: float
    relative: float
    steepness: float

    @property
    def warning(self) -> str:
        """What should be known before training goes on, with the remedies; or nothing."""
        found = []
        if self.relative > 0.1:
            found.append(
                f"fits only roughly, with an error of {self.relative:.0%} of the old outputs' "
                'deviation; match="fade" (--model.match fade) starts without loss'
            )
        if self.steepness > 2:  # a step of gradient descent then moves it 4 times as far
            found.append(
                f"changes {self.steepness:.2g} times as fast with its parameters as with a factor; "
                "they need a smaller learning rate "
                f"(--model.activation_lr_scale {self.steepness**-2:.1g})"
            )
        return "; it ".join(found)


def match(activation: nn.Module, reference: Function, samples: Tensor | None = None) -> float:
    r"""Set the learned parameters of `activation` so that it starts as `reference`.

    They minimise :math:`\sum_i (f(x_i) - g(x_i))^2` by the Levenberg-Marquardt method, in float64
    and channel by channel. Where parameters rounded to three decimals fit as well, these are taken,
    so that exact pairs are exact.

    Steps are taken only to where the function can go on learning: the gradient of each parameter
    (root mean square over the samples) is 0.05 to 5 times that at the start, and the slope of f
    0.03 to 3 times that of g.

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
        UserWarning: the error is more than 10% of the deviation of g over the samples, or f moves
            more than twice as far in its parameters as a learned factor before g would.
    """
    found = fit(activation, reference, samples)
    if found.warning:
        pair = f"{reference} -> {type(activation).__name__}"
        warnings.warn(f"match: {pair} {found.warning}", stacklevel=2)
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
    twin = _of_rows(activation).requires_grad_(False)
    named = list(twin.named_parameters(recurse=False))
    device = next(twin.parameters(), torch.empty(0)).device
    normal = torch.special.ndtri((torch.arange(2001, dtype=torch.float64) + 0.5) / 2001)
    x = (normal if samples is None else samples.detach()).to(device, torch.float64)
    if channels > 1 and x.dim() > 1 and x.shape[1:] not in ((1,), (channels,)):
        raise ValueError(
            f"samples must be (n,) or (n, {channels}), one column for each channel, got "
            f"{tuple(x.shape)}: bring the channels to the end, and flatten the rest"
        )
    x = x.reshape(len(x), -1)
    x = x if x.shape[1] == channels else x.reshape(-1, 1).expand(-1, channels).contiguous()
    old = copy.deepcopy(reference)
    old = old.double().eval() if isinstance(old, nn.Module) else old  # RReLU without its noise
    facts = activation if isinstance(activation, Activation) else Activation()

    def table(values: Iterable[Tensor]) -> Tensor:
        """All parameters as (channels, number of parameters in a channel)."""
        rows = [value.reshape(channels, -1) for value in values]
        return torch.cat([x.new_empty(channels, 0), *rows], 1)

    def assign(module: nn.Module, theta: Tensor) -> None:
        parts = theta.split([parameter.numel() // channels for _, parameter in named], 1)
        for parameter, part in zip(module.parameters(recurse=False), parts, strict=True):
            parameter.copy_(part.reshape(parameter.shape))

    def new(theta: Tensor, x: Tensor = x) -> Tensor:
        assign(twin, theta)
        return twin(x.clone())  # which an activation in place overwrites

    with torch.no_grad():
        y = _outputs(old, x, activation)
        least = table(torch.full_like(p, facts.least.get(n, -math.inf)) for n, p in named)
        scalable = table(torch.full_like(p, float(n == facts.scalable)) for n, p in named) > 0

        def allowed(theta: Tensor) -> Tensor:
            """The same, clamped as the activation does, and with a sum of 1 where it divides."""
            total = torch.where(scalable, theta, 0).sum(1, keepdim=True)
            return torch.where(scalable, theta / total, torch.maximum(theta, least))

        starts = [
            allowed(table(torch.full_like(p, at[n]) if n in at else p for n, p in named))
            for at in ({}, *facts.match_starts)
        ]
        usual = torch.stack([_gradients(_jacobian(new, start)) for start in starts]).amax(0)
        steep = _slopes(old, x)

        def alive(theta: Tensor, jacobian: Tensor) -> Tensor:
            gradients = most = _gradients(jacobian)
            if (most < _GRADIENT[0] * usual).any():
                # dead only until another parameter moves, as CosLU's beta where alpha is 0?
                near = [_gradients(_jacobian(new, theta, shift)) for shift in (0.1, -0.1)]
                most = torch.stack([most, *near]).amax(0)
            learns = (most >= _GRADIENT[0] * usual) & (gradients <= _GRADIENT[1] * usual)
            slope = _slopes(lambda x: new(theta, x), x)
            moves = (slope >= _SLOPE[0] * steep) & (slope <= _SLOPE[1] * steep)
            return (learns | (usual == 0)).all(1) & (moves | (steep == 0))

        best, lowest = starts[0], torch.full_like(steep, math.inf)
        for start in starts if named else ():
            theta, cost = _least_squares(new, y, start, allowed, alive)
            better = cost < lowest - 1e-20
            best = torch.where(better[:, None], theta, best)
            lowest = torch.where(better, cost, lowest)
        steepness = 0.0
        if named:
            jacobian = _jacobian(new, best)
            curvature = torch.einsum("nci,ncj->cij", jacobian, jacobian) / len(x)
            most = torch.linalg.eigvalsh(curvature).amax() / y.square().mean()
            steepness = most.nan_to_num(0, 0, 0).sqrt().item()
        assign(activation, best)
        # half precision rounds visibly
        mean = (new(table(activation.parameters(recurse=False)).double()) - y).square().mean()
        variance = y.var(0, correction=0).mean()
    if not mean.isfinite():
        raise ValueError(f"{type(activation).__name__} is not finite on the samples")
    relative = (mean / variance).sqrt().item() if mean else 0.0
    return Fit(math.sqrt(mean.item()), relative, steepness)


def _of_rows(activation: nn.Module) -> nn.Module:
    """A copy in float64 that takes samples (n, channels), whatever axis its channels have."""
    twin = copy.deepcopy(activation).double()
    for part in twin.modules():
        if isinstance(part, Activation):
            part.channel_dim = 1
    return twin


def _outputs(old: Function, x: Tensor, activation: nn.Module) -> Tensor:
    """The old function of each sample; it may be one of each channel, where the new one is not."""
    try:
        y = old(x.clone())
    except Exception as error:
        raise ValueError(
            f"{old} cannot be matched: it fails on samples of shape {tuple(x.shape)} ({error}). If "
            f"each channel has its own function, so must {type(activation).__name__}: "
            'share="channel" (--model.share channel); match="fade" takes any'
        ) from error
    if y.shape != x.shape:
        raise ValueError(
            f"{old} cannot be matched: it makes {tuple(y.shape)} of samples of shape "
            f'{tuple(x.shape)}; match="fade" takes any'
        )
    return y


def _slopes(function: Function, x: Tensor) -> Tensor:
    """Root mean square of the slope, (channels,)."""
    return ((function(x + 1e-4) - function(x - 1e-4)) / 2e-4).square().mean(0).sqrt()


def _jacobian(function: Function, theta: Tensor, shift: float = 0.0) -> Tensor:
    """The derivatives by each parameter, (samples, channels, parameters): forward differences.

    `shift` moves all other parameters, as a share of their size.
    """
    base = function(theta)
    columns = [base.new_empty(*base.shape, 0)]
    for index in range(theta.shape[1]):
        step = torch.zeros_like(theta)
        step[:, index] = 1e-6 * theta[:, index].abs().clamp(min=1)
        near = theta + shift * theta.abs().clamp(min=1) * (step == 0)
        below = function(near) if shift else base
        columns.append(((function(near + step) - below) / step[:, index])[..., None])
    return torch.cat(columns, -1).nan_to_num(0, 0, 0)


def _gradients(jacobian: Tensor) -> Tensor:
    """Root mean square of the derivative by each parameter, (channels, parameters)."""
    return jacobian.square().mean(0).sqrt()


def _least_squares(
    function: Function,
    y: Tensor,
    start: Tensor,
    allowed: Function,
    alive: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The parameters (channels, k) that minimise the mean square of function - y, and this square.

    Each channel has its own parameters. `allowed` moves parameters to where they may be; only steps
    to where they are `alive` are taken. The square is infinite if they never were.
    """

    def costs(theta: Tensor) -> Tensor:
        return (function(theta) - y).square().mean(0).nan_to_num(math.inf, math.inf)

    theta, jacobian = start, _jacobian(function, start)
    cost = torch.where(alive(theta, jacobian), costs(theta), math.inf)
    damping = torch.full_like(cost, 1e-3)
    for _ in range(100):
        rest = (function(theta) - y).nan_to_num(0, 0, 0)
        square = torch.einsum("nci,ncj->cij", jacobian, jacobian)
        scale = square.diagonal(dim1=1, dim2=2)
        ridge = damping[:, None] * scale + 1e-12 * scale.amax(1, keepdim=True) + 1e-300
        gradient = torch.einsum("nci,nc->ci", jacobian, rest)[..., None]
        step = torch.linalg.lstsq(square + ridge.diag_embed(), gradient).solution[..., 0]
        moved = allowed(theta - step)
        new = costs(moved)
        better = new < cost
        if better.any():
            there = _jacobian(function, moved)
            better &= alive(moved, there)
            jacobian = torch.where(better[:, None], there, jacobian)
        gain = torch.where(better, cost - new, 0)
        theta = torch.where(better[:, None], moved, theta)
        cost = torch.where(better, new, cost)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-12, 1e9)
        done = better & (gain < 1e-4 * cost) | (damping > 1e6) | (cost < 1e-20)
        if done.all():
            break
    rounded = allowed((theta * 1000).round() / 1000)
    as_good = costs(rounded) <= cost + 1e-15
    return torch.where(as_good[:, None], rounded, theta), cost


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
        was, other = call.reference, same[0].reference
        if not _alike(was, other):
            numbers = " with other numbers" if repr(was) == repr(other) else ""
            raise ValueError(
                f"{call.name} was {was!r}, another call that shares its activation "
                f'{other!r}{numbers}: match needs share="site" or "channel" here'
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
    poor: dict[str, dict[str, Fit]] = {}
    for activation, same in groups.items():
        parts = samples[activation]
        new = activation.new if isinstance(activation, Fade) else activation
        found = fit(new, same[0].reference, torch.cat(parts) if parts else None)
        for call in same:
            call.error, call.relative_error = found.error, found.relative
            if found.warning:
                poor.setdefault(f"{call.old} -> {type(new).__name__}", {})[call.name] = found
    for pair, sites in poor.items():
        worst = Fit(*map(max, zip(*map(astuple, sites.values()), strict=True)))
        more = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
        warnings.warn(f"match: {pair} at {min(sites)}{more} {worst.warning}", stacklevel=3)


def _alike(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules are one function: shown as the same, with the same numbers."""
    state, other = first.state_dict(), second.state_dict()
    same = repr(first) == repr(second) and state.keys() == other.keys()
    return same and all(torch.equal(value, other[name]) for name, value in state.items())


def _recorder(into: list[Tensor], references: Iterator[nn.Module]) -> Callable[..., Tensor]:
    """A forward hook that keeps samples of the input and returns what the old function would."""
    generator = torch.Generator("cpu").manual_seed(0)

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        module = module.new if isinstance(module, Fade) else module
        channels = getattr(module, "num_parameters", 1)
        axis = getattr(module, "channel_dim", 1) if channels > 1 else -1
        rows = x.movedim(axis, -1).reshape(-1, x.shape[axis] if channels > 1 else 1)
        chosen = torch.randint(len(rows), (2048,), generator=generator, device="cpu").to(x.device)
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
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64, device="cpu")
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    twin = _of_rows(activation).cpu()
    with torch.no_grad():
        y = twin(x[:, None].repeat(1, channels))
    moment = torch.trapezoid(y.square().mean(1) * density, x).item()
    if not 0 < moment < math.inf:
        raise ValueError(f"{type(activation).__name__} has no gain: its mean square is {moment}")
    return 1 / math.sqrt(moment)
