"""Parameters, services and transitions in any order and at any rate: each gets a response, and nothing leaks."""

import itertools
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import rclpy
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.event_handler import EventHandler
from rclpy.exceptions import InvalidHandle
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_parameters
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from raymap3r_ros.node.conversions import image_message
from raymap3r_ros.node.executable import Executor

from .conftest import assert_alive, assert_no_leak, usage

RESPONSE_LIMIT = 30.0  # seconds
SETTINGS = (  # values, and whether they are allowed while the node runs
    ({"mask.low": 0.5, "mask.high": 0.9}, None),  # None: only allowed together
    ({"mask.low": 5.0, "mask.high": 9.0}, None),
    ({"confidence_threshold": 2.0}, True),
    ({"points.stride": 3}, True),
    ({"static_map.max_points": 2000}, True),
    ({"publish_tf": False}, True),
    ({"publish_tf": True}, True),
    ({"confidence_threshold": float("nan")}, False),
    ({"confidence_threshold": "high"}, False),
    ({"points.stride": -(2**62)}, False),
    ({"points.stride": 0}, False),
    ({"depth_encoding": "../../etc"}, False),
    ({"update_rule": ""}, False),
    ({"checkpoint": "/etc/passwd"}, False),
    ({"output_dir": "/etc"}, False),
    ({"no.such.parameter": 1}, False),
    ({"mask.low": [1.0, 2.0]}, False),
)


class Camera:
    """Sends images from a separate thread while the test calls the node."""

    def __init__(self, bench):
        self._bench, self._end = bench, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        for index in itertools.count():
            self._bench.send(index)
            if self._end.wait(0.02):
                return

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


def check_active(bench):
    """Check that the active node processes an image and publishes its pose."""
    received = len(bench.messages["pose"])
    bench.wait(lambda: bench.send(0) and len(bench.messages["pose"]) > received, "pose")
    assert_alive(bench)


def test_parameter_storm(make_bench, rng, sized):
    bench = make_bench(image_size=64)
    bench.start("pose", "points", "depth_static")
    clients = {  # the queue depth of the servers: 25 responses may arrive at once
        kind: bench.probe.create_client(kind, f"{bench.name}/{name}", qos_profile=qos_profile_parameters)
        for kind, name in ((SetParameters, "set_parameters"), (SetParametersAtomically, "set_parameters_atomically"))
    }
    assert all(client.wait_for_service(RESPONSE_LIMIT) for client in clients.values())
    with Camera(bench):
        for _ in range(sized(4, 100)):
            pending = []
            for index in rng.integers(0, len(SETTINGS), 25):
                values, allowed = SETTINGS[index]
                kind = SetParametersAtomically if allowed is None or index % 2 else SetParameters
                parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
                pending.append((allowed, clients[kind].call_async(kind.Request(parameters=parameters))))
            bench.wait(
                lambda pending=pending: all(future.done() for _, future in pending), "responses", RESPONSE_LIMIT
            )
            for allowed, future in pending:
                response = future.result()
                result = response.result if hasattr(response, "result") else response.results[0]
                assert result.successful == (allowed is not False), result.reason
                assert result.successful or result.reason
    check_active(bench)
    assert bench.count_logs("frame skipped") == 0


def test_services_in_every_order_during_transitions(make_bench, rng, sized, tmp_path):
    bench = make_bench(image_size=64, output_dir=str(tmp_path), static_map__always=True)
    bench.start("pose")
    with Camera(bench):
        bench.wait_for_frames(12)
    assert bench.call(Trigger, "save", Trigger.Request()).success
    (memory,) = tmp_path.glob("*/world.safetensors")
    assert bench.set_parameter("memory", str(memory)).successful
    clients = [
        (bench.probe.create_client(kind, f"{bench.name}/{name}"), make)
        for kind, name, make in (
            (Trigger, "reset", Trigger.Request),
            (Trigger, "save", Trigger.Request),
            (Trigger, "load", Trigger.Request),
            (SetBool, "set_paused", lambda: SetBool.Request(data=bool(rng.integers(2)))),
        )
    ]
    transitions = bench.probe.create_client(ChangeState, f"{bench.name}/change_state")
    assert transitions.wait_for_service(RESPONSE_LIMIT)
    labels = ("configure", "activate", "deactivate", "cleanup", "", "no such", "create", "destroy")
    with Camera(bench):
        for _ in range(sized(12, 400)):
            pending = []
            for _ in range(4):
                request = ChangeState.Request()
                request.transition.label = labels[rng.integers(len(labels))]
                request.transition.id = int(rng.integers(256)) if not request.transition.label else 0
                if request.transition.id in (5, 6, 7):  # shutdown is final and has its own test
                    continue
                pending.append(transitions.call_async(request))
                for client, make in clients:
                    if client.service_is_ready():
                        client.call_async(make())
            bench.wait(lambda pending=pending: all(future.done() for future in pending), "transitions", RESPONSE_LIMIT)
    for label in ("configure", "activate"):
        bench.change_state(label)
    assert bench.state() == "active"
    assert bench.call(SetBool, "set_paused", SetBool.Request(data=False)).success
    bench.wait(lambda: "pose" in bench.subscribed(), "match of the pose")
    bench.wait_for_match()
    check_active(bench)
    # Folders saved in between are complete; the last response arrives after all earlier saves are done.
    for name in ("load", "save"):
        assert bench.call(Trigger, name, Trigger.Request()).success
    for folder in tmp_path.iterdir():
        assert not folder.name.startswith(".") and (folder / "settings.yaml").is_file()


