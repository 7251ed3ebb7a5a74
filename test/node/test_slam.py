"""Inputs of the mappers in launch/: the tests subscribe to the node as each mapper does, over real DDS.

The subscriptions are taken from the public sources of the mappers: rtabmap_ros (branch ros2, 0.22), isaac_ros_nvblox
(4.3), octomap_mapping (branch ros2).
"""

import ast
import os
import re
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from nav_msgs.msg import Odometry
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from sensor_msgs_py.point_cloud2 import read_points
from tf2_ros import Buffer

from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.publishers import MOTION_TOPICS, TOPICS
from raymap3r_ros.options import option_fields
from raymap3r_ros.streaming import METHOD

MAPPERS = ("rtabmap", "nvblox", "octomap")
EXECUTABLES = {
    "rtabmap": ("rtabmap_slam", "rtabmap"),
    "nvblox": ("nvblox_ros", "nvblox_node"),
    "octomap": ("octomap_server", "octomap_server_node"),
}
FRAMES_SENT = 14
WARMUP = METHOD.warmup_frames  # the first frames of a world have no dynamic mask
MASKED_FRAMES = FRAMES_SENT - WARMUP  # frames with a dynamic mask
STEP = 100_000_000  # nanoseconds between two images of a bench
QUEUE = 10  # messages per topic that rtabmap and nvblox keep to match stamps
THRESHOLD = 1.05  # of the confidence of points; low, so that some are dynamic
K = [50.0, 0.0, 31.5, 0.0, 52.0, 23.5, 0.0, 0.0, 1.0]  # of the images sent, 64x48

# Topic of the mapper: message type, and the QoS of its subscription, by its parameters.
RELIABILITY = {1: ReliabilityPolicy.RELIABLE, 2: ReliabilityPolicy.BEST_EFFORT}  # rtabmap uses the numbers of rmw


def rtabmap_qos(parameter):
    return lambda parameters: QoSProfile(depth=QUEUE, reliability=RELIABILITY[parameters[parameter]])


def nvblox_qos(parameters):
    return {"SENSOR_DATA": qos_profile_sensor_data}[parameters["input_qos"]]


SUBSCRIPTIONS = {
    "rtabmap": {
        "rgb/image": (Image, rtabmap_qos("qos_image")),
        "depth/image": (Image, rtabmap_qos("qos_image")),
        "rgb/camera_info": (CameraInfo, rtabmap_qos("qos_camera_info")),
        "odom": (Odometry, rtabmap_qos("qos_odom")),
    },
    "nvblox": {
        "camera_0/depth/image": (Image, nvblox_qos),
        "camera_0/depth/camera_info": (CameraInfo, nvblox_qos),
        "camera_0/color/image": (Image, nvblox_qos),
        "camera_0/color/camera_info": (CameraInfo, nvblox_qos),
    },
    "octomap": {"cloud_in": (PointCloud2, lambda parameters: qos_profile_sensor_data)},
}
# Topics that the mapper synchronizes by equal stamps.
SYNCHRONIZED = {
    "rtabmap": [tuple(SUBSCRIPTIONS["rtabmap"])],
    "nvblox": [
        ("camera_0/depth/image", "camera_0/depth/camera_info"),
        ("camera_0/color/image", "camera_0/color/camera_info"),
    ],
    "octomap": [("cloud_in",)],
}
# The frame in which the mapper looks up the pose of its input.
GLOBAL_FRAMES = {
    "rtabmap": lambda stream, parameters: stream["world_frame"],
    "nvblox": lambda stream, parameters: stream["world_frame"],
    "octomap": lambda stream, parameters: stream["world_frame"],
}


