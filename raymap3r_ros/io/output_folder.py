"""Folders for results. A manifest in the folder lists the files that were written; nothing else is ever deleted."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from raymap3r_ros.errors import InputError
from raymap3r_ros.output_files import check_outputs, kind_of, locked, named_errors, real_path

MANIFEST = ".raymap3r_files"
_TITLE = "# Files that raymap3r wrote here, one per line. --overwrite deletes these and no others."
_NAMED = 5  # files named in an error


def claim(folder: Path, name: str) -> Path:
    """Add a file to the manifest of `folder` and return its path. Call this before writing the file.

    `name`: relative to the folder, with "/" between its parts.
    """
    manifest = folder / MANIFEST
    line = f"{name}\n" if manifest.exists() else f"{_TITLE}\n{name}\n"
    with named_errors(manifest), manifest.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(line)
    return folder / name


def written_files(folder: Path) -> set[Path]:
    """Return the existing files of `folder` that its manifest lists. Raises InputError if the manifest is no file."""
    manifest = folder / MANIFEST
    if not os.path.lexists(manifest):
        return set()
    if manifest.is_symlink() or not manifest.is_file():
        raise InputError(f"{manifest}: not a regular file, so not a manifest of raymap3r; move it away")
    lines = manifest.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    root = real_path(folder)
    found = set()
    for line in lines:
        name = PurePosixPath(line)
        file = folder / name
        # A manifest may come from elsewhere and contain anything, and a subfolder may have become a link.
        if line.startswith("#") or name.is_absolute() or ".." in name.parts or not _is_file_or_link(file):
            continue
        if real_path(file.parent).is_relative_to(root):
            found.add(file)
    return found


def _is_file_or_link(path: Path) -> bool:
    """Return whether there is a file or a link of this name; names that cannot exist are none."""
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):  # too long, or with a null character
        return False
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def foreign_files(folder: Path) -> list[Path]:
    """Return all files in `folder` and its subfolders that its manifest does not list, sorted."""
    ours = written_files(folder)
    return sorted(item for item in _files_below(folder) if item not in ours and item != folder / MANIFEST)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield everything in a folder and its subfolders that is not a folder: files, links, pipes."""
    return (item for item in folder.rglob("*") if item.is_symlink() or not item.is_dir())


def remove_written(folder: Path) -> None:
    """Delete the files that the manifest of `folder` lists, the manifest, and subfolders that are empty then."""
    for file in written_files(folder):
        file.unlink()
    (folder / MANIFEST).unlink(missing_ok=True)
    for item in sorted((item for item in folder.rglob("*") if item.is_dir()), reverse=True):
        remove_empty(item)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create an output folder, and keep other processes from writing to it within the `with` block.

    New folders that are still empty at the end are removed. Raises InputError if `folder` is a file, or if another
    process, or another run in this one, writes to it.
    """
    check_output_folder(folder)
    new = [item for item in (folder, *folder.parents) if not item.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        taken = "another run is writing to this folder; wait until it ends, or name another folder"
        with locked(descriptor, folder, taken):
            yield
    finally:
        for item in new:
            remove_empty(item)
        os.close(descriptor)


def remove_empty(folder: Path) -> None:
    """Remove a folder if it is empty."""
    with suppress(OSError):
        folder.rmdir()


def clear_folder(
    folder: Path, results: re.Pattern[str], overwrite: bool = False, inputs: Collection[Path] = ()
) -> None:
    """Create an output folder, or clear an existing one.

    With `overwrite`, the files of an earlier output are deleted, so that two outputs never mix: those that the
    folder's manifest lists. `results` matches the paths, within the folder, of all files that will be written.

    Raises InputError if `folder` is a file; if it is one of the `inputs`, or in one; if it contains any file and
    `overwrite` is off; if it contains a file with the name of a result that the manifest does not list; or if a file
    of the `inputs` would be deleted.
    """
    check_output_folder(folder)
    check_outputs([folder], inputs, "folder")
    if not overwrite and (held := sorted(item for item in _files_below(folder) if item != folder / MANIFEST)):
        raise InputError(
            f"{folder}: holds files already ({listing(folder, held)}); name another folder, or allow it with "
            "--overwrite"
        )
    check_results(folder, results)
    ours = written_files(folder)
    for item in inputs:
        if read := sorted(ours & _files_of(item, ours)):
            raise InputError(
                f"{folder}: {listing(folder, read)} of the input {item} would be deleted; name another folder for the "
                "results"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for file in ours:
        file.unlink()
    (folder / MANIFEST).unlink(missing_ok=True)


def check_results(folder: Path, results: re.Pattern[str]) -> None:
    """Raise InputError if anything in `folder` has the name of a result, but the manifest does not list it."""
    candidates = (item for pattern in ("*", "*/*") for item in folder.glob(pattern))
    named = {item for item in candidates if results.fullmatch(item.relative_to(folder).as_posix())}
    root = real_path(folder)
    for item in sorted({item.parent for item in named} - {folder}):
        if not real_path(item).is_relative_to(root):
            raise InputError(
                f"{item}: is a link to another folder, whose files are never deleted; replace it by a folder, or name "
                "another one for the results"
            )
    if in_the_way := sorted(named - written_files(folder)):
        raise InputError(
            f"{folder}: {listing(folder, in_the_way)} in the way: not written by an earlier run into this folder "
            f"({MANIFEST} does not list them), so not deleted; move them away, or name another folder"
        )


def listing(folder: Path, files: Collection[Path]) -> str:
    """Return the names of files and folders in `folder` for a message; of many, only the first ones.

    Folders end in "/"; of several files in a subfolder, their number is given.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        name, *below = file.relative_to(folder).parts
        groups.setdefault(f"{name}/" if below else name, []).append(file)
    names = []
    for name, members in groups.items():
        if len(members) > 1:
            names.append(f"{name} with {len(members)} files")
        else:
            (item,) = members
            is_folder = item.is_dir() and not item.is_symlink()
            names.append(f"{item.relative_to(folder)}{'/' if is_folder else ''}")
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest


def check_output_folder(folder: Path) -> None:
    """Raise InputError if `folder` exists and is not a folder."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{folder}: is {kind_of(folder) or 'a file'}; the output needs a folder")


def check_subfolder(folder: Path) -> None:
    """Raise InputError if a subfolder for results exists, but is not a folder, or is a link to one.

    Files behind a link are never deleted, so a second run could not replace those of the first.
    """
    if folder.is_symlink() and folder.is_dir():
        raise InputError(
            f"{folder}: is a link to another folder, and results are not written through links; replace it by a "
            "folder, or name another folder for the results"
        )
    if os.path.lexists(folder) and not folder.is_dir():
        what = kind_of(folder) or "a file"
        raise InputError(f"{folder}: is {what}; the results need a folder of this name; move it away")


def _files_of(recording: Path, candidates: Collection[Path]) -> set[Path]:
    """Return the files among `candidates` that belong to a recording: a file, or a folder of files."""
    root = real_path(recording)
    parts = {root, *(real_path(item) for item in recording.iterdir())} if recording.is_dir() else {root}
    real = {file: real_path(file) for file in candidates}
    return {file for file, target in real.items() if target in parts or root in target.parents}
