"""~/save on a full or read-only disk or after a kill: a folder is complete, or does not exist under its name."""

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from std_srvs.srv import Trigger

from raymap3r_ros.errors import reason_of
from raymap3r_ros.io.ply import write_ply
from raymap3r_ros.node.saving import Saved, save

from .conftest import assert_alive

FILES = {"trajectory.txt", "trajectory_raw.txt", "static_map.ply", "settings.yaml"}
# Saves repeatedly; prints a line before the first save.
SAVER = """
    import sys
    import numpy as np
    from raymap3r_ros.node.saving import Saved, save
    poses = np.random.default_rng(0).normal(size=(20_000, 7))
    one = np.arange(len(poses)) * 10**8, poses
    saved = Saved({"trajectory": one, "trajectory_raw": one}, np.zeros((200_000, 3), np.float32),
                  np.zeros((200_000, 3), np.uint8), "a: 1\\n")
    print("ready", flush=True)
    while True:
        save(sys.argv[1], saved)
"""


def saved(poses=5000):
    one = np.arange(poses) * 10**8, np.random.default_rng(0).normal(size=(poses, 7))
    points = np.zeros((10_000, 3), np.float32)
    return Saved({"trajectory": one, "trajectory_raw": one}, points, np.zeros(points.shape, np.uint8), "a: 1\n")


def test_disk_becomes_full(tmp_path):
    """A limit on the file size makes the system refuse in the middle of a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(str(tmp_path), saved())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
    assert save(str(tmp_path), saved()).is_dir()


@pytest.mark.parametrize("limit", [50, 1000, 5000])
def test_a_cloud_that_does_not_fit_is_named(tmp_path, limit):
    """In the header, in the first block of the points, and later."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_ply(tmp_path / "cloud.ply", np.zeros((1000, 3), np.float32), np.zeros((1000, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "cloud.ply"))
    assert "ulimit -f" in reason_of(caught.value) and list(tmp_path.iterdir()) == []


def test_killed_during_save(tmp_path, rng, sized):
    for _ in range(sized(1, 12)):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVER), str(tmp_path)], stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"ready\n"
        delay, start = rng.uniform(0.0, 0.3), time.monotonic()
        while time.monotonic() < start + delay or not any(tmp_path.iterdir()):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        process.stdout.close()
    names = [folder for folder in tmp_path.iterdir() if not folder.name.startswith(".partial-")]
    for folder in names:
        assert {file.name for file in folder.iterdir()} == FILES
        assert len((folder / "trajectory.txt").read_text().splitlines()) == 20_001
        assert (folder / "static_map.ply").stat().st_size > 200_000 * 15
    assert len(list(tmp_path.iterdir())) > 0


def test_failed_save_is_reported_and_the_node_continues(make_bench, tmp_path, monkeypatch):
    bench = make_bench(image_size=64, output_dir=str(tmp_path / "out"), every_frame=True)
    bench.start("pose")
    bench.send(0)
    bench.wait_for("pose")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = bench.call(Trigger, "save", Trigger.Request())
    assert not result.success
    assert (
        "not saved: [Errno 28] No space left on device; check that the node may write to output_dir" in result.message
    )
    assert list((tmp_path / "out").iterdir()) == []
    assert bench.call(Trigger, "save", Trigger.Request()).success
    bench.send(1)
    bench.wait_for("pose", 2)
    assert_alive(bench)


@pytest.mark.parametrize("output_dir", ["{file}/below", "/proc/nowhere/x", "~no_such_user/x"])
def test_folder_that_cannot_be_written(make_bench, tmp_path, output_dir):
    (tmp_path / "file").write_text("a file, not a folder")
    bench = make_bench(image_size=64, output_dir=output_dir.format(file=tmp_path / "file"))
    bench.start("pose")
    result = bench.call(Trigger, "save", Trigger.Request())
    assert not result.success and result.message.startswith("not saved: ")
    bench.send(0)
    bench.wait_for("pose")
    assert_alive(bench)


def test_names_in_messages_are_not_used_as_paths(make_bench, tmp_path):
    out = tmp_path / "out"
    bench = make_bench(
        image_size=64, every_frame=True, output_dir=str(out), world_frame="../../world", static_map__always=True
    )
    bench.start("pose")
    for index in range(8):
        bench.send(index, frame_id="../../../camera")
    bench.wait_for("pose", 8)
    assert bench.call(Trigger, "save", Trigger.Request()).success
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (folder,) = out.iterdir()
    assert {file.name for file in folder.iterdir()} <= FILES | {"world.safetensors"} and folder.name[0].isdigit()
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_earlier_saves_are_kept(tmp_path):
    folders = [save(str(tmp_path), saved(3)) for _ in range(3)]
    assert len(set(folders)) == 3 and all((folder / "trajectory.txt").is_file() for folder in folders)
