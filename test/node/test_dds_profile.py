import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from raymap3r_ros import cli
from raymap3r_ros.clients import harness
from raymap3r_ros.doctor.dds import profile_of
from raymap3r_ros.errors import Raymap3rError
from raymap3r_ros.node import executable
from raymap3r_ros.node.dds_profile import (
    USER_VARIABLES,
    config_file,
    domain_problem,
    profile_environment,
    profile_problem,
    rmw_problem,
    to_check,
)

# Two processes, one large best-effort message after another: the default transport loses some of them.
PUBLISHER = """
import array, time, rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Empty
rclpy.init()
node = rclpy.create_node("large_publisher")
publisher = node.create_publisher(Image, "large", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
received = []
node.create_subscription(Empty, "received", received.append, 100)
while not publisher.get_subscription_count():
    rclpy.spin_once(node, timeout_sec=0.05)
message = Image(height=1080, width=1920, step=5760, encoding="rgb8", data=array.array("B", bytes(1080 * 5760)))
deadline = time.monotonic() + 40
sent = 0
while len(received) < 20 and time.monotonic() < deadline:
    # Publish the next message when the last was received: a slow machine is no reason for a loss.
    waiting = time.monotonic() + 2
    publisher.publish(message)
    sent += 1
    count = len(received)
    while len(received) == count and time.monotonic() < waiting:
        rclpy.spin_once(node, timeout_sec=0.1)
print(sent, len(received))
"""

# A continuous stream of large best-effort images on the default transport.
FLOOD = """
import array, sys, time, rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node("flood")
publisher = node.create_publisher(Image, sys.argv[1], QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
message = Image(height=1080, width=1920, step=5760, encoding="rgb8", data=array.array("B", bytes(1080 * 5760)))
while True:
    message.header.stamp = node.get_clock().now().to_msg()
    publisher.publish(message)
    time.sleep(0.03)
"""


def test_profile_is_set_unless_the_user_has_set_one():
    path = str(config_file("fastdds.xml"))
    assert profile_environment({}) == {"FASTDDS_DEFAULT_PROFILES_FILE": path}
    assert profile_environment({"ROS_DISTRO": "kilted"}) == {"FASTDDS_DEFAULT_PROFILES_FILE": path}
    assert profile_environment({"ROS_DISTRO": "jazzy"}) == {"FASTRTPS_DEFAULT_PROFILES_FILE": path}
    for name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_BUILTIN_TRANSPORTS"):
        assert profile_environment({name: "of the user"}) == {}


@pytest.mark.parametrize("name", ["fastdds.xml", "stream.yaml"])
def test_files_are_found(name):
    assert config_file(name).is_file()


def test_profile_has_large_shared_memory_segments_and_udp():
    space = {"dds": "http://www.eprosima.com"}
    root = ElementTree.parse(config_file("fastdds.xml")).getroot()
    transports = {
        item.findtext("dds:type", namespaces=space): item
        for item in root.iterfind(".//dds:transport_descriptor", space)
    }
    assert transports.keys() == {"SHM", "UDPv4"}
    assert int(transports["SHM"].findtext("dds:segment_size", namespaces=space)) == 64 * 2**20
    assert root.find(".//dds:participant", space).get("is_default_profile") == "true"


def test_large_messages_arrive_with_the_profile(monkeypatch):
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image
    from std_msgs.msg import Empty

    for name, value in profile_environment({}).items():
        monkeypatch.setenv(name, value)
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("large_subscriber", context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    acknowledgements = node.create_publisher(Empty, "received", 100)
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    node.create_subscription(Image, "large", lambda message: acknowledgements.publish(Empty()), qos)
    try:
        process = subprocess.Popen([sys.executable, "-c", PUBLISHER], stdout=subprocess.PIPE, text=True)
        while process.poll() is None:
            executor.spin_once(timeout_sec=0.1)
        sent, received = map(int, process.stdout.read().split())
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)
    assert received == 20
    assert sent <= 25  # the first messages may be sent before discovery has finished


