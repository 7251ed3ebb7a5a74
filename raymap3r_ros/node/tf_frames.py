"""The transforms that the node publishes, computed from the poses of the stream (REP 105).

Every pose is a rigid (4, 4) float64 matrix, in metres. A pose "of b in a", or `a_from_b`, maps coordinates of frame b
to coordinates of frame a, as the transform of tf2 with parent a and child b.

The *stream's world* is the coordinate system of the stream's poses: origin at the first camera, REP 103 axes. The
*world* is the TF frame `world_frame`. In mode `camera` they are the same. In the other modes the world is the robot's
base at the first image. So z points up and the floor is z = 0 if the robot starts level on the floor, however the
camera is mounted. One constant pose, `world_from_stream`, lies between the two. With known poses, stream's world and
world are `odom_frame`, in all modes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped
from rclpy.time import Time as RosTime
from tf2_msgs.msg import TFMessage
from tf2_ros import Buffer, TransformException

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.geometry.poses import MAX_DISTANCE, is_plausible, rotation_vector
from raymap3r_ros.node.conversions import MAX_NAME, rigid_matrix, seconds

TF_MODES = ("camera", "base", "odom", "map")

# Seconds of real time to wait for a transform at the image's stamp. A publisher of 20 Hz or more has sent it by then,
# and an image is older than that when the network has processed it.
PATIENCE = 0.05
# Seconds by which the newest base -> camera may be older than the image. The pose of a moving head is published often
# enough to wait for it. A rarer transform is in practice a fixed mount, repeated at 1 Hz or faster.
MOUNT_AGE = 1.0
# Seconds for which world -> odom stays in use without a new odom -> base: it follows the slip of the wheels, not the
# robot.
DRIFT_AGE = 1.0
# Limit of extrapolation, in intervals of the last motion: over a few dropped images, not over a gap.
COAST = 2.0
MAX_FRAMES = 10_000  # different frames that a node receives; tf2 never forgets one


class TransformError(InputError):
    """A transform that another node publishes is not available."""


@dataclass(frozen=True)
class FrameNames:
    """The parameters of these names. An empty `child_frame` means the images' own frame. Raises OptionError."""

    tf_mode: str = "camera"
    world_frame: str = "map"
    odom_frame: str = "odom"
    base_frame: str = "base_link"
    child_frame: str = ""
    invert_tf: bool = False

    def __post_init__(self) -> None:
        check_frames(self.tf_mode, self.world_frame, self.odom_frame, self.base_frame, self.child_frame)


def check_frames(tf_mode: str, world_frame: str, odom_frame: str, base_frame: str, child_frame: str) -> None:
    """Raise OptionError if these frames cannot form a tree. Names that the mode does not use are not checked."""
    if tf_mode not in TF_MODES:
        raise OptionError(f"tf_mode is {tf_mode!r}; allowed values: {', '.join(TF_MODES)}")
    used = {"world_frame": world_frame}
    if tf_mode in ("odom", "map"):
        used["odom_frame"] = odom_frame
    if tf_mode != "camera":
        used["base_frame"] = base_frame
    used["child_frame"] = child_frame
    seen: dict[str, str] = {}
    for option, name in used.items():
        if name.startswith("/"):
            raise OptionError(f"{option} is {name!r}; allowed: names without a leading slash")
        if not name and option != "child_frame":
            raise OptionError(f"{option} is empty; allowed with tf_mode {tf_mode}: any frame name")
        if name and name in seen:
            raise OptionError(f"{option} is {name!r}, as {seen[name]}; allowed: names that differ")
        seen[name] = option


