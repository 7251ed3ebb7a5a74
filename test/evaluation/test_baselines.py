"""Controls of dynamic maps, on scenes with known results for each control."""

import numpy as np
import pytest

from raymap3r_ros.evaluation import baselines
from raymap3r_ros.evaluation.scorer import SampledFrame, SequenceRun
from raymap3r_ros.streaming import MaskOptions

pytest.importorskip("scipy", reason="the evaluation needs scipy")

SIZE = (48, 64)
MASK = MaskOptions(min_ratio=0.08)  # the depths here are exact


def background(slope: float) -> np.ndarray:
    return (4 + slope * np.indices(SIZE)[1] / SIZE[1]).astype(np.float32)


def sequence(name: str, slope: float, *, ray_slope: float | None = None, bright: bool = False) -> SequenceRun:
    """A tilted wall, and a box 3.5 m away that moves to the right. `bright`: the box is brighter than the rest."""
    samples = []
    for frame in range(4):
        moving = np.zeros(SIZE, bool)
        moving[10:30, 5 + 10 * frame : 20 + 10 * frame] = True
        static = background(slope)
        depth = np.where(moving, np.float32(3.5), static)
        rays = static if ray_slope is None else background(ray_slope)
        image = np.random.default_rng(frame).integers(0, 100, (*SIZE, 3)).astype(np.uint8)
        if bright:
            image[moving] += 120
        # The network's unit of length is half a metre.
        samples.append(SampledFrame(frame, image, depth / 2, rays / 2, moving, depth, static, moving))
    return SequenceRun("suite", "", name, 4, np.empty((0, 4, 4)), {}, {}, samples)


def test_scores_of_each_control():
    runs = [sequence("tilted", 4), sequence("straight", 0)]
    for values in baselines.map_controls(runs, MASK):
        assert list(values) == [
            baselines.NETWORK, baselines.OTHER_RAYS, baselines.CONSTANT, baselines.TRUE_BACKGROUND, "saturation alone",
            "brightness alone",
        ]  # fmt: skip
        for perfect in (baselines.NETWORK, baselines.TRUE_BACKGROUND):
            assert values[perfect]["mask_iou"] > 0.99 and values[perfect]["motion_auc"] == 1
            assert values[perfect]["false_alarm"] == 0
        for blind in (baselines.OTHER_RAYS, baselines.CONSTANT):
            assert values[blind]["mask_iou"] < values[baselines.NETWORK]["mask_iou"]
        assert values[baselines.OTHER_RAYS]["motion_auc"] < 0.9
        # Colours are random, so the best threshold marks nearly everything: IoU equals the share, AUC is at chance.
        for colour in ("saturation alone", "brightness alone"):
            assert values[colour]["mask_iou"] == pytest.approx(20 * 15 / (48 * 64), abs=0.03)
            assert values[colour]["motion_auc"] == pytest.approx(0.5, abs=0.05)


def test_a_constant_background_is_enough_if_all_sequences_show_the_same():
    runs = [sequence("one", 4, ray_slope=0), sequence("two", 4, ray_slope=0)]
    for values in baselines.map_controls(runs, MASK):
        assert values[baselines.CONSTANT]["mask_iou"] > 0.99
        assert values[baselines.NETWORK]["mask_iou"] < 0.5
        assert values[baselines.OTHER_RAYS] == values[baselines.NETWORK]


@pytest.mark.filterwarnings("error")
def test_pixels_that_no_depth_camera_has_seen_are_unknown_in_the_constant_background():
    runs = [sequence("one", 4), sequence("two", 4)]
    for run in runs:
        for sample in run.samples:
            sample.true_static[:, :7] = 0
    for values in baselines.map_controls(runs, MASK):
        assert values[baselines.CONSTANT]["mask_iou"] > 0.8  # all but a part of the box in the first frame
        assert values[baselines.CONSTANT]["false_alarm"] == 0


def test_a_bright_moving_object_is_found_by_brightness_alone():
    runs = [sequence("one", 4, bright=True), sequence("two", 2, bright=True)]
    for values in baselines.map_controls(runs, MASK):
        assert values["brightness alone"]["mask_iou"] > 0.9 and values["brightness alone"]["motion_auc"] > 0.99


def test_controls_without_truth_are_left_out():
    run = sequence("davis", 4)
    samples = [
        SampledFrame(s.frame, s.image, s.depth, s.ray_depth, s.mask, None, None, s.moving) for s in run.samples
    ]  # with true masks only
    masks = SequenceRun("davis", "", "davis", 4, run.truth, {}, {}, samples)
    (values,) = baselines.map_controls([masks], MASK)
    assert set(values) == {baselines.NETWORK, "saturation alone", "brightness alone"}
    nothing = [SampledFrame(s.frame, s.image, s.depth, s.ray_depth, s.mask, None, None, None) for s in run.samples]
    depth_only = SequenceRun("kitti", "", "kitti", 4, run.truth, {}, {}, nothing)
    assert baselines.map_controls([depth_only], MASK) == [{}]
    empty = SequenceRun("short", "", "short", 4, run.truth, {}, {}, [])
    assert baselines.map_controls([empty], MASK) == [{}]
    beside, nothing = baselines.map_controls([run, empty], MASK)  # too short for the ray branch, after a long one
    assert nothing == {} and beside.keys() == baselines.map_controls([run], MASK)[0].keys() > set()


def test_a_static_sequence_has_no_best_threshold():
    run = sequence("static", 4)
    still = [
        SampledFrame(
            s.frame, s.image, s.true_static / 2, s.ray_depth, np.zeros(SIZE, bool), s.true_static, s.true_static,
            np.zeros(SIZE, bool),
        )
        for s in run.samples
    ]  # fmt: skip
    (values,) = baselines.map_controls([SequenceRun("static", "", "s", 4, run.truth, {}, {}, still)], MASK)
    assert "brightness alone" not in values
    assert values[baselines.NETWORK]["false_alarm"] == 0 and np.isnan(values[baselines.NETWORK]["mask_iou"])
