"""Static map, grid and paths of the node over several worlds, with a stream that shows walls."""

import numpy as np
import pytest
from sensor_msgs_py.point_cloud2 import read_points
from std_msgs.msg import Header

from raymap3r_ros.node import conversions, map_publisher, reporter
from raymap3r_ros.node.map_publisher import MapPublisher
from raymap3r_ros.streaming import METHOD

WARMUP = METHOD.warmup_frames  # the first frames of a world have no dynamic mask
WALL_SIZE, WALL_FOCAL = (8, 6), 8.0  # of the images of a FakeStream


def wall(depth):
    """(6, 8, 3) points of a wall straight ahead, for a FakeStream."""
    columns, rows = np.meshgrid((np.arange(8) - 4) / WALL_FOCAL, (np.arange(6) - 3) / WALL_FOCAL)
    return np.stack([columns, rows, np.ones((6, 8))], -1) * depth


def wait_for_map(bench, sent):
    """Wait for the static map that includes this image as its last."""
    bench.wait(
        lambda: bench.messages["static_map"] and bench.messages["static_map"][-1].header.stamp == sent.header.stamp,
        "the map with the last image",
    )
    return bench.messages["static_map"][-1]


def ahead(cloud):
    """Set of the distances ahead of the points of a map, in metres."""
    return set(np.unique(read_points(cloud)["x"].round(3)).tolist())


def test_map_is_discarded_at_the_image_after_a_reset_without_alignment(make_bench, fake_stream):
    bench = make_bench(every_frame=True, reset_alignment="off", static_map__rate=30.0, static_map__voxel_size=0.05)
    bench.start("static_map")
    stream = fake_stream(bench)

    def distances_after(index, depth, reason=""):
        """Distances of the map's points after an image of a wall at this depth."""
        stream.enqueue(np.eye(4), wall(depth), WALL_FOCAL, reason)
        return ahead(wait_for_map(bench, bench.send(index, size=WALL_SIZE)))

    for index in range(WARMUP):
        stream.enqueue(np.eye(4), wall(2.0), WALL_FOCAL)
        bench.send(index, size=WALL_SIZE)
    assert distances_after(WARMUP, 2.0) == distances_after(WARMUP + 1, 2.0) == {2.0}
    assert distances_after(WARMUP + 2, 1.5, "interval") == {1.5, 2.0}  # old memory; nearer: none removed
    # In the old map, a wall observed twice would remain after one observation of free space.
    assert distances_after(WARMUP + 3, 4.0) == {4.0}


def test_subscribers_receive_an_empty_map_when_a_new_world_starts(make_bench, fake_stream):
    bench = make_bench(every_frame=True, static_map__rate=30.0, static_map__voxel_size=0.05, occupancy__enabled=True)
    bench.start("pose", "static_map", "occupancy")
    stream = fake_stream(bench)

    def send(first, count):
        for index in range(first, first + count):
            stream.enqueue(np.eye(4), wall(2.0), WALL_FOCAL)
            sent = bench.send(index, size=WALL_SIZE)
        bench.wait_for("pose", first + count)
        return sent

    send(0, WARMUP)  # no frames that can be mapped, so no map to clear
    sent = send(WARMUP, 1)
    assert wait_for_map(bench, sent).width > 0
    assert all(cloud.width > 0 for cloud in bench.messages["static_map"])
    assert len(bench.wait_for("occupancy").data) > 1
    before = len(bench.messages["static_map"])
    assert bench.reset().success
    sent = send(WARMUP + 1, 1)  # the first images of the new world are not mapped
    empty = bench.wait_for("static_map", before + 1)
    assert empty.header.stamp == sent.header.stamp
    assert (empty.width, len(empty.data), empty.header.frame_id) == (0, 0, "map")
    bench.wait(lambda: len(bench.messages["occupancy"][-1].data) == 1, "the smallest grid")
    grid = bench.messages["occupancy"][-1]
    assert (grid.data[0], grid.header) == (-1, empty.header)
    bench.subscribe("static_map")  # a late subscriber receives the same message from DDS
    assert bench.wait_for("static_map", before + 2) == empty


def test_map_and_path_continue_if_the_camera_is_found_again(make_bench, fake_stream):
    """Not after a reset that a user requests, nor if the stamps jump back."""
    bench = make_bench(every_frame=True, static_map__rate=30.0, static_map__voxel_size=0.05)
    bench.start("pose", "static_map", "trajectory")
    stream = fake_stream(bench)

    def send(times, depth, reason=""):
        for time in times:
            stream.enqueue(np.eye(4), wall(depth), WALL_FOCAL, reason)
            sent = bench.send(time=time, size=WALL_SIZE)
        return sent

    def poses(count):
        bench.wait(lambda: [len(path.poses) for path in bench.messages["trajectory"][-1:]] == [count], "the path")

    times = np.arange(WARMUP + 2) / 5
    assert ahead(wait_for_map(bench, send(times, 2.0))) == {2.0}
    assert ahead(wait_for_map(bench, send(100 + times, 3.0))) == {3.0}  # stamps jump: a new world
    poses(len(times))
    # The third wall is 1.5 m away, in front of the first one: both remain.
    assert ahead(wait_for_map(bench, send([102.0], 1.5, "returned"))) == {1.5, 2.0}
    poses(len(times) + 1)
    assert bench.wait_for_log("is found again in an earlier world")
    send([50.0], 2.0)
    bench.wait_for_log("stamps jump back")
    bench.wait_for_frames(2 * len(times) + 2)
    assert stream._left is None
    assert bench.reset().success
    send([50.2], 2.0)
    bench.wait_for_frames(2 * len(times) + 3)
    assert stream._left is None


