"""The harness: a camera, the node and a subscriber in three processes, connected over DDS as on a robot.

The camera runs in the calling process, the node and the subscriber in processes of their own. `raymap3r demo`,
`raymap3r replay`, the benchmarks and the soak run on it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from tf2_msgs.msg import TFMessage

from raymap3r_ros.clients.graph import (
    DISCOVERY_TIME,
    QUICK_LOOK,
    private_topics,
    refuse_shared_name,
    refuse_taken_name,
    reserved,
)
from raymap3r_ros.errors import Raymap3rError
from raymap3r_ros.node.dds_profile import (
    RANGE,
    discovery_problem,
    domain_problem,
    profile_environment,
    profile_problem,
)
from raymap3r_ros.node.map_publisher import MAP_TOPICS
from raymap3r_ros.node.publishers import RELIABLE, TOPICS
from raymap3r_ros.signals import interrupted_once
from raymap3r_ros.text import printable

log = logging.getLogger(__name__)

START_LIMIT = 600.0  # seconds for the node to load its weights; the public ones are large
STOP_LIMIT = 30.0  # seconds for a process to end after the request
SPIN_TIME = 0.1  # seconds
BASE_NAME = "raymap3r"  # of the node, without its namespace
OUTPUTS = {
    **TOPICS,
    **MAP_TOPICS,
    "tf": (TFMessage, RELIABLE),
}  # message type and QoS of everything the node publishes
QUEUE_DEPTH = 200  # messages; long enough that no message is lost in the subscriber

Item = TypeVar("Item")


def set_up_dds(*, localhost: bool = True, own_domain: bool = False, alone: bool = True) -> None:
    """Set the DDS environment of this process and its children; call it before the first participant is created.

    It selects the shipped Fast DDS profile, which the publisher of large messages needs. `localhost`: no discovery of
    other machines. `own_domain`: not the domain of other programs, which use /tf and /diagnostics too. `alone`: there
    are only programs that this process starts, so that no discovery server is needed, which may not run, and discovery
    must not be off. Other variables set by the user are kept. Raises Raymap3rError for an impossible domain, and if
    discovery is off.
    """
    if problem := domain_problem(os.environ):
        raise Raymap3rError(problem)
    os.environ.update(profile_environment(os.environ))
    if problem := profile_problem(os.environ):
        log.warning("%s", problem)
    if alone:
        os.environ.pop("ROS_DISCOVERY_SERVER", None)
        if discovery_problem(os.environ):
            os.environ.pop(RANGE)
    elif problem := discovery_problem(os.environ):
        raise Raymap3rError(problem)
    if localhost:
        os.environ.setdefault(RANGE, "LOCALHOST")
    if own_domain:
        os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))


# ------------------------------------------------------------------------------------------------------ all processes


@dataclass(frozen=True)
class Harness:
    """The running node and subscriber process, and a ROS node to publish images from."""

    process: subprocess.Popen  # of the node
    camera: Node
    pipe: Connection  # to the subscriber process

    def wait_until_connected(self) -> None:
        """Wait until the node publishes to the subscriber and receives the images of the camera.

        The camera must have its image publisher. Raises Raymap3rError if a process ends before, after START_LIMIT, or
        if another node has the same name.
        """
        self._receive("the node")
        refuse_shared_name(self.camera, f"{self.camera.get_namespace()}/{BASE_NAME}")

    def request(self, value: Any = None) -> Any:
        """The reply of the subscriber to `value`. Raises Raymap3rError as `wait_until_connected` does."""
        with contextlib.suppress(BrokenPipeError):  # reported by _receive
            self.pipe.send(value)
        return self._receive("the subscriber")

    def check_running(self) -> None:
        """Raise Raymap3rError if the node has ended."""
        check_running(self.process)

    def stop_node(self) -> int:
        """End the node; its exit status."""
        return stop(self.process)

    def _receive(self, sender: str) -> Any:
        deadline = time.monotonic() + START_LIMIT
        while not self.pipe.poll(0.2):
            self.check_running()
            if time.monotonic() > deadline:
                raise Raymap3rError(f"no message from {sender} for {START_LIMIT:.0f} s")
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise Raymap3rError("the subscriber has ended; its own message is above") from None


@contextlib.contextmanager
def running_harness(
    namespace: str,
    parameters: Mapping[str, object],
    make_subscriber: Callable[[Node], OutputSubscriber],
    *ros_arguments: str,
) -> Iterator[Harness]:
    """Start the node, the camera's ROS node and a subscriber process; end all of them with the context.

    `make_subscriber` is called in the subscriber process with its ROS node and must be picklable. `ros_arguments` are
    further arguments of the stream node. A stop signal interrupts the caller once, so that no process is left over.

    All processes use the global topics (GLOBAL_TOPICS) in `namespace`, so that other nodes of the domain receive
    nothing. Raises Raymap3rError if a node of the same name is running.
    """
    name, private = f"{namespace}/{BASE_NAME}", private_topics(namespace)
    with (
        interrupted_once(),
        reserved(name),
        camera_node(namespace, *private, unique=name) as camera,
        running_node(namespace, parameters, *private, *ros_arguments) as process,
        _subscriber_process(namespace, make_subscriber) as pipe,
    ):
        yield Harness(process, camera, pipe)


@contextlib.contextmanager
def running_node(namespace: str, parameters: Mapping[str, object], *ros_arguments: str) -> Iterator[subprocess.Popen]:
    """The stream node in a process of its own, which configures and activates itself; ended with the context."""
    command = [sys.executable, "-m", "raymap3r_ros.node", "--autostart", "--ros-args", "-r", f"__ns:={namespace}"]
    for name, value in parameters.items():
        command += ["-p", f"{name}:={json.dumps(value)}"]
    # In a session of its own, so that Ctrl-C reaches only the caller, which then ends the others in order.
    process = subprocess.Popen([*command, *ros_arguments], start_new_session=True)
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen, limit: float = STOP_LIMIT) -> int:
    """End a process, by force if it needs longer than `limit` seconds; its exit status."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def check_running(process: subprocess.Popen) -> None:
    """Raise Raymap3rError if the node's process has ended."""
    if process.poll() is not None:
        raise Raymap3rError(f"the node has ended with status {process.returncode}; its own message is above")


