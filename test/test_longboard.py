"""The dynamic mask on a real video, and the benchmark that measures it."""

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="module")
def longboard(benchmark_script):
    return benchmark_script("longboard_mask")


def _iou(printed: str, name: str) -> float:
    """The first value in a row of a table."""
    row = next(line for line in printed.splitlines() if line.startswith(f"{name}  "))
    return float(row[len(name) :].split()[0])


def test_our_mask_finds_the_moving_object_and_the_published_one_does_not(longboard, shared, tmp_path, capsys):
    picture = tmp_path / "masks.png"
    arguments = ["--clips", str(shared / "clips"), "--stride", "8", "--picture", str(picture)]
    assert longboard.main(arguments) == 0
    printed = capsys.readouterr().out
    bound = 0.6  # the published mask: 0.23; everything moves: 0.12; the best threshold on brightness: 0.35
    assert _iou(printed, "ours") > bound
    assert _iou(printed, "published") < bound
    assert _iou(printed, "control: darker than the best threshold") < bound
    assert cv2.imread(str(picture)).shape == (6 * 144, 3 * 256, 3)  # six rows of panels, a column per frame


def test_without_the_clip_the_benchmark_is_skipped(longboard, tmp_path, capsys):
    assert longboard.main(["--clips", str(tmp_path)]) == 0
    assert "skipped" in capsys.readouterr().out


def test_colors_are_converted_back_to_levels(longboard):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    colors = cv2.cvtColor(cv2.applyColorMap(levels[0], cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(longboard.color_levels(colors[None], cv2.COLORMAP_INFERNO), levels)


@pytest.mark.parametrize("offset", (8.0, 21.0, 60.0))
def test_a_known_offset_is_found_from_drawn_depths(longboard, offset):
    rng = np.random.default_rng(0)
    main = rng.uniform(0, 200, (60, 80)) + offset
    rays = main * rng.uniform(0.8, 1.3, main.shape)
    contrast = 150 * np.abs(main - rays) / main
    drawn = [np.clip(levels, 0, 255).round() for levels in (main - offset, rays - offset, contrast)]
    found, misfit = longboard.fit_offset(*drawn)
    assert found == pytest.approx(offset, rel=0.1)
    assert misfit < 3
