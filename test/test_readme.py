"""The README keeps up with the package. What it shares with docs/ is in test_docs.py."""

import re
from pathlib import Path

import pytest

# Of benchmarks/, what the scripts share.
MODULES = {"common.py", "naive.py"}


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "README.md").read_text()


def section(text: str, heading: str) -> str:
    """What stands under a heading."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_every_room_is_found(text: str, root: Path):
    rooms = {f"raymap3r_ros/{path.parent.name}/" for path in root.glob("raymap3r_ros/*/__init__.py")}
    shown = re.findall(r"^(raymap3r_ros/\w+/) ", section(text, "Finding your way"), re.MULTILINE)
    assert rooms and rooms == set(shown)


def test_every_page_of_the_docs_is_linked(text: str, root: Path):
    linked = set(re.findall(r"\]\((docs/\w+\.md)", text))
    assert {path.relative_to(root).as_posix() for path in root.glob("docs/*.md")} == linked


def test_every_output_is_told(text: str):
    pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    from raymap3r_ros.node.map_publisher import MAP_TOPICS
    from raymap3r_ros.node.publishers import TOPICS

    told = set(re.findall(r"`~/(\w+)`", section(text, "In ROS 2")))
    assert {*TOPICS, *MAP_TOPICS} <= told


def test_every_benchmark_is_shown(root: Path):
    pages = "".join(path.read_text() for path in (root / "README.md", root / "Makefile", *root.glob("docs/*.md")))
    scripts = {path.name for path in root.glob("benchmarks/*.py")} - MODULES
    assert scripts and {name for name in scripts if f"benchmarks/{name}" not in pages} == set()
