"""`raymap3r run` on the command line: exit status, summary and messages for damaged recordings and odd arguments."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from raymap3r_ros import cli
from raymap3r_ros.network import PRESETS, load_network, save_network, untrained_network
from raymap3r_ros.text import MAX_LINES

SHORT = ["--checkpoint", "mini", "--size", "64", "--device", "cpu", "--no-depth", "--no-masks", "--no-cloud"]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rows, columns = np.mgrid[:48, :64]
    for index in range(3):
        image = np.stack([rows * 5 + index, columns * 3, rows // 2 % 2 * 80 + columns], -1).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), image)
    return folder


def write_cut_video(path: Path, images: Path) -> Path:
    """An AVI file of 12 images, of which about a quarter is cut off."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for index in range(12):
        writer.write(cv2.imread(str(images / f"{index % 3}.png")))
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"idx1") * 3 // 4])
    return path


def test_cut_recording_is_incomplete_in_summary_report_and_status(images, tmp_path, capsys):
    video = write_cut_video(tmp_path / "cut.avi", images)
    out = tmp_path / "out"
    assert cli.main(["run", str(video), "--out", str(out), *SHORT, "--no-preview"]) == 1
    summary = json.loads((out / "summary.json").read_text())
    frames = summary["frames"]
    assert 0 < frames < 12 and (summary["complete"], summary["frames_missing"]) == (False, 12 - frames)
    assert f"ended after {frames} frames; 12 according to its header: the file is cut off" in summary["stopped_by"]
    assert f"or was copied incompletely), {12 - frames} missing: " in capsys.readouterr().out
    # The part before the cut, on request, is complete.
    arguments = ["--max-frames", str(frames), "--overwrite", "--no-preview"]
    assert cli.main(["run", str(video), "--out", str(out), *SHORT, *arguments]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["complete"], summary["frames_missing"], summary["stopped_by"]) == (True, 0, "")


