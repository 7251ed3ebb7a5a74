"""Why nothing arrives on a topic: no publisher, another type, incompatible QoS, or lost messages."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable
from typing import Any

from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from raymap3r_ros.node.dds_profile import to_check
from raymap3r_ros.node.diagnostics import PROFILE_HINT
from raymap3r_ros.node.guarded_node import GuardedNode
from raymap3r_ros.node.namesakes import DEMO_NAMESPACE, REPLAY_NAMESPACE, endpoint_name
from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.node.stoppage import Stoppage
from raymap3r_ros.text import printable

SILENCE = 5.0  # seconds without a message before the first warning
REPEAT = 60.0  # seconds between two warnings about the same topic
LISTED = 3  # publishers or topics that a warning names
LONGEST_NAME = 80  # characters of one of them: a longer warning would be cut, perhaps in its remedy
OWN_OUTPUT = "depth_static"  # topic of every node of this package, and of no other
CLOCK_REMEDY = "publish it (ros2 bag play --clock, or the simulator), or set use_sim_time to false"


class SilenceWatch:
    """Warns about subscriptions that receive nothing, with `use_sim_time` also about the node's own to /clock."""

    def __init__(self, node: GuardedNode, reporter: Reporter, stoppage: Stoppage) -> None:
        self._node = node
        self._stoppage = stoppage
        self._reporter = reporter
        self._received: set[str] = set()  # topics, as given to `watched`, on which anything has arrived
        self._last: dict[str, float] = {}  # time of the last message or of the start, by topic as given to `watched`
        self._due: dict[str, float] = {}  # time of the next warning, by full name of the topic
        self._start = time.monotonic()

    def watched(self, topic: str, callback: Callable[[Any], None]) -> Callable[[Any], None]:
        """`callback` of a subscription to `topic`; the time of its last message is recorded from now on."""
        self._last[topic] = time.monotonic()

        def receive(message: Any) -> None:
            self._last[topic] = time.monotonic()
            self._received.add(topic)
            callback(message)

        return receive

    def check(self, subscriptions: Iterable[Subscription], last_work: float, *, every_frame: bool) -> None:
        """Warn of each watched topic on which nothing has arrived for SILENCE seconds; the log once in REPEAT seconds.

        If nothing has arrived on a topic yet, the limit is twice as long: its publisher may be starting. A camera may
        wait for the result of its last image, as in a replay. The silence of images begins when the node has processed
        all that it has received, at `last_work`. With `every_frame`, all publishers may wait.
        """
        now = time.monotonic()
        by_topic = {subscription.topic_name: subscription for subscription in subscriptions}
        watched = [
            (by_topic[self._node.resolve_topic_name(topic)], last, topic in self._received)
            for topic, last in self._last.items()
        ]
        if self._node.get_parameter("use_sim_time").value:
            arrival = self._node.clock_arrival
            last = max(self._start, arrival)
            watched += [(one, last, arrival > 0) for one in self._node.subscriptions if one.msg_type is Clock]
        for subscription, last, has_received in watched:
            topic = subscription.topic_name
            last = max(last, self._stoppage.ended)
            is_image = subscription.msg_type in (Image, CompressedImage)
            if is_image or (every_frame and self._node.count_publishers(topic)):
                last = max(last, last_work)
            if now - last < (SILENCE if has_received else 2 * SILENCE):
                if self._due.pop(topic, None):
                    self._reporter.stand(f"silence of {topic}", "")
                continue
            is_due = now >= self._due.get(topic, now)
            if is_due:
                self._due[topic] = now + REPEAT
            text = explain(self._node, subscription, now - last, has_received)
            self._reporter.stand(f"silence of {topic}", text, again=is_due)


def explain(node: GuardedNode, subscription: Subscription, seconds: float, has_received: bool) -> str:
    """One line: the topic, its publishers with type and QoS, and the likely cause of their silence.

    `has_received`: messages arrived before the silence.
    """
    topic, kind = subscription.topic_name, type_name(subscription.msg_type)
    publishers = node.get_publishers_info_by_topic(topic)
    listed = "; ".join(
        f"{_name(one)} publishes {printable(one.topic_type, LONGEST_NAME)}, {_reliability(one.qos_profile)}"
        for one in publishers[:LISTED]
    )
    if len(publishers) > LISTED:
        listed += f"; and {len(publishers) - LISTED} more"
    return (
        f"nothing has arrived on {topic} ({kind}, {_reliability(subscription.qos_profile)}) for {seconds:.0f} s: "
        f"{_cause(node, subscription, kind, publishers, has_received)}" + (f". Publishers: {listed}" if listed else "")
    )


