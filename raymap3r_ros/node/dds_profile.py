"""The Fast DDS profile for large messages between processes (see config/fastdds.xml)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from ament_index_python import get_resources
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

from raymap3r_ros.text import printable

# If one of these is set, the user has chosen a transport. Fast DDS 3 (ROS 2 Kilted and later) reads profiles from the
# first, Fast DDS 2 from the second. If both are set, Fast DDS 3 reads the file twice and reports errors.
USER_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_BUILTIN_TRANSPORTS")
MAX_DOMAIN = 232  # port numbers end there
FAST_DDS_2_DISTROS = ("humble", "iron", "jazzy")
RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
# Values with which some nodes, or all, are not discovered.
_NARROW = {RANGE: ("OFF", "LOCALHOST"), "ROS_LOCALHOST_ONLY": ("1",)}


def config_file(name: str) -> Path:
    """Path of a file in config/, of the installed package or of the source checkout."""
    try:
        share = Path(get_package_share_directory("raymap3r_ros"))
    except PackageNotFoundError:
        share = Path(__file__).resolve().parents[2]
    return share / "config" / name


def profile_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to `environment` for the shipped profile; none if the user has chosen a transport."""
    if any(environment.get(name) for name in USER_VARIABLES):
        return {}
    name = USER_VARIABLES[environment.get("ROS_DISTRO") in FAST_DDS_2_DISTROS]
    return {name: str(config_file("fastdds.xml"))}


def profile_problem(environment: Mapping[str, str]) -> str:
    """What is wrong with the user's Fast DDS profile, and what to do; "" if nothing is wrong, or if there is none."""
    for name in USER_VARIABLES[:2]:
        path = environment.get(name, "")
        if not path:
            continue
        try:
            root = ElementTree.parse(path).getroot().tag
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
        except ElementTree.ParseError as error:
            problem = f"is not an XML file: {error}"
        else:
            if root.rpartition("}")[2] in ("profiles", "dds", "DDS"):
                continue
            problem = f"contains no Fast DDS profiles: its root element is {printable(root, 40)}"
        return (
            f"{name} is {printable(path, 200)}, which {problem}. Fast DDS ignores it, and large images are lost; "
            "correct the path, or unset the variable to use the profile of this package"
        )
    return ""


def to_check(environment: Mapping[str, str]) -> str:
    """What determines which nodes are discovered, for the end of a message: "check ..."."""
    text = "ROS_DOMAIN_ID"
    for name, narrow in _NARROW.items():
        if environment.get(name) in narrow:
            text += f", {name} (now {environment[name]})"
    for name in (*USER_VARIABLES, "CYCLONEDDS_URI"):
        value = environment.get(name)
        if value and value != str(config_file("fastdds.xml")):
            text += f", {name} (now {printable(value, 100)})"
    server = environment.get("ROS_DISCOVERY_SERVER", "")
    return text + (f", and that a discovery server runs at {printable(server, 60)}" if server else "")


def rmw_problem(environment: Mapping[str, str]) -> str:
    """Why rclpy would end the process when it is imported, and what to do; "" if nothing is wrong."""
    chosen = printable(environment.get("RMW_IMPLEMENTATION", ""), 60)
    if not chosen:
        return ""
    try:
        installed = [name for name in sorted(get_resources("rmw_typesupport")) if name != "rmw_implementation"]
    except OSError:  # no AMENT_PREFIX_PATH
        installed = []
    if chosen in installed or not installed:
        return ""
    return (
        f"RMW_IMPLEMENTATION is {chosen}, which is not installed; installed: {', '.join(installed)}. Unset it, or "
        f"install ros-DISTRIBUTION-{chosen.replace('_', '-')}"
    )


def discovery_problem(environment: Mapping[str, str]) -> str:
    """Why nodes cannot find each other, even on one machine, and what to do; "" if nothing is wrong."""
    if environment.get(RANGE) != "OFF" or environment.get("ROS_DISTRO") == "humble":  # which does not read it
        return ""
    return f"{RANGE} is OFF: no node finds another one; unset it, or set it to LOCALHOST or SUBNET"


def domain_problem(environment: Mapping[str, str]) -> str:
    """What is wrong with the number of the ROS domain, and what to do; "" if nothing is."""
    text = environment.get("ROS_DOMAIN_ID", "").strip()
    if not text or (text.isdecimal() and int(text) <= MAX_DOMAIN):
        return ""
    return (
        f"ROS_DOMAIN_ID is {printable(text, 40)}; allowed: 0 to {MAX_DOMAIN}, the same for all machines of the robot"
    )
