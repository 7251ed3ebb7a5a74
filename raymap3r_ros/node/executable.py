"""The process of the node, or of one node for each of several cameras."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import rclpy
from rclpy.exceptions import InvalidHandle
from rclpy.executors import MultiThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.task import Future, Task
from rclpy.utilities import remove_ros_args

from raymap3r_ros.errors import OptionError
from raymap3r_ros.node.camera_names import camera_names
from raymap3r_ros.node.dds_profile import domain_problem
from raymap3r_ros.node.network_pool import NetworkPool
from raymap3r_ros.node.parameter_files import FORM, parameter_files, section_warnings
from raymap3r_ros.node.stream_node import StreamNode
from raymap3r_ros.signals import STOP_SIGNALS, StopSignal
from raymap3r_ros.text import Throttle, printable, with_details


class Executor(MultiThreadedExecutor):
    """rclpy's MultiThreadedExecutor with four differences.

    - It logs an exception of a callback, of any node, and continues. In rclpy it ends the process with all its nodes.

    - Callbacks finish before `shutdown` returns. rclpy destroys objects that they still use, and prints errors.
    - It survives a subscription being destroyed while the wait set is built. In rclpy this raises the error of the
      subscription's events and ends the process, about once in 200 deactivations.
    - It runs message callbacks itself; services and timers, which may take seconds, run in its threads. rclpy runs
      messages in the threads, too, and rebuilds the wait set at the start and at the end of each callback. That is six
      wait sets per image, in Python, which block the network each time.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        """As rclpy's."""
        super().__init__(*arguments, **more)
        self._throttle = Throttle()

    def wait_for_ready_callbacks(self, *args: Any, **kwargs: Any) -> Any:
        """As rclpy's."""
        while True:
            try:
                handler, entity, node = super().wait_for_ready_callbacks(*args, **kwargs)
            except InvalidHandle:
                continue  # the destroyed subscription is not part of the next wait set
            if not isinstance(entity, Subscription):
                return Task(self._run, (handler, node), executor=self), entity, node
            self._run(handler, node)

    def shutdown(self, *args: Any, **kwargs: Any) -> bool:
        """Stop. Call it when no thread spins the executor any more."""
        self._executor.shutdown(wait=True)
        return super().shutdown(*args, **kwargs)

    def _run(self, handler: Task, node: Node | None) -> None:
        handler()
        if handler.done() and handler.exception() is not None:
            self._report(handler.exception(), node)

    def _report(self, error: Exception, node: Node | None) -> None:
        logger = get_logger("executor") if node is None else node.get_logger()
        where = traceback.extract_tb(error.__traceback__)[-1]
        if self._throttle.permits(f"{logger.name} {where.filename} {where.lineno}"):
            details = "".join(traceback.format_exception(error))
            logger.error(with_details(f"a callback failed: {type(error).__name__}: {error}", details))

    def _take(self, take: Callable[[Any], Any], entity: Any) -> Any:
        # An exception here would keep rclpy from ever calling this entity and its callback group again.
        try:
            return take(entity)
        except Exception as error:
            self._report(error, None)
            return None

    def _take_subscription(self, entity: Any) -> Any:
        return self._take(super()._take_subscription, entity)

    def _take_service(self, entity: Any) -> Any:
        return self._take(super()._take_service, entity)

    def _take_client(self, entity: Any) -> Any:
        return self._take(super()._take_client, entity)

    def _take_timer(self, entity: Any) -> Any:
        return self._take(super()._take_timer, entity)

    def _take_waitable(self, entity: Any) -> Any:
        return self._take(super()._take_waitable, entity)


def main() -> int:
    """Run the node, or one for each camera, until SIGINT, SIGTERM or SIGHUP."""
    parser = argparse.ArgumentParser(prog="stream", description="The stream node of raymap3r_ros.")
    parser.add_argument(
        "--autostart",
        action="store_true",
        help="configure and activate at once; exit with status 1 if that fails",
    )
    parser.add_argument(
        "--cameras",
        type=_camera_names,
        default=[],
        metavar="NAME,NAME",
        help="one node for each of these cameras, with the camera's name as namespace and as prefix of the TF frames; "
        "the nodes share one network, and images that arrive at the same time run as one batch",
    )
    try:
        arguments = parser.parse_args(remove_ros_args(sys.argv)[1:])
        if problem := domain_problem(os.environ):
            parser.error(problem)
        # rclpy's own handlers shut the context down while the worker still publishes.
        stop = StopSignal()
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # ROS arguments that cannot be parsed, or a parameter file that cannot be read
        parser.error(printable(error) + (f"\n{FORM}" if "ros__parameters" in str(error) else ""))

    if arguments.cameras:
        pool = NetworkPool(len(arguments.cameras))
        nodes = [
            # Remapped per node, because a remapping of the process (PushRosNamespace) applies to all nodes.
            StreamNode(pool, frame_prefix=name, namespace=name, cli_args=["--ros-args", "-r", f"__ns:=/{name}"])
            for name in arguments.cameras
        ]
    else:
        nodes = [StreamNode()]
    for file in parameter_files(sys.argv):
        for line in section_warnings(file, [node.get_fully_qualified_name() for node in nodes]):
            nodes[0].get_logger().warning(printable(line))
    status = 1
    try:
        if not arguments.autostart or all([node.autostart() for node in nodes]):
            _spin(nodes, stop)
            status = 0
    except Exception as error:  # of rclpy; no worker may keep running without its node
        text = f"the process ends: {type(error).__name__}: {error}"
        nodes[0].get_logger().fatal(with_details(text, traceback.format_exc()))
    finally:
        # At exit Python restores the default handlers. Then a second signal, as from launch, would kill the process.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        for node in nodes:
            node.close()
            node.destroy_node()
        rclpy.shutdown()
        gc.freeze()  # otherwise Python searches PyTorch for reference cycles at exit: half a second of CPU time
    return status


def _camera_names(text: str) -> list[str]:
    """As `camera_names`, for argparse."""
    try:
        return camera_names(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _spin(nodes: Sequence[StreamNode], stop: StopSignal) -> None:
    """Run the nodes' callbacks until `stop`."""
    executor = Executor(num_threads=4 * len(nodes))
    for node in nodes:
        executor.add_node(node)
    end = Future(executor=executor)
    # Signal handlers run in the main thread, so the main thread must not be blocked in rclpy's wait.
    with ThreadPoolExecutor(1, "executor") as pool:
        spinning = pool.submit(executor.spin_until_future_complete, end)
        spinning.add_done_callback(lambda _: stop.set())
        stop.wait()
        end.set_result(None)
    executor.shutdown()
    spinning.result()
