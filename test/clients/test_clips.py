"""The clips of the demo: the files of the office against the recording that they come from, and the movers."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation, Slerp

pytest.importorskip("rclpy", reason="the demo needs ROS 2")

from raymap3r_ros.clients import clips
from raymap3r_ros.training.recording import FREIBURG1_CAMERA, FREIBURG1_DISTORTION

FRAMES, TRAINED = 79, 478
FIRST = 1305031229.528748  # stamp of the recording's first image, as NOTICE.md states


@pytest.fixture(scope="module")
def office():
    return clips.office()


def table(name: str) -> np.ndarray:
    return np.loadtxt(clips.OFFICE / name)


def listed(name: str) -> list[np.ndarray]:
    """The images of a list, read with another reader."""
    rows = [line.split() for line in (clips.OFFICE / f"{name}.txt").read_text().splitlines() if line[0] != "#"]
    return [np.asarray(Image.open(clips.OFFICE / file)) for _, file in rows]


def test_the_office_is_what_its_files_contain(office):
    assert len(office.frames) == FRAMES
    images, depths, rows = listed("rgb"), listed("depth"), table("groundtruth.txt")
    for frame, image, depth, row in zip(office.frames, images, depths, rows, strict=True):
        assert np.abs(frame.image.astype(int) - image).max() <= 2  # two decoders of JPEG
        assert np.array_equal(frame.depth, (depth / 5000).astype(np.float32))
        assert frame.stamp == row[0]
        assert frame.pose[:3, 3] == pytest.approx(row[1:4])
        assert frame.pose[:3, :3] == pytest.approx(Rotation.from_quat(row[4:]).as_matrix(), abs=1e-6)
        assert not frame.moving.any() and frame.static_depth is frame.depth
    fx, fy, cx, cy = table("camera.txt")
    assert np.array_equal(office.intrinsics, ((fx, 0, cx), (0, fy, cy), (0, 0, 1)))
    assert 0.7 < np.mean(np.array(depths) > 0) < 0.95
    assert len(clips.office(5).frames) == 5


def test_the_images_are_held_out(office):
    """They are the last seventh of the recording, after the images that the weights are trained on."""
    trained = table("trained.txt")
    assert len(trained) == TRAINED and FRAMES == (TRAINED + FRAMES) // 7
    assert 0 < office.frames[0].stamp - trained[-1, 0] < 0.05
    assert office.trained[:, :3, 3] == pytest.approx(trained[:, 1:4])


def test_notice_and_size():
    notice = (clips.OFFICE / "NOTICE.md").read_text()
    assert "Sturm" in notice and "licenses/by/4.0" in notice and "## Changes" in notice and str(FIRST) in notice
    assert sum(path.stat().st_size for path in clips.OFFICE.rglob("*")) < 3e6


@pytest.fixture(scope="module")
def original(shared) -> Path:
    folder = shared / "real" / "fr1_rpy"
    if not folder.is_dir():
        pytest.skip(f"{folder}: the recording is not part of the package")
    return folder


def recorded(original: Path, name: str, stamp: float) -> np.ndarray:
    """The image or depth map of the recording that is nearest to a stamp of the clip."""
    files = sorted((original / name).iterdir(), key=lambda path: abs(float(path.stem) - FIRST - stamp))
    return np.asarray(Image.open(files[0]))


def test_images_are_those_of_the_recording_without_distortion(office, original):
    """Compared with OpenCV's rectification to the camera of camera.txt."""
    lens = np.array(((FREIBURG1_CAMERA[0], 0, FREIBURG1_CAMERA[2]), (0, *FREIBURG1_CAMERA[1::2]), (0, 0, 1)))
    lens[:2, 2] += 0.5
    lens[:2] /= 2  # images of 320x240
    lens[:2, 2] -= 0.5
    for frame in office.frames[::13]:
        raw = recorded(original, "rgb", frame.stamp)
        straight = cv2.undistort(raw, lens, np.array(FREIBURG1_DISTORTION), None, office.intrinsics)
        assert np.abs(straight.astype(int) - frame.image).mean() < 3  # of 255: JPEG
        assert np.abs(raw.astype(int) - frame.image).mean() > 8