@dataclass(frozen=True)
class Placement:
    """Where one image was taken, and the transforms to publish."""

    transforms: tuple[tuple[str, str, np.ndarray], ...]  # (parent, child, pose of the child in the parent)
    problem: str  # why a transform of the mode is missing; "" if none is
    camera: np.ndarray  # (4, 4) pose of the camera's optical frame in the world, for ~/pose and the trajectories
    world_from_stream: np.ndarray  # (4, 4), constant within a world; maps the stream's world to the world
    odometry_frame: str  # ~/odometry: header.frame_id,
    odometry_child: str  # child_frame_id
    odometry: np.ndarray  # and (4, 4) pose of the child in it
    child_from_camera: np.ndarray  # (4, 4) pose of the camera in the child
    # (4, 4) pose of the odometry's child relative to its pose at the previous image, for the twist. None if it was not
    # measured: at the first image, and after a correction of the pose.
    motion: np.ndarray | None
    interval: float  # seconds of that motion; 0 without one


@dataclass(frozen=True)
class _Moment:
    """The last placed image."""

    seconds: float
    scale: float
    camera: np.ndarray  # (4, 4) in the stream's world
    base_from_camera: np.ndarray
    base_in_odom: np.ndarray


LookUp = Callable[[str, str, Time, float], np.ndarray]


