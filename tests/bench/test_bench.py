"""The measurements: what their numbers mean, on clocks that the tests set."""

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from bench import __main__, loop, measure, start, step
from bench.report import write
from models import Classifier
from tests.data import Tiny


def test_saved_bytes_of_known_functions():
    x, y = torch.randn(100, requires_grad=True), torch.randn(100, requires_grad=True)
    assert measure.saved_bytes(lambda: x.exp()) == 400  # its result
    assert measure.saved_bytes(lambda: x + y) == 0
    assert measure.saved_bytes(lambda: x * y) == 800
    assert measure.saved_bytes(lambda: x * x) == 400  # one storage, kept twice
    assert measure.saved_bytes(lambda: x * y, own=[y]) == 400
    assert measure.saved_bytes(lambda: (x[:10] * y[:10]).exp()) == 840  # a view keeps it all


def test_spread_is_half_the_distance_of_the_quartiles():
    assert measure.spread([4, 1, 7, 2, 6, 3, 5]) == pytest.approx(50 * (6 - 2) / 4)


def test_turns_are_given_one_at_a_time(monkeypatch: pytest.MonkeyPatch):
    seconds = {"a": 1.0, "b": 10.0}
    clock, done = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    turns = {name: measure.Turns() for name in seconds}

    def train(name: str) -> None:
        for batch in turns[name].over(range(3)):
            clock[0] += seconds[name] * (batch + 1)
            done.append(f"{name}{batch}")

    threads = [turns[name].start(lambda name=name: train(name)) for name in seconds]
    for name in ("a", "b", "b", "a", "a", "b"):
        turns[name].step()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert done == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert turns["a"].wall == [0, 1, 2]
    assert turns["b"].wall == [0, 10, 20]


def test_what_fails_in_a_turn_is_raised():
    turns = measure.Turns()

    def train() -> None:
        for batch in turns.over(range(2)):
            raise ValueError(f"batch {batch}")

    turns.start(train)
    with pytest.raises(ValueError, match="batch 0"):
        turns.step()
    with pytest.raises(ZeroDivisionError):
        measure.Turns().start(lambda: 1 / 0)


@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_all_loops_train_the_same_network():
    options = argparse.Namespace(
        backbone="resnet8", activation="CosLU", compile="off", batch_size=4, steps=2, epochs=1,
        threads=1, device="cpu",
    )  # fmt: skip
    found = loop.train(options)
    assert list(found) == ["bare loop", *loop.PARTS]
    expected = found["bare loop"][1].backbone.state_dict()
    start = Classifier("resnet8").backbone.state_dict()["conv1.weight"]
    assert not torch.equal(expected["conv1.weight"], start)
    for name, (turns, model, inside) in found.items():
        assert len(turns.wall) == len(turns.processor) == 4, name
        for part, callback in loop.PARTS.items():
            has = name != "bare loop" and list(loop.PARTS).index(part) <= list(loop.PARTS).index(
                name
            )
            assert callback is None or (inside.of(callback) > 0) == has, (name, part)
        for key, value in model.backbone.state_dict().items():
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=name)


def test_the_loop_compares_medians_of_epochs(monkeypatch: pytest.MonkeyPatch):
    def turns(*epochs: float) -> tuple[measure.Turns, None, loop.Inside]:
        one, inside = measure.Turns(), loop.Inside()
        inside.spent = {
            "[Callback]ActivationMonitor.on_train_batch_end": 1.0,
            "[Callback]ActivationMonitor.on_train_epoch_end": 0.8,
            "[Callback]ActivationMonitor.on_train_end": 50.0,  # once a run, not an epoch
            "[Callback]ModelCheckpoint.on_train_epoch_end": 7.0,
        }
        for seconds in (99.0, *epochs):  # what comes first does not count
            one.wall += [seconds, 1.0]
            one.processor += [seconds / 2, 0.0]
        return one, None, inside

    times = {"bare loop": turns(7, 9, 30), "Trainer": turns(10, 11, 5), "monitor": turns(9, 14, 14)}
    monkeypatch.setattr(loop, "train", lambda options: times)
    rows = loop.measure(argparse.Namespace(steps=2, epochs=3))
    assert [row["variant"] for row in rows] == ["bare loop", "+ Trainer", "+ monitor"]
    assert [row["epoch_s"] for row in rows] == [10, 11, 15]
    assert [row["ratio"] for row in rows] == pytest.approx([1, 1.1, 1.5])
    assert [row["processor_s"] for row in rows] == [4.5, 5, 7]
    assert rows[2]["more_percent"] == pytest.approx(100 * (7 - 5) / 4.5)
    # 1.8 s in four epochs
    assert rows[2]["inside_percent"] == pytest.approx(100 * 0.45 / 4.5)
    assert rows[2]["inside_ms_a_step"] == pytest.approx(1e3 * 0.45 / 2)
    assert rows[1]["inside_percent"] is None
    assert "+ monitor" in loop.show(rows)


