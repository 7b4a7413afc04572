"""Alternating optimisation: one group of parameters learns while the others are frozen."""

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import LBFGS, Optimizer

from activations import parameter_groups

from .sites import short_names


class AlternatingOptimization(Callback):
    """Lets groups of parameters learn in turn, `every` steps or epochs each, first group first.

    A frozen group has no gradient when the optimizer steps: its values and its optimizer state
    (momentum, averages, step counts) stay as they are to the bit, it is not decayed, and gradients
    are clipped by the norm of the learning group alone. All gradients are computed, so that
    processes stay synchronous. Batch normalisation's statistics and the learning rate change in
    every turn. The turn follows from the step or epoch alone, so a resumed run continues exactly.
    The share of each epoch's steps in which a group learned is logged as `alternating/<group>`.

    Args:
        groups: two or more. Each is `weights`, `activations` (what activations learn as their
            shape), a glob over parameter names (`layer4.*`), or a list of these. Parameters in no
            group always learn.
        every: length of a turn.
        unit: `epoch` or `step` (of the optimizer).

    Raises:
        ValueError: fewer than two groups, `every` < 1, a glob that fits no parameter, a parameter
            in two groups, or LBFGS, which changes all parameters together.

    Reference:
        Varshney and Singh 2021, doi 10.1007/s11760-021-01863-z, train FReLU in this way. They do
        not say how long a turn is; an epoch is our reading.
    """

    def __init__(
        self,
        groups: Sequence[str | list[str]] = ("weights", "activations"),
        every: int = 1,
        unit: Literal["epoch", "step"] = "epoch",
    ) -> None:
        if isinstance(groups, str) or len(groups) < 2:
            raise ValueError(f"groups must be two or more that take turns, got {groups!r}")
        if type(every) is not int or every < 1:
            raise ValueError(f"every must be an integer >= 1, got {every!r}")
        if unit not in ("epoch", "step"):
            raise ValueError(f"unit must be 'epoch' or 'step', got {unit!r}")
        self.groups = [[group] if isinstance(group, str) else list(group) for group in groups]
        self.every, self.unit = every, unit
        self._members: list[list[nn.Parameter]] = []
        self._counters: list[tuple[dict[str, Any], Any]] = []
        self._shares = torch.tensor([0.0, 1.0])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find each group's parameters."""
        if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise ValueError("LBFGS changes all parameters together: alternate with SGD or Adam")
        if self.unit == "step" and len(trainer.optimizers) > 1:
            raise ValueError(
                f"unit: step would count the steps of {len(trainer.optimizers)} optimizers "
                "together: use unit: epoch"
            )
        self._members = members(pl_module, self.groups)
        # numbers would be copied to a GPU in each step, which waits
        self._shares = self._shares.to(pl_module.device)
        planned = trainer.max_epochs if self.unit == "epoch" else trainer.estimated_stepping_batches
        for index, group in enumerate(self.groups):
            if 0 < (planned or 0) <= index * self.every:
                rank_zero_warn(
                    f"{_name(group)} never learns: the {planned} planned {self.unit}s end before "
                    f"its first turn (every: {self.every})"
                )
        sizes = [sum(parameter.numel() for parameter in group) for group in self._members]
        learned = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        turns = ", ".join(f"{_name(g)} ({n:,})" for g, n in zip(self.groups, sizes, strict=True))
        rank_zero_info(
            f"Parameters that learn in turn, for {self.every} {self.unit}"
            f"{'s' if self.every > 1 else ''} each: {turns}; always: {learned - sum(sizes):,}"
        )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Delete the frozen groups' gradients, ahead of clipping; log which group learns."""
        learning = self.turn(trainer)
        for index, group in enumerate(self._members):
            for parameter in group if index != learning else ():
                parameter.grad = None
            name = f"alternating/{_name(self.groups[index])}"
            share = self._shares[int(index == learning)]
            pl_module.log(name, share, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        # LAMB counts the steps of an optimizer group, with or without gradients
        self._counters += [
            (group, copy.deepcopy(group.get("step")))
            for group in optimizer.param_groups
            if all(parameter.grad is None for parameter in group["params"])
        ]

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Restore the frozen groups' step counts."""
        for group, step in reversed(self._counters):  # an optimizer may have stepped twice
            group.pop("step", None)
            group.update({} if step is None else {"step": step})
        self._counters = []

    def turn(self, trainer: Trainer) -> int:
        """Index of the group that learns at the trainer's present step."""
        done = trainer.global_step if self.unit == "step" else trainer.current_epoch
        return done // self.every % len(self.groups)


def members(model: nn.Module, groups: Sequence[Sequence[str]]) -> list[list[nn.Parameter]]:
    """The trained parameters of each group; names count from `model.backbone` if there is one."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    named = short_names({name: p for name, p in parameters.items() if p.requires_grad})
    kinds = {group["name"]: set(group["params"]) for group in parameter_groups(model)}
    owners: dict[nn.Parameter, int] = {}  # parameter -> index of its group
    for index, group in enumerate(groups):
        for pattern in group:
            if pattern in kinds:
                found = [name for name, parameter in named.items() if parameter in kinds[pattern]]
            else:
                found = [name for name in named if fnmatchcase(name, pattern)]
            if not found and pattern == "activations":
                raise ValueError(
                    "the group activations is empty: no activation of this network learns a shape; "
                    "choose one that does, such as FReLU, or other groups"
                )
            if not found:
                raise ValueError(
                    f"the group {pattern!r} fits none of {len(named)} parameters, such as "
                    f"{', '.join(list(named)[:3])}"
                )
            for name in found:
                first = owners.setdefault(named[name], index)
                if first != index:
                    raise ValueError(
                        f"the parameter {name} is in two groups: {_name(groups[first])} and "
                        f"{_name(group)}"
                    )
    return [[p for p, owner in owners.items() if owner == index] for index in range(len(groups))]


def _name(group: Sequence[str]) -> str:
    return "+".join(group)
