"""A frame as one CUDA graph: the GPU is told once what to do, instead of a thousand times a frame."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# Graphs: each holds a whole frame's results. A node of one image size needs them with and without given intrinsics,
# each for frames of which motion is asked, of which it is not, and for those between that ask no rays.
_KEPT = 6

Capture = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]


class Graphs:
    """Runs one function of tensors, recorded once for each kind of arguments.

    The function is called `function(plan, inputs, state)` and gives `(outputs, new state)`: all but `plan`, which
    decides what is done, are dataclasses (or tuples) of tensors. It may not look at a tensor's values on the host.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        """`capture` turns a function without arguments into a function that repeats it in place, and its result."""
        self._capture = capture or CudaCapture()
        self._recorded: dict[Any, _Recorded] = {}
        self._usable = True

    def run(self, function: Callable, plan: Any, inputs: tuple, state: Any) -> tuple[Any, Any]:
        """What `function` gives. The state's tensors are overwritten by the next call that is given it."""
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
            logging.getLogger(__name__).warning("no CUDA graph can be made, frames are run step by step: %s", error)
        return self._recorded.get(key)


class _Recorded:
    """One function with memory of its own for arguments and results."""

    def __init__(self, function: Callable, plan: Any, inputs: tuple, state: Any, capture: Capture) -> None:
        self._inputs, self._state = copy_of(inputs), copy_of(state)

        def body() -> Any:
            outputs, after = function(plan, self._inputs, self._state)
            _write(after, self._state)
            return outputs

        self._replay, self._outputs = capture(body)

    def run(self, inputs: tuple, state: Any) -> tuple[Any, Any]:
        _write(inputs, self._inputs)
        _write(state, self._state)  # its own memory after the first frame, which is not copied
        self._replay()
        return copy_of(self._outputs), self._state


class CudaCapture:
    """Records CUDA graphs that share their working memory: they never run at the same time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, body: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # Libraries take their workspaces at the first call, which may not be inside the recording.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                body()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Another thread may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = body()
        return graph.replay, outputs


def map_tensors(function: Callable[..., Tensor], *items: Any) -> Any:
    """The first of some tuples or dataclasses of one form, with `function` of the tensors that stand in the same place
    of all, however deep they lie."""
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
    """A tuple or dataclass with tensors of its own."""
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
    """Copy the tensors of one tuple or dataclass into those of another of the same form."""
    for value, place in zip(_tensors(source), _tensors(target), strict=True):
        if value is not place:
            place.copy_(value)
