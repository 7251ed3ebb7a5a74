"""The layouts for RViz and Foxglove show topics of the node with compatible QoS and types."""

import json
import re

import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import OccupancyGrid, Odometry, Path
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from raymap3r_ros.node.conversions import POINT_FIELDS
from raymap3r_ros.node.diagnostics import Monitor
from raymap3r_ros.node.map_publisher import MAP_TOPICS
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.publishers import TOPICS

NODE = "/raymap3r"
OFFERED = {
    **{f"{NODE}/{name}": topic for name, topic in {**TOPICS, **MAP_TOPICS}.items()},
    "/diagnostics": (DiagnosticArray, QoSProfile(depth=1)),
}
SHOWN = {"rgb", "dynamic_mask", "dynamic_map", "depth", "points", "static_map", "trajectory", "trajectory_raw"}

RVIZ_TYPES = {
    "rviz_default_plugins/Image": Image,
    "rviz_default_plugins/Camera": Image,
    "rviz_default_plugins/PointCloud2": PointCloud2,
    "rviz_default_plugins/Path": Path,
    "rviz_default_plugins/Odometry": Odometry,
    "rviz_default_plugins/Map": OccupancyGrid,
}
RVIZ_WITHOUT_TOPIC = {"rviz_default_plugins/Grid", "rviz_default_plugins/TF", "rviz_common/Group"}
RELIABILITY = {"Best Effort": ReliabilityPolicy.BEST_EFFORT, "Reliable": ReliabilityPolicy.RELIABLE}
DURABILITY = {"Volatile": DurabilityPolicy.VOLATILE, "Transient Local": DurabilityPolicy.TRANSIENT_LOCAL}


@pytest.fixture(scope="module")
def rviz(root):
    return yaml.safe_load((root / "config" / "raymap3r.rviz").read_text())


@pytest.fixture(scope="module")
def foxglove(root):
    return json.loads((root / "config" / "foxglove.json").read_text())


def displays_in(group):
    """Every display, including those in groups, and whether it is enabled."""
    for display in group["Displays"]:
        yield display, display["Enabled"]
        if "Displays" in display:
            yield from ((one, on and display["Enabled"]) for one, on in displays_in(display))


@pytest.fixture(scope="module")
def displays(rviz):
    return list(displays_in(rviz["Visualization Manager"]))


def profile(topic):
    return QoSProfile(
        depth=topic["Depth"],
        history=HistoryPolicy.KEEP_LAST,
        reliability=RELIABILITY[topic["Reliability Policy"]],
        durability=DURABILITY[topic["Durability Policy"]],
    )


# --------------------------------------------------------------------------------------------------------------- RViz


def test_rviz_subscribes_to_what_the_node_publishes(displays):
    for display, _ in displays:
        if "Topic" not in display:
            assert display["Class"] in RVIZ_WITHOUT_TOPIC, display["Name"]
            continue
        kind, offered = OFFERED[display["Topic"]["Value"]]
        assert RVIZ_TYPES[display["Class"]] is kind, display["Name"]
        assert display["Topic"]["History Policy"] == "Keep Last"
        wanted = profile(display["Topic"])
        compatibility, reason = qos_check_compatible(offered, wanted)
        assert compatibility != QoSCompatibility.ERROR, f"{display['Name']}: {reason}"
        # As offered: RViz receives the latched map immediately, and no image waits for a lost one.
        assert wanted.durability == offered.durability, display["Name"]
        assert wanted.reliability == offered.reliability, display["Name"]


def test_rviz_shows_all_main_outputs(displays):
    shown = {display["Topic"]["Value"] for display, on in displays if on and "Topic" in display}
    assert {f"{NODE}/{name}" for name in (*SHOWN, "odometry")} <= shown
    hidden = {display["Topic"]["Value"] for display, on in displays if not on and "Topic" in display}
    assert f"{NODE}/occupancy" in hidden - shown
    assert ("rviz_default_plugins/TF", True) in [(display["Class"], on) for display, on in displays]
    for display, _ in displays:
        assert display.get("Value", display["Enabled"]) == display["Enabled"], display["Name"]


def test_rviz_uses_the_world_frame(rviz):
    assert rviz["Visualization Manager"]["Global Options"]["Fixed Frame"] == NodeOptions().world_frame


def test_clouds_in_rviz_are_coloured_by_existing_fields(displays):
    fields = {field.name for field in POINT_FIELDS}
    transformers = {"RGB8": {"rgb"}, "Intensity": None}
    clouds = [display for display, _ in displays if display["Class"] == "rviz_default_plugins/PointCloud2"]
    assert len(clouds) == 3
    for cloud in clouds:
        needed = transformers[cloud["Color Transformer"]] or {cloud["Channel Name"]}
        assert needed <= fields, cloud["Name"]


