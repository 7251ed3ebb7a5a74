"""Runs that end early because a file cannot be written, or because the input disappears or changes."""

import errno
import json
import resource
import shutil

import cv2
import numpy as np
import pytest

from raymap3r_ros.io import open_recording
from raymap3r_ros.offline import CloudOptions, RunOutputs, result_folder, run, run_recording
from raymap3r_ros.streaming import Stream, StreamOptions

OPTIONS = StreamOptions(image_size=64)
CLOUD = CloudOptions(confidence_threshold=1.0)


def process(images, network, out, **values):
    """Run, and return the summary as returned; it equals the one in the folder."""
    summary = run_recording(
        open_recording(images), network, out, OPTIONS, cloud_options=CLOUD, progress=False, **values
    )
    written = json.loads((out / "summary.json").read_text())
    for name in ("complete", "stopped_by", "frames", "files", "frames_missing"):
        assert written[name] == getattr(summary, name)
    assert all(any(out.glob(name)) for name in summary.files)
    assert not summary.complete
    return summary


def full_disk(path):
    raise OSError(errno.ENOSPC, "No space left on device")


def lines(path):
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def test_a_full_disk_ends_the_run_with_the_file_and_the_remedy(images, network, tmp_path, monkeypatch):
    out, save = tmp_path / "out", np.savez

    def savez(path, **values):
        if (out / "depth/000002.npz").exists():
            path.write_bytes(b"a part")
            full_disk(path)
        save(path, **values)

    monkeypatch.setattr(result_folder.np, "savez", savez)
    summary = process(images, network, out)
    remedy = "No space left on device; free some space there, or name a folder on another disk"
    assert summary.stopped_by == f"{out / 'depth/000003.npz'}: {remedy}"
    assert (summary.frames, summary.frames_missing) == (3, 5)
    assert len(lines(out / "trajectory.txt")) == 3
    assert len(list((out / "depth").iterdir())) == 6 and len(list((out / "masks").iterdir())) == 3
    assert cv2.VideoCapture(str(out / "preview.mp4")).isOpened()


def test_the_preview_makes_room_for_the_trajectory(images, network, tmp_path, monkeypatch):
    out, write = tmp_path / "out", run.write_trajectory

    def write_trajectory(path, *values):
        if (out / "preview.mp4").exists():
            full_disk(path)
        write(path, *values)

    monkeypatch.setattr(run, "write_trajectory", write_trajectory)
    summary = process(images, network, out)
    assert len(lines(out / "trajectory.txt")) == summary.frames == 8
    assert not (out / "preview.mp4").exists() and "preview.mp4" not in summary.files
    assert summary.stopped_by.startswith(f"{out / 'preview.mp4'}: deleted, to have space for smaller files")


def test_files_above_the_limit_of_their_size(images, network, tmp_path, caplog):
    out, before = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))
    try:
        summary = process(images, network, out, outputs=RunOutputs(depth=False))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(lines(out / "trajectory.txt")) == summary.frames == 8
    assert sorted(item.name for item in out.iterdir() if item.name.startswith(("preview", ".preview"))) == []
    assert f"{out / 'preview.png'}: File too large; raise the limit of file sizes (ulimit -f)" in caplog.text
    assert f"{out / 'preview.mp4'}: the video could not be written" in caplog.text


def test_an_output_folder_that_is_deleted_during_the_run(images, network, tmp_path, monkeypatch):
    out, step = tmp_path / "out", Stream.step

    def delete(self, *args, **kwargs):
        if (out / "depth/000002.png").exists():
            shutil.rmtree(out)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Stream, "step", delete)
    summary = process(images, network, out)
    assert summary.stopped_by == f"{out / '.raymap3r_files'}: No such file or directory"
    assert len(lines(out / "trajectory.txt")) == summary.frames == 3


def test_an_input_folder_that_is_deleted_during_the_run(images, network, tmp_path, monkeypatch):
    copy, step = tmp_path / "copy", Stream.step
    shutil.copytree(images, copy)

    def delete(self, *args, **kwargs):
        shutil.rmtree(copy, ignore_errors=True)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Stream, "step", delete)
    summary = process(copy, network, tmp_path / "out")
    assert (summary.frames, summary.frames_skipped, summary.frames_missing) == (1, 0, 7)
    assert summary.stopped_by == "7 images were removed, moved or renamed during the run"


def test_a_change_of_the_image_size_ends_the_run(network, tmp_path):
    writer_sizes = [(96, 64)] * 4 + [(64, 48)] * 4
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(8):
        cv2.imwrite(str(folder / f"{index}.png"), np.resize(np.uint8([20 * index + 20, 20 * index + 80]), (64, 96, 3)))
    recording = open_recording(folder)
    for index, (width, height) in enumerate(writer_sizes):  # after the check of the headers
        cv2.imwrite(
            str(folder / f"{index}.png"),
            np.resize(np.uint8([20 * index + 20, 20 * index + 80]), (height, width, 3)),
        )
    summary = run_recording(recording, network, tmp_path / "out", OPTIONS, progress=False)
    assert (summary.complete, summary.frames, summary.frames_missing) == (False, 4, 4)
    assert "is 64x48, those before it are 96x64; give one recording per image size" in summary.stopped_by


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_nothing_is_kept_of_a_run_whose_first_file_cannot_be_written(images, network, tmp_path, monkeypatch, error):
    def fail(path, **_):
        raise OSError(error, "failed")

    monkeypatch.setattr(result_folder.np, "savez", fail)
    with pytest.raises(OSError) as caught:
        run_recording(open_recording(images), network, tmp_path / "out", OPTIONS, progress=False)
    assert caught.value.filename == str(tmp_path / "out/depth/000000.npz")
    assert not (tmp_path / "out").exists()
