"""Servers of MJPEG and RTSP streams on the loopback address, as IP cameras have, and a camera without hardware."""

import base64
import http.server
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import cv2
import numpy as np

SIZE = 64, 48  # width, height


def numbered_image(number: int) -> np.ndarray:
    """A BGR image from whose brightness `number_of` reads its number, 0 to 49."""
    image = np.full((SIZE[1], SIZE[0], 3), 4 * number + 4, np.uint8)
    image[SIZE[1] // 2 :] += 32  # content, see `streaming.cover`
    return image


def number_of(image: np.ndarray) -> int:
    return round((float(image.mean()) - 20) / 4)


def part(number: int) -> bytes:
    """One image of a stream."""
    jpeg = cv2.imencode(".jpg", numbered_image(number))[1].tobytes()
    return b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg) + jpeg + b"\r\n"


@contextmanager
def mjpeg_server(body: Callable[[Callable[[bytes], None]], None]) -> Iterator[str]:
    """Yield the URL of a stream; `body` gets a function that sends bytes, and ends the connection when it returns."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client has seen enough
                body(self.wfile.write)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/stream"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track1\r\n"


@contextmanager
def rtsp_server(data: bytes, password: str) -> Iterator[tuple[str, threading.Event]]:
    """Yield address and path of a stream of `data` (MPEG-TS) for `password` ("user:word"), and what ends it."""
    over, wanted = threading.Event(), "Basic " + base64.b64encode(password.encode()).decode()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            with suppress(OSError):
                while first := self.rfile.readline().decode():
                    head = dict(line.split(": ", 1) for line in iter(self.next_line, ""))
                    self.respond(first.split()[0], head)

        def next_line(self):
            return self.rfile.readline().decode().strip()

        def respond(self, method, head):
            status, more, body = "200 OK", "", ""
            if method == "OPTIONS":
                more = "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            elif head.get("Authorization") != wanted:
                status, more = "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n'
            elif method == "DESCRIBE":
                more, body = f"Content-Type: application/sdp\r\nContent-Length: {len(_SDP)}\r\n", _SDP
            elif method == "SETUP":
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            response = f"RTSP/1.0 {status}\r\nCSeq: {head['CSeq']}\r\nSession: 1\r\n{more}\r\n{body}"
            self.wfile.write(response.encode())
            if method == "PLAY" and status == "200 OK":
                self.play()

        def play(self):
            size = 7 * 188  # bytes in a packet
            for number, at in enumerate(range(0, len(data), size)):
                packet = struct.pack(">BBHII", 0x80, 33, number, 9000 * number, 1) + data[at : at + size]
                self.wfile.write(b"$\0" + struct.pack(">H", len(packet)) + packet)
                over.wait(0.02)
            over.wait()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}/live", over
        finally:
            over.set()
            server.shutdown()
            thread.join()


class FakeCapture:
    """In place of cv2.VideoCapture: delivers what `images` yields, then nothing."""

    def __init__(self, images: Iterator[np.ndarray | None], opened: bool = True) -> None:
        self._images = images
        self._opened = opened
        self.released = threading.Event()

    def __call__(self, *arguments: object) -> "FakeCapture":
        self.arguments = arguments
        return self

    def isOpened(self) -> bool:
        return self._opened

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: 10.0}.get(what, 0.0)

    def read(self) -> tuple[bool, np.ndarray | None]:
        image = next(self._images, None)
        return image is not None, image

    def release(self) -> None:
        self.released.set()
