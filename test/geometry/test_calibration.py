"""Rectification against drawn scenes and points projected by OpenCV."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry.calibration import WIDEST, Calibration, names_rectified, read_camera_info

MATRIX = np.array([[150.0, 0, 103], [0, 152, 71], [0, 0, 1]])
SIZE = 200, 150
BARREL = (-0.25, 0.06, 0.001, -0.002, 0)
LENSES = {
    "barrel": ("plumb_bob", BARREL),
    "four": ("plumb_bob", BARREL[:4]),
    "pincushion": ("plumb_bob", (0.2, 0.02, 0, 0, 0)),
    "rational": ("rational_polynomial", (0.3, -0.1, 0.001, 0.001, 0.01, 0.6, -0.05, 0.02)),
    "prism": ("thin_prism", (-0.2, 0.03, 0.001, 0, 0, 0, 0, 0, 0.01, 0.002, -0.01, 0.001)),
    "tilted": ("rational_polynomial", (-0.2, 0.03, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.03, -0.02)),
    "fisheye": ("equidistant", (0.05, -0.01, 0.002, 0.001)),
}


def scene(x, y):
    """Smooth colours (..., 3) uint8 as a function of the direction (x, y, 1)."""
    waves = [np.sin(7 * x + 2 * y), np.cos(8 * y - x), np.sin(5 * x + 6 * y)]
    return np.round(127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def seen_through(model, distortion, matrix=MATRIX, size=SIZE):
    """The image of the scene through a lens; pixel directions are from OpenCV's iterative undistortion."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    pixels = np.stack([columns, rows], axis=-1).reshape(-1, 1, 2).astype(np.float64)
    # The undocumented default stops after five steps, with errors of tenths of a pixel.
    steps = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-10)
    distortion = np.array(distortion)
    if model == "equidistant":
        rays = cv2.fisheye.undistortPoints(pixels, matrix, distortion, criteria=steps)
    else:
        rays = cv2.undistortPointsIter(pixels, matrix, distortion, None, None, steps)
    return scene(*rays.reshape(size[1], size[0], 2).transpose(2, 0, 1))


def seen_by_pinhole(matrix, size):
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return scene((columns - matrix[0, 2]) / matrix[0, 0], (rows - matrix[1, 2]) / matrix[1, 1])


