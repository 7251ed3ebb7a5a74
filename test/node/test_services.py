"""Services and parameters of a running node: pause, save, parameter changes."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from std_srvs.srv import SetBool, Trigger

from raymap3r_ros.node import conversions, diagnostics, parameters
from raymap3r_ros.node.map_publisher import MapPublisher
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.streaming import METHOD

WARMUP = METHOD.warmup_frames  # the first frames of a world have no dynamic mask


def pause(bench, value):
    return bench.call(SetBool, "set_paused", SetBool.Request(data=value))


def save(bench):
    return bench.call(Trigger, "save", Trigger.Request())


# --------------------------------------------------------------------------------------------------------------- pause


def test_paused_node_skips_images_and_then_continues_in_the_same_world(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose", "trajectory")
    for index in range(3):
        bench.send(index)
    bench.wait_for("pose", 3)
    assert pause(bench, True).success
    bench.wait(lambda: bench.diagnostics.get("state") == "paused", "diagnostics of the paused node")
    for index in range(3, 6):
        bench.send(index)
    bench.wait_for_diagnostics("frames paused", 3)
    assert pause(bench, False).success
    bench.send(time=500.0)  # a gap after a pause is not a jump of the stamps
    assert bench.wait_for("pose", 4).header.stamp.sec == bench.stamp(500.0).sec
    bench.wait_for_diagnostics("resets", 0)
    assert bench.times("pose") == [0.0, 0.1, 0.2, 500.0] and bench.count_logs("a new world starts") == 1


@pytest.mark.parametrize("state", ["paused", "inactive"])
def test_images_are_not_missed_right_after_a_pause(make_bench, monkeypatch, state):
    passed = 0.0
    monkeypatch.setattr(diagnostics, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed))
    monkeypatch.setattr(diagnostics, "WINDOW", 600.0)
    bench = make_bench()
    bench.start("pose")
    bench.send(0)
    bench.wait_for("pose", 1)
    assert pause(bench, True).success if state == "paused" else bench.change_state("deactivate")
    passed = 1e4
    assert pause(bench, False).success if state == "paused" else bench.change_state("activate")
    count = len(bench.statuses)
    bench.wait(lambda: len(bench.statuses) >= count + 3, "diagnostics")
    assert not any("no images are arriving" in text for _, text in bench.statuses[count + 1 :])


@pytest.mark.parametrize("state", ["paused", "inactive"])
def test_stamps_may_advance_but_not_go_back_while_the_node_is_paused_or_inactive(make_bench, state):
    bench = make_bench(every_frame=True)
    bench.start("pose", "trajectory")

    def poses_after(time):
        """Number of poses in the trajectory after an image of this time."""
        sent = bench.send(time=time)
        received = bench.messages["trajectory"]
        bench.wait(lambda: received and received[-1].header.stamp == sent.header.stamp, f"trajectory up to {time}")
        return len(received[-1].poses)

    def interrupt():
        if state == "paused":
            assert pause(bench, True).success and pause(bench, False).success
            return
        assert bench.change_state("deactivate")
        bench.wait(lambda: not bench.publishers["image"].get_subscription_count(), "end of the subscription")
        assert bench.change_state("activate")
        bench.wait_for_match()

    assert [poses_after(0.0), poses_after(0.5)] == [1, 2]
    interrupt()
    assert [poses_after(300.0), poses_after(300.5)] == [3, 4]  # the world continues
    interrupt()
    assert [poses_after(100.0), poses_after(100.5)] == [1, 2]  # a bag that starts again
    if state == "paused":
        assert pause(bench, False).success  # the node was not paused: a gap is a jump
    assert [poses_after(400.0), poses_after(400.5)] == [1, 2]  # a gap is allowed only at the first image after a pause
    bench.wait_for_log("stamps jump back by 200.500 s: the stream is reset", level=30)
    bench.wait_for_log("stamps jump forward by 299.500 s: the stream is reset", level=30)
    bench.wait_for_diagnostics("resets", 2)
    assert bench.count_logs("stamps jump") == 2 and bench.count_logs("a new world starts (time jump)") == 2


def test_paused_node_can_be_cleaned_up_and_starts_unpaused(make_bench):
    bench = make_bench()
    bench.start("pose")
    assert pause(bench, True).success
    for label in ("deactivate", "cleanup", "configure", "activate"):
        assert bench.change_state(label)
    bench.wait(lambda: bench.diagnostics.get("state") == "active", "diagnostics of the active node")


# ---------------------------------------------------------------------------------------------------------------- save


def test_save_writes_trajectory_map_and_settings(make_bench, tmp_path):
    bench = make_bench(
        every_frame=True, output_dir=str(tmp_path / "out"), static_map__always=True, mask__high=6.5, scale__value=2.0,
        confidence_threshold=1.0,
    )  # fmt: skip
    bench.start("pose")
    for index in range(10):
        bench.send(index)
    bench.wait_for_diagnostics("frames out", 10)
    response = save(bench)
    (folder,) = (tmp_path / "out").iterdir()
    assert response.success and str(folder) in response.message and "10 poses" in response.message
    assert {file.name for file in folder.iterdir()} == {
        "trajectory.txt", "trajectory_raw.txt", "static_map.ply", "world.safetensors", "settings.yaml",
    }  # fmt: skip
    lines = (folder / "trajectory.txt").read_text().splitlines()[1:]
    for line, message in zip(lines, bench.messages["pose"], strict=True):
        seconds, *numbers = line.split()
        stamp = message.header.stamp
        assert seconds == f"{stamp.sec}.{stamp.nanosec:09d}"
        position, turn = message.pose.position, message.pose.orientation
        assert [float(number) for number in numbers] == pytest.approx(
            [position.x, position.y, position.z, turn.x, turn.y, turn.z, turn.w], abs=1e-12
        )
    header = (folder / "static_map.ply").read_bytes().split(b"end_header")[0].decode()
    points = int(bench.current_diagnostics()["static map (points)"])
    assert f"element vertex {points}" in header and points > 0
    # The settings configure a second node in the same way.
    values = yaml.safe_load((folder / "settings.yaml").read_text())["/**"]["ros__parameters"]
    assert values["mask"]["high"] == 6.5 and values["scale"]["value"] == 2.0
    again = make_bench(**{name: value for name, value in _flat(values).items()})
    assert parameters.read(again.node, NodeOptions) == parameters.read(bench.node, NodeOptions)
    assert save(bench).success
    assert len(list((tmp_path / "out").iterdir())) == 2


def _flat(values, prefix=""):
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}__") if isinstance(value, dict) else {prefix + name: value}
    return flat


def test_save_without_a_map_reports_it(make_bench, tmp_path):
    bench = make_bench(output_dir=str(tmp_path))
    bench.start("pose")
    bench.send(0)
    bench.wait_for("pose")
    response = save(bench)
    assert response.success and "no static map" in response.message and "static_map.always" in response.message
    assert not list(tmp_path.glob("*/static_map.ply"))
    assert bench.set_parameter("static_map.always", True).successful
    bench.send(1)  # the new value acts on the next frame, which has no dynamic mask yet
    bench.wait_for("pose", 2)
    assert "no static map (it begins with the first image whose dynamic mask is known)" in save(bench).message


def test_a_saved_folder_has_the_poses_that_the_response_counts(make_bench, tmp_path):
    """Also of a camera whose stamps are whole seconds: an image with the stamp of another one is late."""
    bench = make_bench(output_dir=str(tmp_path), every_frame=True)
    bench.start("pose")
    for index in range(6):
        bench.send(index, time=index // 3)
        bench.wait_for("pose", index + 1)
    assert ": 2 poses (4 late images left out), no static map" in save(bench).message
    (saved,) = tmp_path.glob("*/trajectory.txt")
    assert sum(not line.startswith("#") for line in saved.read_text().splitlines()) == 2


def test_save_to_a_folder_that_cannot_be_written_is_an_error(make_bench, tmp_path):
    (tmp_path / "file").write_text("in the way")
    bench = make_bench(output_dir=str(tmp_path / "file"))
    bench.start("pose")
    bench.send(0)
    bench.wait_for("pose")
    response = save(bench)
    assert not response.success and "not saved" in response.message and "output_dir" in response.message
    bench.wait(lambda: any(level == b"\x02" for level, _ in bench.statuses), "error in the diagnostics")
    bench.send(1)
    bench.wait_for("pose", 2)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error, as a test"), MemoryError(), ValueError("odd")])
def test_save_fails_if_the_map_cannot_be_copied_and_the_node_continues(make_bench, tmp_path, monkeypatch, error):
    bench = make_bench(output_dir=str(tmp_path), every_frame=True)
    bench.start("pose")
    bench.send(0)
    bench.wait_for("pose")

    def fail(self):
        raise error

    text = f"not saved: {str(error) or 'MemoryError'}"
    with monkeypatch.context() as patch:
        patch.setattr(MapPublisher, "arrays", fail)
        response = save(bench)
    assert not response.success and response.message == text
    line, _, details = bench.wait_for_log(text, level=40).partition("\n")
    assert line == text and details.lstrip().startswith("Traceback")
    assert not list(tmp_path.iterdir())
    assert save(bench).success
    bench.send(1)
    bench.wait_for("pose", 2)


# ---------------------------------------------------------------------------------------------------------- parameters


def test_live_parameters_take_effect_and_others_are_refused_with_a_reason(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("depth", "points")
    for index in range(WARMUP + 1):
        bench.send(index)
    bench.wait_for("points")
    depth = bench.wait_for("depth", WARMUP + 1)
    assert depth.encoding == "32FC1"
    for name, value in {
        "depth_encoding": "16UC1", "points.stride": 2, "points.static_only": True, "confidence_threshold": 1.0,
        "static_map.rate": 5.0, "static_map.max_points": 2000, "publish_tf": False, "scale.value": 2.0,
        "mask.high": 9.0, "occupancy.resolution": 0.2,
    }.items():  # fmt: skip
        assert bench.set_parameter(name, value).successful, name
    for name, value in {
        "checkpoint": "mini", "update_rule": "ttt3r", "image_size": 32, "tf_mode": "odom", "world_frame": "other",
        "scale.source": "range", "static_map.voxel_size": 1.0, "every_frame": False, "output_dir": "/tmp",
    }.items():  # fmt: skip
        refused = bench.set_parameter(name, value)
        assert not refused.successful and name in refused.reason, name
    bench.send(WARMUP + 1)
    after = bench.wait_for("depth", WARMUP + 2)
    assert after.encoding == "16UC1" and after.step == 2 * after.width
    assert bench.wait_for("points", 2).width <= 48 * 64
    assert bench.change_state("deactivate") and bench.change_state("cleanup")
    assert bench.set_parameter("update_rule", "ttt3r").successful


def test_depth_in_millimetres_equals_depth_in_metres(make_bench):
    seen = {}
    for encoding in ("32FC1", "16UC1"):
        bench = make_bench(every_frame=True, depth_encoding=encoding, mask__high=0.1, mask__low=0.05)
        bench.start("depth", "depth_static", "dynamic_mask")
        for index in range(8):
            bench.send(index)
        moving = [bench.wait_for(topic, 8 - WARMUP) for topic in ("depth_static", "dynamic_mask")]
        seen[encoding] = [bench.wait_for("depth", 8), *moving]
    metres, millimetres = (
        [np.frombuffer(message.data, kind).reshape(96, 128) for message in seen[encoding][:2]]
        for encoding, kind in (("32FC1", np.float32), ("16UC1", np.uint16))
    )
    np.testing.assert_array_equal(millimetres[0], np.rint(metres[0] * np.float32(1000)).astype(np.uint16))
    dynamic = np.frombuffer(seen["16UC1"][2].data, np.uint8).reshape(96, 128) > 0
    assert 0 < dynamic.mean() < 1 and (millimetres[1][dynamic] == 0).all() and np.isnan(metres[1][dynamic]).all()
    np.testing.assert_array_equal(millimetres[1][~dynamic], millimetres[0][~dynamic])


def test_depth_out_of_the_range_of_millimetres_is_unknown(make_bench):
    bench = make_bench(depth_encoding="16UC1", scale__value=1000.0)
    bench.start("depth")
    bench.send(0)
    assert not np.frombuffer(bench.wait_for("depth").data, np.uint16).any()
    assert conversions.seconds(bench.messages["depth"][0].header.stamp) > 0
