"""Training on a recording: geometry and colours of its batches against the place that was recorded."""

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from raymap3r_ros.cli import main
from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.geometry.cameras import back_project, pixel_rays
from raymap3r_ros.network import load_network
from raymap3r_ros.synthetic import raycast, suite_sequence
from raymap3r_ros.synthetic.export import export_sequence
from raymap3r_ros.synthetic.suites import EVALUATION_SEEDS
from raymap3r_ros.synthetic.worlds import static_solids
from raymap3r_ros.training import RECIPES, RECORDING, TrainOptions, train, trainer
from raymap3r_ros.training.augmentation import change_colours, random_views
from raymap3r_ros.training.batches import make_batch
from raymap3r_ros.training.compositing import add_movers
from raymap3r_ros.training.losses import losses, mask_iou, measure, predict
from raymap3r_ros.training.recording import (
    FREIBURG1_CAMERA,
    FREIBURG1_DISTORTION,
    Recording,
    read_recording,
)

CPU = torch.device("cpu")
SIZE = (48, 64)
FRAMES = 21
EVERYTHING = TrainOptions(frames=8, longest=4, place_weight=0.5, match_weight=0.5, world_share=1.0, rgb_share=0.5)


@pytest.fixture(scope="module")
def sequence():
    return suite_sequence("static", 0, world="one_room", size=(120, 160))


