"""Damaged, mutated and absurd messages: each is skipped with a warning or used, and the stream continues."""

import array
import itertools

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from nav_msgs.msg import Odometry
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Range
from std_msgs.msg import Header

from raymap3r_ros.errors import InputError
from raymap3r_ros.node import conversions, stream_node
from raymap3r_ros.node.conversions import ENCODINGS
from raymap3r_ros.node.diagnostics import COUNTS
from raymap3r_ros.node.reporter import Reporter

from .conftest import assert_alive, assert_no_leak, usage

WIDTH, HEIGHT = 64, 48
BATCH = 40  # shorter than the node's queue, so that no frame is dropped for lack of space
WARM_UP = 2 * BATCH
LINES = 400  # upper limit of log lines: a flood of bad messages must not flood the log
ABSURD = (0, 1, 2, 7, 4095, 16_384, 16_385, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
TEXTS = (
    "",
    "?",
    "RGB8",
    "rgb8 ",
    "32FC1",
    "16UC1",
    "nv12",
    "nv21",
    "nv24",
    "8UC3",
    "../../etc",
    "x" * 5000,
    "\ufffd\u202e\U0001f4a9",
    "%s%n",
)
NUMBERS = (0.0, -1.0, 1e-300, 1e300, -1e300, float("nan"), float("inf"), float("-inf"), 50.0)
STAMPS = ((0, 0), (-1, 0), (-(2**31), 0), (2**31 - 1, 999_999_999), (5, 10**9), (7, 2**32 - 1), (1, 1))


def pick(rng, values):
    return values[rng.integers(len(values))]


def valid_image(rng, encoding="rgb8", width=WIDTH, height=HEIGHT):
    row = width * ENCODINGS[encoding][0]
    message = Image(height=height, width=width, encoding=encoding, step=row)
    message.data = array.array("B", rng.integers(0, 256, row * height, np.uint8).tobytes())
    return message


def float_image(rng):
    values = rng.normal(size=(HEIGHT, WIDTH)).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = np.nan
    return conversions.image_message(Header(), values, "32FC1")


def mutated_image(rng):
    """A valid image in any encoding with up to three changes."""
    message = float_image(rng) if rng.random() < 0.05 else valid_image(rng, pick(rng, list(ENCODINGS)))
    for what in rng.choice(("nothing", "width", "height", "step", "encoding", "endian", "data", "stamp", "frame"), 3):
        if what in ("width", "height", "step"):
            setattr(message, what, pick(rng, ABSURD))
        elif what == "encoding":
            message.encoding = pick(rng, TEXTS + tuple(ENCODINGS)) + (
                "" if rng.random() < 0.5 else str(rng.integers(99))
            )
        elif what == "endian":
            message.is_bigendian = int(rng.integers(256))
        elif what == "data":
            length = int(rng.integers(0, 2 * len(message.data) + 1))
            message.data = array.array("B", (message.data.tobytes() * 2)[:length])
        elif what == "stamp":
            message.header.stamp = Time(sec=(stamp := pick(rng, STAMPS))[0], nanosec=stamp[1])
        elif what == "frame":
            message.header.frame_id = pick(rng, TEXTS)
    return message


def mutated_compressed(rng):
    suffix = pick(rng, (".jpg", ".png"))
    picture = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    data = bytearray(cv2.imencode(suffix, picture)[1].tobytes())
    kind = rng.integers(5)
    if kind == 1:
        data = data[: rng.integers(len(data))]
    elif kind == 2:
        for position in rng.integers(0, min(len(data), 200), 8):
            data[position] = rng.integers(256)
    elif kind == 3:
        data = bytearray(rng.bytes(int(rng.integers(0, 5000))))
    elif kind == 4:
        data = data[:4] + bytearray(rng.bytes(100))
    message = CompressedImage(format=pick(rng, (*TEXTS, "jpeg", "png")), data=array.array("B", bytes(data)))
    message.header.stamp = Time(sec=(stamp := pick(rng, STAMPS))[0], nanosec=stamp[1])
    return message


def mutated_info(rng):
    info = CameraInfo(
        width=WIDTH, height=HEIGHT, k=[50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0], distortion_model="plumb_bob"
    )
    for what in rng.choice(("k", "p", "d", "size", "model", "binning", "roi", "stamp"), 3):
        if what in ("k", "p"):
            numbers = getattr(info, what)
            numbers[rng.integers(len(numbers))] = pick(rng, NUMBERS)
        elif what == "d":
            info.d = [pick(rng, NUMBERS) for _ in range(pick(rng, (1, 4, 5, 8, 12, 14, 1000)))]
        elif what == "size":
            info.width, info.height = pick(rng, ABSURD), pick(rng, ABSURD)
        elif what == "model":
            info.distortion_model = pick(rng, (*TEXTS, "equidistant", "rational_polynomial"))
        elif what == "binning":
            info.binning_x, info.binning_y = pick(rng, ABSURD), pick(rng, ABSURD)
        elif what == "roi":
            for name in ("x_offset", "y_offset", "width", "height"):
                setattr(info.roi, name, pick(rng, ABSURD))
        else:
            info.header.stamp = Time(sec=pick(rng, STAMPS)[0])
    return info


class Feed:
    """Publishes a valid image after each batch of messages and waits for its depth."""

    def __init__(self, bench):
        self.bench = bench
        self._marks = itertools.count()

    def wait_until_handled(self, image):
        """Publish a valid image and wait for its depth: all earlier messages have then been handled."""
        name = f"mark_{next(self._marks)}"
        self.bench.send(0, message=image, frame_id=name)
        depth = self.bench.messages["depth"]
        self.bench.wait(lambda: any(one.header.frame_id == name for one in depth[-BATCH * 2 :]), f"depth of {name}")
        del self.bench.messages["depth"][:-1]


def test_mutated_images(make_bench, rng, sized, monkeypatch):
    reporters = []

    class KeptReporter(Reporter):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            reporters.append(self)

    monkeypatch.setattr(stream_node, "Reporter", KeptReporter)
    bench = make_bench(image_size=WIDTH, every_frame=True, tf_mode="camera")
    bench.start("depth", "points", "tf", "odometry")
    feed, publisher = Feed(bench), bench.publishers["image"]
    before = None
    for index in range(sized(100, 10_000)):
        if index == WARM_UP:
            before = usage(bench.node)
        publisher.publish(mutated_image(rng))
        if index % BATCH == BATCH - 1:
            feed.wait_until_handled(valid_image(rng))
    feed.wait_until_handled(valid_image(rng))
    assert_alive(bench)
    counts = {name: int(bench.current_diagnostics()[name]) for name in COUNTS}
    assert counts["bad frames"] > counts["frames out"] > 0
    assert counts["frames lost"] == 0
    assert_no_leak(before, usage, bench.node)
    assert len(bench.logs) < LINES + counts["resets"] * 3
    (reporter,) = reporters
    assert len(reporter) < LINES
    assert max(len(text) for _, text in bench.logs) < 3000


def test_mutated_bytes_on_the_wire(make_bench, rng, sized):
    """Input from a faulty or malicious DDS peer: a serialized image with bytes changed or cut off."""
    bench = make_bench(image_size=WIDTH, every_frame=True)
    bench.start("depth")
    feed, publisher = Feed(bench), bench.publishers["image"]
    for index in range(sized(40, 4000)):
        raw = bytearray(serialize_message(valid_image(rng)))
        if index % 3 == 0:
            raw = raw[: rng.integers(4, len(raw))]
        for position in rng.integers(4, 60, 3):  # header, sizes, encoding
            raw[min(position, len(raw) - 1)] = rng.integers(256)
        publisher.publish(bytes(raw))
        if index % BATCH == BATCH - 1:
            feed.wait_until_handled(valid_image(rng))
    feed.wait_until_handled(valid_image(rng))
    assert_alive(bench)


def test_mutated_compressed_images(make_bench, rng, sized):
    bench = make_bench(image_size=WIDTH, every_frame=True, image_transport="compressed")
    bench.start("depth")
    feed, publisher = Feed(bench), bench.publishers["image/compressed"]
    valid = CompressedImage(format="png", data=cv2.imencode(".png", node_picture())[1].tobytes())
    for index in range(sized(60, 5000)):
        publisher.publish(mutated_compressed(rng))
        if index % BATCH == BATCH - 1:
            feed.wait_until_handled(valid)
    feed.wait_until_handled(valid)
    assert_alive(bench)
    assert int(bench.current_diagnostics()["bad frames"]) > 0


def node_picture():
    return np.resize(np.uint8([90, 150]), (HEIGHT, WIDTH, 3))


def test_mutated_camera_info(make_bench, rng, sized):
    bench = make_bench(image_size=WIDTH, every_frame=True)
    bench.start("depth", "camera_info")
    bench.advertise(CameraInfo, "camera_info", QoSProfile(depth=1))
    feed = Feed(bench)
    for _ in range(sized(10, 3000)):
        bench.publishers["camera_info"].publish(mutated_info(rng))
        feed.wait_until_handled(valid_image(rng))
    assert_alive(bench)
    for info in bench.messages["camera_info"]:
        assert np.isfinite(info.k).all() and info.k[0] > 0 and info.k[4] > 0
    assert len(bench.logs) < LINES


@pytest.mark.parametrize("source", ["range", "odometry"])
def test_absurd_readings_of_scale_sensors(make_bench, rng, sized, source):
    bench = make_bench(image_size=WIDTH, every_frame=True, scale__source=source)
    bench.start("depth")
    kind, topic = {"range": (Range, "range"), "odometry": (Odometry, "wheel_odometry")}[source]
    bench.advertise(kind, topic, QoSProfile(depth=1))
    feed = Feed(bench)
    for index in range(sized(6, 1000)):
        message = kind()
        message.header.stamp = Time(sec=pick(rng, (*STAMPS, (1_700_000_000, 0)))[0], nanosec=index)
        if source == "range":
            for name in ("field_of_view", "min_range", "max_range", "range"):
                setattr(message, name, float(np.clip(pick(rng, NUMBERS), -3e38, 3e38)))
        else:
            pose = message.pose.pose
            for part, names in ((pose.position, "xyz"), (pose.orientation, "xyzw")):
                for name in names:
                    setattr(part, name, pick(rng, NUMBERS))
        bench.publishers[topic].publish(message)
        feed.wait_until_handled(valid_image(rng))
    assert_alive(bench)
    assert np.isfinite(np.frombuffer(bench.messages["depth"][-1].data, np.float32)).all()


@pytest.mark.parametrize(
    ("stamp", "what"), [((-1, 0), "-1"), ((5, 10**9), "1000000000"), ((-(2**31), 2**32 - 1), "-2147483648")]
)
def test_invalid_stamps_are_refused(stamp, what):
    message = conversions.image_message(Header(stamp=Time(sec=stamp[0], nanosec=stamp[1])), node_picture(), "rgb8")
    with pytest.raises(InputError, match=rf"stamp .*{what}"):
        conversions.check_image(message)


def test_very_long_frame_id_is_refused():
    message = conversions.image_message(Header(frame_id="f" * 100_000), node_picture(), "rgb8")
    with pytest.raises(InputError, match="frame_id of 100000 characters"):
        conversions.check_image(message)
