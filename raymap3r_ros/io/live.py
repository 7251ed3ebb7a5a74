"""Cameras and network streams. Images that arrive while one is processed replace each other: the newest is next."""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np

from raymap3r_ros.errors import InputError
from raymap3r_ros.io.files import silence_ffmpeg
from raymap3r_ros.io.pixel_shape import pixel_ratio, square_pixels
from raymap3r_ros.io.recording import MAX_RATE, MIN_RATE, Frame, ReadOptions, Recording, open_recording
from raymap3r_ros.signals import stop_requested
from raymap3r_ros.stamps import JumpDetector
from raymap3r_ros.text import counted

DEVICES = Path("/dev")
LIVE = CAMERA, STREAM = "camera", "stream"  # kinds of live inputs
SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "rtp", "tcp", "srt")
TIMEOUT = 10.0  # seconds without an image, after which a stream has ended
GIVE_UP = 10  # consecutive images that cannot be decoded: treated as the end
_POLL = 0.1  # seconds between two checks for a stop signal
CLOSE = 2.0  # seconds to wait for a read to return
_PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}
_CAPTURE_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
# FFmpeg follows what a server sends, such as a playlist: it must not read files. RTSP over TCP loses no packets.
_FFMPEG_OPTIONS = "rtsp_transport;tcp|protocol_whitelist;" + ",".join((*SCHEMES, "tls", "srtp", "crypto", "httpproxy"))


def open_input(text: str, **options: object) -> Recording:
    """Return the recording at the path `text`, see `open_recording`, or a live input.

    A live input is a camera (its number, or a device such as /dev/video0) or the URL of a stream. An existing file or
    folder whose name is a number is a recording. Of a live input, `stride` takes every N-th arriving image, `max_gap`
    is the longest time without an image that starts no new world, and `max_frames` ends it. The stamps are the times
    of arrival, seconds since 1970.

    Raises InputError if nothing can be read.
    """
    source = _find_source(text)
    if source is None:
        return open_recording(text, **options)
    if options.pop("topic", None) is not None:
        raise InputError(f"{source.name}: not a bag, so it has no topic; leave out --topic")
    read = ReadOptions(**options)
    if read.is_part:
        raise InputError(f"{source.name}: a live input has no start to count from; leave out --start and --end")
    reader = _Reader(source, read)
    try:
        problem = reader.wait()
        if problem:
            raise InputError(f"{source.name}: {problem}")
    except BaseException:
        reader.close()
        raise
    started = [reader]  # read from now on, so that no images wait while the network is loaded

    def frames(recording: Recording) -> Iterator[Frame]:
        return _frames(recording, started.pop() if started else _Reader(source, read), read.intrinsics)

    rate = reader.rate if MIN_RATE <= reader.rate <= MAX_RATE else read.rate
    recording = Recording(
        None, source.kind, None, read.stride, read.max_frames, rate / read.stride, label=source.name, size=reader.size,
        frames=frames,
    )  # fmt: skip
    recording.max_gap = read.max_gap
    recording.given_intrinsics = None if read.intrinsics is None else np.asarray(read.intrinsics, np.float64)
    weakref.finalize(recording, reader.close)
    return recording


def hide_secrets(url: str) -> str:
    """`url` without user name, password and query, which may contain a token."""
    # Up to the last @, because passwords may contain any character.
    address, query, _ = re.sub(r"(?<=://).*@", "***@", url, flags=re.DOTALL).partition("?")
    return address + ("?***" if query else "")


@dataclass(frozen=True)
class _Source:
    """A live input."""

    kind: str  # CAMERA or STREAM
    name: str  # for messages and files, without a password
    open: Callable[[], cv2.VideoCapture]
    diagnose: Callable[[], str]  # why it cannot be opened, and what to do


