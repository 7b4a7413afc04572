"""Mini-ImageNet, in the three forms in which it is distributed."""

import csv
import hashlib
import itertools
import pickle
import re
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from .cache import Create, prepare, stamp
from .imagefolder import ImageFolder
from .images import Images, check_classes, class_folders, damaged, list_images, require, square
from .pool import first_equal, keep_apart

# the classes of each split of Ravi and Larochelle 2017
CLASSES = {
    "train": """
        n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367
        n02089867 n02091831 n02101006 n02105505 n02108089 n02108551 n02108915 n02111277
        n02113712 n02120079 n02165456 n02457408 n02606052 n02687172 n02747177 n02795169
        n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140
        n03347037 n03400231 n03476684 n03527444 n03676483 n03838899 n03854065 n03888605
        n03908618 n03924679 n03998194 n04067472 n04243546 n04251144 n04258138 n04275548
        n04296562 n04389033 n04435653 n04443257 n04509417 n04515003 n04596742 n04604644
        n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560 n13133613
    """.split(),  # noqa: SIM905
    "val": """
        n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792
        n03075370 n03417042 n03535780 n03584254 n03770439 n03773504 n03980874 n09256479
    """.split(),  # noqa: SIM905
    "test": """
        n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486
        n02443484 n02871525 n03127925 n03146219 n03272010 n03544143 n03775546 n04146614
        n04149813 n04418357 n04522168 n07613480
    """.split(),  # noqa: SIM905
}
REMEDY = "Unpack mini-ImageNet again, or read the folder with --data ImageFolder"
_SPLIT_OF = {name: number for number, names in enumerate(CLASSES.values()) for name in names}


