"""Bags played into the node over DDS: the messages sent and the outputs received."""

import dataclasses
import itertools
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import StoragePlugin
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool
from tf2_msgs.msg import TFMessage

sys.path.insert(0, str(Path(__file__).parent))
from bags import START, compressed, header, images_bag, make, picture, raw, store, transform, transforms, write_bag

from raymap3r_ros.clients import player, replay
from raymap3r_ros.clients.bag import ReplayOptions, open_bag
from raymap3r_ros.errors import Raymap3rError
from raymap3r_ros.geometry import poses
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.tum import read_tum
from raymap3r_ros.network import load_network
from raymap3r_ros.node import conversions
from raymap3r_ros.node.frame_queue import FrameQueue
from raymap3r_ros.offline import run_recording
from raymap3r_ros.streaming import METHOD, Stream

LIMIT = 120.0  # seconds


# --------------------------------------------------------------------------------------------------- bit for bit


def test_only_long_bags_are_worth_recorded_frames(rendered):
    bag = open_bag(rendered, ReplayOptions(topic="/camera/image_raw"))
    assert replay.node_parameters(bag, {})["execution"] == "plain"
    assert replay.node_parameters(bag, {"execution": "trace"})["execution"] == "trace"
    assert "execution" not in replay.node_parameters(dataclasses.replace(bag, image_count=1000), {})


def test_replay_gives_the_offline_trajectory_bit_for_bit(make_bench, replay_into, rendered):
    bag = open_bag(rendered, ReplayOptions(topic="/camera/image_raw"))
    assert bag.camera_info == "/camera/camera_info" and bag.frame == "camera_optical_frame"
    bench = make_bench(**replay.node_parameters(bag, {}))
    assert bench.change_state("configure") and bench.change_state("activate")
    playback = replay_into(bench, bag)
    bench.wait_for_diagnostics("intrinsics", "camera_info")

    stream = Stream(load_network("one_room"))
    expected = []
    for frame in open_recording(rendered, topic="/camera/image_raw"):
        pose = poses.world_pose(stream.step(frame.image, frame.stamp, frame.intrinsics).numpy("pose")["pose"])
        expected.append((*pose[:3, 3].tolist(), *poses.quaternion(pose[:3, :3])))
    assert len(expected) == 12 and len(set(expected)) == 12
    assert [playback.poses[index] for index in range(12)] == expected
    assert playback.worlds == {0: 0} and playback.counts["frames lost"] == 0


def test_replay_of_a_camera_that_comes_back_equals_the_offline_run(make_bench, replay_into, stays, tmp_path):
    """Bit for bit, with a search in the world before the jump of the stamps, and the return to it."""
    times = [*np.arange(40) / 10, *(100 + np.arange(20) / 10)]
    images = [frame.image for frame in (*stays[0][:40], *stays[0][20:40])]
    messages = [(time, "/image", raw(time, image)) for time, image in zip(times, images, strict=True)]
    folder = write_bag(tmp_path / "bag", messages)
    bag = open_bag(folder, ReplayOptions())
    bench = make_bench(**replay.node_parameters(bag, {}))
    assert bench.change_state("configure") and bench.change_state("activate")
    playback = replay_into(bench, bag)
    network = load_network("one_room")
    stream, expected = Stream(network), []
    for index, frame in enumerate(open_recording(folder)):
        if index == 40:
            stream.reset(relocalize=True)
        pose = poses.world_pose(stream.step(frame.image, frame.stamp).numpy("pose")["pose"])
        expected.append((*pose[:3, 3].tolist(), *poses.quaternion(pose[:3, :3])))
    assert [playback.poses[index] for index in range(60)] == expected
    bench.wait_for_logs("found again", 1)
    summary = run_recording(open_recording(folder), network, tmp_path / "run", progress=False)
    assert summary.returns == 1
    files = [read_tum(file) for file in (tmp_path / "run").glob("trajectory_*.txt")]
    offline = dict(
        zip(np.concatenate([stamps for stamps, _ in files]), np.concatenate([p for _, p in files]), strict=True)
    )
    for stamp, numbers in zip(sorted(offline), expected, strict=True):
        np.testing.assert_allclose(poses.world_pose(offline[stamp])[:3, 3], numbers[:3], atol=1e-6)


