"""Inputs of the node over real DDS: encodings, calibrations and QoS."""

import io

import cv2
import numpy as np
import pytest
from nav_msgs.msg import Path
from PIL import Image as Picture
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from raymap3r_ros.node import conversions, reporter
from raymap3r_ros.streaming import cover

WIDTH, HEIGHT = 64, 48
K = [60.0, 0.0, 33.0, 0.0, 58.0, 22.0, 0.0, 0.0, 1.0]


@pytest.fixture
def make_bench(make_bench):
    """A bench that processes every image, with a network input of 64x48."""
    return lambda *arguments, **parameters: make_bench(
        *arguments, **{"image_size": WIDTH, "every_frame": True, "update_rule": "cut3r", **parameters}
    )


@pytest.fixture
def log_everything(monkeypatch):
    """Turns off the throttling of repeated log lines."""
    monkeypatch.setattr(reporter, "THROTTLE", 0.0)


def pixels(message):
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3).astype(float)


@pytest.fixture(autouse=True)
def ramps_have_content(monkeypatch):
    """Colours that are coordinates are smooth, and would count as images without texture."""
    monkeypatch.setattr(cover, "_SMOOTH", 0.0)


# ---------------------------------------------------------------------------------------------------------- encodings


def ramps():
    """(h, w, 3) float RGB: slopes, which a mosaic preserves; pixel pairs have the same chroma."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([20 + 2 * columns + 2 * rows, 60 + 2 * columns + rows, 110 + 2 * columns - 2 * rows], -1) * 1.0


def grey(color):
    return color @ [0.299, 0.587, 0.114]


def yuv(color, order):
    """(h, w, 2) uint8, two pixels share their chroma: BT.601 in video range, 16 to 235."""
    y = 16 + color @ [65.481, 128.553, 24.966] / 255
    u = 128 + color @ [-37.797, -74.203, 112.0] / 255
    v = 128 + color @ [112.0, -93.786, -18.214] / 255
    u, v = ((plane[:, ::2] + plane[:, 1::2]) / 2 for plane in (u, v))
    planes = {"y": y[:, ::2], "Y": y[:, 1::2], "u": u, "v": v}
    return np.stack([planes[letter] for letter in order], -1).round().astype(np.uint8)


def mosaic(color, order):
    """(h, w) float: the value of each sensor pixel behind its color filter."""
    actual = np.empty(color.shape[:2])
    for letter, (row, column) in zip(order, np.ndindex(2, 2), strict=True):
        actual[row::2, column::2] = color[row::2, column::2, "rgb".index(letter)]
    return actual


def encoded():
    """By encoding: the data, the expected picture, and the maximum and mean error allowed."""
    color, alpha = ramps(), np.full((HEIGHT, WIDTH, 1), 9)
    bgr, gray = color[..., ::-1], np.repeat(grey(color)[..., None], 3, axis=2)
    cases = {
        "rgb8": (color.astype(np.uint8), color, 0, 0),
        "bgr8": (bgr.astype(np.uint8), color, 0, 0),
        "rgba8": (np.concatenate([color, alpha], -1).astype(np.uint8), color, 0, 0),
        "bgra8": (np.concatenate([bgr, alpha], -1).astype(np.uint8), color, 0, 0),
        "mono8": (grey(color).round().astype(np.uint8), gray.round(), 0, 0),
        "mono16": ((grey(color) * 257).round().astype("<u2"), gray, 0.51, 0.5),
    }
    for name, order in {"yuv422": "uyvY", "uyvy": "uyvY", "yuv422_yuy2": "yuYv", "yuyv": "yuYv"}.items():
        # One level of luma is 1.2 levels of a color, one level of chroma up to 2 of blue, and each is rounded.
        cases[name] = yuv(color, order), color, 2.5, 1
    for order in ("rggb", "bggr", "gbrg", "grbg"):
        # Interpolation preserves a slope.
        cases[f"bayer_{order}8"] = mosaic(color, order).astype(np.uint8), color, 1, 0.5
        cases[f"bayer_{order}16"] = (mosaic(color, order) * 257).astype("<u2"), color, 1, 0.5
    return cases


def test_network_input_is_the_same_for_every_encoding(make_bench, log_everything):
    bench = make_bench()
    bench.start("rgb")
    cases = encoded()
    # nv12 and nv21, in two planes, are compared in test_conversions.py.
    assert cases.keys() | conversions.SEMIPLANAR.keys() == conversions.ENCODINGS.keys()
    for index, (encoding, (data, *_)) in enumerate(cases.items()):
        message = Image(width=WIDTH, height=HEIGHT, encoding=encoding, step=data.nbytes // HEIGHT)
        message.data.frombytes(data.tobytes())
        bench.send(index, message=message)
        if index in (3, 7):  # an unsupported encoding in between
            message.encoding = "rgb16"
            bench.send(index, time=index / 10 + 0.05, message=message)
    bench.wait_for("rgb", len(cases))
    assert bench.times("rgb") == [index / 10 for index in range(len(cases))]
    bench.wait_for_log("image skipped: encoding 'rgb16' is not supported", level=30)
    inner = slice(2, -2)  # the border pixels of a mosaic are extrapolated
    for (encoding, (_, expected, most, mean)), message in zip(cases.items(), bench.messages["rgb"], strict=True):
        assert message.encoding == "rgb8"
        error = np.abs(pixels(message) - expected)[inner, inner]
        assert error.max() <= most and error.mean() <= mean, (encoding, error.max(), error.mean())
    bench.reset()
    bench.send(len(cases))
    bench.wait_for_log("a new world starts (reset)")  # logged after all the other lines
    assert bench.count_logs("image skipped") == 1


def file(picture, kind, **options):
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def test_network_input_is_the_same_for_every_compressed_format(make_bench):
    bench = make_bench(image_transport="compressed")
    bench.start("rgb")
    color = ramps()
    plain, gray = Picture.fromarray(color.astype(np.uint8)), grey(color).round()
    gray_picture, gray = Picture.fromarray(gray.astype(np.uint8)), np.repeat(gray[..., None], 3, axis=2)
    rotated = Picture.Exif()
    rotated[0x0112] = 6  # viewers rotate the picture; the calibration is for unrotated pixels
    deep = cv2.imencode(".png", (color[..., ::-1] * 257).astype(np.uint16))[1].tobytes()
    # A JPEG has one chroma value for 2x2 pixels, and its coefficients are rounded.
    cases = [
        ("rgb8; jpeg compressed bgr8", file(plain, "JPEG", quality=95), color, 6),
        ("jpeg", file(plain, "JPEG", quality=95, progressive=True, subsampling=0, exif=rotated), color, 4),
        ("mono8; jpeg compressed ", file(gray_picture, "JPEG", quality=95), gray, 3),
        ("rgb8; png compressed bgr8", file(plain, "PNG"), color, 0),
        ("png", file(Picture.merge("RGBA", (*plain.split(), gray_picture)), "PNG"), color, 0),
        ("mono8; png compressed ", file(gray_picture, "PNG"), gray, 0),
        ("rgb16; png compressed bgr16", deep, color, 0),
    ]
    for index, (text, data, *_) in enumerate(cases):
        message = CompressedImage(format=text)
        message.data.frombytes(data)
        bench.send(index, message=message)
    bench.wait_for("rgb", len(cases))
    for (text, _, expected, most), rgb in zip(cases, bench.messages["rgb"], strict=True):
        error = np.abs(pixels(rgb) - expected)
        assert error.max() <= most and error.mean() <= most / 5, (text, error.max(), error.mean())


# -------------------------------------------------------------------------------------------------------- camera_info


def coordinate_image(size, sensor=None, left=0, top=0, binning=1):
    """An image (width, height) whose red and green encode the sensor column and row of each pixel, and the number of
    levels per sensor pixel. The image starts at `left`, `top` of the sensor; `binning` sensor pixels make one."""
    levels = 250 / max(sensor or size)
    columns, rows = np.meshgrid(*((np.arange(length) + 0.5) * binning - 0.5 for length in size))
    picture = np.stack([(columns + left) * levels, (rows + top) * levels, np.full_like(rows, 90)], -1)
    return picture.round().astype(np.uint8), levels


def sensor_pixels(info, k, d=(), model="plumb_bob"):
    """(h, w, 2) sensor column and row, in a camera with `k` and `d`, of each pixel of an output image, if that is an
    image of the pinhole camera in its camera_info."""
    columns, rows = np.meshgrid(np.arange(info.width), np.arange(info.height))
    rays = np.stack([columns, rows, np.ones_like(rows)], -1).reshape(-1, 1, 3) @ np.linalg.inv(info.k.reshape(3, 3)).T
    project = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
    source, _ = project(rays, np.zeros(3), np.zeros(3), np.reshape(k, (3, 3)), np.array(d, float))
    return source.reshape(info.height, info.width, 2)


def process(bench, image):
    """Send an image; returns the camera_info and pixels that are published for it."""
    count = len(bench.messages["rgb"])
    sent = bench.send(count, message=conversions.image_message(Header(), image, "rgb8"))
    info, rgb = bench.wait_for("camera_info", count + 1), bench.wait_for("rgb", count + 1)
    assert info.header == rgb.header == sent.header
    assert (info.width, info.height) == (rgb.width, rgb.height)
    return info, pixels(rgb)


def calibrate(bench, k, d=(), model="plumb_bob", size=(WIDTH, HEIGHT), **values):
    k = [float(number) for number in k]
    bench.send_camera_info(k=k, d=list(d), distortion_model=model, width=size[0], height=size[1], **values)
    bench.wait_for_camera_info()


def is_pinhole(info, k):
    """Whether an output's camera_info describes a camera without distortion, with these intrinsics."""
    np.testing.assert_allclose(info.k, k, atol=1e-4)
    np.testing.assert_array_equal(info.p.reshape(3, 4), np.column_stack([info.k.reshape(3, 3), np.zeros(3)]))
    np.testing.assert_array_equal(info.r.reshape(3, 3), np.eye(3))
    return info.distortion_model == "plumb_bob" and not any(info.d) and info.roi == RegionOfInterest()


