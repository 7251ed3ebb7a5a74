"""A frame as one ONNX graph, run by ONNX Runtime: the fastest way to run small networks on a CPU."""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.network import Network
from raymap3r_ros.network.attention import rotate
from raymap3r_ros.streaming.graph_cache import graph_path, read_graph, write_graph
from raymap3r_ros.streaming.mask import window_reduce
from raymap3r_ros.streaming.tensors import copy_of, tensors_of, with_tensors
from raymap3r_ros.streaming.traces import FrameModule
from raymap3r_ros.text import printable

PACKAGES = ("onnx", "onnxruntime")  # the extra `onnx` in setup.py

_OPSET = 18
log = logging.getLogger(__name__)

_EXPORTS = threading.Lock()  # the exporter has global variables


def missing_packages() -> list[str]:
    """The names of packages that are needed, but not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def record_onnx(network: Network, frame: Any, inputs: tuple, state: Any) -> Callable[[tuple, Any], tuple[Any, Any]]:
    """A function that does the same as `frame`, a `recordings.Work`, for inputs and a state of the same shapes.

    The graph comes from the cache, if it has been exported before. See also `traces.trace`. Raises RuntimeError if the
    installed versions cannot export or load the frame.
    """
    example = tuple(tensors_of(copy_of((inputs, state))))
    module = FrameModule(network, frame, (inputs, state), REPLACED).eval()
    path = graph_path(network, f"{frame.kind.__name__} {frame.size}", frame.plan, example)
    session = None if path is None else _cached(path, module, example)
    if session is None:
        session = _exported(path, module, example)
    # The exporter leaves out inputs that have no effect.
    used = {item.name: int(item.name.removeprefix("input_")) for item in session.get_inputs()}
    results = copy_of(module.results)

    def run(inputs: tuple, state: Any) -> tuple[Any, Any]:
        given = list(tensors_of((inputs, state)))
        outputs = session.run(None, {name: given[index].contiguous().numpy() for name, index in used.items()})
        return with_tensors(results, module.all_results(given, map(torch.from_numpy, outputs)))

    return run


def _cached(path: Path, module: FrameModule, example: tuple[Tensor, ...]) -> Any | None:
    """The session of a graph that was exported before; None if there is none that can be used."""
    graph = read_graph(path)
    if graph is None:
        return None
    try:
        session = _session(graph)
    except Exception as error:  # of a version that has other operations
        log.warning("%s cannot be used and is exported again: %s", path, _first_line(error))
        return None
    module(*example)  # finds the results that are inputs
    return session


def _exported(path: Path | None, module: FrameModule, example: tuple[Tensor, ...]) -> Any:
    """The session of the graph of the module, which is exported and kept at `path`. Raises RuntimeError."""
    buffer = io.BytesIO()
    names = [f"input_{index}" for index in range(len(example))]
    try:
        with _EXPORTS, warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            # The exporter is kept, but no longer developed; sizes become constants, as intended.
            warnings.simplefilter("ignore")
            # Not verbose: by default it prints the whole graph if it fails.
            torch.onnx.export(
                module, copy_of(example), buffer, verbose=False, input_names=names, opset_version=_OPSET, dynamo=False
            )
        session = _session(buffer.getvalue())
    except Exception as error:  # each version has its own types
        raise RuntimeError(f"export from PyTorch {torch.__version__} to ONNX Runtime: {_first_line(error)}") from error
    if path is not None:
        write_graph(path, buffer.getvalue())
    return session


def _first_line(error: Exception) -> str:
    return printable(str(error).partition("\n")[0], 200)


def _session(graph: bytes) -> Any:
    """The graph, ready to run on as many threads as PyTorch uses."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # otherwise it reports each session to its publisher
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # Threads that wait actively take the time of other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


# What the exporter or ONNX Runtime cannot do, or does with more operations than necessary.


def _where(condition: Tensor, yes: Any, no: Any) -> Tensor:
    if isinstance(yes, Tensor) and yes.dtype == torch.bool:
        return (condition & yes) | (~condition & no)
    return torch.where(condition, yes, no)


def _maximum(first: Tensor, second: Tensor) -> Tensor:
    return first | second if first.dtype == torch.bool else torch.maximum(first, second)


def _expm1(x: Tensor) -> Tensor:
    return (x / 2).tanh() * (x.exp() + 1)  # as exact as expm1 near 0


def _movedim(x: Tensor, source: int, destination: int) -> Tensor:
    order = list(range(x.ndim))
    order.insert(destination % x.ndim, order.pop(source % x.ndim))
    return x.permute(order)


def _unflatten(x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    dim %= x.ndim
    rest = x.shape[dim] // math.prod(size for size in sizes if size != -1)
    return x.reshape(*x.shape[:dim], *(rest if size == -1 else size for size in sizes), *x.shape[dim + 1 :])


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ (k * q.shape[-1] ** -0.5).transpose(-1, -2)).softmax(-1) @ v


def _window_reduce(values: Tensor, size: int, combine: Callable) -> Tensor:
    """As `window_reduce`; values are at least 0."""
    if combine is not torch.maximum:
        return window_reduce(values, size, combine)
    planes = values[:, None].to(torch.float32)
    for window in ((size, 1), (1, size)):
        planes = F.max_pool2d(planes, window, stride=1, padding=(window[0] // 2, window[1] // 2))
    return planes[:, 0] > 0 if values.dtype == torch.bool else planes[:, 0]


class _Rotary(torch.autograd.Function):
    """(u, v) -> (u cos - v sin, v cos + u sin) of pairs x (B, heads, N, 2 Q), with cos and sin (N, Q)."""

    @staticmethod
    def forward(_: Any, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        return torch.cat((u * cos - v * sin, v * cos + u * sin), dim=-1)

    @staticmethod
    def symbolic(graph: Any, x: Any, positions: Any, cos: Any, sin: Any) -> Any:
        return graph.op("com.microsoft::RotaryEmbedding", x, positions, cos, sin).setType(x.type())


def _rotate(x: Tensor, table: Tensor) -> Tensor:
    """As `rotate`, where the pairs of row and column are two tokens."""
    batch, heads, count, width = x.shape
    cos, sin = table.view(2, 2 * count, 2, width // 4)[:, :, 1]
    positions = torch.arange(2 * count).expand(batch, -1)
    return _Rotary.apply(x.reshape(batch, heads, 2 * count, width // 2), positions, cos, sin).view(x.shape)


REPLACED: dict[Callable, Callable] = {
    torch.where: _where,
    torch.maximum: _maximum,
    torch.rad2deg: lambda x: x * (180 / math.pi),
    torch.isfinite: lambda x: x.abs() < torch.inf,
    window_reduce: _window_reduce,
    rotate: _rotate,
    F.scaled_dot_product_attention: _attention,
    Tensor.expm1: _expm1,
    Tensor.movedim: _movedim,
    Tensor.mT.__get__: lambda x: x.transpose(-1, -2),
    Tensor.chunk: lambda x, count, dim=0: x.split(x.shape[dim] // count, dim),
    Tensor.unflatten: _unflatten,
    Tensor.expand_as: lambda x, other: x.expand(other.shape),
    Tensor.view_as: lambda x, other: x.view(other.shape),
}