@pytest.mark.parametrize("encoding", conversions.ENCODINGS)
def test_pixels_are_equal_with_and_without_ros(encoding, tmp_path):
    rows = 72 if encoding in conversions.SEMIPLANAR else 48  # chroma lies below the image
    image = np.random.default_rng(0).integers(0, 256, (rows, 64, conversions.ENCODINGS[encoding][0]), np.uint8)
    message = raw(0.0, image, encoding)
    message.height = 48
    assert_same_pixels(tmp_path, message, Image)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pixels_of_compressed_images_are_equal(suffix, tmp_path):
    data = cv2.imencode(suffix, picture(0))[1].reshape(-1)
    message = make("sensor_msgs/msg/CompressedImage", header=header(0.0), format=suffix[1:], data=data)
    assert_same_pixels(tmp_path, message, CompressedImage)


def assert_same_pixels(folder, message, kind):
    (frame,) = open_recording(write_bag(folder / "bag", [(0.0, "/image", message)]))
    taken = deserialize_message(bytes(store.serialize_cdr(message, message.__msgtype__)), kind)
    np.testing.assert_array_equal(conversions.image_array(taken), frame.image)
    assert frame.image.std() > 10


# ------------------------------------------------------------------------------------------------ what can be played


def test_compressed_images_without_camera_info(active_bench, replay_into, tmp_path):
    bag = open_bag(images_bag(tmp_path / "bag", make_image=compressed, topic="/eye/image_raw/compressed"))
    assert bag.compressed and bag.camera_info is None
    playback = replay_into(active_bench(bag), bag)
    assert sorted(playback.poses) == [0, 1, 2] and playback.worlds == {0: 0}


def test_a_change_of_image_size_starts_a_new_world(active_bench, replay_into, tmp_path):
    sizes = [(64, 48)] * 2 + [(48, 64)] * 3
    messages = [
        (i / 10, "/image", raw(i / 10, picture(i, *size)[..., 0].copy(), "mono8")) for i, size in enumerate(sizes)
    ]
    bag = open_bag(write_bag(tmp_path / "bag", messages, StoragePlugin.MCAP))
    playback = replay_into(active_bench(bag), bag)
    assert sorted(playback.poses) == [0, 1, 2, 3, 4] and playback.worlds == {0: 0, 2: 2}
    report = replay.write_report(tmp_path, bag, playback)
    assert [(world.frames, world.trajectory) for world in report.worlds] == [
        (2, "trajectory_1.txt"), (3, "trajectory_2.txt"),
    ]  # fmt: skip
    _, *lines = (tmp_path / "trajectory_2.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [
        f"{frame.stamp / 1e9:.0f}.{frame.stamp % 10**9:09d}" for frame in playback.frames[2:]
    ]
    assert [tuple(map(float, line.split()[1:])) for line in lines] == [playback.poses[index] for index in (2, 3, 4)]


def test_a_world_in_which_the_camera_is_found_again_continues_its_file(active_bench, replay_into, tmp_path):
    times = [*np.arange(10) / 10, *(30 + np.arange(9) / 10)]
    messages = [(time, "/eye/image_raw", raw(time, picture(index))) for index, time in enumerate(times)]
    bag = open_bag(write_bag(tmp_path / "bag", messages))
    bench = active_bench(bag)
    limits = {f"relocalised_{name}": -1.0 for name in ("likeness", "visible", "depth", "appearance")}
    bench.node.stream.method = dataclasses.replace(METHOD, **limits)  # it is found at the first try
    playback = replay_into(bench, bag)
    assert playback.worlds == {0: 0, 10: 10, 16: 0}
    report = replay.write_report(tmp_path, bag, playback)
    assert [(world.frames, world.trajectory) for world in report.worlds] == [
        (13, "trajectory_1.txt"), (6, "trajectory_2.txt"),
    ]  # fmt: skip
    _, *lines = (tmp_path / "trajectory_1.txt").read_text().splitlines()
    assert [tuple(map(float, line.split()[1:])) for line in lines] == [
        playback.poses[index] for index in (*range(10), *range(16, 19))
    ]


