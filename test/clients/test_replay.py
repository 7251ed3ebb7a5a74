"""The command `raymap3r replay`: its report, its exit status and its errors."""

import json
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Writer1
from rosbags.typesys import Stores, get_typestore

sys.path.insert(0, str(Path(__file__).parent))
from bags import images_bag, picture, transform, transforms, write_bag

from raymap3r_ros import cli
from raymap3r_ros.clients import graph, player, replay
from raymap3r_ros.clients.bag import ReplayOptions
from raymap3r_ros.errors import InputError, OptionError, Raymap3rError
from raymap3r_ros.io.output_folder import claim
from raymap3r_ros.node.conversions import pose_numbers


def test_the_command_reports_and_scores(rendered, tmp_path, capfd):
    arguments = ["replay", str(rendered), "--topic", "/camera/image_raw", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--rate", "0", "--rule", "cut3r", "--device", "cpu"]) == 0
    printed = capfd.readouterr().out
    assert "frames     sent 12   processed 12   dropped 0   lost 0\n" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["complete"] and report["truth"] == "odometry /ground_truth/odometry of camera_optical_frame"
    assert report["parameters"]["update_rule"] == "cut3r" and report["parameters"]["every_frame"] is True
    assert report["node"]["update rule"] == "cut3r" and report["latency"]["median"] > 0
    (world,) = report["worlds"]
    assert world["frames"] == world["frames_with_truth"] == 12
    # Better than a camera at rest.
    assert 0 < world["score"]["ate"] < world["score"]["ate_constant"]
    lines = (tmp_path / "trajectory.txt").read_text().splitlines()
    assert len(lines) == 13 and (tmp_path / "report.txt").read_text() in printed
    assert cli.main(arguments) == 2  # a report exists already
    report |= {"frames_dropped": 3, "worlds": [], "latency": None}
    text = "\n".join(replay._text(replay.ReplayReport(**report)))
    assert "set every_frame of the node to true" in text and "every_frame" not in printed


def test_frames_without_the_transform_of_the_mode_are_reported_with_the_reason(rendered, tmp_path, capfd):
    arguments = ["replay", str(rendered), "--topic", "/camera/image_raw", "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main([*arguments, "--rate", "0", "--rule", "cut3r", "--tf-mode", "base", "--base-frame", "robot"]) == 1
    printed = capfd.readouterr().out
    assert "processed 0 " in printed and "without a pose 12" in printed and "unanswered" not in printed
    assert "transform  no transform robot -> camera_optical_frame" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["frames_without_pose"], report["frames_unanswered"]) == (12, 0)
    assert report["node"]["frames without pose"] == "12"


def test_ctrl_c_ends_cleanly_with_the_report_so_far(tmp_path, capfd, monkeypatch):
    poses = []

    def interrupt_after_two(*pose):
        poses.append(pose)
        if len(poses) == 2:
            signal.raise_signal(signal.SIGINT)
        return pose_numbers(*pose)

    monkeypatch.setattr(player, "pose_numbers", interrupt_after_two)
    bag, out = images_bag(tmp_path / "bag", 100), tmp_path / "out"
    arguments = ["--rate", "0.5", "--checkpoint", "mini", "--size", "48", "--device", "cpu"]
    assert cli.main(["replay", str(bag), "--out", str(out), *arguments]) == 130
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed and "(stopped early)" in printed
    report = json.loads((out / "report.json").read_text())
    assert not report["complete"] and 2 <= report["frames_processed"] <= report["frames_sent"] < 100
    assert report["worlds"][0]["frames"] == report["frames_processed"]


def error_of(capsys, *arguments):
    assert cli.main(["replay", *map(str, arguments)]) == 2
    text = capsys.readouterr().err
    assert text.startswith("raymap3r: error: ") and text.count("error") == 1
    return text


def test_a_node_that_does_not_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(graph, "DISCOVERY_TIME", 0.1)
    monkeypatch.setattr(graph, "APPEAR_LIMIT", 0.2)
    bag = images_bag(tmp_path / "bag", 2)
    assert cli.main(["replay", str(bag), "--node", "/absent"]) == 2
    text = capsys.readouterr().err
    assert "there is no node /absent in ROS domain " in text and "start it, correct its name" in text


def test_unusable_input_is_one_clear_line(tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", [(0.0, "/tf", transforms(transform(0, "a", "b")))])
    error = error_of(capsys, bag)
    assert error.endswith("no image topic with messages in this bag; its topics: /tf (tf2_msgs/msg/TFMessage)\n")
    assert "there is no such file or folder" in error_of(capsys, tmp_path / "nothing")
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures" / "0.png"), picture(0))
    assert "is no ROS 2 bag" in error_of(capsys, tmp_path / "pictures")
    with Writer1(tmp_path / "old.bag") as writer:
        ros1 = get_typestore(Stores.ROS1_NOETIC)
        image = ros1.types["sensor_msgs/msg/Image"](
            header=ros1.types["std_msgs/msg/Header"](0, ros1.types["builtin_interfaces/msg/Time"](1, 0), "camera"),
            height=1, width=1, encoding="mono8", is_bigendian=0, step=1, data=np.zeros(1, np.uint8),
        )  # fmt: skip
        topic = writer.add_connection("/image", image.__msgtype__, typestore=ros1)
        writer.write(topic, 10**9, ros1.serialize_ros1(image, image.__msgtype__))
    assert "rosbags-convert --src old.bag --dst old_ros2" in error_of(capsys, tmp_path / "old.bag")
    assert "no image topic /other" in error_of(capsys, images_bag(tmp_path / "images"), "--topic", "/other")
    assert "--rate is -1.0; allowed range" in error_of(capsys, bag, "--rate", -1)
    assert "--max-gap is 0.0; allowed range" in error_of(capsys, bag, "--max-gap", 0)
    (tmp_path / "file").touch()
    assert "is a file" in error_of(capsys, tmp_path / "images", "--out", tmp_path / "file")


def test_parameters_for_a_running_node_are_refused(tmp_path):
    bag = images_bag(tmp_path / "bag")
    with pytest.raises(OptionError, match="device: the node /eye is already running"):
        replay.run(bag, ReplayOptions(rate=0.0), tmp_path / "out", node="/eye", parameters={"device": "cpu"})


@pytest.mark.parametrize(
    ("node", "domain", "reason"),
    [("/robot/ray map", "", "must not contain"), ("/1x", "", "starts with a number"), ("/a/", "", "must not end"),
     ("/eye", "233", "allowed: 0 to 232")],
)  # fmt: skip
def test_a_replay_that_cannot_begin_keeps_an_earlier_report(tmp_path, monkeypatch, node, domain, reason):
    (tmp_path / "out").mkdir()
    claim(tmp_path / "out", "report.json").touch()
    if domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", domain)
    with pytest.raises(Raymap3rError, match=reason):
        replay.run(images_bag(tmp_path / "bag"), ReplayOptions(rate=0.0), tmp_path / "out", node=node, overwrite=True)
    assert (tmp_path / "out" / "report.json").exists()


def test_overwrite_keeps_unrelated_files(tmp_path):
    kept = ["notes.md", "report_json", "report_txt", "trajectory_mine.txt", "trajectory_txt"]
    for name in ["report.json", "report.txt", "trajectory.txt", "trajectory_2.txt", *kept]:
        (tmp_path / name if name in kept else claim(tmp_path, name)).touch()
    with pytest.raises(InputError, match="holds files already"):
        replay.prepare_folder(tmp_path)
    replay.prepare_folder(tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    (tmp_path / "trajectory.txt").write_text("measured")
    with pytest.raises(InputError, match=r"trajectory\.txt in the way"):
        replay.prepare_folder(tmp_path, overwrite=True)
