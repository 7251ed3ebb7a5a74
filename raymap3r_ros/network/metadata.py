"""Metadata of checkpoint files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from raymap3r_ros.errors import CheckpointError, InputError
from raymap3r_ros.output_files import whole_file

Value = TypeVar("Value")

MAX_HEADER = 10**8  # bytes; the safetensors library refuses more


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """Return the start of a .safetensors file: the length of the header, and the header as JSON."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    return len(text).to_bytes(8, "little") + text


@contextmanager
def whole_weights(target: Path) -> Iterator[BinaryIO]:
    """Open a weights file to write, which appears under its name when it is complete, see `whole_file`.

    Raises CheckpointError if it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as partial, partial.open("wb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}") from error


def copy_with_metadata(source: Path, target: Path, entries: Mapping[str, str]) -> None:
    """Copy a .safetensors file and add or replace `entries` of its metadata; tensors are copied byte by byte.

    `target` may be `source`; it is replaced only when the copy is complete. The source must be a valid file, such as
    one that `load_network` has read. Raises CheckpointError if a file cannot be read or written.
    """
    try:
        with source.open("rb") as old, whole_weights(target) as new:
            header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
            header["__metadata__"] = {**header.get("__metadata__", {}), **entries}
            new.write(header_bytes(header))
            shutil.copyfileobj(old, new)
    except InputError:  # of the target
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source} is not a readable safetensors file: {error}") from error


def measured_entry(
    manifest: Mapping[str, str], key: str, source: str, what: str, parse: Callable[[Any], Value]
) -> Value | None:
    """`parse` of the JSON of an entry that `raymap3r evaluate KEY --write` wrote; None if there is none.

    `source` names the checkpoint, and `what` the entry, in errors. Raises CheckpointError if it is not valid: `parse`
    raises ValueError, as `check_keys` and `check_number` do.
    """
    text = manifest.get(key)
    if text is None:
        return None
    try:
        return parse(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"metadata {key!r} of {source} is not {what}: {error}; write a valid one with "
            f"`raymap3r evaluate {key} --write`"
        ) from error


def check_keys(values: Any, required: Collection[str], optional: Collection[str] = (), what: str = "JSON") -> None:
    """Raise ValueError if a value is no object with these keys."""
    if not isinstance(values, dict):
        raise ValueError(f"{what} is {values!r:.60}; expected an object with the keys {', '.join(sorted(required))}")
    wrong = sorted({*required} - values.keys()) + sorted(values.keys() - {*required, *optional})
    if wrong:
        raise ValueError(f"{what} has the keys {', '.join(sorted(values)) or 'none'}; missing or unknown: {wrong[0]}")


def check_number(what: str, value: Any, low: float, high: float) -> None:
    """Raise ValueError if a value is no number from `low` to `high`."""
    # Comparisons with NaN are false, so NaN is refused too.
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{what} is {value!r:.60}; allowed: {low:g} to {high:g}")


def missing_bytes(path: Path) -> int:
    """Return how many bytes a .safetensors file is shorter than its header states; 0 if the header is unreadable."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < min(size, MAX_HEADER) else {}
        end = max(item["data_offsets"][1] for name, item in header.items() if name != "__metadata__")
        return max(0, 8 + length + end - size)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return 0
