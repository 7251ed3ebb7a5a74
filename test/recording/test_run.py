"""Whole runs: small recordings through the small untrained network, and what must be in the folder afterwards."""

import dataclasses
import json
import signal
import threading

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from raymap3r_ros.errors import InputError
from raymap3r_ros.recording import CloudOptions, open_recording, run, run_recording
from raymap3r_ros.recording.run import UNTRAINED_WARNING
from raymap3r_ros.streaming import Stream, StreamOptions

OPTIONS = StreamOptions(image_size=64, reset_interval=6)
CLOUD = CloudOptions(confidence_threshold=1.0)
COUNT = 8


@pytest.fixture
def stepped(monkeypatch):
    """Results of the steps of every stream, in order; `before(index)` may be set to do something first."""

    class Steps(list):
        def before(self, index: int) -> None:
            pass

        def after(self, result):
            return result

    steps = Steps()
    step = Stream.step

    def spy(self, *args, **kwargs):
        steps.before(len(steps))
        steps.append(steps.after(step(self, *args, **kwargs)))
        return steps[-1]

    monkeypatch.setattr(Stream, "step", spy)
    return steps


def files_in(folder):
    return sorted(item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_file())


def expected_files(count: int):
    names = ["trajectory.txt", "intrinsics.txt", "static_scene.ply", "summary.json", "preview.png", "preview.mp4"]
    names += [f"depth/{index:06d}.{suffix}" for index in range(count) for suffix in ("png", "npz")]
    return sorted(names + [f"masks/{index:06d}.png" for index in range(count)])


