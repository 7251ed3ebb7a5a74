"""Look-ups that wait for a transform."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from geometry_msgs.msg import TransformStamped
from rclpy.clock import Clock, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.task import Future
from rclpy.time import Time

from tf2_ros.buffer_core import LOG_INTERVAL, BufferCore, nanoseconds
from tf2_ros.exceptions import TransformException


class Buffer(BufferCore):
    """The tree of frames, with waiting.

    `cache_time`: how long a moving transform is kept, 10 s by default. `node`: lends its clock; when that jumps
    back (a bag that loops), everything but the static transforms is forgotten.
    """

    def __init__(self, cache_time: Duration | None = None, node: Node | None = None):
        super().__init__(cache_time)
        self._waiting: list[tuple[Future, Callable[[], TransformStamped]]] = []  # asynchronous look-ups
        self.clock = node.get_clock() if node is not None else Clock()
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-1), on_clock_change=True)
        self.jump_handle = self.clock.create_jump_callback(threshold, post_callback=self.time_jump_callback)

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Store a transform of /tf, and complete the asynchronous look-ups that have waited for it."""
        super().set_transform(transform, authority)
        self._complete()

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Store a transform of /tf_static, and complete the asynchronous look-ups that have waited for it."""
        super().set_transform_static(transform, authority)
        self._complete()

    def lookup_transform(
        self, target_frame: str, source_frame: str, time: Time, timeout: Duration | None = None
    ) -> TransformStamped:
        """The transform that takes coordinates of `source_frame` to `target_frame` at `time` (0: the latest).

        Waits up to `timeout` (wall time, default none) for it. Raises as `lookup_transform_core`.
        """
        self.can_transform(target_frame, source_frame, time, timeout)
        return self.lookup_transform_core(target_frame, source_frame, time)

    def lookup_transform_full(
        self,
        target_frame: str,
        target_time: Time,
        source_frame: str,
        source_time: Time,
        fixed_frame: str,
        timeout: Duration | None = None,
    ) -> TransformStamped:
        """Like `lookup_transform`, from one time to another by way of a frame that does not move between them."""
        self.can_transform_full(target_frame, target_time, source_frame, source_time, fixed_frame, timeout)
        return self.lookup_transform_full_core(target_frame, target_time, source_frame, source_time, fixed_frame)

    def can_transform(
        self,
        target_frame: str,
        source_frame: str,
        time: Time,
        timeout: Duration | None = None,
        return_debug_tuple: bool = False,
    ) -> bool | tuple[bool, str]:
        """Whether `lookup_transform` would succeed within `timeout`; with `return_debug_tuple` also why not."""
        result = self._wait(lambda: self.can_transform_core(target_frame, source_frame, time), timeout)
        return result if return_debug_tuple else result[0]

    def can_transform_full(
        self,
        target_frame: str,
        target_time: Time,
        source_frame: str,
        source_time: Time,
        fixed_frame: str,
        timeout: Duration | None = None,
        return_debug_tuple: bool = False,
    ) -> bool | tuple[bool, str]:
        """Whether `lookup_transform_full` would succeed within `timeout`; with `return_debug_tuple` also why not."""
        arguments = target_frame, target_time, source_frame, source_time, fixed_frame
        result = self._wait(lambda: self.can_transform_full_core(*arguments), timeout)
        return result if return_debug_tuple else result[0]

    async def lookup_transform_async(self, target_frame: str, source_frame: str, time: Time) -> TransformStamped:
        """Like `lookup_transform`, for callbacks that are coroutines; waits without limit."""
        await self.wait_for_transform_async(target_frame, source_frame, time)
        return self.lookup_transform_core(target_frame, source_frame, time)

    async def lookup_transform_full_async(
        self, target_frame: str, target_time: Time, source_frame: str, source_time: Time, fixed_frame: str
    ) -> TransformStamped:
        """Like `lookup_transform_full`, for callbacks that are coroutines; waits without limit."""
        arguments = target_frame, target_time, source_frame, source_time, fixed_frame
        await self.wait_for_transform_full_async(*arguments)
        return self.lookup_transform_full_core(*arguments)

    def wait_for_transform_async(self, target_frame: str, source_frame: str, time: Time) -> Future:
        """A future with the transform, done as soon as it is available. Cancel it to stop waiting."""
        return self._future(lambda: self.lookup_transform_core(target_frame, source_frame, time))

    def wait_for_transform_full_async(
        self, target_frame: str, target_time: Time, source_frame: str, source_time: Time, fixed_frame: str
    ) -> Future:
        """Like `wait_for_transform_async`, from one time to another."""
        arguments = target_frame, target_time, source_frame, source_time, fixed_frame
        return self._future(lambda: self.lookup_transform_full_core(*arguments))

    def _future(self, look_up: Callable[[], TransformStamped]) -> Future:
        future = Future()
        with self._changed:
            self._waiting.append((future, look_up))
        self._complete()
        return future

    def _complete(self) -> None:
        """Set the result of each asynchronous look-up whose transform is available."""
        found = []
        with self._changed:
            waiting, self._waiting = self._waiting, []
            for future, look_up in waiting:
                if future.done() or future.cancelled():
                    continue
                try:
                    found.append((future, look_up()))
                except TransformException:
                    self._waiting.append((future, look_up))
        for future, transform in found:  # without the lock: its callbacks run now
            future.set_result(transform)

    def _wait(self, check: Callable[[], tuple[bool, str]], timeout: Duration | None) -> tuple[bool, str]:
        deadline = monotonic() + (nanoseconds(timeout) / 1e9 if timeout is not None else 0.0)
        with self._changed:
            while True:
                result = check()
                left = deadline - monotonic()
                if result[0] or left <= 0:
                    return result
                self._changed.wait(left)

    def time_jump_callback(self, time_jump: TimeJump) -> None:
        """Forget everything but the static transforms."""
        if self._throttle.permits("jump back in time", LOG_INTERVAL):
            get_logger("tf2_buffer").warning("Detected jump back in time. Clearing TF buffer.")
        self.clear()
