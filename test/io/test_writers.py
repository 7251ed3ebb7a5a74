"""Written files, read back by independent readers."""

import json
import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation import trajectory
from raymap3r_ros.io.intrinsics import write_intrinsics
from raymap3r_ros.io.json_file import write_json
from raymap3r_ros.io.ply import MAX_POINTS, read_ply, write_ply
from raymap3r_ros.io.tum import write_trajectory, write_tum
from raymap3r_ros.output_files import partial_path, whole_file


def turn(axis: int, degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    first, second = ((1, 2), (2, 0), (0, 1))[axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = c
    matrix[first, second], matrix[second, first] = -s, s
    return matrix


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [0, 1e-3, 30, 120, 179.9, 180, -90, 270])
def test_trajectory_contains_position_and_quaternion_of_the_pose(tmp_path, axis, degrees):
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3] = turn(axis, degrees)
    pose[:3, 3] = 1.25, -2.5, 1000.125
    write_trajectory(tmp_path / "t.txt", [1700000000_123456000, 10**9], np.stack([pose, np.eye(4)]))
    comment, line, second = (tmp_path / "t.txt").read_text().splitlines()
    assert comment == "# timestamp tx ty tz qx qy qz qw"
    stamp, *position, qx, qy, qz, qw = (float(value) for value in line.split(" "))
    assert stamp == pytest.approx(1700000000.123456, abs=1e-6)
    assert position == [1.25, -2.5, 1000.125]
    half = math.radians(degrees % 360) / 2
    expected = np.zeros(4)
    expected[axis], expected[3] = math.sin(half), math.cos(half)
    if expected[3] < 0:
        expected = -expected
    assert qw >= 0
    assert abs(abs(np.dot(expected, (qx, qy, qz, qw))) - 1) < 1e-6
    assert second == "1.000000000 0.0 0.0 0.0 0.0 0.0 0.0 1.0"


def test_stamps_keep_their_nanoseconds_and_numbers_every_digit(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(3, 7))
    write_tum(tmp_path / "t.txt", [1_700_000_000_123_456_789, 7, 2_000_000_000], numbers)
    comment, *lines = (tmp_path / "t.txt").read_text().splitlines()
    assert comment == "# timestamp tx ty tz qx qy qz qw"
    assert [line.split()[0] for line in lines] == ["1700000000.123456789", "0.000000007", "2.000000000"]
    assert [[float(value) for value in line.split()[1:]] for line in lines] == numbers.tolist()


def test_stamps_in_seconds_are_exact_to_the_microsecond(tmp_path):
    """As a float, seconds since 1970 have digits beyond their accuracy."""
    trajectory.write_tum(tmp_path / "t.txt", [1_700_000_000.1, 1_700_000_000.000001], np.stack([np.eye(4)] * 2))
    lines = (tmp_path / "t.txt").read_text().splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["1700000000.100000000", "1700000000.000001000"]


def test_trajectory_rotates_a_vector_as_the_pose_does(tmp_path):
    pose = np.eye(4)
    pose[:3, :3] = turn(0, 50) @ turn(1, -130) @ turn(2, 200)
    write_trajectory(tmp_path / "t.txt", [0], pose[None])
    x, y, z, w = np.loadtxt(tmp_path / "t.txt")[4:]
    u, v = np.array([x, y, z]), np.array([0.3, -1.0, 2.0])
    rotated = 2 * u.dot(v) * u + (w * w - u.dot(u)) * v + 2 * w * np.cross(u, v)  # q v q*, by hand
    assert np.allclose(rotated, pose[:3, :3] @ v, atol=1e-8)


def test_intrinsics_have_one_line_per_frame(tmp_path):
    matrices = np.array([[[300, 0, 64], [0, 310, 36], [0, 0, 1]], [[301, 0, 64], [0, 311, 36], [0, 0, 1]]], float)
    write_intrinsics(tmp_path / "i.txt", [500_000_000, 1_500_000_000], matrices, [True, False], (128, 72))
    assert np.loadtxt(tmp_path / "i.txt").tolist() == [
        [0.5, 300, 310, 64, 36, 128, 72, 1],
        [1.5, 301, 311, 64, 36, 128, 72, 0],
    ]


