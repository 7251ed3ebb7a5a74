"""Parts of the harness that the tests of the demo and the benchmarks do not cover."""

import itertools
import os
import time

import pytest

from raymap3r_ros.clients import harness
from raymap3r_ros.errors import Raymap3rError


def test_dds_environment_keeps_the_users_choice(monkeypatch):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ROS_", "FAST"))}
    chosen = {"ROS_DOMAIN_ID": "7", "FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA", "ROS_DISCOVERY_SERVER": "nowhere:1"}
    environment = {**kept, **chosen, "ROS_DISTRO": "humble"}
    monkeypatch.setattr(os, "environ", environment)
    harness.set_up_dds(localhost=False, own_domain=True, alone=False)
    assert environment == {**kept, **chosen, "ROS_DISTRO": "humble"}
    for name in ("ROS_DOMAIN_ID", "FASTDDS_BUILTIN_TRANSPORTS"):
        del environment[name]
    harness.set_up_dds(own_domain=True)
    assert "ROS_DISCOVERY_SERVER" not in environment, "of programs that this process starts, all are on this machine"
    assert environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert 1 <= int(environment["ROS_DOMAIN_ID"]) <= 100
    assert environment["FASTRTPS_DEFAULT_PROFILES_FILE"].endswith("fastdds.xml")


def test_discovery_that_is_off_is_refused_unless_all_programs_are_started_here(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "OFF")
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    with pytest.raises(Raymap3rError, match=r"ROS_AUTOMATIC_DISCOVERY_RANGE is OFF: no node finds another one; unset"):
        harness.set_up_dds(localhost=False, alone=False)
    harness.set_up_dds()
    assert os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"


def test_security_without_a_key_is_an_error_in_words(monkeypatch, tmp_path):
    monkeypatch.setenv("ROS_SECURITY_ENABLE", "true")
    monkeypatch.setenv("ROS_SECURITY_STRATEGY", "Enforce")
    monkeypatch.setenv("ROS_SECURITY_KEYSTORE", str(tmp_path))
    text = r"ROS 2 cannot be initialised: .*SECURITY ERROR.*check the variables ROS_"
    with pytest.raises(Raymap3rError, match=text), harness.camera_node("/here"):
        pass


def test_back_and_forth_repeats_no_image_at_the_turns():
    assert list(itertools.islice(harness.back_and_forth("abc"), 9)) == list("abcbabcba")
    assert list(itertools.islice(harness.back_and_forth("a"), 3)) == list("aaa")


def test_paced_items_are_not_early():
    begin = time.monotonic()
    times = [time.monotonic() - begin for _ in harness.paced(range(4), 50.0)]
    assert all(moment >= 0.02 * index - 1e-3 for index, moment in enumerate(times))


def test_subscriber_that_fails_is_an_error():
    with (
        pytest.raises(Raymap3rError, match="the subscriber has ended; its own message is above"),
        harness.running_harness("/failing", {"checkpoint": "mini"}, len) as running,  # a node has no length
    ):
        running.wait_until_connected()
    assert running.process.poll() is not None
