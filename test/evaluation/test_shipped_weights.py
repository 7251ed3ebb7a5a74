"""The shipped weights are as accurate as documented, and a damaged network fails the same checks."""

import dataclasses

import pytest
import torch

pytest.importorskip("evo", reason="evo is not installed: pip install 'raymap3r_ros[evaluation]'")
pytest.importorskip("scipy", reason="scipy is not installed: pip install 'raymap3r_ros[evaluation]'")

from raymap3r_ros.evaluation.plan import EvaluationPlan, rule_variants
from raymap3r_ros.evaluation.run import run_sequences
from raymap3r_ros.evaluation.sequences import synthetic_sequence
from raymap3r_ros.network import DEFAULT_CHECKPOINT, PRESETS, Network, load_network, shipped_weights
from raymap3r_ros.streaming import StreamOptions

SUITES = ("static", "heavy")
INDICES = (2, 11)
FRAMES = 30
# Metric of a suite -> limit of the mean over its sequences; the values in docs/weights.md are better.
BOUNDS = {
    ("static", "ate_relative"): 0.3,
    ("static", "abs_rel_metric"): 0.045,
    ("static", "abs_rel_metric_ray"): 0.06,
    ("static", "false_alarm"): 0.01,
    ("heavy", "ate_relative"): 0.36,
    ("heavy", "1 - mask_iou"): 0.2,
}


def measured(network: Network, *suites: str) -> dict[tuple[str, str], float]:
    """Values of the metrics in BOUNDS for these suites."""
    figures = {}
    for suite in suites:
        sequences = [synthetic_sequence(suite, i, world="one_room", size=(96, 128), device="cpu") for i in INDICES]
        variants = rule_variants(StreamOptions(), ["raymap3r"])
        runs = list(
            run_sequences(network, sequences, variants, EvaluationPlan(frames=FRAMES), suite=suite, world="one_room")
        )
        for name in runs[0].values["raymap3r"]:
            figures[suite, name] = sum(run.values["raymap3r"][name] for run in runs) / len(runs)
        figures[suite, "1 - mask_iou"] = 1 - figures[suite, "mask_iou"]
    return {key: figures[key] for key in BOUNDS if key[0] in suites}


def test_weights_are_small_and_contain_their_provenance():
    path = shipped_weights()[DEFAULT_CHECKPOINT]
    assert path.stat().st_size < 12e6
    network = load_network()
    assert network.trained and "trained on one rendered room" in network.source
    assert network.config == PRESETS["mini"]
    assert {"options", "steps", "frames", "hours", "hardware", "code", "date"} <= network.manifest.keys()


def test_weights_meet_the_bounds_in_their_room():
    figures = measured(load_network(), *SUITES)
    worse = {key: value for key, value in figures.items() if not value < BOUNDS[key]}
    assert not worse, f"allowed: {BOUNDS}"


@pytest.mark.parametrize("part", ["decoder.state_blocks", "ray_encoder", "pose_head"])
def test_a_broken_network_does_not_pass(part: str):
    """Each part of the network affects at least one of the bounds: reverse the order of its weights."""
    network = load_network()
    network.load_state_dict(
        {key: value.flip(0) if key.startswith(part) else value for key, value in network.state_dict().items()}
    )
    figures = measured(network, "static")
    assert any(not value < BOUNDS[key] for key, value in figures.items()), figures


def test_a_constant_state_does_not_pass(monkeypatch: pytest.MonkeyPatch):
    """Without the state that earlier frames wrote, a pose has no reference."""
    network = load_network()
    decode = type(network).decode

    def without_memory(self, *args, **kwargs):
        decoded = decode(self, *args, **kwargs)
        state = None if decoded.state is None else self.initial_state(len(decoded.state)).clone()
        return dataclasses.replace(decoded, state=state)

    monkeypatch.setattr(type(network), "decode", without_memory)
    with torch.inference_mode():
        figures = measured(network, "static")
    assert any(not value < BOUNDS[key] for key, value in figures.items()), figures
