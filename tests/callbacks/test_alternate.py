"""Alternating optimisation against a loop with an optimizer for each group."""

import csv
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from timm.optim.lamb import Lamb

from callbacks import ActivationSchedule, AlternatingOptimization
from tests.data import Tiny
from tests.trainings import (
    SGD,
    Small,
    by_hand,
    classifier,
    is_shape,
    is_weight,
    same,
    trainer,
)

ROOT = Path(__file__).parents[2]
OPTIMIZERS = {
    "sgd": SGD,
    "nesterov": partial(torch.optim.SGD, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5),
    "amsgrad": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.3, amsgrad=True, foreach=False),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
    "lamb": partial(Lamb, lr=0.01, weight_decay=0.2),
}


def undecayed(make: Any, **more: Any) -> Small:
    """The same decay for shapes and weights, so that the oracle needs no groups of its own."""
    return Small(make, decay=make.keywords.get("weight_decay", 0.0), **more)


def assert_states_match(optimizers: list[Any], run: Any, model: Small) -> None:
    """Each parameter's state under the callback is that of the oracle's optimizer."""
    [trained] = run.optimizers
    theirs = dict(model.backbone.named_parameters())
    for optimizer, oracle in optimizers:
        names = {id(p): name for name, p in oracle.backbone.named_parameters()}
        for group in optimizer.param_groups:
            for p in group["params"]:
                state, expected = trained.state[theirs[names[id(p)]]], optimizer.state[p]
                assert state.keys() == expected.keys()
                assert same(dict(state), dict(expected)), names[id(p)]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("unit", "every"), [("step", 3), ("epoch", 1)])
