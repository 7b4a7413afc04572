"""The measurements: what their numbers mean, on clocks that the tests set."""

import argparse
import itertools
import json
import math
import os
import runpy
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from lightning.pytorch import Trainer
from pandas import DataFrame
from torch.utils.data import DataLoader

from activations.fusion import blocks, kernel
from bench import __main__, activations, data, gpu, infer, loop, measure, report, start, step
from models import Classifier, export
from tests.data import Tiny, write_tree

ROOT = Path(__file__).parents[2]
PAGE: dict[str, Any] = runpy.run_path(str(ROOT / "docs/performance.py"))


def test_saved_bytes_of_known_functions():
    x, y = torch.randn(100, requires_grad=True), torch.randn(100, requires_grad=True)
    assert measure.saved_bytes(lambda: x.exp()) == 400  # its result
    assert measure.saved_bytes(lambda: x + y) == 0
    assert measure.saved_bytes(lambda: x * y) == 800
    assert measure.saved_bytes(lambda: x * x) == 400  # one storage, kept twice
    assert measure.saved_bytes(lambda: x * y, own=[y]) == 400
    assert measure.saved_bytes(lambda: (x[:10] * y[:10]).exp()) == 840  # a view keeps it all


def test_statistics_of_each_quantity():
    times = {"step": DataFrame({"a": [4.0, 1, 3, 2, 5], "b": [8.0, 2, 6, 4, 20]})}
    table: Any = measure.summarize(times, {"a": lambda key: "a"}, "ms")
    assert table["step_ms"].to_dict() == {"a": 3000, "b": 6000}
    assert table["step_least_ms"].to_dict() == {"a": 1000, "b": 2000}
    # the quartiles are 2 and 4, and 4 and 8: half their distance, in % of the median
    assert table["step_spread_percent"].to_dict() == pytest.approx({"a": 100 / 3, "b": 100 / 3})
    assert table["step_to_a"].to_dict() == {"a": 1, "b": 2}


def test_each_is_measured_once_a_round_in_a_new_order():
    order: list[str] = []

    def run(name: str) -> dict[str, float]:
        order.append(name)
        return {"wall": len(order), "processor": -len(order)}

    found = measure.in_turns({name: partial(run, name) for name in "abcd"}, 20)
    rounds = ["".join(order[k : k + 4]) for k in range(0, 80, 4)]
    assert {"".join(sorted(each)) for each in rounds} == {"abcd"}
    assert len(set(rounds)) > 5
    assert list(found["wall"]) == list("abcd")
    assert found["wall"]["c"].tolist() == [k + 1 for k, name in enumerate(order) if name == "c"]
    assert found["processor"].equals(-found["wall"])


def test_turns_are_given_one_at_a_time(monkeypatch: pytest.MonkeyPatch):
    seconds = {"a": 1.0, "b": 10.0}
    clock, done = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    loader = DataLoader(range(3), batch_size=None)  # pyright: ignore[reportArgumentType]
    turns = {name: measure.Turns(loader) for name in seconds}
    assert turns["a"].sampler is loader.sampler  # where Lightning sets the epoch
    assert len(turns["a"]) == 3

    def train(name: str) -> None:
        for batch in turns[name]:
            clock[0] += seconds[name] * (batch + 1)
            done.append(f"{name}{batch}")

    for name in seconds:
        turns[name].start(partial(train, name))
    spent = {name: [turns[name].step()["wall"]] for name in seconds}  # to the first batch
    for name in ("a", "b", "b", "a", "a", "b"):
        spent[name].append(turns[name].step()["wall"])
    assert done == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert spent == {"a": [0, 1, 2, 3], "b": [0, 10, 20, 30]}


def test_what_fails_in_a_turn_is_raised():
    turns = measure.Turns(DataLoader(range(2), batch_size=None))  # pyright: ignore[reportArgumentType]

    def train() -> None:
        for batch in turns:
            raise ValueError(f"batch {batch}")

    turns.start(train)
    turns.step()
    with pytest.raises(ValueError, match="batch 0"):
        turns.step()


