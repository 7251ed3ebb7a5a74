"""Held-out frames in order, with and without movers, against the files of the recording."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from raymap3r_ros.synthetic import suite_sequence
from raymap3r_ros.synthetic.export import export_sequence
from raymap3r_ros.synthetic.suites import EVALUATION_SEEDS
from raymap3r_ros.training import composites, compositing
from raymap3r_ros.training.composites import composited_sequences
from raymap3r_ros.training.recording import Recording, read_recording

SIZE = (120, 160)
FRAMES = 28
HELD_OUT = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered room where nothing moves, in the TUM layout; an eighth of its depth is unknown."""
    sequence = suite_sequence("static", 0, world="one_room", size=SIZE)
    path = export_sequence(sequence, tmp_path_factory.mktemp("tum"), "tum", max_frames=FRAMES, progress=False)
    for file in (path / "depth").iterdir():
        depth = np.asarray(Image.open(file)).copy()
        depth[:, :20] = 0
        Image.fromarray(depth).save(file)
    return path


@pytest.fixture(scope="module")
def recording(folder: Path) -> Recording:
    return read_recording(folder, SIZE)


def recorded(folder: Path, name: str) -> np.ndarray:
    """The held-out images or depth maps, read with another reader."""
    files = sorted((folder / name).iterdir())[-HELD_OUT:]
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_held_out_frames_in_order_are_those_of_the_files(folder, recording):
    seen = recording.in_order(SIZE)
    assert np.array_equal(seen.image[0].numpy(), recorded(folder, "rgb"))
    depth = recorded(folder, "depth") / 5000
    assert seen.static_depth is seen.depth or torch.equal(seen.static_depth, seen.depth)
    assert np.array_equal(seen.depth[0].numpy() > 0, depth > 0)
    assert np.abs(seen.depth[0].numpy()[depth > 0] / depth[depth > 0] - 1).max() < 1e-3  # half precision
    rows = np.loadtxt(folder / "groundtruth.txt")[-HELD_OUT:]
    assert seen.pose[0, :, :3, 3].numpy() == pytest.approx(rows[:, 1:4], abs=1e-5)
    assert seen.pose[0, :, :3, :3].numpy() == pytest.approx(Rotation.from_quat(rows[:, 4:]).as_matrix(), abs=1e-5)
    fx, fy, cx, cy = np.loadtxt(folder / "camera.txt")
    assert seen.intrinsics[0].numpy() == pytest.approx(np.array(((fx, 0, cx), (0, fy, cy), (0, 0, 1))), rel=1e-5)
    assert not seen.moving.any()
    assert recording.in_order(SIZE, first=20).image.shape == (1, FRAMES - 20, *SIZE, 3)


@pytest.mark.parametrize("many", [False, True])
def test_masks_are_where_images_and_depth_have_changed(recording, many):
    plain = recording.in_order(SIZE)
    seed = composites.find_movers(recording, recording.trained, EVALUATION_SEEDS, many=many)
    seen = recording.in_order(SIZE, movers=seed, many=many)
    assert 0.01 < seen.moving.float().mean() < 0.6
    different = (seen.image != plain.image).any(-1)
    assert not (different & ~seen.moving).any()
    assert (different & seen.moving).sum() > 0.9 * seen.moving.sum()  # some pixels have the colour of the background
    assert torch.equal(seen.static_depth, plain.depth)
    assert torch.equal(seen.depth[~seen.moving], plain.depth[~seen.moving])
    known = seen.moving & (plain.depth > 0)
    assert (seen.depth[known] < plain.depth[known]).all() and (seen.depth[seen.moving] > 0).all()
    again = recording.in_order(SIZE, movers=seed, many=many)
    assert torch.equal(again.image, seen.image) and torch.equal(again.moving, seen.moving)


def test_frames_rendered_one_by_one_are_the_same(recording, monkeypatch):
    whole = recording.in_order(SIZE, movers=EVALUATION_SEEDS + 3, many=True)
    monkeypatch.setattr(compositing, "_PIXELS", 1)
    single = recording.in_order(SIZE, movers=EVALUATION_SEEDS + 3, many=True)
    assert whole.moving.any() and torch.equal(whole.moving, single.moving)
    assert torch.equal(whole.depth, single.depth)
    assert (whole.image.int() - single.image.int()).abs().max() <= 1


def test_sequences_differ_in_movers_and_every_second_one_is_played_backwards(recording):
    first, second, third = (list(sequence.frames()) for sequence in composited_sequences(recording, SIZE, 3))
    assert [len(frames) for frames in (first, second, third)] == [HELD_OUT] * 3
    for one, two, three in zip(first, reversed(second), third, strict=True):
        assert np.array_equal(one.pose, two.pose) and np.array_equal(one.pose, three.pose)
        assert np.array_equal(one.static_depth, two.static_depth)
        assert not np.array_equal(one.moving, two.moving) and not np.array_equal(one.moving, three.moving)
    assert not np.array_equal(first[0].pose, first[-1].pose)
    for frames in (first, second, third):
        assert frames[0].stamp == 0
        assert np.diff([frame.stamp for frame in frames]) == pytest.approx(0.1, abs=1e-5)


def test_without_movers_there_is_one_sequence_as_recorded(recording, folder):
    (sequence,) = composited_sequences(recording, SIZE, 0)
    frames = list(sequence.frames())
    assert np.array_equal([frame.image for frame in frames], recorded(folder, "rgb"))
    assert not any(frame.moving.any() for frame in frames)
    assert sequence.intrinsics == pytest.approx(frames[0].intrinsics)
    assert sequence.intrinsics == pytest.approx(recording.in_order(SIZE).intrinsics[0].numpy(), rel=1e-6)


def test_seeds_without_fitting_movers_are_skipped(recording, monkeypatch):
    share = {}
    for seed in range(5):
        share[seed] = float(recording.in_order((24, 32), movers=seed).moving.float().mean())
    assert len(set(share.values())) > 1
    wanted = max(share, key=share.get)
    monkeypatch.setattr(composites, "_TRIES", 5)
    monkeypatch.setattr(composites, "_SHARES", (share[wanted] - 1e-6, 1.0))
    assert composites.find_movers(recording, recording.trained, 0, many=False) == wanted
    monkeypatch.setattr(composites, "_SHARES", (0.99, 1.0))  # none fits: the nearest
    assert composites.find_movers(recording, recording.trained, 0, many=False) == wanted
