"""Reading of a bag by a child process, see `bag_child`, with limits of memory and time. It can be interrupted."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from raymap3r_ros.errors import InputError
from raymap3r_ros.io.bag_child import DEFINITIONS, MAX_MESSAGE
from raymap3r_ros.io.bag_files import METADATA, journals
from raymap3r_ros.io.bag_types import part_names
from raymap3r_ros.signals import stop_requested

log = logging.getLogger(__name__)

# Limits of the child process; each grows with the size of the bag.
MEMORY = 2**30  # bytes beyond those of the started process
SECONDS, BYTES_PER_SECOND = 20.0, 20e6  # of computing time
DISK = 2**30  # bytes of a file that it writes

_POLL = 0.1  # seconds between two checks for stop signals
_MAX_HEADER = 2**26  # bytes; the one with all topics of a bag is the longest
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from raymap3r_ros.io.bag_child import main; main()"
)


class BagLoss(Exception):
    """A bag cannot be read further. Internal."""


class _Work:
    """What the child prepared for a bag: it is opened several times."""

    def __init__(self) -> None:
        self.folder: tempfile.TemporaryDirectory | None = None
        self.prepared: dict[str, Any] | None = None


class BagProcess:
    """A child process with an open bag. `opened` is its description. Raises InputError if the bag cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        identity = _identity(path)
        self._work = _work(path.absolute(), identity)
        # A new one after a failure, which may have left files in it. Kept as long as its files are in use.
        self._folder = self._work.folder or tempfile.TemporaryDirectory(
            prefix="raymap3r_bag_", ignore_cleanup_errors=True
        )
        ours, its = socket.socketpair()
        self._connection = Connection(ours.detach())
        search = json.dumps([os.path.abspath(item) for item in sys.path])
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM, search, str(its.fileno())], pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's signals reach only this process, which decides
            )  # fmt: skip
        self._passes = 0
        try:
            self.opened = self._open(sum(size for _, size, *_ in identity))
        except BaseException:
            self.close()
            raise

    def _open(self, size: int) -> dict[str, Any]:
        work = self._work
        first = {
            "path": str(self._path),
            "folder": self._folder.name,
            "memory": MEMORY + size // 16,  # the library keeps an index of large bags
            "seconds": SECONDS + size / BYTES_PER_SECOND,
            "disk": DISK + 50 * size,
            "prepared": work.prepared,
            "types": part_names(),
        }
        try:
            self._send(first)
            opened = self._receive()
        except BagLoss as error:
            raise InputError(f"{self._path}: cannot be read as a bag: {error}") from error
        if opened is None:
            raise KeyboardInterrupt
        if "error" in opened:
            raise InputError(opened["error"])
        if work.prepared is None:
            work.folder, work.prepared = self._folder, opened["prepared"]
            if not os.listdir(self._folder.name):
                self._folder.cleanup()
            for text in opened["warnings"]:
                log.warning("%s", text)
        return opened

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def definitions(self) -> list[tuple[str, str, str, str]]:
        """Return topic, type, text of the definition and its hash for each connection; "" for both if unknown.

        Raises BagLoss.
        """
        self._send(DEFINITIONS)
        found = self._receive()
        if found is None:
            raise KeyboardInterrupt
        return [tuple(one) for one in found]

    def start(self, topics: list[str], raw: bool = False, begin: int | None = None) -> int:
        """Start a pass over the messages of some topics; return its number for `next`. Raises BagLoss.

        `raw`: no objects are made of the messages, so large ones of all types are read. `begin`: only
        messages recorded at this time or later, nanoseconds.
        """
        self._send({"topics": topics, "raw": raw, "begin": begin})
        self._passes += 1
        return self._passes - 1

    def next(self, number: int) -> tuple[dict[str, Any], bytes | None] | None:
        """Return the next message of a pass, as a header and its bytes (None if there are too many).

        None at the end, and if a stop signal was received. Raises BagLoss if the bag cannot be read further.
        """
        self._send(number)
        header = self._receive()
        if header is None or "end" in header:
            return None
        if "error" in header:
            raise BagLoss(header["error"])
        return header, self._connection.recv_bytes(MAX_MESSAGE) if header["data"] else None

    def _send(self, request: object) -> None:
        try:
            self._connection.send_bytes(json.dumps(request).encode())
        except OSError:
            raise BagLoss(self._end()) from None

    def _receive(self) -> Any:
        """Return the next header; None if a stop signal was received, after which the process is of no use."""
        try:
            while not self._connection.poll(_POLL):
                if stop_requested():
                    self._process.kill()
                    return None
            return json.loads(self._connection.recv_bytes(_MAX_HEADER))
        except (EOFError, OSError):
            raise BagLoss(self._end()) from None

    def _end(self) -> str:
        """Why the process ended."""
        self._connection.close()
        status = self._process.wait()
        if status == -signal.SIGXCPU:
            return (
                "it takes more time than bags of its size, as files do that are made to exhaust it; if you trust it, "
                "copy its topics to a new bag with: ros2 bag convert, or for ROS 1: rosbag filter"
            )
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"the process that read it ended by {name}: it is damaged, or there is too little memory"


def _identity(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Path, size on disk, size and time of change of the files that a bag may consist of, with their journals."""
    folder, name = (path, "") if path.is_dir() else (path.parent, path.name)
    with os.scandir(folder) as items:
        files = {item.path for item in items if item.name.startswith(name) or item.name == METADATA}
    for file in list(files):
        files.update(journals(Path(file)).values())
    found = []
    for file in files:
        if os.path.isfile(file):
            status = os.stat(file)
            size = min(status.st_size, status.st_blocks * 512)  # a sparse file claims any size
            found.append((file, size, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))


@functools.lru_cache(maxsize=64)
def _work(path: Path, identity: tuple[tuple[str, int, int, int], ...]) -> _Work:
    return _Work()
