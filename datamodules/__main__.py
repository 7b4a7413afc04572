"""`python -m datamodules NAME ROOT PICTURE [OPTION=VALUE ...]`: draw one training batch.

Each sample appears as the network gets it, below its class. All classes come equally often.
"""

import ast
import contextlib
import sys
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
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
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        data = build(name, root, options, batch_size=COLUMNS * ROWS, balance="sampling")
        data.setup("fit")
        images, labels, *_ = next(iter(data.train_dataloader()))
        draw_batch(Path(path), data, images, labels)
    except (AttributeError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


def build(name: str, root: str, options: list[str], **chosen: Any) -> ImageDataModule:
    """A data set by its name, with options of the form name=value."""
    kind = getattr(datamodules, name)
    chosen |= {each: root for each in ("root", "path") if hasattr(kind, each)}
    for option in options:
        key, _, value = option.partition("=")
        chosen[key] = value
        with contextlib.suppress(ValueError, SyntaxError):  # a value that is no number is text
            chosen[key] = ast.literal_eval(value)
    if "dataset" in chosen:
        chosen["dataset"] = partial(resolve_name(chosen["dataset"]), root)
    return kind(**chosen)


def draw_batch(path: Path, data: ImageDataModule, images: Tensor, labels: Tensor) -> None:
    """Draw up to 24 samples of a batch, `images` as the loader gives them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMNS, 1.15 * ROWS), layout="constrained")
    axes = figure.subplots(ROWS, COLUMNS).flat
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    for axis, image, label in zip(axes, images, labels, strict=False):
        if data.dims == 1 or image.shape[-2] == 1:  # a signal, or an image of one row
            for lead, color in zip(
                image.flatten(1), ("black", "tab:red", *["0.7"] * 62), strict=False
            ):
                axis.plot(lead.numpy(), linewidth=0.8, color=color)
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