def test_every_pass_of_a_loop_starts_a_new_world(active_bench, replay_into, tmp_path):
    bag = open_bag(images_bag(tmp_path / "bag"))
    playback = replay_into(active_bench(bag), bag, ReplayOptions(rate=0.0, loop=3))
    assert playback.passes == 3 and playback.worlds == {0: 0, 3: 3, 6: 6} and playback.counts["resets"] == 2
    assert len(playback.poses) == 9
    for index in range(3):  # a world does not depend on the previous one
        assert playback.poses[index] == playback.poses[index + 3] == playback.poses[index + 6]


def test_part_of_a_bag_is_played_at_its_rate(active_bench, replay_into, tmp_path):
    bag = open_bag(images_bag(tmp_path / "bag", 20))
    options = ReplayOptions(rate=2.0, start=0.15, duration=1.0)
    frames = replay_into(active_bench(bag), bag, options).frames
    stamps = [frame.stamp / 1e9 - START for frame in frames]
    assert stamps == pytest.approx([0.1 * index for index in range(2, 12)], abs=1e-6)
    # A frame may be late; the following frames are on time again.
    assert frames[-1].sent - frames[0].sent > 0.3
    assert max(later.sent - earlier.sent for earlier, later in itertools.pairwise(frames)) > 0.045


def test_a_pause_of_hours_is_left_out(active_bench, replay_into, tmp_path, caplog):
    """A computer without a clock of its own: the first images are stamped before it was set."""
    times = [0.0, 0.1, 0.2, 7200.0, 7200.1]
    bag = open_bag(write_bag(tmp_path / "bag", [(time, "/image", raw(time, picture(0))) for time in times]))
    playback = replay_into(active_bench(bag), bag, ReplayOptions(rate=1.0))
    assert len(playback.poses) == 5 and playback.worlds == {0: 0, 3: 3}
    assert playback.frames[4].sent - playback.frames[3].sent > 0.08  # at its rate again
    assert [record.getMessage() for record in caplog.records if "pause" in record.getMessage()] == [
        "bag: nothing was recorded for 7200 s: the pause is left out"
    ]


def test_refused_images_do_not_block_the_replay(active_bench, replay_into, tmp_path):
    """Images without a stamp get the time of recording."""
    messages = [(i / 10, "/image", raw(None, picture(i))) for i in range(3)]
    depth = np.ones((48, 64), np.uint16).view(np.uint8).reshape(48, 64, 2)
    messages += [(i / 10, "/image", raw(i / 10, depth, "16UC1")) for i in range(3, 3 + 2 * player.MAX_IN_FLIGHT)]
    bag = open_bag(write_bag(tmp_path / "bag", messages))
    playback = replay_into(active_bench(bag), bag)
    assert sorted(playback.poses) == [0, 1, 2]
    assert [frame.stamp / 1e9 - START for frame in playback.frames[:4]] == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-6)
    report = replay.write_report(tmp_path, bag, playback)
    assert (report.frames_sent, report.frames_processed, report.frames_refused) == (23, 3, 20)
    assert report.frames_unanswered == 0 and report.complete


def test_blank_images_are_accounted_for(active_bench, replay_into, tmp_path):
    """As of a covered camera, also at the end of a bag."""
    pictures = [picture(index) if index < 3 else np.zeros((48, 64, 3), np.uint8) for index in range(20)]
    messages = [(index / 10, "/image", raw(index / 10, image)) for index, image in enumerate(pictures)]
    bag = open_bag(write_bag(tmp_path / "bag", messages))
    report = replay.write_report(tmp_path, bag, replay_into(active_bench(bag), bag))
    assert (report.frames_sent, report.frames_processed, report.frames_blank) == (20, 3, 17)
    assert report.frames_unanswered == 0 and report.complete


def test_a_node_with_a_camera_is_refused(active_bench, replay_into, tmp_path):
    """Its images and those of the bag would be mixed."""
    bag = open_bag(images_bag(tmp_path / "bag"))
    bench = active_bench(bag)
    bench.advertise(Image, "image", QoSProfile(depth=1))
    with pytest.raises(Raymap3rError, match=rf"{bench.namespace}/image is also published by .*/probe: the node would"):
        replay_into(bench, bag)
    assert bench.current_diagnostics()["frames in"] == "0"


