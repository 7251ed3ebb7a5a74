"""`raymap3r weights`: import, list, verify, path and remove; names in place of files."""

import dataclasses
import hashlib
import json
import os
import re

import pytest
import torch

from raymap3r_ros.errors import CheckpointError
from raymap3r_ros.network import PRESETS, load_network, save_network, untrained_network
from raymap3r_ros.network.catalog import PUBLIC_WEIGHTS, cache_folder, cached_weights, named_weights
from raymap3r_ros.network.checkpoint import checkpoint_path, public_shapes

ALL = (".json", ".safetensors")


@pytest.fixture
def public(tiny_is_public: bytes, tmp_path):
    """The public file under a name of the user's."""
    path = tmp_path / "my download.pth"
    path.write_bytes(tiny_is_public)
    return path


def stored(cache) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_public_file_gets_its_name(public, cache, weights_command, tiny_is_public):
    status, out, _ = weights_command("import", public)
    assert status == 0 and f"cut3r_512: {cache / 'cut3r_512.safetensors'}" in out and "NonCommercial" in out
    record = json.loads((cache / "cut3r_512.json").read_text())
    assert record["accepted"] is None and record["source"] == "imported"
    assert record["original"]["sha256"] == hashlib.sha256(tiny_is_public).hexdigest()
    assert public.read_bytes() == tiny_is_public and stored(cache) == ["cut3r_512.json", "cut3r_512.safetensors"]
    assert load_network("cut3r_512").source.startswith("cut3r_512: public CUT3R weights, CC BY-NC-SA 4.0")
    error = weights_command("import", public)[2]
    assert "cut3r_512 is in the cache already" in error and "raymap3r weights remove cut3r_512" in error


def test_other_files_are_read_strictly(cache, tiny_is_public, weights_command, tmp_path, monkeypatch):
    path = tmp_path / "my-lab.pth"
    tensors = {key: torch.zeros(shape) for key, shape in public_shapes(PRESETS["cut3r_512_dpt"]).items()}
    torch.save({"model": tensors}, path)
    assert weights_command("import", path)[0] == 0
    assert load_network("my-lab").source == "my-lab: imported from my-lab.pth"
    assert weights_command("import", path, "--name", "second")[0] == 0
    assert sorted(cached_weights()) == ["my-lab", "second"]
    del tensors["enc_norm.bias"]
    torch.save({"model": tensors}, path)
    status, _, error = weights_command("import", path, "--name", "third")
    assert status == 2 and "1 missing: enc_norm.bias" in error
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, path)
    status, _, error = weights_command("import", path, "--name", "third")
    assert status == 2 and "refused" in error and not (tmp_path / "canary").exists()
    assert stored(cache) == sorted(name + suffix for name in ("my-lab", "second") for suffix in ALL)


class Evil:
    """Creates a file when it is loaded by pickle."""

    def __reduce__(self):
        return os.system, ("touch canary",)


def test_a_file_of_this_package_keeps_its_description(cache, weights_command, tmp_path):
    path = tmp_path / "lab.safetensors"
    network = untrained_network(PRESETS["mini"], seed=3)
    save_network(network, path, manifest={"about": "trained in the lab"})
    assert weights_command("import", path)[0] == 0
    loaded = load_network("lab")
    assert loaded.source == "lab: trained in the lab"
    for key, tensor in network.state_dict().items():
        assert torch.allclose(loaded.state_dict()[key], tensor, rtol=1e-3, atol=1e-7), key


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mini", "mini is a name of this package"),
        ("one_room", "one_room is a name of this package"),
        ("cut3r_512", r"cut3r_512 is the name of cut3r_512_dpt_4_64\.pth; .* differs from it"),
        ("../outside", r"'\.\./outside' cannot be a name"),
        ("a.b", r"'a\.b' cannot be a name"),
        ("x" * 65, "cannot be a name"),
    ],
)
def test_names_that_are_not_allowed(cache, weights_command, tmp_path, name, message):
    path = tmp_path / "lab.safetensors"
    save_network(untrained_network(PRESETS["mini"]), path)
    status, _, error = weights_command("import", path, "--name", name)
    assert status == 2 and re.search(message, error) and stored(cache) == []


