"""What the benchmarks share: networks and images to run, timing side by side, memory, tables and files."""

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
import torch

from raymap3r_ros import __version__
from raymap3r_ros.errors import InputError, OptionError, Raymap3rError
from raymap3r_ros.io.files import whole_file
from raymap3r_ros.io.json_file import write_json
from raymap3r_ros.network import DEFAULT_CHECKPOINT, PRESETS, Network, NetworkConfig
from raymap3r_ros.streaming import METHOD, StepResult, Stream, StreamOptions
from raymap3r_ros.streaming.preprocessing import frame_image
from raymap3r_ros.tables import text_table

FAILED, INTERRUPTED = 2, 130  # exit statuses
ROUNDS = 10  # turns that each contestant gets
IMAGES = 16  # different ones, looked at in turn
# A stream asks the rays from a certain frame on, and gates one frame later; only then are all frames alike. On a GPU
# it records its graph some frames later still.
MIN_WARMUP = METHOD.gate_from_frame + 1
GPU_WARMUP = METHOD.router_last_frame + 10
# What the node publishes of a result. A frame is finished when it is in host memory.
PUBLISHED = ("pose", "pose_raw", "depth", "confidence", "intrinsics")
PUBLISHED_MOTION = ("dynamic_map", "dynamic_mask")

_CHOICES = {item.name: item.metadata["choices"] for item in dataclasses.fields(StreamOptions) if item.metadata}
PRECISIONS: tuple[str, ...] = _CHOICES["precision"]
EXECUTIONS: tuple[str, ...] = _CHOICES["execution"]


class Timed(Protocol):
    """What a frame gives: a result that knows its milliseconds per stage."""

    @property
    def timings(self) -> dict[str, float]: ...


Step = Callable[[int], Timed]  # works frame `index` off until its results are in host memory

_CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux: writing 5 forgets the peak of resident memory
_PEAK_RESETS = os.access(_CLEAR_REFS, os.W_OK)
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc: gives freed memory back


# --------------------------------------------------------------------------------------------------------- networks

Variant = tuple[str, bool]  # precision of the weights, and whether a stream compiles parts of it


def variant(precision: str, execution: str) -> Variant:
    """Streams of the same variant can share one network."""
    return precision, execution == "compile"


def variants_of(network: Network, device: torch.device, wanted: Iterable[Variant]) -> dict[Variant, Network]:
    """Networks on `device` with the weights of one in float32 on the CPU; on a CPU that one is used as it is."""
    made = {}
    for precision, compiled in dict.fromkeys(wanted):
        plain = precision == "float32" and not compiled
        made[precision, compiled] = network if plain and device.type == "cpu" else copy.deepcopy(network)
        if precision != "float32":
            made[precision, compiled].lower_precision(precision)
        made[precision, compiled].to(device)
    return made


def weight_bytes(network: Network) -> int:
    """What the weights take."""
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


# ----------------------------------------------------------------------------------------------------------- images


def image_size(config: NetworkConfig, long_edge: int = 0) -> tuple[int, int]:
    """H, W of a 4:3 image that a network needs not resize; 0: the long edge that it was trained on."""
    long_edge = long_edge or config.image_size
    return frame_image(4 * long_edge, 3 * long_edge, long_edge, config.patch_size).size


