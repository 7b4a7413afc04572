"""Elementary functions in a few multiplications each, for kernels on the CPU.

The vector library behind torch rounds them almost perfectly, at 1 to 4 ns an element, which is what
a whole SiLU costs. For float32 the error here is at most 2 eps for sine and cosine up to 10^3
radians, and 2 eps |x| beyond, as much as a rounding of the angle makes; 2 eps of the value for
expm1 and tanh; (4 + 2 x^2) eps of it for erfc. For an input in half precision, whose result keeps
three digits, it is 3e-5 of exp and what is made of it while |x| < 8, growing to 4e-3 where exp(x)
leaves the range of numbers, and 3e-6 (1 + |x|) for sine and cosine.
The formulas still say
`torch.cos`; a pass over the graph that Inductor is about to compile puts these in.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.decomposition import select_decomp_table
from torch.fx import Graph
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten


def sine(x: Tensor) -> Tensor:
    """sin(x)."""
    n = torch.round(x * (1 / torch.pi))
    return _half_wave(x, n) * _sign(n)


def cosine(x: Tensor) -> Tensor:
    """cos(x) = -(-1)^n sin(x - (n + 1/2) pi)."""
    n = torch.round(x * (1 / torch.pi) - 0.5)
    return _half_wave(x, n + 0.5) * -_sign(n)


def _half_wave(x: Tensor, n: Tensor) -> Tensor:
    """sin(x - n pi), whose argument lies in [-pi/2, pi/2]."""
    # pi in three parts, of which n takes the first two exactly up to 2^15 (Cody and Waite)
    r = ((x - n * 3.140625) - n * 9.67502593994140625e-4) - n * 1.509957990978376e-7
    r = r.clamp(-1.5708, 1.5708)  # far out, where x is no angle any more, stay in [-1, 1]
    z = r * r
    # minimax of (sin(r) - r) / r^3, relative error 6e-9 of sin(r)
    p = 1.6666659713e-1, -8.333059027791e-3, 1.9809053628705e-4, -2.6045020149468e-6
    return r - r * z * _polynomial(z, p)


def _sign(n: Tensor) -> Tensor:
    """(-1)^n."""
    half = n * 0.5
    return 1 - 4 * (half - torch.floor(half))


def _polynomial(x: Tensor, factors: tuple[float, ...]) -> Tensor:
    value = factors[-2] + x * factors[-1]
    for factor in factors[-3::-1]:
        value = factor + x * value
    return value


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), by an exponential that other functions can share."""
    e = torch.exp(-x.abs())
    return torch.where(x > 0, 1.0, e) * (1 / (1 + e))


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1; near 0 by its Taylor series."""
    series = _polynomial(x, (1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320))
    return torch.where(x.abs() < 0.5, x + x * x * series, torch.exp(x) - 1)


def tanh(x: Tensor) -> Tensor:
    """Near 0 by a minimax polynomial, relative error 2^-26."""
    z = x * x
    p = -3.33332819422e-1, 1.33314422036e-1, -5.37397155531e-2, 2.06390887954e-2, -5.70498872745e-3
    far = (1 - 2 / (torch.exp(2 * x.abs()) + 1)) * torch.sign(x)
    return torch.where(x.abs() < 0.625, x + x * z * _polynomial(z, p), far)


def erfc(x: Tensor) -> Tensor:
    """1 - erf(x), for x > 0 as exp(-x^2) t p(t) with a minimax polynomial, relative error 2^-22."""
    t = 1 / (1 + 0.4 * x.abs())
    p = (
        *(0.22567586185747, 0.22566960736336, 0.20784245719675, 0.16854436019365, 0.14142014274226),
        *(-0.00557902194131, 0.16904618210483, -0.18287372158117, 0.05025425220188),
    )
    tail = torch.exp(-(x * x)) * (t * _polynomial(t, p))
    return torch.where(x > 0, tail, 2 - tail)


def rough_exp(x: Tensor) -> Tensor:
    """exp(x / 128)^128, by a minimax polynomial that is negative where exp(x) is 0."""
    p = _polynomial(x * (1 / 128), (1.0, 1.0, 0.4999979, 0.16666861, 0.04220175, 0.00830965))
    return torch.relu(p).pow(16).pow(8)  # Inductor would trace each of seven products twice


def rough_sine(x: Tensor) -> Tensor:
    """sin(x), by a minimax polynomial in turns, relative error 1e-7."""
    f, p = _turn(x), (6.2831828, -41.341421, 81.596184, -76.580100, 41.205393, -12.271260)
    return f * _polynomial(f * f, p)


def rough_cosine(x: Tensor) -> Tensor:
    """cos(x), by a minimax polynomial in turns, error 9e-7."""
    f, p = _turn(x), (1.0, -19.739050, 64.930279, -85.286852, 58.852545, -21.162594)
    return _polynomial(f * f, p)


def _turn(x: Tensor) -> Tensor:
    """The angle `x` in turns, between -1/2 and 1/2."""
    t = x * (0.5 / torch.pi)
    return t - torch.round(t)


def rough_expm1(x: Tensor) -> Tensor:
    """exp(x) - 1; near 0 by its Taylor series."""
    return torch.where(x.abs() < 0.02, x + x * x * (1 / 2 + x * (1 / 6)), torch.exp(x) - 1)


def rough_tanh(x: Tensor) -> Tensor:
    """2 / (1 + exp(-2 |x|)) - 1 with the sign of `x`; near 0 by its Taylor series."""
    e = torch.exp(-x.abs())
    far = torch.where(x > 0, 1.0, -1.0) * (2 / (1 + e * e) - 1)
    return torch.where(x.abs() < 0.03, x - x * x * x * (1 / 3), far)


EXACT: dict[Any, Callable[[Tensor], Tensor]] = {
    aten.sin.default: sine,
    aten.cos.default: cosine,
    aten.sigmoid.default: sigmoid,
    aten.expm1.default: expm1,
    aten.tanh.default: tanh,
    aten.erfc.default: erfc,
}
ROUGH = EXACT | {
    aten.sin.default: rough_sine,
    aten.cos.default: rough_cosine,
    aten.expm1.default: rough_expm1,
    aten.tanh.default: rough_tanh,
    aten.exp.default: rough_exp,  # last: the others use it
}


class Shortcuts(CustomGraphPass):
    """Puts the functions above in place of torch's, for float32.

    Args:
        rough: whether the results are rounded to half precision.
    """

    def __init__(self, rough: bool) -> None:
        self.rough = rough

    def __call__(self, graph: Graph) -> None:
        """Change `graph`, of aten operations, in place."""
        for target, shortcut in (ROUGH if self.rough else EXACT).items():
            for node in graph.find_nodes(op="call_function", target=target):
                if node.meta["val"].dtype == torch.float32:
                    self._replace(graph, node, shortcut)

    def _replace(self, graph: Graph, node: Any, shortcut: Callable[[Tensor], Tensor]) -> None:
        (x,) = node.args
        with x.meta["val"].fake_mode:
            traced = make_fx(shortcut, select_decomp_table())(x.meta["val"]).graph
        (placeholder,) = (n for n in traced.nodes if n.op == "placeholder")
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph_copy(traced, {placeholder: x}))
        graph.erase_node(node)

    def uuid(self) -> bytes:
        """What Inductor's cache tells this version by."""
        return get_hash_for_files((__file__,), str(self.rough))
