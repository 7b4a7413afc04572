"""All that a GPU can tell, in a few minutes: is it right, how fast is it, does it learn.

The parts: the tests that need a GPU; each activation at two sizes, and with parameters per channel
in both memory layouts; training steps of ResNet-20, ResNet-50 and a 1-D ResNet-34; the loader; and
trainings of Digits in several precisions, compiled in each way, by NCCL. Kernels are compiled by
many processes at once; what is timed has the device alone (`--lock`). Each part is written into
the folder `gpu` (`gpu-quick`) of --out as soon as it has ended: what the time did not allow, or
what failed, is missing there, and the table names it.
Try it without a GPU first: python -m bench gpu --device cpu --quick.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pandas import DataFrame

from activations import Activation
from activations.gallery import KINDS
from callbacks.machine import ROOT, machine
from datamodules.workers import cores

from . import activations, data, step
from .measure import generated
from .report import at_least, write

# parts of activations.py: the name, and options that differ from its own
SIZES: dict[str, dict[str, Any]] = {
    "large": {"shape": [128, 256, 56, 56], "dtypes": ["bfloat16", "float32", "float16"]},
    "small": {"modes": ["activations"], "dtypes": ["float32", "bfloat16"]},
    "channel": {
        "shape": [128, 256, 56, 56], "modes": ["activations"], "per_channel": True,
        "dtypes": ["bfloat16", "float32"],
    },
    "channels_last": {
        "shape": [128, 256, 56, 56], "modes": ["activations"], "per_channel": True,
        "channels_last": True, "dtypes": ["bfloat16"],
    },
}  # fmt: skip
STEPS: list[dict[str, Any]] = [
    {"networks": ["resnet20"]},
    {"networks": ["resnet50"], "batch_size": 64, "rounds": 12},
    {"networks": ["resnet34-1d"]},
    {"networks": ["resnet20"], "modes": ["model"], "activations": ["CosLU"]},
]
FIT = ["fit", "--data", "Digits", "--model.backbone", "resnet8", "--model.activation", "CosLU",
       "--trainer.enable_progress_bar", "false", "--trainer.devices", "1"]  # fmt: skip
TRAININGS = {
    "float32": ["--trainer.precision", "32-true"],
    "float32, activations compiled": ["--model.compile", "activations"],
    "float16": ["--trainer.precision", "16-mixed", "--model.compile", "activations"],
    "bfloat16": ["--trainer.precision", "bf16-mixed", "--model.compile", "activations"],
    "bfloat16, model compiled": ["--trainer.precision", "bf16-mixed", "--model.compile", "model"],
    "DDP, SyncBatchNorm": ["--trainer.strategy", "ddp", "--trainer.sync_batchnorm", "true"],
}
# of the time; what a part leaves, the next ones have
SHARES = {"tests": 7, "activations": 5, "step": 3, "trainings": 2, "loader": 1}
SLOW = ["BSpline", "DiTAC", "Rational"]  # not a few operations for each element
# without a convolution or a mean
FEW = [n for n, kind in KINDS.items() if n not in SLOW and kind.forward is Activation.forward]


def add_options(parser: ArgumentParser) -> None:
    """The options of this measurement."""
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="these (all)")
    add("--minutes", type=float, default=8.0, help="what has not ended by then is left out")
    add("--jobs", type=at_least(1), default=max(2, cores() - 2), help="processes at once")
    add("--wheels", type=Path, help="folder of wheels to install first, for this run alone")
    add("--quick", action="store_true", help="two functions, small networks, one epoch")


def measure(options: Namespace) -> DataFrame:
    """One row for each thing that is wanted of a GPU, with what was found."""
    options.out = options.out.resolve() / ("gpu-quick" if options.quick else "gpu")
    options.out.mkdir(parents=True, exist_ok=True)
    options.end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # the processes are many
        if options.wheels:
            install(options.wheels, Path(folder, "site"))
        options.lock = str(Path(folder, "lock"))
        found, parts, last = {}, [*options.parts], options.end
        while parts:
            start, name = time.monotonic(), parts[0]
            share = SHARES[name] / sum(SHARES[each] for each in parts)
            options.end = start + share * (last - start)
            for row in PARTS[name](options):
                found[row["wanted"]] = row
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
            parts = parts[1:]
    return DataFrame(list(found.values()))


def install(wheels: Path, site: Path) -> None:
    """Install the wheels of a folder where the processes of this run find them."""
    files = [str(each) for each in sorted(wheels.glob("*.whl"))]
    if not files:
        sys.exit(f"--wheels {wheels}: no file *.whl there")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target"]
    subprocess.run([*pip, str(site), *files], check=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), os.getenv("PYTHONPATH"))))


def tests(options: Namespace) -> Iterator[dict[str, Any]]:
    """The tests that need a GPU."""
    which = ["-m", "gpu"] if options.device == "cuda" else ["-k", "value_is_the_formula and ReLUN"]
    words = ["-n", str(options.jobs), "-p", "no:benchmark", "-rfE", "--tb=short", *which]
    code, output = call(options, "tests", ["-m", "pytest", *words])
    counts = re.findall(r"(\d+) (passed|failed|error|skipped)", output[-500:])
    said = ", ".join(" ".join(each) for each in counts) or f"did not end (code {code})"
    yield {"wanted": "tests pass", "found": said, "met": code == 0}


def call(options: Namespace, name: str, words: list[str]) -> tuple[int, str]:
    """Run Python with these words; its exit code and its output, which is also in a file."""
    log, left = options.out / f"{name}.log", max(1.0, options.end - time.monotonic())
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        done = subprocess.Popen(
            [sys.executable, *words], stdout=file, stderr=-2, cwd=ROOT, env=env,
            start_new_session=True,
        )  # fmt: skip
        with suppress(subprocess.TimeoutExpired):
            done.wait(left)
        if done.poll() is None:  # with the processes that it has started
            os.killpg(done.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                done.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(done.pid, signal.SIGKILL)
            done.wait()
    return done.returncode, log.read_text(errors="replace")


def side_by_side(
    options: Namespace, name: str, runs: dict[str, Callable[[], DataFrame]]
) -> DataFrame:
    """The rows of all `runs`, in several processes, as far as the time allows."""
    tables: list[DataFrame] = []
    settings = {key: value for key, value in vars(options).items() if key not in ("end", "lock")}
    about = {**machine(options.device), "settings": {"part": name, **settings}}
    for suffix in (".json", ".csv"):  # of an earlier measurement
        (options.out / f"{name}{suffix}").unlink(missing_ok=True)
    pool = ThreadPoolExecutor(options.jobs)
    with (options.out / f"{name}.log").open("w") as log:
        futures: dict[Future, str] = {pool.submit(_alone, run): key for key, run in runs.items()}
        with suppress(TimeoutError):
            for done in as_completed(futures, max(1.0, options.end - time.monotonic())):
                if error := done.exception():
                    print(f"{futures[done]}: {type(error).__name__}: {error}", file=log, flush=True)
                    continue
                tables.append(done.result())
                write(options.out / name, about, pd.concat(tables))
        late = [key for future, key in futures.items() if not future.done()]
        print("did not end:", *late, file=log)
    pool.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children() if late else ():
        process.terminate()
    pool.shutdown()
    print(f"{name}: {len(tables)} of {len(runs)} measured; {options.out / name}.log has the rest")
    return pd.concat(tables) if tables else DataFrame()


_OF_THREAD = threading.local()


def _alone(run: Callable[[], DataFrame]) -> DataFrame:
    """What `run` returns in this thread's process; after an error the next one has a new process.

    So the death of one, or a device that it has broken, touches no other one.
    """
    if not hasattr(_OF_THREAD, "pool"):
        _OF_THREAD.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    try:
        return _OF_THREAD.pool.submit(run).result()
    except BaseException:
        _OF_THREAD.pool.shutdown(wait=False)
        del _OF_THREAD.pool
        raise


def functions(options: Namespace) -> Iterator[dict[str, Any]]:
    """Each activation, at each of SIZES."""
    names = ["CosLU", "Rational"] if options.quick else list(KINDS)
    sizes = ((size, dtype) for size, words in SIZES.items() for dtype in words["dtypes"])
    runs = {
        f"{name}, {size}, {dtype}": partial(_function, name, size, dtype, options)
        for size, dtype in sizes
        for name in names
    }
    table: Any = side_by_side(options, "activations", runs)
    if table.empty:
        columns = ["function", "mode", "size", "dtype", "both_to_silu", "of_copy_percent"]
        table = DataFrame(columns=columns)
    own = table[(table["mode"] == "activations") & (table["size"] == "large")]
    few, slow = ([name for name in names if name in which] for which in (FEW, SLOW))
    for dtype in ("bfloat16", "float32"):
        rows = own[own["dtype"] == dtype].set_index("function")
        for what, chosen, bar in (("elementwise", few, 1.10), (", ".join(slow), slow, 1.5)):
            wanted = f"{what}, {dtype}: at most {bar} of SiLU"
            yield _row(wanted, rows["both_to_silu"].reindex(chosen), lambda x, bar=bar: x <= bar)
        wanted = f"elementwise, {dtype}: at least 80% of the bandwidth of a copy"
        yield _row(wanted, rows["of_copy_percent"].reindex(few), lambda x: x >= 80)


def _row(wanted: str, found: Any, good: Callable[[Any], Any]) -> dict[str, Any]:
    """Whether all of the planned values are there and `good`, and which are not."""
    measured = found.dropna()
    bad = measured[~good(measured)]
    said = f"{len(measured) - len(bad)} of {len(found)}"
    for name, value in bad.items():
        said += f", {name} {value:.3g}"
    if missing := [*found.index[found.isna()]]:
        said += f"; not measured: {', '.join(missing)}"
    return {"wanted": wanted, "found": said, "met": not missing and not len(bad)}


def _options(module: Any, words: dict[str, Any]) -> Namespace:
    parser = ArgumentParser()
    module.add_options(parser)
    return Namespace(**{**vars(parser.parse_args([])), **words})


def _function(name: str, size: str, dtype: str, options: Namespace) -> DataFrame:
    words = {**SIZES[size], "only": [name], "dtypes": [dtype]}
    words |= {"device": options.device, "lock": options.lock}
    words |= {"shape": [4, 8, 8, 8], "rounds": 2} if options.quick else {}
    table = activations.measure(_options(activations, words))
    table.insert(0, "size", size)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return table


def steps(options: Namespace) -> Iterator[dict[str, Any]]:
    """Training steps of whole networks."""
    small = [{"networks": ["resnet8"], "batch_size": 4, "activations": ["CosLU"]}]
    plans = [
        {**words, "dtypes": [dtype]}
        for words in (small if options.quick else STEPS)
        for dtype in ("float32", "bfloat16")
    ]
    runs = {
        " ".join([*plan["networks"], *plan.get("modes", []), *plan["dtypes"]]): partial(
            _steps, plan, options
        )
        for plan in plans
    }
    table: Any = side_by_side(options, "step", runs)
    if table.empty:
        table = DataFrame(columns=["function", "mode", "network", "dtype", "step_to_relu"])
    fused = table[table["mode"] == "activations"].set_index("function")
    for plan in plans:
        if "modes" in plan:  # the whole network compiled
            continue
        [network], [dtype] = plan["networks"], plan["dtypes"]
        rows = fused[(fused["network"] == network) & (fused["dtype"] == dtype)]
        found = rows["step_to_relu"].reindex(_options(step, plan).activations)
        yield _row(
            f"step of {network}, {dtype}: at most 1.03 of ReLU's", found, lambda x: x <= 1.03
        )


def _steps(words: dict[str, Any], options: Namespace) -> DataFrame:
    words = {"rounds": 30, **words, "device": options.device, "lock": options.lock}
    words |= {"rounds": 2} if options.quick else {}
    table = step.measure(_options(step, words))
    return table.drop(columns=["first_step_s", "even_steps"])  # others compile at the same time


def loader(options: Namespace) -> Iterator[dict[str, Any]]:
    """Images a second of the loader: CIFAR's, made on the device."""
    found = data.rate(generated(50_000, 128, options.device), options.device)["rate"]
    yield {"wanted": "CIFAR images a second of the loader", "found": f"{found:,.0f}", "met": None}


