"""Runs that save their world, and runs that begin with a saved one."""

import dataclasses
import itertools
import json
import shutil

import cv2
import numpy as np
import pytest

from raymap3r_ros import cli
from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.evaluation.kidnap import FAR, WITHIN
from raymap3r_ros.evaluation.metrics import umeyama
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.tum import KnownTrajectory
from raymap3r_ros.network import load_network
from raymap3r_ros.offline import RunOutputs, run_recording
from raymap3r_ros.streaming import StreamOptions
from raymap3r_ros.streaming.stream_options import KeyframeOptions
from raymap3r_ros.streaming.world_files import Place, load_world, save_world
from raymap3r_ros.synthetic import suite_sequence

FEW = RunOutputs(depth=False, masks=False, cloud=False, preview=False)
SAVING = dataclasses.replace(FEW, memory=True)


@pytest.fixture(scope="module")
def one_room():
    return load_network("one_room")


@pytest.fixture(scope="module")
def stays(tmp_path_factory):
    """Frames of three stays, at home, in another room, and at home again, and a folder with the images of each."""
    sequence = suite_sequence("kidnap", 0, world="one_room", size=(96, 128))
    groups = itertools.groupby(itertools.islice(sequence.frames(), 225), key=lambda frame: frame.jumps)
    found = []
    for (_, stay), count in zip(groups, (40, 20, 20), strict=True):
        frames, folder = list(itertools.islice(stay, count)), tmp_path_factory.mktemp("stay")
        for index, frame in enumerate(frames):
            cv2.imwrite(str(folder / f"{index:03d}.png"), frame.image[..., ::-1])
        found.append((frames, folder, open_recording(folder, intrinsics=sequence.intrinsics)))
    return found


@pytest.fixture(scope="module")
def home(stays, one_room, tmp_path_factory):
    """The results of a run at home."""
    folder = tmp_path_factory.mktemp("home")
    summary = run_recording(stays[0][2], one_room, folder, outputs=SAVING)
    assert "world.safetensors" in summary.files and (summary.memory, summary.memory_found) == ("", None)
    return folder


def test_a_later_run_continues_the_world(stays, home, one_room, tmp_path):
    memory = home / "world.safetensors"
    frames, _, recording = stays[2]
    summary = run_recording(recording, one_room, tmp_path / "out", outputs=SAVING, memory=memory)
    first = summary.memory_found
    assert first <= WITHIN and (summary.worlds, summary.returns) == (2, 1)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["memory_found"] == first
    path, before = (
        np.loadtxt(folder / name)[:, 1:4]
        for folder, name in ((tmp_path / "out", "trajectory_2.txt"), (home, "trajectory.txt"))
    )
    true, was = (np.stack([frame.pose[:3, 3] for frame in part]) for part in (frames[first:], stays[0][0]))
    _, rotation, translation = umeyama(before, was, scaled=False)
    assert np.linalg.norm(path @ rotation.T + translation - true, axis=1).max() < FAR
    old, new = (load_world(folder / "world.safetensors", one_room).keyframes for folder in (home, tmp_path / "out"))
    assert np.array_equal(old.number[0, 0], new.number[0, 0]) and np.array_equal(old.pose[0, 0], new.pose[0, 0])


def test_blank_images_at_the_start_do_not_end_the_search(stays, home, one_room, tmp_path):
    folder = tmp_path / "covered"
    shutil.copytree(stays[2][1], folder)
    for index in range(7):
        cv2.imwrite(str(folder / f"{index:03d}.png"), np.zeros((96, 128, 3), np.uint8))
    recording = open_recording(folder, intrinsics=stays[2][2].given_intrinsics)
    memory = home / "world.safetensors"
    summary = run_recording(recording, one_room, tmp_path / "out", outputs=FEW, memory=memory)
    assert summary.frames_blank == 7 and summary.memory_found <= WITHIN


def test_another_room_is_not_taken_for_the_world(stays, home, one_room, tmp_path):
    memory = home / "world.safetensors"
    summary = run_recording(stays[1][2], one_room, tmp_path / "out", outputs=FEW, memory=memory)
    assert (summary.memory, summary.memory_found, summary.worlds) == (str(memory), None, 1)


def test_the_place_of_a_world_is_kept(stays, home, one_room, tmp_path):
    place = Place(np.diag((-1.0, -1.0, 1.0, 1.0)), 2.5, True, 0.03)
    memory = tmp_path / "placed.safetensors"
    world = load_world(home / "world.safetensors", one_room)
    save_world(memory, one_room, dataclasses.replace(world, place=place))
    for index, scale in ((2, 2.5), (1, 1.0)):
        out = tmp_path / str(index)
        run_recording(stays[index][2], one_room, out, outputs=SAVING, memory=memory)
        assert load_world(out / "world.safetensors", one_room).place.scale == scale


def test_a_world_that_cannot_be_used_leaves_the_folder_alone(stays, home, one_room, tmp_path):
    recording, memory, out = stays[0][2], home / "world.safetensors", tmp_path / "out"
    (tmp_path / "text").write_text("no world")
    for file in ("missing", "text"):
        with pytest.raises(InputError, match=file):
            run_recording(recording, one_room, out, outputs=FEW, memory=tmp_path / file)
    with pytest.raises(InputError, match="other weights"):
        run_recording(recording, load_network("mini"), out, outputs=FEW, memory=memory)
    for keyframes in (KeyframeOptions(size=0), KeyframeOptions(relocalize=False)):
        with pytest.raises(OptionError, match="keyframes"):
            run_recording(recording, one_room, out, StreamOptions(keyframes=keyframes), outputs=FEW, memory=memory)
    with pytest.raises(OptionError, match="keyframes"):
        run_recording(recording, one_room, out, StreamOptions(reset_interval=0), outputs=SAVING)
    assert not out.exists()
    # The folder of the run that has saved it
    with pytest.raises(InputError, match="would be deleted"):
        run_recording(recording, one_room, home, outputs=FEW, memory=memory, overwrite=True)
    assert memory.exists()


def test_a_run_without_keyframes_yet_saves_none(images, network, tmp_path, caplog):
    summary = run_recording(open_recording(images, max_frames=2), network, tmp_path, outputs=SAVING)
    assert "world.safetensors" not in summary.files and "no keyframes yet" in caplog.text


def test_a_known_pose_ends_the_search(stays, home, one_room, tmp_path):
    (tmp_path / "poses.txt").write_text("".join(f"{index / 30} 0 0 0 0 0 0 1\n" for index in range(20)))
    poses = KnownTrajectory.read(tmp_path / "poses.txt")
    memory = home / "world.safetensors"
    summary = run_recording(stays[2][2], one_room, tmp_path / "out", outputs=FEW, poses=poses, memory=memory)
    assert (summary.memory_found, summary.worlds) == (None, 1)


def test_the_command_line_saves_and_finds_a_world(stays, tmp_path, capsys):
    common = ["--no-depth", "--no-masks", "--no-cloud", "--no-preview", "--device", "cpu"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli.main(["run", str(stays[0][1]), "--out", str(first), "--save-memory", *common]) == 0
    assert "world.safetensors" in capsys.readouterr().out
    memory = ["--memory", str(first / "world.safetensors")]
    assert cli.main(["run", str(stays[1][1]), "--out", str(second), *memory, *common]) == 0
    assert "not found in world.safetensors" in capsys.readouterr().out
    assert cli.main(["run", str(stays[0][1]), "--out", str(tmp_path / "third"), *memory, *common]) == 0
    assert "found from frame 6 on in world.safetensors" in capsys.readouterr().out
