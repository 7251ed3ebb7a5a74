"""The managed node: moves images in, results out, and keeps the time; the method itself is in `streaming`."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.service import Service
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Range
from std_srvs.srv import SetBool, Trigger
from tf2_ros import Buffer, TransformListener

from raymap3r_ros.errors import InputError, OptionError, reason_of
from raymap3r_ros.geometry import poses
from raymap3r_ros.geometry.calibration import CameraCalibration, names_rectified
from raymap3r_ros.mapping.scale import MetricScale, RangeReading, ScaleEstimate
from raymap3r_ros.mapping.uncertainty import DEFAULT, METADATA_KEY, ErrorModel
from raymap3r_ros.network import choose_device, load_network
from raymap3r_ros.node import conversions, parameters
from raymap3r_ros.node.diagnostics import PROFILE_HINT, Monitor
from raymap3r_ros.node.frame_queue import DEPTH, FrameQueue, PutResult, WaitingFrame
from raymap3r_ros.node.map_publisher import MapPublisher
from raymap3r_ros.node.network_pool import NetworkPool
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.publishers import MOTION_TOPICS, FrameSummary, PlacedFrame, Publishers
from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.node.saving import Saved, save
from raymap3r_ros.node.tf_frames import MOUNT_AGE, FrameNames, Frames, TransformError, look_up
from raymap3r_ros.streaming import StepResult, Stream, StreamOptions
from raymap3r_ros.streaming.batching import BatchScheduler, step_of, warm_up

try:
    from rclpy.event_handler import QoSMessageLostInfo, SubscriptionEventCallbacks
except ModuleNotFoundError:  # ROS 2 Humble
    from rclpy.qos_event import QoSMessageLostInfo, SubscriptionEventCallbacks

WORLD_FROM_OPTICAL = poses.world_pose(np.eye(4))
DEFAULT_FRAME = "camera_optical_frame"
MAX_FAILURES = 3  # frames in a row without GPU memory, after which the node deactivates itself
LATE = 0.1  # seconds by which a stamp may lie before the last one and still be a late frame, not a jump


def _reasoned(transition: Callable[..., TransitionCallbackReturn]) -> Callable[..., TransitionCallbackReturn]:
    """Lets `on_error` know why a transition broke: rclpy keeps it to itself."""

    @functools.wraps(transition)
    def told(self: StreamNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self._broken = f"{type(error).__name__}: {error}"
            self.get_logger().debug(traceback.format_exc())
            return TransitionCallbackReturn.ERROR

    return told


class StreamNode(LifecycleNode):
    """One camera stream.

    Callbacks only take messages in; one worker thread, alive while the node is active, runs the network and
    publishes. `shared`: given to several nodes of one process, which then share one network and run together;
    `frame_prefix`: put before `world_frame` and `odom_frame`, because each camera has a world of its own. The other
    arguments are those of rclpy's Node.
    """

    def __init__(self, shared: NetworkPool | None = None, *, frame_prefix: str = "", **node_arguments: Any) -> None:
        super().__init__("raymap3r", **node_arguments)
        self._shared = shared
        self._frame_prefix = frame_prefix
        parameters.declare(self, NodeOptions, StreamOptions)
        self.add_on_set_parameters_callback(self._check_parameters)

        self._monitor = Monitor()
        self._notes = Reporter(self.get_logger(), self._monitor)
        self._stream: Stream | None = None
        self._together: BatchScheduler | None = None  # where the network is shared
        self._outputs: Publishers | None = None
        self._maps: MapPublisher | None = None
        # One for the node's life: what it hangs on the node's clock, and its service, it never takes back.
        self._buffer = Buffer(node=self)
        self._transforms: TransformListener | None = None
        self._queue: FrameQueue | None = None
        self._worker: threading.Thread | None = None
        self._subscriptions_in: list[Subscription] = []
        self._services_in: list[Service] = []
        self._reset_asked = threading.Event()
        self._paused = False
        self._configured = threading.Lock()  # held while what a configured node has is looked at or taken away
        self._idle_state = "unconfigured"  # of the life cycle, while nothing is configured
        self._broken = ""  # why the last transition broke
        self._last_stamp: float | None = None  # seconds, of the image that arrived last
        self._resumed = False  # after a pause the first image may be stamped much later: the scene goes on
        self._scene = self._processed_scene = 0

        # Images, and the timer, must go on while a transition or a service is at work in the default group.
        self._image_group = MutuallyExclusiveCallbackGroup()
        self._timer_group = MutuallyExclusiveCallbackGroup()
        # To write a large map takes seconds.
        self._save_group = MutuallyExclusiveCallbackGroup()
        # Not with the others, which no transition can interrupt: rclpy fails where it is to answer for a service that
        # was taken back while it was at work.
        self.create_service(Trigger, "~/save", self._on_save, callback_group=self._save_group)
        self._map_group = MutuallyExclusiveCallbackGroup()
        # A transition may not run in the worker, which it joins: the worker triggers it in the transitions' group.
        self._give_up = self.create_guard_condition(self._deactivate_after_failures)
        # An unconfigured node tells its last error too, and sim time that stands still must not silence it.
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._report, callback_group=self._timer_group, clock=steady)

    # ------------------------------------------------------------------------------------------------- transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read and check the parameters, load the weights, warm up."""
        try:
            self._configure()
        except Exception as error:  # rclpy would swallow it; whatever it is, the user gets one line
            self._release()
            self._notes.fail(f"configure failed: {reason_of(error)}")
            self.get_logger().debug(traceback.format_exc())
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    @_reasoned
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and publish. The memory of the scene is as `deactivate` left it."""
        super().on_activate(state)
        self._resumed = True
        self._failures = 0
        self._queue = FrameQueue(self._options.every_frame)
        self._worker = threading.Thread(target=self._work, name="stream")
        self._worker.start()
        self._subscribe()
        self.get_logger().info(
            f"active: {'every frame' if self._options.every_frame else 'newest frame'} of "
            f"{self._subscriptions_in[0].topic_name}"
        )
        return TransitionCallbackReturn.SUCCESS

    @_reasoned
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop taking images, keep the memory of the scene."""
        self._stop()
        self._outputs.publish_trajectories(self._outputs.wanted(), self._options)  # their ends
        return super().on_deactivate(state)

    @_reasoned
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the GPU."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop from any state."""
        self.close()
        self._idle_state = "finalized"
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """A transition broke: back to unconfigured, with nothing left over."""
        self._notes.fail(f"a transition from {state.label} broke ({self._broken}): the node is unconfigured again")
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def autostart(self) -> bool:
        """Configure and activate; False where that failed (the log says why)."""
        done = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == done and self.trigger_activate() == done

    def close(self) -> None:
        """End the worker and free everything."""
        self._stop()
        self._release()

    def destroy_node(self) -> None:
        """Take the node off the graph. `close` comes before; afterwards another can have its name."""
        super().destroy_node()
        # rclpy leaves it to the garbage collector, and with it rcl's node: which, collected later, would take the
        # publisher of /rosout from a node that has its name by then.
        self._state_machine.destroy_when_not_in_use()

    def _configure(self) -> None:
        options, stream_options = self._node_options(), parameters.read(self, StreamOptions)
        self._claim_frame(options)
        _leave_a_core_free()
        self.get_logger().info(f"loading {options.checkpoint}")
        if self._shared is None:
            network = load_network(options.checkpoint, choose_device(options.device), stream_options.precision)
        else:
            self._together = self._shared.get(options.checkpoint, options.device, stream_options.precision)
            network = self._together.network
        self._stream = Stream(network, stream_options)
        if not self._stream.network.trained:
            self.get_logger().warning(self._stream.network.source)
        error_model = ErrorModel.from_manifest(network.manifest, network.source)
        if error_model is None and network.trained:
            self.get_logger().warning(
                f"{network.source} has no error model of its own (metadata {METADATA_KEY!r}): the covariances of "
                "~/odometry use the default, see docs/odometry.md"
            )
        warm_up(self._stream, self._together, 1 if self._shared is None else self._shared.cameras)
        self.get_logger().info(f"{self._stream.network.source} runs on {self._stream.device}")
        self._notes.forget()
        self._rule = self._intrinsics_from = ""
        self._has_world = self._paused = False
        self._reset_reason = ""  # why the frame at hand, or one before it that came to nothing, starts a new memory
        # After the last frame the memory began anew: joined to the old one not well (jumped), or not at all (apart).
        self._jumped = self._apart = False
        self._last_stamp = None
        self._scene = self._processed_scene = 0
        self._options = options
        topic = self.resolve_topic_name("image/compressed" if options.image_transport == "compressed" else "image")
        self._calibration = CameraCalibration(
            partial(self._notes.fail, throttle=True), rectified=options.rectified or names_rectified(topic)
        )
        self._scale = MetricScale(options.scale)
        self._scale_estimate: ScaleEstimate | None = None
        self._ranger = ""  # frame of the range sensor, once it is heard
        self._buffer.clear()
        if options.tf_mode != "camera" or options.scale.source != "fixed":
            self._transforms = TransformListener(self._buffer, self)
        self._look_up = partial(look_up, self._buffer)
        self._frames = Frames(_frame_names(options), self._look_up)
        with self._configured:  # who looks at the one looks at the other
            self._outputs = Publishers(self, error_model or DEFAULT)
            self._maps = MapPublisher(self, options, self._notes, self._map_group)
        self._services_in = [
            self.create_service(Trigger, "~/reset", self._on_reset),
            self.create_service(SetBool, "~/set_paused", self._on_set_paused),
        ]
        parameters.lock(self, True, NodeOptions, StreamOptions)

    def _claim_frame(self, options: NodeOptions) -> None:
        """Raise OptionError where another camera of the process publishes the same frame's parent (REP 105)."""
        if self._shared is None or options.tf_mode == "camera" or options.invert_tf or not options.publish_tf:
            return
        frame = options.odom_frame if options.tf_mode == "map" else options.base_frame
        name = self.get_fully_qualified_name()
        owner = self._shared.claim(frame, name)
        if owner != name:
            raise OptionError(
                f"publish_tf is true, but {owner} publishes the parent of {frame} already; allowed with tf_mode "
                f"{options.tf_mode}: true for one of the cameras"
            )

    def _release(self) -> None:
        parameters.lock(self, False, NodeOptions, StreamOptions)
        if self._shared is not None:
            self._shared.give_back(self.get_fully_qualified_name())
        with self._configured:
            for outputs in (self._outputs, self._maps):
                if outputs is not None:
                    outputs.destroy()
            if self._transforms is not None:
                self._transforms.unregister()
            for service in self._services_in:
                self.destroy_service(service)
            self._services_in = []
            self._outputs = self._maps = self._transforms = self._stream = self._together = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _stop(self) -> None:
        with self._configured:  # the report names their topics
            for subscription in self._subscriptions_in:
                self.destroy_subscription(subscription)
            self._subscriptions_in = []
        if self._worker is not None:
            left = self._queue.close()
            self._worker.join()
            self._worker = None
            self._monitor.count("frames dropped", left)
            if left and self._options.every_frame:
                self.get_logger().warning(f"{left} waiting frames were not processed")

    def _subscribe(self) -> None:
        compressed = self._options.image_transport == "compressed"
        kind, topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
        every = self._options.every_frame
        images = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=DEPTH if every else 1,
            reliability=ReliabilityPolicy.RELIABLE if every else ReliabilityPolicy.BEST_EFFORT,
        )
        losses = SubscriptionEventCallbacks(message_lost=self._on_messages_lost)
        infos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        group = self._image_group
        self._subscriptions_in = [
            self.create_subscription(
                kind, topic, self._on_image, images, callback_group=group, event_callbacks=losses
            ),
            self.create_subscription(CameraInfo, "camera_info", self._on_camera_info, infos, callback_group=group),
        ]
        # Reliable or not, whoever publishes these is heard.
        sensor = QoSProfile(depth=DEPTH if every else 5, reliability=ReliabilityPolicy.BEST_EFFORT)
        if self._options.scale.source == "range":
            self._subscriptions_in.append(
                self.create_subscription(Range, "range", self._on_range, sensor, callback_group=group)
            )
        if self._options.scale.source == "odometry":
            self._subscriptions_in.append(
                self.create_subscription(
                    Odometry, "wheel_odometry", self._on_wheel_odometry, sensor, callback_group=group
                )
            )

    def _deactivate_after_failures(self) -> None:
        # The user may have been faster.
        if self._worker is not None:
            self._notes.fail(f"{MAX_FAILURES} frames in a row without GPU memory: the node deactivates itself")
            self.trigger_deactivate()

    # --------------------------------------------------------------------------------------------------- callbacks

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        values = {parameter.name: parameter.value for parameter in changes}
        try:
            for kind in (NodeOptions, StreamOptions):
                parameters.check_change(self, kind, values)
        except OptionError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._reset_asked.set()
        response.success, response.message = True, "the scene is forgotten; the next image starts a new world"
        return response

    def _on_set_paused(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if self._paused and not request.data:
            self._resumed = True
        self._paused = bool(request.data)
        response.success = True
        response.message = "paused: images are left aside" if self._paused else "images are taken in"
        return response

    def _on_save(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            with self._configured:
                if self._outputs is None:
                    response.message = "nothing to save: the node is not configured"
                    return response
                points, colors = self._maps.arrays() or (None, None)
                trajectories = self._outputs.trajectories()
            saved = Saved(trajectories, points, colors, self._settings())
            folder = save(self._options.output_dir, saved)
        except OptionError:
            response.message = "not saved: parameters are just being set; ask again"
            return response
        except OSError as error:
            response.message = f"not saved: {error}; is output_dir a folder with room that the node may write to?"
            self._notes.fail(response.message)
            return response
        except Exception as error:  # no memory above all; what cannot be saved must not end the node
            response.message = f"not saved: {reason_of(error)}"
            self._notes.fail(response.message, details=f"\n{traceback.format_exc()}")
            return response
        poses = len(saved.trajectories["trajectory"][0])
        cloud = "no static map (nobody listened to it; see static_map.always)"
        if points is not None:
            cloud = f"{len(points)} points of the static map"
        response.success, response.message = True, f"{folder}: {poses} poses, {cloud}, settings"
        self.get_logger().info(response.message)
        return response

    def _settings(self) -> str:
        """The parameters as they are now, as a parameter file."""
        options = [parameters.read(self, kind) for kind in (NodeOptions, StreamOptions)]
        return parameters.yaml_file(f"Parameters of {self.get_fully_qualified_name()}.", *options)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._calibration.update(message)
        self._monitor.camera_info(conversions.seconds(message.header.stamp))

    def _on_range(self, message: Range) -> None:
        if not 0 <= message.field_of_view <= math.pi:
            self._notes.warn(f"range left aside: its field_of_view is {message.field_of_view:g} rad; allowed: 0 to pi")
            return
        self._ranger = message.header.frame_id.lstrip("/")  # tf2 knows no leading slash
        self._scale.add_range(
            RangeReading(
                conversions.seconds(message.header.stamp),
                message.range,
                message.min_range,
                message.max_range,
                message.field_of_view,
            )
        )

    def _on_wheel_odometry(self, message: Odometry) -> None:
        pose = conversions.pose_matrix(message.pose.pose)
        if not np.isfinite(pose).all():
            self._notes.warn("wheel odometry left aside: its pose is not finite, or its quaternion is 0")
            return
        self._scale.add_odometry(conversions.seconds(message.header.stamp), pose)

    def _on_image(self, message: Image | CompressedImage) -> None:
        arrival = time.monotonic()
        if self._paused:
            self._monitor.count("frames paused")
            return
        try:
            conversions.check_image(message)
        except InputError as error:
            self._refuse(error)
            return
        stamp = message.header.stamp
        if not (stamp.sec or stamp.nanosec):
            self._notes.warn_once("the images have no stamps: the time of receipt is taken")
            stamp = self.get_clock().now().to_msg()
        jump = self._stamp_jumps(conversions.seconds(stamp))
        self._monitor.arrived(conversions.seconds(stamp), jump)
        put = self._queue.put(WaitingFrame(message, stamp, arrival, self._scene, self._calibration.current))
        if put is PutResult.REPLACING:
            self._monitor.count("frames dropped")
        elif put is PutResult.OVERFLOW:
            self._monitor.count("frames lost")
            self._notes.fail(
                f"the queue of {DEPTH} frames is full: frames are lost, play them more slowly", throttle=True
            )

    def _on_messages_lost(self, losses: QoSMessageLostInfo) -> None:
        self._monitor.count("frames lost", losses.total_count_change)
        text = f"{losses.total_count} images were lost on their way to the node: {PROFILE_HINT}"
        if self._options.every_frame:
            self._notes.fail(text, throttle=True)
        else:
            self._notes.warn(text)

    def _stamp_jumps(self, stamp: float) -> bool:
        """Compare with the last image that arrived, processed or not: a slow network is no gap in the stamps."""
        last, self._last_stamp = self._last_stamp, stamp
        step = 0.0 if last is None else stamp - last
        longest = math.inf if self._resumed else self._options.max_gap
        self._resumed = False
        if -LATE <= step <= longest:
            return False
        self._scene += 1
        self.get_logger().warning(
            f"stamps jump {'forward' if step > 0 else 'back'} by {abs(step):.3f} s: a new scene is started"
        )
        return True

    def _report(self) -> None:
        facts: dict[str, object] = {}
        warnings = []
        state = self._idle_state
        with self._configured:
            if self._outputs is not None:
                state = "inactive"
                facts = self._facts(self._stream, self._outputs)
                if self._worker is not None:
                    state = "paused" if self._paused else "active"
                    # For those who have subscribed after the last image.
                    self._outputs.publish_trajectories(self._outputs.wanted(), self._options)
                if not self._stream.network.trained:
                    warnings.append("untrained weights: the geometry means nothing")
        status = self._monitor.status(self.get_fully_qualified_name(), state, facts, warnings)
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _facts(self, stream: Stream, outputs: Publishers) -> dict[str, object]:
        facts = {
            "device": stream.device,
            "checkpoint": stream.network.source,
            "update rule": self._rule,
            "intrinsics": self._intrinsics_from,
            "subscribed outputs": ", ".join(sorted(outputs.listeners() | self._maps.listeners())),
        }
        if self._scale_estimate is not None:
            facts |= self._scale_estimate.facts(self._options.scale.source)
        if len(self._maps):
            facts["static map (points)"] = len(self._maps)
        for subscription in self._subscriptions_in:
            facts[f"publishers of {subscription.topic_name}"] = self.count_publishers(subscription.topic_name)
        if stream.device.type == "cuda":
            facts["GPU memory (MiB)"] = torch.cuda.memory_allocated(stream.device) // 2**20
            facts["GPU memory, highest (MiB)"] = torch.cuda.max_memory_allocated(stream.device) // 2**20
        return facts

    # ------------------------------------------------------------------------------------------------------ worker

    def _work(self) -> None:
        while (frame := self._queue.get()) is not None:
            failures = self._failures
            try:
                self._process(frame)
                self._failures = 0
            except InputError as error:
                self._refuse(error)
            except torch.cuda.OutOfMemoryError as error:
                self._failures += 1
                self._monitor.count("failed frames")
                self._notes.fail(f"out of GPU memory, frame skipped: {error}", throttle=True)
            except Exception as error:  # the stream must outlive what nobody foresaw
                self._monitor.count("failed frames")
                text = f"frame skipped: {type(error).__name__}: {error}"
                self._notes.fail(text, throttle=True, details=f"\n{traceback.format_exc()}")
            if self._failures > failures:
                torch.cuda.empty_cache()  # not before the exception is gone, which holds the frame's tensors
                if self._failures == MAX_FAILURES:
                    self._give_up.trigger()

    def _process(self, frame: WaitingFrame) -> None:
        started = time.monotonic()
        image, intrinsics = conversions.image_array(frame.message), None
        if frame.calibration is not None:
            image, intrinsics = frame.calibration.rectify(image)
        options = self._current_options()
        forget = "reset" if self._reset_asked.is_set() else ""
        if frame.scene != self._processed_scene:
            forget = "time jump"
        if forget:
            self._processed_scene = frame.scene
            self._reset_asked.clear()
            self._stream.reset()
        child_frame = options.child_frame or self._frame_of(frame.message)
        stamp, seconds = frame.stamp, conversions.seconds(frame.stamp)
        wanted = self._outputs.wanted()
        maps = self._maps.wants(seconds)
        motion = maps or not wanted.isdisjoint(MOTION_TOPICS) or options.scale.source in ("range", "height")
        stepped = time.monotonic()
        result = step_of(self._stream, self._together)(image, seconds, intrinsics, motion=motion)
        returned = time.monotonic()
        if result.reset:
            self._reset_reason = forget or result.reset_reason
        glance = self._outputs.look(result, wanted, options, self._scale)
        if not glance.healthy:
            self._monitor.count("failed frames")
            self._notes.fail("the network's output is not finite: frame not published", throttle=True)
            if self._reset_reason == "interval":
                self._reset_reason = ""  # the memory was left as it was
            return
        published = time.monotonic()
        reset, self._reset_reason = self._reset_reason, ""
        alignment = self._stream.options.reset_alignment
        at_interval = reset == "interval"
        new_world = reset if reset and not at_interval else "memory not aligned" if self._apart else ""
        if new_world:
            self._on_new_world(result, new_world)
        elif at_interval and alignment != "off":
            self._monitor.count("resets")
            self.get_logger().info(f"frame {result.frame}: the memory starts anew, aligned to what was there")
        sight = self._place(glance, stamp, child_frame, bool(new_world))
        # The next frame is the first that is seen with the new memory. An alignment by the camera's own poses is no
        # jump, and without any it is in another world.
        self._jumped = at_interval and alignment == "published"
        self._apart = at_interval and alignment == "off"
        if not result.motion:
            wanted -= MOTION_TOPICS  # nobody knows what moves in this frame: it shall not pass for a still one
        self._outputs.publish(result, glance, sight, wanted, options)
        if maps and result.motion and sight.placement is not None:
            self._maps.integrate(result, stamp, sight.world_from_stream @ WORLD_FROM_OPTICAL)
        done = time.monotonic()

        self._rule = glance.rule
        self._intrinsics_from = _intrinsics_origin(glance.intrinsics_known, intrinsics is not None)
        timings, total = result.timings, (done - started) * 1e3
        # A GPU may still be at work when `step` returns; its own clock knows for how long.
        stream = max((returned - stepped) * 1e3, sum(timings.values()))
        stages = {
            "convert": (stepped - started) * 1e3,
            **timings,
            "publish": (done - published) * 1e3,
            "node": total - stream,  # conversion, publishing and all else that is not the stream's
            "whole frame": total,
        }
        from_stamp = self.get_clock().now().nanoseconds * 1e-9 - seconds
        self._monitor.published(from_stamp, done - frame.arrival, stages)

    def _frame_of(self, message: Image | CompressedImage) -> str:
        """The frame_id of an image, as tf2 takes it."""
        name = message.header.frame_id
        if not name:
            self._notes.warn_once(f"the images have no frame_id: {DEFAULT_FRAME} is taken")
        elif name.startswith("/"):
            self._notes.warn_once(f"the images' frame_id is {name!r}: tf2 knows no leading slash, it is left out")
        return name.lstrip("/") or DEFAULT_FRAME

    def _place(self, glance: FrameSummary, stamp: Time, camera_frame: str, new_world: bool) -> PlacedFrame:
        """Find out how long the stream's metre is, and where the camera is in the frames that are published."""
        seconds = conversions.seconds(stamp)
        if self._transforms is not None:
            self._look_for_mounts(camera_frame, stamp)
        self._scale_estimate = self._scale.update(seconds, glance.pose, glance.seen_scale)
        scale = self._scale_estimate.factor
        pose = glance.pose.copy()
        pose[:3, 3] *= scale
        try:
            placement = self._frames.place(
                pose, stamp, camera_frame, scale=scale, new_world=new_world, corrected=self._jumped
            )
            if placement.problem:
                self._notes.warn(placement.problem)
        except InputError as error:
            self._notes.warn(f"nothing is published in the world: {error}")
            placement = None
        return PlacedFrame(stamp, camera_frame, scale, placement)

    def _look_for_mounts(self, camera_frame: str, stamp: Time) -> None:
        """Where what the scale comes from sits now, if tf2 knows: scale is found without, but not as well."""
        source = self._options.scale.source
        try:
            if source in ("odometry", "height"):
                self._scale.mount_camera(self._look_up(self._options.base_frame, camera_frame, stamp, MOUNT_AGE))
            elif self._ranger:
                self._scale.mount_ranger(self._look_up(camera_frame, self._ranger, stamp, MOUNT_AGE))
        except TransformError:
            pass  # what was known last holds; without any, docs/scale.md says what is assumed
        except InputError as error:
            self._notes.fail(f"scale.source is {source}, but {error}", throttle=True)

    def _node_options(self) -> NodeOptions:
        options = parameters.read(self, NodeOptions)
        if not self._frame_prefix:
            return options
        names = (
            ["world_frame"] if options.tf_mode == "map" else ["world_frame", "odom_frame"]
        )  # its own, not another's
        return dataclasses.replace(
            options, **{name: f"{self._frame_prefix}/{getattr(options, name)}" for name in names}
        )

    def _current_options(self) -> NodeOptions:
        """The options as they are now; what may change while running is handed on."""
        try:
            stream_options, options = parameters.read(self, StreamOptions), self._node_options()
        except OptionError:  # several are just being set at once, of which some are read before and some after
            return self._options
        if stream_options != self._stream.options:
            self._stream.options = stream_options
            self.get_logger().info(f"options are now {stream_options}")
        self._options = options
        self._scale.options = options.scale
        self._maps.use(options)
        return options

    def _on_new_world(self, result: StepResult, reason: str) -> None:
        if self._has_world:
            self._monitor.count("resets")
        self._has_world = True
        self._outputs.restart(self._options)
        self._maps.restart()
        self._scale.reset()
        height, width = result.depth.shape
        self.get_logger().info(f"a new world starts ({reason}); the network sees {width}x{height}")

    # ------------------------------------------------------------------------------------------------------- notes

    def _refuse(self, error: InputError) -> None:
        self._monitor.count("bad frames")
        self._notes.warn(f"image skipped: {error}", once=isinstance(error, conversions.EncodingError))


def _leave_a_core_free() -> None:
    """Keep PyTorch off one core, unless the user has said how many threads it may have.

    Its threads wait for each other, so with one on every core each message that DDS or a callback handles stops all.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))


def _intrinsics_origin(known: bool, info_arrived: bool) -> str:
    if not known:
        return "assumed: no camera_info, and the points give no focal length"
    return "camera_info" if info_arrived else "estimated from the points"


def _frame_names(options: NodeOptions) -> FrameNames:
    return FrameNames(**{field.name: getattr(options, field.name) for field in dataclasses.fields(FrameNames)})