SECONDS = {  # first step, then each later one
    ("ReLU", "off"): (1.0, 2.0), ("SiLU", "off"): (1.0, 4.0), ("ReLU in place", "off"): (1.0, 1.0),
    ("CosLU", "off"): (3.0, 8.0), ("CosLU", "activations"): (43.0, 3.0),
}  # fmt: skip


def test_steps_against_relu_and_silu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    made: dict[tuple[str, str], Any] = {}

    class Scripted:
        def __init__(self, function: str, make: Any, mode: str, *rest: Any) -> None:
            assert isinstance(make(), torch.nn.Module)
            first, later = SECONDS[function, mode]
            self.times = itertools.chain([first], itertools.repeat(later))
            made[function, mode] = self

        def step(self) -> tuple[float, float]:
            seconds = next(self.times)
            return seconds, seconds**2

        def saved(self) -> int:
            return 1000 * len(made)

    monkeypatch.setattr(step, "Entry", Scripted)
    monkeypatch.setattr(step, "_start_compiler", lambda device: 20.0)
    options = argparse.Namespace(
        networks=["resnet8"], dtypes=["float32"], modes=["off", "activations"], rounds=3,
        activations=["CosLU"], device="cpu",
    )  # fmt: skip
    rows = {(row["function"], row["mode"]): row for row in step.measure(options)}
    assert set(rows) == set(SECONDS)
    fused = rows["CosLU", "activations"]
    assert (fused["step_ms"], fused["step_to_relu"], fused["step_to_silu"]) == (3000, 1.5, 0.75)
    assert (fused["processor_to_relu"], fused["processor_to_silu"]) == (9 / 4, 9 / 16)
    assert fused["first_step_s"] == 43 + 20
    assert fused["even_steps"] == (63 - 3) / (8 - 3)
    assert rows["CosLU", "off"]["even_steps"] is None
    table = step.show(list(rows.values()))
    assert len(table.splitlines()) == 2 + len(rows)
    step.draw(list(rows.values()), "title", tmp_path / "out" / "step.png")
    assert (tmp_path / "out" / "step.png").read_bytes().startswith(b"\x89PNG")
    write(tmp_path, "step", {"commit": "abc"}, list(rows.values()))
    assert json.loads((tmp_path / "step.json").read_text())["rows"][0]["function"] == "ReLU"
    assert len((tmp_path / "step.csv").read_text().splitlines()) == 1 + len(rows)


def test_a_real_step(monkeypatch: pytest.MonkeyPatch):
    options = argparse.Namespace(
        networks=["resnet8"], dtypes=["bfloat16"], modes=["off"], rounds=2, batch_size=2,
        activations=["torch.nn.Mish"], device="cpu", layout="channels_last",
    )  # fmt: skip
    rows = {row["function"]: row for row in step.measure(options)}
    assert list(rows) == ["ReLU", "SiLU", "ReLU in place", "torch.nn.Mish"]
    assert rows["ReLU in place"]["saved_to_relu_in_place"] == 1
    # an in-place ReLU keeps its result, which the next convolution keeps too; SiLU its input also
    assert rows["SiLU"]["saved_to_relu_in_place"] > 1.2
    assert rows["torch.nn.Mish"]["saved_to_silu"] == pytest.approx(1)
    for row in rows.values():
        assert row["step_to_relu"] == row["step_ms"] / rows["ReLU"]["step_ms"]


