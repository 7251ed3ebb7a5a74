"""Files that appear under their name only once they are complete."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from raymap3r_ros.errors import InputError
from raymap3r_ros.signals import stop_signals_held

WRITING = "another process is writing this file; wait until it ends"
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


def real_path(path: Path) -> Path:
    """Return the absolute path without links. Unlike `Path.resolve`, it accepts links that form a loop."""
    return Path(os.path.realpath(path))


def check_outputs(outputs: Sequence[Path], inputs: Collection[Path] = (), what: str = "file") -> None:
    """Raise InputError if one of the outputs is an input, is in one, or is another output.

    A path is also found under another name: through links, and as a file or folder that `inputs` link to. `what`:
    what the outputs are, "file" or "folder".
    """
    for index, output in enumerate(outputs):
        for item in inputs:
            if _is_same(output, item):
                raise InputError(f"{output}: is the input; name another {what} for the results")
            if item.is_dir() and _is_in(output, item):
                raise InputError(f"{output}: is in the input {item}; name a {what} outside it for the results")
        if any(_is_same(output, other) for other in outputs[:index]):
            raise InputError(f"{output}: is named for two outputs; name another {what} for one of them")


def _is_same(first: Path, second: Path) -> bool:
    if real_path(first) == real_path(second):
        return True
    return first.exists() and second.exists() and first.samefile(second)


def _is_in(output: Path, folder: Path) -> bool:
    """Return whether an output is in a folder, by its own place, its target, or a link in the folder to it."""
    root = real_path(folder)
    target = real_path(output)
    if target.is_relative_to(root) or (real_path(output.absolute().parent) / output.name).is_relative_to(root):
        return True
    if not output.is_file():  # nothing to be replaced
        return False
    for parent, folders, files in os.walk(root):
        linked = (Path(parent, name) for name in folders if os.path.islink(os.path.join(parent, name)))
        if any(target.is_relative_to(real_path(item)) for item in linked):
            return True
        if any(_is_same(output, Path(parent, name)) for name in files):
            return True
    return False


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
    with named_errors(path):
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _lock(descriptor, path)
            if path.exists():
                os.fchmod(descriptor, stat.S_IMODE(path.stat().st_mode))
            try:
                yield partial
                os.replace(partial, path)
            except BaseException:
                with stop_signals_held():
                    partial.unlink(missing_ok=True)
                raise
        finally:
            os.close(descriptor)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Add the name of the file that is written to errors of the operating system: a full disk has none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(partial_path(path)), os.fspath(path)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Keep other processes that use this function for `path` out of the `with` block.

    A hidden file beside `path` holds the lock, and stays. Raises InputError if another process is in the block.
    """
    descriptor = os.open(path.with_name(f".{path.stem}.lock"), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        with locked(descriptor, path, WRITING):
            yield
    finally:
        os.close(descriptor)


@contextmanager
def locked(descriptor: int, path: Path, taken: str) -> Iterator[None]:
    """Lock an open file or folder in the `with` block. Raises InputError with `taken` if another process has it.

    Some network file systems cannot lock. There a file in the folder of temporary files, which stays, is locked in
    place of `path`: then only processes of one user on one machine are kept out.
    """
    with ExitStack() as stack:
        if not _lock(descriptor, path, taken):
            digest = hashlib.sha256(os.fsencode(real_path(path))).hexdigest()[:32]
            name = os.path.join(tempfile.gettempdir(), f"raymap3r-{os.getuid()}-{digest}.lock")
            substitute = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            stack.callback(os.close, substitute)
            _lock(substitute, path, taken)
        yield


def _lock(descriptor: int, path: Path, taken: str = WRITING) -> bool:
    """Lock an open file or folder, until it is closed; False if its file system cannot. Raises InputError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{path}: {taken}") from error
    except OSError:
        return False
    return True
