"""Puts the functions of `shortcuts` into the kernels that Inductor makes for the CPU."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.ir import Subgraph
from torch._inductor.lowering import make_pointwise
from torch._inductor.subgraph_lowering import InputDescriptor, lower_pointwise_subgraph
from torch._inductor.virtualized import OpsValue
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from . import shortcuts

aten = torch.ops.aten
_EXPONENTIALS = aten.exp.default, aten.expm1.default, aten.tanh.default
_WAVES = {aten.sin.default, aten.cos.default}
# these are constant above 1000 and below -1000
_LEVEL = {aten.sigmoid.default, aten.tanh.default, aten.erf.default}
# these are constant below -1000
_LEVEL_BELOW = {aten.exp.default, aten.expm1.default} | _LEVEL
_LARGEST = torch.finfo(torch.float32).max


def _users(node: Any) -> set[Any]:
    return {user.target for user in node.users}


def _is_single(node: Any) -> bool:
    return node.meta["val"].dtype == torch.float32


def _is_zero(node: Any) -> bool:
    """Whether `node` is the constant 0: `full` since torch 2.14, `scalar_tensor` before."""
    constant = node.target in (aten.full.default, aten.scalar_tensor.default)
    return constant and node.args[-1] == 0


def _bound(node: Any, clamp: Any) -> float:
    """The number that `clamp` bounds `node` by; NaN, which equals nothing, if there is none."""
    known = node.target is clamp and isinstance(node.args[1], int | float)
    return node.args[1] if known else math.nan


def _angle(upper: Any) -> Any:
    """The angle `x` if `upper` is clamp(x, -largest, largest) for sine and cosine alone."""
    lower: Any = upper.args[0]
    bounds = _bound(lower, aten.clamp_min.default), _bound(upper, aten.clamp_max.default)
    known = bounds == (-_LARGEST, _LARGEST) and _is_single(upper) and _users(upper) <= _WAVES
    return lower.args[0] if known else None


def _symmetric(mask: Any) -> tuple[Any, float]:
    """`x` and c if the `mask` is -c < x < c, as torch 2.14 writes it, or -c <= x <= c."""
    strict, loose = (aten.gt.Scalar, aten.lt.Scalar), (aten.ge.Scalar, aten.le.Scalar)
    left, right = mask.args
    if (left.target, right.target) in (strict, loose):
        (x, low), (other, high) = left.args, right.args
        numbers = isinstance(low, int | float) and isinstance(high, int | float)
        if numbers and x is other and low == -high:
            return x, high
    return None, math.nan


def _unmask_angle(upper: Any) -> None:
    """where(-largest < x < largest, value, 0) is the value, for an angle `x`."""
    masks = upper.graph.find_nodes(op="call_function", target=aten.logical_and.default)
    masks = [mask for mask in masks if _symmetric(mask) == (_angle(upper), _LARGEST)]
    for where in [user for mask in masks for user in mask.users]:
        if where.target is aten.where.self and _is_zero(where.args[2]):
            where.replace_all_uses_with(where.args[1])


def _unbound_angle(upper: Any) -> None:
    """clamp(x, -largest, largest) is `x`, for an angle: `shortcuts._reduced` takes infinities."""
    if x := _angle(upper):
        upper.replace_all_uses_with(x)


def _drop_far_bound(clamp: Any) -> None:
    """Leave out a clamp beyond which the function is constant; its mask still stops gradients."""
    above = _users(clamp) <= _LEVEL and _bound(clamp, aten.clamp_max.default) >= 1000
    below = _users(clamp) <= _LEVEL_BELOW and _bound(clamp, aten.clamp_min.default) <= -1000
    if above or below:
        clamp.replace_all_uses_with(clamp.args[0])


def _find_size(where: Any) -> None:
    """where(x > 0, -x, x) is -|x|."""
    right, left, x = where.args
    negated = left.target is aten.neg.default and left.args == (x,)
    if negated and right.target is aten.gt.Scalar and right.args == (x, 0):
        where.target, where.args = aten.neg.default, (_size(x, where),)


def _find_size_in_mask(mask: Any) -> None:
    """-c < x < c is |x| < c."""
    x, bound = _symmetric(mask)
    if x is not None:
        mask.target, mask.args = mask.args[1].target, (_size(x, mask), bound)


def _size(x: Node, before: Node) -> Node:
    with before.graph.inserting_before(before), x.meta["val"].fake_mode:
        size = before.graph.call_function(aten.abs.default, (x,))
        size.meta["val"] = torch.abs(x.meta["val"])
    return size


def _join_branches(total: Any) -> None:
    """where(m, a, 0) + where(m, 0, b), which a derivative of `where` has, is where(m, a, b)."""
    sides = [side for side in total.args if getattr(side, "target", None) is aten.where.self]
    if len(sides) == 2 and sides[0].args[0] is sides[1].args[0]:
        sides.sort(key=lambda side: _is_zero(side.args[1]))
        (mask, left, zero), (_, other_zero, right) = sides[0].args, sides[1].args
        if _is_zero(zero) and _is_zero(other_zero):
            total.target, total.args = aten.where.self, (mask, left, right)


# each rule sees every node of its operation, in this order
_RULES: list[tuple[Any, Callable[[Any], None]]] = [
    (aten.clamp_max.default, _unmask_angle),
    (aten.clamp_max.default, _unbound_angle),
    (aten.clamp_max.default, _drop_far_bound),
    (aten.clamp_min.default, _drop_far_bound),
    (aten.where.self, _find_size),
    (aten.logical_and.default, _find_size_in_mask),
    (aten.add.Tensor, _join_branches),
]


def _is_narrow(node: Any) -> bool:
    """Whether the argument of `node` lies in the range of `shortcuts.NARROW`."""
    below = node.args[0]
    if node.target is aten.erf.default:
        return below.target is aten.exp.default
    if node.target is aten.log1p.default:
        return below.target is aten.exp.default and _is_narrow(below)
    if below.target is not aten.neg.default:
        return False
    negated = below.args[0]
    square = negated.target is aten.mul.Tensor and negated.args[0] is negated.args[1]
    return square or negated.target is aten.abs.default


def _is_finite(node: Any) -> bool:
    """Whether `node` is an exponential whose argument a clamp keeps <= 88."""
    exponential = node.target in (aten.exp.default, aten.expm1.default)
    return exponential and _bound(node.args[0], aten.clamp_max.default) <= 88


def _lowered(shortcut: shortcuts.Shortcut) -> Callable[[Any], Any]:
    """The shortcut as one operation of Inductor's.

    As several operations, each of them would compute its argument again, from the input on.
    """
    traced = make_fx(lambda x: [shortcut(x).clone()], select_decomp_table())(torch.empty(()))

    def lowering(x: Any) -> Any:
        given: list[Any] = [InputDescriptor(x.get_dtype(), x.get_device())]
        graph = Subgraph(name="shortcut", graph_module=traced)
        compute: Any = lower_pointwise_subgraph(graph, given)
        return make_pointwise(lambda value: OpsValue(compute(value.value)[0]))(x)

    found: Any = lowering
    found._inductor_lowering_function = True
    found._inductor_lowering_output_metadata_is_input = 0
    return found


class Shortcuts(CustomGraphPass):
    """Puts the functions of `shortcuts` in place of torch's, for float32.

    Args:
        rough: whether the results are rounded to half precision.
    """

    def __init__(self, rough: bool) -> None:
        self.rough = rough

    def __call__(self, graph: Graph) -> None:
        """Change `graph`, of aten operations, in place."""
        for target, rule in _RULES:
            for node in graph.find_nodes(op="call_function", target=target):
                rule(node)
            graph.eliminate_dead_code()
        alone = self.rough and not any(
            graph.find_nodes(op="call_function", target=other) for other in _EXPONENTIALS
        )
        # the narrow ones first, since they look for an exponential
        for target in shortcuts.NARROW | shortcuts.WIDE:
            for node in graph.find_nodes(op="call_function", target=target):
                shortcut = self._shortcut(node, alone)
                if shortcut and _is_single(node) and _is_single(node.args[0]):
                    with node.meta["val"].fake_mode:
                        node.target = _lowered(shortcut)

    def _shortcut(self, node: Any, alone: bool) -> shortcuts.Shortcut | None:
        """The function for `node`; `alone` if no other node is an exponential."""
        narrow = _is_narrow(node) or (not self.rough and _is_finite(node))
        if narrow and node.target in shortcuts.NARROW:
            return shortcuts.NARROW[node.target][self.rough]
        if alone and node.target is aten.sigmoid.default:
            return shortcuts.rough_sigmoid
        return shortcuts.WIDE[node.target][self.rough] if node.target in shortcuts.WIDE else None

    def uuid(self) -> bytes:
        """The key of this version in Inductor's cache of kernels."""
        return get_hash_for_files((__file__, shortcuts.__file__), str(self.rough))
