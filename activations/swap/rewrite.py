"""Make `F.relu(x)` inside a module's method a call of a module, `self.relu(x)`.

The method is compiled anew from its source with those calls replaced; everything else in it, its
branches and its loops, stays. The module gets a subclass of its class that holds the new method.
"""

import ast
import copy
import functools
import itertools
import linecache
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

End = tuple[int, int]  # line and column where a call's expression ends


@dataclass(frozen=True)
class Location:
    """Where a function is called: in a method of the module `owner`, by an expression.

    `why` says why the call cannot be rewritten, and is empty where it can.
    """

    where: str
    why: str = ""
    owner: str = ""
    method: str = ""
    end: End = (0, 0)

    @property
    def key(self) -> Any:
        """What distinguishes this location from others of the same owner."""
        return self.where if self.why else (self.method, self.end)


def locate(frame: types.FrameType, name: str, modules: dict[int, str]) -> Location:
    """The location from which `frame` and its callees called the activation function `name`.

    Args:
        frame: the innermost frame; those of torch are passed over, save its own modules.
        name: the function's name, such as relu.
        modules: the network's modules, their names by id.
    """
    while _within_torch(frame) and frame.f_back:
        frame = frame.f_back
    code = frame.f_code
    positions = itertools.islice(code.co_positions(), frame.f_lasti // 2, None)
    _, end_line, _, end_column = next(positions)
    lines = linecache.getlines(code.co_filename, frame.f_globals)
    text = lines[frame.f_lineno - 1].strip() if lines else "(its source is not known)"
    refused = functools.partial(Location, f"{code.co_filename}:{frame.f_lineno}: {text}")
    method = _method_around(tuple(lines), frame.f_lineno)
    if not lines:
        return refused("its source is not known")
    if method is None or not _arguments(method):
        return refused("it is not in a method")
    caller: types.FrameType | None = frame
    while caller and (caller.f_code.co_name, caller.f_code.co_filename) != (
        method.name,
        code.co_filename,
    ):
        caller = caller.f_back
    owner = caller and caller.f_locals.get(_arguments(method)[0].arg)
    if caller is None or not isinstance(owner, nn.Module) or id(owner) not in modules:
        return refused("it is not in a method of one of the network's modules")
    attribute = method.name
    if attribute.startswith("__") and not attribute.endswith("__"):  # a private name
        attribute = f"_{caller.f_code.co_qualname.split('.')[-2].lstrip('_')}{attribute}"
    if getattr(getattr(type(owner), attribute, None), "__code__", None) is not caller.f_code:
        return refused(f"the method {method.name} is decorated or overridden")
    if not _unchanged(caller.f_code, tuple(lines)):
        return refused("its source has changed since it was imported")
    end = (end_line or 0, end_column or 0)
    call = next((c for c in ast.walk(method) if isinstance(c, ast.Call) and _end(c) == end), None)
    if call is None or not _calls(call, name, frame):
        return refused("the function is not called by its own name")
    return refused("", modules[id(owner)], attribute, end)


def _within_torch(frame: types.FrameType) -> bool:
    module = f"{frame.f_globals.get('__name__')}."
    return module.startswith("torch.") and not module.startswith("torch.nn.modules.")


@functools.lru_cache(maxsize=64)
def _methods(lines: tuple[str, ...]) -> list[ast.FunctionDef]:
    tree = ast.parse("".join(lines))
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return [item for node in classes for item in node.body if isinstance(item, ast.FunctionDef)]


def _method_around(lines: tuple[str, ...], line: int) -> ast.FunctionDef | None:
    around = (m for m in _methods(lines) if m.lineno <= line <= (m.end_lineno or 0))
    return max(around, key=lambda method: method.lineno, default=None)


def _arguments(method: ast.FunctionDef) -> list[ast.arg]:
    return method.args.posonlyargs + method.args.args


@functools.lru_cache(maxsize=256)
def _unchanged(code: types.CodeType, lines: tuple[str, ...]) -> bool:
    """Whether `lines` are what `code` was made of."""
    found = [compile("".join(lines), code.co_filename, "exec", dont_inherit=True)]
    for other in found:
        if (other.co_qualname, other.co_firstlineno) == (code.co_qualname, code.co_firstlineno):
            return (other.co_code, other.co_names) == (code.co_code, code.co_names) and [
                const for const in other.co_consts if not isinstance(const, types.CodeType)
            ] == [const for const in code.co_consts if not isinstance(const, types.CodeType)]
        found += [const for const in other.co_consts if isinstance(const, types.CodeType)]
    return False


def _end(node: ast.expr) -> End:
    return (node.end_lineno or 0, node.end_col_offset or 0)


def _calls(call: ast.Call, name: str, frame: types.FrameType) -> bool:
    """Whether `call` is a plain call of the activation function `name`."""
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return False
    function = _value(call.func, frame)
    if function is None or isinstance(getattr(function, "__self__", None), Tensor):
        # x.relu(), or self.conv(x).relu()
        return (
            isinstance(call.func, ast.Attribute)
            and call.func.attr.rstrip("_") == name
            and not call.args
        )
    function = function.func if isinstance(function, functools.partial) else function
    return getattr(function, "__name__", "").rstrip("_") == name


def _value(node: ast.expr, frame: types.FrameType) -> Any:
    """The value of a dotted name in `frame`; None for any other expression."""
    if isinstance(node, ast.Name):
        return {**frame.f_globals, **frame.f_locals}.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _value(node.value, frame)) is not None:
        return getattr(owner, node.attr, None)
    return None


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
    method = copy.deepcopy(_method_around(tuple(lines), next(iter(attributes))[0]))
    assert method is not None
    method.decorator_list = []
    method = _Replace(_arguments(method)[0].arg, attributes).visit(method)
    names = [ast.arg(n) for n in function.__code__.co_freevars if n != "__class__"]
    arguments = ast.arguments([], names, None, [], [], None, [])
    # in a class of the same name, for self.__private; in a function, for what it closes over
    name = function.__qualname__.split(".")[-2]
    outside = [] if name in function.__code__.co_freevars else [ast.Global([name])]
    scope = ast.FunctionDef(
        "scope", arguments, [*outside, ast.ClassDef(name, [], [], [method], [])], []
    )
    return ast.unparse(ast.fix_missing_locations(ast.Module([scope], [])))


