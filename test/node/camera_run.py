"""A bench with scripted camera poses, and publishers of the transforms that other nodes provide."""

from collections import Counter

import numpy as np
import tf2_ros
from geometry_msgs.msg import TransformStamped
from rclpy.time import Time
from scipy.spatial.transform import Rotation

OPTICAL = Rotation.from_quat([-0.5, 0.5, -0.5, 0.5])  # x right, y down, z forward, in x forward, y left, z up
UNKNOWN_VARIANCE = 1e6  # of a twist that was not measured
SIZE = (8, 6)  # of the images
FOCAL = 8.0
WALL = np.stack([*np.meshgrid((np.arange(8) - 4) / FOCAL, (np.arange(6) - 3) / FOCAL), np.ones((6, 8))], -1) * 2.0


def matrix(translation=(0, 0, 0), rotation=None):
    result = np.eye(4)
    result[:3, 3] = translation
    if rotation is not None:
        result[:3, :3] = rotation.as_matrix()
    return result


# A camera half a metre above the base, pitched 20 degrees down.
MOUNT = matrix((0.2, 0.05, 0.5), Rotation.from_euler("y", 20, degrees=True) * OPTICAL)
STEP = matrix((0.05, 0.01, 0), Rotation.from_euler("xyz", [0.002, -0.003, 0.03]))  # base motion between images
JUMP = matrix((0.7, -0.4, 0.3), Rotation.from_euler("xyz", [0.3, -0.2, 0.5]))


def base_poses(count, start=3):
    """Poses (4, 4) of a base that moves at constant speed."""
    return [np.linalg.matrix_power(STEP, start + index) for index in range(count)]


def scaled(pose, factor):
    result = pose.copy()
    result[:3, 3] *= factor
    return result


def transform(bench, parent, child, pose, time=0.0):
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id, message.header.stamp = parent, bench.stamp(time)
    t, r = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = (float(value) for value in pose[:3, 3])
    r.x, r.y, r.z, r.w = (float(value) for value in Rotation.from_matrix(pose[:3, :3]).as_quat())
    return message


def matrix_of(position, orientation):
    q = orientation
    return matrix((position.x, position.y, position.z), Rotation.from_quat([q.x, q.y, q.z, q.w]))


MATCH_EDGE = ("match", "test")


class OtherPublishers:
    """Publishes the transforms that other nodes provide."""

    def __init__(self, bench):
        self._bench = bench
        self._moving = tf2_ros.TransformBroadcaster(bench.probe)
        self._fixed = []
        self.sent = Counter()  # by parent and child

    def publish_static(self, parent, child, pose):
        """Publish on /tf_static; returns when the node has received it."""
        self._fixed.append(tf2_ros.StaticTransformBroadcaster(self._bench.probe))  # one never replaces a transform
        self._fixed[-1].sendTransform(transform(self._bench, parent, child, pose))
        self._bench.wait_for_transform(parent, child)

    def publish_moving(self, parent, child, poses):
        """Publish {time: pose} on /tf, to which the bench must subscribe; returns when the node has the last pose."""
        if not self.sent:
            self._wait_for_match()
        for time, pose in poses.items():
            self._moving.sendTransform(transform(self._bench, parent, child, pose, time))
            self.sent[parent, child] += 1
        self._bench.wait_for_transform(parent, child, max(poses))

    def _wait_for_match(self):
        """Publish on /tf until node and probe receive it, so that no later transform is lost."""
        buffer, received = self._bench.node.tf_buffer, self._bench.messages["tf"]

        def matched():
            self._moving.sendTransform(transform(self._bench, *MATCH_EDGE, np.eye(4)))
            return buffer.can_transform(*MATCH_EDGE, Time()) and any(
                MATCH_EDGE in edges(message) for message in list(received)
            )

        self._bench.wait(matched, "match of /tf")


def edges(message):
    """{(parent, child): transform} of a TFMessage."""
    return {(one.header.frame_id, one.child_frame_id): one for one in message.transforms}


class CameraRun:
    """A started bench, and the images sent to it with scripted camera poses."""

    def __init__(self, bench, stream):
        self.bench, self._stream = bench, stream
        self.times = []

    def send(self, time, camera, **result):
        """Send one image, taken at `time` with the camera pose (4, 4) `camera`; returns when its depth has arrived."""
        self._stream.enqueue(camera, WALL, FOCAL, **result)
        self.times.append(time)
        self.bench.send(time=time, size=SIZE)
        self.wait_for_all("depth")

    def wait_for_all(self, *topics):
        """Wait until these topics have a message for every image."""
        for topic in topics:
            self.bench.wait_for(topic, len(self.times))

    def poses(self):
        return [matrix_of(one.pose.position, one.pose.orientation) for one in self.bench.messages["pose"]]

    def odometry(self):
        return [
            matrix_of(one.pose.pose.position, one.pose.pose.orientation) for one in self.bench.messages["odometry"]
        ]

    def sent(self):
        """Number of transforms on /tf by (parent, child), from all publishers."""
        found = [one for message in list(self.bench.messages["tf"]) for one in message.transforms]
        counts = Counter((one.header.frame_id, one.child_frame_id) for one in found)
        del counts[MATCH_EDGE]
        return counts

    def transforms(self, count, *wanted):
        """[(stamp, {(parent, child): matrix})] of the `count` messages on /tf that have exactly these edges."""

        def find():
            return [
                found for message in list(self.bench.messages["tf"]) if set(found := edges(message)) == set(wanted)
            ]

        self.bench.wait(lambda: len(find()) >= count, f"{count} of {wanted}")
        result = []
        for found in find():
            (stamp,) = {(one.header.stamp.sec, one.header.stamp.nanosec) for one in found.values()}
            poses = {edge: matrix_of(one.transform.translation, one.transform.rotation) for edge, one in found.items()}
            result.append((stamp, poses))
        assert len(result) == count
        return result

    def stamps(self, times):
        return [(one.sec, one.nanosec) for one in map(self.bench.stamp, times)]


def assert_close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual, expected, atol=atol)


ODOM = (("map", "odom"), ("odom", "base_link"))


def start_run(make_bench, fake_stream, *topics, **parameters):
    """A CameraRun on a bench with a FakeStream and these parameters, subscribed to depth and these topics."""
    bench = make_bench(every_frame=True, **parameters)
    bench.start("depth", *topics)
    return CameraRun(bench, fake_stream(bench))