@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_all_loops_train_the_same_network():
    options = argparse.Namespace(
        backbone="resnet8", activation="CosLU", compile="off", batch_size=4, steps=2, epochs=1,
        threads=1, device="cpu",
    )  # fmt: skip
    times, found = loop.train(options)
    assert list(found) == ["bare loop", *loop.PARTS]
    assert times["wall"].shape == times["processor"].shape == (1 + 4, len(found))
    expected = found["bare loop"][0].backbone.state_dict()
    start = Classifier("resnet8").backbone.state_dict()["conv1.weight"]
    assert not torch.equal(expected["conv1.weight"], start)
    for number, (name, (model, profiler)) in enumerate(found.items()):
        for place, (part, callbacks) in enumerate(loop.PARTS.items()):
            for make in callbacks:
                entered = loop.inside(type(make()), profiler) > 0
                assert entered == (place < number), (name, part)
        for key, value in model.backbone.state_dict().items():
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "engines", [["eager"], pytest.param(["eager", "onnxruntime"], marks=pytest.mark.slow)]
)
def test_engines_compute_the_same_networks(
    engines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found: list[torch.Tensor] = []

    def time_of(run: Any) -> dict[str, float]:
        found.append(torch.as_tensor(np.asarray(run())).reshape(2, 10))
        return {"wall": 0.5, "processor": 0.25}

    monkeypatch.setattr(infer, "_time", time_of)
    monkeypatch.setattr(infer, "cores", lambda: 1)
    monkeypatch.setitem(infer._FORMATS, "openvino", ["hub"])
    monkeypatch.setitem(export._PACKAGES, "hub", ("no_such_package",))
    options = argparse.Namespace(
        network="resnet8", activations=["CosLU"], engines=[*engines, "openvino"],
        batch_size=2, tolerance=1e-3, rounds=2, threads=1,
    )  # fmt: skip
    table: Any = infer.measure(options)
    assert "openvino is left out: the format hub needs the package" in capsys.readouterr().out
    keys = [("ReLU", "torch"), ("CosLU", "formula"), ("CosLU", "table")]
    assert list(zip(table["function"], table["form"], strict=True)) == len(engines) * keys
    assert list(table["engine"]) == [engine for engine in engines for _ in keys]
    assert set(table["images_a_second"]) == {4}
    assert set(table["latency_to_relu"]) == {1}
    first, *others = torch.stack(found).split(6)  # three networks in two rounds, in one order
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-4)
    assert len(first.flatten(1).unique(dim=0)) == 3  # formula and table differ a little


def test_the_loop_compares_medians_of_epochs(monkeypatch: pytest.MonkeyPatch):
    profiler: Any = SimpleNamespace(
        recorded_durations={
            "[Callback]ActivationMonitor.on_train_batch_end": [0.5, 0.5],
            "[Callback]ActivationMonitor.on_train_epoch_end": [0.8],
            "[Callback]ActivationMonitor.on_train_end": [50.0],  # once a run, not an epoch
            "[Callback]ModelCheckpoint.on_train_epoch_end": [7.0],
        }
    )

    def turns(*epochs: float) -> list[float]:
        # the start and the first epoch do not count, nor does the turn that ends the training
        return [99, 99, *(part for epoch in epochs for part in (epoch - 1, 1)), 99]

    wall = {"bare loop": turns(7, 9, 30), "Trainer": turns(10, 11, 5), "monitor": turns(9, 14, 14)}
    work = {"bare loop": turns(4, 5, 4), "Trainer": turns(5, 5, 1), "monitor": turns(7, 7, 8)}
    times = {"wall": DataFrame(wall), "processor": DataFrame(work)}
    monkeypatch.setattr(loop, "train", lambda options: (times, {"monitor": (None, profiler)}))
    monkeypatch.setattr(loop, "PARTS", {"Trainer": [], "monitor": loop.PARTS["monitor"]})
    table: Any = loop.measure(argparse.Namespace(steps=2, epochs=3)).set_index("variant")
    assert table["epoch_s"].to_dict() == {"bare loop": 9, "Trainer": 10, "monitor": 14}
    assert table["epoch_to_bare"].tolist() == pytest.approx([1, 10 / 9, 14 / 9])
    assert table["processor_s"].tolist() == [4, 5, 7]
    assert table["more_percent"].tolist()[1:] == [25, 50]
    # 1.8 s in four epochs
    assert table["inside_percent"]["monitor"] == pytest.approx(100 * 0.45 / 9)
    assert table["inside_ms_a_step"]["monitor"] == pytest.approx(1e3 * 0.45 / 2)
    assert table["inside_percent"].isna()["Trainer"]
    assert "monitor" in report.show(table.reset_index())


