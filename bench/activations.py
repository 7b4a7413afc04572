"""Time and saved memory of every activation, against ReLU and SiLU in the same run.

Measured are a forward pass, and a forward and a backward pass together (`both`). The mode is torch
for a function of torch. For one of ours it is off for the plain formula, which a CPU computes in
blocks, whole for the same without blocks (unless it has a forward of its own), and activations for
fused kernels. `saved_to_input` is what is kept for the backward pass, in multiples of the input.
`of_copy_percent` is the share of the memory's bandwidth that a copy of x reaches, if `both` read x
twice and its gradient once, and wrote y and the gradient of x. RIVALS lists what else is measured.
The process keeps the memory that it frees, as train.py does: else the system would zero the pages
of a large result anew at each call, which takes longer than most functions.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
from pandas import DataFrame, Series
from torch import Tensor, nn

import activations
from activations import Activation
from activations.activation import precise
from activations.gallery import KINDS
from callbacks.machine import keep_memory

from .measure import check_kernels, in_turns, locked, now, saved_bytes, summarize
from .report import at_least

RIVALS = (nn.ReLU, nn.SiLU, nn.GELU, nn.Mish, nn.ELU, nn.Softsign, nn.LeakyReLU, nn.PReLU)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODES = ["off", "activations", "whole"]
CHART = "both_to_silu"


def add_options(parser: ArgumentParser) -> None:
    """The options of this measurement."""
    add, sizes = parser.add_argument, [128, 64, 32, 32]
    add("--shape", type=at_least(1), nargs="+", default=sizes, help="N C [H W | L]")
    add("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    add("--modes", nargs="+", choices=MODES, default=MODES[:2], help="off: the plain formula")
    add("--only", nargs="+", choices=KINDS, metavar="NAME", help="these, such as CosLU")
    add("--per_channel", action="store_true", help="one set of parameters for each channel")
    add("--channels_last", action="store_true")
    add("--rounds", type=at_least(2), default=9)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--lock", metavar="FILE", help="time while holding the lock of this file")


def measure(options: Namespace) -> DataFrame:
    """One row for each function, mode and dtype."""
    if len(options.shape) not in (2, 3, 4):
        sys.exit(f"--shape takes 2 to 4 sizes, got {options.shape}")
    if options.channels_last and len(options.shape) != 4:
        sys.exit(f"--channels_last needs N C H W, got --shape {options.shape}")
    keep_memory()
    tables = [_compare(dtype, options) for dtype in options.dtypes]
    return pd.concat(tables).sort_values(["dtype", "mode", CHART])


def build(options: Namespace) -> dict[tuple[str, str], nn.Module]:
    """The rivals, and every public activation in each mode asked for."""
    channels, modules = options.shape[1], {}
    for kind in RIVALS:
        per_channel = kind is nn.PReLU and options.per_channel
        modules[f"nn.{kind.__name__}", "torch"] = kind(channels) if per_channel else kind()
    sizes: dict[str, Any] = {"channels": channels}
    sizes |= {"num_parameters": channels} if options.per_channel else {}
    sizes |= {"dims": 1} if len(options.shape) == 3 else {}
    left = {}
    for name in options.only or KINDS:
        known = KINDS[name].size_arguments
        if options.per_channel and "num_parameters" not in known:
            left[name] = "has no parameters a channel"
            continue
        for mode in options.modes:
            torch.manual_seed(0)
            module = KINDS[name](**{key: size for key, size in sizes.items() if key in known})
            if mode == "whole" and type(module).forward is not Activation.forward:
                left[name] = "is more than a formula, and has no mode whole"
                continue
            activations.fuse(module, on=mode == "activations")
            modules[name, mode] = _Whole(module) if mode == "whole" else module
    told = [f"{name} {why}" for name, why in left.items() if options.only]
    if len(modules) == len(RIVALS):
        raise ValueError(f"no function is left to measure: {'; '.join(told)}")
    print(*(f"left out: {each}" for each in told), sep="\n", end="\n" if told else "")
    return modules


class _Whole(nn.Module):
    """The plain formula of an activation, never in blocks."""

    def __init__(self, of: Activation) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return self.of.function(precise(x)).to(x.dtype)


def _compare(dtype: str, options: Namespace) -> DataFrame:
    torch.manual_seed(0)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    with locked(options.lock, alone=False):
        x, grad = (
            torch.randn(options.shape, device=options.device).to(
                DTYPES[dtype], memory_format=layout
            )
            for _ in range(2)
        )
        x.requires_grad_()
        modules = build(options)
        for module in modules.values():
            module.to(options.device)
            of = module.of if isinstance(module, _Whole) else module
            if not isinstance(of, Activation) or any(of.children()):
                module.to(DTYPES[dtype])  # torch's own, convolutions, linear layers
            _pass(module, x, grad)  # compiles, and fills the caches
        for (_, mode), module in modules.items():
            check_kernels(module, mode, options.device)
        kept = [saved_bytes(partial(each, x), each.parameters()) for each in modules.values()]
    runs: dict[Any, Any] = {key: partial(_pass, module, x, grad) for key, module in modules.items()}
    copy = ("copy", "")
    runs[copy] = partial(_copy, x.detach())
    references = {"silu": lambda _: ("nn.SiLU", "torch"), "relu": lambda _: ("nn.ReLU", "torch")}
    if x.is_cuda:
        torch.cuda.empty_cache()  # other processes need memory, too
    with locked(options.lock, alone=True):
        times = in_turns(runs, options.rounds)
    copied = times["forward"][copy].median()
    times = {name: DataFrame(each[list(modules)]) for name, each in times.items()}
    table = summarize(times, references, "ms")
    table["of_copy_percent"] = 100 * 2.5 * 1e3 * copied / table["both_ms"]
    table["saved_to_input"] = Series(kept, table.index) / x.untyped_storage().nbytes()
    table.insert(0, "dtype", dtype)
    return table.rename_axis(["function", "mode"]).reset_index()


def _seconds(run: Callable[[], Any], x: Tensor) -> float:
    """Of one run; a GPU works on one while the host prepares the next."""
    count, kept, start = 20 if x.is_cuda else 1, None, now(x.device)
    for _ in range(count):
        kept = run()
    seconds = (now(x.device) - start) / count
    del kept  # freed after the clock has stopped
    return seconds


def _copy(x: Tensor) -> dict[str, float]:
    return dict.fromkeys(("forward", "both"), _seconds(x.clone, x))  # into new memory, as they do


def _pass(module: nn.Module, x: Tensor, grad: Tensor) -> dict[str, float]:
    """Seconds of a forward pass, and of a forward and a backward pass."""
    inputs = [x, *(p for p in module.parameters() if p.requires_grad)]

    def both() -> Any:
        return torch.autograd.grad(module(x), inputs, grad, allow_unused=True)

    return {"forward": _seconds(partial(module, x), x), "both": _seconds(both, x)}
