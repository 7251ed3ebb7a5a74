"""The managed node: subscribes to images, runs them through a `Stream`, and publishes the results."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from functools import partial
from typing import Any

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import SetBool, Trigger
from tf2_ros import Buffer

from raymap3r_ros.errors import InputError, OptionError, reason_of
from raymap3r_ros.node import conversions, parameters
from raymap3r_ros.node.diagnostics import Monitor
from raymap3r_ros.node.frame_queue import FrameQueue, WaitingFrame
from raymap3r_ros.node.guarded_node import GuardedNode, keep_reason
from raymap3r_ros.node.inputs import Inputs
from raymap3r_ros.node.localizer import OTHER_WORLD, Localizer
from raymap3r_ros.node.memory import WORLD_FROM_OPTICAL, load_memory
from raymap3r_ros.node.network_pool import NetworkPool
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.publishers import MOTION_TOPICS
from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.node.saving import save
from raymap3r_ros.node.session import Session, Settings, open_session
from raymap3r_ros.node.silence import SILENCE
from raymap3r_ros.node.stoppage import PERIOD, Stoppage
from raymap3r_ros.node.summary import FrameSummary, summarize
from raymap3r_ros.stamps import clock_problem
from raymap3r_ros.streaming import Stream, StreamOptions
from raymap3r_ros.streaming.batching import step_of
from raymap3r_ros.streaming.cover import why_blank
from raymap3r_ros.text import counted, printable, with_details

DEFAULT_FRAME = "camera_optical_frame"
MAX_FAILURES = 3  # frames in a row without GPU memory, after which the node deactivates itself


class StreamNode(GuardedNode):
    """One camera stream.

    Callbacks only put messages into a queue. One worker thread, which exists while the node is active, runs the
    network and publishes.
    """

    def __init__(self, pool: NetworkPool | None = None, *, frame_prefix: str = "", **node_arguments: Any) -> None:
        """
        Args:
            pool: given to several nodes of one process, which then share one network and batch their frames.
            frame_prefix: put before `world_frame` and `odom_frame`, because each camera has its own world.
            node_arguments: of rclpy's Node.
        """
        super().__init__("raymap3r", **node_arguments)
        self._pool = pool
        self._frame_prefix = frame_prefix
        self._monitor = Monitor()
        self._reporter = Reporter(self.get_logger(), self._monitor)
        # One for the node's life: it never frees its service and its callbacks on the node's clock.
        self._tf_buffer = Buffer(node=self)
        self._session: Session | None = None  # while the node is configured
        self._session_lock = threading.Lock()  # held while another thread uses the session, or while it is closed
        self._settings_lock = threading.Lock()
        # While the node is active:
        self._queue: FrameQueue | None = None
        self._worker: threading.Thread | None = None
        self._inputs: Inputs | None = None
        self._idle_state = "unconfigured"  # of the life cycle, without a session

        parameters.declare(self, NodeOptions, StreamOptions)
        for line in parameters.unknown_overrides(self):
            self.get_logger().warning(printable(line))
        self.add_on_set_parameters_callback(self._check_parameters)

        # Images and the timer must not wait for a transition or a service in the default group.
        self._image_group = MutuallyExclusiveCallbackGroup()
        self._map_group = MutuallyExclusiveCallbackGroup()
        # Writing a large map takes seconds. The service exists for the node's whole life, unlike the other services:
        # rclpy fails if a service is destroyed while its callback runs, and transitions can interrupt this one.
        self.create_service(Trigger, "~/save", self._on_save, callback_group=MutuallyExclusiveCallbackGroup())
        self.create_service(Trigger, "~/load", self._on_load, callback_group=MutuallyExclusiveCallbackGroup())
        # The worker cannot deactivate the node, because that joins the worker. It triggers this instead.
        self._give_up = self.create_guard_condition(self._deactivate_after_failures)
        # The diagnostics also report why a node is not configured, and they come while simulated time stands still.
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._stoppage = Stoppage(self._reporter)
        self.create_timer(PERIOD, self._report, callback_group=MutuallyExclusiveCallbackGroup(), clock=steady)

    # ------------------------------------------------------------------------------- for a program with its own nodes

    @property
    def stream(self) -> Stream | None:
        """The stream of the configured node. Only the worker may step it while the node is active."""
        return None if self._session is None else self._session.stream

    @property
    def localizer(self) -> Localizer | None:
        """The localizer of the configured node; its `estimate` is the metric scale."""
        return None if self._session is None else self._session.localizer

    @property
    def camera_info(self) -> CameraInfo | None:
        """The last camera_info that the configured node has received."""
        return None if self._session is None else self._session.camera_info

    @property
    def tf_buffer(self) -> Buffer:
        """The transforms that the node has received; empty in mode `camera` with fixed scale and no pose_source."""
        return self._tf_buffer

    def status(self) -> DiagnosticStatus:
        """The state of the node now, as published on /diagnostics once a second."""
        state, facts, warnings = self._idle_state, {}, []
        with self._session_lock:
            session = self._session
            if session is not None:
                state = "inactive"
                if self._worker is not None:
                    state = "paused" if session.paused else "active"
                facts = session.facts()
                if self._inputs is not None:
                    facts |= self._inputs.facts()
                warnings = session.warnings()
        return self._monitor.status(self.get_fully_qualified_name(), state, facts, warnings)

    def autostart(self) -> bool:
        """Configure and activate; False if that fails (the log contains the reason)."""
        done = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == done and self.trigger_activate() == done

    def close(self) -> None:
        """End the worker and free everything."""
        self._stop()
        self._release()

    def report_failure(self, what: str, error: Exception, details: str) -> None:
        """Report an exception of a callback in the log and the diagnostics."""
        if isinstance(error, InputError):
            self._reporter.warn(f"ignored by {what}: {error}")
            return
        problem = f"{what} {type(error).__name__}"
        text = f"{what} failed: {type(error).__name__}: {error}"
        self._reporter.fail(text, throttle=True, details=f"\n{details}", problem=problem)

    def destroy_node(self) -> None:
        """Remove the node from the graph, after `close`. Then another node can use its name."""
        super().destroy_node()
        # rclpy leaves the state machine, and with it rcl's node, to the garbage collector. Collected later, it would
        # destroy the /rosout publisher of a node that has the same name by then.
        self._state_machine.destroy_when_not_in_use()

    # ------------------------------------------------------------------------------------------------- transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read and check the parameters, load the weights, warm up."""
        try:
            self._configure()
        except Exception as error:  # rclpy would hide it; any error becomes one line for the user
            self._release()
            self._reporter.fail(f"configure failed: {reason_of(error)}")
            self.get_logger().debug(with_details(reason_of(error), traceback.format_exc()))
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    @keep_reason
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and publish. The memory is as `deactivate` left it."""
        super().on_activate(state)
        session = self._session
        every_frame = session.settings.node.every_frame
        session.jump_detector.resume()
        self._monitor.start()
        self._queue = FrameQueue(every_frame)
        self._worker = threading.Thread(target=self._work, args=(session, self._queue), name="stream")
        self._worker.start()
        self._inputs = Inputs(
            self, session, self._queue, self._monitor, self._reporter, self._image_group, self._stoppage
        )
        self.get_logger().info(
            f"active{', but paused' * session.paused}: {'every' if every_frame else 'newest'} frame of "
            f"{self._inputs.topics[0]}"
        )
        return TransitionCallbackReturn.SUCCESS

    @keep_reason
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and keep the memory."""
        self._stop()
        publishers = self._session.publishers
        publishers.publish_trajectories(publishers.wanted(), self._session.settings.node)  # with their last poses
        self.get_logger().info("inactive: images are not received; the memory is kept")
        return super().on_deactivate(state)

    @keep_reason
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the network and its GPU memory."""
        self._release()
        self.get_logger().info("unconfigured: the network is freed")
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop from any state."""
        self.close()
        self._idle_state = "finalized"
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured after a transition has raised an exception."""
        self._reporter.fail(
            f"a transition from {state.label} failed ({self.transition_error}): the node is unconfigured again"
        )
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        settings = Settings.read(self, self._frame_prefix)
        self.get_logger().info(printable(f"loading {settings.node.checkpoint}"))
        session = open_session(self, settings, self._pool, self._tf_buffer, self._reporter, self._map_group)
        self._reporter.forget()
        with self._session_lock:
            self._session = session
        for kind, name, callback in (
            (Trigger, "~/reset", self._on_reset),
            (SetBool, "~/set_paused", self._on_set_paused),
        ):
            service = self.create_service(kind, name, partial(callback, session))
            session.resources.callback(self.destroy_service, service)
        parameters.lock(self, True, NodeOptions, StreamOptions)
        self._update_settings()  # parameters may have been set since they were read

    def _release(self) -> None:
        parameters.lock(self, False, NodeOptions, StreamOptions)
        with self._session_lock:
            session, self._session = self._session, None
            if session is not None:
                session.close()
            del session  # with the network
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _stop(self) -> None:
        with self._session_lock:
            if self._inputs is not None:
                self._inputs.destroy()
                self._inputs = None
        if self._worker is not None:
            left = self._queue.close()
            self._worker.join()
            self._worker = None
            self._monitor.count("frames dropped", left)
            if left and self._session.settings.node.every_frame:
                self.get_logger().warning(f"{counted(left, 'waiting frame')} not processed")

    def _deactivate_after_failures(self) -> None:
        if self._worker is not None:  # the user may have deactivated the node already
            self._reporter.fail(f"{MAX_FAILURES} frames in a row without GPU memory: the node deactivates itself")
            self.trigger_deactivate()

    # -------------------------------------------------------------------------------------------------- parameters

    def set_parameters(self, parameter_list: list[Parameter]) -> list[SetParametersResult]:
        """As rclpy's. The new values act on the next frame."""
        # Humble has no callback that runs after parameters were set.
        results = super().set_parameters(parameters.conform(parameter_list, NodeOptions, StreamOptions))
        self._update_settings()
        return results

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """As rclpy's. The new values act on the next frame."""
        reason = parameters.refusal(self, parameter_list, NodeOptions, StreamOptions)
        if reason:
            return SetParametersResult(successful=False, reason=reason)
        parameter_list = parameters.conform(parameter_list, NodeOptions, StreamOptions)
        result = super().set_parameters_atomically(parameter_list)
        self._update_settings()
        return result

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        values = {parameter.name: parameter.value for parameter in changes}
        try:
            for kind in (NodeOptions, StreamOptions):
                parameters.check_change(self, kind, values)
        except OptionError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _update_settings(self) -> None:
        session = self._session
        if session is None:
            return
        # An error means that another thread has set some of several parameters. It calls this again at the end.
        with self._settings_lock, contextlib.suppress(OptionError):
            session.settings = Settings.read(self, self._frame_prefix)

    # ----------------------------------------------------------------------------------------------------- services

    def _on_reset(self, session: Session, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        session.reset_requested.set()
        response.success, response.message = True, "the memory is cleared; the next image starts a new world"
        return response

    def _on_set_paused(
        self, session: Session, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        if session.paused and not request.data:
            session.jump_detector.resume()
            self._monitor.start()
        changed, session.paused = session.paused != request.data, bool(request.data)
        response.success = True
        response.message = "paused: images are ignored" if session.paused else "running: images are processed"
        if changed:
            self.get_logger().info(response.message)
        return response

    def _on_save(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            with self._session_lock:
                session = self._session
                if session is None:
                    response.message = "nothing to save: the node is not configured"
                    return response
                settings = session.settings
                saved = session.content(f"Parameters of {self.get_fully_qualified_name()}.")
            folder = save(settings.node.output_dir, saved)
        except OSError as error:
            text = f"not saved: {error}; check that the node may write to output_dir and that there is free space"
            response.message = printable(text)
            self._reporter.fail(response.message)
            return response
        except Exception as error:  # in most cases no memory; a failure to save must not end the node
            response.message = printable(f"not saved: {reason_of(error)}")
            self._reporter.fail(response.message, details=f"\n{traceback.format_exc()}")
            return response
        response.success, response.message = True, printable(f"{folder}: {saved.contents()}")
        self.get_logger().info(response.message)
        return response

    def _on_load(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            session = self._session
            if session is None:
                response.message = "nothing loaded: the node is not configured"
                return response
            settings = session.settings
            if not settings.node.memory:
                response.message = "nothing loaded: set the parameter memory to the world.safetensors of a saved world"
                return response
            memory = load_memory(settings.node.memory, session.stream.network, settings.stream)
            with self._session_lock:
                if session is not self._session:
                    response.message = "nothing loaded: the node was unconfigured meanwhile"
                    return response
                session.loaded = memory
        except Exception as error:  # also no memory; a failure to load must not end the node
            response.message = printable(f"not loaded: {reason_of(error)}")
            expected = isinstance(error, (InputError, OptionError))
            self._reporter.fail(response.message, details="" if expected else f"\n{traceback.format_exc()}")
            return response
        response.message = printable(f"the next image is searched for in {memory.contents}")
        response.success = True
        self.get_logger().info(response.message)
        return response

    # -------------------------------------------------------------------------------------------------- diagnostics

    def _report(self) -> None:
        self._stoppage.begin()
        with self._session_lock:
            if self._session is not None and self._worker is not None:
                # Their last poses, and for late subscribers.
                publishers = self._session.publishers
                publishers.publish_trajectories(publishers.wanted(), self._session.settings.node)
            if self._inputs is not None:
                self._inputs.check()
        message = DiagnosticArray(status=[self.status()])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)
        self._stoppage.end()

    # ------------------------------------------------------------------------------------------------------ worker

    def _work(self, session: Session, queue: FrameQueue) -> None:
        failures = 0  # frames in a row without GPU memory
        while (frame := queue.get()) is not None:
            out_of_memory = False
            try:
                self._process(session, frame)
                failures = 0
            except InputError as error:
                self._reporter.refuse(error)
            except torch.cuda.OutOfMemoryError as error:
                out_of_memory = True
                self._monitor.count("failed frames")
                self._reporter.fail(f"out of GPU memory, frame skipped: {error}", throttle=True)
            except Exception as error:  # the stream must survive unexpected errors
                self._monitor.count("failed frames")
                text = f"frame skipped: {type(error).__name__}: {error}"
                self._reporter.fail(text, throttle=True, details=f"\n{traceback.format_exc()}")
            self._check_clock(frame)
            if out_of_memory:
                torch.cuda.empty_cache()  # only here, after the exception, which holds the frame's tensors, is gone
                failures += 1
                if failures == MAX_FAILURES:
                    self._give_up.trigger()

    def _process(self, session: Session, frame: WaitingFrame) -> None:
        """Run the network on one image and publish the results."""
        started = time.monotonic()
        image, intrinsics = conversions.image_array(frame.message), None
        if frame.calibration is not None:
            image, intrinsics = frame.calibration.rectify(image)
        blank = session.cover.add(image, conversions.seconds(frame.stamp), session.settings.node.max_gap)
        self._reporter.stand(
            "cover", f"the images are blank ({why_blank(image)}): is the camera covered?" if blank else ""
        )
        if blank:
            self._monitor.count("blank frames")
            return
        options = session.apply_settings(self._reporter)
        camera_frame = options.child_frame or self._frame_of(frame.message)
        pose = session.known_poses.pose(camera_frame, frame.stamp) if session.known_poses else None
        seconds = conversions.seconds(frame.stamp)
        reset_reason = session.reset_if_due(frame.jumps, seconds, posed=pose is not None)
        session.share_worlds()
        wanted = session.publishers.wanted()
        wants_map = session.maps.wants(seconds)
        motion = wants_map or not wanted.isdisjoint(MOTION_TOPICS) or session.localizer.needs_motion
        stepped = time.monotonic()
        result = step_of(session.stream, session.scheduler)(image, seconds, intrinsics, pose=pose, motion=motion)
        returned = time.monotonic()
        session.localizer.observe(result, reset_reason)
        summary = summarize(result, wanted, options, session.localizer.scale_input(result))
        summarized = time.monotonic()
        placed = session.localizer.place(result, summary, frame.stamp, camera_frame, in_odom=session.in_odom)
        if placed is None:
            self._monitor.count("failed frames")
            self._reporter.fail("the network's output is not finite: frame not published", throttle=True)
            return
        if placed.placement is None:
            self._monitor.count("frames without pose")
        if session.shared is not None:
            placed = session.shared.link(placed, result.world)
        if session.plausibility.add(summary.plausibility):
            self._reporter.warn_once(session.plausibility.problem)
        if placed.world_change in OTHER_WORLD:
            session.publishers.enter_world(result, options)
            session.maps.enter_world(result, frame.stamp)
        if not result.motion:
            wanted -= MOTION_TOPICS  # motion was not estimated for this frame: do not publish it as static
        session.publishers.publish(result, summary, placed, wanted, options)
        if wants_map and result.motion and placed.placement is not None:
            session.maps.integrate(result, frame.stamp, placed.world_from_stream @ WORLD_FROM_OPTICAL)
        done = time.monotonic()

        session.rule = summary.rule
        session.intrinsics_source = _intrinsics_source(summary, intrinsics is not None)
        # A GPU may still be busy when `step` returns. The result's own timings contain the time that it needs.
        timings = result.timings
        stream = max((returned - stepped) * 1e3, sum(timings.values()))
        stages = {
            "convert": (stepped - started) * 1e3,
            **timings,
            "publish": (done - summarized) * 1e3,
            "node": (done - started) * 1e3 - stream,  # conversion, publishing, everything outside the stream
            "whole frame": (done - started) * 1e3,
        }
        now = self.get_clock().now().nanoseconds * 1e-9
        self._monitor.published(now - seconds, done - frame.arrival, stages)

    def _check_clock(self, frame: WaitingFrame) -> None:
        """Report stamps of another clock than the node's, also of frames that are not published."""
        simulated = self.get_parameter("use_sim_time").value
        if simulated and frame.clock == 0 and time.monotonic() - self.clock_arrival < SILENCE:
            return  # the first message on /clock may be on its way
        self._reporter.stand("clock", clock_problem(frame.clock, conversions.seconds(frame.stamp), simulated))

    def _frame_of(self, message: Image | CompressedImage) -> str:
        """The frame_id of an image, without the leading slash that tf2 does not allow."""
        name = message.header.frame_id
        if not name:
            self._reporter.warn_once(f"the images have no frame_id: {DEFAULT_FRAME} is used")
        elif name.startswith("/"):
            self._reporter.warn_once(
                f"the images' frame_id is {name!r}: tf2 does not allow a leading slash, it is removed"
            )
        return name.lstrip("/") or DEFAULT_FRAME


def _intrinsics_source(summary: FrameSummary, given: bool) -> str:
    if not summary.intrinsics_known:
        return "assumed: no camera_info, and the points give no focal length"
    return "camera_info" if given else "estimated from the points"
