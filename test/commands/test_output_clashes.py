"""No output of a command replaces an input of it, or another output."""

import os

import numpy as np
import pytest
from PIL import Image

from raymap3r_ros import cli
from raymap3r_ros.errors import InputError
from raymap3r_ros.network import PRESETS, save_network, untrained_network
from raymap3r_ros.output_files import check_outputs

EVALUATE = ["--rules", "cut3r", "--frames", "2", "--device", "cpu"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A data set, recordings and weights, in the current folder; nothing of it is a valid one but the weights."""
    monkeypatch.chdir(tmp_path)
    save_network(untrained_network(PRESETS["mini"], seed=3), tmp_path / "w.safetensors")
    for name in ("data/rgb.txt", "data/groundtruth.txt", "lists/depth.txt", "clip.mp4", "poses.txt", "view.rrd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "data/depth.txt").symlink_to("../lists/depth.txt")
    (tmp_path / "data/folder").symlink_to("../lists")
    (tmp_path / "link.csv").symlink_to("data/groundtruth.txt")
    (tmp_path / "link.safetensors").symlink_to("w.safetensors")
    os.link("w.safetensors", "second.safetensors")
    return tmp_path


def content(folder):
    return {item: item.read_bytes() for item in folder.rglob("*") if item.is_file()}


IS_INPUT, IS_IN, TWICE = "is the input; name another", "is in the input", "is named for two outputs"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("evaluate tum_folder data --csv data/groundtruth.txt", IS_IN),
        ("evaluate tum_folder data --json data/new.json", IS_IN),
        ("evaluate tum_folder data --json lists/../data/rgb.txt", IS_IN),
        ("evaluate tum_folder data --csv link.csv", IS_IN),
        ("evaluate tum_folder data --csv lists/depth.txt", IS_IN),
        ("evaluate tum_folder data --checkpoint w.safetensors --csv w.safetensors", IS_INPUT),
        ("evaluate tum_folder data --checkpoint w.safetensors --json link.safetensors", IS_INPUT),
        ("evaluate synthetic --checkpoint link.safetensors --json w.safetensors", IS_INPUT),
        ("evaluate tum_folder data --json r.out --csv r.out", TWICE),
        ("evaluate tum_folder data --json r.out --csv data/../r.out", TWICE),
        ("evaluate synthetic --json new/trajectories_light.png --pictures new", "has the name of a picture"),
        ("evaluate covariance --checkpoint w.safetensors --write second.safetensors", IS_INPUT),
        ("evaluate plausibility --checkpoint w.safetensors --write link.safetensors", IS_INPUT),
        ("evaluate plausibility --checkpoint w.safetensors --foreign a.safetensors --write a.safetensors", IS_INPUT),
        ("convert w.safetensors link.safetensors --overwrite", IS_INPUT),
        ("convert w.safetensors second.safetensors --overwrite", IS_INPUT),
        ("doctor --checkpoint w.safetensors --json link.safetensors", IS_INPUT),
        ("run view.rrd --out o --view view.rrd --overwrite", IS_INPUT),
        ("run clip.mp4 --out o --poses view.rrd --view view.rrd --overwrite", IS_INPUT),
        ("train mini --weights w.safetensors --out o", IS_INPUT),
    ],
)
def test_outputs_that_are_inputs_are_one_error_before_anything_is_done(files, capsys, arguments, error):
    (files / "new").mkdir()
    (files / "o").mkdir()
    if arguments.startswith("train"):
        (files / "o" / "mini.safetensors").symlink_to("../w.safetensors")
    before = content(files)
    words = arguments.split()
    assert (
        cli.main(words + (EVALUATE if words[0] == "evaluate" and words[1] in ("tum_folder", "synthetic") else [])) == 2
    )
    output = capsys.readouterr()
    assert error in output.err and output.err.count("\n") == 1 and not output.out
    assert content(files) == before


def test_poses_are_not_deleted_by_overwrite(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        Image.fromarray(np.resize(np.uint8([50 * index + 50, 50 * index + 110]), (36, 48, 3))).save(
            images / f"{index}.png"
        )
    out = tmp_path / "o"
    command = ["run", str(images), "--out", str(out), "--checkpoint", "mini", "--size", "32", "--no-preview"]
    assert cli.main(command) == 0
    poses = (out / "trajectory.txt").read_bytes()
    capsys.readouterr()
    assert cli.main([*command, "--poses", str(out / "trajectory.txt"), "--overwrite"]) == 2
    assert "trajectory.txt of the input" in capsys.readouterr().err
    assert (out / "trajectory.txt").read_bytes() == poses


def test_other_outputs_beside_the_inputs_are_allowed(files):
    check_outputs(
        [files / "data2.json", files / "r.csv", files / "data.txt"], [files / "data", files / "w.safetensors"]
    )
    with pytest.raises(InputError, match="is in the input"):
        check_outputs([files / "data" / "folder" / "depth.txt"], [files / "data"])