@pytest.mark.slow
def test_signals_step_too():
    options = argparse.Namespace(batch_size=2, device="cpu", layout="channels_last")
    entry = step.Entry("CosLU", step.factory("CosLU"), "off", "float32", "resnet34-1d", options)
    before = entry.model.conv1.weight.clone()
    assert min(entry.step()) > 0
    assert entry.x.shape == (2, 1, 187)
    assert not torch.equal(entry.model.conv1.weight, before)


def test_start_tells_phases_after_the_command(tmp_path: Path):
    code = (
        "import time; print('noise'); print('bench start: parse', time.time()); sum(range(10**7))"
    )
    found = start.run(["-c", code], str(tmp_path), threads=1)
    assert 0 < found["parse"] <= found["end"]
    assert 0 < found["processor"] <= found["end"]
    with pytest.raises(RuntimeError, match="no such thing"):
        start.run(["-c", "raise SystemExit('no such thing')"], str(tmp_path), threads=1)


def test_start_compares_with_the_imports(monkeypatch: pytest.MonkeyPatch):
    caches = {}

    def run(code: list[str], cache: str, threads: int) -> dict[str, float]:
        caches.setdefault(Path(cache).parent, []).append(Path(cache).name)
        if code[0] == "-c":
            return {"end": 8.0 if "lightning" in code[1] else 9.0, "processor": 4.0}
        seconds = {"off": 10.0, "activations": 12.0}[code[-1]] + len(caches)
        return {"parse": 9.5, "prepare": 9.75, "step": seconds, "end": 99.0, "processor": 5.0}

    monkeypatch.setattr(start, "run", run)
    options = argparse.Namespace(
        cases=["off", "activations cold", "activations warm"], rounds=3, data="Digits", root=None,
        backbone="resnet8", activation="CosLU", accelerator="cpu", threads=1,
    )  # fmt: skip
    rows = {row["case"]: row for row in start.measure(options)}
    assert rows["import train"]["ratio"] == 9 / 8
    assert rows["off"]["seconds"] == statistics.median([11, 12, 13])
    assert rows["off"]["ratio"] == 12 / 8
    assert rows["off"]["processor_ratio"] == 5 / 4
    assert rows["off"]["prepare"] == 9.75
    assert rows["activations warm"]["seconds"] == 14
    # each round has folders of its own; warm finds what cold has left
    assert list(caches.values()) == [["none", "none", "none", "activations", "activations"]] * 3
    assert "activations warm" in start.show(list(rows.values()))


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
    lines = [
        x.split() for x in capsys.readouterr().out.splitlines() if x.startswith("bench start:")
    ]
    assert [line[2] for line in lines] == list(start.PHASES)
    assert sorted(float(line[3]) for line in lines) == [float(line[3]) for line in lines]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("step --activations CosLu", "--activations CosLu: module 'activations' has no attribute"),
        ("step --activations nowhere.Mine", "--activations nowhere.Mine: No module named"),
        ("step --rounds 1", "--rounds must be >= 2, got 1"),
        ("loop --epochs 1", "--epochs must be >= 2, got 1"),
        ("start --rounds 1", "--rounds must be >= 2"),
        ("start --cases off activations warm", "invalid choice: 'activations'"),
        ("start --cases off --cases activations\u00a0warm", "'activations warm' needs 'activations cold'"),
        ("nothing", "usage: python -m bench activations | data | loop | start | step"),
    ],
)  # fmt: skip
def test_slips(monkeypatch: pytest.MonkeyPatch, capsys: Any, line: str, message: str):
    words = [word.replace("\u00a0", " ") for word in line.split(" ")]
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(SystemExit) as stop:
        __main__.main()
    text = capsys.readouterr().err if isinstance(stop.value.code, int) else str(stop.value.code)
    assert message in text
