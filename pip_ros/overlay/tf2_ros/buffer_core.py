"""Storage for the transforms of /tf and /tf_static, and look-ups of the transform between two frames at a time.

A rotation is a unit quaternion (x, y, z, w), a translation (x, y, z) in metres; a pair of them is a transform that
takes coordinates of the child frame to coordinates of the parent. Times are integer nanoseconds; 0 means "latest".
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.logging import get_logger
from rclpy.time import Time

from raymap3r_ros.text import Throttle, printable
from tf2_ros.exceptions import (
    ConnectivityException,
    ExtrapolationException,
    InvalidArgumentException,
    LookupException,
    TransformException,
)

Quaternion = tuple[float, float, float, float]
Vector = tuple[float, float, float]

NORM_TOLERANCE = 0.01  # of the squared norm of a quaternion, as in tf2
LOG_INTERVAL = 2.5  # seconds between two messages about the same kind of bad input
# Not in tf2. Any participant can publish transforms, which are kept.
MAX_NAME = 256  # characters of a frame's name
MAX_FRAMES = 10_000
MAX_DEPTH = 1000  # transforms of a look-up, as in tf2: a longer chain is taken for a loop
MAX_SAMPLES = 20_000  # of one frame


class Transform(NamedTuple):
    """Child to parent."""

    rotation: Quaternion
    translation: Vector


IDENTITY = Transform((0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0))


def multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    """Hamilton product: first b, then a."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def rotate(q: Quaternion, v: Vector) -> Vector:
    """`v` turned by the unit quaternion `q`."""
    x, y, z, w = q
    vx, vy, vz = v
    tx, ty, tz = 2 * (y * vz - z * vy), 2 * (z * vx - x * vz), 2 * (x * vy - y * vx)
    return (
        vx + w * tx + y * tz - z * ty,
        vy + w * ty + z * tx - x * tz,
        vz + w * tz + x * ty - y * tx,
    )


def compose(outer: Transform, inner: Transform) -> Transform:
    """First `inner`, then `outer`."""
    x, y, z = rotate(outer.rotation, inner.translation)
    ox, oy, oz = outer.translation
    return Transform(multiply(outer.rotation, inner.rotation), (x + ox, y + oy, z + oz))


def inverse(transform: Transform) -> Transform:
    """Parent to child."""
    x, y, z, w = transform.rotation
    conjugate = (-x, -y, -z, w)
    tx, ty, tz = rotate(conjugate, transform.translation)
    return Transform(conjugate, (-tx, -ty, -tz))


def slerp(a: Quaternion, b: Quaternion, ratio: float) -> Quaternion:
    """The rotation `ratio` (0..1) of the way from a to b, on the shorter arc."""
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    sign = -1.0 if dot < 0 else 1.0
    angle = math.acos(min(1.0, abs(dot)))
    if angle < 1e-6:  # sin(angle) is too small to divide by; a straight line is exact to 1e-12 here
        wa, wb = 1 - ratio, sign * ratio
    else:
        wa = math.sin((1 - ratio) * angle) / math.sin(angle)
        wb = sign * math.sin(ratio * angle) / math.sin(angle)
    return normalize(tuple(wa * p + wb * q for p, q in zip(a, b, strict=True)))


def normalize(q: Quaternion) -> Quaternion:
    """`q` with length 1."""
    norm = math.sqrt(sum(part * part for part in q))
    return tuple(part / norm for part in q)


class StaticFrame:
    """The parent of a frame that never moves: one transform, valid at every time."""

    def __init__(self, parent: str, transform: Transform):
        self.parent = parent
        self.transform = transform

    def at(self, stamp: int) -> tuple[str, Transform]:
        """Parent and transform at a time."""
        return self.parent, self.transform

    def latest(self) -> tuple[int | None, str]:
        """Stamp of the newest transform (None: any time will do) and its parent."""
        return None, self.parent