def constants(file):
    """The constants of a launch file, read without an import, which would need launch."""
    found = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id.isupper():
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:  # a computed value
                found[node.targets[0].id] = {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
    return SimpleNamespace(**found)


@pytest.fixture
def recipe(root):
    """Reads the constants of a mapper's launch file."""
    return lambda mapper: constants(root / "launch" / f"{mapper}.launch.py")


def parameters_of(stream):
    """Launch arguments (strings) converted to parameters of the node."""
    defaults = {name: field.default for name, field in option_fields(NodeOptions)}
    typed = {bool: lambda text: {"true": True, "false": False}[text], int: int, float: float, str: str}
    return {name: typed[type(defaults[name])](text) for name, text in stream.items()}


# ----------------------------------------------------------------------------------------------------------- constants


@pytest.mark.parametrize("mapper", MAPPERS)
def test_every_input_comes_from_a_topic_of_the_same_type(recipe, mapper):
    inputs = recipe(mapper).INPUTS
    assert inputs.keys() == SUBSCRIPTIONS[mapper].keys()
    for mapper_topic, node_topic in inputs.items():
        assert TOPICS[node_topic][0] is SUBSCRIPTIONS[mapper][mapper_topic][0], mapper_topic


@pytest.mark.parametrize("mapper", MAPPERS)
def test_stream_parameters_exist(recipe, root, mapper):
    stream = recipe(mapper).STREAM
    assert stream.keys() <= {name for name, _ in option_fields(NodeOptions)}


@pytest.mark.parametrize("mapper", MAPPERS)
def test_launch_file_of_the_stream_forwards_the_parameters(recipe, root, mapper):
    stream = recipe(mapper).STREAM
    missing = stream.keys() - constants(root / "launch" / "stream.launch.py").ARGUMENTS
    assert not missing, f"stream.launch.py has no arguments {sorted(missing)}"


def test_documented_arguments_exist(recipe, root):
    known = {"frame_id", *constants(root / "launch" / "stream.launch.py").ARGUMENTS}
    known.update(*(recipe(mapper).STREAM for mapper in MAPPERS))
    written = set(re.findall(r"([\w.]+):=", (root / "docs" / "slam.md").read_text()))
    assert written and not written - known


@pytest.mark.parametrize("mapper", MAPPERS)
def test_launch_file_can_be_loaded(root, mapper, tmp_path, monkeypatch):
    """Loaded by launch itself, if it is installed."""
    launch_ros = pytest.importorskip("launch_ros.actions", reason="launch_ros comes with a ROS distribution")
    from launch.launch_description_sources import get_launch_description_from_python_launch_file as load

    from launch import LaunchContext

    package, executable = EXECUTABLES[mapper]
    index, folder = tmp_path / "share" / "ament_index" / "resource_index" / "packages", tmp_path / "lib" / package
    index.mkdir(parents=True)
    folder.mkdir(parents=True)
    (index / package).touch()
    (folder / executable).touch(0o755)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path), prepend=os.pathsep)
    context, nodes = LaunchContext(), []

    def run(entities):
        for entity in entities or ():
            if isinstance(entity, launch_ros.Node):
                nodes.append((entity.node_package, entity.node_executable))
            else:
                run(entity.visit(context))

    run(load(str(root / "launch" / f"{mapper}.launch.py")).entities)
    assert nodes == [("raymap3r_ros", "stream"), EXECUTABLES[mapper]]

    context.launch_configurations["cameras"] = "front,rear"
    with pytest.raises(ValueError, match="cameras is 'front,rear'; allowed beside a mapper"):
        run(load(str(root / "launch" / f"{mapper}.launch.py")).entities)


def test_one_node_publishes_each_transform(recipe):
    """RTAB-Map publishes map -> odom: the stream may not publish map -> camera."""
    rtabmap = recipe("rtabmap")
    assert rtabmap.PARAMETERS["publish_tf"]
    assert rtabmap.STREAM["world_frame"] != rtabmap.PARAMETERS["map_frame_id"]
    for mapper in ("nvblox", "octomap"):
        world = recipe(mapper).STREAM.get("world_frame", NodeOptions().world_frame)
        assert GLOBAL_FRAMES[mapper](recipe(mapper).STREAM, recipe(mapper).PARAMETERS) == world


# ------------------------------------------------------------------------------------------------ time synchronization


