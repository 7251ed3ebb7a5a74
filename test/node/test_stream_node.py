"""The node over real DDS: what it promises in every row of its interface."""

import array
import dataclasses
import gc
import json
from concurrent.futures import ThreadPoolExecutor, wait

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from sensor_msgs_py.point_cloud2 import read_points
from std_msgs.msg import Header

from raymap3r_ros.geometry import poses
from raymap3r_ros.network import load_network
from raymap3r_ros.node import conversions, publishers, session, stream_node, summary
from raymap3r_ros.node.frame_queue import QUEUE_DEPTH
from raymap3r_ros.node.map_publisher import MapPublisher
from raymap3r_ros.node.publishers import MOTION_TOPICS, TOPICS
from raymap3r_ros.streaming import METHOD, Stream, StreamOptions

EVERYTHING = (*TOPICS, "tf")
WIDTH, HEIGHT = 64, 48  # of the images sent, and as the network sees them
IMAGES = ("depth", "depth_static", "confidence", "dynamic_mask", "dynamic_map", "rgb")
TRAJECTORIES = ("trajectory", "trajectory_raw")  # not published with every frame
UNKNOWN = METHOD.warmup_frames  # of a world's first frames nobody knows what moves in them


@pytest.fixture
def make_bench(make_bench):
    """A bench whose network sees the images as they are sent."""
    return lambda **parameters: make_bench(**{"image_size": WIDTH, **parameters})


def values(message, dtype=np.float32):
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width, -1).squeeze()


def numbers(position, orientation):
    return [position.x, position.y, position.z, orientation.x, orientation.y, orientation.z, orientation.w]


def wait_for_end(bench, sent, topic="trajectory"):
    """Wait for the trajectory that ends at this image; how many poses it has."""
    bench.wait(
        lambda: bench.messages[topic] and bench.messages[topic][-1].header.stamp == sent.header.stamp,
        f"{topic} up to {sent.header.stamp}",
    )
    return len(bench.messages[topic][-1].poses)


# ------------------------------------------------------------------------------------------------------------ outputs


def test_every_output(make_bench):
    bench = make_bench(every_frame=True)
    bench.start(*EVERYTHING)
    sent = [bench.send(index).header.stamp for index in range(8)]
    for topic in EVERYTHING:
        if topic not in TRAJECTORIES:
            bench.wait_for(topic, len(sent) - UNKNOWN * (topic in MOTION_TOPICS))
    for topic in TRAJECTORIES:
        assert wait_for_end(bench, bench.messages["pose"][-1], topic) == len(sent)

    for topic in TOPICS:
        stamps = [message.header.stamp for message in bench.messages[topic]]
        if topic in TRAJECTORIES:
            assert stamps == [stamp for stamp in sent if stamp in stamps], topic
        elif topic in MOTION_TOPICS:  # before that nobody knows what moves: it shall not pass for a still scene
            assert stamps == sent[UNKNOWN:], topic
        else:
            assert stamps == sent, topic
        frame = "map" if topic in ("pose", "odometry", *TRAJECTORIES) else "camera"
        assert {message.header.frame_id for message in bench.messages[topic]} == {frame}, topic
    for message, pose, odometry in zip(
        bench.messages["tf"], bench.messages["pose"], bench.messages["odometry"], strict=True
    ):
        (transform,) = message.transforms
        assert transform.header == pose.header
        assert transform.child_frame_id == odometry.child_frame_id == "camera"
        assert numbers(transform.transform.translation, transform.transform.rotation) == numbers(
            pose.pose.position, pose.pose.orientation
        )
        assert odometry.pose.pose == pose.pose
        assert odometry.pose.covariance[0] > 0 and odometry.pose.covariance[35] > 0
    depth, static, mask = (bench.messages[topic][-1] for topic in ("depth", "depth_static", "dynamic_mask"))
    last = [bench.messages[topic][-1] for topic in IMAGES]
    assert {(message.width, message.height) for message in last} == {(WIDTH, HEIGHT)}
    assert depth.encoding == static.encoding == "32FC1" and mask.encoding == "mono8"
    assert np.isfinite(values(depth)).all()
    moves = values(mask, np.uint8)
    assert set(np.unique(moves)) <= {0, 255}
    np.testing.assert_array_equal(np.isnan(values(static)), moves == 255)
    np.testing.assert_array_equal(values(static)[moves == 0], values(depth)[moves == 0])
    assert values(bench.messages["confidence"][-1]).min() >= 1
    dynamic = values(bench.messages["dynamic_map"][-1])
    assert 0 <= dynamic.min() < dynamic.max() <= 1
    assert bench.messages["rgb"][-1].encoding == "rgb8"
    info = bench.messages["camera_info"][-1]
    assert (info.width, info.height) == (WIDTH, HEIGHT) and info.k[0] > 0
    cloud = bench.messages["points"][-1]
    assert [field.name for field in cloud.fields] == ["x", "y", "z", "rgb", "confidence", "dynamic"]
    assert cloud.width == int((values(bench.messages["confidence"][-1]) >= 1.5).sum())
    path = bench.messages["trajectory"][-1]
    assert [pose.header.stamp for pose in path.poses] == sent
    assert path.poses[-1].pose == bench.messages["pose"][-1].pose

    bench.wait_for_told("frames out", len(sent))
    told = bench.told
    assert (told["frames in"], told["frames dropped"], told["frames lost"]) == ("8", "0", "0")
    assert float(told["rate in (Hz)"]) > 0 and float(told["rate out (Hz)"]) > 0
    assert float(told["latency from arrival, median (ms)"]) > 0
    assert {"stage convert (ms)", "stage publish (ms)", "stage decode (ms)", "stage ray_branch (ms)"} <= told.keys()
    assert 0 < float(told["stage node (ms)"]) < float(told["stage whole frame (ms)"])
    assert told["update rule"] == "raymap3r" and told["device"] == "cpu"
    assert told["resets"] == "0" and told["last error"] == ""


