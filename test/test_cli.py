"""The command line."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import raymap3r_ros
from raymap3r_ros import cli
from raymap3r_ros.commands import run
from raymap3r_ros.commands.arguments import flag_words, path, read_options, read_stream_options
from raymap3r_ros.network import PRESETS, load_network, save_network, untrained_network
from raymap3r_ros.offline import CloudOptions, RunOutputs
from raymap3r_ros.streaming import RULES, MaskOptions, Stream, StreamOptions

SMALL = ["--checkpoint", "mini", "--size", "48", "--no-preview", "--device", "cpu"]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def error_of(capsys, *arguments: object) -> str:
    """Run a command that fails; return the line that it prints."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if "warning" not in line]
    assert len(lines) == 1 and lines[0].startswith("raymap3r: error: ")
    return lines[0].removeprefix("raymap3r: error: ")


def parse_run(*arguments: str):
    return cli.build_parser(["run"]).parse_args(["run", "in", "--out", "out", *arguments])


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"raymap3r {raymap3r_ros.__version__}\n"


def test_run_and_help_need_no_ros(images, tmp_path):
    """In a separate process, in which importing rclpy is an error."""
    code = (
        "import sys; sys.modules['rclpy'] = None\n"
        "from raymap3r_ros.cli import main\n"
        f"status = main(['run', {str(images)!r}, '--out', {str(tmp_path / 'out')!r}, *{SMALL!r}])\n"
        "assert not [name for name in sys.modules if name.startswith('raymap3r_ros.node')]\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 frames: " in done.stdout and "frames/s" in done.stdout and "trajectory.txt" in done.stdout
    assert "raymap3r: warning: these weights are UNTRAINED" in done.stderr
    assert len((tmp_path / "out" / "trajectory.txt").read_text().splitlines()) == 4


def test_list_of_commands_needs_neither_ros_nor_torch(root):
    code = (
        "import sys; sys.modules['rclpy'] = sys.modules['torch'] = None\n"
        "from raymap3r_ros.cli import main\n"
        "main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = {path.stem for path in (root / "raymap3r_ros" / "commands").glob("*.py")}
    assert modules - {"__init__", "arguments"} == cli.COMMANDS.keys()
    shown = [line.split()[0] for line in done.stdout.splitlines() if re.match(r"    \w", line)]
    assert shown == list(cli.COMMANDS)


def test_options_of_the_stream_equal_the_dataclass():
    assert read_stream_options(parse_run()) == StreamOptions()
    assert read_options(parse_run(), CloudOptions) == CloudOptions()
    args = parse_run(
        "--rule", "cut3r", "--size", "64", "--router", "adaptive", "--smoothing", "off", "--reset-interval", "0",
        "--token-pooling", "raster", "--precision", "float16", "--mask-high", "5", "--mask-min-ratio", "0.5",
        "--voxel-size", "0.1", "--max-points", "5000",
    )  # fmt: skip
    assert read_stream_options(args) == StreamOptions(
        image_size=64, precision="float16", update_rule="cut3r", router="adaptive", smoothing="off", reset_interval=0,
        token_pooling="raster", mask=MaskOptions(high=5.0, min_ratio=0.5),
    )  # fmt: skip
    assert read_options(args, CloudOptions) == CloudOptions(voxel_size=0.1, max_points=5000)


def test_a_preset_changes_the_defaults_and_single_options_win():
    assert read_stream_options(parse_run("--preset", "published")) == StreamOptions.published()
    args = parse_run("--preset", "published", "--smoothing", "tied", "--mask-kind", "absolute", "--mask-low", "2")
    expected = StreamOptions.published(smoothing="tied", mask=MaskOptions(low=2.0))
    assert read_stream_options(args) == expected


def test_replay_passes_the_preset_as_single_parameters(monkeypatch):
    pytest.importorskip("rclpy")
    from raymap3r_ros.clients import replay

    given = {}
    monkeypatch.setattr(replay, "run", lambda *_, parameters, **__: given.update(parameters) or 0)
    arguments = ["--preset", "published", "--smoothing", "tied", "--mask-high", "5", "--tf-mode", "map"]
    assert cli.main(["replay", "bag", "--out", "out", *arguments]) == 0
    # Without `preset`, because the node cannot distinguish `smoothing` on the command line from its default.
    assert given == {
        "router": "published", "reset_alignment": "published", "keyframes.size": 0,
        "token_pooling": "raster", "mask.kind": "published", "mask.high": 5.0, "tf_mode": "map",
    }  # fmt: skip


def test_help_shows_meaning_default_choices_and_limits(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"--rule {{{','.join(RULES)}}}" in text
    assert "how much of a frame each state token takes in (default: raymap3r)" in text
    assert "--mask-high FLOAT" in text and f"(default: {MaskOptions().high}; 0.0 to 1000.0)" in text


@pytest.mark.parametrize(
    ("arguments", "outputs"),
    [
        ([], RunOutputs()),
        (["--no-depth"], RunOutputs(depth=False)),
        (["--no-masks", "--no-cloud"], RunOutputs(masks=False, cloud=False)),
        (["--no-preview", "--no-motion"], RunOutputs(preview=False, motion=False)),
    ],
)
def test_results_that_are_not_needed_are_left_out(images, tmp_path, monkeypatch, arguments, outputs):
    given = []
    monkeypatch.setattr(run, "run_recording", lambda *_, **values: given.append(values["outputs"]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", str(images), "--out", str(tmp_path / "out"), "--checkpoint", "mini", *arguments])
    assert given == [outputs]


def test_report_of_a_slow_run_has_significant_digits(images, tmp_path, capsys, monkeypatch):
    run_recording = run.run_recording
    monkeypatch.setattr(
        run,
        "run_recording",
        lambda *args, **values: dataclasses.replace(
            run_recording(*args, **values), engine_rate=0.081123, whole_rate=0.03
        ),
    )
    assert cli.main(["run", str(images), "--out", str(tmp_path / "out"), *SMALL, "--no-masks"]) == 0
    printed = capsys.readouterr().out
    assert "3 frames: 0.0811 frames/s (12.3 s a frame), 0.0300 frames/s (33.3 s a frame) with reading" in printed
    assert "depth/*.png" in printed and "masks" not in printed


def test_interrupted_run_gives_the_status_of_ctrl_c(images, tmp_path, capsys, monkeypatch):
    step = Stream.step

    def interrupted(self, *args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Stream, "step", interrupted)
    assert cli.main(["run", str(images), "--out", str(tmp_path / "out"), *SMALL]) == 130
    assert "1 frame (stopped early: SIGINT)" in capsys.readouterr().out


def test_bad_inputs_are_one_clear_line(images, tmp_path, capsys):
    out = tmp_path / "out"
    assert error_of(capsys, "run", tmp_path / "no", "--out", out) == f"{tmp_path}/no: there is no such file or folder"
    message = error_of(capsys, "run", images, "--out", out, "--checkpoint", "no.pth")
    assert message.startswith("checkpoint 'no.pth' is not a file")
    assert not out.exists()
    assert error_of(capsys, "run", images, "--out", images, *SMALL) == (
        f"{images}: is the input; name another folder for the results"
    )
    inside = error_of(capsys, "run", images, "--out", images / "a" / "out", *SMALL)
    assert inside == f"{images}/a/out: is in the input {images}; name a folder outside it for the results"
    assert not (images / "a").exists()
    for arguments in (["run", images, "--out", ""], ["run", "", "--out", out], ["convert", "", out]):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
        assert stopped.value.code == 2 and "is empty; name a file or folder" in capsys.readouterr().err
    assert "Permission" in error_of(capsys, "run", images, "--out", "/proc/none", *SMALL) or os.geteuid() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "-3"], "--size is -3; allowed range: 0 to 4096"),
        (["--mask-noise-floor", "9"], "--mask-noise-floor is 9.0; allowed range: 0.0001 to 1.0"),
        (["--mask-low", "50"], "--mask-low is 50.0, above --mask-high"),
        (["--reset-interval", "1"], "--reset-interval is 1; allowed range: 0, or 2 to 1000000"),
        (["--max-points", "1"], "--max-points is 1; allowed range: 1000 to"),
        (["--stride", "0"], "--stride is 0; allowed: 1 and more"),
        (["--device", "tpu"], "--device is 'tpu'; on this machine there are: auto, cpu"),
        (["--topic", "/image"], "not a bag, so it has no topic '/image'"),
    ],
)
def test_values_out_of_range_are_one_clear_line(images, tmp_path, capsys, arguments, message):
    assert message in error_of(capsys, "run", images, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "0,1,2,3", "nan,1,2,3"])