class MovingFrame:
    """The parents of a frame over time, sorted by stamp."""

    def __init__(self, cache_time: int):
        self.cache_time = cache_time
        self.stamps: list[int] = []
        self.samples: list[tuple[str, Transform]] = []

    def insert(self, stamp: int, parent: str, transform: Transform) -> bool:
        """Store a transform and forget those that became too old. False where this one is too old itself."""
        if self.stamps and stamp < self.stamps[-1] - self.cache_time:
            return False
        index = bisect_left(self.stamps, stamp)
        if index < len(self.stamps) and self.stamps[index] == stamp:
            self.samples[index] = parent, transform
            return True
        self.stamps.insert(index, stamp)
        self.samples.insert(index, (parent, transform))
        expired = max(bisect_left(self.stamps, self.stamps[-1] - self.cache_time), len(self.stamps) - MAX_SAMPLES)
        del self.stamps[:expired], self.samples[:expired]
        return True

    def at(self, stamp: int) -> tuple[str, Transform]:
        """Parent and transform at a time, interpolated. Raises ExtrapolationException outside what is stored."""
        if stamp == 0:
            return self.samples[-1]
        index = bisect_left(self.stamps, stamp)
        if index < len(self.stamps) and self.stamps[index] == stamp:
            return self.samples[index]
        if len(self.stamps) == 1:
            raise ExtrapolationException(
                f"Lookup would require extrapolation at time {seconds(stamp)}, but only time "
                f"{seconds(self.stamps[0])} is in the buffer"
            )
        if index == len(self.stamps):
            raise ExtrapolationException(
                f"Lookup would require extrapolation into the future.  Requested time {seconds(stamp)} but the "
                f"latest data is at time {seconds(self.stamps[-1])}"
            )
        if index == 0:
            raise ExtrapolationException(
                f"Lookup would require extrapolation into the past.  Requested time {seconds(stamp)} but the "
                f"earliest data is at time {seconds(self.stamps[0])}"
            )
        (parent, older), (parent_after, newer) = self.samples[index - 1], self.samples[index]
        if parent != parent_after:  # hung over to another parent in between: nothing to interpolate
            return parent, older
        ratio = (stamp - self.stamps[index - 1]) / (self.stamps[index] - self.stamps[index - 1])
        translation = tuple(p + ratio * (q - p) for p, q in zip(older.translation, newer.translation, strict=True))
        return parent, Transform(slerp(older.rotation, newer.rotation, ratio), translation)

    def latest(self) -> tuple[int, str]:
        """Stamp of the newest transform and its parent."""
        return self.stamps[-1], self.samples[-1][0]


