"""The stream: in a world with exact ground truth, and its guarantees with an untrained network."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import wall

from raymap3r_ros.errors import InputError
from raymap3r_ros.network import NetworkConfig, untrained_network
from raymap3r_ros.streaming import RULES, MaskOptions, StepResult, Stream, StreamOptions, WorldChange
from raymap3r_ros.streaming.stream_options import KeyframeOptions

SMALL = NetworkConfig(
    image_size=64,
    encoder_width=32,
    encoder_depth=1,
    encoder_heads=2,
    ray_encoder_depth=1,
    ray_encoder_heads=2,
    decoder_width=32,
    decoder_depth=2,
    decoder_heads=2,
    state_heads=2,
    state_tokens=6,
    memory_slots=4,
    memory_depth=1,
    memory_heads=2,
    dpt_width=8,
    dpt_last_width=8,
    dpt_level_widths=(8, 8, 8, 8),
)
TENSORS = [field.name for field in dataclasses.fields(StepResult) if field.type == "Tensor"]


@pytest.fixture(scope="module")
def network():
    return untrained_network(SMALL, seed=5).eval().requires_grad_(False)


def frames(count: int, seed: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Random images that change a little from one to the next."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (*size, 3))
    return np.stack([np.clip(base + rng.integers(-20, 20, base.shape), 0, 255) for _ in range(count)]).astype(np.uint8)


def same(first: StepResult, second: StepResult) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in TENSORS)


# --- a world with exact ground truth ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("smoothing", "size"), [("off", 0), ("tied", 0), ("tied", 32)])
def test_world_and_scale_are_kept_through_resets(rule: str, smoothing: str, size: int):
    network, keyframes = wall.WallNetwork(), KeyframeOptions(size=size)
    options = StreamOptions(update_rule=rule, smoothing=smoothing, reset_interval=10, keyframes=keyframes)
    stream = Stream(network, options)
    for frame in range(41):
        result = stream.step(wall.image(frame))
        truth = torch.from_numpy(wall.position(frame))
        torch.testing.assert_close(result.pose_raw[:3, 3], truth, atol=2e-4, rtol=0)
        torch.testing.assert_close(result.pose_raw[:3, :3], torch.eye(3), atol=1e-4, rtol=0)
        depth = torch.full(wall.SIZE, wall.WALL - truth[2].item())
        depth[wall.BOX] = wall.BOX_DEPTH
        torch.testing.assert_close(result.depth, depth, atol=1e-3, rtol=0)
        torch.testing.assert_close(result.points[..., 2], depth, atol=1e-3, rtol=0)
        assert result.segment == max(0, (frame - 1) // 10)
        assert (result.reset, result.reset_reason) == {0: (True, "start")}.get(
            frame, (frame % 10 == 0, "interval" if frame % 10 == 0 else "")
        )
        # The new segment has another unit of length: its scale must be the inverse. With keyframes, all segments have
        # the unit of the oldest one.
        assert result.scale.item() == pytest.approx(wall.METRES[0 if size else result.segment % 4], rel=1e-4)
        if frame and frame % 10 == 0:
            assert result.alignment_error.item() < 1e-4
        else:
            assert result.alignment_error is None


def test_the_ray_branch_runs_in_the_segments_world():
    """Otherwise the static scene would be predicted from another pose and the whole wall would be dynamic."""
    network = wall.WallNetwork()
    stream = Stream(network, StreamOptions(reset_interval=10, smoothing="off"))
    for frame in range(35):
        result = stream.step(wall.image(frame))
        if frame < 5:
            assert not result.motion and not result.dynamic_mask.any() and (result.staticness == 1).all()
            continue
        assert network.ray_depths[-1].item() == pytest.approx(wall.WALL - wall.position(frame)[2], abs=1e-3)
        mask = torch.zeros(wall.SIZE, dtype=torch.bool)
        mask[wall.BOX] = True
        assert torch.equal(result.dynamic_mask, mask)
        # Relative to the median: the box is below it, the wall above.
        assert result.staticness[24, 32] < 0.2 < result.staticness[5, 5]


@pytest.mark.parametrize("motion", [True, False])
def test_the_ray_branch_may_run_at_an_interval(motion: bool):
    network = wall.WallNetwork()
    stream = Stream(network, StreamOptions(reset_interval=10, ray_interval=4))
    ray_frames = []
    for frame in range(25):
        before = stream.snapshot()
        count = len(network.ray_depths)
        result = stream.step(wall.image(frame), motion=motion)
        ray_frames += [frame] * (len(network.ray_depths) - count)
        assert result.motion == (motion and ray_frames[-1:] == [frame])
        if ray_frames[-1:] != [frame] and frame and not result.reset:
            assert torch.equal(stream.snapshot().staticness, before.staticness)
            assert not result.dynamic_mask.any()
        # The world stays aligned in frames without the ray branch.
        torch.testing.assert_close(result.pose_raw[:3, 3], torch.from_numpy(wall.position(frame)), atol=2e-4, rtol=0)
    # An alignment runs the ray branch out of turn.
    assert ray_frames == [8, 10, 12, 16, 20, 24]


@pytest.mark.parametrize("motion", [True, False])
def test_without_alignment_each_segment_starts_at_the_origin(motion: bool):
    stream = Stream(wall.WallNetwork(), StreamOptions(reset_interval=10, reset_alignment="off"))
    for frame in range(25):
        result = stream.step(wall.image(frame), motion=motion)
        start = max(0, (frame - 1) // 10) * 10
        truth = torch.from_numpy(wall.position(frame) - wall.position(start)) / wall.METRES[start // 10]
        torch.testing.assert_close(result.pose[:3, 3], truth, atol=2e-2, rtol=0)
        torch.testing.assert_close(result.pose_raw[:3, 3], truth, atol=2e-4, rtol=0)
        assert result.scale == 1 and result.alignment_error is None


def test_the_published_alignment_finds_an_exact_world_too():
    stream = Stream(wall.WallNetwork(), StreamOptions(reset_interval=10, reset_alignment="published"))
    for frame in range(25):
        result = stream.step(wall.image(frame))
    torch.testing.assert_close(result.pose_raw[:3, 3], torch.from_numpy(wall.position(24)), atol=1e-3, rtol=0)


def test_the_published_mask_marks_half_of_a_static_image():
    options = StreamOptions(mask=MaskOptions(kind="published"))
    network = untrained_network(SMALL, seed=5).eval().requires_grad_(False)
    stream, ours = Stream(network, options), Stream(network)
    for image in frames(8):
        result, plain = stream.step(image), ours.step(image)
    assert torch.equal(result.dynamic_mask, result.staticness < 0.5)
    assert result.dynamic_mask.float().mean() > 0.4
    assert torch.equal(result.staticness, plain.staticness)  # the dynamic map is the same, only the mask differs


def test_the_motion_filter_gates_moving_objects_and_equals_filt3r_in_a_static_scene():
    gates = {}
    for rule in ("filt3r", "motion_filter"):
        for moving_box in (False, True):
            stream = Stream(wall.WallNetwork(moving_box), StreamOptions(update_rule=rule))
            gates[rule, moving_box] = torch.stack([stream.step(wall.image(frame)).gate for frame in range(20)])
    plain, ours = gates["filt3r", True], gates["motion_filter", True]
    assert torch.equal(gates["filt3r", False], gates["motion_filter", False])
    assert torch.equal(ours[:6], plain[:6]) and (ours[6:] < plain[6:]).all()
    # Every token attends uniformly to the image, so its dynamic share equals the share of the box.
    share = (16 * 16) / (48 * 64)
    variance = plain[5, 0] + 0.02  # an unclamped gain equals the posterior variance
    torch.testing.assert_close(ours[6, 0], variance / (variance + 1 + 30 * share**2), rtol=0.02, atol=0)


def test_gate_memory_is_reset_with_a_segment():
    options = StreamOptions(update_rule="filt3r", reset_interval=10, keyframes=KeyframeOptions(size=0))
    stream = Stream(wall.WallNetwork(), options)
    gates = torch.stack([stream.step(wall.image(frame)).gate for frame in range(21)])
    # The frame of the reset is the first of the new segment, the next frame its second.
    torch.testing.assert_close(gates[11:21], gates[1:11])


def test_the_trajectory_does_not_depend_on_motion(network):
    images = frames(20)
    with_mask, without = (Stream(network, StreamOptions(update_rule="cut3r", reset_interval=8)) for _ in range(2))
    for image in images:
        assert torch.equal(with_mask.step(image).pose, without.step(image, motion=False).pose)


def test_the_mask_is_empty_in_a_static_world():
    stream = Stream(wall.WallNetwork(moving_box=False), StreamOptions(reset_interval=10))
    for frame in range(25):
        assert not stream.step(wall.image(frame)).dynamic_mask.any()


def test_a_frame_with_nan_is_reported_and_the_state_is_kept():
    stream = Stream(wall.WallNetwork(lose_frame=7), StreamOptions(reset_interval=10))
    for frame in range(25):
        result = stream.step(wall.image(frame))
        assert result.healthy.item() == (frame != 7)
        if frame != 7:
            truth = torch.from_numpy(wall.position(frame))
            torch.testing.assert_close(result.pose_raw[:3, 3], truth, atol=2e-4, rtol=0)


def test_a_first_frame_with_nan_leaves_the_initial_state():
    stream = Stream(wall.WallNetwork(lose_frame=0))
    assert not stream.step(wall.image(0)).healthy
    assert stream.snapshot().fresh.all()
    second = stream.step(wall.image(3))
    torch.testing.assert_close(second.pose[:3, 3], torch.zeros(3))


def test_intrinsics_are_estimated_or_transformed_by_resize_and_crop():
    stream = Stream(wall.WallNetwork(moving_box=False))
    result = stream.step(wall.image(0))
    expected = torch.tensor([[wall.FOCAL, 0, 32], [0, wall.FOCAL, 24], [0, 0, 1]])
    torch.testing.assert_close(result.intrinsics, expected, atol=1e-3, rtol=0)
    assert result.intrinsics_known
    given = np.array([[200.0, 0, 127.5], [0, 210.0, 95.5], [0, 0, 1]])
    stream.reset()
    large = np.zeros((192, 256, 3), np.uint8)
    result = stream.step(large, intrinsics=given)
    torch.testing.assert_close(
        result.intrinsics, torch.tensor([[50.0, 0, 31.5], [0, 52.5, 23.5], [0, 0, 1]]), atol=1e-4, rtol=0
    )


# --- guarantees with an untrained network -----------------------------------------------------------------------


def test_two_streams_share_one_network_independently(network):
    options = StreamOptions(reset_interval=8)
    inputs = [frames(18, seed) for seed in (1, 2)]
    separate = []
    for images in inputs:
        stream = Stream(network, options)
        separate.append([stream.step(image) for image in images])
    streams = [Stream(network, options) for _ in inputs]
    for index in range(18):
        for stream, images, alone in zip(streams, inputs, separate, strict=True):
            assert same(stream.step(images[index]), alone[index])


@pytest.mark.parametrize(
    "options", [StreamOptions(reset_interval=8), StreamOptions(router="adaptive", smoothing="published")]
)
def test_a_snapshot_restores_everything_bit_by_bit(network, options: StreamOptions):
    images = frames(26)
    stream = Stream(network, options)
    for image in images[:11]:
        stream.step(image)
    snapshot = stream.snapshot()
    first = [stream.step(image) for image in images[11:]]
    stream.restore(snapshot)
    again = [stream.step(image) for image in images[11:]]
    other = Stream(network, options)
    other.restore(snapshot)
    elsewhere = [other.step(image) for image in images[11:]]
    for a, b, c in zip(first, again, elsewhere, strict=True):
        assert same(a, b) and same(a, c)
        assert (a.frame, a.segment, a.reset) == (b.frame, b.segment, b.reset)


@pytest.mark.parametrize("rule", RULES)
def test_a_batch_equals_separate_streams(network, rule: str):
    options = StreamOptions(update_rule=rule, reset_interval=8, router="adaptive")
    images = np.stack([frames(14, seed) for seed in (1, 2, 3)], axis=1)
    batch = Stream(network, options)
    alone = [Stream(network, options) for _ in range(3)]
    for step in images:
        together = batch.step(step)
        assert together.pose.shape == (3, 4, 4) and len(together.rule) == 3
        for index, stream in enumerate(alone):
            single, one = stream.step(step[index]), together.camera(index)
            assert single.rule == one.rule
            for name in ("pose", "depth", "confidence", "gate", "intrinsics", "scale"):
                torch.testing.assert_close(getattr(one, name), getattr(single, name), atol=2e-4, rtol=1e-3)


def test_memory_does_not_grow(network):
    stream = Stream(network, StreamOptions(reset_interval=7, router="adaptive"))

    def held() -> list:
        state = stream.snapshot()
        return [
            (name, value.shape)
            for part in (state, state.alignment, state.smoother, state.router, state.gate_memory)
            for name, value in vars(part).items()
            if isinstance(value, torch.Tensor)
        ]

    images = frames(30)
    stream.step(images[0])
    first = held()
    for image in images[1:]:
        stream.step(image)
    assert held() == first


def test_unneeded_work_is_skipped_and_changes_nothing(network):
    images = frames(12)
    runs = []
    handle = network.ray_encoder.register_forward_hook(lambda *_: runs.append(1))
    try:
        for rule, motion, expected in (
            ("cut3r", False, 0),
            ("ttt3r", False, 0),
            ("ttsa3r", False, 0),
            ("filt3r", False, 0),
            ("motion_filter", False, 7),
            ("cut3r", True, 7),
            ("raymap3r", False, 7),
            ("raymap3r", True, 7),
        ):
            runs.clear()
            stream = Stream(network, StreamOptions(update_rule=rule, reset_interval=0))
            results = [stream.step(image, motion=motion) for image in images]
            assert len(runs) == expected
            assert [result.motion for result in results] == [motion and index >= 5 for index in range(12)]
    finally:
        handle.remove()
    # A record changes no result, also at a reset.
    options = StreamOptions(update_rule="cut3r", reset_interval=8)
    plain, recorded = Stream(network, options), Stream(network, options)
    for image in images:
        assert same(plain.step(image, motion=False), recorded.step(image, motion=False, record={}))
    plain, recorded, bare = (Stream(network) for _ in range(3))
    for image in images:
        result = plain.step(image)
        assert same(result, recorded.step(image, record={}))
        assert torch.equal(result.pose, bare.step(image, motion=False).pose)


def test_gates_of_the_rules(network):
    images = frames(9)
    for rule in ("cut3r", "ttt3r", "raymap3r"):
        stream = Stream(network, StreamOptions(update_rule=rule))
        gates = [stream.step(image).gate for image in images]
        assert (gates[0] == 1).all()
        if rule == "cut3r":
            assert all((gate == 1).all() for gate in gates)
        else:
            assert all((gate < 1).all() for gate in gates[1:])
        if rule == "ttt3r":
            plain = gates
        if rule == "raymap3r":
            # Before the first token staticness, at frame 6, it equals TTT3R.
            assert all(torch.equal(a, b) for a, b in zip(plain[:6], gates[:6], strict=True))
            assert (gates[6] < plain[6]).all()


def test_another_size_starts_a_new_world(network):
    stream = Stream(network)
    for image in frames(3):
        stream.step(image)
    result = stream.step(frames(1, size=(64, 48))[0])
    assert result.reset and result.reset_reason == "size" and result.frame == 0
    assert result.depth.shape == (64, 48)
    assert not stream.step(frames(1, size=(64, 48))[0]).reset


@pytest.mark.parametrize("size", [(96, 128), (49, 64)])
def test_another_camera_size_starts_a_new_world_though_the_preprocessed_size_is_the_same(network, size):
    """A camera in another mode may have another field of view, whatever its images are resized to."""
    stream, fresh = Stream(network), Stream(network)
    for image in frames(3):
        before = stream.step(image)
    for index, image in enumerate(frames(3, size=size)):
        result = stream.step(image)
        assert result.depth.shape == before.depth.shape
        assert same(result, fresh.step(image)) and result.frame == index
        assert (result.reset, result.reset_reason) == ((False, "") if index else (True, "size"))


@pytest.mark.parametrize(
    ("alignment", "change"),
    [("robust", WorldChange.ALIGNED), ("published", WorldChange.JUMPED), ("off", WorldChange.NEW)],
)
def test_a_result_contains_the_change_of_the_world(network, alignment: str, change: WorldChange):
    stream = Stream(network, StreamOptions(reset_interval=4, reset_alignment=alignment))
    image = np.full((48, 64, 3), 90, np.uint8)
    changes = [stream.step(image).world_change for _ in range(10)]
    # The frame at which the memory is reset is the last one of its segment. At the second reset there are keyframes.
    expected = {0: WorldChange.NEW, 5: change, 9: WorldChange.CORRECTED if alignment == "robust" else change}
    assert changes == [expected.get(frame, WorldChange.NONE) for frame in range(10)]
    stream.reset()
    assert stream.step(image).world_change is WorldChange.NEW
    assert stream.step(np.full((64, 48, 3), 90, np.uint8)).world_change is WorldChange.NEW


def test_reset_starts_a_new_world(network):
    images = frames(4)
    stream = Stream(network)
    first = [stream.step(image) for image in images]
    stream.reset()
    again = [stream.step(image) for image in images]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert again[0].reset and again[0].reset_reason == "start"


def test_the_stamp_is_copied_and_stages_are_timed(network):
    result = Stream(network).step(frames(1)[0], stamp=12.5)
    assert result.stamp == 12.5
    assert {"preprocess", "encode", "decode", "pose", "update", "outputs"} == set(result.timings)
    assert all(value > 0 for value in result.timings.values())


def test_half_precision_follows_float32(network):
    images = frames(12)
    exact = Stream(network)
    half = Stream(network, StreamOptions(precision="bfloat16"))
    for image in images:
        a, b = exact.step(image), half.step(image)
        assert b.depth.dtype == b.pose.dtype == torch.float32 and b.healthy
        torch.testing.assert_close(b.depth, a.depth, rtol=0.1, atol=0.05)
        assert (b.pose[:3, 3] - a.pose[:3, 3]).norm() < 0.05


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((48, 64), np.uint8), r"RGB uint8 of shape \(h, w, 3\).*got uint8 of shape \(48, 64\)"),
        (np.zeros((48, 64, 3), np.float32), "got float32 of shape"),
        (np.zeros((48, 64, 4), np.uint8), "must have 3 channels"),
        (np.zeros((0, 64, 3), np.uint8), "got uint8 of shape"),
        (np.zeros((2, 400, 3), np.uint8), "400 x 2 pixels becomes 64 x 0, smaller than one 16-pixel patch"),
        ("frame.png", "got str"),
    ],
)
def test_bad_images_are_refused_and_the_state_is_kept(network, image, message: str):
    images = frames(4)
    stream, undisturbed = Stream(network), Stream(network)
    for good in images[:3]:
        stream.step(good), undisturbed.step(good)
    with pytest.raises(InputError, match=message):
        stream.step(image)
    assert same(stream.step(images[3]), undisturbed.step(images[3]))


@pytest.mark.parametrize(
    ("intrinsics", "message"),
    [
        (np.eye(4), r"shape \(4, 4\); expected \(3, 3\)"),
        (np.zeros((3, 3)), "positive focal lengths"),
        (2 * np.eye(3), "must have the form"),
        (np.array([[50.0, 0, 0], [0, 50, 0], [32, 24, 1]]), "must have the form"),
        (np.full((3, 3), np.nan), "finite numbers"),
    ],
)
def test_bad_intrinsics_are_refused(network, intrinsics, message: str):
    with pytest.raises(InputError, match=message):
        Stream(network).step(frames(1)[0], intrinsics=intrinsics)
