"""`raymap3r weights fetch` with the real libraries of the sources, through a proxy on the loopback address."""

import contextlib
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raymap3r_ros import cli
from raymap3r_ros.network import PRESETS, load_network
from raymap3r_ros.network.catalog import PUBLIC_WEIGHTS
from raymap3r_ros.text import size_text

DRIVE, CONTENT, HUB, CDN = "drive.google.com", "drive.usercontent.google.com", "hub.test", "cdn.test"
FETCH = ("fetch", "cut3r_512", "--accept-license")


def files(folder: Path) -> list[str]:
    """Names of the files in a folder and below, without those of locks."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_from_nothing_to_a_run(sources, cache, tiny_is_public, weights_command, tmp_path, capsys):
    status, out, _ = weights_command("path", "cut3r_512")
    assert status == 2 and out == ""
    status, out, error = weights_command(*FETCH)
    assert (status, error) == (0, "")
    assert "NonCommercial" in out and "from Google Drive: 1Asz-ZB3FfpzZYwunhQvNPZEUA8XUNAYD" in out
    assert f"cut3r_512: {cache / 'cut3r_512.safetensors'}" in out
    assert sources.hosts() == [DRIVE, CONTENT]
    assert sources.hosts("CONNECT") == [f"{DRIVE}:443", f"{CONTENT}:443"]  # through the proxy
    assert files(cache) == ["cut3r_512.json", "cut3r_512.safetensors"]

    sources.drive = sources.hub = None  # offline from here on
    sources.requests.clear()
    original = tmp_path / "public.pth"
    original.write_bytes(tiny_is_public)
    expected, loaded = load_network(original), load_network("cut3r_512")
    assert loaded.trained and loaded.source == "cut3r_512: public CUT3R weights, CC BY-NC-SA 4.0, non-commercial"
    for key, tensor in expected.state_dict().items():
        assert torch.allclose(loaded.state_dict()[key], tensor, rtol=1e-3, atol=1e-7), key
    assert torch.equal(loaded.pose_head.mlp.fc1.weight, expected.pose_head.mlp.fc1.weight)  # `mixed`
    images = tmp_path / "images"
    images.mkdir()
    for index in range(2):
        Image.fromarray(np.resize(np.uint8([40 * index + 40, 40 * index + 80]), (24, 32, 3))).save(
            images / f"{index}.png"
        )
    arguments = ["--checkpoint", "cut3r_512", "--size", "32", "--device", "cpu", "--no-preview"]
    assert cli.main(["run", str(images), "--out", str(tmp_path / "out"), *arguments]) == 0
    assert "weights: cut3r_512: public CUT3R weights" in capsys.readouterr().out
    assert weights_command("path", "cut3r_512")[:2] == (0, f"{cache / 'cut3r_512.safetensors'}\n")
    assert weights_command("verify")[:2] == (0, f"ok    {cache / 'cut3r_512.safetensors'}\n")
    assert weights_command(*FETCH)[0] == 0  # the cache has it
    assert sources.requests == []


def test_the_record_contains_licence_acceptance_and_hashes(sources, cache, tiny_is_public, weights_command):
    assert weights_command(*FETCH, "--keep-original")[0] == 0
    record = json.loads((cache / "cut3r_512.json").read_text())
    assert record["licence"] == "CC BY-NC-SA 4.0, non-commercial" and "by-nc-sa/4.0" in record["notice"]
    assert record["accepted"]["how"] == "--accept-license" and record["accepted"]["time"].endswith("+00:00")
    assert record["source"] == "Google Drive"
    assert record["original"]["sha256"] == hashlib.sha256(tiny_is_public).hexdigest()
    stored = cache / "cut3r_512.safetensors"
    assert record["file"]["sha256"] == hashlib.sha256(stored.read_bytes()).hexdigest()
    assert record["file"]["bytes"] == stored.stat().st_size and record["file"]["dtype"] == "mixed"
    assert (cache / "cut3r_512.pth").read_bytes() == tiny_is_public


def test_the_mirror_follows_if_the_first_source_fails(sources, cache, weights_command, monkeypatch):
    sources.drive = None
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_user_who_is_logged_in")
    status, out, _ = weights_command(*FETCH)
    assert status == 0 and out.index("from Google Drive") < out.index("from Hugging Face: liguang0115/cut3r")
    assert "failed: Google Drive" not in out and "failed: " in out
    assert sources.hosts("HEAD")[0] == HUB and sources.hosts()[-1] == CDN and sources.secrets == []
    assert json.loads((cache / "cut3r_512.json").read_text())["source"] == "Hugging Face"
    assert files(cache) == ["cut3r_512.json", "cut3r_512.safetensors"]


def test_files_that_differ_are_refused_with_their_hash(sources, cache, tiny_is_public, weights_command):
    right = hashlib.sha256(tiny_is_public).hexdigest()
    sources.drive, sources.hub = (tiny_is_public[:-1] + last for last in (b"d", b"h"))
    sources.etag = right  # the mirror reports the right hash, but has another content
    status, _, error = weights_command(*FETCH)
    assert status == 2 and error.count("\n") == 1
    for content in (sources.drive, sources.hub):
        assert f"is {hashlib.sha256(content).hexdigest()}, expected {right}" in error
    assert files(cache) == []
    sources.requests.clear()
    sources.etag = ""
    assert hashlib.sha256(sources.hub).hexdigest() in weights_command(*FETCH)[2]
    assert CDN not in sources.hosts()  # refused before the download
    assert files(cache) == []


@pytest.mark.parametrize("change", [b"", b"more"])
def test_files_of_another_size_are_not_downloaded(sources, cache, tiny_is_public, weights_command, change):
    sources.drive = sources.hub = tiny_is_public + change if change else tiny_is_public[:-1]
    status, _, error = weights_command(*FETCH)
    assert status == 2 and error.count(f"has {len(sources.drive)} bytes, expected {len(tiny_is_public)}") == 2
    assert files(cache) == [] and CDN not in sources.hosts()


def test_a_cut_download_is_continued(sources, cache, tiny_is_public, weights_command):
    half = len(tiny_is_public) // 2
    sources.cut, sources.hub = half, None
    status, _, error = weights_command(*FETCH)
    assert status == 2 and "continues incomplete downloads" in error
    (partial,) = (cache / "partial").glob("*.part")
    arrived = partial.read_bytes()
    assert tiny_is_public[:half].startswith(arrived) and len(arrived) > half / 2
    assert files(cache) == [partial.name]
    assert f"incomplete, {size_text(len(arrived))}" in weights_command("list")[1]
    sources.cut = None
    assert weights_command(*FETCH)[0] == 0
    assert sources.ranges() == [f"bytes={len(arrived)}-"]
    assert files(cache) == ["cut3r_512.json", "cut3r_512.safetensors"]


def test_a_cut_download_from_the_mirror_is_continued(sources, cache, tiny_is_public, weights_command):
    """After a cut connection, and from a file that an earlier process has left."""
    half = len(tiny_is_public) // 2
    sources.drive = None
    sources.cut = half

    def repair() -> None:
        sources.sent.wait(60)
        sources.cut = None

    threading.Thread(target=repair, daemon=True).start()
    # Versions of the library before 1.0 leave the rest to the next call.
    assert weights_command(*FETCH)[0] == 0 or weights_command(*FETCH)[0] == 0
    (text,) = sources.ranges()
    assert half / 2 < int(text.removeprefix("bytes=").rstrip("-")) <= half
    assert weights_command("remove", "cut3r_512")[0] == 0
    sources.requests.clear()
    (cache / "partial" / "cut3r_512-mirror.pth").write_bytes(tiny_is_public[: half + 1])
    assert weights_command(*FETCH)[0] == 0 and sources.ranges() == [f"bytes={half + 1}-"]


@pytest.mark.parametrize("partial", ["cut3r_512-drive.pthabcd1234.part", "cut3r_512-mirror.pth"])
@pytest.mark.parametrize("extra", [b"", b"more"])
def test_downloads_that_were_complete_but_not_verified(
    sources, cache, tiny_is_public, weights_command, partial, extra
):
    """A process ended between the last byte and the check."""
    (cache / "partial").mkdir(parents=True)
    (cache / "partial" / partial).write_bytes(tiny_is_public + extra)
    if "mirror" in partial:
        sources.drive = None
    else:
        sources.hub = None
    assert weights_command(*FETCH)[0] == 0
    assert files(cache) == ["cut3r_512.json", "cut3r_512.safetensors"]


def test_no_space(sources, cache, tiny_is_public, weights_command, monkeypatch):
    free = int(1.5 * len(tiny_is_public))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    status, _, error = weights_command(*FETCH)
    assert status == 2 and error.count("\n") == 1
    assert f"{cache} has {size_text(free)} free, cut3r_512 needs" in error and "RAYMAP3R_HOME" in error
    assert sources.requests == [] and files(cache) == []
    (cache / "partial" / "cut3r_512-mirror.pth").write_bytes(tiny_is_public[: len(tiny_is_public) // 10])
    assert weights_command(*FETCH)[0] == 0  # what has arrived needs no more space


def test_a_disk_that_fills_up_is_not_an_error_of_the_source(sources, cache, tiny_is_public, weights_command):
    """A limit of the size of files, which fails in the same call as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(tiny_is_public) // 2, before[1]))
    try:
        status, _, error = weights_command(*FETCH)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2 and f"cannot write to {cache / 'partial'}: File too large" in error
    assert HUB not in sources.hosts("HEAD")
    assert weights_command(*FETCH)[0] == 0 and len(sources.ranges()) == 1


