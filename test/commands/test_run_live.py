"""`raymap3r run` with a camera or a stream: results, messages and exit status, however it ends."""

import itertools
import json
import os
import signal
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "io"))
from camera_servers import FakeCapture, mjpeg_server, numbered_image, part

from raymap3r_ros import cli
from raymap3r_ros.io.output_folder import written_files
from raymap3r_ros.streaming import METHOD, Stream, recordings

SHORT = ["--checkpoint", "mini", "--size", "64", "--device", "cpu"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run_live(out):
    """Runs the command and returns its status and summary, None without one."""

    def run(*arguments):
        # Recording frames takes seconds.
        status = cli.main(["run", "--execution", "plain", *arguments, "--out", str(out), *SHORT])
        summary = out / "summary.json"
        return status, json.loads(summary.read_text()) if summary.exists() else None

    return run


@pytest.fixture
def before_step(monkeypatch):
    """A dictionary: the function of a number is called before the step of that number.

    Steps without a stamp, before the first image, are not counted.
    """
    hooks, step = {}, Stream.step
    numbers = iter(range(1000))

    def hooked(self, *args, **kwargs):
        if args[1:]:
            hooks.get(next(numbers), lambda: None)()
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Stream, "step", hooked)
    return hooks


def check_files(out, summary):
    """All files of the summary are there, each frame has its line, and the manifest lists all files."""
    assert len(np.loadtxt(out / "trajectory.txt", ndmin=2)) == summary["frames"]
    assert len(list(out.glob("depth/*.png"))) == len(list(out.glob("masks/*.png"))) == summary["frames"]
    assert all(list(out.glob(name)) for name in summary["files"])
    present = {path for path in out.rglob("*") if path.is_file() and path.name != ".raymap3r_files"}
    assert set(written_files(out)) == present


def test_a_stream_up_to_max_frames_hides_its_password_everywhere(run_live, out, capfd, monkeypatch):
    monkeypatch.setattr(recordings, "missing_packages", lambda: ["onnx"])  # traces are quicker
    over = threading.Event()

    def body(send):
        number = 0
        while not over.wait(0.01):  # the rate of the camera
            send(part(number % 50))
            number += 1

    with mjpeg_server(body) as url:
        secret = url.replace("//", "//admin:s3cret@") + "?token=s3cret"
        status, summary = run_live(secret, "--max-frames", "8", "--execution", "auto")
        over.set()
    assert (status, summary["complete"], summary["frames"]) == (0, True, 8)
    assert (summary["input_kind"], summary["input"]) == ("stream", url.replace("//", "//***@") + "?***")
    assert summary["options"]["execution"] == "trace"  # as in a node
    assert summary["frames_missing"] == 0 and summary["frames_dropped"] >= 0
    check_files(out, summary)
    stamps = np.loadtxt(out / "trajectory.txt")[:, 0]
    assert (np.diff(stamps) > 0).all() and abs(stamps[-1] - (out / "summary.json").stat().st_mtime) < 600
    captured = capfd.readouterr()
    assert "s3cret" not in captured.out + captured.err
    assert not any(b"s3cret" in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_a_stream_that_ends(run_live, out, capsys):
    with mjpeg_server(lambda send: [send(part(number)) for number in range(5)]) as url:
        status, summary = run_live(url)
    assert (status, summary["complete"], summary["frames_missing"]) == (1, False, None)
    assert "ended after 5 images: the connection was closed" in summary["stopped_by"]
    assert summary["frames"] + summary["frames_dropped"] <= 5
    check_files(out, summary)
    assert cv2.VideoCapture(str(out / "preview.mp4")).isOpened()  # files can be opened after a stream
    printed = capsys.readouterr().out
    assert "stopped early: ended after 5 images" in printed and "missing" not in printed


def test_a_slow_network_drops_images_and_counts_them(run_live, out, monkeypatch, before_step, capsys):
    first = threading.Event()

    def images():
        yield numbered_image(0)
        first.wait()
        for number in range(1, 30):
            yield numbered_image(number)

    def let_the_camera_run():
        first.set()
        for thread in threading.enumerate():
            if thread.name == "live input":
                thread.join()

    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture(images()))
    before_step[0] = let_the_camera_run
    status, summary = run_live("0")
    assert (status, summary["frames"], summary["frames_dropped"], summary["input"]) == (1, 2, 28, "camera 0")
    assert "2 frames, 28 dropped for newer ones" in capsys.readouterr().out
    check_files(out, summary)


