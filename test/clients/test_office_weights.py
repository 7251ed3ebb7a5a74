"""The weights one_office are as accurate on their clip as documented, and a damaged network fails the same checks."""

import pytest

pytest.importorskip("evo", reason="evo is not installed: pip install 'raymap3r_ros[evaluation]'")
pytest.importorskip("scipy", reason="scipy is not installed: pip install 'raymap3r_ros[evaluation]'")

from raymap3r_ros.clients.clips import CLIPS, OFFICE_WEIGHTS
from raymap3r_ros.doctor.weights import SHIPPED
from raymap3r_ros.evaluation.plan import EvaluationPlan, rule_variants
from raymap3r_ros.evaluation.run import run_sequences
from raymap3r_ros.evaluation.sequences import PosedSequence
from raymap3r_ros.network import PRESETS, Network, load_network, shipped_weights
from raymap3r_ros.streaming import StreamOptions

# Metric of a clip -> limit; the values in docs/weights.md are better.
BOUNDS = {
    ("office", "ate_relative"): 0.7,
    ("office", "rpe_rotation"): 4.0,
    ("office", "abs_rel_metric"): 0.18,
    ("movers", "1 - mask_iou"): 0.9,
    ("movers", "false_alarm"): 0.06,
}


@pytest.fixture(scope="module")
def sequences():
    clips = {name: CLIPS[name](None) for name in ("office", "movers")}
    return {name: PosedSequence(name, len(clip.frames), lambda c=clip: iter(c.frames)) for name, clip in clips.items()}


def measured(network: Network, sequences: dict[str, PosedSequence], *clips: str) -> dict[tuple[str, str], float]:
    """Values of the metrics in BOUNDS for these clips."""
    figures = {}
    for clip in clips:
        plan = EvaluationPlan(judged_frames=20)
        variants = rule_variants(StreamOptions(), ["raymap3r"])
        (run,) = run_sequences(network, [sequences[clip]], variants, plan, suite=clip)
        values = run.values["raymap3r"]
        figures |= {(clip, name): value for name, value in values.items()}
        figures[clip, "1 - mask_iou"] = 1 - values.get("mask_iou", 0.0)
    return {key: figures[key] for key in BOUNDS if key[0] in clips}


def worse(figures: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    return {key: value for key, value in figures.items() if not value < BOUNDS[key]}


def test_weights_are_small_and_contain_their_provenance():
    assert set(SHIPPED) == set(shipped_weights())
    assert shipped_weights()[OFFICE_WEIGHTS].stat().st_size < 12e6
    network = load_network(OFFICE_WEIGHTS)
    assert network.trained and "one real place" in network.source and network.config == PRESETS["mini"]
    assert {
        "options",
        "steps",
        "frames",
        "hours",
        "hardware",
        "code",
        "date",
        "plausibility",
    } <= network.manifest.keys()


def test_weights_meet_the_bounds_on_images_of_their_place(sequences):
    figures = measured(load_network(OFFICE_WEIGHTS), sequences, "office", "movers")
    assert not worse(figures), f"allowed: {BOUNDS}"


@pytest.mark.parametrize(
    ("part", "clip"), [("decoder.state_blocks", "office"), ("pose_head", "office"), ("ray_encoder", "movers")]
)
def test_a_broken_network_does_not_pass(sequences, part: str, clip: str):
    """Each part of the network affects at least one of the bounds: reverse the order of its weights."""
    network = load_network(OFFICE_WEIGHTS)
    network.load_state_dict(
        {key: value.flip(0) if key.startswith(part) else value for key, value in network.state_dict().items()}
    )
    figures = measured(network, sequences, clip)
    assert worse(figures), figures
