"""The managed node: moves images in, results out, and keeps the time; the method itself is in `streaming`."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.executors import MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.service import Service
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.task import Future
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.network import choose_device, load_network
from raymap3r_ros.node import conversions, parameters
from raymap3r_ros.node.diagnostics import PROFILE_HINT, Monitor
from raymap3r_ros.node.frame_queue import DEPTH, FrameQueue, Put, WaitingFrame
from raymap3r_ros.node.options import NodeOptions
from raymap3r_ros.node.outputs import MOTION_TOPICS, Outputs
from raymap3r_ros.streaming import METHOD, StepResult, Stream, StreamOptions

try:
    from rclpy.event_handler import QoSMessageLostInfo, SubscriptionEventCallbacks
except ModuleNotFoundError:  # ROS 2 Humble
    from rclpy.qos_event import QoSMessageLostInfo, SubscriptionEventCallbacks

DEFAULT_FRAME = "camera_optical_frame"
MAX_FAILURES = 3  # frames in a row without GPU memory, after which the node deactivates itself
LATE = 0.1  # seconds by which a stamp may lie before the last one and still be a late frame, not a jump
THROTTLE = 5.0  # seconds between two log lines about the same trouble
LONGEST_LINE = 1000  # characters of an error that are logged: a foreign checkpoint mismatches in every tensor


class StreamNode(LifecycleNode):
    """One camera stream.

    Callbacks only take messages in; one worker thread, alive while the node is active, runs the network and
    publishes.
    """

    def __init__(self, **node_arguments: Any) -> None:
        super().__init__("raymap3r", **node_arguments)
        parameters.declare(self, NodeOptions, StreamOptions)
        self.add_on_set_parameters_callback(self._check_parameters)

        self._monitor = Monitor()
        self._network: torch.nn.Module | None = None
        self._stream: Stream | None = None
        self._outputs: Outputs | None = None
        self._queue: FrameQueue | None = None
        self._worker: threading.Thread | None = None
        self._subscriptions_in: list[Subscription] = []
        self._reset_service: Service | None = None
        self._reset_asked = threading.Event()
        self._configured = threading.Lock()  # held while what a configured node has is looked at or taken away
        self._last_logged: dict[str, float] = {}
        self._idle_state = "unconfigured"  # of the life cycle, while nothing is configured
        self._forget_times()

        # Images, and the timer, must go on while a transition or a service is at work in the default group.
        self._image_group = MutuallyExclusiveCallbackGroup()
        self._timer_group = MutuallyExclusiveCallbackGroup()
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
            self._fail(f"configure failed: {error or type(error).__name__}")
            self.get_logger().debug(traceback.format_exc())
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and publish. The memory of the scene is as `deactivate` left it."""
        super().on_activate(state)
        self._forget_times()
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

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop taking images, keep the memory of the scene."""
        self._stop()
        return super().on_deactivate(state)

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
        self._fail(f"a transition from {state.label} broke: the node is unconfigured again")
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

    def _configure(self) -> None:
        options = parameters.read(self, NodeOptions)
        stream_options = parameters.read(self, StreamOptions)
        device = choose_device(options.device)
        _leave_a_core_free()
        self.get_logger().info(f"loading {options.checkpoint} on {device}")
        self._network = load_network(options.checkpoint, device, stream_options.precision)
        if not self._network.trained:
            self.get_logger().warning(f"{self._network.source}")
        self._stream = Stream(self._network, stream_options)
        _warm_up(self._stream)
        self._options = options
        self._outputs = Outputs(self)
        self._reset_service = self.create_service(Trigger, "~/reset", self._on_reset)
        self._warned: set[str] = set()
        self._rule = self._intrinsics_from = ""
        self._has_world = False
        parameters.lock(self, True, NodeOptions, StreamOptions)

    def _release(self) -> None:
        parameters.lock(self, False, NodeOptions, StreamOptions)
        with self._configured:
            if self._outputs is not None:
                self._outputs.destroy()
            if self._reset_service is not None:
                self.destroy_service(self._reset_service)
            self._outputs = self._reset_service = self._stream = self._network = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _stop(self) -> None:
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

    def _deactivate_after_failures(self) -> None:
        # The user may have been faster.
        if self._worker is not None:
            self._fail(f"{MAX_FAILURES} frames in a row without GPU memory: the node deactivates itself")
            self.trigger_deactivate()

    # --------------------------------------------------------------------------------------------------- callbacks

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        values = {parameter.name: parameter.value for parameter in changes}
        try:
            for kind in (NodeOptions, StreamOptions):
                parameters.read(self, kind, values)
        except OptionError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._reset_asked.set()
        response.success, response.message = True, "the scene is forgotten; the next image starts a new world"
        return response

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._info = message
        self._monitor.camera_info(conversions.seconds(message.header.stamp))
        if any(message.d):
            self._warn_once("camera_info carries distortion, which is not removed yet: rectify the images first")

    def _on_image(self, message: Image | CompressedImage) -> None:
        arrival = time.monotonic()
        try:
            conversions.check_image(message)
        except InputError as error:
            self._refuse(error)
            return
        stamp = message.header.stamp
        if not (stamp.sec or stamp.nanosec):
            self._warn_once("the images have no stamps: the time of receipt is taken")
            stamp = self.get_clock().now().to_msg()
        jump = self._stamp_jumps(conversions.seconds(stamp))
        self._monitor.arrived(conversions.seconds(stamp), jump)
        put = self._queue.put(WaitingFrame(message, stamp, arrival, self._scene))
        if put is Put.REPLACING:
            self._monitor.count("frames dropped")
        elif put is Put.OVERFLOW:
            self._monitor.count("frames lost")
            self._fail(f"the queue of {DEPTH} frames is full: frames are lost, play them more slowly", throttle=True)

    def _on_messages_lost(self, losses: QoSMessageLostInfo) -> None:
        self._monitor.count("frames lost", losses.total_count_change)
        text = f"{losses.total_count} images were lost on their way to the node: {PROFILE_HINT}"
        if self._options.every_frame:
            self._fail(text, throttle=True)
        else:
            self._warn(text)

    def _stamp_jumps(self, stamp: float) -> bool:
        """Compare with the last image that arrived, processed or not: a slow network is no gap in the stamps."""
        last, self._last_stamp = self._last_stamp, stamp
        step = 0.0 if last is None else stamp - last
        if -LATE <= step <= self._options.max_gap:
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
                    state = "active"
                    # For those who have subscribed after the last image.
                    self._outputs.publish_trajectories(self._outputs.wanted())
                if not self._stream.network.trained:
                    warnings.append("untrained weights: the geometry means nothing")
        status = self._monitor.status(self.get_fully_qualified_name(), state, facts, warnings)
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _facts(self, stream: Stream, outputs: Outputs) -> dict[str, object]:
        facts = {
            "device": stream.device,
            "checkpoint": stream.network.source,
            "update rule": self._rule,
            "intrinsics": self._intrinsics_from,
            "subscribed outputs": outputs.listeners(),
        }
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
                self._fail(f"out of GPU memory, frame skipped: {error}", throttle=True)
            except Exception as error:  # the stream must outlive what nobody foresaw
                text = f"frame skipped: {type(error).__name__}: {error}"
                self._fail(text, throttle=True, details=f"\n{traceback.format_exc()}")
            if self._failures > failures:
                torch.cuda.empty_cache()  # not before the exception is gone, which holds the frame's tensors
                if self._failures == MAX_FAILURES:
                    self._give_up.trigger()

    def _process(self, frame: WaitingFrame) -> None:
        started = time.monotonic()
        image = conversions.image_array(frame.message)
        options = self._current_options()
        forget = "reset" if self._reset_asked.is_set() else ""
        if frame.scene != self._processed_scene:
            forget = "time jump"
        if forget:
            self._processed_scene = frame.scene
            self._reset_asked.clear()
            self._stream.reset()
        child_frame = options.child_frame or frame.message.header.frame_id
        if not child_frame:
            self._warn_once(f"the images have no frame_id: {DEFAULT_FRAME} is taken")
            child_frame = DEFAULT_FRAME

        wanted = self._outputs.wanted()
        stepped = time.monotonic()
        result = self._stream.step(
            image,
            conversions.seconds(frame.stamp),
            self._intrinsics(image),
            motion=not wanted.isdisjoint(MOTION_TOPICS),
        )
        returned = time.monotonic()
        glance = self._outputs.look(result, wanted, options)
        if not glance.healthy:
            self._fail("the network's output is not finite: frame not published", throttle=True)
            return
        if result.reset:
            self._on_new_memory(result, forget or result.reset_reason)
        published = time.monotonic()
        self._outputs.publish(result, glance, frame.stamp, child_frame, wanted, options)
        done = time.monotonic()

        self._rule = glance.rule
        self._intrinsics_from = _intrinsics_origin(glance.intrinsics_known, self._info is not None)
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
        from_stamp = self.get_clock().now().nanoseconds * 1e-9 - conversions.seconds(frame.stamp)
        self._monitor.published(from_stamp, done - frame.arrival, stages)

    def _current_options(self) -> NodeOptions:
        """The options as they are now; what may change while running is handed to the stream."""
        stream_options = parameters.read(self, StreamOptions)
        if stream_options != self._stream.options:
            self._stream.options = stream_options
            self.get_logger().info(f"options are now {stream_options}")
        return parameters.read(self, NodeOptions)

    def _intrinsics(self, image: np.ndarray) -> np.ndarray | None:
        if self._info is None:
            return None
        try:
            return conversions.intrinsics(self._info, image.shape[1], image.shape[0])
        except InputError as error:
            self._warn_once(str(error))
            return None

    def _on_new_memory(self, result: StepResult, reason: str) -> None:
        if self._has_world:
            self._monitor.count("resets")
        self._has_world = True
        if result.reset_reason == "interval":
            self.get_logger().info(f"frame {result.frame}: the memory starts anew, aligned to what was there")
        else:
            self._outputs.restart()
            height, width = result.depth.shape
            self.get_logger().info(f"a new world starts ({reason}); the network sees {width}x{height}")

    # ------------------------------------------------------------------------------------------------------- notes

    def _forget_times(self) -> None:
        # A pause is no jump: the scene goes on where it was left.
        self._last_stamp: float | None = None
        self._scene = self._processed_scene = 0
        self._info: CameraInfo | None = None

    def _refuse(self, error: InputError) -> None:
        self._monitor.count("bad frames")
        self._warn(f"image skipped: {error}", once=isinstance(error, conversions.EncodingError))

    def _warn(self, text: str, once: bool = False) -> None:
        self._monitor.warning(text)
        if once:
            self._warn_once(text)
        elif self._may_log(text):
            self.get_logger().warning(text)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self.get_logger().warning(text)

    def _fail(self, text: str, throttle: bool = False, details: str = "") -> None:
        text = text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."
        self._monitor.error(text)
        if not throttle or self._may_log(text):
            self.get_logger().error(text + details)

    def _may_log(self, text: str) -> bool:
        """Whether this trouble was not logged a moment ago; with other numbers in it, it is still the same one."""
        trouble, now = re.sub(r"\d+", "#", text), time.monotonic()
        if now - self._last_logged.get(trouble, -THROTTLE) < THROTTLE:
            return False
        self._last_logged[trouble] = now
        return True


def _leave_a_core_free() -> None:
    """Keep PyTorch off one core, unless the user has said how many threads it may have.

    Its threads wait for each other, so with one on every core each message that DDS or a callback handles stops all.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))