def test_the_network_is_prepared_before_the_first_image(run_live, monkeypatch, before_step, caplog):
    """So that the camera's images are not dropped while frames are recorded."""
    events, count = [], METHOD.router_last_frame + 5
    steps = [threading.Event() for _ in range(count)]

    def images():
        for index in range(count):
            yield numbered_image(index)
            steps[index].wait()

    def traced(*arguments):
        events.append("recorded")
        return trace(*arguments)

    trace = recordings.trace
    for index in range(count):
        before_step[index] = lambda index=index: (steps[index].set(), events.append(index))
    monkeypatch.setattr(recordings, "trace", traced)
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture(images()))
    _, summary = run_live("0", "--execution", "trace", "--max-gap", "600")
    assert summary["frames"] == count and summary["frames_dropped"] == 0
    recorded = events.count("recorded")
    assert recorded > 0 and events == ["recorded"] * recorded + list(range(count))
    assert "preparing the network for images of 64x48" in caplog.text


def test_intrinsics_are_checked_before_the_network_is_prepared(run_live, out, monkeypatch, capsys, caplog):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture(iter([numbered_image(0)])))
    assert run_live("0", "--execution", "trace", "--intrinsics", "60,60,3200,24") == (2, None)
    assert "camera 0: the given intrinsics cannot be used: the principal point" in capsys.readouterr().err
    assert "preparing" not in caplog.text and not out.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["in a step", "while waiting"])
def test_a_stop_signal_writes_the_results(run_live, out, monkeypatch, before_step, number, when):
    stuck = threading.Event()

    def images():
        for index in range(3):
            yield numbered_image(index)
            steps[index].wait()
        if when == "while waiting":
            os.kill(os.getpid(), number)
        stuck.wait(60)

    steps = [threading.Event() for _ in range(3)]
    for index in range(3):
        before_step[index] = steps[index].set
    if when == "in a step":
        before_step[2] = lambda: (steps[2].set(), signal.raise_signal(number))
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture(images()))
    monkeypatch.setattr("raymap3r_ros.io.live.CLOSE", 0.0)
    try:
        status, summary = run_live("0")
    finally:
        stuck.set()
    assert (status, summary["stopped_by"], summary["complete"]) == (130, signal.Signals(number).name, False)
    assert summary["frames"] == 3
    check_files(out, summary)


def test_a_stop_signal_before_the_first_frame_leaves_nothing(run_live, out, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture(iter([numbered_image(0)])))
    monkeypatch.setattr(Stream, "step", lambda *_, **__: signal.raise_signal(signal.SIGINT) or 1 / 0)
    assert run_live("0") == (130, None)
    assert list(out.rglob("*")) == []


def test_inputs_that_cannot_be_opened_are_one_error(run_live, out, capfd):
    for text, message in (
        ("9999", "camera 9999: there is no camera /dev/video9999"),
        ("/dev/video9998", "/dev/video9998: there is no camera /dev/video9998"),
        ("rtsp://admin:s3cret@127.0.0.1:1/live", "rtsp://***@127.0.0.1:1/live: cannot be reached: Connection refused"),
    ):
        assert run_live(text) == (2, None)
        error = capfd.readouterr().err
        assert error.startswith(f"raymap3r: error: {message}") and error.count("\n") == 1
    assert not out.exists()


def test_a_gap_of_the_camera_starts_another_world(run_live, out, monkeypatch, before_step):
    steps = [threading.Event() for _ in range(3)]

    def images():
        for index in range(3):
            yield numbered_image(index)
            steps[index].wait()

    for index in range(3):
        before_step[index] = steps[index].set
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture(images()))
    _, summary = run_live("0", "--max-gap", "1e-9", "--max-frames", "3")
    assert summary["worlds"] == 3 and (out / "trajectory_3.txt").is_file()


@pytest.fixture
def shown(monkeypatch):
    """The pictures in a window without window system; with the third one, the user presses q."""
    pictures = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: pictures.append(None))
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: pictures.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q") if len(pictures) == 3 else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    return pictures


@pytest.mark.parametrize("live", [True, False])
def test_q_in_the_window_ends_the_run_in_order(run_live, out, monkeypatch, shown, tmp_path, live):
    (tmp_path / "images").mkdir()
    for index in range(5):
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), numbered_image(index))
    if live:
        monkeypatch.setattr(cv2, "VideoCapture", FakeCapture(itertools.repeat(numbered_image(1))))
    status, summary = run_live("0" if live else str(tmp_path / "images"), "--window")
    assert (status, summary["frames"], summary["stopped_by"], summary["complete"]) == (130, 3, "q", False)
    assert len(shown) == 4 and shown[-1] is None and shown[0].shape[1] > 600
    check_files(out, summary)


def test_a_window_that_cannot_be_opened_is_one_error(run_live, out, monkeypatch, capfd):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert run_live("0", "--window") == (2, None)
    error = capfd.readouterr().err
    assert "neither DISPLAY nor WAYLAND_DISPLAY is set; show the results with --view" in error

    def built_without(*_):
        raise cv2.error("The function is not implemented")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", built_without)
    assert run_live("0", "--window") == (2, None)
    error = capfd.readouterr().err
    assert "was built without windows" in error and "replace opencv-python-headless" in error
    assert error.count("\n") == 1 and not out.exists()
