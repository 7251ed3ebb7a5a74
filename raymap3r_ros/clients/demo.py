"""`raymap3r demo`: play a clip into the node over DDS like a camera, and check every output.

Three processes, as on a robot: the camera (this one), the node, and a recorder that subscribes to every output.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import rclpy
from rclpy.qos import ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from raymap3r_ros.clients.clips import CLIPS, DEFAULT_CLIP, Clip, recorded_clip
from raymap3r_ros.clients.harness import STOP_LIMIT, Harness, paced, queue, running_harness, set_up_dds
from raymap3r_ros.clients.recorder import Recorded, Recorder
from raymap3r_ros.clients.truth_table import score, truth_lines
from raymap3r_ros.errors import InputError, Raymap3rError
from raymap3r_ros.evaluation.sequences import Frame
from raymap3r_ros.io import preview
from raymap3r_ros.io.output_folder import claim, clear_folder, locked_folder
from raymap3r_ros.io.png import write_image
from raymap3r_ros.io.video_file import VideoFile
from raymap3r_ros.node.conversions import camera_info_message, image_message
from raymap3r_ros.node.namesakes import DEMO_NAMESPACE
from raymap3r_ros.rates import significant
from raymap3r_ros.text import counted, printable

CAMERA_FRAME = "raymap3r_demo_camera"
CALIBRATION_TIME = 1.0  # seconds from the calibration to the first image: the node does not acknowledge it
SHEET_ROWS = 4  # of the preview picture
SHEET = "preview.png"
_RESULTS = re.compile(r"preview\.(png|mp4|gif)")


@dataclass(frozen=True)
class SentClip:
    """The images that the camera has sent."""

    stamps: list[int] = field(default_factory=list)  # nanoseconds
    size: tuple[int, int] = (0, 0)  # width, height
    truth: dict[int, Frame] = field(default_factory=dict)  # frames with ground truth, by stamp


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 if every check passes. Raises InputError for an unusable clip or argument."""
    if not 0.1 <= args.rate <= 1000:
        raise InputError(f"--rate is {args.rate}; allowed: 0.1 to 1000 frames per second")
    if args.frames is not None and args.frames < 1:
        raise InputError(f"--frames is {args.frames}; allowed: 1 and more")
    if args.input is None:
        clip = CLIPS[args.clip or DEFAULT_CLIP](args.frames)
    else:
        clip = recorded_clip(args.input, args.frames)
    set_up_dds()
    with locked_folder(args.out):
        clear_folder(args.out, _RESULTS, overwrite=True, inputs=[args.input] if args.input else [])
        return _run(args, clip)


def _run(args: argparse.Namespace, clip: Clip) -> int:
    parameters = {
        "checkpoint": args.checkpoint or clip.checkpoint,
        "device": args.device,
        "every_frame": args.every_frame,
        "execution": "plain",  # recording the kinds of frames would take longer than the clip
        "child_frame": CAMERA_FRAME,
    }
    recorder = partial(
        Recorder,
        node_name=f"{DEMO_NAMESPACE}/raymap3r",
        image_topic=f"{DEMO_NAMESPACE}/image",
        child_frame=CAMERA_FRAME,
        calibration_topic="" if clip.intrinsics is None else f"{DEMO_NAMESPACE}/camera_info",
    )
    with running_harness(DEMO_NAMESPACE, parameters, recorder) as harness:
        sent = _send(clip, args, harness)
        recorded = harness.request(sent.stamps[-1])
        status = harness.stop_node()
    failures = _report(args, "; ".join(filter(None, (clip.about, clip.note))), sent, recorded, status)
    _print_comparison(sent, recorded, clip.trained)
    _write_preview(recorded, args, clip.note)
    return 1 if failures else 0


# -------------------------------------------------------------------------------------------------------- the camera


def _send(clip: Clip, args: argparse.Namespace, harness: Harness) -> SentClip:
    """Send the clip at the rate of the arguments once all processes are connected."""
    camera = harness.camera
    reliability = ReliabilityPolicy.RELIABLE if args.every_frame else ReliabilityPolicy.BEST_EFFORT
    publisher = camera.create_publisher(Image, "image", queue(reliability, 100 if args.every_frame else 1))
    calibration = None
    if clip.intrinsics is not None:
        calibration = camera.create_publisher(CameraInfo, "camera_info", queue(ReliabilityPolicy.RELIABLE, 1))
    print("waiting for the node ...", flush=True)
    harness.wait_until_connected()
    while not all(one.get_subscription_count() for one in (publisher, calibration) if one):
        harness.check_running()
        time.sleep(0.02)
    if calibration:
        height, width = clip.frames[0].image.shape[:2]
        calibration.publish(camera_info_message(_header(camera.get_clock().now()), clip.intrinsics, width, height))
        time.sleep(CALIBRATION_TIME)
    print(f"playing at {args.rate:g} Hz ...", flush=True)
    stamps: list[int] = []
    truth: dict[int, Frame] = {}
    for frame in paced(clip.frames, args.rate):
        now = camera.get_clock().now()
        publisher.publish(image_message(_header(now), frame.image, "rgb8"))
        stamps.append(now.nanoseconds)
        size = frame.image.shape[1], frame.image.shape[0]
        if calibration:
            calibration.publish(camera_info_message(_header(now), clip.intrinsics, *size))
            truth[now.nanoseconds] = frame
    # Images that DDS has not delivered yet are lost with their publisher.
    publisher.wait_for_all_acked(rclpy.duration.Duration(seconds=STOP_LIMIT))
    return SentClip(stamps, size, truth)


