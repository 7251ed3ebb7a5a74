"""Reasons of errors that libraries raise."""

import cv2
import numpy as np
import pytest
import torch

from raymap3r_ros import cli
from raymap3r_ros.commands import convert
from raymap3r_ros.errors import lacking_memory
from raymap3r_ros.io import open_recording
from raymap3r_ros.network import load_network
from raymap3r_ros.offline import RunOutputs, run_recording
from raymap3r_ros.streaming import Stream

TOO_LARGE = {  # more than the address space of any machine
    "PyTorch": lambda: torch.empty(2**60, dtype=torch.uint8),
    "NumPy": lambda: np.empty(2**60, np.uint8),
    "OpenCV": lambda: cv2.copyMakeBorder(np.zeros((1, 1), np.uint8), *[2**29] * 4, cv2.BORDER_CONSTANT),
}


@pytest.mark.parametrize("library", TOO_LARGE)
def test_a_command_that_lacks_memory_fails_in_one_line(monkeypatch, capsys, library):
    monkeypatch.setattr(convert, "run", lambda _: TOO_LARGE[library]())
    assert cli.main(["convert", "a.pth", "b.safetensors"]) == cli.FAILED
    error = capsys.readouterr().err
    assert error.startswith("raymap3r: error: out of memory; close other programs") and error.count("\n") == 1


def test_a_run_that_lacks_memory_keeps_its_frames(monkeypatch, tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(3):
        cv2.imwrite(
            str(tmp_path / f"images/{index}.png"),
            np.resize(np.uint8([60 * index + 60, 60 * index + 120]), (48, 64, 3)),
        )
    steps, step = [], Stream.step

    def failing(*arguments, **named):
        steps.append(1)
        return step(*arguments, **named) if len(steps) < 3 else TOO_LARGE["PyTorch"]()

    monkeypatch.setattr(Stream, "step", failing)
    outputs = RunOutputs(preview=False, cloud=False)
    recording = open_recording(tmp_path / "images", rate=10.0)
    summary = run_recording(recording, load_network("mini"), tmp_path / "out", outputs=outputs, progress=False)
    assert (summary.frames, summary.complete) == (2, False)
    assert summary.stopped_by.startswith("out of memory; close other programs")


def test_other_errors_are_not_taken_for_it():
    assert lacking_memory(RuntimeError("expected a tensor")) == lacking_memory(ValueError()) == ""
    assert "GPU memory" in lacking_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
