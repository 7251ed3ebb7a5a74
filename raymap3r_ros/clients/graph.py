"""The ROS graph that a replay or a demo shares with other programs: names that are taken, topics of everyone."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator

from rclpy.exceptions import InvalidTopicNameException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.subscription import Subscription
from rclpy.validate_full_topic_name import validate_full_topic_name

from raymap3r_ros.errors import OptionError, Raymap3rError
from raymap3r_ros.node.dds_profile import to_check
from raymap3r_ros.node.namesakes import endpoint_name

log = logging.getLogger(__name__)

GLOBAL_TOPICS = ("/tf", "/tf_static", "/clock", "/diagnostics")  # those of every node in the domain
DISCOVERY_TIME = 4.0  # seconds in which nodes that run already are discovered, even on a busy machine
APPEAR_LIMIT = 60.0  # seconds for a node that the user starts
QUICK_LOOK = 1.0  # seconds in which most are; for topics of our own, where a late discovery does no harm
# What other publishers of the player's topics do, see `refuse_other_publishers`.
SHARED = (
    "if this is a live robot, the transforms and the clock of the bag would reach it; end these nodes, use another "
    "ROS_DOMAIN_ID, or play anyway with --global-topics"
)
FOREIGN = "its poses would be taken for those of the stream node; end that node, or give the stream node another name"
MIXED = "the node would mix its images with those of the bag; end that node, or use another stream node"


def check_node_name(name: str) -> None:
    """Raise OptionError if the full name of a node is not valid. The rules are those for topics."""
    try:
        validate_full_topic_name(name)
    except InvalidTopicNameException as error:
        reason = str(error).splitlines()[0].removeprefix("Invalid topic name: ").rstrip(":")
        raise OptionError(f"node is {name!r} ({reason}); allowed: full names, as /front/raymap3r") from error


def private_topics(namespace: str) -> list[str]:
    """ROS arguments that move the global topics of a process into a namespace (full name)."""
    return [part for topic in GLOBAL_TOPICS for part in ("-r", f"{topic}:={namespace}{topic}")]


@contextlib.contextmanager
def reserved(node_name: str) -> Iterator[None]:
    """Keep other programs of this package, on this machine and domain, from running a node of this name (full name).

    Raises Raymap3rError if one does so already.
    """
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    # An abstract socket: its name is unique, and free again however the process ends.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        try:
            lock.bind(f"\0raymap3r_ros node {domain} {node_name}")
        except OSError:
            raise Raymap3rError(
                f"another program of this package is running the node {node_name} in ROS domain {domain}: wait until "
                "it has ended, or set another ROS_DOMAIN_ID"
            ) from None
        yield


def node_count(node: Node, name: str) -> int:
    """Number of nodes with the full name `name` that `node` has discovered."""
    found = node.get_node_names_and_namespaces()
    return sum(f"{namespace.rstrip('/')}/{base}" == name for base, namespace in found)


def wait_for_node(node: Node, name: str, wait: Callable[[Callable[[], bool], float], bool]) -> None:
    """Wait until `node` has discovered a node with the full name `name`, which the user starts.

    `wait(condition, deadline)` returns whether the condition holds; False before the deadline ends the wait. Raises
    Raymap3rError if there is no such node after APPEAR_LIMIT.
    """
    missing = f"there is no node {name} in ROS domain {os.environ.get('ROS_DOMAIN_ID', '0')}"
    for limit in (DISCOVERY_TIME, APPEAR_LIMIT):
        deadline = time.monotonic() + limit
        if wait(lambda: node_count(node, name) > 0, deadline) or time.monotonic() < deadline:
            return
        if limit == DISCOVERY_TIME:
            log.warning("%s; waiting %.0f s for it", missing, APPEAR_LIMIT)
    raise Raymap3rError(f"{missing}: start it, correct its name, or check {to_check(os.environ)}")


def refuse_taken_name(node: Node, name: str, seconds: float) -> None:
    """Raise Raymap3rError if a node with the full name `name` is discovered within this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if node_count(node, name):
            raise Raymap3rError(
                f"a node {name} is already running in ROS domain {os.environ.get('ROS_DOMAIN_ID', '0')}: its messages "
                "could not be distinguished from those of the node started here; end it, or set another ROS_DOMAIN_ID"
            )
        time.sleep(0.05)


def refuse_shared_name(node: Node, name: str) -> None:
    """Raise Raymap3rError if `node` has discovered several nodes with the full name `name`."""
    count = node_count(node, name)
    if count > 1:
        raise Raymap3rError(
            f"{count} nodes are named {name}: their inputs, counts and results cannot be distinguished; end all but "
            "one of them, or rename them (-r __node:=)"
        )


def refuse_other_publishers(
    node: Node, name: str, topics: Iterable[Publisher | Subscription], harm: str = SHARED
) -> None:
    """Raise Raymap3rError if others than `node` and the stream node `name` publish these topics.

    `harm`: what would happen, and what to do.

    A publisher can be discovered before the name of its node, those of `node` itself too: names are waited for, and
    publishers that stay without one are ignored.
    """
    own = {name, node.get_fully_qualified_name()}
    deadline = time.monotonic() + DISCOVERY_TIME
    for topic in (one.topic_name for one in topics):
        while "" in (found := {endpoint_name(one) for one in node.get_publishers_info_by_topic(topic)}):
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
        if others := sorted(found - own - {""}):
            raise Raymap3rError(f"{topic} is also published by {', '.join(others)}: {harm}")
