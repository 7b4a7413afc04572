"""Formula: a function of one's own, written as text."""

import ast
import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from activations.activation import Activation, Channels, expm1, finite, gate, inside
from activations.fusion.kernel import Expression

Tree = str | float | tuple  # "x" or a constant's name; a number; (operator, tree, ...)


def _range(x: Tensor) -> Tensor:
    """`x` where its exponential is finite; the gradient is 0 outside."""
    bound = math.log(torch.finfo(x.dtype).max) - 1e-4
    return x.clamp(-bound, bound)


def _sinh(x: Tensor) -> Tensor:
    """By exponentials: the older exporter to ONNX has no operator for it, nor for cosh."""
    x = _range(x)
    return (expm1(x) - expm1(-x)) / 2


def _cosh(x: Tensor) -> Tensor:
    """1 + 2 sinh(x / 2)^2, whose slope is exact near 0."""
    return 1 + 2 * _sinh(_range(x) / 2) ** 2


def _asinh(x: Tensor) -> Tensor:
    """The inverse of sinh; the older exporter to ONNX has no operator for it either."""
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():  # pyright: ignore
        return x.sign() * torch.log(x.abs() + torch.sqrt(x * x + 1))
    return torch.asinh(x)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "+": torch.add, "-": torch.sub, "*": torch.mul, "/": torch.div, "**": torch.pow,
    "max": torch.maximum, "min": torch.minimum, "neg": torch.neg, "abs": torch.abs,
    "sqrt": torch.sqrt, "log": torch.log, "log1p": torch.log1p,
    "exp": lambda x: torch.exp(_range(x)), "expm1": lambda x: expm1(_range(x)),
    "sinh": _sinh, "cosh": _cosh,
    "sin": lambda x: torch.sin(inside(x)), "cos": lambda x: torch.cos(inside(x)),
    "tanh": torch.tanh, "atan": torch.atan, "asinh": _asinh, "erf": torch.erf,
    "sigmoid": gate, "softplus": lambda x: F.softplus(x, threshold=50),
    # F.logsigmoid loses the memory format
    "logsigmoid": lambda x: -F.softplus(-x, threshold=50), "softsign": F.softsign,
    "relu": torch.relu, "relu6": F.relu6, "elu": F.elu, "selu": F.selu,
    "silu": F.silu, "gelu": F.gelu, "mish": F.mish,
    "hardsigmoid": lambda x: F.relu6(x + 3) / 6, "hardtanh": F.hardtanh,
}  # fmt: skip
_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
_STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 2, "**": 4}
TWO = ("+", "-", "*", "/", "**", "max", "min")


def parse(text: str) -> Tree:
    """The tree of a formula.

    Raises:
        ValueError: it is no formula, or calls an unknown function.
    """
    try:
        return _tree(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, AttributeError, RecursionError, MemoryError):
        raise ValueError(
            f"{text!r} is no formula of x, such as 'x * sigmoid(beta * x)': numbers, names, "
            "+ - * / **, brackets, and functions of one or two values"
        ) from None


def _tree(node: ast.expr) -> Tree:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return finite("a number of the formula", value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -finite("a number of the formula", value)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return "neg", _tree(inner)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)], _tree(left), _tree(right)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            named = [each for each in OPERATORS if each.isidentifier()]
            if name not in named:
                near = difflib.get_close_matches(name, named, 1)
                hint = f"the nearest: {near[0]}" if near else f"known are {', '.join(named)}"
                raise ValueError(f"a formula has no function {name!r}; {hint}")
            if len(args) != (wanted := 2 if name in TWO else 1):
                raise ValueError(f"{name} takes {wanted} values, got {len(args)}")
            return name, *map(_tree, args)
    raise TypeError


def text(tree: Tree) -> str:
    """A tree as it is written; `parse` reads it to the same tree."""
    return _text(tree, 0)


def _text(tree: Tree, outside: int) -> str:
    if isinstance(tree, str):
        return tree
    if not isinstance(tree, tuple):
        written = f"{tree:g}" if float(f"{tree:g}") == tree else repr(tree)
        return f"({written})" if tree < 0 and outside else written
    name, *parts = tree
    if (own := _STRENGTH.get(name)) is None:
        return f"{name}({', '.join(_text(part, 0) for part in parts)})"
    if name == "neg":
        written = f"-{_text(parts[0], 3)}"
    else:
        # a - (b - c) and (a ** b) ** c keep their brackets
        left, right = (own + 1, own) if name == "**" else (own, own + 1)
        written = f"{_text(parts[0], left)} {name} {_text(parts[1], right)}"
    return f"({written})" if own < outside else written