def test_depth_is_that_of_the_recording(office, original):
    """The ray of each pixel, distorted by OpenCV, leads to the pixel of the depth camera with that value."""
    lens = np.array(((FREIBURG1_CAMERA[0], 0, FREIBURG1_CAMERA[2]), (0, *FREIBURG1_CAMERA[1::2]), (0, 0, 1)))
    columns, rows = np.meshgrid(np.arange(320), np.arange(240))
    rays = np.stack((columns, rows, np.ones_like(rows)), axis=-1) @ np.linalg.inv(office.intrinsics).T
    pixels, _ = cv2.projectPoints(
        rays.reshape(-1, 1, 3), np.zeros(3), np.zeros(3), lens, np.array(FREIBURG1_DISTORTION)
    )
    across, down = ((pixels.reshape(240, 320, 2) - 1) / 4).round().astype(int).transpose(2, 0, 1)
    inside = (across >= 0) & (across < 160) & (down >= 0) & (down < 120)
    for frame in office.frames[::13]:
        raw = recorded(original, "depth", frame.stamp) / 5000
        found = np.where(inside, raw[down.clip(0, 119), across.clip(0, 159)], 0)
        both = (found > 0) & (frame.depth > 0)
        assert both.sum() > 0.97 * (frame.depth > 0).sum()
        error = frame.depth[both] / found[both] - 1
        assert np.abs(error).mean() < 0.01 and np.abs(np.median(error)) < 1e-3


def test_poses_are_those_of_the_motion_capture(office, original):
    """Of both parts, interpolated by SciPy; before, at the rate of 100 Hz."""
    rows = np.loadtxt(original / "groundtruth.txt")
    turn = Slerp(rows[:, 0], Rotation.from_quat(rows[:, 4:]))
    for poses in (table("groundtruth.txt"), table("trained.txt")):
        stamps = FIRST + poses[:, 0]
        places = np.stack([np.interp(stamps, rows[:, 0], rows[:, column]) for column in (1, 2, 3)], axis=1)
        inside = np.abs(rows[:, 0] - stamps[:, None]).min(1) < 0.006
        assert inside.mean() > 0.95
        assert np.abs(places - poses[:, 1:4])[inside].max() < 2e-4
        assert (turn(stamps) * Rotation.from_quat(poses[:, 4:]).inv()).magnitude()[inside].max() < 1e-3


def test_movers_change_the_office_where_the_mask_is(office):
    clip = clips.movers()
    assert len(clip.frames) == FRAMES and "rendered movers were added" in clip.note and not office.note
    assert np.array_equal(clip.trained, office.trained) and clip.checkpoint == office.checkpoint == "one_office"
    assert clip.intrinsics == pytest.approx(office.intrinsics, rel=1e-5)
    share = np.mean([frame.moving for frame in clip.frames])
    assert 0.02 < share < 0.5
    for frame, plain in zip(clip.frames, office.frames, strict=True):
        still = ~frame.moving
        assert np.array_equal(frame.image[still], plain.image[still])
        assert frame.pose == pytest.approx(plain.pose, abs=1e-6)
        known = (plain.depth > 0) & (frame.static_depth > 0)
        assert np.median(np.abs(frame.static_depth[known] / plain.depth[known] - 1)) < 2e-3
        assert np.array_equal(frame.depth[still], frame.static_depth[still])
        nearer = frame.moving & (frame.static_depth > 0)
        assert (frame.depth[nearer] < frame.static_depth[nearer]).all()
    again = clips.movers(3)
    assert np.array_equal([frame.image for frame in again.frames], [frame.image for frame in clip.frames[:3]])


def test_the_room_is_rendered_with_ground_truth():
    clip = clips.room(3)
    images = clips.rendered_room(3)
    assert np.array_equal([frame.image for frame in clip.frames], images)
    assert all(frame.moving.any() and (frame.depth > 0).all() for frame in clip.frames)
    assert clip.checkpoint == "one_room" and clip.trained is None and clip.intrinsics.shape == (3, 3)


def test_rendered_room_has_moving_objects():
    images = clips.rendered_room(3)
    assert len(images) == 3
    assert all(image.shape == (120, 160, 3) and image.dtype == np.uint8 for image in images)
    assert np.abs(images[0].astype(int) - images[2]).mean() > 1


def test_a_recording_has_no_ground_truth(tmp_path):
    for index in range(3):
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (48, 64, 3), np.uint8)).save(
            tmp_path / f"{index}.png"
        )
    clip = clips.recorded_clip(tmp_path, 2)
    frames = list(clip.frames)
    assert len(frames) == 2 and clip.intrinsics is None and clip.trained is None
    assert frames[0].depth is None and frames[0].pose is None
