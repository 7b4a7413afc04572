"""Image files: finding them, and reading their pixels as uint8."""

import io
import math
import os
import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .workers import cores, prepared

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom
Place = Callable[[int, int], Box]  # of an upright image's width and height

SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm",
            ".webp", ".tif", ".tiff", ".gif"}  # fmt: skip
DEEP = ("I", "F")  # how PIL's modes of more than 8 bits start
WHOLE = (1, 255, 4095, 65535)  # what is white in floats, and in 8, 12 and 16 bits

ORIENTATION = 0x0112  # a number of EXIF
# what PIL raises for a damaged file
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, struct.error)
# what these suffixes stand for: PIL knows others by their content, some of which are programs
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF", "GIF")
# PIL reads this header byte by byte, and all comments between plain numbers again and again
PNM = re.compile(rb"P([1-6])(?:\s|#[^\r\n]*[\r\n])+(\d+)(?:\s|#[^\r\n]*[\r\n])+(\d+)\s")


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


class Listing(NamedTuple):
    """The files in folders of classes.

    Attributes:
        files: of images.
        labels: the number of each image's class.
        skipped: files that are no images.
    """

    files: list[str]
    labels: list[int]
    skipped: list[str]


def list_images(folder: Path, class_names: Sequence[str]) -> Listing:
    """Images of `folder/<class>/`, at any depth.

    Raises:
        FileNotFoundError: `folder` does not exist.
        ValueError: its folders are not `class_names`, or one holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}: it should hold one folder per class")
    remedy = "Every split needs the same classes: add, rename or delete folders"
    check_classes(folder, class_folders(folder), class_names, remedy)
    found = Listing([], [], [])
    for label, name in enumerate(class_names):
        before = len(found.files)
        for entry in walk(folder / name):
            if not has_suffix(entry.name, SUFFIXES):
                found.skipped.append(entry.path)
            elif not entry.is_file():  # a pipe would wait for ever
                raise damaged(entry.path, "it is no regular file", "replace or delete it")
            else:
                found.files.append(entry.path)
        if len(found.files) == before:
            raise ValueError(
                f"class folder {str(folder / name)!r} holds no image "
                f"({', '.join(sorted(SUFFIXES))}): add some"
            )
        found.labels.extend([label] * (len(found.files) - before))
    return found


def files_within(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files with one of `suffixes` in a folder, at any depth, sorted; hidden ones are not."""
    return [Path(entry.path) for entry in walk(folder) if has_suffix(entry.name, suffixes)]


def has_suffix(name: str, suffixes: Collection[str]) -> bool:
    """Whether a file's name ends with one of `suffixes`, in small or capital letters."""
    return os.path.splitext(name)[1].lower() in suffixes


def walk(folder: str | Path, above: tuple[str, ...] = ()) -> Iterator[os.DirEntry[str]]:
    """All that is no folder, at any depth, sorted; nothing that is hidden.

    An entry tells its kind without a look at the file: of a million files that is a minute. A link
    to a folder is followed, unless it leads to one of those that it is in (`above`).
    """
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith("."):
            continue
        if _leads_to_folder(entry):
            if os.path.realpath(entry.path) not in above:
                yield from walk(entry.path, above)
        else:
            yield entry


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def read_image(
    file: str | Path, side: int, *, resize: bool = True, place: Place | None = None
) -> np.ndarray:
    """Pixels of one image file as (3, side, side) in uint8.

    By default the shorter side is resized to `side`, then the middle is cut out. Grey images become
    RGB of the same brightness, transparency is dropped, and the rotation that a camera has noted is
    applied. Grey images of more than 8 bits are scaled by the smallest of 255, 4095 and 65535 that
    no value exceeds, floats also by 1.

    Args:
        file: the image.
        side: side of the result in pixels.
        resize: resize an image of another size; False refuses it.
        place: the part of the image that becomes the result; by default the square in the middle.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no image, or one of a size that is refused.
    """
    from PIL import Image

    content = content_of(file)
    try:
        with opened(content) as image:
            decoded = _encoding(image)
            if image.format != "JPEG":  # which is decoded at about the wanted size
                _check_pixels(image)
            if image.format == "TIFF":  # PIL turns it as it is loaded, and gives its size turned
                image.load()
            deep, turned = image.mode.startswith(DEEP), _orientation(image) >= 5  # on its side
            width, height = image.size[::-1] if turned else image.size
            box = (place or middle)(width, height)
            if resize:  # a large JPEG is decoded at about the wanted size
                ratio = min(box[2] - box[0], box[3] - box[1]) / side
                image.draft("RGB", tuple(max(1, round(each / ratio)) for each in image.size))  # pyright: ignore
            elif image.size != (side, side):
                raise ValueError(f"it has {width} x {height} pixels, not {side} x {side}")
            _check_pixels(image)
            pixels = rgb(image)
            pixels.load()
    except UnsuitedError as error:
        raise ValueError(f"{str(file)!r} cannot be shown in 8 bits: {error}") from error
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise damaged(file, error, "replace or delete it") from error
    # of 16 bits in each colour PIL keeps the upper 8
    highest = max(high for _, high in pixels.getextrema())  # pyright: ignore
    if not deep and re.search(r";16|\b65535\b", decoded) and 0 < highest <= 16:
        raise ValueError(
            f"{str(file)!r} has colours of 12 bits or fewer in 16 bits, which are nearly black in "
            "8 bits: convert it to 8 bits"
        )
    across, down = pixels.width / width, pixels.height / height
    left, top, right, bottom = box
    return square(pixels, side, (left * across, top * down, right * across, bottom * down))


