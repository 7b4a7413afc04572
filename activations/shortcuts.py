"""Sine, cosine, expm1 and tanh of float32 in a few multiplications each, for kernels on the CPU.

The vector library behind torch rounds them almost perfectly, at 2 to 4 ns an element, which is what
a whole SiLU costs. Here the error is at most 2 eps for sine and cosine up to 10^3 radians, and
2 eps |x| beyond, as much as a rounding of the angle makes; 2 eps of the value for expm1 and tanh.
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
    p = 1.6666659713e-1 + z * (
        -8.333059027791e-3 + z * (1.9809053628705e-4 + z * -2.6045020149468e-6)
    )
    return r - r * z * p


def _sign(n: Tensor) -> Tensor:
    """(-1)^n."""
    half = n * 0.5
    return 1 - 4 * (half - torch.floor(half))


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1; near 0 by its Taylor series."""
    near = x.clamp(-0.5, 0.5)
    series = 1 / 5040 + near * (1 / 40320)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2):
        series = factor + near * series
    return torch.where(x.abs() < 0.5, near + near * near * series, torch.exp(x) - 1)


def tanh(x: Tensor) -> Tensor:
    """Near 0 by a minimax polynomial, relative error 2^-26."""
    size = x.abs()
    z = size.clamp(max=0.625).square()
    p = 2.06390887954e-2 + z * -5.70498872745e-3
    for factor in (-5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        p = factor + z * p
    far = (1 - 2 / (torch.exp(2 * size) + 1)) * torch.sign(x)
    return torch.where(size < 0.625, x + x * z * p, far)


SHORTCUTS: dict[Any, Callable[[Tensor], Tensor]] = {
    torch.ops.aten.sin.default: sine,
    torch.ops.aten.cos.default: cosine,
    torch.ops.aten.expm1.default: expm1,
    torch.ops.aten.tanh.default: tanh,
}


class Shortcuts(CustomGraphPass):
    """Puts the functions above in place of torch's, for float32."""

    def __call__(self, graph: Graph) -> None:
        """Change `graph`, of aten operations, in place."""
        for node in list(graph.nodes):
            shortcut = SHORTCUTS.get(node.target)
            if shortcut is None or node.meta["val"].dtype != torch.float32:
                continue
            (x,) = node.args
            with x.meta["val"].fake_mode:
                traced = make_fx(shortcut, select_decomp_table())(x.meta["val"]).graph
            (placeholder,) = (n for n in traced.nodes if n.op == "placeholder")
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph_copy(traced, {placeholder: x}))
            graph.erase_node(node)

    def uuid(self) -> bytes:
        """What Inductor's cache tells this version by."""
        return get_hash_for_files((__file__,))
