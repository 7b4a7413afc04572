"""The head first, and Lightning's BackboneFinetuning: hand-written loops say what must come out."""

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

import train
from activations import CosLU
from callbacks import AlternatingOptimization, HeadFirst, LastCheckpoint
from tests.data import Tiny
from tests.trainings import SGD, Small, batches, classifier, same, trainer

EPOCHS, STEPS = 5, 8  # of `Tiny`, and steps in each
HEAD = {"fc.weight", "fc.bias"}


def cosine(step: int) -> float:
    return (1 + math.cos(math.pi * step / (EPOCHS * STEPS))) / 2


def halves(step: int) -> float:
    return 0.5 ** sum(step // STEPS >= each for each in (2, 4))


def restarts(step: int) -> float:
    return 0.1 if step // STEPS in (1, 3) else 1.0


class Planned(Small):
    """Shapes learn three times as fast; the plan moves by step, by epoch, or never."""

    def __init__(self, plan: Callable[[int], float] | None) -> None:
        super().__init__(decay=0.003)
        self.plan = plan

    def configure_optimizers(self) -> Any:
        optimizer: Any = super().configure_optimizers()
        optimizer.param_groups[1]["lr"] *= 3
        schedules: dict[Any, Callable[[], Any]] = {
            None: lambda: None,
            cosine: lambda: {"scheduler": LambdaLR(optimizer, cosine), "interval": "step"},
            restarts: lambda: {"scheduler": LambdaLR(optimizer, restarts), "interval": "step"},
            halves: lambda: {"scheduler": MultiStepLR(optimizer, [2, 4]), "interval": "epoch"},
        }
        if isinstance(found := schedules[self.plan](), dict) and self.plan is halves:
            found["scheduler"].gamma = 0.5
        return {"optimizer": optimizer, **({"lr_scheduler": found} if found else {})}


def by_hand(model: Small, plan: Callable[[int], float], rate: Callable[[int, int], float | None]):
    """Train; `rate` of the epoch and step is that of all but the head, None while it is frozen."""
    parameters = dict(model.backbone.named_parameters())
    head = SGD([parameters[name] for name in HEAD])
    weights = SGD([p for n, p in parameters.items() if n not in HEAD and n[:4] != "act2"])
    shapes = SGD([p for n, p in parameters.items() if n[:4] == "act2"], weight_decay=0.003)
    step = 0
    for epoch, found in enumerate(batches(EPOCHS)):
        for images, labels in found:
            model.loss(images, labels).backward()
            head.param_groups[0]["lr"] = 0.1 * plan(step)
            head.step()
            if (now := rate(epoch, step)) is not None:
                weights.param_groups[0]["lr"], shapes.param_groups[0]["lr"] = now, 3 * now
                weights.step()
                shapes.step()
            model.zero_grad()
            step += 1


# epoch -> rate of the backbone, by Lightning's documentation; None: the rate of the plan
RAMPS: dict[str, tuple[dict[str, Any], Any, dict[int, float | None]]] = {
    "constant": ({}, None, {1: 0.01, 2: 0.02, 3: 0.04, 4: 0.08}),
    "aligned": ({"lambda_func": lambda epoch: 5.0}, None, {1: 0.01, 2: 0.05, 3: None, 4: None}),
    "epoch": ({"backbone_initial_ratio_lr": 0.3}, halves, {1: 0.03, 2: None, 3: None, 4: None}),
    "step": ({"backbone_initial_lr": 0.02, "unfreeze_backbone_at_epoch": 2}, cosine,
             {2: 0.02, 3: None, 4: None}),
    "restarts": ({"lambda_func": lambda epoch: 2.0}, restarts, {1: 0.001, 2: 0.002, 3: 0.004, 4: 0.008}),
    "caught up": ({"lambda_func": lambda epoch: 1.5, "backbone_initial_ratio_lr": 1.0}, restarts,
                  {1: None, 2: None, 3: None, 4: None}),
    "beyond": ({"backbone_initial_lr": 0.001, "should_align": False,
                "lambda_func": lambda epoch: float(epoch)}, halves,
               {1: 0.001, 2: 0.003, 3: 0.012, 4: 0.06}),
    "at once": ({"unfreeze_backbone_at_epoch": 0, "lambda_func": lambda epoch: 1.0}, None,
                dict.fromkeys(range(5), 0.01)),
}  # fmt: skip


@pytest.mark.parametrize("name", RAMPS)
def test_lightnings_ramp_by_hand(tmp_path: Path, name: str):
    options, plan, rates = RAMPS[name]
    options = {"unfreeze_backbone_at_epoch": 1, **options}
    model, expected = Planned(plan), Small()
    callback = HeadFirst(head=["fc.*"], like=BackboneFinetuning(**options))
    run = trainer(tmp_path, callback, max_epochs=EPOCHS)
    run.fit(model, datamodule=Tiny())
    planned = plan or (lambda step: 1.0)

    def rate(epoch: int, step: int) -> float | None:
        found = rates.get(epoch, math.nan)
        return 0.1 * planned(step) if found is None else None if math.isnan(found) else found

    by_hand(expected, planned, rate)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-5, atol=1e-6)
    groups = run.optimizers[0].param_groups  # as without the callback
    assert [group["name"] for group in groups] == ["weights", "activations"]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.003]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_a_ramp_the_others_have_the_heads_rate_also_where_it_rises(tmp_path: Path):
    model, expected = Planned(restarts), Small()
    run = trainer(tmp_path, HeadFirst(1, head=["fc.*"]), max_epochs=EPOCHS)
    run.fit(model, datamodule=Tiny())
    by_hand(expected, restarts, lambda epoch, step: 0.1 * restarts(step) if epoch else None)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-5, atol=1e-6)


