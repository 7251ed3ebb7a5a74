"""Every output of the node over real DDS."""

import numpy as np
import pytest
from sensor_msgs_py.point_cloud2 import read_points
from std_msgs.msg import Header
from topic_helpers import EVERYTHING, HEIGHT, IMAGES, TRAJECTORIES, WARMUP, WIDTH, numbers, values, wait_for_end

from raymap3r_ros.network import load_network
from raymap3r_ros.node import conversions, publishers, session, summary
from raymap3r_ros.node.publishers import MOTION_TOPICS, TOPICS
from raymap3r_ros.streaming import METHOD
from raymap3r_ros.streaming.plausibility import METADATA_KEY, MIN_FRAMES, PlausibilityLimits
from raymap3r_ros.synthetic import suite_sequence


@pytest.fixture
def make_bench(make_bench):
    """A bench whose network input has the size of the images sent."""
    return lambda **parameters: make_bench(**{"image_size": WIDTH, **parameters})


def test_every_output(make_bench):
    bench = make_bench(every_frame=True)
    bench.start(*EVERYTHING)
    sent = [bench.send(index).header.stamp for index in range(8)]
    for topic in EVERYTHING:
        if topic not in TRAJECTORIES:
            bench.wait_for(topic, len(sent) - WARMUP * (topic in MOTION_TOPICS))
    for topic in TRAJECTORIES:
        assert wait_for_end(bench, bench.messages["pose"][-1], topic) == len(sent)

    for topic in TOPICS:
        stamps = [message.header.stamp for message in bench.messages[topic]]
        if topic in TRAJECTORIES:
            assert stamps == [stamp for stamp in sent if stamp in stamps], topic
        elif topic in MOTION_TOPICS:  # frames without a motion estimate are not published as static
            assert stamps == sent[WARMUP:], topic
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
    dynamic_pixels = values(mask, np.uint8)
    assert set(np.unique(dynamic_pixels)) <= {0, 255}
    np.testing.assert_array_equal(np.isnan(values(static)), dynamic_pixels == 255)
    np.testing.assert_array_equal(values(static)[dynamic_pixels == 0], values(depth)[dynamic_pixels == 0])
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

    bench.wait_for_diagnostics("frames out", len(sent))
    reported = bench.diagnostics
    assert (reported["frames in"], reported["frames dropped"], reported["frames lost"]) == ("8", "0", "0")
    assert float(reported["rate in (Hz)"]) > 0 and float(reported["rate out (Hz)"]) > 0
    assert float(reported["latency from arrival, median (ms)"]) > 0
    assert {
        "stage convert (ms)",
        "stage publish (ms)",
        "stage decode (ms)",
        "stage ray_branch (ms)",
    } <= reported.keys()
    assert 0 < float(reported["stage node (ms)"]) < float(reported["stage whole frame (ms)"])
    assert reported["update rule"] == "raymap3r" and reported["device"] == "cpu"
    assert reported["resets"] == "0" and reported["last error"] == ""


def test_untrained_weights_are_reported(make_bench):
    bench = make_bench(checkpoint="mini")
    assert bench.change_state("configure")
    bench.wait_for_log("untrained weights", level=30)
    bench.wait(lambda: any("untrained weights" in text for _, text in bench.statuses), "diagnostics")


def test_outputs_without_subscribers_are_not_computed(make_bench, monkeypatch):
    bench = make_bench(every_frame=True, update_rule="ttt3r", **{"keyframes.size": 0})
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
    bench.wait_for_diagnostics("frames out", 7)
    two_poses = 2 * 16 * 4
    assert all(two_poses < small < two_poses + 32 and large == 0 for small, large in copied)
    bench.wait_for_diagnostics("subscribed outputs", "pose")
    assert "stage ray_branch (ms)" not in bench.diagnostics

    bench.subscribe("dynamic_mask")
    bench.send(7)
    bench.wait_for("dynamic_mask", 1)
    assert motions[-1]
    small, large = copied[-1]
    assert small < two_poses + 32 and large == WIDTH * HEIGHT


def test_points_match_the_images_where_the_network_is_confident(make_bench):
    bench = make_bench(every_frame=True)
    topics = ("points", "dynamic_mask", "depth", "confidence", "rgb", "camera_info")
    bench.start(*topics)
    room = suite_sequence("light", 0, world="one_room", size=(96, 128)).frames()
    images = [
        conversions.image_message(Header(), frame.image, "rgb8") for frame, _ in zip(room, range(8), strict=False)
    ]
    for index, image in enumerate(images[:7]):
        bench.send(index, message=image)
    bench.wait_for("points", 7 - WARMUP)
    middle = float(np.median(values(bench.messages["confidence"][-1])))
    assert bench.set_parameter("confidence_threshold", middle).successful
    bench.send(7, message=images[7])
    cloud, mask = (bench.wait_for(topic, 8 - WARMUP) for topic in topics[:2])
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
    # Every point lies approximately on the ray of its pixel.
    rows, columns = np.nonzero(chosen)
    fx, fy = info.k[0], info.k[4]
    assert np.corrcoef(points["x"] / points["z"] * fx, columns)[0, 1] > 0.9
    assert np.corrcoef(points["y"] / points["z"] * fy, rows)[0, 1] > 0.9


def test_points_are_subsampled_and_filtered(make_bench):
    bench = make_bench(every_frame=True, points__stride=4, confidence_threshold=1.0)
    bench.start("points")
    for index in range(WARMUP + 1):
        bench.send(index)
    assert bench.wait_for("points").width == 16 * 12
    assert bench.set_parameter("confidence_threshold", 1000.0).successful
    bench.send(WARMUP + 1)
    assert bench.wait_for("points", 2).width == 0


def test_late_subscriber_receives_the_trajectory(make_bench):
    bench = make_bench()
    bench.start("pose")
    bench.send(0)
    bench.wait_for("pose")
    bench.subscribe("trajectory")
    assert len(bench.wait_for("trajectory").poses) == 1


def test_trajectories_are_published_twice_per_second_of_stamps_and_at_the_end(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose", "trajectory")
    for index in range(24):
        last = bench.send(index)
    bench.wait_for("pose", 24)
    assert wait_for_end(bench, last) == 24
    times = bench.times("trajectory")
    # In between, the timer may have published one per second of wall-clock time.
    assert {0.0, 0.5, 1.0, 1.5, 2.0, 2.3} <= set(times)
    assert len(times) < 24 and times == sorted(set(times))


def test_weights_that_do_not_fit_are_one_warning_and_stand_in_the_diagnostics(make_bench, monkeypatch):
    limits = {METADATA_KEY: PlausibilityLimits(99.0, 99.0, 0.0).to_json()}  # which no image meets

    def load(*arguments):
        network = load_network(*arguments)
        network.manifest = limits
        return network

    monkeypatch.setattr(session, "load_network", load)
    bench = make_bench(checkpoint="mini", every_frame=True)
    bench.start("pose")
    copies, to_host = [], summary.to_host
    monkeypatch.setattr(summary, "to_host", lambda tensors: copies.append(None) or to_host(tensors))
    count = METHOD.warmup_frames + 2 * MIN_FRAMES
    for index in range(count):
        bench.send(index)
    bench.wait_for("pose", count)
    bench.wait_for_log("the weights do not fit these images", level=30)
    bench.wait_for_diagnostics("weights fit", "no")
    bench.wait(lambda: any("the weights do not fit" in text for _, text in bench.statuses), "diagnostics")
    assert len(copies) == count  # one for each frame, with these numbers in it
    assert bench.count_logs("the weights do not fit") == 1
