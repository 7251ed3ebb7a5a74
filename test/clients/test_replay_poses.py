"""Known poses in a replay: every image gets the transform of its stamp, as in a live node."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bags import picture, raw, transform, transforms, write_bag

from raymap3r_ros.clients.bag import ReplayOptions, open_bag


@pytest.mark.parametrize("rate", [20, 50])
def test_every_image_has_the_transform_of_its_stamp(active_bench, replay_into, tmp_path, rate):
    """The bag is played as fast as possible; the transforms that an image needs are recorded after it too."""

    def place(time):
        return (1.0 + 0.5 * time, -0.25 * time, 0.125)

    mount = transform(0, "base_link", "camera", (0.0, 0.0, 0.5))
    messages = [(0.0, "/tf_static", transforms(mount))]
    messages += [
        (i / rate, "/tf", transforms(transform(i / rate, "odom", "base_link", place(i / rate))))
        for i in range(3 * rate)
    ]
    messages += [(0.01 + i / 10, "/image", raw(0.01 + i / 10, picture(i))) for i in range(25)]
    bag = open_bag(write_bag(tmp_path / "bag", sorted(messages, key=lambda one: one[0])))
    bench = active_bench(bag, pose_source="tf", tf_mode="map")
    playback = replay_into(bench, bag, ReplayOptions(rate=0.0))
    assert len(playback.poses) == 25
    positions = [playback.poses[index][:3] for index in range(25)]
    expected = [np.add(place(0.01 + index / 10), (0, 0, 0.5)) for index in range(25)]
    np.testing.assert_allclose(positions, expected, atol=1e-6)
    assert bench.count_logs("images have no known pose") == 0
    assert playback.diagnostics["last error"] == ""
