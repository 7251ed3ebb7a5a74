"""A scripted stream for a bench, and helpers for the messages that the node publishes."""

import itertools

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header

from raymap3r_ros.node import conversions
from raymap3r_ros.streaming import METHOD, RULES, StepResult, WorldChange
from raymap3r_ros.streaming.timing import StageTimer

START = 1_700_000_000  # seconds; the stamps of a bench start here
WIDTH, HEIGHT = 64, 48
FOCAL = 50.0
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RAYS = np.stack([(COLUMNS - 31.5) / FOCAL, (ROWS - 23.5) / FOCAL, np.ones((HEIGHT, WIDTH))], -1)
# x right, y down, z forward in x forward, y left, z up.
ROS_FROM_OPTICAL = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def script(bench, show):
    """Replace the stream of a started bench: its result for image number n has the fields `show(n)` of StepResult.

    The default is a wall at 2 m in front of a camera at the origin, with high confidence. The dynamic mask is known
    from the first image on. Returns a list with one entry for each image: whether motion was requested.
    """
    numbers = itertools.count()
    requested = []  # for each image, whether motion was requested

    def step(image, stamp, intrinsics=None, *, pose=None, motion=True):
        index = next(numbers)
        requested.append(motion)
        fields = {"pose": np.eye(4), "depth": np.full(image.shape[:2], 2.0), **show(index)}
        depth = fields["depth"]
        matrix = np.array([[FOCAL, 0, 31.5], [0, FOCAL, 23.5], [0, 0, 1]])
        values = {
            "pose_raw": fields["pose"], "points": RAYS[: len(depth), : len(depth[0])] * depth[..., None],
            "confidence": np.full(depth.shape, 5.0), "staticness": np.ones(depth.shape), "intrinsics": matrix,
            "gate": np.ones(4), "scale": np.array(1.0), **fields,
        }  # fmt: skip
        dynamic = values.pop("dynamic_mask", np.zeros(depth.shape, bool))
        return StepResult(
            **{name: torch.tensor(value, dtype=torch.float32) for name, value in values.items() if name != "rule"},
            dynamic_mask=torch.tensor(dynamic & motion),
            healthy=torch.tensor(True), intrinsics_known=torch.tensor(True),
            image_tokens=torch.zeros(1, 1), static_weight=None,
            plausibility=None, rule_index=torch.tensor(list(RULES).index(values.get("rule", "raymap3r"))),
            image=torch.from_numpy(image.copy()), frame=METHOD.warmup_frames + index, segment=0, stamp=stamp,
            motion=motion, reset=index == 0, reset_reason="" if index else "start",
            world_change=WorldChange.NONE if index else WorldChange.NEW,
            timer=StageTimer(torch.device("cpu")),
        )  # fmt: skip

    bench.node.stream.step = step
    return requested


def start(make_bench, show, *topics, **parameters):
    """A started bench that processes every image, with a scripted stream."""
    bench = make_bench(every_frame=True, **parameters)
    bench.start(*topics)
    script(bench, show)
    return bench


WALL = 116, 124  # of its rows, in turn: an image without texture would count as blank


def paint(*patches):
    """An image message of a wall, grey within WALL, with patches of (rows and columns, color)."""
    pixels = np.full((HEIGHT, WIDTH, 3), WALL[0], np.uint8)
    pixels[::2] = WALL[1]
    for where, color in patches:
        pixels[where] = color
    return conversions.image_message(Header(), pixels, "rgb8")


def filled(value, *patches):
    """(h, w) array of one value, with patches of (rows and columns, value)."""
    array = np.full((HEIGHT, WIDTH), value)
    for where, other in patches:
        array[where] = other
    return array


def wait_for_stamp(bench, topic, sent):
    """Wait for the message of a topic that has the stamp of this image."""
    bench.wait(
        lambda: bench.messages[topic] and bench.messages[topic][-1].header.stamp == sent.header.stamp,
        f"{topic} of the image at {sent.header.stamp}",
    )
    return bench.messages[topic][-1]


def assert_latched(bench, topic):
    """A late subscriber receives the last message from DDS; the node does not publish it again."""
    count = len(bench.messages[topic])
    bench.subscribe(topic)
    assert bench.wait_for(topic, count + 1) == bench.messages[topic][count - 1]


def make_pose(axis, angle, translation=(0, 0, 0)):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(np.multiply(axis, angle)).as_matrix()
    pose[:3, 3] = translation
    return pose


MOVER, UNSURE, BOX = np.s_[10:20, 20:30], np.s_[30:40, 5:15], np.s_[25:40, 35:50]
FACING_RIGHT = np.array([[0, 0, 1, 0.3], [0, 1, 0, 0.2], [-1, 0, 0, 0.1], [0, 0, 0, 1.0]])  # along x of the world
