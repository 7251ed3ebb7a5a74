"""The data files of a bag, as the reading library can open them.

A bag is a folder or one of its files. What a killed recorder or an incomplete copy left behind is repaired in a
temporary copy; the bag itself is never changed.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import re
import shutil
import sqlite3
import struct
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from raymap3r_ros.errors import InputError, reason_of
from raymap3r_ros.io.files import natural_key, visible
from raymap3r_ros.known_files import known_file

log = logging.getLogger(__name__)

SQLITE, MCAP, ROS1, ZSTD = ".db3", ".mcap", ".bag", ".zstd"
BAG_SUFFIXES = (MCAP, SQLITE, ROS1)
MCAP_MAGIC = b"\x89MCAP0\r\n"
_MAGIC = {b"SQLite format 3\0": SQLITE, MCAP_MAGIC: MCAP, b"#ROSBAG V": ROS1, b"\x28\xb5\x2f\xfd": ZSTD}
# `rosbag record` writes to NAME.bag.active until it ends.
_DATA_FILE = re.compile(r".+\.(mcap|db3|bag)(\.zstd|\.zst|\.active)?", re.IGNORECASE)
_JOURNALS = ("-wal", "-journal")  # of SQLite, after the name of the database
METADATA = "metadata.yaml"
_MAX_METADATA = 16 * 2**20  # bytes
_UNPACKED, _UNPACKED_ANYWAY = 50, 2**26  # largest unpacked size: times the packed size, and bytes in addition


@dataclass(frozen=True)
class Metadata:
    """The part of metadata.yaml that is used. The data files are the truth; this shows what should be there."""

    files: tuple[str, ...] = ()  # names in the folder
    counts: dict[str, int] | None = None  # messages by topic
    messages_compressed: bool = False  # each message on its own, with zstd


@dataclass(frozen=True)
class DataFile:
    """One file of a bag as it can be opened."""

    path: Path
    kind: str  # SQLITE, MCAP or ROS1
    loss: str = ""  # what is missing at its end, if that is known from its structure
    empty: bool = False  # there is nothing in it that could be opened


def is_data_file(name: str) -> bool:
    """Return whether a file with this name is part of a bag."""
    return bool(_DATA_FILE.fullmatch(name))


def is_bag(path: Path) -> bool:
    """Return whether a path is a bag, by its content or by the name of its files."""
    if not path.is_dir():
        return is_data_file(path.name) or kind_of(path) in BAG_SUFFIXES
    if any(is_data_file(item.name) for item in visible(path)):
        return True
    metadata = path / METADATA
    if not metadata.is_file():
        return False
    with metadata.open("rb") as data:
        return b"rosbag2_bagfile_information" in data.read(_MAX_METADATA)


def kind_of(file: Path) -> str:
    """Return SQLITE, MCAP, ROS1 or ZSTD by the first bytes of a file, else by its suffix; empty for other files."""
    return _kind_by_content(file) or (file.suffix if file.suffix in BAG_SUFFIXES else "")


def _kind_by_content(file: Path) -> str:
    with file.open("rb") as data:
        start = data.read(16)
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


def data_files(path: Path) -> tuple[list[Path], Metadata]:
    """Return the data files of a bag and its metadata. Raises InputError if there is none, or if one is missing."""
    folder = path if path.is_dir() else path.parent
    _warn_of_lone_journals(folder)
    metadata = _read_metadata(folder / METADATA) if (folder / METADATA).is_file() else Metadata()
    if not path.is_dir():
        if path.name not in metadata.files:
            # A link's target may be a file of a bag.
            return data_files(path.resolve()) if path.is_symlink() else ([path], Metadata())
        alone = len(metadata.files) == 1
        return [path], Metadata((path.name,), metadata.counts if alone else None, metadata.messages_compressed)
    present = {item.name: item for item in visible(folder) if _DATA_FILE.fullmatch(item.name) and item.is_file()}
    # A compressed file may have been unpacked since.
    present = {name: item for name, item in present.items() if not _is_unpacked(name, present)}
    if not metadata.files:
        if not present:
            raise InputError(f"{path}: cannot be read as a ROS 2 bag: no data files (.mcap, .db3) in this folder")
        return [present[name] for name in sorted(present, key=natural_key)], metadata
    found = {name: folder / name for name in metadata.files if (folder / name).is_file()}
    found |= {name: present[Path(name).stem] for name in metadata.files if _is_unpacked(name, present)}
    if missing := [str(folder / name) for name in metadata.files if name not in found]:
        raise InputError(
            f"{path}: cannot be read as a ROS 2 bag: Some database files are missing: {', '.join(missing)}; copy them "
            f"here, or move {METADATA} away to read the others"
        )
    if unlisted := sorted(set(present.values()) - set(found.values())):
        names = ", ".join(item.name for item in unlisted)
        log.warning(
            "%s: %s is not read, because %s does not list it; to read it too, move %s away or run ros2 bag reindex",
            path.name, names, METADATA, METADATA,
        )  # fmt: skip
    return list(found.values()), metadata


def _is_unpacked(name: str, present: Iterable[str]) -> bool:
    """Return whether the content of a compressed file also lies unpacked beside it."""
    return Path(name).suffix.lower() in (ZSTD, ".zst") and Path(name).stem in present


def _warn_of_lone_journals(folder: Path) -> None:
    """Warn of journals whose database has another name or is missing: their messages would be lost in silence."""
    for item in visible(folder):
        name, mark, kind = item.name.rpartition("-")
        lone = f"{mark}{kind}" in _JOURNALS and is_data_file(name) and not (folder / name).exists()
        if lone and item.stat().st_size:
            log.warning(
                "%s: the journal %s has no database %s beside it, and is not read; if the database was renamed, "
                "rename the journal in the same way",
                folder.name, item.name, name,
            )  # fmt: skip


def prepare(file: Path, copy: Path) -> DataFile:
    """Return a data file as the library can open it. `copy`: name without suffix of a copy, if one is needed.

    Raises InputError if its content is not known, or if it unpacks to far more than its size.
    """
    kind = kind_of(file)
    if kind != ZSTD and file.stat().st_size and (what := known_file(file)):
        raise InputError(f"{file}: is {what}")
    if not file.stat().st_size:
        return DataFile(file, kind, f"{file.name} is empty", empty=True)
    if not kind:
        raise InputError(f"{file}: neither SQLite, MCAP nor a ROS 1 bag by its first bytes")
    if kind == MCAP and not _kind_by_content(file):
        raise InputError(
            f"{file}: cannot be read as a ROS 2 bag: not an MCAP file by its first bytes; copy it again, or "
            "move it away to read the others of its folder"
        )
    stem, copy = copy, copy.with_suffix(kind)
    try:
        if kind == ZSTD:
            _unpack(file, copy)
            inner = kind_of(copy) if kind_of(copy) in BAG_SUFFIXES else Path(file.stem).suffix
            return prepare(copy.rename(copy.with_suffix(inner)), stem.with_name(f"{stem.name}_inner"))
        if kind == SQLITE and (left := journals(file)):
            _recover_sqlite(file, left, copy)
            return DataFile(copy, kind)
        if kind == MCAP:
            check_profile(file, file)
        if kind == MCAP and _is_cut(file):
            loss, empty = _recover_mcap(file, copy)
            return DataFile(copy, kind, loss, empty)
    except OSError as error:
        what = "unpacked" if kind == ZSTD else "repaired"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "; set TMPDIR to a folder with more space" if full else ""
        raise InputError(f"{file}: cannot be {what} in {copy.parent}: {error.strerror or error}{remedy}") from error
    # The library puts the path into a URI, and recognises formats by their suffix.
    if file.suffix == kind and re.fullmatch(r"[\w./ -]+", str(file), re.ASCII):
        return DataFile(file, kind)
    copy.symlink_to(file.absolute())
    return DataFile(copy, kind)


def journals(file: Path) -> dict[str, str]:
    """Journals of a database by their suffix: beside it and, as for SQLite, beside the file to which it links."""
    found = {}
    for name in (str(file), os.path.realpath(file)):
        for suffix in _JOURNALS:
            if os.path.isfile(journal := f"{name}{suffix}") and os.path.getsize(journal):
                found[suffix] = journal
    return found


def zstd() -> Any:
    """Return the module that decompresses zstd. Raises InputError if it is missing."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise InputError("reading compressed bags needs: pip install backports.zstd")


