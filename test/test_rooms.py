"""The package's layers: a room imports from rooms below it, never from a sibling or a room above."""

import ast
from pathlib import Path

import pytest

# From the lowest floor to the highest. Rooms of one floor are siblings. Modules beside the rooms (errors, options)
# are below all floors.
FLOORS = (
    ("geometry",),
    ("network",),
    ("streaming",),
    ("io",),
    ("mapping",),
    ("synthetic",),
    ("evaluation",),
    ("node", "training", "offline", "weights"),
    ("clients",),
    ("doctor",),
    ("commands",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ROS_ROOMS = {"node", "clients"}
ROS_PACKAGES = {"rclpy", "tf2_ros", "tf2_msgs", "cv_bridge", "sensor_msgs_py", "launch", "launch_ros"}


def imports(path: Path) -> set[str]:
    """Full names of the modules, and of the names in them, that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def room_of(path: Path, package: Path) -> str:
    """The room that a file belongs to; "" for a module beside the rooms, except the command line."""
    first = path.relative_to(package).parts[0].removesuffix(".py")
    return first if first in FLOOR else ""


@pytest.fixture(scope="module")
def files(root: Path) -> dict[Path, str]:
    package = root / "raymap3r_ros"
    return {path: room_of(path, package) for path in sorted(package.rglob("*.py"))}


def test_every_folder_is_a_room(root: Path):
    folders = {path.parent.name for path in root.glob("raymap3r_ros/*/__init__.py")}
    assert folders == FLOOR.keys() - {"cli"}


def test_no_room_imports_from_a_sibling_or_a_room_above(files: dict[Path, str]):
    wrong = []
    for path, room in files.items():
        for name in imports(path):
            parts = name.split(".")
            target = parts[1] if parts[0] == "raymap3r_ros" and len(parts) > 1 else ""
            if target in FLOOR and target != room and FLOOR[target] >= FLOOR.get(room, -1):
                wrong.append(f"{path.name} ({room or 'beside the rooms'}) imports {name}")
    assert not wrong


def test_only_the_node_and_its_clients_import_ros(files: dict[Path, str]):
    wrong = [
        f"{path}: {name}"
        for path, room in files.items()
        for name in imports(path)
        if name.split(".")[0] in ROS_PACKAGES or name.split(".")[0].endswith("_msgs")
        if room not in ROS_ROOMS
    ]
    assert not wrong
