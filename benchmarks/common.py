"""Shared by the benchmarks: networks and images, interleaved timing, memory, tables and files."""

from __future__ import annotations

import argparse
import copy
import csv
import ctypes
import dataclasses
import gc
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openmp  # noqa: F401
import torch

from raymap3r_ros import __version__
from raymap3r_ros.errors import InputError, OptionError, Raymap3rError
from raymap3r_ros.io.json_file import write_json
from raymap3r_ros.network import DEFAULT_CHECKPOINT, PRESETS, Network, NetworkConfig
from raymap3r_ros.output_files import check_outputs, whole_file
from raymap3r_ros.streaming import METHOD, StepResult, Stream, StreamOptions
from raymap3r_ros.streaming.preprocessing import frame_image
from raymap3r_ros.tables import text_table

FAILED, INTERRUPTED = 2, 130  # exit statuses
ROUNDS = 10  # turns of each candidate
IMAGES = 16  # different images, repeated in order
# A stream runs the ray branch from a certain frame on, and the gate from one frame later. All frames after that do the
# same work. On a GPU, the stream records its graph some frames later.
MIN_WARMUP = METHOD.gate_from_frame + 1
GPU_WARMUP = METHOD.router_last_frame + 10
# The parts of a result that the node publishes. A frame is finished when they are in host memory.
PUBLISHED = ("pose", "pose_raw", "depth", "confidence", "intrinsics")
PUBLISHED_MOTION = ("dynamic_map", "dynamic_mask")

_CHOICES = {item.name: item.metadata["choices"] for item in dataclasses.fields(StreamOptions) if item.metadata}
PRECISIONS: tuple[str, ...] = _CHOICES["precision"]
EXECUTIONS: tuple[str, ...] = _CHOICES["execution"]


class Timed(Protocol):
    """The result of one step, with its timings."""

    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds per stage."""
        ...


Step = Callable[[int], Timed]  # processes frame `index`, up to its results in host memory

_CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux: writing 5 resets the peak of resident memory
_PEAK_RESETS = os.access(_CLEAR_REFS, os.W_OK)
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc: returns freed memory to the system


# --------------------------------------------------------------------------------------------------------- networks

Variant = tuple[str, bool]  # precision of the weights; whether a stream compiles parts of the network


def variant(precision: str, execution: str) -> Variant:
    """Return the variant that a stream needs. Streams of the same variant can share one network."""
    return precision, execution == "compile"


def variants_of(network: Network, device: torch.device, wanted: Iterable[Variant]) -> dict[Variant, Network]:
    """Return copies of a float32 network (on the CPU) for the wanted variants, on `device`.

    On a CPU, the plain float32 variant is the network itself.
    """
    made = {}
    for precision, compiled in dict.fromkeys(wanted):
        plain = precision == "float32" and not compiled
        made[precision, compiled] = network if plain and device.type == "cpu" else copy.deepcopy(network)
        if precision != "float32":
            made[precision, compiled].lower_precision(precision)
        made[precision, compiled].to(device)
    return made


def weight_bytes(network: Network) -> int:
    """Size of the weights in bytes."""
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


# ----------------------------------------------------------------------------------------------------------- images


def image_size(config: NetworkConfig, long_edge: int = 0) -> tuple[int, int]:
    """H, W of a 4:3 image that needs no resizing. `long_edge` 0: the one that the network was trained on."""
    long_edge = long_edge or config.image_size
    return frame_image(4 * long_edge, 3 * long_edge, long_edge, config.patch_size).size


def moving_images(size: tuple[int, int], streams: int = 1) -> np.ndarray:
    """(IMAGES, streams, H, W, 3) uint8: moving noise, different for each stream."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (streams, *size, 3), dtype=np.uint8)
    return np.stack([np.roll(texture, index, axis=2) for index in range(IMAGES)])


# ---------------------------------------------------------------------------------------------------------- streams


