"""Names of files, and how libraries that open them behave."""

from __future__ import annotations

import os
import re
from pathlib import Path

from raymap3r_ros.errors import InputError
from raymap3r_ros.known_files import known_file
from raymap3r_ros.output_files import kind_of


def visible(folder: Path) -> list[Path]:
    """The entries of a folder without hidden ones: macOS leaves ._NAME beside files on disks of other systems."""
    return [item for item in folder.iterdir() if not item.name.startswith(".")]


def read_text(path: Path, name: str = "text") -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises InputError if it cannot be read; `name` is the expected content, for its text.
    """
    if kind := kind_of(path):
        raise InputError(f"{path}: is {kind}; expected {name}, a text file")
    try:
        if what := known_file(path):
            raise InputError(f"{path}: is {what}")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read as {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: cannot be read as {name}: it is not text in UTF-8; if it is UTF-16, convert it: "
            "iconv -f utf-16 -t utf-8"
        ) from error


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key by which frame2 comes before frame10."""
    # Not `isdigit`, which includes superscript digits: they are not part of a number.
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in re.findall(r"\d+|\D+", name)]


def silence_ffmpeg() -> None:
    """To be called before a video is opened: FFmpeg reads this setting once, and prints text of files and servers."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
