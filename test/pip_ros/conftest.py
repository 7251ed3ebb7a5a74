"""Tests of the overlay for pip environments. They run only if Python imports the overlay."""

import importlib.metadata

import pytest


@pytest.fixture(scope="session", autouse=True)
def overlay():
    try:
        importlib.metadata.version("raymap3r-pip-ros")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the overlay is not installed: tf2_ros, cv_bridge and sensor_msgs_py are a ROS distribution's own")
