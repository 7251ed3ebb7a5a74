"""CameraInfo messages: read once, applied to every image."""

import threading

import cv2
import numpy as np
import pytest

pytest.importorskip("sensor_msgs", reason="the messages come with ROS 2")

from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

from raymap3r_ros.geometry import calibration
from raymap3r_ros.geometry.calibration import CameraCalibration

K = [150.0, 0.0, 99.5, 0.0, 150.0, 74.5, 0.0, 0.0, 1.0]
P = [140.0, 0.0, 98.0, 0.0, 0.0, 140.0, 75.0, 0.0, 0.0, 0.0, 1.0, 0.0]
BARREL = [-0.25, 0.06, 0.0, 0.0, 0.0]


def info(seconds=0, **changes):
    values = {"width": 200, "height": 150, "distortion_model": "plumb_bob", "d": BARREL, "k": K, "p": P}
    return CameraInfo(header=Header(stamp=Time(sec=seconds)), **{**values, **changes})


def image(width=200, height=150):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


@pytest.fixture
def reports():
    return []


@pytest.fixture
def camera(reports):
    return CameraCalibration(reports.append)


def test_before_the_first_message_and_without_calibration_the_image_is_unchanged(camera, reports):
    picture = image()
    for message in (None, info(k=[0.0] * 9, d=[])):
        if message is not None:
            camera.update(message)
        same, matrix = camera.apply(picture)
        assert same is picture and matrix is None
    assert reports == []


def test_distortion_is_removed_and_the_intrinsics_belong_to_the_result(camera, reports):
    camera.update(info())
    points = np.random.default_rng(1).uniform((-0.5, -0.35, 1), (0.5, 0.35, 1), (10, 3))
    pixels = cv2.projectPoints(points, np.zeros(3), np.zeros(3), np.reshape(K, (3, 3)), np.array(BARREL))[0][:, 0]
    columns, rows = np.meshgrid(np.arange(200), np.arange(150))
    for point, (u, v) in zip(points, pixels, strict=True):
        dot = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 4.5)
        straight, matrix = camera.apply(np.repeat(dot.astype(np.uint8)[..., None], 3, axis=2))
        weight = straight[..., 0].astype(float)
        centre = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
        np.testing.assert_allclose(centre, (matrix @ point)[:2], atol=0.15)
    assert reports == []


def test_rectified_images_use_the_projection_matrix(reports):
    camera = CameraCalibration(reports.append, rectified=True)
    camera.update(info())
    picture = image()
    same, matrix = camera.apply(picture)
    assert same is picture
    np.testing.assert_array_equal(matrix, np.reshape(P, (3, 4))[:, :3])


def test_equal_messages_are_read_once(camera, monkeypatch):
    read, made = [], []
    read_camera_info, make_maps = calibration.read_camera_info, cv2.initUndistortRectifyMap
    monkeypatch.setattr(
        calibration, "read_camera_info", lambda *args, **kw: read.append(args) or read_camera_info(*args, **kw)
    )
    monkeypatch.setattr(cv2, "initUndistortRectifyMap", lambda *args: made.append(args) or make_maps(*args))
    first = image()
    for seconds in range(5):
        camera.update(info(seconds))
        once, _ = camera.apply(first)
    assert len(read) == len(made) == 1
    for change in (
        {"d": [-0.2, *BARREL[1:]]},
        {"k": [160.0, *K[1:]]},
        {"roi": RegionOfInterest(x_offset=20, width=180, height=150)},
        {"binning_x": 2},
        {"distortion_model": "rational_polynomial"},
    ):
        camera.update(info(9, **change))
    assert len(read) == 6
    camera.update(info(10, k=[160.0, *K[1:]]))
    again, matrix = camera.apply(first)
    assert len(made) == 2 and (again != once).any()
    assert 100 < matrix[0, 0] < 160


def test_message_that_does_not_fit_is_one_error_and_then_ignored(camera, reports):
    picture = image(160, 90)
    for seconds in range(4):
        camera.update(info(seconds))
        same, matrix = camera.apply(picture)
        assert same is picture and matrix is None
    (text,) = reports
    assert text.startswith("calibration is for 200x150, the image is 160x90, which is not a plain scaling")
    assert "give the calibration of this image" in text
    assert camera.apply(image())[1] is not None  # another size, which the calibration fits


def test_invalid_message_is_one_error_and_removes_the_earlier_calibration(camera, reports):
    camera.update(info())
    assert camera.apply(image())[1] is not None
    for seconds in range(4):
        camera.update(info(seconds, k=[150.0, 0.0, 900.0, 0.0, 150.0, 74.5, 0.0, 0.0, 1.0]))
        assert camera.apply(image())[1] is None
    (text,) = reports
    assert "the principal point (900, 74.5) lies outside its image of 200x150" in text
    camera.update(info())
    assert camera.apply(image())[1] is not None
    assert len(reports) == 1


def test_returned_intrinsics_are_a_copy(camera):
    camera.update(info(d=[]))
    camera.apply(image())[1][:] = 0
    np.testing.assert_array_equal(camera.apply(image())[1], np.reshape(K, (3, 3)))


def test_calibrations_may_change_while_images_are_rectified(camera, reports):
    messages, picture = [info(d=[value, 0.0, 0.0, 0.0, 0.0]) for value in (-0.2, -0.1)], image()
    expected = []
    for message in messages:
        camera.update(message)
        expected.append(camera.apply(picture))
    stop = threading.Event()

    def update():
        while not stop.is_set():
            for message in messages:
                camera.update(message)

    thread = threading.Thread(target=update)
    thread.start()
    try:
        for _ in range(10):
            straight, matrix = camera.apply(picture)
            # Image and intrinsics always belong to the same calibration.
            assert any(np.array_equal(straight, other) and np.array_equal(matrix, its) for other, its in expected)
    finally:
        stop.set()
        thread.join()
    assert reports == []