def test_settings_that_a_replay_needs_are_named(make_bench, replay_into, tmp_path, caplog):
    bag = open_bag(images_bag(tmp_path / "bag", 2))
    bench = make_bench(checkpoint="mini", image_size=48)
    assert bench.change_state("configure") and bench.change_state("activate")
    replay_into(bench, bag)
    for name in ("every_frame", "use_sim_time"):
        assert f"{name} of the node {bench.name} is false; set it to true for a replay" in caplog.text


def test_a_paused_node_is_refused(active_bench, replay_into, tmp_path):
    bag = open_bag(images_bag(tmp_path / "bag"))
    bench = active_bench(bag)
    assert bench.call(SetBool, "set_paused", SetBool.Request(data=True)).success
    with pytest.raises(Raymap3rError, match=r"is paused and takes no images; continue it: .*/set_paused"):
        replay_into(bench, bag)


def test_playback_faster_than_the_node_waits_for_it(active_bench, replay_into, monkeypatch, tmp_path):
    proceed, waiting = threading.Event(), []
    get, put = FrameQueue.get, FrameQueue.put

    def slow_get(queue):
        assert proceed.wait(LIMIT)
        return get(queue)

    def counted_put(queue, frame):
        outcome = put(queue, frame)
        waiting.append(len(queue))
        return outcome

    monkeypatch.setattr(FrameQueue, "get", slow_get)
    monkeypatch.setattr(FrameQueue, "put", counted_put)
    count = 3 * player.MAX_IN_FLIGHT
    bag = open_bag(images_bag(tmp_path / "bag", count))
    bench = active_bench(bag)
    done = []
    thread = threading.Thread(target=lambda: done.append(replay_into(bench, bag)))
    thread.start()
    try:
        bench.wait(lambda: len(waiting) >= player.MAX_IN_FLIGHT, "a full window")
        received = len(bench.statuses)
        bench.wait(lambda: len(bench.statuses) > received, "more diagnostics")
        assert waiting == list(range(1, player.MAX_IN_FLIGHT + 1))
    finally:
        proceed.set()
        thread.join(LIMIT)
    (playback,) = done
    assert len(playback.poses) == count and playback.counts["frames lost"] == 0
    assert max(waiting) == player.MAX_IN_FLIGHT


def test_stop_ends_early_with_the_frames_so_far(active_bench, replay_into, tmp_path):
    bag = open_bag(images_bag(tmp_path / "bag", 50))
    stop = threading.Event()
    bench = active_bench(bag)
    bench.subscribe("pose")
    threading.Thread(target=lambda: (bench.wait_for("pose", 2), stop.set())).start()
    playback = replay_into(bench, bag, ReplayOptions(rate=1.0), stop=stop)
    assert playback.stopped and 2 <= len(playback.poses) <= len(playback.frames) < 50
    report = replay.write_report(tmp_path, bag, playback)
    assert not report.complete and report.frames_unanswered == len(playback.frames) - len(playback.poses)


def test_node_with_another_image_transport_is_an_error(make_bench, replay_into, tmp_path, monkeypatch):
    bag = open_bag(images_bag(tmp_path / "bag", make_image=compressed))
    bench = make_bench(checkpoint="mini", image_size=48)
    assert bench.change_state("configure") and bench.change_state("activate")
    monkeypatch.setattr(player, "CONNECT_LIMIT", 2.0)  # it is active
    with pytest.raises(Raymap3rError, match=rf"does not take images from {bench.namespace}/image/compressed"):
        replay_into(bench, bag)


# ------------------------------------------------------------------------------------------------------- TF, clock


def test_node_of_another_version_is_an_error(active_bench, replay_into, tmp_path, monkeypatch):
    bag = open_bag(images_bag(tmp_path / "bag", 2), ReplayOptions())
    bench = active_bench(bag)
    known = player.option_fields
    newer = [("not.in.the.node", next(known(player.NodeOptions))[1])]
    monkeypatch.setattr(player, "option_fields", lambda kind: [*known(kind), *newer])
    with pytest.raises(Raymap3rError, match="does not have all parameters of the stream node of this version"):
        replay_into(bench, bag)


