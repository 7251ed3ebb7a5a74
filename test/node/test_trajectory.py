from itertools import pairwise

from raymap3r_ros.node.trajectory import Trajectory


def test_short_trajectory_is_whole():
    trajectory = Trajectory(max_poses=10)
    assert trajectory.poses == []
    for pose in range(5):
        trajectory.append(pose)
    assert trajectory.poses == [0, 1, 2, 3, 4]


def test_long_trajectory_is_bounded_even_and_ends_with_the_newest():
    trajectory = Trajectory(max_poses=10)
    for pose in range(1000):
        trajectory.append(pose)
        poses = trajectory.poses
        assert len(poses) <= 11
        assert poses[0] == 0 and poses[-1] == pose
        steps = {later - earlier for earlier, later in pairwise(poses[:-1])}
        assert len(steps) <= 1


def test_cleared_trajectory_starts_anew():
    trajectory = Trajectory(max_poses=4)
    for pose in range(9):
        trajectory.append(pose)
    trajectory.clear()
    trajectory.append(100)
    trajectory.append(101)
    assert trajectory.poses == [100, 101]
