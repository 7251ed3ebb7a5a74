"""The program of the child process that opens and reads a bag for `bag_process`, with limited resources.

A bag may be made to exhaust memory, time or disk space: compressed chunks, queries and definitions of messages
can take any amount of each. Here that ends only this process.
"""

from __future__ import annotations

import heapq
import json
import logging
import math
import os
import queue
import resource
import shutil
import signal
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from itertools import groupby
from multiprocessing.connection import Connection
from operator import itemgetter
from pathlib import Path
from typing import Any

from raymap3r_ros.errors import InputError, reason_of
from raymap3r_ros.io.bag_files import (
    CHUNK,
    MESSAGE,
    RECORD,
    ROS1,
    ROS2_ENCODING,
    DataFile,
    check_profile,
    data_files,
    prepare,
)
from raymap3r_ros.signals import STOP_SIGNALS

log = logging.getLogger(__name__)

SECONDS_PER_MESSAGE, BYTES_PER_SECOND = 0.1, 5e6  # of computing time that each message adds to its limit
_LITTLE_SPACE = 64 * 2**20  # bytes; SQLite sorts in temporary files
MAX_MESSAGE = 2**28  # bytes: the largest images have 200 MB
MAX_SMALL_MESSAGE = 2**22  # bytes, of types other than images: their objects are much larger than their bytes
DEFINITIONS = "definitions"  # a request

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_CURES = {  # parts of messages of the reading library, and what to do
    "not indexed": "repair it with: rosbag reindex",
    "malformed": "repair it with: sqlite3 FILE .recover | sqlite3 NEW.db3",
    "not a database": "its start is damaged; copy it again, or move it away to read the others of its folder",
    "summary offset": "repair it with: mcap recover",
    "different definition": "record it again with one version of the message",
    "chunk index": "repair it with: mcap recover",
    "names parts": "repair it with ROS 1: rosbag reindex",
    "MCAP footer": "repair it with: mcap recover",
    "missing tables": "an SQLite database, but not a bag",
    "Bag version": "only version 2.0 is read; convert it with ROS 1: rosbag fix",
    "could not be read from file": "cut off or damaged; repair it with ROS 1: rosbag reindex",
    "Could not read": "cut off or damaged; repair it with ROS 1: rosbag reindex",
}


def main() -> None:
    """Serve the parent at the other end of the socket that is the last argument, until it closes it."""
    for number in STOP_SIGNALS:  # the parent decides
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[-1]))
    first = json.loads(connection.recv_bytes())
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
    seconds = first["seconds"]
    _limit(resource.RLIMIT_DATA, _memory() + first["memory"])
    _limit(resource.RLIMIT_FSIZE, first["disk"])
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, seconds)
    try:
        reader, opened = _open(first)
    except InputError as error:
        _send(connection, json.dumps({"error": str(error)}))
        return
    _send(connection, opened)
    sources: list[tuple[Iterator[Any], bool]] = []
    while True:
        request = requests.get()
        if isinstance(request, dict):  # a new pass
            chosen = [one for one in reader.connections if one.topic in request["topics"]]
            messages = reader.messages(chosen, start=request["begin"]) if chosen else iter(())
            sources.append((messages, request["raw"]))
        elif request == DEFINITIONS:
            _send(connection, _all_definitions(reader))
        else:
            size = _send_next(connection, *sources[request])
            seconds += SECONDS_PER_MESSAGE + size / BYTES_PER_SECOND
            _limit(resource.RLIMIT_CPU, seconds)


