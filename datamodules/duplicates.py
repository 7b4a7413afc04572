"""`python -m datamodules.duplicates NAME ROOT [OPTION=VALUE ...]`: near-copies across splits.

Prints the images of one split that nearly equal one of another, also turned by 90 degrees,
mirrored, resized or compressed again, with their files and classes. The option `least` says how
alike they are: 0.98 by default, 1 is equal. Look at them: photos of one kind can be as alike.
"""

import sys
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .__main__ import build
from .base import Data, ImageDataModule
from .images import Images
from .workers import cores, prepared

SIDE = 16  # of the grey picture by which images are compared


class Sample(NamedTuple):
    """A sample of a split, and its position in the data set."""

    split: str
    position: int
    label: int


class Pair(NamedTuple):
    """Two samples of different splits, and their correlation."""

    correlation: float
    one: Sample
    other: Sample


def find(data: ImageDataModule, least: float = 0.98) -> list[Pair]:
    """The pairs that correlate by `least` or more, most alike first.

    Images are compared as grey pictures of 16 x 16 in eight positions.
    """
    if data.dims != 2:
        raise ValueError(f"{type(data).__name__} has signals: only images are compared")
    data.setup("fit")
    data.setup("test")
    train, test = data._train, data._test
    assert train is not None
    assert test is not None
    splits = {
        "train": (train, data.train_indices),
        "val": (train, data.val_indices),
        "test": (test, data.test_indices),
    }
    found = {name: small(*each) for name, each in splits.items()}

    def sample(split: str, row: int) -> Sample:
        (_, labels), indices = splits[split]
        return Sample(split, int(indices[row]), int(labels[indices[row]]))

    pairs = [
        Pair(correlation, sample(one, first), sample(other, second))
        for one, other in combinations(splits, 2)
        for correlation, first, second in alike(found[other], found[one], least)
    ]
    return sorted(pairs, reverse=True)


def small(data: Data, indices: Tensor) -> Tensor:
    """Grey pictures, (M, 16 * 16), of mean 0 and length 1."""
    images, parts = data[0], indices.split(256)
    workers = cores() if isinstance(images, Images) else 0
    pictures = [
        F.adaptive_avg_pool2d(part.float().mean(1, keepdim=True), SIDE).flatten(1)
        for part in (prepared(images.__getitem__, parts, workers) if len(indices) else ())
    ]
    every = torch.cat(pictures) if pictures else torch.empty(0, SIDE**2)
    return F.normalize(every - every.mean(1, keepdim=True))


def alike(these: Tensor, those: Tensor, least: float) -> Iterator[tuple[float, int, int]]:
    """Correlation, row of `those` and row of `these`, where it is `least` or more."""
    for first in range(0, len(these), 500):
        part = these[first : first + 500]
        square = part.view(-1, SIDE, SIDE)
        turned = [each.rot90(k, (1, 2)) for each in (square, square.flip(2)) for k in range(4)]
        best = torch.stack([each.flatten(1) @ those.T for each in turned]).amax(0)
        for row, column in (best >= least).nonzero().tolist():
            yield best[row, column].item(), column, first + row


def main() -> None:
    """Print the pairs."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    chosen = [word for word in sys.argv[3:] if word.startswith("least=")]
    try:
        least = float(chosen[-1].removeprefix("least=")) if chosen else 0.98
        options = [word for word in sys.argv[3:] if word not in chosen]
        data = build(sys.argv[1], sys.argv[2], options)
        pairs = find(data, least)
    except (AttributeError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")
    for correlation, *samples in pairs:
        shown = (
            f"{split} {data.name_of('test' if split == 'test' else 'train', number)} "
            f"({data.class_names[label]})"
            for split, number, label in samples
        )
        print(f"{correlation:.3f}  {'  =  '.join(shown)}")
    heldout = {(pair.other.split, pair.other.position) for pair in pairs}
    print(
        f"{len(pairs)} pairs correlate by {least:g} or more: {len(heldout)} of "
        f"{len(data.val_indices) + len(data.test_indices)} images of val and test have a near-copy "
        "in another split" + (". To be free of them, delete one of each pair" if pairs else "")
    )


if __name__ == "__main__":
    main()
