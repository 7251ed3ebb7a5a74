"""A frame as one CUDA graph: one launch for a whole frame instead of about a thousand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from raymap3r_ros.streaming.tensors import copy_of, tensors_of

Capture = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]


def record_graph(
    capture: Capture, frame: Callable, inputs: tuple, state: Any
) -> Callable[[tuple, Any], tuple[Any, Any]]:
    """A function that does the same as `frame`, for inputs and a state of the same shapes.

    `frame` is called as `frame(inputs, state)` and returns outputs and a new state, all of them nested tuples or
    dataclasses of tensors. It must not read a tensor's values on the host. `capture` takes a function without
    arguments; it returns one that repeats it in place, and its result. The next call with the returned state
    overwrites its tensors.
    """
    return _Recorded(frame, inputs, state, capture).run


class _Recorded:
    """One recorded function with its own memory for arguments and results."""

    def __init__(self, frame: Callable, inputs: tuple, state: Any, capture: Capture) -> None:
        self._inputs, self._state = copy_of(inputs), copy_of(state)

        def body() -> Any:
            outputs, after = frame(self._inputs, self._state)
            _write(after, self._state)
            return outputs

        self._replay, self._outputs = capture(body)

    def run(self, inputs: tuple, state: Any) -> tuple[Any, Any]:
        _write(inputs, self._inputs)
        _write(state, self._state)  # from the second frame on this is the same memory, which is not copied
        self._replay()
        return copy_of(self._outputs), self._state


class CudaCapture:
    """Records CUDA graphs that share their working memory, because they never run at the same time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, body: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # Libraries allocate their workspaces at the first call, which must not be recorded.
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(2):
                body()
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU during the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = body()
        return graph.replay, outputs


def _write(source: Any, target: Any) -> None:
    """Copy the tensors of one tuple or dataclass into those of another with the same structure."""
    for value, place in zip(tensors_of(source), tensors_of(target), strict=True):
        if value is not place:
            place.copy_(value)