def test_each_optimizer_against_one_for_each_group(
    tmp_path: Path, name: str, unit: Any, every: int
):
    model, oracle = undecayed(OPTIMIZERS[name]), undecayed(OPTIMIZERS[name])
    turns = AlternatingOptimization(["activations", "weights"], every, unit)
    run = trainer(tmp_path, turns)
    run.fit(model, datamodule=Tiny())
    found = by_hand(
        oracle,
        [is_shape, is_weight],
        (lambda step, epoch: step // every % 2)
        if unit == "step"
        else lambda step, epoch: epoch % 2,
    )
    assert same(model.state_dict(), oracle.state_dict())
    assert_states_match([(optimizer, oracle) for optimizer in found], run, model)
    if name == "lamb":
        steps = {g["name"]: int(g["step"]) for g in run.optimizers[0].param_groups}
        shapes = 12 if unit == "step" else 16
        assert steps == {"activations": shapes, "weights": 24 - shapes}


@pytest.mark.parametrize("accumulate", [2, 3])
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "value"])
def test_clipping_and_accumulation_see_the_learning_group_alone(
    tmp_path: Path, accumulate: int, norm: bool
):
    model, oracle = Small(), Small()
    turns = AlternatingOptimization(every=1, unit="step")
    limit = 0.2 if norm else 0.02
    run = trainer(tmp_path, turns, accumulate_grad_batches=accumulate, gradient_clip_val=limit,
                  gradient_clip_algorithm="norm" if norm else "value")  # fmt: skip
    run.fit(model, datamodule=Tiny())
    clip = torch.nn.utils.clip_grad_norm_ if norm else torch.nn.utils.clip_grad_value_
    norms = []

    def clipped(parameters: list[torch.nn.Parameter]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        norms.append(max(gradient.abs().max().item() for gradient in gradients))
        clip(parameters, limit)

    by_hand(
        oracle, [is_weight, is_shape], lambda step, epoch: step % 2, accumulate=accumulate, clip=clipped,
        decays=[0.01, 0.0],
    )  # fmt: skip
    assert max(norms) > limit
    assert same(model.state_dict(), oracle.state_dict())


def test_globs_lists_and_parameters_that_always_learn(tmp_path: Path):
    model, oracle = undecayed(SGD), undecayed(SGD)
    turns = AlternatingOptimization([["conv?.weight", "act2.a"], "fc.*", "act2.b"], 2, "step")
    run = trainer(tmp_path, turns)
    run.fit(model, datamodule=Tiny())
    groups = [
        lambda name: name in ("conv1.weight", "conv2.weight", "act2.a"),
        lambda name: name in ("fc.weight", "fc.bias"),
        lambda name: name == "act2.b",
    ]
    found = by_hand(oracle, groups, lambda step, epoch: step // 2 % 3)
    assert len(found) == 4  # bn1 and the biases of the convolutions always learn
    assert same(model.state_dict(), oracle.state_dict())
    assert_states_match([(optimizer, oracle) for optimizer in found], run, model)


def test_frozen_is_frozen_to_the_bit_and_statistics_follow(tmp_path: Path):
    """Every step: what is frozen, its optimizer state too, is what it was before the step."""

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module: Any, batch, batch_idx):
            state = trainer.optimizers[0].state
            self.before = {name: (p.detach().clone(), {k: v.clone() for k, v in state[p].items()} if p in state else {})
                           for name, p in pl_module.backbone.named_parameters()}  # fmt: skip
            self.mean = pl_module.backbone.bn1.running_mean.clone()

        def on_train_batch_end(self, trainer, pl_module: Any, outputs, batch, batch_idx):
            frozen = is_shape if trainer.current_epoch % 2 == 0 else is_weight
            state = trainer.optimizers[0].state
            for name, p in pl_module.backbone.named_parameters():
                unchanged = torch.equal(p, self.before[name][0])
                assert unchanged == frozen(name), name
                if unchanged:
                    assert same(dict(state[p]) if p in state else {}, self.before[name][1]), name
            assert not torch.equal(pl_module.backbone.bn1.running_mean, self.mean)

    make = partial(torch.optim.AdamW, lr=0.01)
    trainer(tmp_path, AlternatingOptimization(), Watch()).fit(Small(make), datamodule=Tiny())


@pytest.mark.filterwarnings("ignore:Be aware that when using")
@pytest.mark.parametrize(
    ("name", "unit", "every"),
    [("sgd", "step", 3), ("sgd", "epoch", 1), ("adamw", "epoch", 2), ("lamb", "step", 5)],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, name: str, unit: Any, every: int
):
    def fit(path: str | None, *more: Callback) -> dict[str, Any]:
        model = Small(OPTIMIZERS[name])
        turns = AlternatingOptimization(["activations", "weights"], every, unit)
        run = trainer(tmp_path, turns, ActivationSchedule(start=0.1), *more,
                      enable_checkpointing=bool(more))  # fmt: skip
        run.fit(model, datamodule=Tiny(), ckpt_path=path)
        return {"model": model.state_dict(), "optimizer": run.optimizers[0].state_dict()}

    whole = fit(None, ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1))
    for steps in (4, 8, 11, 16):  # within a turn and an epoch, and at their ends
        assert same(fit(str(tmp_path / f"step={steps}.ckpt")), whole), steps


def test_shares_are_logged_by_epoch(tmp_path: Path):
    from lightning.pytorch.loggers import CSVLogger

    def logged(turns: AlternatingOptimization) -> list[tuple[float, float]]:
        logger = CSVLogger(tmp_path)
        trainer(tmp_path, turns, logger=logger).fit(Small(), datamodule=Tiny())
        with open(Path(logger.log_dir) / "metrics.csv") as file:
            rows = [row for row in csv.DictReader(file) if row.get("alternating/weights")]
        names = ("alternating/weights", "alternating/act2.a+act2.b")
        return [(float(row[names[0]]), float(row[names[1]])) for row in rows]

    groups = ["weights", ["act2.a", "act2.b"]]
    assert logged(AlternatingOptimization(groups)) == [(1, 0), (0, 1), (1, 0)]
    by_step = logged(AlternatingOptimization(groups, 3, "step"))
    assert by_step == [(5 / 8, 3 / 8), (0.5, 0.5), (3 / 8, 5 / 8)]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["weights", "layr1.*"], r"group 'layr1.\*' fits none of 23 parameters, such as conv1"),
        (["weights", "layer1.*"], r"layer1.0.conv1.weight is in two groups: weights and layer1.\*"),
        (["layer1.*", ["fc.*", "layer?.0.bn1.bias"]],
         r"layer1.0.bn1.bias is in two groups: layer1.\* and fc.\*\+layer\?.0.bn1.bias"),
        (["weights", "weights"], "conv1.weight is in two groups: weights and weights"),
    ],
)  # fmt: skip
def test_groups_are_checked_against_the_network(tmp_path: Path, groups: Any, message: str):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, AlternatingOptimization(groups)).fit(classifier(), datamodule=Tiny())


