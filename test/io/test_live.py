"""Cameras and network streams: the newest image wins, and whatever they do ends in order."""

import os
import signal
import socket
import sys
import threading
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from camera_servers import SIZE, FakeCapture, mjpeg_server, number_of, numbered_image, part, rtsp_server

from raymap3r_ros.errors import InputError
from raymap3r_ros.io import live, open_input
from raymap3r_ros.signals import on_stop_signals


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name == "live input"]


def use_camera(monkeypatch, images, **options) -> FakeCapture:
    camera = FakeCapture(iter(images), **options)
    monkeypatch.setattr(cv2, "VideoCapture", camera)
    return camera


def test_the_newest_image_of_a_camera_wins_and_the_others_are_counted(monkeypatch):
    processed = threading.Event()

    def images():
        yield numbered_image(0)
        processed.wait()
        for number in range(1, 10):
            yield numbered_image(number)

    camera = use_camera(monkeypatch, images())
    before = time.time()
    recording = open_input("0")
    assert (recording.live, recording.kind, recording.name, recording.length) == (True, "camera", "camera 0", None)
    assert camera.arguments[0] == 0 and recording.rate == 10
    frames = iter(recording)
    first = next(frames)
    (thread,) = reading_threads()
    processed.set()
    thread.join()  # the camera is faster than the consumer
    second = next(frames)
    assert (number_of(first.image), number_of(second.image)) == (0, 9)
    assert before <= first.stamp < second.stamp <= time.time()
    assert list(frames) == [] and recording.dropped == 8
    assert "ended after 10 images" in recording.ended and camera.released.is_set()


def test_images_are_rgb_and_every_nth_is_taken(monkeypatch):
    blue = np.zeros((48, 64, 3), np.uint8)
    blue[..., 0] = 255
    use_camera(monkeypatch, [blue] * 7)
    recording = open_input("1", stride=7, intrinsics=np.diag([80.0, 80, 1]))
    (frame,) = recording
    assert frame.image[0, 0].tolist() == [0, 0, 255] and frame.intrinsics[0, 0] == 80
    assert recording.dropped == 0


def test_damaged_images_are_skipped_and_counted(monkeypatch):
    images = [numbered_image(1), None, None, numbered_image(2)]
    camera = use_camera(monkeypatch, ())
    pending = iter(images)
    monkeypatch.setattr(camera, "read", lambda: (lambda image: (image is not None, image))(next(pending, None)))
    recording = open_input("0")
    assert number_of(list(recording)[-1].image) == 2 and recording.skipped == 2


def test_a_pause_of_the_camera_starts_a_new_world(monkeypatch):
    taken = threading.Semaphore(0)

    def images():
        for number in range(3):
            yield numbered_image(number)
            taken.acquire()

    use_camera(monkeypatch, images())
    jumps = []
    for frame in open_input("0", max_gap=1e-9):
        jumps.append(frame.jumps)
        taken.release()
    assert jumps == [0, 1, 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_ends_the_wait_for_a_camera_that_is_stuck(monkeypatch, number):
    processed, stuck = threading.Event(), threading.Event()

    def images():
        yield numbered_image(0)
        processed.wait()
        os.kill(os.getpid(), number)
        stuck.wait()

    use_camera(monkeypatch, images())
    monkeypatch.setattr(live, "CLOSE", 0.0)
    signals = []
    with on_stop_signals(signals.append):
        recording = open_input("0")
        for _ in recording:
            processed.set()
    (thread,) = reading_threads()
    stuck.set()
    thread.join()
    assert signals == [signal.Signals(number).name] and recording.ended == ""


@pytest.mark.parametrize("count", [0, 3])
def test_a_camera_that_blocks_has_ended(monkeypatch, count):
    blocked = threading.Event()

    def images():
        for number in range(count):
            yield numbered_image(number)
        blocked.wait()

    use_camera(monkeypatch, images())
    monkeypatch.setattr(live, "TIMEOUT", 0.2)
    monkeypatch.setattr(live, "CLOSE", 0.0)
    if count:
        recording = open_input("0")
        assert number_of(list(recording)[-1].image) == 2
        reason = recording.ended
    else:
        reason = refusal("0")
    (thread,) = reading_threads()
    blocked.set()
    thread.join()
    assert f"no image for 0.2 s, after {count} images" in reason


def test_a_recording_that_is_not_read_ends_its_thread(monkeypatch):
    def images():
        while True:
            yield numbered_image(0)

    camera = use_camera(monkeypatch, images())
    recording = open_input("0")
    assert reading_threads()
    del recording
    assert camera.released.wait(10) and not reading_threads()


def test_a_camera_that_cannot_be_opened(monkeypatch, tmp_path):
    use_camera(monkeypatch, (), opened=False)
    monkeypatch.setattr(live, "DEVICES", tmp_path)
    with pytest.raises(InputError, match=r"camera 0: there is no camera .*video0 \(this machine has none\); connect"):
        open_input("0")
    (tmp_path / "video2").touch()
    with pytest.raises(InputError, match=r"no camera .*video0 \(found: .*video2\)"):
        open_input("0")
    with pytest.raises(InputError, match="another program uses it"):
        open_input("2")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=r"no permission .* usermod -aG video"):
        open_input("2")
    assert not reading_threads()