def test_the_known_file_that_is_not_supported(cache, weights_command, tmp_path, monkeypatch):
    path = tmp_path / "cut3r_224_linear_4.pth"
    path.write_bytes(b"in place of the public file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLIC_WEIGHTS, "cut3r_224", dataclasses.replace(PUBLIC_WEIGHTS["cut3r_224"], sha256=digest))
    status, _, error = weights_command("import", path)
    assert status == 2 and "is cut3r_224, which is not supported: its linear heads differ" in error


@pytest.mark.parametrize("kind", ["missing", "a folder", "a FIFO"])
def test_import_of_what_is_not_a_file(cache, weights_command, tmp_path, kind):
    path = tmp_path / "w.pth"
    if kind != "missing":
        (path.mkdir if kind == "a folder" else lambda: os.mkfifo(path))()
    status, _, error = weights_command("import", path)
    assert status == 2 and f"{path} is {kind}; give the path of" in error


def test_list_shows_what_is_there(public, cache, weights_command, tmp_path):
    lines = weights_command("list")[1].splitlines()
    assert lines[0].split() == ["name", "download", "on", "disk", "licence", "state"]
    assert lines[-1] == f"cache: {cache}" and not cache.exists()
    text = "\n".join(lines)
    assert "part of the package" in text and "not in the cache: raymap3r weights fetch cut3r_512" in text
    assert "not supported, see docs/weights.md" in text
    save_network(untrained_network(PRESETS["mini"]), tmp_path / "lab.safetensors")
    weights_command("import", public), weights_command("import", tmp_path / "lab.safetensors")
    (cache / "copied.safetensors").write_bytes((cache / "lab.safetensors").read_bytes())
    text = weights_command("list")[1]
    assert "in the cache\n" in text
    for name, state in (("lab", "of its author  *imported"), ("copied", "unknown  *without a record")):
        assert any(re.search(rf"^{name} .*{state}", line) for line in text.splitlines()), text


def test_verify_finds_files_that_differ(public, cache, weights_command):
    assert weights_command("verify")[:2] == (0, f"the cache is empty: {cache}\n")
    weights_command("import", public)
    weights_command("import", public, "--name", "other")
    assert weights_command("verify")[1].count("ok ") == 2
    path = cache / "other.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    status, out, _ = weights_command("verify")
    assert status == 1 and f"FAIL  {path}\n      its SHA-256 is {hashlib.sha256(data).hexdigest()}, recorded is" in out
    assert weights_command("verify", "cut3r_512")[0] == 0 and weights_command("verify", "none")[0] == 2
    for text in ("[]", "{", '{"file": 3}', '{"file": {"sha256": 3}}'):
        (cache / "other.json").write_text(text)
        status, out, _ = weights_command("verify", "other")
        assert status == 1 and "other.json is missing or damaged" in out, text


def test_remove(public, cache, weights_command):
    weights_command("import", public)
    (cache / "partial" / "cut3r_512-mirror.pth").write_bytes(b"some")
    assert weights_command("remove", "cut3r_512")[0] == 0 and stored(cache) == []
    for name, message in (
        ("cut3r_512", "cut3r_512 is not in"),
        ("one_room", "part of the package"),
        ("../../my download", "is not in"),
    ):
        status, _, error = weights_command("remove", name)
        assert status == 2 and message in error
    assert public.exists()


def test_names_of_weights(cache, tmp_path, monkeypatch):
    assert named_weights("one_room").name == "one_room.safetensors"
    assert named_weights("weights.pth") is None and named_weights("no_such") is None
    with pytest.raises(CheckpointError, match=r"^checkpoint cut3r_512 is not in .*; fetch it with: raymap3r weights"):
        load_network("cut3r_512")
    with pytest.raises(CheckpointError, match="checkpoint cut3r_224 is not supported"):
        checkpoint_path("cut3r_224")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").write_bytes(b"")
    assert str(checkpoint_path("plain")) == "plain" and str(checkpoint_path("./cut3r_512")) == "cut3r_512"
    cache.mkdir(parents=True)
    (cache / "mini.safetensors").write_bytes(b"")
    assert load_network("mini").source.startswith("preset mini")  # the preset wins


def test_place_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for home, xdg, expected in (
        ("/a/b", "/c", "/a/b/weights"),
        ("~/d", "/c", f"{tmp_path}/d/weights"),
        ("", "/c", "/c/raymap3r_ros/weights"),
        ("", "relative", f"{tmp_path}/.cache/raymap3r_ros/weights"),
        ("", "", f"{tmp_path}/.cache/raymap3r_ros/weights"),
    ):
        monkeypatch.setenv("RAYMAP3R_HOME", home)
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert str(cache_folder()) == expected
    monkeypatch.setenv("RAYMAP3R_HOME", "~no_such_user/x")
    with pytest.raises(CheckpointError, match="Set RAYMAP3R_HOME to a folder"):
        cache_folder()
    assert named_weights("one_room") and named_weights("./x.pth") is None  # without a cache


def test_the_catalog_names_the_published_files():
    sizes = {name: (weights.file, weights.bytes, len(weights.sha256)) for name, weights in PUBLIC_WEIGHTS.items()}
    assert sizes == {
        "cut3r_512": ("cut3r_512_dpt_4_64.pth", 3_173_761_006, 64),
        "cut3r_224": ("cut3r_224_linear_4.pth", 2_994_205_002, 64),
    }
    assert not PUBLIC_WEIGHTS.keys() & PRESETS.keys()
