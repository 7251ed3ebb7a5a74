"""How a replay ends: report and exit status after Ctrl-C, damage in the bag, and images that the node refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bags import images_bag, picture, raw, write_bag
from rosbags.rosbag2 import StoragePlugin

from raymap3r_ros import cli
from raymap3r_ros.clients import player
from raymap3r_ros.io import bag_process

SMALL = ("--checkpoint", "mini", "--size", "48", "--device", "cpu")
LIMIT = 120.0  # seconds
END_LIMIT = 3.0  # seconds from Ctrl-C to the end


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGINT] * 3, [signal.SIGTERM, signal.SIGINT]])
def test_repeated_ctrl_c_still_writes_the_report_and_ends_soon(signals, tmp_path):
    """Ctrl-C under ros2 launch reaches the player twice: from the terminal and from launch."""
    bag, out = images_bag(tmp_path / "bag", 200), tmp_path / "out"
    command = [sys.executable, "-u", "-m", "raymap3r_ros.cli", "replay", str(bag), "--out", str(out), *SMALL]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    for line in process.stdout:
        if "a new world starts" in line:  # the first image was processed
            break
    begin = time.monotonic()
    for number in signals:
        os.killpg(process.pid, number)
        time.sleep(0.1)  # as a user would; signals that arrive together count as one
    text = process.communicate(timeout=LIMIT)[0]
    spent = time.monotonic() - begin
    assert process.returncode == 130, text
    assert "Traceback" not in text and "(stopped early)" in text
    report = json.loads((out / "report.json").read_text())
    assert not report["complete"] and 0 < report["frames_sent"] < 200
    assert spent < END_LIMIT, text


def test_ctrl_c_before_the_node_is_ready_ends_soon(tmp_path):
    bag, out = images_bag(tmp_path / "bag", 200), tmp_path / "out"
    command = [sys.executable, "-u", "-m", "raymap3r_ros.cli", "replay", str(bag), "--out", str(out), *SMALL]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    for line in process.stdout:
        if line.startswith("playing"):  # the node is still starting
            break
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 130 and "Traceback" not in text
    assert time.monotonic() - begin < END_LIMIT
    assert json.loads((out / "report.json").read_text())["frames_processed"] == 0


def test_a_bag_that_ends_early_by_damage(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (120, 160, 3), dtype=np.uint8) for _ in range(12)]
    bag = write_bag(tmp_path / "bag", [(i / 10, "/image", raw(i / 10, image)) for i, image in enumerate(images)])
    file = next(bag.glob("*.db3"))
    data = bytearray(file.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 8192] = rng.integers(0, 255, 8192, dtype=np.uint8).tobytes()
    file.write_bytes(data)
    out = tmp_path / "out"
    assert cli.main(["replay", str(bag), "--rate", "0", "--out", str(out), *SMALL]) == 1
    report = json.loads((out / "report.json").read_text())
    assert not report["complete"] and "damaged" in report["ended"]
    assert report["frames_sent"] == report["frames_processed"] > 0
    assert report["frames_sent"] + report["frames_missing"] == 12
    text = capsys.readouterr().out
    assert f"(ended early: {report['ended']})" in text and f"missing in the bag {report['frames_missing']}" in text


def test_the_number_of_missing_frames_is_unknown_without_an_index(tmp_path, capsys):
    """`run` reports the same."""
    messages = [(i / 10, "/image", raw(i / 10, picture(i))) for i in range(8)]
    data = next(write_bag(tmp_path / "bag", messages, StoragePlugin.MCAP).glob("*.mcap")).read_bytes()
    file = tmp_path / "cut.mcap"
    file.write_bytes(data[: len(data) // 2])
    for command, report in (("run", "summary.json"), ("replay", "report.json")):
        out = tmp_path / command
        arguments = ["--rate", "0"] if command == "replay" else ["--no-preview"]
        assert cli.main([command, str(file), "--out", str(out), *arguments, *SMALL]) == 1
        values = json.loads((out / report).read_text())
        assert not values["complete"] and values["frames_missing"] is None
    assert 0 < values["frames_sent"] < 8 and "ends in the middle of a record" in values["ended"]
    assert "missing in the bag an unknown number" in capsys.readouterr().out


def test_a_complete_bag_is_reported_so(tmp_path):
    out = tmp_path / "out"
    arguments = ["--rate", "0", "--start", "0.05", "--duration", "0.2", "--out", str(out), *SMALL]
    assert cli.main(["replay", str(images_bag(tmp_path / "bag", 6)), *arguments]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["complete"] and report["ended"] == "" and report["frames_missing"] == 0
    assert report["frames_sent"] == 2 and report["frames_outside"] == 4


def test_images_after_a_jump_of_the_clock_that_the_duration_leaves_out_are_counted(tmp_path, capsys):
    times = [0.0, 0.1, 0.2, 5000.0, 5000.1]
    bag = write_bag(tmp_path / "bag", [(time, "/image", raw(time, picture(i))) for i, time in enumerate(times)])
    arguments = ["--rate", "0", "--duration", "10", "--loop", "2", "--out", str(tmp_path / "out"), *SMALL]
    assert cli.main(["replay", str(bag), *arguments]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["frames_sent"], report["frames_outside"]) == (6, 4)
    assert "outside start and duration 4" in capsys.readouterr().out


def test_every_frame_refused_is_a_failure(tmp_path):
    pairs = np.ones((48, 64, 2), np.uint8)
    messages = [(i / 10, "/image", raw(i / 10, pairs, "8UC2")) for i in range(3)]
    out = tmp_path / "out"
    arguments = ["--rate", "0", "--out", str(out), *SMALL]
    assert cli.main(["replay", str(write_bag(tmp_path / "bag", messages)), *arguments]) == 1
    report = json.loads((out / "report.json").read_text())
    assert (report["frames_processed"], report["frames_refused"]) == (0, 3)
    # One bad picture among many is skipped.
    messages += [(0.3 + i / 10, "/image", raw(0.3 + i / 10, picture(i))) for i in range(3)]
    bag = write_bag(tmp_path / "mixed", messages)
    assert cli.main(["replay", str(bag), "--overwrite", *arguments]) == 0


def test_a_start_after_the_end_of_the_bag_is_refused_before_the_node_starts(tmp_path, capsys):
    arguments = ["--start", "900", "--out", str(tmp_path / "out"), *SMALL]
    assert cli.main(["replay", str(images_bag(tmp_path / "bag", 6)), *arguments]) == 2
    assert re.search(r"--start is 900\.0, but \S+/bag is only 0\.50 s long", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_while_the_bag_is_opened_to_play_it(tmp_path, capfd, monkeypatch, number):
    """The node is active then, and no image was sent."""
    starts = []
    start = player._Player.play

    def play(self):
        starts.append(self)
        monkeypatch.setattr(bag_process.subprocess, "Popen", popen)
        start(self)

    def popen(*arguments, **options):
        signal.raise_signal(number)
        return process(*arguments, **options)

    process = subprocess.Popen
    monkeypatch.setattr(player._Player, "play", play)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        out = tmp_path / "out"
        assert cli.main(["replay", str(images_bag(tmp_path / "bag", 5)), "--out", str(out), *SMALL]) == 130
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert starts and "(stopped early)" in capfd.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert (report["frames_sent"], report["complete"], report["ended"]) == (0, False, "")
