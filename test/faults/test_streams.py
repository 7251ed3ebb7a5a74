"""Clock jumps, cameras and subscribers that appear and disappear, bad weights, no memory: the stream continues."""

import contextlib

import numpy as np
import pytest
import rclpy
import torch
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from raymap3r_ros.node import stream_node
from raymap3r_ros.node.map_publisher import MAP_TOPICS, MapPublisher
from raymap3r_ros.node.publishers import TOPICS, Publishers

from .conftest import assert_alive, assert_no_leak, usage

STEP = 0.2  # seconds between frames, so that each is integrated into the map
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 MiB"


def test_clock_jumps_and_stops(make_bench, sized):
    bench = make_bench(image_size=64, every_frame=True, use_sim_time=True)
    bench.start("pose", "tf")
    clock = bench.probe.create_publisher(Clock, "/clock", 1)
    bench.wait(clock.get_subscription_count, "match of /clock")
    node_clock = bench.node.get_clock()
    start, sent = 1_700_000_000, 0
    for turn in range(sized(2, 100)):
        for jump in (0, 0, 1, 3600, -7200, -1_600_000_000, 0):  # none, 1 s, an hour, back, far back
            now = Time(seconds=start + turn + jump)
            clock.publish(Clock(clock=now.to_msg()))
            bench.wait(lambda now=now: node_clock.now().nanoseconds == now.nanoseconds, "simulated time")
            bench.send(sent % 7, time=float(turn + jump))
            sent += 1
            bench.wait_for("pose", sent)
    assert_alive(bench)
    bench.wait_for_diagnostics("frames out", sent)  # diagnostics use the wall clock
    for pose in bench.messages["pose"]:
        assert np.isfinite([pose.pose.position.x, pose.pose.orientation.w]).all()


def create_plain_node(bench):
    """A node without an executor, so that its publishers and subscriptions can be created and destroyed safely."""
    node = rclpy.create_node("peer", namespace=bench.namespace, context=bench.context)
    return node


def test_camera_that_disappears_and_returns(make_bench, sized):
    bench = make_bench(image_size=64)
    bench.start("pose")
    bench.probe.destroy_publisher(bench.publishers.pop("image"))
    peer = create_plain_node(bench)
    before = None
    for turn in range(sized(8, 200)):
        if turn == 4:
            before = usage(bench.node)
        bench.wait(lambda: bench.node.count_publishers("image") == 0, "removal of the camera")
        reliability = (ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT)[turn % 2]
        camera = peer.create_publisher(Image, "image", QoSProfile(depth=1, reliability=reliability))
        bench.wait(camera.get_subscription_count, "match of the image")
        bench.publishers["image"] = camera
        # Best effort: DDS may lose the first image.
        received = len(bench.messages["pose"])
        bench.wait(
            lambda turn=turn, received=received: bench.send(turn) and len(bench.messages["pose"]) > received, "pose"
        )
        peer.destroy_publisher(camera)
    assert_alive(bench)
    assert_no_leak(before, usage, bench.node)


def test_subscribers_that_appear_and_disappear(make_bench, sized):
    bench = make_bench(image_size=64)
    bench.start("pose")
    every = {**TOPICS, **MAP_TOPICS}
    topics = [topic for topic in every if topic not in ("pose", "occupancy")]
    peer = create_plain_node(bench)
    before = None
    for turn in range(sized(8, 300)):
        if turn == 4:
            before = usage(bench.node)
        subscriptions = [
            peer.create_subscription(every[topic][0], f"{bench.name}/{topic}", lambda _: None, every[topic][1])
            for topic in topics
        ]
        for index in range(3):
            received = len(bench.messages["pose"])
            bench.send(3 * turn + index)
            bench.wait_for("pose", received + 1)
        if turn % 4 == 0:
            bench.wait(lambda: bench.subscribed() >= set(topics), "match")
        for subscription in subscriptions:
            peer.destroy_subscription(subscription)
    bench.wait(lambda: bench.subscribed() - {"tf"} == {"pose"}, "removal of all subscribers")
    assert_alive(bench)
    assert_no_leak(before, usage, bench.node)


@contextlib.contextmanager
def nan_weight(network):
    """Sets one weight of a network to NaN."""
    weight = network.decoder.image_norm.weight.data
    original = weight[0].clone()
    weight[0] = torch.nan
    yield
    weight[0] = original


def test_weights_that_are_not_finite(make_bench):
    bench = make_bench(image_size=64, every_frame=True)
    bench.start("pose", "tf", "depth")
    for index in range(3):
        bench.send(index)
    bench.wait_for("pose", 3)
    network = bench.node.stream.network
    with nan_weight(network):
        for index in range(3, 6):
            bench.send(index)
        bench.wait_for_diagnostics("last error", "the network's output is not finite: frame not published")
        bench.wait(lambda: bench.current_diagnostics()["failed frames"] == "3", "the end of the last frame")
        assert bench.change_state("deactivate")  # waits for the worker
    assert bench.change_state("activate")
    bench.wait_for_match()
    bench.send(6)
    for topic in ("pose", "depth"):
        bench.wait_for(topic, 4)
    # The failed frames were neither published nor stored in the memory.
    assert bench.times("pose") == bench.times("depth") == [0.0, 0.1, 0.2, 0.6]
    assert bench.count_logs("a new world starts") == 1
    assert_alive(bench)


@pytest.mark.parametrize("where", ["network", "summary", "publish", "map"])
def test_out_of_memory(make_bench, monkeypatch, sized, where):
    bench = make_bench(image_size=64, every_frame=True, static_map__always=True)
    bench.start("depth")
    owner, name = {
        "network": (bench.node.stream.network, "decode"),
        "summary": (stream_node, "summarize"),
        "publish": (Publishers, "publish"),
        "map": (MapPublisher, "integrate"),
    }[where]

    def refuse(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError(OUT_OF_MEMORY)

    stamp = 0
    for turn in range(sized(2, 30)):
        for _ in range(8):  # beyond the warm-up frames, which are not mapped
            bench.send(stamp, time=stamp * STEP)
            stamp += 1
        bench.wait_for_diagnostics("frames dropped", 0)
        bench.wait(lambda stamp=stamp: bench.times("depth")[-1:] == [round((stamp - 1) * STEP, 6)], "depth")
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse)
            for _ in range(3):
                bench.send(stamp, time=stamp * STEP)
                stamp += 1
            bench.wait(lambda: bench.state() == "inactive", "deactivation")
        assert bench.count_logs("frames in a row without GPU memory: the node deactivates itself") == turn + 1
        assert bench.change_state("activate")
        bench.wait_for_match()
    assert_alive(bench)