def test_distortion_of_every_model_is_removed_and_can_change(make_bench):
    bench = make_bench()
    bench.start("camera_info", "rgb")
    image, levels = coordinate_image((WIDTH, HEIGHT))
    wide = [30.0, 0.0, 33.0, 0.0, 29.0, 22.0, 0.0, 0.0, 1.0]
    lenses = [
        (K, (-0.25, 0.06, 0.001, -0.002, 0.0), "plumb_bob"),
        (K, (0.3, -0.1, 0.001, 0.001, 0.01, 0.6, -0.05, 0.02), "rational_polynomial"),
        (wide, (0.05, -0.01, 0.002, 0.001), "equidistant"),
        (K, (0.2, 0.02, 0.0, 0.0, 0.0), "plumb_bob"),
    ]
    for lens in lenses:
        calibrate(bench, *lens)
        info, actual = process(bench, image)
        assert is_pinhole(info, info.k)
        source = sensor_pixels(info, *lens)
        # Rounding by half a level before and after the interpolation amounts to a quarter of a pixel.
        np.testing.assert_allclose(actual[..., :2] / levels, np.clip(source, 0, (WIDTH - 1, HEIGHT - 1)), atol=0.35)
        assert (actual[..., 2] == 90).all()  # no black border
        np.testing.assert_array_equal(info.k[[2, 5]], [33, 22])
        # The distortion is significant: without removal the error would be more than a pixel.
        assert np.abs(sensor_pixels(info, lens[0]) - source).max() > 1
    calibrate(bench, K, [0.0] * 5)
    info, actual = process(bench, image)
    assert is_pinhole(info, K)
    np.testing.assert_array_equal(actual, image)
    assert not [text for level, text in bench.logs if level >= 30 and "use_sim_time" not in text]


