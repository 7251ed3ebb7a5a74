"""The runner: on a world with exact predictions, and its guarantees on an untrained network."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "streaming"))
import wall

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.evaluation.plan import ABLATIONS, BASE, EvaluationPlan, Variant, ablation_variants, rule_variants
from raymap3r_ros.evaluation.run import SharedEncoder, run_sequences
from raymap3r_ros.evaluation.scorer import CONSTANT_POSE, RANDOM_WALK
from raymap3r_ros.evaluation.sequences import Frame, PosedSequence
from raymap3r_ros.network import NetworkConfig, untrained_network
from raymap3r_ros.streaming import METHOD, RULES, StreamOptions
from raymap3r_ros.streaming.preprocessing import apply_framing, frame_image, visible_crop
from raymap3r_ros.streaming.stream_options import KeyframeOptions

pytest.importorskip("evo", reason="the evaluation needs evo")

SMALL = NetworkConfig(
    image_size=64, encoder_width=32, encoder_depth=1, encoder_heads=2, ray_encoder_depth=1, ray_encoder_heads=2,
    decoder_width=32, decoder_depth=2, decoder_heads=2, state_heads=2, state_tokens=6, memory_slots=4,
    memory_depth=1, memory_heads=2, dpt_width=8, dpt_last_width=8, dpt_level_widths=(8, 8, 8, 8),
)  # fmt: skip
RAW = StreamOptions(reset_interval=10, smoothing="off")


def wall_sequence(length: int = 24, first: int = 0, **changes: object) -> PosedSequence:
    """The wall's world with full ground truth. `changes` replace fields of each frame."""

    def frames():
        static = np.full(wall.SIZE, wall.WALL, np.float32)
        moving = np.zeros(wall.SIZE, bool)
        moving[wall.BOX] = True
        for index in range(first, first + length):
            pose = np.eye(4)
            pose[:3, 3] = wall.position(index)
            static_depth = static - np.float32(pose[2, 3])
            depth = np.where(moving, np.float32(wall.BOX_DEPTH), static_depth)
            intrinsics = np.array([[wall.FOCAL, 0, 32], [0, wall.FOCAL, 24], [0, 0, 1]])
            frame = Frame(wall.image(index), index / 10, depth, static_depth, moving, pose, intrinsics)
            yield dataclasses.replace(frame, **changes)

    return PosedSequence(f"wall-{first}", length, frames)


def noise_sequence(seed: int, length: int = 8) -> PosedSequence:
    """Random images with random ground truth."""

    def frames():
        rng = np.random.default_rng(seed)
        for index in range(length):
            pose = np.eye(4)
            pose[:3, 3] = rng.normal(size=3)
            depth = rng.uniform(1, 3, (48, 64)).astype(np.float32)
            moving = rng.uniform(size=(48, 64)) < 0.2
            image = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
            yield Frame(image, float(index), depth, depth, moving, pose)

    return PosedSequence(f"noise-{seed}", length, frames)


def run_wall(network: torch.nn.Module | None = None, sequence: PosedSequence | None = None, **plan: object):
    variants = rule_variants(RAW, ("raymap3r", "cut3r"))
    sequence = sequence or wall_sequence()
    (run,) = run_sequences(network or wall.WallNetwork(), [sequence], variants, EvaluationPlan(**plan), suite="wall")
    return run


# --- a world with exact predictions -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact():
    return run_wall(reconstruction=True)


@pytest.mark.parametrize("rule", ["raymap3r", "cut3r"])
def test_exact_predictions_have_no_error(exact, rule):
    values = exact.values[rule]
    for metric in ("ate", "ate_se3", "rpe_translation", "end_drift", "abs_rel_metric", "abs_rel_metric_static"):
        assert values[metric] < 1e-3, metric
    assert values["rpe_rotation"] < 0.05
    assert values["abs_rel_metric_ray"] < 1e-3
    assert values["trajectory_scale"] == pytest.approx(1, abs=1e-3)
    assert values["depth_scale"] == pytest.approx(1, abs=1e-3)
    assert values["delta1"] == 1
    assert values["mask_iou"] == values["mask_iou_5"] == 1
    assert values["motion_auc"] > 0.999  # the dynamic map is smoothed over three pixels
    assert values["false_alarm"] == 0
    assert values["moving_share"] == pytest.approx(16 * 16 / (48 * 64))
    assert values["chamfer"] < 1e-3
    assert values["normal_consistency"] == pytest.approx(1, abs=0.05)
    assert values["unhealthy_frames"] == 0


