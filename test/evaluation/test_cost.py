"""The cost of variants, against what the method prescribes for each frame."""

import dataclasses

import numpy as np
import pytest

from raymap3r_ros.evaluation.parts import suite_sequences
from raymap3r_ros.evaluation.plan import EvaluationPlan, Variant
from raymap3r_ros.evaluation.run import run_sequences
from raymap3r_ros.network import load_network
from raymap3r_ros.streaming import METHOD, StreamOptions
from raymap3r_ros.streaming.stream_options import KeyframeOptions

FRAMES = 110
SIZE = (96, 128)  # pixels, those of the shipped network
ONCE = StreamOptions(update_rule="cut3r", reset_interval=0)


@pytest.fixture(scope="module")
def costs():
    """The figures of some variants over 110 frames, with a reset at frame 100, of which every fifth is judged."""
    options = {
        "once": ONCE,
        "rarely": dataclasses.replace(ONCE, ray_interval=4),
        "single": dataclasses.replace(ONCE, reset_interval=100, keyframes=KeyframeOptions(size=0)),
        "keyframes": dataclasses.replace(ONCE, reset_interval=100),
        "half": dataclasses.replace(ONCE, reset_interval=100, keyframes=KeyframeOptions(size=16)),
    }
    variants = [Variant(name, "rule", one, "once") for name, one in options.items()]
    sequences = suite_sequences("long", "one_room", 1, size=SIZE, device="cpu")
    plan = EvaluationPlan(frames=FRAMES, judged_frames=FRAMES // 5)
    (run,) = run_sequences(load_network("one_room"), sequences, variants, plan, suite="long")
    return run.values


def test_image_and_rays_are_a_pass_each(costs):
    for name, interval in (("once", 1), ("rarely", 4)):
        rays = sum(frame % interval == 0 for frame in range(METHOD.warmup_frames, FRAMES))
        assert costs[name]["passes"] * FRAMES == pytest.approx(FRAMES + rays), "whatever frames are judged"
        assert costs[name]["most_passes"] == 2


def test_keyframes_are_seen_twice_before_a_reset_and_the_frame_once_more(costs):
    rehearsed, single = (costs[name]["passes"] * FRAMES for name in ("keyframes", "single"))
    assert rehearsed - single == pytest.approx(2 * METHOD.rehearsed_keyframes)
    assert costs["keyframes"]["most_passes"] == costs["single"]["most_passes"] == 3


def test_memory_grows_with_the_slots_of_the_keyframes(costs):
    keyframes, half, single = (costs[name]["stream_memory"] for name in ("keyframes", "half", "single"))
    slot = (keyframes - half) / 16
    config = load_network("one_room").config
    count = SIZE[0] * SIZE[1] / config.patch_size**2
    tokens = count * config.encoder_width * 4 / 1e6  # MB of the float32 tokens of a keyframe
    assert tokens < slot < 1.1 * tokens
    assert single < half - 15 * slot and np.isclose(costs["once"]["stream_memory"], single)
