"""Ground-truth masks in the forms in which data sets and labelling programs store them."""

import numpy as np
import pytest
from PIL import Image

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.datasets import open_dataset

MOVING = np.array([[0, 1, 0], [0, 1, 1]], np.uint8)


def palette(values, *colours):
    image = Image.fromarray(values, "P")
    image.putpalette([channel for colour in colours for channel in colour])
    return image


FORMS = {
    "0 and 255": Image.fromarray(MOVING * 255),
    "labels 0 and 1": Image.fromarray(MOVING),
    "100": Image.fromarray(MOVING * 100),
    "16 bit": Image.fromarray(MOVING.astype(np.uint16) * 1000),
    "1 bit": Image.fromarray(MOVING.astype(bool)),
    "RGB": Image.fromarray(MOVING[..., None] * np.array([255, 255, 255], np.uint8)),
    "palette of a labelling program": palette(MOVING, (0, 0, 0), (128, 0, 0)),
    "palette of a compressor": palette(1 - MOVING, (255, 255, 255), (0, 0, 0)),
}


def moving(tmp_path, kind, mask):
    """The mask as it is read from a data set of one image, from `mask` in its layout."""
    image = Image.new("RGB", (MOVING.shape[1], MOVING.shape[0]))
    if kind == "davis":
        files = [tmp_path / "JPEGImages/480p/bear/0.jpg", tmp_path / "Annotations/480p/bear/0.png"]
    else:
        files = [tmp_path / "a.png", tmp_path / "mask.png"]
        (tmp_path / "rgb.txt").write_text("1 a.png\n")
        (tmp_path / "mask.txt").write_text("1 mask.png\n")
        (tmp_path / "groundtruth.txt").write_text("1 0 0 0 0 0 0 1\n1.01 0 0 1 0 0 0 1\n")
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    image.save(files[0])
    mask.save(files[1])
    (sequence,) = open_dataset(kind, tmp_path)
    return next(iter(sequence.frames())).moving


@pytest.mark.parametrize("form", FORMS)
def test_masks_with_two_values_are_read_in_every_form(tmp_path, form):
    assert np.array_equal(moving(tmp_path, "tum_folder", FORMS[form]), MOVING > 0)


@pytest.mark.parametrize("value", [0, 1, 100, 255])
def test_masks_with_one_value_are_still_or_moving_everywhere(tmp_path, value):
    mask = Image.fromarray(np.full(MOVING.shape, value, np.uint8))
    assert np.array_equal(moving(tmp_path, "tum_folder", mask), np.full(MOVING.shape, value > 0))


@pytest.mark.parametrize("values", [(0, 1, 2), (1, 255, 1), (0, 127, 255)])
def test_masks_with_other_values_are_one_error(tmp_path, values):
    mask = Image.fromarray(np.array([values, values], np.uint8))
    with pytest.raises(InputError, match=r"mask.png: a mask with \d values, .* expected 0 where nothing moves"):
        moving(tmp_path, "tum_folder", mask)


@pytest.mark.parametrize("count", [1, 3])
def test_any_label_of_davis_counts_as_moving(tmp_path, count):
    labels = MOVING * np.array([1, count, 1], np.uint8)
    colours = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert np.array_equal(moving(tmp_path, "davis", palette(labels, *colours)), MOVING > 0)
