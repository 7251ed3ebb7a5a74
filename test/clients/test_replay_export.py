"""The MCAP export is what a live node would have published, and a bag that can be replayed."""

from types import SimpleNamespace

import numpy as np
import pytest
from rclpy.qos import DurabilityPolicy
from rclpy.serialization import deserialize_message
from rosbags.highlevel import AnyReader
from std_msgs.msg import Header

from raymap3r_ros.clients.bag import ReplayOptions, open_bag
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.ply import read_ply
from raymap3r_ros.network import load_network
from raymap3r_ros.node import conversions, map_publisher, publishers
from raymap3r_ros.offline import RunOutputs, run_recording
from raymap3r_ros.offline.export import export_results
from raymap3r_ros.offline.exports import mcap
from raymap3r_ros.streaming import StreamOptions

LIVE = {**publishers.TOPICS, **map_publisher.MAP_TOPICS}
# What the results of a run do not contain
LEFT_OUT = {"trajectory_raw", "confidence", "dynamic_map", "occupancy"}


@pytest.fixture(scope="module")
def export(rendered, tmp_path_factory):
    """A rendered bag, exported after a run; its messages by topic as those of rclpy."""
    folder = tmp_path_factory.mktemp("export")
    recording = open_recording(rendered, topic="/camera/image_raw")
    outputs = RunOutputs(preview=False)
    run_recording(recording, load_network("mini"), folder / "results", StreamOptions(image_size=48), outputs=outputs)
    bag = export_results(folder / "results", "mcap") / "bag"
    messages, kinds = {}, {}
    with AnyReader([bag]) as reader:
        for connection, _, data in reader.messages():
            name = connection.topic.removeprefix("/raymap3r/")
            if name in LIVE:
                kinds[name] = connection.msgtype
                messages.setdefault(name, []).append(deserialize_message(bytes(data), LIVE[name][0]))
    return SimpleNamespace(bag=bag, results=folder / "results", messages=messages, kinds=kinds)


def test_topics_types_and_latching_are_those_of_the_node(export):
    wanted = {
        name: f"{kind.__module__.partition('.')[0]}/msg/{kind.__name__}"
        for name, (kind, _) in LIVE.items()
        if name not in LEFT_OUT
    }
    assert export.kinds == wanted
    latched = {name for name in wanted if LIVE[name][1].durability == DurabilityPolicy.TRANSIENT_LOCAL}
    assert {f"/raymap3r/{name}" for name in latched} | {"/tf_static"} == mcap.LATCHED


def test_messages_are_those_that_the_node_makes(export):
    def first(name):
        return export.messages[name][0]

    header = first("depth").header
    assert header.frame_id == "camera_optical_frame"
    depth = np.load(export.results / "depth" / "000000.npz")["depth"]
    depth[depth <= 0] = np.nan
    assert first("depth") == conversions.image_message(header, depth, "32FC1")
    info = first("camera_info")
    assert info == conversions.camera_info_message(header, info.k.reshape(3, 3), depth.shape[1], depth.shape[0])
    assert first("points").fields == conversions.POINT_FIELDS
    points, colors = read_ply(export.results / "static_scene.ply")
    turned = np.stack((points[:, 2], -points[:, 0], -points[:, 1]), axis=1)  # REP 103
    scene = first("static_map")
    assert scene == conversions.map_message(Header(stamp=header.stamp, frame_id="map"), turned, colors)
    for name, encoding in (("rgb", "rgb8"), ("dynamic_mask", "mono8"), ("depth_static", "32FC1")):
        message = first(name)
        assert (message.header, message.encoding, message.height) == (header, encoding, depth.shape[0])
        assert encoding in publishers.ENCODINGS.values()


def test_a_replay_plays_it_and_its_poses_are_those_of_the_run(export, active_bench, replay_into):
    bag = open_bag(export.bag, ReplayOptions(topic="/camera/image_raw"))
    playback = replay_into(active_bench(bag), bag)
    poses = [conversions.pose_numbers(one.pose.position, one.pose.orientation) for one in export.messages["pose"]]
    assert len(poses) == 12 and sorted(playback.poses) == list(range(12))
    np.testing.assert_allclose([playback.poses[index] for index in range(12)], poses, atol=1e-4)
