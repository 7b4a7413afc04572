"""A training step of whole networks: each activation against ReLU and SiLU in the same run.

A step is forward, cross-entropy, backward and SGD. The modes are those of `--model.compile` in
train.py. A row in mode model is compared with ReLU and SiLU in mode model, the others with the
plain ones. `saved_mb` is kept for the backward pass, without parameters and buffers, and `peak_mb`
is the most that a GPU had in use during a step, above what it had before it. `first_step_s`
includes the compilation, unless a row above has compiled the same. `even_steps` is the number of
steps after which the mode has taken less time in all than mode off. A rival is one line
in RIVALS, or a class's full path after `--activations`.
"""

import os
import pkgutil
import tempfile
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from pandas import DataFrame, Series
from torch import Tensor, nn
from torch.nn import functional as F

from activations import Activation, parameter_groups
from callbacks.machine import keep_memory
from models import Classifier

from .measure import check_kernels, compile_all, in_turns, locked, saved_bytes, summarize, timed
from .report import at_least

RIVALS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
    "ReLU in place": partial(nn.ReLU, inplace=True),
}
IMAGES = {"num_classes": 10, "in_channels": 3, "image_size": 32, "dims": 2}
SIGNALS = {"num_classes": 5, "in_channels": 1, "image_size": 187, "dims": 1}
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet8": {"backbone": "resnet8", **IMAGES},
    "resnet20": {"backbone": "resnet20", **IMAGES},
    "resnet18": {"backbone": "timm/resnet18", **IMAGES},
    "resnet50": {"backbone": "timm/resnet50", **IMAGES, "num_classes": 1000, "image_size": 224},
    "resnet34-1d": {"backbone": "timm/resnet34", **SIGNALS},
}
DTYPES = ["float32", "bfloat16"]
MODES = ["off", "activations", "model"]
NAMING = "ours by name, or any class by its full path, such as torch.nn.Mish"
CHART = "step_to_relu"


def add_options(parser: ArgumentParser) -> None:
    """The options of this measurement."""
    add, names = parser.add_argument, ["CosLU", "DELU", "ReLUN"]
    add("--networks", nargs="+", choices=NETWORKS, default=["resnet20"])
    add("--activations", type=activation, nargs="+", metavar="NAME", default=names, help=NAMING)
    add("--modes", nargs="+", choices=MODES, default=MODES[:2])
    add("--dtypes", nargs="+", choices=DTYPES, default=["float32"], help="bfloat16 is autocast")
    add("--layout", choices=("channels_last", "contiguous"), default="channels_last")
    add("--batch_size", type=at_least(2), default=128)
    add("--rounds", type=at_least(2), default=9)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--lock", metavar="FILE", help="time while holding the lock of this file")
    add("--keep_memory", action="store_true", help="do not return memory, as train.py does")


def factory(name: str) -> Callable[[], nn.Module]:
    """The factory of the activation `name`: a rival, one of ours, or a class by its full path."""
    path = name if "." in name else f"activations.{name}"
    return RIVALS.get(name) or pkgutil.resolve_name(path)


def activation(name: str) -> str:
    """A type for options: a name that :func:`factory` knows."""
    try:
        factory(name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ArgumentTypeError(f"{name}: {error}") from error
    return name


def training(
    function: str, mode: Any, dtype: str, network: str, options: Namespace
) -> tuple[nn.Module, Callable[[], dict[str, float]], Callable[[], int]]:
    """A network, its training step, which returns its seconds, and the bytes that it saves."""
    torch.manual_seed(0)
    arguments = NETWORKS[network]
    compile_all()
    classifier = Classifier(**arguments, activation=factory(function), compile=mode)
    classifier.setup("validate")  # fuses or compiles
    shape = [arguments["in_channels"], *[arguments["image_size"]] * arguments["dims"]]
    x = torch.randn(options.batch_size, *shape, device=options.device)
    y = torch.randint(arguments["num_classes"], (len(x),), device=options.device)
    channels_last = options.layout == "channels_last" and x.dim() == 4
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    model = classifier.backbone.to(options.device, memory_format=layout)  # pyright: ignore
    optimizer = torch.optim.SGD(parameter_groups(model), 0.01, momentum=0.9, weight_decay=1e-4)
    half = torch.autocast(x.device.type, torch.bfloat16, dtype == "bfloat16", cache_enabled=False)

    def loss() -> Tensor:
        with half:
            scores = model(x)
        return F.cross_entropy(scores.float(), y)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    own = [x, y, *model.parameters(), *model.buffers()]
    return model, partial(timed, step, options.device), partial(saved_bytes, loss, own)


def measure(options: Namespace) -> DataFrame:
    """One row for each network, activation, mode and dtype."""
    if options.keep_memory:
        keep_memory()
    with (
        tempfile.TemporaryDirectory() as cache,  # where nothing is compiled yet
        patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": cache}),
    ):
        with locked(options.lock, alone=False):
            once = 0.0 if options.modes == ["off"] else start_compiler(options.device)
        cases = [(n, d) for n in options.networks for d in options.dtypes]
        return pd.concat([_compare(*case, once, options) for case in cases])


def start_compiler(device: str) -> float:
    """Seconds of the first compilation in this process, whatever is compiled."""
    x = torch.ones(64, device=device, requires_grad=True)
    compiled = torch.compile(lambda x: x.sin() + 1)
    return timed(lambda: compiled(x).sum().backward(), device)["wall"]


def _compare(network: str, dtype: str, once: float, options: Namespace) -> DataFrame:
    steps, first, memory, peak = {}, {}, {}, {}
    for function in dict.fromkeys([*RIVALS, *options.activations]):
        modes = options.modes
        if not isinstance(factory(function)(), Activation):  # only ours can be fused
            modes = ["off", *({"model"} & {*modes})]
        for mode in modes:
            key = function, mode
            with locked(options.lock, alone=False):
                model, steps[key], count = training(function, mode, dtype, network, options)
                first[key] = steps[key]()["wall"] + (0.0 if mode == "off" else once)
                check_kernels(model, mode, options.device)
                steps[key]()
                if options.device == "cuda":
                    before = torch.cuda.memory_allocated()
                    torch.cuda.reset_peak_memory_stats()
                    steps[key]()
                    peak[key] = (torch.cuda.max_memory_allocated() - before) / 1e6
                steps[key]()
                memory[key] = count() / 1e6
    with locked(options.lock, alone=True):
        times = in_turns(steps, options.rounds)
    times = {"step": times.pop("wall"), **times}
    table = summarize(times, {"relu": like("ReLU"), "silu": like("SiLU")}, "ms")
    table["saved_mb"] = Series(memory)
    for column, of in (("silu", like("SiLU")), ("relu_in_place", like("ReLU in place"))):
        table[f"saved_to_{column}"] = [memory[key] / memory[of(key)] for key in steps]
    if peak:
        table["peak_mb"] = Series(peak)
    table["first_step_s"] = Series(first)
    plain = table.reindex([(function, "off") for function, _ in steps]).set_index(table.index)
    gain = (plain["step_ms"] - table["step_ms"]) / 1e3
    even = (table["first_step_s"] - plain["first_step_s"]) / gain
    table["even_steps"] = even.where(gain > 0)
    table = table.rename_axis(["function", "mode"]).reset_index()
    table.insert(0, "network", network)
    table.insert(3, "dtype", dtype)
    return table


def like(name: str) -> Callable[[tuple[str, str]], tuple[str, str]]:
    """Which row of the rival `name` a row is compared with."""
    return lambda key: (name, "model" if key[1] == "model" else "off")