SECONDS = {  # first step, then each later one
    ("ReLU", "off"): (1.0, 2.0), ("SiLU", "off"): (1.0, 4.0), ("ReLU in place", "off"): (1.0, 1.0),
    ("CosLU", "off"): (3.0, 8.0), ("CosLU", "activations"): (43.0, 3.0),
}  # fmt: skip


def test_steps_against_relu_and_silu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    made: list[tuple[str, str]] = []

    def training(function: str, mode: str, *rest: Any) -> Any:
        assert isinstance(step.factory(function)(), torch.nn.Module)
        first, later = SECONDS[function, mode]
        times = itertools.chain([first], itertools.repeat(later))
        made.append((function, mode))
        saved = 1000 * len(made)

        def one() -> dict[str, float]:
            seconds = next(times)
            return {"wall": seconds, "processor": seconds**2}

        return torch.nn.Identity(), one, lambda: saved

    monkeypatch.setattr(step, "training", training)
    monkeypatch.setattr(step, "start_compiler", lambda device: 20.0)
    options = argparse.Namespace(
        networks=["resnet8"], dtypes=["float32"], modes=["off", "activations"], rounds=3,
        activations=["CosLU"], device="cpu", lock=None, keep_memory=False,
    )  # fmt: skip
    table: Any = step.measure(options)
    rows: Any = table.set_index(["function", "mode"])
    assert made == list(rows.index) == list(SECONDS)
    fused: Any = rows.loc[("CosLU", "activations")]
    assert (fused["step_ms"], fused["step_to_relu"], fused["step_to_silu"]) == (3000, 1.5, 0.75)
    assert (fused["processor_to_relu"], fused["processor_to_silu"]) == (9 / 4, 9 / 16)
    assert (fused["saved_to_silu"], fused["saved_to_relu_in_place"]) == (5 / 2, 5 / 3)
    assert fused["first_step_s"] == 43 + 20
    assert fused["even_steps"] == (63 - 3) / (8 - 3)
    assert rows["even_steps"].isna()["CosLU", "off"]
    assert len(report.show(table).splitlines()) == 3 + len(rows)
    report.draw(table, step.CHART, "title", tmp_path / "out" / "step.png")
    assert (tmp_path / "out" / "step.png").read_bytes().startswith(b"\x89PNG")
    report.write(tmp_path / "new" / "step", {"commit": "abc"}, table)
    written = json.loads((tmp_path / "new" / "step.json").read_text())
    assert written["commit"] == "abc"
    assert written["rows"][0]["function"] == "ReLU"
    assert written["rows"][0]["even_steps"] is None
    assert len((tmp_path / "new" / "step.csv").read_text().splitlines()) == 1 + len(rows)


def test_a_mode_is_compared_with_its_own_kind():
    assert step.like("ReLU")(("CosLU", "model")) == ("ReLU", "model")
    for mode in ("off", "activations"):
        assert step.like("SiLU")(("CosLU", mode)) == ("SiLU", "off")


def test_a_real_step():
    options = argparse.Namespace(
        networks=["resnet8"], dtypes=["bfloat16"], modes=["off"], rounds=2, batch_size=2,
        activations=["torch.nn.Mish"], device="cpu", layout="channels_last",
        lock=None, keep_memory=False,
    )  # fmt: skip
    rows: Any = step.measure(options).set_index("function")
    assert list(rows.index) == ["ReLU", "SiLU", "ReLU in place", "torch.nn.Mish"]
    assert rows["saved_to_relu_in_place"]["ReLU in place"] == 1
    # an in-place ReLU keeps its result, which the next convolution keeps too; SiLU its input also
    assert rows["saved_to_relu_in_place"]["SiLU"] > 1.2
    assert rows["saved_to_silu"]["torch.nn.Mish"] == pytest.approx(1)
    assert rows["step_to_relu"].tolist() == (rows["step_ms"] / rows["step_ms"]["ReLU"]).tolist()


@pytest.mark.slow
def test_signals_step_too():
    options = argparse.Namespace(batch_size=2, device="cpu", layout="channels_last")
    made = step.training("CosLU", "off", "float32", "resnet34-1d", options)
    model: Any = made[0]
    before = model.conv1.weight.clone()
    assert min(made[1]().values()) > 0
    assert before.shape[1:] == (1, 7)
    assert not torch.equal(model.conv1.weight, before)