class BufferCore:
    """The tree of frames, without waiting. Safe to use from several threads."""

    def __init__(self, cache_time: Duration | None = None):
        self._cache_time = nanoseconds(cache_time) if cache_time is not None else 10_000_000_000
        self._frames: dict[str, StaticFrame | MovingFrame] = {}  # by child frame
        self._names: set[str] = set()
        self._throttle = Throttle()
        self._changed = threading.Condition(threading.RLock())

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Store a transform of /tf. One that cannot be used is logged and ignored."""
        self._set(transform, authority, is_static=False)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Store a transform of /tf_static: it holds at every time, and for ever."""
        self._set(transform, authority, is_static=True)

    def clear(self) -> None:
        """Forget every transform that is not static."""
        with self._changed:
            self._frames = {k: v for k, v in self._frames.items() if isinstance(v, StaticFrame)}

    def lookup_transform_core(self, target_frame: str, source_frame: str, time: Time) -> TransformStamped:
        """The transform that takes coordinates of `source_frame` to `target_frame` at `time` (0: the latest).

        Raises InvalidArgumentException, LookupException, ConnectivityException or ExtrapolationException.
        """
        with self._changed:
            stamp, transform = self._lookup(target_frame, source_frame, nanoseconds(time))
        return to_message(stamp, target_frame, source_frame, transform)

    def lookup_transform_full_core(
        self, target_frame: str, target_time: Time, source_frame: str, source_time: Time, fixed_frame: str
    ) -> TransformStamped:
        """Like `lookup_transform_core`, from one time to another by way of a frame that does not move between them."""
        with self._changed:
            _, inner = self._lookup(fixed_frame, source_frame, nanoseconds(source_time))
            stamp, outer = self._lookup(target_frame, fixed_frame, nanoseconds(target_time))
        return to_message(stamp, target_frame, source_frame, compose(outer, inner))

    def can_transform_core(self, target_frame: str, source_frame: str, time: Time) -> tuple[bool, str]:
        """Whether `lookup_transform_core` would succeed, and if not, why."""
        try:
            self.lookup_transform_core(target_frame, source_frame, time)
        except TransformException as error:
            return False, str(error)
        return True, ""

    def can_transform_full_core(
        self, target_frame: str, target_time: Time, source_frame: str, source_time: Time, fixed_frame: str
    ) -> tuple[bool, str]:
        """Whether `lookup_transform_full_core` would succeed, and if not, why."""
        try:
            self.lookup_transform_full_core(target_frame, target_time, source_frame, source_time, fixed_frame)
        except TransformException as error:
            return False, str(error)
        return True, ""

    def get_latest_common_time(self, target_frame: str, source_frame: str) -> Time:
        """The newest time at which `source_frame` can be taken to `target_frame`; 0 where all of it is static."""
        with self._changed:
            self._check_names(target_frame, source_frame)
            return Time(nanoseconds=self._latest_common(target_frame, source_frame))

    def _set(self, message: TransformStamped, authority: str, is_static: bool) -> None:
        parent, child = (name.removeprefix("/") for name in (message.header.frame_id, message.child_frame_id))
        r, t = message.transform.rotation, message.transform.translation
        rotation, translation = (r.x, r.y, r.z, r.w), (t.x, t.y, t.z)
        problem = ""
        if max(len(child), len(parent)) > MAX_NAME:
            problem = f"a name has {max(len(child), len(parent))} characters, more than {MAX_NAME}"
        elif not child or not parent:
            problem = f"{'child_frame_id' if not child else 'header.frame_id'} is empty"
        elif child == parent:
            problem = "frame_id and child_frame_id are the same"
        elif any(math.isnan(value) for value in rotation + translation):
            problem = f"it has a NaN: translation {translation}, rotation {rotation}"
        elif not abs(sum(part * part for part in rotation) - 1) < NORM_TOLERANCE:
            problem = f"its quaternion {rotation} has not length 1"
        new = {parent, child} - self._names
        if not problem and new and len(self._names) + len(new) > MAX_FRAMES:
            problem = f"the buffer is full, with {len(self._names)} frames"
        if problem:
            text = f'Ignoring the transform "{parent}" -> "{child}" from authority "{authority}": {problem}'
            self._log(get_logger("tf2").error, problem, text)
            return
        transform = Transform(normalize(rotation), translation)
        stamp = nanoseconds(message.header.stamp)
        with self._changed:
            self._names |= {parent, child}
            if is_static:
                self._frames[child] = StaticFrame(parent, transform)
            else:
                frame = self._frames.get(child)
                if not isinstance(frame, MovingFrame):
                    frame = self._frames[child] = MovingFrame(self._cache_time)
                if not frame.insert(stamp, parent, transform):
                    text = (
                        f'TF_OLD_DATA ignoring data from the past for frame "{child}" at time {seconds(stamp)} '
                        f'according to authority "{authority}"'
                    )
                    self._log(get_logger("tf2").warning, "TF_OLD_DATA", text)
            self._changed.notify_all()

    def _log(self, write: Callable[[str], object], problem: str, text: str) -> None:
        # rclpy's own throttle has no effect on a logger that is looked up each time.
        if self._throttle.permits(problem, LOG_INTERVAL):
            write(printable(text))

    def _check_names(self, target: str, source: str) -> None:
        for argument, name in (("target_frame", target), ("source_frame", source)):
            where = f'"{name}" passed to lookupTransform argument {argument}'
            if not name:
                raise InvalidArgumentException(f"{where}: in tf2 frame_ids cannot be empty")
            if name.startswith("/"):
                raise InvalidArgumentException(f"{where}: in tf2 frame_ids cannot start with a '/'")
            if name not in self._names:
                raise LookupException(f"{where} does not exist. ")

    def _lookup(self, target: str, source: str, stamp: int) -> tuple[int, Transform]:
        """Time and transform source -> target. `stamp` 0 is replaced by the latest common time."""
        if target == source:
            frame = self._frames.get(target)
            return stamp or (frame and frame.latest()[0]) or 0, IDENTITY
        self._check_names(target, source)
        stamp = stamp or self._latest_common(target, source)
        route = f", when looking up transform from frame [{source}] to frame [{target}]"

        # Up from the source, to the target or the root, or as far as the data for this time go.
        above_source = {source: IDENTITY}
        frame, transform, obstacle = source, IDENTITY, None
        while frame != target and frame in self._frames:
            try:
                parent, step = self._frames[frame].at(stamp)
            except ExtrapolationException as error:
                obstacle = error
                break
            self._check_loop(parent, above_source)
            frame, transform = parent, compose(step, transform)
            above_source[frame] = transform

        # Up from the target, to the first frame that is above the source too.
        frame, transform, visited = target, IDENTITY, {target}
        while frame not in above_source:
            if frame not in self._frames:
                if obstacle is not None:
                    raise ExtrapolationException(f"{obstacle}{route}")
                raise unconnected(target, source)
            try:
                parent, step = self._frames[frame].at(stamp)
            except ExtrapolationException as error:
                raise ExtrapolationException(f"{error}{route}") from None
            self._check_loop(parent, visited)
            visited.add(parent)
            frame, transform = parent, compose(step, transform)
        return stamp, compose(inverse(transform), above_source[frame])

    def _latest_common(self, target: str, source: str) -> int:
        """Newest time, nanoseconds, at which every transform between the two frames is known; 0 if all are static."""
        above_source: dict[str, int | None] = {source: None}
        frame, common = source, None
        while frame != target and frame in self._frames:
            stamp, parent = self._frames[frame].latest()
            self._check_loop(parent, above_source)
            frame, common = parent, earlier(common, stamp)
            above_source[frame] = common
        frame, common, visited = target, None, {target}
        while frame not in above_source:
            if frame not in self._frames:
                raise unconnected(target, source)
            stamp, parent = self._frames[frame].latest()
            self._check_loop(parent, visited)
            visited.add(parent)
            frame, common = parent, earlier(common, stamp)
        return earlier(common, above_source[frame]) or 0

    @staticmethod
    def _check_loop(parent: str, visited: set | dict) -> None:
        if parent in visited or len(visited) > MAX_DEPTH:
            raise LookupException(f'The tf tree is invalid because it contains a loop through frame "{parent}"')


