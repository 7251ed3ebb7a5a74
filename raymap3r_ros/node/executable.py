"""The process around the node, or around one for each of several cameras."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import rclpy
from rclpy.exceptions import InvalidHandle
from rclpy.executors import MultiThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.task import Future
from rclpy.utilities import remove_ros_args

from raymap3r_ros.node.network_pool import NetworkPool
from raymap3r_ros.node.stream_node import StreamNode
from raymap3r_ros.signals import StopSignal


class Executor(MultiThreadedExecutor):
    """Lets callbacks finish before it goes: rclpy's takes away what they still need, and says so on stderr.

    It goes on where a subscription is taken back in another thread just while it makes its list of all: rclpy's
    raises the error of the subscription's events, which ends the process (about once in 200 deactivations).

    And it takes messages in by itself, while services and timers, which may take seconds, go to its threads. rclpy's
    hands on messages too, and makes its list of all anew when the callback is taken up and when it is done: six lists
    for an image, in Python, during each of which the network stands still.
    """

    def wait_for_ready_callbacks(self, *args: Any, **kwargs: Any) -> Any:
        """As rclpy's."""
        while True:
            try:
                handler, entity, node = super().wait_for_ready_callbacks(*args, **kwargs)
            except InvalidHandle:
                continue  # what was taken back is not in the next list
            if not isinstance(entity, Subscription):
                return handler, entity, node
            handler()
            handler.result()  # raises what the callback has raised

    def shutdown(self, *args: Any, **kwargs: Any) -> bool:
        """Stop; call it when nothing spins the executor any more."""
        self._executor.shutdown(wait=True)
        return super().shutdown(*args, **kwargs)


def main() -> int:
    """Run the node, or one for each camera, until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="stream", description="The stream node of raymap3r_ros.")
    parser.add_argument(
        "--autostart",
        action="store_true",
        help="configure and activate at once; end with status 1 where that fails",
    )
    parser.add_argument(
        "--cameras",
        type=camera_names,
        default=[],
        metavar="NAME,NAME",
        help="one node for each of these cameras, in a namespace of its name, with frames whose names begin with it; "
        "they share one network, and frames that come at the same time run through it together",
    )
    # rclpy's own handlers take the context away while the worker still publishes.
    stop = StopSignal()
    try:
        arguments = parser.parse_args(remove_ros_args(sys.argv)[1:])
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # ROS arguments that cannot be parsed, or a parameter file that cannot be read
        parser.error(str(error))

    if arguments.cameras:
        shared = NetworkPool(len(arguments.cameras))
        nodes = [
            # A rule of the node's own, because one for the process (launch's PushRosNamespace) holds for all nodes.
            StreamNode(shared, frame_prefix=name, namespace=name, cli_args=["--ros-args", "-r", f"__ns:=/{name}"])
            for name in arguments.cameras
        ]
    else:
        nodes = [StreamNode()]
    status = 1
    try:
        if not arguments.autostart or all([node.autostart() for node in nodes]):
            _spin(nodes, stop)
            status = 0
    except Exception as error:  # of a callback: whatever it is, no worker may be left over without its node
        nodes[0].get_logger().fatal(f"the process ends: {type(error).__name__}: {error}\n{traceback.format_exc()}")
    finally:
        # The interpreter's end puts back the default handlers, by which a second signal (launch sends one) would kill.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for node in nodes:
            node.close()
            node.destroy_node()
        rclpy.shutdown()
    return status


def camera_names(text: str) -> list[str]:
    """The names in "front,rear". Raises ArgumentTypeError where they cannot be namespaces, or one comes twice."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        # As a namespace and as the beginning of frame names.
        if not re.fullmatch(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", name) or names.count(name) > 1:
            raise argparse.ArgumentTypeError(
                f"{name!r} in {text!r}; allowed: different names of letters, digits and _ that begin with no digit"
            )
    return names


def _spin(nodes: Sequence[StreamNode], stop: StopSignal) -> None:
    """Run the nodes' callbacks until `stop`. Raises what a callback raises."""
    executor = Executor(num_threads=4 * len(nodes))
    for node in nodes:
        executor.add_node(node)
    end = Future(executor=executor)
    # Signal handlers run in the main thread only, so it must not be the one inside rclpy's wait.
    with ThreadPoolExecutor(1, "executor") as pool:
        spinning = pool.submit(executor.spin_until_future_complete, end)
        spinning.add_done_callback(lambda _: stop.set())
        stop.wait()
        end.set_result(None)
    executor.shutdown()
    spinning.result()
