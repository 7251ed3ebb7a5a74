"""Makes a virtual environment that holds the ROS wheels known as a ROS install prefix.

Run at every start of the environment's Python, by the .pth file of the same name, so that nobody has to set a
variable by hand.
"""

import os
import sys


def add_prefix(path: str, prefix: str) -> str:
    """`path`, a list joined by os.pathsep, with `prefix` in front unless it is there already."""
    prefixes = [item for item in path.split(os.pathsep) if item]
    return os.pathsep.join(prefixes if prefix in prefixes else [prefix, *prefixes])


def log_directory(environment: dict) -> str | None:
    """Where ROS shall write its logs; None where it finds a place by itself: the user's choice, or the home."""
    home = environment.get("HOME")
    if environment.get("ROS_LOG_DIR") or environment.get("ROS_HOME") or (home and os.access(home, os.W_OK)):
        return None
    import tempfile  # here only: it is slow to import, and this runs at every start of Python

    return os.path.join(tempfile.gettempdir(), f"ros_log_{os.getuid()}")


# The wheels' own .pth file, read after this one, starts Python anew with the path of their libraries, and leaves a
# mark in the environment. Where another environment's Python started this one, its mark means nothing here.
if os.path.join(sys.prefix, "lib") not in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep):
    os.environ.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None)

# ament_index_python finds nothing without this variable.
os.environ["AMENT_PREFIX_PATH"] = add_prefix(os.environ.get("AMENT_PREFIX_PATH", ""), sys.prefix)

# rclpy does not start where it cannot write its logs, as in a container without a home.
if (_log_directory := log_directory(os.environ)) is not None:
    os.environ["ROS_LOG_DIR"] = _log_directory
