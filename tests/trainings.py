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

GENTLE = {"a": 1.5, "b": 0.5}  # the paper's slopes need more care than these short runs take
GENTLE_DSRELU = partial(DSReLU, **GENTLE)


def classifier(activation: Any = GENTLE_DSRELU, **more: Any) -> Classifier:
    torch.manual_seed(4)
    return Classifier("resnet8", 3, 1, 8, activation, **more)


SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)


class Small(LightningModule):
    """A scheduled and a learned function in a network that trains five times as fast."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer] = SGD) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.optimizer = optimizer
        self.backbone = nn.Sequential(
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
        self.log("val/loss", self.loss(*batch[:2]))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.backbone(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(parameter_groups(self.backbone))


def trainer(tmp_path: Path, *callbacks: Callback, **more: Any) -> Trainer:
    """8 batches an epoch and 3 epochs of `tests.data.Tiny`: 24 steps."""
    more = {"max_epochs": 3, "logger": False, "enable_checkpointing": False} | more
    return Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, log_every_n_steps=2,
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