class _Replace(ast.NodeTransformer):
    def __init__(self, owner: str, attributes: Mapping[End, str]) -> None:
        self.owner, self.attributes = owner, attributes

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`F.relu(x)`, `F.relu(input=x)` and `x.relu()` become `self.relu(x)`."""
        attribute = self.attributes.get(_end(node))
        self.generic_visit(node)
        if attribute is None:
            return node
        named = [keyword.value for keyword in node.keywords if keyword.arg == "input"]
        x = [*node.args, *named, node.func.value if isinstance(node.func, ast.Attribute) else None]
        return ast.Call(ast.Attribute(ast.Name(self.owner), attribute), [x[0]], [])


def _function(function: types.FunctionType, source: str) -> types.FunctionType:
    """`function` with the code of its namesake in `source`."""
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
    methods = {name: _function(getattr(base, name), source) for name, source in sources}
    about = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    pickled = {"_rewritten": (base, sources), "__reduce_ex__": _reduce}
    body = about | pickled | methods
    return types.new_class(base.__name__, (base,), {}, lambda space: space.update(body))


def _reduce(module: nn.Module, protocol: Any) -> Any:
    """For pickle and copy: the subclass is made again from its base and the sources."""
    made = object.__reduce_ex__(module, protocol)
    return _new, module._rewritten, *made[2:]


def _new(base: type[nn.Module], sources: tuple[tuple[str, str], ...]) -> nn.Module:
    kind = _subclass(base, sources)
    return kind.__new__(kind)
