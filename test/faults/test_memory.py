"""Memory by content of messages: live bytes after images, and frames of tf2, that all differ."""

import gc
import tracemalloc
from collections import defaultdict, deque
from functools import partial

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from rclpy.qos import QoSProfile
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from raymap3r_ros.node import diagnostics, tf_frames

from .conftest import assert_alive, node_bench

HEIGHT, WIDTH = 96, 128  # the largest image
# Bytes an image, a few of them noise. A message, a calibration or the name of a frame takes more.
ALLOWED = 300
WARM_UP = 110  # images until the short queues of the diagnostics and the caches by image size are full
LOCAL = ("-r", "/tf:=tf", "-r", "/tf_static:=tf_static")  # not to other tests


def live_bytes(bench):
    """Traced bytes of this process, without what the probe collects."""
    bench.statuses.clear()
    bench.logs.clear()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


class VariedCamera:
    """Sends the images of a soak to a bench whose stream returns one flat wall."""

    def __init__(self, bench, script, vary):
        self.bench, self._script, self._vary = bench, script, vary
        self._sent = 0
        bench.messages = defaultdict(partial(deque, maxlen=1))
        bench.start("pose", "odometry")
        self._stream = node_bench.FakeStream(bench.node.stream)
        bench.advertise(CameraInfo, "camera_info", QoSProfile(depth=1))

    def send(self, count):
        """Send `count` images one by one and return when the last is published. The last is always the same."""
        image = np.resize(np.uint8([90, 150]), (HEIGHT, WIDTH, 3))
        for index in [*range(self._sent, self._sent + count - 1), 0]:
            message, info = self._script.camera_messages(image, self._vary, index)
            if info is not None:
                self.bench.publishers["camera_info"].publish(info)
            points = np.ones((message.height, message.width, 3))
            self._stream.enqueue(np.eye(4), points, float(WIDTH))
            self.bench.send(time=self._sent / 30, message=message, frame_id=message.header.frame_id)
            self._sent += 1
            self.bench.wait(lambda message=message: self._is_placed(message), "pose")
        self.bench.wait(lambda: self.bench.current_diagnostics()["frames out"] == str(self._sent), "all frames")
        self.bench.wait(lambda: info is None or self._has(info), "the last camera_info")

    def _is_placed(self, image):
        poses = self.bench.messages["pose"]
        return poses and poses[-1].header.stamp == image.header.stamp

    def _has(self, info):
        known = self.bench.node.camera_info
        return known is not None and list(known.d) == list(info.d)


@pytest.mark.parametrize("vary", ["calibration", "sizes", "frames"])
def test_live_bytes_do_not_grow_with_varied_images(make_bench, benchmark_script, monkeypatch, sized, vary):
    monkeypatch.setattr(diagnostics, "SAMPLES", 20)
    monkeypatch.setattr(diagnostics, "WINDOW", 0.2)
    bench = make_bench(*LOCAL, image_size=64, every_frame=True)
    camera = VariedCamera(bench, benchmark_script("soak"), vary)
    images = sized(100, 5000)
    tracemalloc.start()
    try:
        camera.send(WARM_UP)
        before = live_bytes(bench)
        camera.send(images)
        growth = (live_bytes(bench) - before) / images
    finally:
        tracemalloc.stop()
    assert_alive(bench)
    assert growth < ALLOWED, f"{growth:.0f} bytes an image"


def transforms(first, last):
    return TFMessage(
        transforms=[
            TransformStamped(header=Header(frame_id="base_link"), child_frame_id=f"part{index}")
            for index in range(first, last)
        ]
    )


def known_parts(bench):
    buffer = bench.node.tf_buffer
    return {index for index in range(400) if buffer.can_transform("base_link", f"part{index}", Time())}


@pytest.mark.parametrize("topic", ["tf", "tf_static"])
def test_frames_of_other_nodes_are_bounded(make_bench, monkeypatch, topic):
    monkeypatch.setattr(tf_frames, "MAX_FRAMES", 50, raising=False)
    bench = make_bench(*LOCAL, tf_mode="base", image_size=64)
    bench.start()
    (qos,) = (one.qos_profile for one in bench.node.subscriptions if one.topic_name == f"{bench.namespace}/{topic}")
    publisher = bench.probe.create_publisher(TFMessage, topic, qos)
    bench.wait(publisher.get_subscription_count, "match")
    publisher.publish(transforms(0, 40))
    bench.wait(lambda: 39 in known_parts(bench), "the first frames")
    for first in range(40, 400, 40):
        publisher.publish(transforms(first, first + 40))
    long = transforms(0, 1)
    long.transforms[0].child_frame_id = "x" * 257
    publisher.publish(long)
    bench.wait_for_log("transforms are left out: allowed are 50 different frames")
    moved = transforms(39, 40)
    moved.transforms[0].transform.translation.x = 7.0
    moved.transforms[0].header.stamp.sec = 5
    publisher.publish(moved)  # a known frame is still received, after everything above
    bench.wait(
        lambda: tf_frames.look_up(bench.node.tf_buffer, "base_link", "part39", bench.stamp(0), 1e12)[0, 3] == 7,
        "the known frame",
    )
    assert known_parts(bench) == set(range(49))  # base_link is the 50th frame
    assert not bench.node.tf_buffer.can_transform("base_link", "x" * 257, Time())
    assert_alive(bench)
