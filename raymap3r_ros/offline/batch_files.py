"""Recordings and results of a batch: local, or on object storage through fsspec."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from raymap3r_ros.errors import InputError, Raymap3rError, reason_of
from raymap3r_ros.file_hash import sha256_of
from raymap3r_ros.io.bag_files import METADATA, is_data_file
from raymap3r_ros.io.decoding import IMAGE_SUFFIXES
from raymap3r_ros.io.files import natural_key, read_text
from raymap3r_ros.io.formats.images import VIDEO_SUFFIXES
from raymap3r_ros.io.output_folder import MANIFEST, claim, foreign_files, listing
from raymap3r_ros.offline.export import export_formats
from raymap3r_ros.offline.result_folder import SUMMARY
from raymap3r_ros.output_files import whole_file
from raymap3r_ros.ray_pool import batch_module
from raymap3r_ros.text import listing as name_list

log = logging.getLogger(__name__)

MARKER = "batch.json"  # in a result folder: it is complete
_PARTIAL = ".partial"


@dataclass(frozen=True)
class BatchItem:
    """A recording, and the name of the folder for its results."""

    source: str  # absolute path, or URL
    folder: str


# ----------------------------------------------------------------------------------------------------------- places


def is_remote(place: str) -> bool:
    """Return whether a place is a URL of another file system than the local one."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place)) and not place.startswith("file://")


def absolute(place: str | os.PathLike, beside: str = "") -> str:
    """Return a URL as it is, and a path as an absolute one; a relative one starts at the folder `beside`."""
    place = os.fspath(place).removeprefix("file://")
    if is_remote(place):
        return place.rstrip("/")
    if is_remote(beside):
        return f"{beside}/{place}".rstrip("/")
    return os.path.abspath(os.path.join(beside, os.path.expanduser(place)))


