"""The demo's comparison with the ground truth, for outputs with known errors."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

pytest.importorskip("rclpy", reason="the demo needs ROS 2")
pytest.importorskip("evo", reason="the evaluation needs evo")

from raymap3r_ros.clients.recorder import Recorded
from raymap3r_ros.clients.truth_table import published_framing, score, truth_lines
from raymap3r_ros.evaluation.sequences import Frame
from raymap3r_ros.streaming.preprocessing import frame_image, frame_intrinsics

WIDTH, HEIGHT = 320, 200
FRAMING = frame_image(WIDTH, HEIGHT, 128, 16)  # 128x80, nothing is cropped
INTRINSICS = np.array(((250.0, 0, 161.0), (0, 240.0, 97.0), (0, 0, 1)))
SECOND = 1_000_000_000


def turned(degrees: float) -> np.ndarray:
    return Rotation.from_euler("y", degrees, degrees=True).as_matrix()


def truth(count: int = 5, step: float = 10.0, moving: np.ndarray | None = None) -> dict[int, Frame]:
    """A camera that moves along x by 1 m and turns by `step` degrees a frame, in front of a wall 2 m away."""
    frames = {}
    for index in range(count):
        pose = np.eye(4)
        pose[:3, :3], pose[0, 3] = turned(step * index), index
        depth = np.full((HEIGHT, WIDTH), 2, np.float32)
        depth[:, :10] = 0  # unknown
        still = np.zeros((HEIGHT, WIDTH), bool) if moving is None else moving
        frames[SECOND * (index + 1)] = Frame(
            np.zeros((HEIGHT, WIDTH, 3), np.uint8), float(index), depth, depth, still, pose, INTRINSICS
        )
    return frames


def published(frames: dict[int, Frame], world: np.ndarray | None = None, **changed) -> Recorded:
    """Outputs without an error, in another world, but for `changed`."""
    world = np.eye(4) if world is None else world
    poses = {}
    for stamp, frame in frames.items():
        pose = world @ changed.get("pose", lambda stamp, pose: pose)(stamp, frame.pose)
        poses[stamp] = (*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat())
    size = FRAMING.size
    depth = changed.get("depth", np.full(size, 2, np.float32))
    mask = changed.get("mask", np.zeros(size, bool))
    pictures = [(np.zeros((*size, 3), np.uint8), depth, mask.astype(np.float32), mask) for _ in frames]
    return Recorded(
        poses=poses,
        pictures=pictures,
        picture_stamps=list(frames),
        intrinsics=frame_intrinsics(INTRINSICS, WIDTH, HEIGHT, FRAMING),
    )


def test_outputs_without_errors():
    frames = truth()
    world = np.eye(4)
    world[:3, :3] = Rotation.from_rotvec((0.3, -1.2, 0.5)).as_matrix()
    world[:3, 3] = 4, 5, 6
    found = score(frames, published(frames, world))
    assert found.poses.position == pytest.approx(0, abs=1e-9) and found.poses.rotation == pytest.approx(0, abs=1e-5)
    assert found.poses.frames == 5 and found.poses.position_nearest is None
    ((metric, scaled),) = found.depths.values()  # nothing moves: all pixels are static
    assert (metric.abs_rel, metric.delta1, scaled.scale) == pytest.approx((0, 1, 1))
    assert metric.pixels == 5 * HEIGHT * (WIDTH - 10)
    assert found.masks == 5 and found.motion["false_alarm"] == 0 and np.isnan(found.motion["mask_iou"])


def test_errors_of_a_camera_at_rest_are_those_of_its_closed_form():
    found = score(frames := truth(), published(frames)).poses
    assert found.position_at_rest == pytest.approx(np.sqrt(2))  # of 0 to 4 m about 2 m
    assert found.rotation_at_rest == pytest.approx(25)  # mean of 10 to 40 degrees
    rest = published(frames, pose=lambda stamp, pose: np.eye(4))
    found = score(frames, rest).poses
    assert found.position == pytest.approx(found.position_at_rest)
    assert found.rotation == pytest.approx(found.rotation_at_rest)


def test_rotation_is_relative_to_the_first_published_frame():
    frames = truth()

    def wrong(stamp: int, pose: np.ndarray) -> np.ndarray:
        pose = pose.copy()
        pose[:3, :3] = pose[:3, :3] @ (turned(-6) if stamp > 2 * SECOND else np.eye(3))
        return pose

    assert score(frames, published(frames, pose=wrong)).poses.rotation == pytest.approx(6 * 3 / 4)
    late = published(frames, pose=wrong)
    del late.poses[SECOND], late.poses[2 * SECOND]  # dropped: the error is the same in all others
    assert score(frames, late).poses.rotation == pytest.approx(0, abs=1e-5)


def test_the_nearest_trained_position_is_a_path_of_its_own():
    frames = truth()
    trained = np.repeat(np.eye(4)[None], 3, axis=0)
    trained[:, :3, 3] = (0, 0, 0), (3.9, 0, 0), (100, 0, 0)
    found = score(frames, published(frames), trained).poses
    # Nearest to 0 and 1: 0; to 2, 3 and 4: 3.9 (2 is 1.9 away from it). Aligned, the means coincide.
    path = np.array((0, 0, 3.9, 3.9, 3.9)) - 2.34
    assert found.position_nearest == pytest.approx(np.sqrt(np.mean((path - np.arange(-2, 3)) ** 2)))
    same = np.stack([frame.pose for frame in frames.values()])
    assert score(frames, published(frames), same).poses.position_nearest == pytest.approx(0, abs=1e-9)


def test_depth_with_and_without_a_factor():
    frames = truth()
    ((metric, scaled),) = score(
        frames, published(frames, depth=np.full(FRAMING.size, 2.6, np.float32))
    ).depths.values()
    assert (metric.abs_rel, metric.delta1) == pytest.approx((0.3, 0))
    assert (scaled.abs_rel, scaled.delta1, scaled.scale) == pytest.approx((0, 1, 2 / 2.6), abs=1e-6)


def test_masks_and_static_pixels():
    moving = np.zeros((HEIGHT, WIDTH), bool)
    moving[:, : WIDTH // 2] = True
    mask = np.zeros(FRAMING.size, bool)
    mask[:, 32:96] = True  # half of the moving pixels, and half of the others
    depth = np.where(np.arange(128) < 64, 2.2, 2).astype(np.float32) + np.zeros(FRAMING.size, np.float32)
    frames = truth(moving=moving)
    found = score(frames, published(frames, mask=mask, depth=depth))
    assert found.motion["mask_iou"] == pytest.approx(1 / 3) and found.motion["false_alarm"] == pytest.approx(1 / 2)
    assert list(found.depths) == ["all pixels", "static pixels"]
    assert found.depths["static pixels"][0].abs_rel == pytest.approx(0, abs=1e-3)
    assert found.depths["all pixels"][0].abs_rel == pytest.approx(0.1 * 150 / 310, abs=2e-3)


def test_frames_without_motion_or_ground_truth_are_left_out():
    frames = truth()
    recorded = published(frames)
    image, depth, *_ = recorded.pictures[0]
    recorded.pictures[0] = (image, depth, None, None)
    recorded.picture_stamps[1] = 77  # another clip
    found = score(frames, recorded)
    assert found.masks == 3 and next(iter(found.depths.values()))[0].pixels == 4 * HEIGHT * (WIDTH - 10)
    nothing = score(frames, Recorded())
    assert nothing.poses is None and not nothing.depths and not nothing.motion and truth_lines(nothing) == ""


@pytest.mark.parametrize("size", [(320, 240), (160, 120), (640, 360), (300, 300), (123, 457)])
@pytest.mark.parametrize("network", [(64, 8), (128, 16), (512, 16)])
def test_the_published_part_of_an_image_follows_from_the_intrinsics(size, network):
    framing = frame_image(*size, *network)
    intrinsics = np.array(((1.1 * size[0], 0, 0.48 * size[0]), (0, 1.1 * size[0], 0.53 * size[1]), (0, 0, 1)))
    frame = Frame(np.zeros((*size[::-1], 3), np.uint8), 0.0, intrinsics=intrinsics)
    assert published_framing(frame, frame_intrinsics(intrinsics, *size, framing), framing.size) == framing


def test_maps_are_compared_with_the_part_that_the_node_shows():
    """Of a square image, the network sees the middle: its rows only."""
    framing = frame_image(200, 200, 128, 16)
    assert framing.size[0] < framing.size[1]
    rows = np.linspace(1, 3, 200, dtype=np.float32)[:, None]
    true = np.repeat(rows, 200, axis=1)
    intrinsics = np.array(((200.0, 0, 99.5), (0, 200.0, 99.5), (0, 0, 1)))
    frame = Frame(np.zeros((200, 200, 3), np.uint8), 0.0, true, intrinsics=intrinsics)
    seen = (np.arange(framing.size[0]) + framing.offset[1] + 0.5) / 128
    depth = np.repeat((1 + 2 * (seen * 200 - 0.5) / 199)[:, None], 128, axis=1).astype(np.float32)
    recorded = Recorded(
        pictures=[(np.zeros((*framing.size, 3), np.uint8), depth, None, None)],
        picture_stamps=[1],
        intrinsics=frame_intrinsics(intrinsics, 200, 200, framing),
    )
    ((metric, _),) = score({1: frame}, recorded).depths.values()
    assert metric.abs_rel < 0.005  # the whole image would give 0.1


def test_lines():
    moving = np.zeros((HEIGHT, WIDTH), bool)
    moving[:50] = True
    frames = truth(moving=moving)
    trained = np.stack([frame.pose for frame in frames.values()])
    text = truth_lines(score(frames, published(frames, depth=np.full(FRAMING.size, 2.2, np.float32)), trained))
    rows = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows if row != [""]]
    assert cells[0] == ["pose, 5 frames", "node", "camera at rest", "nearest trained position"]
    assert cells[1] == ["position, RMSE, m", "0.000", "1.414", "0.000"]
    assert cells[2] == ["rotation, mean, deg", "0.0", "25.0", "-"]
    assert cells[4] == ["all pixels", "0.100", "1.000", "0.909", "0.000", "1.000"]
    assert cells[5][0] == "static pixels"
    assert cells[6] == ["moving mask", "IoU", "IoU, > 5 % moving", "false alarms"]
    assert cells[7] == ["5 frames", "0.000", "0.000", "0.000"]
