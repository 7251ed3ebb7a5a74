"""Bags with missing, equal, falling and repeated stamps: `run` and `replay` give the same worlds."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="the node needs ROS 2")
sys.path.insert(0, str(Path(__file__).parent / "clients"))
from bags import START, make, picture, raw, write_bag

from raymap3r_ros import cli

SMALL = ("--checkpoint", "mini", "--size", "48", "--device", "cpu")
FIRST = 10.0  # the cameras' clock: simulated time, far from the time of recording


def camera_bag(folder, stamps):
    """Images recorded every 0.1 s, with these stamps in seconds; None: no stamp."""
    messages = []
    for index, seconds in enumerate(stamps):
        image = raw(0.0, picture(index if seconds is None else round(10 * seconds), 160, 120))
        whole = round((seconds or 0) * 1e9)
        image.header.stamp = make("builtin_interfaces/msg/Time", sec=whole // 10**9, nanosec=whole % 10**9)
        messages.append((index / 10, "/cam/image_raw", image))
    return write_bag(folder, messages)


def after(*tenths):
    return [FIRST + tenth / 10 for tenth in tenths]


# Stamps of the bag; stamps of the trajectory of each world; images that are not in a trajectory.
CASES = {
    "zero between": ([None, *after(1, 2, 3, 4), None, *after(6, 7)], [after(*range(8))], 0),
    "zero everywhere": ([None] * 4, [[START + index / 10 for index in range(4)]], 0),
    "loop": (after(0, 1, 2, 3, 0, 1, 2, 3), [after(0, 1, 2, 3), after(0, 1, 2, 3)], 0),
    "swapped": (after(0, 1, 3, 2, 4, 6, 5, 7), [after(0, 1, 3, 4, 6, 7)], 2),
    "twice": (after(0, 0, 1, 1, 2, 2), [after(0, 1, 2)], 3),
    "a nanosecond apart": ([*after(0, 1), 10.100000001, *after(2)], [[*after(0, 1), 10.100000001, *after(2)]], 0),
    "gap": (after(0, 1, 50, 51), [after(0, 1), after(50, 51)], 0),
}


@pytest.mark.parametrize("name", CASES)
def test_one_rule_for_run_and_replay(name, tmp_path, caplog):
    stamps, worlds, late = CASES[name]
    bag = camera_bag(tmp_path / "bag", stamps)
    assert cli.main(["run", str(bag), "--out", str(tmp_path / "run"), "--no-preview", *SMALL]) == 0
    assert cli.main(["replay", str(bag), "--rate", "0", "--out", str(tmp_path / "replay"), *SMALL]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    report = json.loads((tmp_path / "replay" / "report.json").read_text())
    count = sum(map(len, worlds))
    assert (summary["frames"], summary["frames_late"], summary["worlds"]) == (count, late, len(worlds))
    assert (report["frames_processed"], report["frames_late"]) == (count + late, late)
    assert [world["frames"] for world in report["worlds"]] == [*map(len, worlds)]
    for folder in ("run", "replay"):
        files = sorted((tmp_path / folder).glob("trajectory*.txt"))
        names = ["trajectory.txt"] if len(worlds) == 1 else [f"trajectory_{i + 1}.txt" for i in range(len(worlds))]
        assert [file.name for file in files] == names
        for file, world in zip(files, worlds, strict=True):
            lines = np.loadtxt(file, ndmin=2)
            assert lines[:, 0].tolist() == pytest.approx(world, abs=1e-5), (folder, file.name)
            assert (np.diff(lines[:, 0]) > 0).all()
        if name == "loop":  # a world does not depend on the previous one
            first, second = (np.loadtxt(file) for file in files)
            assert (first == second).all()
    texts = [
        [
            line.split()[0]
            for file in sorted((tmp_path / folder).glob("trajectory*.txt"))
            for line in file.read_text().splitlines()
        ]
        for folder in ("run", "replay")
    ]
    assert texts[0] == texts[1]
    assert (
        len([*(tmp_path / "run" / "depth").glob("*.npz")]) == count == len(np.loadtxt(tmp_path / "run/intrinsics.txt"))
    )
    assert len([*(tmp_path / "run").glob("static_scene*.ply")]) == len(worlds)
    assert 0 <= summary["duration"] < 10 and set(summary["files"]) >= {*names}
    assert caplog.text.count("no stamps") == 2 * (None in stamps)
