"""Helpers for tests of several cameras on one network, and of recorded frames."""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from raymap3r_ros.network import Network
from raymap3r_ros.streaming import METHOD, StepResult, Stream, StreamOptions
from raymap3r_ros.streaming.batching import BatchScheduler
from raymap3r_ros.streaming.onnx_graphs import missing_packages
from raymap3r_ros.streaming.result import Estimate

needs_onnx = pytest.mark.skipif(
    bool(missing_packages()), reason=f"{' and '.join(missing_packages())} is not installed"
)
METHOD_SOON = dataclasses.replace(METHOD, warmup_frames=2, gate_from_frame=3, router_last_frame=4, keyframe_interval=3)
STEADY = METHOD_SOON.router_last_frame + 1  # first frame that may run in a batch
LIMIT = 20  # seconds after which a test that hangs fails


def frames(count: int, seed: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """Random images that change a little from one to the next."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (*size, 3))
    return np.stack([np.clip(base + rng.integers(-20, 20, base.shape), 0, 255) for _ in range(count)]).astype(np.uint8)


def cameras(network: Network, count: int, options: StreamOptions | None = None) -> list[Stream]:
    return [Stream(network, options, METHOD_SOON) for _ in range(count)]


def steady_cameras(scheduler: BatchScheduler, count: int) -> list[Stream]:
    """Streams whose next frames may run in a batch."""
    streams = cameras(scheduler.network, count)
    for seed, stream in enumerate(streams):
        for image in frames(STEADY, seed):
            scheduler.step(stream, image)
    return streams


def wait_for_waiting(scheduler: BatchScheduler, count: int) -> None:
    """Return as soon as `count` frames wait for the network."""
    deadline = time.monotonic() + LIMIT
    while scheduler.waiting != count:
        assert time.monotonic() < deadline, f"{scheduler.waiting} frames wait, expected {count}"
        time.sleep(1e-4)


def at_once(scheduler: BatchScheduler, *calls: Callable[[], Any], waiting: int | None = None) -> list[Future]:
    """Make each call in its own thread, so that they wait for the network in this order, then free the network.

    `waiting` is the number of calls that reach the wait, if not all do.
    """
    with ThreadPoolExecutor(len(calls)) as pool:
        with scheduler.paused():
            futures = []
            for place, call in enumerate(calls):
                futures.append(pool.submit(call))
                if waiting is None:
                    wait_for_waiting(scheduler, place + 1)
            wait_for_waiting(scheduler, len(calls) if waiting is None else waiting)
        return futures


def stepping(scheduler: BatchScheduler, stream: Stream, image: np.ndarray, **how: Any) -> Callable[[], StepResult]:
    return lambda: scheduler.step(stream, image, **how)


class Rerun:
    """Stands in for the recording of a CUDA graph: runs the function again, into the same memory."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, body):
        self.recorded += 1
        outputs = body()

        def replay() -> None:
            again = body()
            for name, tensor in tensors(outputs).items():
                tensor.copy_(getattr(again, name))

        return replay, outputs


def tensors(estimate: Estimate) -> dict[str, torch.Tensor]:
    values = {field.name: getattr(estimate, field.name) for field in dataclasses.fields(Estimate)}
    return {name: value for name, value in values.items() if value is not None}