def test_controls_are_worse_than_exact_predictions(exact):
    truth = np.stack([wall.position(index) for index in range(24)])
    never_moved = np.sqrt(((truth - truth.mean(0)) ** 2).sum(1).mean())
    assert exact.values[CONSTANT_POSE]["ate_se3"] == pytest.approx(never_moved, rel=1e-4)
    assert exact.values[RANDOM_WALK]["ate_se3"] > 0.05


def test_samples_are_spread_over_the_frames_that_have_a_mask(exact):
    indices = [sample.frame for sample in exact.samples]
    assert indices == sorted(set(indices)) and indices[0] == 5 and indices[-1] == 23
    for sample in exact.samples:
        np.testing.assert_array_equal(sample.mask, sample.moving)
        np.testing.assert_allclose(sample.depth, sample.true_depth, atol=1e-3)
        np.testing.assert_allclose(sample.ray_depth, sample.true_static, atol=1e-3)


class Damaged(wall.WallNetwork):
    """Depth that is 10 % too large, and positions that alternate."""

    def pose(self, decoded):
        pose = super().pose(decoded)
        jump = 0.1 * (-1) ** decoded.levels[0][:, 0, 0]
        return torch.cat((pose[:, :1] + jump[:, None], pose[:, 1:]), dim=1)

    def self_points(self, decoded, size):
        points, confidence = super().self_points(decoded, size)
        return points * (1 if decoded.levels[0][0, 0, 5] == 1 else 1.1), confidence


def test_damage_affects_the_metrics_that_measure_it():
    plain = rule_variants(dataclasses.replace(RAW, reset_interval=0), ("cut3r",))
    (run,) = run_sequences(Damaged(), [wall_sequence()], plain, EvaluationPlan(), suite="wall")
    values = run.values["cut3r"]
    assert values["ate_se3"] == pytest.approx(0.1, rel=0.1)
    assert values["abs_rel_metric"] == pytest.approx(0.1, rel=0.01)
    assert values["abs_rel"] < 1e-3 and values["depth_scale"] == pytest.approx(1 / 1.1, rel=1e-3)


class ThickeningWall(wall.WallNetwork):
    """Sees everything farther away along the axis: by 0.1 m at the wall, from frame 30 on by 0.3 m."""

    def self_points(self, decoded, size):
        points, confidence = super().self_points(decoded, size)
        centre = self._where(decoded)[0]
        offset = torch.where(centre[:, 0] > 0.03 * 29.5, 0.3, 0.1)
        return points * (1 + offset / (wall.WALL - centre[:, 2]))[:, None, None, None], confidence


@pytest.mark.parametrize("keyframes", [0, 32])
def test_thickness_is_the_distance_of_the_map_from_the_surfaces(keyframes):
    place = np.array([[0.6, 0, 0.8, 4], [0, 1, 0, 5], [-0.8, 0, 0.6, 6], [0, 0, 0, 1]])  # of the first camera

    def frames():
        for frame in wall_sequence(60).frames():
            yield dataclasses.replace(frame, pose=place @ frame.pose)

    def run(network: torch.nn.Module, surface: float) -> dict[str, float]:
        def distance(points: np.ndarray) -> np.ndarray:
            return np.abs((points - place[:3, 3]) @ place[:3, 2] - surface)

        variants = [Variant("one", "rule", dataclasses.replace(RAW, keyframes=KeyframeOptions(size=keyframes)), "")]
        sequence = PosedSequence("wall", 60, frames, surface_distance=distance)
        (run,) = run_sequences(network, [sequence], variants, EvaluationPlan(), suite="wall")
        return run.values["one"]

    exact = run(wall.WallNetwork(), wall.WALL)
    assert exact["map_thickness"] < 1e-3 and exact["ate_se3"] < 1e-3
    shifted = run(wall.WallNetwork(), wall.WALL - 0.25)
    assert shifted["map_thickness"] == pytest.approx(0.25, abs=1e-3)
    assert shifted["map_thickness_growth"] == pytest.approx(1, abs=1e-2)
    thick = run(ThickeningWall(), wall.WALL)
    assert thick["ate_se3"] < 1e-3
    assert thick["map_thickness"] == pytest.approx(0.3, abs=2e-3)  # frames 5 to 29, and 30 to 59
    assert thick["map_thickness_growth"] == pytest.approx(3, abs=0.02)