def test_node_reports_images_that_the_transport_loses(make_bench, monkeypatch):
    for name in USER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    bench = make_bench()
    bench.start()
    process = subprocess.Popen([sys.executable, "-c", FLOOD, f"{bench.namespace}/image"])
    try:
        bench.wait_for_log("images lost on the way to the node: use the Fast DDS profile", level=30)
        bench.wait(lambda: int(bench.diagnostics.get("frames lost", 0)) > 0, "count of lost frames")
        bench.wait(lambda: any("config/fastdds.xml" in text for _, text in bench.statuses), "warning")
    finally:
        process.kill()
        process.wait()


def test_a_middleware_that_is_not_installed_is_named_before_rclpy_ends_the_process(monkeypatch, capsys):
    assert rmw_problem({}) == rmw_problem({"RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"}) == ""
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_absent_cpp")
    text = "RMW_IMPLEMENTATION is rmw_absent_cpp, which is not installed; installed: "
    assert cli.main(["demo"]) == cli.FAILED and text in capsys.readouterr().err
    done = subprocess.run([sys.executable, "-m", "raymap3r_ros.node"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and text in done.stderr and done.stderr.count("\n") == 1


def test_what_hides_nodes_is_named_in_the_advice():
    assert to_check({}) == to_check({"ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET"}) == "ROS_DOMAIN_ID"
    assert to_check({"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF", "ROS_DISCOVERY_SERVER": "robot:1"}) == (
        "ROS_DOMAIN_ID, ROS_AUTOMATIC_DISCOVERY_RANGE (now OFF), and that a discovery server runs at robot:1"
    )
    profile = {"FASTDDS_DEFAULT_PROFILES_FILE": "/home/me/vpn.xml"}
    assert to_check(profile) == "ROS_DOMAIN_ID, FASTDDS_DEFAULT_PROFILES_FILE (now /home/me/vpn.xml)"
    assert to_check(profile_environment({})) == "ROS_DOMAIN_ID"
    assert to_check({"ROS_LOCALHOST_ONLY": "1"}) == "ROS_DOMAIN_ID, ROS_LOCALHOST_ONLY (now 1)"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "cannot be read: No such file"),
        ("<profiles", "is not an XML file"),
        ("<html/>", "its root element is html"),
        ('<profiles xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"/>', ""),
        ('<?xml version="1.0"?><dds><profiles/></dds>', ""),
    ],
)
@pytest.mark.parametrize("variable", ["FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"])
def test_a_profile_that_fast_dds_cannot_use_is_named(tmp_path, monkeypatch, caplog, variable, content, named):
    path = tmp_path / "fastdds.xml"
    if content is not None:
        path.write_text(content)
    problem = profile_problem({variable: str(path)})
    assert bool(problem) == bool(named) and named in problem
    if named:
        assert problem.startswith(f"{variable} is {path}, which ")
    _, line = profile_of({variable: str(path)})
    assert (line.state == "FAIL") == bool(named), line
    monkeypatch.setenv(variable, str(path))
    harness.set_up_dds()
    assert bool(caplog.messages) == bool(named)


def test_the_shipped_profile_is_usable():
    assert not profile_problem(profile_environment({}))


@pytest.mark.parametrize("text", ["", "0", "232", " 7 "])
def test_possible_domains(text):
    assert domain_problem({"ROS_DOMAIN_ID": text}) == "" == domain_problem({})


@pytest.mark.parametrize("text", ["233", "-1", "0x10", "a\x1b[31m"])
def test_impossible_domains_are_named_before_anything_starts(text, monkeypatch, capsys):
    problem = domain_problem({"ROS_DOMAIN_ID": text})
    assert problem.startswith("ROS_DOMAIN_ID is ") and "allowed: 0 to 232" in problem and problem.isprintable()
    monkeypatch.setenv("ROS_DOMAIN_ID", text)
    with pytest.raises(Raymap3rError, match="allowed: 0 to 232"):
        harness.set_up_dds()
    monkeypatch.setattr(sys, "argv", ["stream"])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        executable.main()
    assert ended.value.code == 2 and problem in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is handler and signal.set_wakeup_fd(-1) == -1