def worst(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


def where_from(matrix, size, model, distortion, raw_matrix=MATRIX):
    """(h, w, 2) pixel of the raw image for each pixel of the rectified image."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    x, y = (columns - matrix[0, 2]) / matrix[0, 0], (rows - matrix[1, 2]) / matrix[1, 1]
    points = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 1, 3)
    project = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
    return project(points, np.zeros(3), np.zeros(3), raw_matrix, np.array(distortion))[0].reshape(size[1], size[0], 2)


@pytest.mark.parametrize("lens", LENSES)
def test_the_name_of_a_model_may_have_capitals(lens, caplog):
    model, distortion = LENSES[lens]
    raw = seen_through(model, distortion)
    images = [Calibration(MATRIX, SIZE, distortion, name).rectify(raw)[0] for name in (model, model.upper())]
    assert np.array_equal(*images) and "is not known" not in caplog.text


@pytest.mark.parametrize("lens", LENSES)
def test_rectified_image_equals_the_image_of_a_pinhole_camera(lens):
    model, distortion = LENSES[lens]
    raw = seen_through(model, distortion)
    calibration = Calibration(MATRIX, SIZE, distortion, model)
    for _ in range(2):  # first with new maps, then with cached maps
        image, matrix = calibration.rectify(raw)
        assert image.shape == raw.shape
        # Bilinear interpolation at 1/32 pixel. This bound is a fifth of a pixel of the steepest wave.
        assert worst(image, seen_by_pinhole(matrix, SIZE)) <= 4
    assert worst(raw, seen_by_pinhole(matrix, SIZE)) > 20  # the distortion is visible


@pytest.mark.parametrize("lens", LENSES)
def test_points_are_projected_by_the_intrinsics(lens):
    model, distortion = LENSES[lens]
    points = np.random.default_rng(0).uniform((-0.45, -0.3, 1), (0.4, 0.35, 1), (20, 1, 3))
    project = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
    pixels = project(points, np.zeros(3), np.zeros(3), MATRIX, np.array(distortion))[0].reshape(-1, 2)
    columns, rows = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    calibration = Calibration(MATRIX, SIZE, distortion, model)
    for point, (u, v) in zip(points.reshape(-1, 3), pixels, strict=True):
        dot = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * 1.5**2))
        image, matrix = calibration.rectify(np.repeat(dot.astype(np.uint8)[..., None], 3, axis=2))
        weight = image[..., 0].astype(float)
        centre = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
        np.testing.assert_allclose(centre, (matrix @ point)[:2], atol=0.15)


@pytest.mark.parametrize("lens", LENSES)
def test_rectified_image_has_no_empty_border_and_the_widest_view(lens):
    model, distortion = LENSES[lens]
    _, matrix = Calibration(MATRIX, SIZE, distortion, model).rectify(np.zeros((150, 200, 3), np.uint8))
    assert matrix[0, 0] / matrix[1, 1] == pytest.approx(150 / 152)
    np.testing.assert_array_equal(matrix[:2, 2], MATRIX[:2, 2])
    source = where_from(matrix, SIZE, model, distortion)
    room = np.array([source.min(axis=(0, 1)) + 0.5, np.array(SIZE) - 0.5 - source.max(axis=(0, 1))])
    assert -0.01 < room.min() < 0.2
    # OpenCV's choice with alpha 0 has a zoom for each axis; ours is approximately between them.
    if model != "equidistant":
        best, _ = cv2.getOptimalNewCameraMatrix(MATRIX, np.array(distortion), SIZE, 0)
        zooms = best[[0, 1], [0, 1]] / MATRIX[[0, 1], [0, 1]]
        assert zooms.min() - 0.05 < matrix[0, 0] / MATRIX[0, 0] < zooms.max() + 0.05


def test_fisheye_is_not_zoomed_out_beyond_a_useful_perspective():
    wide = np.array([[100.0, 0, 159.5], [0, 100, 119.5], [0, 0, 1]])  # 183 degrees across
    _, matrix = Calibration(wide, (320, 240), (0.01, 0, 0, 0), "equidistant").rectify(
        np.zeros((240, 320, 3), np.uint8)
    )
    np.testing.assert_array_equal(matrix, wide)
    narrower = np.array([[160.0, 0, 159.5], [0, 160, 119.5], [0, 0, 1]])  # 115 degrees across
    calibration = Calibration(narrower, (320, 240), (0.01, 0, 0, 0), "equidistant")
    _, matrix = calibration.rectify(np.zeros((240, 320, 3), np.uint8))
    assert np.degrees(2 * np.arctan(160 / matrix[0, 0])) == pytest.approx(WIDEST, abs=0.1)


def test_polynomial_that_folds_back_is_zoomed_in_to_where_it_is_valid():
    # r (1 - 0.3 r^2) has its maximum 0.703 at r = 1.054. The corner of this image, at 0.69, is before it. The corner
    # of the widest rectified image is beyond it.
    wide = np.array([[180.0, 0, 99.5], [0, 180, 74.5], [0, 0, 1]])
    calibration = Calibration(wide, SIZE, (-0.3, 0, 0, 0, 0))
    _, matrix = calibration.rectify(np.zeros((150, 200, 3), np.uint8))
    assert np.hypot(99.5, 74.5) / matrix[0, 0] < 1.054
    source = where_from(matrix, SIZE, "plumb_bob", (-0.3, 0, 0, 0, 0), wide)
    assert (np.diff(source[..., 0], axis=1) > 0).all() and (np.diff(source[..., 1], axis=0) > 0).all()


def test_a_calibration_with_implausible_coefficients_is_ignored(caplog):
    image = np.zeros((150, 200, 3), np.uint8)
    same, matrix = Calibration(MATRIX, SIZE, (1e9, -1e12, 0, 0, 0)).rectify(image)
    assert same is image and matrix is None
    assert "folds the image of 200x150 pixels: calibration ignored; calibrate the camera again" in caplog.text


@pytest.mark.parametrize(
    ("distortion", "model"),
    [
        ((-5, 0, 0, 0, 0), "plumb_bob"),  # reaches 0.17 of 0.72
        ((-5, 3, 0, 0, 9), "plumb_bob"),  # folds twice, and rises again
        ((0, 0, 0, 0, 0, 4, 4, 0), "rational_polynomial"),
        ((-1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), "thin_prism"),
        ((-5, 0, 0, 0), "equidistant"),
    ],
)
def test_coefficients_that_do_not_reach_the_corners_are_ignored_with_one_message(distortion, model):
    messages = []
    matrix = np.array([[80.0, 0, 48], [0, 80, 32], [0, 0, 1]])
    calibration = Calibration(matrix, (96, 64), distortion, model, report=messages.append)
    image = np.zeros((64, 96, 3), np.uint8)
    for _ in range(2):
        same, estimated = calibration.rectify(image)
        assert same is image and estimated is None
    (message,) = messages
    assert "folds the image of 96x64 pixels: calibration ignored" in message


def test_coefficients_that_nearly_reach_the_corners_are_used_with_one_message():
    messages = []
    matrix = np.array([[140.0, 0, 100], [0, 140, 75], [0, 0, 1]])  # up to 0.703 of 0.89
    calibration = Calibration(matrix, SIZE, (-0.3, 0, 0, 0, 0), report=messages.append)
    for _ in range(2):
        assert calibration.rectify(np.zeros((150, 200, 3), np.uint8))[1] is not None
    (message,) = messages
    assert "folds the image of 200x150 pixels near its corners, which are left out" in message


@pytest.mark.parametrize(
    ("focal", "size", "distortion", "model"),
    [  # published: EuRoC cam0, KITTI raw camera 2, TUM RGB-D freiburg1, TUM VI cam0
        (458.0, (752, 480), (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05), "plumb_bob"),
        (959.8, (1392, 512), (-0.3691481, 0.1968681, 0.001353473, 0.0005677587, -0.06770705), "plumb_bob"),
        (517.3, (640, 480), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633), "plumb_bob"),
        (190.98, (512, 512), (0.0034823894, 0.0007150348, -0.0020532361, 0.0002029367), "equidistant"),
    ],
)
def test_calibrations_of_real_cameras_are_used(focal, size, distortion, model, caplog):
    matrix = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])
    _, rectified = Calibration(matrix, size, distortion, model).rectify(np.zeros((size[1], size[0], 3), np.uint8))
    assert rectified is not None and not caplog.text


def test_without_distortion_the_image_is_unchanged():
    image = seen_by_pinhole(MATRIX, SIZE)
    same, matrix = Calibration(MATRIX, SIZE, (0, 0, 0, 0, 0)).rectify(image)
    assert same is image
    assert np.array_equal(matrix, MATRIX)


def binned(image, across, down):
    height, width = image.shape[0] // down * down, image.shape[1] // across * across
    return (
        image[:height, :width].reshape(height // down, down, width // across, across, 3).mean((1, 3)).astype(np.uint8)
    )


@pytest.mark.parametrize("lens", ["barrel", "fisheye"])
@pytest.mark.parametrize("bins", [(1, 1), (2, 2), (2, 1), (3, 3)])
@pytest.mark.parametrize("window", [None, (41, 17, 121, 91)])
def test_window_and_binning_of_the_sensor(lens, bins, window):
    model, distortion = LENSES[lens]
    sensor = seen_through(model, distortion)
    left, top, width, height = window or (0, 0, *SIZE)
    image = binned(sensor[top : top + height, left : left + width], *bins)
    calibration = Calibration(MATRIX, SIZE, distortion, model, window=window, binning=bins)
    straight, matrix = calibration.rectify(image)
    # The average of a curved wave differs from its middle value; an error of half a pixel would be 3 levels or more.
    error = straight.astype(float) - seen_by_pinhole(matrix, image.shape[1::-1])
    assert np.abs(error).mean() < 1


@pytest.mark.parametrize("size", [(400, 300), (100, 75), (67, 50)])
def test_plain_scaling_of_the_image_is_supported(size):
    raw = seen_through("plumb_bob", BARREL)
    image = cv2.resize(raw, size, interpolation=cv2.INTER_AREA if size[0] < 200 else cv2.INTER_LINEAR)
    straight, matrix = Calibration(MATRIX, SIZE, BARREL).rectify(image)
    inner = slice(2, -2)  # enlarged images repeat their border
    assert worst(straight[inner, inner], seen_by_pinhole(matrix, size)[inner, inner]) <= 8


def test_change_of_image_size_makes_new_maps():
    calibration = Calibration(MATRIX, SIZE, BARREL)
    raw = seen_through("plumb_bob", BARREL)
    for size in (SIZE, (100, 75), SIZE):
        image, matrix = calibration.rectify(cv2.resize(raw, size, interpolation=cv2.INTER_AREA))
        assert image.shape[1::-1] == size
        assert worst(image, seen_by_pinhole(matrix, size)) <= 8


def test_a_calibration_for_another_aspect_ratio_is_ignored_with_one_warning(caplog):
    calibration = Calibration(MATRIX, SIZE, BARREL)
    image = np.zeros((90, 160, 3), np.uint8)
    for _ in range(3):
        same, matrix = calibration.rectify(image)
        assert same is image and matrix is None
    assert caplog.text.count("calibration is for 200x150, the image is 160x90, which is not a plain scaling") == 1
    assert calibration.rectify(seen_by_pinhole(MATRIX, SIZE))[1] is not None


def test_unknown_model_is_reported_and_not_corrected(caplog):
    image = seen_by_pinhole(MATRIX, SIZE)
    for model, distortion in (("fancy", (0.1, 0.2)), ("thin_prism_fisheye", (0.1,) * 8), ("equidistant", (0.1,) * 5)):
        same, matrix = Calibration(MATRIX, SIZE, distortion, model).rectify(image)
        assert same is image and np.array_equal(matrix, MATRIX)
        assert f"lens distortion {model!r} with {len(distortion)} coefficients is not known" in caplog.text


# ------------------------------------------------------------------------------------------------------- camera_info


def info(**changes):
    """A CameraInfo message as from rosbags or rclpy."""
    values = {
        "width": 200,
        "height": 150,
        "distortion_model": "plumb_bob",
        "d": np.array(BARREL),
        "k": MATRIX.reshape(9),
        "p": np.array([140.0, 0, 99, 0, 0, 140, 74, 0, 0, 0, 1, 0]),
        "binning_x": 0,
        "binning_y": 0,
        "roi": roi(),
    }
    return SimpleNamespace(**{**values, **changes})


def roi(x_offset=0, y_offset=0, width=0, height=0):
    return SimpleNamespace(x_offset=x_offset, y_offset=y_offset, width=width, height=height, do_rectify=False)


def test_camera_info_of_a_raw_image():
    image, matrix = read_camera_info(info()).rectify(seen_through("plumb_bob", BARREL))
    assert worst(image, seen_by_pinhole(matrix, SIZE)) <= 4


def test_camera_info_of_a_rectified_image():
    image = seen_by_pinhole(MATRIX, SIZE)
    same, matrix = read_camera_info(info(), rectified=True).rectify(image)
    assert same is image
    np.testing.assert_array_equal(matrix, [[140, 0, 99], [0, 140, 74], [0, 0, 1]])
    only_p = read_camera_info(info(k=np.zeros(9)), rectified=True)
    np.testing.assert_array_equal(only_p.rectify(image)[1], matrix)
    only_k = read_camera_info(info(p=np.zeros(12)), rectified=True)
    np.testing.assert_array_equal(only_k.rectify(image)[1], MATRIX)


def test_camera_info_with_window_and_binning():
    sensor = seen_through("plumb_bob", BARREL)
    calibration = read_camera_info(info(binning_x=2, binning_y=2, roi=roi(20, 10, 160, 120)))
    image = binned(sensor[10:130, 20:180], 2, 2)
    straight, matrix = calibration.rectify(image)
    assert worst(straight, seen_by_pinhole(matrix, (80, 60))) <= 6
    rectified = read_camera_info(info(binning_x=2, binning_y=2, roi=roi(20, 10, 160, 120)), rectified=True)
    # Pixel centres: (99 - 20 + 1/2) / 2 - 1/2.
    np.testing.assert_allclose(rectified.rectify(image)[1], [[70, 0, 39.25], [0, 70, 31.75], [0, 0, 1]])
    # Drivers that bin, and were calibrated with binning, may report the size after binning: a plain scaling by 1.
    np.testing.assert_array_equal(read_camera_info(info(binning_x=2, binning_y=2, d=[])).rectify(sensor)[1], MATRIX)


def test_camera_that_is_not_calibrated():
    assert read_camera_info(info(k=np.zeros(9))) is None
    assert read_camera_info(info(k=np.zeros(9), p=np.zeros(12)), rectified=True) is None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"k": np.full(9, np.nan)}, "not all numbers are finite"),
        ({"d": np.array([np.inf, 0, 0, 0, 0])}, "not all numbers are finite"),
        ({"width": 0, "height": 0}, "the image size is 0x0"),
        ({"k": -MATRIX.reshape(9)}, "focal lengths of -150 and -152 pixels do not belong to an image of 200x150"),
        ({"k": np.array([1500.0, 0, 960, 0, 1500, 540, 0, 0, 1])}, r"principal point (960, 540) lies outside"),
        ({"roi": roi(100, 0, 150, 150)}, "region of interest 150x150+100+0 exceeds its image of 200x150"),
        ({"roi": roi(1, 0)}, "region of interest 200x150+1+0 exceeds"),
    ],
)
def test_camera_info_that_contradicts_itself(changes, text):
    with pytest.raises(InputError) as error:
        read_camera_info(info(**changes))
    assert text in str(error.value) and "camera_info cannot be used" in str(error.value)


@pytest.mark.parametrize(
    ("topic", "is_rectified"),
    [
        ("/camera/image_raw", False),
        ("/direct/image_raw", False),
        ("image", False),
        ("/camera/image_rect", True),
        ("/camera/image_rect_color", True),
        ("/camera/image_rect/compressed", True),
        ("/zed/rgb/rect/image", True),
        ("/left/image_rectified", True),
    ],
)
def test_names_of_rectified_topics(topic, is_rectified):
    assert names_rectified(topic) is is_rectified
