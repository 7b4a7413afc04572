"""Prepared data sets: arrays on disk, built once and memory-mapped by every later run."""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

Create = Callable[[str, tuple[int, ...], Any], np.ndarray]


class Prepared(NamedTuple):
    """What :func:`prepare` returns: tensors by name, and what the builder had to say."""

    arrays: dict[str, Tensor]
    notes: dict[str, Any]


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/supple`, or `~/.cache/supple`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "supple"


def stamp(root: Path, files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name within `root`, size and time of change of each file: what a cache's key holds."""
    status = ((file, file.stat()) for file in files)
    return [(str(file.relative_to(root)), s.st_size, s.st_mtime_ns) for file, s in status]


def prepare(
    folder: Path, name: str, key: Any, build: Callable[[Create], dict[str, Any]]
) -> Prepared:
    """The arrays that `build` makes, from `folder` if they are there and whole.

    They appear at once, when they are complete; a second process that asks meanwhile waits for
    them. Damaged ones, known by their checksums, are built again.

    Args:
        folder: of all prepared sets.
        name: of the set; the file names start with it.
        key: everything the arrays depend on, as `repr` shows it.
        build: fills the arrays that it makes by `create(name, shape, dtype)`; returns notes that
            JSON can hold.

    Raises:
        OSError: `folder` cannot be written, or has too little room.
    """
    from filelock import FileLock

    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    place = folder / f"{name}-{digest}"
    if found := _open(place):
        return found
    remedy = "give a folder that can be written and has room with --data.cache_dir DIR"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise OSError(
            f"cannot keep prepared data in {str(folder)!r} ({error}): {remedy}"
        ) from error
    with lock:
        if found := _open(place):  # another process was quicker
            return found
        if place.exists():
            rank_zero_info(f"the prepared data in {str(place)!r} are damaged: building them again")
            shutil.rmtree(place)
        unfinished = place.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        arrays: dict[str, np.ndarray] = {}

        def create(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            size, free = int(np.prod(shape)) * np.dtype(dtype).itemsize, _free(unfinished)
            if size > free:
                raise OSError(
                    f"{size / 1e9:.1f} GB of prepared data do not fit in {str(folder)!r}, "
                    f"which has {free / 1e9:.1f} GB left: {remedy}"
                )
            file = unfinished / f"{name}.npy"
            arrays[name] = np.lib.format.open_memmap(file, "w+", dtype=dtype, shape=shape)
            return arrays[name]

        try:
            notes = build(create)
            for array in arrays.values():
                array.flush()  # pyright: ignore[reportAttributeAccessIssue]
            sums = {name: _sum(unfinished / f"{name}.npy") for name in arrays}
            about = json.dumps({"sums": sums, "notes": notes})
            (unfinished / "about.json").write_text(f"{zlib.crc32(about.encode())}\n{about}")
            unfinished.rename(place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        found = _open(place)
        assert found, f"{place} changed while it was read"
        return found


def _open(place: Path) -> Prepared | None:
    try:
        total, text = (place / "about.json").read_text().split("\n", 1)
        if zlib.crc32(text.encode()) != int(total):
            return None
        about = json.loads(text)
        files = {name: place / f"{name}.npy" for name in about["sums"]}
        if any(_sum(file) != about["sums"][name] for name, file in files.items()):
            return None
        # copy on write: torch wants writable memory; pages nobody writes to stay shared
        arrays = {name: np.load(file, mmap_mode="c") for name, file in files.items()}
        return Prepared({n: torch.from_numpy(a) for n, a in arrays.items()}, about["notes"])
    except (OSError, ValueError):
        return None


def _sum(file: Path) -> int:
    return zlib.crc32(np.memmap(file, mode="r"))  # pyright: ignore[reportArgumentType]


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
