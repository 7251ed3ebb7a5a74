import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from raymap3r_ros.node import diagnostics
from raymap3r_ros.node.diagnostics import LOST_SHARE, Monitor, Rate, StampRates


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock of the module, set by the test."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(diagnostics, "time", clock)
    return clock


def values(status):
    return {item.key: item.value for item in status.values}


def test_rate_over_the_last_seconds():
    rate = Rate()
    assert rate.value(0.0) == 0
    for index in range(21):
        rate.add(index / 10)
    assert rate.value(2.0) == pytest.approx(10, rel=0.06)
    for index in range(21, 101):
        rate.add(index / 10)
    assert rate.value(10.0) == pytest.approx(10, rel=0.03)
    assert rate.value(12.5) == pytest.approx(5, rel=0.05)
    assert rate.value(100.0) == 0


@pytest.mark.parametrize("speed", [1.0, 0.2, 5.0])
def test_counts_and_latencies(clock, speed):
    monitor = Monitor()
    for index in range(20):
        clock.now += 0.1 / speed
        monitor.arrived(index / 10, jump=False)
        monitor.published(0.2 + index / 1000, 0.1, {"encode": 3.0, "publish": 1.0})
    monitor.count("frames dropped", 3)
    status = monitor.status("/raymap3r", "active", {"device": "cpu"})
    assert (status.level, status.message) == (DiagnosticStatus.OK, "active")
    assert (status.name, status.hardware_id) == ("/raymap3r: stream", "/raymap3r")
    reported = values(status)
    counts = [reported[f"frames {what}"] for what in ("in", "out", "dropped", "lost")]
    assert counts == ["20", "20", "3", "0"]
    assert reported["latency from stamp, median (ms)"] == "209.5"
    assert reported["latency from stamp, p95 (ms)"] == "218.0"
    assert reported["latency from arrival, median (ms)"] == "100.0"
    assert reported["stage encode (ms)"] == "3.00"
    assert float(reported["rate stamped (Hz)"]) == pytest.approx(10)


def test_images_lost_by_the_middleware_are_detected(clock):
    monitor = Monitor()
    for index in range(60):
        if index % 20 in (0, 1):
            monitor.arrived(index / 30, jump=False)
        monitor.camera_info(index / 30)
    status = monitor.status("/raymap3r", "active", {})
    assert status.level == DiagnosticStatus.WARN
    assert "stamped at 30.0 Hz" in status.message and "config/fastdds.xml" in status.message


def test_losses_are_detected_without_camera_info():
    rates, random = StampRates(), np.random.default_rng(0)
    for index in range(600):
        if random.random() < 0.2:
            rates.image(index / 30)
    assert rates.stamped() == pytest.approx(30)
    assert rates.arriving() == pytest.approx(6, rel=0.2)
    rates.clear()
    assert rates.stamped() == rates.arriving() == 0


@pytest.mark.parametrize(("burst", "cycle"), [(2, 10), (3, 14), (5, 20), (4, 600)])
def test_bursts_of_a_camera_are_no_losses(clock, burst, cycle):
    """For example three images at 10 Hz every 1.4 s."""
    monitor = Monitor()
    for index in range(40 * cycle):
        clock.now += 0.1
        if index % cycle < burst:
            monitor.arrived(index / 10, jump=False)
        if index > 5 * cycle:
            status = monitor.status("/raymap3r", "active", {})
            assert "stamped at" not in status.message
    assert float(values(status)["rate stamped (Hz)"]) == pytest.approx(10 * burst / cycle, rel=0.2)


def test_an_irregular_camera_is_no_loss():
    """Exponential gaps of 66 ms in the mean."""
    rates, random, stamp = StampRates(), np.random.default_rng(1), 0.0
    for index in range(400):
        stamp += max(0.004, random.exponential(0.066))
        rates.image(stamp)
        if index >= 40:
            assert rates.stamped() == rates.arriving(), index


@pytest.mark.parametrize("slow", [10, 6, 4])
def test_a_camera_that_becomes_slower_is_no_loss(slow):
    """As with automatic exposure in the dark."""
    rates = StampRates()
    for index in range(160):
        rates.image(index / 20)
    assert rates.stamped() == pytest.approx(20)
    for index in range(1, 100):
        rates.image(159 / 20 + index / slow)
        assert rates.arriving() >= LOST_SHARE * rates.stamped(), index
    assert rates.stamped() == pytest.approx(slow)


def test_losses_of_a_camera_with_jitter_are_detected():
    rates, random = StampRates(), np.random.default_rng(2)
    for index in range(900):
        if random.random() < 0.3:
            rates.image(index / 30 + random.normal(0, 0.0015))
    assert rates.stamped() == pytest.approx(30, rel=0.1)


def test_late_images_are_no_losses():
    rates = StampRates()
    for index in range(100):
        rates.image(index / 10 - 0.12 * (index % 4 == 3))
    assert rates.stamped() == pytest.approx(10, rel=0.1)


def test_missing_images_are_a_warning_only_while_active(clock):
    monitor = Monitor()
    assert monitor.status("/n", "inactive", {}).level == DiagnosticStatus.OK
    status = monitor.status("/n", "active", {})
    assert (status.level, status.message) == (DiagnosticStatus.WARN, "no images are arriving")


@pytest.mark.parametrize("pause", [1.9, 7.3, 60.0])
def test_rates_are_not_judged_over_a_pause(clock, pause):
    """A camera with camera_info at 5 Hz; during a pause only the latter is recorded."""
    monitor, stamp = Monitor(), 0.0
    for _ in range(3):
        for index in range(40):
            clock.now, stamp = clock.now + 0.2, stamp + 0.2
            monitor.camera_info(stamp)
            monitor.arrived(stamp, jump=False)
            status = monitor.status("/n", "active", {})
            assert (status.level, status.message) == (DiagnosticStatus.OK, "active")
            assert index < 10 or float(values(status)["rate stamped (Hz)"]) == pytest.approx(5)
        for _ in range(round(pause / 0.2)):
            clock.now, stamp = clock.now + 0.2, stamp + 0.2
            monitor.camera_info(stamp)
            assert monitor.status("/n", "paused", {}).level == DiagnosticStatus.OK
        monitor.start()
        assert monitor.status("/n", "active", {}).level == DiagnosticStatus.OK
    clock.now += 6
    assert monitor.status("/n", "active", {}).message == "no images are arriving"


def test_errors_and_warnings_expire_but_the_last_error_stays(clock):
    monitor = Monitor()
    monitor.error("it broke")
    monitor.warning("it is strange")
    status = monitor.status("/n", "inactive", {}, standing=["untrained weights"])
    assert status.level == DiagnosticStatus.ERROR
    assert status.message == "it broke; untrained weights; it is strange"
    clock.now += 10
    status = monitor.status("/n", "inactive", {}, standing=["untrained weights"])
    assert (status.level, status.message) == (DiagnosticStatus.WARN, "untrained weights")
    assert values(status)["last error"] == "it broke"


def test_images_that_are_refused_do_arrive(clock):
    monitor = Monitor()
    assert "no images are arriving" in monitor.status("node", "active", {}).message
    monitor.count("bad frames")
    clock.now += 0.1
    monitor.count("bad frames")
    message = monitor.status("node", "active", {}).message
    assert "all images are refused" in message and "no images" not in message
    clock.now += 100
    assert "no images are arriving" in monitor.status("node", "active", {}).message
