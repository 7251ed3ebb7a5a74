"""Images of several cameras on one topic."""

import itertools

import pytest

from raymap3r_ros.camera_mix import CameraMix


def warnings(frames):
    mix = CameraMix()
    return [text for one in frames if (text := mix.add(*one))]


@pytest.mark.parametrize("count", [2, 3, 6])
def test_frame_ids_that_alternate_are_found(count):
    texts = warnings((f"camera{index % count}",) for index in range(30))
    assert texts and "'camera0', 'camera1'" in texts[-1] and "a run, for each camera" in texts[-1]


def test_sizes_that_alternate_are_found():
    texts = warnings(itertools.islice(itertools.cycle([("cam", (96, 64)), ("cam", (64, 48))]), 12))
    assert "'cam' (64x48), 'cam' (96x64)" in texts[-1]


@pytest.mark.parametrize(
    "frames",
    [
        ["camera"] * 30,
        ["left"] * 10 + ["right"] * 10 + ["left"] * 10,  # a switch between cameras
        [f"frame{index}" for index in range(30)],
        ["", "camera"] + ["camera"] * 30,
    ],
)
def test_other_changes_are_no_mix(frames):
    assert not warnings((one,) for one in frames)