@pytest.fixture(scope="module")
def folder(sequence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered room where nothing moves, in the TUM layout."""
    return export_sequence(sequence, tmp_path_factory.mktemp("tum"), "tum", max_frames=FRAMES, progress=False)


@pytest.fixture(scope="module")
def recording(folder: Path) -> Recording:
    return read_recording(folder, SIZE)


def with_holes(recording: Recording) -> Recording:
    """The recording with unknown depth in a fifth of its pixels, in blocks."""
    holes = torch.rand(len(recording.depth), 1, 12, 16, generator=torch.Generator().manual_seed(0)) < 0.2
    holes = torch.nn.functional.interpolate(holes.float(), recording.depth.shape[2:]) > 0
    return dataclasses.replace(recording, depth=torch.where(holes, -recording.depth, recording.depth))


def augmented(recording: Recording, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
    camera, motion = random_views(torch.Generator().manual_seed(4), recording.camera, *frames.shape, augmented=True)
    assert motion[..., 0, 1].abs().max() > math.radians(1) and motion[..., :3, 3].abs().amax() > 0.02
    assert (camera[:, 0] > 1.05 * recording.camera[0]).any()
    return recording.look(frames, camera, motion, SIZE)


def test_depth_of_zoomed_cropped_and_turned_views_is_that_of_the_room(recording, sequence):
    """Rays of the augmented cameras, cast into the room that was recorded, hit it at the depth of the batch."""
    frames = torch.tensor([[0, 10, 20], [5, 6, 7]])
    _, depth, pose, intrinsics = augmented(recording, frames)
    rays = pixel_rays(intrinsics, SIZE).flatten(1, 2)
    for row, poses in enumerate(pose):
        direction = rays[row] @ poses[None, :, :3, :3].mT
        true = torch.full(direction.shape[:-1], raycast.FAR)
        for number, solids in enumerate(static_solids(sequence.scenes)):
            true = torch.minimum(true, raycast.hit(solids, poses[None, :, :3, 3], direction, inside=number == 0)[0])
        seen = depth[row].flatten(1)
        assert (seen > 0).float().mean() > 0.8  # all but the corners of turned images
        error = (seen / true[0] - 1).abs()[seen > 0]
        assert error.median() < 4e-4  # half precision
        assert error.quantile(0.95) < 5e-3  # the others are at edges


def test_views_of_one_point_have_one_colour(recording):
    image, depth, pose, intrinsics = augmented(recording, torch.tensor([[0, 2], [12, 9], [20, 17]]))
    world = back_project(depth, intrinsics)[:, 0].flatten(1, 2) @ pose[:, 0, :3, :3].mT + pose[:, 0, None, :3, 3]
    there = (world - pose[:, 1, None, :3, 3]) @ pose[:, 1, :3, :3]
    pixel = there @ intrinsics.mT
    pixel = (pixel[..., :2] / pixel[..., 2:]).round().long()
    inside = ((pixel >= 0) & (pixel < torch.tensor(SIZE[::-1]))).all(-1)
    index = (pixel[..., 1] * SIZE[1] + pixel[..., 0]).where(inside, 0)
    other = depth[:, 1].flatten(1).gather(1, index)
    inside &= (other / there[..., 2] - 1).abs() < 0.02
    assert inside.float().mean() > 0.5
    colours = image[:, 1].flatten(2).gather(2, index[:, None].expand(-1, 3, -1))
    difference = (colours - image[:, 0].flatten(2)).abs().mean(1)
    assert difference[inside].median() < 0.02
    assert difference[inside].median() < 0.3 * (image[:, 1] - image[:, 0]).abs().mean(1).median()


def write_plane(folder: Path, normal: np.ndarray) -> None:
    """Images of a plane normal . p = 1 m by TUM's freiburg1 camera, at the sizes of a reduced recording.

    Colours are those of the direction. Camera: it moves along x with the time, and turns by as many radians.
    """
    lens = np.array(((FREIBURG1_CAMERA[0], 0, FREIBURG1_CAMERA[2]), (0, *FREIBURG1_CAMERA[1::2]), (0, 0, 1)))

    def directions(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        pixels = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 1, 2)
        criteria = cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-9
        rays = cv2.undistortPointsIter(pixels, lens, np.array(FREIBURG1_DISTORTION), None, None, criteria)
        return rays.reshape(len(rows), len(columns), 2)

    rays = directions(2 * np.arange(320) + 0.5, 2 * np.arange(240) + 0.5)
    colours = np.concatenate((np.full_like(rays[..., :1], 0.5), 0.5 + 0.6 * rays[..., ::-1]), axis=-1)  # BGR
    image = (255 * colours.clip(0, 1)).round().astype(np.uint8)
    rays = directions(4.0 * np.arange(160) + 1, 4.0 * np.arange(120) + 1)
    depth = (5000 / (rays @ normal[:2] + normal[2])).round().astype(np.uint16)
    stamps = [100 + 0.1 * index for index in range(8)]
    for name, pixels, delay in (("rgb", image, 0.0), ("depth", depth, 0.004)):
        (folder / name).mkdir()
        lines = []
        for stamp in stamps:
            cv2.imwrite(str(folder / name / f"{stamp:.3f}.png"), pixels)
            lines.append(f"{stamp + delay:.4f} {name}/{stamp:.3f}.png")
        (folder / f"{name}.txt").write_text("\n".join(lines))
    times = np.arange(99.993, 101, 0.01)
    rows = [f"{t:.4f} {t - 100:.6f} 0 1 0 0 {math.sin((t - 100) / 2)} {math.cos((t - 100) / 2)}" for t in times]
    (folder / "groundtruth.txt").write_text("\n".join(rows))


def test_the_lens_of_freiburg1_is_removed_and_poses_are_interpolated(tmp_path: Path):
    normal = np.array((0.5, -0.3, 0.6))
    write_plane(tmp_path, normal)
    recording = read_recording(tmp_path, SIZE)
    image, depth, pose, intrinsics = recording.look(
        torch.arange(8)[None], recording.camera[None], torch.eye(4).repeat(1, 8, 1, 1), SIZE
    )
    rays = pixel_rays(intrinsics, SIZE)[0]
    true = 1 / (rays @ torch.tensor(normal, dtype=torch.float32))
    error = depth / true - 1
    assert (depth > 0).all() and error.abs().max() < 2e-3
    assert error.mean().abs() < 2e-4  # a shift of half a pixel of the original image would be 1e-3
    for channel, axis in ((0, 0), (1, 1)):
        difference = image[0, 0, channel] - (0.5 + 0.6 * rays[..., axis])
        assert difference.abs().max() < 0.01 and difference.mean().abs() < 1e-3
    turn = 0.1 * torch.arange(8)
    assert torch.allclose(pose[0, :, 0, 3], turn, atol=1e-5)
    assert torch.allclose(torch.atan2(pose[0, :, 1, 0], pose[0, :, 0, 0]), turn, atol=1e-5)


def test_the_mask_is_where_movers_changed_the_image(recording):
    recording = with_holes(recording)
    frames = torch.arange(18).view(6, 3)
    image, static, pose, intrinsics = augmented(recording, frames)
    generator = torch.Generator().manual_seed(1)
    arguments = pose, intrinsics, recording.stamp[frames], recording.images, recording.floor
    changed, depth, moving = add_movers(generator, image, static, *arguments)
    different = (changed != image).any(2)
    assert not (different & ~moving).any()
    assert (different & moving).sum() > 0.99 * moving.sum() > 1000
    assert torch.equal(depth[~moving], static[~moving])
    assert (depth[moving] > 0).all() and (depth[moving] < static.abs()[moving]).all()
    assert (moving & (static < 0)).any() and (~moving & (static < 0)).any()
    # Half of the sequences have few movers.
    assert moving[:3].float().mean() < moving[3:].float().mean() < 0.7


def test_unknown_depth_takes_no_part_in_any_loss(recording):
    batch = make_batch(with_holes(recording).sequences, 3, 2, 4, SIZE, CPU)
    unknown, static_unknown = batch.points[..., 2] <= 0, batch.static_points[..., 2] <= 0
    assert 0.02 < unknown.float().mean() < static_unknown.float().mean() < 0.5
    run = trainer._begin(EVERYTHING, None, CPU)
    garbage = torch.tensor((1e3, 5.0, -1.0))
    spoiled = dataclasses.replace(
        batch,
        points=torch.where(unknown[..., None], garbage, batch.points),
        static_points=torch.where(static_unknown[..., None], garbage, batch.static_points),
    )

    def parts(batch) -> tuple[dict[str, float], float]:
        found = losses(run.network, run.probes, batch, EVERYTHING, torch.Generator().manual_seed(0), 0.0)
        sum(found.values()).backward()
        gradients = [p.grad for p in run.parameters if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        run.optimizer.zero_grad()
        return {key: value.item() for key, value in found.items()}, norm

    found, norm = parts(batch)
    assert found.keys() == {"points", "pose", "ray", "world", "rgb", "place", "match"} and found["match"] > 0
    assert parts(spoiled) == (pytest.approx(found), pytest.approx(norm)) and math.isfinite(norm)
    assert measure(run.network, spoiled) == pytest.approx(measure(run.network, batch))
    assert all(math.isfinite(value) for value in measure(run.network, batch).values())


def test_predictions_at_unknown_depth_take_no_part_in_any_loss(recording, monkeypatch: pytest.MonkeyPatch):
    """Other points and confidence at these pixels, and other tokens there, leave losses and errors as they are."""
    batch = make_batch(with_holes(recording).sequences, 3, 2, 4, SIZE, CPU)
    run = trainer._begin(EVERYTHING, None, CPU)
    patch = run.network.config.patch_size
    plain, later = predict, batch.static_points[..., 2] > 0

    def spoiled(network, batch, ray_frames, *others):
        found = plain(network, batch, ray_frames, *others)
        known = batch.points[..., 2] > 0
        token_known = known[:, :, patch // 2 :: patch, patch // 2 :: patch].flatten(2)
        found = dataclasses.replace(
            found,
            points=torch.where(known[..., None], found.points, 7.0),
            confidence=torch.where(known, found.confidence, 7.0),
            tokens=torch.where(token_known[..., None], found.tokens, 7.0),
        )
        if not ray_frames:
            return found
        return dataclasses.replace(
            found,
            ray_points=torch.where(later[:, ray_frames, ..., None], found.ray_points, 7.0),
            ray_confidence=torch.where(later[:, ray_frames], found.ray_confidence, 7.0),
        )

    options = dataclasses.replace(
        EVERYTHING, match_weight=0.0
    )  # a token of unknown depth is still a wrong match for others

    def everything() -> tuple[dict[str, float], dict[str, float]]:
        found = losses(run.network, run.probes, batch, options, torch.Generator().manual_seed(0), 0.0)
        return {key: value.item() for key, value in found.items()}, measure(run.network, batch)

    before = everything()
    monkeypatch.setattr("raymap3r_ros.training.losses.predict", spoiled)
    for now, then in zip(everything(), before, strict=True):
        assert now == pytest.approx(then)


def test_held_out_frames_are_never_trained_on(recording):
    """Positions tell the frame, and what is red in a batch comes from a held-out image."""
    assert recording.trained == FRAMES - FRAMES // 7
    pose, images = recording.pose.clone(), torch.full_like(recording.images, 128)
    pose[:, 0, 3] = 10.0 * torch.arange(FRAMES)  # far more than the augmentation moves a camera
    images[recording.trained :] = torch.tensor((255, 0, 0), dtype=torch.uint8)[:, None, None]
    marked = dataclasses.replace(recording, pose=pose, images=images)
    trained, held_out = set(), set()
    for seed in range(20):
        batch = make_batch(marked.sequences, seed, 6, 4, SIZE, CPU)
        assert (batch.image[:, :, 0] - batch.image[:, :, 1]).max() < 0.9
        trained.update((batch.world_pose[..., 0, 3] / 10).round().flatten().tolist())
        batch = make_batch(marked.sequences, EVALUATION_SEEDS + seed, 4, 2, SIZE, CPU)
        held_out.update((batch.world_pose[..., 0, 3] / 10).flatten().tolist())
        assert batch.moving.any() == bool(seed % 2)
    assert trained == set(range(recording.trained))
    assert held_out == set(range(recording.trained, FRAMES))


def test_held_out_frames_are_as_recorded_and_others_change(recording):
    first, second = (make_batch(recording.sequences, EVALUATION_SEEDS, 3, 2, SIZE, CPU) for _ in range(2))
    assert torch.equal(first.image, second.image)
    assert torch.allclose(first.intrinsics[:, 0, 0], recording.camera[0] * SIZE[1])
    image = torch.full((50, 2, 3, 8, 8), 0.5)
    changed = change_colours(torch.Generator().manual_seed(0), image).mean((3, 4))
    assert changed.min() > 0.25 and changed.max() < 0.8
    assert changed.std(0).min() > 0.03  # between sequences
    assert (changed[:, 0] - changed[:, 1]).abs().mean() > 0.01  # between frames


def test_the_office_command(tmp_path: Path, folder: Path, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(trainer, "_MEASURED_SEQUENCES", 2)
    monkeypatch.setattr(trainer, "_MEASURED_LENGTH", 3)
    arguments = ["train", "one_office", "--out", str(tmp_path / "run"), "--device", "cpu"]
    small = ["--steps", "1", "--frames", "4", "--shortest", "2", "--longest", "2"]
    assert main([*arguments, "--data", str(folder), *small]) == 0
    assert "iou" in capsys.readouterr().out
    network = load_network(tmp_path / "run" / "one_office.safetensors")
    assert network.manifest["about"] == f"trained on {RECIPES['one_office'][0]}"
    assert str(folder) not in str(network.manifest)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([*arguments, "--data", str(empty), *small]) == 2
    assert "rgb.txt" in capsys.readouterr().err
    for world, data in ((RECORDING, None), ("one_room", folder)):
        with pytest.raises(OptionError, match="folder of the recording"):
            train(TrainOptions(world=world), tmp_path / "other", "x", CPU, data=data)


def test_a_folder_of_another_layout_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"no rgb\.txt here; expected rgb\.txt, depth\.txt, groundtruth\.txt of TUM"):
        read_recording(tmp_path, SIZE)


@pytest.mark.parametrize(
    ("name", "text"),
    [("rgb.txt", "# timestamp filename\n"), ("groundtruth.txt", "90 0 0 0 0 0 0 1\n91 0 0 0 0 0 0 1\n")],
)
def test_a_recording_without_usable_frames_is_refused(folder: Path, tmp_path: Path, name: str, text: str):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).unlink()
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="0 of"):
        read_recording(tmp_path, SIZE)


def test_depth_in_millimetres_is_a_warning(folder: Path, tmp_path: Path, caplog):
    read_recording(folder, SIZE)
    assert not caplog.text
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "depth").unlink()
    (tmp_path / "depth").mkdir()
    for path in (folder / "depth").iterdir():
        cv2.imwrite(str(tmp_path / "depth" / path.name), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 5)
    read_recording(tmp_path, SIZE)
    (line,) = caplog.messages
    assert "the median depth is 0." in line and line.endswith("multiply their values by 5")


def test_a_recording_without_any_depth_is_refused(folder: Path, tmp_path: Path):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    nothing = tmp_path / "nothing.png"
    cv2.imwrite(str(nothing), np.zeros((120, 160), np.uint16))
    (tmp_path / "depth.txt").unlink()
    lines = [f"{line.split()[0]} nothing.png" for line in (tmp_path / "rgb.txt").read_text().splitlines()[3:]]
    (tmp_path / "depth.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match="no depth map has a known value"):
        read_recording(tmp_path, SIZE)


def test_iou_of_masks_is_one_where_depths_tell_motion(recording, monkeypatch):
    batch = make_batch(recording.sequences, EVALUATION_SEEDS + 1, 2, 3, SIZE, CPU)

    def perfect(network, batch, ray_frames, precision):
        moved = torch.where(batch.moving[..., None], 0.5 * batch.static_points, batch.static_points)
        return dataclasses.make_dataclass("P", ["points", "ray_points"])(moved, batch.static_points[:, ray_frames])

    monkeypatch.setattr("raymap3r_ros.training.losses.predict", perfect)
    assert mask_iou(None, batch) == 1.0


def test_the_real_office_is_one_geometry(root: Path):
    """Depth of frames half a second apart agrees in the motion-capture world, and does not without their poses."""
    real = root.parent / "shared" / "real" / "fr1_rpy"
    if not real.is_dir():
        pytest.skip(f"{real}: the recording is not part of the package")
    recording = read_recording(real, SIZE)
    assert (len(recording.images), abs(recording.floor) < 0.1) == (557, True)
    frames = torch.tensor([[100, 115], [250, 265], [400, 415]])
    _, depth, pose, intrinsics = augmented(recording, frames)

    def disagreement(pose: torch.Tensor) -> float:
        world = back_project(depth, intrinsics)[:, 0].flatten(1, 2) @ pose[:, 0, :3, :3].mT + pose[:, 0, None, :3, 3]
        there = (world - pose[:, 1, None, :3, 3]) @ pose[:, 1, :3, :3]
        pixel = there @ intrinsics.mT
        pixel = (pixel[..., :2] / pixel[..., 2:]).round().long()
        inside = ((pixel >= 0) & (pixel < torch.tensor(SIZE[::-1]))).all(-1) & (depth[:, 0].flatten(1) > 0)
        other = depth[:, 1].flatten(1).gather(1, (pixel[..., 1] * SIZE[1] + pixel[..., 0]).where(inside, 0))
        return (other / there[..., 2] - 1).abs()[inside & (other > 0)].median().item()

    assert disagreement(pose) < 0.02 < 0.05 < disagreement(pose[:, :1].expand(-1, 2, -1, -1))
