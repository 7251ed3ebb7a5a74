"""The error model of poses and steps: statistics of errors drawn from it, the fit, and the command."""

import numpy as np
import pytest
import torch

pytest.importorskip("scipy", reason="scipy is not installed: pip install 'raymap3r_ros[evaluation]'")

from scipy.spatial.transform import Rotation

from raymap3r_ros import cli
from raymap3r_ros.commands import evaluate
from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation import covariance
from raymap3r_ros.evaluation.covariance import (
    Errors,
    EvaluatedSequence,
    evaluate_sequences,
    fit_model,
    normalized_errors,
    round_model,
    score_sequence,
)
from raymap3r_ros.evaluation.sequences import synthetic_sequence
from raymap3r_ros.mapping.uncertainty import DEFAULT, METADATA_KEY, ErrorModel, VarianceModel, travels
from raymap3r_ros.network import load_network, shipped_weights
from raymap3r_ros.network.metadata import copy_with_metadata
from raymap3r_ros.streaming import StreamOptions
from raymap3r_ros.synthetic import SUITES

MODEL = ErrorModel(
    position=VarianceModel(start=0.01, creep=0.03, power=0.4, axes=(1.2, 0.6, 1.1), settled=0.2, reach=1.5),
    rotation=VarianceModel(start=0.004, creep=0.01, power=0.4, axes=(0.7, 1.4, 0.8), settled=0.1, reach=0.7),
    step=VarianceModel(start=0.004, creep=0.1, power=0.5, axes=(1.0, 1.0, 1.0)),
    turn=VarianceModel(start=0.002, creep=0.05, power=0.3, axes=(0.5, 1.5, 0.7)),
)


