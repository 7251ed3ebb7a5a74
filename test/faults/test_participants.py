"""No message, request or clock value of another participant ends the node: every service and every subscription."""

import importlib
import re
import threading
import time

import numpy as np
import pytest
import rclpy
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters, SetParametersAtomically
from rclpy.executors import MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.parameter import Parameter as NodeParameter
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String
from std_srvs.srv import Trigger

from raymap3r_ros.node.executable import Executor
from raymap3r_ros.node.stream_node import StreamNode

from .conftest import assert_alive

LIMIT = 30.0  # seconds
LOCAL = ("-r", "/clock:=clock", "-r", "/tf:=tf", "-r", "/tf_static:=tf_static")  # not to other tests
TEXTS = ("", "/", "~", "mask.high", "use_sim_time", "checkpoint", "%s\n\x1b[2J", "x" * 3000, "\ufffd\u202e", "a//b")
REALS = (0.0, -1.0, 1e300, -1e300, 1e-300, float("nan"), float("inf"), float("-inf"), 50.0)
SHUTDOWN = (5, 6, 7)  # transitions that end the node by design


def pick(rng, values):
    return values[int(rng.integers(len(values)))]


def random_value(rng, kind):
    """A value for a field of this type, as `get_fields_and_field_types` names it."""
    if match := re.fullmatch(r"(.+)\[(\d+)\]", kind):
        return [random_value(rng, match[1]) for _ in range(int(match[2]))]
    if match := re.fullmatch(r"sequence<(.+?)(?:, (\d+))?>", kind):
        return [random_value(rng, match[1]) for _ in range(int(rng.integers(4)))]
    if "/" in kind:
        package, name = kind.split("/")
        return random_message(rng, getattr(importlib.import_module(f"{package}.msg"), name))
    if kind.startswith("string"):
        return pick(rng, TEXTS)
    if kind == "boolean":
        return bool(rng.integers(2))
    if kind == "octet":
        return bytes([int(rng.integers(256))])
    if kind in ("float", "double"):
        value = pick(rng, REALS)
        return float(np.clip(value, -3e38, 3e38)) if kind == "float" else value
    unsigned, bits = re.fullmatch(r"(u?)int(\d+)", kind).groups()
    low, high = (0, 2 ** int(bits) - 1) if unsigned else (-(2 ** (int(bits) - 1)), 2 ** (int(bits) - 1) - 1)
    return pick(rng, [value for value in (0, 1, 2, 5, 9, 255, -1, low, high) if low <= value <= high])


def random_message(rng, kind):
    message = kind()
    for name, field in kind.get_fields_and_field_types().items():
        setattr(message, name, random_value(rng, field))
    return message


def full_name(bench, name):
    name = name.replace("~", "raymap3r")
    return name if name.startswith("/") else f"{bench.namespace}/{name}"


def test_random_requests_to_every_service(make_bench, rng, sized, tmp_path):
    bench = make_bench(*LOCAL, image_size=64, output_dir=str(tmp_path))
    assert bench.change_state("configure")
    services = [(service.srv_type, full_name(bench, service.srv_name)) for service in bench.node.services]
    names = {name.rpartition("/")[2] for _, name in services}
    assert {"set_parameters", "change_state", "get_type_description", "reset", "save"} < names
    for kind, name in services:
        client = bench.probe.create_client(kind, name)
        assert client.wait_for_service(LIMIT)
        if kind is ChangeState:
            state_changes = client
            continue
        send_requests(bench, rng, kind, client, sized(10, 1000))
    send_requests(bench, rng, ChangeState, state_changes, sized(20, 1000))
    assert_alive(bench)


def send_requests(bench, rng, kind, client, count):
    for _ in range(count):
        request = random_message(rng, kind.Request)
        if kind is ChangeState and not request.transition.label and request.transition.id in SHUTDOWN:
            continue
        future = client.call_async(request)
        bench.wait(future.done, f"response to {request}", LIMIT)
        assert future.result() is not None