def nanoseconds(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def exact_time(arrivals, topics, queue=QUEUE):
    """Sets of messages of equal stamp, one of each topic, from (topic, message) in the order of arrival.

    Like the exact policy of message_filters: a set is returned when it is complete; of the incomplete sets the newest
    `queue` are kept.
    """
    waiting, complete = defaultdict(dict), []
    for topic, message in arrivals:
        if topic not in topics:
            continue
        stamp = nanoseconds(message)
        waiting[stamp][topic] = message
        if len(waiting[stamp]) == len(topics):
            complete.append(waiting.pop(stamp))
        for old in sorted(waiting)[:-queue]:
            del waiting[old]
    return complete


def approximate_time(arrivals, topics, slop, queue=QUEUE):
    """The same for stamps at most `slop` nanoseconds apart, like message_filters' ApproximateTimeSynchronizer.

    Each arriving message is matched with the nearest in time of every other topic, if they exist.
    """
    waiting, complete = {topic: {} for topic in topics}, []
    for topic, message in arrivals:
        if topic not in topics:
            continue
        stamp = nanoseconds(message)
        waiting[topic][stamp] = message
        for old in sorted(waiting[topic])[:-queue]:
            del waiting[topic][old]
        near = {
            other: min(held, key=lambda found: abs(found - stamp), default=None) for other, held in waiting.items()
        }
        if all(found is not None and abs(found - stamp) <= slop for found in near.values()):
            complete.append({other: waiting[other].pop(found) for other, found in near.items()})
    return complete


def test_synchronizers():
    def message(stamp):
        return SimpleNamespace(header=SimpleNamespace(stamp=SimpleNamespace(sec=0, nanosec=stamp)))

    first, second, late = message(100), message(200), message(105)
    arrivals = [("a", first), ("c", late), ("a", second), ("b", second), ("b", first)]
    assert exact_time(arrivals, ("a", "b")) == [{"a": second, "b": second}, {"a": first, "b": first}]
    assert exact_time(arrivals, ("a", "c")) == []
    assert exact_time([("a", message(index)) for index in range(5)] + [("b", message(0))], ("a", "b"), queue=3) == []
    assert approximate_time(arrivals, ("a", "c"), slop=5) == [{"a": first, "c": late}]
    assert approximate_time(arrivals, ("a", "c"), slop=4) == []


# ------------------------------------------------------------------------------------------------------------ over DDS


@pytest.fixture
def feed(make_bench, recipe):
    """Runs the node as a launch file does, and subscribes as its mapper does.

    Returns the recipe, the bench, all received messages as (mapper's topic, message), and a tf2 buffer.
    """

    def make(mapper, *more_topics, **parameters):
        one = recipe(mapper)
        bench = make_bench(every_frame=True, image_size=64, **parameters_of(one.STREAM), **parameters)
        bench.start("tf", *more_topics)
        arrivals = []
        for mapper_topic, (kind, qos) in SUBSCRIPTIONS[mapper].items():
            name = f"{bench.name}/{one.INPUTS[mapper_topic]}"
            publisher = next(item for item in bench.node.publishers if item.topic_name == name)
            before = publisher.get_subscription_count()

            def on_message(message, mapper_topic=mapper_topic):
                arrivals.append((mapper_topic, message))
                bench.on_message(mapper_topic, message)

            bench.probe.create_subscription(kind, name, on_message, qos(one.PARAMETERS))
            bench.wait(lambda publisher=publisher, before=before: publisher.get_subscription_count() > before, name)
        bench.send_camera_info(width=64, height=48, k=K)
        for index in range(FRAMES_SENT):
            bench.send(index)
        for topic in (*SUBSCRIPTIONS[mapper], "tf", *more_topics):
            bench.wait_for(topic, frames_of(one.INPUTS.get(topic, topic)))
        buffer = Buffer()
        for message in bench.messages["tf"]:
            for transform in message.transforms:
                buffer.set_transform(transform, "stream")
        return one, bench, arrivals, buffer

    return make


def frames_of(topic):
    """Number of frames for which a topic of the node has a message."""
    return MASKED_FRAMES if topic in MOTION_TOPICS else FRAMES_SENT


def pixels(message, dtype):
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width, -1).squeeze()


def position(transform):
    at = transform.transform.translation
    return [at.x, at.y, at.z]


