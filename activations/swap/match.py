"""Start a new activation as the function that it replaces, as closely as possible.

Its parameters are fitted by least squares, for one activation (`match`) or for all calls of a swap
(`match_calls`), each on the inputs that the network gives it. Where the function changes, `gain` is
the factor for the initial weights.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from activations.activation import Activation

from .copies import random_state_kept
from .trace import Call

Function = Callable[[Tensor], Tensor]


def match(activation: nn.Module, reference: Function, samples: Tensor | None = None) -> float:
    r"""Set the learned parameters of `activation` so that it starts as `reference`.

    They minimise :math:`\sum_i (f(x_i) - g(x_i))^2` by the Levenberg-Marquardt method, in float64
    and channel by channel. If the function is linear in its parameters, one step is enough. Where
    parameters rounded to three decimals fit as well, these are taken, so that exact pairs are
    exact.

    Args:
        activation: an elementwise function, changed in place.
        reference: the function to match.
        samples: inputs, (n,) or (n, C) for an activation with C channels; by default 2001 quantiles
            of the standard normal distribution.

    Returns:
        The root mean square of f - g over the samples.

    Raises:
        ValueError: the activation mixes positions (LSLU, DynamicReLU), or a value is not finite.
    """
    for part in list(activation.modules())[1:]:
        if not isinstance(part, Activation) and [*part.parameters(recurse=False)]:
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

    def difference(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        assign(twin, theta)
        return twin(x) - y

    with torch.no_grad():
        y, tail_y = old(x.clone()), old(tail.clone())
        starts = []
        for values in ({}, *getattr(activation, "match_starts", ())):
            full = (p if n not in values else torch.full_like(p, values[n]) for n, p in named)
            starts.append(table(full))
        best = starts[0]
        least = torch.full((2, channels), math.inf, dtype=x.dtype, device=device)
        for start in starts:
            theta, cost = _least_squares(lambda theta: difference(theta, x, y), start)
            outside = difference(theta, tail, tail_y).square().mean(0).nan_to_num(math.inf)
            # of two that fit the samples equally well, take the one that fits better beyond them
            better = (cost < least[0] - 1e-24) | (cost < least[0] + 1e-24) & (outside < least[1])
            best = torch.where(better[:, None], theta, best)
            least = torch.where(better, torch.stack([cost, outside]), least)
        if not least[0].isfinite().all():
            raise ValueError(f"{type(activation).__name__} is not finite on the samples")
        assign(activation, best)
    return math.sqrt(least[0].mean().item())


def _least_squares(difference: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
    """The parameters (channels, k) from `theta` on, and the mean squares (channels,) with them.

    `difference` is what is minimised, (samples, channels); each channel has its own parameters.
    """

    def mean_square(theta: Tensor) -> Tensor:
        return difference(theta).square().mean(0).nan_to_num(math.inf, math.inf)

    cost = mean_square(theta)
    damping = torch.full_like(cost, 1e-3)
    for _ in range(200 if theta.numel() else 0):
        columns = []
        for index in range(theta.shape[1]):  # central differences
            step = torch.zeros_like(theta)
            step[:, index] = 1e-5 * theta[:, index].abs().clamp(min=1)
            slope = difference(theta + step) - difference(theta - step)
            columns.append((slope / (2 * step[:, index])).nan_to_num(0, 0, 0))
        jacobian = torch.stack(columns, -1).transpose(0, 1)  # (channels, samples, k)
        square = jacobian.mT @ jacobian
        scale = square.diagonal(dim1=1, dim2=2)
        weight = damping[:, None] * scale + 1e-12 * scale.amax(1, keepdim=True) + 1e-300
        gradient = jacobian.mT @ difference(theta).T.nan_to_num(0, 0, 0)[..., None]
        moved = theta - torch.linalg.lstsq(square + weight.diag_embed(), gradient).solution[..., 0]
        new = mean_square(moved)
        better = new < cost
        gained = torch.where(better, cost - new, 0).max() > 1e-12 * cost.max()
        theta = torch.where(better[:, None], moved, theta)
        cost = torch.where(better, new, cost)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-12, 1e9)
        if (not gained and bool((damping > 1e3).all())) or not cost.max():
            break
    rounded = (theta * 1000).round() / 1000
    as_good = mean_square(rounded) <= cost + 1e-24
    theta = torch.where(as_good[:, None], rounded, theta)
    return theta, mean_square(theta)


def match_calls(model: nn.Module, calls: Iterable[Call], example: Tensor | None) -> None:
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
        twin = copy.deepcopy(model)
        means = [b for name, b in twin.named_buffers() if name.endswith("running_mean")]
        twin.train(bool(means) and not any(mean.any() for mean in means))
        for activation, same in groups.items():
            references = itertools.cycle([call.reference for call in same])
            recorder = _recorder(samples[activation], references)
            twin.get_submodule(same[0].name).register_forward_hook(recorder)
        device = next(model.parameters(), example).device
        with random_state_kept(), torch.no_grad():
            twin(example.to(device))
    for activation, same in groups.items():
        parts = samples[activation]
        error = match(activation, same[0].reference, torch.cat(parts) if parts else None)
        for call in same:
            call.error = error


def _recorder(into: list[Tensor], references: Iterator[nn.Module]) -> Callable[..., Tensor]:
    """A forward hook that keeps samples of the input and returns what the old function would."""
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
