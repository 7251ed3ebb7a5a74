"""Streams that are interrupted: a search in earlier worlds, the return to them, and where they continue."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import wall
from batching_tools import frames

from raymap3r_ros.network import Network
from raymap3r_ros.streaming import METHOD, Stream, StreamOptions, WorldChange
from raymap3r_ros.streaming.stream_options import KeyframeOptions
from raymap3r_ros.streaming.tensors import tensors_of

FINE = dataclasses.replace(METHOD, keyframe_overlap=0.99)  # the camera moves little
NEVER = dataclasses.replace(FINE, relocalised_visible=1.1)
OPTIONS = StreamOptions(keyframes=KeyframeOptions(size=8))


class TexturedWall(wall.WallNetwork):
    """The image tokens show a texture of the wall, besides the number of the frame."""

    def encode_image(self, planes: Tensor) -> Tensor:
        tokens = super().encode_image(planes).clone()
        centre = torch.stack([torch.from_numpy(wall.position(int(frame))) for frame in tokens[:, 0, 0]])
        column, row = torch.arange(12) % 4 * 16 + 8 - 32, torch.arange(12) // 4 * 16 + 8 - 24
        depth = wall.WALL - centre[:, 2:]
        across, down = centre[:, :1] + column / wall.FOCAL * depth, centre[:, 1:2] + row / wall.FOCAL * depth
        waves = [(2 * across).sin(), (2 * across).cos(), (2 * down).sin(), (2 * down).cos()]
        tokens[..., 1:5] = 100 * torch.stack(waves, dim=-1)
        return tokens


def walk(stream: Stream, indices: range, **given) -> list:
    """Results for frames of the wall."""
    return [stream.step(wall.image(index), motion=False, **given) for index in indices]


def interrupted(method=FINE) -> Stream:
    """A stream of 60 frames of the wall after an interruption."""
    stream = Stream(TexturedWall(moving_box=False), StreamOptions(smoothing="off"), method)
    walk(stream, range(60))
    stream.reset(relocalize=True)
    return stream


def test_the_camera_is_found_where_it_is_in_the_world_before():
    stream = interrupted()
    lost, back = [], []
    for result in walk(stream, range(30, 50)):
        (lost if result.world == 1 else back).append(result)
    assert [result.world_change for result in lost] == [WorldChange.NEW] + [WorldChange.NONE] * 5
    assert [result.past_worlds for result in lost] == [(0,)] * 5 + [()]
    assert lost[-1].reset_reason == "found" and {result.world for result in back} == {0}
    assert [result.world_change for result in back] == [WorldChange.RETURNED] + [WorldChange.NONE] * 13
    for result in back:  # the memory is a new one, and its metres are others
        np.testing.assert_allclose(result.pose[:3, 3], wall.position(30 + result.frame), atol=2e-3)
        np.testing.assert_allclose(result.pose[:3, :3], np.eye(3), atol=2e-3)
    assert lost[0].segment == 0 and back[0].segment == 1


def test_the_world_goes_on_with_its_keyframes_and_can_be_left_again():
    stream = interrupted()
    walk(stream, range(30, 50))
    known = stream.snapshot().keyframes
    assert (known.number >= 0).sum() > 1
    walk(stream, range(50, 120))  # over a reset at the frame 100 of this stretch
    stream.reset(relocalize=True)
    results = walk(stream, range(70, 84))
    assert results[0].world == 2 and results[0].past_worlds == (0,)
    assert results[-1].world == 0
    np.testing.assert_allclose(results[-1].pose[:3, 3], wall.position(83), atol=5e-3)


def test_a_world_in_which_the_camera_is_not_found_stays_new(monkeypatch: pytest.MonkeyPatch):
    """The search is repeated ever more rarely, and never makes the decoder run more than two more times in a frame."""
    stream, alone, counts = interrupted(NEVER), interrupted(NEVER), []
    alone.reset()
    for one in (stream, alone):
        decode, calls = one.network.decode, []
        one.network.decode = lambda *given, decode=decode, calls=calls, **named: (
            calls.append(len(calls)) or decode(*given, **named)
        )
        counts.append([])
        for index in range(80):
            before = len(calls)
            (result,) = walk(one, range(index, index + 1))
            assert result.world == 1 and result.past_worlds == ((0,) if one is stream else ())
            counts[-1].append(len(calls) - before)
    searched = np.subtract(*counts)[:78].reshape(13, 6).tolist()
    attempt = [2, 2, 2, 2, 1, 0]  # 4 keyframes twice, and a look that is refused
    assert searched == [attempt if number in (0, 1, 2, 4, 8) else [0] * 6 for number in range(13)]


@pytest.mark.parametrize(
    "stop",
    [
        lambda stream: stream.reset(),
        lambda stream: (
            setattr(
                stream, "options", dataclasses.replace(stream.options, keyframes=KeyframeOptions(relocalize=False))
            ),
            stream.reset(relocalize=True),
        ),
        lambda stream: (
            setattr(stream, "options", dataclasses.replace(stream.options, keyframes=KeyframeOptions(size=0))),
            stream.reset(relocalize=True),
        ),
    ],
    ids=["a plain reset", "not wanted", "no keyframes"],
)
def test_nothing_is_searched_for(stop):
    stream = interrupted()
    walk(stream, range(30, 60))
    stop(stream)
    results = walk(stream, range(30, 50))
    assert {(result.world, result.past_worlds) for result in results} == {(2, ())}


def test_a_known_pose_ends_the_search():
    stream = interrupted()
    assert stream.takes_poses
    results = walk(stream, range(30, 31), pose=np.eye(4)) + walk(stream, range(31, 50))
    assert {(result.world, result.past_worlds) for result in results} == {(1, ())}


def test_a_world_of_given_poses_stays_their_frame():
    turned = np.diag([-1.0, 1, -1, 1])  # the frame of the given poses
    stream = Stream(TexturedWall(moving_box=False), StreamOptions(smoothing="off"), FINE)
    walk(stream, range(1), pose=turned)
    walk(stream, range(1, 60))
    stream.reset(relocalize=True)
    results = walk(stream, range(30, 40))
    assert results[-1].world == 0 and stream.takes_poses
    np.testing.assert_allclose(results[-1].pose[:3, 3], turned[:3, :3] @ wall.position(39), atol=5e-3)


def test_images_of_another_size_end_the_search():
    stream = interrupted()
    walk(stream, range(30, 33))
    image = np.repeat(np.repeat(wall.image(33), 2, axis=0), 2, axis=1)
    result = stream.step(image, motion=False)
    assert (result.world, result.past_worlds, result.reset_reason) == (2, (), "size")


def test_the_number_of_worlds_is_bounded():
    stream = interrupted(NEVER)
    for _ in range(5):
        walk(stream, range(METHOD.warmup_frames + 1))
        stream.reset(relocalize=True)
    (result,) = walk(stream, range(1))
    assert (result.world, result.past_worlds) == (6, (3, 4, 5))


def test_a_batch_of_cameras_starts_new_worlds():
    stream = Stream(wall.WallNetwork(moving_box=False), OPTIONS)
    for index in range(20):
        stream.step(np.stack([wall.image(index)] * 2), motion=False)
    stream.reset(relocalize=True)
    assert stream.step(np.stack([wall.image(10)] * 2), motion=False).past_worlds == ()


def test_a_stream_continues_bit_for_bit_from_a_snapshot_within_a_search(network: Network):
    images = frames(60, 1)
    eager = dataclasses.replace(
        METHOD,
        relocalised_likeness=-1.0,
        relocalised_visible=0.0,
        relocalised_depth=0.0,
        relocalised_appearance=-1.0,
    )
    stream, copy = (Stream(network, OPTIONS, eager) for _ in range(2))
    for image in images[:30]:
        stream.step(image)
    stream.reset(relocalize=True)
    snapshots = [stream.snapshot()]
    for image in images[30:33]:
        stream.step(image)
    snapshots.append(stream.snapshot())
    assert snapshots[0].search is None and 0 < snapshots[1].search.rehearsal.step < 8
    expected = [stream.step(image) for image in images[33:]]
    assert WorldChange.RETURNED in {result.world_change for result in expected}
    for index, snapshot in zip((30, 33), snapshots, strict=True):
        copy.restore(snapshot)
        results = [copy.step(image) for image in images[index:]][33 - index :]
        for one, other in zip(results, expected, strict=True):
            assert torch.equal(one.pose, other.pose) and torch.equal(one.depth, other.depth)
            assert (one.world, one.world_change) == (other.world, other.world_change)


def test_worlds_take_constant_memory(network: Network):
    stream, held = Stream(network, OPTIONS, NEVER), []
    for _ in range(6):
        for image in frames(12, 2):
            stream.step(image)
        stream.reset(relocalize=True)
        held.append(sum(tensor.numel() for tensor in tensors_of(stream.snapshot())))
    assert held[3] == held[4] == held[5]