def test_real_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    line = (
        "bench activations --shape 2 4 6 --dtypes float32 --modes off --only CosLU LSLU SeriesReLU"
    )
    monkeypatch.setattr(sys, "argv", [*line.split(), "--rounds", "2", "--out", str(tmp_path)])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    __main__.main()
    assert {file.name for file in tmp_path.iterdir()} == {
        "activations.json", "activations.csv", "activations.png",
    }  # fmt: skip
    written = json.loads((tmp_path / "activations.json").read_text())
    rows = {row["function"]: row for row in written["rows"]}
    assert set(rows) >= {"CosLU", "LSLU", "SeriesReLU", "nn.ReLU", "nn.PReLU"}
    assert written["settings"]["shape"] == [2, 4, 6]
    assert written["torch"] == torch.__version__
    assert rows["nn.SiLU"]["saved_to_input"] == 1
    assert rows["CosLU"]["saved_to_input"] > 1
    assert rows["nn.SiLU"]["both_to_silu"] == rows["nn.ReLU"]["both_to_relu"] == 1
    assert "CosLU" in capsys.readouterr().out


def test_whole_tensors_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    line = "bench activations --modes whole off activations --shape 2 4 60 --only CosLU LSLU"
    monkeypatch.setattr(sys, "argv", [*line.split(), "--rounds", "2", "--out", str(tmp_path)])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(blocks, "BLOCK", 64)
    monkeypatch.setattr(kernel, "_BACKEND", "eager")
    __main__.main()
    table = PAGE["table"](tmp_path / "activations.json").set_index("function")
    assert set(table.index) == {"CosLU", "LSLU", *(f"nn.{k.__name__}" for k in activations.RIVALS)}
    assert table.loc["CosLU", "kept plain"] == 1 < table.loc["CosLU", "kept whole"]
    assert (table.loc["nn.SiLU"] == 1).all()


def test_the_table_of_the_page_is_what_was_measured():
    written = pandas.read_csv(ROOT / "results/performance.csv", na_values="-")
    pandas.testing.assert_frame_equal(written, PAGE["table"](), check_exact=False)


def test_one_set_a_channel_where_a_function_can(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(activations.activations, "fuse", lambda module, on: None)
    options = argparse.Namespace(shape=[2, 5], per_channel=True, modes=["off"], only=None)
    modules: dict[Any, Any] = activations.build(options)
    assert len(modules["nn.PReLU", "torch"].weight) == len(modules["CosLU", "off"].alpha) == 5
    assert ("EELU", "off") not in modules


def test_start_tells_phases_after_the_command():
    code = "import json, time; print('noise'); print(json.dumps({'parse': time.time()})); sum(range(10**7))"
    before = time.time()
    found = start.run(["-c", code], threads=1)
    assert 0 < found["parse"] <= time.time() - before
    assert 0 < found["processor"] <= time.time() - before
    assert found["step"] != found["step"]  # NaN: it was not reached
    with pytest.raises(RuntimeError, match="no such thing"):
        start.run(["-c", "raise SystemExit('no such thing')"], threads=1)


def test_start_compares_with_the_imports(monkeypatch: pytest.MonkeyPatch):
    caches: dict[str, list[str | None]] = {}

    def run(code: list[str], threads: int, cache: str | None = None) -> dict[str, float]:
        name = code[1].partition(";")[0] if code[0] == "-c" else f"{code[-1]} {cache is not None}"
        caches.setdefault(name, []).append(cache)
        if code[0] == "-c":
            step = 8.0 if "lightning" in name else 9.0
            return {"parse": math.nan, "prepare": math.nan, "step": step, "processor": 4.0}
        step = {"off": 10.0, "activations": 12.0}[code[-1]] + len(caches[name])
        return {"parse": 9.5, "prepare": 9.75, "step": step, "processor": 5.0}

    monkeypatch.setattr(start, "run", run)
    options = argparse.Namespace(
        cases=["activations warm", "off", "activations cold"], rounds=3, data="Digits", root=None,
        backbone="resnet8", activation="CosLU", accelerator="cpu", threads=1,
    )  # fmt: skip
    table: Any = start.measure(options)
    rows: Any = table.set_index("case")
    assert list(rows.index) == [*start.IMPORTS, *start.CASES[:3]]
    assert rows["step_to_imports"]["import train"] == 9 / 8
    assert rows["step_s"]["off"] == statistics.median([11, 12, 13])
    assert rows["step_to_imports"]["off"] == 12 / 8
    assert rows["processor_to_imports"]["off"] == 5 / 4
    assert rows["prepare_s"]["off"] == 9.75
    # a warm run is measured after one that fills the same cache; a cold one has none
    assert rows["step_s"]["activations warm"] == 15
    assert [len(each) for each in caches.values()] == [4, 3, 3, 3, 3]
    assert len(set(caches["activations True"])) == 1
    assert caches["activations False"] == [None] * 3
    assert "activations warm" in report.show(table)


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_phases_of_a_real_run(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path):
    class EndError(Exception):
        pass

    def leave(status: int) -> None:
        raise EndError

    monkeypatch.setattr(start.os, "_exit", leave)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[start.Phases()],
    )  # fmt: skip
    with pytest.raises(EndError):
        trainer.fit(Classifier("resnet8", 3, 1, 8), datamodule=Tiny())
    assert trainer.global_step == 1
    reached = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(reached) == ["parse", "prepare", "step"]
    assert sorted(reached.values()) == list(reached.values())


