"""The rule for stamps that `run`, `replay` and the node share."""

import pytest

from raymap3r_ros.stamps import JumpDetector, StampClock, rising

SECOND = 1_000_000_000


def test_jumps_forward_and_back():
    detector = JumpDetector()
    stamps = (100.0, 102.0, 101.95, 101.85, 104.0, 90.0, 90.5)
    steps = [detector.check(round(stamp * 1e9), max_gap=2.0) for stamp in stamps]
    assert [round(step, 3) for step in steps] == [0, 0, 0, 0, 2.15, -14, 0]
    assert detector.jumps == 2


def test_an_image_that_is_a_tenth_of_a_second_late_is_no_jump_at_any_time():
    """Seconds since 1970 as floating-point numbers have no exact tenth."""
    for start in range(1_700_000_000, 1_700_000_050):
        detector = JumpDetector()
        detector.check(start * SECOND + 123_456_789, 2.0)
        assert detector.check(start * SECOND + 23_456_789, 2.0) == 0
        assert detector.check(start * SECOND - 76_543_212, 2.0) == pytest.approx(-0.100000001)


def test_one_gap_after_a_pause_is_not_a_jump_but_a_step_back_is():
    detector = JumpDetector()
    detector.resume()
    assert detector.check(0, 1.0) == 0
    detector.resume()
    assert detector.check(1000 * SECOND, 1.0) == 0
    assert detector.check(2000 * SECOND, 1.0) == 1000
    detector.resume()
    assert detector.check(0, 1.0) == -2000


def test_stamps_continue_from_the_neighbour():
    reports = []
    images = [(0, 1000), (50, 1010), (0, 1020), (80, 1030), (0, 1045)]
    clock = StampClock(reports.append, images)
    assert [clock.image(*one) for one in images] == [40, 50, 60, 80, 95]
    assert clock.other(0, 1050) == 100 and clock.other(7, 1050) == 7
    assert reports == ["some images have no stamps: they continue the stamps of the neighbouring images"]


def test_without_any_stamp_the_time_of_receipt_is_used():
    reports = []
    images = [(0, 1000), (0, 1010), (-5, 1020)]
    clock = StampClock(reports.append, images)
    assert [clock.image(*one) for one in images] == [1000, 1010, 1020]
    assert reports == ["the images have no stamps: the time of receipt is used"]


def test_a_simulation_begins_at_zero():
    """Its first image, recorded longer before the second one than their stamps differ, is no image of 1970."""
    wall = 1_700_000_000 * 10**9
    clock = StampClock(lambda text: None, [(0, wall), (100_000_000, wall + 103_000_000)])
    stamps = [clock.image(0, wall), clock.image(100_000_000, wall + 103_000_000)]
    assert stamps == [1, 100_000_000]


def test_a_continued_stamp_that_no_message_can_hold_is_replaced_by_the_time():
    clock = StampClock(print)
    clock.image(2**31 * SECOND - 1, 1000 * SECOND)
    assert clock.image(0, 1001 * SECOND) == 1001 * SECOND


def test_rising():
    assert rising([3, 3, 5, 4, 5, 6, 1]) == [0, 2, 5]
    assert rising([]) == []
