"""Trajectory errors against closed forms and numerical minimisation."""

import logging
import math

import numpy as np
import pytest

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.trajectory import DRIFT, drifting, growth, random_walk, trajectory_metrics, write_tum
from raymap3r_ros.io.tum import read_tum

pytest.importorskip("evo", reason="evo (raymap3r_ros[evaluation]) is not installed")
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation


def poses(positions: np.ndarray, rotations: Rotation | None = None) -> np.ndarray:
    result = np.tile(np.eye(4), (len(positions), 1, 1))
    result[:, :3, 3] = positions
    if rotations is not None:
        result[:, :3, :3] = rotations.as_matrix()
    return result


def hand_held(count: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turns = Rotation.from_rotvec(np.cumsum(rng.normal(0, 0.05, (count, 3)), axis=0))
    return poses(np.cumsum(rng.normal(0, 0.1, (count, 3)), axis=0), turns)


def moved(path: np.ndarray, scale: float, rotvec: tuple[float, float, float], shift: tuple) -> np.ndarray:
    rotation = Rotation.from_rotvec(rotvec).as_matrix()
    result = path.copy()
    result[:, :3, :3] = rotation @ path[:, :3, :3]
    result[:, :3, 3] = scale * path[:, :3, 3] @ rotation.T + shift
    return result


def stamps(count: int) -> np.ndarray:
    return 1.7e9 + np.arange(count) / 10


def spread(path: np.ndarray) -> float:
    return math.sqrt(np.square(path[:, :3, 3] - path[:, :3, 3].mean(0)).sum(1).mean())


def test_a_similarity_is_undone():
    truth = hand_held()
    score = trajectory_metrics(moved(truth, 2.5, (0.3, -2, 0.5), (4, 5, 6)), truth, stamps(40))
    assert score.scale == pytest.approx(1 / 2.5)
    assert score.ate == pytest.approx(0, abs=1e-9)
    assert score.rpe_translation == pytest.approx(0, abs=1e-9)
    assert score.rpe_rotation == pytest.approx(0, abs=1e-5)
    # Without scale, the best fit removes the rotation; the rest is 1.5 times the distance to the mean.
    assert score.ate_se3 == pytest.approx(1.5 * spread(truth))
    assert score.ate_constant == pytest.approx(spread(truth))
    assert score.relative == pytest.approx(1.5)


@pytest.mark.parametrize("scaled", [True, False])
def test_ate_is_the_minimum_over_all_alignments(scaled):
    truth = hand_held()
    predicted = moved(truth, 1.4, (1, 0.2, -0.4), (1, 2, 3))
    predicted[:, :3, 3] += np.random.default_rng(1).normal(0, 0.2, (40, 3))
    score = trajectory_metrics(predicted, truth, stamps(40))

    def error(parameters: np.ndarray) -> float:
        scale = math.exp(parameters[6]) if scaled else 1
        aligned = scale * Rotation.from_rotvec(parameters[:3]).apply(predicted[:, :3, 3]) + parameters[3:6]
        return np.square(aligned - truth[:, :3, 3]).sum(1).mean()

    best = min(minimize(error, [*start, 0, 0, 0, 0]).fun for start in np.eye(3) * 1.5 - 0.5)
    assert (score.ate if scaled else score.ate_se3) == pytest.approx(math.sqrt(best), rel=1e-5)


def test_rpe_is_the_error_of_single_steps():
    truth = hand_held()
    # Frame n has a rotation error of n degrees about its own axis, so every step has an error of one degree.
    level = poses(truth[:, :3, 3])
    turned = poses(truth[:, :3, 3], Rotation.from_rotvec(np.outer(np.arange(40), (0, 0, 1)), degrees=True))
    assert trajectory_metrics(turned, level, stamps(40)).rpe_rotation == pytest.approx(1, abs=1e-6)

    predicted = truth.copy()
    predicted[20:, :3, 3] += (0, 0.3, 0.4)  # one step of 39 has an error of half a metre
    score = trajectory_metrics(predicted, truth, stamps(40))
    steps = np.linalg.inv(truth[:-1]) @ truth[1:]
    scaled = predicted.copy()
    scaled[:, :3, 3] *= score.scale
    predicted_steps = np.linalg.inv(scaled[:-1]) @ scaled[1:]
    errors = (np.linalg.inv(steps) @ predicted_steps)[:, :3, 3]
    assert score.rpe_translation == pytest.approx(math.sqrt(np.square(errors).sum(1).mean()))
    assert score.rpe_translation == pytest.approx(0.5 / math.sqrt(39), rel=0.1)


def test_end_drift_starts_at_the_first_pose():
    truth = hand_held()
    predicted = moved(truth, 1, (0, 0, 2), (9, 9, 9))
    assert trajectory_metrics(predicted, truth, stamps(40)).end_drift == pytest.approx(0, abs=1e-9)
    predicted[-1, :3, 3] += (0.3, 0, 0.4)
    assert trajectory_metrics(predicted, truth, stamps(40)).end_drift == pytest.approx(0.5)


def test_growth_compares_the_last_tenth_with_the_second():
    """Each position occurs twice, with opposite errors: they cancel in the alignment."""
    truth = np.repeat(hand_held(50), 2, axis=0)
    size = np.full(100, 0.01)
    size[10:20], size[90:] = 0.02, 0.06
    truth_errors = np.tile((1, -1), 50) * size
    predicted = truth.copy()
    predicted[:, :3, 3] += truth_errors[:, None] * (0, 0.6, 0.8)
    score = trajectory_metrics(moved(predicted, 1, (0.4, 1, -2), (7, 8, 9)), truth, stamps(100))
    assert score.growth == pytest.approx(3)
    assert score.ate_se3 == pytest.approx(math.sqrt((80 * 0.01**2 + 10 * 0.02**2 + 10 * 0.06**2) / 100))
    assert np.isnan(trajectory_metrics(truth[:8], truth[:8], stamps(8)).growth)  # the second tenth is empty


def test_growth_of_values_of_some_frames():
    frames = np.array([0, 10, 19, 19, 20, 89, 90, 99])
    values = np.array([9.0, 1.0, 2.0, 3.0, 9.0, 9.0, 5.0, 7.0])
    assert growth(values, frames, 100, np.median) == 6 / 2
    assert np.isnan(growth(np.zeros(8), frames, 100, np.median))  # the errors of the second tenth are 0
    assert np.isnan(growth(values[:4], frames[:4], 100, np.median))


def test_a_straight_road_is_scored():
    along = np.random.default_rng(2).normal(size=30)
    noise = np.random.default_rng(3).normal(0, 0.1, 30)
    truth = poses(np.outer(along, (1, 0, 0)))
    predicted = poses(np.outer(2 * along + noise, (0, 0.6, 0.8)))
    score = trajectory_metrics(predicted, truth, stamps(30))
    slope, offset = np.polyfit(2 * along + noise, along, 1)  # on a line, Sim(3) is a linear regression
    residual = along - slope * (2 * along + noise) - offset
    assert score.scale == pytest.approx(slope)
    assert score.ate == pytest.approx(math.sqrt(np.square(residual).mean()))
    assert score.ate_se3 == pytest.approx((along + noise).std(), rel=1e-9)


def test_a_prediction_at_rest_has_the_spread_of_the_path_as_error():
    truth = hand_held()
    score = trajectory_metrics(poses(np.full((40, 3), 7.0)), truth, stamps(40))
    assert score.ate == score.ate_se3 == pytest.approx(spread(truth))
    assert score.relative == pytest.approx(1)
    assert np.isnan(score.scale)
    steps = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1)
    assert score.rpe_translation == pytest.approx(math.sqrt(np.square(steps).mean()))


