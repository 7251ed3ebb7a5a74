"""The processes beside the one that plays the camera: a node, and somebody who listens to it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from raymap3r_ros.errors import Raymap3rError

START_LIMIT = 600.0  # seconds for the node to load its weights: the public ones are large
STOP_LIMIT = 30.0  # seconds for a process to end once it is asked to


@contextlib.contextmanager
def running_node(namespace: str, parameters: Mapping[str, object], *ros_arguments: str) -> Iterator[subprocess.Popen]:
    """The stream node in a process of its own, which starts by itself and is ended with the context."""
    command = [sys.executable, "-m", "raymap3r_ros.node", "--autostart", "--ros-args", "-r", f"__ns:={namespace}"]
    for name, value in parameters.items():
        command += ["-p", f"{name}:={json.dumps(value)}"]
    # In a session of its own, so that Ctrl-C reaches the camera alone, which ends the others in order.
    process = subprocess.Popen([*command, *ros_arguments], start_new_session=True)
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> int:
    """End a process; its exit status."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextlib.contextmanager
def listening(target: Callable, *arguments: object) -> Iterator[Connection]:
    """Our end of a pipe to a process that runs `target(its_end, *arguments)`, and ends when nobody listens to it."""
    # Spawned, because a forked copy of this process would share its DDS threads.
    context = multiprocessing.get_context("spawn")
    pipe, its_end = context.Pipe()
    process = context.Process(target=target, args=(its_end, *arguments), daemon=True)
    # The camera's process alone decides when to end; Ctrl-C reaches the listener too, even before it has begun.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, previous)
    its_end.close()
    try:
        yield pipe
    finally:
        pipe.close()
        process.join(STOP_LIMIT)


def answer(pipe: Connection, node: subprocess.Popen, awaited: str, listener: str) -> Any:
    """The next thing that the `listener` says, of the `awaited`. Raises Raymap3rError where a process ends before."""
    deadline = time.monotonic() + START_LIMIT
    while not pipe.poll(0.2):
        check_running(node)
        if time.monotonic() > deadline:
            raise Raymap3rError(f"nothing was heard of {awaited} for {START_LIMIT:.0f} s")
    try:
        return pipe.recv()
    except EOFError:
        raise Raymap3rError(f"{listener} has ended; its own message is above") from None


def check_running(node: subprocess.Popen) -> None:
    """Raise Raymap3rError where the node has ended."""
    if node.poll() is not None:
        raise Raymap3rError(f"the node has ended with status {node.returncode}; its own message is above")


@contextlib.contextmanager
def camera_node(namespace: str) -> Iterator[Node]:
    """rclpy, started without signal handlers of its own, and a node in it to send images from."""
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    camera = rclpy.create_node("camera", namespace=namespace)
    try:
        yield camera
    finally:
        camera.destroy_node()
        rclpy.shutdown()