def test_transforms_of_the_node_are_not_forwarded_from_the_bag(active_bench, replay_into, tmp_path):
    messages = [
        (0.0, "/tf_static", transforms(transform(0, "base", "camera"), transform(0, "base", "lidar"))),
        (0.0, "/tf_static", transforms(transform(0, "base", "arm"))),
    ]
    for i in range(3):
        messages.append((i / 10, "/tf", transforms(transform(i / 10, "odom", "base", (i / 10, 0.0, 0.0)))))
        # Of an earlier run in this bag, which has left its camera below "base":
        messages.append((i / 10, "/tf", transforms(transform(i / 10, "camera", "map"))))
        messages.append((i / 10, "/image", raw(i / 10, picture(i))))
    bag = open_bag(write_bag(tmp_path / "bag", messages))
    bench = active_bench(bag)
    moving, static = set(), set()

    def record(edges):
        return lambda message: edges.update((t.header.frame_id, t.child_frame_id) for t in message.transforms)

    bench.probe.create_subscription(TFMessage, "/tf", record(moving), 100)
    latched = rclpy.qos.QoSProfile(depth=10, durability=rclpy.qos.DurabilityPolicy.TRANSIENT_LOCAL)
    bench.probe.create_subscription(TFMessage, "/tf_static", record(static), latched)
    replay_into(bench, bag)
    bench.wait(lambda: len(static) == 2 and len(moving) == 2, "all transforms")
    assert static == {("base", "lidar"), ("base", "arm")}
    assert moving == {("odom", "base"), ("map", "camera")}


def test_paused_and_stepped_sim_time(make_bench):
    """As from `ros2 bag play`, paused, stepped and looped."""
    bench = make_bench(checkpoint="mini", image_size=48, every_frame=True, use_sim_time=True)
    bench.start("pose")
    bench.advertise_clock = bench.probe.create_publisher(Clock, "/clock", 1)
    bench.wait(bench.advertise_clock.get_subscription_count, "match of /clock")

    def set_clock(time):
        stamp = rclpy.time.Time(seconds=START, nanoseconds=round(time * 1e9))
        bench.advertise_clock.publish(Clock(clock=stamp.to_msg()))
        bench.wait(lambda: bench.node.get_clock().now().nanoseconds == stamp.nanoseconds, f"sim time {time}")

    def more_diagnostics():
        received = len(bench.statuses)
        bench.wait(lambda: len(bench.statuses) >= received + 2, "two more diagnostics")

    more_diagnostics()  # before the first clock message
    set_clock(0.0)
    bench.send(0, 0.0)
    bench.wait_for("pose", 1)
    more_diagnostics()  # the clock is paused
    bench.send(1, 0.1)  # a stamp ahead of the clock
    bench.wait_for("pose", 2)
    set_clock(0.2)
    bench.send(2, 0.2)
    bench.wait_for("pose", 3)
    assert bench.count_logs("stamps jump") == 0
    set_clock(0.0)
    bench.send(0, 0.0)
    bench.wait_for("pose", 4)
    bench.wait_for_log("stamps jump back by 0.200 s: the stream is reset")
    more_diagnostics()
    bench.wait_for_diagnostics("frames out", 4)
    assert bench.times("pose") == [0.0, 0.1, 0.2, 0.0]

    without_stamp = conversions.image_message(Header(frame_id="camera"), picture(3), "rgb8")
    bench.publish(without_stamp)
    bench.wait_for("pose", 5)
    assert bench.times("pose")[-1] == 0.0  # the sim time at which it was received


@pytest.mark.parametrize("time", [-(2**63), 2**63 - 1])
def test_a_message_with_an_impossible_time_is_skipped_and_does_not_move_the_others(
    active_bench, replay_into, tmp_path, caplog, time
):
    folder = images_bag(tmp_path / "bag", 4)
    with closing(sqlite3.connect(next(folder.glob("*.db3")), isolation_level=None)) as database:
        database.execute("UPDATE messages SET timestamp = ? WHERE id = (SELECT min(id) FROM messages)", (time,))
    bag = open_bag(folder)
    playback = replay_into(active_bench(bag), bag, ReplayOptions(rate=0.0))
    assert playback.unreadable == 1 and len(playback.poses) == 3 and not playback.ended
    assert f"recorded at an impossible time, {time} ns" in caplog.text
