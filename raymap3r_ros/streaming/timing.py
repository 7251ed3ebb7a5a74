"""Time per stage, measured without device synchronisation."""

from __future__ import annotations

import time

import torch


class StageTimer:
    """Marks the end of each stage; on CUDA the times are read only when `milliseconds` is called."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = [("", self._now())]

    def mark(self, stage: str) -> None:
        """Record the end of the stage with this name."""
        self._marks.append((stage, self._now()))

    def milliseconds(self) -> dict[str, float]:
        """Time of each stage, summed over stages of one name. Waits until the device has finished them."""
        if self._on_gpu:
            self._marks[-1][1].synchronize()
        times: dict[str, float] = {}
        for (_, start), (stage, end) in zip(self._marks, self._marks[1:], strict=False):
            spent = start.elapsed_time(end) if self._on_gpu else (end - start) * 1e3
            times[stage] = times.get(stage, 0.0) + spent
        return times

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
