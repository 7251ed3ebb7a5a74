"""Complete runs: small recordings, a small untrained network, and the resulting files."""

import dataclasses
import json
import shutil
import signal
import threading
import weakref
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from raymap3r_ros.errors import InputError
from raymap3r_ros.io import open_recording, preview
from raymap3r_ros.io.output_folder import MANIFEST, written_files
from raymap3r_ros.mapping import static_map
from raymap3r_ros.offline import CloudOptions, RunOutputs, run, run_clouds, run_recording
from raymap3r_ros.offline.run import UNTRAINED_WARNING
from raymap3r_ros.streaming import METHOD, StepResult, Stream, StreamOptions, cover
from raymap3r_ros.streaming import result as results

OPTIONS = StreamOptions(image_size=64, reset_interval=6)
CLOUD = CloudOptions(confidence_threshold=1.0)
COUNT = 8


@pytest.fixture
def stepped(monkeypatch):
    """Results of the steps of all streams, in order. `before(index)` can be replaced by a hook before each step."""

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
    """All files but the manifest, which lists exactly these."""
    files = sorted(item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_file())
    if MANIFEST in files:
        files.remove(MANIFEST)
        assert sorted({path.relative_to(folder).as_posix() for path in written_files(folder)}) == files
    return files


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

    # Untrained weights are reported everywhere.
    assert not written["trained"] and "UNTRAINED" in written["warning"]
    assert UNTRAINED_WARNING in caplog.text

    video = cv2.VideoCapture(str(folder / "preview.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (COUNT, 5)
    with Image.open(folder / "preview.png") as sheet:
        assert sheet.width == video.get(cv2.CAP_PROP_FRAME_WIDTH) and sheet.height > sheet.width / 2


def rays_encoded(network, images, folder, options, outputs):
    """Number of frames of a run that use the ray branch, and its summary."""
    calls = []
    hook = network.ray_encoder.register_forward_hook(lambda *_: calls.append(None))
    try:
        summary = run_recording(
            open_recording(images), network, folder, options, outputs=outputs, cloud_options=CLOUD, progress=False
        )
    finally:
        hook.remove()
    return len(calls), summary


NOTHING = RunOutputs(depth=False, masks=False, cloud=False, preview=False)
NO_RESET = dataclasses.replace(OPTIONS, reset_interval=0)
ESTIMATED = COUNT - METHOD.warmup_frames  # frames for which motion can be estimated


@pytest.mark.parametrize(
    ("rule", "outputs", "rays", "motion_frames"),
    [
        ("cut3r", RunOutputs(), ESTIMATED, ESTIMATED),
        ("cut3r", RunOutputs(motion=False), 0, 0),
        ("raymap3r", RunOutputs(motion=False), ESTIMATED, 0),
        ("cut3r", NOTHING, 0, 0),
        ("cut3r", dataclasses.replace(NOTHING, depth=True), 0, 0),
        ("cut3r", dataclasses.replace(NOTHING, masks=True), ESTIMATED, ESTIMATED),
        ("cut3r", dataclasses.replace(NOTHING, cloud=True), ESTIMATED, ESTIMATED),
        ("cut3r", dataclasses.replace(NOTHING, preview=True), ESTIMATED, ESTIMATED),
        ("raymap3r", NOTHING, ESTIMATED, 0),
    ],
)
def test_ray_branch_runs_only_for_results_and_rules_that_need_it(
    images, network, tmp_path, rule, outputs, rays, motion_frames
):
    options = dataclasses.replace(NO_RESET, update_rule=rule)
    count, summary = rays_encoded(network, images, tmp_path / "out", options, outputs)
    assert (count, summary.motion_frames) == (rays, motion_frames)
    assert (summary.moving_share is None) == (motion_frames == 0)


def test_reset_alignment_needs_the_ray_branch_without_motion_too(images, network, tmp_path):
    options = dataclasses.replace(OPTIONS, update_rule="cut3r")
    assert rays_encoded(network, images, tmp_path / "out", options, NOTHING)[0] == 1


def test_view_needs_motion():
    class View:
        pass

    assert not NOTHING.motion_estimated and not NOTHING.scene_built
    viewed = dataclasses.replace(NOTHING, view=View())
    assert viewed.motion_estimated and viewed.scene_built and not viewed.masks_written
    assert not dataclasses.replace(viewed, motion=False).motion_estimated


def test_trajectory_is_the_same_without_motion(images, network, tmp_path):
    options = dataclasses.replace(OPTIONS, update_rule="cut3r")
    for name, outputs in (("with", RunOutputs()), ("without", RunOutputs(motion=False))):
        run_recording(open_recording(images), network, tmp_path / name, options, outputs=outputs, progress=False)
    for file in ("trajectory.txt", "intrinsics.txt", "depth/000007.npz"):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()


FOLDERS = {"depth/*.png", "depth/*.npz", "masks/*.png"}
ALWAYS = {"trajectory.txt", "intrinsics.txt", "summary.json"}
EVERYTHING = {*ALWAYS, *FOLDERS, "static_scene.ply", "preview.png", "preview.mp4"}


@pytest.mark.parametrize(
    ("outputs", "files"),
    [
        (RunOutputs(), EVERYTHING),
        (RunOutputs(depth=False), EVERYTHING - {"depth/*.png", "depth/*.npz"}),
        (RunOutputs(masks=False), EVERYTHING - {"masks/*.png"}),
        (RunOutputs(cloud=False), EVERYTHING - {"static_scene.ply"}),
        (RunOutputs(preview=False), EVERYTHING - {"preview.png", "preview.mp4"}),
        (RunOutputs(motion=False), EVERYTHING - {"masks/*.png"}),
        (NOTHING, ALWAYS),
    ],
)
def test_summary_lists_the_existing_files_also_after_an_earlier_run(images, network, tmp_path, outputs, files):
    folder = tmp_path / "out"
    run_recording(open_recording(images, max_frames=4), network, folder, OPTIONS, progress=False)
    summary = run_recording(
        open_recording(images, max_frames=3), network, folder, OPTIONS, outputs=outputs, overwrite=True, progress=False
    )
    assert set(summary.files) == files and len(summary.files) == len(files)
    names = [name for pattern in summary.files for name in folder.glob(pattern)]
    assert sorted(name.relative_to(folder).as_posix() for name in names) == files_in(folder)
    assert all(len(list(folder.glob(pattern))) == 3 for pattern in files & FOLDERS)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(
        {pattern.partition("/")[0] for pattern in files & FOLDERS}
    )
    assert json.loads((folder / "summary.json").read_text())["files"] == summary.files


def test_static_scene_without_motion_contains_moving_objects(images, network, stepped, tmp_path):
    """The mask covers the left half of each image for which motion was estimated, which includes the last frames."""

    def mask(result):
        moving = result.dynamic_mask.clone()
        moving[:, :32] = result.motion
        return dataclasses.replace(result, dynamic_mask=moving)

    stepped.after = mask
    points = []
    for name, outputs in (("with", RunOutputs(preview=False)), ("without", RunOutputs(preview=False, motion=False))):
        summary = run_recording(
            open_recording(images), network, tmp_path / name, OPTIONS, outputs=outputs, cloud_options=CLOUD,
            progress=False,
        )  # fmt: skip
        points.append(summary.static_points)
    assert stepped[COUNT - 1].dynamic_mask.any() and not stepped[-1].dynamic_mask.any()
    assert points[0] < points[1]


def test_without_scene_and_maps_they_are_neither_computed_nor_copied(images, network, tmp_path, monkeypatch):
    copied = set()
    numpy = StepResult.numpy

    def spy(self, *names):
        copied.update(names)
        return numpy(self, *names)

    monkeypatch.setattr(StepResult, "numpy", spy)
    monkeypatch.setattr(run_clouds, "StaticMap", lambda *_, **__: 1 / 0)
    summary = run_recording(open_recording(images), network, tmp_path / "a", OPTIONS, outputs=NOTHING, progress=False)
    assert copied == {"pose", "intrinsics"}
    assert (summary.static_points, summary.voxel_size) == (None, None)
    assert summary.image_size == (64, 48)
    outputs = dataclasses.replace(NOTHING, depth=True)
    run_recording(open_recording(images), network, tmp_path / "b", OPTIONS, outputs=outputs, progress=False)
    assert copied == {"pose", "intrinsics", "depth"}


def test_preview_without_motion_has_no_panels_for_it(images, network, tmp_path, monkeypatch):
    drawn, written = [], []
    draw_panels, draw_sheet = preview.draw_panels, preview.draw_sheet
    monkeypatch.setattr(
        preview, "draw_panels", lambda *args, **kwargs: drawn.append(kwargs) or draw_panels(*args, **kwargs)
    )
    monkeypatch.setattr(preview, "draw_sheet", lambda *args: written.append(args[5]) or draw_sheet(*args))
    outputs = RunOutputs(cloud=False, motion=False)
    summary = run_recording(
        open_recording(images), network, tmp_path / "out", OPTIONS, outputs=outputs, progress=False
    )
    assert len(drawn) == COUNT and not any(arguments["with_motion"] for arguments in drawn)
    assert summary.static_points is not None  # the sheet shows it
    text = "\n".join(written[0])
    assert "motion not estimated" in text and "points of the whole scene" in text and "frames/s on cpu" in text


def test_slow_rates_keep_their_digits(images, network, tmp_path, monkeypatch):
    ticks = iter(range(0, 10_000, 100))
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    outputs = dataclasses.replace(NOTHING, motion=False)
    summary = run_recording(
        open_recording(images), network, tmp_path / "out", OPTIONS, outputs=outputs, progress=False
    )
    assert summary.engine_rate == 0.01
    assert summary.whole_rate == float(f"{COUNT / (100 * (2 * COUNT + 1)):.5g}")


def test_maps_of_past_frames_are_not_kept_in_memory(images, network, tmp_path, monkeypatch):
    """On a GPU, all maps of a frame and the pose share one buffer."""
    buffers = []

    def packed(tensors):
        buffer = results.pack(tensors).numpy()
        buffers.append(weakref.ref(buffer))
        return results.unpack(buffer, tensors)

    monkeypatch.setattr(results, "to_host", packed)
    kept = []
    monkeypatch.setattr(run, "write_trajectory", lambda *_: kept.extend(buffer() for buffer in buffers))
    outputs = RunOutputs(preview=False)
    run_recording(open_recording(images), network, tmp_path / "out", OPTIONS, outputs=outputs, progress=False)
    assert len(kept) == COUNT and not any(buffer is not None for buffer in kept)


def test_points_of_the_cloud_are_the_pixels_in_world_coordinates(images, network, stepped, tmp_path):
    options = CloudOptions(confidence_threshold=1.0, max_slope=10_000.0, mask_margin=0.0, voxel_size=1e-4)
    run_recording(
        open_recording(images, max_frames=1), network, tmp_path / "out", OPTIONS, cloud_options=options,
        outputs=RunOutputs(preview=False), progress=False,
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


def test_points_beyond_the_reach_of_the_voxels_are_named(images, network, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(static_map, "REACH", 4)
    options = CloudOptions(confidence_threshold=1.0, voxel_size=0.01)
    run_recording(
        open_recording(images, max_frames=2), network, tmp_path / "out", OPTIONS, cloud_options=options, progress=False
    )
    assert "points that are more than" in caplog.text and "the reach of --voxel-size 0.01" in caplog.text
    assert "below --confidence-threshold" not in caplog.text


def test_intrinsics_are_passed_to_the_stream(images, network, tmp_path):
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
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
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
    assert "stopped after 3 frames by an error: completing the files" in caplog.text


def test_frames_without_finite_values_are_left_out_and_counted(images, network, stepped, tmp_path, caplog):
    def make_invalid(result):
        if result.frame not in (1, 4):
            return result
        return dataclasses.replace(
            result, healthy=torch.tensor(False), depth=result.depth * torch.nan, pose=result.pose * torch.nan
        )

    stepped.after = make_invalid
    summary = run_recording(open_recording(images), network, tmp_path / "out", OPTIONS, progress=False)
    assert (summary.frames, summary.frames_unhealthy) == (COUNT - 2, 2)
    assert files_in(tmp_path / "out") == expected_files(COUNT - 2)
    assert np.isfinite(np.loadtxt(tmp_path / "out" / "trajectory.txt")).all()
    assert "frame 4: the network's output is not finite" in caplog.text

    stepped.after = lambda result: dataclasses.replace(result, healthy=torch.tensor(False))
    with pytest.raises(InputError, match=f"no finite value for any of its {COUNT} frames"):
        run_recording(open_recording(images), network, tmp_path / "none", OPTIONS, progress=False)


def test_results_of_an_earlier_run_are_kept_without_overwrite(images, network, tmp_path):
    run_recording(open_recording(images, max_frames=3), network, tmp_path / "out", OPTIONS, progress=False)
    with pytest.raises(InputError, match="holds files already"):
        run_recording(open_recording(images, max_frames=1), network, tmp_path / "out", OPTIONS, progress=False)
    assert files_in(tmp_path / "out") == expected_files(3)
    run_recording(
        open_recording(images, max_frames=2), network, tmp_path / "out", OPTIONS, overwrite=True, progress=False
    )
    assert files_in(tmp_path / "out") == expected_files(2)


def test_the_input_and_the_files_of_a_sensor_are_kept(images, network, tmp_path):
    sequence = tmp_path / "seq"
    shutil.copytree(images, sequence / "rgb")
    (sequence / "depth").mkdir()
    for name in ("depth/000000.png", "depth/000005.png", "trajectory.txt"):
        (sequence / name).write_text("measured")
    before = files_in(sequence)
    recording = open_recording(sequence / "rgb", max_frames=1)
    with pytest.raises(InputError, match=r"depth/ with 2 files, trajectory\.txt in the way"):
        run_recording(recording, network, sequence, OPTIONS, overwrite=True, progress=False)
    assert files_in(sequence) == before
    out = tmp_path / "out"
    run_recording(recording, network, out, OPTIONS, progress=False)
    with pytest.raises(InputError, match=r"of the input .*depth would be deleted"):
        run_recording(open_recording(out / "depth"), network, out, OPTIONS, overwrite=True, progress=False)


def test_second_run_into_a_folder_is_refused_while_the_first_one_writes(images, network, stepped, tmp_path):
    refused = []

    def start_another(index):
        if not refused:
            with pytest.raises(InputError, match="another run is writing to this folder") as caught:
                run_recording(open_recording(images), network, tmp_path, OPTIONS, overwrite=True, progress=False)
            refused.append(caught.value)

    stepped.before = start_another
    run_recording(open_recording(images, max_frames=2), network, tmp_path / ".", OPTIONS, progress=False)
    assert refused and files_in(tmp_path) == expected_files(2)


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


def test_preview_shows_the_crop_of_the_network(images, network, stepped, tmp_path, monkeypatch):
    """A panorama is cropped at both ends. The preview must have the same crop, at the recorded resolution."""
    wide = tmp_path / "wide"
    wide.mkdir()
    ramp = np.zeros((100, 380, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.linspace(0, 255, 380), np.linspace(0, 255, 100)[:, None]
    monkeypatch.setattr(cover, "_SMOOTH", 0.0)  # a ramp has no texture
    Image.fromarray(ramp).save(wide / "1.png")
    drawn = []
    draw_panels = preview.draw_panels

    def spy(image, *args, **kwargs):
        drawn.append(image)
        return draw_panels(image, *args, **kwargs)

    monkeypatch.setattr(preview, "draw_panels", spy)
    run_recording(open_recording(wide), network, tmp_path / "out", OPTIONS, progress=False)
    seen = stepped[0].image.numpy().astype(int)
    assert seen.shape == (16, 64, 3)
    (image,) = drawn
    assert image.shape[1] > 300
    small = cv2.resize(image, (64, 16), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(small - seen).max() <= 6
