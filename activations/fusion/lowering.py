"""The elementary functions of `shortcuts` in the kernels that Inductor makes for the CPU."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.lowering import make_pointwise
from torch._inductor.virtualized import ops
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from . import shortcuts

aten = torch.ops.aten
_EXPONENTIALS = aten.exp.default, aten.expm1.default, aten.tanh.default
_WAVES = {aten.sin.default, aten.cos.default}
# constant beyond -1000 and 1000, and beyond -1000
_LEVEL = {aten.sigmoid.default, aten.tanh.default, aten.erf.default}
_LEVEL_BELOW = {aten.exp.default, aten.expm1.default} | _LEVEL
_LARGEST = torch.finfo(torch.float32).max


def _drop_bounds(graph: Graph) -> None:
    """Leave out bounds that the shortcuts have built in.

    Bounds that only keep an angle finite go with their masks: see `shortcuts._known`. Far bounds
    of a function that is constant there go and leave their masks, which stop gradients.
    """
    masks = graph.find_nodes(op="call_function", target=aten.logical_and.default)
    for upper in graph.find_nodes(op="call_function", target=aten.clamp_max.default):
        below, bound = upper.args[0], _bound(upper, aten.clamp_max)
        angle = _users(upper) <= _WAVES and _is_single(upper) and bound == _LARGEST
        if angle and _bound(below, aten.clamp_min) == -bound:
            x = below.args[0]
            upper.replace_all_uses_with(x)
            for mask in [mask for mask in masks if _symmetric(mask) == (x, bound)]:
                for user in list(mask.users):
                    if user.target is aten.where.self and _is_zero(user.args[2]):
                        user.replace_all_uses_with(user.args[1])
        elif _users(upper) <= _LEVEL and bound >= 1000:
            upper.replace_all_uses_with(below)
    for lower in graph.find_nodes(op="call_function", target=aten.clamp_min.default):
        if _users(lower) <= _LEVEL_BELOW and _bound(lower, aten.clamp_min) <= -1000:
            lower.replace_all_uses_with(lower.args[0])
    graph.eliminate_dead_code()


def _find_sizes(graph: Graph) -> None:
    """where(x > 0, -x, x) is -|x|, and -c <= x <= c is |x| <= c."""
    for node in graph.find_nodes(op="call_function", target=aten.where.self):
        right, left, x = node.args
        negated = left.target is aten.neg.default and left.args == (x,)
        if negated and right.target is aten.gt.Scalar and right.args == (x, 0):
            node.target, node.args = aten.neg.default, (_size(x, node),)
    for mask in graph.find_nodes(op="call_function", target=aten.logical_and.default):
        if found := _symmetric(mask):
            x, bound = found
            mask.target, mask.args = aten.le.Scalar, (_size(x, mask), bound)
    graph.eliminate_dead_code()


def _size(x: Node, before: Node) -> Node:
    with before.graph.inserting_before(before), x.meta["val"].fake_mode:
        size = before.graph.call_function(aten.abs.default, (x,))
        size.meta["val"] = torch.abs(x.meta["val"])
    return size


def _users(node: Node) -> set[Any]:
    return {user.target for user in node.users}


def _bound(node: Any, clamp: Any) -> float:
    """The number that `node` is clamped at by `clamp`; NaN, which nothing equals, if by none."""
    known = node.target is clamp.default and isinstance(node.args[1], int | float)
    return node.args[1] if known else math.nan


def _symmetric(mask: Node) -> tuple[Node, float] | None:
    """`x` and c of a mask -c <= x <= c."""
    sides: Any = mask.args
    if [side.target for side in sides] != [aten.ge.Scalar, aten.le.Scalar]:
        return None
    (x, low), (other, high) = (side.args for side in sides)
    known = isinstance(low, int | float) and isinstance(high, int | float)
    return (x, high) if known and x is other and low == -high else None


def _is_single(node: Node) -> bool:
    return node.meta["val"].dtype == torch.float32


def _join_branches(graph: Graph) -> None:
    """where(m, a, 0) + where(m, 0, b) is where(m, a, b): what the derivative of `where` leaves."""
    for node in graph.find_nodes(op="call_function", target=aten.add.Tensor):
        sides = [side for side in node.args if getattr(side, "target", None) is aten.where.self]
        if len(sides) < 2 or sides[0].args[0] is not sides[1].args[0]:
            continue
        if _is_zero(sides[0].args[1]):
            sides.reverse()
        (mask, left, zero), (_, other_zero, right) = sides[0].args, sides[1].args
        if _is_zero(zero) and _is_zero(other_zero):
            node.target, node.args = aten.where.self, (mask, left, right)
    graph.eliminate_dead_code()


def _is_zero(node: Any) -> bool:
    if node.target is aten.full.default:  # what torch 2.14 makes of the other
        return node.args[1] == 0
    return node.target is aten.scalar_tensor.default and node.args[0] == 0


def _is_narrow(node: Any) -> bool:
    """Whether a shortcut of `shortcuts.NARROW_EXACT` and `NARROW_ROUGH` holds for `node`."""
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
    """Whether `node` is an exponential that a bound on its argument keeps finite."""
    exponential = node.target in (aten.exp.default, aten.expm1.default)
    return exponential and _bound(node.args[0], aten.clamp_max) <= 88


def _lowered(shortcut: shortcuts.Shortcut) -> Callable[[Any], Any]:
    """The shortcut as one operation of Inductor's, which computes its argument once.

    As nodes of the graph, each of its operations would compute its own, down to the input.
    """
    nodes = make_fx(lambda x: shortcut(x), select_decomp_table())(torch.empty(2)).graph.nodes

    def compute(x: Any) -> Any:
        known: dict[Node, Any] = {}

        def value(of: Any, dtype: torch.dtype = torch.float32) -> Any:
            if isinstance(of, Node):
                return known[of]
            return ops.constant(of, dtype) if isinstance(of, int | float) else of

        *operations, output = nodes
        for node in operations:
            if node.op == "placeholder":
                known[node] = x
            else:
                dtype = node.meta["val"].dtype
                dtype = dtype if dtype == torch.int32 else torch.float32
                known[node] = _OPERATIONS[node.target](*(value(of, dtype) for of in node.args))
        return value(output.args[0])

    lowering: Any = make_pointwise(compute)
    lowering._inductor_lowering_function = True
    lowering._inductor_lowering_output_metadata_is_input = 0
    return lowering


def _bitcast(x: Any, dtype: torch.dtype) -> Any:
    other = torch.float32 if dtype == torch.int32 else torch.int32
    return ops.to_dtype_bitcast(x, dtype, other)


_OPERATIONS: dict[Any, Callable[..., Any]] = {
    aten.abs.default: ops.abs,
    aten.alias.default: lambda x: x,
    aten.add.Tensor: ops.add,
    aten.div.Tensor: ops.truediv,
    aten.bitwise_and.Scalar: ops.bitwise_and,
    aten.__lshift__.Scalar: ops.bitwise_left_shift,
    aten.bitwise_xor.Tensor: ops.bitwise_xor,
    aten.clamp_max.default: ops.minimum,
    aten.clamp_min.default: ops.maximum,
    aten.ge.Scalar: ops.ge,
    aten.gt.Scalar: ops.gt,
    aten.lt.Scalar: ops.lt,
    aten.mul.Tensor: ops.mul,
    aten.neg.default: ops.neg,
    aten.relu.default: ops.relu,
    aten.round.default: ops.round,
    aten.scalar_tensor.default: lambda number: number,
    aten.sub.Tensor: ops.sub,
    aten.where.self: ops.where,
    aten.reciprocal.default: ops.reciprocal,
    aten.view.dtype: _bitcast,
}


class Shortcuts(CustomGraphPass):
    """Puts the functions of `shortcuts` in place of torch's, for float32.

    Args:
        rough: whether the results are rounded to half precision.
    """

    def __init__(self, rough: bool) -> None:
        self.rough = rough

    def __call__(self, graph: Graph) -> None:
        """Change `graph`, of aten operations, in place."""
        _drop_bounds(graph)
        _find_sizes(graph)
        _join_branches(graph)
        wide, narrow = (
            (shortcuts.ROUGH, shortcuts.NARROW_ROUGH)
            if self.rough
            else (shortcuts.EXACT, shortcuts.NARROW_EXACT)
        )
        if self.rough and not any(
            graph.find_nodes(op="call_function", target=other) for other in _EXPONENTIALS
        ):
            wide = wide | {aten.sigmoid.default: shortcuts.rough_sigmoid}
        # first those that look for an exponential
        for target in (aten.log1p.default, aten.erf.default, *wide):
            for node in graph.find_nodes(op="call_function", target=target):
                if not (_is_single(node) and _is_single(node.args[0])):
                    continue
                is_narrow = _is_narrow(node) or (not self.rough and _is_finite(node))
                shortcut = narrow.get(target) if is_narrow else None
                if shortcut := shortcut or wide.get(target):
                    with node.meta["val"].fake_mode:
                        operation = _lowered(shortcut)
                    with graph.inserting_before(node):
                        new = graph.call_function(operation, node.args)
                    new.meta["val"] = node.meta["val"]
                    node.replace_all_uses_with(new)
                    graph.erase_node(node)

    def uuid(self) -> bytes:
        """What Inductor's cache tells this version by."""
        return get_hash_for_files((__file__, shortcuts.__file__), str(self.rough))
