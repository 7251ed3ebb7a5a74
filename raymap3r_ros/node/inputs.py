"""The subscriptions of an active node: images go to a queue, sensor data to calibration and localizer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.callback_groups import CallbackGroup
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Range

from raymap3r_ros.camera_mix import CameraMix
from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry.poses import MAX_DISTANCE, is_plausible
from raymap3r_ros.mapping.scale import RangeReading
from raymap3r_ros.node import conversions
from raymap3r_ros.node.diagnostics import PROFILE_HINT, Monitor
from raymap3r_ros.node.frame_queue import QUEUE_DEPTH, FrameQueue, PutResult, WaitingFrame
from raymap3r_ros.node.guarded_node import GuardedNode
from raymap3r_ros.node.namesakes import NamesakeWatch, PublisherWatch
from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.node.session import Session
from raymap3r_ros.node.silence import SilenceWatch, other_topics, type_name
from raymap3r_ros.node.stoppage import Stoppage
from raymap3r_ros.stamps import StampClock
from raymap3r_ros.text import counted

try:
    from rclpy.event_handler import QoSMessageLostInfo, SubscriptionEventCallbacks
except ModuleNotFoundError:  # ROS 2 Humble
    from rclpy.qos_event import QoSMessageLostInfo, SubscriptionEventCallbacks

MAX_LOSSES = 1_000_000  # images between two events; no camera publishes more
CAMERA_INFO_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED_INFO_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Inputs:
    """The subscriptions of one activation.

    A callback may still run in another thread after `destroy`, and after the session is closed.
    """

    def __init__(
        self,
        node: GuardedNode,
        session: Session,
        queue: FrameQueue,
        monitor: Monitor,
        reporter: Reporter,
        group: CallbackGroup,
        stoppage: Stoppage,
    ) -> None:
        """Subscribe. Images wait in `queue`; all callbacks belong to `group`."""
        self._node = node
        self._session = session
        self._group = group
        self._queue = queue
        self._monitor = monitor
        self._reporter = reporter
        self._every_frame = session.settings.node.every_frame
        self._stoppage = stoppage
        self._lost = 0  # images, as reported by the middleware while the node ran
        self._silence = SilenceWatch(node, reporter, stoppage)
        self._namesakes = NamesakeWatch(node, reporter)
        self._publishers = PublisherWatch(node)
        self._stamp_clock = StampClock(reporter.warn_once)
        self._camera_mix = CameraMix()
        self._colour_topics: list[str] | None = None  # known after the first depth image
        self._subscriptions = self._subscribe()
        self._match_camera_info()

    @property
    def topics(self) -> list[str]:
        """Full names of the subscribed topics; the images' topic is the first."""
        return [subscription.topic_name for subscription in self._subscriptions]

    def destroy(self) -> None:
        """Unsubscribe."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def check(self) -> None:
        """Adapt to the publishers of camera_info, and warn.

        Of inputs on which nothing arrives or that have several publishers, and of another node of the same name.
        """
        self._match_camera_info()
        self._silence.check(self._subscriptions, self._queue.last_work, every_frame=self._every_frame)
        self._namesakes.check()
        clocks = [one for one in self._node.subscriptions if one.msg_type is Clock]  # with use_sim_time
        self._reporter.stand("publishers", self._publishers.mixed([*self._subscriptions, *clocks]))

    def facts(self) -> dict[str, object]:
        """Number of publishers of each topic, for diagnostics."""
        return {f"publishers of {topic}": self._node.count_publishers(topic) for topic in self.topics}

    def _subscribe(self) -> list[Subscription]:
        options, every = self._session.settings.node, self._every_frame
        images = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=QUEUE_DEPTH if every else 1,
            reliability=ReliabilityPolicy.RELIABLE if every else ReliabilityPolicy.BEST_EFFORT,
        )
        # Best effort also matches reliable publishers.
        sensors = QoSProfile(depth=QUEUE_DEPTH if every else 5, reliability=ReliabilityPolicy.BEST_EFFORT)

        def subscribe(kind: type, topic: str, callback: Callable, qos: QoSProfile, **more: Any) -> Subscription:
            watched = self._silence.watched(topic, callback)
            return self._node.create_subscription(kind, topic, watched, qos, callback_group=self._group, **more)

        losses = SubscriptionEventCallbacks(
            message_lost=self._node.guarded(self._on_messages_lost, "the event of lost images")
        )
        kind, topic = (Image, "image")
        if options.image_transport == "compressed":
            kind, topic = (CompressedImage, "image/compressed")
        subscriptions = [
            subscribe(kind, topic, self._on_image, images, event_callbacks=losses),
            self._subscribe_camera_info(CAMERA_INFO_QOS),
        ]
        if options.scale.source == "range":
            subscriptions.append(subscribe(Range, "range", self._on_range, sensors))
        if options.scale.source == "odometry":
            subscriptions.append(subscribe(Odometry, "wheel_odometry", self._on_wheel_odometry, sensors))
        return subscriptions

    def _subscribe_camera_info(self, qos: QoSProfile) -> Subscription:
        # Not watched for silence: it is optional.
        return self._node.create_subscription(
            CameraInfo, "camera_info", self._on_camera_info, qos, callback_group=self._group
        )

    def _match_camera_info(self) -> None:
        """Subscribe to camera_info as latched while all its publishers latch it.

        A driver may have published its calibration once, before this node started. Publishers that do not latch
        would not match a latched subscription.
        """
        (current,) = (one for one in self._subscriptions if one.msg_type is CameraInfo)
        offered = [one.qos_profile for one in self._node.get_publishers_info_by_topic(current.topic_name)]
        latched = bool(offered) and all(
            (qos.reliability, qos.durability) == (ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)
            for qos in offered
        )
        wanted = LATCHED_INFO_QOS if latched else CAMERA_INFO_QOS
        if current.qos_profile.durability == wanted.durability:
            return
        others = [one for one in self._subscriptions if one is not current]
        self._node.destroy_subscription(current)  # before, so that no message arrives twice
        self._subscriptions = [others[0], self._subscribe_camera_info(wanted), *others[1:]]

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._session.calibration.update(message)
        self._session.camera_info = message
        self._monitor.camera_info(conversions.seconds(message.header.stamp))

    def _on_range(self, message: Range) -> None:
        if not 0 <= message.field_of_view <= math.pi:
            self._reporter.warn(f"range ignored: field_of_view is {message.field_of_view:g} rad; allowed: 0 to pi")
            return
        reading = RangeReading(
            conversions.seconds(message.header.stamp),
            message.range,
            message.min_range,
            message.max_range,
            message.field_of_view,
        )
        self._session.localizer.add_range(reading, message.header.frame_id.lstrip("/"))  # tf2 allows no leading slash

    def _on_wheel_odometry(self, message: Odometry) -> None:
        pose = conversions.pose_matrix(message.pose.pose)
        if not np.isfinite(pose).all():
            self._reporter.warn("wheel odometry ignored: its pose is not finite or its quaternion is 0")
            return
        if not is_plausible(pose):
            position = ", ".join(f"{value:.4g}" for value in pose[:3, 3])
            self._reporter.warn(
                f"wheel odometry ignored: its position is ({position}) m; allowed: up to {MAX_DISTANCE:g}"
            )
            return
        self._session.localizer.add_odometry(conversions.seconds(message.header.stamp), pose)

    def _on_image(self, message: Image | CompressedImage) -> None:
        arrival = time.monotonic()
        session = self._session
        if session.paused:
            self._monitor.count("frames paused")
            return
        try:
            conversions.check_image(message)
        except InputError as error:
            self._reporter.refuse(error if not isinstance(error, conversions.DepthError) else self._with_cure(error))
            return
        size = (message.width, message.height) if isinstance(message, Image) else None
        self._reporter.stand("cameras", self._camera_mix.add(message.header.frame_id, size))
        given, now = conversions.nanoseconds(message.header.stamp), self._node.get_clock().now().nanoseconds
        nanoseconds = self._stamp_clock.image(given, now)
        stamp = Time(nanoseconds=nanoseconds).to_msg()
        seconds = conversions.seconds(stamp)
        jump = session.jump_detector.check(nanoseconds, session.settings.node.max_gap)
        if jump:
            self._node.get_logger().warning(
                f"stamps jump {'forward' if jump > 0 else 'back'} by {abs(jump):.3f} s: the stream is reset"
                + f" (max_gap is {session.settings.node.max_gap:g} s)" * (jump > 0)
            )
        self._monitor.arrived(seconds, bool(jump))
        put = self._queue.put(
            WaitingFrame(message, stamp, arrival, session.jump_detector.jumps, now * 1e-9, session.calibration.current)
        )
        if put is PutResult.REPLACING:
            self._monitor.count("frames dropped")
        elif put is PutResult.OVERFLOW:
            self._monitor.count("frames lost")
            self._reporter.fail(
                f"the queue of {QUEUE_DEPTH} frames is full: frames are lost; play the recording more slowly",
                throttle=True,
            )

    def _with_cure(self, error: conversions.DepthError) -> conversions.DepthError:
        if self._colour_topics is None:  # looked up once, not for each image
            images = self._subscriptions[0]
            self._colour_topics = other_topics(self._node, images.topic_name, type_name(images.msg_type))
        such = f", such as {', '.join(self._colour_topics)}" if self._colour_topics else ""
        return conversions.DepthError(f"{error}{such}")

    def _on_messages_lost(self, losses: QoSMessageLostInfo) -> None:
        # Some versions of the middleware report uninitialised numbers.
        if not 0 < losses.total_count_change <= MAX_LOSSES:
            return
        self._monitor.count("frames lost", losses.total_count_change)
        if self._stoppage.explains_losses():
            text = f"{counted(losses.total_count_change, 'image')} lost while the node did not run"
        else:
            self._lost += losses.total_count_change
            text = f"{counted(self._lost, 'image')} lost on the way to the node: {PROFILE_HINT}"
        if self._every_frame:
            self._reporter.fail(text, throttle=True)
        else:
            self._reporter.warn(text)
