"""Which of several range sensors is used, when they come, go and are not in TF."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from builtin_interfaces.msg import Time

from raymap3r_ros.errors import InputError
from raymap3r_ros.mapping.scale import RangeReading
from raymap3r_ros.node.rangers import RECENT, Rangers
from raymap3r_ros.node.tf_frames import TransformError

AHEAD, ASIDE = np.eye(4), np.full((4, 4), 9.0)


class Scale:
    """Records the readings that are used, and refuses sensors that point aside."""

    def __init__(self):
        self.used = []
        self.add_range = self.used.append
        self.drop_ranges = self.used.clear

    def mount_ranger(self, pose):
        if pose is ASIDE:
            raise InputError("points aside")


@pytest.fixture
def case(monkeypatch):
    clock, mounts, scale, standing = [100.0], {}, Scale(), {}
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def look_up(parent, child, stamp, age):
        if child not in mounts:
            raise TransformError("unknown")
        return mounts[child]

    rangers = Rangers(scale, look_up, SimpleNamespace(stand=standing.__setitem__))

    def second(*frames):
        for frame in frames:
            rangers.add(RangeReading(clock[0], ord(frame), 0.1, math.inf, 0.1), frame)
        clock[0] += 1
        rangers.mount("camera", Time())
        return "".join(sorted({chr(reading.distance) for reading in scale.used}))

    return SimpleNamespace(second=second, mounts=mounts, standing=standing)


def test_the_first_sensor_is_used_until_one_that_points_ahead_is_known(case):
    assert case.second("a", "b") == "a" and "only those of a are used" in case.standing["rangers"]
    case.mounts["b"] = AHEAD
    assert case.second("a", "b") == ""  # the readings of a are dropped
    assert case.second("a", "b") == "b" and "frame_ids a, b: only those of b" in case.standing["rangers"]
    case.mounts["a"] = AHEAD
    assert case.second("a", "b") == "b"


def test_another_sensor_takes_over_from_one_that_is_silent(case):
    assert case.second("a") == "a" and not case.standing["rangers"]
    seconds = [case.second("b") for _ in range(int(RECENT) + 2)]
    assert seconds[0] == "a" and seconds[-1] == "b" and not case.standing["rangers"]


def test_sensors_that_all_point_aside_are_refused(case):
    case.mounts |= {"a": ASIDE, "b": ASIDE}
    with pytest.raises(InputError, match="points aside"):
        case.second("a", "b")
    case.mounts["b"] = AHEAD
    case.second("a", "b")
    assert case.second("a", "b") == "b"


def test_many_frame_ids_are_not_remembered(case):
    texts = set()
    for index in range(20):
        case.second(*(chr(1000 + 50 * index + number) for number in range(50)))
        texts.add(case.standing["rangers"].partition(": only")[0][-12:])
    assert texts == {"", " and 12 more"}
