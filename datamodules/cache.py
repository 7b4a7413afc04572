"""Prepared data sets: arrays on disk, built once and memory-mapped by every later run."""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

Create = Callable[[str, tuple[int, ...], Any], np.ndarray]
# to be raised with every change of what a file becomes (`read_image`, `cut`, `read_rows`, ...):
# what earlier code has prepared is then not used any more
FORM = 4


def home(cache_dir: str | Path | None) -> Path:
    """The folder of all prepared sets."""
    return Path(
        cache_dir or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/supple"
    ).expanduser()


def stamp(root: Path, files: Iterable[str | Path]) -> tuple[str, list[tuple[str, int, int]]]:
    """`root`, and the name, size and time of change of each file in it: for the key of a cache."""
    start, status = f"{root}{os.sep}", ((str(file), os.stat(file)) for file in files)
    rows = [(file.removeprefix(start), s.st_size, s.st_mtime_ns) for file, s in status]
    return str(root.resolve()), rows


def prepare(
    cache_dir: str | Path | None, name: str, key: Any, build: Callable[[Create], None]
) -> dict[str, Tensor]:
    """The arrays that `build` makes, read from the disk where an earlier call has stored them.

    They are built in a folder of another name, which is renamed when they are complete. A second
    process that needs them in the meantime waits. Arrays whose checksum is wrong are built again.

    Args:
        cache_dir: folder of all prepared sets; by default `$XDG_CACHE_HOME/supple`, or
            `~/.cache/supple`.
        name: name of the set, with which its own folder's name starts.
        key: everything that the arrays depend on, as `repr` shows it.
        build: fills the arrays that it makes with `create(name, shape, dtype)`.

    Raises:
        OSError: the folder cannot be written, or has too little room.
    """
    from filelock import FileLock

    folder = home(cache_dir)
    digest = hashlib.sha256(repr((FORM, key)).encode()).hexdigest()[:16]
    whole = folder / f"{name}-{digest}"
    if found := _open(whole):
        return found
    remedy = "give a folder that is writable and has room with --data.cache_dir DIR"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(whole.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise OSError(f"cannot write to {str(folder)!r} ({error}): {remedy}") from error
    with lock:
        if found := _open(whole):  # another process has built them meanwhile
            return found
        if whole.exists():
            rank_zero_info(f"building {str(whole)!r} again, as it is damaged")
            shutil.rmtree(whole)
        unfinished = whole.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        arrays: dict[str, Any] = {}

        def create(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            file = unfinished / f"{name}.npy"
            try:
                arrays[name] = np.lib.format.open_memmap(file, "w+", dtype=dtype, shape=shape)
                _reserve(file, arrays[name].offset, arrays[name].nbytes)
            except OSError as error:
                size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                free = shutil.disk_usage(folder).free
                raise OSError(
                    f"{size / 1e6:.1f} MB of prepared data do not fit in {str(folder)!r}, which "
                    f"has {free / 1e6:.1f} MB left ({error.strerror}): {remedy}"
                ) from error
            return arrays[name]

        try:
            build(create)
            for array in arrays.values():
                array.flush()
            sums = {name: _sum(unfinished / f"{name}.npy") for name in arrays}
            (unfinished / "sums.json").write_text(json.dumps(sums))
            unfinished.rename(whole)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        found = _open(whole)
        assert found, f"{whole} changed while it was read"
        return found


def _reserve(file: Path, start: int, size: int) -> None:
    """Occupy the disk for a file: the first write to a page that finds no room kills a process."""
    if not size:
        return
    with file.open("r+b") as out:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(out.fileno(), start, size)
            return
        out.seek(start)
        for done in range(0, size, 2**24):
            out.write(bytes(min(2**24, size - done)))


def _open(folder: Path) -> dict[str, Tensor] | None:
    """The arrays in `folder`; None if they are not there or damaged."""
    try:
        sums = json.loads((folder / "sums.json").read_text())
        files = {name: folder / Path(f"{name}.npy").name for name in sums}
        if any(_sum(file) != sums[name] for name, file in files.items()):
            return None
        # copy on write: torch needs writable memory, and processes share the pages that none writes
        arrays = {name: np.load(file, mmap_mode="c") for name, file in files.items()}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except (OSError, ValueError, TypeError):
        return None


def _sum(file: Path) -> int:
    return zlib.crc32(np.memmap(file, mode="r"))  # pyright: ignore[reportArgumentType]