def test_rates_against_torchvision(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "SECONDS", 0.01)
    loader = measure.generated(256, 128)
    assert measure.generated(256, 4).images is loader.images  # which `bench loop` has seven times
    rates = data.rates(loader)
    theirs = rates["torchvision_samples_a_second"]
    assert rates["ours_to_torchvision"] == rates["ours_samples_a_second"] / theirs


def test_data_sets_are_measured_from_their_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(data, "SECONDS", 0.01)
    monkeypatch.setattr(data, "BATCH", 4)
    monkeypatch.setattr(data, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    write_tree(tmp_path)
    monkeypatch.setattr(data, "KINDS", {"CIFAR10": data.KINDS["CIFAR10"]})
    rows: Any = data.measure(argparse.Namespace(CIFAR10=str(tmp_path))).set_index("data")
    assert list(rows.index) == ["CIFAR, generated", "CIFAR10"]
    assert rows["prepare_s"]["CIFAR10"] > 0 < rows["later_s"]["CIFAR10"]
    assert rows["images_mb"]["CIFAR10"] == pytest.approx(40 * 3 * 32 * 32 / 1e6)
    assert rows["ours_to_torchvision"]["CIFAR10"] > 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("step --activations CosLu", "--activations: CosLu: module 'activations' has no attribute"),
        ("step --activations nowhere.Mine", "--activations: nowhere.Mine: No module named"),
        ("step --rounds 1", "--rounds: must be >= 2, got 1"),
        ("loop --epochs 1", "--epochs: must be >= 2, got 1"),
        ("start --rounds 1", "--rounds: must be >= 2"),
        ("start --cases off activations warm", "invalid choice: 'activations'"),
        ("activations --only Foo", "invalid choice: 'Foo'"),
        ("activations --device meta", "invalid choice: 'meta'"),
        ("step --device cuda", "there is no GPU here"),
        ("gpu --quick", "there is no GPU here"),
        ("activations --per_channel --only EELU", "EELU has no parameters a channel"),
        ("activations --modes whole --only LSLU", "LSLU is more than a formula"),
        ("activations --out pyproject.toml", "pyproject.toml"),
        ("data --CIFAR10 nowhere", "--CIFAR10 nowhere: no such folder"),
        ("activations --shape 3", "--shape takes 2 to 4 sizes, got [3]"),
        ("activations --shape 3 0", "--shape: must be >= 1, got 0"),
        ("activations --shape 3 4 5 --channels_last", "--channels_last needs N C H W"),
        ("nothing", "no measurement 'nothing': choose from activations, step, infer, loop, data, start"),
    ],
)  # fmt: skip
def test_slips(monkeypatch: pytest.MonkeyPatch, capsys: Any, line: str, message: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["bench", *line.split()])
    with pytest.raises(SystemExit) as stop:
        __main__.main()
    text = capsys.readouterr().err if isinstance(stop.value.code, int) else str(stop.value.code)
    assert message in text


def test_without_an_argument_all_measurements_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setattr(sys, "argv", ["bench"])
    __main__.main()
    printed = capsys.readouterr().out
    for name in __main__.NAMES:
        assert f"python -m bench {name} " in printed
    files = {file.stem for file in Path(__main__.__file__).parent.glob("[a-z]*.py")}
    assert files == {*__main__.NAMES, "measure", "report"}