def _header(now: Time) -> Header:
    return Header(stamp=now.to_msg(), frame_id=CAMERA_FRAME)


# -------------------------------------------------------------------------------------------------------- the results


def _report(args: argparse.Namespace, about: str, clip: SentClip, recorded: Recorded, status: int) -> list[str]:
    """Print the table of a clip; `about`: its content. Returns the checks that failed."""
    values = recorded.diagnostics
    sent = len(clip.stamps)
    out = len(recorded.stamps["pose"])
    rate = (sent - 1) / (clip.stamps[-1] - clip.stamps[0]) * 1e9 if sent > 1 else 0.0
    print()
    size = f"{clip.size[0]}x{clip.size[1]}"
    print(f"camera     {counted(sent, 'frame')} of {size} at {significant(rate)} Hz: {printable(about)}")
    node = f"{values.get('checkpoint')}, on {values.get('device')}, rule {values.get('update rule')}"
    print(f"node       {printable(node)}")
    print(
        f"frames     in {values.get('frames in')}   out {out}   dropped {values.get('frames dropped')} "
        f"(a newer one came first)   lost {values.get('frames lost')}"
    )
    print()
    print(f"{'topic':<18}{'received':>9}{'p50 ms':>9}{'p95 ms':>9}   (from the camera's stamp to the recorder)")
    for topic, latencies in recorded.latencies.items():
        p50, p95 = np.percentile(latencies, (50, 95)) * 1e3 if latencies else (np.nan, np.nan)
        print(f"{topic:<18}{len(latencies):>9}{p50:>9.0f}{p95:>9.0f}")
    print()
    failures = []
    for text, holds in check_outputs(args.every_frame, clip, recorded, status).items():
        print(f"{'ok  ' if holds else 'FAIL'}  {text}")
        if not holds:
            failures.append(text)
    return failures


def _print_comparison(clip: SentClip, recorded: Recorded, trained: np.ndarray | None) -> None:
    """Print the comparison with the ground truth, if the clip has one."""
    if not clip.truth:
        return
    print("\ncompared with the ground truth:")
    try:
        print(truth_lines(score(clip.truth, recorded, trained)) or "nothing: no pose and no picture was received")
    except Raymap3rError as error:
        print(f"not possible: {printable(error)}")


def check_outputs(every_frame: bool, clip: SentClip, recorded: Recorded, status: int) -> dict[str, bool]:
    """The checks of a demo and whether each passes; `status` is the exit status of the node."""
    sent, out = set(clip.stamps), recorded.stamps["pose"]
    silent = [topic for topic, stamps in recorded.stamps.items() if not stamps]
    foreign = [topic for topic, stamps in recorded.stamps.items() if not sent.issuperset(stamps)]
    checks = {
        "every output was received" + _except(silent): not silent,
        "every stamp is an image's stamp" + _except(foreign): not foreign,
        f"TF equals ~/pose ({len(recorded.transforms)} transforms)": bool(out)
        and recorded.transforms.keys() == recorded.poses.keys()
        and all(recorded.transforms[stamp] == pose for stamp, pose in recorded.poses.items()),
        f"every depth is finite ({recorded.not_finite} are not)": recorded.not_finite == 0,
        f"the node ended cleanly (status {status})": status == 0,
    }
    if every_frame:
        lost = len(sent) - len(sent.intersection(out))
        checks[f"no frame was lost ({lost} of {len(sent)} are missing)"] = lost == 0 and out == sorted(out)
    return checks


def _except(topics: list[str]) -> str:
    return f", except of {', '.join(topics)}" if topics else ""


def _write_preview(recorded: Recorded, args: argparse.Namespace, note: str) -> None:
    """Write a video of the panels and a picture of some of them; `note`: part of the captions."""
    untrained = "untrained" in recorded.diagnostics.get("checkpoint", "")
    colors = preview.DepthRange()
    rows = []
    for index, (image, depth, dynamic_map, mask) in enumerate(recorded.pictures):
        rows.append(
            preview.draw_panels(
                image,
                depth,
                dynamic_map,
                mask,
                ", ".join(filter(None, (f"frame {index}, {args.rate:g} Hz over DDS", note))),
                depth_range=colors.update(depth),
                warning=preview.UNTRAINED if untrained else "",
            )
        )
    if not rows:
        print("no preview: no frame was received with both image and depth", file=sys.stderr)
        return
    stamps = recorded.stamps["pose"]
    rate = (len(stamps) - 1) / (stamps[-1] - stamps[0]) * 1e9 if len(stamps) > 1 else args.rate
    with VideoFile(args.out, "preview", rate) as video:
        for row in rows:
            video.write(row)
    claim(args.out, video.path.name)
    chosen = np.linspace(0, len(rows) - 1, min(SHEET_ROWS, len(rows))).round().astype(int)
    write_image(claim(args.out, SHEET), np.concatenate([rows[index] for index in chosen]))
    print(f"\nwrote {printable(video.path)} and {printable(args.out / SHEET)}")
