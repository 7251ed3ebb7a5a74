"""`raymap3r demo`: a clip played into the node over DDS as a camera would, and what comes out, checked.

Three processes, as on a robot: the camera (this one), the node, and a recorder that subscribes to every output.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import rclpy
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from raymap3r_ros.clients.processes import (
    STOP_LIMIT,
    answer,
    camera_node,
    check_running,
    listening,
    running_node,
    stop,
)
from raymap3r_ros.clients.recorder import Recorded, record
from raymap3r_ros.errors import InputError
from raymap3r_ros.io import open_recording, preview
from raymap3r_ros.io.png import write_image
from raymap3r_ros.io.video_file import VideoFile
from raymap3r_ros.node.conversions import image_message
from raymap3r_ros.node.dds_profile import profile_environment
from raymap3r_ros.rates import significant
from raymap3r_ros.synthetic import suite_sequence

NAMESPACE = "/raymap3r_demo"
CAMERA_FRAME = "raymap3r_demo_camera"
SHEET_ROWS = 4
ROOM_SEQUENCE = "heavy", 0  # suite and index


@dataclass(frozen=True)
class Played:
    """What the camera has sent."""

    stamps: list[int] = field(default_factory=list)  # nanoseconds
    seconds: float = 0.0
    size: tuple[int, int] = (0, 0)  # width, height


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 where every check holds. Raises InputError on an unusable clip or argument."""
    if not 0.1 <= args.rate <= 1000:
        raise InputError(f"--rate is {args.rate}; allowed: 0.1 to 1000 frames per second")
    if args.frames < 1:
        raise InputError(f"--frames is {args.frames}; allowed: 1 and more")
    frames = _clip(args.input, args.frames)
    args.out.mkdir(parents=True, exist_ok=True)

    # Before the first participant of this process: it is the publisher of a large message that needs the profile.
    os.environ.update(profile_environment(os.environ))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the other processes would live on
    parameters = {
        "checkpoint": args.checkpoint,
        "device": args.device,
        "every_frame": args.every_frame,
        "child_frame": CAMERA_FRAME,
    }
    with running_node(NAMESPACE, parameters) as node:
        with listening(record, f"{NAMESPACE}/raymap3r", f"{NAMESPACE}/image", CAMERA_FRAME) as pipe:
            played = _play(frames, args, node, pipe)
            pipe.send(played.stamps[-1])
            recorded = answer(pipe, node, "the recorder", "the recorder")
        status = stop(node)
    failures = _report(args, played, recorded, status)
    _write_preview(recorded, args)
    return 1 if failures else 0


# ---------------------------------------------------------------------------------------------------------- the clip


def _clip(path: Path | None, count: int) -> Iterator[np.ndarray]:
    """(h, w, 3) uint8 RGB images. Raises InputError."""
    if path is None:
        return iter(rendered_room(count))
    return (frame.image for frame in open_recording(path, max_frames=count))


def rendered_room(count: int, size: tuple[int, int] = (120, 160)) -> list[np.ndarray]:
    """Images of the room that the shipped weights know, with things that move; they were never trained on."""
    sequence = suite_sequence(*ROOM_SEQUENCE, world="one_room", size=size)
    return [frame.image for frame in dataclasses.replace(sequence, length=count).frames()]


# -------------------------------------------------------------------------------------------------------- the camera


def _play(frames: Iterator[np.ndarray], args: argparse.Namespace, node: subprocess.Popen, pipe: Connection) -> Played:
    """Send the clip as a camera would, once everybody listens."""
    with camera_node(NAMESPACE) as camera:
        reliability = ReliabilityPolicy.RELIABLE if args.every_frame else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=100 if args.every_frame else 1, reliability=reliability
        )
        publisher = camera.create_publisher(Image, "image", qos)
        print("waiting for the node ...", flush=True)
        answer(pipe, node, "the node", "the recorder")
        while not publisher.get_subscription_count():
            check_running(node)
            time.sleep(0.02)
        print(f"playing at {args.rate:g} Hz ...", flush=True)
        stamps: list[int] = []
        start = due = time.monotonic()
        for image in frames:
            time.sleep(max(0.0, due - time.monotonic()))
            due += 1 / args.rate
            now = camera.get_clock().now()
            header = Header(stamp=now.to_msg(), frame_id=CAMERA_FRAME)
            publisher.publish(image_message(header, image, "rgb8"))
            stamps.append(now.nanoseconds)
            size = image.shape[1], image.shape[0]
        # A writer takes what it has not handed over yet with it.
        publisher.wait_for_all_acked(rclpy.duration.Duration(seconds=STOP_LIMIT))
        return Played(stamps, time.monotonic() - start, size)