def _unpack(file: Path, target: Path) -> None:
    module = zstd()
    try:
        with file.open("rb") as packed, module.open(packed, "rb") as source, target.open("wb") as out:
            limit = _UNPACKED * file.stat().st_size + _UNPACKED_ANYWAY
            while block := source.read(2**20):
                if out.tell() + len(block) > limit:
                    raise InputError(
                        f"{file}: unpacks to more than {limit} bytes, over {_UNPACKED} times its size; if you trust "
                        f"it, unpack it with: zstd -d {file.name} -o {file.stem}"
                    )
                out.write(block)
    except (module.ZstdError, EOFError) as error:
        raise InputError(f"{file}: damaged or cut off, cannot be unpacked: {reason_of(error)}") from error


def _recover_sqlite(file: Path, left: dict[str, str], copy: Path) -> None:
    """Copy a database with the journals `left` by a killed recorder, and apply them."""
    for suffix, source in {"": str(file), **left}.items():
        shutil.copyfile(source, f"{copy}{suffix}")
    try:
        with closing(sqlite3.connect(copy)) as database:
            database.execute("PRAGMA journal_mode=DELETE").fetchall()
            database.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except sqlite3.Error as error:
        if "disk is full" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise InputError(
            f"{file}: the journal beside it ({file.name}-wal or -journal) cannot be applied: {error}; repair it with: "
            f"sqlite3 {file.name} .recover | sqlite3 NEW.db3"
        ) from error
    log.warning("%s: a killed recorder left a journal beside it; reading a copy with the journal applied", file.name)