def _warm_up(stream: Stream) -> None:
    """Find out now, not at the first image, whether the network runs at all; on a GPU, also load every kernel and
    record the graphs of 4:3 images: with and without camera_info, with and without listeners to what moves."""
    side = stream.options.image_size or stream.network.config.image_size
    image = np.full((side * 3 // 4, side, 3), 128, np.uint8)
    intrinsics = np.array([[side, 0.0, side / 2], [0.0, side, side * 3 / 8], [0.0, 0.0, 1.0]])
    frames = METHOD.router_last_frame + 5 if stream.device.type == "cuda" else 1
    for index in range(frames):
        stream.step(image, intrinsics=intrinsics if index % 4 > 1 else None, motion=index % 2 == 0)
    stream.reset()


def _intrinsics_origin(known: bool, info_arrived: bool) -> str:
    if not known:
        return "assumed: no camera_info, and the points give no focal length"
    return "camera_info" if info_arrived else "estimated from the points"


class Executor(MultiThreadedExecutor):
    """Lets callbacks finish before it goes: rclpy's takes away what they still need, and says so on stderr."""

    def shutdown(self, *args: Any, **kwargs: Any) -> bool:
        """Stop; call it when nothing spins the executor any more."""
        self._executor.shutdown(wait=True)
        return super().shutdown(*args, **kwargs)


def main() -> int:
    """Run the node until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="stream", description="The stream node of raymap3r_ros.")
    parser.add_argument(
        "--autostart",
        action="store_true",
        help="configure and activate at once; end with status 1 where that fails",
    )
    # rclpy's own handlers take the context away while the worker still publishes.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        arguments = parser.parse_args(remove_ros_args(sys.argv)[1:])
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # ROS arguments that cannot be parsed, or a parameter file that cannot be read
        parser.error(str(error))

    node = StreamNode()
    if arguments.autostart and not node.autostart():
        status = 1
    else:
        _spin(node, stop)
        status = 0
    # The interpreter's end puts back the default handlers, by which a second signal (launch sends one) would kill.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    node.close()
    node.destroy_node()
    rclpy.shutdown()
    return status


def _spin(node: StreamNode, stop: threading.Event) -> None:
    """Run the node's callbacks until `stop` is set. Raises what a callback raises."""
    executor = Executor(num_threads=4)
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
