"""Exported graphs on disk, so that a kind of frame is exported once and not at every start."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from raymap3r_ros.code_digest import code_digest
from raymap3r_ros.errors import Raymap3rError
from raymap3r_ros.network import Network
from raymap3r_ros.network.catalog import cache_folder
from raymap3r_ros.output_files import whole_file
from raymap3r_ros.streaming.state import StepPlan

KEPT = 24  # files, each with the weights of its network; the ones used last
_ROOMS = ("geometry", "network", "streaming")  # whose code a graph depends on

log = logging.getLogger(__name__)


def graph_path(network: Network, kind: str, plan: StepPlan, tensors: Iterable[Tensor]) -> Path | None:
    """The file of the graph of this kind of work with inputs like `tensors`; None if the cache has no place.

    Its name is a hash of everything that the graph depends on: weights, plan, shapes, this package and the exporter.
    """
    parts = [code_digest(*_ROOMS), torch.__version__, importlib.metadata.version("onnx"), network.config]
    parts += [kind, plan.options, plan.method, plan.run_ray_branch, plan.motion]
    parts += [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
    digest = hashlib.sha256("\n".join(map(repr, parts)).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy())
    try:
        return cache_folder("onnx") / f"{digest.hexdigest()}.onnx"
    except Raymap3rError:  # no home; commands that need the cache report it
        return None


def read_graph(path: Path) -> bytes | None:
    """The graph of an earlier run; None if there is none, or if it cannot be read."""
    try:
        graph = path.read_bytes()
        os.utime(path)  # used last
    except OSError:
        return None
    checksum, _, graph = graph.partition(b"\n")
    return graph if checksum == _checksum(graph) else None


def write_graph(path: Path, graph: bytes) -> None:
    """Keep a graph for later runs, and delete the ones that have not been used for the longest time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_bytes(_checksum(graph) + b"\n" + graph)
        files = sorted(path.parent.glob("*.onnx"), key=lambda file: file.stat().st_mtime)
        for file in files[:-KEPT]:
            file.unlink(missing_ok=True)
    except (OSError, Raymap3rError) as error:
        log.warning("exported graphs cannot be kept, the next start exports them again: %s", error)


def _checksum(graph: bytes) -> bytes:
    return hashlib.sha256(graph).hexdigest().encode()