# ------------------------------------------------------------------------------------------------------------ MCAP

_HEADER, _SCHEMA, _CHANNEL, MESSAGE, CHUNK = 0x01, 0x03, 0x04, 0x05, 0x06
_DATA_END, _FOOTER = 0x0F, 0x02
_DATA_RECORDS = (_HEADER, _SCHEMA, _CHANNEL, MESSAGE, CHUNK, 0x07, 0x09, 0x0C)  # also index, attachment, ...
_PRIVATE = range(0x80, 0x100)
ROS2_ENCODING = "cdr"  # of messages
_MAX_TOPICS, _MAX_TEXT = 10, 200  # named in an error, and bytes of each of their names
RECORD = struct.Struct("<BQ")  # operation, length


def check_profile(file: Path, name: Path, *, thorough: bool = False) -> None:
    """Raise InputError, with the topics and their types, for an MCAP file that is not of ROS 2.

    Its profile is only a hint: without the profile "ros2", one channel with messages of ROS 2 is enough. Of files with
    it, channels are looked for only if `thorough`: that takes long in large ones. `name`: of the file, for the error.
    """
    size, profile = file.stat().st_size, None
    schemas: dict[int, tuple[str, str]] = {}  # name and encoding
    topics: dict[str, None] = {}
    with file.open("rb") as data:
        if data.read(len(MCAP_MAGIC)) != MCAP_MAGIC:
            return
        while len(head := data.read(RECORD.size)) == RECORD.size:
            operation, length = RECORD.unpack(head)
            end = data.tell() + length
            if end > size:
                break
            if operation == _HEADER:
                profile = _text(data, end)
                if profile == "ros2" and not thorough:
                    return
            elif operation == _SCHEMA:
                number = data.read(2)
                schemas[int.from_bytes(number, "little")] = _text(data, end), _text(data, end)
            elif operation == _CHANNEL:
                number, topic, encoding = data.read(4)[2:], _text(data, end), _text(data, end)
                kind, language = schemas.get(int.from_bytes(number, "little"), ("no schema", ""))
                if encoding == ROS2_ENCODING and (profile == "ros2" or language in ("ros2msg", "ros2idl")):
                    return
                if len(topics) <= _MAX_TOPICS:
                    topics[f"{topic} ({kind}, {encoding})"] = None
            data.seek(end)
    if profile is None or not topics:  # no whole header, or all channels are in chunks without an index
        return
    named = list(topics)
    listed = ", ".join(named[:_MAX_TOPICS]) + (" and others" if len(named) > _MAX_TOPICS else "")
    cure = "write its images to a folder with the Python package mcap, and give that folder"
    if profile == "ros1":
        cure = f"give the original .bag, or {cure.replace('package mcap', 'packages mcap and mcap-ros1-support')}"
    raise InputError(
        f"{name}: an MCAP file without messages of ROS 2 (its profile is {profile!r}); its topics: {listed}; {cure}"
    )


def _text(data: BinaryIO, end: int) -> str:
    """Return a text of a record that ends at `end`, cut if it is long."""
    length = int.from_bytes(data.read(4), "little")
    start = data.tell()
    text = data.read(min(length, _MAX_TEXT, max(end - start, 0))).decode(errors="replace")
    data.seek(min(start + length, end))
    return text


def _is_cut(file: Path) -> bool:
    """Return whether an MCAP file with a valid start lacks its end."""
    with file.open("rb") as data:
        if data.read(len(MCAP_MAGIC)) != MCAP_MAGIC:
            return False
        data.seek(max(file.stat().st_size - len(MCAP_MAGIC), len(MCAP_MAGIC)))
        return data.read() != MCAP_MAGIC


