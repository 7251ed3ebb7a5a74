"""The check whether the weights fit the images: its numbers, its limits and its judgement."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from raymap3r_ros.errors import CheckpointError
from raymap3r_ros.streaming import METHOD, Stream, StreamOptions
from raymap3r_ros.streaming.plausibility import (
    METADATA_KEY,
    MIN_FRAMES,
    WINDOW,
    PlausibilityCheck,
    PlausibilityLimits,
    plausibility,
)

LIMITS = PlausibilityLimits(confidence=1.0, ray_confidence=0.5, disagreement=0.2)
GOOD, BAD = np.array([2.0, 1.0, 0.1], np.float32), np.array([0.1, 1.0, 0.9], np.float32)


def test_the_numbers_are_percentiles_of_the_better_part_of_the_image():
    generator = torch.Generator().manual_seed(0)
    confidence, ray_confidence, depth, ray_depth = (
        1 + 4 * torch.rand(2, 12, 20, generator=generator) for _ in range(4)
    )
    found = plausibility(confidence, ray_confidence, depth, ray_depth, METHOD).numpy()
    for index in range(2):
        ratio = (ray_depth[index] / depth[index]).numpy()
        expected = [
            np.quantile(np.log(confidence[index].numpy()), 0.9),
            np.quantile(np.log(ray_confidence[index].numpy()), 0.5),
            np.quantile(np.abs(np.log(ratio)), 0.25),
        ]
        assert np.allclose(found[index], expected, rtol=1e-4)


def test_of_large_images_every_nth_row_and_column_counts():
    maps = [1 + 4 * torch.rand(2, 15, 17, generator=torch.Generator().manual_seed(number)) for number in range(4)]
    large = [values.repeat_interleave(6, dim=1).repeat_interleave(6, dim=2) for values in maps]
    assert torch.allclose(plausibility(*large, METHOD), plausibility(*maps, METHOD))


def test_a_mover_over_half_of_the_image_changes_little():
    ones = torch.ones(1, 24, 32)
    before = plausibility(5 * ones, 3 * ones, 2 * ones, 2.02 * ones, METHOD)
    depth, confidence = 2 * ones, 5 * ones
    depth[..., :16], confidence[..., :16] = 0.7, 1.0
    assert torch.equal(plausibility(confidence, 3 * ones, depth, 2.02 * ones, METHOD), before)


@pytest.mark.parametrize("execution", ["plain", "trace"])
def test_a_stream_has_them_while_the_ray_branch_runs(network, execution):
    stream = Stream(network, StreamOptions(ray_interval=2, execution=execution))
    images = np.random.default_rng(0).integers(0, 256, (28, 32, 32, 3), np.uint8)
    for image in images:
        result = stream.step(image)
        ran = result.frame >= METHOD.warmup_frames and result.frame % 2 == 0
        assert (result.plausibility is not None) == ran
        if ran:
            assert result.plausibility.shape == (3,)
            assert result.plausibility[0].item() == pytest.approx(
                np.quantile(result.confidence[::2, ::2].log(), 0.9), rel=1e-4, abs=1e-6
            )


def test_cameras_of_a_batch_have_their_own(network):
    images = np.random.default_rng(1).integers(0, 256, (8, 2, 32, 32, 3), np.uint8)
    together, alone = Stream(network, StreamOptions()), Stream(network, StreamOptions())
    for pair in images:
        both, second = together.step(pair), alone.step(pair[1])
    assert torch.allclose(both.camera(1).plausibility, second.plausibility, rtol=1e-3, atol=1e-5)
    assert not torch.equal(both.plausibility[0], both.plausibility[1])


def test_the_first_implausible_frame_is_reported_once():
    check = PlausibilityCheck(LIMITS)
    assert check.verdict == "unknown" and check.share is None
    reported = [check.add(GOOD) for _ in range(WINDOW)] + [check.add(BAD) for _ in range(2 * WINDOW)]
    assert sum(reported) == 1 and reported.index(True) >= WINDOW
    assert check.verdict == "no" and "the weights do not fit these images" in check.problem
    assert "confidence 1.11 (where they fit, at least 2.72)" in check.problem
    assert "by a factor of 2.46 (at most 1.22)" in check.problem
    for _ in range(WINDOW):
        check.add(GOOD)
    assert check.verdict == "yes" and check.problem == ""
    assert check.judged == 4 * WINDOW - MIN_FRAMES + 1 and 0 < check.share < 1


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((2.0, 1.0, 0.1), "yes"),
        ((0.1, 1.0, 0.1), "yes"),  # movers over most of the image; the branches agree
        ((2.0, 1.0, 0.9), "yes"),  # confident; a large mover
        ((0.1, 1.0, 0.9), "no"),
        ((2.0, 0.1, 0.9), "no"),
    ],
)
def test_confidence_and_agreement_must_both_be_missing(values, verdict):
    check = PlausibilityCheck(LIMITS)
    for _ in range(MIN_FRAMES):
        check.add(np.array(values))
    assert check.verdict == verdict


def test_frames_without_values_and_checkpoints_without_limits_are_not_judged():
    check = PlausibilityCheck(LIMITS)
    for values in (None, np.array([np.nan, 1, 1]), np.array([1, np.inf, 1])) * WINDOW:
        assert not check.add(values)
    assert check.judged == 0
    unlimited = PlausibilityCheck.of({}, "weights")
    for _ in range(WINDOW):
        assert not unlimited.add(BAD)
    assert (unlimited.verdict, unlimited.share, unlimited.problem) == ("unknown", None, "")


def test_limits_survive_the_metadata():
    assert PlausibilityLimits.from_manifest({METADATA_KEY: LIMITS.to_json()}) == LIMITS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2, 3]",
        "{}",
        "[" * 100_000,
        json.dumps({**dataclasses.asdict(LIMITS), "other": 1.0}),
        json.dumps({**dataclasses.asdict(LIMITS), "confidence": "1"}),
        json.dumps({**dataclasses.asdict(LIMITS), "confidence": True}),
        json.dumps({**dataclasses.asdict(LIMITS), "disagreement": -1.0}),
        LIMITS.to_json().replace("0.2", "NaN"),
        LIMITS.to_json().replace("0.2", "1e999"),
    ],
)
def test_malformed_limits_are_refused(text):
    with pytest.raises(CheckpointError, match="raymap3r evaluate plausibility --write"):
        PlausibilityLimits.from_manifest({METADATA_KEY: text}, "weights")


def test_the_wrong_key_of_limits_is_named():
    text = json.dumps({**dataclasses.asdict(LIMITS), "other": 1.0})
    with pytest.raises(CheckpointError, match=r"metadata 'plausibility' of weights is not limits: .* unknown: other;"):
        PlausibilityLimits.from_manifest({METADATA_KEY: text}, "weights")
