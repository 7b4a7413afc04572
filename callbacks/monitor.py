"""What the activations learn: scalars while training, pictures, a table, and a file of it all."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from .board import choices, show_choices, show_end, show_histograms, show_layout, show_picture
from .figures import Panel, draw_parameters, draw_shapes, grid
from .record import Record, Row, history, run_folder, scalars_of, table, terms, thinned
from .sites import Probe, Values, activation_sites, curves, odd_values, read_values

_SHAPES = 8  # curves a panel
_ZEROS = 0.95


class ActivationMonitor(Callback):
    """Shows every learned and scheduled value of every activation, and how each site is doing.

    - Scalars `<parameter>/<site>`, and in TensorBoard's custom scalars a chart of all sites for
      each parameter; `<parameter>_<i>/<site>` for the terms i = 1, 2, ... of one that has several,
      as LSLU's theta. One value a channel gives their mean and `<parameter>_std/<site>`.
    - `activations.png`, at the start, every few epochs and at the end: each site's function over
      its earlier shapes, and the histogram of what flows in; at the end `parameters.png` too.
    - `activations.csv` (step, epoch, site, param, channel, value): all of the above, and once an
      epoch the health of each site: `zeros` and `saturated` (elsewhere flat), as shares of the
      function's values, `in_mean`, `in_std`, `out_mean`, `out_std`, and `grad_<parameter>`, the
      norm ahead of clipping. They are read from a part of the batches that are looked at, in the
      first process, and not under `compile: model`, where the network is one kernel. Single
      channels are written whenever a picture is drawn.
    - A row of TensorBoard's HParams; a warning when a site gives at least 95% zeros for an epoch,
      or a value is not finite or has grown a thousandfold.

    The files lie in the run's folder; without a logger in `monitor/version_<n>` of the trainer's
    default_root_dir.

    Args:
        every_n_steps: optimizer steps between two looks; by default the trainer's
            log_every_n_steps, but at most 20 looks an epoch.
        figure: draw the pictures.
        figure_every_n_epochs: epochs between two of them.
        channels: `mean`, or `all` for a scalar a channel, `<parameter>/<site>/<channel>`, too.
        histograms: show the distributions of inputs and of per-channel values with each picture.
        max_tags: scalars a look, without `channels: all`. Beyond it deviations are left to the CSV
            file, then every second, third, ... site.

    Attributes:
        first: site -> parameter -> value at the start; kept in checkpoints.
        last: the same at the latest look.
        record: `activations.csv`, in the process that writes it.

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
        self.first: Values = {}
        self.last: Values = {}
        self._shapes: list[tuple[str, Values]] = []  # what the figures show
        self.record: Record | None = None
        self._earlier: Path | None = None  # what it goes on from
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """The values at the start and those of the figures, and where the CSV file is."""
        path = str(self.record.path.resolve()) if self.record else None
        return {"first": self.first, "shapes": self._shapes, "csv": path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run goes on with the history of the first one."""
        self.first, self._shapes = state_dict["first"], state_dict.get("shapes", [])
        self._earlier = Path(path) if (path := state_dict.get("csv")) else None
        self._resumed = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the first time."""
        found = activation_sites(pl_module)
        short = {name.removeprefix("backbone."): module for name, module in found.items()}
        self._sites = short if len(short) == len(found) else found
        self._probe = Probe(self._sites)
        if self.record and trainer.global_step and not self._resumed:  # fit was called again
            self._resumed, self._earlier = True, self.record.path
        self.record = None
        self._looked, self._drawn, self._warned = -1, -1, set[tuple[str, str]]()
        self._health: dict[str, dict[str, float]] = {}
        # inside a compiled network nothing can be watched
        self._whole = any(m._compiled_call_impl is not None for m in pl_module.modules())
        every = self.every_n_steps or getattr(trainer, "log_every_n_steps", 50)
        steps = trainer.num_training_batches / max(trainer.accumulate_grad_batches, 1)
        steps = min(steps, trainer.max_steps if trainer.max_steps > 0 else math.inf)
        if self.every_n_steps is None and math.isfinite(steps):
            every = max(every, int(steps // 20))
        self._every, self._epoch = max(every, 1), trainer.current_epoch
        folder = run_folder(trainer)
        self.last = read_values(self._sites)
        if not self._resumed:
            self.first, self._shapes, self._earlier = self.last, [("at the start", self.last)], None
        if self._earlier and not self._earlier.is_file() and trainer.ckpt_path:
            beside = Path(trainer.ckpt_path).parent.parent / "activations.csv"  # the run was moved
            if not beside.is_file():
                rank_zero_warn(f"activations.csv starts anew: {self._earlier} is gone")
            self._earlier = beside
        self._resumed = False
        self._tags = self._choose_tags()
        self._active = trainer.is_global_zero and bool(self._sites)
        self._ends = []
        if self._active and folder:
            self.record = Record(folder / "activations.csv", self._earlier, trainer.global_step)
            show_layout(trainer.loggers, dict.fromkeys(self._tags.values()))
            self._ends = show_choices(trainer.loggers, choices(trainer, pl_module, self._sites))
        self._look(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch the first batch of an epoch, and every `every_n_steps`-th."""
        self._epoch = trainer.current_epoch
        due = batch_idx == 0 or trainer.global_step % self._every == 0
        if self._active and due and not self._whole:
            self._probe.watch()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Read the gradients of a step that is watched, ahead of clipping."""
        if self._probe.watching:
            self._probe.gradients(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
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
        if not self._active:
            return
        self._health = self._probe.read()
        step, epoch = trainer.global_step, trainer.current_epoch
        if self.record:
            self.record.write(
                Row(step, epoch, site, name, None, number)
                for site, numbers in self._health.items()
                for name, number in numbers.items()
            )
        for site, health in self._health.items():
            if health.get("zeros", 0.0) >= _ZEROS:
                self._warn(
                    site,
                    "zeros",
                    f"{health['zeros']:.1%} of its values were zero in epoch {epoch}: almost "
                    "nothing passes. A lower learning rate, or another start, may help",
                )
        if (epoch + 1) % self.figure_every_n_epochs == 0 and epoch + 1 != trainer.max_epochs:
            self._draw(trainer, f"epoch {epoch + 1}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the last time, and draw."""
        self._look(trainer)
        self._draw(trainer, f"epoch {self._epoch + 1}")
        if self._active and self.record and self.figure and self.last:
            self._draw_parameters(trainer, self.record.path)
        show_end(self._ends)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave nothing behind in the network."""
        if probe := getattr(self, "_probe", None):
            probe.leave()

    def table(self) -> str:
        """Site, parameter, first and last value of everything learned or scheduled."""
        return table(self.first, self.last)

    def _look(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if not self._sites or step == self._looked:
            return
        self._looked = step
        self.last = read_values(self._sites)
        if not self._active:
            return
        found = list(scalars_of(self.last))
        scalars = {f"{name}/{site}": number for site, name, number in found}
        scalars = {tag: number for tag, number in scalars.items() if tag in self._tags}
        if self.channels == "all":
            scalars |= {f"{r.param}/{r.site}/{r.channel}": r.value for r in self._single(trainer)}
        if scalars:
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step)
        if self.record:
            e = self._epoch
            self.record.write(Row(step, e, site, name, None, v) for site, name, v in found)
        for site, name, message in odd_values(self.first, self.last):
            self._warn(site, name, f"{message} at step {step}")

    def _single(self, trainer: Trainer) -> Iterator[Row]:
        """The values of single channels."""
        step, epoch = trainer.global_step, self._epoch
        for site, values in self.last.items():
            for name, value in values.items():
                for term, row in zip(terms(name, value), value.t().tolist(), strict=True):
                    if len(row) > 1:
                        for channel, number in enumerate(row):
                            yield Row(step, epoch, site, term, channel, number)

    def _warn(self, site: str, what: str, message: str) -> None:
        if (site, what) not in self._warned:
            self._warned.add((site, what))
            rank_zero_warn(f"{site}: {message}")

    def _choose_tags(self) -> dict[str, str]:
        """Tag -> parameter of what becomes a scalar."""
        found = [(site, name) for site, name, _ in scalars_of(self.last)]
        chosen = found if self.channels == "all" else thinned(found, self.max_tags)
        if len(chosen) < len(found):
            rank_zero_info(
                f"Boards show {len(chosen)} of the activations' {len(found)} values "
                f"(monitor.max_tags {self.max_tags}); activations.csv has them all"
            )
        return {f"{name}/{site}": name for site, name in chosen}

    def _draw(self, trainer: Trainer, label: str | None = None) -> None:
        step = trainer.global_step
        if step == self._drawn and (not label or label == self._shapes[-1][0]):
            return
        self._drawn = step
        if label:
            self._shapes = [*self._shapes, (label, self.last)]
        if len(self._shapes) > _SHAPES:
            self._shapes = [self._shapes[0], *self._shapes[2:-1:2], self._shapes[-1]]
        if not self._active or not self.record:
            return
        self.record.write(self._single(trainer))
        inputs = {site: x.flatten().cpu() for site, x in self._probe.inputs.items()}
        if self.histograms:
            shown = {f"inputs/{site}": x for site, x in inputs.items()}
            for site, values in self.last.items():
                for name, value in values.items():
                    if len(value) > 1:
                        columns = zip(terms(name, value), value.t(), strict=True)
                        shown |= {f"{term}_channels/{site}": column for term, column in columns}
            show_histograms(trainer.loggers, shown, step)
        panels = []
        for site in self._probe.functions if self.figure else ():
            x = grid(inputs.get(site))
            shapes = [values for _, values in self._shapes]
            drawn = curves(site, self._sites[site], x, shapes)
            panels.append(Panel(self._title(site), x, drawn, inputs.get(site)))
        if panels:
            path = self.record.path.with_name("activations.png")
            picture = draw_shapes(path, panels, [label for label, _ in self._shapes])
            show_picture(trainer.loggers, "activations", picture, path, step)

    def _title(self, site: str) -> str:
        health = self._health.get(site, {})
        parts = [f"{name} {health[name]:.0%}" for name in ("zeros", "saturated") if name in health]
        return "\n".join([site or "the network", ", ".join(parts)])

    def _draw_parameters(self, trainer: Trainer, record: Path) -> None:
        """All sites in one picture, beside the whole history."""
        x = torch.linspace(-4, 4, 401)
        pairs = {
            site: curves(site, self._sites[site], x, [self.first, self.last])
            for site in self._probe.functions
            if any(name == site or name.startswith(f"{site}.") for name in self.last)
        }
        first = {site: pair[0].mean(1) for site, pair in pairs.items()}
        last = {site: pair[1].mean(1) for site, pair in pairs.items()}
        path = record.with_name("parameters.png")
        picture = draw_parameters(path, x, first, last, history(record, self.last))
        show_picture(trainer.loggers, "parameters", picture, path, trainer.global_step)
