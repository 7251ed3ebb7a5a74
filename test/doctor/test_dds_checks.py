"""Large messages: shared memory, the profile, and the round trip between processes."""

import importlib.util
import shutil
import sys

import pytest
import torch

from raymap3r_ros.doctor import dds
from raymap3r_ros.doctor.lines import FAIL, OK, WARNING, Target
from raymap3r_ros.streaming import StreamOptions

TARGET = Target("one_room", StreamOptions(), torch.device("cpu"))
needs_ros = pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="ROS 2 is not installed")
MIB = 2**20


@pytest.mark.parametrize(("free", "state"), [(64 * MIB, FAIL), (200 * MIB, WARNING), (300 * MIB, OK)])
def test_shared_memory(free, state, tmp_path, monkeypatch):
    (tmp_path / "fastrtps_1").write_bytes(b"")
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    line = dds.check_shared_memory(tmp_path)
    assert line.state == state and line.values["files"] == 1
    assert ("--shm-size 1g" in line.remedy) == (state != OK)


def test_no_shared_memory(tmp_path):
    line = dds.check_shared_memory(tmp_path / "absent")
    assert line.state == WARNING and line.remedy


def test_shared_memory_of_another_rmw(monkeypatch):
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_cyclonedds_cpp")
    monkeypatch.setattr(dds, "profile_of", lambda environment: ({}, "profile"))
    monkeypatch.setattr(dds, "round_trip", lambda added: "round trip")
    monkeypatch.setitem(sys.modules, "rclpy", sys)
    domain, *others = dds.check(TARGET)
    assert (domain.name, domain.state) == ("domain", OK) and others == ["profile", "round trip"]
    monkeypatch.delenv("RMW_IMPLEMENTATION")
    assert len(list(dds.check(TARGET))) == 4
    monkeypatch.setenv("ROS_DOMAIN_ID", "300")
    domain = next(dds.check(TARGET))
    assert domain.state == FAIL and domain.found.startswith("ROS_DOMAIN_ID is 300; allowed: 0 to 232")
    monkeypatch.delenv("ROS_DOMAIN_ID")
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "OFF")
    domain = next(dds.check(TARGET))
    assert domain.state == FAIL and domain.found == "ROS_AUTOMATIC_DISCOVERY_RANGE is OFF: no node finds another one"
    assert domain.remedy.startswith("unset it")


def test_without_rclpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "rclpy", None)
    (line,) = dds.check(TARGET)
    assert line.state == WARNING and "ROS 2 not found" in line.found


@needs_ros
def test_profile(tmp_path, monkeypatch):
    added, line = dds.profile_of({})
    assert line.state == OK and list(added) == ["FASTDDS_DEFAULT_PROFILES_FILE"] and "config/fastdds.xml" in line.found
    added, line = dds.profile_of({"FASTDDS_BUILTIN_TRANSPORTS": "UDPv4"})
    assert not added and line.state == OK and "of the user: FASTDDS_BUILTIN_TRANSPORTS=UDPv4" in line.found
    _, line = dds.profile_of({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"})
    assert line.state == OK and "rmw_cyclonedds_cpp" in line.found
    from raymap3r_ros.node import dds_profile

    monkeypatch.setattr(dds_profile, "profile_environment", lambda environment: {"X": str(tmp_path / "absent.xml")})
    _, line = dds.profile_of({})
    assert line.state == FAIL and "install the package again" in line.remedy


@needs_ros
def test_images_come_back():
    line = dds.round_trip(dds.profile_of({})[0])
    assert line.state in (OK, WARNING), line  # a loaded machine may be slow
    assert line.values["sent"] == 20 and len(line.values["milliseconds"]) >= 15
    assert line.values["bytes"] == 1920 * 1080 * 3 and "20 images of 6.2 MB came back (rmw_" in line.found


def module(tmp_path, monkeypatch, text):
    """Replace the module of both processes by one with this text."""
    (tmp_path / "doctor_stand_in.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(dds, "ROUND_TRIP", "doctor_stand_in")


def test_process_that_dies(tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, "import sys\nsys.exit('librmw_absent.so: cannot open shared object file')\n")
    line = dds.round_trip({})
    assert line.state == FAIL and "measuring process ended with status 1: librmw_absent.so" in line.found
    assert "RMW_IMPLEMENTATION" in line.remedy


def test_echo_that_dies(tmp_path, monkeypatch):
    """The measuring process finds no partner; the reason is in the output of the other one."""
    module(
        tmp_path,
        monkeypatch,
        "import os, sys\n"
        f"pid = {str(tmp_path / 'pid')!r}\n"
        "if sys.argv[1] == 'echo':\n"
        "    os.mkfifo(pid)\n"
        "    file = open(pid, 'w')\n"  # opens when the other process reads, which then waits for this one's end
        "    sys.exit('bad node')\n"
        "while not os.path.exists(pid):\n"
        "    pass\n"
        "open(pid).read()\n"
        'print(\'{"rmw": "rmw_x", "sent": 0, "milliseconds": []}\')\n',
    )
    line = dds.round_trip({})
    assert line.state == FAIL and "the echoing process ended with status 1: bad node" in line.found


def test_process_that_hangs(tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, "import signal\nsignal.pause()\n")
    line = dds.round_trip({}, limit=0.2)
    assert line.state == FAIL and "did not end within" in line.found


def test_reports():
    report = {"rmw": "rmw_x", "bytes": 6_220_800, "sent": 20, "milliseconds": [10.0] * 20}
    assert dds.judge(report).state == OK
    lost = dds.judge({**report, "milliseconds": [10.0] * 19})
    assert lost.state == WARNING and lost.found.startswith("19 of 20 images of 6.2 MB came back (rmw_x)")
    assert "Large messages" in lost.remedy
    assert dds.judge({**report, "milliseconds": [300.0] * 20}).state == WARNING
    assert dds.judge({**report, "milliseconds": []}).state == FAIL
    apart = dds.judge({**report, "sent": 0, "milliseconds": []})
    assert apart.state == FAIL and "did not connect" in apart.found