@dataclass(eq=False, repr=False)
class MiniImageNet(ImageFolder):
    """Mini-ImageNet (Vinyals et al. 2016): 100 classes of ImageNet, 600 images each, 84 x 84.

    `root` holds one of these forms:

    - `<wnid>/*.jpg`, or `train/<wnid>/` and also `val/`, `test/` or both;
    - `images/*.jpg`, and `train.csv`, `val.csv` and `test.csv` (`filename,label`) beside `images/`
      or in `splits/`;
    - `mini-imagenet-cache-train.pkl`, `-val.pkl` and `-test.pkl`.

    The protocols:

    - `supervised`: 100 images of each class for test and 500 for training and validation, or the
      folders of the tree, as in `ImageFolder`;
    - `dsrelu`: 68, 17 and 15% of all images, drawn at random, for training, validation and test
      (Chakraborti and Chaudhuri 2024);
    - `ravi`: 64, 16 and 20 classes (Ravi and Larochelle 2017), for few-shot evaluation of the
      features. A classifier has never seen the classes of validation and test, so its accuracy
      there means nothing.

    Args:
        root: see above.
        protocol: see above.
        image_size: side in pixels; images are resized if it is not 84.
        test_fraction: part of each class that becomes the test set, if no folders divide the files.

    Raises:
        FileNotFoundError: `root` holds none of the forms, or a file of it is missing.
        ValueError: a class is missing, or a file is damaged.
    """

    shares = (0.68, 0.17, 0.15)
    _rows = ()

    root: str = "data/miniimagenet"
    _: KW_ONLY
    protocol: Literal["supervised", "dsrelu", "ravi"] = "supervised"
    image_size: int = 84
    test_fraction: float = 1 / 6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("val_fraction", "test_fraction") if self.protocol != "supervised" else ():
            if (value := getattr(self, name)) != getattr(MiniImageNet, name):
                raise ValueError(
                    f"{name} {value:g} has no effect with {self.protocol}, which divides the "
                    "images itself: leave it out"
                )

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The WordNet ids, sorted."""
        return tuple(sorted(_SPLIT_OF))

    def files(self) -> tuple[list[str], Tensor, Tensor]:
        """The image files, their classes, and the folder of each."""
        if (self.folder / "images").is_dir():
            return self._listed()
        if not self.folder.is_dir() or not class_folders(self.folder):
            raise FileNotFoundError(
                f"no mini-ImageNet in {str(self.folder)!r}, which should hold folders of classes, "
                "or images/ and its CSV files, or mini-imagenet-cache-*.pkl: give the right folder "
                "with --data.root DIR"
            )
        folders = list(self._folders().values())
        classes = [class_folders(folder) for folder in folders]
        check_classes(self.folder, itertools.chain(*classes), self.class_names, REMEDY)
        files, labels, parts = [], [], []
        for part, (folder, names) in enumerate(zip(folders, classes, strict=True)):
            found, numbers, _ = list_images(folder, names)
            files += found
            labels += [self.class_names.index(names[number]) for number in numbers]
            parts += [part] * len(found)
        # folders with different classes are made for few-shot evaluation: here they are one pool
        divided = all(names == classes[0] for names in classes)
        return files, torch.tensor(labels), torch.tensor(parts) * divided

    def divide(self, labels: Tensor, parts: Tensor, first: Tensor) -> Tensor:
        """The split of each image under `protocol`."""
        if self.protocol == "supervised":
            return super().divide(labels, parts, first)
        if self.protocol == "ravi":
            return keep_apart(torch.tensor([_SPLIT_OF[n] for n in self.class_names])[labels], first)
        images = first.unique()
        generator = torch.Generator().manual_seed(self.split_seed)
        images = images[torch.randperm(len(images), generator=generator)]
        train, val = (round(share * len(images)) for share in self.shares[:2])
        splits = torch.full_like(labels, 2)
        splits[images[:train]], splits[images[train : train + val]] = 0, 1
        return splits[first]

    def describe(self, index: int) -> dict[str, Any]:
        """The file of an image; for a pickle also the image's position in it."""
        for file, rows in zip(self._pickles(), self._rows, strict=False):
            if index < rows:
                return {"file": file.name, "row": index}
            index -= rows
        return super().describe(index)

    def _listed(self) -> tuple[list[str], Tensor, Tensor]:
        """The files that the three CSV files name; they do not divide them."""
        paths = [(self.folder / "splits" / f"{p}.csv", self.folder / f"{p}.csv") for p in CLASSES]
        lists = [inner if inner.is_file() else beside for inner, beside in paths]
        require(lists, "Put the three lists of Ravi and Larochelle beside images/ or into splits/")
        rows = [row for file in lists for row in read_list(file)]
        check_classes(self.folder, [label for _, label in rows], self.class_names, REMEDY)
        files = [self.folder / "images" / name for name, _ in rows]
        require(files, "The CSV files name them: unpack mini-ImageNet again")
        labels = torch.tensor([self.class_names.index(label) for _, label in rows])
        return list(map(str, files)), labels, torch.zeros_like(labels)

    def _pickles(self) -> list[Path]:
        files = [self.folder / f"mini-imagenet-cache-{part}.pkl" for part in CLASSES]
        return files if any(file.is_file() for file in files) else []

    def read(self) -> tuple[Tensor | Images, Tensor, Tensor, Tensor]:
        """Images, classes, the folder of each image, and the position of its first copy."""
        files, side = self._pickles(), self.image_size
        if not files:
            return super().read()
        require(files, "Put the other pickles of mini-ImageNet there too")

        if self.random_resized_crop is not None:
            raise ValueError(
                "random_resized_crop reads photos, and these pickles hold squares of 84 pixels: "
                "leave it out, or give a folder of the photos"
            )

        def build(create: Create) -> None:
            from PIL import Image

            contents = [read_pickle(file) for file in files]
            images = [image for pixels, _ in contents for image in pixels]
            names = [name for _, classes in contents for name in classes]
            check_classes(self.folder, names, self.class_names, REMEDY)
            pixels = create("images", (len(images), 3, side, side), np.uint8)
            for position, image in enumerate(images):
                pixels[position] = square(Image.fromarray(image), side)
            labels = [self.class_names.index(name) for name in names]
            create("labels", (len(images),), np.int64)[:] = labels
            digests = (hashlib.sha256(image).digest() for image in images)
            create("first", (len(images),), np.int64)[:] = first_equal(digests)
            create("rows", (len(files),), np.int64)[:] = [len(rows) for rows, _ in contents]

        key = (*stamp(self.folder, files), side)
        arrays = prepare(self.cache_dir, "MiniImageNet-pickle", key, build)
        labels, self._rows = arrays["labels"], tuple(arrays["rows"].tolist())
        return arrays["images"], labels, torch.zeros_like(labels), arrays["first"]


