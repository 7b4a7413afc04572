"""The LightningModule that trains any backbone with any activation."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.cli import ReduceLROnPlateau as MonitoringPlateau
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from activations import fuse, parameter_groups, penalty
from activations.activation import choice, positive
from activations.functions.coslu import CosLU
from activations.torch_private import is_compiled

from .backbones import Stem
from .build import build_network
from .checkpoints import (
    FACTORIES,
    INSTANTIATOR,
    check_complete,
    check_fits,
    describe,
    read_checkpoint,
)
from .fusing import Estimate, estimate
from .metrics import (
    Calibration,
    check_monitors,
    check_validates,
    classification_metrics,
    log_chosen,
    log_classes,
    warn_of_absent,
)
from .side import class_scores, side_of
from .weights import (
    freeze_shapes,
    load_shapes,
    load_weights,
    read_weights,
    without_other_shapes,
)

# the short name ReduceLROnPlateau means the first: Lightning's, which knows its `monitor`
SchedulerCallable = (
    Callable[[torch.optim.Optimizer], MonitoringPlateau]
    | Callable[[torch.optim.Optimizer], LRScheduler]
)


def _sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4)


_SLOWER = (
    "Lower the learning rate (--model.optimizer.lr) or the bound of the gradients "
    "(--trainer.gradient_clip_val 1)"
)


class DivergedError(ArithmeticError):
    """The training loss, or the network's output, is not finite any more."""


def _has_limit(callback: Any) -> bool:
    return isinstance(callback, Timer) and callback.time_remaining() is not None