def test_train_bn_false_leaves_batch_normalisation(tmp_path: Path):
    model, start = Small(), Small().state_dict()
    like = BackboneFinetuning(1, train_bn=False)
    trainer(tmp_path, HeadFirst(head=["fc.*"], like=like)).fit(model, datamodule=Tiny())
    kept = {n for n, p in model.named_parameters() if torch.equal(p, start[n])}
    assert kept == {"backbone.bn1.weight", "backbone.bn1.bias"}
    assert not torch.equal(model.backbone.bn1.running_mean, start["backbone.bn1.running_mean"])


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("options", [{}, {"lr_scheduler": partial(MultiStepLR, milestones=[2])}])
def test_a_resumed_ramp_is_exact(tmp_path: Path, options: dict[str, Any]):
    def fit(name: str, path: Path | None = None) -> Any:
        model = classifier(CosLU, activation_lr_scale=2.0, **options)
        save = ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=1, save_top_k=-1)
        last = LastCheckpoint(dirpath=tmp_path / name, filename="last")
        like = BackboneFinetuning(1, lambda epoch: 1.5)
        run = trainer(tmp_path, save, last, HeadFirst(like=like), enable_checkpointing=True,
                      max_epochs=4, limit_train_batches=2)  # fmt: skip
        run.fit(model, datamodule=Tiny(), ckpt_path=path)
        return [model.state_dict(), run.optimizers[0].state_dict()]

    whole = fit("whole")
    for stop in (2, 3, 4, 5):
        assert same(fit(f"from{stop}", tmp_path / f"whole/step={stop}.ckpt"), whole), stop


def test_lightnings_line(tmp_path: Path, monkeypatch: Any, caplog: Any):
    monkeypatch.chdir(tmp_path)
    line: str = (
        "fit --data Digits --model.backbone resnet8 --model.activation CosLU "
        "--trainer.max_epochs 3 --trainer.limit_train_batches 2 --trainer.log_every_n_steps 1 "
        "--trainer.limit_val_batches 2 --trainer.accelerator cpu --trainer.callbacks+=BackboneFinetuning "
        "--trainer.callbacks.unfreeze_backbone_at_epoch 1 --trainer.callbacks.verbose true "
        "--trainer.callbacks.rounding 4 --trainer.callbacks.backbone_initial_ratio_lr 0.2"
    )
    train.main([str(word) for word in line.split()])
    rates = re.findall(r"of the head (\S+), of all others (\S+)", caplog.text)
    assert rates == [("0.075", "0.015"), ("0.025", "0.025")]  # a cosine over three epochs
    (config,) = tmp_path.rglob("config.yaml")
    assert "lightning.pytorch.callbacks.BackboneFinetuning" in config.read_text()