def test_untrained_weights_are_said_plainly(make_bench):
    bench = make_bench(checkpoint="mini")
    assert bench.change_state("configure")
    bench.wait_for_log("untrained weights", level=30)
    bench.wait(lambda: any("untrained weights" in text for _, text in bench.statuses), "diagnostics")


def test_what_nobody_wants_is_not_computed(make_bench, monkeypatch):
    bench = make_bench(every_frame=True, update_rule="ttt3r")
    bench.start("pose")
    stream, copied, motions = bench.node.stream, [], []
    step, to_host = stream.step, publishers.to_host

    def step_spy(*args, motion, **kwargs):
        motions.append(motion)
        copied.append([])
        return step(*args, motion=motion, **kwargs)

    def to_host_spy(tensors):
        arrays = to_host(tensors)
        copied[-1].append(sum(array.nbytes for array in arrays))
        return arrays

    stream.step = step_spy
    for module in (summary, publishers):
        monkeypatch.setattr(module, "to_host", to_host_spy)
    for index in range(7):
        bench.send(index)
    bench.wait_for("pose", 7)
    assert motions == [False] * 7
    bench.wait_for_told("frames out", 7)
    two_poses = 2 * 16 * 4
    assert all(two_poses < few < two_poses + 32 and many == 0 for few, many in copied)
    bench.wait_for_told("subscribed outputs", "pose")
    assert "stage ray_branch (ms)" not in bench.told

    bench.listen("dynamic_mask")
    bench.send(7)
    bench.wait_for("dynamic_mask", 1)
    assert motions[-1]
    few, many = copied[-1]
    assert few < two_poses + 32 and many == WIDTH * HEIGHT


def test_points_are_the_maps_where_the_network_is_confident(make_bench):
    bench = make_bench(every_frame=True)
    topics = ("points", "dynamic_mask", "depth", "confidence", "rgb", "camera_info")
    bench.start(*topics)
    for index in range(7):
        bench.send(index)
    bench.wait_for("points", 7 - UNKNOWN)
    middle = float(np.median(values(bench.messages["confidence"][-1])))
    assert bench.set_parameter("confidence_threshold", middle).successful
    bench.send(7)
    cloud, mask = (bench.wait_for(topic, 8 - UNKNOWN) for topic in topics[:2])
    depth, confidence, rgb, info = (bench.wait_for(topic, 8) for topic in topics[2:])
    chosen = values(confidence) >= middle
    assert 0 < chosen.sum() < chosen.size
    points = read_points(cloud)
    np.testing.assert_array_equal(points["z"], values(depth)[chosen])
    np.testing.assert_array_equal(points["confidence"], values(confidence)[chosen])
    np.testing.assert_array_equal(points["dynamic"] * 255, values(mask, np.uint8)[chosen])
    bits = points["rgb"].copy().view(np.uint32)
    colors = np.stack([bits >> 16, bits >> 8 & 255, bits & 255], -1)
    np.testing.assert_array_equal(colors, values(rgb, np.uint8)[chosen])
    # Every point lies about where its pixel looks.
    rows, columns = np.nonzero(chosen)
    fx, fy = info.k[0], info.k[4]
    assert np.corrcoef(points["x"] / points["z"] * fx, columns)[0, 1] > 0.9
    assert np.corrcoef(points["y"] / points["z"] * fy, rows)[0, 1] > 0.9


