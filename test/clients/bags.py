"""Bags for the tests of the clients: messages by seconds after START, written by rosbags."""

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

store = get_typestore(Stores.ROS2_HUMBLE)
START = 1_700_000_000  # seconds; the first stamp of a written bag


def picture(index, width=64, height=48):
    rows, columns = np.mgrid[:height, :width]
    red = (rows * 5 + index * 7 + 60 * (rows // 2 % 2)) % 256
    return np.stack([red, (columns * 3 + index * 11) % 256, red // 2], -1).astype(np.uint8)


def make(kind, **values):
    return store.types[kind](**values)


def header(time, frame_id="camera"):
    nanoseconds = round((START + time) * 1e9) if time is not None else 0
    stamp = make("builtin_interfaces/msg/Time", sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)
    return make("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def raw(time, image, encoding="rgb8"):
    height, width = image.shape[:2]
    return make(
        "sensor_msgs/msg/Image", header=header(time), height=height, width=width, encoding=encoding, is_bigendian=0,
        step=image.size // height, data=image.reshape(-1),
    )  # fmt: skip


def compressed(time, image):
    data = cv2.imencode(".png", image[..., ::-1])[1].reshape(-1)
    return make("sensor_msgs/msg/CompressedImage", header=header(time), format="png", data=data)


def transform(time, parent, child, place=(0.0, 0.0, 0.0)):
    x, y, z = place
    return make(
        "geometry_msgs/msg/TransformStamped", header=header(time, parent), child_frame_id=child,
        transform=make(
            "geometry_msgs/msg/Transform", translation=make("geometry_msgs/msg/Vector3", x=x, y=y, z=z),
            rotation=make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0),
        ),
    )  # fmt: skip


def reading(time, distance=2.0):
    return make(
        "sensor_msgs/msg/Range", header=header(time, "ranger"), radiation_type=1, field_of_view=0.125, min_range=0.25,
        max_range=8.0, range=distance,
    )  # fmt: skip


def wheels(time, x=0.0):
    place = make("geometry_msgs/msg/Point", x=x, y=0.0, z=0.0)
    level = make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0)
    still = make("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0)
    pose = make("geometry_msgs/msg/Pose", position=place, orientation=level)
    twist = make("geometry_msgs/msg/Twist", linear=still, angular=still)
    return make(
        "nav_msgs/msg/Odometry", header=header(time, "odom"), child_frame_id="base",
        pose=make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=np.zeros(36)),
        twist=make("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=np.zeros(36)),
    )  # fmt: skip


def transforms(*some):
    return make("tf2_msgs/msg/TFMessage", transforms=list(some))


def write_bag(folder, messages, plugin=StoragePlugin.SQLITE3):
    """A bag of (seconds, topic, message)."""
    with Writer(folder, version=9, storage_plugin=plugin) as writer:
        connections = {}
        for time, topic, message in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            data = store.serialize_cdr(message, kind)
            writer.write(connections[topic], round((START + time) * 1e9), data)
    return folder


def images_bag(folder, count=3, make_image=raw, topic="/eye/image_raw"):
    return write_bag(folder, [(i / 10, topic, make_image(i / 10, picture(i))) for i in range(count)])


def sensors_bag(folder, *sensors, first=()):
    """The messages `first`, then three images, each after a message of every sensor (topic, function of the index)."""
    messages = list(first)
    for i in range(3):
        messages += [(i / 10, topic, make_message(i)) for topic, make_message in sensors]
        messages.append((i / 10, "/image", raw(i / 10, picture(i))))
    return write_bag(folder, messages)


def stamps_of(times):
    """Nanoseconds of seconds after START."""
    return [round((START + time) * 1e9) for time in times]