@pytest.mark.parametrize("count", [0, 3])
def test_ply_parsed_by_hand(tmp_path, count):
    points = np.array([[0.5, -1.5, 2.0], [1e-3, 0, 100], [3, 4, 5]])[:count].reshape(-1, 3)
    colors = np.array([[255, 0, 1], [2, 3, 4], [5, 6, 7]], np.uint8)[:count].reshape(-1, 3)
    write_ply(tmp_path / "a.ply", points, colors)
    head, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    assert head.decode("ascii").splitlines() == [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {count}",
        "property float x",
        "property float y",
        "property float z",
        "property uchar red",
        "property uchar green",
        "property uchar blue",
    ]
    vertices = list(struct.iter_unpack("<fffBBB", body))
    assert len(vertices) == count
    for vertex, point, color in zip(vertices, points, colors, strict=True):
        assert vertex[:3] == pytest.approx(point)
        assert vertex[3:] == tuple(color)
    for written, read in zip((points, colors), read_ply(tmp_path / "a.ply"), strict=True):
        assert read.shape == written.shape and (read == written.astype(read.dtype)).all()


def test_other_point_clouds_are_refused(tmp_path):
    write_ply(tmp_path / "good.ply", np.ones((3, 3)), np.ones((3, 3), np.uint8))
    good = (tmp_path / "good.ply").read_bytes()
    nan = np.array([np.nan], "<f4").tobytes()
    cases = {
        "empty": b"",
        "cut": good[:-1],
        "longer": good + b"x",
        "one more": good + good[-15:],
        "count": good.replace(b"vertex 3", b"vertex 4"),
        "huge count": good.replace(b"vertex 3", b"vertex 999999999999"),
        "text": good.replace(b"binary_little_endian", b"ascii"),
        "other fields": good.replace(b"property uchar blue\n", b""),
        "not finite": good[:-15] + nan + good[-11:],
        "no header": b"x" * 1000,
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is"):
            read_ply(tmp_path / name)
    for name in ("missing", ""):
        with pytest.raises(InputError):
            read_ply(tmp_path / name)
    sparse = tmp_path / "sparse.ply"  # more points than allowed, of a size that fits
    count = MAX_POINTS + 1
    header = good.partition(b"end_header\n")[0].replace(b"vertex 3", b"vertex %d" % count) + b"end_header\n"
    sparse.write_bytes(header)
    os.truncate(sparse, len(header) + 15 * count)
    with pytest.raises(InputError, match="more than"):
        read_ply(sparse)


def test_values_that_json_cannot_represent_are_refused(tmp_path):
    write_json(tmp_path / "a.json", {"rate": 1.5, "size": (3, 4)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"rate": 1.5, "size": [3, 4]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "b.json", {"rate": float("nan")})
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_write_keeps_the_old_file_and_leaves_no_partial_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), whole_file(path) as partial:
        partial.write_text("ne")
        assert partial.parent == tmp_path and partial.suffix == ".txt"
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with whole_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_nothing_visible(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o600)
    script = (
        "import sys; from pathlib import Path; from raymap3r_ros.output_files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half'); print(partial.stat().st_mode & 0o777, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == f"{0o600}\n"
        with pytest.raises(InputError, match="another process is writing"), whole_file(path):
            raise AssertionError("two writers at the same time")
        writer.kill()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir() if not item.name.startswith(".")] == ["a.txt"]
    with whole_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_writer_follows_no_link_under_the_partial_name(tmp_path):
    path, other = tmp_path / "a.txt", tmp_path / "other"
    other.write_text("other")
    for target in (other, tmp_path / "nowhere"):
        partial_path(path).symlink_to(target)
        with whole_file(path) as partial:
            partial.write_text("new")
        assert path.read_text() == "new" and not path.is_symlink()
    assert other.read_text() == "other" and sorted(tmp_path.iterdir()) == [path, other]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (os.mkfifo, "a FIFO"),
        (os.mkdir, "a folder"),
        (lambda path: path.symlink_to("/dev/null"), "a device"),
        (lambda path: path.symlink_to("nowhere"), "a link that leads nowhere"),
    ],
)
def test_only_files_are_replaced(tmp_path, make, what):
    path = tmp_path / "a.txt"
    make(path)
    with pytest.raises(InputError, match=rf"a\.txt: is {what}; name a file"), whole_file(path):
        raise AssertionError("the output is opened")
    assert list(tmp_path.iterdir()) == [path] and not path.is_file()


def test_a_link_to_a_file_is_replaced(tmp_path):
    path, other = tmp_path / "a.txt", tmp_path / "other"
    other.write_text("other")
    path.symlink_to(other)
    with whole_file(path) as partial:
        partial.write_text("new")
    assert not path.is_symlink() and other.read_text() == "other"
