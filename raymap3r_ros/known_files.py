"""Files that are not what their name promises, recognised by their first bytes."""

from __future__ import annotations

import re
from pathlib import Path

from raymap3r_ros.errors import CheckpointError

START = 1024  # bytes that are enough to recognise a file

_POINTER = re.compile(rb"version https://(git-lfs|hawser)\.")
_ANNEX = re.compile(rb"/annex/objects/")
_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--((?!-->).)*-->\s*)*<(!doctype\s+html|html|head|body|title|error)\b",
    re.IGNORECASE | re.DOTALL,
)
_JSON = re.compile(rb'\s*[{\[]\s*"')
# Offset, first bytes, what to do. Not zip archives: files of `torch.save` are some.
_OTHERS = (
    (0, b"\x1f\x8b", "a gzip archive; unpack it first: gunzip or tar -xzf"),
    (0, b"BZh", "a bzip2 archive; unpack it first: bunzip2 or tar -xjf"),
    (0, b"\xfd7zXZ\0", "an xz archive; unpack it first: unxz or tar -xJf"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive that contains no bag; unpack it first: unzstd"),
    (0, b"\x04\x22\x4d\x18", "an lz4 archive; unpack it first: unlz4"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first: 7z x"),
    (0, b"Rar!\x1a\x07", "a RAR archive; unpack it first: unrar x"),
    (257, b"ustar", "a tar archive; unpack it first: tar -xf"),
    (0, b"rosbag2_bagfile_information", "the metadata of a bag; give its folder"),
    (0, b"\x89HDF", "an HDF5 file; convert it to a folder of images, or to weights in a .safetensors file"),
)

_TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02")  # of `torch.save`: since version 1.6, and before
_MEDIA = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"\x1a\x45\xdf\xa3", b"\x89MCAP", b"SQLite f", b"#ROSBAG")


def known_content(start: bytes) -> str:
    """Return what a file with these first bytes is, and what to do, for a message; "" if it is not recognised."""
    if _POINTER.match(start):
        return "a Git LFS pointer, not the file itself; get it with: git lfs pull"
    if _ANNEX.match(start):
        return "a git-annex pointer, not the file itself; get it with: git annex get (or datalad get)"
    if _PAGE.match(start):
        return (
            "a web page, not the file itself: the server returned a page instead, such as a login, a confirmation or "
            "an error; download the file again"
        )
    if _JSON.match(start):
        return "a JSON text, such as the error of a server, not the file itself; download the file again"
    return next((what for offset, magic, what in _OTHERS if start[offset:].startswith(magic)), "")


def known_file(path: Path) -> str:
    """Return what an existing file is, and what to do, for a message; "" if it is not recognised."""
    with path.open("rb") as file:
        start = file.read(START)
    return known_content(start) if start else "empty; download or copy it again"


def unlike_weights(path: Path) -> str:
    """What a file is if it cannot be weights, or has the suffix of another format, and what to do; otherwise ""."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
        native = start[8:] == b"{"
        if path.suffix == ".safetensors" and not native and start.startswith(_TORCH_STARTS):
            return (
                "a file of torch.save or a zip archive by its content; if it is the former, rename it to end in .pth"
            )
        if path.suffix != ".safetensors" and native:
            return "a safetensors file by its content; rename it to end in .safetensors"
        if start.startswith(_MEDIA) or start[4:8] == b"ftyp":
            return "an image, a video or a bag by its content; give the path of a .safetensors or .pth file"
        return "" if native else known_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