def test_without_alignment_of_resets_the_path_is_wrong():
    """The control of the exact case: the wall's network changes its world at every reset."""
    off = dataclasses.replace(RAW, reset_alignment="off")
    (run,) = run_sequences(
        wall.WallNetwork(), [wall_sequence()], rule_variants(off, ("cut3r",)), EvaluationPlan(), suite="wall"
    )
    assert run.values["cut3r"]["ate_se3"] > 0.05


def test_a_frame_without_finite_values_keeps_the_last_pose():
    run = run_wall(wall.WallNetwork(lose_frame=7))
    values = run.values["raymap3r"]
    assert values["unhealthy_frames"] == 1
    np.testing.assert_array_equal(run.poses["raymap3r"][7], run.poses["raymap3r"][6])
    assert 1e-3 < values["ate_se3"] < 0.05
    assert values["abs_rel_metric"] < 1e-3


# --- missing ground truth -----------------------------------------------------------------------------------------


def test_only_metrics_with_ground_truth_are_computed():
    run = run_wall(sequence=wall_sequence(pose=None, static_depth=None))
    assert not len(run.truth) and CONSTANT_POSE not in run.values
    assert {"abs_rel", "abs_rel_static", "mask_iou"} <= set(run.values["cut3r"])
    assert not [metric for metric in run.values["cut3r"] if "ate" in metric or "ray" in metric]
    run = run_wall(sequence=wall_sequence(depth=None, static_depth=None, moving=None), reconstruction=True)
    assert not [
        metric for metric in run.values["cut3r"] if "abs_rel" in metric or "iou" in metric or metric == "chamfer"
    ]
    assert run.values["cut3r"]["ate_se3"] < 1e-3
    assert all(sample.moving is None and sample.true_depth is None for sample in run.samples)


def test_static_depth_counts_static_pixels_only():
    truth = next(wall_sequence().frames())
    wrong = np.where(truth.moving, 100, truth.depth).astype(np.float32)
    run = run_wall(sequence=wall_sequence(length=1, depth=wrong))
    values = run.values["cut3r"]
    assert values["abs_rel_metric_static"] < 1e-3 < values["abs_rel_metric"]
    assert values["depth_pixels"] - values["depth_pixels_static"] == 16 * 16


# --- batches, threads, plans --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    return untrained_network(SMALL, seed=5).eval().requires_grad_(False)


def run_noise(network, rules=RULES, **plan: object):
    sequences = [noise_sequence(seed) for seed in range(2)]
    return list(
        run_sequences(network, sequences, rule_variants(StreamOptions(), rules), EvaluationPlan(**plan), suite="noise")
    )


@pytest.fixture(scope="module")
def alone(network):
    return run_noise(network, batch=1)


@pytest.mark.parametrize("plan", [{"batch": 2}, {"workers": 2}])
def test_batches_and_threads_equal_single_streams(network, alone, plan):
    runs = run_noise(network, **plan)
    assert [run.name for run in runs] == [run.name for run in alone] == ["noise-0", "noise-1"]
    for run, expected in zip(runs, alone, strict=True):
        assert run.values.keys() == expected.values.keys()
        for name, values in expected.values.items():
            for metric, value in values.items():
                # Sums in another order may flip single pixels of a mask.
                assert run.values[name][metric] == pytest.approx(value, rel=1e-2, abs=1e-3, nan_ok=True), metric
        for rule in RULES:
            np.testing.assert_allclose(run.poses[rule], expected.poses[rule], atol=1e-4)


def test_rules_do_not_disturb_each_other(network, alone):
    for run, expected in zip(run_noise(network, ("motion_filter",), batch=1), alone, strict=True):
        np.testing.assert_array_equal(run.poses["motion_filter"], expected.poses["motion_filter"])
        assert run.values["motion_filter"] == pytest.approx(expected.values["motion_filter"], nan_ok=True)


