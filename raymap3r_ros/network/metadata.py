"""Metadata of checkpoint files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymap3r_ros.errors import CheckpointError


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """Return the start of a .safetensors file: the length of the header, and the header as JSON."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    return len(text).to_bytes(8, "little") + text


def copy_with_metadata(source: Path, target: Path, entries: Mapping[str, str]) -> None:
    """Copy a .safetensors file and add or replace `entries` of its metadata; tensors are copied byte by byte.

    `target` may be `source`; it is replaced only when the copy is complete. The source must be a valid file, such as
    one that `load_network` has read. Raises CheckpointError if a file cannot be read or written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as old, tempfile.TemporaryDirectory(dir=target.parent) as folder:
            header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
            header["__metadata__"] = {**header.get("__metadata__", {}), **entries}
            complete = Path(folder) / target.name
            with complete.open("wb") as new:
                new.write(header_bytes(header))
                shutil.copyfileobj(old, new)
            complete.replace(target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target} from {source}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{source} is not a readable safetensors file: {error}") from error
