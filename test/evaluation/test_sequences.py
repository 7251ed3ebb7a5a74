"""Rendered sequences in the form that the evaluation uses."""

import numpy as np

from raymap3r_ros.evaluation import sequences
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