def test_a_camera_that_delivers_nothing_or_depth(monkeypatch):
    use_camera(monkeypatch, ())
    with pytest.raises(InputError, match="camera 0: ended after 0 images"):
        open_input("0")
    use_camera(monkeypatch, [np.zeros((48, 64), np.uint16)])
    with pytest.raises(InputError, match=r"uint16 images of shape \(48, 64\); give the colour camera"):
        open_input("0")
    with pytest.raises(InputError, match="no topic"):
        open_input("0", topic="/image")
    with pytest.raises(InputError, match="stride is 0"):
        open_input("0", stride=0)


def test_an_existing_folder_with_a_number_as_name_is_a_recording(tmp_path, monkeypatch):
    (tmp_path / "0").mkdir()
    cv2.imwrite(str(tmp_path / "0" / "1.png"), numbered_image(3))
    monkeypatch.chdir(tmp_path)
    recording = open_input("0")
    assert not recording.live and [number_of(frame.image) for frame in recording] == [3]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://camera/live", "rtsp://camera/live"),
        ("rtsp://admin:s3cret@camera:554/live", "rtsp://***@camera:554/live"),
        ("http://admin:s3/cr@et@camera/live", "http://***@camera/live"),
        ("http://s3cret@camera", "http://***@camera"),
        ("http://admin:s3?cr#et@camera/a", "http://***@camera/a"),
        ("https://camera/video.cgi?user=a&pwd=s3cret", "https://camera/video.cgi?***"),
    ],
)
def test_secrets_of_a_url_are_hidden(url, shown):
    assert live.hide_secrets(url) == shown


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (
            "ftp://admin:s3cret@camera/a.mp4",
            r"ftp://\*\*\*@camera/a.mp4: streams of ftp:// are not read; allowed: rtsp",
        ),
        ("concat://admin:s3cret@x", "streams of concat:// are not read"),
        ("http://admin:s3cret@127.0.0.1:1/x", r"http://\*\*\*@127.0.0.1:1/x: cannot be reached: Connection refused"),
        ("http://admin:s3cret@[::1/x", "cannot be reached: no valid address"),
        ("http://127.0.0.1:1/?token=" + 300 * "s3cret", "cannot be reached: Connection refused"),
    ],
)
def test_streams_that_cannot_be_opened(url, problem, capfd):
    with pytest.raises(InputError, match=problem) as caught:
        open_input(url)
    captured = capfd.readouterr()
    assert "s3cret" not in str(caught.value) + captured.out + captured.err and "WARN" not in captured.err


