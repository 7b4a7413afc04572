"""Image files: which there are, their pixels as uint8, and batches of them decoded by threads."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp", ".tif", ".tiff", ".gif"}


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted; hidden ones are not classes."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def list_images(folder: Path, class_names: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Images of `folder/<class>/`, at any depth, and the number of each one's class.

    Files of other kinds are passed over.

    Raises:
        FileNotFoundError: `folder` is not there.
        ValueError: its folders are not `class_names`, or one holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}; it should hold one folder a class")
    found = set(class_folders(folder))
    if found != set(class_names):
        missing, extra = sorted(set(class_names) - found), sorted(found - set(class_names))
        raise ValueError(
            f"{str(folder)!r} holds {len(found)} class folders, not the {len(class_names)} expected"
            f" ones: missing {some(missing)}, unexpected {some(extra)}. Every split holds the same "
            "classes: add, rename or delete folders"
        )
    files, labels = [], []
    for label, name in enumerate(class_names):
        images = sorted(
            Path(place, file)
            for place, _, names in os.walk(folder / name)
            for file in names
            if Path(file).suffix.lower() in SUFFIXES and not file.startswith(".")
        )
        if not images:
            raise ValueError(
                f"class folder {str(folder / name)!r} holds no image "
                f"({', '.join(sorted(SUFFIXES))}): add some"
            )
        files += images
        labels += [label] * len(images)
    return files, labels


def read_image(file: Path, side: int, *, resize: bool = True) -> np.ndarray:
    """Pixels of one image file as (3, side, side) in uint8.

    The shorter side is resized to `side`, then the middle is cut out. Grey and 16-bit pictures
    become RGB of the same brightness, transparency is dropped, a camera's rotation is applied.

    Args:
        file: the image.
        side: in pixels.
        resize: whether another size is resized, or an error.

    Raises:
        ValueError: unreadable, or of another size.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            image.draft("RGB", (side, side))  # a large JPEG is decoded near the wanted size
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits, which PIL would cut off at 255
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            if "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"cannot read the image {str(file)!r} ({error}): replace or delete it"
        ) from error
    if not resize and image.size != (side, side):
        raise ValueError(
            f"{str(file)!r} is {image.width} x {image.height} pixels, "
            f"not {side} x {side}: resize or delete it"
        )
    return square(np.asarray(image), side)


def square(pixels: np.ndarray, side: int) -> np.ndarray:
    """Pixels (H, W, 3) as (3, side, side): the shorter side is resized, the middle cut out."""
    from PIL import Image, ImageOps

    if pixels.shape[:2] != (side, side):
        image = ImageOps.fit(Image.fromarray(pixels), (side, side), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    return pixels.transpose(2, 0, 1)


class Images:
    """Image files as if they were one tensor (M, 3, side, side): decoded when they are asked for.

    Args:
        files: one an image.
        side: in pixels; see :func:`read_image`.
        threads: that decode; by default one a core.
    """

    dtype = torch.uint8

    def __init__(self, files: Sequence[Path], side: int, threads: int | None = None) -> None:
        self.files, self.side, self.threads = files, side, threads or os.cpu_count() or 1

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def stream(self, batches: Iterable[Tensor], *, resize: bool = True) -> Iterator[Tensor]:
        """The images at each batch of positions; the next two are decoded meanwhile."""
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[list[Future[np.ndarray]]] = deque()
            try:
                for batch in batches:
                    files = [self.files[position] for position in batch.tolist()]
                    waiting.append(
                        [pool.submit(read_image, f, self.side, resize=resize) for f in files]
                    )
                    if len(waiting) > 2:
                        yield _stack(waiting.popleft())
                while waiting:
                    yield _stack(waiting.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def decode_into(self, array: np.ndarray, *, resize: bool = True) -> None:
        """Fill `array`, (M, 3, side, side), with all images."""
        first = 0
        for images in self.stream(torch.arange(len(self)).split(256), resize=resize):
            array[first : first + len(images)] = images.numpy()
            first += len(images)


def _stack(futures: list[Future[np.ndarray]]) -> Tensor:
    return torch.from_numpy(np.stack([future.result() for future in futures]))


def some(names: Sequence[object]) -> str:
    """The first few of `names`, as a message shows them."""
    return ", ".join(map(str, names[:5])) + (", ..." if names[5:] else "") if names else "none"
