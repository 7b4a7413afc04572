"""`python -m datamodules NAME ROOT PICTURE [OPTION=VALUE ...]`: see one training batch.

Each sample as the network gets it, under its class; all classes come equally often.
"""

import ast
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import datamodules
from datamodules import ImageDataModule

COLUMNS, ROWS = 8, 3


def main() -> None:
    """Draw the picture."""
    names = [name for name in datamodules.__all__ if name != "ImageDataModule"]
    if len(sys.argv) < 4 or sys.argv[1] not in names:
        sys.exit(f"{__doc__}NAME is one of {', '.join(names)}.")
    name, root, path, *options = sys.argv[1:]
    given = {"root": root} if name != "Digits" else {}
    chosen: dict[str, Any] = dict(option.split("=", 1) for option in options)
    for key, value in chosen.items():
        chosen[key] = ast.literal_eval(value) if value[0] in "0123456789([TFN" else value
    defaults = {"batch_size": COLUMNS * ROWS, "balance": "sampling"} | given
    data: ImageDataModule = getattr(datamodules, name)(**defaults | chosen)
    data.setup("fit")
    images, labels, _ = next(iter(data.train_dataloader()))
    draw_batch(Path(path), data, images, labels)


def draw_batch(path: Path, data: ImageDataModule, images: Tensor, labels: Tensor) -> None:
    """Draw up to 24 samples of a batch, `images` as the loader gives them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMNS, 1.15 * ROWS), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(ROWS, COLUMNS).flat
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    for axis, image, label in zip(axes, images, labels, strict=False):
        if image.shape[-2] == 1:  # a signal, or an image of one row
            axis.plot(image.flatten().numpy(), linewidth=0.8, color="black")
        elif len(image) == 3:
            axis.imshow((image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy())
        else:
            axis.imshow(image[0].numpy(), cmap="gray")
        number = label.argmax() if label.ndim else label
        axis.set_title(data.class_names[int(number)], fontsize=7, pad=2)
    for axis in figure.axes:
        axis.set_axis_off()
    unfinished = path.with_name(f"{path.stem}.part{path.suffix}")
    figure.savefig(unfinished, dpi=90)
    unfinished.replace(path)


if __name__ == "__main__":
    main()
