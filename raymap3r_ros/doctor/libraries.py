"""Versions of Python, torch and the libraries, and of ROS 2."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator

import torch

from raymap3r_ros import __version__
from raymap3r_ros.doctor.lines import FAIL, OK, WARNING, Line, Target

NAME = "libraries"
# Import and distributions of the same library.
REQUIRED = {
    "numpy": ("numpy",),
    "cv2": ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "PIL": ("pillow",),
    "safetensors": ("safetensors",),
    "rosbags": ("rosbags",),
    "yaml": ("pyyaml",),
}
OPTIONAL = {"rerun": ("rerun-sdk",), "evo": ("evo",)}
ROS_REMEDY = (
    "for the node, source your ROS installation (source /opt/ros/DISTRO/setup.bash), or run `make`, which installs "
    "rclpy from PyPI; `raymap3r run` needs no ROS"
)


def check(target: Target) -> Iterator[Line]:
    """Lines about versions."""
    cuda = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if torch.version.cuda else "CPU build"
    versions = {"raymap3r_ros": __version__, "python": platform.python_version(), "torch": torch.__version__}
    found = f"{versions['python']}, raymap3r_ros {__version__}, torch {torch.__version__} ({cuda})"
    yield Line(NAME, "Python", OK, found, values={**versions, "cuda": torch.version.cuda})
    versions = {name: version_of(name, *names) for name, names in (REQUIRED | OPTIONAL).items()}
    missing = [REQUIRED[name][0] for name in REQUIRED if versions[name] is None]
    text = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    if missing:
        yield Line(
            NAME, "packages", FAIL, f"missing: {', '.join(missing)}; found: {text}",
            f"python3 -m pip install {' '.join(missing)}", versions,
        )  # fmt: skip
    else:
        yield Line(NAME, "packages", OK, text, values=versions)
    yield _ros()


def version_of(module: str, *distributions: str) -> str | None:
    """Version of an importable library, "unknown" if it has no metadata; None if it is not installed."""
    if importlib.util.find_spec(module) is None:
        return None
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _ros() -> Line:
    version, distro = version_of("rclpy", "rclpy"), os.environ.get("ROS_DISTRO", "")
    if version is None:
        sourced = f" (ROS_DISTRO is {distro}, but its Python is another one)" if distro else ""
        return Line(NAME, "ROS 2", WARNING, f"ROS 2 not found: no rclpy{sourced}", ROS_REMEDY)
    rmw = os.environ.get("RMW_IMPLEMENTATION", "")
    found = f"rclpy {version}, {distro or 'no distribution sourced'}, RMW {rmw or 'of the default'}"
    return Line(NAME, "ROS 2", OK, found, values={"rclpy": version, "ros_distro": distro, "rmw": rmw})
