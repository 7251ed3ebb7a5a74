"""Large images there and back between two processes, over DDS as the node receives them.

    python -m raymap3r_ros.clients.round_trip echo NAMESPACE
    python -m raymap3r_ros.clients.round_trip measure NAMESPACE

The first process publishes each image that it receives again, until it is ended. The second one publishes images,
waits for each to come back, and prints the result as one line of JSON.
"""

from __future__ import annotations

import array
import importlib.metadata
import json
import sys
import time

import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import Image

IMAGES = 20
SIZE = (1080, 1920)
CONNECTION_LIMIT = 15.0  # seconds until the first, tiny image is back
PATIENCE = 1.0  # seconds after which an image is lost
ENOUGH = 5  # images, of which none came back, end the measurement
QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)  # as camera drivers publish


def echo(node: Node) -> None:
    """Publish each image again until the process is ended."""
    publisher = node.create_publisher(Image, "back", QOS)
    node.create_subscription(Image, "there", publisher.publish, QOS)
    rclpy.spin(node)


def measure(node: Node) -> dict:
    """Send images one after another: numbers of those sent and received, and the milliseconds of each way and back."""
    back: list[str] = []
    publisher = node.create_publisher(Image, "there", QOS)
    node.create_subscription(Image, "back", lambda image: back.append(image.header.frame_id), QOS)

    def returned(name: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while name not in back and (left := deadline - time.monotonic()) > 0:
            rclpy.spin_once(node, timeout_sec=left)
        return name in back

    report = {
        "rmw": get_rmw_implementation_identifier(),
        "rclpy": importlib.metadata.version("rclpy"),
        "bytes": SIZE[0] * SIZE[1] * 3,
        "sent": 0,
        "milliseconds": [],
    }
    deadline = time.monotonic() + CONNECTION_LIMIT
    hello = _image("hello", 1, 1)
    publisher.publish(hello)
    while not returned("hello", 0.1):
        if time.monotonic() > deadline:
            return report
        publisher.publish(hello)
    image = _image("", *SIZE)
    for index in range(IMAGES):
        image.header.frame_id = str(index)
        began = time.monotonic()
        publisher.publish(image)
        report["sent"] += 1
        if returned(str(index), PATIENCE):
            report["milliseconds"].append((time.monotonic() - began) * 1e3)
        elif report["sent"] >= ENOUGH and not report["milliseconds"]:
            break
    return report


def _image(name: str, height: int, width: int) -> Image:
    data = array.array("B", bytes(height * width * 3))
    image = Image(height=height, width=width, step=3 * width, encoding="rgb8", data=data)
    image.header.frame_id = name
    return image


def main() -> None:
    """Run one of the two processes."""
    role, namespace = sys.argv[1:]
    rclpy.init(args=[])
    node = rclpy.create_node(role, namespace=namespace)
    if role == "echo":
        echo(node)
    else:
        print(json.dumps(measure(node)), flush=True)
    node.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    main()
