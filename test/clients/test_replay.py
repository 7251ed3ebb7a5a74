"""Bags played into the node over real DDS: what is sent, what comes back, and what the report makes of it."""

import itertools
import json
import signal
import threading
from contextlib import closing

import cv2
import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from raymap3r_ros import cli
from raymap3r_ros.clients import player, replay
from raymap3r_ros.clients.ground_truth import Truth
from raymap3r_ros.clients.player import ReplayOptions, open_bag, play
from raymap3r_ros.errors import InputError, OptionError, Raymap3rError
from raymap3r_ros.geometry import poses
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.bag_reader import BagReader
from raymap3r_ros.network import load_network
from raymap3r_ros.node import conversions
from raymap3r_ros.node.frame_queue import FrameQueue
from raymap3r_ros.streaming import Stream
from raymap3r_ros.synthetic import suite_sequence
from raymap3r_ros.synthetic.export import export_sequence

LIMIT = 120.0  # seconds
FAST = ReplayOptions(rate=0.0)
store = get_typestore(Stores.ROS2_HUMBLE)
START = 1_700_000_000  # seconds; the first stamp of a written bag


def picture(index, width=64, height=48):
    rows, columns = np.mgrid[:height, :width]
    red = (rows * 5 + index * 7) % 256
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


@pytest.fixture
def replay_into():
    """Plays a bag into an active bench, from a node of its own in the bench's namespace."""
    cameras = []

    def run(bench, bag, options=FAST, **arguments):
        camera = rclpy.create_node("player", namespace=bench.namespace, context=bench.context)
        cameras.append(camera)
        return play(bag, options, camera, bench.name, **arguments)

    yield run
    for camera in cameras:
        camera.destroy_node()