@pytest.mark.parametrize("mapper", MAPPERS)
def test_inputs_synchronize_and_their_poses_are_in_tf(feed, mapper):
    one, _, arrivals, buffer = feed(mapper)
    for topics in SYNCHRONIZED[mapper]:
        exact = exact_time(arrivals, topics)
        assert len(exact) == min(frames_of(one.INPUTS[topic]) for topic in topics)
        # With a slop below half the image interval, approximate synchronization gives the same sets.
        for slop in (0, STEP // 2 - 1):
            assert approximate_time(arrivals, topics, slop) == exact
    world = GLOBAL_FRAMES[mapper](one.STREAM, one.PARAMETERS)
    stamps = set()
    for topic, message in arrivals:
        frame = message.child_frame_id if topic == "odom" else message.header.frame_id
        assert frame == one.STREAM["child_frame"]
        found = buffer.lookup_transform(world, frame, Time.from_msg(message.header.stamp))
        assert found.header.stamp == message.header.stamp
        stamps.add(nanoseconds(message))
        if topic == "odom":
            assert message.header.frame_id == world
            at = message.pose.pose.position
            np.testing.assert_allclose(position(found), [at.x, at.y, at.z], atol=1e-9)
            assert np.diag(np.reshape(message.pose.covariance, (6, 6))).min() > 0  # RTAB-Map: weight of links
    assert len(stamps) == max(frames_of(one.INPUTS[topic]) for topic in SUBSCRIPTIONS[mapper])
    assert set(np.diff(sorted(stamps))) == {STEP}


@pytest.mark.parametrize(
    ("mapper", "color", "depth", "info"),
    [
        ("rtabmap", "rgb/image", "depth/image", "rgb/camera_info"),
        ("nvblox", "camera_0/color/image", "camera_0/depth/image", "camera_0/depth/camera_info"),
    ],
)
def test_depth_is_registered_to_the_image_and_zero_where_it_is_dynamic(feed, mapper, color, depth, info):
    _, bench, arrivals, _ = feed(mapper, "dynamic_mask", "depth")
    sets = exact_time(arrivals, (color, depth, info))
    assert len(sets) == MASKED_FRAMES
    moving = 0
    for joined, mask, complete in zip(
        sets, bench.messages["dynamic_mask"], bench.messages["depth"][-MASKED_FRAMES:], strict=True
    ):
        size = {(one.width, one.height) for one in joined.values()}
        assert size == {(64, 48)}
        assert joined[color].encoding == "rgb8" and joined[depth].encoding == "16UC1"
        assert joined[color].step == 3 * 64 and joined[depth].step == 2 * 64
        assert not joined[color].is_bigendian and not joined[depth].is_bigendian
        dynamic = pixels(mask, np.uint8) == 255
        seen = pixels(joined[depth], np.uint16)
        np.testing.assert_array_equal(seen, np.where(dynamic, 0, pixels(complete, np.uint16)))
        assert seen.any()
        moving += dynamic.sum()
    assert moving > 0, "no dynamic pixels: the test checked nothing"

    # The first frame may have arrived before the calibration.
    calibration = sets[-1][info]
    assert list(calibration.k) == K
    assert list(calibration.p) == [*K[:3], 0.0, *K[3:6], 0.0, *K[6:], 0.0]  # rectified: no other transformation
    assert calibration.distortion_model == "plumb_bob" and not any(calibration.d)
    assert list(calibration.r) == np.eye(3).ravel().tolist()


def test_depth_in_metres_and_millimetres_agrees(make_bench):
    bench = make_bench(every_frame=True, image_size=64)
    bench.start("depth", "depth_static")
    for index in range(7):
        bench.send(index)
    bench.wait_for("depth_static", 7 - WARMUP)
    metres = pixels(bench.wait_for("depth", 7), np.float32)
    static = pixels(bench.messages["depth_static"][-1], np.float32)
    assert bench.messages["depth"][-1].encoding == bench.messages["depth_static"][-1].encoding == "32FC1"
    np.testing.assert_array_equal(static[~np.isnan(static)], metres[~np.isnan(static)])
    assert np.isfinite(metres).all()

    again = make_bench(every_frame=True, image_size=64, depth_encoding="16UC1")
    again.start("depth", "depth_static")
    for index in range(7):
        again.send(index)
    again.wait_for("depth_static", 7 - WARMUP)
    np.testing.assert_array_equal(pixels(again.wait_for("depth", 7), np.uint16), np.rint(metres * np.float32(1000)))
    np.testing.assert_array_equal(pixels(again.messages["depth_static"][-1], np.uint16) == 0, np.isnan(static))


def test_cloud_for_octomap_has_no_dynamic_points(feed):
    one, bench, arrivals, _ = feed("octomap", "dynamic_mask", "confidence", "depth", confidence_threshold=THRESHOLD)
    stride, moving = int(one.STREAM["points.stride"]), 0
    others = ("dynamic_mask", "confidence", "depth")
    for (_, cloud), *images in zip(arrivals, *(bench.messages[name][-MASKED_FRAMES:] for name in others), strict=True):
        every = slice(None, None, stride)
        mask, confidence, depth = (
            pixels(image, kind)[every, every] for image, kind in zip(images, (np.uint8, "f4", "f4"), strict=True)
        )
        confident = confidence >= THRESHOLD
        points = read_points(cloud, ["x", "y", "z", "dynamic"])
        np.testing.assert_array_equal(points["z"], depth[confident & (mask == 0)])
        assert not points["dynamic"].any() and np.isfinite(points["x"]).all() and np.isfinite(points["y"]).all()
        moving += (confident & (mask == 255)).sum()
    assert moving > 0, "no dynamic pixels: the test checked nothing"
    assert {field.name for field in cloud.fields} >= {"x", "y", "z"}  # pcl::PointXYZ
    assert cloud.point_step * cloud.width * cloud.height == len(cloud.data)
