"""The Fast DDS profile without which large messages are lost between processes (see config/fastdds.xml)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

# Who has set any of these has chosen a transport already. Fast DDS 3 (ROS 2 Kilted and later) reads the first for its
# profiles, Fast DDS 2 the second; where both are set, 3 reads the file twice and complains.
USER_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_BUILTIN_TRANSPORTS")
FAST_DDS_2_DISTROS = ("humble", "iron", "jazzy")


def config_file(name: str) -> Path:
    """Path of a file of config/: of the installed package, or of the checkout that this module is run from."""
    try:
        share = Path(get_package_share_directory("raymap3r_ros"))
    except PackageNotFoundError:
        share = Path(__file__).resolve().parents[2]
    return share / "config" / name


def profile_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to `environment` for the shipped profile; none where the user has made a choice."""
    if any(environment.get(name) for name in USER_VARIABLES):
        return {}
    name = USER_VARIABLES[environment.get("ROS_DISTRO") in FAST_DDS_2_DISTROS]
    return {name: str(config_file("fastdds.xml"))}
