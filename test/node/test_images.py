"""Images, camera_info and stamps that the node receives over real DDS."""

import array

import cv2
import numpy as np
import pytest
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from topic_helpers import EVERYTHING, HEIGHT, TRAJECTORIES, WARMUP, WIDTH, image, values, wait_for_end

from raymap3r_ros.node.publishers import MOTION_TOPICS, TOPICS


@pytest.fixture
def make_bench(make_bench):
    """A bench whose network input has the size of the images sent."""
    return lambda **parameters: make_bench(**{"image_size": WIDTH, **parameters})


# -------------------------------------------------------------------------------------------------------------- inputs


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
    bench.wait_for_diagnostics("intrinsics", "camera_info")


def test_distortion_is_removed(make_bench):
    bench = make_bench()
    bench.start("camera_info", "rgb")
    k = [50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
    bench.send_camera_info(width=64, height=48, k=k, d=[-0.3, 0.1, 0.0, 0.0, 0.0], distortion_model="plumb_bob")
    bench.wait_for_camera_info()
    sent = np.frombuffer(bench.send(0).data, np.uint8).reshape(48, 64, 3)
    info, rgb = bench.wait_for("camera_info"), bench.wait_for("rgb")
    matrix = np.reshape(info.k, (3, 3))
    # The position in the distorted image that corresponds to a pixel of the published image.
    ray = np.linalg.solve(matrix, [40, 30, 1])
    source, _ = cv2.projectPoints(ray, np.zeros(3), np.zeros(3), np.reshape(k, (3, 3)), np.array([-0.3, 0.1, 0, 0]))
    expected = cv2.remap(sent, *source.astype(np.float32).reshape(2, 1, 1), cv2.INTER_LINEAR)
    actual = values(rgb, np.uint8)[30, 40]
    np.testing.assert_allclose(actual, expected[0, 0], atol=4)


def test_unusable_camera_info_is_one_error_and_is_ignored(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    bench.send_camera_info(width=640, height=400, k=[500.0, 0.0, 320.0, 0.0, 500.0, 240.0, 0.0, 0.0, 1.0])
    bench.wait_for_camera_info()
    for index in range(3):
        bench.send(index)
    bench.wait_for("pose", 3)
    line = bench.wait_for_log("640x400", level=40)
    assert "64x48" in line and bench.count_logs("640x400") == 1


def test_bad_images_are_skipped_with_a_warning_and_the_stream_continues(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    bench.send(0)
    cases = [
        (image(encoding="nv24"), "image skipped: encoding 'nv24' is not supported; supported: rgb8, bgr8, rgba8"),
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
    assert bench.count_logs("image skipped") == len(cases)  # one line for each case, though each image was sent twice
    bench.wait_for_diagnostics("bad frames", 2 * len(cases))
    bench.wait_for_diagnostics("frames out", 2)
    assert bench.count_logs("Traceback") == 0


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_a_depth_topic_is_named_once_with_the_colour_topics(make_bench, transport):
    bench = make_bench(every_frame=True, image_transport=transport)
    kind, message = {
        "raw": (Image, image(encoding="16UC1")),
        "compressed": (CompressedImage, CompressedImage(format="16UC1; compressedDepth png", data=b"x")),
    }[transport]
    for name in ("eye", "other/depth"):
        bench.probe.create_publisher(kind, name, 1)
        bench.wait(lambda name=name: bench.node.count_publishers(f"{bench.namespace}/{name}"), f"discovery of {name}")
    bench.start("pose")
    for index in range(3):
        bench.send(index, message=message)
    line = bench.wait_for_log("probably a depth image; remap `image` to the colour topic, such as ", level=30)
    assert f"{bench.namespace}/eye" in line and f"{bench.namespace}/other/depth" not in line
    bench.wait_for_diagnostics("bad frames", 3)
    assert bench.count_logs("image skipped") == 1


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


def test_change_of_size_starts_a_new_world_though_the_network_input_is_unchanged(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("depth", "trajectory")
    lengths = []
    for index, size in enumerate([(64, 48), (64, 48), (128, 96), (128, 96), (64, 48)]):
        lengths.append(wait_for_end(bench, bench.send(index, time=index * 0.5, size=size)))
    assert lengths == [1, 2, 1, 2, 1]
    bench.wait_for("depth", 5)
    assert {(message.width, message.height) for message in bench.messages["depth"]} == {(WIDTH, HEIGHT)}
    bench.wait_for_diagnostics("resets", 2)
    bench.wait(lambda: bench.count_logs("a new world starts (size); the network's input is 64x48") == 2, "two lines")


def test_images_without_a_frame_id(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("depth", "tf")
    bench.send(0, frame_id="")
    bench.send(1, frame_id="")
    bench.wait_for("depth", 2)
    assert bench.messages["depth"][-1].header.frame_id == "camera_optical_frame"
    assert bench.wait_for("tf").transforms[0].child_frame_id == "camera_optical_frame"
    bench.wait_for_log("the images have no frame_id: camera_optical_frame is used", level=30)
    assert bench.count_logs("no frame_id") == 1


def test_leading_slash_of_the_frame_id_is_removed_in_every_output(make_bench):
    bench = make_bench(every_frame=True)
    bench.start(*EVERYTHING)
    for index in range(WARMUP + 2):
        sent = bench.send(index, frame_id="/head/camera")
    for topic in EVERYTHING:
        if topic not in TRAJECTORIES:
            bench.wait_for(topic, WARMUP + 2 - WARMUP * (topic in MOTION_TOPICS))
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


def test_frame_names_are_parameters(make_bench):
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


# ---------------------------------------------------------------------------------------------------------------- time


def test_jump_of_stamps_starts_a_new_world_with_one_log_line(make_bench):
    bench = make_bench(every_frame=True, max_gap=1.0)
    bench.start("pose", "trajectory", "odometry")
    offsets = [
        0.0, 0.1, 0.2,
        50.0, 50.1,  # forward
        0.0, 0.1,  # back, like a bag that loops
        1.05,  # a gap, but within max_gap
        1.02, 1.1,  # slightly out of order: no jump
    ]  # fmt: skip
    for index, offset in enumerate(offsets):
        last = bench.send(index, time=offset)
    bench.wait_for("pose", len(offsets))
    assert wait_for_end(bench, last) == 5
    expected_lengths = iter(zip(offsets, [1, 2, 3, 1, 2, 1, 2, 3, 4, 5], strict=True))
    lengths = [len(path.poses) for path in bench.messages["trajectory"]]
    received = list(zip(bench.times("trajectory"), lengths, strict=True))
    assert all(pair in expected_lengths for pair in received)  # in this order; some are skipped
    assert [pair for pair in received if pair[1] == 1] == [(0.0, 1), (50.0, 1), (0.0, 1)]
    assert bench.times("pose") == offsets
    assert bench.count_logs("stamps jump") == 2
    bench.wait_for_log("stamps jump forward by 49.800 s: the stream is reset", level=30)
    bench.wait_for_log("stamps jump back by 50.100 s: the stream is reset", level=30)
    bench.wait_for("odometry", len(offsets))
    known = [odometry.twist.covariance[0] < 1e6 for odometry in bench.messages["odometry"]]
    assert known == [False, True, True, False, True, False, True, True, False, True]
    bench.wait_for_diagnostics("resets", 2)


def test_images_without_stamps_are_stamped_on_receipt(make_bench):
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


def test_image_without_a_stamp_continues_from_its_neighbour(make_bench):
    bench = make_bench(every_frame=True, use_sim_time=True)
    bench.start("pose")
    clock = bench.probe.create_publisher(Clock, "/clock", 1)
    bench.wait(clock.get_subscription_count, "match of /clock")
    for count, (now, stamp) in enumerate(((1000.0, 5.0), (1000.5, None), (1001.0, 6.0)), 1):
        time = Time(nanoseconds=round(now * 1e9))
        clock.publish(Clock(clock=time.to_msg()))
        bench.wait(lambda time=time: bench.node.get_clock().now().nanoseconds == time.nanoseconds, "simulated time")
        message = image()
        message.header.stamp = Time(nanoseconds=round((stamp or 0) * 1e9)).to_msg()
        bench.publish(message)
        bench.wait_for("pose", count)
    stamps = [Time.from_msg(message.header.stamp).nanoseconds * 1e-9 for message in bench.messages["pose"]]
    assert stamps == [5.0, 5.5, 6.0]
    bench.wait_for_log("some images have no stamps", level=30)
    assert bench.count_logs("stamps jump") == 0


def test_simulated_time(make_bench):
    bench = make_bench(use_sim_time=True)
    bench.start("pose")
    # Diagnostics are published while the clock stands still.
    bench.wait_for_diagnostics("state", "active")
    clock = bench.probe.create_publisher(Clock, "/clock", 1)
    bench.wait(clock.get_subscription_count, "match of /clock")
    clock.publish(Clock(clock=Time(seconds=1234).to_msg()))
    bench.wait(lambda: bench.node.get_clock().now().nanoseconds == 1234 * 10**9, "simulated time")
    bench.publish(image())
    assert bench.wait_for("pose").header.stamp == Time(seconds=1234).to_msg()
