"""The LightningModule that trains any backbone with any activation."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from activations import (
    SwapReport,
    fuse,
    gain,
    parameter_groups,
    penalty,
    replace_activations,
)

from .backbones import Stem, build_backbone, check_input
from .metrics import classification_metrics, log_classes
from .weights import kaiming_, load_weights, read_weights

Batch = tuple[Tensor, ...]


def _sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4)


class Classifier(LightningModule):
    """Image classification with a backbone whose activations are swapped.

    Metrics: `val/` and `test/` loss (cross-entropy, neither smoothed nor weighted), acc, f1
    (macro), auroc (macro), and acc_top5 for ten classes or more. Every sample counts once, however
    many processes there are. For up to ten classes `test` adds each one's `test_sensitivity/`,
    `test_predictivity/` and `test_f1/`, and the confusion matrix, in TensorBoard and as
    `confusion.png` in the run's folder.

    Args:
        backbone: name of the network; see `models.build_backbone`.
        num_classes: size of the output; the data set's in train.py.
        in_channels: channels of the images; the data set's in train.py.
        image_size: side of the images in pixels, or length of the signals; the data set's in
            train.py.
        activation: makes one activation a call; by default the network keeps its own.
        activation_by_site: other factories for globs over the calls' names (`layer4.*`), which win.
        share: channel, site, stage or model: how widely an activation's parameters are shared; see
            `activations.replace_activations`, also for the next four.
        match: true starts each function as the one it replaces, on the first training batch; fade
            moves from the old one to the new one during training.
        include: globs over the calls' names: only these are swapped.
        exclude: globs over the calls' names: these are not.
        include_kinds: gates to be swapped too, such as Sigmoid.
        dims: 2 for images, 1 for signals; the data set's in train.py.
        stem: small, imagenet or auto; see `models.build_backbone`, also for the next two.
        pretrained: start from the library's weights.
        checkpoint_path: start from weights in a file; those of swapped networks too.
        backbone_kwargs: further arguments of the network's constructor.
        init: library keeps the network's own initialisation; kaiming draws the weights anew with
            the gain of the activation.
        optimizer: makes the optimizer from its parameter groups; SGD (0.1, momentum 0.9, weight
            decay 1e-4) by default.
        lr_scheduler: makes the scheduler, stepped once an epoch. By default the learning rate
            falls to 0 along a cosine, step by step over the planned training.
        loss: of training: cross_entropy, or bce, the binary cross-entropy of each class.
        label_smoothing: of the training loss, from 0 to 1.
        class_weights: weight of each class in the training loss; wins over `--data.balance loss`.
        activation_weight_decay: weight decay of the activations' own parameters.
        activation_lr_scale: their learning rate, as a multiple of the weights' one.
        compile: activations fuses each function into one kernel each way, model compiles the whole
            network; either costs half a minute at the start (docs/performance.md).

    Raises:
        ValueError: an unknown backbone, a wrong number of class weights, a number out of range,
            or a backbone whose activations cannot be swapped.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        backbone: str = "resnet20",
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        activation: Callable[[], nn.Module] | None = None,
        activation_by_site: dict[str, Callable[[], nn.Module]] | None = None,
        share: Literal["channel", "site", "stage", "model"] = "site",
        match: bool | Literal["fade"] = False,
        include: list[str] | str = "*",
        exclude: list[str] | str | None = None,
        include_kinds: list[str] | str | None = None,
        dims: int = 2,
        stem: Stem = "auto",
        pretrained: bool = False,
        checkpoint_path: str | None = None,
        backbone_kwargs: dict[str, Any] | None = None,
        init: Literal["library", "kaiming"] = "library",
        optimizer: OptimizerCallable = _sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        loss: Literal["cross_entropy", "bce"] = "cross_entropy",
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        activation_weight_decay: float = 0.0,
        activation_lr_scale: float = 1.0,
        compile: Literal["off", "activations", "model"] = "off",
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(
                f"class_weights has {len(class_weights)} numbers, the data {num_classes} classes"
            )
        if not activation_lr_scale > 0:
            raise ValueError(f"activation_lr_scale must be > 0, got {activation_lr_scale}")
        if init == "kaiming" and (pretrained or checkpoint_path):
            raise ValueError("init: kaiming would overwrite the pretrained weights")
        self.save_hyperparameters(logger=False)
        for name, value in list(self.hparams.items()):
            values = value.values() if isinstance(value, dict) else [value]
            if any(callable(each) for each in values):
                # a checkpoint holds data alone; train.py stores them as data
                del self.hparams[name]
        self.stem: Stem = "imagenet" if stem == "auto" and pretrained else stem
        self.backbone = build_backbone(
            backbone,
            num_classes,
            in_channels,
            dims,
            self.stem,
            pretrained,
            image_size=image_size,
            **(backbone_kwargs or {}),
        ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        example = torch.zeros(2, in_channels, *[image_size] * dims)
        check_input(self.backbone, example)
        factories = {**(activation_by_site or {}), **({"*": activation} if activation else {})}
        self.match, self.compile_mode, self.swapped = match, compile, SwapReport()
        if init == "kaiming":
            kaiming_(self.backbone, gain(activation() if activation else nn.ReLU()))
        if factories:
            self.swapped = replace_activations(
                self.backbone,
                factories,
                example_input=example,
                include=include,
                exclude=exclude or (),
                include_kinds=include_kinds or (),
                share=share,
                match="fade" if match == "fade" else False,
            )
        if checkpoint_path:
            new = tuple(call.name for call in self.swapped)
            load_weights(
                self.backbone, read_weights(checkpoint_path), source=checkpoint_path, fresh=new
            )
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.loss, self.label_smoothing = loss, label_smoothing
        self.activation_weight_decay = activation_weight_decay
        self.activation_lr_scale = activation_lr_scale
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights)
        self._balance: Tensor | None = None
        metrics = classification_metrics(num_classes)
        self.train_acc = MulticlassAccuracy(num_classes, average="micro")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.confusion = MulticlassConfusionMatrix(num_classes) if num_classes <= 10 else None
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.test_loss = MeanMetric(nan_strategy="disable")

    def setup(self, stage: str) -> None:
        """Compile as asked; match new activations to old ones on the first batch of a new run."""
        if self.compile_mode == "activations":
            fuse(self.backbone)
        if self.compile_mode == "model" and self.backbone._compiled_call_impl is None:
            self.backbone.compile()
        if stage == "fit" and self.match is True and self.swapped and not self.trainer.ckpt_path:
            data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            images, *_ = next(iter(data.train_dataloader()))
            self.swapped.match(self.backbone, images.to(next(self.parameters()).device))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint needs no other weights to be read."""
        known = checkpoint.get("hyper_parameters")
        if known is not None:
            known.update(stem=self.stem, pretrained=False, checkpoint_path=None)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (logits) of (N, C, H, W) images or (N, C, L) signals."""
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.backbone(images)

    def on_train_start(self) -> None:
        """Take the class weights of data that ask for them (`--data.balance loss`)."""
        weights = getattr(self.trainer.datamodule, "class_weights", None)  # pyright: ignore[reportAttributeAccessIssue]
        self._balance = None if weights is None else weights.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy, smoothed and weighted as configured, plus the activations' penalties."""
        images, labels, *_ = batch
        scores = self(images)
        weights = self._balance if self.class_weights is None else self.class_weights
        smoothing = self.label_smoothing
        if self.loss == "bce":
            shares = labels if labels.ndim == 2 else F.one_hot(labels, scores.shape[1])
            shares = shares * (1 - smoothing) + smoothing / scores.shape[1]
            loss = F.binary_cross_entropy_with_logits(scores, shares.to(scores), weight=weights)
        else:
            loss = F.cross_entropy(scores, labels, weight=weights, label_smoothing=smoothing)
        loss = loss + penalty(self.backbone)
        # mixed images have a share in several classes
        self.train_acc.update(scores, labels.argmax(1) if labels.ndim == 2 else labels)
        self.log("train/loss", loss)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
        every = getattr(self.trainer, "log_every_n_steps", 50) or math.inf
        if (self.trainer.global_step + 1) % every == 0:  # the host waits while a GPU takes a number
            for group in self.trainer.optimizers[0].param_groups:
                self.log(f"lr/{group['name']}", group["lr"])
        self._last_loss = loss.detach()
        return loss

    def on_train_epoch_end(self) -> None:
        """Stop a run that has diverged: nothing would be learned any more."""
        if not self._last_loss.isfinite():
            raise ValueError(
                f"the training loss is {self._last_loss.item()} at the end of epoch "
                f"{self.current_epoch}: the run has diverged. Lower the learning rate "
                "(--model.optimizer.lr) or clip harder (--trainer.gradient_clip_val 1)"
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the `val/` metrics."""
        self._evaluate(batch, self.val_metrics, self.val_loss, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the `test/` metrics."""
        scores = self._evaluate(batch, self.test_metrics, self.test_loss, "test")
        if self.confusion is not None:
            self.confusion.update(scores, batch[1])

    def on_test_epoch_end(self) -> None:
        """Log what the confusion matrix says of each class, and draw it."""
        if self.confusion is None:
            return
        matrix = self.confusion.compute()
        self.confusion.reset()
        log_classes(self, matrix)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Index in the data set, label and class probabilities of each image."""
        images, labels, index = batch
        return {"index": index, "label": labels, "probability": self(images).softmax(1)}

    def _evaluate(
        self, batch: Batch, metrics: MetricCollection, mean_loss: MeanMetric, stage: str
    ) -> Tensor:
        images, labels, *_ = batch
        scores = self(images).float()
        metrics.update(scores, labels)
        mean_loss.update(F.cross_entropy(scores, labels, reduction="none"))
        self.log(f"{stage}/loss", mean_loss)
        self.log_dict(metrics, prog_bar=stage == "val")  # pyright: ignore[reportArgumentType]
        return scores

    def configure_optimizers(self) -> Any:
        """The optimizer over (weights, activations' shapes), and the scheduler."""
        groups = parameter_groups(
            self.backbone, activation_weight_decay=self.activation_weight_decay
        )
        optimizer = self.optimizer(groups)
        for group in optimizer.param_groups:
            if group["name"] == "activations":
                group["lr"] *= self.activation_lr_scale
        if self.lr_scheduler is None:
            steps = self.trainer.estimated_stepping_batches
            if not 0 < steps < float("inf"):
                raise ValueError(
                    "the default cosine needs a planned length: set trainer.max_epochs or "
                    "trainer.max_steps, or choose model.lr_scheduler"
                )
            # by its formula, so that a resumed run with a new length follows the new plan
            scheduler = LambdaLR(
                optimizer, lambda step: (1 + math.cos(math.pi * min(step / steps, 1))) / 2
            )
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
        scheduler = self.lr_scheduler(optimizer)
        plateau = isinstance(scheduler, ReduceLROnPlateau)
        monitor = {"monitor": scheduler.monitor} if plateau else {}
        return [optimizer], [{"scheduler": scheduler, "interval": "epoch", **monitor}]
