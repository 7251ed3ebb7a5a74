"""Several cameras in one process: one node for each camera, one shared network."""

import os
import signal
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.qos import QoSProfile
from scripted import wait_for_stamp
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from raymap3r_ros.errors import OptionError
from raymap3r_ros.geometry.poses import world_pose
from raymap3r_ros.network import load_network
from raymap3r_ros.node.camera_names import camera_names
from raymap3r_ros.node.conversions import image_message, pose_matrix
from raymap3r_ros.node.network_pool import NetworkPool
from raymap3r_ros.node.publishers import RELIABLE
from raymap3r_ros.streaming import Stream

LIMIT = 60.0  # seconds
FRAMES = 30  # enough that frames of several cameras are batched


def picture(camera, index):
    rows, columns = np.mgrid[:48, :64]
    red, green = (
        (rows * 5 + index * 7 + camera * 60 + 60 * (rows // 2 % 2)) % 256,
        (columns * 3 + index * 11 + camera * 90) % 256,
    )
    return np.stack([red, green, (red + green) // 2], -1).astype(np.uint8)


def test_network_is_loaded_once_and_freed_with_its_last_user():
    pool = NetworkPool(2)
    first, second = pool.get("mini", "cpu", "float32"), pool.get("mini", "cpu", "float32")
    assert first is second and first.network is second.network
    assert pool.get("one_room", "cpu", "float32") is not first
    gone = weakref.ref(first)
    del first, second
    assert gone() is None


def test_cameras_publish_the_poses_of_single_nodes():
    command = [
        sys.executable, "-m", "raymap3r_ros.node", "--autostart", "--cameras", "front,rear/left", "--ros-args",
        "-p", "every_frame:=true",
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    log = []
    reader = threading.Thread(target=lambda: log.extend(process.stdout))
    reader.start()
    context = rclpy.Context()
    rclpy.init(context=context)
    probe = rclpy.create_node("probe", context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(probe)
    names, poses, transforms = ("front", "rear/left"), {}, set()
    publishers = []
    try:
        for name in names:
            poses[name] = []
            probe.create_subscription(PoseStamped, f"/{name}/raymap3r/pose", poses[name].append, RELIABLE)
            publishers.append(probe.create_publisher(Image, f"/{name}/image", QoSProfile(depth=100)))
        probe.create_subscription(
            TFMessage,
            "/tf",
            lambda message: transforms.update((t.header.frame_id, t.child_frame_id) for t in message.transforms),
            QoSProfile(depth=100),
        )

        def spin_until(condition, what):
            end = probe.get_clock().now().nanoseconds + LIMIT * 1e9
            while not condition():
                assert probe.get_clock().now().nanoseconds < end and process.poll() is None, f"{what}: {''.join(log)}"
                executor.spin_once(timeout_sec=0.1)

        spin_until(
            lambda: (
                all(one.get_subscription_count() for one in publishers)
                and all(probe.count_publishers(f"/{name}/raymap3r/pose") for name in names)
            ),
            "match",
        )
        for index in range(FRAMES):
            for camera, publisher in enumerate(publishers):
                header = Header(
                    stamp=rclpy.time.Time(nanoseconds=(100 + index) * 10**8).to_msg(), frame_id=names[camera]
                )
                publisher.publish(image_message(header, picture(camera, index), "rgb8"))
        spin_until(lambda: all(len(poses[name]) == FRAMES for name in names), "poses")
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait(LIMIT)
        reader.join()
        executor.shutdown()
        probe.destroy_node()
        rclpy.shutdown(context=context)
    assert status == 0, "".join(log)
    assert sum("loading one_room" in line for line in log) == 2
    assert transforms == {("front/map", "front"), ("rear/left/map", "rear/left")}
    network = load_network("one_room")
    for camera, name in enumerate(names):
        assert {message.header.frame_id for message in poses[name]} == {f"{name}/map"}
        stream = Stream(network)
        for index, message in enumerate(poses[name]):
            alone = stream.step(picture(camera, index), motion=False)
            expected = world_pose(alone.pose.numpy())
            # Batches round differently, and the recurrent state accumulates the difference.
            np.testing.assert_allclose(pose_matrix(message.pose), expected, atol=2e-3, err_msg=f"{name} {index}")


def test_only_one_camera_of_a_process_publishes_the_parent_of_a_frame(make_bench):
    pool = NetworkPool(2)
    front, rear = (make_bench(pool=pool, tf_mode="base") for _ in range(2))
    assert front.change_state("configure")
    assert not rear.change_state("configure")
    text = f"publish_tf is true, but {front.name} publishes the parent of base_link already"
    rear.wait(lambda: any(text in line for _, line in rear.logs), "the reason")
    assert rear.set_parameter("base_frame", "trailer").successful
    assert rear.change_state("configure") and rear.change_state("cleanup")
    assert rear.set_parameter("base_frame", "base_link").successful
    assert rear.set_parameter("publish_tf", False).successful
    assert rear.change_state("configure") and rear.change_state("cleanup")
    assert rear.set_parameter("publish_tf", True).successful
    assert front.change_state("cleanup")
    assert rear.change_state("configure"), "a frame without a publisher can be claimed"


def test_of_two_cameras_with_one_frame_id_only_the_first_is_in_tf(make_bench):
    """As with two drivers that were left at their default."""
    pool = NetworkPool(2)
    front, rear = (make_bench(pool=pool, world_frame=f"{name}/map", every_frame=True) for name in ("front", "rear"))
    for bench in (front, rear):
        bench.start("pose", "tf")

    def show(bench, index):
        wait_for_stamp(bench, "pose", bench.send(index, index / 10, frame_id="default_cam"))

    def transforms():
        messages = [*front.messages["tf"], *rear.messages["tf"]]
        return {(one.header.frame_id, one.child_frame_id) for message in messages for one in message.transforms}

    show(front, 0)
    show(rear, 0)
    text = f"{front.name} publishes the parent of default_cam already"

    def reported():
        return bool(rear.statuses) and text in rear.statuses[-1][1]

    rear.wait_for_log(text)
    show(rear, 1)
    rear.wait(reported, "the reason in the diagnostics")
    show(front, 1)
    front.wait(lambda: transforms() >= {("front/map", "default_cam")}, "the first camera")
    assert transforms() == {("front/map", "default_cam")}
    assert front.change_state("deactivate") and front.change_state("cleanup")
    show(rear, 2)
    rear.wait(lambda: ("rear/map", "default_cam") in transforms(), "the second camera, now alone")
    rear.wait(lambda: not reported(), "diagnostics without the reason")
    assert rear.count_logs(text) == 1


@pytest.mark.parametrize("names", ["front,front", "1st,rear", "front,", "a b", "front/", "vorn,rück", "re-ar"])
def test_bad_names_are_refused(names):
    with pytest.raises(OptionError, match="allowed: different names of ASCII letters, digits and _, no digit first"):
        camera_names(names)


def test_namespaces_are_allowed_as_the_refusal_states():
    with pytest.raises(OptionError) as caught:
        camera_names("front,")
    for example in str(caught.value).rpartition("(")[2].strip(")").split(" or "):
        assert camera_names(example) == example.split(",")