@pytest.mark.parametrize("options", [{"source": "odometry"}, {"source": "range", "transport": "compressed"}])
def test_random_messages_to_every_subscription(make_bench, rng, sized, options):
    bench = make_bench(
        *LOCAL,
        image_size=64,
        tf_mode="odom",
        scale__source=options["source"],
        image_transport=options.get("transport", "raw"),
        use_sim_time=True,
    )
    bench.start()
    topics = [(one.msg_type, one.topic_name, one.qos_profile) for one in bench.node.subscriptions]
    assert {"Clock", "TFMessage", "CameraInfo"} < {kind.__name__ for kind, _, _ in topics}
    for kind, topic, qos in topics:
        publisher = bench.probe.create_publisher(kind, topic, qos)
        bench.wait(publisher.get_subscription_count, f"match of {topic}", LIMIT)
        for _ in range(sized(40, 2000)):
            publisher.publish(random_message(rng, kind))
        assert bench.state()  # after the messages, and in the order of the executor
    assert_alive(bench)


def unknown(name, kind=255):
    return Parameter(name=name, value=ParameterValue(type=kind))


def test_parameter_of_unknown_type_is_refused_with_a_reason(make_bench):
    bench = make_bench()
    valid = NodeParameter("mask.high", value=5.0).to_parameter_msg()
    request = SetParameters.Request(parameters=[unknown("mask.high"), valid, unknown("no.such", 10)])
    results = bench.call(SetParameters, "set_parameters", request).results
    assert [result.successful for result in results] == [False, True, False]
    assert "mask.high has a value of the unknown type 255; allowed: 0 to 9" in results[0].reason
    atomic = SetParametersAtomically.Request(parameters=[valid, unknown("mask.low", 77)])
    result = bench.call(SetParametersAtomically, "set_parameters_atomically", atomic).result
    assert not result.successful and "unknown type 77" in result.reason
    request = SetParameters.Request(parameters=[unknown("", 2)])
    (result,) = bench.call(SetParameters, "set_parameters", request).results
    assert not result.successful and result.reason == "a parameter without a name cannot be set"
    request = SetParameters.Request(parameters=[NodeParameter("maks.high", value=5.0).to_parameter_msg()])
    (result,) = bench.call(SetParameters, "set_parameters", request).results
    assert result.reason == "maks.high is not a parameter of this node; did you mean mask.high?"
    assert_alive(bench)


def test_parameters_cannot_be_removed(make_bench):
    """Type 0 means "not set": rclpy removes the parameter, and each later read of it would fail."""
    bench = make_bench()
    names = ["mask.high", "checkpoint", "use_sim_time"]
    request = SetParameters.Request(parameters=[unknown(name, 0) for name in names])
    assert not any(result.successful for result in bench.call(SetParameters, "set_parameters", request).results)
    values = bench.call(GetParameters, "get_parameters", GetParameters.Request(names=names)).values
    assert [value.type for value in values] == [3, 4, 1]
    assert_alive(bench)


@pytest.mark.parametrize(("sec", "nanosec"), [(-1, 0), (-(2**31), 5), (2**31 - 1, 2**32 - 1)])
def test_impossible_clock_is_ignored(make_bench, sec, nanosec):
    bench = make_bench(*LOCAL, use_sim_time=True)
    bench.advertise(Clock, "clock", QoSProfile(depth=10))
    message = Clock()
    message.clock.sec, message.clock.nanosec = sec, nanosec
    bench.publishers["clock"].publish(message)
    line = bench.wait_for_log("/clock", level=30)
    assert str(sec) in line and str(nanosec) in line
    message.clock.sec, message.clock.nanosec = 77, 5
    bench.publishers["clock"].publish(message)
    bench.wait(lambda: bench.node.get_clock().now().nanoseconds == 77 * 10**9 + 5, "the next clock value")
    assert_alive(bench)


