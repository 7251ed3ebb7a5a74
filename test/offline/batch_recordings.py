"""Recordings, workers and Ray for the tests of batches."""

import functools
import importlib
import os
import select
import signal
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "io"))
from recordings import image_message, write_bag

from raymap3r_ros.offline import CloudOptions, RunOutputs, batch
from raymap3r_ros.offline.batch import BatchJob, weights_id
from raymap3r_ros.streaming import Stream, StreamOptions
from raymap3r_ros.synthetic import suite_sequence

SIZE = 32, 48  # height, width
COUNT = 12
FRAMES = 5
WAIT = 300  # seconds, after which a test fails; processes of Ray start slowly on a busy machine
OPTIONS = StreamOptions(image_size=32, reset_interval=3)


def write_recordings(folder: Path) -> Path:
    """Rendered bags, one of which is cut off, and a file that is none."""
    for index in range(COUNT):
        frames = suite_sequence("static", index, world="one_room", size=SIZE).frames()
        messages = [
            ("/cam/image_raw", 100 + number / 10, image_message(50 + number / 10, frame.image, "rgb8", width=SIZE[1]))
            for number, frame in zip(range(FRAMES), frames, strict=False)
        ]
        if index == 4:
            messages.append(("/cam/image_raw", 101, ("sensor_msgs/msg/Image", b"broken")))
        write_bag(folder / f"bag{index:02d}", messages)
    (cut,) = (folder / "bag03").glob("*.mcap")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (folder / "damaged.mcap").write_bytes(b"\x89MCAP0\r\n" + bytes(np.random.default_rng(0).bytes(500)))
    return folder


def make_job(out: object, checkpoint: object, **reading: object) -> BatchJob:
    outputs, cloud = RunOutputs(preview=False), CloudOptions(confidence_threshold=1.0)
    checkpoint = str(checkpoint)
    return BatchJob(str(out), checkpoint, weights_id(checkpoint), "cpu", OPTIONS, cloud, outputs, reading)


def results(folder: Path) -> dict[str, bytes]:
    """The files of a result folder that a serial run has too, without those that contain times."""
    left_out = ("summary.json", "batch.json", ".raymap3r_files")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in left_out
    }


def make_waiting_worker(folder, attempts, job):
    """A worker that stops in the third frame of some recordings: it writes its name and pid, and waits for a byte,
    at most `WAIT` seconds.

    `attempts`: for names in a recording, in how many attempts to process it the worker stops.
    """
    process, step, state = make_worker(job), Stream.step, {"name": "", "frames": 0}

    def slow_step(self, *args, **kwargs):
        state["frames"] += 1
        if state["name"] and state["frames"] == 3:
            Path(folder, "reports").write_text(f"{state['name']} {os.getpid()}\n")
            descriptor = os.open(Path(folder, "released"), os.O_RDONLY | os.O_NONBLOCK)
            select.select([descriptor], [], [], WAIT)  # not for ever: a batch that waits for it hides the failure
            os.close(descriptor)
        return step(self, *args, **kwargs)

    def work(item):
        state["name"], state["frames"] = "", 0
        for name, count in attempts.items():
            before = len(list(Path(folder).glob(f"{name}.*")))
            if name in item.folder and before < count:
                Path(folder, f"{name}.{before}").touch()
                state["name"] = name
        return process(item)

    Stream.step = slow_step
    return work


make_worker = batch._make_worker


def send_this_file() -> None:
    """Send functions of this file to the workers, which cannot import it."""
    importlib.import_module("ray.cloudpickle").register_pickle_by_value(sys.modules[__name__])


def make_deadly():
    """A worker that doubles numbers, and ends at 3."""

    def work(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 4:
            raise ValueError("four")
        return 2 * number

    return work


class WaitingWorkers:
    """Lets the workers of batches in this process stop in some recordings, see `make_waiting_worker`."""

    def __init__(self, folder: Path, attempts: dict[str, int]) -> None:
        self._folder = folder
        for name in ("reports", "released"):
            if not (folder / name).exists():  # of the test that has started this process
                os.mkfifo(folder / name)
        self._reports = os.open(folder / "reports", os.O_RDWR)  # never at its end
        send_this_file()
        batch._make_worker = functools.partial(make_waiting_worker, str(folder), attempts)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        batch._make_worker = make_worker
        os.close(self._reports)

    def next_pid(self) -> int:
        """Wait for a worker that stops in the middle of a recording."""
        assert select.select([self._reports], [], [], WAIT)[0], "no worker stops"
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self._reports, 1)
        return int(line.split()[1])

    def release(self) -> None:
        """Let a worker continue."""
        (self._folder / "released").write_bytes(b"0")


def kill_and_wait(pid: int) -> None:
    """Kill a process, and wait for its end."""
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([descriptor], [], [], WAIT)[0], "the process did not end"
    finally:
        os.close(descriptor)
