"""Make `F.relu(x)` inside a module's method a call of a module, `self.relu(x)`.

The method is compiled again from its source with those calls replaced; all other code in it stays.
The module gets a subclass of its class that holds the new method, and can be copied and pickled.
"""

import ast
import copy
import functools
import linecache
import types
from collections.abc import Mapping
from typing import Any

from torch import nn

from .locate import End, arguments, end_of, method_around


def rewrite(module: nn.Module, calls: Mapping[str, Mapping[End, str]]) -> None:
    """Let `module` call children of its own where its methods called functions.

    Args:
        module: changed in place: its class becomes a subclass with the new methods.
        calls: for each method, the child's name by the end of the call's expression.
    """
    kind = type(module)
    base, sources = getattr(kind, "_rewritten", (kind, ()))
    new = {method: _source(getattr(kind, method), ends) for method, ends in calls.items()}
    module.__class__ = _subclass(base, tuple({**dict(sources), **new}.items()))


def _source(function: types.FunctionType, attributes: Mapping[End, str]) -> str:
    """Source of a class with the method `function`, its calls replaced."""
    lines = linecache.getlines(function.__code__.co_filename, function.__globals__)
    method = copy.deepcopy(method_around(tuple(lines), next(iter(attributes))[0]))
    assert method is not None
    method.decorator_list = []
    method = _Replace(arguments(method)[0].arg, attributes).visit(method)
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


class _Replace(ast.NodeTransformer):
    def __init__(self, owner: str, attributes: Mapping[End, str]) -> None:
        self.owner, self.attributes = owner, attributes

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`F.relu(x)`, `F.relu(input=x)` and `x.relu()` become `self.relu(x)`."""
        attribute = self.attributes.get(end_of(node))
        self.generic_visit(node)
        if attribute is None:
            return node
        named = [keyword.value for keyword in node.keywords if keyword.arg == "input"]
        x = [*node.args, *named, node.func.value if isinstance(node.func, ast.Attribute) else None]
        return ast.Call(ast.Attribute(ast.Name(self.owner), attribute), [x[0]], [])


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
    body |= {name: _function(getattr(base, name), source) for name, source in sources}
    return type(base.__name__, (base,), body)


def _reduce(module: nn.Module, protocol: Any) -> Any:
    """For pickle and copy: the subclass is made again from its base and the sources."""
    made = object.__reduce_ex__(module, protocol)
    return _new, module._rewritten, *made[2:]


def _new(base: type[nn.Module], sources: tuple[tuple[str, str], ...]) -> nn.Module:
    kind = _subclass(base, sources)
    return kind.__new__(kind)
