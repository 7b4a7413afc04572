"""Files that appear only when they are whole."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNFINISHED = ".part"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; what is written there replaces `path` at the end.

    It is on the disk before it replaces `path`, so that a kill or a power cut leaves the old file
    or the new one. On an error the unfinished file is deleted and `path` is as before. Folders are
    made. What is written may be a folder, too, which replaces a folder as a whole. Of a link, what
    it leads to is replaced.

    Raises:
        OSError: the file cannot be written; the message has the reason and the remedy.
        ValueError: `path` is a device, a pipe or a socket.
    """
    with naming(path):
        check_replaceable(path)
        try:
            path = path.resolve()
        except RuntimeError as error:
            raise OSError(errno.ELOOP, "it is a link to itself") from error
        unfinished = path.with_name(path.name + _UNFINISHED)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            for each in (*unfinished.rglob("*"), unfinished):
                _to_disk(each)
            if unfinished.is_dir() and path.is_dir():  # no system puts one in a full one's place
                earlier = path.with_name(f"{path.name}.earlier{_UNFINISHED}")
                shutil.rmtree(earlier, ignore_errors=True)  # of a process that was killed
                path.rename(earlier)
                unfinished.replace(path)
                shutil.rmtree(earlier)
            else:
                unfinished.replace(path)
            if os.name == "posix":  # elsewhere a folder cannot be opened
                _to_disk(path.parent)
        finally:
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            unfinished.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """Raise a ValueError if there is something that is neither a file nor a folder."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is a device, a pipe or a socket: name a file")


def append(path: Path, text: str) -> None:
    """Add `text` to a file, all of it or nothing.

    Raises:
        OSError: the file cannot be written; the message has the reason and the remedy.
    """
    with naming(path), path.open("ab", buffering=0) as file:
        before, data = file.tell(), text.encode()
        try:
            written = 0
            while written < len(data):  # a disk that gets full takes a part, then none
                written += file.write(data[written:])
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(before)
            raise


def check_writable(folder: Path) -> None:
    """Raise an OSError if nothing can be written into `folder`, which need not exist yet."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    with naming(folder):
        tempfile.TemporaryDirectory(dir=there).cleanup()


def remove_unfinished(folder: Path, names: Iterable[str]) -> None:
    """Delete what a killed process left in `folder` of files with these `names`, such as *.csv."""
    for name in names:
        for file in folder.glob(name + _UNFINISHED):
            if file.is_file():
                file.unlink(missing_ok=True)


class _NamedError(OSError):
    """Its message has the file already."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path`, the reason and the remedy in an error of the operating system.

    One that names a file already, by an inner `naming`, stays as it is.
    """
    try:
        yield
    except _NamedError:
        raise
    except (OSError, RuntimeError) as error:  # torch.save turns the first into the second
        cause = system_error(error)
        if cause is None:
            raise
        where = next(folder for folder in path.absolute().parents if folder.is_dir())
        free = shutil.disk_usage(where).free / 1e6
        why = cause.strerror or str(cause)
        why += f" ({free:.1f} MB are free)" if is_full(cause) else ""
        raise _NamedError(
            f"cannot write {path}: {why}; make room there or choose another folder"
            + ("; the earlier file is whole" if path.is_file() else "")
        ) from error


def system_error(error: BaseException | None) -> OSError | None:
    """The error of the operating system among `error` and its causes."""
    while error and not (isinstance(error, OSError) and error.errno):
        error = error.__cause__ or error.__context__
    return error


def is_full(error: OSError) -> bool:
    """Whether a disk is full, or a quota or the largest size of a file is reached."""
    return error.errno in _FULL


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
