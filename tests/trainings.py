"""Real, small trainings that several files of tests share."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from activations import DSReLU, FReLU, parameter_groups
from models import Classifier
from tests.data import Tiny

GENTLE = {"a": 1.5, "b": 0.5}  # the paper's slopes need more care than these short runs take
GENTLE_DSRELU = partial(DSReLU, **GENTLE)


def classifier(activation: Any = GENTLE_DSRELU, **more: Any) -> Classifier:
    torch.manual_seed(4)
    return Classifier("resnet8", 3, 1, 8, activation, **more)


SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)


class Small(LightningModule):
    """A scheduled and a learned function in a network that trains five times as fast."""

    def __init__(
        self, optimizer: Callable[..., torch.optim.Optimizer] = SGD, decay: float = 0.0
    ) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.optimizer, self.decay = optimizer, decay
        self.backbone: Any = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 4, 3, 2),
                bn1=nn.BatchNorm2d(4),
                act1=GENTLE_DSRELU(),
                conv2=nn.Conv2d(4, 6, 2),
                act2=FReLU(b=0.2, num_parameters=6),
                flat=nn.Flatten(),
                fc=nn.Linear(24, 3),
            )
        )

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.backbone(images), labels)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(*batch[:2])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(*batch[:2]), sync_dist=True)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.backbone(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = parameter_groups(self.backbone, activation_weight_decay=self.decay)
        return self.optimizer(groups)


def trainer(tmp_path: Path, *callbacks: Callback, **more: Any) -> Trainer:
    """8 batches an epoch and 3 epochs of `tests.data.Tiny`: 24 steps."""
    more = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
    } | more
    return Trainer(default_root_dir=tmp_path, log_every_n_steps=2,
                   enable_progress_bar=False, enable_model_summary=False,
                   callbacks=list(callbacks), **more)  # fmt: skip


def same(first: Any, second: Any) -> bool:
    """Equal to the bit, through dicts and lists."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(v, second[k]) for k, v in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def batches(epochs: int = 3) -> list[list[tuple[Tensor, Tensor]]]:
    """What each epoch of `Tiny` gives."""
    data = Tiny()
    data.setup("fit")
    loader, found = data.train_dataloader(), []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        found.append([(images, labels) for images, labels, *_ in loader])
    return found


def by_hand(
    model: Small,
    groups: list[Callable[[str], bool]],
    turn: Callable[[int, int], int] = lambda step, epoch: 0,
    *,
    epochs: int = 3,
    accumulate: int = 1,
    clip: Callable[[list[nn.Parameter]], Any] = lambda parameters: None,
    autocast: bool = False,
    progress: Callable[[int, int], float] = lambda step, epoch: 0.0,
    decays: list[float] | None = None,
    mean: dict[str, Tensor] | None = None,
    decay: Callable[[int], float] = lambda step: 0.9,
) -> list[torch.optim.Optimizer]:
    """The oracle: a loop with an optimizer for each group, of which one steps in its turn.

    `groups` tell by a parameter's name whether it is in; `turn` and `progress` are functions of the
    step and the epoch. `mean` receives the running mean of the state, of which `decay` keeps so much.
    """
    named = dict(model.backbone.named_parameters())
    of = [[p for name, p in named.items() if inside(name)] for inside in groups]
    free = [p for p in named.values() if not any(p is q for group in of for q in group)]
    optimizers = [model.optimizer([{"params": group}]) for group in of]
    for optimizer, value in zip(optimizers, decays or [], strict=bool(decays)):
        optimizer.param_groups[0]["weight_decay"] = value
    always = [model.optimizer([{"params": free}])] if free else []
    dtype, step = named["fc.weight"].dtype, 0
    for epoch, found in enumerate(batches(epochs)):
        for index, (images, labels) in enumerate(found):
            model.backbone.act1.set_progress(progress(step, epoch))
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
                loss = model.loss(images.to(dtype), labels)
            (loss / accumulate).backward()
            if (index + 1) % accumulate and index + 1 < len(found):
                continue
            now = turn(step, epoch)
            clip([*of[now], *free])
            for optimizer in (optimizers[now], *always):
                optimizer.step()
            model.zero_grad()
            step += 1
            if mean is not None:
                for name, value in model.state_dict().items():
                    old = mean.get(name)
                    new = value.detach().double()
                    share = decay(step - 1)
                    mean[name] = new if old is None else share * old + (1 - share) * new
    model.backbone.act1.set_progress(progress(step, epochs - 1))
    return [*optimizers, *always]


def is_shape(name: str) -> bool:
    return name.startswith("act2.")


def is_weight(name: str) -> bool:
    return not is_shape(name)
