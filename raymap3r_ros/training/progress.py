"""The progress of a training run: a line and a log entry every few steps, and the curves of the validation."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from raymap3r_ros.output_files import whole_file
from raymap3r_ros.training.throughput import busy_seconds, sgemm_rate

LOG_FILE = "log.jsonl"
CURVES_FILE = "curves.csv"


class Progress:
    """Reports the progress of the first of several processes and writes it to the folder of the run."""

    def __init__(self, folder: Path, device: torch.device, frames: int, processes: int, report: Callable[[str], None]):
        """`frames` are those of one process in each step."""
        self._folder, self._device, self._report = folder, device, report
        self._frames, self._processes = frames, processes
        self._sgemm = sgemm_rate(device)
        report(f"products of float32 matrices: {self._sgemm / 1e9:.0f} GFLOP/s in one process")
        self._restart()

    def _restart(self) -> None:
        self._steps, self._operations = 0, 0
        self._sums: dict[str, Tensor | float] = {}
        self._wall, self._busy = time.monotonic(), busy_seconds(self._device)

    def add(self, parts: dict[str, Tensor], operations: int) -> None:
        """Add a step with these losses and this number of floating-point operations in each process."""
        self._steps += 1
        self._operations += operations
        for key, value in parts.items():
            self._sums[key] = self._sums.get(key, 0.0) + value

    def log(self, step: int) -> None:
        """Report the means and the speed since the last report.

        `frames_per_s` counts the frames of all processes. `frames_per_cpu_s` (on a GPU: per second of this process)
        and `sgemm_share`, the share of the rate of matrix products, do not depend on what else the machine computes.
        """
        if not self._steps:
            return
        means = {key: float(value) / self._steps for key, value in self._sums.items()}
        busy, frames = busy_seconds(self._device) - self._busy, self._frames * self._steps
        entry = {
            "step": step,
            "frames_per_s": self._processes * frames / (time.monotonic() - self._wall),
            "frames_per_cpu_s": frames / busy,
            "sgemm_share": self._operations / busy / self._sgemm,
            **means,
        }
        with (self._folder / LOG_FILE).open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self._report("  ".join(f"{key} {value:.4g}" for key, value in entry.items()))
        self._restart()

    def validated(self, step: int, seconds: float, errors: dict[str, float]) -> None:
        """Report the errors on images that are not trained on (see `measure`), and add a row to the curves."""
        row = {"step": step, "frames": step * self._frames * self._processes, "hours": f"{seconds / 3600:.3f}"}
        row.update((key, f"{value:.4f}") for key, value in errors.items())
        path = self._folder / CURVES_FILE
        rows: list[dict] = [row]
        if path.exists():
            with path.open(newline="") as file:
                rows = [*csv.DictReader(file), row]
        # Another version of the code may have measured other errors.
        names = dict.fromkeys(name for each in rows for name in each)
        with whole_file(path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        self._report("validation: " + "  ".join(f"{key} {value}" for key, value in row.items()))
        self._restart()
