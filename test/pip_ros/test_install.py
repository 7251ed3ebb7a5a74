"""Checks of pip_ros/install.py before it installs anything, in bare environments. No network is needed."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

raymap3r_pip_ros = pytest.importorskip("raymap3r_pip_ros", reason="the overlay is not installed")
ROOT = Path(__file__).resolve().parents[2]
NEEDED = runpy.run_path(str(ROOT / "pip_ros" / "install.py"))["NEEDED"]


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """The Python of a virtual environment in which nothing is installed."""
    folder = tmp_path_factory.mktemp("bare")
    base = os.path.realpath(sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


@pytest.fixture
def install(bare_python, tmp_path):
    """Runs install.py with only the named packages importable; returns exit status and output."""

    def run(packages=(), python=bare_python, **environment):
        for name in packages:
            (tmp_path / "site" / name).mkdir(parents=True)
            (tmp_path / "site" / name / "__init__.py").touch()
        done = subprocess.run(
            [python, ROOT / "pip_ros" / "install.py"],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "site"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    return run


def test_a_distribution_is_not_changed(install, bare_python):
    before = sorted(bare_python.parents[1].rglob("*"))
    status, output = install(NEEDED, ROS_DISTRO="jazzy")
    assert status == 0 and "ROS 2 jazzy supplies every ROS package" in output
    assert sorted(bare_python.parents[1].rglob("*")) == before


def test_packages_built_from_source_are_not_changed(install):
    status, output = install(NEEDED)
    assert status == 0 and "none is installed" in output


def test_an_incomplete_distribution(install):
    status, output = install([name for name in NEEDED if name not in ("cv_bridge", "tf2_ros")], ROS_DISTRO="jazzy")
    assert status and "sudo apt install ros-jazzy-tf2-ros ros-jazzy-cv-bridge" in output


def test_the_wrong_python_for_a_distribution(install):
    status, output = install(ROS_DISTRO="jazzy")
    assert status and "does not find its rclpy" in output and "PYTHON=/usr/bin/python3" in output


def test_incomplete_packages_without_a_distribution(install):
    status, output = install(["tf2_ros"])
    assert status and "tf2_ros is here, but not rclpy" in output


def test_no_compiler(install):
    status, output = install(PATH="/nowhere")
    assert status and "sudo apt install build-essential python3-dev" in output
    assert len(output.splitlines()) == 2


def test_not_a_virtual_environment(install):
    status, output = install(python=os.path.realpath(sys.executable), PYTHONNOUSERSITE="1")
    assert status and "is not a virtual environment's Python" in output


def test_an_environment_with_the_overlay_under_a_distribution(install):
    status, output = install(python=sys.executable, ROS_DISTRO="jazzy")
    assert status and "was made without it" in output and "make clean" in output


def test_the_prefix_is_added_once():
    sep = os.pathsep
    assert raymap3r_pip_ros.add_prefix("", "/v") == "/v"
    assert raymap3r_pip_ros.add_prefix(f"/a{sep}/b", "/v") == f"/v{sep}/a{sep}/b"
    assert raymap3r_pip_ros.add_prefix(f"/a{sep}/v", "/v") == f"/a{sep}/v"


@pytest.mark.parametrize("environment", [{}, {"HOME": ""}, {"HOME": "/nowhere"}])
def test_rclpy_starts_without_a_home(environment, tmp_path):
    code = "import rclpy, os; rclpy.init(); rclpy.create_node('x'); print(os.environ['ROS_LOG_DIR'])"
    kept = {name: os.environ[name] for name in ("PATH", "ROS_DOMAIN_ID")}
    environment = {**kept, "TMPDIR": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / f"ros_log_{os.getuid()}")


def test_python_started_from_another_environment(tmp_path):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "import rclpy; rclpy.init()"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_logs_stay_where_the_user_wants_them(tmp_path):
    for environment in ({"HOME": str(tmp_path)}, {"ROS_LOG_DIR": "/logs"}, {"ROS_HOME": "/ros", "HOME": ""}):
        assert raymap3r_pip_ros.log_directory(environment) is None
