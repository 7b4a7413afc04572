"""`python -m datamodules.part LIST ROOT OUT`: the images of CIFAR-10 that a list names.

ROOT holds torchvision's download; LIST has a line `train/<class>/<file>.png` or `test/...` for each
image, with the file names of the download, and may end in `.gz`. OUT gets these files, which
`--data CIFAR10 --data.root OUT` reads. `results/cifar10_part.txt.gz` is the list of the studies.
"""

import gzip
import pickle
import shutil
import sys
from pathlib import Path

from PIL import Image


def write(listed: Path, root: Path, out: Path) -> int:
    """Write the images; their number.

    Raises:
        OSError: a file cannot be read or written.
        RuntimeError: the download is not there or damaged (torchvision's check).
        ValueError: an image is not in the download, the list is empty, or `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{str(out)!r} is there: delete it, or name another folder")
    text = gzip.decompress(listed.read_bytes()) if listed.suffix == ".gz" else listed.read_bytes()
    wanted = set(text.decode().split())
    if not wanted:
        raise ValueError(f"{str(listed)!r} names no image")
    unfinished = out.with_name(f"{out.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    try:
        _write(wanted, root, unfinished)
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return len(text.split())


def _write(wanted: set[str], root: Path, out: Path) -> None:
    from torchvision.datasets import CIFAR10

    for part in ("train", "test"):
        found = CIFAR10(str(root), part == "train")
        names = list[str]()
        for file, _ in found.train_list if part == "train" else found.test_list:
            content = (root / found.base_folder / file).read_bytes()  # its MD5 has been checked
            names += pickle.loads(content, encoding="latin1")["filenames"]
        for pixels, label, name in zip(found.data, found.targets, names, strict=True):
            place = f"{part}/{found.classes[label]}/{name}"
            if place in wanted:
                (out / place).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(out / place)
                wanted.remove(place)
    if wanted:
        raise ValueError(f"{len(wanted)} images are not in the download, such as {min(wanted)}")


def main() -> None:
    """Write the images that the command line names."""
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        count = write(*(Path(word).expanduser() for word in sys.argv[1:]))
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} images written into {sys.argv[3]}")


if __name__ == "__main__":
    main()