def names(tree: Tree) -> Iterator[str]:
    """The names in a tree, x included, in their order; a name may come again."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, tuple):
        for part in tree[1:]:
            yield from names(part)


def evaluate(tree: Tree, known: Mapping[str, Tensor]) -> Tensor:
    """The value of a tree; `known` holds x, and the constants that broadcast against it."""
    if isinstance(tree, str):
        return known[tree]
    if not isinstance(tree, tuple):
        return torch.full((), tree, dtype=known["x"].dtype, device=known["x"].device)
    name, *parts = tree
    if name == "**" and not isinstance(parts[1], tuple | str):
        return torch.pow(evaluate(parts[0], known), parts[1])
    return OPERATORS[name](*(evaluate(part, known) for part in parts))


def formula(x: Tensor, *rest: Tensor | Tree | tuple[str, ...]) -> Tensor:
    """The tree before the last of `rest` at `x`; the last are the names of the values ahead."""
    *values, tree, named = rest
    known: dict[str, Tensor] = dict(zip(named, values, strict=True))  # pyright: ignore
    return evaluate(tree, {"x": x, **known})  # pyright: ignore


class Formula(Activation):
    r"""A function of one's own, written as text; its constants are learned. Learned.

    .. math:: f(x) = \text{the formula}

    The text holds numbers, `x`, names of constants, `+ - * / **`, brackets, and `max`, `min`,
    `abs`, `sqrt`, `log`, `log1p`, `exp`, `expm1`, `sin`, `cos`, `sinh`, `cosh`, `tanh`, `atan`,
    `asinh`, `erf`, `sigmoid`, `softplus`, `logsigmoid`, `softsign`, `relu`, `relu6`, `elu`, `selu`,
    `silu`, `gelu`, `mish`, `hardsigmoid`, `hardtanh`. It is computed as it is written: where a part
    of it overflows, so may the whole. `exp`, `sinh` and `cosh` stop at the largest number.

    Attributes:
        constants: one learned parameter each, (num_parameters,), not decayed, by its name.

    Args:
        formula: such as `"x * sigmoid(beta * x)"`.
        constants: initial value of each constant, such as `{"beta": 1.0}`.
        channels: see :class:`activations.Channels`.

    Shape:
        (N, C, \*) -> same; any shape without constants.

    Initialisation:
        the formula with the given values.

    Raises:
        ValueError: the text is no formula of x, a name has no value, or a value has no name.

    Reference:
        none: the formula is yours; `python -m search` looks for new ones. Deviation from it: none.
    """

    variants = (
        {"formula": "x * sigmoid(x)"},
        {"formula": "x * erf(exp(beta * x))", "constants": {"beta": 1.0}},
    )

    def __init__(
        self,
        formula: str = "x * sigmoid(x)",
        constants: dict[str, float] | None = None,
        **channels: Unpack[Channels],
    ) -> None:
        super().__init__(**channels)
        if not isinstance(formula, str):
            raise ValueError(f"formula must be text such as 'x * sigmoid(x)', got {formula!r}")
        self.tree = parse(formula)
        constants = dict(constants or {})
        found = list(dict.fromkeys(names(self.tree)))
        if "x" not in found:
            raise ValueError(f"the formula {formula!r} has no x in it")
        for name in found:
            if name != "x" and name not in constants:
                raise ValueError(
                    f"the formula {formula!r} needs a value of {name!r}: "
                    f"constants={{{name!r}: 1.0}}"
                )
        for name, value in constants.items():
            if name not in found or name == "x":
                raise ValueError(f"the formula {formula!r} has no constant {name!r}")
            if hasattr(self, name):
                raise ValueError(f"{name!r} cannot name a constant: choose another name")
            self.register_parameter(name, self.learned(name, value))

    def expression(self) -> Expression:
        """The formula with this module's parameters."""
        values = tuple(getattr(self, name) for name in self._starts)
        return Expression(formula, values, (self.tree, tuple(self._starts)))

    def extra_repr(self) -> str:
        """The formula and the values."""
        return ", ".join(filter(None, [repr(text(self.tree)), super().extra_repr()]))