# --------------------------------------------------------------------------------------------------------- the camera


@contextlib.contextmanager
def camera_node(namespace: str, *ros_arguments: str, unique: str = "") -> Iterator[Node]:
    """A ROS node to publish images from; rclpy is initialised without its signal handlers and shut down afterwards.

    `unique`: full name of the stream node that will be started; Raymap3rError if one is running. `ros_arguments`:
    those of the node, which move the global topics, or none.
    """
    _init_rclpy()
    camera = _create_node("camera", namespace, ros_arguments)
    try:
        if unique:
            refuse_taken_name(camera, unique, QUICK_LOOK if ros_arguments else DISCOVERY_TIME)
        yield camera
    finally:
        camera.destroy_node()
        rclpy.shutdown()


def _init_rclpy() -> None:
    """Initialise rclpy without its signal handlers. Raises Raymap3rError, for instance without a key for this node."""
    try:
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        raise Raymap3rError(
            f"ROS 2 cannot be initialised: {printable(error)}; check the variables ROS_* of this shell"
        ) from error


def _create_node(name: str, namespace: str, ros_arguments: Sequence[str]) -> Node:
    return rclpy.create_node(name, namespace=namespace, cli_args=["--ros-args", *ros_arguments])


def back_and_forth(items: Sequence[Item]) -> Iterator[Item]:
    """The items forwards and backwards without end, as a camera would see them."""
    return itertools.cycle([*items, *items[-2:0:-1]])


def paced(items: Iterable[Item], rate: float) -> Iterator[Item]:
    """The items at `rate` per second."""
    due = time.monotonic()
    for item in items:
        time.sleep(max(0.0, due - time.monotonic()))
        due += 1 / rate
        yield item


# ----------------------------------------------------------------------------------------------------- the subscriber