def other_topics(node: GuardedNode, topic: str, kind: str) -> list[str]:
    """Some other topics of a type that other nodes publish, those of drivers by their name first; printable.

    Left out are depth images by their name, outputs of this package's nodes, and the images of a demo or replay.
    """
    types = dict(node.get_topic_names_and_types())
    private = (f"{DEMO_NAMESPACE}/", f"{REPLAY_NAMESPACE}/")
    others = [
        name
        for name, kinds in types.items()
        if kind in kinds and name != topic and "depth" not in name and not name.startswith(private)
    ]
    others = sorted(others, key=lambda name: ("image_raw" not in name, "image" not in name, name))
    others = [name for name in others if _has_other_publisher(node, name, types)]
    return [printable(name, LONGEST_NAME) for name in others[:LISTED]]


def _has_other_publisher(node: GuardedNode, topic: str, names: Container[str]) -> bool:
    """Whether a node that is none of this package publishes a topic. `names`: of all topics."""
    publishers = {endpoint_name(one) for one in node.get_publishers_info_by_topic(topic)}
    # Names alone, such as odometry, do not show that a topic is an output of this package.
    return any(name and not (topic.startswith(f"{name}/") and f"{name}/{OWN_OUTPUT}" in names) for name in publishers)


def _missing_publisher(node: GuardedNode, subscription: Subscription, kind: str) -> str:
    """What to do about a topic without a publisher. Images may have the other transport."""
    topic = subscription.topic_name
    others = other_topics(node, topic, kind)
    if subscription.msg_type in (Image, CompressedImage):
        is_raw = subscription.msg_type is Image
        transport, other_type = ("compressed", CompressedImage) if is_raw else ("raw", Image)
        same = f"{topic}/compressed" if is_raw else topic.removesuffix("/compressed")
        other_kind = type_name(other_type)
        if any(one.topic_type == other_kind for one in node.get_publishers_info_by_topic(same)):
            return f"{printable(same, LONGEST_NAME)} is published: set image_transport to {transport}"
        images = other_topics(node, topic, other_kind)
        if images and not others:
            cure = f"set image_transport to {transport}, and remap `image` to the topic of the driver"
            return f"no topic has the type {kind}, but {', '.join(images)} the type {other_kind}: {cure}"
    if others:
        return f"remap it to the topic of the driver, such as {', '.join(others)}"
    return f"no topic of this ROS domain has the type {kind}: start the driver, check {to_check(os.environ)}"


def _cause(
    node: GuardedNode, subscription: Subscription, kind: str, publishers: list[TopicEndpointInfo], has_received: bool
) -> str:
    topic = subscription.topic_name
    is_clock = subscription.msg_type is Clock
    if not publishers:
        if is_clock:
            return f"use_sim_time is true, but no publisher of it was discovered; {CLOCK_REMEDY}"
        if has_received:
            return f"its publisher has ended or is out of reach: start it again, or check {to_check(os.environ)}"
        if topic.endswith("/compressed/compressed"):
            return "its name ends in compressed twice; remap `image` to the name without /compressed"
        return f"no publisher of it was discovered; {_missing_publisher(node, subscription, kind)}"
    fitting = [one for one in publishers if one.topic_type == kind]
    if not fitting:
        image = "set image_transport, or remap `image`" if "Image" in kind else "remap it"
        return f"its publishers have another type; {image} to a topic of the type {kind}"
    reasons = [
        reason
        for one in fitting
        for compatibility, reason in [qos_check_compatible(one.qos_profile, subscription.qos_profile)]
        if compatibility == QoSCompatibility.ERROR
    ]
    if len(reasons) == len(fitting):
        return (
            f"the QoS of its publishers is incompatible ({reasons[0].strip('; ')}); make them reliable, "
            "or set every_frame to false"
        )
    if is_clock:
        return f"use_sim_time is true, but its publishers send nothing; {CLOCK_REMEDY}"
    return (
        f"its publishers send nothing, or large messages are lost; check its rate with `ros2 topic hz`, {PROFILE_HINT}"
    )


def type_name(kind: type) -> str:
    """The ROS name of a message class, such as sensor_msgs/msg/Image."""
    return f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"


def _name(publisher: TopicEndpointInfo) -> str:
    return printable(endpoint_name(publisher) or "a node whose name is not known", LONGEST_NAME)


def _reliability(qos: QoSProfile) -> str:
    return qos.reliability.name.lower().replace("_", " ")
