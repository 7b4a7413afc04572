"""Checks of options; those of the command line have been checked by their types before."""

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from torch import nn

_KINDS = {int: Integral, float: Real, str: (str, os.PathLike), list: Sequence, tuple: Sequence}
_NAMES = {int: "an integer", float: "a number", bool: "True or False", str: "text",
          NoneType: "None", nn.Module: "a torch.nn.Module", Callable: "a class or a function",
          dict: "a mapping"}  # fmt: skip


def check_types(options: Any) -> None:
    """Raise a ValueError with the name of a field whose value is not of the field's type."""
    for field in fields(options):
        if field.init and not _fits(value := getattr(options, field.name), field.type):
            raise ValueError(f"{field.name} must be {_named(field.type)}, got {value!r}")


def check_range(low: float, high: float, **values: float) -> None:
    """Raise a ValueError with the name of a value that is not in [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            number = "an integer" if isinstance(value, int) else "a number"
            limit = f">= {low}" if high == float("inf") else f"from {low} to {high}"
            raise ValueError(f"{name} must be {number} {limit}, got {value!r}")


def check_part(*, zero: bool = False, **values: float) -> None:
    """Raise a ValueError with the name of a value that is not between 0 and 1, or may be 0."""
    for name, value in values.items():
        if not (0 < value < 1 or (zero and value == 0)):
            lie = "be 0 or lie" if zero else "lie"
            raise ValueError(f"{name} must {lie} between 0 and 1, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind is Any or kind is Callable:
        return kind is Any or callable(value)
    if isinstance(value, bool):  # an integer to Python
        return kind is bool
    if not isinstance(value, _KINDS.get(kind, kind)) or (inner and isinstance(value, str)):
        return False
    if not inner:
        return True
    if kind is dict:
        return all(_fits(key, inner[0]) and _fits(value[key], inner[1]) for key in value)
    each = inner if kind is tuple else inner * len(value)
    return len(value) == len(each) and all(map(_fits, value, each))


def _named(hint: Any) -> str:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType, Literal):
        names = [repr(each) if isinstance(each, str) else _named(each) for each in inner]
        return f"{', '.join(names[:-1])} or {names[-1]}"
    if kind is tuple:
        return f"({', '.join(map(_named, inner))})"
    if kind in (Callable, dict):
        return _NAMES[kind]
    return f"a list, each {_named(inner[0])}" if inner else _NAMES.get(hint, str(hint))
