"""Fixtures of the tests of the clients: a stream node with a probe, and bags to play into it."""

import importlib.util
import itertools
from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy", reason="the node needs ROS 2")

from raymap3r_ros.clients import replay  # noqa: E402
from raymap3r_ros.clients.bag import ReplayOptions  # noqa: E402
from raymap3r_ros.clients.player import play  # noqa: E402
from raymap3r_ros.synthetic import suite_sequence  # noqa: E402
from raymap3r_ros.synthetic.export import export_sequence  # noqa: E402

_spec = importlib.util.spec_from_file_location("client_bench", Path(__file__).parents[1] / "node" / "conftest.py")
node_bench = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(node_bench)
node_bench.numbers = itertools.count(2000)  # node names must be unique in a process
make_bench, stays = node_bench.make_bench, node_bench.stays


@pytest.fixture
def replay_into():
    """Plays a bag into an active bench, from a node of its own in the namespace of the bench."""
    cameras = []

    def run(bench, bag, options=None, **arguments):
        camera = rclpy.create_node("player", namespace=bench.namespace, context=bench.context)
        cameras.append(camera)
        return play(bag, options or ReplayOptions(rate=0.0), camera, bench.name, **arguments)

    yield run
    for camera in cameras:
        camera.destroy_node()


@pytest.fixture
def active_bench(make_bench):
    """Makes a bench with an active node, with parameters as in a replay."""

    def make(bag, **parameters):
        parameters = {"checkpoint": "mini", "image_size": 48, **parameters}
        bench = make_bench(**replay.node_parameters(bag, parameters))
        assert bench.change_state("configure") and bench.change_state("activate")
        return bench

    return make


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    """A short bag of the room of the shipped weights, with camera_info and ground truth."""
    sequence = suite_sequence("light", 0, world="one_room", size=(96, 128))
    folder = export_sequence(sequence, tmp_path_factory.mktemp("rendered"), "bag", max_frames=12, progress=False)
    return folder / "bag"
