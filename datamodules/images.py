"""Image files: finding them, reading their pixels as uint8, and decoding batches by threads."""

import math
import os
import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp", ".tif", ".tiff", ".gif"}

# what these suffixes stand for: PIL knows others by their content, some of which are programs
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF", "GIF")
# PIL reads this header byte by byte, and all comments between plain numbers again and again
PNM = re.compile(rb"P([1-6])(?:\s|#[^\r\n]*[\r\n])+(\d+)(?:\s|#[^\r\n]*[\r\n])+(\d+)\s")


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def list_images(folder: Path, class_names: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Images of `folder/<class>/`, at any depth, and the number of each image's class.

    Files that are not images are ignored.

    Raises:
        FileNotFoundError: `folder` does not exist.
        ValueError: its folders are not `class_names`, or one holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}: it should hold one folder per class")
    remedy = "Every split needs the same classes: add, rename or delete folders"
    check_classes(folder, class_folders(folder), class_names, remedy)
    files, labels = [], []
    for label, name in enumerate(class_names):
        images = files_within(folder / name, SUFFIXES)
        if not images:
            raise ValueError(
                f"class folder {str(folder / name)!r} holds no image "
                f"({', '.join(sorted(SUFFIXES))}): add some"
            )
        for file in images:
            if not file.is_file():  # a pipe would wait for ever
                raise damaged(file, "it is no regular file", "replace or delete it")
        files += images
        labels += [label] * len(images)
    return files, labels


def files_within(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files with one of `suffixes` in a folder, at any depth, sorted; hidden ones are not."""
    return sorted(
        Path(path, file)
        for path, _, names in os.walk(folder)
        for file in names
        if Path(file).suffix.lower() in suffixes and not file.startswith(".")
    )


def read_image(file: Path, side: int, *, resize: bool = True) -> np.ndarray:
    """Pixels of one image file as (3, side, side) in uint8.

    The shorter side is resized to `side`, then the middle is cut out. Grey and 16-bit images
    become RGB of the same brightness, transparency is dropped, and the rotation that a camera has
    noted is applied.

    Args:
        file: the image.
        side: side of the result in pixels.
        resize: resize an image of another size; False refuses it.

    Raises:
        ValueError: the file is not a readable image, or has a size that is refused.
    """
    from PIL import Image

    try:
        _check_pnm(file)
        with Image.open(file, formats=FORMATS) as image:
            image.draft("RGB", (side, side))  # a large JPEG is decoded at about the wanted size
            width, height = image.size
            if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):  # PIL allows twice as many
                raise ValueError(f"{width} x {height} pixels are too many")
            if not resize and (width, height) != (side, side):
                raise ValueError(f"it has {width} x {height} pixels, not {side} x {side}")
            pixels = rgb(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise damaged(file, error, "replace or delete it") from error
    return square(pixels, side)


def rgb(image: "Image") -> np.ndarray:
    """Pixels (H, W, 3) of an image of any mode, as :func:`read_image` reads them."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which convert("RGB") would clip at 255
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _check_pnm(file: Path) -> None:
    """Refuse a PNM file that is slow to read: a long header, or much more than its numbers."""
    with file.open("rb") as opened:
        begin = opened.read(2**21)
    if re.match(rb"P[1-6][\s#]", begin):
        header = PNM.match(begin)
        if not header:
            raise ValueError(f"its first {len(begin):,} bytes name no width and height")
        plain, pixels = int(header[1]) < 4, int(header[2]) * int(header[3])
        if plain and file.stat().st_size > 2**16 + 48 * pixels:  # 16 for each of three numbers
            raise ValueError(f"{file.stat().st_size:,} bytes are too many for {pixels:,} pixels")


def square(pixels: np.ndarray, side: int) -> np.ndarray:
    """Pixels (H, W, 3) as (3, side, side), resized and cut as :func:`read_image` does."""
    from PIL import Image, ImageOps

    if pixels.shape[:2] != (side, side):
        image = ImageOps.fit(Image.fromarray(pixels), (side, side), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    return pixels.transpose(2, 0, 1)


def normalisation(
    mean: Sequence[float], std: Sequence[float], images: "Tensor | Images"
) -> tuple[Tensor, Tensor]:
    """Shift and scale, (C, 1, *), of (N, C, *) images: a batch becomes (batch - shift) * scale.

    The mean and the deviation are those of values in [0, 1], which uint8 stores as 0 to 255.
    """
    whole = 255 if images.dtype == torch.uint8 else 1
    each = (-1, *[1] * (2 if isinstance(images, Images) else images.ndim - 2))
    shift, deviation = (whole * torch.tensor(list(values)).view(each) for values in (mean, std))
    return shift, 1 / deviation


class Images:
    """Image files in the role of a tensor (M, 3, side, side), decoded whenever they are needed.

    Args:
        files: one file per image.
        side: side in pixels; see :func:`read_image`.
        threads: number of threads that decode; by default one per core.
    """

    dtype = torch.uint8

    def __init__(self, files: Sequence[Path], side: int, threads: int | None = None) -> None:
        self.files, self.side, self.threads = files, side, threads or os.cpu_count() or 1

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def stream(self, batches: Iterable[Tensor], *, resize: bool = True) -> Iterator[Tensor]:
        """The images at each batch of positions; two more batches are decoded in advance."""
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
        """Decode all images into `array`, (M, 3, side, side)."""
        first = 0
        for images in self.stream(torch.arange(len(self)).split(256), resize=resize):
            array[first : first + len(images)] = images.numpy()
            first += len(images)


def _stack(futures: list[Future[np.ndarray]]) -> Tensor:
    return torch.from_numpy(np.stack([future.result() for future in futures]))


def some(names: Sequence[object]) -> str:
    """The first five of `names`, for a message."""
    return ", ".join(map(str, names[:5])) + (", ..." if names[5:] else "") if names else "none"


def check_classes(folder: Path, found: Iterable[str], known: Iterable[str], remedy: str) -> None:
    """Raise a ValueError that ends with `remedy` if `found` are not the classes `known`."""
    found, known = set(found), set(known)
    missing, extra = sorted(known - found), sorted(found - known)
    if missing or extra:
        raise ValueError(
            f"{str(folder)!r} does not hold the expected classes: missing {some(missing)}, "
            f"unexpected {some(extra)}. {remedy}"
        )


def require(files: Sequence[Path], remedy: str) -> None:
    """Raise a FileNotFoundError that ends with `remedy` if some of `files` are missing."""
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} files are not in {str(files[0].parent)!r}: "
            f"{some(missing)}. {remedy}"
        )


def damaged(file: Path, why: object, remedy: str = "unpack it again") -> ValueError:
    """The error for a file with content that cannot be used."""
    return ValueError(f"{str(file)!r} is damaged ({why}): {remedy}")