def test_everything_is_written_and_agrees_with_the_results(images, network, stepped, tmp_path, caplog):
    summary = run_recording(
        open_recording(images, rate=5), network, tmp_path / "out", OPTIONS, cloud_options=CLOUD, progress=False
    )
    folder = tmp_path / "out"
    assert files_in(folder) == expected_files(COUNT)

    trajectory = np.loadtxt(folder / "trajectory.txt")
    assert trajectory.shape == (COUNT, 8)
    assert np.allclose(trajectory[:, 0], np.arange(COUNT) / 5)
    assert np.allclose(trajectory[:, 1:4], [result.pose[:3, 3].numpy() for result in stepped], atol=1e-6)
    intrinsics = np.loadtxt(folder / "intrinsics.txt")
    assert np.allclose(intrinsics[:, 1], [result.intrinsics[0, 0] for result in stepped], rtol=1e-4)
    assert intrinsics[0, 5:7].tolist() == [64, 48]

    for index, result in enumerate(stepped):
        depth = np.load(folder / f"depth/{index:06d}.npz")["depth"]
        assert np.array_equal(depth, result.depth.numpy())
        with Image.open(folder / f"depth/{index:06d}.png") as picture:
            assert np.abs(np.asarray(picture) / 1000 - depth).max() <= 0.00051
        with Image.open(folder / f"masks/{index:06d}.png") as picture:
            assert np.array_equal(np.asarray(picture) > 0, result.dynamic_mask.numpy())

    written = json.loads((folder / "summary.json").read_text())
    assert written == json.loads(json.dumps(dataclasses.asdict(summary)))
    assert written["frames"] == COUNT and written["complete"] and written["frames_skipped"] == 0
    assert written["options"]["image_size"] == 64 and written["options"]["mask"]["high"] == OPTIONS.mask.high
    assert written["input_size"] == [160, 120] and written["image_size"] == [64, 48]
    assert written["duration"] == pytest.approx(1.4)
    assert written["resets"] == 1
    assert written["rules"] == {"raymap3r": COUNT}
    assert written["whole_rate"] > 0 and written["engine_rate"] > 0
    assert written["step"]["median"] > 0 and {"encode", "decode"} <= written["stages"].keys()
    path = np.linalg.norm(np.diff(trajectory[:, 1:4], axis=0), axis=1).sum()
    assert written["path_length"] == pytest.approx(path, rel=1e-5)

    header = (folder / "static_scene.ply").read_bytes().split(b"end_header\n")[0].decode()
    assert f"element vertex {written['static_points']}\n" in header
    assert written["static_points"] > 0

    # Untrained weights are told everywhere.
    assert not written["trained"] and "UNTRAINED" in written["warning"]
    assert UNTRAINED_WARNING in caplog.text

    video = cv2.VideoCapture(str(folder / "preview.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (COUNT, 5)
    with Image.open(folder / "preview.png") as sheet:
        assert sheet.width == video.get(cv2.CAP_PROP_FRAME_WIDTH) and sheet.height > sheet.width / 2


def test_points_of_the_cloud_are_the_pixels_in_the_world(images, network, stepped, tmp_path):
    options = CloudOptions(confidence_threshold=1.0, max_slope=10_000.0, mask_margin=0.0, voxel_size=1e-4)
    run_recording(
        open_recording(images, max_frames=1), network, tmp_path / "out", OPTIONS, cloud_options=options,
        with_preview=False, progress=False,
    )  # fmt: skip
    assert "preview.png" not in files_in(tmp_path / "out")
    (result,) = stepped
    pose = result.pose.double().numpy()
    world = result.points.double().numpy().reshape(-1, 3) @ pose[:3, :3].T + pose[:3, 3]
    body = (tmp_path / "out" / "static_scene.ply").read_bytes().split(b"end_header\n", 1)[1]
    points = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    assert len(points) > 0.95 * len(world)
    nearest = [np.abs(world - point).sum(axis=1).argmin() for point in points["xyz"][::100].astype(float)]
    assert np.abs(world[nearest] - points["xyz"][::100]).max() < 2e-4
    colors = result.image.numpy().reshape(-1, 3)[nearest]
    assert np.abs(colors.astype(int) - points["rgb"][::100]).max() <= 2


def test_intrinsics_are_handed_to_the_stream(images, network, tmp_path):
    matrix = np.array([[150.0, 0, 79.5], [0, 150, 59.5], [0, 0, 1]])
    run_recording(
        open_recording(images, max_frames=2, intrinsics=matrix), network, tmp_path / "out", OPTIONS, progress=False
    )
    # 160x120 becomes 64x48: everything is scaled by 0.4 about the corner of the image.
    assert np.allclose(np.loadtxt(tmp_path / "out" / "intrinsics.txt")[:, 1:], [60, 60, 31.5, 23.5, 64, 48, 1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_finishes_the_files(images, network, stepped, tmp_path, number, capfd):
    stepped.before = lambda index: signal.raise_signal(number) if index == 2 else None
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    summary = run_recording(open_recording(images), network, tmp_path / "out", OPTIONS, progress=False)
    assert (summary.frames, summary.complete, summary.stopped_by) == (3, False, signal.Signals(number).name)
    assert files_in(tmp_path / "out") == expected_files(3)
    assert len(np.loadtxt(tmp_path / "out" / "trajectory.txt")) == 3
    assert "stopping after this frame" in capfd.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_second_ctrl_c_stops_at_once(images, network, stepped, tmp_path):
    def twice(index):
        if index == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    stepped.before = twice
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_recording(open_recording(images), network, tmp_path / "out", OPTIONS, progress=False)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert not [name for name in files_in(tmp_path / "out") if "partial" in name]


def test_error_half_way_finishes_the_files_and_is_raised(images, network, stepped, tmp_path, caplog):
    def fail(index):
        if index == 3:
            raise RuntimeError("the device is gone")

    stepped.before = fail
    with pytest.raises(RuntimeError, match="the device is gone"):
        run_recording(open_recording(images), network, tmp_path / "out", OPTIONS, progress=False)
    assert files_in(tmp_path / "out") == expected_files(3)
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (written["complete"], written["stopped_by"]) == (False, "the device is gone")
    assert "stopped after 3 frames by an error: finishing the files" in caplog.text


def test_frames_without_finite_values_are_left_out_and_counted(images, network, stepped, tmp_path, caplog):
    def spoil(result):
        if result.frame not in (1, 4):
            return result
        return dataclasses.replace(
            result, healthy=torch.tensor(False), depth=result.depth * torch.nan, pose=result.pose * torch.nan
        )

    stepped.after = spoil
    summary = run_recording(open_recording(images), network, tmp_path / "out", OPTIONS, progress=False)
    assert (summary.frames, summary.frames_unhealthy) == (COUNT - 2, 2)
    assert files_in(tmp_path / "out") == expected_files(COUNT - 2)
    assert np.isfinite(np.loadtxt(tmp_path / "out" / "trajectory.txt")).all()
    assert "frame 4: the network's values are not finite" in caplog.text

    stepped.after = lambda result: dataclasses.replace(result, healthy=torch.tensor(False))
    with pytest.raises(InputError, match=f"no finite value for any of its {COUNT} frames"):
        run_recording(open_recording(images), network, tmp_path / "none", OPTIONS, progress=False)


def test_results_of_an_earlier_run_are_kept_unless_told(images, network, tmp_path):
    run_recording(open_recording(images, max_frames=3), network, tmp_path / "out", OPTIONS, progress=False)
    with pytest.raises(InputError, match="holds files already"):
        run_recording(open_recording(images, max_frames=1), network, tmp_path / "out", OPTIONS, progress=False)
    assert files_in(tmp_path / "out") == expected_files(3)
    run_recording(
        open_recording(images, max_frames=2), network, tmp_path / "out", OPTIONS, overwrite=True, progress=False
    )
    assert files_in(tmp_path / "out") == expected_files(2)


def test_runs_outside_the_main_thread(images, network, tmp_path):
    summaries = []
    thread = threading.Thread(
        target=lambda: summaries.append(
            run_recording(open_recording(images, max_frames=1), network, tmp_path / "out", OPTIONS, progress=False)
        )
    )
    thread.start()
    thread.join()
    assert summaries[0].frames == 1


def test_preview_shows_the_part_that_the_network_saw(images, network, stepped, tmp_path, monkeypatch):
    """A panorama is cropped at both ends; the preview's image must be cut alike, at the recorded resolution."""
    wide = tmp_path / "wide"
    wide.mkdir()
    ramp = np.zeros((100, 380, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.linspace(0, 255, 380), np.linspace(0, 255, 100)[:, None]
    Image.fromarray(ramp).save(wide / "1.png")
    drawn = []
    draw_panels = run.preview.draw_panels

    def spy(image, *args, **kwargs):
        drawn.append(image)
        return draw_panels(image, *args, **kwargs)

    monkeypatch.setattr(run.preview, "draw_panels", spy)
    run_recording(open_recording(wide), network, tmp_path / "out", OPTIONS, progress=False)
    seen = stepped[0].image.numpy().astype(int)
    assert seen.shape == (16, 64, 3)
    (image,) = drawn
    assert image.shape[1] > 300
    small = cv2.resize(image, (64, 16), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(small - seen).max() <= 6
