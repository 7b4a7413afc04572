"""Weights for a network: from a library's server or from a file; and their initialisation."""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state of a network from a .safetensors, .pth or .ckpt file.

    Of a checkpoint of this project only the backbone is taken. Prefixes that wrappers add
    (`module.`, `_orig_mod.`) are dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {str(path)!r} (checkpoint_path)")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{str(path)!r} cannot be read as weights: {error}") from error
    prefixes = ("module.", "_orig_mod.", "backbone.", "model.")
    ours = isinstance(content, dict) and "pytorch-lightning_version" in content
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{str(path)!r} holds no weights by name")
    if ours and any(name.startswith("backbone.") for name in content):  # without its metrics
        content = {name: value for name, value in content.items() if name.startswith("backbone.")}
    while prefix := next((p for p in prefixes if all(n.startswith(p) for n in content)), ""):
        content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def load_weights(
    network: nn.Module, state: dict[str, Tensor], *, source: str, fresh: tuple[str, ...] = ()
) -> None:
    """Load `state` into `network`, all of it or nothing.

    A first convolution for another number of input channels is adapted as timm does it; a last
    layer for another number of classes is left as it is, with a warning.

    Args:
        network: changed in place.
        state: tensors by name.
        source: where they come from, for messages.
        fresh: prefixes of names that need not be in `state`: activations that were swapped in.

    Raises:
        ValueError: names or shapes that do not fit, listed.
    """
    own = network.state_dict()
    state = dict(state)
    weights = [name for name, value in own.items() if value.dim() > 1 and name in state]
    first, last = (weights[0], weights[-1].rpartition(".")[0]) if weights else ("", "")
    if first and own[first].shape[1] != state[first].shape[1]:
        from timm.models import adapt_input_conv

        state[first] = adapt_input_conv(own[first].shape[1], state[first])
    wrong = {
        name for name, value in state.items() if name in own and value.shape != own[name].shape
    }
    if wrong and all(name.rpartition(".")[0] == last for name in wrong):
        warnings.warn(
            f"{source} has {len(state[f'{last}.weight'])} classes, the data "
            f"{len(own[f'{last}.weight'])}: the layer {last!r} starts untrained",
            stacklevel=2,
        )
        state |= {name: own[name] for name in wrong}
        wrong = set()
    missing = [n for n in own if n not in state and not n.startswith(fresh or ("\0",))]
    unknown = [name for name in state if name not in own]
    problems = [f"{n}: {tuple(state[n].shape)}, the network {tuple(own[n].shape)}" for n in wrong]
    problems += [f"{name}: missing" for name in missing]
    problems += [f"{name}: the network has no such part" for name in unknown]
    if problems:
        more = f"; and {len(problems) - 6} more" if problems[6:] else ""
        hint = " (weights for large images need stem: imagenet)" if first in wrong else ""
        raise ValueError(
            f"{source} does not fit {type(network).__name__}: {'; '.join(problems[:6])}{more}{hint}"
        )
    network.load_state_dict(own | state)


def kaiming_(network: nn.Module, gain: float) -> None:
    """Draw convolutions and hidden linear layers from N(0, gain^2 / fan), and set biases to 0.

    The fan is that of the output for convolutions, that of the input for linear layers; the last
    linear layer keeps its start.

    Reference: He et al., "Delving deep into rectifiers", 2015, section 2.2.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    for layer in layers:
        if layer is layers[-1] and isinstance(layer, nn.Linear):
            break
        into, out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
        fan = into if isinstance(layer, nn.Linear) else out // getattr(layer, "groups", 1)
        nn.init.normal_(layer.weight, std=gain / math.sqrt(max(1, fan)))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
