"""The demo as started by a user: clips over DDS through three processes."""

import argparse
import re
import subprocess
import sys

import cv2
import pytest
from geometry_msgs.msg import PoseStamped

from raymap3r_ros import cli
from raymap3r_ros.clients import demo
from raymap3r_ros.clients.recorder import FIRST_LIMIT, IDLE_LIMIT, Recorded, Recorder
from raymap3r_ros.commands import demo as command
from raymap3r_ros.errors import InputError
from raymap3r_ros.node.publishers import TOPICS

LIMIT = 300  # seconds


def run(*arguments):
    command = [sys.executable, "-m", "raymap3r_ros.cli", "demo", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT)


def test_clip_played_as_a_camera_loses_no_frame(shared, tmp_path):
    frames = 30
    done = run(
        shared / "clips" / "walking-indoors.mp4", "--every-frame", "--frames", frames, "--rate", 10, "--out", tmp_path
    )
    assert done.returncode == 0, done.stdout
    assert f"frames     in {frames}   out {frames}   dropped 0" in done.stdout, done.stdout
    for check in (
        "ok    every output was received\n",
        "ok    every stamp is an image's stamp\n",
        f"ok    TF equals ~/pose ({frames} transforms)\n",
        "ok    every depth is finite (0 are not)\n",
        "ok    the node ended cleanly (status 0)\n",
        f"ok    no frame was lost (0 of {frames} are missing)\n",
    ):
        assert check in done.stdout, done.stdout
    assert (tmp_path / "preview.png").stat().st_size > 10_000
    (video,) = [*tmp_path.glob("preview.mp4"), *tmp_path.glob("preview.gif")]
    # Includes the first frames, in which motion is not estimated.
    assert cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FRAME_COUNT) == frames


@pytest.mark.parametrize(
    ("arguments", "checkpoint", "texts"),
    [
        ([], "one_office", ["a real office, held-out images", "nearest trained position", "all pixels"]),
        (["--clip", "movers"], "one_office", ["rendered movers were added to the images", "static pixels"]),
        (["--clip", "room"], "one_room", ["rendered room", "static pixels"]),
        (["--clip", "office", "--checkpoint", "one_room"], "one_room", ["a real office"]),
    ],
)
def test_clips_run_live_and_are_compared_with_their_ground_truth(arguments, checkpoint, texts, tmp_path):
    done = run(*arguments, "--frames", 20, "--out", tmp_path)
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout and f"loading {checkpoint}\n" in done.stdout, done.stdout
    for text in (*texts, "position, RMSE, m", "rotation, mean, deg", "Abs Rel", "false alarms"):
        assert text in done.stdout, done.stdout
    assert ("rendered movers were added" in done.stdout) == ("movers" in arguments)
    assert (tmp_path / "preview.png").is_file()


def test_the_room_is_compared_with_what_was_rendered(tmp_path):
    """With the calibration, and each output with its own image: errors are far below those of a camera at rest."""
    done = run("--clip", "room", "--every-frame", "--frames", 30, "--out", tmp_path)
    rows = [re.split(r" {2,}", line) for line in done.stdout.splitlines()]
    table = {row[0]: [float(cell) for cell in row[1:]] for row in rows if re.fullmatch(r"[\d.]+", row[-1])}
    position, at_rest = table["position, RMSE, m"]
    assert position < 0.6 * at_rest, done.stdout
    assert table["static pixels"][0] < 0.3, done.stdout  # Abs Rel
    assert table["25 frames"][-1] < 0.3, done.stdout  # false alarms; the first five frames have no mask


@pytest.mark.parametrize(
    ("arrivals", "end"),
    [
        ([], FIRST_LIMIT),
        ([FIRST_LIMIT - 10], 4 * (FIRST_LIMIT - 10)),
        ([100, 160], 160 + 300),
        ([10], 10 + IDLE_LIMIT),
        ([-10], IDLE_LIMIT),
    ],
)
def test_frames_of_a_large_network_may_take_minutes(ros, monkeypatch, arrivals, end):
    """The clock starts with the request, not while the node loads its weights. Seconds after the request."""
    clock = [0.0]

    class Clocked(Recorder):
        def spin(self) -> None:
            clock[0] += 10.0
            if clock[0] - 1000.0 in arrivals:
                self.receive("pose", PoseStamped())

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    node = ros.create_node("recorder_of_a_slow_node")
    recorder = Clocked(node, "/slow/raymap3r", "/slow/image", "camera")
    clock[0] = 980.0
    recorder.spin()
    clock[0] = 1000.0  # the weights are loaded
    assert len(recorder.reply(1).stamps["pose"]) == len(arrivals)
    assert clock[0] - 1000.0 == pytest.approx(end, abs=20.0)
    node.destroy_node()


