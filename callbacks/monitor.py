"""What the activations learn: scalars while training, a table and a picture at the end."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from activations import Activation

from .figures import draw_activations

Values = dict[str, dict[str, Tensor]]  # site -> parameter -> (channels, terms), on the CPU


class ActivationMonitor(Callback):
    """Logs every learned and scheduled value of every activation.

    Scalars are called `<parameter>/<site>`, so that TensorBoard makes one section a parameter;
    `<parameter>_<i>/<site>` for the terms i = 1, 2, ... of one that has several, as LSLU's theta.
    A parameter with one value a channel gives its mean and, as `<parameter>_std/<site>`, its
    standard deviation. At the end of training `activations.png` in the run's folder shows every
    function before and after, beside its parameters over time.

    Args:
        every_n_steps: optimizer steps between two looks; by default the trainer's
            log_every_n_steps.
        figure: draw `activations.png`.

    Attributes:
        first: site -> parameter -> value at the start of training; kept in checkpoints.
        last: the same at the latest look.
    """

    def __init__(self, every_n_steps: int | None = None, figure: bool = True) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be >= 1, got {every_n_steps}")
        self.every_n_steps, self.figure = every_n_steps, figure
        self.first: Values = {}
        self.last: Values = {}
        self._sites: dict[str, nn.Module] = {}
        self._first_curves: dict[str, Tensor] = {}
        self._history: dict[str, list[tuple[int, list[float]]]] = {}
        self._logged = -1

    def state_dict(self) -> dict[str, Any]:
        """The values at the start."""
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run compares with the start of the first one."""
        self.first = state_dict["first"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the first time."""
        self._sites = activation_sites(getattr(pl_module, "backbone", pl_module))
        self._history, self._logged = {}, -1
        self._first_curves = {name: curve(module)[1] for name, module in self._sites.items()}
        self._look(trainer)
        self.first = self.first or self.last

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look again every `every_n_steps` optimizer steps."""
        every = self.every_n_steps or getattr(trainer, "log_every_n_steps", 50)
        if trainer.global_step % every == 0:
            self._look(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the last time, and draw."""
        self._look(trainer)
        folder = trainer.log_dir  # every process takes part in finding it
        if folder and trainer.is_global_zero and self.figure and self._sites and trainer.loggers:
            x = curve(next(iter(self._sites.values())))[0]
            now = {name: curve(module)[1] for name, module in self._sites.items()}
            path = Path(folder) / "activations.png"
            draw_activations(path, x, self._first_curves, now, self._history)

    def table(self) -> str:
        """Site, parameter, first and last value of everything learned or scheduled."""
        rows = [("site", "parameter", "first", "last")]
        for site, values in self.last.items():
            for name, value in values.items():
                before = self.first.get(site, {}).get(name, value)
                rows.append((site, name, _text(before), _text(value)))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def _look(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if not self._sites or step == self._logged:
            return
        self._logged = step
        self.last = {name: values(module) for name, module in self._sites.items()}
        scalars: dict[str, float] = {}
        for site, named in self.last.items():
            for name, value in named.items():
                mean = value.mean(0).tolist()
                self._history.setdefault(f"{name}/{site}", []).append((step, mean))
                for term, number in enumerate(mean, start=1):
                    tag = name if len(mean) == 1 else f"{name}_{term}"
                    scalars[f"{tag}/{site}"] = number
                if len(value) > 1:
                    scalars[f"{name}_std/{site}"] = value.std().item()
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step)


def activation_sites(model: nn.Module) -> dict[str, nn.Module]:
    """Name and module of every activation that has something learned or scheduled."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.PReLU) or (isinstance(module, Activation) and values(module))
    }


def values(module: nn.Module) -> dict[str, Tensor]:
    """Current value of each shape parameter of an activation, (channels, terms), on the CPU."""
    if isinstance(module, Activation):
        return {name: value.float().cpu().clone() for name, value in module.shape_values().items()}
    assert isinstance(module, nn.PReLU)
    return {"weight": module.weight.detach().float().cpu().view(-1, 1).clone()}


@torch.no_grad()
def curve(module: nn.Module) -> tuple[Tensor, Tensor]:
    """The function on a grid over [-4, 4], averaged over channels; for LSLU its repeats."""
    channels = module.num_parameters
    assert isinstance(channels, int)
    device = next((t.device for t in (*module.parameters(), *module.buffers())), None)
    x = torch.linspace(-4, 4, 401)
    function = module.function if isinstance(module, Activation) else module
    assert callable(function)
    points = x.to(device).view(-1, 1).expand(-1, channels).contiguous()
    if not isinstance(module, Activation):
        points = points.to(next(module.parameters()).dtype)
    y = function(points)
    return x, y.mean(1).float().cpu()


def _text(value: Tensor) -> str:
    mean = " ".join(f"{number:.4f}" for number in value.mean(0).tolist())
    return mean if len(value) == 1 else f"{mean} (mean of {len(value)})"