def moving_images(size: tuple[int, int], streams: int = 1) -> np.ndarray:
    """(IMAGES, streams, H, W, 3) uint8: noise that slides, another one for each stream."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (streams, *size, 3), dtype=np.uint8)
    return np.stack([np.roll(texture, index, axis=2) for index in range(IMAGES)])


# ---------------------------------------------------------------------------------------------------------- streams


def engine_step(network: Network, options: StreamOptions, size: tuple[int, int], streams: int, motion: bool) -> Step:
    """Works frames of so many streams off with one `Stream`, up to what the node publishes in host memory."""
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
class Contestant:
    """Something that works frames off, and what was measured of it."""

    build: Callable[[], Step]
    latencies: list[float] = field(default_factory=list)  # milliseconds
    stages: list[dict[str, float]] = field(default_factory=list)  # milliseconds, frame by frame
    peak: int = 0  # bytes, see `memory_kind`

    def stage_medians(self) -> dict[str, float]:
        """Median milliseconds of each stage; `rest` is what is in none of them."""
        names = dict.fromkeys(name for frame in self.stages for name in frame)
        medians = {name: float(np.median([frame.get(name, 0.0) for frame in self.stages])) for name in names}
        rest = [total - sum(frame.values()) for total, frame in zip(self.latencies, self.stages, strict=True)]
        return {**medians, "rest": float(np.median(rest))}


@dataclass(frozen=True)
class Latency:
    """Milliseconds that a frame takes."""

    median_ms: float
    p95_ms: float
    p99_ms: float
    frames_per_second: float  # of all streams together, over the whole time

    @classmethod
    def of(cls, latencies: Sequence[float], streams: int = 1) -> Latency:
        """From the milliseconds of each frame."""
        median, p95, p99 = (float(value) for value in np.percentile(latencies, (50, 95, 99)))
        return cls(median, p95, p99, 1e3 * streams * len(latencies) / float(np.sum(latencies)))


def take_turns(contestants: Sequence[Contestant], frames: int, warmup: int, device: torch.device) -> None:
    """Time so many frames of each contestant after so many untimed ones.

    They take turns of several frames, A B A B ..., so that a machine that drifts favours none; the first frame of a
    turn, with the others' data in the caches, is not timed.
    """
    steps: list[Step] = []
    counts: list[int] = []  # frames that each has seen
    kept: list[int] = []  # bytes that each holds between its frames
    for contestant in contestants:
        before = held_memory(device)
        reset_peak(device)
        step = contestant.build()
        for index in range(warmup):
            step(index)
        _synchronise(device)
        contestant.peak = peak_memory(device) - sum(kept)
        gc.collect()
        kept.append(held_memory(device) - before)
        steps.append(step)
        counts.append(warmup)

    for turn in np.array_split(np.arange(frames), min(ROUNDS, frames)):
        for place, (contestant, step) in enumerate(zip(contestants, steps, strict=True)):
            reset_peak(device)
            step(counts[place])
            for index in range(counts[place] + 1, counts[place] + 1 + len(turn)):
                latency, result = timed(step, index, device)
                contestant.latencies.append(latency)
                contestant.stages.append(result.timings)
            counts[place] += 1 + len(turn)
            others = sum(kept) - kept[place]
            contestant.peak = max(contestant.peak, peak_memory(device) - others)


def timed(step: Step, index: int, device: torch.device) -> tuple[float, Timed]:
    """Milliseconds of one frame, and its result."""
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
    """What `Contestant.peak` is of."""
    if device.type == "cuda":
        return "GPU memory allocated, without that of other rows"
    return "resident memory of the process" if _PEAK_RESETS else "resident memory of the process since it began"


def held_memory(device: torch.device) -> int:
    """Bytes of the device in use; 0 on a CPU, where only the process as a whole is known."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def reset_peak(device: torch.device) -> None:
    """`peak_memory` counts from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _PEAK_RESETS:
        if _TRIM is not None:
            _TRIM(0)  # what was freed before is not to count
        _CLEAR_REFS.write_text("5")


def peak_memory(device: torch.device) -> int:
    """Most bytes in use since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(device: torch.device) -> None:
    """Give back what nobody refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------------------- machine


@dataclass(frozen=True)
class Machine:
    """Where a figure comes from."""

    device: str
    threads: int  # of torch, on the CPU
    torch: str
    package: str


def machine(device: torch.device) -> Machine:
    """This machine, running on `device`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return Machine(name, torch.get_num_threads(), torch.__version__, __version__)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# ------------------------------------------------------------------------------------------------ arguments, output


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Device and files."""
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """One network."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--preset", choices=PRESETS, metavar="P", help=f"untrained weights: {', '.join(PRESETS)}")
    which.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, metavar="F", help="weights (default: %(default)s)")


def add_warmup_argument(parser: argparse.ArgumentParser) -> None:
    """Frames that are not timed."""
    help_text = f"untimed frames before (default: {MIN_WARMUP}; GPU: {GPU_WARMUP})"
    parser.add_argument("--warmup", type=positive, metavar="N", help=help_text)


def positive(text: str) -> int:
    """An argument that counts something."""
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def warmup_frames(asked: int | None, device: torch.device) -> int:
    """How many frames are not timed. Raises OptionError where those after them would not be alike."""
    if asked is not None and asked < MIN_WARMUP:
        raise OptionError(f"warmup is {asked}; the first {MIN_WARMUP} frames do less work, so allowed: that and more")
    return asked or (MIN_WARMUP if device.type == "cpu" else GPU_WARMUP)


def check_targets(*paths: Path | None) -> None:
    """Raise InputError where a file cannot be written, before anything is measured."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise InputError(f"{path}: cannot be written; name a file in a folder that exists")


def exit_status(program: str, work: Callable[[], None]) -> int:
    """Run `work`; errors with a message of their own are one line on stderr and status 2."""
    try:
        work()
    except torch.cuda.OutOfMemoryError:
        print(f"{program}: error: out of GPU memory; ask for fewer or smaller combinations", file=sys.stderr)
        return FAILED
    except (Raymap3rError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
    """Print aligned columns; numbers to the right, with three significant digits."""
    cells = [[value if isinstance(value, str) else _short(value) for value in row] for row in rows]
    columns = enumerate(zip(*rows, strict=True))
    numeric = [index for index, column in columns if all(not isinstance(value, str) for value in column)]
    print(text_table([titles, *cells], numeric))


def _short(value: float) -> str:
    return f"{value:.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:#.3g}"


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line per row, a column for every name that occurs in any."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def save(values: dict[str, list[dict[str, Any]]], json_path: Path | None, csv_path: Path | None = None) -> None:
    """Write `values` as JSON and its `rows` as CSV, where wanted; figures that do not exist (NaN) are left out."""
    values = {name: [_without_nan(row) for row in part] for name, part in values.items()}
    if json_path is not None:
        write_json(json_path, values)
    if csv_path is not None:
        write_csv(csv_path, values["rows"])


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not (isinstance(value, float) and math.isnan(value))}