def active_bench(make_bench, bag, **parameters):
    """A node as a replay starts it."""
    parameters = {"checkpoint": "mini", "image_size": 48, **parameters}
    bench = make_bench(**replay.node_parameters(bag, parameters))
    assert bench.change_state("configure") and bench.change_state("activate")
    return bench


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A short bag of the room that the shipped weights know, with camera_info and ground truth."""
    sequence = suite_sequence("light", 0, world="one_room", size=(48, 64))
    folder = export_sequence(sequence, tmp_path_factory.mktemp("rendered"), "bag", max_frames=12, progress=False)
    return folder / "bag"


# --------------------------------------------------------------------------------------------------- bit for bit


def test_replay_gives_the_offline_trajectory_bit_for_bit(make_bench, replay_into, rendered):
    bag = open_bag(rendered, ReplayOptions(topic="/camera/image_raw"))
    assert bag.camera_info == "/camera/camera_info" and bag.frame == "camera_optical_frame"
    bench = make_bench(**replay.node_parameters(bag, {}))
    assert bench.change_state("configure") and bench.change_state("activate")
    played = replay_into(bench, bag)
    bench.wait_for_told("intrinsics", "camera_info")

    stream = Stream(load_network("one_room"))
    expected = []
    for frame in open_recording(rendered, topic="/camera/image_raw"):
        pose = poses.world_pose(stream.step(frame.image, frame.stamp, frame.intrinsics).numpy("pose")["pose"])
        expected.append((*pose[:3, 3].tolist(), *poses.quaternion(pose[:3, :3])))
    assert len(expected) == 12 and len(set(expected)) == 12
    assert [played.poses[index] for index in range(12)] == expected
    assert played.worlds == {0} and played.counts["frames lost"] == 0


@pytest.mark.parametrize("encoding", conversions.ENCODINGS)
def test_pixels_are_those_of_the_method_without_ros(encoding, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, conversions.ENCODINGS[encoding][0]), np.uint8)
    assert_same_pixels(tmp_path, raw(0.0, image, encoding), Image)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pixels_of_compressed_images_too(suffix, tmp_path):
    data = cv2.imencode(suffix, picture(0))[1].reshape(-1)
    message = make("sensor_msgs/msg/CompressedImage", header=header(0.0), format=suffix[1:], data=data)
    assert_same_pixels(tmp_path, message, CompressedImage)


def assert_same_pixels(folder, message, kind):
    (frame,) = open_recording(write_bag(folder / "bag", [(0.0, "/image", message)]))
    taken = deserialize_message(bytes(store.serialize_cdr(message, message.__msgtype__)), kind)
    np.testing.assert_array_equal(conversions.image_array(taken), frame.image)
    assert frame.image.std() > 10


# ------------------------------------------------------------------------------------------------ what can be played


def test_compressed_images_without_camera_info(make_bench, replay_into, tmp_path):
    bag = open_bag(images_bag(tmp_path / "bag", make_image=compressed, topic="/eye/image_raw/compressed"))
    assert bag.compressed and bag.camera_info is None
    played = replay_into(active_bench(make_bench, bag), bag)
    assert sorted(played.poses) == [0, 1, 2] and played.worlds == {0}


def test_every_image_size_is_a_world_of_its_own(make_bench, replay_into, tmp_path):
    sizes = [(64, 48)] * 2 + [(48, 64)] * 3
    messages = [
        (i / 10, "/image", raw(i / 10, picture(i, *size)[..., 0].copy(), "mono8")) for i, size in enumerate(sizes)
    ]
    bag = open_bag(write_bag(tmp_path / "bag", messages, StoragePlugin.MCAP))
    played = replay_into(active_bench(make_bench, bag), bag)
    assert sorted(played.poses) == [0, 1, 2, 3, 4] and played.worlds == {0, 2}
    report = replay.write_report(tmp_path, bag, played)
    assert [(world.frames, world.trajectory) for world in report.worlds] == [
        (2, "trajectory_1.txt"), (3, "trajectory_2.txt"),
    ]  # fmt: skip
    _, *lines = (tmp_path / "trajectory_2.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [
        f"{frame.stamp / 1e9:.0f}.{frame.stamp % 10**9:09d}" for frame in played.frames[2:]
    ]
    assert [tuple(map(float, line.split()[1:])) for line in lines] == [played.poses[index] for index in (2, 3, 4)]


def test_loop_is_one_scene_per_pass(make_bench, replay_into, tmp_path):
    bag = open_bag(images_bag(tmp_path / "bag"))
    played = replay_into(active_bench(make_bench, bag), bag, ReplayOptions(rate=0.0, loop=3))
    assert played.passes == 3 and played.worlds == {0, 3, 6} and played.counts["resets"] == 2
    assert len(played.poses) == 9
    for index in range(3):  # a scene knows nothing of the one before
        assert played.poses[index] == played.poses[index + 3] == played.poses[index + 6]


def test_a_part_of_the_bag_at_its_rate(make_bench, replay_into, tmp_path):
    bag = open_bag(images_bag(tmp_path / "bag", 20))
    options = ReplayOptions(rate=2.0, start=0.15, duration=1.0)
    frames = replay_into(active_bench(make_bench, bag), bag, options).frames
    stamps = [frame.stamp / 1e9 - START for frame in frames]
    assert stamps == pytest.approx([0.1 * index for index in range(2, 12)], abs=1e-6)
    # A frame may be late, and those after it then come on time.
    assert frames[-1].sent - frames[0].sent > 0.3
    assert max(later.sent - earlier.sent for earlier, later in itertools.pairwise(frames)) > 0.045


def test_images_that_the_node_refuses_do_not_hold_it_up(make_bench, replay_into, tmp_path):
    """And those without a stamp take the time of the recording."""
    messages = [(i / 10, "/image", raw(None, picture(i))) for i in range(3)]
    depth = np.ones((48, 64), np.uint16).view(np.uint8).reshape(48, 64, 2)
    messages += [(i / 10, "/image", raw(i / 10, depth, "16UC1")) for i in range(3, 3 + 2 * player.WINDOW)]
    bag = open_bag(write_bag(tmp_path / "bag", messages))
    played = replay_into(active_bench(make_bench, bag), bag)
    assert sorted(played.poses) == [0, 1, 2]
    assert [frame.stamp / 1e9 - START for frame in played.frames[:4]] == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-6)
    report = replay.write_report(tmp_path, bag, played)
    assert (report.frames_sent, report.frames_processed, report.frames_refused) == (23, 3, 20)
    assert report.frames_unanswered == 0 and report.complete


def test_a_bag_faster_than_the_node_waits_for_it(make_bench, replay_into, monkeypatch, tmp_path):
    go_on, waiting = threading.Event(), []
    get, put = FrameQueue.get, FrameQueue.put

    def slow_get(queue):
        assert go_on.wait(LIMIT)
        return get(queue)

    def counted_put(queue, frame):
        outcome = put(queue, frame)
        waiting.append(len(queue))
        return outcome

    monkeypatch.setattr(FrameQueue, "get", slow_get)
    monkeypatch.setattr(FrameQueue, "put", counted_put)
    count = 3 * player.WINDOW
    bag = open_bag(images_bag(tmp_path / "bag", count))
    bench = active_bench(make_bench, bag)
    done = []
    thread = threading.Thread(target=lambda: done.append(replay_into(bench, bag)))
    thread.start()
    try:
        bench.wait(lambda: len(waiting) >= player.WINDOW, "a full window")
        heard = len(bench.statuses)
        bench.wait(lambda: len(bench.statuses) > heard, "more diagnostics")
        assert waiting == list(range(1, player.WINDOW + 1))
    finally:
        go_on.set()
        thread.join(LIMIT)
    (played,) = done
    assert len(played.poses) == count and played.counts["frames lost"] == 0
    assert max(waiting) == player.WINDOW


def test_stop_ends_early_with_what_there_is(make_bench, replay_into, tmp_path):
    bag = open_bag(images_bag(tmp_path / "bag", 50))
    stop = threading.Event()
    bench = active_bench(make_bench, bag)
    bench.listen("pose")
    threading.Thread(target=lambda: (bench.wait_for("pose", 2), stop.set())).start()
    played = replay_into(bench, bag, ReplayOptions(rate=1.0), stop=stop)
    assert played.stopped and 2 <= len(played.poses) <= len(played.frames) < 50
    report = replay.write_report(tmp_path, bag, played)
    assert not report.complete and report.frames_unanswered == len(played.frames) - len(played.poses)


def test_a_node_that_takes_other_images_is_told_so(make_bench, replay_into, tmp_path, monkeypatch):
    bag = open_bag(images_bag(tmp_path / "bag", make_image=compressed))
    bench = make_bench(checkpoint="mini", image_size=48)
    assert bench.change_state("configure") and bench.change_state("activate")
    monkeypatch.setattr(player, "START_LIMIT", 2.0)
    with pytest.raises(Raymap3rError, match=rf"does not take images from {bench.namespace}/image/compressed"):
        replay_into(bench, bag)


# ------------------------------------------------------------------------------------------------------ metric scale


def sensors_bag(folder, *sensors):
    """Three images, and before each a message of every sensor: its topic and what makes the messages."""
    messages = []
    for i in range(3):
        messages += [(i / 10, topic, make_message(i)) for topic, make_message in sensors]
        messages.append((i / 10, "/image", raw(i / 10, picture(i))))
    return write_bag(folder, messages)


def test_the_range_sensor_is_played(make_bench, replay_into, tmp_path, monkeypatch):
    path = sensors_bag(
        tmp_path / "bag",
        ("/sonar/left", lambda i: reading(i / 10)),
        ("/sonar/front", lambda i: reading(i / 10 if i else None, 3.0 + i)),  # the first one without a stamp
    )
    options = ReplayOptions(rate=0.0, range="sonar/front")
    bag = open_bag(path, options)
    bench, heard = active_bench(make_bench, bag, **{"scale.source": "range"}), []
    monkeypatch.setattr(bench.node._scale, "add_range", heard.append)
    played = replay_into(bench, bag, options)
    bench.wait(lambda: len(heard) == 3, "all readings")
    assert [one.stamp - START for one in heard] == pytest.approx([0.0, 0.1, 0.2], abs=1e-6)
    assert [one.distance for one in heard] == [3.0, 4.0, 5.0]
    assert {(one.low, one.high, one.field_of_view) for one in heard} == {(0.25, 8.0, 0.125)}
    assert bench.node._ranger == "ranger"
    assert played.scale_topic == "/sonar/front" and played.told[f"publishers of {bench.namespace}/range"] == "1"


def test_the_wheels_are_found_beside_the_truth_and_played(make_bench, replay_into, tmp_path, monkeypatch):
    path = sensors_bag(
        tmp_path / "bag",
        ("/base/ground_truth", lambda i: wheels(i / 10, -1.0)),
        ("/wheels", lambda i: wheels(i / 10, float(i))),
        ("/rig", lambda i: wheels(i / 10, -2.0)),
    )
    bag = open_bag(path)
    bench, heard = active_bench(make_bench, bag, **{"scale.source": "odometry"}), []
    monkeypatch.setattr(bench.node._scale, "add_odometry", lambda stamp, pose: heard.append((stamp, pose[0, 3])))
    played = replay_into(bench, bag, ReplayOptions(rate=0.0, truth="rig"))
    bench.wait(lambda: len(heard) == 3, "all odometry")
    assert [place for _, place in heard] == [0.0, 1.0, 2.0]
    assert [stamp - START for stamp, _ in heard] == pytest.approx([0.0, 0.1, 0.2], abs=1e-6)
    assert played.scale_topic == "/wheels" and played.told[f"publishers of {bench.namespace}/wheel_odometry"] == "1"
    # What the scale comes from can be the truth that is compared with, too.
    assert played.truth.poses([played.frames[0].stamp], "wheels").source.startswith("odometry /wheels")


def test_wheels_that_are_faster_than_the_camera_are_heard_in_full(make_bench, replay_into, tmp_path, monkeypatch):
    messages = [(i / 50, "/wheels", wheels(i / 50, float(i))) for i in range(150)]
    messages += [(i / 10 + 0.001, "/image", raw(i / 10, picture(i))) for i in range(30)]
    bag = open_bag(write_bag(tmp_path / "bag", sorted(messages, key=lambda one: one[0])))
    bench, heard = active_bench(make_bench, bag, **{"scale.source": "odometry"}), []
    monkeypatch.setattr(bench.node._scale, "add_odometry", lambda stamp, pose: heard.append(pose[0, 3]))
    assert len(replay_into(bench, bag).poses) == 30
    bench.wait(lambda: len(heard) == 150, "all odometry")
    assert heard == list(range(150))


def test_a_node_whose_scale_the_bag_leaves_open_is_refused(make_bench, replay_into, tmp_path):
    bag = open_bag(sensors_bag(tmp_path / "bag", *((f"/sonar/{i}", lambda i: reading(i / 10)) for i in range(2))))
    bench = active_bench(make_bench, bag, **{"scale.source": "range"})
    with pytest.raises(
        InputError, match=r"with --range; of type sensor_msgs/msg/Range the bag has: /sonar/0, /sonar/1$"
    ):
        replay_into(bench, bag)
    assert bench.told["frames in"] == "0"


def test_a_topic_that_the_scale_does_not_come_from_stays_in_the_bag(make_bench, replay_into, tmp_path, caplog):
    bag = open_bag(sensors_bag(tmp_path / "bag", ("/sonar", lambda i: reading(i / 10))))
    played = replay_into(active_bench(make_bench, bag), bag, ReplayOptions(rate=0.0, range="/sonar"))
    assert played.scale_topic == "" and len(played.poses) == 3
    assert "/sonar is not played: scale.source is fixed, not range" in caplog.text


def test_the_command_finds_the_scale(rendered, tmp_path, capfd):
    """By the only range sensor of the bag, whose readings are far from true."""
    with closing(BagReader(rendered)) as reader:
        wanted = ["/camera/image_raw", "/camera/camera_info"]
        messages = [(recorded * 1e-9 - START, topic, message) for topic, recorded, message in reader.messages(wanted)]
    images = [message for _, topic, message in messages if topic == wanted[0]]
    for image in images:
        one = reading(0.0, 6.5)
        one.header.stamp = image.header.stamp
        recorded = image.header.stamp.sec - START + image.header.stamp.nanosec * 1e-9
        messages.append((recorded, "/sonar", one))
    messages.sort(key=lambda one: one[0])
    bag = write_bag(tmp_path / "bag", messages)
    out = tmp_path / "out"
    arguments = ["--device", "cpu", "--scale-source", "range"]
    assert cli.main(["replay", str(bag), "--out", str(out), *arguments]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["scale_topic"] == "/sonar" and report["node"]["publishers of /range"] == "1"
    assert int(report["node"]["scale observations"]) > 0
    assert f"scale      {report['node']['scale']}, /sonar\n" in capfd.readouterr().out


# ------------------------------------------------------------------------------------------------------- TF, clock


def test_transforms_of_the_node_are_not_forwarded_from_the_bag(make_bench, replay_into, tmp_path):
    messages = [
        (0.0, "/tf_static", transforms(transform(0, "base", "camera"), transform(0, "base", "lidar"))),
        (0.0, "/tf_static", transforms(transform(0, "base", "arm"))),
    ]
    for i in range(3):
        messages.append((i / 10, "/tf", transforms(transform(i / 10, "odom", "base", (i / 10, 0.0, 0.0)))))
        messages.append((i / 10, "/image", raw(i / 10, picture(i))))
    bag = open_bag(write_bag(tmp_path / "bag", messages))
    bench = active_bench(make_bench, bag)
    moving, static = set(), set()

    def note(edges):
        return lambda message: edges.update((t.header.frame_id, t.child_frame_id) for t in message.transforms)

    bench.probe.create_subscription(TFMessage, "/tf", note(moving), 100)
    latched = rclpy.qos.QoSProfile(depth=10, durability=rclpy.qos.DurabilityPolicy.TRANSIENT_LOCAL)
    bench.probe.create_subscription(TFMessage, "/tf_static", note(static), latched)
    replay_into(bench, bag)
    bench.wait(lambda: len(static) == 2 and len(moving) == 2, "all transforms")
    assert static == {("base", "lidar"), ("base", "arm")}
    assert moving == {("odom", "base"), ("map", "camera")}


def test_sim_time_that_stands_still_and_steps(make_bench):
    """As `ros2 bag play` does it when it is paused, stepped and looped."""
    bench = make_bench(checkpoint="mini", image_size=48, every_frame=True, use_sim_time=True)
    bench.start("pose")
    bench.advertise_clock = bench.probe.create_publisher(Clock, "/clock", 1)
    bench.wait(bench.advertise_clock.get_subscription_count, "match of /clock")

    def set_clock(time):
        stamp = rclpy.time.Time(seconds=START, nanoseconds=round(time * 1e9))
        bench.advertise_clock.publish(Clock(clock=stamp.to_msg()))
        bench.wait(lambda: bench.node.get_clock().now().nanoseconds == stamp.nanoseconds, f"sim time {time}")

    def more_diagnostics():
        heard = len(bench.statuses)
        bench.wait(lambda: len(bench.statuses) >= heard + 2, "two more diagnostics")

    more_diagnostics()  # before there is any time
    set_clock(0.0)
    bench.send(0, 0.0)
    bench.wait_for("pose", 1)
    more_diagnostics()  # the clock stands still
    bench.send(1, 0.1)  # a camera that is ahead of it
    bench.wait_for("pose", 2)
    set_clock(0.2)
    bench.send(2, 0.2)
    bench.wait_for("pose", 3)
    assert bench.count_logs("stamps jump") == 0
    set_clock(0.0)
    bench.send(0, 0.0)
    bench.wait_for("pose", 4)
    bench.wait_for_log("stamps jump back by 0.200 s: a new scene is started")
    more_diagnostics()
    bench.wait_for_told("frames out", 4)
    assert bench.times("pose") == [0.0, 0.1, 0.2, 0.0]

    without_stamp = conversions.image_message(Header(frame_id="camera"), picture(3), "rgb8")
    bench.publish(without_stamp)
    bench.wait_for("pose", 5)
    assert bench.times("pose")[-1] == 0.0  # the sim time of its receipt


# ------------------------------------------------------------------------------------------------------- truth


def stamps_of(times):
    return [round((START + time) * 1e9) for time in times]


def ros_transform(time, parent, child, place):
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.header.stamp = rclpy.time.Time(nanoseconds=stamps_of([time])[0]).to_msg()
    t = message.transform.translation
    t.x, t.y, t.z = place
    message.transform.rotation.w = 1.0
    return message


def ros_odometry(time, child, place):
    message = Odometry(child_frame_id=child)
    message.header.frame_id = "somewhere"
    message.header.stamp = rclpy.time.Time(nanoseconds=stamps_of([time])[0]).to_msg()
    p = message.pose.pose.position
    p.x, p.y, p.z = place
    message.pose.pose.orientation.w = 1.0
    return message


class TestTruth:
    def robot(self, root="world"):
        truth = Truth("camera")
        truth.add_transforms([ros_transform(0, "base", "camera", (0.0, 0.0, 1.0))], static=True)
        for i in range(3):
            truth.add_transforms([ros_transform(i, f"/{root}", "base", (2.0 * i, 0.0, 0.0))], static=False)
        return truth

    def test_through_the_tree_and_between_its_stamps(self):
        found = self.robot().poses(stamps_of([-1, 0, 0.5, 2]))
        assert found.source == "TF world -> camera"
        places = {round(stamp / 1e9 - START, 3): pose[:3, 3].tolist() for stamp, pose in found.poses.items()}
        assert places == {0.0: [0, 0, 1], 0.5: [1, 0, 1], 2.0: [4, 0, 1]}

    def test_a_root_that_is_no_truth_must_be_named(self):
        truth = self.robot("odom")
        with pytest.raises(InputError, match=r"above the camera's \(base, odom\)"):
            truth.poses(stamps_of([0]))
        assert truth.poses(stamps_of([0]), "odom").source == "TF odom -> camera"

    def test_odometry_of_the_base_is_carried_to_the_camera(self):
        truth = self.robot("odom")
        truth.add_odometry("/wheels", ros_odometry(0, "base", (9.0, 9.0, 9.0)))
        for i in range(2):
            truth.add_odometry("/ground_truth/state", ros_odometry(i, "base", (0.0, 3.0 * i, 0.0)))
        found = truth.poses(stamps_of([0.5]))
        assert found.source == "odometry /ground_truth/state of base"
        assert next(iter(found.poses.values()))[:3, 3].tolist() == [0.0, 1.5, 1.0]

    def test_odometry_of_an_unknown_frame_is_taken_as_it_is_and_told(self):
        truth = Truth("camera")
        truth.add_odometry("/mocap/rig", ros_odometry(0, "rig", (1.0, 2.0, 3.0)))
        found = truth.poses(stamps_of([0]))
        assert "whose place on rig is not known" in found.source
        assert next(iter(found.poses.values()))[:3, 3].tolist() == [1.0, 2.0, 3.0]

    def test_a_frame_that_leads_nowhere(self):
        with pytest.raises(InputError, match="not known at any frame's time"):
            self.robot().poses(stamps_of([0]), "moon")


# ------------------------------------------------------------------------------------------------- the whole command


def test_the_command_reports_and_scores(rendered, tmp_path, capfd):
    arguments = ["replay", str(rendered), "--topic", "/camera/image_raw", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--rate", "0", "--rule", "cut3r", "--device", "cpu"]) == 0
    printed = capfd.readouterr().out
    assert "frames     sent 12   processed 12   dropped 0   lost 0\n" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["complete"] and report["truth"] == "odometry /ground_truth/odometry of camera_optical_frame"
    assert report["parameters"]["update_rule"] == "cut3r" and report["parameters"]["every_frame"] is True
    assert report["node"]["update rule"] == "cut3r" and report["latency"]["median"] > 0
    (world,) = report["worlds"]
    assert world["frames"] == world["frames_with_truth"] == 12
    # Weights that know the room do better than to say that the camera stands.
    assert 0 < world["score"]["ate"] < world["score"]["ate_constant"]
    lines = (tmp_path / "trajectory.txt").read_text().splitlines()
    assert len(lines) == 13 and (tmp_path / "report.txt").read_text() in printed
    assert cli.main(arguments) == 2  # there is a report already


def test_ctrl_c_ends_in_order_with_the_report_so_far(tmp_path, capfd, monkeypatch):
    on_pose = player._Player._on_pose

    def interrupted(self, message):
        on_pose(self, message)
        if len(self._played.poses) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(player._Player, "_on_pose", interrupted)
    bag, out = images_bag(tmp_path / "bag", 100), tmp_path / "out"
    arguments = ["--rate", "0.5", "--checkpoint", "mini", "--size", "48", "--device", "cpu"]
    assert cli.main(["replay", str(bag), "--out", str(out), *arguments]) == 130
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed and "(stopped early)" in printed
    report = json.loads((out / "report.json").read_text())
    assert not report["complete"] and 2 <= report["frames_processed"] <= report["frames_sent"] < 100
    assert report["worlds"][0]["frames"] == report["frames_processed"]


def error_of(capsys, *arguments):
    assert cli.main(["replay", *map(str, arguments)]) == 2
    text = capsys.readouterr().err
    assert text.startswith("raymap3r: error: ") and text.count("error") == 1
    return text


def test_what_cannot_be_played_is_one_clear_line(tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", [(0.0, "/tf", transforms(transform(0, "a", "b")))])
    assert error_of(capsys, bag).endswith("no image topic with messages in this bag; its topics: /tf\n")
    assert "there is no such file or folder" in error_of(capsys, tmp_path / "nothing")
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures" / "0.png"), picture(0))
    assert "is no ROS 2 bag" in error_of(capsys, tmp_path / "pictures")
    assert "no image topic /other" in error_of(capsys, images_bag(tmp_path / "images"), "--topic", "/other")
    assert "rate is -1.0; allowed range" in error_of(capsys, bag, "--rate", -1)
    assert "max_gap is 0.0; allowed range" in error_of(capsys, bag, "--max-gap", 0)
    (tmp_path / "file").touch()
    assert "is a file" in error_of(capsys, tmp_path / "images", "--out", tmp_path / "file")


def test_what_the_scale_comes_from_must_be_in_the_bag(tmp_path, capsys):
    bag = sensors_bag(
        tmp_path / "bag", ("/sonar", lambda i: reading(i / 10)), ("/left", lambda i: wheels(i / 10)),
        ("/right", lambda i: wheels(i / 10)),
    )  # fmt: skip
    ranges, odometry = "sensor_msgs/msg/Range", "nav_msgs/msg/Odometry"
    assert error_of(capsys, bag, "--range", "/nothing").endswith(
        f"no topic /nothing of type {ranges}; the bag has: /sonar\n"
    )
    assert error_of(capsys, bag, "--range", "left").endswith(f"no topic /left of type {ranges}; the bag has: /sonar\n")
    assert error_of(capsys, bag, "--wheel-odometry", "/sonar").endswith(
        f"no topic /sonar of type {odometry}; the bag has: /left, /right\n"
    )
    assert error_of(capsys, bag, "--scale-source", "odometry").endswith(
        f"scale.source is odometry: name the topic that it comes from with --wheel-odometry; of type {odometry} the "
        "bag has: /left, /right\n"
    )
    images = images_bag(tmp_path / "images")
    assert error_of(capsys, images, "--scale-source", "range").endswith(f"of type {ranges} the bag has: none\n")


def test_parameters_for_a_node_that_runs_already_are_refused(tmp_path):
    bag = images_bag(tmp_path / "bag")
    with pytest.raises(OptionError, match="device: the node /eye runs already"):
        replay.run(bag, FAST, tmp_path / "out", node="/eye", parameters={"device": "cpu"})


def test_overwrite_keeps_files_of_others(tmp_path):
    kept = ["notes.md", "report_json", "report_txt", "trajectory_mine.txt", "trajectory_txt"]
    for name in ["report.json", "report.txt", "trajectory.txt", "trajectory_2.txt", *kept]:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="holds files already"):
        replay.prepare_folder(tmp_path)
    replay.prepare_folder(tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