def _recover_mcap(file: Path, copy: Path) -> tuple[str, bool]:
    """Copy the whole records of a cut MCAP file, and close the copy.

    Returns what is lost, and whether there is no whole record.
    """
    size = file.stat().st_size
    with file.open("rb") as data, copy.open("wb") as out:
        position, operation, length = len(MCAP_MAGIC), 0, 0
        known, damaged = True, False
        while position + RECORD.size <= size:
            data.seek(position)
            operation, length = RECORD.unpack(data.read(RECORD.size))
            known = operation in _DATA_RECORDS or operation in _PRIVATE
            if not known or position + RECORD.size + length > size:
                break
            if operation == CHUNK and not _is_whole_chunk(data.read(length)):
                damaged = True
                break
            position += RECORD.size + length
        data.seek(0)
        shutil.copyfileobj(_Part(data, position), out)
        if operation == CHUNK:
            data.seek(min(position + RECORD.size, size))
            _copy_uncompressed(data, out)
        out.write(RECORD.pack(_DATA_END, 4) + bytes(4) + RECORD.pack(_FOOTER, 20) + bytes(20) + MCAP_MAGIC)
    if operation == _DATA_END:  # only the index is missing
        return "", False
    where = "between two records" if position == size else "in the middle of a record"
    loss = f"{file.name} ends {where}, at byte {size} (recorder killed, or copied incompletely)"
    if damaged or not known:
        loss = f"{file.name} lacks its end, and is damaged at byte {position} (power failure, or copied incompletely)"
    return loss, position == len(MCAP_MAGIC)


def _is_whole_chunk(record: bytes) -> bool:
    """Return whether the messages of a chunk can be read: after a power failure, parts of a file may be zeros."""
    from rosbags.rosbag2 import storage_mcap

    decompress = storage_mcap.decompress
    try:
        _, _, unpacked, checksum, length = struct.unpack_from("<QQQII", record)
        compression = record[32 : 32 + length].decode()
        (packed,) = struct.unpack_from("<Q", record, 32 + length)
        data = record[40 + length :][:packed]
        content = decompress(data, compression, unpacked, checksum)
    except Exception:  # of one of several libraries; the chunk is reported as damaged
        return False
    position = 0
    while position + RECORD.size <= len(content):
        operation, size = RECORD.unpack_from(content, position)
        if operation not in (_SCHEMA, _CHANNEL, MESSAGE):
            return False
        position += RECORD.size + size
    return position == len(content) == unpacked and len(data) == packed


class _Part:
    """The first bytes of a file, for `shutil.copyfileobj`."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


def _copy_uncompressed(data: BinaryIO, out: BinaryIO) -> None:
    """Copy the whole records of a cut chunk, from its first byte, if they are not compressed."""
    head = data.read(32)  # times, size, checksum, length of the compression's name
    if len(head) < 32 or head[28:] != bytes(4):
        return
    data.read(8)
    while len(record := data.read(RECORD.size)) == RECORD.size:
        operation, length = RECORD.unpack(record)
        if operation not in (_SCHEMA, _CHANNEL, MESSAGE) or length > 2**31:
            return
        content = data.read(length)
        if len(content) < length:
            return
        out.write(record + content)


# -------------------------------------------------------------------------------------------------------- metadata


def _read_metadata(file: Path) -> Metadata:
    """Return the metadata; without files, after a warning, if it is damaged."""
    try:
        if file.stat().st_size > _MAX_METADATA:
            raise ValueError(f"{file.stat().st_size} bytes")
        yaml = importlib.import_module("ruamel.yaml")  # rosbags depends on it, and on zstd
        text = file.read_text(encoding="utf-8-sig")
        if re.search(r"&\w", text) and re.search(r"\*\w", text):
            raise ValueError("contains aliases, which can stand for any amount of data")
        values = yaml.YAML(typ="safe").load(text)["rosbag2_bagfile_information"]
        compression = str(values.get("compression_mode") or "none").lower()
        files = tuple(Path(name).name for name in values["relative_file_paths"])
        counts = {
            str(topic["topic_metadata"]["name"]): topic["message_count"]
            for topic in values.get("topics_with_message_count") or ()
        }
    except Exception as error:  # the library, and values of any type, fail in many ways
        log.warning("%s: damaged, not used: %s", file, reason_of(error).splitlines()[0])
        return Metadata()
    if odd := [f"{count!r} messages of {name}" for name, count in counts.items() if not _is_count(count)]:
        log.warning("%s: not used: %s", file, ", ".join(odd[:3]))
    counts = {name: count for name, count in counts.items() if _is_count(count)}
    return Metadata(files, counts, compression == "message")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**40
