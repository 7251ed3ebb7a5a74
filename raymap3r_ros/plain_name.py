"""Names by which libraries that are written in other languages can open files of any name."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def plain_name(path: Path) -> Iterator[str]:
    """Yield a name by which a library that is written in C can open `path` within the `with` block.

    OpenCV ends the process on names that are not UTF-8, reads `%d` as a number, and FFmpeg reads `a:b` as a protocol.
    The name is a link in a temporary folder; it keeps the suffix, by which formats are recognised.
    """
    suffix = path.suffix if re.fullmatch(r"\.\w+", path.suffix, re.ASCII) else ""
    with tempfile.TemporaryDirectory(prefix="raymap3r_") as folder:
        link = Path(folder, f"file{suffix}")
        link.symlink_to(path.absolute())
        yield str(link)


@contextmanager
def utf8_name(path: Path) -> Iterator[str]:
    """Yield the name of `path`, or a link to it if the name is not UTF-8, for libraries that accept no other.

    A link needs a temporary folder that can be written to; other names do not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with plain_name(path) as name:
            yield name
        return
    yield str(path)