def _find_source(text: str) -> _Source | None:
    """The live input that `text` names, if any. Raises InputError for the URL of another kind."""
    path = Path(text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) and not os.path.exists(text):  # a long URL is an error for Path
        return _stream(text)
    if re.fullmatch(r"\d{1,4}", text, re.ASCII) and not os.path.exists(text):
        number = int(text)
        device = DEVICES / f"video{number}"
        return _Source(CAMERA, f"camera {number}", lambda: _open_camera(number), lambda: _camera_problem(device))
    if sys.platform == "linux" and _is_camera(path):
        device = path.resolve()
        number = int(device.name.removeprefix("video"))
        return _Source(CAMERA, str(path), lambda: _open_camera(number), lambda: _camera_problem(device))
    return None


def _is_camera(path: Path) -> bool:
    """Whether a path, such as a link in /dev/v4l/by-id, leads to a camera, or would if it were connected."""
    device = path.resolve()
    if device.parent != DEVICES or not re.fullmatch(r"video\d{1,4}", device.name, re.ASCII):
        return False
    return not device.exists() or stat.S_ISCHR(device.stat().st_mode)


def _open_camera(number: int) -> cv2.VideoCapture:
    return cv2.VideoCapture(number, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)


def _camera_problem(device: Path) -> str:
    if sys.platform == "linux" and not device.exists():
        others = sorted(str(path) for path in DEVICES.glob("video*"))
        found = f"found: {', '.join(others)}" if others else "this machine has none"
        return f"there is no camera {device} ({found}); connect it; a container needs --device {device}"
    if sys.platform == "linux" and not os.access(device, os.R_OK | os.W_OK):
        return f"no permission to read {device}; run `sudo usermod -aG video $USER`, then log in again"
    return (
        "cannot be opened: another program uses it, or it delivers no colour images (a camera may have several "
        "devices); "
        "close the other program, or give another number"
    )


def _stream(url: str) -> _Source:
    """The stream at a URL. Raises InputError if it cannot be one."""
    name, scheme = hide_secrets(url), url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise InputError(f"{name}: streams of {scheme}:// are not read; allowed: {', '.join(SCHEMES)}; or give a file")
    if "\0" in url:
        raise InputError(f"{name}: contains a zero byte; give the URL of the stream")

    def capture() -> cv2.VideoCapture:
        silence_ffmpeg()
        milliseconds = round(TIMEOUT * 1000)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
        # Other backends would print the URL.
        own = _CAPTURE_OPTIONS not in os.environ
        os.environ.setdefault(_CAPTURE_OPTIONS, _FFMPEG_OPTIONS)
        try:
            return cv2.VideoCapture(os.fsencode(url).decode("utf-8", "replace"), cv2.CAP_FFMPEG, limits)
        finally:
            if own:  # with these options, no file can be opened later
                os.environ.pop(_CAPTURE_OPTIONS, None)

    return _Source(STREAM, name, capture, lambda: _stream_problem(url))


def _stream_problem(url: str) -> str:
    if not cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
        return "this OpenCV was built without FFmpeg, which reads streams; pip install opencv-python-headless"
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme.lower())
        if parts.hostname and port and parts.scheme.lower() in _PORTS:
            socket.create_connection((parts.hostname, port), timeout=TIMEOUT / 2).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no valid address, or no response"
        return f"cannot be reached: {reason}; check the address, and that the camera or server runs"
    return (
        "is not a stream that can be read; check path, user and password: `ffplay URL` shows the server's response, "
        "and whether FFmpeg can read it"
    )


