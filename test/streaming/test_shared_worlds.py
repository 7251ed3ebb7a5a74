"""Streams that search for their cameras in each other's worlds."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import wall
from test_returns import FINE, TexturedWall, walk

from raymap3r_ros.streaming import Stream, StreamOptions, WorldChange
from raymap3r_ros.streaming.state import WorldNumbers
from raymap3r_ros.streaming.stream_options import KeyframeOptions

OPTIONS = StreamOptions(smoothing="off")


def streams(*options: StreamOptions) -> list[Stream]:
    """One for each of the options, with common numbers of their worlds."""
    network, numbers = TexturedWall(moving_box=False), WorldNumbers()
    return [Stream(network, one, FINE, numbers=numbers) for one in options]


def follow(stream: Stream, other: Stream, indices: range) -> list:
    """Results for frames of the wall, of a stream that is given the current world of the other one."""
    results = []
    for index in indices:
        if stream.search_begins:
            stream.share([other.current_world()])
        results += walk(stream, range(index, index + 1))
    return results


def test_the_younger_of_two_streams_enters_the_world_of_the_older_one():
    first, second = streams(OPTIONS, OPTIONS)
    walk(first, range(60))
    assert {result.world for result in walk(second, range(30, 32))} == {1}
    results = follow(second, first, range(32, 52))
    found = next(index for index, result in enumerate(results) if result.world == 0)
    assert results[found].world_change is WorldChange.RETURNED and found <= 10
    for index, result in enumerate(results[found:], 32 + found):  # in the world of the first camera
        np.testing.assert_allclose(result.pose[:3, 3], wall.position(index), atol=2e-3)
    assert {result.world for result in results[found:]} == {0}
    assert not second.share([first.current_world()]), "it is its own world now"


def test_the_older_one_stays_in_its_world():
    first, second, alone = streams(OPTIONS, OPTIONS, OPTIONS)
    walk(first, range(1))
    walk(second, range(60))
    walk(alone, range(1))
    calls, decode = [], first.network.decode
    first.network.decode = lambda *given, **named: calls.append(1) or decode(*given, **named)
    assert {result.world for result in follow(first, second, range(30, 50))} == {0}
    count = len(calls)
    walk(alone, range(30, 50))
    assert len(calls) == 2 * count, "it searches for nothing"
    first.reset()  # its world is the younger one now
    assert follow(first, second, range(30, 50))[-1].world == 1


def test_only_the_given_worlds_are_searched():
    first, second = streams(OPTIONS, OPTIONS)
    walk(first, range(60))
    walk(second, range(30, 36))
    assert second.search_begins and [world.number for world in second.share([first.current_world()])] == [0]
    results = walk(second, range(36, 38))
    assert results[-1].past_worlds == (0,)
    assert second.share([]) == []
    results = walk(second, range(38, 60))
    assert {result.world for result in results} == {1} and {result.past_worlds for result in results} == {()}


def test_a_new_world_forgets_those_of_other_streams_but_not_its_own():
    first, second = streams(OPTIONS, OPTIONS)
    walk(first, range(60))
    walk(second, range(10))
    second.share([first.current_world()])
    second.reset(relocalize=True)
    assert walk(second, range(200, 201))[0].past_worlds == (1,)


@pytest.mark.parametrize("keyframes", [KeyframeOptions(size=0), KeyframeOptions(relocalize=False)])
def test_a_stream_that_does_not_search_shares_nothing(keyframes):
    first, second = streams(OPTIONS, StreamOptions(smoothing="off", keyframes=keyframes))
    walk(first, range(60))
    assert second.share([first.current_world()]) == [], "before the first frame"
    walk(second, range(30, 36))
    assert second.share([first.current_world()]) == []
    assert {result.world for result in walk(second, range(36, 50))} == {1}


def test_images_of_another_size_and_known_poses_share_nothing():
    first, second, posed = streams(OPTIONS, OPTIONS, OPTIONS)
    walk(first, range(60))
    walk(second, range(1))
    assert second.share([dataclasses.replace(first.current_world(), size=(32, 64))]) == []
    walk(posed, range(1), pose=np.eye(4))
    assert posed.share([first.current_world()]) == []
