"""Hashes of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tqdm import tqdm

_BLOCK = 2**22  # bytes that are hashed at once


def sha256_of(path: Path, *, progress: bool = True) -> str:
    """Return the SHA-256 of a file; `progress`: with a bar on a terminal."""
    digest = hashlib.sha256()
    how = {"total": path.stat().st_size, "unit": "B", "unit_scale": True, "desc": "SHA-256"}
    with path.open("rb") as file, tqdm(**how, disable=None if progress else True) as bar:
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
