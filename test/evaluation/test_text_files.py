"""Text files of data sets as editors and spreadsheets write them."""

import numpy as np
import pytest

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.datasets.files import read_matrix
from raymap3r_ros.evaluation.datasets.tum import CAMERA_LINE
from raymap3r_ros.training.recording import _lens


@pytest.mark.parametrize(
    "text", ["\ufeff500 510 320 240", "500, 510, 320, 240\r\n", "\ufeff# fx fy cx cy\n\n500\t510 320 240 # pixels"]
)
def test_a_camera_file_in_other_forms(tmp_path, text):
    (tmp_path / "camera.txt").write_text(text, encoding="utf-8")
    assert read_matrix(tmp_path / "camera.txt", (1, 4), CAMERA_LINE).tolist() == [[500, 510, 320, 240]]
    assert _lens(tmp_path / "camera.txt", (640, 480))[0].tolist() == [[500, 0, 320], [0, 510, 240], [0, 0, 1]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("500 510 320 x", ", line 1: could not convert string to float: 'x'; expected one line `fx fy cx cy` of 4"),
        ("\n500 510 320", ", line 2: 3 numbers; expected one line `fx fy cx cy` of 4 numbers: '500 510 320'"),
        ("535,4 539,2 320,1 247,6", ", line 1: 8 numbers; expected one line `fx fy cx cy` of 4 numbers"),
        ("# none", ": 0 lines of numbers; expected one line `fx fy cx cy`"),
        ("1 2 3 4\n" * 2, ": 2 lines of numbers; expected one line"),
    ],
)
def test_a_damaged_camera_file_is_refused_with_the_expected_line(tmp_path, text, problem):
    (tmp_path / "camera.txt").write_text(text)
    with pytest.raises(InputError, match=rf"camera\.txt{problem}"):
        read_matrix(tmp_path / "camera.txt", (1, 4), CAMERA_LINE)


def test_a_pose_with_infinities_and_a_byte_order_mark(tmp_path):
    (tmp_path / "0.txt").write_text("\ufeff" + "-inf inf 1 2\n" * 4, encoding="utf-8")
    assert np.array_equal(read_matrix(tmp_path / "0.txt", (4, 4)), [[-np.inf, np.inf, 1, 2]] * 4)
    with pytest.raises(InputError, match=r"0\.txt, line 1: 4 numbers; expected 3 lines of 3 numbers"):
        read_matrix(tmp_path / "0.txt", (3, 3))