def test_a_ground_truth_at_rest_fits_no_scale():
    predicted = hand_held()
    score = trajectory_metrics(predicted, poses(np.zeros((40, 3))), stamps(40))
    assert np.isnan(score.scale) and np.isnan(score.relative)
    assert score.ate == score.ate_se3 == pytest.approx(spread(predicted))
    assert score.ate_constant == 0


def test_single_precision_is_accepted_without_messages(capsys, caplog):
    truth = hand_held()
    with caplog.at_level(logging.INFO):
        score = trajectory_metrics(truth.astype(np.float32), truth, stamps(40))
    assert score.ate < 1e-6 and score.rpe_rotation < 1e-3
    assert capsys.readouterr() == ("", "") and not caplog.records


def test_unusable_poses_are_refused():
    truth = hand_held(5)
    broken = truth.copy()
    broken[3, 0, 3] = np.nan
    with pytest.raises(InputError, match="1 of 5 are not finite, the first is 3"):
        trajectory_metrics(broken, truth, stamps(5))
    mirrored = truth.copy()
    mirrored[2, :3, 0] *= -1
    with pytest.raises(InputError, match="one at 2 has no rotation"):
        trajectory_metrics(truth, mirrored, stamps(5))
    with pytest.raises(InputError, match="4 predicted poses, 5 true ones"):
        trajectory_metrics(truth[:4], truth, stamps(5))
    with pytest.raises(InputError, match="at least two frames"):
        trajectory_metrics(truth[:1], truth[:1], stamps(1))
    with pytest.raises(InputError, match="stamps do not rise"):
        trajectory_metrics(truth, truth, np.zeros(5))
    with pytest.raises(InputError, match="shape"):
        trajectory_metrics(truth[:, :3], truth, stamps(5))


