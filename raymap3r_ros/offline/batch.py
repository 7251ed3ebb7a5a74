"""Many recordings: each becomes a result folder, by `run_recording` in processes of Ray."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from raymap3r_ros import __version__
from raymap3r_ros.errors import Raymap3rError, reason_of
from raymap3r_ros.file_hash import sha256_of
from raymap3r_ros.io.bag_files import is_bag
from raymap3r_ros.io.recording import ReadOptions, open_recording
from raymap3r_ros.network import PRESETS, Network, checkpoint_path, choose_device, choose_threads, load_network
from raymap3r_ros.offline.batch_files import (
    BatchItem,
    content_id,
    discard_partial,
    is_remote,
    local_recording,
    read_marker,
    result_folder,
)
from raymap3r_ros.offline.batch_report import DONE, FAILED, BatchRow
from raymap3r_ros.offline.cloud import CloudOptions
from raymap3r_ros.offline.run import run_recording
from raymap3r_ros.offline.run_outputs import RunOutputs
from raymap3r_ros.ray_pool import gpu_share, run_once, run_tasks
from raymap3r_ros.signals import on_stop_signals, print_now
from raymap3r_ros.streaming import Stream, StreamOptions

_WARNINGS = 20  # of a recording that are kept
_CONTEXT = 2**29  # bytes that CUDA takes for each process
_PROCESS = 2**30  # bytes of a worker, beside its weights


@dataclass(frozen=True)
class BatchJob:
    """What a worker does with each recording."""

    out: str  # absolute path or URL
    checkpoint: str
    weights: str  # see `weights_id`
    device: str = "auto"
    options: StreamOptions = field(default_factory=StreamOptions)
    cloud_options: CloudOptions = field(default_factory=CloudOptions)
    outputs: RunOutputs = field(default_factory=RunOutputs)
    reading: dict[str, Any] = field(default_factory=dict)  # arguments of `open_recording`

    def key(self, source: str) -> dict[str, Any]:
        """Return what the results of a recording depend on, as read from JSON. Reads the whole recording."""
        options = {
            "stream": dataclasses.asdict(self.options),
            "cloud": dataclasses.asdict(self.cloud_options),
            "outputs": dataclasses.asdict(self.outputs),
            "reading": ReadOptions(**self.reading).as_json(),
        }
        key = {"input": content_id(source), "options": options, "weights": self.weights, "version": __version__}
        return json.loads(json.dumps(key))


def weights_id(checkpoint: str) -> str:
    """Return the SHA-256 of a weights file, or the name of a preset, which has none. Raises CheckpointError."""
    return checkpoint if checkpoint in PRESETS else sha256_of(checkpoint_path(checkpoint))


def run_batch(
    items: Sequence[BatchItem], job: BatchJob, available: dict[str, float], workers: int | None = None
) -> tuple[list[BatchRow], str]:
    """Process the recordings that have no results of this job yet, within a `ray_session`, which yields `available`.

    Returns a row for each one that was reached, in the order of `items`, and the name of the signal that ended the
    batch early, or "". After a first signal no recording is begun; those that run are awaited. A second one ends the
    workers at once. `workers`: number of processes, by default as many as fit.
    """
    rows: dict[BatchItem, BatchRow] = {}
    signals: list[str] = []

    def stop(name: str) -> None:
        signals.append(name)
        print_now("\nfinishing the recordings that are being processed; repeat to stop at once\n")

    count, resources = _plan_workers(job, available, workers)
    begin = time.perf_counter()
    with on_stop_signals(stop), tqdm(total=len(items), unit=" recordings", disable=None, dynamic_ncols=True) as bar:
        setup = functools.partial(_make_worker, job)
        for item, result in run_tasks(setup, items, count, resources, stop=lambda: bool(signals)):
            if isinstance(result, Exception):
                discard_partial(job.out, item.folder)
                result = BatchRow(item.source, item.folder, FAILED, reason_of(result))
            rows[item] = result
            _show(bar, list(rows.values()), time.perf_counter() - begin)
    return [rows[item] for item in items if item in rows], signals[0] if signals else ""


def _show(bar: tqdm, rows: Sequence[BatchRow], elapsed: float) -> None:
    failed = sum(row.state != DONE for row in rows)
    frames = sum(row.frames for row in rows if not row.earlier)
    bar.set_postfix_str(f"{len(rows) - failed} done, {failed} failed, {frames / elapsed:.1f} frames/s", refresh=False)
    bar.update()


def _plan_workers(job: BatchJob, available: dict[str, float], workers: int | None) -> tuple[int, dict[str, float]]:
    """Return the number of workers, and what each reserves: a share of a GPU by measured memory, or of the cores."""
    cores, gpus = max(1, int(available.get("CPU", 1))), int(available.get("GPU", 0))
    if gpus and job.device != "cpu":
        needed, total = run_once(functools.partial(_measure, job), {"num_cpus": 1, "num_gpus": 1})
        count, share = gpu_share(workers, gpus, needed, total)
        return count, {"num_gpus": share, "num_cpus": min(1.0, int(1e4 * cores / count) / 1e4)}
    if workers is None:
        size = 0 if job.checkpoint in PRESETS else checkpoint_path(job.checkpoint).stat().st_size
        workers = max(1, min(cores, int(available.get("memory", 0) / (_PROCESS + 2 * size))))
    share = cores // workers if workers <= cores else int(1e4 * cores / workers) / 1e4
    return workers, {"num_cpus": share}


def _measure(job: BatchJob) -> tuple[int, int]:
    """Return the bytes of the GPU that a worker takes for one image, and those of the GPU."""
    network = _load(job)
    side = job.options.image_size or network.config.image_size
    Stream(network, job.options).step(np.full((side * 3 // 4, side, 3), 128, np.uint8))
    device = next(network.parameters()).device
    taken = torch.cuda.max_memory_reserved(device) + _CONTEXT
    return taken, torch.cuda.get_device_properties(device).total_memory


def _load(job: BatchJob) -> Network:
    network = load_network(job.checkpoint, choose_device(job.device), job.options.precision)
    choose_threads(network)
    return network


# ---------------------------------------------------------------------------------------------------- in the workers


def _make_worker(job: BatchJob) -> Callable[[BatchItem], BatchRow]:
    """Return the function that processes a recording; it loads the weights when they are first needed."""
    return functools.partial(_process, job, functools.cache(functools.partial(_load, job)))


def _process(job: BatchJob, network: Callable[[], Network], item: BatchItem) -> BatchRow:
    """Process a recording, unless its results exist. Raises the error of a recording without results."""
    key, marker = job.key(item.source), read_marker(job.out, item.folder)
    if all(marker.get(name) == value for name, value in key.items()):
        row = BatchRow(**marker["row"])
        return dataclasses.replace(row, recording=item.source, warnings=tuple(row.warnings), earlier=True)
    with (
        _kept_warnings() as warnings,
        local_recording(item.source) as path,
        result_folder(job.out, item.folder) as (folder, marker),
    ):
        reading = job.reading if is_bag(path) else {**job.reading, "topic": None}
        recording = open_recording(path, **reading)
        if is_remote(item.source):
            recording.label = item.source  # not the name of the copy
        summary = run_recording(
            recording, network(), Path(folder), job.options, outputs=job.outputs, cloud_options=job.cloud_options,
            progress=False,
        )  # fmt: skip
        if not summary.complete and summary.stopped_by != recording.ended:
            raise Raymap3rError(f"stopped by {summary.stopped_by}")  # a full disk, no memory: not for ever
        row = BatchRow.of(summary, item.source, item.folder, warnings)
        marker |= key | {"row": dataclasses.asdict(row)}
    return row


@contextmanager
def _kept_warnings() -> Iterator[list[str]]:
    """Yield a list that receives the first warnings of this package, each once."""
    kept: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if len(kept) < _WARNINGS and text not in kept:
                kept.append(text)

    logger, keeper = logging.getLogger("raymap3r_ros"), Keeper(logging.WARNING)
    logger.addHandler(keeper)
    try:
        yield kept
    finally:
        logger.removeHandler(keeper)
