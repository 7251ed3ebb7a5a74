"""Rendered sequences in the form that the evaluation uses."""

import numpy as np
import pytest

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation import sequences
from raymap3r_ros.evaluation.sequences import Frame, PosedSequence, checked_frames
from raymap3r_ros.synthetic import suite_sequence


def test_rendered_frames_are_passed_through_from_the_start_each_time():
    sequence = sequences.synthetic_sequence("light", 1, world="varied", size=(24, 32), device="cpu")
    rendered = suite_sequence("light", 1, world="varied", size=(24, 32))
    assert (sequence.name, sequence.length) == (rendered.name, rendered.length)
    first = next(sequence.frames())
    for frame, expected, _ in zip(sequence.frames(), rendered.frames(), range(3), strict=False):
        assert np.array_equal(frame.image, expected.image) and frame.image.shape == (24, 32, 3)
        assert np.array_equal(frame.moving, expected.moving)
        assert np.array_equal(frame.pose, expected.pose) and np.array_equal(frame.intrinsics, expected.intrinsics)
        assert frame.stamp == expected.stamp
        seen = expected.depth > 0
        assert np.array_equal(frame.depth[seen], expected.depth[seen])
        assert np.array_equal(frame.static_depth > 0, expected.static_depth > 0)
    assert np.array_equal(first.image, next(sequence.frames()).image)


def test_unknown_depth_is_zero():
    depth = np.array([[1.5, 0, -2], [np.nan, np.inf, -np.inf]])
    known = sequences.known_depth(depth)
    assert known.dtype == np.float32
    assert known.tolist() == [[1.5, 0, 0], [0, 0, 0]]


def sequence_with(fx, fy, cx, cy):
    frame = Frame(np.zeros((48, 64, 3), np.uint8), 0.0, intrinsics=np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]))
    return PosedSequence("kitchen", 2, lambda: iter([frame, frame]))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ((np.nan, 60, 32, 24), "not all numbers are finite"),
        ((-60, 60, 32, 24), "focal lengths of -60 and 60 pixels do not belong"),
        ((500, 500, 320, 240), "it would be the middle of 640x480"),
    ],
)
def test_intrinsics_of_a_data_set_that_cannot_be_used_are_refused(values, problem):
    with pytest.raises(InputError, match=f"kitchen: intrinsics of frame 0 cannot be used: .*{problem}"):
        list(checked_frames(sequence_with(*values)))


def test_doubtful_intrinsics_of_a_data_set_are_one_warning(caplog):
    assert len(list(checked_frames(sequence_with(60, 60, 24, 32)))) == 2
    (record,) = caplog.records
    assert "kitchen: the intrinsics are probably wrong" in record.getMessage() and "turned" in record.getMessage()
    caplog.clear()
    assert len(list(checked_frames(sequence_with(60, 60, 32, 24)))) == 2 and not caplog.records
