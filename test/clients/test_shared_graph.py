"""Replay and demo in a ROS graph that other programs use: a robot's node, its transforms and its clock."""

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

sys.path.insert(0, str(Path(__file__).parent))
from bags import images_bag, picture, raw, transform, transforms, write_bag

from raymap3r_ros import cli
from raymap3r_ros.clients import graph
from raymap3r_ros.clients.bag import ReplayOptions, open_bag
from raymap3r_ros.clients.player import play
from raymap3r_ros.errors import Raymap3rError

SMALL = ("--rate", "0", "--checkpoint", "mini", "--size", "48", "--device", "cpu")


class Robot:
    """A live robot: a node of a given full name that receives the global topics and publishes diagnostics."""

    def __init__(self, name):
        self.context = Context()
        rclpy.init(args=[], context=self.context, signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
        namespace, _, base = name.rpartition("/")
        self.node = rclpy.create_node(base, namespace=namespace or "/", context=self.context)
        self.received = []
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        for topic, kind, qos in (
            ("/tf", TFMessage, 100), ("/tf_static", TFMessage, latched), ("/clock", Clock, 100),
            ("/image", Image, 100), ("/camera_info", CameraInfo, 100),
        ):  # fmt: skip
            self.node.create_subscription(kind, topic, lambda _, topic=topic: self.received.append(topic), qos)
        self.diagnostics = self.node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.status_name = f"{name}: stream"
        self.keys = ()  # more keys of the status
        self.node.create_timer(0.05, self.publish_diagnostics)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def publish_diagnostics(self):
        """Counts of a node that has processed a thousand images."""
        values = [KeyValue(key=key, value="1000") for key in ("frames in", "frames out", *self.keys)]
        status = DiagnosticStatus(name=self.status_name, values=values)
        self.diagnostics.publish(DiagnosticArray(status=[status]))


@contextlib.contextmanager
def robot(name="/raymap3r"):
    """A Robot whose callbacks run in a thread."""
    import threading

    one = Robot(name)
    thread = threading.Thread(target=one.executor.spin, daemon=True)
    thread.start()
    try:
        yield one
    finally:
        one.executor.shutdown()
        thread.join(10)
        one.node.destroy_node()
        rclpy.shutdown(context=one.context)


def moving_bag(folder):
    messages = [(0.0, "/tf_static", transforms(transform(0, "base", "lidar")))]
    for i in range(3):
        messages.append((i / 10, "/tf", transforms(transform(i / 10, "odom", "base"))))
        messages.append((i / 10, "/eye/image_raw", raw(i / 10, picture(i))))
    return write_bag(folder, messages)


def test_nothing_of_a_bag_reaches_a_live_robot(tmp_path):
    with robot() as live:
        assert cli.main(["replay", str(moving_bag(tmp_path / "bag")), "--out", str(tmp_path / "out"), *SMALL]) == 0
        assert live.received == []
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["frames_sent"] == report["frames_processed"] == 3
    assert report["node"]["frames in"] == "3"


def test_global_topics_of_a_bag_are_published_if_requested(tmp_path):
    with robot("/robot") as live:
        arguments = ["--out", str(tmp_path / "out"), "--global-topics", *SMALL]
        assert cli.main(["replay", str(moving_bag(tmp_path / "bag")), *arguments]) == 0
        assert {"/tf", "/tf_static", "/clock", "/image"} <= set(live.received)


def test_poses_of_another_publisher_are_not_taken_for_the_nodes(tmp_path, capsys):
    """As of a bag of an earlier run that is played beside the replay."""
    with robot("/player") as live:
        live.node.create_publisher(PoseStamped, "/raymap3r/pose", 100)
        bag = moving_bag(tmp_path / "bag")
        assert cli.main(["replay", str(bag), "--out", str(tmp_path / "out"), "--global-topics", *SMALL]) == 2
    assert "/raymap3r/pose is also published by /player: its poses would be taken" in capsys.readouterr().err


@pytest.mark.parametrize("keys", [(), ("instance",)])
def test_a_status_of_the_same_name_from_another_robot_is_not_taken_for_the_nodes(tmp_path, capsys, keys):
    """As a bridge forwards it. A node of another version has no instance; one of this version can only be refused."""
    out = tmp_path / "out"
    with robot("/bridge") as live:
        live.status_name, live.keys = "/raymap3r: stream", keys
        bag = moving_bag(tmp_path / "bag")
        status = cli.main(["replay", str(bag), "--out", str(out), "--global-topics", *SMALL])
    if keys:
        assert status == 2 and "2 nodes publish the status of /raymap3r on /diagnostics" in capsys.readouterr().err
    else:
        report = json.loads((out / "report.json").read_text())
        assert status == 0 and report["frames_processed"] == 3 and report["node"]["frames in"] == "3"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("/raymap3r_replay/raymap3r", ()), ("/raymap3r", ("--global-topics",))],
)
def test_replay_refuses_a_name_that_is_taken(name, arguments, tmp_path, capsys):
    bag = images_bag(tmp_path / "bag")
    with robot(name):
        assert cli.main(["replay", str(bag), "--out", str(tmp_path / "out"), *arguments, *SMALL]) == 2
    assert_refused(capsys.readouterr().err, name)


