"""Fixtures for tests of the stream node: a node and a probe node that communicate over real DDS."""

import copy
import itertools
import sys
import threading
import time
from collections import defaultdict, deque
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="the node needs ROS 2")

import torch  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from rcl_interfaces.msg import Log  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from rclpy.task import Future  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

from raymap3r_ros.clients.harness import QUEUE_DEPTH  # noqa: E402
from raymap3r_ros.geometry.calibration import camera_of  # noqa: E402
from raymap3r_ros.node import conversions  # noqa: E402
from raymap3r_ros.node.executable import Executor  # noqa: E402
from raymap3r_ros.node.map_publisher import MAP_TOPICS  # noqa: E402
from raymap3r_ros.node.publishers import TOPICS  # noqa: E402
from raymap3r_ros.node.stream_node import StreamNode  # noqa: E402
from raymap3r_ros.streaming import METHOD, StepResult, WorldChange  # noqa: E402
from raymap3r_ros.streaming.timing import StageTimer  # noqa: E402
from raymap3r_ros.synthetic import suite_sequence  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))  # for the helper modules in this folder

LIMIT = 60.0  # seconds; only a failing test waits this long
START = 1_700_000_000  # seconds; the stamps of test messages start here
# World change at the first frame of a new segment, by `reset_alignment`.
AFTER_RESET = {"robust": WorldChange.ALIGNED, "published": WorldChange.JUMPED, "off": WorldChange.NEW}
numbers = itertools.count()


