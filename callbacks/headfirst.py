"""Fine-tuning in two stages: the head alone, then the whole network."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from activations.activation import positive

from .alternate import AlternatingOptimization, members
from .lightning_private import callbacks_of


class HeadFirst(Callback):
    """Trains the head alone for some epochs, then the whole network; for pretrained weights.

    The optimizer has all parameter groups from the start, so that the activations' shapes are in
    their own group, without weight decay, and each group follows the learning rate's plan. Frozen
    parameters have no gradient: the optimizer leaves them as they are to the bit. Statistics of
    batch normalisation change in both stages. On several GPUs it needs
    `--trainer.strategy ddp_find_unused_parameters_true`.

    In `train.py`, Lightning's BackboneFinetuning becomes this: all but the head is the backbone,
    whose learning rate grows as that callback says. When it has reached the head's, it follows the
    plan, within an epoch too. Shapes have this rate times `activation_lr_scale`. The rates are
    logged as `lr/<group>`; Lightning's LearningRateMonitor shows the plan.

    Args:
        epochs: so many epochs train the head alone; by default 10.
        head: globs over parameter names (`fc.*`); by default the last layer with an output for each
            class, and the part for a side input.
        like: Lightning's callback, which then says when and how the others begin to learn; by
            default they have the head's rate at once.

    Raises:
        ValueError: epochs < 0, a rate <= 0, no head is found, AlternatingOptimization is in use,
            or several processes wait for the gradients of frozen parameters.
    """

    def __init__(
        self,
        epochs: int | None = None,
        head: list[str] | None = None,
        like: BackboneFinetuning | None = None,
    ) -> None:
        if like and epochs is not None:
            raise ValueError("like has its own epochs, unfreeze_backbone_at_epoch: give one")
        epochs = 10 if epochs is None else epochs
        self.like = like or BackboneFinetuning(epochs, backbone_initial_ratio_lr=1.0)
        self.epochs, self.head = self.like.unfreeze_backbone_at_epoch, head
        if self.epochs < 0:
            name = "unfreeze_backbone_at_epoch" if like else "epochs"
            raise ValueError(f"{name} must be >= 0, got {self.epochs}")
        for name in ("backbone_initial_ratio_lr", "backbone_initial_lr"):
            if (rate := getattr(self.like, name)) is not None:
                positive(name, rate)
        self._others: list[nn.Parameter] = []
        self._kept = set[int]()  # of these, the ids of those that never learn
        self._epoch = -1
        self._rate: float | None = None  # of the others in that epoch
        self._planned = True  # they follow the plan instead
        self._undo: list[tuple[dict[str, Any], list[nn.Parameter], float]] = []
        self._added: list[dict[str, Any]] = []  # groups of the optimizer, for one step

    def state_dict(self) -> dict[str, Any]:
        """The present rate."""
        return {"epoch": self._epoch, "rate": self._rate, "planned": self._planned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from that rate."""
        self._epoch, self._rate = state_dict["epoch"], state_dict["rate"]
        self._planned = state_dict["planned"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier training."""
        self._epoch, self._rate, self._planned = -1, None, True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze all but the head, unless its epochs are over."""
        if callbacks_of(trainer, AlternatingOptimization):
            raise ValueError(
                "HeadFirst (BackboneFinetuning) and AlternatingOptimization both say which "
                "parameters learn: leave one out"
            )
        if not getattr(trainer.strategy.model, "find_unused_parameters", True):
            raise ValueError(
                "HeadFirst (BackboneFinetuning) on several processes needs --trainer.strategy "
                "ddp_find_unused_parameters_true: frozen parameters have no gradient"
            )
        head = self._parameters(pl_module)
        known = {id(parameter) for parameter in head}
        self._others = [p for p in pl_module.parameters() if p.requires_grad and id(p) not in known]
        norms = [each for each in pl_module.modules() if isinstance(each, _BatchNorm)]
        self._kept = {
            id(p) for norm in norms for p in norm.parameters() if not self.like.train_bn
        } - known
        self._freeze(trainer)
        if trainer.current_epoch < self.epochs:
            count = sum(parameter.numel() for parameter in head)
            rank_zero_info(f"The head ({count:,} parameters) trains alone for {self.epochs} epochs")
            if 0 < (trainer.max_epochs or 0) <= self.epochs:
                rank_zero_info(
                    f"The rest never learns: trainer.max_epochs is {trainer.max_epochs}, and the "
                    f"head trains alone for {self.epochs}"
                )
        for optimizer in trainer.optimizers:
            optimizer.register_step_pre_hook(self._slow)
            optimizer.register_step_post_hook(self._put_back)

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """In a new epoch, let the others learn if it is time, and choose their rate."""
        epoch, line = trainer.current_epoch, self.like
        if epoch == self._epoch:
            return  # a run that goes on after an epoch's last step has no on_train_epoch_start
        self._epoch = epoch
        self._freeze(trainer)
        if epoch < self.epochs:
            return
        plan = trainer.optimizers[0].param_groups[0]["lr"]
        if epoch == self.epochs or self._rate is None:
            first = line.backbone_initial_lr
            rate = plan * line.backbone_initial_ratio_lr if first is None else first
        elif self._planned:
            rate = plan
        else:
            rate = self._rate * positive(f"lambda_func({epoch + 1})", line.lambda_func(epoch + 1))
            rate = min(rate, plan) if line.should_align else rate
        self._rate, self._planned = rate, line.should_align and rate == plan
        if line.verbose:
            head, others = round(plan, line.rounding), round(rate, line.rounding)
            rank_zero_info(f"learning rate of the head {head}, of all others {others}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a network that can be trained."""
        self._release()

    def on_exception(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Leave a network that can be trained, and groups of which a checkpoint can be saved."""
        for optimizer in trainer.optimizers:
            self._put_back(optimizer, None, None)
        self._release()

    def _freeze(self, trainer: Trainer) -> None:
        for each in self._others:
            each.requires_grad_(trainer.current_epoch >= self.epochs and id(each) not in self._kept)

    def _slow(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """For one step, give the others a rate of their own: the schedule knows nothing of it."""
        if self._planned or self._rate is None:
            return
        groups, others = optimizer.param_groups, {id(each) for each in self._others}
        first = groups[0].get("initial_lr", groups[0]["lr"]) or 1.0
        for group in list(groups):
            params = group["params"]
            slow = [each for each in params if id(each) in others]
            head = [each for each in params if id(each) not in others]
            if not slow:
                continue
            self._undo.append((group, params, group["lr"]))
            if head:
                self._added.append({**group, "params": head})
                groups.append(self._added[-1])
            scale = group.get("initial_lr", group["lr"]) / first
            group.update(params=slow, lr=self._rate * scale)

    def _put_back(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group, params, rate in self._undo:
            group.update(params=params, lr=rate)
        groups, added = optimizer.param_groups, set(map(id, self._added))
        groups[:] = [group for group in groups if id(group) not in added]
        self._undo, self._added = [], []

    def _release(self) -> None:
        for parameter in self._others:
            parameter.requires_grad_(True)
        self._others = []

    def _parameters(self, model: LightningModule) -> list[nn.Parameter]:
        if self.head:
            return members(model, [self.head])[0]
        classes = dict(model.hparams).get("num_classes")
        own = dict(model.named_parameters())
        side = [own.pop(name) for name in [*own] if name.startswith("backbone.side.")]
        named = [name for name, each in own.items() if each.shape[:1] == (classes,)]
        layers = [name.rpartition(".")[0] for name in named if name.endswith("weight")]
        if not layers:
            raise ValueError(f"no layer has {classes} outputs: name the head, such as head: [fc.*]")
        last = own[f"{layers[-1]}.weight"].shape
        heads = [each for each in layers if own[f"{each}.weight"].shape == last]
        return [*(p for each in heads for p in model.get_submodule(each).parameters()), *side]
