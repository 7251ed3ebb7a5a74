"""Several cameras on one network: which frames wait for which."""

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from batching_tools import LIMIT, at_once, frames, steady_cameras, stepping, wait_for_waiting

from raymap3r_ros.network import Network
from raymap3r_ros.streaming import Stream
from raymap3r_ros.streaming.batching import BatchScheduler

FOREVER = 1e4  # patience: times the last round, which takes a few milliseconds; this is longer than LIMIT


class Turnstile:
    """Stops every batch before the network until it is released."""

    def __init__(self, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self._go = threading.Semaphore(0), threading.Semaphore(0)
        encode = network.encode_image

        def encode_slowly(planes: Tensor) -> Tensor:
            self.inside.release()
            assert self._go.acquire(timeout=LIMIT)
            return encode(planes)

        monkeypatch.setattr(network, "encode_image", encode_slowly)

    def let_through(self, *futures: Future) -> None:
        self._go.release()
        for future in futures:
            future.result(LIMIT)


def test_a_round_waits_for_a_camera_that_arrives_soon(
    network: Network, batches: list[int], monkeypatch: pytest.MonkeyPatch
):
    """Two cameras with a common trigger, one of which stops."""
    scheduler = BatchScheduler(network, patience=0)
    first, second = steady_cameras(scheduler, 2)
    image = frames(1, 9)[0]
    scheduler.patience = FOREVER
    scheduler.step(first, image)  # measures the duration of a round
    batches.clear()

    def arrive_while_busy(early: Stream, late: Stream) -> None:
        with monkeypatch.context() as slow:
            turnstile = Turnstile(network, slow)
            one = pool.submit(scheduler.step, early, image)
            assert turnstile.inside.acquire(timeout=LIMIT)
            other = pool.submit(scheduler.step, late, image)
            wait_for_waiting(scheduler, 1)
            turnstile.let_through(one)
            turnstile.let_through(other)

    with ThreadPoolExecutor(2) as pool:
        arrive_while_busy(first, second)
        assert batches == [1, 1]

        # The device is free, but the other camera is expected.
        early = pool.submit(scheduler.step, first, image)
        wait_for_waiting(scheduler, 1)
        assert not early.done() and len(batches) == 2
        late = pool.submit(scheduler.step, second, image)
        early.result(LIMIT)
        late.result(LIMIT)
        assert batches == [1, 1, 2]

        # After a missed round, a camera does not wait for the other's next image.
        arrive_while_busy(second, first)
        assert batches == [1, 1, 2, 1, 1]

        # One camera misses one round ...
        scheduler.patience = 0
        pool.submit(scheduler.step, first, image).result(LIMIT)
        # ... and is no longer expected. A single camera does not wait.
        scheduler.patience = FOREVER
        for _ in range(3):
            pool.submit(scheduler.step, first, image).result(LIMIT)
        assert batches == [1, 1, 2, 1, 1, 1, 1, 1, 1]


def test_cameras_that_keep_the_device_busy_stop_alternating(
    network: Network, batches: list[int], monkeypatch: pytest.MonkeyPatch
):
    scheduler = BatchScheduler(network, patience=0)
    first, second = steady_cameras(scheduler, 2)
    image = frames(1, 9)[0]
    scheduler.patience = FOREVER
    scheduler.step(first, image)
    batches.clear()
    turnstile = Turnstile(network, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(scheduler.step, first, image)
        for stream in (second, first, second):
            assert turnstile.inside.acquire(timeout=LIMIT)
            waiting = pool.submit(scheduler.step, stream, image)
            wait_for_waiting(scheduler, 1)
            turnstile.let_through(running)
            running = waiting
        # Now the first camera is expected to return soon.
        again = pool.submit(scheduler.step, first, image)
        assert turnstile.inside.acquire(timeout=LIMIT)
        turnstile.let_through(running, again)
    assert batches == [1, 1, 1, 2]


def test_timings_contain_the_wait_for_other_cameras(network: Network):
    scheduler = BatchScheduler(network, patience=0)
    streams = steady_cameras(scheduler, 2)
    image = frames(1, 9)[0]
    for future in at_once(scheduler, *(stepping(scheduler, stream, image) for stream in streams)):
        assert list(future.result().timings) == ["preprocess", "wait", "network"]
    assert list(scheduler.step(streams[0], image).timings)[:3] == ["preprocess", "wait", "encode"]