class Classifier(LightningModule):
    """Image classification with a backbone whose activations are swapped.

    A batch is (images, labels) or, as in `datamodules`, (images, labels, positions in the data
    set), and (images, labels, positions, side) where samples have numbers beside them, (N,
    side_size). `predict` also takes images alone.

    Metrics under `val/` and `test/`: loss (cross-entropy without smoothing or weights), acc,
    acc_majority (the accuracy of always naming the commonest class), f1 and auroc (both macro, over
    the classes that have samples), acc_top5 for ten classes or more, and macro-F1 over the classes
    that the data choose (MIT-BIH: f1_nsvf). Image sets whose classes have many (above 100), medium
    and few (below 20) training images also have acc_many, acc_medium and acc_few, the mean accuracy
    of these classes.
    `test/ece` is the expected calibration error, in 15 bins.
    Every sample counts once, for any number of processes. For up to ten classes `test` also logs
    `test_sensitivity/`, `test_predictivity/` and `test_f1/` of each class, and draws the confusion
    matrix, in TensorBoard and as `confusion.png` in the run's folder (`confusion_last.png` and
    `confusion_best.png` where both weights are tested).

    Args:
        backbone: name of the network, such as resnet20, timm/resnet50 or torchvision/vgg11.
        num_classes: size of the output; train.py takes it from the data.
        in_channels: channels of the input; train.py takes it from the data.
        image_size: side of the images in pixels, or length of the signals; train.py takes it from
            the data.
        activation: makes one activation for each call; by default the network keeps its own.
        activation_by_site: activations for some calls, by globs over their names (`layer4.*`); they
            win over `activation`.
        share: who has parameters of its own: each call (site), each channel of each call (channel),
            all calls on feature maps of one size (stage), or the whole network (model).
        match: true starts each function as the one that it replaces, on the first training batch;
            fade moves from the old function to the new one during training.
        include: globs over the names of calls; only these are swapped.
        exclude: globs over the names of calls; these are not swapped.
        include_kinds: gates that are swapped too, such as Sigmoid.
        dims: 2 for images, 1 for signals; train.py takes it from the data.
        stem: small for small images, imagenet for the library's own, auto to choose by image size.
        pretrained: start from the library's weights.
        checkpoint_path: start from the weights in this file, also those of a swapped network.
        backbone_kwargs: further arguments of the network's constructor.
        side_size: how many numbers stand beside each sample (`models.side.Side`), 0 for
            none; train.py takes it from the data.
        init: library keeps the network's own initialisation; kaiming draws the weights with the
            gain of the activation.
        optimizer: makes the optimizer of the parameter groups; by default SGD with learning rate
            0.1, momentum 0.9 and weight decay 1e-4.
        lr_scheduler: makes the scheduler; by default the learning rate falls to 0 along a cosine,
            step by step over the planned training. OneCycleLR takes its `total_steps` from there.
        lr_scheduler_interval: how often the scheduler moves: each step or each epoch; auto is each
            step for OneCycleLR and CyclicLR, each epoch for others.
        loss: training loss: cross_entropy, or bce, the binary cross-entropy of each class.
        label_smoothing: smoothing of the labels in the training loss, from 0 to 1.
        class_weights: weight of each class in the training loss; wins over `--data.balance loss`.
        activation_weight_decay: weight decay of the activations' own parameters.
        activation_lr_scale: learning rate of these parameters, as a multiple of the weights'.
        activation_frozen: true keeps these parameters at their start values.
        activation_from: start these parameters from the values in this checkpoint; all weights
            start anew.
        compile: activations fuses each function into one kernel each way; model compiles the whole
            network. Both take their time at the start. auto is activations in a training
            whose steps save more than that, else off; a resumed run goes on as it began, and an
            evaluation alone is off (`models/fusing.py`, docs/performance.md).
        data: what the data set tells of itself, such as class names, mean and deviation; a training
            takes it from the `description` of its data module, and checkpoints store it.

    Attributes:
        compiled: what is compiled: off, activations or model; "" until auto is decided.
        lr: learning rate that Lightning's LearningRateFinder has found; None: the optimizer's own.
        tested: which weights a test is of, last or best, where both are tested.

    Raises:
        ValueError: the backbone is unknown, its activations cannot be swapped, the number of class
            weights is wrong, or a number is out of range.
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
        side_size: int = 0,
        init: Literal["library", "kaiming"] = "library",
        optimizer: OptimizerCallable = _sgd,
        lr_scheduler: SchedulerCallable | None = None,
        lr_scheduler_interval: Literal["auto", "step", "epoch"] = "auto",
        loss: Literal["cross_entropy", "bce"] = "cross_entropy",
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        activation_weight_decay: float = 0.0,
        activation_lr_scale: float = 1.0,
        activation_frozen: bool = False,
        activation_from: str | None = None,
        compile: Literal["auto", "off", "activations", "model"] = "auto",
        data: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.activation_lr_scale = positive("activation_lr_scale", activation_lr_scale)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(
                f"class_weights has {len(class_weights)} numbers, the data {num_classes} classes"
            )
        weights = class_weights or [1.0]
        if not all(0 <= each < math.inf for each in weights) or not any(weights):
            raise ValueError(f"class_weights must be finite, not below 0, and not all 0: {weights}")
        if init == "kaiming" and (pretrained or checkpoint_path):
            raise ValueError("init: kaiming would overwrite the pretrained weights")
        self.save_hyperparameters(logger=False)
        self.hparams["_instantiator"] = INSTANTIATOR
        self._not_stored: dict[str, str] = {}
        for name, value in list(self.hparams.items()):
            try:  # a checkpoint holds data only
                self.hparams[name] = describe(value)
            except ValueError as error:
                del self.hparams[name]
                if value is not _sgd:
                    self._not_stored[name] = str(error)
        self.stem: Stem = "imagenet" if stem == "auto" and pretrained else stem
        self.match = match
        self.compile_mode = choice("compile", compile, "auto", "off", "activations", "model")
        self.compiled = "" if compile == "auto" else compile
        self._undecided = False
        self.backbone, self.swapped = build_network(
            backbone,
            num_classes,
            in_channels,
            image_size,
            activation,
            activation_by_site,
            share,
            match,
            include,
            exclude,
            include_kinds,
            dims,
            self.stem,
            backbone_kwargs,
            side_size,
            pretrained=pretrained,
            init=init,
        )
        described = None if activation_by_site else self.hparams.get("activation")
        sites = [call.name for call in self.swapped]
        if checkpoint_path:
            state = read_weights(checkpoint_path)
            state = without_other_shapes(self.backbone, state, checkpoint_path, sites, described)
            new = tuple(f"{site}." for site in sites)
            load_weights(self.backbone, state, source=checkpoint_path, fresh=(*new, "side."))
        if activation_from:
            if match:
                raise ValueError("activation_from and match both set the start values: give one")
            load_shapes(self.backbone, activation_from, sites, described)
        if activation_frozen:
            freeze_shapes(self.backbone)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.lr: float | None = None
        self.tested = ""
        self._trained, self._broken = False, ""  # why it has diverged
        self.loss, self.label_smoothing = loss, label_smoothing
        self.activation_weight_decay = activation_weight_decay
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights)
        self._balance: Tensor | None = None
        metrics = classification_metrics(num_classes)
        self.train_acc = MulticlassAccuracy(num_classes, average="micro")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.test_metrics.add_metrics({"ece": Calibration(num_classes)})
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.test_loss = MeanMetric(nan_strategy="disable")
        self.confusion = MulticlassConfusionMatrix(num_classes) if num_classes <= 10 else None

    def configure_callbacks(self) -> list[Callback]:
        """None; refuse those that would change the optimizer's groups during training."""
        if self._has_callback(ModelPruning):  # views all weights as one vector
            self.backbone.to(memory_format=torch.contiguous_format)  # pyright: ignore
        for each in getattr(self._trainer, "callbacks", ()):
            if isinstance(each, BaseFinetuning):
                kind = type(each).__name__
                own = ", and takes Lightning's as `like`" if kind == "BackboneFinetuning" else ""
                raise ValueError(
                    f"{kind} freezes parameters ahead of the optimizer's groups and adds groups "
                    "later, which the groups of activations and the schedules do not survive: use "
                    f"callbacks.HeadFirst, which trains the head first{own}"
                )
        return []

    def setup(self, stage: str) -> None:
        """Compile; in a new run, match the new activations to the old ones on the first batch."""
        if self.compile_mode == "activations":
            fuse(self.backbone)
        if self.compile_mode == "model" and not is_compiled(self.backbone):
            self.backbone.compile()
        if self.compile_mode == "auto" and stage == "fit":
            if self.compiled == "activations":  # by an earlier fit
                fuse(self.backbone, on=False)
            self.compiled = ""
        if stage == "fit" and self.match is True and self.swapped and not self.trainer.ckpt_path:
            data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            if data is None:
                raise ValueError(
                    "match: true looks at a training batch of a data module: give one, "
                    "trainer.fit(model, datamodule=...)"
                )
            images, *_ = next(iter(data.train_dataloader()))
            self.swapped.match(self.backbone, images.to(next(self.parameters()).device))
        side, data = side_of(self.backbone), getattr(self._trainer, "datamodule", None)
        known = getattr(data, "side_statistics", None)
        if stage == "fit" and side and known and not self.trainer.ckpt_path:
            side.standardise(*known)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint complete: no other file of weights is read with it."""
        known = checkpoint.get("hyper_parameters")
        if known is not None:
            known.update(
                stem=self.stem, pretrained=False, checkpoint_path=None, activation_from=None
            )
        checkpoint["compiled"] = self.compiled
        if self._not_stored:
            checkpoint["not_stored"] = self._not_stored

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another network; take float64 ones unrounded."""
        if self._trainer and self._trainer.precision == "64-true":
            self.double()  # Lightning would convert the network after it has loaded them
        if self.compile_mode == "auto" and self._trainer and self._trainer.state.fn == "fit":
            self.compiled = str(checkpoint.get("compiled", ""))
        path = self._trainer.ckpt_path if self._trainer else None
        check_fits(self, checkpoint, str(path or "the checkpoint"))

    @classmethod
    def load_from_checkpoint(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        *,
        trust: Sequence[str] = (),
        **changes: Any,
    ) -> Self:
        """The trained network of a checkpoint; opening it runs no code of the file.

        Args:
            checkpoint_path: the file.
            map_location: where the tensors go; by default where they were.
            trust: packages, besides torch's own and this project's, from which the file may name
                classes.
            changes: arguments of the class that replace the stored ones.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or of another program, names code that is not trusted,
                or lacks an argument that could not be stored.
        """
        content = read_checkpoint(checkpoint_path, signature(cls).parameters, trust, changes)
        stored = content.get("hyper_parameters", {})
        check_complete(content, str(checkpoint_path), changes)
        changes = {"map_location": map_location, "weights_only": True, **changes}
        model = super().load_from_checkpoint(checkpoint_path, **changes)
        # as they are in the file: the parser reads texts as YAML
        for name in {*FACTORIES, "data"} & stored.keys() - changes.keys():
            model.hparams[name] = stored[name]
            model._not_stored.pop(name, None)
        return model

    def forward(self, images: Tensor, side: Tensor | None = None) -> Tensor:
        """Class scores (logits) of (N, C, H, W) images or (N, C, L) signals."""
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return class_scores(self.backbone, images, side)

    def on_fit_start(self) -> None:
        """Keep what the data tell of themselves; say what the swap left."""
        self._trained, self._broken = True, ""
        self._undecided = self.compile_mode == "auto"  # finders have had their trainings before
        for metric in self.modules():
            if isinstance(metric, Metric):  # an evaluation before left tensors of inference mode
                metric.reset()
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(known := getattr(data, "description", None), dict):
            self.hparams["data"] = json.loads(json.dumps(known))  # a checkpoint holds data only
        for each in getattr(self.trainer, "callbacks", ()):
            if isinstance(each, EarlyStopping) and str(each.monitor).startswith("val"):
                check_validates(self.trainer, f"EarlyStopping, which waits for {each.monitor},")
            one_rate = isinstance(each, StochasticWeightAveraging) and isinstance(
                getattr(each, "_swa_lrs", None), float
            )
            if one_rate and self.activation_lr_scale != 1:
                names = [group["name"] for group in self.trainer.optimizers[0].param_groups]
                raise ValueError(
                    "StochasticWeightAveraging gives all groups one rate, without "
                    f"activation_lr_scale: give swa_lrs {len(names)} rates, of {', '.join(names)}"
                )
        if remarks := self.swapped.remarks():
            more = f"; {len(remarks) - 2} more of this kind" if remarks[2:] else ""
            first = f"swapped {len(self.swapped)} activation calls{more}"
            rank_zero_info("\n".join([first, *remarks[:2]]))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """With `compile: auto`, decide at the first batch, unless a resumed run has decided."""
        self._stop_if_broken()  # validation inside an epoch
        if not self._undecided:
            return
        self._undecided = False
        if not self.compiled:
            planned, size = self.trainer.estimated_stepping_batches, len(_parts(batch)[0])
            mode, why = self.estimate(self.trainer, size, planned).decide(self.device.type)
            self.compiled = self.trainer.strategy.broadcast(mode)
            if why:
                rank_zero_info(why)
        if self.compiled == "activations":
            fuse(self.backbone)

    def estimate(self, trainer: Any, batch_size: int, planned: float) -> Estimate:
        """What fusing the activations saves and costs in what is left of the `planned` steps."""
        steps = math.inf if planned < 0 else planned - trainer.global_step
        passes = steps * trainer.accumulate_grad_batches
        return estimate(self.backbone, self.swapped, batch_size, steps, passes)

    def on_train_start(self) -> None:
        """Take the class weights of `--data.balance loss`, and a learning rate that was found."""
        if self.lr is not None:
            self._use_found_rate(self.lr)
        for config in self.trainer.lr_scheduler_configs:
            planned = getattr(config.scheduler, "total_steps", math.inf)
            if isinstance(config.scheduler, OneCycleLR) and planned < self._steps():
                raise ValueError(
                    f"OneCycleLR has been planned for {planned} steps and cannot be made longer, "
                    f"to {self._steps()}: start a new run from these weights with "
                    "--model.checkpoint_path, or go on with as many steps"
                )
            if isinstance(config.scheduler, OneCycleLR) and planned > self._steps():
                rank_zero_warn(
                    f"OneCycleLR is planned for {planned} steps and the training ends after "
                    f"{self._steps()}, before the learning rate has fallen"
                )
        weights = getattr(self.trainer.datamodule, "class_weights", None)  # pyright: ignore[reportAttributeAccessIssue]
        self._balance = None if weights is None else weights.to(self.device, self.dtype)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """The training loss of one batch, plus the penalties of the activations."""
        images, labels, _, side = _parts(batch)
        assert labels is not None
        scores = self(images, side)
        weights = self._balance if self.class_weights is None else self.class_weights
        smoothing = self.label_smoothing
        if self.loss == "bce":
            shares = labels if labels.ndim == 2 else F.one_hot(labels, scores.shape[1])
            shares = shares * (1 - smoothing) + smoothing / scores.shape[1]
            loss = F.binary_cross_entropy_with_logits(scores, shares.to(scores), weight=weights)
        else:
            loss = F.cross_entropy(scores, labels, weight=weights, label_smoothing=smoothing)
        loss = loss + penalty(self.backbone)
        # mixed images belong to several classes
        self.train_acc.update(scores, labels.argmax(1) if labels.ndim == 2 else labels)
        self.log("train/loss", loss)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
        every = getattr(self.trainer, "log_every_n_steps", 50) or math.inf
        if (self.trainer.global_step + 1) % every == 0:  # reading a number makes the host wait
            for group in self.trainer.optimizers[0].param_groups:
                self.log(f"lr/{group['name']}", group["lr"])
        return loss

    def on_train_epoch_end(self) -> None:
        """Stop a run that has diverged: it learns nothing any more."""
        # with Trainer(barebones=True) nothing is logged
        loss = self.trainer.callback_metrics.get("train/loss", torch.tensor(0.0)).item()
        # one process alone would leave the others waiting
        if self.trainer.strategy.reduce_boolean_decision(not math.isfinite(loss), all=False):
            raise DivergedError(
                f"the training loss is {loss} at the end of epoch {self.current_epoch}: the run "
                f"has diverged. {_SLOWER}"
            )
        self._stop_if_broken()

    def _stop_if_broken(self) -> None:
        if self._broken:
            raise DivergedError(f"{self._broken}: the run has diverged. {_SLOWER}")

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """Update the `val/` metrics."""
        self._evaluate(batch, self.val_metrics, self.val_loss)

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> dict[str, Tensor | None]:
        """Update the `test/` metrics; return what `predict_step` does."""
        scores = self._evaluate(batch, self.test_metrics, self.test_loss)
        _, labels, index, _ = _parts(batch)
        if self.confusion is not None and labels is not None:
            self.confusion.update(scores, labels)
        return {"index": index, "label": labels, "probability": scores.softmax(1)}

    def on_validation_epoch_end(self) -> None:
        """Log what the data choose; stop a run whose network gives no numbers any more."""
        log_chosen(self, self.val_metrics)
        self._check_outputs(self.val_loss)

    def _check_outputs(self, mean_loss: MeanMetric) -> None:
        """Accuracy would take a sample whose scores are NaN for the first class."""
        if self.trainer.sanity_checking or not mean_loss.compute().isnan():
            return
        what = "the network's output is no number for some samples"
        if self.trainer.state.fn == "fit":  # raised when the epoch's numbers are written
            self._broken = f"{what} of the validation in epoch {self.current_epoch}"
        elif self._trained:
            raise DivergedError(f"{what} of the test: the run has diverged. {_SLOWER}")
        else:
            rank_zero_warn(f"{what}, which count as the first class: the metrics tell nothing")

    def on_validation_end(self) -> None:
        """Say which classes have no sample; before the first epoch, refuse unknown metrics."""
        if self.trainer.sanity_checking:
            check_monitors(self.trainer)
        else:
            warn_of_absent(self, self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log what the data choose and the measures of each class; draw the confusion matrix."""
        log_chosen(self, self.test_metrics)
        self._check_outputs(self.test_loss)
        if self.confusion is not None:
            log_classes(self, self.confusion.compute())
            self.confusion.reset()

    def on_test_end(self) -> None:
        """Say which classes have no sample."""
        warn_of_absent(self, self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | None]:
        """Position in the data set, label (both None if unknown) and class probabilities."""
        images, labels, index, side = _parts(batch)
        probability = self(images, side).softmax(1)
        return {"index": index, "label": labels, "probability": probability}

    def _evaluate(
        self, batch: tuple[Tensor, ...], metrics: MetricCollection, mean_loss: MeanMetric
    ) -> Tensor:
        images, labels, _, side = _parts(batch)
        assert labels is not None
        scores = self(images, side).float()
        mean_loss.set_dtype(torch.float32)  # bf16-true would sum in three digits
        # every sample counts once, however many each process has
        mean_loss.update(F.cross_entropy(scores, labels, reduction="none"))
        self.log(f"{metrics.prefix}loss", mean_loss)
        metrics.update(scores, labels)
        self.log_dict(metrics, prog_bar=metrics is self.val_metrics)  # pyright: ignore
        return scores

    def configure_optimizers(self) -> Any:
        """The optimizer, of weights and of activations' own parameters, and the scheduler."""
        optimizer = self._optimizer(self.backbone)
        if all(group["name"] != "activations" for group in optimizer.param_groups):
            for name, usual in (("activation_lr_scale", 1), ("activation_weight_decay", 0)):
                if getattr(self, name) != usual:
                    rank_zero_warn(f"--model.{name} has no effect: no activation learns a shape")
        if self.lr_scheduler is None:
            self._check_accumulation("the default cosine")
            if self.lr_scheduler_interval == "epoch":
                raise ValueError(
                    "lr_scheduler_interval: epoch has no effect on the default cosine, which moves "
                    "each step: name a scheduler with --model.lr_scheduler"
                )
            steps = self._steps()
            timers = [each for each in getattr(self.trainer, "callbacks", ()) if _has_limit(each)]
            if timers:
                rank_zero_warn(
                    f"trainer.max_time may end the training before the learning rate has fallen: "
                    f"its cosine is planned for {steps} steps (trainer.max_epochs, max_steps)"
                )

            # from the step alone and the present plan: the plan of a resumed run may be longer, and
            # BatchSizeFinder changes it after this
            def cosine(step: int) -> float:
                return (1 + math.cos(math.pi * min(step / self._steps(), 1))) / 2

            return [optimizer], [{"scheduler": LambdaLR(optimizer, cosine), "interval": "step"}]
        scheduler = self._scheduler(optimizer, self._steps)
        if isinstance(scheduler, OneCycleLR):
            self._check_accumulation("OneCycleLR")
        if isinstance(scheduler, OneCycleLR) and self._has_callback(BatchSizeFinder):
            raise ValueError(
                "BatchSizeFinder changes the number of steps after OneCycleLR was made for it: "
                "find the batch size in a run of its own, then set data.batch_size"
            )
        by_step, interval = isinstance(scheduler, OneCycleLR | CyclicLR), self.lr_scheduler_interval
        if interval == "auto":
            interval = "step" if by_step else "epoch"
        monitor = getattr(scheduler, "monitor", "val/loss")  # of Lightning's ReduceLROnPlateau
        chosen = {"scheduler": scheduler, "interval": interval, "monitor": monitor}
        if isinstance(scheduler, ReduceLROnPlateau) and monitor.startswith("val"):
            check_validates(self.trainer, f"ReduceLROnPlateau, which waits for {monitor},")
            if interval == "step":
                raise ValueError(
                    f"{monitor} is not measured after each step: leave out "
                    "--model.lr_scheduler_interval, or --model.lr_scheduler.monitor train/loss"
                )
            chosen["frequency"] = self.trainer.check_val_every_n_epoch or 1
        return [optimizer], [chosen]

    def try_optimizer(self, device: torch.device | str = "cpu") -> None:
        """Make the optimizer and the scheduler for small tensors, and take one step of each.

        Args:
            device: of the training; some optimizers work on a GPU alone.

        Raises:
            ValueError: one refuses its arguments, or needs what this training does not give, such
                as a closure (LBFGS) or sparse gradients (SparseAdam).
        """
        network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), CosLU()).to(device)
        tried = "optimizer"
        try:
            optimizer = self._optimizer(network)
            for parameter in network.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            tried = "lr_scheduler"
            if self.lr_scheduler is not None:
                scheduler: Any = self._scheduler(optimizer, lambda: 1000)
                optimizer.step()
                scheduler.step(*[0.0] * isinstance(scheduler, ReduceLROnPlateau))
        except Exception as error:
            why = " ".join(str(error).split())[:300]
            raise ValueError(f"--model.{tried} cannot work here: {why}") from error

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """The chosen optimizer for `network`, with the activations' own scale of the rate."""
        optimizer = self.optimizer(
            parameter_groups(network, activation_weight_decay=self.activation_weight_decay)
        )
        for group in optimizer.param_groups:
            if group["name"] == "activations":
                # not in place: the groups share a rate that is a tensor
                group["lr"] = group["lr"] * self.activation_lr_scale
        return optimizer

    def _has_callback(self, kind: type[Callback]) -> bool:
        return any(isinstance(each, kind) for each in getattr(self._trainer, "callbacks", ()))

    def _check_accumulation(self, plan: str) -> None:
        """Refuse a number of steps that changes with the epochs, where they are planned."""
        for each in getattr(self._trainer, "callbacks", ()):
            if isinstance(each, GradientAccumulationScheduler):
                raise ValueError(
                    f"{plan} is planned by steps, whose number in an epoch "
                    "GradientAccumulationScheduler changes: use --trainer.accumulate_grad_batches, "
                    "or a scheduler that moves by epochs, such as --model.lr_scheduler StepLR"
                )

    def _steps(self) -> int:
        """Planned optimizer steps."""
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            raise ValueError(
                "the learning rate's schedule needs a planned length: set trainer.max_epochs or "
                "trainer.max_steps (and some batches, trainer.limit_train_batches), or choose "
                "another model.lr_scheduler"
            )
        return int(steps)

    def _scheduler(self, optimizer: torch.optim.Optimizer, steps: Callable[[], int]) -> LRScheduler:
        """The chosen scheduler, with the planned steps and with the activations' own scale."""
        make: Any = self.lr_scheduler
        try:
            scheduler = make(optimizer)
        except ValueError as error:
            if "total_steps" not in str(error):  # OneCycleLR asks for it
                raise
            scheduler = make(optimizer, total_steps=steps())
        scaled = self.activation_lr_scale != 1
        scaled &= any(group["name"] == "activations" for group in optimizer.param_groups)
        if scaled and (name := next(_of_one_rate(scheduler), None)):
            raise ValueError(
                f"activation_lr_scale {self.activation_lr_scale:g} would be lost: {name} gives all "
                "groups the same rate. Choose an end of 0, or another lr_scheduler"
            )
        for number, group in enumerate(optimizer.param_groups):
            # these set the same rates for all groups
            if group["name"] == "activations" and isinstance(scheduler, OneCycleLR | CyclicLR):
                for key in {"lr", "initial_lr", "max_lr", "min_lr"} & group.keys():
                    group[key] *= self.activation_lr_scale
                for rates in (scheduler.base_lrs, getattr(scheduler, "max_lrs", [])):
                    rates[number : number + 1] = [
                        rate * self.activation_lr_scale for rate in rates[number : number + 1]
                    ]
        return scheduler

    def _use_found_rate(self, lr: float) -> None:
        """Start from `lr`, with the activations' own scale."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        if any(isinstance(scheduler, OneCycleLR | CyclicLR) for scheduler in schedulers):
            raise ValueError(
                "LearningRateFinder sets the optimizer's rate, which OneCycleLR and CyclicLR do "
                f"not use: leave it out, and give them the rate that it found, {lr:.3g}"
            )
        planned = [scheduler.get_last_lr() for scheduler in schedulers[:1]]
        for number, group in enumerate(self.trainer.optimizers[0].param_groups):
            found = lr * (self.activation_lr_scale if group["name"] == "activations" else 1)
            # a warm-up has lowered it already
            share = planned[0][number] / group["initial_lr"] if "initial_lr" in group else 1
            group["lr"], group["initial_lr"] = found * share, found
        for scheduler in chain.from_iterable(map(_with_inner, schedulers)):
            groups = scheduler.optimizer.param_groups
            scheduler.base_lrs = [group["initial_lr"] for group in groups]


def _parts(batch: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Images, labels, positions in the data set, side; None for what the batch does not hold."""
    parts = [batch] if isinstance(batch, Tensor) else batch
    if not isinstance(parts, list | tuple) or not 1 <= len(parts) <= 4:
        raise ValueError(
            f"a batch must be (images, labels), not {type(batch).__name__}: let the data set "
            "return an image and the number of its class"
        )
    images, labels, index, side, *_ = (*parts, None, None, None)
    return images, labels, index, side


def _with_inner(scheduler: Any) -> Iterator[Any]:
    """A scheduler, and those in a SequentialLR or ChainedScheduler."""
    yield scheduler
    for each in getattr(scheduler, "_schedulers", []):
        yield from _with_inner(each)


def _of_one_rate(scheduler: Any) -> Iterator[str]:
    """What, of a scheduler and those that it holds, is no multiple of a group's own rate."""
    for each in _with_inner(scheduler):
        kind = type(each).__name__
        if getattr(each, "eta_min", 0):
            yield f"{kind}'s eta_min {each.eta_min:g}"
        if least := max(getattr(each, "min_lrs", []), default=0):
            yield f"{kind}'s min_lr {least:g}"
        if each is not scheduler and isinstance(each, OneCycleLR | CyclicLR):
            yield f"{kind} in {type(scheduler).__name__}"
