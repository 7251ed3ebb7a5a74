"""The sensor for the metric scale in a replay: its topic is found in the bag, played and received by the node."""

import json
import sys
from contextlib import closing
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bags import START, images_bag, picture, raw, reading, sensors_bag, transform, transforms, wheels, write_bag

from raymap3r_ros import cli
from raymap3r_ros.clients.bag import ReplayOptions, open_bag
from raymap3r_ros.errors import InputError
from raymap3r_ros.io.bag_reader import BagReader
from raymap3r_ros.mapping.scale import MetricScale


def test_the_range_sensor_is_played(active_bench, replay_into, tmp_path, monkeypatch):
    mount = transform(0, "camera", "ranger", (0.25, 0.5, 0.75))
    path = sensors_bag(
        tmp_path / "bag",
        ("/sonar/left", lambda i: reading(i / 10)),
        ("/sonar/front", lambda i: reading(i / 10 if i else None, 3.0 + i)),  # the first one without a stamp
        first=[(0.0, "/tf_static", transforms(mount))],
    )
    options = ReplayOptions(rate=0.0, range="sonar/front")
    bag = open_bag(path, options)
    received, mounts = [], []
    monkeypatch.setattr(MetricScale, "add_range", lambda scale, one: received.append(one))
    monkeypatch.setattr(MetricScale, "mount_ranger", lambda scale, pose: mounts.append(pose))
    bench = active_bench(bag, **{"scale.source": "range"})
    playback = replay_into(bench, bag, options)
    bench.wait(lambda: len(received) == 3, "all readings")
    assert [one.stamp - START for one in received] == pytest.approx([0.0, 0.1, 0.2], abs=1e-6)
    assert [one.distance for one in received] == [3.0, 4.0, 5.0]
    assert {(one.low, one.high, one.field_of_view) for one in received} == {(0.25, 8.0, 0.125)}
    bench.wait(lambda: mounts, "the pose of the sensor in the camera's frame")
    assert mounts[-1][:3, 3].tolist() == [0.25, 0.5, 0.75]
    assert playback.scale_topic == "/sonar/front"
    assert playback.diagnostics[f"publishers of {bench.namespace}/range"] == "1"


def test_wheel_odometry_is_found_beside_the_ground_truth_and_played(active_bench, replay_into, tmp_path, monkeypatch):
    path = sensors_bag(
        tmp_path / "bag",
        ("/base/ground_truth", lambda i: wheels(i / 10, -1.0)),
        ("/wheels", lambda i: wheels(i / 10, float(i))),
        ("/rig", lambda i: wheels(i / 10, -2.0)),
    )
    bag = open_bag(path)
    received = []
    monkeypatch.setattr(MetricScale, "add_odometry", lambda scale, stamp, pose: received.append((stamp, pose[0, 3])))
    bench = active_bench(bag, **{"scale.source": "odometry"})
    playback = replay_into(bench, bag, ReplayOptions(rate=0.0, truth="rig"))
    bench.wait(lambda: len(received) == 3, "all odometry")
    assert [place for _, place in received] == [0.0, 1.0, 2.0]
    assert [stamp - START for stamp, _ in received] == pytest.approx([0.0, 0.1, 0.2], abs=1e-6)
    assert playback.scale_topic == "/wheels"
    assert playback.diagnostics[f"publishers of {bench.namespace}/wheel_odometry"] == "1"
    # The topic of the scale can also be the ground truth.
    assert playback.ground_truth.poses([playback.frames[0].stamp], "wheels").source.startswith("odometry /wheels")


def test_odometry_faster_than_the_camera_is_received_completely(active_bench, replay_into, tmp_path, monkeypatch):
    messages = [(i / 50, "/wheels", wheels(i / 50, float(i))) for i in range(150)]
    messages += [(i / 10 + 0.001, "/image", raw(i / 10, picture(i))) for i in range(30)]
    bag = open_bag(write_bag(tmp_path / "bag", sorted(messages, key=lambda one: one[0])))
    received = []
    monkeypatch.setattr(MetricScale, "add_odometry", lambda scale, stamp, pose: received.append(pose[0, 3]))
    bench = active_bench(bag, **{"scale.source": "odometry"})
    assert len(replay_into(bench, bag).poses) == 30
    bench.wait(lambda: len(received) == 150, "all odometry")
    assert received == list(range(150))


