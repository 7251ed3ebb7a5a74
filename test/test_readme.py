"""The README keeps up with the package."""

import re
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from raymap3r_ros.node.options import NodeOptions
from raymap3r_ros.node.outputs import TOPICS
from raymap3r_ros.options import option_fields
from raymap3r_ros.streaming import StreamOptions


def code_in(path: Path, heading: str) -> set[str]:
    """What stands in backticks under a heading."""
    section = re.split(rf"^#+ {heading}$", path.read_text(), flags=re.MULTILINE)[1]
    return set(re.findall(r"`([^`]+)`", re.split(r"^#+ ", section, flags=re.MULTILINE)[0]))


def test_every_parameter_is_in_the_table(root: Path):
    names = {name for options in (NodeOptions, StreamOptions) for name, _ in option_fields(options)}
    assert names <= code_in(root / "README.md", "Parameters")


def test_every_topic_is_in_the_table(root: Path):
    assert {f"~/{name}" for name in TOPICS} <= code_in(root / "README.md", "Topics")


def test_every_file_that_is_linked_is_there(root: Path):
    text = (root / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("http", "#"))]
    assert links and all((root / link).exists() for link in links)