def test_rviz_does_not_truncate_the_range_of_float_images(displays):
    """Since Jazzy, RViz truncates fixed limits and medians of several images to whole numbers, here metres."""
    images = [display for display, _ in displays if display["Class"].endswith("/Image")]
    for image in images:
        if image["Topic"]["Value"] not in (f"{NODE}/rgb", f"{NODE}/dynamic_mask"):  # these have 8 bits, no range
            limits = image["Min Value"], image["Max Value"]
            exact = image["Median window"] == 1 if image["Normalize Range"] else limits == tuple(map(int, limits))
            assert exact, image["Name"]
    (depth,) = (image for image in images if image["Name"] == "Depth")
    assert depth["Normalize Range"], "the same layout shows metres (32FC1) and millimetres (16UC1)"


def test_panes_and_overlay_of_rviz_name_existing_displays(rviz, displays):
    names = {display["Name"] for display, _ in displays}
    assert len(names) == len(displays)
    panes = {name for name, value in rviz["Window Geometry"].items() if isinstance(value, dict)}
    pictures = {display["Name"] for display, _ in displays if display["Class"].endswith(("/Image", "/Camera"))}
    assert panes == pictures | {panel["Class"].partition("/")[2] for panel in rviz["Panels"]}
    # Qt stores the names of the panes in UTF-16, each with its position.
    state = bytes.fromhex(rviz["Window Geometry"]["QMainWindow State"])
    assert all(name.encode("utf-16-be") in state for name in panes)

    (camera,) = (display for display, _ in displays if display["Class"].endswith("/Camera"))
    visibility = dict(camera["Visibility"])
    assert visibility.pop("Value") is True
    inside = visibility.pop("Mask overlay")
    assert inside == {"Moving points": True, "Value": True} and "Moving points" in names
    assert visibility.keys() == names - {"Mask overlay", "Moving points", "Mask over image"}
    assert not any(visibility.values())


# ----------------------------------------------------------------------------------------------------------- Foxglove

FOXGLOVE_SCENE_TYPES = (PointCloud2, Path, CameraInfo, OccupancyGrid, Image)


def test_foxglove_shows_topics_of_the_node_in_panels_of_their_type(foxglove):
    for name, panel in foxglove["configById"].items():
        for topic in panel.get("topics", {}):
            assert OFFERED[topic][0] in FOXGLOVE_SCENE_TYPES, name
        mode = panel.get("imageMode", {})
        if name.startswith("Image!"):
            assert OFFERED[mode["imageTopic"]][0] is Image, name
            assert OFFERED[mode["calibrationTopic"]][0] is CameraInfo, name
        for path in panel.get("paths", []):
            assert OFFERED[path["value"].partition(".")[0]][0] is DiagnosticArray and path["enabled"], name
        if "topicToRender" in panel:
            assert OFFERED[panel["topicToRender"]][0] is DiagnosticArray, name


def test_foxglove_shows_all_main_outputs(foxglove):
    panels = foxglove["configById"]
    scene = panels["3D!scene"]
    shown = {topic for topic, settings in scene["topics"].items() if settings["visible"]}
    shown |= {panel["imageMode"]["imageTopic"] for name, panel in panels.items() if name.startswith("Image!")}
    assert {f"{NODE}/{name}" for name in SHOWN} <= shown
    assert scene["topics"][f"{NODE}/occupancy"]["visible"] is False
    assert scene["followTf"] == NodeOptions().world_frame
    assert {name.partition("!")[0] for name in panels} >= {"3D", "Image", "Plot", "DiagnosticSummary"}


def test_clouds_in_foxglove_are_coloured_by_existing_fields(foxglove):
    fields = {field.name for field in POINT_FIELDS}
    settings = [
        one
        for panel in foxglove["configById"].values()
        for topic, one in panel.get("topics", {}).items()
        if OFFERED[topic][0] is PointCloud2
    ]
    assert {one["colorField"] for one in settings} == {"rgb", "dynamic"} <= fields


def test_foxglove_plots_values_of_the_diagnostics(foxglove):
    monitor = Monitor()
    monitor.published(0.1, 0.05, {})
    status = monitor.status(NODE, "active", {})
    published = {item.key: item.value for item in status.values}
    paths = [path["value"] for panel in foxglove["configById"].values() for path in panel.get("paths", [])]
    assert len(paths) == 6
    for path in paths:
        found = re.fullmatch(r'/diagnostics\.status\[:\]\{name=="(.+)"\}\.values\[:\]\{key=="(.+)"\}\.value', path)
        assert found[1] == status.name
        assert float(published[found[2]]) >= 0


def test_foxglove_finds_the_status_of_the_node(foxglove):
    status = Monitor().status(NODE, "active", {"device": "cpu"})
    panel = foxglove["configById"]["DiagnosticStatusPanel!stream"]
    assert (panel["selectedHardwareId"], panel["selectedName"]) == (status.hardware_id, status.name)


def test_every_panel_of_foxglove_has_one_place(foxglove):
    def places(node):
        return [node] if isinstance(node, str) else places(node["first"]) + places(node["second"])

    assert sorted(places(foxglove["layout"])) == sorted(foxglove["configById"])