def test_intrinsics_are_adjusted_for_resize_and_crop(make_bench):
    bench = make_bench()
    bench.start("camera_info", "rgb")
    cases = [
        # Size sent; its cx and cy, with fx = 100 and fy = 90; the network's fx, fy, cx, cy; its width and height.
        ((128, 88), (70, 40), (50, 45, 70.5 / 2 - 0.5, 40.5 / 2 - 0.5 - 6), (64, 32)),  # 64x44, cropped by 12
        ((88, 128), (40, 70), (50, 45, 40.5 / 2 - 0.5 - 6, 70.5 / 2 - 0.5), (32, 64)),
        ((64, 64), (30, 35), (100, 90, 30, 35 - 8), (64, 48)),  # 4:3, as in training
        # 64x25.6, rounded to 26 rows, cropped to 16.
        ((160, 64), (70, 32), (40, 90 * 26 / 64, 70.5 * 0.4 - 0.5, 32.5 * 26 / 64 - 0.5 - 5), (64, 16)),
        ((32, 24), (17, 11), (200, 180, 17.5 * 2 - 0.5, 11.5 * 2 - 0.5), (64, 48)),
    ]
    for size, (cx, cy), (fx, fy, new_cx, new_cy), new_size in cases:
        k = [100.0, 0.0, cx, 0.0, 90.0, cy, 0.0, 0.0, 1.0]
        calibrate(bench, k, size=size)
        image, levels = coordinate_image(size)
        info, actual = process(bench, image)
        assert (info.width, info.height) == new_size
        assert is_pinhole(info, [fx, 0, new_cx, 0, fy, new_cy, 0, 0, 1])
        # The pixels match the camera_info, except at the border, where the resize filter lacks neighbors.
        error = (actual[..., :2] / levels - sensor_pixels(info, k))[4:-4, 4:-4]
        assert np.abs(error).max() < 1 / levels + 0.05 and np.abs(error.mean((0, 1))).max() < 0.1, size
    assert not [text for level, text in bench.logs if level >= 40]


