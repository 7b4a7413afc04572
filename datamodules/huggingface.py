"""Data sets of the Hugging Face hub, and folders in the forms of its library."""

import os
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from .images import opened, some
from .pool import PARTS
from .samples import Samples, Source

LABELS = ("label", "labels", "class", "target", "fine_label")


@dataclass(eq=False, repr=False)
class HuggingFace(Samples):
    """Images and labels of a set that Hugging Face's package `datasets` reads.

    `path` is a folder of Parquet files (`train*.parquet`, `test*.parquet`), of `save_to_disk`, or
    of another form that `load_dataset` reads; or the name of a set on the hub, which is downloaded.
    No code of the set is run. Without a test part, the validation part is the test set, or else
    some samples of every class.

    Args:
        path: see above.
        configuration: of a set that has several.
        image: column of the images; null finds it.
        label: column of the classes; null takes the one with names of classes, or one that is
            called label, labels, class, target or fine_label.
        train: name of the training part in the set; null finds it.
        val: name of the validation part; null finds it, none is for a set without one.
        test: name of the test part, in the same way. One without labels, which are -1 there, is
            left out if it was not named.

    Raises:
        ImportError: the package `datasets` is not installed.
        ValueError: the set cannot be read, or a column or a part is missing.
    """

    path: str = "data"
    _: KW_ONLY
    configuration: str | None = None
    image: str | None = None
    label: str | None = None
    train: str | None = None
    val: str | None = None
    test: str | None = None

    @property
    def place(self) -> str:
        """The folder or name, and the configuration."""
        return f"{self.path} {self.configuration}"

    def source(self) -> Source:
        """Open the set by `datasets`."""
        found = self._opened()
        parts = self._parts(found)
        image, label = self._columns(found[parts["train"]].features)
        kind = found[parts["train"]].features[label]
        for part, name in list(parts.items()):
            if getattr(self, part) is None and set(found[name].unique(label)) in ({-1}, {None}):
                rank_zero_info(f"{self.path}: {name} is left out, since it has no labels")
                del parts[part]
        check_classes(self.path, {name: found[name].features[label] for name in parts.values()})
        names, number = getattr(kind, "names", None), None
        if names is None and "string" in str(kind.dtype):
            known = {name for part in parts.values() for name in found[part].unique(label)}
            if None in known:
                raise ValueError(f"{self.path!r} has samples without a label in {label!r}")
            names = sorted(known)
            number = {name: place for place, name in enumerate(names)}
        folder = Path(self.path).expanduser()
        inside = Path(os.path.abspath(folder)) if folder.is_dir() else None
        plain = import_module("datasets").Image(decode=False)  # we decode: fewer formats
        samples = {
            part: Rows(found[name].cast_column(image, plain), image, label, number, inside)
            for part, name in parts.items()
        }
        files = [
            Path(file["filename"]) for name in parts.values() for file in found[name].cache_files
        ]
        stamps = [self.stamp(each) for each in ([folder] if folder.is_dir() else files)]
        key = (self.path, self.configuration, parts, image, label, stamps)
        return Source(re.sub(r"[^\w.-]", "_", folder.resolve().name), samples, names, key)

    def _opened(self) -> Mapping[str, Any]:
        """The parts of the set, by name."""
        if find_spec("datasets") is None:
            raise ImportError(
                "--data HuggingFace needs the package datasets: pip install '.[huggingface]'"
            )
        datasets, folder = import_module("datasets"), Path(self.path).expanduser()
        saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
        try:
            if saved:
                found = datasets.load_from_disk(str(folder))
            else:
                path = str(folder) if folder.exists() else self.path
                found = datasets.load_dataset(path, self.configuration)
        except Exception as error:  # its own kinds of errors are many
            raise ValueError(
                f"datasets cannot read {self.path!r} ({type(error).__name__}: {error}): give a "
                "folder or the name of a set with --data.path, and one of several configurations "
                "with --data.configuration"
            ) from error
        return found if isinstance(found, Mapping) else {"train": found}

    def _parts(self, found: Mapping[str, Any]) -> dict[str, str]:
        """The names of the parts of the set, by ours."""
        parts, given = {}, {getattr(self, part) for part in PARTS}
        for part, known in PARTS.items():
            free = (each for each in known if each in found and each not in given)
            name = getattr(self, part) or next(free, None)
            if name in (None, "none") and part != "train":
                continue
            if name not in found:
                raise ValueError(
                    f"{self.path!r} has the parts {', '.join(found)}, none is {name or part!r}: "
                    f"name one with --data.{part}"
                )
            parts[part] = name
        if other := sorted({*found} - {*parts.values()}):
            rank_zero_info(
                f"{self.path}: the parts {', '.join(other)} are left out; name others with "
                "--data.val and --data.test"
            )
        return parts

    def _columns(self, features: Mapping[str, Any]) -> tuple[str, str]:
        """The columns of the images and of the labels."""
        kinds = {name: type(kind).__name__ for name, kind in features.items()}
        images = [name for name, kind in kinds.items() if kind == "Image"]
        images = images or [name for name, kind in features.items() if _holds_bytes(kind)]
        labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
        labels = labels or [name for name in LABELS if name in features]
        chosen = []
        for option, candidates in (("image", images), ("label", labels)):
            given = getattr(self, option)
            if given is None and len(candidates) == 1:
                given = candidates[0]
            wrong = option == "image" and given not in images
            if given not in features or wrong:
                raise ValueError(
                    f"{self.path!r} has the columns {', '.join(features)}, of images "
                    f"{', '.join(images) or 'none'}: name that of the {option}s with "
                    f"--data.{option}"
                )
            chosen.append(given)
        return chosen[0], chosen[1]


def _holds_bytes(kind: Any) -> bool:
    """Whether a column of another program holds files, as bytes or as a struct with bytes."""
    return "bytes" in kind if isinstance(kind, dict) else "binary" in str(kind)


def check_classes(path: str, kinds: Mapping[str, Any]) -> None:
    """Refuse parts whose labels number other classes, such as those that were encoded one by one.

    Args:
        path: of the set, for the message.
        kinds: the feature of the labels of each part.
    """
    known = {part: (getattr(kind, "names", None), kind.dtype) for part, kind in kinds.items()}
    first, (names, dtype) = next(iter(known.items()))
    for part, (others, other) in known.items():
        if others != names or ("string" in str(other)) != ("string" in str(dtype)):
            shown = [some(n) if n else kind for n, kind in ((others, other), (names, dtype))]
            raise ValueError(
                f"{path!r}: the labels of {part} ({shown[0]}) number other classes than those of "
                f"{first} ({shown[1]}): give all parts one feature, such as by "
                "cast_column of the package datasets"
            )


@dataclass(frozen=True)
class Rows:
    """The rows of a part as samples.

    Args:
        rows: as `datasets` gives them.
        image: column of the images, not decoded.
        label: column of the labels.
        number: of each class, where labels are names.
        folder: that holds all files of the set, if it is known.
    """

    rows: Any
    image: str
    label: str
    number: Mapping[str, int] | None
    folder: Path | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Any, Any]:
        """An image of PIL, and the number of its class."""
        row = self.rows[position]
        file, label = row[self.image], row[self.label]
        content = file["bytes"]
        if content is None:
            path = Path(os.path.abspath(file["path"]))  # the set itself may hold links
            if not path.is_file() or (self.folder and self.folder not in path.parents):
                raise ValueError(f"{file['path']!r} is no file of the set")
            content = path.read_bytes()
        image = opened(content)
        image.load()
        return image, label if self.number is None else self.number[label]
