"""Runs shown in Rerun: the recording is read back with Rerun and compared with the files of the same run."""

import os
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from raymap3r_ros import cli
from raymap3r_ros.commands import run as run_command
from raymap3r_ros.errors import InputError, Raymap3rError
from raymap3r_ros.io import open_recording
from raymap3r_ros.offline import CloudOptions, RunOutputs, run_recording
from raymap3r_ros.offline.rerun_view import RerunView
from raymap3r_ros.streaming import StreamOptions

COUNT, RATE = 8, 5
SIZE = (48, 64)  # height, width of the network's input
MOTION_FROM = 5  # index of the first frame with a mask: five frames warm up


def read(file):
    """Every value of a recording, as {entity: {component: [(frame, stamp in seconds, values), ...]}}; static: None."""
    chunk = pytest.importorskip("rerun.chunk", reason="this version of Rerun cannot read recordings back")
    values = defaultdict(lambda: defaultdict(list))
    for one in chunk.RrdReader(file).stream().to_chunks():
        table = one.to_record_batch().to_pydict()
        count = one.num_rows
        frames = table.get("frame", [None] * count)
        stamps = [None if stamp is None else stamp.timestamp() for stamp in table.get("stamp", [None] * count)]
        for component, column in table.items():
            values[one.entity_path][component] += list(zip(frames, stamps, column, strict=True))
    return {
        entity: {name: sorted(rows, key=lambda row: row[0] or 0) for name, rows in components.items()}
        for entity, components in values.items()
    }


@pytest.fixture(scope="module")
def run(images, network, tmp_path_factory):
    """The folder of a run, and the contents of its recording."""
    pytest.importorskip("rerun", reason="rerun-sdk is not installed: 170 MB, and only `run --view` needs it")
    folder = tmp_path_factory.mktemp("run")
    file = folder / "view" / "clip.rrd"
    run_recording(
        open_recording(images, rate=RATE), network, folder / "out", StreamOptions(image_size=SIZE[1]),
        outputs=RunOutputs(preview=False, view=RerunView(file)), cloud_options=CloudOptions(confidence_threshold=1.0),
        progress=False,
    )  # fmt: skip
    assert [item.name for item in file.parent.iterdir()] == ["clip.rrd"]
    return folder / "out", read(file)


def rows(recorded, entity, component):
    """Frames and values of a component that is logged in many frames."""
    found = recorded[f"/{entity}"][component]
    return [frame for frame, _, _ in found], [value for _, _, value in found]


def buffers(recorded, entity, component, dtype):
    return [np.array(value[0], np.uint8).view(dtype).reshape(SIZE) for value in rows(recorded, entity, component)[1]]


def test_poses_equal_the_trajectory_file(run):
    folder, recorded = run
    written = np.loadtxt(folder / "trajectory.txt")
    frames, positions = rows(recorded, "world/camera", "Transform3D:translation")
    assert frames == list(range(COUNT))
    stamps = [stamp for _, stamp, _ in recorded["/world/camera"]["Transform3D:translation"]]
    np.testing.assert_allclose(stamps, written[:, 0], atol=1e-6)
    np.testing.assert_allclose(np.squeeze(positions), written[:, 1:4], atol=1e-6)
    turns = np.squeeze(rows(recorded, "world/camera", "Transform3D:mat3x3")[1])
    for turn, (x, y, z, w) in zip(turns, written[:, 4:], strict=True):
        # Rerun stores matrices in column-major order.
        expected = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        np.testing.assert_allclose(turn.reshape(3, 3).T, expected, atol=1e-5)
    frames, ways = rows(recorded, "world/trajectory", "LineStrips3D:strips")
    assert frames[0] == 0 and frames[-1] == COUNT - 1
    np.testing.assert_allclose(ways[-1][0][:COUNT], written[:, 1:4], atol=1e-6)