class Diagnostics:
    """The status of a stream node in /diagnostics, as received by a client."""

    def __init__(self, node: Node, node_name: str) -> None:
        """`node` subscribes; `node_name` is the full name of the stream node."""
        self.values: dict[str, str] = {}  # of the last message
        self.errors: list[str] = []  # distinct
        self.count = 0  # messages received
        self._node_name = node_name
        self._instances: set[str] = set()
        self._status_name = f"{node_name}: stream"
        node.create_subscription(DiagnosticArray, "/diagnostics", self._receive, 10)

    @property
    def subscribed_outputs(self) -> set[str]:
        """Outputs for which the node has matched a subscriber."""
        return set(self.values.get("subscribed outputs", "").split(", "))

    def integer(self, key: str) -> int:
        """A value of the last message; 0 if there is none."""
        return int(self.values.get(key, 0))

    def publishers_of(self, topic: str) -> int:
        """Publishers that the node has matched on an input topic (full name)."""
        return self.integer(f"publishers of {topic}")

    def check(self) -> None:
        """Raise Raymap3rError if several nodes have published the status."""
        if len(self._instances) > 1:
            raise Raymap3rError(
                f"{len(self._instances)} nodes publish the status of {self._node_name} on /diagnostics, for instance "
                "because a bridge forwards the status of another robot, or because the node was started again: their "
                "counts cannot be distinguished; give one of the nodes another name or namespace"
            )

    def _receive(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name != self._status_name:
                continue
            values = {item.key: item.value for item in status.values}
            if "instance" not in values:  # of a program that imitates the node, or of another version
                continue
            self._instances.add(values["instance"])
            self.values = values
            self.count += 1
            if status.level == DiagnosticStatus.ERROR and status.message not in self.errors:
                self.errors.append(status.message)


class OutputSubscriber:
    """Subscribes to outputs of a stream node. Subclasses define what they do with messages and requests."""

    def __init__(
        self, node: Node, node_name: str, outputs: Collection[str], image_topic: str, *, raw: bool = False
    ) -> None:
        """`node` subscribes to `outputs` (keys of OUTPUTS) of the stream node `node_name`; `raw`: as serialized bytes.

        `image_topic` is the full name of the camera's topic.
        """
        self.node = node
        self.outputs = frozenset(outputs)
        self.diagnostics = Diagnostics(node, node_name)
        self._image_topic = image_topic
        for topic in outputs:
            kind, qos = OUTPUTS[topic]
            name = "/tf" if topic == "tf" else f"{node_name}/{topic}"
            node.create_subscription(kind, name, partial(self.receive, topic), queue(qos.reliability), raw=raw)

    def spin(self) -> None:
        """Handle one message, or wait for SPIN_TIME."""
        rclpy.spin_once(self.node, timeout_sec=SPIN_TIME)
        self.diagnostics.check()

    def is_connected(self) -> bool:
        """Whether the node itself has matched the camera and every subscription; this side matches earlier."""
        diagnostics = self.diagnostics
        return diagnostics.publishers_of(self._image_topic) > 0 and self.outputs <= diagnostics.subscribed_outputs

    def receive(self, topic: str, message: Any) -> None:
        """Handle a message of an output."""
        raise NotImplementedError

    def reply(self, request: Any) -> Any:
        """The reply to a request of the harness."""
        raise NotImplementedError


def queue(reliability: ReliabilityPolicy, depth: int = QUEUE_DEPTH) -> QoSProfile:
    """A QoS profile that keeps the last `depth` messages."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=reliability)


@contextlib.contextmanager
def _subscriber_process(namespace: str, make_subscriber: Callable[[Node], OutputSubscriber]) -> Iterator[Connection]:
    """The caller's end of a pipe to a process that runs `_run_subscriber`; the process ends when it is closed."""
    # Spawned, because a forked copy of this process would share its DDS threads.
    context = multiprocessing.get_context("spawn")
    pipe, other_end = context.Pipe()
    process = context.Process(target=_run_subscriber, args=(other_end, namespace, make_subscriber), daemon=True)
    # Only the caller decides when to end. Ctrl-C reaches the subscriber too, even before its first line runs.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, previous)
    other_end.close()
    try:
        yield pipe
    finally:
        pipe.close()
        process.join(STOP_LIMIT)


def _run_subscriber(pipe: Connection, namespace: str, make_subscriber: Callable[[Node], OutputSubscriber]) -> None:
    """Send None once the subscriber is connected, then a reply to each request, until the other end is closed."""
    _init_rclpy()
    try:
        subscriber = make_subscriber(_create_node("subscriber", namespace, private_topics(namespace)))
        while not subscriber.is_connected():
            subscriber.spin()
            if pipe.poll():  # no request comes before the connection: the other end is closed
                return
        pipe.send(None)
        while True:
            while not pipe.poll():
                subscriber.spin()
            pipe.send(subscriber.reply(pipe.recv()))
    except (EOFError, ConnectionError):
        pass  # the other end is closed
    finally:
        rclpy.shutdown()