def pose(rotation_vector=(0.0, 0.0, 0.0), position=(0.0, 0.0, 0.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotation_vector).as_matrix()
    matrix[:3, 3] = position
    return matrix


def drawn(
    model: ErrorModel, suite: str, frames: int, rng: np.random.Generator, factor: float = 1.0
) -> EvaluatedSequence:
    """A sequence with errors drawn from the model and multiplied by `factor`."""
    confidence = rng.uniform(1.0, 6.0, frames)
    depth = np.full(frames, 2.0)
    travel = np.cumsum(rng.uniform(0.0, 0.1, frames))
    step = rng.uniform(0.0, 0.5, frames)
    made = []
    for variances, of in ((model.pose_variances, travel), (model.step_variances, step)):
        values = factor * np.sqrt(variances(confidence, of)) * rng.normal(size=(frames, 6))
        made.append(Errors(values, of, confidence, depth))
    return EvaluatedSequence(suite, f"{suite} drawn", *made)


def spread(model: ErrorModel, errors: Errors):
    return normalized_errors(errors.values, model.pose_variances(errors.confidence, errors.travel))


def test_normalized_errors_of_the_model_and_of_twice_as_large_errors():
    rng = np.random.default_rng(0)
    right = spread(MODEL, drawn(MODEL, "a", 5000, rng).poses)
    assert right.within_one == pytest.approx(0.683, abs=0.01)
    assert right.within_two == pytest.approx(0.954, abs=0.01)
    assert right.squared == pytest.approx(1, abs=0.03)
    wrong = spread(MODEL, drawn(MODEL, "a", 5000, rng, factor=2).poses)
    assert wrong.squared == pytest.approx(4, abs=0.12)
    assert wrong.within_one == pytest.approx(0.383, abs=0.01)  # half a standard deviation


def test_a_fit_recovers_the_model_of_drawn_errors():
    rng = np.random.default_rng(1)
    # A suite that is ten times as long has the same weight as the others; a fit of all must still recover the model.
    found = fit_model([drawn(MODEL, "a", 1000, rng), drawn(MODEL, "a", 500, rng), drawn(MODEL, "b", 10_000, rng)])
    for travel in (0.3, 1.0, 5.0, 50.0, 400.0):
        for confidence in (1.0, 5.0):
            expected = MODEL.pose_variances(confidence, travel)
            np.testing.assert_allclose(found.pose_variances(confidence, travel), expected, rtol=0.25)
    for travel in (0.02, 0.1, 0.5):
        np.testing.assert_allclose(found.step_variances(3.0, travel), MODEL.step_variances(3.0, travel), rtol=0.25)


def test_suites_have_equal_weight_in_a_fit():
    rng = np.random.default_rng(2)
    flat = ErrorModel(*(VarianceModel(0.1, 0.001, 0.01, (1.0, 1.0, 1.0)) for _ in range(4)))
    large = drawn(flat, "large errors, few frames", 400, rng, factor=3)
    small = drawn(flat, "small errors, many frames", 4000, rng)
    pose_variance, _ = covariance.constant_variances([large, small])
    np.testing.assert_allclose(pose_variance, (0.1**2) * (9 + 1) / 2, rtol=0.1)


@pytest.mark.parametrize("model", [MODEL, DEFAULT])
def test_variances_grow_with_travel_and_shrink_with_confidence(model):
    travel = np.linspace(0, 100, 500)
    for variances in (model.pose_variances, model.step_variances):
        assert (np.diff(variances(3.0, travel), axis=0) > 0).all()
        assert (np.diff(variances(np.linspace(1, 20, 100), 1.0), axis=0) < 0).all()
        np.testing.assert_array_equal(variances(0.5, 1.0), variances(1.0, 1.0))  # the lowest confidence is 1


def test_travel_adds_distance_and_rotation():
    path = np.stack(
        (pose(), pose(position=(3, 0, 4)), pose((0, 0.5, 0), (3, 0, 4)), pose((0, 0.5 + np.pi, 0), (3, 0, 4)))
    )
    np.testing.assert_allclose(travels(path), [5, 2 * 0.5, 2 * np.pi])


def test_errors_are_in_camera_axes_for_any_pair_of_worlds():
    truth = np.stack([pose((0, 0.3 * t, 0.1 * t), (0.2 * t, 0, 0.1 * t)) for t in range(5)])
    shift, turn = np.array([0.01, -0.02, 0.03]), np.array([0.02, 0.01, -0.03])
    found = truth.copy()
    # Only the third camera has an error, given in its own axes.
    found[3] = truth[3] @ pose(turn, shift)
    elsewhere = pose((0.5, -1.0, 0.2), (4, 5, 6))  # the ground truth has another world
    sequence = score_sequence("s", "n", found, elsewhere @ truth, np.full(5, 2.0), np.arange(5.0))
    back = Rotation.from_rotvec(turn).as_matrix().T
    np.testing.assert_allclose(sequence.poses.values[3], [*(back @ shift), *turn], atol=1e-12)
    np.testing.assert_allclose(sequence.poses.values[[0, 1, 2, 4]], 0, atol=1e-12)
    assert sequence.poses.travel == pytest.approx([0, *np.cumsum(travels(found))])
    np.testing.assert_allclose(sequence.steps.values[2], sequence.poses.values[3], atol=1e-12)
    np.testing.assert_allclose(sequence.steps.values[[0, 1]], 0, atol=1e-12)
    # The step after it has the inverse error.
    true_step, step = np.linalg.inv(truth[3]) @ truth[4], np.linalg.inv(found[3]) @ truth[4]
    off = np.linalg.inv(true_step) @ step
    np.testing.assert_allclose(sequence.steps.values[3, 3:], Rotation.from_matrix(off[:3, :3]).as_rotvec(), atol=1e-12)
    assert len(sequence.steps.values) == 4 and sequence.steps.depth.tolist() == [1, 2, 3, 4]


def test_a_sequence_without_a_step_is_refused():
    with pytest.raises(InputError, match="errors of steps need two"):
        score_sequence("s", "n", pose()[None], pose()[None], np.ones(1), np.ones(1))
    with pytest.raises(InputError, match="one to calibrate with and one to evaluate"):
        covariance.report([drawn(MODEL, "a", 10, np.random.default_rng(0))])
    with pytest.raises(InputError, match="no sequence"):
        fit_model([])


def test_rounded_model_survives_json():
    assert round_model(MODEL) == MODEL and round_model(DEFAULT) == DEFAULT
    third = VarianceModel(start=1 / 3, creep=2 / 3, power=1 / 7, axes=(1.0, 1.0, 1.0), settled=1e-3 / 3, reach=10 / 3)
    rounded = round_model(ErrorModel(third, third, third, third))
    assert rounded.step == VarianceModel(0.333, 0.667, 0.143, (1.0, 1.0, 1.0), 0.000333, 3.33)
    assert ErrorModel.from_manifest({METADATA_KEY: rounded.to_json()}) == rounded
    for model in (MODEL, DEFAULT):
        for group in (model.position, model.rotation, model.step, model.turn):
            assert np.mean(np.square(group.axes)) == pytest.approx(1, abs=0.1)


def test_errors_of_the_shipped_weights_agree_with_the_model():
    """On sequences that were not used in the fit, which used numbers 0, 3, 6 to 21 of each suite.

    The sequences are many and short, because pose errors hardly change from frame to frame within a sequence.
    """
    held_out = range(2, 24, 3)
    sequences = [synthetic_sequence("static", i, world="one_room", size=(96, 128), device="cpu") for i in held_out]
    evaluated = evaluate_sequences(load_network(), [("static", sequences)], StreamOptions(), frames=20, batch=8)
    assert [len(sequence.poses.values) for sequence in evaluated] == 8 * [20]

    def mean_square(kind, variances):
        parts = [getattr(sequence, kind) for sequence in evaluated]
        return np.mean([normalized_errors(part.values, variances(part)).squared for part in parts])

    assert 0.5 < mean_square("poses", lambda part: DEFAULT.pose_variances(part.confidence, part.travel)) < 2
    assert 0.5 < mean_square("steps", lambda part: DEFAULT.step_variances(part.confidence, part.travel)) < 2
    # The variance of a step is not twice the variance of a pose: errors of neighbouring poses are nearly equal.
    assert mean_square("steps", lambda part: 2 * DEFAULT.pose_variances(part.confidence, 1.0)) < 0.5


def covariance_command(*arguments):
    return cli.main(["evaluate", "covariance", "--frames", "5", "--device", "cpu", *map(str, arguments)])


def test_command_prints_spreads_and_writes_the_model(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "SUITES", {"static": SUITES["static"]})
    written = tmp_path / "folder" / "fitted.safetensors"
    assert covariance_command("--sequences", 2, "--write", written) == 0
    text = capsys.readouterr().out
    for method in ("rule of thumb", "constant", "of the node", "fitted"):
        assert method in text
    assert text.count("| static (1) ") == text.count("| all (1) ") == 4
    printed = text[text.index("\n{") : text.index("\n}") + 2]
    found = ErrorModel.from_manifest({METADATA_KEY: printed})
    assert (found.pose_variances(2.0, 1.0) > 0).all()
    assert "one_room, 10 frames, on cpu in" in text and f"wrote {written}" in text
    assert [path.name for path in written.parent.iterdir()] == [written.name]
    before, after = load_network(), load_network(written)
    assert after.manifest == {**before.manifest, METADATA_KEY: found.to_json()}
    assert all(torch.equal(after.state_dict()[key], value) for key, value in before.state_dict().items())


def test_command_refuses_unusable_arguments_before_it_runs(capsys, tmp_path):
    for arguments, text in (
        (["--sequences", 1], "--sequences is 1; allowed: 2 and more"),
        (["--checkpoint", "mini", "--write", tmp_path / "a.safetensors"], "checkpoint mini has no metadata"),
        (["--write", tmp_path / "a.pth"], "a.pth; the name of a checkpoint must end in .safetensors"),
    ):
        assert covariance_command(*arguments) == 2
        assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_command_refuses_a_malformed_model_or_replaces_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "SUITES", {"static": SUITES["static"]})
    broken = tmp_path / "broken.safetensors"
    copy_with_metadata(shipped_weights()["one_room"], broken, {METADATA_KEY: "{}"})
    assert covariance_command("--checkpoint", broken) == 2
    assert "metadata 'covariance' of broken.safetensors is not an error model" in capsys.readouterr().err
    assert covariance_command("--checkpoint", broken, "--sequences", 2, "--write", broken) == 2
    assert "broken.safetensors: is the input; name another file" in capsys.readouterr().err
    assert covariance_command("--checkpoint", broken, "--sequences", 2, "--write", tmp_path / "new.safetensors") == 0
    assert ErrorModel.from_manifest(load_network(tmp_path / "new.safetensors").manifest) is not None
