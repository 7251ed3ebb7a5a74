"""Diagnostics over real DDS."""

import time

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.time import Time
from scripted import paint, start


def test_diagnostics_are_published_every_second_with_latency_and_rule(make_bench, hold):
    arrivals = []
    bench = start(make_bench, lambda index: {"rule": "cut3r"}, "pose")
    bench.probe.create_subscription(DiagnosticArray, "/diagnostics", lambda _: arrivals.append(time.monotonic()), 10)
    held = hold(bench)
    message = paint()
    age = 5.0  # seconds since the image was taken
    sent = time.monotonic()
    message.header.stamp = Time(nanoseconds=time.time_ns() - round(age * 1e9)).to_msg()
    bench.publish(message)
    held.wait_until_inside()
    inside = time.monotonic()
    bench.wait(lambda: arrivals, "diagnostics")
    assert "latency from stamp, median (ms)" not in bench.diagnostics
    released = time.monotonic()
    held.release()
    bench.wait_for_diagnostics("frames out", 1)
    longest = time.monotonic() - sent
    for what in ("median", "p95"):
        from_stamp, from_arrival = (
            float(bench.diagnostics[f"latency from {start}, {what} (ms)"]) / 1e3 for start in ("stamp", "arrival")
        )
        assert released - inside < from_arrival + 1e-3 and from_arrival < longest
        assert from_arrival + age < from_stamp + 1e-3 and from_stamp < longest + age
    assert bench.diagnostics["update rule"] == "cut3r"  # the rule of the frame, not of the parameter
    assert bench.statuses[-1] == (b"\x00", "active")
    assert 0.5 < (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1) < 2.0
