"""Which modules and functions are activations, which are gates, and which are neither.

All other steps use these answers. A gate (Sigmoid, Softmax, GLU) bounds or weighs values; it is
found like an activation, and swapped only on request.
"""

import inspect
import re
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.activation import Activation, Scheduled

from .whole import try_whole

LIBRARIES = ("torch.nn.modules.activation", "timm.layers.activations")
# They mix the values along an axis.
_ALONG_AN_AXIS = {"MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax", "GLU"}
# Classes that a network defines itself, such as QuickGELU or MemoryEfficientSwish.
_NAMED = re.compile(r"(relu\d?|elu|silu|swish|mish|softplus|softsign|tanh|snake)(activation|me)?$")
_GATE = re.compile(r"sigmoid|softmax|softmin|(?<!^a)glu")  # AGLU is an activation
_BOUND = re.compile(r"((?<!gelu)tanh|softsign|softplus)$")  # GELUTanh approximates GELU
_FUNCTIONS = ("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish",
              "hardswish", "hardtanh", "prelu", "rrelu", "softsign", "hardshrink", "softshrink",
              "tanhshrink", "threshold")  # fmt: skip
GATE_FUNCTIONS = ("sigmoid", "logsigmoid", "hardsigmoid", "tanh", "softmax", "softplus", "glu")
NAME_OF = {
    getattr(owner, name + suffix): name
    for owner in (F, torch, Tensor)
    for name in (*_FUNCTIONS, *GATE_FUNCTIONS)
    for suffix in ("", "_")
    if hasattr(owner, name + suffix)
}

CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def plain(name: str) -> str:
    """A class's or function's name in lower case, without underscores."""
    return name.lower().replace("_", "")


def kind_of(module: nn.Module) -> str | None:
    """`"activation"`, `"gate"`, or None for every other module.

    Activations are those of this package, of `torch.nn` and of timm, any elementwise module without
    children whose class is named like one (`QuickGELU`, `MySwish`), and any that computes one as a
    whole (`StarReLU`, see :mod:`activations.swap.whole`). A convolution, a normalisation or a bias
    with an activation behind it (`BNReLU`) is none: it stays, and what it calls is swapped. Gates
    are Sigmoid, Hardsigmoid, Softmax, GLU, and modules of the network itself that follow a
    schedule.
    """
    if isinstance(module, Activation):
        return "activation"
    kind = type(module)
    base: Any = next((b for b in kind.__mro__ if b.__module__.startswith(LIBRARIES)), None)
    name = plain((base or kind).__name__)
    if "attention" in name:
        return None
    # a class that computes something else with it may keep a normalisation or a factor
    of_a_library = base if base and kind.forward is base.forward else None
    if not of_a_library and next(module.children(), None) is not None:
        return _kind_as_a_whole(module, name)
    if isinstance(module, Scheduled):  # such as the slopes of VanillaNet
        return "gate"
    if _GATE.search(name):
        return "gate" if of_a_library or name.endswith(("sigmoid", "softmax")) else None
    return "activation" if of_a_library else _kind_as_a_whole(module, name)


def is_unknown(module: nn.Module) -> bool:
    """Whether a module of the network's own is elementwise and bends, and calls no activation."""
    alone = next(module.children(), None) is None
    if not alone or kind_of(module) or isinstance(module, Activation | Scheduled):
        return False
    return _as_a_whole(module, plain(type(module).__name__)) == _UNKNOWN


def makes_output(module: nn.Module) -> bool:
    """Whether a module of the network's own bounds values or makes them positive, and no more."""
    if isinstance(module, Activation) or type(module).__module__.startswith(("torch.", *LIBRARIES)):
        return False
    whole = try_whole(module, NAME_OF)
    if whole is None or not (whole.bounded or whole.positive):
        return False
    return bool(whole.names) and all(map(bounds, whole.names))


_UNKNOWN = "elementwise"
_OF_EVERY = vars(nn.Module()).keys()  # what each module has
_PLAIN = int | float | str | None | torch.dtype | torch.device
_known: WeakKeyDictionary[type, dict[Any, str | None]] = WeakKeyDictionary()


def _kind_as_a_whole(module: nn.Module, name: str) -> str | None:
    """The kind of a module that holds or calls activations, and nothing else that learns much."""
    found = _as_a_whole(module, name)
    return None if found == _UNKNOWN else found


def _as_a_whole(module: nn.Module, name: str) -> str | None:
    kind = type(module)
    parts = list(module.children())
    known_parts = all(isinstance(part, nn.Identity) or kind_of(part) for part in parts)
    if kind.__module__.startswith("torch.") or not known_parts:
        return None
    named = not parts and bool(_NAMED.search(name))
    options = {k: v for k, v in vars(module).items() if k not in _OF_EVERY}
    if not all(map(_is_plain, options.values())):  # a function or an object: others may differ
        return _kind_by_trial(module, name, named)
    state = (*module.named_parameters(), *module.named_buffers())
    sizes = [(name, value.shape) for name, value in state]
    key = (*map(type, parts), repr(sorted(options.items())), repr(sizes))
    known = _known.setdefault(kind, {})
    if key not in known:
        known[key] = _kind_by_trial(module, name, named)
    return known[key]


def _is_plain(value: Any) -> bool:
    """Whether equal texts of such values mean equal values."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _kind_by_trial(module: nn.Module, name: str, named: bool) -> str | None:
    """The kind of a module that is `named` like an activation, or calls one."""
    whole = try_whole(module, NAME_OF)
    has_state = bool([*module.parameters(), *module.buffers()])
    if whole is None:  # it does not run by itself: all there is to go by is the name
        return "activation" if named and not has_state else None
    if whole.elementwise and not whole.names and not named and not whole.linear:
        return _UNKNOWN
    if not whole.elementwise or not (whole.names or named):
        return None
    if name.endswith(("sigmoid", "softmax")):  # such as relu6(x + 3) / 6
        return "gate"
    if whole.affine and (has_state or not named):  # the network keeps its factors
        return None
    gates = whole.names and all(_GATE.search(n) or n in GATE_FUNCTIONS for n in whole.names)
    return "gate" if gates and whole.bounded and not named else "activation"


def is_activation(module: nn.Module) -> bool:
    """Whether the swap replaces `module` by default; see :func:`kind_of`."""
    return kind_of(module) == "activation"


def bounds(name: str) -> bool:
    """Whether the class or function is used to bound values, or to make them positive."""
    return bool(_GATE.search(plain(name)) or _BOUND.search(plain(name)))


def is_elementwise(module: nn.Module) -> bool:
    """Whether `module` is an activation of `torch.nn` or timm that takes inputs of any shape."""
    kind = type(module)
    return kind.__module__.startswith(LIBRARIES) and kind.__name__ not in _ALONG_AN_AXIS


def sizes_taken(kind: type) -> set[str]:
    """The constructor arguments of `kind` that depend on the sizes of its input."""
    if issubclass(kind, Activation):
        return set(kind.size_arguments)
    known = {"num_parameters", "channel_dim", "channels", "dims"}
    return known & set(inspect.signature(kind).parameters)