def test_blank_images_reach_no_network_and_may_hide_a_journey(make_bench, fake_stream):
    bench = make_bench(every_frame=True, max_gap=0.55)
    bench.start("pose")
    stream = fake_stream(bench)
    black = conversions.image_message(Header(), np.zeros((WALL_SIZE[1], WALL_SIZE[0], 3), np.uint8), "rgb8")
    worlds, index = [], 0
    for dark in (4, 5):
        stream.enqueue(np.eye(4), wall(2.0), WALL_FOCAL)
        bench.send(index, size=WALL_SIZE)
        for number in range(dark):
            bench.send(index + 1 + number, message=black)
        index += dark + 1
        stream.enqueue(np.eye(4), wall(2.0), WALL_FOCAL)
        bench.send(index, size=WALL_SIZE)
        bench.wait_for_frames(2 + 2 * len(worlds))
        worlds.append((stream._world, stream._left))
        index += 1
    assert [number for number, _ in worlds] == [0, 1] and worlds[1][1][0] == 0  # it is searched for in world 0
    assert bench.current_diagnostics()["blank frames"] == "9"
    bench.wait_for_logs("the images are blank", 1)
    assert bench.wait_for_log("a new world starts (blank images)")
    bench.wait_for("pose", 4)


def test_map_uses_every_image_of_a_10_hz_camera(make_bench, fake_stream, monkeypatch):
    """Also with jitter in its stamps; of a faster camera it uses every second or third image."""
    random = np.random.default_rng(0)
    bench = make_bench(every_frame=True, static_map__always=True)
    bench.start("pose")
    stream, integrated = fake_stream(bench), []
    integrate = MapPublisher.integrate

    def spy(self, result, stamp, placement):
        integrated.append(stamp)
        integrate(self, result, stamp, placement)

    monkeypatch.setattr(MapPublisher, "integrate", spy)
    expected, sent, start = [], 0, 0.0
    for rate in (10, 20, 30):
        times = start + np.arange(WARMUP + rate) / rate + random.uniform(-0.0035, 0.0035, WARMUP + rate)
        for time in times:
            stream.enqueue(np.eye(4), wall(2.0), WALL_FOCAL)
            bench.send(time=time, size=WALL_SIZE)
        expected += [bench.stamp(time) for time in times[WARMUP :: rate // 10]]
        start = times[-1] + 10.0  # a jump of the stamps: a new world and a new map
        sent += len(times)
        bench.wait_for_frames(sent)
    assert bench.change_state("deactivate")  # after this the last image is in the map too
    assert integrated == expected and len(integrated) == 30


@pytest.mark.parametrize(
    ("owner", "name", "topic"),
    [(conversions, "map_message", "static_map"), (map_publisher, "occupancy_grid", "occupancy")],
)
def test_failure_to_publish_a_map_is_reported_once_and_retried(
    make_bench, fake_stream, monkeypatch, owner, name, topic
):
    bench = make_bench(every_frame=True, static_map__rate=30.0, occupancy__enabled=True)
    bench.start("static_map", "occupancy")
    stream, attempts = fake_stream(bench), []
    monkeypatch.setattr(reporter, "THROTTLE", 1e6)  # also on a slow machine

    def fail(*arguments):
        attempts.append(arguments)
        raise RuntimeError("no memory, as a test")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        for index in range(WARMUP + 1):
            stream.enqueue(np.eye(4), wall(2.0), WALL_FOCAL)
            sent = bench.send(index, size=WALL_SIZE)
        bench.wait(lambda: len(attempts) >= 3, "attempts")
        assert not bench.messages[topic]
    # It is published without another image.
    assert bench.wait_for(topic).header.stamp == sent.header.stamp
    line = bench.wait_for_log("static map not published: no memory, as a test", level=40)
    assert "Traceback" in line and bench.count_logs("not published") == 1
    bench.wait_for_diagnostics("last error", "static map not published: no memory, as a test")
    stream.enqueue(np.eye(4), wall(2.0), WALL_FOCAL)
    sent = bench.send(WARMUP + 1, size=WALL_SIZE)
    wait_for_map(bench, sent)
    assert len(bench.messages["static_map"]) == 2  # one for each image, whether or not the grid is published
