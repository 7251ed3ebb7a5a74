"""README.md and its linked pages agree with the package. Checks of all pages are in test_docs.py."""

import re
from pathlib import Path

import pytest

# Modules in benchmarks/ that the scripts share.
MODULES = {"common.py", "naive.py", "openmp.py"}


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "README.md").read_text()


def section(text: str, heading: str) -> str:
    """The text under a heading."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_the_readme_stays_short(text: str):
    assert len(text.splitlines()) <= 140


def test_the_two_commands_are_shown(text: str):
    assert re.search(r"^make demo .*\nmake test .*", section(text, "Two commands"), re.MULTILINE)


def test_every_room_is_in_the_architecture(root: Path):
    rooms = {f"raymap3r_ros/{path.parent.name}/" for path in root.glob("raymap3r_ros/*/__init__.py")}
    page = (root / "docs" / "architecture.md").read_text()
    shown = re.findall(r"^\| \d+ \| `(raymap3r_ros/\w+/)` \|", section(page, "Rooms"), re.MULTILINE)
    assert rooms and sorted(rooms) == sorted(shown)


def test_every_page_of_the_docs_is_linked(text: str, root: Path):
    linked = set(re.findall(r"\]\((docs/\w+\.md)", section(text, "Documentation")))
    assert {path.relative_to(root).as_posix() for path in root.glob("docs/*.md")} == linked


def test_every_output_is_listed(text: str):
    pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    from raymap3r_ros.node.map_publisher import MAP_TOPICS
    from raymap3r_ros.node.publishers import TOPICS

    listed = set(re.findall(r"`~/(\w+)`", section(text, "ROS 2")))
    assert {*TOPICS, *MAP_TOPICS} <= listed


def test_every_benchmark_is_shown(root: Path):
    pages = "".join(path.read_text() for path in (root / "README.md", root / "Makefile", *root.glob("docs/*.md")))
    scripts = {path.name for path in root.glob("benchmarks/*.py")} - MODULES
    assert scripts and {name for name in scripts if f"benchmarks/{name}" not in pages} == set()