def test_ambiguous_topic_for_the_scale_of_a_running_node_is_refused(active_bench, replay_into, tmp_path):
    bag = open_bag(sensors_bag(tmp_path / "bag", *((f"/sonar/{i}", lambda i: reading(i / 10)) for i in range(2))))
    bench = active_bench(bag, **{"scale.source": "range"})
    with pytest.raises(
        InputError, match=r"with --range; of type sensor_msgs/msg/Range the bag has: /sonar/0, /sonar/1$"
    ):
        replay_into(bench, bag)
    assert bench.diagnostics["frames in"] == "0"


def test_topic_of_another_scale_source_is_not_played(active_bench, replay_into, tmp_path, caplog):
    bag = open_bag(sensors_bag(tmp_path / "bag", ("/sonar", lambda i: reading(i / 10))))
    playback = replay_into(active_bench(bag), bag, ReplayOptions(rate=0.0, range="/sonar"))
    assert playback.scale_topic == "" and len(playback.poses) == 3
    assert "/sonar is not played: scale.source is fixed, not range" in caplog.text


def test_the_command_finds_the_scale(rendered, tmp_path, capfd):
    """With the only range sensor of the bag; its readings are far from the ground truth."""
    with closing(BagReader(rendered)) as reader:
        wanted = ["/camera/image_raw", "/camera/camera_info"]
        messages = [(recorded * 1e-9 - START, topic, message) for topic, recorded, message in reader.messages(wanted)]
    images = [message for _, topic, message in messages if topic == wanted[0]]
    for image in images:
        one = reading(0.0, 6.5)
        one.header.stamp = image.header.stamp
        recorded = image.header.stamp.sec - START + image.header.stamp.nanosec * 1e-9
        messages.append((recorded, "/sonar", one))
    messages.sort(key=lambda one: one[0])
    bag = write_bag(tmp_path / "bag", messages)
    out = tmp_path / "out"
    arguments = ["--device", "cpu", "--scale-source", "range"]
    assert cli.main(["replay", str(bag), "--out", str(out), *arguments]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["scale_topic"] == "/sonar" and report["node"]["publishers of /raymap3r_replay/range"] == "1"
    assert int(report["node"]["scale observations"]) > 0
    assert f"scale      {report['node']['scale']}, /sonar\n" in capfd.readouterr().out


def error_of(capsys, *arguments):
    assert cli.main(["replay", *map(str, arguments)]) == 2
    text = capsys.readouterr().err
    assert text.startswith("raymap3r: error: ") and text.count("error") == 1
    return text


def test_topic_for_the_scale_must_be_in_the_bag(tmp_path, capsys):
    bag = sensors_bag(
        tmp_path / "bag", ("/sonar", lambda i: reading(i / 10)), ("/left", lambda i: wheels(i / 10)),
        ("/right", lambda i: wheels(i / 10)),
    )  # fmt: skip
    ranges, odometry = "sensor_msgs/msg/Range", "nav_msgs/msg/Odometry"
    assert error_of(capsys, bag, "--range", "/nothing").endswith(
        f"no topic /nothing of type {ranges}; the bag has: /sonar\n"
    )
    assert error_of(capsys, bag, "--range", "left").endswith(f"no topic /left of type {ranges}; the bag has: /sonar\n")
    assert error_of(capsys, bag, "--wheel-odometry", "/sonar").endswith(
        f"no topic /sonar of type {odometry}; the bag has: /left, /right\n"
    )
    assert error_of(capsys, bag, "--scale-source", "odometry").endswith(
        f"--scale-source is odometry: select its topic with --wheel-odometry; of type {odometry} the "
        "bag has: /left, /right\n"
    )
    images = images_bag(tmp_path / "images")
    assert error_of(capsys, images, "--scale-source", "range").endswith(f"of type {ranges} the bag has: none\n")
