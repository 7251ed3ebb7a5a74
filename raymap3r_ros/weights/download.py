"""Download of public weights. The libraries of the sources continue downloads, use proxies and show progress."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from raymap3r_ros.errors import CheckpointError, Raymap3rError, reason_of
from raymap3r_ros.file_hash import sha256_of
from raymap3r_ros.network.catalog import PublicWeights
from raymap3r_ros.text import printable

TIMEOUT = 60.0  # seconds without a byte from Google Drive; Hugging Face has HF_HUB_DOWNLOAD_TIMEOUT
RETRIES = 5  # of an interrupted transfer from Google Drive; Hugging Face's library has as many
# Errors of this machine, not of the source: another source would fail in the same way.
_LOCAL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}


class WrongFileError(Raymap3rError):
    """A source has another file than the expected one."""


def check_libraries() -> None:
    """Raise Raymap3rError with the command to install the libraries of the sources if one is missing."""
    for name in ("gdown", "huggingface_hub"):
        _library(name)


def download(weights: PublicWeights, folder: Path, report: Callable[[str], None]) -> tuple[Path, str]:
    """Download the file from the first source that has it; return its path in `folder`, and the source.

    Size and SHA-256 are those of `weights`. Incomplete files stay in `folder`, and the next call continues them; files
    that differ are deleted. Raises CheckpointError with the reason of each source if all fail.
    """
    failures = []
    for source, key, get in (("Google Drive", "drive", _from_drive), ("Hugging Face", "mirror", _from_mirror)):
        target = folder / f"{weights.name}-{key}.pth"
        report(f"{weights.file} from {source}: {getattr(weights, key)}")
        try:
            get(weights, target)
            check_file(weights, target)
            return target, source
        except WrongFileError as error:
            discard(target)
            failure = f"{error}; the file was deleted"
        # The libraries pass on errors of three HTTP clients, which differ between their versions.
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _LOCAL_ERRORS:
                raise CheckpointError(f"cannot write to {folder}: {error.strerror}") from error
            failure = " ".join(reason_of(error).split())
        failures.append(f"{source}: {printable(failure, 500)}")
        report(f"failed: {printable(failure, 500)}")
    raise CheckpointError(
        f"{weights.name} was not fetched. {'. '.join(failures)}. The same command continues incomplete downloads; a "
        f"file from elsewhere can be imported: raymap3r weights import {weights.file}"
    )


def check_file(weights: PublicWeights, path: Path) -> None:
    """Raise WrongFileError with the size or hash that was found if a file is not the public one."""
    _check_size(weights, path.stat().st_size)
    found = sha256_of(path)
    if found != weights.sha256:
        raise WrongFileError(f"the SHA-256 of {weights.file} is {found}, expected {weights.sha256}")


def discard(target: Path) -> None:
    """Delete a download and its incomplete forms."""
    for path in [target, *_partials(target)]:
        path.unlink(missing_ok=True)


def _partials(target: Path) -> list[Path]:
    """The incomplete files of gdown for this target."""
    return sorted(target.parent.glob(f"{target.name}????????.part"))


def _from_drive(weights: PublicWeights, target: Path) -> None:
    def watch(received: int, total: int | None) -> None:
        _check_size(weights, total or weights.bytes)
        if received > weights.bytes:
            _check_size(weights, received)

    for partial in _partials(target):
        size = partial.stat().st_size
        if size > weights.bytes:
            partial.unlink()
        elif size == weights.bytes:  # gdown would request bytes after the end, and fail for good
            os.replace(partial, target)
    _library("gdown").download(
        id=weights.drive,
        output=str(target),
        resume=True,
        retries=RETRIES,
        timeout=TIMEOUT,
        use_cookies=False,  # otherwise it writes them to the home folder
        progress=watch,
        quiet=not sys.stderr.isatty(),
    )


def _from_mirror(weights: PublicWeights, target: Path) -> None:
    hub = _library("huggingface_hub")
    url = hub.hf_hub_url(weights.mirror, weights.file, revision=weights.revision)
    # The token of a user who is logged in is not for a public file.
    metadata = hub.get_hf_file_metadata(url, token=False)
    _check_size(weights, metadata.size or weights.bytes)
    etag = metadata.etag or ""  # of a large file: its SHA-256
    if re.fullmatch(r"[0-9a-f]{64}", etag) and etag != weights.sha256:
        raise WrongFileError(f"the SHA-256 of {weights.file} is {etag}, expected {weights.sha256}")
    # `hf_hub_download` would delete what has arrived when it is interrupted; this function continues it.
    http_get = importlib.import_module("huggingface_hub.file_download").http_get
    if target.exists() and target.stat().st_size > weights.bytes:
        target.unlink()
    with target.open("ab") as file:
        http_get(url, file, resume_size=file.tell(), expected_size=weights.bytes, displayed_filename=weights.file)


def _check_size(weights: PublicWeights, size: int) -> None:
    if size != weights.bytes:
        raise WrongFileError(f"{weights.file} has {size} bytes, expected {weights.bytes}")


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Raymap3rError(
            f"{error.name} is not installed; `raymap3r weights fetch` needs it: pip install '.[weights]' in the "
            "checkout, or pip install gdown huggingface_hub"
        ) from error
