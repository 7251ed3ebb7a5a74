from raymap3r_ros.node.stamps import JumpDetector


def test_jumps_forward_and_back():
    detector = JumpDetector()
    steps = [detector.check(stamp, max_gap=2.0) for stamp in (100.0, 102.0, 101.95, 104.0, 90.0, 90.5)]
    assert [round(step, 3) for step in steps] == [0, 0, 0, 2.05, -14, 0]
    assert detector.jumps == 2


def test_one_gap_after_a_pause_is_not_a_jump_but_a_step_back_is():
    detector = JumpDetector()
    detector.resume()
    assert detector.check(0.0, 1.0) == 0
    detector.resume()
    assert detector.check(1000.0, 1.0) == 0
    assert detector.check(2000.0, 1.0) == 1000
    detector.resume()
    assert detector.check(0.0, 1.0) == -2000
