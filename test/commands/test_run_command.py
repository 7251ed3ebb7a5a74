"""`raymap3r run` on the command line: exit status, summary and messages for damaged recordings and odd arguments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from raymap3r_ros import cli

SHORT = ["--checkpoint", "mini", "--size", "64", "--device", "cpu", "--no-depth", "--no-masks", "--no-cloud"]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rows, columns = np.mgrid[:48, :64]
    for index in range(3):
        image = np.stack([rows * 5 + index, columns * 3, rows + columns], -1).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), image)
    return folder


def write_cut_video(path: Path, images: Path) -> Path:
    """An AVI file of 12 images, of which about a quarter is cut off."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for index in range(12):
        writer.write(cv2.imread(str(images / f"{index % 3}.png")))
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"idx1") * 3 // 4])
    return path


def test_cut_recording_is_incomplete_in_summary_report_and_status(images, tmp_path, capsys):
    video = write_cut_video(tmp_path / "cut.avi", images)
    out = tmp_path / "out"
    assert cli.main(["run", str(video), "--out", str(out), *SHORT, "--no-preview"]) == 1
    summary = json.loads((out / "summary.json").read_text())
    frames = summary["frames"]
    assert 0 < frames < 12 and (summary["complete"], summary["frames_missing"]) == (False, 12 - frames)
    assert f"ended after {frames} frames; 12 according to its header: the file is cut off" in summary["stopped_by"]
    assert f"or was copied incompletely), {12 - frames} missing: " in capsys.readouterr().out
    # The part before the cut, on request, is complete.
    arguments = ["--max-frames", str(frames), "--overwrite", "--no-preview"]
    assert cli.main(["run", str(video), "--out", str(out), *SHORT, *arguments]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["complete"], summary["frames_missing"], summary["stopped_by"]) == (True, 0, "")


@pytest.mark.parametrize("number", ["100000000000000000000", "9223372036854775808"])
def test_huge_numbers_of_frames(images, tmp_path, number):
    arguments = ["--max-frames", number, "--no-preview"]
    assert cli.main(["run", str(images), "--out", str(tmp_path / "out"), *SHORT, *arguments]) == 0
    arguments = ["--stride", number, "--no-preview", "--overwrite"]
    assert cli.main(["run", str(images), "--out", str(tmp_path / "out"), *SHORT, *arguments]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["frames"] == 1


@pytest.mark.parametrize("rate", ["inf", "nan", "1e-300", "1e300", "-1"])
def test_rates_that_no_camera_has(images, tmp_path, capsys, rate):
    assert cli.main(["run", str(images), "--out", str(tmp_path / "out"), *SHORT, "--rate", rate]) == 2
    assert "allowed: 1e-06 to 1e+06 frames per second" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_that_are_not_utf8(images, tmp_path, locale):
    """Everything that has the name of the input or of the folder in it: video, preview with its caption, report."""
    source = write_cut_video(tmp_path / "a.avi", images).rename(tmp_path / os.fsdecode(b"in\xff%d.avi"))
    out = tmp_path / os.fsdecode(b"out\xfe")
    done = subprocess.run(
        [sys.executable, "-m", "raymap3r_ros.cli", "run", source, "--out", out, *SHORT, "--max-frames", "2"],
        capture_output=True,
        env={
            **os.environ, "LC_ALL": locale, "PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": os.pathsep.join(sys.path)
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert cv2.imdecode(np.fromfile(out / "preview.png", np.uint8), cv2.IMREAD_COLOR) is not None
    assert (out / "preview.mp4").stat().st_size > 1000
    assert json.loads((out / "summary.json").read_text())["frames"] == 2


def test_a_pipe_is_not_a_recording(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert cli.main(["run", str(tmp_path / "pipe.mp4"), "--out", str(tmp_path / "out"), *SHORT]) == 2
    assert "is neither a file nor a folder" in capsys.readouterr().err
