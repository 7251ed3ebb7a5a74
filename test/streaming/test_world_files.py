"""Worlds in files: a later stream finds its camera in one, and files that cannot be used are refused."""

import copy
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import test_returns as returns
import wall
from batching_tools import frames

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.network import Network, untrained_network
from raymap3r_ros.streaming import METHOD, Stream, StreamOptions, WorldChange, world_files
from raymap3r_ros.streaming.stream_options import KeyframeOptions
from raymap3r_ros.streaming.tensors import tensors_of
from raymap3r_ros.streaming.world_files import (
    FORMAT,
    MAX_FILE,
    MAX_HEADER,
    Place,
    SavedWorld,
    in_slots,
    load_world,
    save_world,
)

PLACE = Place(np.diag((-1.0, -1.0, 1.0, 1.0)), 1.5, True, 0.02)


def new_stream(**keyframes) -> Stream:
    options = StreamOptions(smoothing="off", keyframes=KeyframeOptions(**keyframes))
    return Stream(returns.TexturedWall(moving_box=False), options, returns.FINE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world of 60 frames of the wall."""
    stream, path = new_stream(), tmp_path_factory.mktemp("world") / "world.safetensors"
    returns.walk(stream, range(60))
    world = dataclasses.replace(stream.current_world(), place=PLACE)
    assert save_world(path, stream.network, world) == (world.keyframes.number >= 0).sum() > 3
    return path


@pytest.fixture
def network_of_wall() -> wall.WallNetwork:
    return returns.TexturedWall(moving_box=False)


def test_a_name_that_is_not_utf8(saved, network_of_wall, tmp_path):
    path = tmp_path / os.fsdecode(b"B\xfcro/world.safetensors")
    path.parent.mkdir()
    path.write_bytes(saved.read_bytes())
    assert torch.equal(*(load_world(one, network_of_wall).keyframes.number for one in (path, saved)))


def test_a_file_contains_the_used_slots_by_age(saved: Path, network_of_wall: wall.WallNetwork):
    stream = new_stream()
    returns.walk(stream, range(60))
    known = stream.snapshot().keyframes
    world = load_world(saved, network_of_wall)
    order = [slot for slot in known.number[0].argsort().tolist() if known.number[0, slot] >= 0]
    assert world.size == wall.SIZE and world.keyframes.number.diff().amin() > 0
    for field in dataclasses.fields(known):
        value = getattr(known, field.name)[:, order]
        value = value[:, :, order] if field.name == "overlap" else value
        assert torch.equal(value, getattr(world.keyframes, field.name)), field.name
    assert (world.place.world_from_stream == PLACE.world_from_stream).all()
    assert (world.place.scale, world.place.scale_known, world.place.voxel_size) == (1.5, True, 0.02)


def test_a_second_session_continues_the_world(saved: Path):
    stream = new_stream()
    assert stream.add_world(load_world(saved, stream.network)) == 0 and stream.takes_poses
    results = returns.walk(stream, range(30, 50))
    assert [result.world for result in results] == [1] * 6 + [0] * 14
    assert [result.past_worlds for result in results[:6]] == [(0,)] * 5 + [()]
    assert results[6].world_change is WorldChange.RETURNED
    for result in results[6:]:
        np.testing.assert_allclose(result.pose[:3, 3], wall.position(30 + result.frame), atol=2e-3)
    returns.walk(stream, range(50, 120))  # over a reset, and with new keyframes
    known = stream.current_world().keyframes
    assert (
        known.number.shape[1] == 32 and known.number.amax() > load_world(saved, stream.network).keyframes.number[0, -1]
    )


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_stream_with_another_number_of_keyframes_can_continue(saved: Path, size: int):
    stream = new_stream(size=size)
    world = load_world(saved, stream.network)
    stream.add_world(world)
    assert returns.walk(stream, range(30, 40))[-1].world == 0
    stored = world.keyframes.number.shape[1]
    assert stream.current_world().keyframes.number.shape[1] == max(size, stored)
    stream.reset(relocalize=True)  # two worlds whose slots differ
    returns.walk(stream, range(90, 91))
    stream.reset(relocalize=True)
    worlds = {result.world for result in returns.walk(stream, range(30, 60))}
    assert 0 in worlds


def test_without_the_file_the_first_images_start_a_new_world(saved: Path):
    stream = new_stream()
    assert {result.past_worlds for result in returns.walk(stream, range(30, 50))} == {()}


def test_a_snapshot_before_the_first_frame_contains_the_world(saved: Path):
    stream, copied = new_stream(), new_stream()
    stream.add_world(load_world(saved, stream.network))
    copied.restore(stream.snapshot())
    one, other = (returns.walk(each, range(30, 40)) for each in (stream, copied))
    assert one[-1].world == 0
    for result, same in zip(one, other, strict=True):
        assert torch.equal(result.pose, same.pose) and result.world_change is same.world_change


def test_a_reset_forgets_the_world_and_a_pause_does_not(saved: Path):
    for again, worlds in ((False, ()), (True, (0,))):
        stream = new_stream()
        stream.add_world(load_world(saved, stream.network))
        stream.reset(relocalize=again)
        assert returns.walk(stream, range(30, 31))[0].past_worlds == worlds


def test_a_known_pose_ends_the_search(saved: Path):
    stream = new_stream()
    stream.add_world(load_world(saved, stream.network))
    (result,) = returns.walk(stream, range(30, 31), pose=np.eye(4))
    assert result.past_worlds == () and result.healthy


def test_images_of_another_size_drop_the_world_with_one_warning(saved: Path, caplog: pytest.LogCaptureFixture):
    stream = new_stream()
    stream.add_world(load_world(saved, stream.network))
    wide = np.full((32, 64, 3), 30, np.uint8)
    with caplog.at_level(logging.WARNING):
        size = stream.prepare(wide).kept.size
        stream.prepare(wide)
    assert size == (32, 64) and stream.prepare(wide).kept.past == ()
    (record,) = caplog.records
    assert "64x48" in record.getMessage() and "64x32" in record.getMessage()


def test_a_batch_of_cameras_drops_the_world(saved: Path, caplog: pytest.LogCaptureFixture):
    stream = new_stream()
    stream.add_world(load_world(saved, stream.network))
    assert stream.step(np.stack([wall.image(30)] * 2), motion=False).past_worlds == ()
    assert "2 cameras" in caplog.text


def test_a_world_needs_keyframes_and_a_beginning(saved: Path, network_of_wall: wall.WallNetwork):
    world = load_world(saved, network_of_wall)
    for options in ({"size": 0}, {"relocalize": False}):
        with pytest.raises(OptionError, match="keyframes"):
            new_stream(**options).add_world(world)
    stream = new_stream()
    assert stream.current_world() is None
    returns.walk(stream, range(30, 31))
    with pytest.raises(OptionError, match="reset"):
        stream.add_world(world)


def test_a_world_without_keyframes_is_not_written(tmp_path: Path, saved: Path, network_of_wall: wall.WallNetwork):
    world = load_world(saved, network_of_wall)
    empty = dataclasses.replace(world.keyframes, number=world.keyframes.number * 0 - 1)
    with pytest.raises(InputError, match="no keyframes"):
        save_world(tmp_path / "w.safetensors", network_of_wall, SavedWorld(empty, world.size))
    assert not list(tmp_path.iterdir())


def world_of(network: Network) -> SavedWorld:
    stream = Stream(network, StreamOptions(), returns.FINE)
    for image in frames(12, 1):
        stream.step(image)
    return stream.current_world()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_precision_of_the_weights_does_not_matter(network: Network, tmp_path: Path, precision: str):
    path, low = tmp_path / "w.safetensors", copy.deepcopy(network)
    low.lower_precision(precision)
    world = world_of(network)
    save_world(path, network, world)
    for one, other in zip(tensors_of(load_world(path, low)), tensors_of(load_world(path, network)), strict=True):
        assert torch.equal(one, other)
    save_world(path, low, world)
    load_world(path, network)


def test_other_weights_are_refused(network: Network, tmp_path: Path, tiny_config):
    path = tmp_path / "w.safetensors"
    save_world(path, network, world_of(network))
    others = [
        untrained_network(tiny_config, seed=6),
        untrained_network(dataclasses.replace(tiny_config, state_tokens=7), seed=5),
        copy.deepcopy(network),
    ]
    with torch.no_grad():  # trained for one more step
        for value in others[2].parameters():
            value.add_(0.02 * torch.randn_like(value) * value.abs().mean())
    for other in others:
        with pytest.raises(InputError, match="other weights"):
            load_world(path, other)


def changed(saved: Path, target: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a file with other tensors."""
    tensors = safetensors.torch.load_file(saved)
    with safetensors.safe_open(saved, "pt") as file:
        metadata = file.metadata()
    change(tensors)
    safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, target, metadata)
    return target


