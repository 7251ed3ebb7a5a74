"""A digest of this package's own code."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


@functools.cache
def code_digest(*rooms: str) -> str:
    """SHA-256, hexadecimal, of the source of these rooms of the package."""
    digest = hashlib.sha256()
    for room in rooms:
        for path in sorted((Path(__file__).parent / room).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
