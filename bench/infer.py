"""Inference: latency of whole networks by torch, ONNX Runtime and OpenVINO, against ReLU.

Each network is folded (`activations.fold`) and runs as plain torch code (`eager`), by torch.compile
(`compiled`), and as an ONNX file by `onnxruntime` and `openvino` (float32), by the given number of
threads and by all. A function of ours is measured by its formula, and as a `table`
(`activations.tabulate`). Compared are functions by the same engine and threads, in turns.
"""

import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pandas import DataFrame
from torch import Tensor, nn

from activations import Activation, fold, tabulate
from datamodules.workers import cores
from models import Classifier
from models.export import FILES, check_formats, write

from .measure import compile_all, in_turns, summarize, timed
from .report import at_least
from .step import NAMING, NETWORKS, activation, factory

Run = Callable[[], Any]


def add_options(parser: ArgumentParser) -> None:
    """The options of this measurement."""
    add, names = parser.add_argument, ["CosLU", "DELU", "ReLUN"]
    add("--network", choices=NETWORKS, default="resnet20")
    add("--activations", type=activation, nargs="+", metavar="NAME", default=names, help=NAMING)
    add("--engines", nargs="+", choices=ENGINES, default=[*ENGINES])
    add("--batch_size", type=at_least(1), default=1)
    add("--tolerance", type=float, default=1e-3, help="of the tables; 0: no tables")
    add("--rounds", type=at_least(2), default=20)


def measure(options: Namespace) -> DataFrame:
    """One row for each engine, number of threads, function and form."""
    engines = []
    for engine in options.engines:
        try:
            check_formats(_FORMATS[engine])
            engines.append(engine)
        except ImportError as error:
            print(f"{engine} is left out: {error}")
    networks, x = build(options)
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for k, (key, network) in enumerate(networks.items()):
            files[key] = Path(folder, str(k))
            files[key].mkdir()
            if {"onnxruntime", "openvino"} & {*engines}:
                write(network, (torch.cat([x, x])[:2],), ["onnx"], files[key], {})
        for engine in engines:
            for threads in sorted({options.threads, cores()}):
                torch.set_num_threads(threads)
                runs = {}
                for key, network in networks.items():
                    run = ENGINES[engine](network, files[key] / FILES["onnx"], x, threads)
                    runs[key] = partial(_time, run)
                    run()
                times = in_turns(runs, options.rounds)
                times = {"latency": times.pop("wall"), **times}
                table = summarize(times, {"relu": lambda _: ("ReLU", "torch")}, "ms")
                rate = 1e3 * options.batch_size / table["latency_ms"]
                table.insert(0, "images_a_second", rate)
                table = table.rename_axis(["function", "form"]).reset_index()
                table.insert(0, "threads", threads)
                table.insert(0, "engine", engine)
                tables.append(table)
                torch.set_num_threads(options.threads)
    return pd.concat(tables) if tables else DataFrame()


@torch.no_grad()
def build(options: Namespace) -> tuple[dict[tuple[str, str], nn.Module], Tensor]:
    """The networks by function and form, and a batch."""
    torch.manual_seed(0)
    arguments = NETWORKS[options.network]
    shape = [arguments["in_channels"], *[arguments["image_size"]] * arguments["dims"]]
    networks = {}
    for function in dict.fromkeys(["ReLU", *options.activations]):
        torch.manual_seed(0)
        network = Classifier(**arguments, activation=factory(function)).backbone
        for _ in range(5):  # BatchNorm learns its statistics
            network(torch.randn(16, *shape))
        ours = any(isinstance(module, Activation) for module in network.modules())
        networks[function, "formula" if ours else "torch"] = folded = fold(network)
        if ours and options.tolerance:
            table = fold(folded)  # another copy
            report = tabulate(table, torch.randn(16, *shape), options.tolerance)
            if report.tables:
                networks[function, "table"] = table
    return networks, torch.randn(options.batch_size, *shape)


def _time(run: Run) -> dict[str, float]:
    """Seconds of one call, from several."""
    run()
    calls = 5
    seconds = timed(lambda: [run() for _ in range(calls)])
    return {name: value / calls for name, value in seconds.items()}


@torch.inference_mode()
def _call(network: Callable[[Tensor], Any], x: Tensor) -> Any:
    return network(x)


def _eager(network: nn.Module, file: Path, x: Tensor, threads: int) -> Run:
    return partial(_call, network, x)


def _compiled(network: nn.Module, file: Path, x: Tensor, threads: int) -> Run:
    compile_all()
    return partial(_call, torch.compile(network), x)


def _onnxruntime(network: nn.Module, file: Path, x: Tensor, threads: int) -> Run:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {session.get_inputs()[0].name: x.numpy()})


def _openvino(network: nn.Module, file: Path, x: Tensor, threads: int) -> Run:
    import openvino

    model = openvino.convert_model(file)
    model.reshape(list(x.shape))
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    settings |= {"PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return partial(request.infer, [x.numpy()])


ENGINES = {
    "eager": _eager,
    "compiled": _compiled,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
_FORMATS = {"eager": [], "compiled": [], "onnxruntime": ["onnx"], "openvino": ["openvino"]}
