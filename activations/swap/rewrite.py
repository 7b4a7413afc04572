"""Change the calls of activations in a module's methods.

`F.relu(x)` becomes the call of a module, `self.relu(x)`. Where a module holds one activation for
each call, `self.relu(x)` becomes `self.relu(x, call=1)`. The method is compiled again from its
source with those calls changed; all other code in it stays. The module gets a subclass of its class
that holds the new method, and can be copied and pickled.
"""

import ast
import copy
import functools
import linecache
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from .locate import End, arguments, end_of, method_around


class Edit(NamedTuple):
    """How one expression changes.

    Attributes:
        child: the child that is called in place of a function; None where a module is called.
        calls: the numbers that the expression passes to it as `call`, in the order of its
            evaluations within one call of the method; empty where it passes none.
    """

    child: str | None
    calls: tuple[int, ...] = ()


def rewrite(module: nn.Module, edits: Mapping[str, Mapping[End, Edit]]) -> None:
    """Change expressions in the methods of `module`.

    Args:
        module: changed in place: its class becomes a subclass with the new methods.
        edits: for each method, the changes by the end of the call's expression.
    """
    kind = type(module)
    base, sources = vars(kind).get("_rewritten", (kind, ()))
    new = {method: _source(getattr(kind, method), ends) for method, ends in edits.items()}
    module.__class__ = _subclass(base, tuple({**dict(sources), **new}.items()))


def _source(function: types.FunctionType, edits: Mapping[End, Edit]) -> str:
    """Source of a class with the method `function`, its calls changed."""
    lines = linecache.getlines(function.__code__.co_filename, function.__globals__)
    method = copy.deepcopy(method_around(tuple(lines), next(iter(edits))[0]))
    assert method is not None
    method.decorator_list = []
    if not isinstance(method.body[-1], ast.Return):  # its end returns, too
        method.body.append(ast.Return())
    method = _Replace(arguments(method)[0].arg, edits).visit(method)
    # each call of the method starts anew
    start = int(ast.get_docstring(method) is not None)
    method.body[start:start] = [
        ast.Assign([ast.Name(_numbers(end))], ast.parse(f"iter({edit.calls})", mode="eval").body)
        for end, edit in edits.items()
        if len(edit.calls) > 1
    ]
    names = [ast.arg(n) for n in function.__code__.co_freevars if n != "__class__"]
    outer = ast.arguments([], names, None, [], [], None, [])
    # A class of the same name gives self.__private its meaning. A function around it takes the
    # names that the method takes from the scope around its class.
    name = function.__qualname__.split(".")[-2]
    body: list[ast.stmt] = [ast.ClassDef(name, [], [], [method], [])]
    if name not in function.__code__.co_freevars:
        body.insert(0, ast.Global([name]))
    scope = ast.FunctionDef("scope", outer, body, [])
    return ast.unparse(ast.fix_missing_locations(ast.Module([scope], [])))


def _numbers(end: End) -> str:
    """The variable with the numbers of the expression that ends there."""
    return "_calls_{}_{}".format(*end)


def _whole_loops(out: Any, *loops: Any) -> Any:
    """`out`, if each loop that began has made all of its calls; `loops` are (numbers, first)."""
    for numbers, first in loops:
        if next(numbers, first) != first:
            raise RuntimeError(
                "a loop made fewer calls of its activation than when the activations were swapped, "
                "so that they cannot be told apart (layers that are skipped at random?): give the "
                "network one module for each layer, or exclude the call"
            )
    return out


class _Replace(ast.NodeTransformer):
    def __init__(self, owner: str, edits: Mapping[End, Edit]) -> None:
        self.owner, self.edits = owner, edits
        self.loops = [(_numbers(end), e.calls[0]) for end, e in edits.items() if e.calls[1:]]
        self.depth = 0  # of functions, one within the other

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """A function in the method has returns of its own."""
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        """What the method returns is made by whole loops."""
        self.generic_visit(node)
        if self.loops and self.depth == 1:
            loops = ", ".join(f"({numbers}, {first})" for numbers, first in self.loops)
            call = ast.parse(f"{self.owner}._whole_loops(None, {loops})", mode="eval").body
            assert isinstance(call, ast.Call)
            call.args[0] = node.value or call.args[0]
            node.value = call
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`F.relu(x)`, `F.relu(input=x)` and `x.relu()` become `self.relu(x)`; then the number."""
        end = end_of(node)
        self.generic_visit(node)
        if end not in self.edits:
            return node
        child, calls = self.edits[end]
        if child is not None:
            named = [keyword.value for keyword in node.keywords if keyword.arg == "input"]
            of = node.func.value if isinstance(node.func, ast.Attribute) else None
            x = [*node.args, *named, of]
            node = ast.Call(ast.Attribute(ast.Name(self.owner), child), [x[0]], [])
        if calls:
            number = f"next({_numbers(end)}, None)" if calls[1:] else str(calls[0])
            node.keywords.append(ast.keyword("call", ast.parse(number, mode="eval").body))
        return node


def _function(function: types.FunctionType, source: str) -> types.FunctionType:
    """`function` with the code of the method of the same name in `source`."""
    file = f"<rewritten {function.__module__}.{function.__qualname__} {hash(source):x}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    code = compile(source, file, "exec")
    for name in ("scope", function.__qualname__.split(".")[-2], function.__name__):
        nested = (c for c in code.co_consts if isinstance(c, types.CodeType))
        code = next(c for c in nested if c.co_name == name)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    closure = tuple(cells[name] for name in code.co_freevars)
    new = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, closure
    )
    new.__kwdefaults__ = function.__kwdefaults__
    return new


@functools.cache
def _subclass(base: type[nn.Module], sources: tuple[tuple[str, str], ...]) -> type[nn.Module]:
    body: dict[str, Any] = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    body |= {"_rewritten": (base, sources), "__reduce_ex__": _reduce}
    body["_whole_loops"] = staticmethod(_whole_loops)
    body |= {name: _function(getattr(base, name), source) for name, source in sources}
    return type(base.__name__, (_Quiet, base), body)


class _Quiet:
    """Comes first among the bases: a network's registry of its classes must not get the new one."""

    def __init_subclass__(cls, **options: Any) -> None:
        pass


def _reduce(module: nn.Module, protocol: Any) -> Any:
    """For pickle and copy: the subclass is made again from its base and the sources."""
    made = object.__reduce_ex__(module, protocol)
    return _new, module._rewritten, *made[2:]


def _new(base: type[nn.Module], sources: tuple[tuple[str, str], ...]) -> nn.Module:
    kind = _subclass(base, sources)
    return kind.__new__(kind)