@pytest.mark.parametrize("typed", [None, b"no\n", b"y\n", b"\n"])
def test_without_acceptance_nothing_is_downloaded(sources, cache, weights_command, monkeypatch, typed):
    with typed_input(typed) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        status, out, error = weights_command("fetch", "cut3r_512")
    assert status == 2 and "--accept-license" in error and "CC BY-NC-SA 4.0" in out
    assert sources.requests == [] and not cache.exists()


def test_a_typed_yes_is_recorded(sources, cache, weights_command, monkeypatch):
    with typed_input(b"yes\n") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert weights_command("fetch", "cut3r_512")[0] == 0
    assert json.loads((cache / "cut3r_512.json").read_text())["accepted"]["how"] == "typed yes"


@contextlib.contextmanager
def typed_input(text: bytes | None) -> Iterator[object]:
    """Standard input from a terminal on which `text` was typed, or from an empty file."""
    if text is None:
        with open(os.devnull) as empty:
            yield empty
        return
    keyboard, terminal = os.openpty()
    os.write(keyboard, text)
    with open(terminal) as stdin:
        yield stdin
    os.close(keyboard)


@contextlib.contextmanager
def without_permission(folder: Path) -> Iterator[None]:
    """No file in `folder` can be written. root, who needs no permission, becomes another user."""
    user = os.geteuid()
    folder.parent.chmod(0o755)
    folder.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


