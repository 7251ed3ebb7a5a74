"""A frame as one CUDA graph: one launch for a whole frame instead of about a thousand."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# Number of graphs: each holds the results of a whole frame. A node with one image size needs them with and without
# given intrinsics, each for frames with motion, without motion, and without the ray branch.
_KEPT = 6

Capture = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]


class Graphs:
    """Runs one function of tensors, recorded once for each plan and each set of shapes.

    The function is called as `function(plan, inputs, state)` and returns `(outputs, new state)`. All except `plan`
    are dataclasses (or tuples) of tensors. The function must not read a tensor's values on the host.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        """`capture` takes a function without arguments; it returns one that repeats it in place, and its result."""
        self._capture = capture or CudaCapture()
        self._recorded: dict[Any, _Recorded] = {}
        self._usable = True

    def run(self, function: Callable, plan: Any, inputs: tuple, state: Any) -> tuple[Any, Any]:
        """The result of `function`. The next call with the returned state overwrites its tensors."""
        key = plan, tuple(tensor.shape for tensor in _tensors((inputs, state)))
        recorded = self._recorded.get(key)
        if recorded is None and self._usable:
            recorded = self._record(key, function, inputs, state)
        return function(plan, inputs, state) if recorded is None else recorded.run(inputs, state)

    def _record(self, key: Any, function: Callable, inputs: tuple, state: Any) -> _Recorded | None:
        while len(self._recorded) >= _KEPT:
            del self._recorded[next(iter(self._recorded))]
        try:
            self._recorded[key] = _Recorded(function, key[0], inputs, state, self._capture)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._usable = False
            logging.getLogger(__name__).warning(
                "no CUDA graph can be recorded, frames run operation by operation: %s", error
            )
        return self._recorded.get(key)


class _Recorded:
    """One recorded function with its own memory for arguments and results."""

    def __init__(self, function: Callable, plan: Any, inputs: tuple, state: Any, capture: Capture) -> None:
        self._inputs, self._state = copy_of(inputs), copy_of(state)

        def body() -> Any:
            outputs, after = function(plan, self._inputs, self._state)
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


def map_tensors(function: Callable[..., Tensor], *items: Any) -> Any:
    """Nested tuples or dataclasses of one structure -> one of them, with `function` of the corresponding tensors.

    Values that are not tensors are those of the first item.
    """
    first = items[0]
    if isinstance(first, Tensor):
        return function(*items)
    if isinstance(first, tuple):
        return tuple(map_tensors(function, *parts) for parts in zip(*items, strict=True))
    if dataclasses.is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first)]
        changed = {name: map_tensors(function, *(getattr(item, name) for item in items)) for name in names}
        return dataclasses.replace(first, **changed)
    return first


def copy_of(item: Any) -> Any:
    """A tuple or dataclass with copies of all tensors."""
    return map_tensors(torch.clone, item)


def _tensors(item: Any) -> Iterator[Tensor]:
    """All tensors of a tuple or dataclass, in order."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, tuple):
        for part in item:
            yield from _tensors(part)
    elif dataclasses.is_dataclass(item):
        for field in dataclasses.fields(item):
            yield from _tensors(getattr(item, field.name))


def _write(source: Any, target: Any) -> None:
    """Copy the tensors of one tuple or dataclass into those of another with the same structure."""
    for value, place in zip(_tensors(source), _tensors(target), strict=True):
        if value is not place:
            place.copy_(value)
