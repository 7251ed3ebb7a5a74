"""Several streams share one network: frames that wait at the same time run as one batch."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.errors import OptionError
from raymap3r_ros.network import Network
from raymap3r_ros.streaming.cuda_graphs import Capture, CudaCapture
from raymap3r_ros.streaming.recordings import Recordings, recordings
from raymap3r_ros.streaming.rehearsal import spacing
from raymap3r_ros.streaming.result import Estimate, StepResult
from raymap3r_ros.streaming.state import PreparedFrame, StepPlan, StreamState
from raymap3r_ros.streaming.stream import Stream
from raymap3r_ros.streaming.stream_options import StreamOptions
from raymap3r_ros.streaming.tensors import map_tensors
from raymap3r_ros.streaming.timing import StageTimer

PATIENCE = 0.5  # share of the last round's duration, see `BatchScheduler`


@dataclass(eq=False)
class _Request:
    """A frame that waits for the network, and its outcome."""

    stream: Stream
    frame: PreparedFrame
    outcome: tuple[Estimate, StreamState] | None = None
    error: Exception | None = None
    done: bool = False  # there is an outcome or an error


class BatchScheduler:
    """Shares one network among streams that are stepped from one thread each.

    While the device is busy, frames queue up. The next thread that finds it free runs all waiting frames in one
    round, so a camera waits at most for the end of the running round and for its own. Frames run as one batch if they
    are steady (see `PreparedFrame`), have the same plan and the same preprocessed size, all or none of them have
    intrinsics, and all or none a known pose. The others run one after another. The results equal those of separate
    streams up to rounding.

    Cameras that are triggered at the same time, or that keep the device busy, would still alternate: one runs while
    the other's frame arrives. Therefore a camera whose frame arrives soon after the start of a round is expected in
    the next one. That round waits for it, but at most for `patience` times the duration of the last round; a camera
    that has not arrived by then is no longer expected. Rounds on a free device and rounds that had to wait for
    another one behave differently, so the expected cameras are kept separately for the two. A single camera never
    waits.
    """

    def __init__(self, network: Network, *, patience: float = PATIENCE, capture: Capture | None = None) -> None:
        """`capture` replaces the recording of CUDA graphs, see `record_graph`."""
        self.network = network
        self.patience = patience
        if capture is None and next(network.parameters()).device.type == "cuda":
            capture = CudaCapture()
        self._capture = capture  # shared by all batches, with its memory
        # By execution and number of cameras, each with its own limit.
        self._recordings: dict[tuple[str, int], Recordings | None] = {}
        self._largest = sys.maxsize  # frames in a batch, at most
        self._changed = threading.Condition()  # guards everything below
        self._waiting: list[_Request] = []
        self._busy = False  # a round is running
        self._seconds = 0.0  # duration of the last round
        self._began = self._soon = 0.0  # its start on the monotonic clock, and its patience in seconds
        self._waited = False  # whether it had to wait for another round
        self._taking_part: weakref.WeakSet[Stream] = weakref.WeakSet()
        # For rounds that had to wait for another one, and for the others.
        self._expected: dict[bool, weakref.WeakSet[Stream]] = {True: weakref.WeakSet(), False: weakref.WeakSet()}

    @torch.inference_mode()
    def step(
        self,
        stream: Stream,
        image: np.ndarray | Tensor,
        stamp: float | None = None,
        intrinsics: np.ndarray | Tensor | None = None,
        *,
        pose: np.ndarray | Tensor | None = None,
        motion: bool = True,
    ) -> StepResult:
        """The result of `stream.step` with the other arguments. Thread-safe, but one caller at a time per stream.

        `timings` of the result include the `wait` for other cameras. Raises OptionError if the stream has another
        network, and everything that `Stream.step` raises; an error of one camera's frame reaches only its caller.
        """
        if stream.network is not self.network:
            raise OptionError("the stream has another network; create it with the network of this scheduler")
        request = _Request(stream, stream.prepare(image, stamp, intrinsics, pose=pose, motion=motion))
        with self._changed:
            if stream not in self._taking_part and time.monotonic() - self._began < self._soon:
                self._expected[self._waited].add(stream)
        self._run([request])
        return stream.finish(request.frame, *request.outcome)

    @torch.inference_mode()
    def warm_up(
        self,
        stream: Stream,
        cameras: int,
        image: np.ndarray | Tensor,
        intrinsics: np.ndarray | Tensor | None = None,
        *,
        pose: np.ndarray | Tensor | None = None,
        motion: bool = True,
    ) -> None:
        """Run a steady frame in batches of 2 to `cameras`, so that a GPU records them before they are needed.

        `stream` must have been stepped until its frames are steady; its state is unchanged. Raises what `step` raises.
        """
        for count in range(2, cameras + 1):
            self._run(
                [
                    _Request(stream, stream.prepare(image, None, intrinsics, pose=pose, motion=motion))
                    for _ in range(count)
                ]
            )

    @property
    def waiting(self) -> int:
        """Number of frames that wait for the network."""
        with self._changed:
            return len(self._waiting)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the network free inside the block: frames queue up, and run in one round after it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _run(self, requests: list[_Request]) -> None:
        """Wait for the outcome of requests, in a round that another thread or this one leads."""
        with self._changed:
            self._waiting += requests
            self._changed.notify_all()
            waits = self._busy
            self._changed.wait_for(lambda: requests[-1].done or not self._busy)
            leads = not requests[-1].done
            self._busy |= leads
        if leads:
            self._lead(requests, waits)
        for request in requests:
            if request.error is not None:
                # The error's traceback refers to the request. If the request still referred to the error, both and the
                # frame's tensors would live until the next garbage collection.
                error, request.error = request.error, None
                try:
                    raise error
                finally:
                    del error

    def _lead(self, own: list[_Request], waited: bool) -> None:
        """Run all waiting requests in one round; `waited`: this thread had to wait for another round."""
        taken: list[_Request] = []
        try:
            taken = self._gather(waited)
            timer = StageTimer(taken[0].stream.device)
            for group in _groups(taken):
                for start in range(0, len(group), self._largest):
                    self._serve(group[start : start + self._largest])
                with self._changed:
                    for request in group:
                        request.done = True
                    self._changed.notify_all()
            timer.mark("round")
            # The GPU is still running. Wait for it, so that the next round takes all frames that arrive meanwhile.
            self._seconds = timer.milliseconds()["round"] * 1e-3
        finally:
            with self._changed:
                # Whatever stopped this thread, the frames of the others must stay in the queue.
                left = taken + self._waiting
                self._waiting = [request for request in left if not request.done and request not in own]
                self._busy = False
                self._changed.notify_all()

    def _gather(self, waited: bool) -> list[_Request]:
        """All waiting requests, after the expected cameras have arrived or the patience has run out."""
        with self._changed:
            expected, patience = self._expected[waited], self.patience * self._seconds
            self._changed.wait_for(lambda: expected <= self._here(), timeout=patience)
            self._taking_part = self._here()
            expected &= self._taking_part
            self._began, self._soon, self._waited = time.monotonic(), patience, waited
            taken, self._waiting = self._waiting, []
            return taken

    def _here(self) -> weakref.WeakSet[Stream]:
        return weakref.WeakSet(request.stream for request in self._waiting)

    def _serve(self, group: Sequence[_Request]) -> None:
        """Run a group as one batch; if that fails, one by one."""
        try:
            self._advance(group)
            return
        except Exception as error:
            if len(group) == 1:
                group[0].error = error
                return
            if isinstance(error, torch.cuda.OutOfMemoryError):
                self._largest = len(group) // 2  # do not try this size again
            logging.getLogger(__name__).warning(
                "%d cameras could not run as one batch and run one by one: %s: %s",
                len(group),
                type(error).__name__,
                str(error),  # the log record must not keep the error, which refers to the batch
            )
        # Only here, because the exception refers to the batch's tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        for request in group:
            self._serve([request])

    def _advance(self, group: Sequence[_Request]) -> None:
        stream, frames = group[0].stream, [request.frame for request in group]
        for frame in frames:
            frame.timer.mark("wait")
        batch = frames[0]
        if len(frames) > 1:
            batch = dataclasses.replace(
                batch,
                inputs=_join([frame.inputs for frame in frames]),
                before=_join([frame.before for frame in frames]),
                timer=StageTimer(stream.device),
            )
        estimate, after = stream.advance(batch, self._recordings_for(stream.options, len(batch.inputs[0])))
        parts, start = [], 0
        for frame in frames:
            end = start + len(frame.inputs[0])
            # The state may be in a graph's own memory, which the next batch of this size overwrites.
            parts.append((_part(estimate, start, end), map_tensors(torch.clone, _part(after, start, end))))
            start = end
        for request, part in zip(group, parts, strict=True):
            if len(group) > 1:
                request.frame.timer.mark("network")
            request.outcome = part

    def _recordings_for(self, options: StreamOptions, cameras: int) -> Recordings | None:
        key = options.execution, cameras
        if key not in self._recordings:
            self._recordings[key] = recordings(self.network, options, self._capture)
        return self._recordings[key]


def step_of(stream: Stream, together: BatchScheduler | None) -> Callable[..., StepResult]:
    """The function that steps a stream: its own `step`, or the `step` of the scheduler `together`."""
    return stream.step if together is None else partial(together.step, stream)


def warm_up(stream: Stream, together: BatchScheduler | None = None, cameras: int = 1, *, poses: bool = False) -> None:
    """Run the network before the first image, so that errors show at once. The stream is reset afterwards.

    If the stream records frames, also record those of 4:3 images: with and without given intrinsics, with and without
    motion, in frames with and without the ray branch, with and without a known pose if `poses`, and for batches of up
    to `cameras` streams.
    """
    side = stream.options.image_size or stream.network.config.image_size
    image = np.full((side * 3 // 4, side, 3), 128, np.uint8)
    step = step_of(stream, together)
    frame = step(image).frame
    if stream.records:
        while frame < stream.method.router_last_frame:
            frame = step(image).frame
        cycle = spacing(stream.options, stream.method)
        intrinsics = np.array([[side, 0.0, side / 2], [0.0, side, side * 3 / 8], [0.0, 0.0, 1.0]])
        for given, pose in itertools.product((None, intrinsics), (None, np.eye(4)) if poses else (None,)):
            ran: set[StepPlan] = set()
            for motion in (True, False):
                wanted = {stream.plan(frame + index, motion=motion) for index in range(1, cycle + 1)}
                while not wanted <= ran:
                    if (plan := stream.plan(frame + 1, motion=motion)) not in ran and together is not None:
                        together.warm_up(stream, cameras, image, given, pose=pose, motion=motion)
                    frame = step(image, intrinsics=given, pose=pose, motion=motion).frame
                    ran.add(plan)
    stream.reset()


def _groups(requests: Sequence[_Request]) -> list[list[_Request]]:
    """Requests grouped by frames that can run as one batch, in order of arrival."""
    groups: dict[Hashable, list[_Request]] = {}
    for request in requests:
        frame = request.frame
        pixels, intrinsics, pose = frame.inputs
        kind = (frame.plan, pixels.shape[1:], intrinsics is None, pose is None) if frame.steady else request
        groups.setdefault(kind, []).append(request)
    return list(groups.values())


def _join(items: Sequence[Any]) -> Any:
    """Tuples or dataclasses of one structure, concatenated to one batch."""
    return map_tensors(lambda *tensors: torch.cat(tensors), *items)


def _part(item: Any, start: int, end: int) -> Any:
    """Rows `start` to `end` of every tensor of a batch."""
    return map_tensors(lambda tensor: tensor[start:end], item)