def nanoseconds(value: object) -> int:
    """A time or duration of rclpy, or of a message, as integer nanoseconds. Raises TypeError for anything else."""
    if hasattr(value, "nanoseconds"):
        return value.nanoseconds
    if hasattr(value, "sec") and hasattr(value, "nanosec"):
        return value.sec * 1_000_000_000 + value.nanosec
    raise TypeError(f"{value!r} is neither a time nor a duration: it needs nanoseconds, or sec and nanosec")


def seconds(stamp: int) -> str:
    """A stamp in nanoseconds as text in seconds."""
    return f"{stamp // 1_000_000_000}.{stamp % 1_000_000_000:09d}"


def earlier(a: int | None, b: int | None) -> int | None:
    """The smaller of two stamps; None stands for "any time"."""
    return min((stamp for stamp in (a, b) if stamp is not None), default=None)


def unconnected(target: str, source: str) -> ConnectivityException:
    """The exception for two frames of different trees."""
    return ConnectivityException(
        f"Could not find a connection between '{target}' and '{source}' because they are not part of the same tree."
        "Tf has two or more unconnected trees."
    )


def to_message(stamp: int, target: str, source: str, transform: Transform) -> TransformStamped:
    """A transform source -> target as a message, stamped with nanoseconds."""
    message = TransformStamped()
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
    message.header.frame_id = target
    message.child_frame_id = source
    t, r = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = transform.translation
    r.x, r.y, r.z, r.w = transform.rotation
    return message