def test_unusable_intrinsics(capsys, text):
    with pytest.raises(SystemExit) as stopped:
        parse_run("--intrinsics", text)
    assert stopped.value.code == 2
    assert "--intrinsics: " in capsys.readouterr().err


def test_intrinsics_become_a_matrix():
    matrix = parse_run("--intrinsics", "300,310,80.5,60").intrinsics
    assert matrix.tolist() == [[300, 0, 80.5], [0, 310, 60], [0, 0, 1]]


def test_convert_keeps_the_weights(tmp_path, capsys):
    network = untrained_network(PRESETS["mini"], seed=3)
    save_network(network, tmp_path / "a.safetensors")
    arguments = ["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    assert cli.main([*arguments, "--dtype", "float16"]) == 0
    assert "M parameters as float16" in capsys.readouterr().out
    converted = load_network(tmp_path / "b.safetensors")
    assert converted.trained
    for name, tensor in network.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor.half().float())
    size = (tmp_path / "b.safetensors").stat().st_size / (tmp_path / "a.safetensors").stat().st_size
    assert size == pytest.approx(0.5, abs=0.05)
    assert "exists already" in error_of(capsys, *arguments)
    same = [*arguments[:2], arguments[1], "--overwrite"]
    assert "is the input; name another file" in error_of(capsys, *same)
    assert cli.main([*arguments, "--overwrite"]) == 0