def assert_refused(error, name):
    """Discovery may be late: then the names are compared again before anything is sent."""
    assert f"a node {name} is already running" in error or f"2 nodes are named {name}" in error
    assert error.count("error: ") == 1 and "Traceback" not in error


def test_demo_refuses_a_name_that_is_taken(tmp_path, capsys):
    with robot("/raymap3r_demo/raymap3r"):
        assert cli.main(["demo", "--frames", "1", "--out", str(tmp_path)]) == 2
    assert_refused(capsys.readouterr().err, "/raymap3r_demo/raymap3r")


@pytest.mark.parametrize(("command", "namespace"), [("demo", "/raymap3r_demo"), ("replay", "/raymap3r_replay")])
def test_two_at_once_are_refused(command, namespace, tmp_path, capsys):
    """Also if both start at the same moment, when neither node is visible yet."""
    arguments = ["--frames", "1"] if command == "demo" else [str(images_bag(tmp_path / "bag")), *SMALL]
    with graph.reserved(f"{namespace}/raymap3r"):
        assert cli.main([command, *arguments, "--out", str(tmp_path / "out")]) == 2
    assert f"another program of this package is running the node {namespace}/raymap3r" in capsys.readouterr().err


def test_two_nodes_of_one_name_are_refused_before_anything_is_sent(active_bench, tmp_path):
    """The bag would be played to both, and their diagnostics could not be distinguished."""
    bag = open_bag(images_bag(tmp_path / "bag"))
    bench = active_bench(bag)
    with robot(bench.name), harness_camera(bench) as camera:
        bench.wait(lambda: names_of(camera).count(bench.name) == 2, "discovery of both nodes")
        with pytest.raises(Raymap3rError, match=f"2 nodes are named {bench.name}"):
            play(bag, ReplayOptions(rate=0.0), camera, bench.name)
    bench.wait_for_diagnostics("frames in", "0")


def test_running_node_beside_a_robot_is_refused_unless_requested(active_bench, tmp_path):
    """A running node gets the bag's transforms and clock on the global topics, where the robot would get them too."""
    bag = open_bag(images_bag(tmp_path / "bag"))
    bench = active_bench(bag)
    with robot("/wheels") as live, harness_camera(bench) as camera:
        live.node.create_publisher(TFMessage, "/tf", 10)
        bench.wait(lambda: "wheels" in publishers_of_tf(camera), "discovery of the robot")
        with pytest.raises(Raymap3rError, match=r"/tf is also published by /wheels.*--global-topics"):
            play(bag, ReplayOptions(rate=0.0), camera, bench.name, beside_others=False)
        bench.wait_for_diagnostics("frames in", "0")
        assert live.received == []
        playback = play(bag, ReplayOptions(rate=0.0), camera, bench.name)
        assert len(playback.poses) == 3


@contextlib.contextmanager
def harness_camera(bench):
    camera = rclpy.create_node("player", namespace=bench.namespace, context=bench.context)
    try:
        yield camera
    finally:
        camera.destroy_node()


def names_of(node):
    return [f"{space.rstrip('/')}/{name}" for name, space in node.get_node_names_and_namespaces()]


def publishers_of_tf(node):
    return [one.node_name for one in node.get_publishers_info_by_topic("/tf")]


class LateNames:
    """A node that discovers its own publisher before its own name: the publishers at each query."""

    def __init__(self, *states):
        self._states = list(states)

    def get_fully_qualified_name(self):
        return "/ns/camera"

    def get_publishers_info_by_topic(self, _):
        names = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        return [SimpleNamespace(node_namespace=one[0], node_name=one[1]) for one in names]


UNKNOWN = ("_NODE_NAMESPACE_UNKNOWN_", "_NODE_NAME_UNKNOWN_")
OWN, STREAM, ROBOT = ("/ns", "camera"), ("/ns", "raymap3r"), ("/", "robot")


@pytest.mark.parametrize(
    ("states", "refused"),
    [
        ([[UNKNOWN], [OWN]], False),
        ([[UNKNOWN, STREAM], [UNKNOWN, STREAM], [OWN, STREAM]], False),
        ([[UNKNOWN]], False),  # the rest of a process that was killed
        ([[OWN, UNKNOWN], [OWN, ROBOT]], True),
        ([[OWN, UNKNOWN, ROBOT]], True),
    ],
)
def test_a_publisher_without_a_name_is_no_other_node(states, refused, monkeypatch):
    monkeypatch.setattr(graph, "DISCOVERY_TIME", 0.5)
    publishers = [SimpleNamespace(topic_name="/tf")]
    with pytest.raises(Raymap3rError, match="published by /robot:") if refused else contextlib.nullcontext():
        graph.refuse_other_publishers(LateNames(*states), "/ns/raymap3r", publishers)