def test_random_walk_has_the_same_steps_in_other_directions():
    truth = hand_held(200)
    walk = random_walk(truth, seed=5)
    steps, own = (np.diff(path[:, :3, 3], axis=0) for path in (walk, truth))
    assert np.allclose(np.linalg.norm(steps, axis=1), np.linalg.norm(own, axis=1))
    cosine = (steps * own).sum(1) / np.square(np.linalg.norm(own, axis=1))
    assert abs(cosine.mean()) < 0.15 and cosine.std() == pytest.approx(1 / math.sqrt(3), rel=0.15)
    turns, own_turns = (
        Rotation.from_matrix(np.linalg.inv(path[:-1, :3, :3]) @ path[1:, :3, :3]).magnitude() for path in (walk, truth)
    )
    assert np.allclose(turns, own_turns)
    assert np.allclose(walk[0], truth[0])
    assert np.array_equal(walk, random_walk(truth, seed=5)) and not np.allclose(walk, random_walk(truth, seed=6))


def test_tum_file_is_read_back(tmp_path):
    truth = hand_held(6)
    write_tum(tmp_path / "a.txt", stamps(6), truth)
    read_stamps, read_poses = read_tum(tmp_path / "a.txt")
    assert np.allclose(read_stamps, stamps(6), rtol=0, atol=1e-6)
    assert np.allclose(read_poses, truth, atol=1e-8)


def test_tum_quaternion_is_x_y_z_w(tmp_path):
    half = math.sqrt(0.5)
    (tmp_path / "a.txt").write_text(f"# comment\n12.5 1 2 3 0 0 {half} {half}\n")
    read_stamps, read_poses = read_tum(tmp_path / "a.txt")
    assert read_stamps.tolist() == [12.5]
    # A quarter turn about z takes x to y.
    assert np.allclose(read_poses[0] @ (1, 0, 0, 1), (1, 3, 3, 1))


@pytest.mark.parametrize("separator", [",", ";", "\t", ", ", "  "])
@pytest.mark.parametrize("comment", ["# motion capture", "% of MATLAB", "timestamp,tx,ty,tz,qx,qy,qz,qw", ""])
def test_separators_and_comments(tmp_path, separator, comment):
    rows = ["1.5", "1", "2", "3", "0", "0", "0", "1"], ["1.6", "4", "5", "6", "0", "0", "0", "1"]
    lines = [comment, "", separator.join(rows[0]) + "  # start", separator.join(rows[1])]
    (tmp_path / "a.txt").write_text("\ufeff" + "\r\n".join(lines))
    read_stamps, read_poses = read_tum(tmp_path / "a.txt")
    assert read_stamps.tolist() == [1.5, 1.6] and read_poses[:, :3, 3].tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "header",
    [
        "timestamp,tx,ty,tz,qw,qx,qy,qz",
        "# timestamp tx ty tz qw qx qy qz",
        "#timestamp [ns], p_RS_R_x [m], p_RS_R_y [m], p_RS_R_z [m], q_RS_w [], q_RS_x [], q_RS_y [], q_RS_z []",
        "time;position.x;position.y;position.z;orientation.w;orientation.x;orientation.y;orientation.z",
    ],
)
def test_the_columns_have_the_order_that_the_header_names(tmp_path, header):
    half = math.sqrt(0.5)
    (tmp_path / "a.csv").write_text(f"# recorded in the laboratory\n{header}\n12.5,1,2,3,{half},0,0,{half}\n")
    read_stamps, read_poses = read_tum(tmp_path / "a.csv")
    assert read_stamps.tolist() == [12.5] and np.allclose(read_poses[0] @ (1, 0, 0, 1), (1, 3, 3, 1))


