"""Shows what the activations learn: scalars, pictures, a table and a CSV file."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from . import board, figures, sites
from .lightning_private import resumed_from
from .record import Record, Row, means, read, run_folder, single_channels, thinned, write_inputs

_SHAPES = 8  # curves a panel
_ZEROS = 0.95
_GROWTH = 1000.0


class ActivationMonitor(Callback):
    """Shows every learned and scheduled value of every activation, and each site's health.

    - Scalars `<parameter>/<site>`, the mean over the channels, and `<parameter>_std/<site>`, their
      standard deviation. `<parameter>_1/<site>` is the first term of a parameter that has several,
      such as LSLU's theta. In TensorBoard one chart for each parameter, and a row of HParams.
    - `activations.csv`: all values, and once an epoch the health of each site.
    - `inputs.csv`, at the end: quantiles of each site's inputs.
    - `activations.png`, at the start, every few epochs and at the end: each site's function over
      its earlier shapes and the histogram of its inputs. At the end `parameters.png`: every value
      over training.
    - A warning when at least 95% of a site's outputs are zero for an epoch, or a value is not
      finite or has grown a thousandfold.

    Health is measured on a part of some batches, in the first process; of networks that
    torch.compile has compiled only gradients are measured. `docs/boards.md` explains each number.
    The files are in the run's folder; without a logger in `monitor/version_<n>` of the trainer's
    default_root_dir.

    Args:
        every_n_steps: optimizer steps between two looks; by default the trainer's
            log_every_n_steps, but at most 20 looks an epoch.
        figure: draw the pictures.
        figure_every_n_epochs: epochs between two of them.
        channels: `mean`, or `all` for a scalar a channel, `<parameter>/<site>/<channel>`, too.
        histograms: show the distributions of inputs and of per-channel values with each picture.
        max_tags: at most so many scalars a look, without `channels: all`. Beyond it, standard
            deviations are in the CSV file only, then only every second, third, ... site is shown.

    Attributes:
        first: site -> parameter -> value at the start; kept in checkpoints.
        last: the same at the latest look.
        record: `activations.csv`; None in processes that do not write it.

    Raises:
        ValueError: a number below 1, or an unknown choice of channels.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        figure: bool = True,
        figure_every_n_epochs: int = 10,
        channels: Literal["mean", "all"] = "mean",
        histograms: bool = False,
        max_tags: int = 300,
    ) -> None:
        for name in ("every_n_steps", "figure_every_n_epochs", "max_tags"):
            if (value := locals()[name]) is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if channels not in ("mean", "all"):
            raise ValueError(f"channels must be 'mean' or 'all', got {channels!r}")
        self.every_n_steps, self.max_tags = every_n_steps, max_tags
        self.figure, self.figure_every_n_epochs = figure, figure_every_n_epochs
        self.channels, self.histograms = channels, histograms
        self.first: sites.Values = {}
        self.last: sites.Values = {}
        self.record: Record | None = None
        self._shapes: list[tuple[str, sites.Values]] = []  # what the figures show
        self._earlier: Path | None = None  # the file of the run that is resumed
        self._resumed: dict[str, Any] = {}  # its state

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs for the same tables and pictures."""
        state: dict[str, Any] = {"first": self.first, "shapes": self._shapes, "csv": None}
        if self.record:
            state |= {"csv": str(self.record.path.resolve()), "rows": self.record.rows}
        if probe := getattr(self, "_probe", None):
            state |= {"looked": self._looked, "drawn": self._drawn, "epoch": self._epoch}
            state |= {"probe": probe.state_dict(), "warned": list(self._warned)}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run continues the history of the first one."""
        self.first, self._shapes = state_dict["first"], state_dict.get("shapes", [])
        self._earlier = Path(path) if (path := state_dict.get("csv")) else None
        self._resumed = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the first time."""
        self._sites = sites.short_names(sites.activation_sites(pl_module))
        self._probe = sites.Probe(self._sites, sites.compiled_parts(pl_module))
        self._looked, self._drawn, self._warned = -1, -1, set[tuple[str, str]]()
        self._begun = -1
        self._health: dict[str, dict[str, float]] = {}
        self._every, self._epoch = self._interval(trainer), trainer.current_epoch
        self.last = sites.read_values(self._sites)
        if not (trainer.global_step and self._shapes):  # which a start has, also of ReLU alone
            self.first, self._shapes, self._earlier = self.last, [("at the start", self.last)], None
        elif self.record and not resumed_from(trainer):  # fit was called again
            self._earlier = self.record.path
        if self._earlier and (path := resumed_from(trainer)):
            beside = Path(path).parent.parent / "activations.csv"  # a run may be moved
            if not (beside.is_file() or self._earlier.is_file()):
                rank_zero_warn(f"activations.csv starts anew: {self._earlier} is gone")
            self._earlier = beside if beside.is_file() else self._earlier
        resumed, self._resumed = self._resumed if self._earlier else {}, {}
        if "probe" in resumed:
            self._looked, self._drawn = resumed["looked"], resumed["drawn"]
            self._epoch, self._warned = resumed["epoch"], set(resumed["warned"])
            self._probe.load_state_dict(resumed["probe"])
        self.record, folder = None, run_folder(trainer)
        self._tags = self._choose_tags()
        if folder and self._sites and trainer.is_global_zero:
            path = folder / "activations.csv"
            self.record = Record(path, self._earlier, trainer.global_step, resumed.get("rows"))
            board.show_layout(trainer.loggers, dict.fromkeys(self._tags.values()))
            board.show_choices(trainer, pl_module, self._sites)
        if "probe" not in resumed:
            self._look(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch the first batch of an epoch, and every `every_n_steps`-th."""
        self._epoch = trainer.current_epoch
        if batch_idx == 0:
            self._begun = trainer.global_step  # gradients may be accumulated over batches
        step = trainer.global_step
        if self.record and (step == self._begun or step % self._every == 0):
            self._probe.watch()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Read the gradients of a step that is watched, ahead of clipping."""
        if self._probe.watching:
            self._probe.gradients(optimizer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Look, and draw after the first step."""
        self._probe.leave()
        if trainer.global_step % self._every == 0:
            self._look(trainer)
        if self._drawn < 0:
            self._draw(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write how each site was doing, warn, and draw when it is time."""
        self._probe.leave()
        self._look(trainer)
        self._health = self._probe.read()
        epoch = trainer.current_epoch
        for site, health in self._health.items():
            if self.record:
                step = trainer.global_step
                self.record.write(Row(step, epoch, site, n, None, x) for n, x in health.items())
            if (share := health.get("zeros", 0.0)) >= _ZEROS:
                found = f"{share:.1%} of its values were zero in epoch {epoch}"
                advice = "A lower learning rate, or another start, may help"
                self._warn(site, "zeros", f"{found}: almost nothing passes. {advice}")
        if (epoch + 1) % self.figure_every_n_epochs == 0 and epoch + 1 != trainer.max_epochs:
            self._draw(trainer, f"epoch {epoch + 1}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the last time, and draw."""
        self._look(trainer)
        self._draw(trainer, f"epoch {self._epoch + 1}")
        if self.record and (inputs := self._probe.quantiles()):
            write_inputs(self.record.path.with_name("inputs.csv"), inputs)
        if self.record and self.figure and self.last:
            path = self.record.path.with_name("parameters.png")
            rows = read(self.record.path)
            picture = figures.draw_parameters(path, self._probe.drawn, self.first, self.last, rows)
            board.show_picture(trainer.loggers, picture, path, trainer.global_step)

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        """Leave no hooks in the network."""
        if probe := getattr(self, "_probe", None):
            probe.leave()

    def table(self) -> str:
        """Site, parameter, first and last value, a line for everything learned or scheduled."""
        rows = [("site", "parameter", "first", "last")]
        for site, name, before, value in self._changes():
            rows.append((site, name, _text(before), _text(value)))
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def _changes(self) -> Iterator[tuple[str, str, Tensor, Tensor]]:
        """Site, parameter, first and last value."""
        for site, values in self.last.items():
            for name, value in values.items():
                yield site, name, self.first.get(site, {}).get(name, value), value

    def _interval(self, trainer: Trainer) -> int:
        """Optimizer steps between two looks."""
        if self.every_n_steps:
            return self.every_n_steps
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        steps = min(steps, trainer.max_steps if trainer.max_steps > 0 else math.inf)
        most = int(steps // 20) if math.isfinite(steps) else 0
        return max(getattr(trainer, "log_every_n_steps", 50), most, 1)

    def _look(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if not self._sites or step == self._looked:
            return
        self._looked, self.last = step, sites.read_values(self._sites)
        if not self.record:
            return
        found = list(means(self.last))
        named = {f"{name}/{site}": number for site, name, number in found}
        scalars = {tag: named[tag] for tag in self._tags}
        if self.channels == "all":
            single = single_channels(self.last, step, self._epoch)
            scalars |= {f"{row.param}/{row.site}/{row.channel}": row.value for row in single}
        if scalars:
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step)
        if step > self.record.step:
            epoch = self._epoch
            self.record.write(Row(step, epoch, site, name, None, n) for site, name, n in found)
        for site, name, before, value in self._changes():
            start, now = before.abs().max().item(), value.abs().max().item()
            if not math.isfinite(now):
                self._warn(site, name, f"its {name} is {now} at step {step}")
            elif now >= _GROWTH * (start or 1.0):
                grown = f"its {name} has grown from {start:.4g} to {now:.4g} at step {step}"
                advice = "a lower --model.activation_lr_scale may help"
                self._warn(site, name, f"{advice}: {grown}")

    def _warn(self, site: str, what: str, message: str) -> None:
        if (site, what) not in self._warned:
            self._warned.add((site, what))
            rank_zero_warn(f"{site}: {message}")

    def _choose_tags(self) -> dict[str, str]:
        """Tag -> parameter of what becomes a scalar."""
        found = [(site, name) for site, name, _ in means(self.last)]
        chosen = found if self.channels == "all" else thinned(found, self.max_tags)
        if len(chosen) < len(found):
            rank_zero_info(
                f"Boards show {len(chosen)} of the activations' {len(found)} values "
                f"(monitor.max_tags {self.max_tags}); activations.csv has them all"
            )
        return {f"{name}/{site}": name for site, name in chosen}

    def _draw(self, trainer: Trainer, label: str | None = None) -> None:
        step = trainer.global_step
        if step == self._drawn and label == self._shapes[-1][0]:
            return
        self._drawn = step
        if label:
            self._shapes = [*self._shapes, (label, self.last)]
        if len(self._shapes) > _SHAPES:
            self._shapes = [self._shapes[0], *self._shapes[2:-1:2], self._shapes[-1]]
        if not self.record:
            return
        self.record.write(single_channels(self.last, step, self._epoch))
        inputs = {site: x.flatten().cpu() for site, x in self._probe.inputs.items()}
        if self.histograms:
            shown = {f"inputs/{site}": x for site, x in inputs.items()}
            columns = sites.columns(self.last)
            shown |= {f"{name}_channels/{site}": v for site, name, v in columns if len(v) > 1}
            board.show_histograms(trainer.loggers, shown, step)
        if self.figure and self._probe.drawn:
            path = self.record.path.with_name("activations.png")
            picture = figures.draw_shapes(
                path, self._probe.drawn, self._shapes, inputs, self._health
            )
            board.show_picture(trainer.loggers, picture, path, step)


def _text(value: Tensor) -> str:
    mean = " ".join(f"{number:.4f}" for number in value.mean(0).tolist())
    return mean if len(value) == 1 else f"{mean} (mean of {len(value)})"