def _row() -> DataFrame:
    return DataFrame({"function": ["CosLU"], "time": [1.5]})


def test_what_fails_on_a_gpu_is_told_and_the_rest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = argparse.Namespace(jobs=1, device="cpu", out=tmp_path, end=time.monotonic() + 100)
    runs: dict[str, Any] = {
        "bad": partial(math.sqrt, -1),
        "dead": partial(os._exit, 1),
        "good": _row,
    }
    table = gpu.side_by_side(options, "some", runs)
    assert table.equals(_row())
    assert "some: 1 of 3 measured" in capsys.readouterr().out
    log = (tmp_path / "some.log").read_text()
    assert "bad: ValueError" in log
    assert "dead: BrokenProcessPool" in log
    assert json.loads((tmp_path / "some.json").read_text())["rows"] == _row().to_dict("records")
    (tmp_path / "late.csv").touch()
    options.end = time.monotonic()
    assert gpu.side_by_side(options, "late", {"late": partial(time.sleep, 100)}).empty  # pyright: ignore
    assert "did not end: late" in (tmp_path / "late.log").read_text()
    assert not (tmp_path / "late.csv").exists()  # of an earlier measurement


def test_what_a_gpu_did_not_measure_is_not_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert {"CosLU", "FReLU", "PELU"} <= {*gpu.FEW}
    assert not {"SeriesReLU", "LSLU", "DynamicReLU", *gpu.SLOW} & {*gpu.FEW}
    monkeypatch.setattr(gpu, "KINDS", ["CosLU", "PELU", "Rational", "SeriesReLU"])
    rows = [{"function": name, "mode": "activations", "size": "large", "dtype": "float32",
             "both_to_silu": ratio, "of_copy_percent": 90.0}
            for name, ratio in {"CosLU": 1.04, "Rational": 1.6, "SeriesReLU": 13.0}.items()]  # fmt: skip
    monkeypatch.setattr(gpu, "side_by_side", lambda *_: DataFrame(rows))
    options = argparse.Namespace(quick=False, device="cpu", lock=None)
    found = {row["wanted"]: row for row in gpu.functions(options)}
    few = found["elementwise, float32: at most 1.1 of SiLU"]
    assert (few["found"], few["met"]) == ("1 of 2; not measured: PELU", False)
    assert found["Rational, float32: at most 1.5 of SiLU"]["found"] == "0 of 1, Rational 1.6"
    nothing = found["elementwise, bfloat16: at least 80% of the bandwidth of a copy"]
    assert nothing["found"] == "0 of 2; not measured: CosLU, PELU"
    rows[:] = [row | {"both_to_silu": 1.0} for row in rows] + [rows[0] | {"function": "PELU"}]
    found = {row["wanted"]: row for row in gpu.functions(options)}
    assert found["elementwise, float32: at most 1.1 of SiLU"]["met"]


def test_steps_that_a_gpu_did_not_measure_are_not_met(monkeypatch: pytest.MonkeyPatch):
    options = argparse.Namespace(quick=False, device="cpu", lock=None)
    rows = [{"function": name, "mode": "activations", "network": "resnet20", "dtype": "float32",
             "step_to_relu": ratio} for name, ratio in (("CosLU", 1.02), ("DELU", 1.1))]  # fmt: skip
    for table, told in ((rows, "1 of 3, DELU 1.1; not measured: ReLUN"),
                        ([], "0 of 3; not measured: CosLU, DELU, ReLUN")):  # fmt: skip
        monkeypatch.setattr(gpu, "side_by_side", lambda *_, t=table: DataFrame(t))
        found = {row["wanted"]: row for row in gpu.steps(options)}
        assert len(found) == 6  # three networks, two dtypes; a whole network compiled is no row
        step_of = found["step of resnet20, float32: at most 1.03 of ReLU's"]
        assert (step_of["found"], step_of["met"]) == (told, False)


def test_a_gpu_has_ended_its_work_when_the_clock_is_read(monkeypatch: pytest.MonkeyPatch):
    order: list[Any] = []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: order.append("clock") or 1.0)
    monkeypatch.setattr(torch.cuda, "synchronize", order.append)
    measure.timed(lambda: order.append("run"), "cuda:1")
    assert order == ["cuda:1", "clock", "run", "cuda:1", "clock"]


