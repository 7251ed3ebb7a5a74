"""Several streams, one network: frames that wait at the same time run as one batch."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.errors import OptionError
from raymap3r_ros.network import Network
from raymap3r_ros.streaming.cuda_graphs import Capture, CudaCapture, Graphs, map_tensors
from raymap3r_ros.streaming.result import Estimate, StepResult
from raymap3r_ros.streaming.stream import Frame, Stream, StreamState
from raymap3r_ros.streaming.timing import StageTimer

PATIENCE = 0.5  # of the time of the last round, see `BatchScheduler`


@dataclass(eq=False)
class _Request:
    """A frame that waits for the network, and what became of it."""

    stream: Stream
    frame: Frame
    outcome: tuple[Estimate, StreamState] | None = None
    error: Exception | None = None
    done: bool = False  # there is an outcome or an error


class BatchScheduler:
    """Shares one network out among streams that are stepped from a thread each.

    While the device is busy frames gather. The next thread to find it free takes all that wait, so a camera waits for
    the end of one round at most, and for its own. Frames of one kind run as one batch: steady ones (see `Frame`) with
    the same plan, the same size of image for the network, and all with intrinsics or all without. The others run one
    after another. The results are those of streams on their own, up to rounding.

    Cameras that are triggered together, or that keep the device busy, would still take turns: one runs while the
    other arrives. So a camera that came soon after a round had begun is expected at the next one, which waits for it,
    but no longer than `patience` times as long as the last round took; if it has not come by then, it is not expected
    any more. What holds for rounds on a device that was free need not hold for those that had to wait for another
    one, so the two are told apart. A camera alone never waits.
    """

    def __init__(self, network: Network, *, patience: float = PATIENCE, capture: Capture | None = None) -> None:
        """`capture` replaces the recording of CUDA graphs, see `Graphs`."""
        self.network = network
        self.patience = patience
        self._capture = capture or CudaCapture()  # one for all batches: they share its memory
        self._records = capture is not None or next(network.parameters()).device.type == "cuda"
        self._graphs: dict[int, Graphs] = {}  # by the number of cameras, so that one does not displace another
        self._largest = sys.maxsize  # batch that is tried
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: list[_Request] = []
        self._busy = False  # somebody holds a round
        self._seconds = 0.0  # that the last one took
        self._began = self._soon = 0.0  # when it began, of the monotonic clock, and how long one would have waited
        self._waited = False  # whether it had to wait for another one
        self._taking_part: weakref.WeakSet[Stream] = weakref.WeakSet()
        # At rounds that had to wait for another one, and at those that had not.
        self._expected: dict[bool, weakref.WeakSet[Stream]] = {True: weakref.WeakSet(), False: weakref.WeakSet()}

    @torch.inference_mode()
    def step(
        self,
        stream: Stream,
        image: np.ndarray | Tensor,
        stamp: float | None = None,
        intrinsics: np.ndarray | Tensor | None = None,
        *,
        motion: bool = True,
    ) -> StepResult:
        """What `stream.step` of the other arguments gives. Called from any thread, for a stream from one at a time.

        The result's `timings` tell what `wait` for other cameras cost. Raises OptionError where the stream's network
        is another one, and all that `Stream.step` raises; what goes wrong with one camera's frame reaches its caller
        alone.
        """
        if stream.network is not self.network:
            raise OptionError("the stream has a network of its own; make it with the network that is shared")
        request = _Request(stream, stream.prepare(image, stamp, intrinsics, motion=motion))
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
        motion: bool = True,
    ) -> None:
        """Run a steady frame in batches of 2 to `cameras`, so that a GPU has recorded them before they are needed.

        `stream` has been stepped until its frames are steady; it stays as it is. Raises what `step` raises.
        """
        for count in range(2, cameras + 1):
            self._run([_Request(stream, stream.prepare(image, None, intrinsics, motion=motion)) for _ in range(count)])

    def _run(self, requests: list[_Request]) -> None:
        """Wait for the outcome of requests, in a round of another thread or in one of this thread."""
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
                # The error's traceback leads to the request. Were the error still in there, both, and the frame's
                # tensors with them, would live until the garbage collector comes by.
                error, request.error = request.error, None
                try:
                    raise error
                finally:
                    del error

    def _lead(self, own: list[_Request], waited: bool) -> None:
        """Hold one round: run all that waits. `waited`: for another round."""
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
            # A GPU is still at work. Not before it is free can it be known what waits for it.
            self._seconds = timer.milliseconds()["round"] * 1e-3
        finally:
            with self._changed:
                # Whatever stopped this thread, the others' frames are not lost.
                left = taken + self._waiting
                self._waiting = [request for request in left if not request.done and request not in own]
                self._busy = False
                self._changed.notify_all()

    def _gather(self, waited: bool) -> list[_Request]:
        """All that waits, once the cameras that are expected have come or have let the others wait too long."""
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
        """Run frames of one kind as one batch; where that fails, one by one."""
        try:
            self._advance(group)
            return
        except Exception as error:
            if len(group) == 1:
                group[0].error = error
                return
            if isinstance(error, torch.cuda.OutOfMemoryError):
                self._largest = len(group) // 2  # the GPU will not grow
            logging.getLogger(__name__).warning(
                "%d cameras could not run as one batch, they run one by one: %s: %s",
                len(group),
                type(error).__name__,
                str(error),  # a record may be kept for long, and the error holds the batch
            )
        # Not before the exception is gone, which holds the batch's tensors.
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
        estimate, after = stream.advance(batch, self._graphs_for(len(batch.inputs[0])))
        parts, start = [], 0
        for frame in frames:
            end = start + len(frame.inputs[0])
            # What is remembered may lie in a graph's own memory, which the next batch of this size overwrites.
            parts.append((_part(estimate, start, end), map_tensors(torch.clone, _part(after, start, end))))
            start = end
        for request, part in zip(group, parts, strict=True):
            if len(group) > 1:
                request.frame.timer.mark("network")
            request.outcome = part

    def _graphs_for(self, cameras: int) -> Graphs | None:
        if not self._records:
            return None
        return self._graphs.setdefault(cameras, Graphs(self._capture))


def step_of(stream: Stream, together: BatchScheduler | None) -> Callable[..., StepResult]:
    """How a stream is stepped: alone, or with those that share its network."""
    return stream.step if together is None else partial(together.step, stream)


def warm_up(stream: Stream, together: BatchScheduler | None = None, cameras: int = 1) -> None:
    """Find out before the first image whether the network runs at all; the stream then knows as little as before.

    On a GPU, also load every kernel and record the graphs of 4:3 images: with and without given intrinsics, with and
    without motion, in frames that ask the rays and in those between, and of up to so many `cameras` that share a
    network.
    """
    side = stream.options.image_size or stream.network.config.image_size
    image = np.full((side * 3 // 4, side, 3), 128, np.uint8)
    step = step_of(stream, together)
    step(image)
    if stream.records_graphs:
        for _ in range(stream.method.router_last_frame):
            step(image)
        intrinsics = np.array([[side, 0.0, side / 2], [0.0, side, side * 3 / 8], [0.0, 0.0, 1.0]])
        for given, motion in itertools.product((None, intrinsics), (True, False)):
            for _ in range(stream.options.ray_interval):
                step(image, intrinsics=given, motion=motion)
                if together is not None:
                    together.warm_up(stream, cameras, image, given, motion=motion)
    stream.reset()


def _groups(requests: Sequence[_Request]) -> list[list[_Request]]:
    """Requests whose frames can run as one batch, in the order in which the first of each came."""
    groups: dict[Hashable, list[_Request]] = {}
    for request in requests:
        frame = request.frame
        pixels, intrinsics = frame.inputs
        kind = (frame.plan, pixels.shape[1:], intrinsics is None) if frame.steady else request
        groups.setdefault(kind, []).append(request)
    return list(groups.values())


def _join(items: Sequence[Any]) -> Any:
    """Tuples or dataclasses of one form as one batch."""
    return map_tensors(lambda *tensors: torch.cat(tensors), *items)


def _part(item: Any, start: int, end: int) -> Any:
    """Some rows of every tensor of a batch."""
    return map_tensors(lambda tensor: tensor[start:end], item)