class Frames:
    """Places the images of one stream, one after the other. Not thread-safe.

    `look_up(parent, child, stamp, age)` returns the pose of child in parent, see the function `look_up`.
    """

    def __init__(self, names: FrameNames, look_up: LookUp) -> None:
        self._names = names
        self._look_up = look_up
        self._world_from_stream: np.ndarray | None = None
        self._last: _Moment | None = None
        self._corrected = False  # since the last image that was placed
        self._step: tuple[np.ndarray, float] | None = None  # the last measured motion, and its seconds
        self._drift: tuple[np.ndarray, float] | None = None  # mode map: odom in the world, and when it was measured

    @property
    def world_from_stream(self) -> np.ndarray | None:
        """(4, 4) pose of the stream's world in the world; None before the first image of a world."""
        return self._world_from_stream

    def place(
        self,
        pose: np.ndarray,
        stamp: Time,
        camera_frame: str = "",
        *,
        scale: float = 1.0,
        new_world: bool = False,
        world_from_stream: np.ndarray | None = None,
        corrected: bool = False,
        in_odom: bool = False,
    ) -> Placement:
        """Place an image taken at `pose`, (4, 4) of the camera in the stream's world, metric scale applied.

        Args:
            camera_frame: frame_id of the image, used if no `child_frame` is set.
            scale: metres per unit of the stream, as applied to `pose`. A change of the scale is no motion.
            new_world: the image is the first in another world than the last one.
            world_from_stream: of that world, if it is an earlier one, which continues.
            corrected: `pose` has jumped by an unknown amount since the last image.
            in_odom: the stream's world is `odom_frame`, so that frame is the world too, whatever the mode.

        Raises TransformError if base -> camera is not available. Then the image has no pose in the world, and its
        correction is kept for the next image. Raises InputError if the frame of the image cannot be part of the tree,
        or the pose is not finite.
        """
        names = self._names
        self._corrected |= new_world or corrected
        if new_world:
            self._world_from_stream = world_from_stream
        camera_frame = self._camera_name(camera_frame)
        alone = names.tf_mode == "camera"
        if not alone:
            pose = _rigid(pose)  # it is multiplied with other poses; alone it is published as it is
        base_from_camera = np.eye(4) if alone else self._look_up(names.base_frame, camera_frame, stamp, MOUNT_AGE)
        begins = self._world_from_stream is None
        if begins:
            self._world_from_stream = np.eye(4) if alone or in_odom else base_from_camera @ _inverse(pose)
        camera = self._world_from_stream @ pose
        base = camera @ _inverse(base_from_camera)  # in mode camera the camera itself
        if begins and not (alone or in_odom):
            base = np.eye(4)  # exactly: RTAB-Map recognizes a restart of the odometry by this

        now = seconds(stamp)
        motion, interval = self._motion(base, now, scale)
        jumps = motion is None or scale != self._last.scale
        base_in_odom = base if self._last is None else _rigid(self._last.base_in_odom @ self._extrapolate(motion, now))
        if motion is not None and interval > 0:
            self._step = motion, interval
        self._corrected = False
        self._last = _Moment(now, scale, pose, base_from_camera, base_in_odom)

        body = camera_frame if alone else names.base_frame
        odometry = (names.world_frame, body, base)
        if names.tf_mode == "odom":
            odometry = (names.odom_frame, body, base_in_odom)
        transforms, problem = self._transforms(odometry, base, stamp, jumps)
        return Placement(
            transforms=tuple(transforms),
            problem=problem,
            camera=camera,
            world_from_stream=self._world_from_stream,
            odometry_frame=odometry[0],
            odometry_child=odometry[1],
            odometry=odometry[2],
            child_from_camera=base_from_camera,
            motion=motion if interval > 0 else None,
            interval=interval,
        )

    def _transforms(
        self, odometry: tuple[str, str, np.ndarray], base: np.ndarray, stamp: Time, jumps: bool
    ) -> tuple[list[tuple[str, str, np.ndarray]], str]:
        """The transforms of the mode, and why one is missing.

        Args:
            odometry: parent, child and pose of the odometry.
            base: (4, 4) pose of the base in the world.
            jumps: the pose jumps with this image.
        """
        names, problem, transforms = self._names, "", [odometry]
        if names.tf_mode == "odom":
            transforms.append((names.world_frame, names.odom_frame, base @ _inverse(odometry[2])))
        elif names.tf_mode == "map":
            try:
                transforms = [(names.world_frame, names.odom_frame, self._odom_in_world(base, stamp, jumps))]
            except TransformError as error:
                transforms, problem = [], str(error)
        if names.invert_tf:
            transforms = [(child, parent, _inverse(matrix)) for parent, child, matrix in transforms]
        return transforms, problem

    def _camera_name(self, of_image: str) -> str:
        names = self._names
        name = names.child_frame or of_image
        try:
            check_frames(names.tf_mode, names.world_frame, names.odom_frame, names.base_frame, name)
        except OptionError as error:
            raise InputError(f"the images' frame_id cannot be used ({error}): choose another child_frame") from None
        if not name:
            raise InputError("the images have no frame_id: choose a child_frame")
        return name

    def _motion(self, base: np.ndarray, now: float, scale: float) -> tuple[np.ndarray | None, float]:
        """Motion of the base since the last image by the poses, and its interval in seconds (0 without a motion)."""
        last = self._last
        if last is None or self._corrected:
            return None, 0.0
        camera = last.camera.copy()
        camera[:3, 3] *= scale / last.scale  # the last pose with the present scale
        before = self._world_from_stream @ camera @ _inverse(last.base_from_camera)
        return _inverse(before) @ base, max(now - last.seconds, 0.0)

    def _extrapolate(self, motion: np.ndarray | None, now: float) -> np.ndarray:
        """The measured motion, or the last one extrapolated if a correction hides it.

        Without extrapolation the odometry would lose the motion of one image at each correction. If time went back (a
        bag that starts again) or did not advance, the result is no motion.
        """
        if motion is not None:
            return motion
        if self._step is None:
            return np.eye(4)
        step, interval = self._step
        return _scaled_motion(step, min(max((now - self._last.seconds) / interval, 0.0), COAST))

    def _odom_in_world(self, base: np.ndarray, stamp: Time, jumps: bool) -> np.ndarray:
        """Mode map: pose of odom in the world; `jumps`: it jumps with this image. Raises TransformError."""
        if jumps:
            self._drift = None
        try:
            odom_from_base = self._look_up(self._names.odom_frame, self._names.base_frame, stamp, 0.0)
        except TransformError:
            # The odometry may be slower than the camera: keep the last drift for a while.
            if self._drift is None or abs(seconds(stamp) - self._drift[1]) > DRIFT_AGE:
                raise
            return self._drift[0]
        self._drift = base @ _inverse(odom_from_base), seconds(stamp)
        return self._drift[0]


