"""Files that appear under their name only once they are complete, output folders, and file names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raymap3r_ros.errors import InputError


def partial_path(path: Path) -> Path:
    """Return where to write a file until it is complete and renamed to `path`: same folder, same suffix."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to. It is renamed to `path` at the end, or deleted on an error."""
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def clear_folder(folder: Path, ours: re.Pattern[str], overwrite: bool = False) -> None:
    """Create an output folder, or clear an existing one.

    With `overwrite`, files of an earlier output are deleted, so that two outputs never mix: those whose path in the
    folder matches `ours`. Other files stay. Raises InputError if `folder` is a file, or if it contains any file and
    `overwrite` is off.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; the output needs a folder")
    if any(item.is_file() for item in folder.rglob("*")):
        if not overwrite:
            raise InputError(f"{folder}: holds files already; name another folder, or allow it with --overwrite")
        for file in [*folder.glob("*"), *folder.glob("*/*")]:
            if ours.fullmatch(file.relative_to(folder).as_posix()):
                file.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key by which frame2 comes before frame10."""
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in re.findall(r"\d+|\D+", name)]