def test_images_are_encoded_once_for_all_rules(network, monkeypatch):
    calls = []
    encode = type(network).encode_image
    monkeypatch.setattr(
        type(network), "encode_image", lambda self, image: calls.append(len(image)) or encode(self, image)
    )
    run_noise(network, ("ttt3r", "cut3r"), frames=3)
    assert calls == [2] * 3


def test_variants_that_cannot_differ_run_once(network, monkeypatch):
    calls = []
    decode = type(network).decode
    monkeypatch.setattr(type(network), "decode", lambda *args, **named: calls.append(1) or decode(*args, **named))

    def count(frames: int) -> tuple[int, list[bool]]:
        calls.clear()
        options = (StreamOptions(update_rule="cut3r", reset_interval=interval) for interval in (0, 4, 7))
        variants = [Variant(str(option.reset_interval), "ablation", option, "0") for option in options]
        (run,) = run_sequences(network, [noise_sequence(0)], variants, EvaluationPlan(frames=frames), suite="noise")
        same = [np.array_equal(run.poses["0"], run.poses[name]) for name in ("4", "7")]
        return len(calls), same

    assert count(4) == (4, [True, True])  # a reset after four frames would need a fifth frame
    # At the reset, the frame is decoded twice, and the next frame is in the new segment. Both streams run the ray
    # branch at the sixth frame.
    assert count(6) == (2 * 6 + 1 + 2, [False, True])


def test_the_shared_encoder_detects_another_image(network):
    shared = SharedEncoder(network)
    for image in (torch.zeros(1, 3, 48, 64), torch.ones(1, 3, 48, 64), torch.ones(2, 3, 48, 64)):
        torch.testing.assert_close(shared.encode_image(image), network.encode_image(image))


def test_a_plan_limits_frames_and_maps():
    run = run_wall(frames=15)
    assert run.frames == len(run.truth) == 15
    few = run_wall(judged_frames=6)  # every fourth of 24
    assert few.values["cut3r"]["depth_pixels"] == 6 * 48 * 64
    assert {sample.frame % 4 for sample in few.samples} == {0}
    assert few.frames == len(few.truth) == 24
    # The trajectory does not depend on the frames that are scored.
    whole = run_wall()
    for rule in ("raymap3r", "cut3r"):
        np.testing.assert_allclose(few.poses[rule], whole.poses[rule], atol=1e-6)


def test_lengths_may_differ_between_batches():
    sequences = [wall_sequence(8), wall_sequence(8), wall_sequence(9), wall_sequence(8)]
    runs = run_sequences(wall.WallNetwork(), sequences, rule_variants(RAW, ("cut3r",)), EvaluationPlan(), suite="wall")
    assert [run.frames for run in runs] == [8, 8, 9, 8]


def test_unusable_runs_are_refused():
    variants = rule_variants(RAW)
    with pytest.raises(InputError, match="wall: nothing to run: 0 sequences"):
        list(run_sequences(wall.WallNetwork(), [], variants, EvaluationPlan(), suite="wall"))
    odd = dataclasses.replace(wall_sequence(), frames=lambda: iter([Frame(np.zeros((32, 64, 3), np.uint8), 0.0)] * 24))
    with pytest.raises(InputError, match=r"differ in size .*batch of 1"):
        list(run_sequences(wall.WallNetwork(), [wall_sequence(), odd], variants, EvaluationPlan(), suite="wall"))
    with pytest.raises(OptionError, match="update_rule is 'slam'; allowed values: raymap3r"):
        rule_variants(RAW, ("slam",))
    with pytest.raises(OptionError, match="batch is 0; allowed: 1 and more"):
        EvaluationPlan(batch=0)


def test_an_error_in_one_batch_ends_the_others():
    def broken():
        yield next(wall_sequence().frames())
        raise InputError("the disk is gone")

    sequences = [dataclasses.replace(wall_sequence(), frames=broken), wall_sequence(200)]
    seen = []
    with pytest.raises(InputError, match="the disk is gone"):
        list(
            run_sequences(
                wall.WallNetwork(), sequences, rule_variants(RAW, ("cut3r",)), EvaluationPlan(workers=2), suite="wall",
                on_frame=seen.append,
            )
        )  # fmt: skip
    assert sum(seen) < 150