def read_list(file: Path) -> list[tuple[str, str]]:
    """The rows of a CSV file of Ravi and Larochelle: file name and class.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        rows = list(csv.reader(file.read_text().splitlines()))
    except (ValueError, csv.Error) as error:
        raise damaged(file, error) from error
    if rows[:1] != [["filename", "label"]] or len(rows) < 2:
        raise damaged(file, "line 1 is not `filename,label`, or no file follows")
    for number, row in enumerate(rows, 1):
        if len(row) != 2 or "/" in row[0] or not all(row):  # a slash could lead to another folder
            raise damaged(file, f"line {number}")
    return [(name, label) for name, label in rows[1:]]


def read_pickle(file: Path) -> tuple[np.ndarray, list[str]]:
    """Images (M, H, W, 3) in uint8 of a pickle, and the class of each.

    Loading a pickle can run any code, so only arrays, lists and dicts are accepted.

    Raises:
        ValueError: the file holds anything else, or is damaged.
    """
    try:
        with file.open("rb") as stream:
            content = _ArraysOnly(stream, encoding="latin1").load()
        images, rows = _array(content["image_data"]), content["class_dict"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"image_data is {images.dtype} of shape {images.shape}")
        names = [""] * len(images)
        for name, positions in rows.items():
            for position in _array(positions):
                names[position] = str(name)
        if "" in names:
            raise ValueError(f"image {names.index('')} has no class")
    except Exception as error:
        raise damaged(file, f"{type(error).__name__}: {error}") from error
    return images, names


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.value if isinstance(value, _Array) else value)


class _Type:
    """Stands for the dtype of whole numbers; NumPy's own would take any flags from a pickle."""

    def __init__(self, name: str, *rest: Any) -> None:
        if not re.fullmatch(r"[<>|=]?[iub][1248]", name):
            raise pickle.UnpicklingError(f"it holds the type {name[:20]!r}")
        self.made = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if (order := state[1]) not in "<>|=":
            raise pickle.UnpicklingError(f"it holds the byte order {order!r}")
        self.made = self.made.newbyteorder(order)


class _Array:
    """Stands for an array while it is read: its numbers are taken from their bytes."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, content = state
        self.value = _numbers(content, dtype, shape, "F" if by_columns else "C")


def _numbers(content: Any, dtype: _Type, shape: Any, order: Any = "C") -> np.ndarray:
    content = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(content, dtype.made).reshape(shape, order=order)


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays and numbers of NumPy by nothing but their bytes, types and shapes."""

    known: ClassVar[dict[str, Any]] = {
        "ndarray": _Array,
        "dtype": _Type,
        "_reconstruct": lambda *_: _Array(),
        "_frombuffer": _numbers,
        "scalar": lambda dtype, content: _numbers(content, dtype, ()).item(),
    }

    def find_class(self, module: str, name: str) -> Any:
        numpy = ("numpy", "numpy.core.multiarray", "numpy.core.numeric")  # numpy._core in 2.x
        if module.replace("_core", "core") in numpy and name in self.known:
            return self.known[name]
        if (module, name) in (("_codecs", "encode"), ("collections", "OrderedDict")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not an array")