def test_binning_and_region_of_interest(make_bench):
    bench = make_bench()
    bench.start("camera_info", "rgb")
    # The 128x96 pixels at (20, 10) of a 160x120 sensor, binned 2x2.
    sensor = [150.0, 0.0, 79.5, 0.0, 140.0, 59.5, 0.0, 0.0, 1.0]
    image, levels = coordinate_image((WIDTH, HEIGHT), (160, 120), 20, 10, binning=2)
    part = RegionOfInterest(x_offset=20, y_offset=10, width=128, height=96)
    for d in ((), (-0.4, 0.1, 0.0, 0.0, 0.0)):
        calibrate(bench, sensor, d, size=(160, 120), binning_x=2, binning_y=2, roi=part)
        info, actual = process(bench, image)
        if not d:  # pixel centers: (79.5 - 20 + 1/2) / 2 - 1/2
            assert is_pinhole(info, [75, 0, 29.5, 0, 70, 24.5, 0, 0, 1])
        source = np.clip(sensor_pixels(info, sensor, d), (20.5, 10.5), (146.5, 104.5))
        np.testing.assert_allclose(actual[..., :2] / levels, source, atol=1 / levels + 0.1)
    assert np.abs(sensor_pixels(info, sensor) - sensor_pixels(info, sensor, d)).max() > 2
    # The same region at full resolution, scaled down by the node.
    calibrate(bench, sensor, size=(160, 120), roi=part)
    info, _ = process(bench, coordinate_image((128, 96), (160, 120), 20, 10)[0])
    assert is_pinhole(info, [75, 0, 29.5, 0, 70, 24.5, 0, 0, 1])
    # The whole sensor, scaled by 0.4 before it was sent.
    calibrate(bench, sensor, size=(160, 120))
    assert is_pinhole(process(bench, image)[0], [60, 0, 31.5, 0, 56, 23.5, 0, 0, 1])
    assert not [text for level, text in bench.logs if level >= 40]


def test_calibration_that_arrives_while_an_image_waits_applies_to_later_images(make_bench, hold):
    bench = make_bench()
    bench.start("camera_info")
    held = hold(bench)
    others = [90.0, 0.0, 31.0, 0.0, 88.0, 24.0, 0.0, 0.0, 1.0]
    bench.send(0)
    held.wait_until_inside()
    bench.send(1)
    bench.wait_for_arrival()
    for index, k in enumerate([K, others], 2):
        calibrate(bench, k)
        bench.send(index)
        bench.wait_for_arrival()
    held.release()
    bench.wait_for("camera_info", 4)
    assert bench.times("camera_info") == [0.0, 0.1, 0.2, 0.3]
    *uncalibrated, calibrated, again = bench.messages["camera_info"]
    assert not any(np.allclose(info.k[[0, 2, 5]], [k[0], k[2], k[5]]) for info in uncalibrated for k in (K, others))
    assert is_pinhole(calibrated, K) and is_pinhole(again, others)


