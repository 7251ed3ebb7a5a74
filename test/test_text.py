"""Foreign text in logs, errors and terminals."""

import logging
import subprocess
import sys

import pytest
import torch

from raymap3r_ros import cli, text
from raymap3r_ros.errors import CheckpointError
from raymap3r_ros.network import load_network
from raymap3r_ros.text import (
    LONGEST_ERROR,
    MAX_LINES,
    MAX_PROBLEMS,
    Throttle,
    counted,
    listing,
    printable,
    size_text,
    with_details,
)

HOSTILE = "cam\x1b[2J\x1b]0;title\x07\r\nraymap3r: error: fake\u202e\x9b31m\x00\udcff\u2028x"


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(text.time, "monotonic", lambda: now[0])
    return now


def test_control_characters_are_escaped():
    shown = printable(HOSTILE)
    assert shown.isprintable() and shown.isascii()
    assert shown.startswith(r"cam\x1b[2J\x1b]0;title\x07\r\nraymap3r: error: fake\u202e\x9b31m\x00\udcff\u2028x")
    assert printable("Kamera «größe» 深度 1") == "Kamera «größe» 深度 1"


def test_the_middle_of_a_long_text_is_left_out():
    shown = printable("start " + "x" * 10**6 + " remedy")
    assert len(shown) <= 1000 and shown.startswith("start xx") and shown.endswith("xx remedy")
    assert len(printable("\x1b" * 10**6)) <= 1000
    assert len(printable("\udcff" * 999)) <= 1000


def test_only_indented_lines_are_kept():
    assert printable("choose:\n  /a\n  /b\nfake", lines=True) == "choose:\n  /a\n  /b\\nfake"
    assert printable("choose:\n  /a") == "choose:\\n  /a"


def test_lists_are_cut():
    assert listing(["a", "b\n"]) == "a, b\\n"
    assert listing(f"layer.{index}" for index in range(1248)).endswith("layer.1247")
    assert len(listing("x" * 10**5 for _ in range(1000))) < LONGEST_ERROR
    assert listing(str(index) for index in range(5000)).endswith("1999 and 3000 more")


def test_repeated_lines_are_throttled(clock):
    throttle = Throttle()
    numbers = ["5", "-5.25", "1e+30", "nan", "-inf", "17"]
    assert [throttle.permits(f"stamp {number} s") for number in numbers] == [True, *[False] * 5]
    clock[0] += 6
    assert [throttle.permits("stamp 3 s", burst=2) for _ in range(4)] == [True, True, False, False]


def test_ever_new_texts_are_throttled_together(clock):
    throttle, written = Throttle(), 0
    for index in range(10_000):
        name = "".join(chr(97 + int(digit)) for digit in str(index))
        written += throttle.permits(f"frame {name} is not known")
        clock[0] += 0.001
        assert len(throttle) <= MAX_PROBLEMS
    assert written <= 2 * MAX_LINES + 2


def test_warnings_of_the_command_line_are_escaped_and_throttled(monkeypatch, capsys, tmp_path):
    def work(arguments):
        for index in range(1000):
            logging.getLogger("raymap3r_ros.io").warning("%s: skipped %s: %s", "folder", f"{index}{HOSTILE}", "why")
        raise CheckpointError(f"{HOSTILE}\n  listed {'x' * 10**7}")

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(cli, "build_parser", lambda _: FakeParser(work))
    assert cli.main(["run"]) == 2
    output = capsys.readouterr().err
    lines = output.splitlines()
    assert len(lines) == MAX_LINES + 3 and all(line.isprintable() for line in lines)
    assert lines[0].startswith(r"raymap3r: warning: folder: skipped 0cam\x1b")
    assert "more messages like the last ones are not shown" in lines[MAX_LINES]
    assert lines[-2].startswith(r"raymap3r: error: cam\x1b") and lines[-1].startswith("  listed xx")
    assert len(output) < 2 * LONGEST_ERROR


class FakeParser:
    def __init__(self, work):
        self.run = work

    def parse_args(self, arguments):
        return self


def test_names_of_tensors_reach_the_terminal_escaped_and_cut(tmp_path):
    path = tmp_path / "odd.pth"
    torch.save({"model": {f"{index}{HOSTILE}{'y' * 900}": torch.zeros(1) for index in range(20_000)}}, path)
    with pytest.raises(CheckpointError, match="20000 unexpected: ") as caught:
        load_network(path)
    assert len(str(caught.value)) < 2 * LONGEST_ERROR and str(caught.value).isprintable()
    result = subprocess.run(
        [sys.executable, "-m", "raymap3r_ros.cli", "convert", path, tmp_path / "out.safetensors"], capture_output=True
    )
    assert result.returncode == 2 and len(result.stderr) < 2 * LONGEST_ERROR
    assert b"\x1b" not in result.stderr and result.stderr.count(b"\n") == 1


def test_details_are_indented_and_numbers_have_their_nouns():
    logged = with_details(f"failed: {HOSTILE}", f"\nTraceback:\n  in {HOSTILE}\nerror: fake\n")
    first, *others = logged.split("\n")
    assert first.startswith("failed: cam\\x1b") and first.isprintable()
    assert [line[:4].strip() for line in others] == ["Tr", "", "ra", "er"]
    assert all(line.startswith("  ") and line.isprintable() for line in others)
    assert (counted(0, "frame"), counted(1, "frame"), counted(2, "frame")) == ("0 frames", "1 frame", "2 frames")


def test_sizes_have_decimal_units():
    """As file managers, disks and download pages show them."""
    sizes = {1: "0.0 kB", 2048: "2.0 kB", 3_100_000: "3.1 MB", 3_173_761_006: "3.17 GB"}
    assert {count: size_text(count) for count in sizes} == sizes