def test_a_read_only_cache(sources, weights_command, monkeypatch):
    with tempfile.TemporaryDirectory() as home:  # outside pytest's folder, which other users cannot enter
        monkeypatch.setenv("RAYMAP3R_HOME", home)
        folder = Path(home) / "weights"
        folder.mkdir()
        with without_permission(folder):
            status, _, error = weights_command(*FETCH)
        assert status == 2 and error.count("\n") == 1
        assert f"the cache {folder} cannot be written: Permission denied; set RAYMAP3R_HOME" in error
        assert sources.requests == []
        assert weights_command(*FETCH)[0] == 0
        with without_permission(folder):
            assert load_network("cut3r_512").trained
            assert weights_command("verify")[0] == 0


CHILD = """
import dataclasses, huggingface_hub.constants, sys
from raymap3r_ros import cli
from raymap3r_ros.network import PRESETS, NetworkConfig
from raymap3r_ros.network.catalog import PUBLIC_WEIGHTS
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1000
PRESETS["cut3r_512_dpt"] = NetworkConfig(**{config})
PUBLIC_WEIGHTS["cut3r_512"] = dataclasses.replace(PUBLIC_WEIGHTS["cut3r_512"], bytes={bytes}, sha256="{sha256}")
sys.exit(cli.main(["weights", "fetch", "cut3r_512", "--accept-license"]))
"""


def test_two_fetches_at_once_and_a_killed_one(sources, cache, tiny_is_public, weights_command):
    """The second process is refused. When the first one is killed, the next one continues its download."""
    weights, config = PUBLIC_WEIGHTS["cut3r_512"], PRESETS["cut3r_512_dpt"].to_dict()
    code = CHILD.format(config=config, bytes=weights.bytes, sha256=weights.sha256)
    half = len(tiny_is_public) // 2
    sources.drive, sources.cut, sources.hold = None, half, threading.Event()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as child:
        assert sources.sent.wait(60)
        status, _, error = weights_command(*FETCH)
        child.send_signal(signal.SIGKILL)
    assert status == 2 and "cut3r_512.safetensors: another process is writing this file" in error
    sources.cut = None
    sources.hold.set()
    partial = cache / "partial" / "cut3r_512-mirror.pth"
    arrived = partial.stat().st_size if partial.exists() else 0
    sources.requests.clear()
    assert weights_command(*FETCH)[0] == 0
    assert sources.ranges() == ([f"bytes={arrived}-"] if arrived else [])
    assert files(cache) == ["cut3r_512.json", "cut3r_512.safetensors"]


@pytest.mark.parametrize("library", ["gdown", "huggingface_hub"])
def test_missing_libraries(tiny_is_public, cache, weights_command, monkeypatch, tmp_path, library):
    monkeypatch.setitem(sys.modules, library, None)
    status, _, error = weights_command(*FETCH)
    assert status == 2 and error.count("\n") == 1
    assert "is not installed" in error and "pip install '.[weights]'" in error
    file = tmp_path / "mine.pth"
    file.write_bytes(tiny_is_public)
    assert weights_command("import", file)[0] == 0  # needs no library


def test_a_kept_original_is_converted_again_without_a_download(sources, cache, weights_command):
    assert weights_command(*FETCH, "--keep-original")[0] == 0
    (cache / "cut3r_512.safetensors").unlink()
    sources.requests.clear()
    assert weights_command(*FETCH, "--keep-original")[0] == 0 and sources.requests == []
    (cache / "cut3r_512.safetensors").unlink()
    (cache / "cut3r_512.pth").write_bytes(b"damaged")
    status, out, _ = weights_command(*FETCH)
    assert status == 0 and "has 7 bytes" in out and sources.hosts() == [DRIVE, CONTENT]
    assert files(cache) == ["cut3r_512.json", "cut3r_512.safetensors"]


def test_what_cannot_be_fetched(cache, weights_command):
    status, _, error = weights_command("fetch", "one_room", "--accept-license")
    assert status == 2 and "'one_room'; weights that can be fetched: cut3r_512" in error
    status, _, error = weights_command("fetch", "cut3r_224", "--accept-license")
    assert status == 2 and "cut3r_224 is not supported: its linear heads differ" in error
