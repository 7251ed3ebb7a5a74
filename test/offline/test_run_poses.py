"""Runs with known camera poses from a file."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from raymap3r_ros import cli
from raymap3r_ros.errors import OptionError
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.tum import KnownTrajectory, write_trajectory
from raymap3r_ros.offline import RunOutputs, run_recording
from raymap3r_ros.streaming import StreamOptions

OPTIONS = StreamOptions(image_size=64, reset_interval=4)
LITTLE = RunOutputs(depth=False, masks=False, preview=False)
COUNT, RATE = 8, 5  # of the images


def write_poses(path, indices, offset=0.0):
    """Write poses at the stamps of these images, and return them all."""
    poses = np.tile(np.eye(4), (COUNT, 1, 1))
    poses[:, :3, :3] = Rotation.from_euler("xyz", np.linspace((1, 2, 3), (1.2, 1.9, 3.3), COUNT)).as_matrix()
    poses[:, :3, 3] = 5 + np.linspace((0, 0, 0), (0.4, 0.2, -0.3), COUNT)
    write_trajectory(path, ((offset + np.asarray(indices) / RATE) * 1e9).round().astype(int), poses[indices])
    return poses


@pytest.fixture
def run(images, network, tmp_path):
    """Runs the images with the poses of a file; returns the summary and the output folder."""

    def start(path, **options):
        folder = tmp_path / "out"
        summary = run_recording(
            open_recording(images, rate=RATE), network, folder, StreamOptions(**{**vars(OPTIONS), **options}),
            outputs=LITTLE, poses=KnownTrajectory.read(path), overwrite=True, progress=False,
        )  # fmt: skip
        return summary, folder

    return start


def test_the_trajectory_is_in_the_frame_of_the_given_poses(run, tmp_path):
    known = [0, 1, 2, 4, 5, 7]
    poses = write_poses(tmp_path / "known.txt", known)
    summary, folder = run(tmp_path / "known.txt")
    trajectory = np.loadtxt(folder / "trajectory.txt")
    np.testing.assert_allclose(trajectory[known, 1:4], poses[known, :3, 3], atol=1e-6)
    turned = Rotation.from_quat(trajectory[known, 4:]).inv() * Rotation.from_matrix(poses[known, :3, :3])
    assert turned.magnitude().max() < 1e-5
    assert (summary.worlds, summary.frames, summary.frames_with_pose) == (1, COUNT, len(known))
    assert summary.worlds_given == [1]
    written = json.loads((folder / "summary.json").read_text())
    assert written["frames_with_pose"] == len(known) and written["poses"] == str(tmp_path / "known.txt")


def test_images_before_the_first_pose_are_a_world_of_their_own(run, tmp_path, caplog):
    poses = write_poses(tmp_path / "known.txt", range(3, COUNT))
    summary, folder = run(tmp_path / "known.txt")
    assert (summary.worlds, summary.frames_with_pose) == (2, COUNT - 3)
    assert len(np.loadtxt(folder / "trajectory_1.txt")) == 3 and summary.worlds_given == [2]
    np.testing.assert_allclose(np.loadtxt(folder / "trajectory_2.txt")[:, 1:4], poses[3:, :3, 3], atol=1e-6)
    assert "the known poses begin at 0.600 s: a new world starts" in caplog.text


def test_stamps_of_another_clock_are_reported(images, run, tmp_path, caplog, capsys):
    write_poses(tmp_path / "known.txt", range(COUNT), offset=100.0)
    summary, _ = run(tmp_path / "known.txt")
    assert (summary.worlds, summary.frames_with_pose) == (1, 0)
    assert "no image has a pose: the stamps of the images go from 0.000000 to 1.400000 s" in caplog.text
    with pytest.raises(OptionError, match="reset_alignment is off"):
        run(tmp_path / "known.txt", reset_alignment="off")
    arguments = ["run", str(images), "--out", str(tmp_path / "cli"), "--rate", str(RATE), "--checkpoint", "mini"]
    write_poses(tmp_path / "known.txt", range(COUNT))
    assert cli.main([*arguments, "--poses", str(tmp_path / "known.txt"), "--no-preview"]) == 0
    assert f"{COUNT} frames, {COUNT} with a known pose" in capsys.readouterr().out
    assert cli.main([*arguments, "--poses", str(tmp_path / "none.txt"), "--overwrite"]) != 0