def test_node_that_cannot_start_ends_the_demo(tmp_path):
    done = run("--checkpoint", "/nowhere.pth", "--frames", 1, "--out", tmp_path)
    assert done.returncode == 2
    assert "configure failed: checkpoint '/nowhere.pth' is not a file" in done.stdout
    assert "the node has ended with status 1; its own message is above" in done.stdout
    assert "Traceback" not in done.stdout


def arguments(*texts):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(texts)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["--rate", "0"], "--rate is 0.0; allowed: 0.1 to 1000"),
        (["--frames", "0"], "--frames is 0; allowed: 1 and more"),
        (["/nowhere.mp4"], "/nowhere.mp4"),
        (["--clip", "movers", "--frames", "-3"], "--frames is -3; allowed: 1 and more"),
    ],
)
def test_unusable_arguments_are_refused(texts, message, tmp_path):
    with pytest.raises(InputError, match=message):
        demo.run(arguments(*texts, "--out", str(tmp_path)))


def test_a_clip_and_an_input_exclude_each_other(capsys):
    for texts in (["clip.mp4", "--clip", "room"], ["--clip", "office", "clip.mp4"], ["--clip", "garden"]):
        with pytest.raises(SystemExit):
            arguments(*texts)
    assert "not allowed with argument" in capsys.readouterr().err
    assert arguments("clip.mp4").input.name == "clip.mp4" and arguments("--clip", "room").clip == "room"


class TestChecks:
    """Checks of the demo for wrong outputs."""

    def recorded(self):
        stamps = {topic: [10, 20] for topic in (*TOPICS, "tf")}
        poses = {10: (0.0,) * 7, 20: (1.0,) * 7}
        return Recorded(stamps=stamps, poses=poses, transforms=dict(poses))

    def failures(self, recorded, *texts, status=0, sent=(10, 20)):
        every_frame = arguments(*texts).every_frame
        checks = demo.check_outputs(every_frame, demo.SentClip(list(sent)), recorded, status)
        return [text for text, holds in checks.items() if not holds]

    def test_all_well(self):
        assert self.failures(self.recorded(), "--every-frame") == []

    def test_silent_topic(self):
        recorded = self.recorded()
        recorded.stamps["points"] = []
        assert self.failures(recorded) == ["every output was received, except of points"]

    def test_foreign_stamp(self):
        recorded = self.recorded()
        recorded.stamps["depth"].append(21)
        assert self.failures(recorded) == ["every stamp is an image's stamp, except of depth"]

    def test_transform_that_differs(self):
        recorded = self.recorded()
        recorded.transforms[20] = (1.0,) * 6 + (1.0001,)
        assert self.failures(recorded) == ["TF equals ~/pose (2 transforms)"]

    def test_depth_that_is_not_finite(self):
        recorded = self.recorded()
        recorded.not_finite = 3
        assert self.failures(recorded) == ["every depth is finite (3 are not)"]

    def test_lost_frame(self):
        assert self.failures(self.recorded(), sent=(10, 20, 30)) == []
        assert self.failures(self.recorded(), "--every-frame", sent=(10, 20, 30)) == [
            "no frame was lost (1 of 3 are missing)"
        ]

    def test_node_that_crashes(self):
        assert self.failures(self.recorded(), status=-11) == ["the node ended cleanly (status -11)"]


def test_files_of_others_are_not_replaced(tmp_path, capsys):
    (tmp_path / "preview.png").write_text("mine")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert "preview.png in the way" in capsys.readouterr().err
    assert (tmp_path / "preview.png").read_text() == "mine"