def test_points_are_strided_and_filtered(make_bench):
    bench = make_bench(every_frame=True, points__stride=4, confidence_threshold=1.0)
    bench.start("points")
    for index in range(UNKNOWN + 1):
        bench.send(index)
    assert bench.wait_for("points").width == 16 * 12
    assert bench.set_parameter("confidence_threshold", 1000.0).successful
    bench.send(UNKNOWN + 1)
    assert bench.wait_for("points", 2).width == 0


def test_late_subscriber_gets_the_trajectory(make_bench):
    bench = make_bench()
    bench.start("pose")
    bench.send(0)
    bench.wait_for("pose")
    bench.listen("trajectory")
    assert len(bench.wait_for("trajectory").poses) == 1


def test_trajectories_come_twice_a_second_of_stamps_and_at_their_end(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose", "trajectory")
    for index in range(24):
        last = bench.send(index)
    bench.wait_for("pose", 24)
    assert wait_for_end(bench, last) == 24
    times = bench.times("trajectory")
    # Between them the timer may have sent some, one in a second of real time.
    assert {0.0, 0.5, 1.0, 1.5, 2.0, 2.3} <= set(times)
    assert len(times) < 24 and times == sorted(set(times))


# ------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("encoding", [".jpg", ".png"])
def test_compressed_images(make_bench, encoding):
    bench = make_bench(image_transport="compressed")
    bench.start("pose", "rgb")
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2] = (220, 120, 20)
    data = cv2.imencode(encoding, pixels[..., ::-1])[1]
    message = CompressedImage(format=encoding, data=array.array("B", data.tobytes()))
    sent = bench.send(message=message)
    assert bench.wait_for("pose").header.stamp == sent.header.stamp
    np.testing.assert_allclose(values(bench.wait_for("rgb"), np.uint8).astype(int), pixels, atol=40)
    bench.send(1, message=CompressedImage(format=encoding, data=array.array("B", data.tobytes()[:20])))
    bench.wait_for_log("image skipped: compressed image of 20 bytes cannot be decoded as jpeg or png", level=30)
    bench.send(2, message=CompressedImage(format=encoding))
    bench.wait_for_log("image skipped: compressed image without data", level=30)


def test_camera_info_is_scaled_with_the_image(make_bench):
    bench = make_bench(image_size=2 * WIDTH)
    bench.start("camera_info", "pose")
    bench.send_camera_info(width=64, height=48, k=[50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0])
    bench.wait_for_camera_info()
    bench.send(0)
    info = bench.wait_for("camera_info")
    # Pixel centres are integers.
    np.testing.assert_allclose(info.k, [100, 0, 63.5, 0, 100, 47.5, 0, 0, 1], atol=1e-4)
    bench.wait_for_told("intrinsics", "camera_info")


