"""Calls of activation functions that the source of a network holds and no trial run saw."""

import ast
import functools
import linecache
import re
import types
from collections import ChainMap, Counter
from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .kinds import GATE_FUNCTIONS, NAME_OF, kind_of
from .locate import End, arguments, end_of, method_from
from .trace import Call

# in the graph of a scripted function
_SCRIPTED = {*NAME_OF.values(), "erf"}


def unseen(
    model: nn.Module, calls: Collection[Call], counts: Counter[str]
) -> Iterator[tuple[str, str, str]]:
    """Place and function of each such call, and why it was not seen; `counts` are of the trial."""
    seen = {(call.place.owner, call.place.point) for call in calls}
    lines = {point for _, point in seen if isinstance(point, str)}  # that cannot be rewritten
    for name, module in model.named_modules():
        if kind_of(module):
            continue
        missed = "in a branch that no trial took" if counts[name] else "in a module never called"
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
                for end, line, call in _calls(function):
                    called, scripted = _activation(call, function, module)
                    why = "torch.jit.script hides what it calls" if scripted else missed
                    refused = any(text.startswith(f"{file}:{line}: ") for text in lines)
                    if called and (name, (method, end)) not in seen and not refused:
                        yield f"{name}{'.' if name else ''}{method}, line {line}", called, why


@functools.lru_cache(maxsize=1024)
def _calls(function: types.FunctionType) -> list[tuple[End, int, ast.Call]]:
    """End, line and expression of the calls in a method."""
    code = function.__code__
    lines = tuple(linecache.getlines(code.co_filename, function.__globals__))
    method = method_from(lines, code.co_firstlineno) if lines else None
    if method is None or method.name != function.__name__ or not arguments(method):
        return []
    calls = (node for node in ast.walk(method) if isinstance(node, ast.Call))
    return [(end_of(call), call.lineno, call) for call in calls]


def _activation(
    call: ast.Call, function: types.FunctionType, module: nn.Module
) -> tuple[str | None, bool]:
    """The activation function that is called, if it is one, and whether torch has scripted it."""
    names = ChainMap({function.__code__.co_varnames[0]: module}, function.__globals__)
    value = _value(call.func, names)
    if isinstance(value, torch.jit.ScriptFunction):
        inside = set(re.findall(r"aten::(\w+)", str(value.inlined_graph)))
        return (str(value.name) if inside & _SCRIPTED else None), True
    if value is None and isinstance(call.func, ast.Attribute) and not call.args:
        of_module = isinstance(_value(call.func.value, names), nn.Module)
        value = None if of_module else getattr(Tensor, call.func.attr, None)  # x.relu()
    name = NAME_OF.get(value) if callable(value) and isinstance(value, Hashable) else None
    return (name if name not in GATE_FUNCTIONS else None), False


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        of = _value(node.value, names)
        if isinstance(of, types.ModuleType | type):
            return getattr(of, node.attr, None)
        if isinstance(of, nn.Module) and node.attr in of._modules:
            return of._modules[node.attr]
        return getattr(of, "__dict__", {}).get(node.attr)  # a property would run code
    return None
