import numpy as np

from raymap3r_ros.node.trajectory import Trajectory


def pose(index):
    matrix = np.eye(4)
    matrix[:3, 3] = index, 2 * index, -index
    return matrix


def filled(poses, max_poses=10):
    trajectory = Trajectory(max_poses)
    for index in range(poses):
        trajectory.append(index, pose(index))
    return trajectory


def test_short_trajectory_is_complete():
    stamps, poses = Trajectory().sample()
    assert len(stamps) == len(poses) == 0
    stamps, poses = filled(5).sample()
    assert stamps.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(poses, [pose(index) for index in range(5)])


def test_long_trajectory_is_bounded_evenly_spaced_and_ends_with_the_newest():
    trajectory = Trajectory(max_poses=10)
    before = set()
    for index in range(1000):
        trajectory.append(index, pose(index))
        stamps, poses = trajectory.sample()
        assert len(stamps) <= 11
        assert stamps[0] == 0 and stamps[-1] == index
        assert len(set(np.diff(stamps[:-1]))) <= 1
        assert set(stamps[:-1]) <= before | set(stamps[-2:])
        np.testing.assert_array_equal(poses[:, 0, 3], stamps)
        before = set(stamps)


def test_sample_is_evenly_spaced_and_ends_with_the_newest():
    for count in (1, 7, 8, 9, 15, 16, 17, 100):
        stamps, poses = filled(count, max_poses=1000).sample(8)
        assert len(stamps) <= 9
        assert stamps[0] == 0 and stamps[-1] == count - 1
        assert len(set(np.diff(stamps[:-1]))) <= 1
        assert (np.diff(stamps) > 0).all()
        np.testing.assert_array_equal(poses[:, 1, 3], 2 * stamps)


def test_cleared_trajectory_is_empty():
    trajectory = filled(9, max_poses=4)
    trajectory.clear()
    trajectory.append(100, pose(100))
    trajectory.append(101, pose(101))
    assert trajectory.sample()[0].tolist() == [100, 101]