def test_activate_and_deactivate(make_bench, sized):
    bench = make_bench(image_size=64)
    bench.start("pose")
    before = None
    for turn in range(sized(24, 200)):
        if turn == 8:
            before = usage(bench.node)
        assert bench.change_state("deactivate")
        assert bench.change_state("activate")
        bench.send(0)  # may or may not arrive: the test does not wait for the match
    bench.wait_for_match()
    check_active(bench)
    assert bench.count_logs("a new world starts") == 1
    assert bench.change_state("deactivate") and bench.change_state("activate")
    assert_no_leak(before, usage, bench.node)


def test_subscription_destroyed_while_the_wait_set_is_built(ros, monkeypatch):
    """Provokes a race that otherwise occurs about once in 200 deactivations."""
    node, ticks = rclpy.create_node("listed"), []
    node.create_subscription(Image, "image", lambda _: None, 1)
    node.create_timer(0.001, lambda: ticks.append(None))
    add, raised = EventHandler.add_to_wait_set, []

    def add_to_wait_set(self, wait_set):
        if not raised:
            raised.append(None)
            raise InvalidHandle("cannot use Destroyable because destruction was requested")
        add(self, wait_set)

    monkeypatch.setattr(EventHandler, "add_to_wait_set", add_to_wait_set)
    executor = Executor(num_threads=2)
    executor.add_node(node)
    deadline = time.monotonic() + RESPONSE_LIMIT
    while not ticks and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=1.0)
    executor.shutdown()
    node.destroy_node()
    assert ticks and raised


def test_messages_are_received_while_every_thread_is_busy(ros):
    """Images must not wait while a map is being saved."""
    node, busy, done = rclpy.create_node("busy"), threading.Event(), threading.Event()
    received = []

    def keep_busy() -> None:
        busy.set()
        done.wait(RESPONSE_LIMIT)

    node.create_subscription(Image, "image", received.append, 1, callback_group=MutuallyExclusiveCallbackGroup())
    publisher = node.create_publisher(Image, "image", 1)
    for _ in range(2):
        node.create_timer(0.001, keep_busy, callback_group=MutuallyExclusiveCallbackGroup())
    executor = Executor(num_threads=2)
    executor.add_node(node)
    deadline = time.monotonic() + RESPONSE_LIMIT
    while not received and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.1)
        if busy.is_set():
            publisher.publish(Image())
    assert received and not done.is_set()
    done.set()
    executor.shutdown()
    node.destroy_node()


def test_configure_and_cleanup(make_bench, sized):
    bench = make_bench(image_size=64)
    before = None
    for turn in range(sized(8, 60)):
        if turn == 3:
            before = usage(bench.node)
        assert bench.change_state("configure") and bench.change_state("activate")
        assert bench.change_state("deactivate") and bench.change_state("cleanup")
    assert_no_leak(before, usage, bench.node)
    bench.start("pose")
    check_active(bench)


def test_shutdown_of_the_process_during_service_calls(ros, sized, tmp_path):
    """Services are called while a signal ends the node: exit status 0, and no output but the log."""
    for turn in range(sized(1, 10)):
        number = (signal.SIGTERM, signal.SIGINT)[turn % 2]
        namespace = f"/amid{turn}"
        command = [sys.executable, "-m", "raymap3r_ros.node", "--autostart", "--ros-args", "-r", f"__ns:={namespace}"]
        command += ["-p", f"output_dir:={tmp_path}", "-p", "image_size:=64", "-p", "execution:=plain"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            node = rclpy.create_node("caller", namespace=namespace)
            camera = node.create_publisher(Image, "image", QoSProfile(depth=1))
            clients = [
                (node.create_client(kind, f"raymap3r/{name}"), request)
                for kind, name, request in (
                    (Trigger, "save", Trigger.Request()),
                    (Trigger, "reset", Trigger.Request()),
                    (SetBool, "set_paused", SetBool.Request(data=False)),
                )
            ]
            assert all(client.wait_for_service(RESPONSE_LIMIT) for client, _ in clients)
            deadline = time.monotonic() + RESPONSE_LIMIT
            for index in itertools.count():
                assert time.monotonic() < deadline, "the node has not ended"
                now = node.get_clock().now().to_msg()
                camera.publish(image_message(Header(stamp=now), np.resize(np.uint8([90, 150]), (48, 64, 3)), "rgb8"))
                for client, request in clients:
                    client.call_async(request)
                rclpy.spin_once(node, timeout_sec=0.02)
                if index == 20:
                    process.send_signal(number)
                if process.poll() is not None:
                    break
            node.destroy_node()
            assert process.returncode == 0
            text = process.stdout.read()
            assert "Traceback" not in text and "[ERROR]" not in text, text
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
