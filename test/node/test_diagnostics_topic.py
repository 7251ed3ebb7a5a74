"""Diagnostics over real DDS."""

import time

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.time import Time
from scripted import paint, start


def test_diagnostics_come_every_second_and_tell_latency_and_rule(make_bench, hold):
    told = []
    bench = start(make_bench, lambda index: {"rule": "cut3r"}, "pose")
    bench.probe.create_subscription(DiagnosticArray, "/diagnostics", lambda _: told.append(time.monotonic()), 10)
    held = hold(bench)
    message = paint()
    age = 5.0  # seconds since the image was taken
    sent = time.monotonic()
    message.header.stamp = Time(nanoseconds=time.time_ns() - round(age * 1e9)).to_msg()
    bench.publish(message)
    held.wait_until_inside()
    inside = time.monotonic()
    bench.wait(lambda: told, "diagnostics")
    assert "latency from stamp, median (ms)" not in bench.told
    let_go = time.monotonic()
    held.let_go()
    bench.wait_for_told("frames out", 1)
    longest = time.monotonic() - sent
    for what in ("median", "p95"):
        from_stamp, from_arrival = (
            float(bench.told[f"latency from {start}, {what} (ms)"]) / 1e3 for start in ("stamp", "arrival")
        )
        assert let_go - inside < from_arrival + 1e-3 and from_arrival < longest
        assert from_arrival + age < from_stamp + 1e-3 and from_stamp < longest + age
    assert bench.told["update rule"] == "cut3r"  # as the frame has it, whatever the parameter says
    assert bench.statuses[-1] == (b"\x00", "active")
    assert 0.5 < (told[-1] - told[0]) / (len(told) - 1) < 2.0
