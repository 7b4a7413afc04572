"""Figures without a screen, and their files."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import replacing


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