def test_a_lock_is_held_alone_or_together(tmp_path: Path):
    file, order = str(tmp_path / "lock"), []
    with measure.locked(file, alone=False), measure.locked(file, alone=False):
        pass  # together

    def alone() -> None:
        with measure.locked(file, alone=True):
            order.append("alone")

    thread = threading.Thread(target=alone)
    with measure.locked(file, alone=False):
        thread.start()
        thread.join(0.2)
        order.append("others")
    thread.join()
    assert order == ["others", "alone"]


def test_the_share_of_a_copys_bandwidth(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(activations, "_copy", lambda x: {"forward": 0.002, "both": 0.002})
    monkeypatch.setattr(activations, "_pass", lambda *_: {"forward": 0.003, "both": 0.01})
    options = argparse.Namespace(
        shape=[2, 3], per_channel=False, modes=["off"], only=["CosLU"], rounds=2, lock=None,
        channels_last=False, dtypes=["float32"], device="cpu",
    )  # fmt: skip
    # a copy moves two tensors in 2 ms, forward and backward five in 10 ms
    assert set(activations.measure(options)["of_copy_percent"]) == {50}


def test_plain_times_are_not_called_fused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernel, "_BACKEND", fails)
    monkeypatch.setattr(kernel, "_PLAIN", set())
    kernel._kernel.cache_clear()
    words = "bench activations --shape 2 4 60 --modes activations --only CosLU --dtypes float32"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--out", str(tmp_path)])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    with (
        pytest.warns(UserWarning, match="stay plain"),
        pytest.raises(SystemExit, match=r"CosLU in mode activations did not compile .*--modes"),
    ):
        __main__.main()
    kernel._kernel.cache_clear()
    assert not list(tmp_path.iterdir())


def test_results_with_other_settings_are_not_replaced(tmp_path: Path):
    first = __main__.place(tmp_path, "step", {"rounds": 3, "keep_memory": True, "lock": None})
    assert first.name == "step-keep_memory"
    first.with_suffix(".json").write_text(
        json.dumps({"settings": {"rounds": 3, "networks": ["a"]}})
    )
    settings = {"rounds": 3, "networks": ["a"], "keep_memory": True}
    assert __main__.place(tmp_path, "step", settings).name == "step-keep_memory_2"
    first.with_suffix(".json").write_text(json.dumps({"settings": settings}))
    assert __main__.place(tmp_path, "step", settings) == first


def test_a_training_that_fails_on_a_gpu_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = {"ok": ("ok", "", [{"val/acc": 0.97}]), "early": ("failed", "out of memory", []),
            "late": ("diverged", "the loss is nan", [{"val/acc": None}])}  # fmt: skip

    def call(options: Any, name: str, words: list[str]) -> tuple[int, str]:
        place = Path(words[words.index("--trainer.logger.save_dir") + 1])
        place.mkdir(parents=True)
        status, message, epochs = told[name.removeprefix("fit_")]
        content = {"status": status, "message": message, "epochs": epochs}
        (place / "results.json").write_text(json.dumps(content))
        return 0, ""

    monkeypatch.setattr(gpu, "call", call)
    monkeypatch.setattr(gpu, "TRAININGS", {name: [] for name in told})
    options = argparse.Namespace(quick=False, out=tmp_path, device="cpu")
    rows = {row["wanted"].rpartition(" ")[2]: row for row in gpu.trainings(options)}
    assert [rows[name]["met"] for name in told] == [True, False, False]
    assert rows["early"]["found"].startswith("failed: out of memory")
    assert rows["late"]["found"].startswith("diverged: the loss is nan")


@pytest.mark.slow
def test_all_that_a_gpu_can_tell_tried_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["bench", "gpu", "--device", "cpu", "--quick", "--jobs", "2", "--minutes", "30"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path)])
    __main__.main()
    rows = json.loads((tmp_path / "gpu-quick.json").read_text())["rows"]
    found = {row["wanted"]: row["found"] for row in rows}
    assert found["tests pass"] == "4 passed"
    assert "after 1 epochs" in found["learns Digits: float32"]
    assert " of 1" in found["step of resnet8, float32: at most 1.03 of ReLU's"]
    written = json.loads((tmp_path / "gpu-quick" / "activations.json").read_text())
    assert (written["gpu"], written["settings"]["quick"]) == (None, True)
    table = written["rows"]
    assert {(row["size"], row["function"]) for row in table} >= {
        (size, name) for size in gpu.SIZES for name in ("CosLU", "Rational", "nn.SiLU")
    }