def engine_step(network: Network, options: StreamOptions, size: tuple[int, int], streams: int, motion: bool) -> Step:
    """Return a step that runs one `Stream` on a batch of `streams` images, and copies what the node publishes."""
    stream = Stream(network, options)
    images = moving_images(size, streams)
    published = PUBLISHED + PUBLISHED_MOTION if motion else PUBLISHED

    def step(index: int) -> StepResult:
        frames = images[index % IMAGES]
        result = stream.step(frames if streams > 1 else frames[0], motion=motion)
        result.numpy(*published)
        return result

    return step


# ----------------------------------------------------------------------------------------------------------- timing


@dataclass
class Candidate:
    """Something that processes frames, and its measurements."""

    build: Callable[[], Step]
    latencies: list[float] = field(default_factory=list)  # milliseconds
    stages: list[dict[str, float]] = field(default_factory=list)  # milliseconds, per frame
    peak: int = 0  # bytes, see `memory_kind`

    def stage_medians(self) -> dict[str, float]:
        """Median milliseconds of each stage; `rest` is the time outside all stages."""
        names = dict.fromkeys(name for frame in self.stages for name in frame)
        medians = {name: float(np.median([frame.get(name, 0.0) for frame in self.stages])) for name in names}
        rest = [total - sum(frame.values()) for total, frame in zip(self.latencies, self.stages, strict=True)]
        return {**medians, "rest": float(np.median(rest))}


@dataclass(frozen=True)
class Latency:
    """Time per frame in milliseconds, and throughput."""

    median_ms: float
    p95_ms: float
    p99_ms: float
    frames_per_second: float  # sum of all streams, over the whole time

    @classmethod
    def of(cls, latencies: Sequence[float], streams: int = 1) -> Latency:
        """Compute from the milliseconds of each frame."""
        median, p95, p99 = (float(value) for value in np.percentile(latencies, (50, 95, 99)))
        return cls(median, p95, p99, 1e3 * streams * len(latencies) / float(np.sum(latencies)))


def take_turns(candidates: Sequence[Candidate], frames: int, warmup: int, device: torch.device) -> None:
    """Time `frames` frames of each candidate, after `warmup` untimed ones.

    The candidates take turns of several frames, A B A B ..., so that changes in the machine's speed affect all
    equally. The first frame of a turn is not timed, because the caches hold the data of another candidate.
    """
    steps: list[Step] = []
    counts: list[int] = []  # frames processed by each candidate
    kept: list[int] = []  # bytes that each candidate holds between its frames
    for candidate in candidates:
        before = held_memory(device)
        reset_peak(device)
        step = candidate.build()
        for index in range(warmup):
            step(index)
        _synchronise(device)
        candidate.peak = peak_memory(device) - sum(kept)
        gc.collect()
        kept.append(held_memory(device) - before)
        steps.append(step)
        counts.append(warmup)

    for turn in np.array_split(np.arange(frames), min(ROUNDS, frames)):
        for place, (candidate, step) in enumerate(zip(candidates, steps, strict=True)):
            reset_peak(device)
            step(counts[place])
            for index in range(counts[place] + 1, counts[place] + 1 + len(turn)):
                latency, result = timed(step, index, device)
                candidate.latencies.append(latency)
                candidate.stages.append(result.timings)
            counts[place] += 1 + len(turn)
            others = sum(kept) - kept[place]
            candidate.peak = max(candidate.peak, peak_memory(device) - others)


def timed(step: Step, index: int, device: torch.device) -> tuple[float, Timed]:
    """Process one frame; return its milliseconds and its result."""
    _synchronise(device)
    start = time.perf_counter()
    result = step(index)
    _synchronise(device)
    return (time.perf_counter() - start) * 1e3, result


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ----------------------------------------------------------------------------------------------------------- memory


def memory_kind(device: torch.device) -> str:
    """Description of the memory that `Candidate.peak` measures."""
    if device.type == "cuda":
        return "GPU memory allocated, without other rows"
    return "resident memory of the process" if _PEAK_RESETS else "resident memory of the process since it began"


def held_memory(device: torch.device) -> int:
    """Bytes in use on a GPU; 0 on a CPU, where only the memory of the whole process is known."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def reset_peak(device: torch.device) -> None:
    """Restart the measurement of `peak_memory`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _PEAK_RESETS:
        if _TRIM is not None:
            _TRIM(0)  # exclude memory that was freed before
        _CLEAR_REFS.write_text("5")


