"""Files that appear under their name only once they are complete."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raymap3r_ros.errors import InputError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(path: Path) -> str:
    """Return what is at `path` if it is not a file, for a message; "" for a file, and if nothing is there."""
    if not path.exists():
        return _broken_link(path) if path.is_symlink() else ""
    return _KINDS.get(stat.S_IFMT(path.stat().st_mode), "")


def _broken_link(path: Path) -> str:
    """Return what a link is whose target does not exist; in data sets under git-annex, the target is downloaded."""
    is_annexed = "annex/objects/" in os.readlink(path)
    return "a link that leads nowhere" + (" (get its file with: git annex get, or datalad get)" if is_annexed else "")


def check_output_file(path: Path) -> None:
    """Raise InputError if `path` exists and is not a file: a FIFO or a device would be replaced by the output."""
    if kind := kind_of(path):
        raise InputError(f"{path}: is {kind}; name a file for the output")


def partial_path(path: Path) -> Path:
    """Return where to write a file until it is complete and renamed to `path`: same folder, same suffix."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a hidden file beside `path` to write to. It is renamed to `path` at the end, or deleted on an error.

    A file that is replaced keeps its permissions. Raises InputError if `path` is not a file, or if another process is
    writing it.
    """
    check_output_file(path)
    partial = partial_path(path)
    if partial.is_symlink() or kind_of(partial):
        partial.unlink()  # a link or a FIFO there would lead the writer elsewhere
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        _lock(descriptor, path)
        if path.exists():
            os.fchmod(descriptor, stat.S_IMODE(path.stat().st_mode))
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Keep other processes that use this function for `path` out of the `with` block.

    A hidden file beside `path` holds the lock, and stays. Raises InputError if another process is in the block.
    """
    descriptor = os.open(path.with_name(f".{path.stem}.lock"), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{path}: another process is writing this file; wait until it ends") from error
    except OSError:
        pass  # some network file systems cannot lock
