"""A managed node whose callbacks survive their own exceptions, in any executor."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import time
import traceback
from collections.abc import Callable
from typing import Any

from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.guard_condition import GuardCondition
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.service import Service
from rclpy.subscription import Subscription
from rclpy.timer import Timer
from rosgraph_msgs.msg import Clock
from tf2_msgs.msg import TFMessage

from raymap3r_ros.errors import InputError, reason_of
from raymap3r_ros.node.conversions import check_stamp
from raymap3r_ros.node.tf_frames import limited
from raymap3r_ros.text import printable, with_details

PARAMETER_TYPES = sorted(kind.value for kind in Parameter.Type)


def keep_reason(transition: Callable[..., TransitionCallbackReturn]) -> Callable[..., TransitionCallbackReturn]:
    """Keep the exception of a transition for `on_error`: rclpy does not pass it on."""

    @functools.wraps(transition)
    def run(self: GuardedNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self.transition_error = f"{type(error).__name__}: {error}"
            self.get_logger().debug(with_details(self.transition_error, traceback.format_exc()))
            return TransitionCallbackReturn.ERROR

    return run


class GuardedNode(LifecycleNode):
    """A managed node that no message, request or clock value ends.

    rclpy's executors end with the first exception of a callback, and rclpy's own callbacks raise them: for a parameter
    of an unknown type, for a negative time on /clock. Here all callbacks are guarded, including those that rclpy
    creates. A service that fails still responds. Callbacks that are coroutines are not guarded.
    """

    def __init__(self, *arguments: Any, **node_arguments: Any) -> None:
        """As rclpy's."""
        self.transition_error = ""  # of the last transition that raised an exception
        self._tf_names: set[str] = set()  # of frames, from /tf and /tf_static
        # Of the last message on /clock, or of the subscription; seconds of the monotonic clock.
        self.clock_arrival = -math.inf
        super().__init__(*arguments, **node_arguments)
        # rclpy creates some of its services without `create_service`.
        for service in self.services:
            service.callback = self._guarded_service(service.srv_type, service.srv_name, service.callback)

    def report_failure(self, what: str, error: Exception, details: str) -> None:
        """Report an exception of the callback `what`; `details` is its traceback. Must not raise."""
        self.get_logger().error(with_details(f"{what} failed: {type(error).__name__}: {error}", details))

    def create_subscription(
        self, msg_type: type, topic: str, callback: Callable, qos_profile: Any, **arguments: Any
    ) -> Subscription:
        """As rclpy's."""
        if msg_type is Clock:
            self.clock_arrival = time.monotonic()
            callback = self._checked_clock(callback)
        if msg_type is TFMessage:
            callback = limited(callback, self._tf_names)
        guarded = self.guarded(callback, f"the callback of {topic}")
        return super().create_subscription(msg_type, topic, guarded, qos_profile, **arguments)

    def create_service(self, srv_type: type, srv_name: str, callback: Callable, **arguments: Any) -> Service:
        """As rclpy's."""
        return super().create_service(
            srv_type, srv_name, self._guarded_service(srv_type, srv_name, callback), **arguments
        )

    def create_timer(self, timer_period_sec: float, callback: Callable | None, *arguments: Any, **more: Any) -> Timer:
        """As rclpy's."""
        return super().create_timer(timer_period_sec, self.guarded(callback, "a timer"), *arguments, **more)

    def create_guard_condition(self, callback: Callable | None, *arguments: Any, **more: Any) -> GuardCondition:
        """As rclpy's."""
        return super().create_guard_condition(self.guarded(callback, "a guard condition"), *arguments, **more)

    def guarded(self, callback: Callable | None, what: str) -> Callable | None:
        """`callback`, but its exceptions are reported and not raised; `what` names it in the report."""
        if callback is None or inspect.iscoroutinefunction(callback):
            return callback

        @functools.wraps(callback)
        def run(*arguments: Any, **more: Any) -> Any:
            try:
                return callback(*arguments, **more)
            except Exception as error:
                self.report_failure(what, error, traceback.format_exc())

        return run

    def _guarded_service(self, kind: type, name: str, callback: Callable) -> Callable:
        own = {SetParameters: self._on_set_parameters, SetParametersAtomically: self._on_set_parameters_atomically}
        if kind is ChangeState:
            callback = self._checked_transition(callback)
        guarded = self.guarded(own.get(kind, callback), f"the service {name}")

        @functools.wraps(callback)
        def respond(request: Any, response: Any) -> Any:
            result = guarded(request, response)
            if result is None:
                result = type(response)()  # without a response the client would wait forever
                if hasattr(result, "message"):
                    result.message = "failed: the node's log contains the reason"
            return result

        return callback if inspect.iscoroutinefunction(callback) else respond

    def _checked_clock(self, callback: Callable[[Clock], None]) -> Callable[[Clock], None]:
        @functools.wraps(callback)
        def run(message: Clock) -> None:
            self.clock_arrival = time.monotonic()
            check_stamp(message.clock)
            callback(message)

        return run

    def _checked_transition(self, callback: Callable) -> Callable:
        # rcl logs the label of each unknown transition as it is, control characters included.
        @functools.wraps(callback)
        def run(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            wanted = request.transition.label or request.transition.id
            if any(wanted in (number, label) for number, label, *_ in self._state_machine.available_transitions):
                return callback(request, response)
            self.get_logger().warning(
                f"refused: no transition {printable(wanted, 60)} in the state {self._state_machine.current_state[1]}",
                throttle_duration_sec=5.0,
            )
            response.success = False
            return response

        return run

    def _on_set_parameters(
        self, request: SetParameters.Request, response: SetParameters.Response
    ) -> SetParameters.Response:
        response.results = [self._set([message]) for message in request.parameters]
        return response

    def _on_set_parameters_atomically(
        self, request: SetParametersAtomically.Request, response: SetParametersAtomically.Response
    ) -> SetParametersAtomically.Response:
        response.result = self._set(request.parameters)
        return response

    def _set(self, messages: list) -> SetParametersResult:
        """Set parameters atomically; whatever prevents it becomes the reason of the result."""
        try:
            changes = []
            for message in messages:
                if not message.name:
                    raise InputError("a parameter without a name cannot be set")
                if not self.has_parameter(message.name):
                    near = difflib.get_close_matches(message.name, self.list_parameters([], 0).names, 1, 0.6)
                    hint = f"; did you mean {near[0]}?" if near else ""
                    raise InputError(f"{printable(message.name)} is not a parameter of this node{hint}")
                if message.value.type not in PARAMETER_TYPES:
                    raise InputError(
                        f"{printable(message.name)} has a value of the unknown type {message.value.type}; allowed: "
                        f"{PARAMETER_TYPES[0]} to {PARAMETER_TYPES[-1]}, see rcl_interfaces/msg/ParameterType"
                    )
                changes.append(Parameter.from_parameter_msg(message))
            return self.set_parameters_atomically(changes)
        except Exception as error:  # rclpy raises many kinds: undeclared, static type, invalid value
            return SetParametersResult(successful=False, reason=printable(reason_of(error)))
