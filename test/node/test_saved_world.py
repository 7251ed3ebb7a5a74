"""Sessions of the node: ~/save, and nodes that begin in the saved world."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree
from sensor_msgs_py.point_cloud2 import read_points
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from test_world import MOUNT, camera_poses, mount_camera

from raymap3r_ros.evaluation.kidnap import FAR, WITHIN
from raymap3r_ros.io.ply import read_ply
from raymap3r_ros.network import load_network
from raymap3r_ros.node import conversions
from raymap3r_ros.streaming.world_files import load_world

SCALE = 2.0
FIRST, SECOND = slice(0, 40), slice(20, 40)  # frames of the first session, and of later ones in the same place
OPTIONS = {"every_frame": True, "static_map__always": True, "static_map__rate": 30.0, "confidence_threshold": 1.0}


def show(bench, frames, start=0):
    """Send the frames, and wait until all are processed."""
    before = int(bench.current_diagnostics()["frames out"])
    bench.send_camera_info(width=64, height=48, k=frames[0].intrinsics.ravel().tolist())
    bench.wait_for_camera_info()
    for index, frame in enumerate(frames, start):
        bench.send(index, message=conversions.image_message(Header(), frame.image, "rgb8"))
    bench.wait_for_frames(before + len(frames))


def trigger(bench, name):
    return bench.call(Trigger, name, Trigger.Request())


@pytest.fixture
def session(make_bench, stays, tmp_path):
    """The bench of a first session, its mount, and the folder that it has saved."""
    bench = make_bench(tf_mode="base", scale__value=SCALE, output_dir=str(tmp_path / "out"), **OPTIONS)
    bench.start("pose", "static_map")
    mount = mount_camera(bench)
    show(bench, stays[0][FIRST])
    bench.wait_for("pose", 40)
    response = trigger(bench, "save")
    (folder,) = (tmp_path / "out").iterdir()
    assert response.success and " keyframes, settings" in response.message
    return bench, mount, folder


def test_a_second_session_continues_in_the_saved_world(session, make_bench, stays, tmp_path):
    first, _, folder = session
    network = load_network("one_room")
    world = load_world(folder / "world.safetensors", network)
    assert (world.place.scale, world.place.scale_known) == (SCALE, False)  # it was fixed
    # The world is the base at the first image, whose camera is near the origin of the stream.
    np.testing.assert_allclose(world.place.world_from_stream[:3, 3], MOUNT[:3, 3], atol=0.05)
    np.testing.assert_allclose(camera_poses(first)[0], MOUNT, atol=1e-5)
    points, colors = read_ply(folder / "static_map.ply")
    bench = make_bench(
        memory=str(folder / "world.safetensors"), tf_mode="base", scale__value=SCALE, output_dir=str(tmp_path / "two"),
        static_map__max_points=2_000_000, **OPTIONS,
    )  # fmt: skip
    bench.start("pose", "static_map")
    line = bench.wait_for_log("searching for the camera in")
    assert f"{len(points)} points of the map" in line and str(folder) in line
    broadcaster = mount_camera(bench)
    show(bench, stays[0][SECOND])
    assert broadcaster is not None
    bench.wait_for("pose", 20)
    found = bench.wait_for_logs("found again", 1)
    frame = int(found.removeprefix("frame ").partition(":")[0])
    assert frame <= WITHIN
    # From then on the poses in `map` are those of the first session for the same images.
    before, after = (np.stack(camera_poses(one))[:, :3, 3] for one in (first, bench))
    assert np.linalg.norm(after[frame:] - before[SECOND][frame:], axis=1).max() < FAR * SCALE
    assert np.linalg.norm(after[:frame] - before[SECOND][:frame], axis=1).max() > FAR * SCALE
    # The map has the saved points, and new ones.
    assert trigger(bench, "save").success
    (second,) = (tmp_path / "two").iterdir()
    now, now_colors = read_ply(second / "static_map.ply")
    distance, nearest = cKDTree(now).query(points)
    size = world.place.voxel_size
    assert 0.002 < size < 0.5 and len(now) > 0.9 * len(points)
    assert (distance < size).mean() > 0.95
    near = distance < 0.1 * size
    assert near.mean() > 0.3
    shift = np.abs(now_colors[nearest[near]].astype(int) - colors[near])
    assert np.median(shift) <= 2
    again = load_world(second / "world.safetensors", network)
    np.testing.assert_allclose(again.place.world_from_stream, world.place.world_from_stream)
    assert again.place.voxel_size == pytest.approx(size)
    assert again.keyframes.number[0, 0] == world.keyframes.number[0, 0]


def test_the_saved_map_is_published_when_the_camera_is_found(session, make_bench, stays):
    _, _, folder = session
    points, _ = read_ply(folder / "static_map.ply")
    options = {**OPTIONS, "static_map__always": False}
    bench = make_bench(memory=str(folder / "world.safetensors"), scale__value=SCALE, **options)
    bench.start("pose")
    show(bench, stays[0][SECOND])
    bench.wait_for_logs("found again", 1)
    assert "static map (points)" in bench.current_diagnostics()
    bench.subscribe("static_map")
    cloud = read_points(bench.wait_for("static_map"))
    shown = np.stack([cloud[axis] for axis in "xyz"], -1)
    assert len(shown) == len(points) and cKDTree(points).query(shown)[0].max() < 1e-4


def test_another_room_is_a_world_of_its_own(session, make_bench, stays):
    _, _, folder = session
    bench = make_bench(memory=str(folder / "world.safetensors"), **OPTIONS)
    bench.start("pose")
    show(bench, stays[1])
    bench.wait_for("pose", 40)
    bench.wait_for_logs("a new world starts (start)", 1)
    assert bench.count_logs("found again") == 0
    np.testing.assert_allclose(camera_poses(bench)[0][:3, 3], 0, atol=0.05)


def test_load_searches_in_a_running_node(session, stays):
    bench, _, folder = session
    response = trigger(bench, "load")
    assert not response.success and "memory" in response.message
    assert bench.set_parameter("memory", str(folder / "world.safetensors")).successful
    response = trigger(bench, "load")
    assert response.success and "keyframes" in response.message
    show(bench, stays[0][SECOND], start=40)
    bench.wait_for("pose", 60)
    bench.wait_for_log("a new world starts (load)")
    bench.wait_for_logs("found again", 1)
    poses = np.stack(camera_poses(bench))[:, :3, 3]
    assert np.linalg.norm(poses[52:60] - poses[32:40], axis=1).max() < FAR * SCALE
    assert bench.reset().success  # nothing is searched for after it
    show(bench, stays[0][SECOND], start=60)
    bench.wait_for_logs("found again", 1)


def damaged(folder: Path, name: str, target: Path) -> Path:
    """A copy of a saved folder in which one of the files is cut."""
    shutil.copytree(folder, target)
    content = (folder / name).read_bytes()
    (target / name).write_bytes(content[:-3])
    return target / "world.safetensors"


def test_files_that_are_refused(session, make_bench, tmp_path):
    """`configure` fails with the reason, and ~/load returns it; the node continues."""
    running, _, folder = session
    good = folder / "world.safetensors"
    cases = {
        "File name too long": {"memory": str(tmp_path / ("w" * 300 + ".safetensors"))},
        "is missing": {"memory": str(tmp_path / "none.safetensors")},
        "not a readable safetensors file": {"memory": str(damaged(folder, "world.safetensors", tmp_path / "a"))},
        "static_map.ply is not a point cloud": {"memory": str(damaged(folder, "static_map.ply", tmp_path / "b"))},
        "other weights": {"memory": str(good), "checkpoint": "mini"},
        "keyframes.relocalize is false": {"memory": str(good), "keyframes__relocalize": False},
        "keyframes.size is 0": {"memory": str(good), "keyframes__size": 0},
        "without ~": {"memory": "~nobody_of_this_name/world.safetensors"},
    }
    for reason, parameters in cases.items():
        bench = make_bench(**parameters)
        assert not bench.change_state("configure"), reason
        assert reason in bench.wait_for_log("configure failed", level=40)
        assert bench.state() == "unconfigured"
        assert bench.set_parameter("memory", "").successful and bench.change_state("configure")
        if len(parameters) == 1:
            assert running.set_parameter("memory", parameters["memory"]).successful
            response = trigger(running, "load")
            assert not response.success and reason in response.message and "\n" not in response.message
    assert trigger(running, "save").success and running.state() == "active"
    assert running.count_logs("Traceback") == 0


def test_load_needs_a_configured_node(make_bench):
    bench = make_bench()
    response = trigger(bench, "load")
    assert not response.success and "not configured" in response.message


def test_save_without_keyframes(make_bench, stays, tmp_path):
    bench = make_bench(output_dir=str(tmp_path), keyframes__size=0, **OPTIONS)
    bench.start("pose")
    show(bench, stays[0][:8])
    response = trigger(bench, "save")
    assert response.success and "no keyframes" in response.message
    assert not list(tmp_path.glob("*/world.safetensors"))
