"""Keyframes, the rehearsal before a reset, and the alignment with all of them."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import wall
from batching_tools import METHOD_SOON, frames
from scipy.spatial.transform import Rotation
from torch import Tensor

from raymap3r_ros.geometry.cameras import from_cameras
from raymap3r_ros.geometry.similarity import Similarity
from raymap3r_ros.network import Network
from raymap3r_ros.streaming import METHOD, Stream, StreamOptions
from raymap3r_ros.streaming.alignment import align_keyframes, robust_alignment
from raymap3r_ros.streaming.batching import warm_up
from raymap3r_ros.streaming.keyframes import Keyframes, choose, overlaps, store, view_overlap
from raymap3r_ros.streaming.stream_options import KeyframeOptions
from raymap3r_ros.streaming.tensors import tensors_of

SIZE, FOCAL, DISTANCE = (48, 64), 60.0, 3.0
SLOTS = 4


def view(number: int, x: float = 0.0, turn: float = 0.0, forward: float = 0.0) -> Keyframes:
    """A camera at (x, 0, forward) that is turned about its vertical axis by degrees, 3 m before a plane."""
    row, column = torch.meshgrid(torch.arange(3, 48, 6.0), torch.arange(2, 64, 6.0), indexing="ij")
    slopes = torch.stack(((column - 32) / FOCAL, (row - 24) / FOCAL, torch.ones_like(row)), dim=-1).view(1, 1, -1, 3)
    pose = torch.eye(4)[None, None].clone()
    pose[..., :3, :3] = torch.from_numpy(Rotation.from_euler("y", turn, degrees=True).as_matrix()).float()
    pose[..., :3, 3] = torch.tensor((x, 0.0, forward))
    return Keyframes(
        number=torch.full((1, 1), number),
        tokens=torch.full((1, 1, 12, 5), float(number)),
        intrinsics=torch.tensor([[FOCAL, 0, 32], [0, FOCAL, 24], [0, 0, 1]]).view(1, 1, 3, 3),
        pose=pose,
        points=slopes * (DISTANCE - forward),
        weight=torch.ones(slopes.shape[:-1]),
        overlap=torch.zeros(1, 1, 1),
    )


def stored(*views: Keyframes, slots: int = SLOTS) -> Keyframes:
    keyframes = Keyframes.empty(slots, views[0])
    for one in views:
        keyframes = store(keyframes, one, SIZE)
    return keyframes


# --- which frames are kept ---------------------------------------------------------------------------------------


def test_the_overlap_of_views_has_its_closed_form():
    here = view(0)
    assert view_overlap(here, here, SIZE).item() == pytest.approx(1, abs=1e-6)
    assert view_overlap(here, view(1, turn=180), SIZE).item() == 0
    # 30 pixels to the side: about half of the points leave the image. Both directions are alike.
    aside = view(1, x=DISTANCE * 30 / FOCAL)
    assert view_overlap(here, aside, SIZE).item() == pytest.approx(view_overlap(aside, here, SIZE).item(), abs=1e-6)
    world = here.points[0, 0].double().numpy()
    other = world - aside.pose[0, 0, :3, 3].double().numpy()
    inside = other[:, 0] / other[:, 2] * FOCAL + 32 > -0.5
    length, other_length = np.linalg.norm(world, axis=1), np.linalg.norm(other, axis=1)
    alike = (world * other).sum(1) / (length * other_length)
    alike *= np.minimum(length, other_length) / np.maximum(length, other_length)
    assert 0.4 < inside.mean() < 0.6
    assert view_overlap(here, aside, SIZE).item() == pytest.approx((inside * alike).mean(), abs=1e-5)
    # Nearer to the surface the same things look larger.
    assert view_overlap(here, view(1, forward=1.5), SIZE).item() < 0.6


def test_only_new_views_become_keyframes():
    keyframes = stored(view(0), view(1, x=0.1), view(2, x=1.5), view(3, turn=2.0), view(4, turn=170))
    assert keyframes.number.tolist() == [[0, 2, 4, -1]]
    assert keyframes.tokens[0, :3, 0, 0].tolist() == [0, 2, 4]
    expected = [[view_overlap(view(0, *a), view(0, *b), SIZE).item() for a in ((0,), (1.5,))] for b in ((0,), (1.5,))]
    assert keyframes.overlap[0, 0, 1].item() == pytest.approx(expected[0][1], abs=1e-6)
    assert torch.equal(keyframes.overlap, keyframes.overlap.mT) and not keyframes.overlap[0].diagonal().any()
    assert overlaps(keyframes, view(9), SIZE)[0, 3] == 0  # an empty slot


def test_of_full_slots_the_most_redundant_leaves_and_the_first_stays():
    keyframes = stored(view(0), view(1, turn=90), view(2, turn=180), view(3, x=1.2))
    assert keyframes.number.tolist() == [[0, 1, 2, 3]]  # the last overlaps with the first by a half
    keyframes = store(keyframes, view(4, turn=270), SIZE)
    assert keyframes.number.tolist() == [[0, 1, 2, 4]]
    assert keyframes.overlap[0, 3, 0] == 0  # of the new frame, not of the old one
    # All slots show something of their own, a view that shows half of what is known does not replace one.
    assert store(keyframes, view(5, x=1.2), SIZE).number.tolist() == [[0, 1, 2, 4]]


def test_a_view_without_finite_points_is_left_out():
    broken = dataclasses.replace(view(1, turn=90), points=view(1).points * torch.nan)
    assert stored(view(0), broken).number.tolist() == [[0, -1, -1, -1]]


def test_each_stream_of_a_batch_has_its_own_keyframes():
    views = [[view(0), view(1, turn=90), view(2, turn=91)], [view(0), view(1, x=0.1), view(2, x=2)]]
    both = Keyframes.empty(SLOTS, join(views[0][0], views[1][0]))
    for one, other in zip(*views, strict=True):
        both = store(both, join(one, other), SIZE)
    for index, own in enumerate(views):
        for ours, alone in zip(tensors_of(both), tensors_of(stored(*own)), strict=True):
            assert torch.equal(ours[index : index + 1], alone)


def join(*keyframes: Keyframes) -> Keyframes:
    names = [field.name for field in dataclasses.fields(Keyframes)]
    return Keyframes(**{name: torch.cat([getattr(one, name) for one in keyframes]) for name in names})


def test_the_chosen_keyframes_are_near_or_cover_the_scene_and_come_in_order():
    turns = [0, 40, 80, 120, 160, 200, 240, 280]
    keyframes = stored(*(view(number, turn=turn) for number, turn in enumerate(turns)), slots=10)
    assert (keyframes.number >= 0).sum() == 8
    method = dataclasses.replace(METHOD, rehearsed_nearest=2)
    here = overlaps(keyframes, view(9, turn=190), SIZE)
    slot, valid = choose(keyframes, here, 4, method)
    chosen = keyframes.at(slot).number[0].tolist()
    assert chosen == sorted(chosen) and valid.all()
    assert {0, 4, 5} <= set(chosen)  # the oldest, and the two nearest: 160 and 200 degrees
    (last,) = set(chosen) - {0, 4, 5}
    assert keyframes.overlap[0, last, [0, 4, 5]].max() == 0  # it shows what none of them shows
    # If there are fewer, the rest is marked.
    slot, valid = choose(stored(view(0), view(1, turn=90)), here[:, :SLOTS], 4, method)
    assert valid.tolist() == [[True, True, False, False]]


# --- the alignment ------------------------------------------------------------------------------------------------


def two_worlds(count: int = 6, seed: int = 0) -> tuple[Similarity, list[Tensor]]:
    """A similarity, and cameras with points in a world and its image: arguments of `align_keyframes`."""
    rng = np.random.default_rng(seed)
    turn = torch.from_numpy(Rotation.from_rotvec((0.4, -0.7, 0.3)).as_matrix()).float()[None]
    truth = Similarity(torch.tensor([1.7]), turn, torch.tensor([[0.5, -1.0, 2.0]]))
    pose = torch.eye(4).repeat(1, count, 1, 1)
    pose[0, :, :3, :3] = torch.from_numpy(Rotation.random(count, rng).as_matrix()).float()
    pose[0, :, :3, 3] = torch.from_numpy(rng.normal(size=(count, 3))).float()
    points = torch.from_numpy(rng.uniform((-1, -1, 1), (1, 1, 4), (1, count, 30, 3))).float()
    before_pose = torch.stack([truth.apply_to_pose(pose[:, index]) for index in range(count)], dim=1)
    return truth, [points, points * 1.7, torch.ones(1, count, 30), pose, before_pose, torch.ones(1)]


def assert_similar(found: Similarity, truth: Similarity, tolerance: float) -> None:
    for ours, other in zip(tensors_of(found), tensors_of(truth), strict=True):
        torch.testing.assert_close(ours, other, atol=tolerance, rtol=tolerance)


def test_the_alignment_finds_an_exact_similarity():
    truth, arguments = two_worlds()
    found, error = align_keyframes(*arguments)
    assert_similar(found, truth, 1e-5)
    assert error.item() < 1e-5


def test_keyframes_that_disagree_and_frames_without_weight_are_outvoted():
    truth, (after, before, weight, after_pose, before_pose, last) = two_worlds()
    before_pose[0, 1, :3, 3] += torch.tensor((3.0, 0, 0))
    before_pose[0, 2, :3, :3] = (
        before_pose[0, 2, :3, :3] @ torch.from_numpy(Rotation.from_euler("x", 60, degrees=True).as_matrix()).float()
    )
    weight[0, 3] = 0
    before_pose[0, 3, :3, 3] += 100
    after[0, 3] = torch.nan
    found, _ = align_keyframes(after, before, weight, after_pose, before_pose, last)
    assert_similar(found, truth, 0.02)


def test_the_error_is_the_mean_error_of_the_keyframes():
    """Independent errors of the keyframes average out: by the root of their number."""
    errors = {1: [], 9: []}
    for seed in range(40):
        for count, found in errors.items():
            truth, (after, before, weight, after_pose, before_pose, last) = two_worlds(count, seed)
            before_pose[..., :3, 3] += 0.05 * torch.randn(1, count, 3, generator=torch.Generator().manual_seed(seed))
            fit, _ = align_keyframes(after, before, weight, after_pose, before_pose, last)
            found.append((fit.translation - truth.translation).norm().item())
    assert np.mean(errors[9]) < 0.5 * np.mean(errors[1])


def test_one_frame_alone_is_aligned_as_without_keyframes():
    _, (after, before, weight, after_pose, before_pose, last) = two_worlds(1)
    before = before + 0.1 * torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    found, _ = align_keyframes(after, before, weight, after_pose, before_pose, last)
    poses = after_pose[:, 0], before_pose[:, 0]
    clouds = [from_cameras(pose, points[:, 0]) for pose, points in zip(poses, (after, before), strict=True)]
    assert_similar(found, robust_alignment(*clouds, weight[:, 0], *poses, last), 1e-5)


def test_without_usable_points_the_last_scale_is_kept():
    _, (after, before, weight, after_pose, before_pose, _) = two_worlds()
    found, error = align_keyframes(after * torch.nan, before, weight, after_pose, before_pose, torch.tensor([2.5]))
    assert found.scale.item() == 2.5 and error.isnan().all()
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(found))


# --- streams ------------------------------------------------------------------------------------------------------


class UncertainWall(wall.WallNetwork):
    """Predicts poses with an independent error in every frame, as seen from another memory."""

    def __init__(self) -> None:
        super().__init__()
        self._random = torch.Generator().manual_seed(0)

    def pose(self, decoded) -> Tensor:
        pose = super().pose(decoded)
        return torch.cat((pose[:, :3] + 0.05 * torch.randn(pose[:, :3].shape, generator=self._random), pose[:, 3:]), 1)


def wall_errors(size: int, resets: int = 24) -> np.ndarray:
    """Errors of the position, metres, of a stream before and after each of its resets. The camera goes to and fro."""
    options = StreamOptions(
        reset_interval=20, smoothing="off", update_rule="cut3r", keyframes=KeyframeOptions(size=size)
    )
    stream, errors = Stream(UncertainWall(), options), []
    for index in range(20 * resets):
        frame = abs((index + 60) % 120 - 60)
        result = stream.step(wall.image(frame), motion=False)
        errors.append(np.linalg.norm(result.pose_raw[:3, 3].numpy() - wall.position(frame)))
    return np.array(errors)


def test_errors_of_alignments_do_not_add_up_with_keyframes():
    with_keyframes, without = wall_errors(16), wall_errors(0)
    late = slice(-160, None)
    assert np.median(with_keyframes[late]) < 1.5 * np.median(with_keyframes[:160])
    assert np.median(with_keyframes[late]) < 0.6 * np.median(without[late])


OPTIONS = StreamOptions(reset_interval=16, keyframes=KeyframeOptions(size=5))  # 4 are rehearsed


def test_no_frame_sees_more_than_one_keyframe_again(network: Network, monkeypatch: pytest.MonkeyPatch):
    calls, decode = [], network.decode
    monkeypatch.setattr(network, "decode", lambda *given, **named: calls.append(1) or decode(*given, **named))
    stream, per_frame = Stream(network, OPTIONS, METHOD_SOON), []
    for image in frames(49, 0):
        calls.clear()
        stream.step(image)
        per_frame.append(len(calls))
    usual = [2] * 8 + [3] * 9  # both branches; one keyframe more, or the current frame in the new memory
    assert per_frame[17:33] == per_frame[33:49] == [*usual[1:8], *usual[8:]]


def test_a_stream_continues_bit_for_bit_from_a_snapshot_within_a_rehearsal(network: Network):
    images = frames(40, 1)
    stream, copy = (Stream(network, OPTIONS, METHOD_SOON) for _ in range(2))
    for image in images[:27]:
        stream.step(image)
    snapshot = stream.snapshot()
    assert 0 < snapshot.rehearsal.step < 8 and (snapshot.keyframes.number >= 0).any()
    copy.restore(snapshot)
    for image in images[27:]:
        one, other = stream.step(image), copy.step(image)
        assert torch.equal(one.pose, other.pose) and torch.equal(one.depth, other.depth)


def test_a_stream_with_keyframes_takes_constant_memory(network: Network):
    stream = Stream(network, OPTIONS, METHOD_SOON)
    held = []
    for image in frames(80, 2):
        stream.step(image)
        held.append([tensor.shape for tensor in tensors_of(stream.snapshot())])
    assert held[31] == held[47] == held[63] == held[79]


def test_cameras_of_a_batch_keep_their_own_keyframes(network: Network):
    images = np.stack([frames(40, seed) for seed in (1, 2)], axis=1)
    together, alone = Stream(network, OPTIONS, METHOD_SOON), [Stream(network, OPTIONS, METHOD_SOON) for _ in range(2)]
    for pair in images:
        both = together.step(pair)
        for index, stream in enumerate(alone):
            torch.testing.assert_close(both.pose[index], stream.step(pair[index]).pose, atol=2e-4, rtol=1e-3)
    for index, stream in enumerate(alone):
        assert torch.equal(together.snapshot().keyframes.number[index], stream.snapshot().keyframes.number[0])


@pytest.mark.parametrize(
    "options",
    [
        StreamOptions(reset_interval=16, keyframes=KeyframeOptions(size=0)),
        StreamOptions(reset_interval=0),
        StreamOptions(reset_interval=16, reset_alignment="published"),
        StreamOptions.published(reset_interval=16),
    ],
)
def test_streams_that_need_no_keyframes_store_none(network: Network, options: StreamOptions):
    stream = Stream(network, options, METHOD_SOON)
    for image in frames(20, 3):
        stream.step(image)
    assert stream.snapshot().keyframes is None and stream.snapshot().rehearsal is None


def test_a_new_world_forgets_the_keyframes(network: Network):
    stream = Stream(network, OPTIONS, METHOD_SOON)
    for image in frames(12, 4):
        stream.step(image)
    assert stream.snapshot().keyframes is not None
    stream.step(frames(1, 4, (40, 32))[0])
    assert stream.snapshot().keyframes is None and stream.snapshot().rehearsal is None


@pytest.mark.parametrize("interval", [6, 20, 23, 100])
def test_a_changed_interval_within_a_rehearsal_keeps_the_world(interval: int):
    stream = Stream(wall.WallNetwork(), StreamOptions(reset_interval=20, smoothing="off"))
    for frame in range(75):
        if frame == 36:  # the rehearsal has begun
            stream.options = dataclasses.replace(stream.options, reset_interval=interval)
        result = stream.step(wall.image(frame))
        torch.testing.assert_close(result.pose_raw[:3, 3], torch.from_numpy(wall.position(frame)), atol=2e-3, rtol=0)


@pytest.mark.parametrize("lost", [14, 17, 20, 35, 40])
def test_a_frame_without_finite_outputs_harms_no_keyframe(lost: int):
    """Whether it is one that might be stored, rehearsed with, or reset at."""
    stream = Stream(wall.WallNetwork(lose_frame=lost), StreamOptions(reset_interval=20, smoothing="off"))
    for frame in range(75):
        result = stream.step(wall.image(frame))
        assert result.healthy == (frame != lost)
        if frame != lost:
            truth = torch.from_numpy(wall.position(frame))
            torch.testing.assert_close(result.pose_raw[:3, 3], truth, atol=2e-3, rtol=0)


@pytest.mark.parametrize("execution", ["plain", "trace"])
def test_a_reset_keeps_the_world_of_images_of_another_size_than_those_of_the_warm_up(network: Network, execution: str):
    """Recorded work has the sizes of its first frame."""
    stream = Stream(network, dataclasses.replace(OPTIONS, execution=execution), METHOD_SOON)
    warm_up(stream)
    plain = Stream(network, OPTIONS, METHOD_SOON)
    for index, image in enumerate(frames(40, 5, (96, 128))):
        result, expected = stream.step(image), plain.step(image)
        assert (result.frame, result.world_change) == (index, expected.world_change)
        torch.testing.assert_close(result.pose, expected.pose, atol=1e-4, rtol=1e-4)
    assert stream.snapshot().image_size == (96, 128)


def test_what_is_recorded_for_wide_images_is_not_used_for_tall_ones(network: Network):
    """Both have as many tokens."""
    stream = Stream(network, dataclasses.replace(OPTIONS, execution="trace"), METHOD_SOON)
    for size in ((24, 32), (32, 24)):
        plain = Stream(network, OPTIONS, METHOD_SOON)
        for image in frames(20, 6, size):
            torch.testing.assert_close(stream.step(image).pose, plain.step(image).pose, atol=1e-4, rtol=1e-4)
