"""Rendered sequences as the evaluation sees them."""

import numpy as np

from raymap3r_ros.evaluation import sequences
from raymap3r_ros.synthetic import suite_sequence


def test_rendered_frames_pass_through_and_start_anew():
    sequence = sequences.synthetic_sequence("light", 1, world="varied", size=(24, 32), device="cpu")
    rendered = suite_sequence("light", 1, world="varied", size=(24, 32))
    assert (sequence.name, sequence.length) == (rendered.name, rendered.length)
    first = next(sequence.frames())
    for ours, theirs, _ in zip(sequence.frames(), rendered.frames(), range(3), strict=False):
        assert np.array_equal(ours.image, theirs.image) and ours.image.shape == (24, 32, 3)
        assert np.array_equal(ours.moving, theirs.moving)
        assert np.array_equal(ours.pose, theirs.pose) and np.array_equal(ours.intrinsics, theirs.intrinsics)
        assert ours.stamp == theirs.stamp
        seen = theirs.depth > 0
        assert np.array_equal(ours.depth[seen], theirs.depth[seen])
        assert np.array_equal(ours.static_depth > 0, theirs.static_depth > 0)
    assert np.array_equal(first.image, next(sequence.frames()).image)


def test_unknown_depth_is_zero():
    depth = np.array([[1.5, 0, -2], [np.nan, np.inf, -np.inf]])
    known = sequences.known_depth(depth)
    assert known.dtype == np.float32
    assert known.tolist() == [[1.5, 0, 0], [0, 0, 0]]