def look_up(buffer: Buffer, parent: str, child: str, stamp: Time, age: float = 0.0) -> np.ndarray:
    """(4, 4) pose of `child` in `parent` at `stamp`. Transforms of /tf_static are valid at any time.

    If the newest transform is older than `stamp`, wait for a newer one for PATIENCE seconds at most. Then accept one
    that is up to `age` seconds older. Raises TransformError. (The timeout of tf2_ros uses the node's clock, and never
    ends while simulated time is paused.)
    """
    wanted = RosTime.from_msg(stamp)
    deadline = time.monotonic() + PATIENCE
    newest = _newest(buffer, parent, child)
    # Do not wait for a transform that is behind by more than the patience.
    while 0 < (behind := _age(newest, wanted)) <= PATIENCE and time.monotonic() < deadline:
        time.sleep(PATIENCE / 20)
        newest = _newest(buffer, parent, child)
    try:
        return _matrix(buffer.lookup_transform(parent, child, wanted))
    except TransformException as error:
        if 0 < behind <= age:
            return _matrix(newest)
        when = f"the newest is {behind:.3f} s older" if behind > 0 else "the known transforms begin later"
        raise TransformError(
            f"no transform {parent} -> {child} at the image's stamp, {when}: publish it without pauses, at "
            f"{1 / PATIENCE:.0f} Hz or more if it changes, with a clock that agrees with the images'"
        ) from error


def limited(callback: Callable[[TFMessage], None], names: set[str]) -> Callable[[TFMessage], None]:
    """`callback` of a subscription to transforms, without those that would exceed MAX_FRAMES or MAX_NAME.

    The names of all frames so far are collected in `names`. Raises InputError if transforms were left out.
    """

    @functools.wraps(callback)
    def run(message: TFMessage) -> None:
        kept = []
        for transform in message.transforms:
            new = {transform.header.frame_id, transform.child_frame_id} - names
            if len(names) + len(new) <= MAX_FRAMES and all(len(name) <= MAX_NAME for name in new):
                names.update(new)
                kept.append(transform)
        left_out = len(message.transforms) - len(kept)
        message.transforms = kept
        callback(message)
        if left_out:
            raise InputError(
                f"{left_out} transforms are left out: allowed are {MAX_FRAMES} different frames with names of up to "
                f"{MAX_NAME} characters; stop the publisher whose frames change, then start this node again"
            )

    return run


def _matrix(transform: TransformStamped) -> np.ndarray:
    """(4, 4) of a transform. Raises TransformError if it cannot be a pose: tf2 accepts infinity."""
    matrix = rigid_matrix(transform.transform.translation, transform.transform.rotation)
    if not is_plausible(matrix):
        parent, child = transform.header.frame_id, transform.child_frame_id
        raise TransformError(
            f"the transform {parent} -> {child} is not finite, or longer than {MAX_DISTANCE:g} m: "
            "check the node that publishes it"
        )
    return matrix


def _newest(buffer: Buffer, parent: str, child: str) -> TransformStamped:
    try:
        return buffer.lookup_transform(parent, child, RosTime())
    except TransformException as error:
        raise TransformError(
            f"no transform {parent} -> {child} ({str(error).strip()}): publish it, for a part of the robot with "
            "robot_state_publisher or static_transform_publisher, odometry by its source"
        ) from error


def _age(transform: TransformStamped, wanted: RosTime) -> float:
    """Seconds by which a transform is older."""
    return (wanted.nanoseconds - RosTime.from_msg(transform.header.stamp).nanoseconds) * 1e-9


def _rigid(pose: np.ndarray) -> np.ndarray:
    """The pose with the nearest rotation matrix, so that float32 errors do not accumulate. Raises InputError."""
    if not np.isfinite(pose).all():
        raise InputError("the camera's pose is not finite")
    u, _, vt = np.linalg.svd(pose[:3, :3])
    result = np.eye(4)
    result[:3, :3] = u @ vt
    result[:3, 3] = pose[:3, 3]
    return result


def _inverse(pose: np.ndarray) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = pose[:3, :3].T
    result[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return result


def _scaled_motion(motion: np.ndarray, factor: float) -> np.ndarray:
    """A motion with its angle and its translation multiplied by `factor`."""
    result = np.eye(4)
    result[:3, :3] = cv2.Rodrigues(factor * rotation_vector(motion[:3, :3]))[0]
    result[:3, 3] = factor * motion[:3, 3]
    return result