def put(name: str, *where, value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[name].__setitem__(where or ..., value)


DAMAGE = {
    "a tensor is missing": lambda tensors: tensors.pop("points"),
    "one too many": lambda tensors: tensors.update(more=torch.zeros(3)),
    "no size": lambda tensors: tensors.pop("size"),
    "size of two types": lambda tensors: tensors.update(size=torch.tensor([48.0, 64.0])),
    "another size": lambda tensors: tensors.update(size=torch.tensor([64, 64])),
    "negative size": lambda tensors: tensors.update(size=torch.tensor([-48, -64])),
    "huge size": lambda tensors: tensors.update(size=torch.tensor([2**40, 2**40])),
    "other tokens": lambda tensors: tensors.update(tokens=tensors["tokens"][..., :3]),
    "double precision": lambda tensors: tensors.update(pose=tensors["pose"].double()),
    "a type that is not known": lambda tensors: tensors.update(pose=tensors["pose"].to(torch.float8_e4m3fn)),
    "unequal numbers": lambda tensors: tensors.update(weight=tensors["weight"][:2]),
    "numbers as a matrix": lambda tensors: tensors.update(number=tensors["number"][None]),
    "no keyframes": lambda tensors: tensors.update(number=tensors["number"][:0]),
    "too many keyframes": lambda tensors: tensors.update(number=torch.arange(1001)),
    "a number twice": put("number", 1, value=0),
    "an empty slot": put("number", 0, value=-1),
    "a number that ends": put("number", -1, value=2**63 - 1),
    "token not a number": put("tokens", 0, 0, 0, value=torch.nan),
    "infinite point": put("points", 0, 0, 0, value=torch.inf),
    "far point": put("points", 0, 0, 0, value=1e30),
    "negative weight": put("weight", 0, 0, value=-1.0),
    "overlap above 1": put("overlap", 0, 1, value=1.5),
    "negative overlap": put("overlap", 0, 1, value=-0.5),
    "scaled pose": lambda tensors: tensors["pose"][:, :3, :3].mul_(2),
    "mirrored pose": lambda tensors: tensors["pose"][:, :3, 0].mul_(-1),
    "pose with a last row": put("pose", 0, 3, 0, value=1.0),
    "pose at infinity": put("pose", 0, 0, 3, value=torch.inf),
    "no focal length": put("intrinsics", 0, 0, 0, value=0.0),
    "negative focal length": put("intrinsics", 0, 1, 1, value=-50.0),
    "other intrinsics": put("intrinsics", 0, 2, 2, value=0.0),
    "scale of 0": put("scale", value=0.0),
    "scale not a number": put("scale", value=torch.nan),
    "world mirrored": put("world_from_stream", 0, 0, value=1.0),
    "world not finite": put("world_from_stream", 0, 3, value=torch.nan),
    "negative voxels": put("voxel_size", value=-1.0),
    "weights not numbers": put("weights", value=torch.nan),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_damaged_numbers_are_refused(saved: Path, tmp_path: Path, network_of_wall: wall.WallNetwork, change):
    path = changed(saved, tmp_path / "w.safetensors", change)
    with pytest.raises(InputError, match=r"w\.safetensors"):
        load_world(path, network_of_wall)
    load_world(changed(saved, path, lambda tensors: None), network_of_wall)


def test_files_that_are_no_worlds_are_refused(
    saved: Path, tmp_path: Path, network_of_wall: wall.WallNetwork, monkeypatch: pytest.MonkeyPatch
):
    content = saved.read_bytes()
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"secret": torch.zeros(3)}, weights, {"format": "secret", "key": "secret"})
    os.mkfifo(tmp_path / "pipe")
    header = json.dumps({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(2000)})
    files = {
        "empty": b"",
        "short": content[:5],
        "cut": content[:-8],
        "longer": content + b"x",
        "long_header": len(header).to_bytes(8, "little") + header.encode(),
        "endless_header": (2**63).to_bytes(8, "little") + content[8:],
        "pickle": b"\x80\x02cos\nsystem\n(S'true'\ntR.",
        "text": b"<html>404</html>",
        "version": content.replace(FORMAT.encode(), b"raymap3r-world-9"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    large = tmp_path / "large"
    large.write_bytes(content)
    os.truncate(large, MAX_FILE + 1)  # sparse
    read = safetensors.safe_open
    opened = []
    monkeypatch.setattr(
        safetensors, "safe_open", lambda path, framework: opened.append(Path(path).name) or read(path, framework)
    )
    for name in (*files, "weights.safetensors", "pipe", "large", "missing", ".", ""):
        with pytest.raises(InputError) as error:
            load_world(tmp_path / name, network_of_wall)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value), name
        assert "secret" not in str(error.value) and ("raymap3r-world-9" in str(error.value)) == (name == "version")
    assert len(header) > MAX_HEADER
    assert set(opened).isdisjoint({"large", "long_header", "endless_header", "pipe"})  # never given to a reader
    assert {"cut", "version"} <= set(opened)


def test_a_world_that_is_too_large_to_be_read_is_not_written(
    saved: Path, tmp_path: Path, network_of_wall: wall.WallNetwork, monkeypatch: pytest.MonkeyPatch
):
    world = load_world(saved, network_of_wall)
    monkeypatch.setattr(world_files, "MAX_FILE", 1000)
    with pytest.raises(InputError, match="keyframes take"):
        save_world(tmp_path / "w.safetensors", network_of_wall, world)
    assert not list(tmp_path.iterdir())


def test_slots_are_added_behind_the_stored_ones(saved: Path, network_of_wall: wall.WallNetwork):
    keyframes = load_world(saved, network_of_wall).keyframes
    count = keyframes.number.shape[1]
    wide = in_slots(keyframes, count + 5)
    assert wide.number[0].tolist() == keyframes.number[0].tolist() + [-1] * 5
    assert torch.equal(wide.overlap[:, :count, :count], keyframes.overlap) and not wide.overlap[:, count:].any()
    assert torch.equal(wide.tokens[:, :count], keyframes.tokens) and in_slots(keyframes, 1) is keyframes
    assert torch.equal(wide.pose[0, -1], torch.eye(4)) and wide.pose.shape[1] == count + 5
    assert METHOD.relocalised_keyframes < count
