"""Sequences with ground truth as files: folders in the TUM RGB-D layout with masks, and ROS 2 bags (mcap).

docs/synthetic.md describes layout, topics, units and frames.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from tqdm import tqdm

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.geometry.cameras import pose_encoding
from raymap3r_ros.io import bag_messages
from raymap3r_ros.io.bag_messages import message_store, new_bag
from raymap3r_ros.io.output_folder import (
    check_subfolder,
    claim,
    foreign_files,
    listing,
    locked_folder,
    remove_empty,
    remove_written,
)
from raymap3r_ros.io.png import mask_image, quantise_depth, write_png
from raymap3r_ros.output_files import partial_path
from raymap3r_ros.signals import stop_signals_held
from raymap3r_ros.synthetic.suites import Frame

log = logging.getLogger(__name__)

FORMATS = ("tum", "bag", "both")

# Seconds added to the stamp of every frame: 0 means "no time" in ROS.
START = 1.0

DEPTH_UNIT = 5000  # values of a depth PNG per metre, as in TUM RGB-D
IMAGE_LISTS = {
    "rgb": "color images",
    "depth": "depth maps, 5000 per metre, 0 unknown",
    "static_depth": "depth maps of the world without movers, 5000 per metre, 0 unknown",
    "mask": "moving masks, 255 moving",
}
TRAJECTORY = "groundtruth.txt"
CAMERA = "camera.txt"

BAG = "bag"
WORLD_FRAME = "world"
CAMERA_FRAME = "camera_optical_frame"
TOPICS = {  # in the order of one frame's messages: the transform before the messages that need it
    "/tf": "tf2_msgs/msg/TFMessage",
    "/ground_truth/odometry": "nav_msgs/msg/Odometry",
    "/camera/camera_info": "sensor_msgs/msg/CameraInfo",
    "/camera/image_raw": "sensor_msgs/msg/Image",
    "/camera/depth/camera_info": "sensor_msgs/msg/CameraInfo",
    "/camera/depth/image_rect": "sensor_msgs/msg/Image",
    "/camera/moving_mask": "sensor_msgs/msg/Image",
}
UNKNOWN_VARIANCE = 1e6  # of the velocity in the odometry, which is not computed


class Sequence(Protocol):
    """The parts of a sequence that are exported: a `SyntheticSequence`, or images with composited movers."""

    @property
    def name(self) -> str:
        """Name of its folder."""

    @property
    def length(self) -> int:
        """Number of frames."""

    @property
    def intrinsics(self) -> np.ndarray:
        """(3, 3) pixels, pixel centres integer."""

    def frames(self) -> Iterator[Frame]:
        """All frames in order."""


def check_target(folder: Path, overwrite: bool = False) -> None:
    """Raise InputError if a sequence may not be written to `folder`.

    That is the case if it exists and `overwrite` is off, if it is not a folder, or if it contains a file that no
    earlier export wrote.
    """
    check_subfolder(folder)
    _check_is_ours(folder)
    if folder.exists() and not overwrite:
        raise InputError(f"{folder}: exists already; name another folder, or allow it with --overwrite")


def export_sequence(
    sequence: Sequence,
    out: Path,
    format: str = "both",
    *,
    max_frames: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write `sequence` to the folder `out`/`sequence.name`, which is returned.

    `format`: "tum", "bag" or "both". `max_frames`: only the first frames. The folder gets its name when complete;
    an interrupted export leaves nothing behind. Frames are written one by one. `progress`: a bar on a terminal.

    Raises OptionError for an unknown format or `max_frames` below 1, and InputError if the folder cannot be used (see
    `check_target`) or written to.
    """
    if format not in FORMATS:
        raise OptionError(f"format is {format!r}; allowed values: {', '.join(FORMATS)}")
    if max_frames is not None and max_frames < 1:
        raise OptionError(f"frames is {max_frames}; allowed: 1 and more")
    folder = out / sequence.name
    check_target(folder, overwrite)
    count = sequence.length if max_frames is None else min(max_frames, sequence.length)
    try:
        with _whole_folder(folder) as partial, ExitStack() as stack:
            writers = []
            if format in ("tum", "both"):
                writers.append(stack.enter_context(_tum_writer(partial, sequence)))
            if format in ("bag", "both"):
                for name in ("metadata.yaml", f"{BAG}.mcap"):
                    claim(partial, f"{BAG}/{name}")
                writers.append(stack.enter_context(_bag_writer(partial / BAG)))
            frames = islice(sequence.frames(), count)
            bar = tqdm(
                frames, sequence.name, count, unit=" frames", disable=None if progress else True, dynamic_ncols=True
            )
            for frame in stack.enter_context(bar):
                for write in writers:
                    write(frame)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return folder


