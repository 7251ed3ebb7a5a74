"""Fixtures of all tests. Sets the environment before any test module imports rclpy or torch."""

import importlib
import importlib.util
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def claim_domain() -> tuple[int, socket.socket]:
    """A ROS domain that no other test run on this machine uses, and the lock that keeps it until the run ends."""
    start = os.getpid()
    for offset in range(100):
        domain = 1 + (start + offset) % 100  # above 101, DDS ports overlap the ephemeral ports of Linux
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(f"\0raymap3r_ros_test_domain_{domain}")
        except OSError:
            lock.close()
            continue
        return domain, lock
    raise RuntimeError("all 100 ROS domains are in use by other test runs on this machine")


# launch, which its pytest plugins import, replaces the class of loggers by one that passes nothing on to `caplog`.
logging.setLoggerClass(logging.Logger)
_domain, _domain_lock = claim_domain()
os.environ["ROS_DOMAIN_ID"] = str(_domain)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
# Otherwise rclpy silently sends a value of the wrong type as garbage.
os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"
_log_dir = tempfile.TemporaryDirectory(prefix="raymap3r_ros_test_log_", ignore_cleanup_errors=True)
os.environ.setdefault("ROS_LOG_DIR", _log_dir.name)
# What commands and nodes keep for later runs.
_home = tempfile.TemporaryDirectory(prefix="raymap3r_ros_test_home_", ignore_cleanup_errors=True)
os.environ["RAYMAP3R_HOME"] = _home.name
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg reads it once, when a process opens its first video
# Small networks do not benefit from more threads, which slow each other down on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than the number of cores, because many tests wait for processes or messages."""
    return min(4, len(os.sched_getaffinity(0)) + 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Run the longest files first, so that none of them runs alone at the end.
    first = ("test_golden.py", "test_demo.py", "test_player.py")
    items.sort(key=lambda item: item.path.name not in first)


def pytest_report_header() -> str:
    spec = importlib.util.find_spec("raymap3r_ros")
    return f"testing: {Path(spec.origin).parent if spec else 'raymap3r_ros is not installed'}, ROS domain {_domain}"


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's root: package.xml, launch/ and config/ are in it."""
    return ROOT


@pytest.fixture(scope="session")
def benchmark_script(root: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of benchmarks/ by its name. The script can import its neighbours."""
    folder = str(root / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout (golden values, recorded clips); skips if it is missing."""
    for path in (ROOT.parent / "shared", ROOT / "shared"):
        if path.is_dir():
            return path
    pytest.skip(f"the reference data are missing: no folder {ROOT.parent / 'shared'}")


@pytest.fixture(scope="session")
def tiny_config():
    """Configuration of a tiny network."""
    from raymap3r_ros.network import NetworkConfig

    return NetworkConfig(
        image_size=32,
        patch_size=8,
        encoder_width=16,
        encoder_depth=1,
        encoder_heads=2,
        ray_encoder_depth=1,
        ray_encoder_heads=2,
        decoder_width=16,
        decoder_depth=2,
        decoder_heads=2,
        state_heads=4,
        state_tokens=6,
        memory_slots=4,
        memory_depth=1,
        memory_heads=2,
        modulation_depth=1,
        head_type="linear",
    )


@pytest.fixture(autouse=True)
def seed() -> None:
    """Seed torch, so that every run uses the same random numbers."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def ros():
    """rclpy, initialised for one test and shut down after it."""
    import rclpy

    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()