def test_convert_of_something_else(tmp_path, capsys, shared):
    (tmp_path / "a.pth").write_bytes(b"no weights")
    assert "a.pth" in error_of(capsys, "convert", tmp_path / "a.pth", tmp_path / "b.safetensors")
    sample = shared / "golden" / "ckpt_format_sample.pth"  # the form of the public file, without tensors
    assert "missing" in error_of(capsys, "convert", sample, tmp_path / "b.safetensors")
    assert "must end in .safetensors" in error_of(capsys, "convert", tmp_path / "a.pth", tmp_path / "b.bin")
    assert not (tmp_path / "b.safetensors").exists()


def test_demo_without_ros_reports_what_is_missing(capsys, monkeypatch):
    ros_rooms = ("raymap3r_ros.node", "raymap3r_ros.clients", "raymap3r_ros.commands.demo")
    for name in [name for name in sys.modules if name.startswith(ros_rooms)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rclpy", None)
    assert error_of(capsys, "demo").startswith("the demo needs ROS 2 (")


def test_command_is_needed(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


AT_EXIT = """
import atexit, os, signal, sys
from raymap3r_ros import cli

class Late:
    def __del__(self, kill=os.kill, own=os.getpid(), number=signal.SIGINT):
        kill(own, number)

late = Late()  # deleted when Python has restored the default handlers
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--version"], 0), (["convert", "/nowhere.pth", "/nowhere/out"], 2)]
)
def test_ctrl_c_while_python_ends_does_not_change_the_status(arguments, status):
    """Ctrl-C under ros2 launch arrives twice; the second one may find a command that has done its work."""
    done = subprocess.run([sys.executable, "-c", AT_EXIT, *arguments], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "KeyboardInterrupt" not in done.stderr


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("raymap3r_ros.cli", ["weights", "list"]),
        ("raymap3r_ros.cli", ["run", "/images", "--out", "/nowhere/out"]),
        ("raymap3r_ros.cli", ["evaluate", "simulated"]),
        ("raymap3r_ros.node", ["--autostart"]),
    ],
)
def test_a_working_directory_that_was_deleted_is_named(module, arguments, tmp_path, root):
    gone = tmp_path / "gone"
    gone.mkdir()
    command = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        ["sh", "-c", command, "sh", str(gone), sys.executable, "-m", module, *arguments],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    name = "stream" if module.endswith("node") else "raymap3r"
    text = f"{name}: error: the working directory {gone} no longer exists: cd to another one\n"
    assert (done.returncode, done.stderr) == (2, text)


def test_a_quoted_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert path("~/results") == Path("/home/someone/results")
    assert path("./~/results") == Path("~/results") and path("~someone/x") == Path("~someone/x")


def test_names_of_options_become_flags_but_not_names_in_files():
    assert flag_words("voxel_size is 0; allowed", ["voxel_size"]) == "--voxel-size is 0; allowed"
    assert (
        flag_words("a.bin is damaged: tensor 'voxel_size' is", ["voxel_size"])
        == "a.bin is damaged: tensor 'voxel_size' is"
    )
