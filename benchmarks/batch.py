#!/usr/bin/env python3
"""Measure `raymap3r batch` with one worker and with several, as ratios.

    python benchmarks/batch.py [--workers N] [--recordings N] [--frames N] [--checkpoint F]

The recordings are folders of images of a camera that moves sideways; all results are written. Throughput includes the
start of the workers. The computing time of a recording does not depend on other programs on the machine: if it stays
the same with several workers, throughput grows with the number of idle cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import cv2
import numpy as np

from raymap3r_ros.network import DEFAULT_CHECKPOINT
from raymap3r_ros.offline import batch
from raymap3r_ros.offline.batch_files import find_items
from raymap3r_ros.ray_pool import ray_session
from raymap3r_ros.tables import text_table

_make_worker = batch._make_worker


def _make_timed_worker(job: batch.BatchJob) -> Callable[[Any], Any]:
    """A worker that returns the seconds of computing and of waiting in place of the reason."""
    work = _make_worker(job)

    def run(item: Any) -> Any:
        computing, begin = time.process_time(), time.perf_counter()
        row = work(item)
        times = (time.process_time() - computing, time.perf_counter() - begin)
        return dataclasses.replace(row, reason=json.dumps(times))

    return run


def _write_recordings(folder: Path, count: int, frames: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (240, 320 + 20 * count + 3 * frames, 3), dtype=np.uint8)
    noise = cv2.GaussianBlur(noise, (0, 0), 5)
    for number in range(count):
        (folder / f"{number:03d}").mkdir(parents=True)
        for index in range(frames):
            left = 20 * number + 3 * index
            cv2.imwrite(str(folder / f"{number:03d}" / f"{index:06d}.png"), noise[:, left : left + 320])


def _measure(folder: Path, out: Path, checkpoint: str, available: dict[str, float], workers: int) -> dict[str, float]:
    job = batch.BatchJob(str(out), checkpoint, batch.weights_id(checkpoint), "cpu")
    begin = time.perf_counter()
    rows, _ = batch.run_batch(find_items(str(folder)), job, available, workers)
    seconds = time.perf_counter() - begin
    computing, task = zip(*(json.loads(row.reason) for row in rows), strict=True)
    summaries = [json.loads((out / row.folder / "summary.json").read_text()) for row in rows]
    network = sum(one["frames"] / one["engine_rate"] for one in summaries)
    run = sum(row.seconds for row in rows)
    return {
        "throughput": sum(row.frames for row in rows) / seconds,
        "computing": float(np.median(computing)),  # without the loading of weights in the first recording
        "network": network / run,
        "run": run / sum(task),
    }


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    batch._make_worker = _make_timed_worker
    lines = [["workers", "throughput", "computing time", "network in run", "run in task"]]
    with tempfile.TemporaryDirectory() as folder, ray_session() as available:
        _write_recordings(Path(folder, "in"), args.recordings, args.frames)
        measured = {
            workers: _measure(Path(folder, "in"), Path(folder, str(workers)), args.checkpoint, available, workers)
            for workers in dict.fromkeys((1, args.workers))
        }
    for workers, one in measured.items():
        ratios = (f"{one[name] / measured[1][name]:.2f}" for name in ("throughput", "computing"))
        lines.append([str(workers), *ratios, f"{one['network']:.2f}", f"{one['run']:.2f}"])
    print(text_table(lines, right=range(5)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name, default in (("workers", 2), ("recordings", 12), ("frames", 40)):
        parser.add_argument(
            f"--{name}", type=common.positive, default=default, metavar="N", help=f"default: {default}"
        )
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, metavar="F")
    args = parser.parse_args(arguments)
    return common.exit_status("batch.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