@pytest.mark.parametrize("kind", [SingleThreadedExecutor, MultiThreadedExecutor])
def test_node_survives_in_an_executor_of_rclpy(ros, kind):
    """A user's program need not use the executor of this package."""
    node, caller = StreamNode(namespace="/plain"), rclpy.create_node("caller", namespace="/plain")
    executor = kind()
    executor.add_node(node)
    ended = threading.Event()

    def spin():
        try:
            executor.spin()
        finally:
            ended.set()

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        client = caller.create_client(SetParameters, "raymap3r/set_parameters")
        assert client.wait_for_service(LIMIT)
        future = client.call_async(SetParameters.Request(parameters=[unknown("mask.high")]))
        rclpy.spin_until_future_complete(caller, future, timeout_sec=LIMIT)
        assert not future.result().results[0].successful and not ended.is_set()
    finally:
        executor.shutdown()
        thread.join(LIMIT)
        node.close()
        node.destroy_node()
        caller.destroy_node()


def spin_until(executor, condition):
    deadline = time.monotonic() + LIMIT
    while not condition() and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.1)
    assert condition()


def test_executor_survives_an_error_of_every_kind_of_callback(ros):
    """Of a node that does not guard its callbacks itself."""
    node, calls, ticks = rclpy.create_node("broken"), [], []

    def fail(*arguments):
        calls.append(arguments)
        raise ZeroDivisionError("as a test")

    node.create_subscription(String, "text", fail, 1)
    node.create_timer(0.01, lambda: ticks.append(None) if len(calls) >= 4 else None)
    guard = node.create_guard_condition(fail)
    node.create_service(Trigger, "fail", fail)
    publisher = node.create_publisher(String, "text", 1)
    client = node.create_client(Trigger, "fail")
    executor = Executor(num_threads=2)
    executor.add_node(node)
    executor.create_task(fail)
    guard.trigger()
    spin_until(executor, lambda: client.service_is_ready() and publisher.get_subscription_count())
    client.call_async(Trigger.Request())
    publisher.publish(String())
    spin_until(executor, lambda: ticks)
    assert len(calls) == 4
    executor.shutdown()
    node.destroy_node()


def test_executor_survives_a_message_that_cannot_be_taken(ros, monkeypatch):
    """rclpy would never call the subscription, or another one of its callback group, again."""
    node, received = rclpy.create_node("damaged"), []
    node.create_subscription(String, "text", received.append, 10)
    publisher = node.create_publisher(String, "text", 10)
    take, failed = MultiThreadedExecutor._take_subscription, []

    def take_subscription(self, subscription):
        if not failed:
            failed.append(take(self, subscription))
            raise RuntimeError("failed to deserialize the message")
        return take(self, subscription)

    monkeypatch.setattr(MultiThreadedExecutor, "_take_subscription", take_subscription)
    executor = Executor(num_threads=2)
    executor.add_node(node)
    spin_until(executor, publisher.get_subscription_count)
    publisher.publish(String(data="damaged"))
    spin_until(executor, lambda: failed)
    publisher.publish(String(data="next"))
    spin_until(executor, lambda: received)
    assert [message.data for message in received] == ["next"]
    executor.shutdown()
    node.destroy_node()


def test_labels_of_unknown_transitions_are_escaped_and_throttled(make_bench, capfd):
    bench = make_bench(*LOCAL, image_size=64)
    client = bench.probe.create_client(ChangeState, f"{bench.name}/change_state")
    assert client.wait_for_service(30.0)
    request = ChangeState.Request()
    request.transition.label = "\x1b[2Jboom\nfake" + "x" * 3000
    for _ in range(5):
        future = client.call_async(request)
        bench.wait(future.done, "a response")
        assert not future.result().success
    assert bench.change_state("configure")
    output = "".join(capfd.readouterr())
    assert "\x1b[2J" not in output and "\nfake" not in output and output.count("boom") == 1
