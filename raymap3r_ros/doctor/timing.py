"""Time of frames with the chosen checkpoint, as a camera would deliver them."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator

import numpy as np

from raymap3r_ros.doctor.lines import FAIL, OK, WARNING, Line, Target
from raymap3r_ros.errors import CheckpointError
from raymap3r_ros.network import choose_threads, load_network
from raymap3r_ros.streaming import METHOD, Stream
from raymap3r_ros.streaming.batching import warm_up
from raymap3r_ros.streaming.recordings import long_running

NAME = "timing"
FRAMES = 50
LIMIT = 60.0  # seconds, after which fewer frames must do
CAMERA = (480, 640)
# The ray branch runs and frames are recorded from the start, so that all frames are like those of a long stream.
AT_ONCE = dataclasses.replace(METHOD, warmup_frames=0, gate_from_frame=1, router_last_frame=0)
SLOW = 5.0  # frames per second, below which a moving robot loses track


def check(target: Target, frames: int = FRAMES, limit: float = LIMIT) -> Iterator[Line]:
    """A line about the start, and one about the rate."""
    began = time.perf_counter()
    try:
        network = load_network(target.checkpoint, target.device, target.options.precision)
    except CheckpointError as error:
        yield Line(NAME, "frames", FAIL, f"not run: {error}", "see the line about weights")
        return
    if target.device.type == "cpu":
        choose_threads(network)
    stream = Stream(network, long_running(network, target.options), AT_ONCE)
    loaded = time.perf_counter()
    warm_up(stream)
    ready = time.perf_counter()
    execution = stream.options.execution
    found = f"weights loaded in {loaded - began:.1f} s, first frames in {ready - loaded:.1f} s, execution {execution}"
    yield Line(NAME, "start", OK, found, values={"load_s": loaded - began, "warm_up_s": ready - loaded})
    yield _line(stream, _times(stream, frames, limit), frames)


def _times(stream: Stream, frames: int, limit: float) -> tuple[list[float], int]:
    """Seconds of each frame, results in host memory; and the number of frames that are not finite."""
    images = np.random.default_rng(0).integers(0, 256, (4, *CAMERA, 3), np.uint8)
    times, sick, started = [], 0, time.perf_counter()
    while not times or (len(times) < frames and time.perf_counter() - started < limit):
        began = time.perf_counter()
        result = stream.step(images[len(times) % len(images)])
        healthy = result.numpy("pose", "depth", "dynamic_mask", "healthy")["healthy"]
        times.append(time.perf_counter() - began)
        sick += not healthy
    return times, sick


def _line(stream: Stream, measured: tuple[list[float], int], wanted: int) -> Line:
    times, sick = measured
    median, slowest = statistics.median(times), max(times)
    rate = 1 / median
    size = stream.options.image_size or stream.network.config.image_size
    found = (
        f"{len(times)} of {wanted} frames of size {size} on {stream.device}, {stream.options.precision}: "
        f"{median * 1e3:.1f} ms (median), at most {slowest * 1e3:.1f} ms, {rate:.2g} per second"
    )
    values = {"milliseconds": [seconds * 1e3 for seconds in times], "rate": rate, "not_finite": sick}
    if sick:
        remedy = "choose --precision float32; if it is, the weights or this device are defective"
        return Line(NAME, "frames", FAIL, f"{found}; {sick} are not finite", remedy, values)
    if rate < SLOW:
        remedy = "choose a smaller --size (224) or checkpoint; on a GPU --precision bfloat16 or float16"
        return Line(NAME, "frames", WARNING, f"{found}: too slow for a moving camera", remedy, values)
    return Line(NAME, "frames", OK, found, values=values)