@pytest.mark.parametrize("number", ["100000000000000000000", "9223372036854775808"])
def test_huge_numbers_of_frames(images, tmp_path, number):
    arguments = ["--max-frames", number, "--no-preview"]
    assert cli.main(["run", str(images), "--out", str(tmp_path / "out"), *SHORT, *arguments]) == 0
    arguments = ["--stride", number, "--no-preview", "--overwrite"]
    assert cli.main(["run", str(images), "--out", str(tmp_path / "out"), *SHORT, *arguments]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["frames"] == 1


@pytest.mark.parametrize("rate", ["inf", "nan", "1e-300", "1e300", "-1"])
def test_rates_that_no_camera_has(images, tmp_path, capsys, rate):
    assert cli.main(["run", str(images), "--out", str(tmp_path / "out"), *SHORT, "--rate", rate]) == 2
    assert "allowed: 1e-06 to 1e+06 frames per second" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_with_line_ends_and_escapes(images, tmp_path):
    source = shutil.copytree(images, tmp_path / "clip\x1b[31m\nERROR x\x07")
    out = tmp_path / "out"
    assert cli.main(["run", str(source), "--out", str(out), *SHORT, "--max-frames", "2"]) == 0
    assert cv2.imread(str(out / "preview.png")) is not None and (out / "summary.json").is_file()


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_that_are_not_utf8(images, tmp_path, locale):
    """Everything that has the name of the input or of the folder in it: video, preview with its caption, report."""
    source = write_cut_video(tmp_path / "a.avi", images).rename(tmp_path / os.fsdecode(b"in\xff%d.avi"))
    out = tmp_path / os.fsdecode(b"out\xfe")
    done = subprocess.run(
        [sys.executable, "-m", "raymap3r_ros.cli", "run", source, "--out", out, *SHORT, "--max-frames", "2"],
        capture_output=True,
        env={
            **os.environ, "LC_ALL": locale, "PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": os.pathsep.join(sys.path)
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert cv2.imdecode(np.fromfile(out / "preview.png", np.uint8), cv2.IMREAD_COLOR) is not None
    assert (out / "preview.mp4").stat().st_size > 1000
    assert json.loads((out / "summary.json").read_text())["frames"] == 2


def test_a_pipe_is_not_a_recording(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert cli.main(["run", str(tmp_path / "pipe.mp4"), "--out", str(tmp_path / "out"), *SHORT]) == 2
    assert "is neither a file nor a folder" in capsys.readouterr().err


def test_a_run_that_is_refused_leaves_nothing(images, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["run", str(images), "--out", str(out), *SHORT[:2], "--size", "7"]
    assert cli.main(arguments) == 2
    assert "a larger --size" in capsys.readouterr().err
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert cli.main([*arguments, "--overwrite"]) == 2
    assert [item.name for item in out.rglob("*")] == ["mine.txt"]


def test_a_static_scene_without_points_is_reported(images, tmp_path, caplog):
    arguments = [*SHORT[:-1], "--confidence-threshold", "1000", "--max-frames", "1", "--no-preview"]
    assert cli.main(["run", str(images), "--out", str(tmp_path / "out"), *arguments]) == 0
    assert b"element vertex 0\n" in (tmp_path / "out" / "static_scene.ply").read_bytes()
    assert "static_scene.ply has no points" in caplog.text


HOSTILE = "x\x1b]0;title\x07\r\n\u202e\x9b31m"


def test_names_of_files_reach_the_terminal_escaped(images, tmp_path, capsys, monkeypatch):
    """Of the recording, an image in it, the weights with their metadata, and the output."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # instead of pytest's: those of the command
    folder = images.rename(tmp_path / f"images{HOSTILE}")
    for index in range(3, 103):
        (folder / f"{index}{HOSTILE}.png").write_bytes(b"no image")
    weights, out = tmp_path / f"weights{HOSTILE}.safetensors", tmp_path / f"out{HOSTILE}"
    save_network(untrained_network(PRESETS["mini"]), weights, manifest={"about": HOSTILE * 100_000})
    assert load_network(weights).source.isprintable()
    arguments = ["--checkpoint", str(weights), *SHORT[2:], "--no-preview"]
    assert cli.main(["run", str(folder), "--out", str(out), *arguments]) == 0
    target = tmp_path / f"new{HOSTILE}.safetensors"
    assert cli.main(["convert", str(weights), str(target)]) == 0
    assert cli.main(["convert", str(weights), str(target)]) == 2
    assert cli.main(["run", str(folder / "0.png"), "--out", str(out / "summary.json"), *arguments]) == 2
    with pytest.raises(SystemExit):
        cli.main(["run", str(folder), str(out), "--out", str(out)])
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert [line for line in text.splitlines() if not line.isprintable()] == []
    assert text.count("raymap3r: warning:") == MAX_LINES + 1
    assert r"x\x1b]0;title\x07\r\n\u202e\x9b31m" in text
    assert not any(line.startswith(("\u202e", r"\u202e")) for line in text.splitlines())


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_network(untrained_network(PRESETS["mini"]), path)
    return path


def full_device():
    return Path("/dev/full").open("w")


def pipe_without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize(("stream", "status"), [(pipe_without_reader, 0), (full_device, 2)], ids=["pipe", "full"])
@pytest.mark.parametrize("command", ["run", "convert", "render"])
def test_results_are_complete_without_standard_output(
    images, weights, tmp_path, monkeypatch, capsys, stream, status, command
):
    arguments, result = {
        "run": ([images, "--out", tmp_path / "out", *SHORT, "--no-preview"], "out/summary.json"),
        "convert": ([weights, tmp_path / "new.safetensors"], "new.safetensors"),
        "render": (
            [
                "static",
                "--out",
                tmp_path / "out",
                "--size",
                "16x16",
                "--frames",
                "2",
                "--index",
                "0",
                "1",
                "--device",
                "cpu",
                "--format",
                "tum",
            ],
            "out/varied-static-01/groundtruth.txt",
        ),
    }[command]
    with stream() as output:
        monkeypatch.setattr(sys, "stdout", output)
        if status:
            with pytest.raises(SystemExit) as ended:
                cli.main([command, *map(str, arguments)])
            assert ended.value.code == status
        else:
            assert cli.main([command, *map(str, arguments)]) == 0
    assert (tmp_path / result).is_file()
    errors = capsys.readouterr().err
    assert ("cannot write to standard output: No space left on device" in errors) == bool(status)
    assert "Traceback" not in errors


def test_closed_standard_streams(weights, tmp_path):
    """The first files that are opened get their numbers, and must not receive what is printed."""
    target = tmp_path / "new.safetensors"
    command = f"exec {sys.executable} -m raymap3r_ros.cli convert {weights} {target} <&- >&- 2>&-"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(["sh", "-c", command], env=environment).returncode == 0
    assert target.read_bytes() == weights.read_bytes()


@pytest.mark.parametrize("kind", ["FIFO", "link", "file", "device"])
def test_outputs_of_the_wrong_kind(images, weights, tmp_path, capsys, kind):
    path = tmp_path / "target.safetensors"
    make = {
        "FIFO": os.mkfifo,
        "link": lambda path: path.symlink_to("nowhere"),
        "file": lambda path: path.write_text("mine"),
        "device": lambda path: path.symlink_to("/dev/full"),
    }
    make[kind](path)
    before = path.lstat()
    folder_commands = (
        ["run", images, "--out", path, *SHORT],
        ["evaluate", "synthetic", "--checkpoint", "mini", "--suite", "static", "--pictures", path],
        ["train", "mini", "--out", path, "--device", "cpu"],
    )
    file_commands = (
        ["convert", weights, path, "--overwrite"],
        ["evaluate", "synthetic", "--checkpoint", "mini", "--suite", "static", "--json", path],
        ["evaluate", "synthetic", "--checkpoint", "mini", "--suite", "static", "--csv", path],
        ["evaluate", "simulated", "--picture", path],
        ["evaluate", "covariance", "--checkpoint", weights, "--write", path],
    )
    for command in (*folder_commands, *(file_commands if kind != "file" else ())):
        assert cli.main([str(argument) for argument in command]) == 2, command
        message = capsys.readouterr().err
        assert f"{path}: is a {kind}" in message and message.count("\n") == 1, command
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)


def test_inputs_of_the_wrong_kind(images, tmp_path, capsys):
    fifo = tmp_path / "fifo.safetensors"
    os.mkfifo(fifo)
    sequence = tmp_path / "sequence"
    (sequence / "rgb").mkdir(parents=True)
    (sequence / "rgb.txt").write_text("0.0 rgb/0.png\n")
    (images / "0.png").rename(sequence / "rgb" / "0.png")
    os.mkfifo(sequence / "groundtruth.txt")
    out = tmp_path / "out"
    for command, message in (
        (["run", fifo, "--out", out], "is neither a file nor a folder"),
        (["run", images, "--out", out, "--checkpoint", fifo], "is a FIFO; give the path of"),
        (["convert", fifo, tmp_path / "new.safetensors"], "is a FIFO; give the path of"),
        (["evaluate", "covariance", "--checkpoint", fifo], "is a FIFO; give the path of"),
        (["evaluate", "tum_folder", fifo, "--checkpoint", "mini"], "there is no such folder"),
        (["evaluate", "tum_folder", sequence, "--checkpoint", "mini"], "groundtruth.txt: is a FIFO; expected"),
        (["train", "mini", "--weights", fifo, "--out", out], "is a FIFO; give the path of"),
    ):
        assert cli.main([*map(str, command), *(["--device", "cpu"] if command[0] != "convert" else [])]) == 2, command
        assert message in capsys.readouterr().err, command
    assert not out.exists()


def test_a_key_of_a_weight_file_is_not_reported_as_a_flag(images, tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    save_network(untrained_network(PRESETS["mini"]), path)
    data = path.read_bytes()
    size = b'\\"image_size\\": 128'
    assert size in data
    path.write_bytes(data.replace(size, size[:-3] + b" -1"))  # of the same length
    assert cli.main(["run", str(images), "--out", str(tmp_path / "out"), "--checkpoint", str(path)]) == 2
    error = capsys.readouterr().err
    assert "image_size is -1" in error and "--size" not in error
