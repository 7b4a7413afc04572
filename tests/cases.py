"""One row per activation: how to make it with distinct parameters, and its formula in NumPy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import activations as A

Reference = Callable[[np.ndarray, dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Case:
    """An activation under test.

    Attributes:
        kind: the class.
        arguments: constructor arguments, none at its default, all distinct.
        reference: NumPy float64 formula: x and the module's state -> value, and the sum of the
            absolute terms, to which rounding errors are proportional.
        shape: of an input.
        per_channel: whether the family takes num_parameters and channel_dim.
        kinks: x where the derivative jumps.
    """

    kind: type[A.Activation]
    arguments: dict[str, Any]
    reference: Reference
    shape: tuple[int, ...] = (3, 4, 5)
    per_channel: bool = True
    kinks: tuple[float, ...] = ()

    def make(self, **more: Any) -> A.Activation:
        """The module, its learned values moved to distinct ones, its schedule in the middle."""
        torch.manual_seed(0)
        module = self.kind(**self.arguments, **more)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += torch.linspace(0.05, 0.3, parameter.numel()).view_as(parameter)
            for name, buffer in module.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer += torch.linspace(0.1, 0.7, buffer.numel())
        A.set_progress(module, 0.3)
        return module.eval()

    def expected(self, module: A.Activation, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`reference` with the module's state, per-channel values along its channel axis."""
        state = {}
        for name, value in module.state_dict().items():
            array = value.double().numpy()
            if module.num_parameters > 1 and array.shape == (module.num_parameters,):
                shape = [1] * x.ndim
                shape[module.channel_dim] = -1
                array = array.reshape(shape)
            state[name] = array
        return self.reference(x.astype(np.float64), state)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def coslu(x, p):
    wave, gate = p["alpha"] * np.cos(p["beta"] * x), sigmoid(x)
    # the angle beta x carries a rounding error of its own size
    scale = (np.abs(x) + np.abs(p["alpha"]) * (1 + np.abs(p["beta"] * x))) * gate
    return (x + wave) * gate, scale


def dsrelu(x, p):
    value = np.where(x > 0, p["slope"] * x, 0.4 * x)
    return value, np.abs(value)


def lslu(x, p):
    size = np.abs(x)
    for theta, omega in zip(p["theta"], p["omega"], strict=True):
        x = theta * np.maximum(x, 0) + omega
        size = np.abs(theta) * size + np.abs(omega)
    x = np.maximum(x, 0)
    kernel = p["conv.weight"]
    reach = kernel.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[-2:], (2, 3))
    y = np.einsum("nchwij,cij->nchw", windows, kernel[:, 0])
    size = np.einsum("nchwij,cij->nchw", np.abs(windows), np.abs(kernel[:, 0])) + size

    def per_channel(name):
        return p[name].reshape(1, -1, 1, 1)

    scale = per_channel("norm.weight") / np.sqrt(per_channel("norm.running_var") + 1e-6)
    y = (y - per_channel("norm.running_mean")) * scale + per_channel("norm.bias")
    return y, size * np.abs(scale) + np.abs(per_channel("norm.bias")) + 1


CASES = [
    Case(A.CosLU, {"alpha": 0.7, "beta": 1.9}, coslu),
    Case(
        A.DSReLU,
        {"a": 3.0, "b": 0.6, "k": 4.0, "negative_slope": 0.4},
        dsrelu,
        per_channel=False,
        kinks=(0.0,),
    ),
    Case(
        A.LSLU,
        {"channels": 3, "theta": 0.8, "omega": 0.2, "repeats": 2},
        lslu,
        shape=(2, 3, 6, 5),
        per_channel=False,
        kinks=(0.0,),
    ),
]
