"""Pictures: their contents, read back from the figures and the files."""

import numpy as np
import pytest
from PIL import Image

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation import pictures
from raymap3r_ros.evaluation.scorer import SampledFrame, SequenceRun
from raymap3r_ros.io.output_folder import MANIFEST, check_results

pytest.importorskip("matplotlib", reason="pictures need matplotlib")
pytest.importorskip("scipy", reason="the evaluation needs scipy")

RULES = ("raymap3r", "cut3r")


def sequence(number: int, suite: str = "light", frames: int = 30) -> SequenceRun:
    """A camera on an arc. `raymap3r` predicts it exactly in another world, `cut3r` predicts a camera at rest."""
    angle = np.linspace(0, 2, frames)
    truth = np.tile(np.eye(4), (frames, 1, 1))
    # World z up: the camera's x is the world's x, its y points down, its z forward along the world's y.
    truth[:, :3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    truth[:, :3, 3] = np.stack((3 * np.cos(angle), np.sin(angle) + number, np.full(frames, 1.5)), axis=1)
    turned = np.eye(4)
    turned[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    turned[:3, 3] = 5, 6, 7
    poses = {"raymap3r": turned @ truth, "cut3r": truth[:1].repeat(frames, 0)}
    moving = np.zeros((48, 64), bool)
    moving[10:20, 10:30] = True
    depth = np.full((48, 64), 3, np.float32)
    image = np.full((48, 64, 3), 90, np.uint8)
    samples = [SampledFrame(index, image, depth, depth, moving, depth, depth, moving) for index in range(5, 11)]
    values = {"raymap3r": {"moving_share": 0.1 * (number + 1), "mask_iou": 0.2 * (number + 1)}}
    values["cut3r"] = {"moving_share": 0.1 * (number + 1), "mask_iou": 0.1}
    return SequenceRun(suite, "room", f"{suite}-{number}", frames, truth, poses, values, samples)


def test_paths_coincide_with_the_ground_truth_in_the_top_view():
    figure = pictures.trajectory_figure([sequence(0)], RULES, "room light")
    (axis,) = figure.axes
    lines = {line.get_label(): np.stack(line.get_data(), axis=1) for line in axis.lines}
    truth = sequence(0).truth[:, :3, 3]
    # The first camera points along the world's y, so the page's axes are the world's x and y.
    np.testing.assert_allclose(lines["truth"], truth[:, :2], atol=1e-9)
    np.testing.assert_allclose(lines["raymap3r"], lines["truth"], atol=1e-6)
    np.testing.assert_allclose(lines["cut3r"], np.tile(truth[:, :2].mean(0), (30, 1)), atol=1e-6)


def test_a_strip_shows_truth_and_prediction():
    figure = pictures.strip_figure([sequence(0), sequence(1), sequence(2)], "room light")
    panels = np.array(figure.axes, object).reshape(pictures.STRIP_SEQUENCES * pictures.STRIP_FRAMES, 7)
    assert [axis.get_title() for axis in panels[0]][:3] == ["image", "true depth", "depth"]
    assert [row[0].get_ylabel() for row in panels[:2]] == ["light-0\nframe 5", "light-0\nframe 7"]
    mask = panels[0][5].images[0].get_array()
    assert (mask[60, 80] != mask[5, 5]).any()  # inside the box, and outside


def test_unknown_truth_leaves_a_panel_empty():
    run = sequence(0)
    samples = [SampledFrame(s.frame, s.image, s.depth, s.ray_depth, s.mask, None, None, None) for s in run.samples]
    figure = pictures.strip_figure([SequenceRun("s", "", "s", 30, run.truth, {}, {}, samples)], "s")
    assert [len(axis.images) for axis in figure.axes[:7]] == [1, 0, 1, 1, 0, 1, 0]


def test_iou_against_share_has_a_dot_per_sequence():
    runs = [sequence(number, suite) for suite in ("light", "heavy") for number in range(3)]
    figure = pictures.iou_figure(runs, RULES)
    axis = figure.axes[0]
    assert [line.get_label() for line in axis.lines] == ["room light", "room heavy"]
    np.testing.assert_allclose(axis.lines[0].get_data(), [[10, 20, 30], [0.2, 0.4, 0.6]])
    assert axis.get_title() == "raymap3r, Spearman 1.00"
    assert figure.axes[1].get_title() == "cut3r"  # no correlation with a constant


def test_all_pictures_become_files(tmp_path):
    files = pictures.draw_pictures(tmp_path, [sequence(0)], RULES)
    names = ["trajectories_room_light.png", "strip_room_light.png", "iou_and_share.png"]
    assert [file.name for file in files] == names
    assert set(tmp_path.iterdir()) == {*files, tmp_path / MANIFEST}
    check_results(tmp_path, pictures.PICTURES)
    (tmp_path / "strip_of_mine.png").touch()
    with pytest.raises(InputError, match=r"strip_of_mine\.png in the way"):
        check_results(tmp_path, pictures.PICTURES)
    for file in files:
        with Image.open(file) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
