"""A stream node and a probe beside it, talking over real DDS."""

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

from raymap3r_ros.geometry.calibration import camera_of  # noqa: E402
from raymap3r_ros.node import conversions  # noqa: E402
from raymap3r_ros.node.executable import Executor  # noqa: E402
from raymap3r_ros.node.map_publisher import MAP_TOPICS  # noqa: E402
from raymap3r_ros.node.publishers import TOPICS  # noqa: E402
from raymap3r_ros.node.stream_node import StreamNode  # noqa: E402
from raymap3r_ros.streaming import METHOD, StepResult, WorldChange  # noqa: E402
from raymap3r_ros.streaming.timing import StageTimer  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside the tests

LIMIT = 60.0  # seconds; only a failing test waits so long
START = 1_700_000_000  # seconds; tests write stamps from here
# By `reset_alignment`, of the first frame of a new segment.
AFTER_RESET = {"robust": WorldChange.ALIGNED, "published": WorldChange.JUMPED, "off": WorldChange.NEW}
numbers = itertools.count()


def picture(index=0, width=64, height=48):
    """(h, w, 3) uint8 RGB, textured, another one for every index."""
    rows, columns = np.mgrid[:height, :width]
    red = (rows * 5 + index * 7) % 256
    green = (columns * 3 + index * 11) % 256
    return np.stack([red, green, (red + green) // 2], -1).astype(np.uint8)


class Bench:
    """A StreamNode and a probe node, each with an executor of its own in the background."""

    def __init__(self, parameters, arguments=(), shared=None):
        # Of its own: topics and log of the last test's node may live on for a while in this process.
        self.namespace = f"/bench{next(numbers)}"
        self.name = f"{self.namespace}/raymap3r"
        self.context = Context()
        rclpy.init(context=self.context)
        self._changed = threading.Condition()
        self.messages = defaultdict(list)  # by output topic, /tf among them
        self.logs = []  # level and text
        self.told = {}  # values of the last diagnostics
        self.statuses = []  # level and text of all of them
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
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.node = StreamNode(shared, parameter_overrides=overrides, **names)
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
        """Wait for something that a message brings, or that DDS finds out by itself."""
        deadline = time.monotonic() + limit
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, f"{what}: not within {limit:.0f} s; log: {[text for _, text in self.logs]}"
                self._changed.wait(min(left, 0.05))

    def wait_for(self, topic, count=1):
        """Wait until so many messages of an output have come; returns the last."""
        self.wait(lambda: len(self.messages[topic]) >= count, f"{count} messages of {topic}")
        return self.messages[topic][-1]

    def wait_for_log(self, text, level=None):
        """Wait for a log line with this text in it; returns the whole line."""
        found = []

        def look():
            found.extend(line for line_level, line in self.logs if text in line and level in (None, line_level))
            return found

        self.wait(look, f"log line with {text!r}")
        return found[0]

    def times(self, topic):
        """Stamps of an output's messages so far, in seconds after START."""
        stamps = [message.header.stamp for message in self.messages[topic]]
        return [round(stamp.sec - START + stamp.nanosec * 1e-9, 6) for stamp in stamps]

    @staticmethod
    def stamp(time):
        """The stamp START + `time` seconds."""
        return rclpy.time.Time(nanoseconds=START * 10**9 + round(time * 1e9)).to_msg()

    def wait_for_arrival(self):
        """Wait until the node has received all images published so far, all of them good."""
        self.wait(lambda: self.facts()["frames in"] == str(self._published), "arrival of all images")

    def facts(self):
        """The values of the node's diagnostics now, by name."""
        return {item.key: item.value for item in self.node.status().values}

    def subscribed(self):
        """The outputs that the node has subscribers for."""
        return set(filter(None, self.facts()["subscribed outputs"].split(", ")))

    def wait_for_transform(self, parent, child, time=None):
        """Wait until the node has received a transform: any, or one of START + `time`."""
        stamp = rclpy.time.Time() if time is None else self.stamp(time)
        self.wait(lambda: self.node.tf_buffer.can_transform(parent, child, stamp), f"{parent} -> {child}")

    def wait_for_told(self, key, value):
        """Wait for diagnostics with this value."""
        self.wait(lambda: self.told.get(key) == str(value), f"diagnostics with {key} = {value}")

    def count_logs(self, text):
        return sum(text in line for _, line in self.logs)

    # ----------------------------------------------------------------------------------------------------- talking

    def start(self, *topics):
        """Configure, activate, subscribe to outputs ("tf" too), and wait until everybody knows of everybody."""
        assert self.change_state("configure")
        assert self.change_state("activate")
        self.listen(*topics)
        kind, topic = {"raw": (Image, "image"), "compressed": (CompressedImage, "image/compressed")}[
            self.node.get_parameter("image_transport").value
        ]
        every = self.node.get_parameter("every_frame").value
        # As a camera: but reliable, so that a test counts what the node drops and not what DDS does.
        self.advertise(kind, topic, QoSProfile(depth=200 if every else 1))
        self.image_topic = topic

    def listen(self, *topics):
        for topic in topics:
            kind, qos = (TFMessage, QoSProfile(depth=100)) if topic == "tf" else {**TOPICS, **MAP_TOPICS}[topic]
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
        self.wait(lambda: self.node.count_publishers(name) > 0, f"the node's match of {topic}")

    def send(self, index=0, time=None, message=None, frame_id="camera", size=(64, 48)):
        """Publish picture number `index`, or a message of one's own, stamped START + `time` (index / 10 seconds)."""
        if message is None:
            message = conversions.image_message(Header(), picture(index, *size), "rgb8")
        message.header.stamp = self.stamp(index / 10 if time is None else time)
        self.publish(message, frame_id)
        return message

    def publish(self, message, frame_id="camera"):
        """Publish an image message with the stamp that it has."""
        message.header.frame_id = frame_id
        self._published += 1
        self.publishers[self.image_topic].publish(message)

    def wait_for_match(self):
        """Wait until the node takes images again."""
        self.wait(self.publishers[self.image_topic].get_subscription_count, "match of the images")

    def send_camera_info(self, **values):
        if "camera_info" not in self.publishers:
            self.advertise(CameraInfo, "camera_info", QoSProfile(depth=1))
        self._sent_info = CameraInfo(**values)
        self.publishers["camera_info"].publish(self._sent_info)

    def wait_for_camera_info(self):
        """Wait until the node has taken in the camera_info that was sent last."""
        content = camera_of(self._sent_info)

        def arrived():
            info = self.node.camera_info
            return info is not None and camera_of(info) == content

        self.wait(arrived, "camera_info")

    def change_state(self, label):
        """Ask for a transition over its service; whether it was a success."""
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
        self.wait(future.done, f"answer of {service}")
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
                self.told = {item.key: item.value for item in status.values}
                self.statuses.append((status.level, status.message))
                self._changed.notify_all()


class Held:
    """Holds the worker inside `Stream.step` until it is let go, and notes how it is called."""

    def __init__(self, stream):
        self.entered, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self._step = stream.step
        stream.step = self.step

    def step(self, *args, **kwargs):
        self.entered.release()
        assert self.go_on.acquire(timeout=LIMIT)
        return self._step(*args, **kwargs)

    def wait_until_inside(self):
        assert self.entered.acquire(timeout=LIMIT)

    def let_go(self, frames=1_000_000):
        self.go_on.release(frames)


class StandIn:
    """Stands in for a bench's stream: of every image it says what the test has told it beforehand.

    Cameras are (4, 4) poses of the optical frame in any one frame; the world begins with the first, as a stream's.
    """

    def __init__(self, stream, warm_up=METHOD.warmup_frames):
        """Of a world's first `warm_up` images it does not know what moves."""
        self._told, self._warm_up = deque(), warm_up
        self._first, self._frame, self._change = None, 0, WorldChange.NONE
        self._after_reset = AFTER_RESET[stream.options.reset_alignment]
        stream.step, stream.reset = self.step, self.reset

    def tell(self, camera, points, focal, reason="", segment=None):
        """Of the next image: the `points` (H, W, 3) of its pixels and where its camera is. `reason`: why the memory
        begins anew with it; `segment`: pose (4, 4) to which the world as this memory has it is shifted."""
        self._told.append((camera, points, focal, reason, np.eye(4) if segment is None else segment))

    def reset(self):
        self._first = None

    def step(self, image, stamp, intrinsics, *, motion):
        camera, points, focal, reason, segment = self._told.popleft()
        if self._first is None:
            self._first, self._frame, reason, self._change = camera, 0, "start", WorldChange.NEW
        change, self._change = self._change, self._after_reset if reason == "interval" else WorldChange.NONE
        height, width = points.shape[:2]
        assert image.shape == (height, width, 3)
        pose = torch.tensor(segment @ np.linalg.inv(self._first) @ camera, dtype=torch.float32)
        points = torch.tensor(points, dtype=torch.float32)
        still = torch.ones(height, width)
        frame, self._frame = self._frame, self._frame + 1
        return StepResult(
            pose=pose,
            pose_raw=pose,
            depth=points[..., 2],
            points=points,
            confidence=5 * still,
            staticness=still,
            dynamic_mask=still == 0,
            intrinsics=torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]),
            gate=torch.ones(1),
            scale=torch.ones(()),
            healthy=torch.tensor(True),
            intrinsics_known=torch.tensor(True),
            rule_index=torch.tensor(0),
            alignment_error=None,
            image=torch.tensor(image),
            frame=frame,
            segment=0,
            stamp=stamp,
            motion=motion and frame >= self._warm_up,
            reset=bool(reason),
            reset_reason=reason,
            timer=StageTimer(torch.device("cpu")),
            world_change=change,
        )


@pytest.fixture
def make_bench():
    """Makes a Bench with the parameters given to it, a group is written mask__high, and ROS arguments of its nodes.

    `shared`: as of StreamNode.
    """
    torch.set_num_threads(1)
    made = []

    def make(*arguments, shared=None, **parameters):
        values = {name.replace("__", "."): value for name, value in parameters.items()}
        made.append(Bench(values, arguments, shared))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def hold():
    """Holds a bench's worker in front of its next frames; lets go of it at the end of the test."""
    held = []

    def make(bench):
        held.append(Held(bench.node.stream))
        return held[-1]

    yield make
    for one in held:
        one.let_go()


@pytest.fixture
def stand_in():
    """Replaces the stream of a configured bench with a StandIn, which it gives."""
    return lambda bench, **options: StandIn(bench.node.stream, **options)
