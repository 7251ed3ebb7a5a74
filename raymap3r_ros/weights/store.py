"""The cache of weights: a converted file NAME.safetensors, and beside it NAME.json with origin, licence and hashes."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymap3r_ros import __version__
from raymap3r_ros.errors import CheckpointError
from raymap3r_ros.file_hash import sha256_of
from raymap3r_ros.io.json_file import write_json
from raymap3r_ros.network import PRESETS, convert_checkpoint, shipped_weights
from raymap3r_ros.network.catalog import NAME, PUBLIC_WEIGHTS, PublicWeights, cache_folder, cached_weights
from raymap3r_ros.output_files import kind_of, locked_file
from raymap3r_ros.text import printable, size_text
from raymap3r_ros.weights.download import WrongFileError, check_file, check_libraries, discard, download

DTYPE = "mixed"  # of the converted file, see docs/weights.md
STORED_SHARE = 0.52  # size of a converted file relative to the public one

Report = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """The outcome of `verify` for one file."""

    path: Path
    problem: str  # "" if the file is as recorded


def partial_folder() -> Path:
    """The folder of files that are incomplete or not yet verified."""
    return cache_folder() / "partial"


def fetch(weights: PublicWeights, accept: Callable[[], str], *, keep_original: bool, report: Report) -> Path:
    """Download public weights unless the cache has them, convert them, and return the converted file.

    `accept` returns how the user has accepted the licence, or raises; nothing is downloaded before. Raises
    CheckpointError if no source has the file or the cache has no space for it, InputError if another process fetches
    it, and Raymap3rError if a library is missing.
    """
    if weights.unsupported:
        raise CheckpointError(f"{weights.name} is not supported: {weights.unsupported}")
    target = cache_folder() / f"{weights.name}.safetensors"
    original = target.with_suffix(".pth")

    def is_complete() -> bool:
        return target.is_file() and (original.is_file() or not keep_original)

    if is_complete():
        return target
    check_libraries()
    accepted = {"how": accept(), "time": _now()}
    with _writing(target):
        if is_complete():  # by another process, while the licence was read
            return target
        source = "original in the cache"
        if not _is_intact(weights, original, report):
            _require_space(weights)
            finished, source = download(weights, partial_folder(), report)
            os.replace(finished, original)
        record = {"source": source, "licence": weights.licence, "notice": weights.notice, "accepted": accepted}
        _store(original, target, record, _original(weights.file, weights.sha256, weights.bytes), weights, report)
        if not keep_original:
            original.unlink()
        for key in ("drive", "mirror"):
            discard(partial_folder() / f"{weights.name}-{key}.pth")
    return target


def import_file(path: Path, name: str, report: Report) -> Path:
    """Convert a file of weights into the cache, and return the converted file.

    `name`: "" for the name of the public weights if it is their file, else for the stem of the file. Raises
    CheckpointError if the file is unusable or the name is taken or not allowed.
    """
    if kind_of(path) or not path.exists():
        raise CheckpointError(f"{path} is {kind_of(path) or 'missing'}; give the path of a .pth or .safetensors file")
    digest, size = sha256_of(path), path.stat().st_size
    public = next((one for one in PUBLIC_WEIGHTS.values() if one.sha256 == digest), None)
    if public and public.unsupported:
        raise CheckpointError(f"{path} is {public.name}, which is not supported: {public.unsupported}")
    name = name or (public.name if public else path.stem)
    _check_name(name, path, public)
    target = cache_folder() / f"{name}.safetensors"
    with _writing(target):
        if target.exists():
            raise CheckpointError(
                f"{name} is in the cache already; give another name with --name, or remove it: "
                f"raymap3r weights remove {name}"
            )
        licence = {"licence": public.licence, "notice": public.notice} if public else {"licence": "of its author"}
        record = {"source": "imported", **licence, "accepted": None}
        _store(path.absolute(), target, record, _original(path.name, digest, size), public, report)
    return target


def verify(name: str = "") -> list[Check]:
    """Compare the files of the cache, or of one name, with their records.

    Raises CheckpointError if the name is not in the cache.
    """
    cached = cached_weights()
    if name and name not in cached:
        raise CheckpointError(f"{name} is not in {cache_folder()}; `raymap3r weights list` shows the names")
    checks = []
    for one, path in cached.items():
        if name in ("", one):
            record = read_record(path)
            checks.append(Check(path, _problem(path, record.get("file"))))
            if (original := path.with_suffix(".pth")).is_file():
                checks.append(Check(original, _problem(original, record.get("original"))))
    return checks


def remove(name: str) -> int:
    """Remove weights and their incomplete downloads from the cache; return the number of bytes that this frees.

    Raises CheckpointError if there are none.
    """
    if name in shipped_weights():
        raise CheckpointError(f"{name} is part of the package; only weights in the cache can be removed")
    target = cache_folder() / f"{name}.safetensors"
    paths = [target.with_suffix(suffix) for suffix in (".safetensors", ".json", ".pth")] + downloads(name)
    if not NAME.fullmatch(name) or not any(path.is_file() for path in paths):
        raise CheckpointError(f"{name} is not in {cache_folder()}; `raymap3r weights list` shows the names")
    with _writing(target):
        present = [path for path in paths if path.is_file()]
        freed = sum(path.stat().st_size for path in present)
        for path in present:
            path.unlink()
    return freed


def downloads(name: str) -> list[Path]:
    """The incomplete downloads of public weights."""
    return sorted(partial_folder().glob(f"{name}-*")) if name in PUBLIC_WEIGHTS else []


def read_record(path: Path) -> dict[str, Any]:
    """The record beside a file of the cache; empty if it is missing or damaged."""
    try:
        record = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _problem(path: Path, recorded: Any) -> str:
    """Why a file differs from its record; "" if it does not."""
    expected = recorded.get("sha256") if isinstance(recorded, dict) else None
    if not isinstance(expected, str):
        return f"{path.with_suffix('.json').name} is missing or damaged, so the file cannot be verified"
    found = sha256_of(path)
    return "" if found == expected else f"its SHA-256 is {found}, recorded is {printable(expected, 64)}"


def _store(
    original: Path,
    target: Path,
    record: dict[str, Any],
    origin: dict[str, Any],
    public: PublicWeights | None,
    report: Report,
) -> None:
    """Convert `original` to `target`, which appears together with its record."""
    converted = partial_folder() / target.name
    about = f"public CUT3R weights, {public.licence}" if public else f"imported from {origin['file']}"
    report(f"converting {printable(original.name)} to {DTYPE}")
    try:
        # An imported file of this package has its own description.
        manifest = {"about": about} if public or original.suffix != ".safetensors" else {}
        result = convert_checkpoint(original, converted, DTYPE, progress=True, manifest=manifest)
        stored = {"bytes": result.bytes, "sha256": sha256_of(converted), "dtype": DTYPE, "version": __version__}
        values = {"name": target.stem, **record, "original": origin, "file": stored}
        write_json(target.with_suffix(".json"), values)
        os.replace(converted, target)
    finally:
        converted.unlink(missing_ok=True)


def _original(file: str, sha256: str, size: int) -> dict[str, Any]:
    return {"file": file, "sha256": sha256, "bytes": size}


def _is_intact(weights: PublicWeights, original: Path, report: Report) -> bool:
    """Whether the cache holds the public file; a file that differs is deleted."""
    if not original.is_file():
        return False
    try:
        check_file(weights, original)
    except WrongFileError as error:
        report(f"{original}: {error}; the file was deleted")
        original.unlink()
        return False
    return True


def _check_name(name: str, path: Path, public: PublicWeights | None) -> None:
    """Raise CheckpointError if weights cannot be imported under this name."""
    other = "give another one with --name"
    if not NAME.fullmatch(name):
        raise CheckpointError(
            f"{printable(name, 80)!r} cannot be a name: allowed are up to 64 letters, digits, - and _; {other}"
        )
    if name in PRESETS or name in shipped_weights():
        raise CheckpointError(f"{name} is a name of this package; {other}")
    if name in PUBLIC_WEIGHTS and (public is None or public.name != name):
        raise CheckpointError(f"{name} is the name of {PUBLIC_WEIGHTS[name].file}; {path} differs from it; {other}")


def _require_space(weights: PublicWeights) -> None:
    """Raise CheckpointError unless the disk has space for the download and the converted file."""
    arrived = max((path.stat().st_size for path in downloads(weights.name)), default=0)
    needed = weights.bytes - arrived + STORED_SHARE * weights.bytes
    free = shutil.disk_usage(cache_folder()).free
    if free < needed:
        raise CheckpointError(
            f"{cache_folder()} has {size_text(free)} free, {weights.name} needs {size_text(needed)}; free some "
            "space, or set RAYMAP3R_HOME to a folder on another disk"
        )


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Create the folders of the cache, and keep other processes from writing `target` within the `with` block.

    Raises CheckpointError if the cache cannot be written.
    """
    try:
        partial_folder().mkdir(parents=True, exist_ok=True)
        lock = contextlib.ExitStack()
        lock.enter_context(locked_file(target))
    except OSError as error:
        raise CheckpointError(
            f"the cache {target.parent} cannot be written: {error.strerror}; set RAYMAP3R_HOME to another folder"
        ) from error
    with lock:
        yield


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
