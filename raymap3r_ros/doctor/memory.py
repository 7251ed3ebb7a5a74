"""Free memory of the device and of the host, compared with what the checkpoint needs at the chosen image size.

The need is calculated before anything is loaded: one frame runs on tensors without data, and the bytes that are alive
at the same time are counted. On a CPU the sum is up to a tenth above the measured peak (test/doctor/test_memory.py).
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raymap3r_ros.doctor.lines import FAIL, OK, WARNING, Line, Target
from raymap3r_ros.errors import CheckpointError
from raymap3r_ros.geometry import cameras
from raymap3r_ros.network import Network, NetworkConfig, attention, checkpoint_config
from raymap3r_ros.streaming import METHOD, Stream, StreamOptions, engine
from raymap3r_ros.streaming.preprocessing import frame_image
from raymap3r_ros.streaming.tensors import tensors_of
from raymap3r_ros.text import size_text

NAME = "memory"
RESERVE = 1.25  # share of activations that allocators add by rounding sizes and by gaps; an assumption
LIBRARIES = {"cpu": 200 * 2**20, "cuda": 300 * 2**20}  # workspaces, beyond what `import torch` takes; an assumption
# Limit and use of a container's memory, in the two versions of cgroups.
CONTAINER_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
SMALLER = "choose a smaller --size, --precision bfloat16, or end other programs that use this memory"


@dataclass(frozen=True)
class Need:
    """Bytes of memory."""

    parameters: int
    loading: int  # on the host while the file is read: all parameters in float32
    state: int  # of one stream
    activations: int  # most of one frame, with the ray branch, beside parameters and state

    def on_device(self, device: torch.device) -> int:
        """All together while frames run on the device."""
        copies = 2 if device.type == "cuda" else 1  # a recorded frame has a state of its own
        return int(self.parameters + copies * self.state + RESERVE * self.activations + LIBRARIES.get(device.type, 0))


def check(target: Target, root: Path = Path("/")) -> Iterator[Line]:
    """Lines about the device's memory and the host's. `root` contains proc and sys."""
    try:
        config = checkpoint_config(target.checkpoint)
    except CheckpointError:
        yield Line(NAME, "need", WARNING, "unknown: the checkpoint cannot be read", "see the line about weights")
        return
    need = memory_need(config, target.options)
    parts = f"parameters {size_text(need.parameters)}, state {size_text(need.state)}, a frame "
    parts += size_text(need.activations)
    host = max(need.loading, need.on_device(target.device)) if target.device.type == "cpu" else need.loading
    if target.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(target.device)
        yield _compare("GPU", need.on_device(target.device), free, parts, need)
    yield _compare("host", host, free_memory(root), parts, need)


def _compare(name: str, needed: int, free: int | None, parts: str, need: Need) -> Line:
    values = {**dataclasses.asdict(need), "needed": needed, "free": free}
    found = f"{size_text(needed)} needed ({parts})"
    if free is None:
        return Line(NAME, name, WARNING, f"{found}, free memory is unknown", "compare it with your system's", values)
    found += f", {size_text(free)} free"
    if needed > free:
        return Line(NAME, name, FAIL, found, SMALLER, values)
    if needed > 0.8 * free:
        return Line(NAME, name, WARNING, f"{found}: little is left for other programs", SMALLER, values)
    return Line(NAME, name, OK, found, values=values)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes of main memory that this process can still take, by the system and by its container; None if unknown."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return None
    for limit, used in CONTAINER_LIMITS:
        try:
            allowed, taken = ((root / "sys/fs/cgroup" / name).read_text().strip() for name in (limit, used))
        except OSError:
            continue
        if allowed.isdigit():
            free = min(free, max(0, int(allowed) - int(taken)))
    return free


def memory_need(config: NetworkConfig, options: StreamOptions) -> Need:
    """What a network of this shape needs for one stream of 4:3 images."""
    with torch.device("meta"):
        network = Network(config).eval()
    loading = _bytes(network.parameters())
    if options.precision != "float32":
        network.lower_precision(options.precision)
    options = dataclasses.replace(options, execution="plain")
    side = options.image_size or config.image_size
    rows, columns = frame_image(side, side * 3 // 4, side, config.patch_size).size
    try:
        _clear_caches()
        with FakeTensorMode(allow_non_fake_inputs=True):
            _without_data(network)
            stream = Stream(network, options)
            pixels = torch.zeros(1, rows, columns, 3, dtype=torch.uint8)
            with torch.inference_mode():
                start = engine.initial_state(
                    network, options, METHOD, 1, (rows, columns), (rows, columns), reason="start"
                )
                start = dataclasses.replace(start, frame=METHOD.router_last_frame + 1)
                held = _bytes(tensors_of(start))
                plan = stream.plan(start.frame)
                with _LiveBytes([*network.parameters(), *tensors_of(start)]) as live:
                    engine.advance(network, plan, (pixels, None, None), start)
    finally:
        _clear_caches()  # they hold tensors without data
    return Need(_bytes(network.parameters()), loading, held, live.most)


def _clear_caches() -> None:
    """Empty the caches of tensors that a frame uses."""
    for module in (cameras, attention):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


def _without_data(network: nn.Module) -> None:
    """Replace the parameters by some of the mode in force, with the same shapes and types."""
    for module in network.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(old.shape, dtype=old.dtype), requires_grad=False))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations create, while they are alive."""

    def __init__(self, others: Iterable[Tensor]) -> None:
        """`others`: tensors that are not counted, nor are views of them."""
        super().__init__()
        self.most = 0
        self._now = 0
        self._sizes = {other.untyped_storage()._cdata: 0 for other in others}

    def __torch_dispatch__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not isinstance(leaf, Tensor):
                continue
            storage = leaf.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self._now += storage.nbytes()
                self.most = max(self.most, self._now)
                weakref.finalize(storage, self._free, key)
        return result

    def _free(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)
