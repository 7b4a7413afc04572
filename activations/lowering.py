"""The elementary functions of `shortcuts` in the kernels that Inductor makes for the CPU."""

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


def _drop_bounds(graph: Graph) -> None:
    """Leave out bounds that only keep an angle finite, and their masks: see `shortcuts._known`."""
    largest = torch.finfo(torch.float32).max
    for upper in graph.find_nodes(op="call_function", target=aten.clamp_max.default):
        lower, bound = upper.args
        if bound != largest or {user.target for user in upper.users} - _WAVES:
            continue
        if lower.target is not aten.clamp_min.default or lower.args[1] != -largest:
            continue
        x = lower.args[0]
        upper.replace_all_uses_with(x)
        for mask in graph.find_nodes(op="call_function", target=aten.logical_and.default):
            if [side.args for side in mask.args] != [(x, -largest), (x, largest)]:
                continue
            for chosen in [user for user in mask.users if user.target is aten.where.self]:
                chosen.replace_all_uses_with(chosen.args[1])
    graph.eliminate_dead_code()


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
    return node.target is aten.scalar_tensor.default and node.args[0] == 0


def _is_narrow(node: Any) -> bool:
    """Whether the argument of `node` is -|x|, or exp(-|x|) for log1p."""
    if node.target is aten.log1p.default:
        return node.args[0].target is aten.exp.default and _is_narrow(node.args[0])
    below = node.args[0]
    if below.target is aten.where.self:  # x > 0, -x, x
        right, left, x = below.args
        negated = left.target is aten.neg.default and left.args == (x,)
        return negated and right.target is aten.gt.Scalar and right.args == (x, 0)
    return below.target is aten.neg.default and below.args[0].target is aten.abs.default


def _lowered(shortcut: shortcuts.Shortcut) -> Callable[[Any], Any]:
    """The shortcut as one operation of Inductor's, which computes its argument once.

    As nodes of the graph, each of its operations would compute its own, down to the input.
    """
    nodes = make_fx(lambda x: shortcut(x), select_decomp_table())(torch.empty(2)).graph.nodes

    def compute(x: Any) -> Any:
        known: dict[Node, Any] = {}

        def value(of: Any) -> Any:
            if isinstance(of, Node):
                return known[of]
            return ops.constant(of, torch.float32) if isinstance(of, int | float) else of

        *operations, output = nodes
        for node in operations:
            if node.op == "placeholder":
                known[node] = x
            else:
                known[node] = _OPERATIONS[node.target](*map(value, node.args))
        return value(output.args[0])

    lowering: Any = make_pointwise(compute)
    lowering._inductor_lowering_function = True
    lowering._inductor_lowering_output_metadata_is_input = 0
    return lowering


_OPERATIONS: dict[Any, Callable[..., Any]] = {
    aten.abs.default: ops.abs,
    aten.alias.default: lambda x: x,
    aten.add.Tensor: ops.add,
    aten.div.Tensor: ops.truediv,
    aten.exp.default: ops.exp,
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
    torch.ops.prims.convert_element_type.default: ops.to_dtype,
    aten.view.dtype: lambda x, dtype: ops.to_dtype_bitcast(x, dtype, torch.int32),
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
        for target in (aten.log1p.default, *wide):
            for node in graph.find_nodes(op="call_function", target=target):
                if node.meta["val"].dtype != torch.float32:
                    continue
                shortcut = narrow.get(target) if _is_narrow(node) else None
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
