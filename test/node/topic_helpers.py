"""Helpers for the tests of inputs and outputs over real DDS."""

import numpy as np
from std_msgs.msg import Header

from raymap3r_ros.node import conversions
from raymap3r_ros.node.publishers import TOPICS
from raymap3r_ros.streaming import METHOD

EVERYTHING = (*TOPICS, "tf")
WIDTH, HEIGHT = 64, 48  # of the images sent, and of the network's input
IMAGES = ("depth", "depth_static", "confidence", "dynamic_mask", "dynamic_map", "rgb")
TRAJECTORIES = ("trajectory", "trajectory_raw")  # not published with every frame
WARMUP = METHOD.warmup_frames  # the first frames of a world have no dynamic mask


def values(message, dtype=np.float32):
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width, -1).squeeze()


def numbers(position, orientation):
    return [position.x, position.y, position.z, orientation.x, orientation.y, orientation.z, orientation.w]


def wait_for_end(bench, sent, topic="trajectory"):
    """Wait for the trajectory that ends at this image; returns the number of its poses."""
    bench.wait(
        lambda: bench.messages[topic] and bench.messages[topic][-1].header.stamp == sent.header.stamp,
        f"{topic} up to {sent.header.stamp}",
    )
    return len(bench.messages[topic][-1].poses)


def image(**changes):
    pixels = np.full((48, 64, 3), 90, np.uint8)
    pixels[:24] = 130
    message = conversions.image_message(Header(), pixels, "rgb8")
    for name, value in changes.items():
        setattr(message, name, value)
    return message
