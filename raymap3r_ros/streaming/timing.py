"""Time per stage, without making the device wait."""

from __future__ import annotations

import time

import torch


class StageTimer:
    """Marks the end of each stage; on CUDA the times are read only when somebody asks for them."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = [("", self._now())]

    def mark(self, stage: str) -> None:
        """The stage of this name ends here."""
        self._marks.append((stage, self._now()))

    def milliseconds(self) -> dict[str, float]:
        """Time of each stage; waits for the device where it has not finished. Stages of one name are added up."""
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