def test_a_group_of_the_users_own_may_be_called_head(tmp_path: Path):
    class Grouped(Small):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            *body, weight, bias = self.parameters()
            groups = [{"params": body, "name": "body"}, {"params": [weight, bias], "name": "head"}]
            return torch.optim.SGD(groups, 0.1)

    run = trainer(tmp_path, HeadFirst(1, head=["fc.*"]), max_epochs=2)
    run.fit(Grouped(), datamodule=Tiny())
    assert [group["name"] for group in run.optimizers[0].param_groups] == ["body", "head"]


def test_a_step_that_fails_leaves_the_groups(tmp_path: Path):
    class Failing(Small):
        def training_step(self, *args: Any) -> Any:
            if self.trainer.global_step == STEPS + 1:
                raise RuntimeError("out of memory")
            return super().training_step(*args)

    slow = BackboneFinetuning(1, lambda epoch: 1.5, backbone_initial_ratio_lr=0.1)
    run, model = trainer(tmp_path, HeadFirst(head=["fc.*"], like=slow), max_epochs=3), Failing()
    with pytest.raises(RuntimeError, match="out of memory"):
        run.fit(model, datamodule=Tiny())
    found = [(g["name"], g["lr"], len(g["params"])) for g in run.optimizers[0].param_groups]
    new = Small().configure_optimizers()
    optimizer = new["optimizer"] if isinstance(new, dict) else new
    assert found == [(g["name"], g["lr"], len(g["params"])) for g in optimizer.param_groups]


@pytest.mark.parametrize("name", ["resnet8", "timm/resnet18"])
def test_the_head_first(tmp_path: Path, name: str):
    torch.manual_seed(1)
    model = train.Classifier(name, 3, 1, 8, CosLU)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer(tmp_path, HeadFirst(1), max_epochs=1, limit_train_batches=2).fit(
        model, datamodule=Tiny()
    )
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
    assert changed == {"backbone.fc.weight", "backbone.fc.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    run = trainer(tmp_path, HeadFirst(1), max_epochs=2, limit_train_batches=2)
    run.fit(model, datamodule=Tiny())
    groups = {group["name"]: group for group in run.optimizers[0].param_groups}
    assert groups["activations"]["weight_decay"] == 0
    assert not [n for n, p in model.named_parameters() if torch.equal(p, start[n])]


class Own(BaseFinetuning):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (BackboneFinetuning, r"BackboneFinetuning .* use callbacks.HeadFirst.* as `like`"),
        (Own, r"^Own freezes .* use callbacks.HeadFirst, which trains the head first$"),
        (lambda: HeadFirst(-1), "epochs must be >= 0, got -1"),
        (lambda: HeadFirst(1, like=BackboneFinetuning()), "give one"),
        (lambda: HeadFirst(like=BackboneFinetuning(-2)), "unfreeze_backbone_at_epoch must be >= 0"),
        (lambda: HeadFirst(like=BackboneFinetuning(0, backbone_initial_lr=-1.0)), "must be > 0"),
        (lambda: HeadFirst(like=BackboneFinetuning(0, lambda epoch: 0.0)), r"lambda_func\(2\)"),
    ],
)
def test_what_cannot_work(tmp_path: Path, callback: Any, message: str):
    model: nn.Module = classifier(CosLU)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, callback(), max_epochs=2, limit_train_batches=1).fit(
            model, datamodule=Tiny()
        )
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_two_that_choose_who_learns(tmp_path: Path):
    with pytest.raises(ValueError, match="AlternatingOptimization both say"):
        trainer(tmp_path, HeadFirst(1), AlternatingOptimization()).fit(
            classifier(CosLU), datamodule=Tiny()
        )
