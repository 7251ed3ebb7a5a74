"""Frames that are recorded once and then repeated: as CUDA graphs on a GPU, as ONNX graphs or traces on a CPU."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from raymap3r_ros.errors import OptionError
from raymap3r_ros.network import Network, is_small
from raymap3r_ros.streaming.cuda_graphs import Capture, CudaCapture, record_graph
from raymap3r_ros.streaming.onnx_graphs import missing_packages, record_onnx
from raymap3r_ros.streaming.state import StepPlan, StreamState
from raymap3r_ros.streaming.stream_options import StreamOptions
from raymap3r_ros.streaming.tensors import tensors_of
from raymap3r_ros.streaming.traces import trace

# Number of recordings: each holds the results of a whole frame. A node with one image size needs them with and without
# given intrinsics, and with and without known poses, each for frames with motion, without motion, and without the ray
# branch, and one for keyframes.
_KEPT = 13

Recorded = Callable[[tuple, StreamState], tuple[Any, StreamState]]


@dataclass(frozen=True)
class Work:
    """Work of the network, as a function of its inputs and the state. Equal ones run the same operations."""

    kind: Callable[..., tuple[Any, StreamState]]  # `engine.advance` or `engine.look`
    network: Network
    plan: StepPlan
    size: tuple[int, int]  # H, W of the preprocessed images, which not all inputs tell

    def __call__(self, inputs: tuple, state: StreamState) -> tuple[Any, StreamState]:
        return self.kind(self.network, self.plan, inputs, state)


class Recordings:
    """Work of the network, recorded once for each plan and each set of shapes."""

    def __init__(self, *recorders: Callable[[Work, tuple, StreamState], Recorded]) -> None:
        """A recorder takes a function, its inputs and the state; it returns a function that does the same.

        The first one is used as long as it raises no RuntimeError, then the next one.
        """
        self._recorders = list(recorders)
        self._recorded: dict[Any, Recorded] = {}

    def run(self, work: Work, inputs: tuple, state: StreamState) -> tuple[Any, StreamState]:
        """The result of the work. The next call with the returned state may overwrite its tensors."""
        key = work, tuple(tensor.shape for tensor in tensors_of((inputs, state)))
        recorded = self._recorded.get(key)
        if recorded is None and self._recorders:
            recorded = self._record(key, inputs, state)
        return (recorded or work)(inputs, state)

    def _record(self, key: Any, inputs: tuple, state: StreamState) -> Recorded | None:
        while len(self._recorded) >= _KEPT:
            del self._recorded[next(iter(self._recorded))]
        while self._recorders and key not in self._recorded:
            try:
                self._recorded[key] = self._recorders[0](key[0], inputs, state)
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                del self._recorders[0]
                instead = "frames are traced instead" if self._recorders else "frames run operation by operation"
                logging.getLogger(__name__).warning("no frame can be recorded, %s: %s", instead, error)
        return self._recorded.get(key)


def recordings(network: Network, options: StreamOptions, capture: Capture | None = None) -> Recordings | None:
    """Recordings as the options want them on the network's device; None if frames run operation by operation.

    `capture` replaces the recording of CUDA graphs, also on a CPU. Raises OptionError if the device, or the
    precision, has no such recording.
    """
    device, execution = network.first_pose_token.device.type, options.execution
    if execution == "graph" and device != "cuda" and capture is None:
        raise OptionError(f"execution is graph, which needs a GPU; the network is on {device}")
    if execution in ("trace", "onnx"):
        if device != "cpu":
            raise OptionError(f"execution is {execution}, which is for a CPU; the network is on {device}: use graph")
        if options.precision != "float32":
            raise OptionError(f"execution is {execution}, which needs precision float32; it is {options.precision}")
        if execution == "onnx" and (missing := missing_packages()):
            raise OptionError(
                f"execution is onnx, but {' and '.join(missing)} cannot be imported: run `pip install "
                f"{' '.join(missing)}`, or use execution trace"
            )
        recorders = (record_onnx, trace) if execution == "onnx" else (trace,)
        return Recordings(*(partial(recorder, network) for recorder in recorders))
    if execution == "plain" or (device != "cuda" and capture is None):
        return None
    return Recordings(partial(record_graph, capture or CudaCapture()))


def long_running(network: Network, options: StreamOptions) -> StreamOptions:
    """Options for a stream of thousands of frames: with `onnx`, else `trace`, for `auto` where it pays."""
    on_cpu = network.first_pose_token.device.type == "cpu"
    if options.execution == "auto" and options.precision == "float32" and on_cpu and is_small(network):
        return dataclasses.replace(options, execution="trace" if missing_packages() else "onnx")
    return options
