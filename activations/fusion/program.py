"""The operations of a graph, run in a few buffers that they use again and again.

New memory for each result would not be in the cache.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from . import simplify

aten = torch.ops.aten
_OWN = {
    simplify.mask,
    simplify.inverse,
    simplify.keep,
    simplify.convert,
}  # may write into an operand
_SIGNS = {aten.add.Tensor: 1, aten.add.Scalar: 1, aten.sub.Tensor: -1}


class Program:
    """A traced function of tensors, whose results of the first one's size lie in buffers.

    Args:
        module: the traced function.
        inputs: that it was traced with.
        fills: whether its first result is like the first input.
    """

    def __init__(self, module: GraphModule, inputs: Sequence[Tensor], fills: bool) -> None:
        self.module, self.like = module, _Result.of(inputs[0])
        _multiply_and_add(module, _Results(module).of(inputs))
        graph = module.graph
        results: Any = graph.output_node().args[0]
        self.single = isinstance(results, Node)
        first = results if self.single else results[0]
        self.dtypes = _share(graph, _Results(module).of(inputs), first if fills else None)
        self.copies = fills and "into" not in map(str, first.kwargs.values())
        module.recompile()

    def start(self) -> Callable[..., Any]:
        """The function with buffers of its own: `run(into, *inputs)` fills `into`."""
        shape, strides, _ = self.like
        options = [{"dtype": dtype, "device": "cpu"} for dtype in self.dtypes]
        buffers = [torch.empty_strided(shape, strides, **each) for each in options]

        def run(into: Tensor, *inputs: Tensor) -> Any:
            found = self.module.forward(*inputs, into, *buffers)
            if self.copies:
                into.copy_(found if self.single else found[0])
            return found

        return run


class _Result(NamedTuple):
    """What a node returns."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> "_Result":
        return cls(x.shape, x.stride(), x.dtype)


class _Results(Interpreter):
    """What the nodes return, and how elementwise operations take the place for it."""

    def of(self, inputs: Sequence[Tensor]) -> "_Results":
        self.found: dict[Node, _Result] = {}
        self.ways: dict[Node, tuple[Any, str]] = {}
        self.run(*inputs)
        return self

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = _Result.of(result)
            if n.op == "call_function" and (way := self._way(n, result)):
                self.ways[n] = way
        return result

    def _way(self, node: Node, result: Tensor) -> tuple[Any, str] | None:
        target: Any = node.target
        if target in _OWN or target is simplify.select:
            return target, "out"
        tags = getattr(target, "tags", ())
        if target is not aten.hardtanh_backward.default and torch.Tag.pointwise not in tags:
            return None
        quick = _quick(target)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        try:
            if quick is not target:
                quick(*args, **kwargs, out=torch.empty_like(result))
                return quick, "out"
        except TypeError:
            pass  # torch's function has no `out`, but the operation may
        packet = target.overloadpacket
        for overload in (getattr(packet, name) for name in packet.overloads()):
            outs = [each.name for each in overload._schema.arguments if each.is_out]
            if len(outs) == 1:
                return overload, outs[0]
        return None


def _quick(target: Any) -> Any:
    """The function of torch for an operation: calling it takes half the time."""
    known = isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"
    return getattr(torch, target.overloadpacket.__name__, target) if known else target


def _multiply_and_add(module: GraphModule, results: _Results) -> None:
    """Compute c + a b and c - a b at once, if one of the three at most is a single number."""
    graph, found = module.graph, results.found
    for total in graph.nodes:
        sign = _SIGNS.get(total.target)
        if sign is None or total.kwargs:
            continue
        for c, product in [total.args, total.args[::-1]][: 2 if sign > 0 else 1]:
            if getattr(product, "target", None) is not aten.mul.Tensor or len(product.users) > 1:
                continue
            a, b = product.args
            shapes = [found[each].shape if isinstance(each, Node) else () for each in (c, a, b)]
            if shapes.count(found[total].shape) < 2 or not isinstance(b, Node):
                continue
            if not isinstance(c, Node):
                name = f"number_{total.name}"
                number = torch.tensor(c, dtype=found[total].dtype, device="cpu")
                module.register_buffer(name, number)
                with graph.inserting_before(total):
                    c = graph.get_attr(name)
            total.target, total.args = aten.addcmul.default, (c, a, b)
            total.kwargs = {} if sign > 0 else {"value": -1}
            break
    graph.eliminate_dead_code()


def _share(graph: Graph, results: _Results, filled: Node | None) -> list[torch.dtype]:
    """Let results lie in buffers, and the one to be `filled` in its own place.

    Returns:
        What each buffer holds.
    """
    nodes, found = list(graph.nodes), results.found
    given = [node for node in nodes if node.op == "placeholder"]
    like, start = found[given[0]], nodes[len(given)]
    owner: dict[Node, Node] = {}  # of the memory in which a node's result lies
    last: dict[Node, int] = {}
    for place, node in enumerate(nodes):
        owner[node] = owner[node.args[0]] if _is_view(node) else node
        last |= dict.fromkeys((owner[each] for each in node.all_input_nodes), place)
    with graph.inserting_before(start):
        into = graph.placeholder("into")
    buffers: list[Node] = []
    dtypes: list[torch.dtype] = []
    of: dict[Node, int] = {}
    free: list[int] = []
    for place, node in enumerate(nodes):
        used = {owner[each] for each in node.all_input_nodes}
        ended = [of.pop(each) for each in used if each in of and last[each] == place]
        if node not in results.ways or found[node][:2] != like[:2]:
            free += ended
            node.target = _quick(node.target)
            continue
        if node.target is not simplify.select:
            free, ended = free + ended, []
        node.target, name = results.ways[node]
        dtype = found[node].dtype
        if node is filled and dtype == like.dtype:
            buffer = into
        else:
            k = next((k for k in reversed(free) if dtypes[k] == dtype), len(dtypes))
            if k == len(dtypes):
                with graph.inserting_before(start):
                    buffers.append(graph.placeholder(f"buffer_{k}"))
                dtypes.append(dtype)
            else:
                free.remove(k)
            of[node], buffer = k, buffers[k]
        node.kwargs = {**node.kwargs, name: buffer}
        free += ended
    return dtypes


def _is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(each.alias_info is not None for each in schema.returns)
