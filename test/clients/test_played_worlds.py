"""Which frames of a replay are in which world."""

import pytest

from raymap3r_ros.clients.played_worlds import PlayedWorlds

FOUND = 24  # the first frame after the camera was found again
FORWARD = [*range(20), *range(390, 400)]  # the clock jumps forward at frame 20
BACK = range(394, 404)  # and back at frame 30, to stamps that occur twice


@pytest.mark.parametrize("in_flight", [0, 3, 10])
def test_a_return_that_is_known_after_the_next_jump_was_sent(in_flight):
    """The frames on the way to the node are sent before its trajectories arrive."""
    stamps = [*FORWARD, *BACK]
    jumps = (20, 30)
    world = [*[0] * 20, *[20] * 4, *[0] * 6, *[30] * 10]
    worlds = PlayedWorlds({})
    sent = 0
    for frame, stamp in enumerate(stamps):
        for index in range(sent, min(frame + in_flight + 1, len(stamps))):
            worlds.add(stamps[index], index in jumps)
        sent = max(sent, frame + in_flight + 1)
        if frame % 10 == 0 or frame == FOUND:  # at the first frame of a world, and about once a second
            worlds.add_trajectory(stamp, [stamps[index] for index in range(frame + 1) if world[index] == world[frame]])
    assert worlds.starts == {0: 0, 20: 20, FOUND: 0, 30: 30}


def test_a_second_pass_found_in_the_world_of_the_first():
    """Its stamps do not rise above those of the first, so the trajectory does not grow."""
    worlds = PlayedWorlds({})
    for index in range(10):
        worlds.add(index % 5, jump=index == 5)
    worlds.add_trajectory(0, [0])
    worlds.add_trajectory(0, [0])  # the second pass begins with a world of its own
    worlds.add_trajectory(2, [0, 1, 2, 3, 4])
    assert worlds.starts == {0: 0, 5: 5, 7: 0}


def test_a_late_frame_and_foreign_trajectories_change_nothing():
    worlds = PlayedWorlds({})
    for stamp in (0, 2, 1, 3):
        worlds.add(stamp, jump=False)
    worlds.add_trajectory(0, [0])
    worlds.add_trajectory(1, [0, 2])
    worlds.add_trajectory(9, [7, 8, 9])  # of the frames before this replay
    worlds.add_trajectory(3, [])
    assert worlds.starts == {0: 0}
