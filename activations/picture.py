"""Figures, and files that appear only when they are whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; what is written there replaces `path` at the end.

    On an error the unfinished file is deleted and `path` is as before. Folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def new_figure(width: float, height: float, **options: Any) -> Any:
    """A matplotlib figure of `width` x `height` inches that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path, colors: int | None = None) -> Tensor:
    """Draw `figure` once, write it as a PNG, and return its pixels, (H, W, 3) in uint8.

    Args:
        figure: from :func:`new_figure`.
        path: of the PNG.
        colors: reduce the file to a palette of this size.
    """
    from PIL import Image

    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    pixels = torch.frombuffer(bytearray(figure.canvas.buffer_rgba()), dtype=torch.uint8)
    pixels = pixels.view(height, width, 4)[..., :3].contiguous()
    image = Image.fromarray(pixels.numpy())
    with replacing(path) as unfinished:
        (image.quantize(colors) if colors else image).save(unfinished, format="png", optimize=True)
    return pixels