class _Reader:
    """Reads a live input in a thread, and keeps only its newest image."""

    def __init__(self, source: _Source, options: ReadOptions) -> None:
        self.rate = 0.0  # images per second as the input states it; 0 if it does not
        self.dropped = 0  # images that were replaced by newer ones
        self.broken = 0  # images that could not be decoded
        self.ended = ""  # why no more images arrive
        self.size: tuple[int, int] | None = None  # width and height of the images
        self._source = source
        self._options = options
        self._newest: tuple[np.ndarray, float, int] | None = None  # BGR image, stamp, jumps
        self._change = threading.Condition()  # guards what the thread writes
        self._closed = False
        self._images = 0  # so far
        self._latest = time.monotonic() + 2 * TIMEOUT  # when the next one must arrive; opening takes time, too
        self._thread = threading.Thread(target=self._run, name="live input", daemon=True)
        self._thread.start()

    def wait(self) -> str:
        """Wait for an image. Returns "" if there is one or a stop signal was received, else why there is none."""
        with self._change:
            while self._newest is None and not self.ended and not stop_requested():
                self._change.wait(_POLL)  # the handler of a signal does not end a wait
                if time.monotonic() > self._latest:  # FFmpeg may try for longer, and a driver may block
                    self.ended = self.ended or f"no image for {TIMEOUT:g} s, after {counted(self._images, 'image')}"
            return "" if self._newest is not None else self.ended

    def take(self) -> tuple[np.ndarray, float, int] | None:
        """Wait for the newest image and return it; None after the end or a stop signal."""
        self.wait()
        with self._change:
            newest, self._newest = self._newest, None
            if stop_requested():
                self.dropped += newest is not None
                return None
        return newest

    def close(self) -> None:
        """End the thread. One whose read blocks ends when that returns."""
        self._closed = True
        self._thread.join(CLOSE)

    def _run(self) -> None:
        ended = "reading failed"
        try:
            if hasattr(cv2, "utils"):  # OpenCV's own messages about what is reported here
                cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
            capture = self._source.open()
            try:
                ended = self._read(capture) if capture.isOpened() else self._source.diagnose()
            finally:
                capture.release()
        except cv2.error:  # its text may contain the URL
            ended = self._source.diagnose()
        finally:
            with self._change:
                self.ended = self.ended or ended
                self._change.notify_all()

    def _read(self, capture: cv2.VideoCapture) -> str:
        """Read until the end; return why it ended."""
        self.rate = capture.get(cv2.CAP_PROP_FPS)
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if self._source.kind == STREAM and 0 < count < 2**31:
            frames = counted(int(count), "frame")
            return f"is a recording of {frames}, not a live stream; download it and give the file"
        ratio = pixel_ratio(capture, self._source.name, given_intrinsics=self._options.intrinsics is not None)
        detector, offset = JumpDetector(), time.time() - time.monotonic()
        failed, timed_out = 0, False
        begin, position = time.monotonic(), 0.0  # of the last image: arrival, and seconds of the stream
        while not self._closed:
            read, image = capture.read()
            now, before = time.monotonic(), begin
            # FFmpeg waits no longer than this. What it returns then had arrived before the silence.
            timed_out = timed_out or (self._source.kind == STREAM and now - before >= TIMEOUT)
            if not read:
                failed += 1
                if failed >= GIVE_UP:
                    why = f"no image for {TIMEOUT:g} s" if timed_out else "the connection was closed"
                    return f"ended after {counted(self._images, 'image')}: {why}, or images are damaged"
                begin = now
                continue
            last, position = position, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if timed_out and self._images:
                now = before + min(max(position - last, 0.0), TIMEOUT)
            begin = now
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                return f"delivers {image.dtype} images of shape {image.shape}; give the colour camera"
            image = square_pixels(image, ratio)
            stamp, self.size = offset + now, (image.shape[1], image.shape[0])
            detector.check(round(stamp * 1e9), self._options.max_gap)
            with self._change:
                self.broken += failed
                if self._images % self._options.stride == 0:
                    self.dropped += self._newest is not None
                    self._newest = image, stamp, detector.jumps
                    self._change.notify_all()
                # Later than FFmpeg's own limit, at which it returns the last images.
                self._images, self._latest = self._images + 1, now + 1.2 * TIMEOUT
            failed = 0
        return "closed"


def _frames(recording: Recording, reader: _Reader, intrinsics: np.ndarray | None) -> Iterator[Frame]:
    before = reader.dropped  # while the network was loaded and prepared
    try:
        while (newest := reader.take()) is not None:
            image, stamp, jumps = newest
            yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), stamp, intrinsics, jumps)
        if not stop_requested():
            recording.ended = reader.ended
    finally:
        reader.close()
        recording.dropped, recording.skipped = reader.dropped - before, reader.broken