# -------------------------------------------------------------------------------------------------------- the results


def _report(args: argparse.Namespace, played: Played, recorded: Recorded, status: int) -> list[str]:
    """Print the table; gives the names of the checks that failed."""
    told = recorded.told
    sent = len(played.stamps)
    out = len(recorded.stamps["pose"])
    rate = (sent - 1) / (played.stamps[-1] - played.stamps[0]) * 1e9 if sent > 1 else 0.0
    print()
    clip = args.input or "the rendered room"
    print(f"camera     {sent} frames of {played.size[0]}x{played.size[1]} at {significant(rate)} Hz: {clip}")
    print(f"node       {told.get('checkpoint')}, on {told.get('device')}, rule {told.get('update rule')}")
    print(
        f"frames     in {told.get('frames in')}   out {out}   dropped {told.get('frames dropped')} "
        f"(a newer one came first)   lost {told.get('frames lost')}"
    )
    print()
    print(f"{'topic':<18}{'received':>9}{'p50 ms':>9}{'p95 ms':>9}   (from the camera's stamp to the recorder)")
    for topic, latencies in recorded.latencies.items():
        p50, p95 = np.percentile(latencies, (50, 95)) * 1e3 if latencies else (np.nan, np.nan)
        print(f"{topic:<18}{len(latencies):>9}{p50:>9.0f}{p95:>9.0f}")
    print()
    failures = []
    for text, holds in _checks(args, played, recorded, status).items():
        print(f"{'ok  ' if holds else 'FAIL'}  {text}")
        if not holds:
            failures.append(text)
    return failures


def _checks(args: argparse.Namespace, played: Played, recorded: Recorded, status: int) -> dict[str, bool]:
    sent, out = set(played.stamps), recorded.stamps["pose"]
    silent = [topic for topic, stamps in recorded.stamps.items() if not stamps]
    foreign = [topic for topic, stamps in recorded.stamps.items() if not sent.issuperset(stamps)]
    checks = {
        "every output was received" + _except(silent): not silent,
        "every stamp is that of an image" + _except(foreign): not foreign,
        f"TF equals ~/pose ({len(recorded.transforms)} transforms)": bool(out)
        and recorded.transforms.keys() == recorded.poses.keys()
        and all(recorded.transforms[stamp] == pose for stamp, pose in recorded.poses.items()),
        f"every depth is finite ({recorded.not_finite} are not)": recorded.not_finite == 0,
        f"the node ended cleanly (status {status})": status == 0,
    }
    if args.every_frame:
        lost = len(sent) - len(sent.intersection(out))
        checks[f"no frame was lost ({lost} of {len(sent)} are missing)"] = lost == 0 and out == sorted(out)
    return checks


def _except(topics: list[str]) -> str:
    return f", except of {', '.join(topics)}" if topics else ""


def _write_preview(recorded: Recorded, args: argparse.Namespace) -> None:
    """A video of the panels and a picture of some of them."""
    untrained = "untrained" in recorded.told.get("checkpoint", "")
    colors = preview.DepthRange()
    rows = []
    for index, (image, depth, dynamic_map, mask) in enumerate(recorded.pictures):
        rows.append(
            preview.draw_panels(
                image,
                depth,
                dynamic_map,
                mask,
                f"frame {index}, {args.rate:g} Hz over DDS",
                depth_range=colors.update(depth),
                warning=preview.UNTRAINED if untrained else "",
            )
        )
    if not rows:
        print("no preview: no frame came with its image and depth", file=sys.stderr)
        return
    stamps = recorded.stamps["pose"]
    rate = (len(stamps) - 1) / (stamps[-1] - stamps[0]) * 1e9 if len(stamps) > 1 else args.rate
    with VideoFile(args.out, "preview", rate) as video:
        for row in rows:
            video.write(row)
    chosen = np.linspace(0, len(rows) - 1, min(SHEET_ROWS, len(rows))).round().astype(int)
    write_image(args.out / "preview.png", np.concatenate([rows[index] for index in chosen]))
    print(f"\nwrote {video.path} and {args.out / 'preview.png'}")
