"""A small public file, and a server on the loopback address in place of Google Drive and Hugging Face."""

import dataclasses
import hashlib
import http.server
import io
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import torch

from raymap3r_ros import cli
from raymap3r_ros.network import PRESETS
from raymap3r_ros.network.catalog import PUBLIC_WEIGHTS
from raymap3r_ros.network.checkpoint import public_shapes
from raymap3r_ros.weights import download

DRIVE, CONTENT, HUB, CDN = "drive.google.com", "drive.usercontent.google.com", "hub.test", "cdn.test"
BLOCK = 2**16
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CONFIRMATION = f"""<html><body>Google Drive can't scan this file for viruses.
<form id="download-form" action="https://{CONTENT}/download" method="get"><input type="submit" value="Download">
<input type="hidden" name="id" value="{{id}}"><input type="hidden" name="confirm" value="t"></form></body></html>"""


@dataclass
class Sources:
    """What the server returns, and what was requested from it."""

    drive: bytes | None  # content at Google Drive; None: no such file
    hub: bytes | None
    etag: str = ""  # of Hugging Face; "": the SHA-256 of the content
    cut: int | None = None  # bytes after which the next transfer ends
    hold: threading.Event | None = None  # a transfer waits for it after `cut` bytes, instead of ending
    sent: threading.Event = field(default_factory=threading.Event)  # set after `cut` bytes
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, host, range
    secrets: list[str] = field(default_factory=list)  # tokens and cookies that were sent
    port: int = 0

    def hosts(self, method: str = "GET") -> list[str]:
        """Hosts of the requests, in order."""
        return [host for one, host, _ in self.requests if one == method]

    def ranges(self) -> list[str]:
        """Ranges of the content that were requested, in order."""
        return [text for _, host, text in self.requests if text and host in (CONTENT, CDN)]


class Handler(http.server.BaseHTTPRequestHandler):
    """An HTTP proxy that returns the content of all hosts itself, with and without TLS."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    sources: Sources
    tls: ssl.SSLContext
    host = ""  # of the tunnel

    def do_CONNECT(self) -> None:
        """Become the host of the tunnel."""
        self.sources.requests.append(("CONNECT", self.path, ""))
        self.host = self.path.partition(":")[0]
        self.send_response(200)
        self.end_headers()
        self.connection = self.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")
        self.close_connection = False

    def do_HEAD(self) -> None:
        """Hugging Face redirects to the file, and describes it."""
        self._respond()

    def do_GET(self) -> None:
        """As the sources do."""
        self._respond()

    def _respond(self) -> None:
        url = urlsplit(self.path)
        host = url.hostname or self.host
        self.sources.requests.append((self.command, host, self.headers.get("Range", "")))
        self.sources.secrets += [self.headers[name] for name in ("Authorization", "Cookie") if name in self.headers]
        content = self.sources.drive if host in (DRIVE, CONTENT) else self.sources.hub
        if content is None:
            self._send(404, b"there is no such file", {})
        elif host == DRIVE:
            page = CONFIRMATION.format(id=parse_qs(url.query)["id"][0])
            self._send(200, page.encode(), {"Content-Type": "text/html; charset=utf-8"})
        elif host == HUB:
            digest = self.sources.etag or hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "X-Repo-Commit": "0" * 40}
            self._send(302, b"", {"Location": f"http://{CDN}{url.path}", **linked})
        else:
            self._transfer(content)

    def _transfer(self, content: bytes) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Type": "application/octet-stream", "Content-Disposition": 'attachment; filename="w.pth"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.sources.cut
        self._send(206 if start else 200, content[start:], headers, cut=cut)
        if cut is not None:
            self.sources.sent.set()
            if self.sources.hold:
                self.sources.hold.wait(60)
            self.close_connection = True

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Server(http.server.ThreadingHTTPServer):
    """Ignores clients that end a connection."""

    daemon_threads = True

    def handle_error(self, request: socket.socket, client_address: object) -> None:
        """Print nothing; a test fails by what arrives."""


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for the hosts of Google Drive, with its key."""
    path = tmp_path_factory.mktemp("tls") / "drive.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=test", "-addext", f"subjectAltName=DNS:{DRIVE},DNS:{CONTENT}", "-days", "2"]
    try:
        subprocess.run([*command, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl, which makes the certificate of the test's server, is not installed")
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def tiny_is_public(tiny_config, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Content of a small public file, which the catalog names cut3r_512."""
    levels = {"dpt_width": 8, "dpt_last_width": 4, "dpt_level_widths": (4, 4, 4, 4)}
    config = dataclasses.replace(tiny_config, head_type="dpt", **levels)
    monkeypatch.setitem(PRESETS, "cut3r_512_dpt", config)
    generator = torch.Generator().manual_seed(1)
    tensors = {key: 0.02 * torch.randn(shape, generator=generator) for key, shape in public_shapes(config).items()}
    buffer = io.BytesIO()
    torch.save({"model": tensors}, buffer)
    content = buffer.getvalue()
    weights = dataclasses.replace(
        PUBLIC_WEIGHTS["cut3r_512"], bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setitem(PUBLIC_WEIGHTS, "cut3r_512", weights)
    return content


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test, not yet created."""
    monkeypatch.setenv("RAYMAP3R_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "weights"


@pytest.fixture
def sources(tiny_is_public: bytes, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sources]:
    """Both sources have the file. All requests of the libraries go to a proxy on the loopback address."""
    pytest.importorskip("gdown", reason="gdown is not installed: pip install '.[weights]'")
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install '.[weights]'")
    found = Sources(tiny_is_public, tiny_is_public)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server(("127.0.0.1", 0), type("OneHandler", (Handler,), {"sources": found, "tls": context}))
    found.port = server.server_address[1]
    for name in PROXIES:
        for form in (name, name.lower()):
            monkeypatch.delenv(form, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{found.port}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", f"{certificate}.crt")
    monkeypatch.setenv("HF_ENDPOINT", f"http://{HUB}")  # read by other processes
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://{HUB}")
    # The libraries write what has arrived in blocks of 0.5 and 10 MB, more than the small file.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", BLOCK)
    monkeypatch.setattr(sys.modules["gdown.download"], "CHUNK_SIZE", BLOCK)
    monkeypatch.setattr(download, "RETRIES", 0)
    close_session = getattr(hub, "close_session", lambda: None)  # it keeps the proxies
    close_session()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield found
    if found.hold:
        found.hold.set()
    server.shutdown()
    server.server_close()
    close_session()


@pytest.fixture
def weights_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `raymap3r weights`; return its exit status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.main(["weights", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run