def file_system(place: str) -> tuple[Any, str]:
    """Return the file system of fsspec for an absolute path or a URL, and the path in it.

    Raises Raymap3rError if the library for this kind of URL is missing.
    """
    fsspec = batch_module("fsspec")
    if not is_remote(place):
        return fsspec.filesystem("file"), place  # `::` in a name is not part of a URL
    try:
        return fsspec.core.url_to_fs(place, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise Raymap3rError(f"{place}: {error}; s3:// needs: pip install s3fs, gs://: pip install gcsfs") from error


@contextmanager
def remote_errors(place: str) -> Iterator[None]:
    """Raise Raymap3rError for what goes wrong with a URL: the libraries of fsspec have errors of their own."""
    try:
        yield
    except Exception as error:
        if not is_remote(place) or isinstance(error, Raymap3rError):
            raise
        raise Raymap3rError(f"{place}: {reason_of(error)}; is the storage reachable, with these keys?") from error


def write_whole(place: str, data: bytes) -> None:
    """Write a file that appears as a whole."""
    files, path = file_system(place)
    if is_remote(place):
        files.pipe_file(path, data)
        return
    with whole_file(Path(path)) as partial:
        partial.write_bytes(data)


# ------------------------------------------------------------------------------------------------------- recordings


def find_items(place: str) -> list[BatchItem]:
    """Return the recordings in a folder, or those that a list names, one path or URL per line.

    Paths in a list start at its folder; empty lines and those that start with # are left out. The name of the result
    folder is the recording's, and a hash of its path in the folder or of its line in the list: it does not depend on
    other recordings. Raises InputError if there is none.
    """
    place = absolute(place)
    files, root = file_system(place)
    if files.isdir(root):
        names = recordings_in(name[len(root) + 1 :] for name in files.find(root))
        items = [BatchItem(f"{place}/{name}".rstrip("/"), result_name(name or place)) for name in names]
        what = "no video, bag or folder of images below this folder"
        if not is_remote(place) and (links := _links_to_elsewhere(Path(root))):
            linked = name_list(links)
            what += f"; links to folders are not followed: {linked}"
            log.warning(
                "%s: links to folders elsewhere are not followed: %s; to process what is there, write a list with one "
                "path per line and give it instead of the folder", place, linked,
            )  # fmt: skip
    elif not files.exists(root):
        raise InputError(f"{place}: there is no such file or folder; name a list or a folder of recordings")
    elif recordings_in([PurePosixPath(root).name]):
        return [BatchItem(place, result_name(PurePosixPath(root).name))]
    else:
        lines = _list_lines(place, files, root)
        beside = place.rpartition("/")[0]
        items = [BatchItem(absolute(line, beside), result_name(line)) for line in dict.fromkeys(lines)]
        what = "this list names no recording"
    if not items:
        raise InputError(f"{place}: {what}")
    return items


def _links_to_elsewhere(folder: Path) -> list[str]:
    """The names of the links below a folder to folders outside it. What is inside is found without them."""
    inside = os.path.join(os.path.realpath(folder), "")
    return sorted(
        os.path.relpath(link, folder)
        for parent, names, _ in os.walk(folder)
        for name in names
        if os.path.islink(link := os.path.join(parent, name)) and not name.startswith(".")
        if not os.path.join(os.path.realpath(link), "").startswith(inside)
    )


def _list_lines(place: str, files: Any, path: str) -> list[str]:
    if is_remote(place):
        with tempfile.TemporaryDirectory(prefix="raymap3r_") as folder:
            files.get_file(path, f"{folder}/list.txt")
            text = read_text(Path(folder, "list.txt"), "a list of recordings")
    else:
        text = read_text(Path(path), "a list of recordings")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def recordings_in(names: Iterator[str] | list[str]) -> list[str]:
    """Return the recordings among the files below a folder, by their names, in natural order.

    A folder with metadata.yaml and files of a bag is one bag (the folder itself: ""). Otherwise each video and each
    file of a bag is a recording, and a folder with images and neither is one. Hidden files, results of runs and their
    exports beside them are left out.
    """
    folders: dict[PurePosixPath, list[PurePosixPath]] = {}
    for name in map(PurePosixPath, names):
        folders.setdefault(name.parent, []).append(name)
    results = {folder for folder, inside in folders.items() if _is_results({name.name for name in inside})}
    results |= {
        folder.with_name(f"{folder.name}_{name}") for folder in results if folder.name for name in export_formats()
    }
    found: list[PurePosixPath] = []
    for folder, inside in folders.items():
        hidden = any(part.startswith(".") for part in folder.parts)
        if hidden or not results.isdisjoint((folder, *folder.parents)):
            continue
        visible = [name for name in inside if not name.name.startswith(".")]
        bags = [name for name in visible if is_data_file(name.name)]
        videos = [name for name in visible if name.suffix.lower() in VIDEO_SUFFIXES]
        if bags and folder / METADATA in visible:
            found.append(folder)
        elif bags or videos:
            found += bags + videos
            _name_left_out_images(folder, visible, bags + videos)
        elif any(name.suffix.lower() in IMAGE_SUFFIXES for name in visible):
            found.append(folder)
    texts = ("" if name == PurePosixPath() else str(name) for name in found)
    return sorted(texts, key=natural_key)


def _name_left_out_images(folder: PurePosixPath, visible: list[PurePosixPath], taken: list[PurePosixPath]) -> None:
    """Warn of images beside recordings. As many as these are probably their thumbnails."""
    images = sum(name.suffix.lower() in IMAGE_SUFFIXES for name in visible)
    if images > len(taken):
        log.warning(
            "%s: %d images are left out, because there are recordings beside them: %s; to process them too, move them "
            "to a folder of their own", folder, images, name_list([name.name for name in taken]),
        )  # fmt: skip


def _is_results(names: set[str]) -> bool:
    """Return whether a folder with these files has results of `raymap3r run` or of a batch."""
    return MARKER in names or {MANIFEST, SUMMARY} <= names


def result_name(name: str) -> str:
    """Return the name of the result folder of a recording."""
    plain = re.sub(r"[^\w.-]+", "_", PurePosixPath(name).name, flags=re.ASCII).strip("._")[:80]
    return f"{plain or 'recording'}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def content_id(source: str) -> str:
    """Return a hash of what a recording contains: names and sizes of its files, and of each the SHA-256.

    On object storage, of each the ETag, which changes with the content. Raises InputError if there is none.
    """
    files, root = file_system(source)
    found = files.find(root, detail=True)
    if not found:
        raise InputError(f"{source}: there is no such file or folder")
    remote, lines = is_remote(source), []
    for name, info in sorted(found.items()):
        if not remote and not os.path.isfile(name):
            continue  # a link that leads nowhere, or a pipe
        tag = (
            info.get("ETag") or info.get("etag") or files.ukey(name)
            if remote
            else sha256_of(Path(name), progress=False)
        )
        lines.append(f"{name[len(root) :]} {info['size']} {tag}")
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


@contextmanager
def local_recording(source: str) -> Iterator[Path]:
    """Yield the path of a recording; one on object storage is copied to a temporary folder for the `with` block."""
    files, root = file_system(source)
    if not is_remote(source):
        yield Path(root)
        return
    with tempfile.TemporaryDirectory(prefix="raymap3r_input_") as folder:
        target = Path(folder, PurePosixPath(root).name)
        names = [name for name in files.find(root) if ".." not in PurePosixPath(name).parts]
        targets = [f"{target}{name[len(root) :]}" for name in names]
        for parent in {os.path.dirname(name) for name in targets}:
            os.makedirs(parent, exist_ok=True)
        files.get(names, targets)
        try:
            yield target
        except InputError as error:
            raise InputError(str(error).replace(str(target), source)) from error


# ---------------------------------------------------------------------------------------------------------- results


def read_marker(out: str, name: str) -> dict[str, Any]:
    """Return the marker of a result folder; empty if the folder is unfinished, or does not exist."""
    files, path = file_system(f"{out}/{name}/{MARKER}")
    try:
        marker = json.loads(files.cat_file(path))
    except (FileNotFoundError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


@contextmanager
def result_folder(out: str, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a path to write results to, and a dictionary for their marker; afterwards they appear as `out`/`name`.

    They replace those of an earlier run. A local folder is renamed when it is complete. To object storage the files
    are uploaded, last of all the marker. Nothing appears after an error. Raises InputError if a local folder contains
    files that no run has written.
    """
    files, root = file_system(out)
    remote = is_remote(out)
    if not remote:
        os.makedirs(root, exist_ok=True)
        discard_partial(out, name)
    marker: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(
        prefix="raymap3r_results_" if remote else f".{name}.", suffix=_PARTIAL, dir=None if remote else root
    ) as work:
        new, target = Path(work, "new"), f"{root}/{name}"
        if not remote:
            _check_old(Path(target))
        yield new, marker
        claim(new, MARKER).write_text(json.dumps(marker, indent=1))
        if remote:
            _upload(files, new, target)
            return
        if os.path.lexists(target):
            os.replace(target, Path(work, "old"))
        os.replace(new, target)


def _check_old(folder: Path) -> None:
    if folder.is_dir() and (others := foreign_files(folder)):
        raise InputError(
            f"{folder}: {listing(folder, others)} in the way: not written by a run, so not deleted; move them away, "
            "or name another folder for the results"
        )


def _upload(files: Any, folder: Path, target: str) -> None:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    if files.exists(f"{target}/{MARKER}"):
        files.rm_file(f"{target}/{MARKER}")  # first: from now on the folder is unfinished
    if old := files.find(target):
        files.rm(old)
    names.remove(MARKER)
    files.put([str(folder / name) for name in names], [f"{target}/{name}" for name in names])
    files.put_file(str(folder / MARKER), f"{target}/{MARKER}")


def discard_partial(out: str, name: str) -> None:
    """Delete what workers that were killed have left of the results of a recording."""
    if not is_remote(out):
        for left in Path(out).glob(f".{name}.*{_PARTIAL}"):
            shutil.rmtree(left, ignore_errors=True)