def _check_is_ours(folder: Path) -> None:
    if foreign := foreign_files(folder):
        raise InputError(
            f"{folder}: holds {listing(folder, foreign)}, which is not part of a sequence that an earlier "
            "export wrote; move it away first"
        )


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it replaces `folder` at the end, or is removed after an error."""
    partial = partial_path(folder)
    replaced = partial.with_suffix(".replaced")
    with locked_folder(partial):
        for left_over in (partial, replaced):  # by a run that was killed
            _check_is_ours(left_over)
            remove_written(left_over)
        remove_empty(replaced)
        try:
            yield partial
            _check_is_ours(folder)
            with stop_signals_held():
                if folder.exists():
                    folder.rename(replaced)
                partial.rename(folder)
                _remove_replaced(replaced)
        except BaseException:
            with stop_signals_held():
                remove_written(partial)
            raise
        finally:
            remove_empty(partial)


def _remove_replaced(folder: Path) -> None:
    """Remove the earlier sequence. The new one has its name already, so that a failure is only a warning."""
    try:
        remove_written(folder)
        remove_empty(folder)
    except OSError as error:
        log.warning(
            "%s: the earlier sequence, which was replaced, could not be removed completely: %s; remove it yourself",
            folder, error.strerror or error,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- TUM RGB-D


@contextmanager
def _tum_writer(folder: Path, sequence: Sequence) -> Iterator[Callable[[Frame], None]]:
    """Yield a function that writes the images of a frame to `folder`; their lists are written at the end."""
    for name in IMAGE_LISTS:
        (folder / name).mkdir()
    stamps: list[str] = []
    poses: list[str] = []

    def write(frame: Frame) -> None:
        stamp = f"{START + frame.stamp:.6f}"
        images = {
            "rgb": cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR),
            "depth": quantise_depth(frame.depth, DEPTH_UNIT),
            "static_depth": quantise_depth(frame.static_depth, DEPTH_UNIT),
            "mask": mask_image(frame.moving),
        }
        for name, image in images.items():
            write_png(claim(folder, f"{name}/{stamp}.png"), image)
        position, (x, y, z, w) = _position_and_quaternion(frame.pose)
        stamps.append(stamp)
        poses.append(f"{stamp} " + " ".join(f"{value:.9f}" for value in (*position, x, y, z, w)))

    yield write
    for name, title in IMAGE_LISTS.items():
        lines = [f"{stamp} {name}/{stamp}.png" for stamp in stamps]
        _write_list(claim(folder, f"{name}.txt"), title, sequence.name, "timestamp filename", lines)
    columns = "timestamp tx ty tz qx qy qz qw"
    _write_list(claim(folder, TRAJECTORY), "ground truth trajectory", sequence.name, columns, poses)
    fx, fy, cx, cy = (float(sequence.intrinsics[index]) for index in ((0, 0), (1, 1), (0, 2), (1, 2)))
    _write_list(
        claim(folder, CAMERA), "pinhole camera, pixels, pixel centres integer", sequence.name, "fx fy cx cy",
        [f"{fx} {fy} {cx} {cy}"],
    )  # fmt: skip


def _position_and_quaternion(pose: np.ndarray) -> tuple[list[float], list[float]]:
    """Translation x y z and unit quaternion x y z w, w >= 0, of a (4, 4) pose."""
    tx, ty, tz, w, x, y, z = pose_encoding(torch.from_numpy(np.asarray(pose, np.float64))).tolist()
    return [tx, ty, tz], [x, y, z, w]


def _write_list(path: Path, title: str, name: str, columns: str, lines: list[str]) -> None:
    """Write a text file with the three comment lines of TUM's files."""
    path.write_text("\n".join([f"# {title}", f"# file: '{name}'", f"# {columns}", *lines, ""]))


# ------------------------------------------------------------------------------------------------------------- bag


@contextmanager
def _bag_writer(folder: Path) -> Iterator[Callable[[Frame], None]]:
    """Yield a function that writes the messages of a frame to a new bag, the folder `folder`."""
    with new_bag(folder) as writer:
        store = message_store()
        connections = {topic: writer.add_connection(topic, kind, typestore=store) for topic, kind in TOPICS.items()}

        def write(frame: Frame) -> None:
            nanoseconds = round((START + frame.stamp) * 1e9)
            messages = _messages(frame, nanoseconds)
            for topic, kind in TOPICS.items():
                writer.write(connections[topic], nanoseconds, store.serialize_cdr(messages[topic], kind))

        yield write


def _messages(frame: Frame, nanoseconds: int) -> dict[str, Any]:
    """The messages of one frame by topic."""
    in_world = bag_messages.header(nanoseconds, WORLD_FRAME)
    in_camera = bag_messages.header(nanoseconds, CAMERA_FRAME)
    position, quaternion = _position_and_quaternion(frame.pose)
    odometry = bag_messages.odometry_message(
        in_world, CAMERA_FRAME, bag_messages.pose_message(position, quaternion), np.zeros((6, 6)),
        (np.zeros(3), np.zeros(3)), UNKNOWN_VARIANCE * np.eye(6),
    )  # fmt: skip
    height, width = frame.depth.shape
    camera_info = bag_messages.camera_info_message(in_camera, frame.intrinsics, width, height)
    # REP 118: NaN where depth is unknown; infinity, too far to measure, stays.
    depth = np.where(frame.depth > 0, frame.depth, np.nan).astype("<f4")
    return {
        "/tf": bag_messages.messages().TFMessage(
            transforms=[bag_messages.transform_message(in_world, CAMERA_FRAME, position, quaternion)]
        ),
        "/ground_truth/odometry": odometry,
        "/camera/camera_info": camera_info,
        "/camera/image_raw": bag_messages.image_message(in_camera, frame.image),
        "/camera/depth/camera_info": camera_info,
        "/camera/depth/image_rect": bag_messages.image_message(in_camera, depth),
        "/camera/moving_mask": bag_messages.image_message(in_camera, mask_image(frame.moving)),
    }
