"""Fine-tuning in two stages: the head alone, then the whole network."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from .alternate import members


class HeadFirst(Callback):
    """Trains the head alone for some epochs, then the whole network; for pretrained weights.

    The optimizer has all parameter groups from the start, so that the activations' shapes are in
    their own group, without weight decay, and each group follows the learning rate's plan. Frozen
    parameters have no gradient: the optimizer leaves them as they are to the bit. Statistics of
    batch normalisation change in both stages. On several GPUs it needs
    `--trainer.strategy ddp_find_unused_parameters_true`.

    Args:
        epochs: so many epochs train the head alone.
        head: globs over parameter names (`fc.*`); by default the last layer with an output for each
            class.

    Raises:
        ValueError: epochs < 1, or no head is found.
    """

    def __init__(self, epochs: int = 10, head: list[str] | None = None) -> None:
        if epochs < 1:
            raise ValueError(f"epochs must be >= 1, got {epochs}")
        self.epochs, self.head = epochs, head
        self._frozen: list[nn.Parameter] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze all but the head, unless its epochs are over."""
        head = self._parameters(pl_module)
        if trainer.current_epoch < self.epochs:
            known = {id(parameter) for parameter in head}
            parameters = [each for each in pl_module.parameters() if each.requires_grad]
            self._frozen = [each for each in parameters if id(each) not in known]
            for each in self._frozen:
                each.requires_grad_(False)
            count = sum(parameter.numel() for parameter in head)
            rank_zero_info(f"The head ({count:,} parameters) trains alone for {self.epochs} epochs")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the others learn when it is time."""
        if trainer.current_epoch >= self.epochs:
            self._release()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a network that can be trained."""
        self._release()

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        """Leave a network that can be trained."""
        self._release()

    def _release(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def _parameters(self, model: LightningModule) -> list[nn.Parameter]:
        if self.head:
            return members(model, [self.head])[0]
        classes = dict(model.hparams).get("num_classes")
        named = [name for name, each in model.named_parameters() if each.shape[:1] == (classes,)]
        layers = [name.rpartition(".")[0] for name in named if name.endswith("weight")]
        if not layers:
            raise ValueError(f"no layer has {classes} outputs: name the head, such as head: [fc.*]")
        return list(model.get_submodule(layers[-1]).parameters())