def picture(index=0, width=64, height=48):
    """(h, w, 3) uint8 RGB, textured, different for each index."""
    rows, columns = np.mgrid[:height, :width]
    red = (rows * 5 + index * 7 + 60 * (rows // 2 % 2)) % 256
    green = (columns * 3 + index * 11) % 256
    return np.stack([red, green, (red + green) // 2], -1).astype(np.uint8)


class Bench:
    """A StreamNode and a probe node, each with its own executor in a background thread."""

    def __init__(self, parameters, arguments=(), pool=None):
        # A new namespace: topics and log of the previous test's node may still exist in this process.
        self.namespace = f"/bench{next(numbers)}"
        self.name = f"{self.namespace}/raymap3r"
        self.context = Context()
        rclpy.init(context=self.context)
        self._changed = threading.Condition()
        self.messages = defaultdict(list)  # by output topic, including /tf
        self.logs = []  # level and text of each line
        self.diagnostics = {}  # values of the last diagnostics message, by name
        self.statuses = []  # level and text of all diagnostics messages
        names = {"namespace": self.namespace, "context": self.context, "cli_args": ["--ros-args", *arguments]}
        self.probe = rclpy.create_node("probe", **names)
        latched = QoSProfile(
            depth=1000, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )
        self.probe.create_subscription(Log, "/rosout", self._on_log, latched)
        self.probe.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.publishers = {}
        self._published = 0  # images
        self._clients = {}
        self.spinning = []
        self._spin(self.probe, SingleThreadedExecutor(context=self.context))
        parameters = {"execution": "plain", **parameters}  # recording frames takes seconds
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.node = StreamNode(pool, parameter_overrides=overrides, **names)
        self._spin(self.node, Executor(num_threads=4, context=self.context))

    def close(self):
        for executor, end, thread in self.spinning:
            end.set_result(None)
            thread.join(LIMIT)
            executor.shutdown()
        self.node.close()
        self.node.destroy_node()
        self.probe.destroy_node()
        rclpy.shutdown(context=self.context)

    # ----------------------------------------------------------------------------------------------------- waiting

    def wait(self, condition, what, limit=LIMIT):
        """Wait until a condition is true that a message or DDS discovery changes."""
        deadline = time.monotonic() + limit
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, f"{what}: not within {limit:.0f} s; log: {[text for _, text in self.logs]}"
                self._changed.wait(min(left, 0.05))

    def wait_for(self, topic, count=1):
        """Wait until `count` messages of an output have arrived; returns the last one."""
        self.wait(lambda: len(self.messages[topic]) >= count, f"{count} messages of {topic}")
        return self.messages[topic][-1]

    def wait_for_frames(self, count):
        """Wait until the node has published the outputs of `count` frames, faster perhaps than they are received."""
        self.wait(lambda: int(self.current_diagnostics()["frames out"]) >= count, f"outputs of {count} frames")

    def wait_for_log(self, text, level=None):
        """Wait for a log line that contains this text; returns the whole line."""
        found = []

        def find():
            found.extend(line for line_level, line in self.logs if text in line and level in (None, line_level))
            return found

        self.wait(find, f"log line with {text!r}")
        return found[0]

    def wait_for_logs(self, text, count):
        """Wait for `count` log lines with this text, which come after the outputs; returns the last one."""
        self.wait(lambda: self.count_logs(text) >= count, f"{count} log lines with {text!r}")
        found = [line for _, line in self.logs if text in line]
        assert len(found) == count
        return found[-1]

    def times(self, topic):
        """Stamps of an output's messages so far, in seconds after START."""
        stamps = [message.header.stamp for message in self.messages[topic]]
        return [round(stamp.sec - START + stamp.nanosec * 1e-9, 6) for stamp in stamps]

    @staticmethod
    def stamp(time):
        """The stamp START + `time` seconds."""
        return rclpy.time.Time(nanoseconds=START * 10**9 + round(time * 1e9)).to_msg()

    def wait_for_arrival(self):
        """Wait until the node has received all images published so far, which must all be valid."""
        self.wait(lambda: self.current_diagnostics()["frames in"] == str(self._published), "arrival of all images")

    def current_diagnostics(self):
        """The values of the node's diagnostics now, by name."""
        return {item.key: item.value for item in self.node.status().values}

    def subscribed(self):
        """The outputs that the node has subscribers for."""
        return set(filter(None, self.current_diagnostics()["subscribed outputs"].split(", ")))

    def wait_for_transform(self, parent, child, time=None):
        """Wait until the node can look up a transform: the newest, or the one at START + `time`."""
        stamp = rclpy.time.Time() if time is None else self.stamp(time)
        self.wait(lambda: self.node.tf_buffer.can_transform(parent, child, stamp), f"{parent} -> {child}")

    def wait_for_diagnostics(self, key, value):
        """Wait for a diagnostics message with this value."""
        self.wait(lambda: self.diagnostics.get(key) == str(value), f"diagnostics with {key} = {value}")

    def count_logs(self, text):
        return sum(text in line for _, line in self.logs)

    # ------------------------------------------------------------------------------------------------------- calls

    def start(self, *topics):
        """Configure and activate the node, subscribe to outputs (also "tf"), and wait until all endpoints match."""
        assert self.change_state("configure")
        assert self.change_state("activate")
        self.subscribe(*topics)
        kind, topic = {"raw": (Image, "image"), "compressed": (CompressedImage, "image/compressed")}[
            self.node.get_parameter("image_transport").value
        ]
        every = self.node.get_parameter("every_frame").value
        # Like a camera, but reliable: a test then counts the images that the node drops, not those that DDS drops.
        self.advertise(kind, topic, QoSProfile(depth=QUEUE_DEPTH if every else 1))
        self.image_topic = topic

    def subscribe(self, *topics):
        for topic in topics:
            kind, qos = (TFMessage, QoSProfile(depth=1)) if topic == "tf" else {**TOPICS, **MAP_TOPICS}[topic]
            qos = copy.copy(qos)
            qos.depth = QUEUE_DEPTH  # tests count messages: none may be lost while the probe waits for a core
            name = "/tf" if topic == "tf" else f"{self.name}/{topic}"
            self.probe.create_subscription(
                kind, name, lambda message, topic=topic: self.on_message(topic, message), qos
            )
        for topic in topics:
            name = "/tf" if topic == "tf" else f"{self.name}/{topic}"
            publisher = next(one for one in self.node.publishers if one.topic_name == name)
            self.wait(publisher.get_subscription_count, f"match of {name}")

    def advertise(self, kind, topic, qos):
        publisher = self.probe.create_publisher(kind, topic, qos)
        self.publishers[topic] = publisher
        self.wait(publisher.get_subscription_count, f"match of {topic}")
        name = self.node.resolve_topic_name(topic)
        self.wait(lambda: self.node.count_publishers(name) > 0, f"match of {topic} in the node")

    def send(self, index=0, time=None, message=None, frame_id="camera", size=(64, 48)):
        """Publish picture number `index` or a message, stamped START + `time` (default: index / 10 seconds)."""
        if message is None:
            message = conversions.image_message(Header(), picture(index, *size), "rgb8")
        message.header.stamp = self.stamp(index / 10 if time is None else time)
        self.publish(message, frame_id)
        return message

    def publish(self, message, frame_id="camera"):
        """Publish an image message without a change of its stamp."""
        message.header.frame_id = frame_id
        self._published += 1
        self.publishers[self.image_topic].publish(message)

    def wait_for_match(self):
        """Wait until the node subscribes to the images."""
        self.wait(self.publishers[self.image_topic].get_subscription_count, "match of the images")

    def send_camera_info(self, **values):
        if "camera_info" not in self.publishers:
            self.advertise(CameraInfo, "camera_info", QoSProfile(depth=1))
        self._sent_info = CameraInfo(**values)
        self.publishers["camera_info"].publish(self._sent_info)

    def wait_for_camera_info(self):
        """Wait until the node has stored the last camera_info sent."""
        content = camera_of(self._sent_info)

        def arrived():
            info = self.node.camera_info
            return info is not None and camera_of(info) == content

        self.wait(arrived, "camera_info")

    def change_state(self, label):
        """Request a lifecycle transition; returns whether it succeeded."""
        request = ChangeState.Request()
        request.transition.label = label
        return self.call(ChangeState, "change_state", request).success

    def state(self):
        return self.call(GetState, "get_state", GetState.Request()).current_state.label

    def reset(self):
        return self.call(Trigger, "reset", Trigger.Request())

    def set_parameter(self, name, value):
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self.call(SetParameters, "set_parameters", request).results[0]

    def call(self, kind, service, request):
        if service not in self._clients:
            self._clients[service] = self.probe.create_client(kind, f"{self.name}/{service}")
        client = self._clients[service]
        assert client.wait_for_service(LIMIT), f"no service {service}"
        future = client.call_async(request)
        self.wait(future.done, f"response of {service}")
        return future.result()

    # ---------------------------------------------------------------------------------------------------- internals

    def _spin(self, node, executor):
        executor.add_node(node)
        end = Future(executor=executor)
        thread = threading.Thread(target=executor.spin_until_future_complete, args=(end,))
        thread.start()
        self.spinning.append((executor, end, thread))

    def on_message(self, topic, message):
        with self._changed:
            self.messages[topic].append(message)
            self._changed.notify_all()

    def _on_log(self, message):
        if message.name == self.name.strip("/").replace("/", "."):
            with self._changed:
                self.logs.append((message.level, message.msg))
                self._changed.notify_all()

    def _on_diagnostics(self, message):
        (status,) = message.status
        if status.name == f"{self.name}: stream":
            with self._changed:
                self.diagnostics = {item.key: item.value for item in status.values}
                self.statuses.append((status.level, status.message))
                self._changed.notify_all()


class HeldStream:
    """Blocks the worker inside `Stream.step` until the test releases it."""

    def __init__(self, stream):
        self.entered, self.released = threading.Semaphore(0), threading.Semaphore(0)
        self._step = stream.step
        stream.step = self.step

    def step(self, *args, **kwargs):
        self.entered.release()
        assert self.released.acquire(timeout=LIMIT)
        return self._step(*args, **kwargs)

    def wait_until_inside(self):
        assert self.entered.acquire(timeout=LIMIT)

    def release(self, frames=1_000_000):
        self.released.release(frames)


class FakeStream:
    """Replaces the stream of a bench: returns results that the test has enqueued, one for each image.

    Cameras are (4, 4) poses of the optical frame in any common frame; as in a real stream, the world starts at the
    first camera.
    """

    def __init__(self, stream, warm_up=METHOD.warmup_frames):
        """The results for the first `warm_up` images of a world have no dynamic mask."""
        self._results, self._warm_up = deque(), warm_up
        self._first, self._frame, self._change = None, 0, WorldChange.NONE
        self._world, self._worlds, self._left = -1, 0, None
        self._after_reset = AFTER_RESET[stream.options.reset_alignment]
        stream.step, stream.reset = self.step, self.reset

    def enqueue(self, camera, points, focal, reason="", segment=None):
        """Set the result for the next image: the `points` (H, W, 3) of its pixels and its camera pose.

        `reason`: why the memory is reset at this image, or "returned": the camera is found in the world before;
        `segment`: pose (4, 4) that shifts the world of this segment.
        """
        self._results.append((camera, points, focal, reason, np.eye(4) if segment is None else segment))

    def reset(self, *, relocalize=False):
        self._left = (self._world, self._first) if relocalize else None
        self._first = None

    def step(self, image, stamp, intrinsics, *, pose=None, motion):
        camera, points, focal, reason, segment = self._results.popleft()
        if self._first is None:
            self._first, self._frame, reason, self._change = camera, 0, "start", WorldChange.NEW
            self._world, self._worlds = self._worlds, self._worlds + 1
        if reason == "returned":
            (self._world, self._first), self._left, self._change = self._left, None, WorldChange.RETURNED
        change, self._change = self._change, self._after_reset if reason == "interval" else WorldChange.NONE
        height, width = points.shape[:2]
        assert image.shape == (height, width, 3)
        pose = torch.tensor(segment @ np.linalg.inv(self._first) @ camera, dtype=torch.float32)
        points = torch.tensor(points, dtype=torch.float32)
        static = torch.ones(height, width)
        frame, self._frame = self._frame, self._frame + 1
        return StepResult(
            pose=pose,
            pose_raw=pose,
            depth=points[..., 2],
            points=points,
            confidence=5 * static,
            staticness=static,
            dynamic_mask=static == 0,
            intrinsics=torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]),
            gate=torch.ones(1),
            scale=torch.ones(()),
            healthy=torch.tensor(True),
            intrinsics_known=torch.tensor(True),
            rule_index=torch.tensor(0),
            image_tokens=torch.zeros(1, 1),
            static_weight=None,
            plausibility=None,
            image=torch.tensor(image),
            frame=frame,
            segment=0,
            stamp=stamp,
            motion=motion and frame >= self._warm_up,
            reset=bool(reason),
            reset_reason=reason,
            timer=StageTimer(torch.device("cpu")),
            world_change=change,
            world=self._world,
            past_worlds=() if self._left is None else (self._left[0],),
        )


@pytest.fixture(scope="session")
def stays():
    """Frames of a stay in a room, and of one in another room."""
    sequence = suite_sequence("kidnap", 0, world="one_room", size=(96, 128))
    groups = itertools.groupby(itertools.islice(sequence.frames(), 225), key=lambda frame: frame.jumps)
    return [list(itertools.islice(stay, 40)) for (_, stay), _ in zip(groups, range(2), strict=False)]


@pytest.fixture
def make_bench():
    """Creates a Bench from node parameters (`mask__high` sets `mask.high`) and ROS arguments of its nodes.

    `pool`: passed to the StreamNode.
    """
    torch.set_num_threads(1)
    made = []

    def make(*arguments, pool=None, **parameters):
        values = {name.replace("__", "."): value for name, value in parameters.items()}
        made.append(Bench(values, arguments, pool))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def hold():
    """Blocks a bench's worker at its next frames; releases it at the end of the test."""
    held = []

    def make(bench):
        held.append(HeldStream(bench.node.stream))
        return held[-1]

    yield make
    for one in held:
        one.release()


@pytest.fixture
def fake_stream():
    """Replaces the stream of a configured bench with a FakeStream; returns the FakeStream."""
    return lambda bench, **options: FakeStream(bench.node.stream, **options)
