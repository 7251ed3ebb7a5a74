"""Untrusted weights, images and bags: no code runs, memory is bounded, and the error is one of the package."""

import array
import json
import pickle
import resource
import shutil
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage

from raymap3r_ros.errors import CheckpointError, InputError
from raymap3r_ros.io import open_recording
from raymap3r_ros.network import load_network
from raymap3r_ros.network.config import LIMITS, PRESETS
from raymap3r_ros.node import conversions

sys.path.insert(0, str(Path(__file__).parents[1] / "io"))
from encoded_images import BOMBS, jpeg_bomb, png_bomb
from PIL import Image

FORMAT = "raymap3r-1"


# ------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused_before_it_is_decoded(data, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was decoded"))
    message = CompressedImage(format="png", data=array.array("B", data))
    with pytest.raises(InputError, match=r"larger than any camera's|cannot be decoded"):
        conversions.image_array(message)


def test_bomb_with_its_true_size_is_decoded():
    """Only the header makes the image a bomb: with a plausible size, the same bytes are decoded."""
    decoded = conversions.image_array(CompressedImage(data=array.array("B", jpeg_bomb(16, 16))))
    assert decoded.shape == (16, 16, 3)


@pytest.mark.parametrize("suffix", [".tiff", ".webp", ".bmp", ".ppm"])
def test_other_image_formats_are_not_decoded(suffix):
    data = cv2.imencode(suffix, np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    with pytest.raises(InputError, match="cannot be decoded as jpeg or png"):
        conversions.image_array(CompressedImage(format="jpeg", data=array.array("B", data)))


def test_postscript_is_not_passed_to_ghostscript(tmp_path):
    """Pillow would start an external program for it."""
    (tmp_path / "frame.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run\n%%EOF\n"
    )
    with pytest.raises(InputError, match="no frame could be read"):
        list(open_recording(tmp_path))


def test_folder_of_bombs_has_no_readable_frame(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bomb(50_000, 50_000))
    (tmp_path / "b.png").write_bytes(png_bomb(50_000, 50_000))
    tracemalloc.start()
    with pytest.raises(InputError, match="no frame could be read"):
        list(open_recording(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


# ------------------------------------------------------------------------------------------------------------ weights


def native(path, config, tensors=None):
    metadata = {"format": FORMAT, "config": config if isinstance(config, str) else json.dumps(config)}
    safetensors.torch.save_file(tensors or {"a": torch.zeros(1)}, path, metadata)
    return path


# Just outside the range of each number.
BEYOND = [(name, value) for name, (low, high) in LIMITS.items() for value in (low * 0.9, low - 1, high * 2)]


def changed(**values):
    return {**PRESETS["mini"].to_dict(), **values}


@pytest.mark.parametrize(
    "config",
    [
        *(changed(**{name: [value] * 4 if name == "dpt_level_widths" else value}) for name, value in BEYOND),
        changed(image_size=16_384),
        changed(image_size=1024, patch_size=4),
        changed(head_type=[]),
        changed(stem={}),
        changed(encoder_depth=10**9),
        changed(encoder_width=2**40),
        changed(state_tokens=2**62),
        changed(mlp_ratio=10**12),
        changed(image_size=-64),
        changed(patch_size=0),
        changed(encoder_depth="x"),
        changed(encoder_depth=2.5),
        changed(encoder_depth=None),
        changed(norm_eps="small"),
        changed(norm_eps=float("nan")),
        changed(dpt_level_widths=[16] * 1000),
        changed(dpt_level_widths=[16, 16, 32, 10**9]),
        changed(dpt_level_widths=7),
        "[" * 100_000,
        "null",
        "[]",
        '"text"',
        "{",
    ],
)
def test_unbounded_configuration_is_refused(tmp_path, config):
    with pytest.raises(CheckpointError, match="no usable network configuration"):
        load_network(native(tmp_path / "w.safetensors", config))


def test_the_largest_configuration_takes_little_memory_without_its_weights(tmp_path):
    largest = {
        name: type(PRESETS["mini"].to_dict()[name])([high] * 4) if name == "dpt_level_widths" else high
        for name, (_, high) in LIMITS.items()
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="missing"):
        load_network(native(tmp_path / "w.safetensors", changed(**largest)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_large_file_of_another_network_is_not_read(tmp_path):
    path = native(tmp_path / "w.safetensors", changed(), {"a": torch.zeros(50_000_000, dtype=torch.uint8)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="1 unexpected: a"):
        load_network(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KiB; as float32 it is 200,000


def with_header(header, data=bytes(16)):
    """A safetensors file with this header: text, or what JSON makes of it."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def float32(start, end, count):
    return {"dtype": "F32", "shape": [count], "data_offsets": [start, end]}


OURS = {"__metadata__": {"format": FORMAT, "config": json.dumps(PRESETS["mini"].to_dict())}}
HOSTILE = {
    "nested objects": with_header(b'{"a":' * 200_000),
    "nested lists": with_header(b'{"__metadata__":{},"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "not UTF-8": with_header(b'{"__metadata__":{"format":"\xff\xfe"}}'),
    "a surrogate": with_header(b'{"\\ud800":{}}'),
    "equal offsets": with_header({**OURS, "a": float32(0, 8, 2), "b": float32(0, 8, 2)}),
    "overlapping offsets": with_header({**OURS, "a": float32(0, 8, 2), "b": float32(4, 12, 2)}),
    "falling offsets": with_header({**OURS, "a": float32(8, 0, 2)}),
    "a negative offset": with_header({**OURS, "a": float32(-8, 0, 2)}),
    "an end beyond the file": with_header({**OURS, "a": float32(0, 2**60, 2**58)}),
    "an impossible size": with_header({**OURS, "a": float32(0, 16, 2**63)}),
    "an infinite size": with_header(b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}'),
    "an unknown type": with_header({**OURS, "a": {**float32(0, 4, 1), "dtype": "\x1b[31m\n"}}),
    "numbers as metadata": with_header({"__metadata__": {"format": 1}}),
    "metadata twice": with_header(b'{"__metadata__":{},"__metadata__":{}}'),
    "names with escape sequences": with_header({**OURS, "\x1b[31m\nfake" * 10_000: float32(0, 16, 4)}),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_safetensors_file_is_one_error(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_network(path)
    text = str(caught.value)
    assert str(path) in text and text.isprintable() and len(text) < 20_000


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**29))
        file.truncate(2**29 + 16)  # sparse
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_network(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.parametrize("length", [2**63, 2**32, 10**9, 101 * 2**20])
def test_safetensors_header_with_a_false_length(tmp_path, length):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a":1}')
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_network(path)


@pytest.mark.parametrize("name", ["data.pkl", "data/0"])
def test_zip_bomb_in_a_public_checkpoint(tmp_path, name):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps({}, 2) if name != "data.pkl" else bytes(2**24))
        archive.writestr("bomb/data/0", bytes(2**24) if name == "data/0" else b"")
    assert path.stat().st_size < 2**16
    with pytest.raises(CheckpointError, match=r"bomb\.pth.* compressed"):
        load_network(path)


def test_very_long_pickle_is_not_parsed(tmp_path):
    path = tmp_path / "long.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("long/data.pkl", bytes(2**26 + 1))
    with pytest.raises(CheckpointError, match="is 67108865 bytes long"):
        load_network(path)


def test_pickle_that_allocates_memory(tmp_path):
    """A call of bytearray with a huge length allocates memory without any unsafe import."""
    program = b"\x80\x02c__builtin__\nbytearray\n" + b"\x8a\x06" + (2**45).to_bytes(6, "little") + b"\x85R."
    path = tmp_path / "greedy.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("greedy/data.pkl", program)
        archive.writestr("greedy/version", "3\n")
        archive.writestr("greedy/byteorder", "little")
    with pytest.raises(CheckpointError, match=r"greedy\.pth"):
        load_network(path)


# --------------------------------------------------------------------------------------------------------------- bags


def make_bag(folder, storage, frames=4):
    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    header = types["std_msgs/msg/Header"]
    time = types["builtin_interfaces/msg/Time"]
    picture = np.resize(np.uint8([90, 150]), (24, 32, 3))
    with Writer(folder, version=9, storage_plugin=storage) as writer:
        images = writer.add_connection("/image", "sensor_msgs/msg/Image", typestore=store)
        infos = writer.add_connection("/camera_info", "sensor_msgs/msg/CameraInfo", typestore=store)
        roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        for index in range(frames):
            head = header(time(1 + index, 0), "camera")
            message = types["sensor_msgs/msg/Image"](head, 24, 32, "rgb8", 0, 96, picture.reshape(-1))
            writer.write(images, index * 10**9, store.serialize_cdr(message, "sensor_msgs/msg/Image"))
            k = np.array([30.0, 0, 15.5, 0, 30, 11.5, 0, 0, 1])
            message = types["sensor_msgs/msg/CameraInfo"](
                head, 24, 32, "plumb_bob", np.zeros(5), k, np.eye(3).ravel(), np.zeros(12), 0, 0, roi
            )
            writer.write(infos, index * 10**9, store.serialize_cdr(message, "sensor_msgs/msg/CameraInfo"))
    return folder


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_damaged_bags(tmp_path, rng, sized, storage):
    """Bytes changed or cut off anywhere: the result is frames or an InputError, nothing else."""
    valid = make_bag(tmp_path / "valid", storage)
    assert len(list(open_recording(valid))) == 4
    outcomes = set()
    for turn in range(sized(20, 2000)):
        bag = tmp_path / "damaged"
        shutil.copytree(valid, bag)
        (file,) = (path for path in bag.iterdir() if path.suffix in (".mcap", ".db3"))
        target = bag / "metadata.yaml" if turn % 4 == 3 else file
        data = bytearray(target.read_bytes())
        if turn % 4 == 2:
            data = data[: rng.integers(len(data))]
        for position in rng.integers(0, max(len(data), 1), 1 + turn % 20):
            if position < len(data):
                data[position] = rng.integers(256)
        target.write_bytes(bytes(data))
        if turn % 4 != 3 and turn % 8 < 4:
            (bag / "metadata.yaml").unlink()
        try:
            frames = list(open_recording(bag))
            assert all(frame.image.ndim == 3 for frame in frames)
            outcomes.add("frames")
        except InputError:
            outcomes.add("refused")
        shutil.rmtree(bag)
    assert outcomes == {"frames", "refused"}


def test_bag_cannot_refer_to_files_outside_its_folder(tmp_path):
    make_bag(tmp_path / "private", StoragePlugin.SQLITE3)
    make_bag(tmp_path / "bag", StoragePlugin.SQLITE3)
    metadata = tmp_path / "bag" / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("bag.db3", "../private/private.db3"))
    with pytest.raises(InputError, match=r"cannot be read as a ROS 2 bag.*bag/private\.db3"):
        open_recording(tmp_path / "bag")
