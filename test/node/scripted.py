"""A stand-in for the stream of a bench, whose results the test scripts, and helpers for what the node publishes."""

import itertools

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header

from raymap3r_ros.node import conversions
from raymap3r_ros.streaming import METHOD, RULES, StepResult, WorldChange
from raymap3r_ros.streaming.timing import StageTimer

START = 1_700_000_000  # seconds; the stamps of a bench begin here
WIDTH, HEIGHT = 64, 48
FOCAL = 50.0
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RAYS = np.stack([(COLUMNS - 31.5) / FOCAL, (ROWS - 23.5) / FOCAL, np.ones((HEIGHT, WIDTH))], -1)
# x right, y down, z forward in x forward, y left, z up.
ROS_FROM_OPTICAL = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def script(bench, show):
    """Replace a started bench's stream by a stand-in: its image number n shows `show(n)`, fields of StepResult.

    What is not told is a wall at 2 m before a camera at the origin, of which the network is sure. The mask is known
    from the first image on.
    """
    numbers = itertools.count()
    asked = []  # for every image, whether what moves was asked for

    def step(image, stamp, intrinsics=None, *, motion=True):
        index = next(numbers)
        asked.append(motion)
        told = {"pose": np.eye(4), "depth": np.full(image.shape[:2], 2.0), **show(index)}
        depth = told["depth"]
        matrix = np.array([[FOCAL, 0, 31.5], [0, FOCAL, 23.5], [0, 0, 1]])
        values = {
            "pose_raw": told["pose"], "points": RAYS[: len(depth), : len(depth[0])] * depth[..., None],
            "confidence": np.full(depth.shape, 5.0), "staticness": np.ones(depth.shape), "intrinsics": matrix,
            "gate": np.ones(4), "scale": np.array(1.0), **told,
        }  # fmt: skip
        moves = values.pop("dynamic_mask", np.zeros(depth.shape, bool))
        return StepResult(
            **{name: torch.tensor(value, dtype=torch.float32) for name, value in values.items() if name != "rule"},
            dynamic_mask=torch.tensor(moves & motion),
            healthy=torch.tensor(True), intrinsics_known=torch.tensor(True), alignment_error=None,
            rule_index=torch.tensor(list(RULES).index(values.get("rule", "raymap3r"))),
            image=torch.from_numpy(image.copy()), frame=METHOD.warmup_frames + index, segment=0, stamp=stamp,
            motion=motion, reset=index == 0, reset_reason="" if index else "start",
            world_change=WorldChange.NONE if index else WorldChange.NEW,
            timer=StageTimer(torch.device("cpu")),
        )  # fmt: skip

    bench.node.stream.step = step
    return asked


def start(make_bench, show, *topics, **parameters):
    """A bench that takes every image, with a stand-in."""
    bench = make_bench(every_frame=True, **parameters)
    bench.start(*topics)
    script(bench, show)
    return bench


def paint(*patches):
    """An image message of a grey wall with patches of (rows and columns, color)."""
    pixels = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    for where, color in patches:
        pixels[where] = color
    return conversions.image_message(Header(), pixels, "rgb8")


def filled(value, *patches):
    """(h, w) of a value but for patches of (rows and columns, value)."""
    array = np.full((HEIGHT, WIDTH), value)
    for where, other in patches:
        array[where] = other
    return array


def wait_for_stamp(bench, topic, sent):
    """Wait for the message of a topic that is made of this image."""
    bench.wait(
        lambda: bench.messages[topic] and bench.messages[topic][-1].header.stamp == sent.header.stamp,
        f"{topic} of the image at {sent.header.stamp}",
    )
    return bench.messages[topic][-1]


def assert_latched(bench, topic):
    """Who subscribes after the last message gets it too, of DDS and not because it is published again."""
    count = len(bench.messages[topic])
    bench.listen(topic)
    assert bench.wait_for(topic, count + 1) == bench.messages[topic][count - 1]


def turned(axis, angle, translation=(0, 0, 0)):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(np.multiply(axis, angle)).as_matrix()
    pose[:3, 3] = translation
    return pose


MOVER, UNSURE, BOX = np.s_[10:20, 20:30], np.s_[30:40, 5:15], np.s_[25:40, 35:50]
LOOKS_RIGHT = np.array([[0, 0, 1, 0.3], [0, 1, 0, 0.2], [-1, 0, 0, 0.1], [0, 0, 0, 1.0]])  # along x of the stream
