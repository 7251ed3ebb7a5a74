"""Other nodes with the node's own name, or with publishers of the same inputs."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rclpy.node import Node
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.text import listing

REPEAT = 60.0  # seconds between two warnings
LISTED = 3  # publishers that a warning names
LEASE = 30.0  # seconds; the publishers of a killed process stay in the graph for 20 s with Fast DDS
# Of the nodes that `raymap3r demo` and `raymap3r replay` start, and of the images that they publish to them
DEMO_NAMESPACE, REPLAY_NAMESPACE = "/raymap3r_demo", "/raymap3r_replay"


def endpoint_name(endpoint: TopicEndpointInfo) -> str:
    """Full name of the node of a publisher; "" if it is not known: not yet, or its process was killed before."""
    if endpoint.node_name == "_NODE_NAME_UNKNOWN_":
        return ""
    return f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}"


class NamesakeWatch:
    """Warns while another node of the graph has the same full name."""

    def __init__(self, node: Node, reporter: Reporter) -> None:
        self._node = node
        self._reporter = reporter
        self._due = 0.0

    def check(self) -> None:
        """Warn if there is such a node; once in REPEAT seconds."""
        if time.monotonic() < self._due:
            return
        own = (self._node.get_name(), self._node.get_namespace())
        count = self._node.get_node_names_and_namespaces().count(own)
        if count > 1:
            self._due = time.monotonic() + REPEAT
            self._reporter.warn(
                f"{count} nodes are named {self._node.get_fully_qualified_name()}: they publish to the same topics, "
                "and services reach only one of them; end all but one, or rename them (-r __node:= or -r __ns:=)"
            )


class PublisherWatch:
    """Finds inputs with several publishers, whose messages are mixed."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._repeated: dict[str, float] = {}  # topics on which a name occurs twice, and since when

    def mixed(self, subscriptions: Iterable[Subscription], now: float | None = None) -> str:
        """The inputs that have several publishers, with their nodes; "" if there are none. `now`: monotonic seconds.

        A name that occurs twice counts once until LEASE has passed: a driver that was killed and has been started
        again.
        """
        now = time.monotonic() if now is None else now
        mixed, repeated = [], {}
        for topic in (subscription.topic_name for subscription in subscriptions):
            names = sorted(filter(None, map(endpoint_name, self._node.get_publishers_info_by_topic(topic))))
            if len(set(names)) < len(names):
                repeated[topic] = self._repeated.get(topic, now)
                if now - repeated[topic] < LEASE:
                    names = sorted(set(names))
            if len(names) > 1:
                mixed.append(f"{topic} has {len(names)} publishers: {listing(names, LISTED)}")
        self._repeated = repeated
        if not mixed:
            return ""
        return (
            f"{'; '.join(mixed)}: their messages are mixed; end all but one, or remap this input to a topic of its own"
        )