def peak_memory(device: torch.device) -> int:
    """Maximum of the bytes in use since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(device: torch.device) -> None:
    """Release unreferenced memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------------------- machine


@dataclass(frozen=True)
class Machine:
    """Hardware and versions of a measurement."""

    device: str
    threads: int  # CPU threads of torch
    torch: str
    package: str
    waiting: str  # of OpenMP's threads for each other
    load: int  # other processes at full speed


def machine(device: torch.device, load: int = 0) -> Machine:
    """Return the description of this machine and `device`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    waiting = os.environ.get("OMP_WAIT_POLICY", "default").lower()
    return Machine(name, torch.get_num_threads(), torch.__version__, __version__, waiting, load)


def sgemm_rate(device: torch.device, size: int = 1024, seconds: float = 0.3) -> float:
    """Operations per second of the product of two float32 matrices: what the machine reaches at best."""
    one, other = (torch.rand(size, size, device=device) for _ in range(2))
    one @ other
    _synchronise(device)
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        one @ other
        _synchronise(device)
        products += 1
    return products * 2 * size**3 / (time.perf_counter() - start)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# ------------------------------------------------------------------------------------------------ arguments, output


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --device and --json."""
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")


def add_load_argument(parser: argparse.ArgumentParser) -> None:
    """Add --load."""
    parser.add_argument(
        "--load", type=int, default=0, metavar="N", help="run N other processes at full speed (default: 0)"
    )


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --preset and --checkpoint, for one network."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--preset", choices=PRESETS, metavar="P", help=f"untrained weights: {', '.join(PRESETS)}")
    which.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, metavar="F", help="weights (default: %(default)s)")


def add_warmup_argument(parser: argparse.ArgumentParser) -> None:
    """Add --warmup."""
    help_text = f"untimed frames before the measurement (default: {MIN_WARMUP}; GPU: {GPU_WARMUP})"
    parser.add_argument("--warmup", type=positive, metavar="N", help=help_text)


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def warmup_frames(requested: int | None, device: torch.device) -> int:
    """Number of untimed frames. Raises OptionError if the timed frames would not all do the same work."""
    if requested is not None and requested < MIN_WARMUP:
        raise OptionError(
            f"warmup is {requested}; the first {MIN_WARMUP} frames do less work: use {MIN_WARMUP} or more"
        )
    return requested or (MIN_WARMUP if device.type == "cpu" else GPU_WARMUP)


def check_targets(*paths: Path | None) -> None:
    """Raise InputError if a file cannot be written. Call before measuring."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise InputError(f"{path}: cannot be written; name a file in a folder that exists")
    check_outputs([path for path in paths if path is not None])


def exit_status(program: str, work: Callable[[], None]) -> int:
    """Run `work` and return the exit status. Expected errors print one line on stderr and return status 2."""
    try:
        work()
    except torch.cuda.OutOfMemoryError:
        print(f"{program}: error: out of GPU memory; select fewer or smaller combinations", file=sys.stderr)
        return FAILED
    except (Raymap3rError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
    """Print aligned columns. Numbers have three significant digits and are aligned to the right."""
    cells = [[value if isinstance(value, str) else _short(value) for value in row] for row in rows]
    columns = enumerate(zip(*rows, strict=True))
    numeric = [index for index, column in columns if all(not isinstance(value, str) for value in column)]
    print(text_table([titles, *cells], numeric))


def _short(value: float) -> str:
    return f"{value:.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:#.3g}"


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one line per row, with a column for each name that occurs in any row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def save(values: dict[str, list[dict[str, Any]]], json_path: Path | None, csv_path: Path | None = None) -> None:
    """Write `values` as JSON and its `rows` as CSV, each if a path is given. NaN values are left out."""
    values = {name: [_without_nan(row) for row in part] for name, part in values.items()}
    if json_path is not None:
        write_json(json_path, values)
    if csv_path is not None:
        write_csv(csv_path, values["rows"])


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not (isinstance(value, float) and math.isnan(value))}
