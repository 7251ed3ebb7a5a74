"""Known camera poses: closed forms in a world with exact ground truth, and every way to run a frame."""

import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).parent))
import wall
from batching_tools import METHOD_SOON, Rerun, at_once, cameras, frames, stepping

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.geometry.similarity import Similarity
from raymap3r_ros.network import Network
from raymap3r_ros.streaming import StepResult, Stream, StreamOptions, WorldChange
from raymap3r_ros.streaming.batching import BatchScheduler, warm_up
from raymap3r_ros.streaming.known_poses import KnownPoses, observe
from raymap3r_ros.streaming.onnx_graphs import missing_packages
from raymap3r_ros.streaming.stream_options import KeyframeOptions

# From the first camera to the frame of the given poses.
FRAME = np.eye(4)
FRAME[:3, :3] = Rotation.from_euler("xyz", (0.4, -0.8, 2.0)).as_matrix()
FRAME[:3, 3] = (3.0, -2.0, 7.0)
INTRINSICS = np.array([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]])
TENSORS = [field.name for field in dataclasses.fields(StepResult) if field.type == "Tensor"]
ROOM = {"update_rule": "cut3r", "smoothing": "off", "reset_interval": 10}


class PosedWall(wall.WallNetwork):
    """Its tokens are those of the image even if those of rays are added, and it records the cameras of all rays.

    `metres`: units of length of its segments.
    """

    def __init__(self, metres: tuple[float, ...] = wall.METRES) -> None:
        super().__init__(moving_box=False)
        self.metres = metres
        self.rays: list[np.ndarray] = []  # camera centres, in the segment's own world
        self.added: list[bool] = []  # for each image: whether rays were added to it

    def encode_image(self, planes):
        self.image_tokens = super().encode_image(planes) + torch.tensor((0, 0, 0, 1.0, 0, 0))  # marks an image
        return self.image_tokens

    def encode_rays(self, rays):
        self.rays.append(rays[0, 0, 0, :3].numpy())
        return super().encode_rays(rays) * torch.tensor((1, 1, 1, 0, 1.0, 1))

    def decode(self, tokens, *arguments, **options):
        if tokens[0, 0, 3] == 1:
            self.added.append(bool(tokens[0, 0, 5] == 1))
            if self.added[-1]:
                tokens = self.image_tokens
        return super().decode(tokens, *arguments, **options)

    def _metre(self, decoded):
        return torch.tensor([[self.metres[int(first) // 10 % 4]] for first in decoded.levels[1]])


def given(frame: int) -> np.ndarray:
    """The true camera in the frame of the given poses."""
    pose = np.eye(4)
    pose[:3, 3] = wall.position(frame)
    return FRAME @ pose


def assert_pose(actual: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(actual.double().numpy(), expected, atol=tolerance)


def assert_same(first: StepResult, second: StepResult) -> None:
    for name in TENSORS:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for name in ("frame", "pose_given", "world_change", "segment", "reset"):
        assert getattr(first, name) == getattr(second, name), name


# --- closed forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metres", [(1.0,) * 4, (0.5, 0.8, 2.0, 1.3)])
@pytest.mark.parametrize("published", ["given", "network"])
@pytest.mark.parametrize(("alignment", "size"), [("robust", 0), ("robust", 32), ("published", 0)])
def test_the_world_is_the_frame_of_the_given_poses(
    published: str, alignment: str, size: int, metres: tuple[float, ...]
):
    """All segments have another unit of length; the poses, given in two of three frames, determine the true one."""
    network, keyframes = PosedWall(metres), KeyframeOptions(size=size)
    options = StreamOptions(published_pose=published, reset_alignment=alignment, keyframes=keyframes, **ROOM)
    stream = Stream(network, options)
    assert stream.takes_poses
    for frame in range(35):
        posed = frame % 3 != 2
        result = stream.step(wall.image(frame), pose=given(frame) if posed else None)
        assert stream.takes_poses and result.pose_given == posed
        if posed and published == "given":
            assert_pose(result.pose, given(frame).astype(np.float32), 0)
        if frame < 3:  # the given positions determine no scale yet
            continue
        assert_pose(result.pose, given(frame), 2e-3)
        assert_pose(result.pose_raw, given(frame), 5e-3)
        start = max(0, (frame - 1) // 10) * 10
        metre = metres[0 if size else start // 10]  # with keyframes, of the oldest one
        assert result.scale.item() == pytest.approx(metre, rel=2e-3)
        depth = torch.full(wall.SIZE, wall.WALL - wall.position(frame)[2])
        torch.testing.assert_close(result.depth, depth, rtol=3e-3, atol=0)


def test_rays_are_in_the_segments_world_and_never_with_its_first_view():
    network = PosedWall((1.0, 0.5, 1.6, 0.8))
    stream = Stream(network, StreamOptions(keyframes=KeyframeOptions(size=0), **ROOM))
    for frame in range(25):
        network.rays.clear()
        network.added.clear()
        stream.step(wall.image(frame), pose=given(frame), intrinsics=None, motion=False)
        start = max(0, (frame - 1) // 10) * 10
        expected = (wall.position(frame) - wall.position(start)) / network.metres[start // 10]
        np.testing.assert_allclose(network.rays[0], expected, atol=2e-3)
        resets = frame and frame % 10 == 0
        assert network.added == [frame > 0] + [False] * bool(resets)  # a reset decodes the frame once more


def test_the_ray_branch_uses_the_given_pose():
    """A camera that is known to be elsewhere than predicted: the static scene is predicted from there."""
    network = PosedWall((1.0,) * 4)
    stream = Stream(network, StreamOptions(update_rule="cut3r", reset_interval=0, smoothing="tied"))
    for frame in range(12):
        pose = given(frame)
        pose[:3, 3] += FRAME[:3, :3] @ (0, 0, 0.5 if frame > 8 else 0)
        result = stream.step(wall.image(frame), pose=pose)
        if frame >= 5:
            offset = 0.5 if frame > 8 else 0
            assert result.motion
            expected = wall.WALL - wall.position(frame)[2] - offset
            assert network.ray_depths[-1].item() == pytest.approx(expected, abs=1e-3)


def test_frames_without_a_pose_continue_from_the_last_given_one():
    """The given path is turned against the predicted one from frame 6 on, as after slip of the wheels."""
    slip = np.eye(4)
    slip[:3, :3] = Rotation.from_euler("z", 0.3).as_matrix()
    slip[:3, 3] = (0.4, -0.1, 0.2)
    network, options = PosedWall((1.0,) * 4), StreamOptions(**{**ROOM, "reset_interval": 0})
    stream = Stream(network, options)
    changes = []
    for frame in range(12):
        moved = slip @ given(frame) if frame >= 6 else given(frame)
        result = stream.step(wall.image(frame), pose=moved if frame in (0, 1, 6, 9) else None)
        changes.append(result.world_change)
        if frame not in (0, 1, 6, 9):
            last = max(known for known in (0, 1, 6, 9) if known < frame)
            expected = (slip if last >= 6 else np.eye(4)) @ given(frame)
            assert_pose(result.pose[:3, :3], expected[:3, :3], 1e-5)
    jumps = {0: WorldChange.NEW, 6: WorldChange.KNOWN, 9: WorldChange.KNOWN}
    assert changes == [jumps.get(frame, WorldChange.NONE) for frame in range(12)]


def test_after_a_reset_without_a_pose_the_world_is_that_of_the_last_given_one():
    stream = Stream(PosedWall((1.0, 0.5, 1.6, 0.8)), StreamOptions(**ROOM))
    for frame in range(28):
        result = stream.step(wall.image(frame), pose=given(frame) if frame < 8 or frame > 23 else None)
        assert_pose(result.pose, given(frame), 2e-3)


@pytest.mark.parametrize("published", ["given", "network"])
def test_a_reset_ties_the_segment_to_the_given_pose(published: str):
    """Drift of the prediction is removed there; it shows as a jump only if the predicted pose is published."""
    drift = np.eye(4)
    drift[:3, 3] = (0.3, 0, 0)
    stream = Stream(PosedWall((1.0,) * 4), StreamOptions(published_pose=published, **ROOM))
    results = [
        stream.step(wall.image(frame), pose=given(frame) if frame < 8 else drift @ given(frame)) for frame in range(14)
    ]
    changes = [result.world_change for result in results]
    after = WorldChange.JUMPED if published == "network" else WorldChange.ALIGNED
    assert changes == [{0: WorldChange.NEW, 11: after}.get(frame, WorldChange.NONE) for frame in range(14)]
    # The scale is not exact after the drift, so the predicted pose is compared where the segment has just begun.
    assert_pose(results[11].pose_raw, drift @ given(11), 0.03)
    expected = drift @ given(9) if published == "given" else results[9].pose_raw.double().numpy()
    assert_pose(results[9].pose, expected)


def test_without_a_pose_at_the_first_frame_the_world_is_the_first_camera():
    stream = Stream(PosedWall((1.0,) * 4), StreamOptions(**ROOM))
    for frame in range(25):
        pose = np.linalg.inv(FRAME) @ given(frame)
        result = stream.step(wall.image(frame), pose=pose if frame % 3 else None)
        assert not stream.takes_poses
        assert_pose(result.pose, pose, 2e-3)
    stream.reset()
    assert stream.takes_poses
    result = stream.step(wall.image(0), pose=given(0))
    assert stream.takes_poses and result.world_change is WorldChange.NEW
    assert_pose(result.pose, given(0).astype(np.float32), 0)


def test_a_first_frame_that_is_lost_does_not_begin_the_world():
    network = PosedWall((1.0,) * 4)
    network.lose_frame = 0
    stream = Stream(network, StreamOptions(**ROOM))
    assert not stream.step(wall.image(0), pose=given(0)).healthy
    for frame in range(1, 4):
        result = stream.step(wall.image(frame))
        assert_pose(result.pose[:3, 3], wall.position(frame) - wall.position(1), 1e-5)
    assert not stream.takes_poses


# --- the scale ---------------------------------------------------------------------------------------------------


def scale_of(given_positions: np.ndarray, predicted: np.ndarray, start: float = 1.0) -> float:
    known = KnownPoses.empty(1, (48, 64), torch.device("cpu"))
    alignment = Similarity.identity(1, torch.device("cpu"))
    alignment = dataclasses.replace(alignment, scale=torch.tensor([start]))
    for one, other in zip(given_positions, predicted, strict=True):
        poses = torch.eye(4).repeat(2, 1, 1)
        poses[:, :3, 3] = torch.from_numpy(np.stack((one, other))).float()
        known = observe(known, alignment, poses[:1], poses[1:])
    return known.scale.item()


@pytest.mark.parametrize("start", [1.0, 3.0])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
def test_the_scale_follows_from_the_given_positions(start: float, noise: float):
    """The given positions scatter around the predicted ones, as around those of a network that predicts means."""
    rng = np.random.default_rng(3)
    means = np.cumsum(rng.normal(size=(300, 3)) * 0.05, axis=0)
    path = 1.7 * (means + noise * means.std() * rng.normal(size=means.shape))
    assert scale_of(path, means + 5, start) == pytest.approx(1.7, rel=1e-4 + noise)


def test_positions_that_a_network_predicts_too_near_to_each_other_do_not_change_the_scale():
    """Least squares of the true positions on what an image shows of them gives the best predictions, and these."""
    rng = np.random.default_rng(3)
    path = np.cumsum(rng.normal(size=(300, 3)) * 0.05, axis=0)
    path -= path.mean(0)
    shown = path + 0.5 * path.std() * rng.normal(size=path.shape)
    predicted = shown * (shown * path).sum() / np.square(shown).sum()
    assert predicted.std() < 0.95 * path.std()
    assert scale_of(path, predicted, start=1.0) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("case", ["still", "noise", "opposite", "one"])
def test_positions_that_determine_no_scale_leave_it(case: str):
    rng = np.random.default_rng(3)
    path = np.cumsum(rng.normal(size=(50, 3)) * 0.05, axis=0)
    positions = {
        "still": (np.zeros((50, 3)) + 4, 0.01 * rng.normal(size=(50, 3))),
        "noise": (path, rng.normal(size=(50, 3))),
        "opposite": (path, -path),
        "one": (path[:1], path[:1]),
    }
    assert scale_of(*positions[case], start=1.3) == pytest.approx(1.3)


# --- every way to run a frame ------------------------------------------------------------------------------------


def arguments(index: int) -> dict:
    """Frames with and without a pose and intrinsics alternate."""
    return {
        "pose": given(index) if index % 3 else None,
        "intrinsics": INTRINSICS if index % 4 > 1 else None,
        "motion": index % 5 != 4,
    }


@pytest.mark.parametrize("rule", ["raymap3r", "ttsa3r"])
def test_a_restored_stream_continues_in_the_same_way(network: Network, rule: str):
    options = StreamOptions(reset_interval=6, update_rule=rule)
    stream, images = Stream(network, options, METHOD_SOON), frames(14, 1)
    for index in range(7):
        stream.step(images[index], **arguments(index))
    other = Stream(network, options, METHOD_SOON)
    other.restore(stream.snapshot())
    for index in range(7, 14):
        assert_same(other.step(images[index], **arguments(index)), stream.step(images[index], **arguments(index)))


@pytest.mark.parametrize("execution", ["trace", "graph", "onnx"])
def test_recorded_frames_give_the_same_results(network: Network, execution: str):
    if execution == "onnx" and missing_packages():
        pytest.skip("onnx or onnxruntime (raymap3r_ros[onnx]) is not installed")
    # Each kind of frame takes seconds to export: in ONNX graphs, only poses alternate.
    changing = ("pose",) if execution == "onnx" else ("pose", "intrinsics", "motion")
    options, images = StreamOptions(reset_interval=11), frames(16, 1)
    plain = Stream(network, options, METHOD_SOON)

    capture = Rerun() if execution == "graph" else None
    options = dataclasses.replace(options, execution=execution)
    stream = Stream(network, options, METHOD_SOON, capture=capture)
    for index, image in enumerate(images):
        given_now = {name: value for name, value in arguments(index).items() if name in changing}
        ours, expected = stream.step(image, **given_now), plain.step(image, **given_now)
        for name in ("pose", "pose_raw", "depth", "scale", "gate"):
            # The gate divides by the interquartile range of a few tokens, which amplifies rounding errors.
            allowed = (1e-4 if execution == "onnx" else 1e-5) * (10 if name == "gate" else 1)
            torch.testing.assert_close(getattr(ours, name), getattr(expected, name), atol=allowed, rtol=allowed)
        assert ours.world_change == expected.world_change


def test_cameras_with_and_without_poses_share_a_network(network: Network, batches: list[int]):
    images = [frames(12, seed) for seed in range(4)]
    options = StreamOptions(reset_interval=7)

    def how(camera: int, index: int) -> dict:
        return {"pose": given(index) if (camera + (camera == 3) * index) % 2 else None, "stamp": index / 10}

    alone = cameras(network, 4, options)
    expected = [[alone[c].step(images[c][index], **how(c, index)) for index in range(12)] for c in range(4)]
    scheduler, streams = BatchScheduler(network), cameras(network, 4, options)
    batches.clear()
    for index in range(12):
        calls = [stepping(scheduler, streams[c], images[c][index], **how(c, index)) for c in range(4)]
        for camera, future in enumerate(at_once(scheduler, *calls)):
            ours, other = future.result(), expected[camera][index]
            for name in ("pose", "pose_raw", "depth", "scale"):
                torch.testing.assert_close(getattr(ours, name), getattr(other, name), atol=1e-5, rtol=1e-5)
            assert (ours.pose_given, ours.world_change) == (other.pose_given, other.world_change)
    assert set(batches) > {1, 2}  # frames with a pose run as one batch, those without as another


def test_streams_without_poses_pay_nothing(network: Network, monkeypatch: pytest.MonkeyPatch):
    """Their rays are encoded only for the ray branch."""
    calls, encode = [], network.encode_rays
    monkeypatch.setattr(network, "encode_rays", lambda rays: calls.append(1) or encode(rays))
    stream = Stream(network, StreamOptions(update_rule="cut3r", reset_interval=0), METHOD_SOON)
    for image in frames(8, 1):
        stream.step(image, motion=False)
    assert calls == []
    stream.step(image, pose=np.eye(4), motion=False)
    assert calls == [1]


def test_warm_up_records_frames_with_poses(network: Network, monkeypatch: pytest.MonkeyPatch):
    trace, count = torch.jit.trace, itertools.count()
    monkeypatch.setattr(torch.jit, "trace", lambda *given, **named: (next(count) and None) or trace(*given, **named))
    stream = Stream(network, StreamOptions(execution="trace"), METHOD_SOON)
    warm_up(stream, poses=True)
    recorded = next(count)
    assert recorded == 9  # with and without intrinsics, pose and motion; and keyframes
    image = np.full((24, 32, 3), 128, np.uint8)
    for index in range(10):
        stream.step(image, intrinsics=INTRINSICS, pose=given(0) if index % 2 else None)
    assert next(count) == recorded + 1  # nothing else was recorded


# --- arguments ---------------------------------------------------------------------------------------------------


def broken(**changes) -> np.ndarray:
    pose = given(1)
    for place, value in changes.items():
        pose[{"corner": (3, 3), "rotation": (0, 0), "position": (0, 3)}[place]] = value
    return pose


@pytest.mark.parametrize(
    ("pose", "text"),
    [
        (np.eye(3), r"has the shape \(3, 3\)"),
        (np.tile(np.eye(4), (2, 1, 1)), r"has the shape \(2, 4, 4\)"),
        (broken(position=np.nan), "not finite"),
        (broken(corner=2), "last row"),
        (broken(rotation=0.2), "is no rotation"),
        (np.diag((1.0, 1, -1, 1)), "determinant -1"),
        (2 * np.eye(4) - np.diag((0, 0, 0, 1.0)), "is no rotation"),
        (broken(position=2e4), "20000 m from the origin"),
    ],
)
def test_poses_that_cannot_be_used_are_refused(network: Network, pose: np.ndarray, text: str):
    stream = Stream(network)
    with pytest.raises(InputError, match=text):
        stream.step(frames(1, 1)[0], pose=pose)
    assert stream.snapshot() is None


def test_poses_need_aligned_segments(network: Network):
    image = frames(1, 1)[0]
    stream = Stream(network, StreamOptions(reset_alignment="off"))
    with pytest.raises(OptionError, match="reset_alignment is off"):
        stream.step(image, pose=np.eye(4))
    Stream(network, StreamOptions(reset_alignment="off", reset_interval=0)).step(image, pose=np.eye(4))