def content_of(file: str | Path) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it cannot be read, which says nothing about its content.
    """
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(file: str | Path, error: OSError) -> OSError:
    """The error for a file of which the system gives no content."""
    why = error.strerror or str(error)
    return OSError(f"{str(file)!r} cannot be read ({why}): look at its permissions and the disk")


def opened(content: bytes) -> "Image":
    """The image of PIL in the content of a file, if it is of a format that holds no program."""
    from PIL import Image

    _check_pnm(content)
    return Image.open(io.BytesIO(content), formats=FORMATS)


def middle(width: int, height: int) -> Box:
    """The largest square in the middle of an image."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def rgb(image: "Image") -> "Image":
    """An image of any mode in RGB, as :func:`read_image` reads it."""
    from PIL import Image, ImageOps

    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(DEEP):  # convert("RGB") would clip at 255
        image = Image.fromarray(_in_eight_bits(np.asarray(image)))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _encoding(image: "Image") -> str:
    """From which numbers an image is decoded; to be asked ahead of anything that decodes it."""
    return str([tile[3] for tile in getattr(image, "tile", [])])


def _check_pixels(image: "Image") -> None:
    from PIL import Image

    if math.prod(image.size) > (Image.MAX_IMAGE_PIXELS or math.inf):  # PIL allows twice
        raise ValueError(f"{image.width} x {image.height} pixels are too many")


def _orientation(image: "Image") -> int:
    """How a camera was held, from 1 to 8; 1, as it is, where that is not noted or damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of damaged notes beside whole pixels
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


class UnsuitedError(ValueError):
    """Values that have no known range."""


def _in_eight_bits(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    known = WHOLE if values.dtype.kind == "f" else WHOLE[1:]
    whole = next((whole for whole in known if high <= whole), None)
    if not low >= 0 or whole is None:  # also NaN
        raise UnsuitedError(
            f"its values go from {low:g} to {high:g}, and white is known to be 1 (of floats), 255, "
            "4095 or 65535: scale them to one of these"
        )
    return (values * (255 / whole)).round().astype(np.uint8)


class Header(NamedTuple):
    """What an image file says of itself.

    Attributes:
        deep: it is a grey image of more than 8 bits.
        side: its shorter side in pixels.
    """

    deep: bool
    side: int


def header(file: str | Path) -> Header | None:
    """The header of an image file; nothing if it is damaged."""
    from PIL import Image

    content = content_of(file)
    try:
        with opened(content) as image:
            return Header(image.mode.startswith(DEEP), min(image.size))
    except (*DAMAGED, Image.DecompressionBombError):
        return None


def _check_pnm(content: bytes) -> None:
    """Refuse a PNM file that is slow to read: a long header, or much more than its numbers."""
    if re.match(rb"P[1-6][\s#]", content):
        begin = content[: 2**21]
        header = PNM.match(begin)
        if not header:
            raise ValueError(f"its first {len(begin):,} bytes name no width and height")
        plain, pixels = int(header[1]) < 4, int(header[2]) * int(header[3])
        if plain and len(content) > 2**16 + 48 * pixels:  # 16 for each of three numbers
            raise ValueError(f"{len(content):,} bytes are too many for {pixels:,} pixels")


def square(image: "Image", side: int, box: Box | None = None) -> np.ndarray:
    """The part `box` of an RGB image, by default its middle, as (3, side, side)."""
    from PIL import Image

    left, top, right, bottom = box or middle(*image.size)
    inside = left, top, min(right, image.width), min(bottom, image.height)
    resized = image.resize((side, side), Image.Resampling.BILINEAR, box=inside)
    return np.asarray(resized).transpose(2, 0, 1)


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
    """

    dtype = torch.uint8

    def __init__(self, files: Sequence[str | Path], side: int) -> None:
        # one array, which worker processes share: reading a list of texts would copy it
        self._names = np.array([os.fsencode(file) for file in files])
        self.side = side

    def __len__(self) -> int:
        """Number of images."""
        return len(self._names)

    def __getitem__(self, positions: Tensor) -> Tensor:
        """The images at these positions."""
        return self.read(positions)

    def read(self, positions: Tensor, places: Iterable[Place] | None = None, **how: bool) -> Tensor:
        """The images at these positions; `places` and `how` as :func:`read_image` takes them."""
        names = (os.fsdecode(name) for name in self._names[positions.numpy()])
        each = zip(names, places or repeat(None), strict=False)
        read = [read_image(name, self.side, place=place, **how) for name, place in each]
        return torch.from_numpy(np.stack(read))

    def decode_into(
        self, array: np.ndarray, workers: int | None = None, *, resize: bool = True
    ) -> None:
        """Decode all images into `array`, (M, 3, side, side), by all cores or so many workers."""
        first = 0
        parts = torch.arange(len(self)).split(64)
        count = cores() if workers is None else workers
        for images in prepared(partial(self.read, resize=resize), parts, count):
            array[first : first + len(images)] = images.numpy()
            first += len(images)


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


def damaged(file: str | Path, why: object, remedy: str = "unpack it again") -> ValueError:
    """The error for a file with content that cannot be used."""
    return ValueError(f"{str(file)!r} is damaged ({why}): {remedy}")
