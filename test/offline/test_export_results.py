"""Exports of several worlds, of scaled images, their folders and their errors."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from evo.tools.file_interface import read_kitti_poses_file
from rosbags.highlevel import AnyReader

sys.path.insert(0, str(Path(__file__).parents[1] / "io"))
from recordings import image_message, write_bag

from raymap3r_ros import cli
from raymap3r_ros.errors import InputError, OptionError, Raymap3rError
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.output_folder import MANIFEST, locked_folder
from raymap3r_ros.offline import CloudOptions, RunOutputs, run, run_recording
from raymap3r_ros.offline import results as results_module
from raymap3r_ros.offline.export import export_formats, export_results
from raymap3r_ros.offline.results import read_results
from raymap3r_ros.streaming import Stream, StreamOptions

STREAM = StreamOptions(image_size=48)
OUTPUTS = RunOutputs(preview=False)
CHECKPOINT = ["--checkpoint", "mini", "--size", "48", "--device", "cpu", "--no-preview"]


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}


@pytest.fixture(scope="module")
def results(images, network, tmp_path_factory):
    """Results of the folder of images; not to be changed."""
    folder = tmp_path_factory.mktemp("results") / "results"
    run_recording(open_recording(images, max_frames=4), network, folder, STREAM, outputs=OUTPUTS)
    return folder


@pytest.fixture
def copy(results, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(results, tmp_path / "copy")


@pytest.fixture(scope="module")
def worlds(images, network, tmp_path_factory):
    """Results of a bag whose stamps jump back after three of five frames."""
    folder = tmp_path_factory.mktemp("worlds")
    stamps = (50.0, 50.1, 50.2, 20.0, 20.1)
    shown = [cv2.imread(str(images / f"{index}.png"))[..., ::-1] for index in range(5)]
    bag = write_bag(folder / "bag", [
        ("/image", 100 + index, image_message(stamp, shown[index], "rgb8", width=160))
        for index, stamp in enumerate(stamps)
    ])  # fmt: skip
    summary = run_recording(open_recording(bag), network, folder / "results", STREAM, outputs=OUTPUTS)
    assert summary.worlds == 2
    return folder / "results"


def test_each_world_has_a_folder_of_its_own(worlds, tmp_path):
    out = export_results(worlds, "kitti", tmp_path / "out")
    assert files_in(out) == {f"world_{n}/{name}.txt" for n in (1, 2) for name in ("poses", "times")}
    for number, count in ((1, 3), (2, 2)):
        assert read_kitti_poses_file(str(out / f"world_{number}" / "poses.txt")).num_poses == count
    out = export_results(worlds, "nerfstudio", tmp_path / "out", overwrite=True)
    frames = json.loads((out / "world_2" / "transforms.json").read_text())["frames"]
    assert [frame["file_path"] for frame in frames] == ["images/000003.png", "images/000004.png"]
    assert files_in(out) >= {"world_2/images/000003.png", "world_1/depth/000002.png"} and not (out / "images").exists()


def test_a_bag_has_all_worlds_one_after_the_other(worlds, tmp_path):
    bag = export_results(worlds, "mcap", tmp_path / "out") / "bag"
    with AnyReader([bag]) as reader:
        shown = [
            (one.topic, time // 10**9, reader.deserialize(data, one.msgtype)) for one, time, data in reader.messages()
        ]
    assert [time for topic, time, _ in shown if topic == "/raymap3r/pose"] == [100, 101, 102, 103, 104]
    assert [time for topic, time, _ in shown if topic == "/raymap3r/static_map"] == [100, 103]
    assert [len(message.poses) for topic, _, message in shown if topic == "/raymap3r/trajectory"] == [1, 3, 1, 2]


def test_worlds_are_the_episodes_of_a_dataset(worlds, tmp_path):
    parquet, av = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("av")
    out = export_results(worlds, "lerobot", tmp_path / "out")
    episodes = parquet.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    spans = [(one["dataset_from_index"], one["dataset_to_index"]) for one in episodes]
    times = [(one["videos/observation.images.rgb/from_timestamp"], one["length"]) for one in episodes]
    assert spans == [(0, 3), (3, 5)] and times == [(0.0, 3), (pytest.approx(0.3), 2)]
    data = parquet.read_table(out / "data/chunk-000/file-000.parquet").to_pydict()
    assert data["episode_index"] == [0, 0, 0, 1, 1] and data["frame_index"] == [0, 1, 2, 0, 1]
    assert data["stamp_ns"][3] == 20 * 10**9
    with av.open(str(out / "videos/observation.images.rgb/chunk-000/file-000.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5


@pytest.mark.parametrize("name", ["colmap", "nerfstudio", "mcap"])
def test_images_that_were_added_or_removed_since_the_run_are_not_exported(images, network, tmp_path, name):
    folder = shutil.copytree(images, tmp_path / "folder")
    files = sorted(folder.iterdir())
    opened = open_recording(folder, rate=10, max_frames=3)
    run_recording(opened, network, tmp_path / "results", STREAM, outputs=OUTPUTS)
    shutil.copy(files[0], folder / "zzz.png")  # after those of the run
    export_results(tmp_path / "results", name, tmp_path / "out")
    added = shutil.copy(files[3], folder / "000.png")
    with pytest.raises(InputError, match="folder: images were added, removed or renamed since the run"):
        export_results(tmp_path / "results", name, tmp_path / "other")
    added.unlink()
    moved = files[1].rename(tmp_path / "moved.png")
    with pytest.raises(InputError, match="added, removed or renamed since the run"):
        export_results(tmp_path / "results", name, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    moved.rename(files[1])
    other = shutil.copytree(folder, tmp_path / "elsewhere")
    export_results(tmp_path / "results", name, tmp_path / "other", recording=other)


@pytest.mark.parametrize(("rate", "fps", "faster"), [(0.2, 1, "5"), (1.4, 1, "0.714"), (9.9, 10, "")])
def test_another_speed_of_a_dataset_is_reported(images, network, tmp_path, caplog, rate, fps, faster):
    pytest.importorskip("av"), pytest.importorskip("pyarrow")
    opened = open_recording(images, rate=rate, max_frames=3, max_gap=100.0)
    run_recording(opened, network, tmp_path / "results", STREAM, outputs=OUTPUTS)
    caplog.clear()
    out = export_results(tmp_path / "results", "lerobot")
    assert json.loads((out / "meta/info.json").read_text())["fps"] == fps
    assert (f"run {faster} times as fast" in caplog.text) if faster else not caplog.records


def test_images_are_what_the_network_received(images, network, tmp_path, monkeypatch):
    received = []

    class Spy(Stream):
        def step(self, *args, **kwargs):
            result = super().step(*args, **kwargs)
            received.append(result.image.numpy().copy())
            # One frame without results: its image is left out.
            return dataclasses.replace(result, healthy=result.healthy & (len(received) != 2))

    monkeypatch.setattr(run, "Stream", Spy)
    opened = open_recording(images, stride=2, rate=15)
    run_recording(opened, network, tmp_path / "results", STREAM, outputs=OUTPUTS)
    out = export_results(tmp_path / "results", "colmap")
    assert out == tmp_path / "results_colmap"
    written = [cv2.imread(str(path))[..., ::-1] for path in sorted((out / "images").iterdir())]
    np.testing.assert_array_equal(written, [received[index] for index in (0, 2, 3)])


@pytest.mark.parametrize("name", sorted(export_formats()))
def test_a_run_without_optional_results_exports_what_it_has(images, network, tmp_path, name):
    few = RunOutputs(depth=False, masks=False, cloud=False, preview=False)
    run_recording(open_recording(images, max_frames=1), network, tmp_path / "results", STREAM, outputs=few)
    if name == "glb":
        with pytest.raises(InputError, match="--no-cloud"):
            export_results(tmp_path / "results", name)
        return
    if set(export_formats()[name].packages) & {"av"}:
        pytest.importorskip("av")
    found = files_in(export_results(tmp_path / "results", name))
    assert found and not any(word in file for word in ("mask", "depth", ".ply") for file in found)


def test_own_files_are_replaced_and_no_others(results, tmp_path):
    out = tmp_path / "out"
    export_results(results, "colmap", out)
    with pytest.raises(InputError, match=r"holds files already .*--overwrite"):
        export_results(results, "kitti", out)
    export_results(results, "kitti", out, overwrite=True)
    assert files_in(out) == {"poses.txt", "times.txt"} and not (out / "images").exists()
    (out / "deep" / "er").mkdir(parents=True)
    (out / "deep" / "er" / "mine.txt").touch()
    with pytest.raises(InputError, match="no export wrote"):
        export_results(results, "kitti", out, overwrite=True)
    assert files_in(out) == {"poses.txt", "times.txt", "deep/er/mine.txt"}


def test_results_of_a_run_are_never_replaced(results, copy):
    before = files_in(copy)
    with pytest.raises(InputError, match="holds the results of a run; name another folder with --out"):
        export_results(results, "kitti", copy, overwrite=True)
    assert files_in(copy) == before


def test_a_scene_of_any_size_that_a_run_writes_is_read(results, monkeypatch):
    (most,) = (field.metadata["high"] for field in dataclasses.fields(CloudOptions) if field.name == "max_points")
    assert most == results_module.MOST_POINTS
    (world,) = read_results(results).worlds
    count = len(world.scene()[0])
    assert count > 1
    monkeypatch.setattr(results_module, "MOST_POINTS", count - 1)
    with pytest.raises(InputError, match=f"more than {count - 1} points"):
        world.scene()


def test_a_recording_on_object_storage_is_named_as_it_is(copy, tmp_path):
    changed(copy, input="s3://fleet/day/clip.mp4")
    with pytest.raises(
        InputError, match=r"s3://fleet/day/clip\.mp4: the recording is not on this machine; name a copy"
    ):
        export_results(copy, "colmap", tmp_path / "out")


def test_the_input_and_the_results_are_not_written_to(images, results, copy):
    for folder in (copy, copy / "more"):
        with pytest.raises(InputError, match="input"):
            export_results(copy, "kitti", folder)
    with pytest.raises(InputError, match="input"):
        export_results(results, "colmap", images / "more")


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def change_focal_length(folder, text):
    """Of the second frame."""
    path = folder / "intrinsics.txt"
    lines = path.read_text().splitlines()
    stamp, _, *others = lines[2].split()
    path.write_text("\n".join([*lines[:2], " ".join([stamp, text, *others]), *lines[3:]]) + "\n")


def changed(folder, **values):
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def put_depth(folder, values):
    np.savez(folder / "depth" / "000001.npz", depth=values)


def name_a_huge_depth_map(folder):
    with zipfile.ZipFile(folder / "depth" / "000001.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        shape = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
        np.lib.format.write_array_header_1_0(header, shape)
        archive.writestr("depth.npy", header.getvalue() + bytes(10**6))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: (folder / "summary.json").unlink(), "contains no summary.json"),
        (lambda folder: (folder / "summary.json").write_text("[1]"), "summary.json: is damaged"),
        (lambda folder: cut(folder / "summary.json"), "summary.json: is damaged"),
        (lambda folder: cut(folder / "intrinsics.txt"), r"intrinsics\.txt: is damaged \(expected lines of 8 numbers"),
        (lambda folder: change_focal_length(folder, "abc"), r"intrinsics\.txt: is damaged \(could not convert"),
        (lambda folder: change_focal_length(folder, "nan"), r"intrinsics\.txt: is damaged \(frame 1: not all numbers"),
        (lambda folder: change_focal_length(folder, "1e300"), r"intrinsics\.txt: is damaged \(frame 1: focal lengths"),
        (lambda folder: (folder / "trajectory.txt").write_text("1 0 0 0 0 0 0 1\n"), "has 1 poses"),
        (lambda folder: cut(folder / "depth" / "000002.npz"), "000002.npz: is damaged"),
        (lambda folder: (folder / "masks" / "000001.png").unlink(), "000001.png: is damaged"),
        (lambda folder: put_depth(folder, np.ones((7, 7), np.float32)), "shape .7, 7."),
        (lambda folder: put_depth(folder, np.array([[print]])), "object"),
        (name_a_huge_depth_map, "shape .1000000, 1000000."),
        (lambda folder: changed(folder, image_size=[10**6, 10**6]), "do not fit"),
        (lambda folder: changed(folder, options={"image_size": 10**9}), "do not fit"),
        (lambda folder: changed(folder, worlds=10**12), "spans of worlds"),
        (lambda folder: changed(folder, world_spans=[{"world": 1, "first": 0, "frames": 2}]), "spans of worlds"),
        (lambda folder: changed(folder, reading={"topic": None}), "summary.json: is damaged"),
        (lambda folder: cut(folder / "static_scene.ply"), "static_scene.ply is not a point cloud"),
    ],
)
def test_damaged_results_are_named_and_leave_no_export(copy, tmp_path, damage, text):
    damage(copy)
    with pytest.raises(InputError, match=text):
        export_results(copy, "nerfstudio", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recording_that_has_moved_is_named(images, network, tmp_path, capsys):
    moved = shutil.copytree(images, tmp_path / "clip")
    out = tmp_path / "results"
    run_recording(open_recording(moved, max_frames=3), network, out, STREAM, outputs=OUTPUTS)
    moved.rename(tmp_path / "elsewhere")
    assert cli.main(["export", str(out), "colmap"]) == 2
    assert "if it has moved, name it with --input" in capsys.readouterr().err
    assert cli.main(["export", str(out), "colmap", "--input", str(tmp_path / "elsewhere")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'results_colmap'}\n"
    video = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (160, 120))
    for path in sorted((tmp_path / "elsewhere").iterdir()):
        video.write(cv2.imread(str(path)))
        cv2.imwrite(str(path), np.zeros((60, 80, 3), np.uint8))
    video.release()
    with pytest.raises(InputError, match=r"has no image at 0\.033333 s, the stamp of frame 1"):
        export_results(out, "colmap", tmp_path / "other", tmp_path / "clip.mp4")
    with pytest.raises(InputError, match="80x60, those of the run were 160x120"):
        export_results(out, "colmap", tmp_path / "other", tmp_path / "elsewhere")
    assert not (tmp_path / "other").exists()


def test_results_of_a_live_input_have_no_images(copy, tmp_path):
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({**summary, "input": "camera 0", "reading": None}))
    assert (export_results(copy, "kitti", tmp_path / "kitti") / "poses.txt").is_file()
    with pytest.raises(InputError, match="formats without images: glb, kitti"):
        export_results(copy, "colmap", tmp_path / "colmap")


def test_an_unknown_format_is_an_error_with_the_nearest_one(results, capsys):
    with pytest.raises(OptionError, match="'colmp' is no format; nearest: colmap; formats: colmap, glb, kitti"):
        export_results(results, "colmp")
    with pytest.raises(SystemExit):
        cli.main(["run", "clip", "--out", "out", "--export", "nerf"])
    assert "nearest: nerfstudio" in capsys.readouterr().err


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(results, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(Raymap3rError, match=r"lerobot needs av.*pip install '\.\[export\]'"):
        export_results(results, "lerobot", tmp_path / "out")
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('av', 'pyarrow', 'pycolmap', 'mcap', 'trimesh', 'rosbags')))\n"
        "from raymap3r_ros.offline.export import export_formats; print(*export_formats())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["colmap", "glb", "kitti", "lerobot", "mcap", "nerfstudio"]


def test_a_run_exports_by_the_same_code(images, tmp_path, capsys, caplog):
    arguments = ["run", str(images), "--out", str(tmp_path / "out"), "--max-frames", "3", *CHECKPOINT]
    (tmp_path / "out_kitti").mkdir()
    (tmp_path / "out_kitti" / "mine.txt").touch()
    assert cli.main([*arguments, "--export", "colmap", "kitti"]) == 2
    assert "no export wrote" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "out_kitti" / "mine.txt").unlink()
    assert cli.main([*arguments, "--export", "glb", "--no-cloud"]) == 2
    assert "glb shows the points of the static scene" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert cli.main([*arguments, "--export", "colmap", "kitti", "colmap"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [str(tmp_path / f"out_{name}") for name in ("colmap", "kitti")]
    with locked_folder(tmp_path / "other_colmap"):
        arguments[3] = str(tmp_path / "other")
        assert cli.main([*arguments, "--export", "colmap", "kitti"]) == 1
    assert "another run is writing to this folder" in caplog.text
    assert "not exported: colmap; raymap3r export" in capsys.readouterr().out
    assert (tmp_path / "other_kitti" / "poses.txt").is_file()
    again = export_results(tmp_path / "out", "colmap", tmp_path / "again")
    assert files_in(again) == files_in(tmp_path / "out_colmap")
    for name in files_in(again):
        assert (again / name).read_bytes() == (tmp_path / "out_colmap" / name).read_bytes()
