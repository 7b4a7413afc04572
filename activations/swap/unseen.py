"""Calls of activation functions that the source of a network holds and no trial run made."""

import ast
import functools
import linecache
import types
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from .kinds import GATE_FUNCTIONS, NAME_OF, kind_of
from .locate import End, arguments, end_of, method_around
from .trace import Call


def unseen(
    model: nn.Module, calls: Collection[Call], counts: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Place and function of each such call in the modules that ran, as by `counts`."""
    seen = {(call.place.owner, call.place.point) for call in calls}
    lines = {point for _, point in seen if isinstance(point, str)}  # that cannot be rewritten
    for name, module in model.named_modules():
        if not counts[name] or kind_of(module):
            continue
        replaced: set[str] = set()  # methods of a base that a subclass writes anew
        for kind in type(module).__mro__:
            if kind.__module__.startswith("torch."):
                break
            for method, function in vars(kind).items():
                if not isinstance(function, types.FunctionType) or method in replaced:
                    continue
                if not {"super", method} & {*function.__code__.co_names}:
                    replaced.add(method)
                file = function.__code__.co_filename
                for end, line, called in _calls(function):
                    refused = any(text.startswith(f"{file}:{line}: ") for text in lines)
                    if (name, (method, end)) not in seen and not refused:
                        yield f"{name}{'.' if name else ''}{method}, line {line}", called


@functools.lru_cache(maxsize=1024)
def _calls(function: types.FunctionType) -> list[tuple[End, int, str]]:
    """End, line and name of the calls of activation functions in a method."""
    code = function.__code__
    lines = tuple(linecache.getlines(code.co_filename, function.__globals__))
    method = method_around(lines, code.co_firstlineno + 1) if lines else None
    if method is None or method.name != function.__name__ or not arguments(method):
        return []
    return [
        (end_of(node), node.lineno, name)
        for node in ast.walk(method)
        if isinstance(node, ast.Call) and (name := _activation(node, function))
    ]


def _activation(call: ast.Call, function: types.FunctionType) -> str | None:
    value = _value(call.func, function.__globals__)
    name = NAME_OF.get(value) if callable(value) else None
    return name if name not in GATE_FUNCTIONS else None


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(_value(node.value, names), node.attr, None)
    return None