def trainings(options: Namespace) -> Iterator[dict[str, Any]]:
    """Does each precision and way of compiling learn?"""
    epochs, count = ("1", 2) if options.quick else ("10", len(TRAININGS))

    def train(name: str, words: list[str]) -> dict[str, Any]:
        slug = re.sub(r"\W+", "_", name)
        place = options.out / "fit" / slug
        shutil.rmtree(place, ignore_errors=True)  # the results of an earlier call
        words = [str(ROOT / "train.py"), *FIT, *words, "--trainer.max_epochs", epochs,
                 "--trainer.accelerator", {"cuda": "gpu"}.get(options.device, "cpu"),
                 "--trainer.logger.save_dir", str(place.resolve())]  # fmt: skip
        code, _ = call(options, f"fit_{slug}", words)
        found = {"wanted": f"learns Digits: {name}", "met": False}
        for file in place.rglob("results.json"):
            results = json.loads(file.read_text())
            accuracy = (results["epochs"] or [{}])[-1].get("val/acc")
            if results["status"] != "ok" or accuracy is None:
                said = f"{results['status']}: {results['message']}"
                return found | {"found": f"{said[:200]}, see fit_{slug}.log"}
            said = f"{accuracy:.1%} of the validation set after {epochs} epochs"
            return found | {"found": said, "met": accuracy > 0.9}
        return found | {"found": f"no result (code {code}), see fit_{slug}.log"}

    with ThreadPoolExecutor() as threads:
        yield from threads.map(train, *zip(*list(TRAININGS.items())[:count], strict=True))


PARTS: dict[str, Callable[[Namespace], Iterator[dict[str, Any]]]] = {
    "tests": tests,
    "activations": functions,
    "step": steps,
    "trainings": trainings,
    "loader": loader,
}
