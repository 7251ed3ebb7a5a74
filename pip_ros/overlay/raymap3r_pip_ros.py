"""Register a virtual environment that contains the ROS wheels as a ROS install prefix.

The .pth file of the same name runs this at every start of the environment's Python, so that no environment variable
has to be set by hand.
"""

import os
import sys


def add_prefix(path: str, prefix: str) -> str:
    """`path`, a list joined by os.pathsep, with `prefix` in front unless it is contained already."""
    prefixes = [item for item in path.split(os.pathsep) if item]
    return os.pathsep.join(prefixes if prefix in prefixes else [prefix, *prefixes])


def log_directory(environment: dict) -> str | None:
    """Return a folder for the logs of ROS; None if ROS finds one itself: the user's choice, or the home folder."""
    home = environment.get("HOME")
    if environment.get("ROS_LOG_DIR") or environment.get("ROS_HOME") or (home and os.access(home, os.W_OK)):
        return None
    import tempfile  # imported here because it is slow, and this runs at every start of Python

    return os.path.join(tempfile.gettempdir(), f"ros_log_{os.getuid()}")


# The wheels' own .pth file is read after this one. It restarts Python with the path of their libraries and sets a
# variable. If another environment's Python started this one, its variable is not valid here.
if os.path.join(sys.prefix, "lib") not in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep):
    os.environ.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None)

# ament_index_python finds nothing without this variable.
os.environ["AMENT_PREFIX_PATH"] = add_prefix(os.environ.get("AMENT_PREFIX_PATH", ""), sys.prefix)

# rclpy does not start if it cannot write its logs, as in a container without a home folder.
if (_log_directory := log_directory(os.environ)) is not None:
    os.environ["ROS_LOG_DIR"] = _log_directory
