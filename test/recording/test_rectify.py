"""Distortion removed, against points projected by hand."""

import cv2
import numpy as np
import pytest

from raymap3r_ros.recording.rectify import Calibration

MATRIX = np.array([[60.0, 0, 39.5], [0, 60, 29.5], [0, 0, 1]])
SIZE = 80, 60


def spot(x: float, y: float, size=SIZE) -> np.ndarray:
    """A soft white dot centred on (x, y)."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    value = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 1.5**2))
    return np.repeat(value.astype(np.uint8)[..., None], 3, axis=2)


def centre_of(image: np.ndarray) -> np.ndarray:
    weight = image[..., 0].astype(float)
    rows, columns = np.indices(weight.shape)
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()


def plumb_bob(x, y):
    square = x * x + y * y
    factor = 1 - 0.25 * square + 0.06 * square**2
    return x * factor, y * factor


def equidistant(x, y):
    radius = np.hypot(x, y)
    angle = np.arctan(radius)
    bent = angle * (1 + 0.05 * angle**2)
    return x * bent / radius, y * bent / radius


@pytest.mark.parametrize(
    ("model", "coefficients", "distort"),
    [
        ("plumb_bob", (-0.25, 0.06, 0, 0, 0), plumb_bob),
        ("rational_polynomial", (-0.25, 0.06, 0, 0, 0, 0, 0, 0), plumb_bob),
        ("equidistant", (0.05, 0, 0, 0), equidistant),
    ],
)
@pytest.mark.parametrize("scale", [1, 2])
def test_a_dot_moves_to_where_a_pinhole_camera_sees_it(model, coefficients, distort, scale):
    x, y = 0.35, -0.25
    bent_x, bent_y = distort(x, y)
    calibration = Calibration(MATRIX, SIZE, coefficients, model)
    # In an image twice as large the centre of each old pixel lies between two new ones.
    where = (np.array([60 * bent_x + 39.5, 60 * bent_y + 29.5]) + 0.5) * scale - 0.5
    for _ in range(2):  # with maps made and with maps kept
        image, matrix = calibration.rectify(spot(*where, (80 * scale, 60 * scale)))
        seen = matrix @ (x, y, 1)
        assert np.abs(centre_of(image) - seen[:2]).max() < 0.3 * scale
    assert np.abs(where - seen[:2]).max() > 0.5  # there was something to correct
    assert matrix[0, 0] == 60 * scale


def test_without_distortion_the_image_is_left_alone():
    image = spot(10, 10)
    same, matrix = Calibration(MATRIX, SIZE, (0, 0, 0, 0, 0)).rectify(image)
    assert same is image
    assert np.array_equal(matrix, MATRIX)


def test_another_shape_of_image_makes_calibration_useless_with_one_warning(caplog):
    calibration = Calibration(MATRIX, SIZE, (-0.25, 0.06, 0, 0, 0))
    image = spot(10, 10, (80, 45))
    for _ in range(3):
        same, matrix = calibration.rectify(image)
        assert same is image and matrix is None
    assert caplog.text.count("calibration is for 80x60, the image is 80x45") == 1


def test_unknown_model_is_told_and_left_uncorrected(caplog):
    image = spot(10, 10)
    same, matrix = Calibration(MATRIX, SIZE, (0.1, 0.2), "fancy").rectify(image)
    assert same is image and np.array_equal(matrix, MATRIX)
    assert "lens distortion 'fancy' with 2 coefficients is not known" in caplog.text


def test_opencv_agrees_on_the_names_of_coefficients():
    points = cv2.projectPoints(np.array([[0.35, -0.25, 1.0]]), np.zeros(3), np.zeros(3), np.eye(3), np.array(
        (-0.25, 0.06, 0, 0, 0)
    ))[0].ravel()  # fmt: skip
    assert np.allclose(points, plumb_bob(0.35, -0.25))
