"""`raymap3r doctor` on the command line: output, JSON, exit status."""

import json
import subprocess
import sys

import pytest

from raymap3r_ros import cli
from raymap3r_ros.doctor import run
from raymap3r_ros.doctor.lines import FAIL, OK, WARNING, Line

GOOD = Line("machine", "system", OK, "Linux", values={"cores": 2})
WARNED = Line("libraries", "ROS 2", WARNING, "ROS 2 not found", "source it")
FAILED = Line("selftest", "float16", FAIL, "not finite in raymap3r/depth", "install another torch")


@pytest.fixture
def checks(monkeypatch):
    """Sets the lines of all checks."""

    def set_lines(*lines):
        names = dict.fromkeys(line.check for line in lines)
        found = {name: [line for line in lines if line.check == name] for name in names}
        monkeypatch.setattr(run, "CHECKS", {name: (lambda _, own=own: own) for name, own in found.items()})

    return set_lines


@pytest.mark.parametrize(
    ("lines", "status", "end"),
    [
        ([GOOD], 0, "ok: 0 checks failed, 0 warnings, 1 lines in 0 s"),
        ([GOOD, WARNED], 0, "warning: 0 checks failed, 1 warning, 2 lines in 0 s"),
        ([GOOD, WARNED, FAILED], 1, "FAIL: 1 check failed, 1 warning, 3 lines in 0 s"),
    ],
)
def test_text_and_exit_status(lines, status, end, checks, capsys):
    checks(*lines)
    assert cli.main(["doctor"]) == status
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].rpartition(" in ")[0] == end.rpartition(" in ")[0]
    assert printed[:2] == ["machine", "  ok       system            Linux"]
    for line in lines:
        assert f"  {line.state:7}  {line.name:16}  {line.found}" in printed
        if line.remedy:
            assert f"           -> {line.remedy}" in printed


def test_json(checks, capsys, tmp_path):
    checks(GOOD, FAILED)
    file = tmp_path / "report.json"
    assert cli.main(["doctor", "--json", str(file)]) == cli.main(["doctor", "--json", "-"]) == 1
    printed = capsys.readouterr().out
    written, shown = json.loads(file.read_text()), json.loads(printed[printed.index("{") :])
    assert written["state"] == "FAIL" and written["lines"] == shown["lines"]
    assert written["lines"][0] == {
        "check": "machine", "name": "system", "state": "ok", "found": "Linux", "remedy": "", "values": {"cores": 2},
    }  # fmt: skip


def test_output_that_is_no_file(checks, capsys, tmp_path):
    checks(GOOD)
    assert cli.main(["doctor", "--json", str(tmp_path)]) == 2
    assert cli.main(["doctor", "--json", str(tmp_path / "missing" / "x.json")]) == 2
    assert "a folder" in capsys.readouterr().err


def test_unknown_device_is_a_line_and_the_others_follow(checks, capsys):
    checks(GOOD)
    assert cli.main(["doctor", "--device", "cuda:99"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL     device" in printed and "'cuda:99'" in printed and "Linux" in printed


def test_a_check_that_raises_is_named_and_the_others_follow(monkeypatch, capsys):
    def fail(_):
        raise RuntimeError("driver is broken")

    monkeypatch.setattr(run, "CHECKS", {"precision": fail, "machine": lambda _: [GOOD]})
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL     precision         RuntimeError: driver is broken" in printed and "Linux" in printed


@pytest.mark.parametrize("check", run.NEEDED)
def test_frames_are_not_timed_without_weights_or_memory(check, monkeypatch, capsys):
    failing = Line(check, "host", FAIL, "9 GiB needed, 1 GiB free", "choose a smaller --size")
    monkeypatch.setattr(run, "CHECKS", {check: lambda _: [failing], "timing": run.CHECKS["timing"]})
    assert cli.main(["doctor"]) == 1
    assert f"not run, because of {check}" in capsys.readouterr().out


def test_options_reach_the_checks(monkeypatch):
    targets = []
    monkeypatch.setattr(run, "CHECKS", {"machine": lambda target: targets.append(target) or [GOOD]})
    arguments = ["doctor", "--checkpoint", "mini", "--size", "64", "--precision", "bfloat16", "--device", "cpu"]
    assert cli.main(arguments) == 0
    (target,) = targets
    assert (target.checkpoint, target.options.image_size, target.options.precision) == ("mini", 64, "bfloat16")
    assert target.device.type == "cpu"


def test_it_runs_without_ros():
    """In a separate process, in which importing rclpy is an error; without the longer checks."""
    code = (
        "import sys; sys.modules['rclpy'] = None\n"
        "from raymap3r_ros.doctor import run\n"
        "for name in ('memory', 'selftest', 'timing'): del run.CHECKS[name]\n"
        "from raymap3r_ros.cli import main; sys.exit(main(['doctor', '--device', 'cpu']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ROS 2 not found") == 2 and "-> for the node, source your ROS installation" in done.stdout
