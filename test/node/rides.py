"""A bench whose camera is where the test says, and the other publishers of transforms."""

from collections import Counter

import numpy as np
import tf2_ros
from geometry_msgs.msg import TransformStamped
from rclpy.time import Time
from scipy.spatial.transform import Rotation

OPTICAL = Rotation.from_quat([-0.5, 0.5, -0.5, 0.5])  # x right, y down, z forward, in x forward, y left, z up
UNKNOWN = 1e6  # variance of a twist that was not measured
SIZE = (8, 6)  # of the images
FOCAL = 8.0
WALL = np.stack([*np.meshgrid((np.arange(8) - 4) / FOCAL, (np.arange(6) - 3) / FOCAL), np.ones((6, 8))], -1) * 2.0


def matrix(translation=(0, 0, 0), rotation=None):
    result = np.eye(4)
    result[:3, 3] = translation
    if rotation is not None:
        result[:3, :3] = rotation.as_matrix()
    return result


# A camera half a metre above the base, looking 20 degrees down.
MOUNT = matrix((0.2, 0.05, 0.5), Rotation.from_euler("y", 20, degrees=True) * OPTICAL)
STEP = matrix((0.05, 0.01, 0), Rotation.from_euler("xyz", [0.002, -0.003, 0.03]))  # of the base between two images
JUMP = matrix((0.7, -0.4, 0.3), Rotation.from_euler("xyz", [0.3, -0.2, 0.5]))


def drive(count, start=3):
    """Poses (4, 4) of a base that goes on at one speed."""
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


MEETING = ("others", "meeting")


class Others:
    """What publishes the transforms that are not the node's."""

    def __init__(self, bench):
        self._bench = bench
        self._moving = tf2_ros.TransformBroadcaster(bench.probe)
        self._fixed = tf2_ros.StaticTransformBroadcaster(bench.probe)
        self.sent = Counter()  # by parent and child

    def fix(self, parent, child, pose):
        """On /tf_static; comes back when the node knows it."""
        self._fixed.sendTransform(transform(self._bench, parent, child, pose))
        self._bench.wait_for_transform(parent, child)

    def move(self, parent, child, poses):
        """On /tf, {time: pose}; comes back when the node knows the last. `listen` to it before."""
        if not self.sent:
            self._meet()
        for time, pose in poses.items():
            self._moving.sendTransform(transform(self._bench, parent, child, pose, time))
            self.sent[parent, child] += 1
        self._bench.wait_for_transform(parent, child, max(poses))

    def _meet(self):
        """Say something on /tf until node and probe hear it, so that nothing that counts is lost."""
        buffer, heard = self._bench.node.tf_buffer, self._bench.messages["tf"]

        def met():
            self._moving.sendTransform(transform(self._bench, *MEETING, np.eye(4)))
            return buffer.can_transform(*MEETING, Time()) and any(MEETING in edges(message) for message in list(heard))

        self._bench.wait(met, "the others' match of /tf")


def edges(message):
    """{(parent, child): transform} of a TFMessage."""
    return {(one.header.frame_id, one.child_frame_id): one for one in message.transforms}


class Ride:
    """A bench whose camera is where the test says."""

    def __init__(self, bench, stream):
        self.bench, self._stream = bench, stream
        self.times = []

    def go(self, time, camera, **told):
        """One image at `time`, taken by a camera at (4, 4) `camera`; comes back when its depth is there."""
        self._stream.tell(camera, WALL, FOCAL, **told)
        self.times.append(time)
        self.bench.send(time=time, size=SIZE)
        self.done("depth")

    def done(self, *topics):
        """Wait until these have a message of every image."""
        for topic in topics:
            self.bench.wait_for(topic, len(self.times))

    def poses(self):
        return [matrix_of(one.pose.position, one.pose.orientation) for one in self.bench.messages["pose"]]

    def odometry(self):
        return [
            matrix_of(one.pose.pose.position, one.pose.pose.orientation) for one in self.bench.messages["odometry"]
        ]

    def sent(self):
        """How often each (parent, child) was on /tf, from whomever."""
        found = [one for message in list(self.bench.messages["tf"]) for one in message.transforms]
        counts = Counter((one.header.frame_id, one.child_frame_id) for one in found)
        del counts[MEETING]
        return counts

    def transforms(self, count, *wanted):
        """[(stamp, {(parent, child): matrix})] of the messages on /tf that are of these; there must be `count`."""

        def look():
            return [
                found for message in list(self.bench.messages["tf"]) if set(found := edges(message)) == set(wanted)
            ]

        self.bench.wait(lambda: len(look()) >= count, f"{count} of {wanted}")
        result = []
        for found in look():
            (stamp,) = {(one.header.stamp.sec, one.header.stamp.nanosec) for one in found.values()}
            poses = {edge: matrix_of(one.transform.translation, one.transform.rotation) for edge, one in found.items()}
            result.append((stamp, poses))
        assert len(result) == count
        return result

    def stamps(self, times):
        return [(one.sec, one.nanosec) for one in map(self.bench.stamp, times)]


def close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual, expected, atol=atol)


ODOM = (("map", "odom"), ("odom", "base_link"))


def start_ride(make_bench, stand_in, *topics, **parameters):
    """A ride on a started bench with a stand-in and these parameters, subscribed to these topics and to depth."""
    bench = make_bench(every_frame=True, **parameters)
    bench.start("depth", *topics)
    return Ride(bench, stand_in(bench))