def test_ablations_have_distinct_options_and_start_with_their_base():
    variants = ablation_variants(StreamOptions(image_size=64))
    assert [variant.name for variant in variants] == list(ABLATIONS) and variants[0].name == BASE
    assert {variant.baseline for variant in variants} == {BASE}
    assert len({(variant.options, variant.method) for variant in variants}) == len(variants)
    # Without a jump no camera is relocalised.
    setups = {variant.name: variant.setup(1000) for variant in variants if variant.name != "all, no relocalisation"}
    assert len({*setups.values()}) == len(variants) - 1
    assert {variant.setup(1000) for variant in variants} == {*setups.values()}
    assert all(variant.options.image_size == 64 for variant in variants)


def test_ablations_of_keyframes_differ_only_in_them():
    options = StreamOptions(reset_interval=50)
    variants = {variant.name: variant for variant in ablation_variants(options)}
    full = variants["all"]
    assert (full.options, full.method) == (options, METHOD) and full.options.keyframes.size == 32
    assert variants["all, no keyframes"].options == dataclasses.replace(options, keyframes=KeyframeOptions(size=0))
    still = dataclasses.replace(full.options.keyframes, relocalize=False)
    assert variants["all, no relocalisation"].options == dataclasses.replace(options, keyframes=still)
    rehearsals = {name: variant.method for name, variant in variants.items() if variant.method != METHOD}
    assert rehearsals == {
        f"all, {count} rehearsed": dataclasses.replace(METHOD, rehearsed_keyframes=count) for count in (4, 16)
    }
    assert all(variants[name].options == full.options for name in rehearsals)
    assert variants["all, 4 rehearsed"].settings()["method"] == {"rehearsed_keyframes": 4}
    assert full.settings() == dataclasses.asdict(options)
    # Before the first reset, and where segments are not aligned by keyframes, they make no difference.
    named = ("all", "all, no keyframes", "all, no resets", *rehearsals)
    assert len({variants[name].setup(50) for name in named}) == 1
    assert len({variants[name].setup(51) for name in named}) == 5
    unaligned = dataclasses.replace(options, reset_alignment="off")
    other = dataclasses.replace(unaligned, keyframes=KeyframeOptions(size=7))
    assert len({Variant("", "rule", option, "").setup(51) for option in (unaligned, other)}) == 1


def test_a_variant_rehearses_as_many_keyframes_as_its_method_says(network, monkeypatch):
    """Each keyframe is decoded twice before a reset, once with and once without taking it in."""
    calls = []
    decode = type(network).decode
    monkeypatch.setattr(type(network), "decode", lambda *args, **named: calls.append(1) or decode(*args, **named))
    decoded = []
    for count in (1, 2, 4):
        calls.clear()
        method = dataclasses.replace(METHOD, rehearsed_keyframes=count)
        variant = Variant("one", "rule", StreamOptions(reset_interval=20), "", method=method)
        list(run_sequences(network, [noise_sequence(0, 21)], [variant], EvaluationPlan(), suite="noise"))
        decoded.append(len(calls))
    assert [number - decoded[0] for number in decoded] == [0, 2, 6]


# --- framing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(120, 160), (480, 640), (375, 1242), (100, 60), (64, 64)])
def test_the_visible_crop_is_the_image_of_the_network(size):
    """Pixel coordinates after the stream's resize and crop equal those of the visible crop."""
    framing = frame_image(size[1], size[0], 80, 8)
    rows, columns = np.indices(size)
    ramp = np.stack((255 * rows / size[0], 255 * columns / size[1], 0 * rows), axis=-1).astype(np.uint8)
    seen, network_image = visible_crop(ramp, framing), apply_framing(ramp, framing)
    for channel, axis in ((0, 0), (1, 1)):
        lines, expected = seen[..., channel].mean(axis=1 - axis), network_image[..., channel].mean(axis=1 - axis)
        step = 255 / framing.resized[1 - axis]  # one pixel of the network's image
        assert lines[0] == pytest.approx(expected[0], abs=1.5 * step)
        assert lines[-1] == pytest.approx(expected[-1], abs=1.5 * step)
