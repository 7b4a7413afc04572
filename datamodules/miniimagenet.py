"""Mini-ImageNet, in the forms in which it goes round."""

import csv
import hashlib
import pickle
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from .cache import Create, prepare, stamp
from .imagefolder import ImageFolder, keep_apart
from .images import Images, class_folders, list_images, some, square

# Ravi and Larochelle 2017
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
_OF_CLASS = {name: number for number, names in enumerate(CLASSES.values()) for name in names}


class MiniImageNet(ImageFolder):
    """Mini-ImageNet (Vinyals et al. 2016): 100 classes of ImageNet, 600 images each, 84 x 84.

    `root` holds one of

    - `<wnid>/*.jpg`, or `train/<wnid>/` with `val/` or `test/` or both;
    - `images/*.jpg` with `train.csv`, `val.csv` and `test.csv` (`filename,label`) beside it or in
      `splits/`;
    - `mini-imagenet-cache-train.pkl`, `-val.pkl` and `-test.pkl`.

    The protocols: `supervised` tests on 100 images a class and trains on 500, or on what the tree
    holds apart, as `ImageFolder` does; `dsrelu` draws 68, 17 and 15% of all images for training,
    validation and test (Chakraborti and Chaudhuri 2024); `ravi` gives each split classes of its
    own, 64, 16 and 20 (Ravi and Larochelle 2017): a classifier has never seen those of validation
    and test, whose accuracy therefore says nothing; it is for few-shot evaluation of the features.

    Args:
        root: see above.
        protocol: see above.
        image_size: side in pixels; other than 84 by resizing.
        test_fraction: part of each class tested on where the files come in no parts.
        common: see `ImageFolder`.

    Raises:
        FileNotFoundError: `root` holds none of the forms.
        ValueError: classes or files of a form are missing, or one is damaged.
    """

    shares: ClassVar = (0.68, 0.17, 0.15)

    def __init__(
        self,
        root: str = "data/miniimagenet",
        protocol: Literal["supervised", "dsrelu", "ravi"] = "supervised",
        image_size: int = 84,
        test_fraction: float = 1 / 6,
        **common: Any,
    ) -> None:
        super().__init__(root, image_size, test_fraction, **common)
        self.protocol = protocol

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The WordNet ids, in order."""
        return tuple(sorted(_OF_CLASS))

    def files(self) -> tuple[list[Path], Tensor, Tensor]:
        """The image files, their classes, and the part each came in."""
        if (self.root / "images").is_dir():
            return self._flat()
        files, labels, parts, apart = [], [], [], True
        for part, folder in enumerate(self._folders().values()):
            names = class_folders(folder)
            apart &= len(names) == self.num_classes
            self._expect(names, folder, all_of_them=False)
            found, classes = list_images(folder, names)
            files += found
            labels += [self.class_names.index(names[number]) for number in classes]
            parts += [part] * len(found)
        self._expect({self.class_names[label] for label in set(labels)}, self.root)
        # parts that differ in their classes are made for few shots: one pool to a classifier
        return files, torch.tensor(labels), torch.tensor(parts) * apart

    def divide(self, labels: Tensor, parts: Tensor, first: Tensor) -> Tensor:
        """The split of each image under `protocol`."""
        if self.protocol == "supervised":
            return super().divide(labels, parts, first)
        if self.protocol == "ravi":
            return keep_apart(torch.tensor([_OF_CLASS[n] for n in self.class_names])[labels], first)
        images = first.unique()
        generator = torch.Generator().manual_seed(self.split_seed)
        images = images[torch.randperm(len(images), generator=generator)]
        train, val = (round(share * len(images)) for share in self.shares[:2])
        splits = torch.full_like(labels, 2)
        splits[images[:train]], splits[images[train : train + val]] = 0, 1
        return splits[first]

    def describe(self, index: int) -> dict[str, Any]:
        """The file, and in a pickle the position in it."""
        for file in self._pickles():
            rows = self._rows[file.name]
            if index < rows:
                return {"file": file.name, "row": index}
            index -= rows
        return super().describe(index)

    def _check(self) -> None:
        if (self.root / "images").is_dir() or self._pickles():
            return
        if not self.root.is_dir() or not class_folders(self.root):
            raise FileNotFoundError(
                f"no mini-ImageNet in {str(self.root)!r}: neither folders of classes, nor images/ "
                "and its CSV files, nor mini-imagenet-cache-*.pkl. Give its folder with "
                "--data.root DIR"
            )

    def _expect(self, names: Any, place: Path, *, all_of_them: bool = True) -> None:
        missing = sorted(set(self.class_names) - set(names)) if all_of_them else []
        if missing or not set(names) <= set(self.class_names):
            extra = sorted(set(names) - set(self.class_names))
            raise ValueError(
                f"{str(place)!r} does not hold the 100 classes of mini-ImageNet: missing "
                f"{some(missing)}, unexpected {some(extra)}. Unpack it again, or read it with "
                "--data ImageFolder"
            )

    def _flat(self) -> tuple[list[Path], Tensor, Tensor]:
        files, names = [], []
        for part in CLASSES:
            places = (self.root / f"{part}.csv", self.root / "splits" / f"{part}.csv")
            file = next((place for place in places if place.is_file()), None)
            if file is None:
                raise FileNotFoundError(
                    f"no {part}.csv beside {str(self.root / 'images')!r} or in splits/: put the "
                    "three lists of Ravi and Larochelle there"
                )
            rows = read_list(file)
            files += [self.root / "images" / name for name, _ in rows]
            names += [label for _, label in rows]
        self._expect(set(names), self.root)
        if missing := [file.name for file in files if not file.is_file()]:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(files)} files that the lists name are not in "
                f"{str(self.root / 'images')!r}: {some(missing)}. Unpack it again"
            )
        labels = torch.tensor([self.class_names.index(name) for name in names])
        return files, labels, torch.zeros_like(labels)

    def _pickles(self) -> list[Path]:
        files = [self.root / f"mini-imagenet-cache-{part}.pkl" for part in CLASSES]
        return files if any(file.is_file() for file in files) else []

    def read(self) -> tuple[Tensor | Images, Tensor, Tensor, Tensor]:
        """Images, classes, the part each came in, and the first copy of each."""
        self._check()
        files = self._pickles()
        if not files:
            return super().read()
        if missing := [file.name for file in files if not file.is_file()]:
            raise FileNotFoundError(
                f"{str(self.root)!r} holds some of mini-ImageNet's pickles, but not "
                f"{some(missing)}: put it there too"
            )

        def build(create: Create) -> dict[str, Any]:
            contents = [read_pickle(file) for file in files]
            self._expect({name for _, names in contents for name in names}, self.root)
            rows = [len(images) for images, _ in contents]
            side = self.image_size
            pixels = create("images", (sum(rows), 3, side, side), np.uint8)
            labels = create("labels", (sum(rows),), np.int64)
            known: dict[bytes, int] = {}
            first = create("first", (sum(rows),), np.int64)
            position = 0
            for images, names in contents:
                for image, name in zip(images, names, strict=True):
                    pixels[position] = square(image, side)
                    labels[position] = self.class_names.index(name)
                    first[position] = known.setdefault(hashlib.sha256(image).digest(), position)
                    position += 1
            return {file.name: count for file, count in zip(files, rows, strict=True)}

        key = (str(self.root.resolve()), stamp(self.root, files), self.image_size)
        arrays, notes = prepare(self.cache_dir, "MiniImageNet-pickle", key, build)
        self._rows = notes
        labels = arrays["labels"]
        return arrays["images"], labels, torch.zeros_like(labels), arrays["first"]


def read_list(file: Path) -> list[tuple[str, str]]:
    """The rows of a list of Ravi and Larochelle: file name and class.

    Raises:
        ValueError: it is anything else.
    """
    rows, why = [], "no `filename,label` on line 1"
    try:
        header, *rows = csv.reader(file.read_text().splitlines())
        if header == ["filename", "label"]:
            # a name is a name, never a way to another folder
            wrong = [
                n for n, row in enumerate(rows, 2) if len(row) != 2 or "/" in row[0] or not all(row)
            ]
            why = f"line {wrong[0]}" if wrong else "" if rows else "no file in it"
    except (ValueError, csv.Error) as error:
        why = str(error)
    if why:
        raise ValueError(f"{str(file)!r} is damaged ({why}): unpack it again")
    return [(name, label) for name, label in rows]


def read_pickle(file: Path) -> tuple[np.ndarray, list[str]]:
    """Images (M, H, W, 3) in uint8 of a pickled cache, and the class of each.

    A pickle can run any code; this one may hold arrays, lists and dicts alone.

    Raises:
        ValueError: it holds anything else.
    """
    try:
        with file.open("rb") as stream:
            content = _ArraysOnly(stream, encoding="latin1").load()
        images, rows = np.asarray(content["image_data"]), content["class_dict"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"image_data is {images.dtype} of shape {images.shape}")
        names = [""] * len(images)
        for name, positions in rows.items():
            for position in positions:
                names[position] = str(name)
        if "" in names:
            raise ValueError(f"image {names.index('')} has no class")
    except Exception as error:
        raise ValueError(
            f"cannot read {str(file)!r} ({type(error).__name__}: {error}): unpack it again"
        ) from error
    return images, names


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = {"_reconstruct", "scalar", "_frombuffer", "ndarray", "dtype"}
        if module.split(".")[0] == "numpy" and name in known:
            return super().find_class(module, name)
        if (module, name) in (("_codecs", "encode"), ("collections", "OrderedDict")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")