def test_a_camera_with_rtsp_and_a_password(tmp_path):
    """The images are in an MPEG transport stream, in RTP, in the RTSP connection."""
    writer = cv2.VideoWriter(str(tmp_path / "a.ts"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for number in range(40):
        writer.write(numbered_image(number))
    writer.release()
    with rtsp_server((tmp_path / "a.ts").read_bytes(), "admin:s3cret") as (address, over):
        recording = open_input(f"rtsp://admin:s3cret@{address}")
        assert recording.name == f"rtsp://***@{address}"
        numbers = [number_of(frame.image) for frame in islice(recording, 5)]
        over.set()
        assert len(numbers) == 5 and numbers == sorted(numbers) and numbers[-1] > numbers[0]  # MPEG-4 rounds
    with rtsp_server(b"", "admin:other") as (address, over):
        over.set()
        assert "check path, user and password" in refusal(f"rtsp://admin:s3cret@{address}")


def test_a_stream_is_read_until_the_server_ends_it():
    def body(send):
        for number in range(6):
            send(part(number))

    with mjpeg_server(body) as url:
        recording = open_input(url.replace("//", "//admin:s3cret@"))
        numbers = [number_of(frame.image) for frame in recording]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 5
    assert recording.name == url.replace("//", "//***@") and recording.kind == "stream"
    assert "ended after 6 images" in recording.ended


def test_the_last_images_of_a_stream_that_falls_silent_keep_their_times(monkeypatch):
    """A downlink over UDP simply ends; the decoder returns the images that it holds when FFmpeg gives up."""
    monkeypatch.setattr(live, "TIMEOUT", 2.0)
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    address = receiver.getsockname()
    receiver.close()
    sent = []

    def send():
        with av.open(f"udp://127.0.0.1:{address[1]}?pkt_size=1316", "w", format="mpegts") as file:
            options = {"bf": "0", "g": "5", "preset": "ultrafast", "tune": "zerolatency"}
            stream = file.add_stream("libx264", rate=20, options=options)
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            for index in range(40):
                image = av.VideoFrame.from_ndarray(numbered_image(index), format="bgr24")
                image.pts, image.time_base = index, Fraction(1, 20)
                file.mux(stream.encode(image))
                sent.append(time.time())
                time.sleep(0.05)

    thread = threading.Thread(target=send)
    thread.start()
    recording = open_input(f"udp://127.0.0.1:{address[1]}", max_gap=1.0)
    frames = list(recording)
    thread.join()
    assert len(frames) + recording.dropped > 15 and number_of(frames[-1].image) in (38, 39)  # of another range
    assert {frame.jumps for frame in frames} == {0}
    assert abs(frames[-1].stamp - sent[-1]) < 1 and (np.diff([frame.stamp for frame in frames]) > 0).all()
    assert "no image for 2 s" in recording.ended


def test_the_pixels_of_a_stream_that_are_not_square_are_stretched(monkeypatch, caplog):
    camera = use_camera(monkeypatch, [numbered_image(3)] * 2)
    values = {cv2.CAP_PROP_SAR_NUM: 16, cv2.CAP_PROP_SAR_DEN: 8}
    monkeypatch.setattr(camera, "get", lambda what: values.get(what, 10.0 if what == cv2.CAP_PROP_FPS else 0.0))
    recording = open_input("rtsp://127.0.0.1/a")
    height, width = numbered_image(3).shape[:2]
    assert recording.size == (2 * width, height)
    (frame, *_) = recording
    assert frame.image.shape == (height, 2 * width, 3) and number_of(frame.image) == 3
    assert "rtsp://127.0.0.1/a: its pixels are 2 times as wide as high" in caplog.text


def test_a_server_that_sends_garbage(capfd):
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    with (
        mjpeg_server(lambda send: send(noise)) as url,
        pytest.raises(InputError, match="not a stream that can be read"),
    ):
        open_input(url)

    def body(send):
        for number in range(4):
            send(part(number))
        send(noise)

    with mjpeg_server(body) as url:
        recording = open_input(url)
        assert [number_of(frame.image) for frame in recording][-1] == 3
    assert recording.ended and capfd.readouterr().err == ""


@pytest.mark.parametrize("allowed", [False, True])
def test_a_playlist_cannot_make_ffmpeg_read_files_unless_the_user_allows_it(tmp_path, monkeypatch, allowed):
    if allowed:
        monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file,http,tcp")
    writer = cv2.VideoWriter(str(tmp_path / "private.ts"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for number in range(10):
        writer.write(numbered_image(number))
    writer.release()
    lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXTINF:1,", f"file://{tmp_path}/private.ts", "#EXT-X-ENDLIST", "")
    with mjpeg_server(lambda send: send("\n".join(lines).encode())) as url:
        if allowed:
            assert "recording of" in refusal(f"{url}.m3u8")
        else:
            assert "is not a stream that can be read" in refusal(f"{url}.m3u8")


def refusal(url: str) -> str:
    with pytest.raises(InputError) as caught:
        open_input(url)
    return str(caught.value)


def test_the_url_of_a_recording_is_refused(monkeypatch):
    camera = use_camera(monkeypatch, [numbered_image(0)])
    monkeypatch.setattr(camera, "get", lambda what: 120.0 if what == cv2.CAP_PROP_FRAME_COUNT else 0.0)
    with pytest.raises(InputError, match="recording of 120 frames, not a live stream; download it"):
        open_input("https://example.org/clip.mp4")