def test_pinhole_image_and_depth_are_logged_in_every_frame(run):
    folder, recorded = run
    frames, matrices = rows(recorded, "world/camera/image", "Pinhole:image_from_camera")
    assert frames == list(range(COUNT))
    written = np.loadtxt(folder / "intrinsics.txt")
    matrices = np.squeeze(matrices).reshape(COUNT, 3, 3).transpose(0, 2, 1)
    np.testing.assert_allclose(
        np.stack([matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, 0, 2], matrices[:, 1, 2]], 1),
        written[:, 1:5],
        atol=1e-3,
    )
    frames, pictures = rows(recorded, "world/camera/image/rgb", "EncodedImage:blob")
    assert frames == list(range(COUNT))
    assert cv2.imdecode(np.array(pictures[0][0], np.uint8), cv2.IMREAD_COLOR).shape == (*SIZE, 3)
    depths = buffers(recorded, "world/camera/image/depth", "DepthImage:buffer", np.uint16)
    assert len(depths) == COUNT
    for index, depth in enumerate(depths):
        png = cv2.imread(str(folder / f"depth/{index:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert np.abs(depth.astype(int) - png).max() <= 1 and depth.max() > 0
    assert {value[0] for value in rows(recorded, "world/camera/image/depth", "DepthImage:meter")[1]} == {1000.0}


def test_motion_is_logged_from_the_first_frame_with_a_motion_estimate(run):
    folder, recorded = run
    known = list(range(MOTION_FROM, COUNT))
    assert rows(recorded, "dynamic_map", "EncodedImage:blob")[0] == known
    assert rows(recorded, "world/camera/image/moving", "SegmentationImage:buffer")[0] == known
    masks = buffers(recorded, "world/camera/image/moving", "SegmentationImage:buffer", np.uint8)
    for index, mask in zip(known, masks, strict=True):
        png = cv2.imread(str(folder / f"masks/{index:06d}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask == 1, png == 255)
        assert mask.max() <= 1
    (context,) = rows(recorded, "world/camera/image/moving", "AnnotationContext:context")[1]
    assert "moving" in str(context) and "static" in str(context)


def test_the_last_static_scene_equals_the_file(run):
    folder, recorded = run
    frames, clouds = rows(recorded, "world/static_scene", "Points3D:positions")
    assert frames == [0, COUNT - 1]
    body = (folder / "static_scene.ply").read_bytes().split(b"end_header\n", 1)[1]
    written = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    np.testing.assert_array_equal(np.array(clouds[-1], np.float32), written["xyz"])


def test_without_motion_the_view_has_no_mask(images, network, tmp_path):
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    outputs = RunOutputs(masks=False, cloud=False, preview=False, motion=False, view=RerunView(tmp_path / "a.rrd"))
    recording, options = open_recording(images), StreamOptions(image_size=SIZE[1])
    summary = run_recording(recording, network, tmp_path / "out", options, outputs=outputs, progress=False)
    assert summary.motion_frames == 0
    recorded = read(tmp_path / "a.rrd")
    assert {"/world/camera/image/depth", "/world/static_scene"} <= recorded.keys()
    assert "/dynamic_map" not in recorded
    assert "SegmentationImage:buffer" not in recorded["/world/camera/image/moving"]


def test_a_run_that_fails_at_once_leaves_no_recording(images, network, tmp_path, monkeypatch):
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    monkeypatch.setattr("raymap3r_ros.streaming.Stream.step", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_recording(
            open_recording(images), network, tmp_path / "out",
            outputs=RunOutputs(view=RerunView(tmp_path / "a.rrd")), progress=False,
        )  # fmt: skip
    assert not list(tmp_path.glob("*.rrd")) and not list(tmp_path.glob(".*"))


@pytest.fixture
def spawned(monkeypatch):
    """Opens no viewer; records the folders on the path at the time of the call."""
    rerun = pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    monkeypatch.setenv("PATH", "/usr/bin")
    paths = []
    monkeypatch.setattr(
        rerun.RecordingStream, "spawn", lambda *_, **__: paths.extend(os.environ["PATH"].split(os.pathsep))
    )
    return paths


def test_a_viewer_that_closes_does_not_end_the_run(images, network, spawned, tmp_path, monkeypatch, caplog):
    def flush(*_, **__):
        raise RuntimeError("no connection")

    monkeypatch.setattr(sys.modules["rerun"].RecordingStream, "flush", flush)
    recording = open_recording(images, max_frames=2)
    outputs = RunOutputs(view=RerunView(None))
    summary = run_recording(recording, network, tmp_path / "out", outputs=outputs, progress=False)
    assert summary.complete and (tmp_path / "out" / "summary.json").exists()
    assert "lost the connection to Rerun's viewer (it needs a display): no connection" in caplog.text
    assert spawned == ["/usr/bin", str(Path(sys.executable).parent)]


def test_a_viewer_that_does_not_start_is_one_clear_line(images, spawned, tmp_path, capsys, monkeypatch):
    def spawn(*_, **__):
        raise RuntimeError("No executable.\n\nMuch advice")

    monkeypatch.setattr(sys.modules["rerun"].RecordingStream, "spawn", spawn)
    arguments = ["run", str(images), "--out", str(tmp_path / "out"), "--checkpoint", "mini", "--device", "cpu"]
    assert cli.main([*arguments, "--view"]) == cli.FAILED
    assert "error: Rerun's viewer cannot be started: No executable.\n" in capsys.readouterr().err


def test_without_rerun_the_error_contains_the_install_command(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(Raymap3rError, match=r"--view needs it: pip install rerun-sdk$"):
        RerunView(None)
    assert cli.main(["run", str(images), "--out", str(tmp_path / "out"), "--view"]) == cli.FAILED
    assert "rerun is not installed; --view needs it: pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_written_is_an_error_before_anything_runs(images, tmp_path, capsys):
    (tmp_path / "a.rrd").touch()
    with pytest.raises(InputError, match="exists already"):
        RerunView(tmp_path / "a.rrd")
    with pytest.raises(InputError, match=r"must end in \.rrd"):
        RerunView(tmp_path / "a.txt")
    with pytest.raises(SystemExit):
        cli.main(["run", "--view", str(images), "--out", str(tmp_path / "out")])
    assert "does not end in .rrd; INPUT goes before --view" in capsys.readouterr().err


def test_view_of_the_command_line(images, network, tmp_path, monkeypatch):
    views = []
    monkeypatch.setattr(run_command, "RerunView", lambda *arguments: views.append(arguments))
    monkeypatch.setattr(run_command, "run_recording", lambda *_, **__: 1 / 0)
    for arguments in ([], ["--view"], ["--view", "a.rrd", "--overwrite"]):
        with pytest.raises(ZeroDivisionError):
            common = ["--out", str(tmp_path), "--checkpoint", "mini", "--device", "cpu"]
            cli.main(["run", str(images), *common, *arguments])
    assert [(file and file.name, overwrite) for file, overwrite in views] == [(None, False), ("a.rrd", True)]