@pytest.mark.parametrize(
    ("arguments", "parameters"), [((), {"rectified": True}), (("-r", "image:=eye/image_rect_color"), {})]
)
def test_rectified_images_use_p(make_bench, arguments, parameters):
    bench = make_bench(*arguments, **parameters)
    bench.start("camera_info", "rgb")
    image, _ = coordinate_image((WIDTH, HEIGHT))
    p = [55.0, 0.0, 30.0, -4.0, 0.0, 54.0, 25.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    calibrate(bench, K, (-0.3, 0.1, 0.0, 0.0, 0.0), p=p)
    info, actual = process(bench, image)
    assert is_pinhole(info, [55, 0, 30, 0, 54, 25, 0, 0, 1])
    np.testing.assert_array_equal(actual, image)
    calibrate(bench, K, (-0.3, 0.1, 0.0, 0.0, 0.0))  # P is empty: the images are rectified all the same
    info, actual = process(bench, image)
    assert is_pinhole(info, K)
    np.testing.assert_array_equal(actual, image)


def test_focal_length_is_estimated_if_camera_info_lacks_it(make_bench, log_everything):
    bench = make_bench()
    bench.start("camera_info", "rgb")
    image, _ = coordinate_image((WIDTH, HEIGHT))
    first, _ = process(bench, image)
    assert first.k[0] > 0 and abs(first.k[0] - K[0]) > 1
    estimated = first.k
    cases = [
        ({}, "", K),
        ({"k": [0.0] * 9}, "", estimated),
        ({"d": [0.1, 0.2], "model": "fancy"}, "lens distortion 'fancy' with 2 coefficients is not known", K),
        ({"k": [60.0, 0.0, 320.0, 0.0, 60.0, 240.0, 0.0, 0.0, 1.0]}, "point (320, 240) lies outside", estimated),
        ({"size": (WIDTH, 32)}, "calibration is for 64x32, the image is 64x48", estimated),
        ({"roi": RegionOfInterest(x_offset=1, width=64, height=48)}, "interest 64x48+1+0 exceeds", estimated),
        ({"d": [1e9, -1e12, 0.0, 0.0, 0.0]}, "folds the image of 64x48 pixels", estimated),
    ]
    for values, text, k in cases:
        calibrate(bench, **{"k": K, **values})
        bench.reset()  # so that the network starts without memory and predicts the same
        info, actual = process(bench, image)
        np.testing.assert_array_equal(info.k, k)
        np.testing.assert_array_equal(actual, image)
        if text:
            process(bench, image)  # the error is not repeated
    bench.reset()
    process(bench, image)
    bench.wait(lambda: bench.count_logs("a new world starts (reset)") == len(cases) + 1, "the last reset")
    errors, texts = [text for level, text in bench.logs if level >= 40], [text for _, text, _ in cases if text]
    assert len(errors) == len(texts)
    assert all(text in error for text, error in zip(texts, errors, strict=True)), errors


# ---------------------------------------------------------------------------------------------------------------- QoS

SENSOR_DATA, RELIABLE, LATCHED = ("best effort", "volatile"), ("reliable", "volatile"), ("reliable", "transient local")
OUTPUTS = {
    **dict.fromkeys(("pose", "odometry"), (*RELIABLE, 10)),
    **dict.fromkeys(("trajectory", "trajectory_raw", "static_map", "occupancy"), (*LATCHED, 1)),
    **dict.fromkeys(("depth", "depth_static", "confidence", "dynamic_mask", "dynamic_map"), (*SENSOR_DATA, 5)),
    **dict.fromkeys(("rgb", "camera_info", "points"), (*SENSOR_DATA, 5)),
}


def discovered_qos(bench, kind):
    """By topic: reliability and durability of the node's publishers or subscriptions, as the probe discovers them, and
    the queue depth, which is not transmitted, from the node itself."""
    probe, node = bench.probe, bench.node
    topics, infos, own = {
        "publishers": (
            probe.get_publisher_names_and_types_by_node, probe.get_publishers_info_by_topic, node.publishers
        ),
        "subscriptions": (
            probe.get_subscriber_names_and_types_by_node, probe.get_subscriptions_info_by_topic, node.subscriptions
        ),
    }[kind]  # fmt: skip
    depths = {one.topic_name: one.qos_profile.depth for one in own}
    found = {}
    for topic, _ in topics("raymap3r", bench.namespace):
        for info in infos(topic):
            if (info.node_name, info.node_namespace) == ("raymap3r", bench.namespace):
                policies = info.qos_profile.reliability, info.qos_profile.durability
                found[topic] = (*(policy.name.lower().replace("_", " ") for policy in policies), depths.get(topic))
    return found


def test_qos_of_outputs(make_bench):
    bench = make_bench(occupancy__enabled=True)
    bench.start()
    expected = {f"{bench.name}/{topic}": qos for topic, qos in OUTPUTS.items()}
    expected |= {"/tf": (*RELIABLE, 100), "/diagnostics": (*RELIABLE, 1)}
    default_topics = {"/rosout", "/parameter_events", f"{bench.name}/transition_event"}
    bench.wait(lambda: discovered_qos(bench, "publishers").keys() >= expected.keys(), "discovery")
    found = discovered_qos(bench, "publishers")
    assert {topic: qos for topic, qos in found.items() if topic not in default_topics} == expected


@pytest.mark.parametrize(
    ("parameters", "inputs"),
    [
        ({"every_frame": False}, {"image": (*SENSOR_DATA, 1)}),
        (
            {"scale.source": "range"},
            {"image": (*RELIABLE, 100), "range": (*SENSOR_DATA, 100), "/tf": RELIABLE, "/tf_static": LATCHED},
        ),
        (
            {"every_frame": False, "image_transport": "compressed", "scale.source": "odometry"},
            {
                "image/compressed": (*SENSOR_DATA, 1),
                "wheel_odometry": (*SENSOR_DATA, 5),
                "/tf": RELIABLE,
                "/tf_static": LATCHED,
            },
        ),
        (
            {"image_transport": "compressed", "tf_mode": "base"},
            {"image/compressed": (*RELIABLE, 100), "/tf": RELIABLE, "/tf_static": LATCHED},
        ),
    ],
    ids=["live", "every frame, range", "compressed, odometry", "every compressed frame, base"],
)
def test_qos_of_inputs_and_no_other_subscriptions(make_bench, parameters, inputs):
    bench = make_bench(**parameters)
    bench.start()
    expected = {"camera_info": (*SENSOR_DATA, 1), **inputs}
    expected = {topic if topic[0] == "/" else f"{bench.namespace}/{topic}": qos for topic, qos in expected.items()}
    # The node's own list has no delay, so it is complete.
    own = bench.node.get_subscriber_names_and_types_by_node("raymap3r", bench.namespace)
    assert {topic for topic, _ in own} == expected.keys()
    bench.wait(lambda: discovered_qos(bench, "subscriptions").keys() >= expected.keys(), "discovery")
    found = discovered_qos(bench, "subscriptions")
    assert {topic: qos[: len(expected[topic])] for topic, qos in found.items()} == expected
    assert bench.change_state("deactivate")
    left = {"/tf", "/tf_static"} & expected.keys()
    bench.wait(lambda: discovered_qos(bench, "subscriptions").keys() == left, "end of the subscriptions")


def test_late_subscriber_receives_only_the_last_trajectory(make_bench):
    bench = make_bench()
    bench.start("trajectory")
    for index in range(3):
        bench.send(time=float(index))
        bench.wait_for("trajectory", index + 1)
    latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    bench.probe.create_subscription(
        Path, f"{bench.name}/trajectory", lambda message: bench.on_message("late", message), latched
    )
    assert len(bench.wait_for("late").poses) == 3  # earlier trajectories would arrive first