def _receive(connection: Connection, requests: queue.SimpleQueue[Any]) -> None:
    """Receive requests, and end the process with its parent, whatever the main thread is doing."""
    try:
        while True:
            requests.put(json.loads(connection.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)


def _send(connection: Connection, header: str, data: bytes | None = None) -> None:
    connection.send_bytes(header.encode())
    if data is not None:
        connection.send_bytes(data)


def _memory() -> int:
    """Return the bytes of data and stack that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


def _limit(kind: int, limit: float) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(
        kind, (math.ceil(limit) if hard == resource.RLIM_INFINITY else min(math.ceil(limit), hard), hard)
    )


# --------------------------------------------------------------------------------------------------------- opening


class _Collector(logging.Handler):
    """Keeps warnings for the log of the parent."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _open(first: dict[str, Any]) -> tuple[Any, str]:
    """Return the open reader, and in JSON what the parent needs to know.

    `first`: path of the bag, folder for copies of its files, what was prepared there the last time, and the names of
    the types whose definitions are returned.
    """
    path, folder, prepared = Path(first["path"]), Path(first["folder"]), first["prepared"]
    warnings = _Collector()
    logging.getLogger().addHandler(warnings)
    kind = 2
    try:
        if prepared is None:
            found, metadata = data_files(path)
            files = [prepare(file, folder / f"file{index}") for index, file in enumerate(found)]
            prepared = {
                "files": [(str(file.path), file.kind, file.loss, file.empty) for file in files],
                "counts": metadata.counts or {},
                "messages_compressed": metadata.messages_compressed,
            }
        files = [DataFile(Path(name), *others) for name, *others in prepared["files"]]
        kind = 1 if any(file.kind == ROS1 for file in files) else 2
        loss = "; ".join(file.loss for file in files if file.loss)
        if all(file.empty for file in files):
            raise InputError(f"{path}: cannot be read as a ROS {kind} bag: {loss}")
        reader = _reader([file.path for file in files if not file.empty])
        if not reader.connections:
            for file in files:
                check_profile(file.path, path, thorough=True)
        defined, twice = _definitions(reader.connections, first["types"])
        opened = {
            "prepared": prepared,
            "warnings": warnings.texts,
            "kind": kind,
            "loss": loss,
            "topics": {name: (info.msgtype, info.msgcount) for name, info in reader.topics.items()},
            "times": (int(reader.start_time), int(reader.end_time)),
            "defined": defined,
            "twice": twice,
        }
        return reader, json.dumps(opened)
    except InputError:
        raise
    except Exception as error:  # the library passes on struct, sqlite and decompression errors
        reason = "; ".join(
            [_reason(error).rstrip("."), *(cure for part, cure in _CURES.items() if part in str(error))]
        )
        raise InputError(f"{path}: cannot be read as a ROS {kind} bag: {reason}") from error


def _reader(paths: list[Path]) -> Any:
    from rosbags.highlevel import AnyReader
    from rosbags.rosbag1 import Reader as Reader1
    from rosbags.rosbag2 import storage_mcap, storage_sqlite3
    from rosbags.typesys import Stores, get_typestore

    for storage in (storage_mcap, storage_sqlite3):
        storage.parse_qos = lambda _: []  # profiles without some keys are errors there; they are not used here
    _read_only_channels_of_ros(storage_mcap)
    _read_each_chunk_once(storage_mcap)
    _check_index_of_ros1(Reader1)
    for storage in (storage_mcap.McapReader, storage_sqlite3.Sqlite3Reader):
        _complete_names_of_types(storage)
    _sort_messages_without_index(storage_mcap)
    # sqlite3 bags from before ROS 2 Iron contain no definitions of messages; here none are needed.
    reader = AnyReader(paths, default_typestore=get_typestore(Stores.EMPTY))
    reader.open()
    return reader


def _read_only_channels_of_ros(storage: Any) -> None:
    """Make the library read the channels of ROS 2 from MCAP files of any profile, and ignore all others.

    It accepts only the profile "ros2", and no other encoding. `bag_files.prepare` has checked the file.
    """
    read_string, get_msgdef, open_file = storage.read_string, storage.get_msgdef, storage.McapReader.open

    def read(data: Any) -> str:
        is_profile = data.tell() == 0  # else only a name of metadata, which are not used, is first
        text = read_string(data)
        return "ros2" if is_profile else text

    def definition(schema: Any) -> Any:
        known = schema is None or schema.encoding in ("ros2msg", "ros2idl", "omgidl", "")
        return get_msgdef(schema if known else None)

    def open_channels(self: Any) -> None:
        open_file(self)
        self.connections = [one for one in self.connections if one.ext.serialization_format == ROS2_ENCODING]

    storage.read_string, storage.get_msgdef, storage.McapReader.open = read, definition, open_channels


def _read_each_chunk_once(storage: Any) -> None:
    """Make the library drop chunks that the index of an MCAP file repeats, and refuse those that overlap.

    It reads a chunk as often as the index names it: a small file could have any number of messages.
    """
    read_index = storage.McapReader.read_index

    def read_chunks(self: Any) -> None:
        read_index(self)
        chunks = {chunk.chunk_start_offset: chunk for chunk in self.chunks}
        name, position = Path(self.path).resolve().name, self.data_start
        for start, chunk in sorted(chunks.items()):
            end = start + RECORD.size + 40 + len(chunk.compression) + chunk.compressed_size  # of what is read
            if start < position or end > self.data_end:
                raise ValueError(f"the chunk index of {name} has chunks that overlap or lie outside of its data")
            position = end
        if len(chunks) < len(self.chunks):
            log.warning(
                "%s: its chunk index lists %d of its chunks again; each is read once",
                name, len(self.chunks) - len(chunks),
            )  # fmt: skip
            self.chunks[:] = chunks.values()
        listed = self.statistics.channel_message_counts if self.statistics and self.schemas else None
        counts = [item for chunk in self.chunks for item in chunk.channel_count.items()]
        if listed is not None and any(count and not listed.get(channel) for channel, count in counts):
            self.statistics = None  # the counts are optional there; the library takes those of the index
        for chunk in self.chunks:
            if not chunk.message_index_offsets:  # optional too; the library would skip the chunk
                chunk.channel_count.update(dict.fromkeys(self.channels, 1))

    storage.McapReader.read_index = read_chunks


def _check_index_of_ros1(reader: Any) -> None:
    """Make the library refuse ROS 1 bags whose index names a chunk or a message twice, or chunks that overlap."""
    open_bag = reader.open

    def open_checked(self: Any) -> None:
        open_bag(self)
        twice = len({info.pos for info in self.chunk_infos}) < len(self.chunk_infos)
        position = 0
        for start, chunk in sorted(self.chunks.items()) if self.chunk_infos else ():
            twice |= start < position
            position = chunk.datapos + chunk.datasize
        for entries in self.indexes.values():
            for _, group in groupby(entries, itemgetter(0)):  # sorted by time
                places = [one[1:] for one in group]
                twice |= len(set(places)) < len(places)
        if twice:
            raise ValueError(f"the index of {Path(self.path).resolve().name} names parts of the bag twice")

    reader.open = open_checked


def _complete_names_of_types(storage: Any) -> None:
    """Make the library read the types of messages without `/msg/` in their names as those with it.

    The first distributions of ROS 2 wrote such names, and some programs without ROS still do.
    """
    from rosbags.typesys.msg import normalize_msgtype

    open_file = storage.open

    def open_named(self: Any) -> None:
        open_file(self)
        self.connections = [
            one._replace(msgtype=normalize_msgtype(one.msgtype)) if str(one.msgtype).count("/") == 1 else one
            for one in self.connections
        ]

    storage.open = open_named


def _sort_messages_without_index(storage: Any) -> None:
    """Make the library read the messages of an MCAP file without an index in order of time, as of one with an index.

    It reads them in the order of the file, and ends with an error at the first time that falls.
    """
    read_indexed = storage.McapReader.messages

    def messages(
        self: Any, connections: list[Any], start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[Any, int, bytes]]:
        if self.chunks:
            yield from read_indexed(self, connections, start, stop)
            return
        channels = {one.id: one for one in connections}
        begin, end = start or 0, storage.MAXSIZE if stop is None else stop
        chunks, single = _data_records(self.bio, self.data_start, self.data_end)
        sources = [storage.msgsrc(storage.ChunkInfo(*one), channels, begin, end, self.bio) for one in chunks]
        sources.append(
            (recorded, position, channels[channel], storage.read_exact(self.bio, size))
            for recorded, position, size, channel in sorted(single)
            if channel in channels and begin <= recorded < end and self.bio.seek(position)
        )
        for recorded, _, connection, data in heapq.merge(*sources, key=itemgetter(0)):
            if connection is not None:  # else it is only the start of a chunk
                yield connection, recorded, data

    storage.McapReader.messages = messages


def _data_records(file: Any, position: int, end: int) -> tuple[list[tuple[Any, ...]], list[tuple[int, int, int, int]]]:
    """Return the chunks of an MCAP file, and its messages outside of chunks: time, position, size and channel."""
    chunks: list[tuple[Any, ...]] = []
    single = []
    while position < end:
        file.seek(position)
        operation, length = RECORD.unpack(file.read(RECORD.size))
        if operation == CHUNK:
            first, last, unpacked, _, name_length = struct.unpack("<QQQII", file.read(32))
            compression = file.read(min(name_length, length)).decode()
            (packed,) = struct.unpack("<Q", file.read(8))
            if 40 + name_length + packed > length:
                raise ValueError(f"a chunk record of {length} bytes with {packed} bytes of messages")
            chunks.append((first, last, position, RECORD.size + length, {}, 0, compression, packed, unpacked, {}))
        elif operation == MESSAGE:
            if length < 22:
                raise ValueError(f"a message record of {length} bytes")
            channel, _, recorded, _ = struct.unpack("<HIQQ", file.read(22))
            single.append((recorded, file.tell(), length - 22, channel))
        position += RECORD.size + length
    return chunks, single


def _definitions(connections: list[Any], names: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of some types by name, as the bag defines them, and those with two different definitions."""
    defined: dict[str, Any] = {}
    twice = []
    for definition, kind in dict.fromkeys((one.msgdef, one.msgtype) for one in connections):
        for name, (_, fields) in _types(definition, kind).items():
            if name in names and defined.setdefault(name, fields) != fields:
                twice.append(name)
    return defined, twice


def _types(definition: Any, name: str) -> dict[str, Any]:
    """Return the parsed definitions of a connection by name, as the library registers them."""
    from rosbags.interfaces import MessageDefinitionFormat
    from rosbags.typesys import get_types_from_idl, get_types_from_msg

    if definition.format == MessageDefinitionFormat.NONE:
        return {}
    if definition.format == MessageDefinitionFormat.MSG:
        return get_types_from_msg(definition.data, name)
    separator = "=" * 80 + "\n"
    if not definition.data.startswith(f"{separator}IDL: "):
        return get_types_from_idl(definition.data)
    types: dict[str, Any] = {}
    for text in definition.data.split(separator)[1:]:
        types.update(get_types_from_idl(text.split("\n", 1)[1]))
    return types


def _all_definitions(reader: Any) -> str:
    """Return, in JSON, topic, type, definition and its hash for each connection; "" for the last two if unknown."""
    found = []
    for one in reader.connections:
        text = one.msgdef.data
        # Definitions in IDL without the names of their files cannot be written again by the library.
        known = text and (one.msgdef.format.name == "MSG" or text.startswith("=" * 80))
        digest = reader.typestore.hash_rihs01(one.msgtype) if known else ""
        found.append((one.topic, one.msgtype, text if known else "", digest))
    return json.dumps(found)


# --------------------------------------------------------------------------------------------------------- reading


def _send_next(connection: Connection, source: Iterator[Any], raw: bool) -> int:
    """Send the next message of a pass, an error, or the end; return the number of bytes of the message.

    `raw`: no objects are made of the messages.
    """
    try:
        one, recorded, data = next(source)
        if not (isinstance(recorded, int) and isinstance(data, bytes)):  # SQLite has no types of columns
            raise TypeError(f"a time is {type(recorded).__name__}, a message {type(data).__name__}")
        size = len(data)
        too_large = size > (MAX_MESSAGE if raw or one.msgtype in IMAGE_TYPES else MAX_SMALL_MESSAGE)
        header = {"topic": one.topic, "type": one.msgtype, "time": recorded, "size": size, "data": not too_large}
        _send(connection, json.dumps(header), None if too_large else data)
        return size
    except StopIteration:
        _send(connection, json.dumps({"end": True}))
    except Exception as error:  # a damaged file cannot be read any further
        _send(connection, json.dumps({"error": _reason(error)}))
    return 0


def _reason(error: Exception) -> str:
    """Return the reason of a failure, in words if it is a limit of this process."""
    folder = tempfile.gettempdir()
    full = any(part in str(error) for part in ("disk I/O error", "disk is full"))
    if full and shutil.disk_usage(folder).free < _LITTLE_SPACE:
        return f"the folder of temporary files, {folder}, is full; set TMPDIR to one with more space"
    limited = isinstance(error, MemoryError) or type(error).__name__ == "NoMemError"
    if full or limited or "allocation" in str(error):
        return (
            "it takes too much memory or disk space for its size, as files do that are made to exhaust it; if you "
            "trust it, record it again with smaller chunks"
        )
    return reason_of(error)
