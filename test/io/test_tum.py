"""Poses of a trajectory file at the times of images."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from raymap3r_ros.errors import InputError
from raymap3r_ros.io.tum import KnownTrajectory, write_trajectory

STAMPS = 1.7e9 + np.arange(20) * 0.03


@pytest.fixture
def poses() -> np.ndarray:
    rng = np.random.default_rng(0)
    result = np.tile(np.eye(4), (20, 1, 1))
    result[:, :3, :3] = Rotation.from_rotvec(np.cumsum(rng.normal(size=(20, 3)) * 0.1, axis=0) + 3).as_matrix()
    result[:, :3, 3] = rng.normal(size=(20, 3))
    return result


@pytest.fixture
def known(poses: np.ndarray, tmp_path: Path) -> KnownTrajectory:
    order = np.random.default_rng(1).permutation(20)  # files need not be sorted
    write_trajectory(tmp_path / "known.txt", (STAMPS[order] * 1e6).round().astype(int) * 1000, poses[order])
    return KnownTrajectory.read(tmp_path / "known.txt")


def test_poses_are_interpolated(known: KnownTrajectory, poses: np.ndarray):
    wanted = np.concatenate((STAMPS, STAMPS[:-1] + 0.01))
    positions = np.stack([np.interp(wanted, STAMPS, poses[:, axis, 3]) for axis in range(3)], axis=1)
    rotations = Slerp(STAMPS, Rotation.from_matrix(poses[:, :3, :3]))(wanted)
    found, has_pose = known.at(wanted)
    assert has_pose.all()
    np.testing.assert_allclose(found[:, :3, 3], positions, atol=1e-4)  # stamps since 1970 have a microsecond
    assert (Rotation.from_matrix(found[:, :3, :3]) * rotations.inv()).magnitude().max() < 1e-3
    for stamp, pose in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(known.pose_at(stamp), pose)


def test_images_far_from_any_pose_have_none(known: KnownTrajectory):
    assert known.pose_at(STAMPS[0] - 0.015) is not None and known.pose_at(STAMPS[-1] + 0.015) is not None
    assert known.pose_at(STAMPS[0] - 0.025) is None and known.pose_at(STAMPS[-1] + 0.025) is None
    assert known.pose_at(STAMPS[0] - 100) is None and known.pose_at(STAMPS[-1] + 100) is None
    gap = KnownTrajectory(known.path, known.stamps[[0, 5, 6]], known.poses[[0, 5, 6]])
    assert gap.pose_at(STAMPS[0] + 0.015) is None  # the next pose is 0.135 s later
    assert gap.pose_at(STAMPS[0]) is not None and gap.pose_at(STAMPS[5] + 0.01) is not None


@pytest.mark.parametrize("decimals", [3, 4, 6, 9])
@pytest.mark.parametrize("period", [0.1, 1 / 3, 1.0, 7.0])
def test_rounded_stamps_of_the_images_have_their_poses(poses: np.ndarray, tmp_path: Path, decimals, period):
    """However rare the poses are, and however the file rounds the stamps."""
    images = 1.7e9 + 0.01234567 + np.arange(20) * period
    rows = np.column_stack((poses[:, :3, 3], Rotation.from_matrix(poses[:, :3, :3]).as_quat())).tolist()
    lines = (f"{stamp:.{decimals}f} {' '.join(map(str, row))}\n" for stamp, row in zip(images, rows, strict=True))
    (tmp_path / "rounded.txt").write_text("".join(lines))
    known = KnownTrajectory.read(tmp_path / "rounded.txt")
    found, has_pose = known.at(images)
    assert has_pose.all()
    np.testing.assert_allclose(found, poses, atol=1e-6)  # not a mixture with poses of other times
    for index, stamp in enumerate(images):
        np.testing.assert_array_equal(known.pose_at(stamp), found[index])
        assert known.pose_at(stamp + 0.002) is None or index in (0, 19), "too far from the next pose"


def test_of_poses_with_one_stamp_the_first_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    same = "0 0 0 0 0 0 0 1\n0 0 0 0 0 0 0 1\n1 1 0 0 0 0 0 1\n"
    (tmp_path / "same.txt").write_text(same)
    assert len(KnownTrajectory.read(tmp_path / "same.txt").stamps) == 2 and not caplog.records
    (tmp_path / "other.txt").write_text(same + "1 6 0 0 0 0 0 1\n")
    assert KnownTrajectory.read(tmp_path / "other.txt").pose_at(1.0)[0, 3] == 1
    assert "1 poses have the stamp of another one" in caplog.text


def test_a_single_pose_is_refused(tmp_path: Path):
    (tmp_path / "one.txt").write_text("0 0 0 0 0 0 0 1\n")
    with pytest.raises(InputError, match="1 poses; needed: at least 2"):
        KnownTrajectory.read(tmp_path / "one.txt")
