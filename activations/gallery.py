"""The picture of all activations: `python -m activations docs/gallery.png`."""

import sys
from pathlib import Path

import torch
from torch import Tensor

import activations
from activations import Activation

from .picture import new_figure, save_figure

COLUMNS = 6
_OFFERED = {name: getattr(activations, name) for name in activations.__all__}
KINDS: dict[str, type[Activation]] = {
    name: kind
    for name, kind in _OFFERED.items()
    if isinstance(kind, type) and issubclass(kind, Activation) and kind is not Activation
}


def curves(module: Activation) -> list[tuple[str, str, Tensor, Tensor]]:
    """Label, line style, x and f(x): the module as it is, then with other parameters or times."""
    x = torch.linspace(-4, 4, 801)

    def now(label: str, style: str) -> tuple[str, str, Tensor, Tensor]:
        return label, style, x, module.function(x.view(-1, 1)).detach().view(-1)

    found = [now("", "k-")]
    parameters = list(module.named_parameters(recurse=False))[:3]
    for color, (name, value) in zip(("C0", "C1", "C2"), parameters, strict=False):
        step = module.gallery_step
        with torch.no_grad():
            entry = value.view(-1)[value.shape[-1] // 2 if value.dim() > 1 else 0]
            before = entry.clone()
            for change, line in ((step, "-"), (-step, "--")):
                entry.copy_(before + change)
                found.append(now(f"{name} {change:+g}", color + line))
            entry.copy_(before)
    if not parameters and isinstance(module, activations.Scheduled):
        for progress, color in zip((0.25, 0.5, 0.75, 1.0), ("C0", "C9", "C1", "C3"), strict=True):
            module.set_progress(progress)
            found.append(now(f"t = {progress:g}", color))
    return found


def samples() -> list[tuple[str, Activation]]:
    """One instance of every public activation, and of every variant of those that have any."""
    torch.manual_seed(0)
    return [
        (" ".join([name, *map(str, arguments.values())]), kind(**arguments))
        for name, kind in KINDS.items()
        for arguments in kind.variants
    ]


def draw(path: Path) -> None:
    """Draw each function in black, its derivative dotted, other parameters or times in colour."""
    entries = samples()
    rows = -(-len(entries) // COLUMNS)
    figure = new_figure(2.9 * COLUMNS, 2.5 * rows, dpi=70, layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axis, (title, module) in zip(axes, entries, strict=False):
        (_, style, x, y), *bent = curves(module)
        for label, line, _, other in bent:
            axis.plot(x, other, line, linewidth=0.9, label=label)
        axis.plot(x, y, style, linewidth=1.6)
        slope = torch.gradient(y, spacing=(x,))[0]
        axis.plot(x, slope, color="0.45", linewidth=0.9, linestyle=":")
        axis.set_title(title, fontsize=10)
        axis.set_ylim(max(-4.0, float(y.min()) - 1.5), min(6.0, float(y.max()) + 1.5))
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=7)
        if bent:
            axis.legend(fontsize=6, frameon=False, loc="upper left")
    for axis in axes[len(entries) :]:
        axis.set_axis_off()
    save_figure(figure, path, colors=48)


def main() -> None:
    """Write the picture that the command line names."""
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".png"):
        sys.exit("usage: python -m activations gallery.png")
    try:
        draw(Path(sys.argv[1]))
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}: pip install matplotlib")
    print(sys.argv[1])
