"""Where in the source code of a network an activation is called, a module or `F.relu`.

`trace` asks this for every call, and calls from different locations count as different calls.
`rewrite` needs the location, to change the expression there.
"""

import ast
import functools
import itertools
import linecache
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from .kinds import LIBRARIES, plain

End = tuple[int, int]  # line and column where a call's expression ends


class Location(NamedTuple):
    """Where an activation is called.

    Attributes:
        owner: the name of the module whose method makes the call.
        point: the method and the end of the call's expression; file and line if `why` is set.
        why: why the call cannot be rewritten; empty where it can.
    """

    owner: str
    point: tuple[str, End] | str
    why: str = ""


def locate(
    frame: types.FrameType, called: str | nn.Module, modules: dict[int, str], running: str
) -> tuple[Location, types.FrameType | None]:
    """The location from which `frame` and its callees called the activation `called`.

    Args:
        frame: the innermost frame. Frames of torch are skipped, except those of its modules.
        called: a function's name, such as relu, or a module.
        modules: the names of the network's modules by id.
        running: the name of the module that is running.

    Returns:
        The location, and the frame of the method; None where the call cannot be rewritten.
    """
    # torch's functions call functions for the network; it calls a module itself
    passed: list[types.FrameType] = []
    while frame.f_back and (
        _calls_modules(frame) or (isinstance(called, str) and _of_a_library(frame, modules))
    ):
        passed.append(frame)
        frame = frame.f_back
    code = frame.f_code
    lines = linecache.getlines(code.co_filename, frame.f_globals)
    text = lines[frame.f_lineno - 1].strip() if lines else "(its source is not known)"
    point = f"{code.co_filename}:{frame.f_lineno}: {text}"

    def refused(why: str) -> tuple[Location, None]:
        return Location(running, point, why), None

    if not lines:
        return refused("its source is not known")
    method = method_around(tuple(lines), frame.f_lineno)
    if method is None or not arguments(method):
        return refused("it is not in a method")
    caller: types.FrameType | None = frame
    position = (method.name, code.co_filename)
    while caller and (caller.f_code.co_name, caller.f_code.co_filename) != position:
        caller = caller.f_back  # from a lambda or comprehension to its method
    owner = caller and caller.f_locals.get(arguments(method)[0].arg)
    if caller is None or not isinstance(owner, nn.Module) or id(owner) not in modules:
        return refused("it is not in a method of one of the network's modules")
    attribute = method.name
    if attribute.startswith("__") and not attribute.endswith("__"):  # a private name
        attribute = f"_{caller.f_code.co_qualname.split('.')[-2].lstrip('_')}{attribute}"
    if getattr(getattr(type(owner), attribute, None), "__code__", None) is not caller.f_code:
        named = ", ".join(f"@{ast.unparse(each)}" for each in method.decorator_list)
        if named:
            return refused(f"the method {method.name} is decorated ({named})")
        return refused(f"the method {method.name} is overridden")
    if not _unchanged(caller.f_code, tuple(lines)):
        return refused("its source has changed since it was imported")
    positions = itertools.islice(code.co_positions(), frame.f_lasti // 2, None)
    _, end_line, _, end_column = next(positions)
    end = (end_line or 0, end_column or 0)
    call = next((c for c in ast.walk(method) if isinstance(c, ast.Call) and end_of(c) == end), None)
    if call is None or not (_calls(call, called, frame) or _leads_to(call, called, passed, frame)):
        return refused("the function is not called by its own name")
    return Location(modules[id(owner)], (attribute, end)), caller


def _of_a_library(frame: types.FrameType, modules: dict[int, str]) -> bool:
    """Whether it is a function of torch, or an activation that no module of the network holds."""
    name = f"{frame.f_globals.get('__name__')}."
    inside = name.startswith(("torch.", *LIBRARIES))
    return inside and id(frame.f_locals.get("self")) not in modules


def _calls_modules(frame: types.FrameType) -> bool:
    return frame.f_globals.get("__name__") == nn.Module.__module__


@functools.lru_cache(maxsize=64)
def _methods(lines: tuple[str, ...]) -> list[ast.FunctionDef]:
    tree = ast.parse("".join(lines))
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return [item for node in classes for item in node.body if isinstance(item, ast.FunctionDef)]


def method_around(lines: tuple[str, ...], line: int) -> ast.FunctionDef | None:
    """The innermost method that holds `line`, if there is one."""
    around = (m for m in _methods(lines) if m.lineno <= line <= (m.end_lineno or 0))
    return max(around, key=lambda method: method.lineno, default=None)


def method_from(lines: tuple[str, ...], line: int) -> ast.FunctionDef | None:
    """The method that begins on `line`, with its first decorator."""
    begins = ((min([m.lineno, *(d.lineno for d in m.decorator_list)]), m) for m in _methods(lines))
    return next((method for begin, method in begins if begin == line), None)


def arguments(method: ast.FunctionDef) -> list[ast.arg]:
    """Its positional arguments, `self` first."""
    return method.args.posonlyargs + method.args.args


def end_of(node: ast.expr) -> End:
    """Line and column where the expression ends."""
    return (node.end_lineno or 0, node.end_col_offset or 0)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """`code` and all code objects in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


@functools.lru_cache(maxsize=256)
def _unchanged(code: types.CodeType, lines: tuple[str, ...]) -> bool:
    """Whether `code` was compiled from `lines`."""

    def content(code: types.CodeType) -> tuple[Any, ...]:
        values = [value for value in code.co_consts if not isinstance(value, types.CodeType)]
        return code.co_qualname, code.co_firstlineno, code.co_code, code.co_names, values

    whole = compile("".join(lines), code.co_filename, "exec", dont_inherit=True)
    return any(content(part) == content(code) for part in _codes(whole))


def _calls(call: ast.Call, called: str | nn.Module, frame: types.FrameType) -> bool:
    """Whether `call` is a plain call of `called`, a module or an activation function's name."""
    if isinstance(called, nn.Module):
        return _value(call.func, frame) is called
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return False
    function = _value(call.func, frame)
    if function is None or isinstance(getattr(function, "__self__", None), Tensor):
        # x.relu(), or self.conv(x).relu()
        return (
            isinstance(call.func, ast.Attribute)
            and call.func.attr.rstrip("_") == called
            and not call.args
        )
    function = function.func if isinstance(function, functools.partial) else function
    return getattr(function, "__name__", "").strip("_") == called  # F.threshold is _threshold


def _leads_to(
    call: ast.Call, called: str | nn.Module, passed: list[types.FrameType], frame: types.FrameType
) -> bool:
    """Whether `call` calls what is nothing but `called`: `nn.ReLU()(x)`, timm's `gelu(x)`."""
    between = [frame for frame in passed if not _calls_modules(frame)]
    if isinstance(called, nn.Module) or not between or len(call.args) != 1:
        return False
    module = between[-1].f_locals.get("self")
    name = type(module).__name__ if isinstance(module, nn.Module) else between[-1].f_code.co_name
    starred = isinstance(call.args[0], ast.Starred)
    builtin = isinstance(call.func, ast.Name) and _value(call.func, frame) is None  # list(...)
    return plain(name).startswith(plain(called)) and not starred and not builtin


def _value(node: ast.expr, frame: types.FrameType) -> Any:
    """The value of a dotted name in `frame`; None for any other expression."""
    if isinstance(node, ast.Name):
        return {**frame.f_globals, **frame.f_locals}.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _value(node.value, frame)) is not None:
        return getattr(owner, node.attr, None)
    return None
