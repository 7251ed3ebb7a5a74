"""Files that appear under their name only once they are complete, and file names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def partial_path(path: Path) -> Path:
    """Return where to write a file until it is complete and renamed to `path`: same folder, same suffix."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to. It is renamed to `path` at the end, or deleted on an error."""
    partial = partial_path(path)
    partial.unlink(missing_ok=True)  # a link there would lead the writer elsewhere
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key by which frame2 comes before frame10."""
    # Not `isdigit`, which includes superscript digits: they are not part of a number.
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in re.findall(r"\d+|\D+", name)]
