"""A server of MJPEG streams on the loopback address, as IP cameras have one, and a camera without hardware."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import cv2
import numpy as np

SIZE = 64, 48  # width, height


def numbered_image(number: int) -> np.ndarray:
    """A BGR image from whose brightness `number_of` reads its number, 0 to 49."""
    return np.full((SIZE[1], SIZE[0], 3), 5 * number + 2, np.uint8)


def number_of(image: np.ndarray) -> int:
    return round((float(image.mean()) - 2) / 5)


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