@pytest.mark.parametrize("header", ["t,x,y,z,roll,pitch,yaw,quality", "a b c d", "t,tx,ty,tz,qx,qy,qz,qz"])
def test_a_header_of_other_columns_is_refused(tmp_path, header):
    (tmp_path / "a.csv").write_text(f"# of a tracker\n{header}\n1,0,0,0,0,0,0,1\n")
    with pytest.raises(InputError, match=r"a\.csv, line 2: column names other than `timestamp tx ty tz qx qy qz qw`"):
        read_tum(tmp_path / "a.csv")


@pytest.mark.parametrize("lost", ["nan nan nan nan nan nan nan", "NaN 0 0 0 0 0 1", "0 0 0 0 0 0 0"])
def test_rows_marked_as_lost_are_left_out(tmp_path, lost, caplog):
    (tmp_path / "a.txt").write_text(f"1 0 0 0 0 0 0 1\n2 {lost}\n3 {lost}\n4 0 0 0 0 0 0 1\n")
    assert read_tum(tmp_path / "a.txt")[0].tolist() == [1, 4]
    assert "2 poses are marked as lost" in caplog.text and "line 2" in caplog.text


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("2 0 0 x 0 0 0 1", "'x' is not a number"),
        ("2 0 0 0 0 0 1", "7 numbers"),
        ("2 0 0 0 0 0 0 1 9", "9 numbers"),
        ("2 inf 0 0 0 0 0 1", "inf is not finite"),
        ("nan 0 0 0 0 0 0 1", "the timestamp is nan"),
    ],
)
def test_the_error_names_line_and_value(tmp_path, row, problem):
    (tmp_path / "a.txt").write_text(f"# comment\n1 0 0 0 0 0 0 1\n{row}\n")
    with pytest.raises(InputError, match=f"a.txt, line 3: {problem}"):
        read_tum(tmp_path / "a.txt")


def test_texts_that_are_no_utf_8_and_missing_files_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("0 0 0 0 0 0 0 1\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"a\.txt: cannot be .* not text in UTF-8; if it is UTF-16, convert it:"):
        read_tum(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"b\.txt: cannot be read as a TUM trajectory: No such file or directory$"):
        read_tum(tmp_path / "b.txt")


@pytest.mark.parametrize("text", ["1 2 3\n", "a b c d e f g h\n", "0 0 0 0 0 0 0 0\n", "nan 0 0 0 0 0 0 1\n"])
def test_a_malformed_trajectory_is_refused(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match=r"a\.txt"):
        read_tum(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"b\.txt"):
        read_tum(tmp_path / "b.txt")


def test_quaternions_of_any_length_and_positions_of_no_place(tmp_path):
    path = tmp_path / "truth.txt"
    half = math.sqrt(0.5)
    rows = [
        f"{index} 1 2 3 0 0 {half * size!r} {half * size!r}" for index, size in enumerate((1, 7, -2, 1e-200, 1e200))
    ]
    path.write_text("\n".join(rows))
    expected = [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]]  # a quarter turn about z
    assert np.allclose(read_tum(path)[1], expected, atol=1e-9)
    path.write_text("0 1 2 3 0 0 0 1\n1 1e200 1e300 -1e308 0 0 0 1\n")
    with pytest.raises(InputError, match=r"line 2: a position beyond 1e\+08 m"):
        read_tum(path)


def test_noisy_poses_drift_by_a_share_of_the_distance():
    truth = hand_held(200)
    poses_given = drifting(truth, seed=4)
    distance = np.concatenate(([0], np.cumsum(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1))))
    error = np.linalg.norm(poses_given[:, :3, 3] - truth[:, :3, 3], axis=1)
    assert np.allclose(error, DRIFT * distance) and DRIFT == 0.02
    assert np.array_equal(poses_given[:, :3, :3], truth[:, :3, :3])
    # As in a live run, the poses so far do not depend on the later ones.
    assert np.allclose(drifting(truth[:50], seed=4), poses_given[:50])
