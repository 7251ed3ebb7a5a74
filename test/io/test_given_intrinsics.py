"""Intrinsics from the command line, a camera_info and Python get the same checks."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from recordings import info_message

from raymap3r_ros import cli
from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry.calibration import intrinsics_doubt, intrinsics_problem, read_camera_info
from raymap3r_ros.io import open_recording
from raymap3r_ros.network import load_network
from raymap3r_ros.streaming import Stream

SIZE = 160, 120


def matrix(fx, fy, cx, cy):
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        Image.new("RGB", SIZE, (index, 0, 0)).save(folder / f"{index}.jpg")
    return folder


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ((500, 500, 320, 240), r"principal point \(320, 240\) lies outside .* 160x120 .*the middle of 640x480"),
        ((1, 1, 5000, 5000), "focal lengths of 1 and 1 pixels do not belong to an image of 160x120"),
        ((1e-300, 1e-300, 80, 60), "focal lengths"),
        ((np.nan, 150, 80, 60), "not all numbers are finite"),
    ],
)
def test_impossible_intrinsics_are_refused(folder, values, problem):
    with pytest.raises(InputError, match=problem):
        open_recording(folder, intrinsics=matrix(*values)).check_intrinsics(SIZE)


def test_the_command_refuses_them_in_one_line(folder, tmp_path, capsys):
    arguments = ["--checkpoint", "mini", "--device", "cpu", "--intrinsics", "500,500,320,240"]
    assert cli.main(["run", str(folder), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert "the given intrinsics cannot be used: the principal point (320, 240)" in capsys.readouterr().err


def test_a_stream_refuses_focal_lengths_of_other_images():
    with pytest.raises(InputError, match="focal lengths of 1 and 1 pixels do not belong"):
        Stream(load_network("mini")).step(np.zeros((120, 160, 3), np.uint8), intrinsics=matrix(1, 1, 80, 60))


@pytest.mark.parametrize(
    ("values", "doubt"),
    [
        ((75, 75, 40, 30), "far from the middle of its image of 160x120 (it would be the middle of 80x60)"),
        ((20, 20, 80, 60), "a field of view of 152 degrees"),
    ],
)
def test_doubtful_intrinsics_are_one_warning_with_the_likely_cause(folder, values, doubt, caplog):
    with caplog.at_level(logging.WARNING):
        open_recording(folder, intrinsics=matrix(*values)).check_intrinsics(SIZE)
    (record,) = caplog.records
    assert doubt in record.getMessage() and record.getMessage().endswith("?")


def test_a_doubtful_camera_info_is_one_warning_and_used():
    reports = []
    k = np.array([75.0, 0, 40, 0, 75, 30, 0, 0, 1])
    info = info_message(0.0, k.reshape(3, 3), SIZE)
    assert read_camera_info(info, report=reports.append) is not None
    (report,) = reports
    assert report.startswith("camera_info is probably wrong: the principal point (40, 30) is far from the middle")


def test_plausible_intrinsics_pass():
    for values in ((150, 150, 80, 60), (90, 95, 70, 66), (3000, 3000, 80, 60)):
        assert not intrinsics_problem(matrix(*values), SIZE) and not intrinsics_doubt(matrix(*values), SIZE)
    assert not intrinsics_doubt(matrix(20, 20, 80, 60), SIZE, fisheye=True)


def test_a_picture_that_is_turned_is_reported(tmp_path, caplog):
    picture = Image.new("RGB", SIZE)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "0.jpg", exif=exif)
    with caplog.at_level(logging.WARNING):
        list(open_recording(tmp_path, intrinsics=matrix(150, 150, 60, 80)))
    assert "0.jpg is turned by its EXIF orientation" in caplog.text
    caplog.clear()
    list(open_recording(tmp_path))
    assert not caplog.records


def camera_info(k, size=SIZE, *, region=(0, 0, 0, 0), binning=0):
    info = info_message(0.0, np.array(k, float).reshape(3, 3), size)
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = region
    info.binning_x = info.binning_y = binning
    return info


GOOD = matrix(150, 150, 80, 60)


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (camera_info(GOOD.T), "(is it transposed?)"),
        (camera_info(2 * GOOD), "does not have the form"),
        (camera_info(matrix(-150, 150, 80, 60)), "focal lengths of -150 and 150 pixels do not belong"),
        (camera_info(matrix(0.9, 0.9, 0.5, 0.5)), "(are they in millimetres, or relative to the image size?)"),
        (camera_info(GOOD, region=(240, 180, 160, 120)), "already belongs to the region, set roi to zeros)"),
    ],
)
def test_a_camera_info_that_cannot_be_used_names_the_likely_cause(info, reason):
    with pytest.raises(InputError) as error:
        read_camera_info(info)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("info", "cause"),
    [
        (camera_info(matrix(150, 150, 60, 80)), "but of 120x160; is the image turned by 90 degrees?"),
        (camera_info(GOOD, (320, 240), binning=2), "does it already belong to the binned image (then set binning_x"),
        (
            camera_info(GOOD, (640, 480), region=(240, 180, 160, 120)),
            "does it already belong to the region of interest",
        ),
        (camera_info(GOOD, (200, 150), region=(40, 30, 160, 120)), "does it already belong to the region of interest"),
        (camera_info(matrix(4.2, 4.2, 80, 60)), "or the unit not pixels?"),
        (camera_info(matrix(30_000, 30_000, 80, 60)), "a field of view of 0.31 degrees"),
        (camera_info(matrix(150, 75, 80, 60)), "was the image resized to another aspect ratio"),
        (camera_info([[150, 30, 80], [0, 150, 60], [0, 0, 1]]), "a skew of 30 is not used"),
    ],
)
def test_a_doubtful_camera_info_is_one_warning_with_the_likely_cause(info, cause):
    reports = []
    calibration = read_camera_info(info, report=reports.append)
    image = np.zeros((120, 160, 3), np.uint8)
    for _ in range(2):
        calibration.rectify(image)
    (report,) = reports
    assert report.startswith("camera_info is probably wrong: ") and cause in report


def test_a_binning_that_the_image_does_not_have_is_one_warning():
    reports = []
    calibration = read_camera_info(camera_info(GOOD, binning=2), report=reports.append)
    for _ in range(2):
        assert np.array_equal(calibration.rectify(np.zeros((120, 160, 3), np.uint8))[1], GOOD)
    (report,) = reports
    assert "binning is not applied; if the calibration already belongs to the binned image, set binning_x" in report


def test_a_calibration_of_the_turned_image_is_named():
    reports = []
    calibration = read_camera_info(camera_info(matrix(150, 150, 60, 80), (120, 160)), report=reports.append)
    assert calibration.rectify(np.zeros((120, 160, 3), np.uint8))[1] is None
    (report,) = reports
    assert "not a plain scaling (portrait and landscape: one is turned)" in report


@pytest.mark.parametrize(
    "info",
    [
        camera_info(GOOD),
        camera_info([150, 0, 80, 0, 150, 60, 0, 0, 0]),  # some drivers leave the last number out
        camera_info(matrix(600, 600, 320, 240), (640, 480), region=(200, 150, 160, 120)),
        camera_info(matrix(300, 300, 165, 117), (320, 240), binning=2),
        camera_info(matrix(90, 131, 80, 60)),  # analogue video, 16:9
        camera_info(matrix(150, 150, 70, 66)),
    ],
)
def test_a_plausible_camera_info_is_no_warning(info):
    reports = []
    assert read_camera_info(info, report=reports.append).rectify(np.zeros((120, 160, 3), np.uint8))[1] is not None
    assert not reports