def test_distortion_is_removed(make_bench):
    bench = make_bench()
    bench.start("camera_info", "rgb")
    k = [50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
    bench.send_camera_info(width=64, height=48, k=k, d=[-0.3, 0.1, 0.0, 0.0, 0.0], distortion_model="plumb_bob")
    bench.wait_for_camera_info()
    sent = np.frombuffer(bench.send(0).data, np.uint8).reshape(48, 64, 3)
    info, rgb = bench.wait_for("camera_info"), bench.wait_for("rgb")
    matrix = np.reshape(info.k, (3, 3))
    # Where the camera, with its distortion, sees what a pixel of the published image shows.
    ray = np.linalg.solve(matrix, [40, 30, 1])
    source, _ = cv2.projectPoints(ray, np.zeros(3), np.zeros(3), np.reshape(k, (3, 3)), np.array([-0.3, 0.1, 0, 0]))
    expected = cv2.remap(sent, *source.astype(np.float32).reshape(2, 1, 1), cv2.INTER_LINEAR)
    seen = values(rgb, np.uint8)[30, 40]
    np.testing.assert_allclose(seen, expected[0, 0], atol=4)


def test_unusable_camera_info_is_one_error_and_then_left_aside(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    bench.send_camera_info(width=640, height=400, k=[500.0, 0.0, 320.0, 0.0, 500.0, 240.0, 0.0, 0.0, 1.0])
    bench.wait_for_camera_info()
    for index in range(3):
        bench.send(index)
    bench.wait_for("pose", 3)
    line = bench.wait_for_log("640x400", level=40)
    assert "64x48" in line and bench.count_logs("640x400") == 1


def image(**changes):
    message = conversions.image_message(Header(), np.full((48, 64, 3), 90, np.uint8), "rgb8")
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def test_bad_images_are_skipped_with_a_clear_warning_and_the_stream_goes_on(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    bench.send(0)
    cases = [
        (image(encoding="nv21"), "image skipped: encoding 'nv21' is not supported; supported: rgb8, bgr8, rgba8"),
        (image(encoding="32FC1"), "image skipped: encoding '32FC1' is not supported"),
        (image(data=array.array("B", [1] * 100)), "image skipped: 64x48 image: data is cut short, 100 bytes"),
        (image(width=0, height=0, data=array.array("B")), "image skipped: 0x0 image: has no pixels"),
        (image(width=1_000_000), "image skipped: 1000000x48 image: is larger than any camera's"),
        (image(step=3), "image skipped: 64x48 image: step is 3 bytes, but a row of rgb8 takes 192"),
    ]
    for index, (message, _) in enumerate(cases):
        bench.send(1 + index, message=message)
        bench.send(1 + index, message=message)
    last = bench.send(20)
    for _, text in cases:
        bench.wait_for_log(text, level=30)
    bench.wait_for("pose", 2)
    assert bench.messages["pose"][-1].header.stamp == last.header.stamp
    assert bench.count_logs("image skipped") == len(cases)  # one line each, though each came twice
    bench.wait_for_told("bad frames", 2 * len(cases))
    bench.wait_for_told("frames out", 2)
    assert bench.count_logs("Traceback") == 0


def test_change_of_size_starts_a_new_world(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose", "depth", "trajectory")
    bench.send(0)
    bench.send(1)
    last = bench.send(2, size=(48, 64))
    bench.wait_for("depth", 3)
    sizes = [(depth.width, depth.height) for depth in bench.messages["depth"]]
    assert sizes == [(WIDTH, HEIGHT), (WIDTH, HEIGHT), (HEIGHT, WIDTH)]
    bench.wait_for_log("a new world starts (size)")
    assert wait_for_end(bench, last) == 1


def test_another_size_starts_a_new_world_though_the_network_sees_the_same(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("depth", "trajectory")
    lengths = []
    for index, size in enumerate([(64, 48), (64, 48), (128, 96), (128, 96), (64, 48)]):
        lengths.append(wait_for_end(bench, bench.send(index, time=index * 0.5, size=size)))
    assert lengths == [1, 2, 1, 2, 1]
    bench.wait_for("depth", 5)
    assert {(message.width, message.height) for message in bench.messages["depth"]} == {(WIDTH, HEIGHT)}
    bench.wait_for_told("resets", 2)
    bench.wait(lambda: bench.count_logs("a new world starts (size); the network's input is 64x48") == 2, "two lines")


def test_frames_without_a_name(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("depth", "tf")
    bench.send(0, frame_id="")
    bench.send(1, frame_id="")
    bench.wait_for("depth", 2)
    assert bench.messages["depth"][-1].header.frame_id == "camera_optical_frame"
    assert bench.wait_for("tf").transforms[0].child_frame_id == "camera_optical_frame"
    bench.wait_for_log("the images have no frame_id: camera_optical_frame is used", level=30)
    assert bench.count_logs("no frame_id") == 1


def test_leading_slash_of_the_frame_id_is_left_out_of_every_output(make_bench):
    bench = make_bench(every_frame=True)
    bench.start(*EVERYTHING)
    for index in range(UNKNOWN + 2):
        sent = bench.send(index, frame_id="/head/camera")
    for topic in EVERYTHING:
        if topic not in TRAJECTORIES:
            bench.wait_for(topic, UNKNOWN + 2 - UNKNOWN * (topic in MOTION_TOPICS))
    for topic in TRAJECTORIES:
        wait_for_end(bench, sent, topic)
    for topic in TOPICS:
        frame = "map" if topic in ("pose", "odometry", *TRAJECTORIES) else "head/camera"
        assert {message.header.frame_id for message in bench.messages[topic]} == {frame}, topic
    assert {message.child_frame_id for message in bench.messages["odometry"]} == {"head/camera"}
    transforms = [one for message in bench.messages["tf"] for one in message.transforms]
    assert {(one.header.frame_id, one.child_frame_id) for one in transforms} == {("map", "head/camera")}
    bench.wait_for_log("frame_id is '/head/camera': tf2 does not allow a leading slash, it is removed", level=30)
    assert bench.count_logs("slash") == 1


def test_names_of_frames_are_parameters(make_bench):
    bench = make_bench(world_frame="odom", child_frame="eye", publish_tf=False)
    bench.start("pose", "depth", "odometry", "tf")
    bench.send(0)
    bench.wait_for("depth")
    assert bench.messages["pose"][0].header.frame_id == "odom"
    assert bench.messages["depth"][0].header.frame_id == "eye"
    assert bench.wait_for("odometry").child_frame_id == "eye"
    assert bench.set_parameter("publish_tf", True).successful
    bench.send(1)
    (transform,) = bench.wait_for("tf").transforms
    assert (transform.header.frame_id, transform.child_frame_id) == ("odom", "eye")
    assert len(bench.messages["tf"]) == 1


# --------------------------------------------------------------------------------------------------------------- time


def test_stamps_that_jump_start_a_new_scene_with_one_line(make_bench):
    bench = make_bench(every_frame=True, max_gap=1.0)
    bench.start("pose", "trajectory", "odometry")
    offsets = [
        0.0, 0.1, 0.2,
        50.0, 50.1,  # forward
        0.0, 0.1,  # back, as a bag that loops
        1.05,  # a gap, but within max_gap
        1.02, 1.1,  # late by a little: no jump
    ]  # fmt: skip
    for index, offset in enumerate(offsets):
        last = bench.send(index, time=offset)
    bench.wait_for("pose", len(offsets))
    assert wait_for_end(bench, last) == 5
    grown = iter(zip(offsets, [1, 2, 3, 1, 2, 1, 2, 3, 4, 5], strict=True))
    lengths = [len(path.poses) for path in bench.messages["trajectory"]]
    came = list(zip(bench.times("trajectory"), lengths, strict=True))
    assert all(pair in grown for pair in came)  # in this order, with some left out
    assert [pair for pair in came if pair[1] == 1] == [(0.0, 1), (50.0, 1), (0.0, 1)]
    assert bench.times("pose") == offsets
    assert bench.count_logs("stamps jump") == 2
    bench.wait_for_log("stamps jump forward by 49.800 s: the stream is reset", level=30)
    bench.wait_for_log("stamps jump back by 50.100 s: the stream is reset", level=30)
    bench.wait_for("odometry", len(offsets))
    known = [odometry.twist.covariance[0] < 1e6 for odometry in bench.messages["odometry"]]
    assert known == [False, True, True, False, True, False, True, True, False, True]
    bench.wait_for_told("resets", 2)


def test_images_without_stamps_get_the_time_of_receipt(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    before = bench.node.get_clock().now()
    for _ in range(2):
        bench.publish(image())
    bench.wait_for("pose", 2)
    bench.wait_for_log("the images have no stamps: the time of receipt is used", level=30)
    assert bench.count_logs("no stamps") == 1
    first, second = (Time.from_msg(message.header.stamp) for message in bench.messages["pose"])
    assert before <= first <= second <= bench.node.get_clock().now()


def test_simulated_time(make_bench):
    bench = make_bench(use_sim_time=True)
    bench.start("pose")
    # Diagnostics come while the clock stands still.
    bench.wait_for_told("state", "active")
    clock = bench.probe.create_publisher(Clock, "/clock", 1)
    bench.wait(clock.get_subscription_count, "match of /clock")
    clock.publish(Clock(clock=Time(seconds=1234).to_msg()))
    bench.wait(lambda: bench.node.get_clock().now().nanoseconds == 1234 * 10**9, "simulated time")
    bench.publish(image())
    assert bench.wait_for("pose").header.stamp == Time(seconds=1234).to_msg()


# --------------------------------------------------------------------------------------------------------------- load


def test_newest_frame_wins_and_dropped_ones_are_counted(make_bench, hold):
    bench = make_bench()
    bench.start("pose")
    held = hold(bench)
    bench.send(0)
    held.wait_until_inside()
    for index in range(1, 6):
        bench.send(index)
        # One by one, so that DDS, which keeps one as well, drops none of them itself.
        bench.wait_for_arrival()
    held.let_go()
    bench.wait_for("pose", 2)
    bench.wait_for_told("frames dropped", 4)
    bench.wait_for_told("frames out", 2)
    assert bench.times("pose") == [0.0, 0.5]


def test_dropped_frame_does_not_hide_a_jump(make_bench, hold):
    bench = make_bench()
    bench.start("trajectory")
    held = hold(bench)
    bench.send(0)
    held.wait_until_inside()
    for time in (50.0, 50.1):
        bench.send(1, time=time)
        bench.wait_for_arrival()
    held.let_go()
    assert len(bench.wait_for("trajectory", 2).poses) == 1


def test_every_frame_is_processed_in_order(make_bench, hold):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    held = hold(bench)
    for index in range(20):
        bench.send(index)
    held.let_go()
    bench.wait_for("pose", 20)
    assert bench.times("pose") == [index / 10 for index in range(20)]
    bench.wait_for_told("frames out", 20)
    assert (bench.told["frames dropped"], bench.told["frames lost"]) == ("0", "0")


def test_full_queue_is_an_error_never_silent(make_bench, hold):
    bench = make_bench(every_frame=True, max_gap=1000.0)
    bench.start("pose")
    held = hold(bench)
    bench.send(0)
    held.wait_until_inside()
    for index in range(1, QUEUE_DEPTH + 4):
        bench.send(index)
    bench.wait_for_log("the queue of 100 frames is full: frames are lost", level=40)
    bench.wait_for_told("frames lost", 3)
    bench.wait(lambda: any(level == b"\x02" for level, _ in bench.statuses), "error in the diagnostics")
    # Deactivating does not work through what waits.
    held.let_go(1)
    assert bench.change_state("deactivate")
    bench.wait_for_log("100 waiting frames were not processed", level=30)


def test_callbacks_do_not_wait_for_the_network(make_bench, hold):
    bench = make_bench()
    bench.start("pose")
    held = hold(bench)
    bench.send(0)
    held.wait_until_inside()
    assert bench.state() == "active"
    assert bench.set_parameter("mask.high", 7.0).successful
    assert bench.reset().success
    told = len(bench.statuses)
    bench.wait(lambda: len(bench.statuses) >= told + 2, "diagnostics")
    bench.send(1)
    bench.wait_for_told("frames in", 2)
    assert not bench.messages["pose"]
    held.let_go()
    bench.wait_for("pose", 2)


# ---------------------------------------------------------------------------------------------------------- life cycle


def test_deactivate_keeps_the_scene_and_cleanup_forgets_it(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose", "trajectory")
    for index in range(3):
        bench.send(index)
    bench.wait_for("pose", 3)
    assert bench.change_state("deactivate")
    assert bench.state() == "inactive"
    bench.wait_for_told("state", "inactive")
    assert bench.node.count_subscribers("image") == 0
    bench.send(3)
    assert bench.change_state("activate")
    bench.wait_for_match()
    # A pause of minutes is no jump of the stamps.
    sent = bench.send(4, time=300.0)
    bench.wait_for("pose", 4)
    assert wait_for_end(bench, sent) == 4
    assert bench.node.stream.snapshot().frame == 4
    assert bench.count_logs("a new world starts") == 1

    assert bench.change_state("deactivate")
    assert bench.change_state("cleanup")
    assert bench.node.stream is None
    own = [publisher.topic_name for publisher in bench.node.publishers if publisher.topic_name.startswith(bench.name)]
    assert own == [f"{bench.name}/transition_event"] or own == []
    assert bench.change_state("configure") and bench.change_state("activate")
    bench.wait_for_match()
    bench.wait(lambda: bench.subscribed() >= {"pose", "trajectory"}, "match of the outputs")
    sent = bench.send(5)
    assert wait_for_end(bench, sent) == 1
    assert bench.change_state("shutdown") and bench.state() == "finalized"


def test_reset_starts_a_new_world(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose", "trajectory")
    for index in range(3):
        bench.send(index)
    bench.wait_for("pose", 3)
    answer = bench.reset()
    assert answer.success and "the next image starts a new world" in answer.message
    sent = bench.send(0, time=0.3)
    assert wait_for_end(bench, sent) == 1
    first, *_, again = bench.messages["pose"]
    assert numbers(again.pose.position, again.pose.orientation) == numbers(first.pose.position, first.pose.orientation)
    bench.wait_for_told("resets", 1)


def test_diagnostics_amid_configure(make_bench, monkeypatch):
    """The timer may come just when some of what it tells about is there, and some is not."""
    bench = make_bench()
    reports = []

    class LateMaps(MapPublisher):
        def __init__(self, *arguments):
            reports.append(pool.submit(bench.node.status))
            wait(reports, timeout=0.2)
            super().__init__(*arguments)

    monkeypatch.setattr(session, "MapPublisher", LateMaps)
    with ThreadPoolExecutor(1) as pool:
        assert bench.change_state("configure")
        reports[0].result(timeout=60.0)


def test_memory_that_starts_anew_at_its_interval_keeps_the_world(make_bench):
    bench = make_bench(every_frame=True, reset_interval=4)
    bench.start("trajectory")
    for index in range(6):
        last = bench.send(index)
    assert wait_for_end(bench, last) == 6
    bench.wait_for_log("frame 5 is the first of a new segment, aligned with the last one")
    bench.wait_for_told("resets", 1)


def test_memory_that_starts_anew_without_alignment_starts_a_new_world_with_the_image_after_it(make_bench):
    bench = make_bench(every_frame=True, reset_interval=4, reset_alignment="off")
    bench.start("pose", "trajectory")
    lengths, sent = [], []
    for index in range(10):
        sent.append(bench.send(index, time=index * 0.5))  # so far apart that each trajectory is published
        lengths.append(wait_for_end(bench, sent[-1]))
    # Frames 4 and 8 are still seen with the memory that they replace.
    assert lengths == [1, 2, 3, 4, 5, 1, 2, 3, 4, 1]
    alone = Stream(load_network("one_room"), StreamOptions(image_size=WIDTH, reset_interval=0))
    endless = [poses.world_pose(alone.step(conversions.image_array(message)).pose.numpy()) for message in sent[:6]]
    bench.wait_for("pose", 10)
    published = [conversions.pose_matrix(message.pose) for message in bench.messages["pose"]]
    np.testing.assert_allclose(published[:5], endless[:5], atol=1e-5)
    assert np.abs(published[5] - endless[5]).max() > 1e-3
    bench.wait_for_told("resets", 2)
    bench.wait(lambda: bench.count_logs("a new world starts (memory not aligned)") == 2, "two lines")
    assert bench.count_logs("new segment") == 0


@pytest.mark.parametrize("name", ["missing.safetensors", "text.safetensors", "foreign.safetensors", "text.pth"])
def test_unusable_checkpoint_fails_configure_with_one_clear_line(make_bench, tmp_path, name):
    path = tmp_path / name
    if name.startswith("text"):
        path.write_text("these are no weights")
        text = f"configure failed: {path} "
    elif name.startswith("foreign"):
        network = load_network("mini")
        metadata = {"format": "raymap3r-1", "config": json.dumps(network.config.to_dict())}
        safetensors.torch.save_file({"somebody.elses": torch.zeros(3)}, path, metadata)
        text = f"configure failed: {path} does not hold this network"
    else:
        text = f"configure failed: checkpoint '{path}' is not a file, nor weights that come with the package"
    bench = make_bench(checkpoint=str(path))
    assert not bench.change_state("configure")
    assert bench.state() == "unconfigured"
    line = bench.wait_for_log("configure failed", level=40)
    assert line.startswith(text) and "\n" not in line and len(line) < 1100
    assert bench.count_logs("Traceback") == 0
    assert not any(publisher.topic_name == f"{bench.name}/pose" for publisher in bench.node.publishers)
    # Nothing is left over that a second try could stumble upon.
    assert bench.set_parameter("checkpoint", "mini").successful
    assert bench.change_state("configure")


# ------------------------------------------------------------------------------------------------------------ mishaps


def fail_with(bench, make_error, frames):
    """Let the next frames of a bench's stream fail."""
    stream = bench.node.stream
    step, left = stream.step, [frames]

    def failing(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise make_error()
        return step(*args, **kwargs)

    stream.step = failing


def test_out_of_gpu_memory_skips_the_frame(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    fail_with(bench, lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"), frames=2)
    for index in range(3):
        bench.send(index)
    bench.wait_for("pose")
    assert bench.times("pose") == [0.2]
    bench.wait_for_log("out of GPU memory, frame skipped: CUDA out of memory", level=40)
    bench.wait(lambda: any(level == b"\x02" for level, _ in bench.statuses), "error in the diagnostics")
    assert bench.state() == "active"


def test_three_frames_without_gpu_memory_deactivate_the_node(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    fail_with(bench, lambda: torch.cuda.OutOfMemoryError("CUDA out of memory"), frames=3)
    for index in range(3):
        bench.send(index)
    bench.wait_for_log("3 frames in a row without GPU memory: the node deactivates itself", level=40)
    bench.wait(lambda: bench.state() == "inactive", "deactivation")
    assert bench.change_state("activate")
    bench.wait_for_match()
    bench.send(3)
    bench.wait_for("pose")


def test_unforeseen_error_is_told_in_full_and_survived(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    fail_with(bench, lambda: ZeroDivisionError("what nobody foresaw"), frames=1)
    bench.send(0)
    bench.send(1)
    bench.wait_for("pose")
    assert bench.times("pose") == [0.1]
    line = bench.wait_for_log("frame skipped: ZeroDivisionError: what nobody foresaw", level=40)
    assert "Traceback" in line
    bench.wait_for_told("last error", "frame skipped: ZeroDivisionError: what nobody foresaw")


def test_output_that_is_not_finite_is_not_published(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    stream = bench.node.stream
    step = stream.step

    def sick(*args, **kwargs):
        result = step(*args, **kwargs)
        return dataclasses.replace(result, healthy=torch.tensor(result.frame > 0))

    stream.step = sick
    bench.send(0)
    bench.send(1)
    bench.wait_for("pose")
    assert bench.times("pose") == [0.1]
    bench.wait_for_log("the network's output is not finite: frame not published", level=40)
    bench.wait_for_told("last error", "the network's output is not finite: frame not published")
    bench.wait_for_told("frames out", 1)


def test_best_effort_camera_is_heard(make_bench):
    bench = make_bench()
    bench.start("pose")
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    camera = bench.probe.create_publisher(Image, "image", qos)
    bench.wait(camera.get_subscription_count, "match of image")
    message = image()
    message.header.stamp.sec = 1
    bench.wait(lambda: camera.publish(message) or bench.messages["pose"], "pose from a best effort camera")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:rclpy")
def test_best_effort_camera_in_every_frame_mode_is_warned_about(make_bench):
    bench = make_bench(every_frame=True)
    bench.start()
    bench.probe.create_publisher(Image, "image", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    bench.wait_for_log("offering incompatible QoS", level=30)


def test_bad_parameter_type_does_not_break_the_constructor(make_bench):
    assert make_bench(every_frame="yes").node.get_parameter("every_frame").type_ == Parameter.Type.STRING


def test_destroyed_node_leaves_the_graph_at_once(make_bench):
    """Were it left to Python's collector, it would take the log from a node that has its name by then."""
    bench = make_bench()
    guest = stream_node.StreamNode(namespace="/guest", context=bench.context)

    def is_there():
        return ("raymap3r", "/guest") in bench.probe.get_node_names_and_namespaces()

    gc.disable()
    try:
        assert guest.autostart()
        bench.wait(is_there, "the guest in the graph")
        guest.close()
        guest.destroy_node()
        bench.wait(lambda: not is_there(), "the guest's leave")
    finally:
        gc.enable()