def test_wrong_arguments(tmp_path: Path):
    unknown: Any = "batch"
    for groups in (["weights"], [], "weights"):
        with pytest.raises(ValueError, match="groups must be two or more that take turns, got"):
            AlternatingOptimization(groups)
    wrong: Any
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"every must be an integer >= 1, got {wrong}"):
            AlternatingOptimization(every=wrong)
    with pytest.raises(ValueError, match="unit must be 'epoch' or 'step', got 'batch'"):
        AlternatingOptimization(unit=unknown)
    with pytest.raises(ValueError, match="group activations is empty"):
        trainer(tmp_path, AlternatingOptimization()).fit(classifier(), datamodule=Tiny())
    model = Small(lambda groups: torch.optim.LBFGS(p for g in groups for p in g["params"]))
    with pytest.raises(ValueError, match="LBFGS changes all parameters together"):
        trainer(tmp_path, AlternatingOptimization()).fit(model, datamodule=Tiny())
    for turns, planned in (
        (AlternatingOptimization(every=3), "3 planned epochs"),
        (AlternatingOptimization(every=24, unit="step"), "24 planned steps"),
    ):
        with pytest.warns(UserWarning, match=f"activations never learns: the {planned} end before"):
            trainer(tmp_path, turns).fit(Small(), datamodule=Tiny())


def test_shared_activations_are_one_parameter(tmp_path: Path):
    from activations import FReLU

    model = classifier(FReLU, share="model")
    before = model.backbone.get_parameter("layer3.0.act2.a").clone()
    turns = AlternatingOptimization(["activations", "weights"])
    trainer(tmp_path, turns, max_epochs=2).fit(model, datamodule=Tiny())
    after = model.backbone.get_parameter("layer3.0.act2.a")
    assert not torch.equal(before, after)
    assert model.backbone.get_parameter("act1.a") is after


_TWO = """
import os, socket, sys
import torch
from tests.callbacks.test_alternate import one_of

with socket.socket() as free:
    free.bind(("", 0))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
other = os.fork()  # the imports take longest
os.environ["LOCAL_RANK"] = str(int(not other))
if __name__ == "__main__":
    run, state = one_of(2)
    torch.save(state, f"{sys.argv[1]}/{run.global_rank}.pt")
    torch.distributed.destroy_process_group()  # else its threads may end the interpreter by abort
    if other:
        assert os.waitpid(other, 0)[1] == 0
"""


def one_of(processes: int) -> Any:
    """Two epochs of twelve samples a step, shared between the processes."""
    model = Small()
    model.backbone.bn1 = torch.nn.Identity()  # whose statistics would be each process's own
    turns = AlternatingOptimization(["activations", "weights"], 3, "step")
    callbacks = [EMAWeightAveraging(decay=0.5), ActivationSchedule(end=0.5), turns]
    run = trainer(Path(), *callbacks, max_epochs=2, gradient_clip_val=0.2,
                  **{"devices": 2, "strategy": "ddp"} if processes == 2 else {})  # fmt: skip
    run.fit(model, datamodule=Tiny(batch_size=12 // processes, crop_padding=0, flip=False))
    return run, {"model": model.state_dict(), "optimizer": run.optimizers[0].state_dict()}


def test_two_processes_equal_one(tmp_path: Path):
    script = tmp_path / "two.py"
    script.write_text(_TWO)
    done = subprocess.run([sys.executable, script, tmp_path], cwd=ROOT, capture_output=True,
                          text=True, timeout=240, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sync_dist" not in done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    run, one = one_of(1)
    assert run.global_step == 8
    assert same(first, second)
    assert first["model"]["backbone.act1.slope"] == one["model"]["backbone.act1.slope"]
    for key, value in one["model"].items():
        torch.testing.assert_close(first["model"][key], value, rtol=1e-4, atol=1e-6)
    for key, state in one["optimizer"]["state"].items():
        torch.testing.assert_close(first["optimizer"]["state"][key], state, rtol=1e-4, atol=1e-6)
