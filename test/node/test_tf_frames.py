"""TF modes: the published transforms always compose to the poses of the stream."""

import itertools

import numpy as np
import pytest
import tf2_ros
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped
from scipy.spatial.transform import Rotation

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.node import tf_frames
from raymap3r_ros.node.tf_frames import TF_MODES, FrameNames, Frames, TransformError, check_frames, look_up

OPTICAL = Rotation.from_quat([-0.5, 0.5, -0.5, 0.5])  # x right, y down, z forward, in x forward, y left, z up
RATE = 0.1  # seconds between two images


def matrix(translation=(0, 0, 0), rotation=None):
    result = np.eye(4)
    result[:3, 3] = translation
    if rotation is not None:
        result[:3, :3] = rotation.as_matrix()
    return result


def stamp(seconds):
    whole, rest = divmod(round(seconds * 1e9), 10**9)
    return Time(sec=whole, nanosec=rest)


# A camera half a metre above the floor, pitched 30 degrees down.
MOUNT = matrix((0.2, 0.05, 0.5), Rotation.from_euler("y", 30, degrees=True) * OPTICAL)


def base_poses(count=40, seed=0):
    """Poses (count, 4, 4) of a moving base, in a frame that differs from its first pose."""
    random = np.random.default_rng(seed)
    poses = [matrix((3, -2, 0.1), Rotation.from_euler("z", 1.0))]
    speed, turn = 0.05, 0.0
    for _ in range(count - 1):
        speed, turn = speed + random.normal(0, 0.005), turn + random.normal(0, 0.01)
        poses.append(poses[-1] @ matrix((speed, 0, 0), Rotation.from_euler("xyz", [0.002, -0.003, turn])))
    return np.array(poses)


def stream_poses(base, mount=MOUNT):
    """Poses of a perfect stream: cameras in the world that starts at the first camera with REP 103 axes."""
    cameras = base @ mount
    return matrix(rotation=OPTICAL) @ np.linalg.inv(cameras[0]) @ cameras


def fixed(**known):
    """A lookup function of constant transforms, given as parent__child=matrix."""

    def look_up(parent, child, stamp, age):
        try:
            return known[f"{parent}__{child}"]
        except KeyError:
            raise TransformError(f"no transform {parent} -> {child}") from None

    return look_up


def motion_between(a, b):
    """Metres and radians from a to b."""
    step = np.linalg.inv(a) @ b
    return np.linalg.norm(step[:3, 3]), Rotation.from_matrix(step[:3, :3]).magnitude()


def assert_one_parent_each(transforms):
    children = [child for _, child, _ in transforms]
    assert len(children) == len(set(children))


# ------------------------------------------------------------------------------------------------------------- modes


def test_camera_mode_publishes_the_poses_of_the_stream():
    placer = Frames(FrameNames(), fixed())
    for index, pose in enumerate(stream_poses(base_poses(5))):
        placed = placer.place(pose, stamp(index * RATE), "eye")
        ((parent, child, published),) = placed.transforms
        assert (parent, child) == (placed.odometry_frame, placed.odometry_child) == ("map", "eye")
        for same in (published, placed.camera, placed.odometry):
            np.testing.assert_allclose(same, pose, atol=1e-12)
        np.testing.assert_array_equal(placed.world_from_stream, np.eye(4))


def test_base_mode_starts_at_the_base_with_z_up():
    base = base_poses()
    placer = Frames(FrameNames("base", child_frame="eye"), fixed(base_link__eye=MOUNT))
    for index, pose in enumerate(stream_poses(base)):
        placed = placer.place(pose, stamp(index * RATE), "something else")
        ((parent, child, published),) = placed.transforms
        assert (parent, child) == (placed.odometry_frame, placed.odometry_child) == ("map", "base_link")
        np.testing.assert_allclose(published, np.linalg.inv(base[0]) @ base[index], atol=1e-9)
        np.testing.assert_array_equal(placed.odometry, published)
        np.testing.assert_allclose(placed.camera, published @ MOUNT, atol=1e-9)
        np.testing.assert_allclose(placed.world_from_stream @ pose, placed.camera, atol=1e-12)
    assert np.abs(placed.camera[:3, :3] - pose[:3, :3]).max() > 0.1  # the camera is tilted, the world is not


def test_map_mode_publishes_the_correction_of_external_odometry():
    base = base_poses()
    slip = [matrix((0.001 * k, -0.002 * k, 0), Rotation.from_euler("z", 0.003 * k)) for k in range(len(base))]
    odometry = [slip[k] @ base[k] for k in range(len(base))]

    def look_up(parent, child, stamp, age):
        if (parent, child) == ("base_link", "eye"):
            return MOUNT
        assert (parent, child, age) == ("odom", "base_link", 0.0)
        return odometry[round((stamp.sec + stamp.nanosec * 1e-9) / RATE)]

    placer = Frames(FrameNames("map"), look_up)
    for index, pose in enumerate(stream_poses(base)):
        placed = placer.place(pose, stamp(index * RATE), "eye")
        ((parent, child, published),) = placed.transforms
        assert (parent, child) == ("map", "odom")
        truth = np.linalg.inv(base[0]) @ base[index]
        np.testing.assert_allclose(published @ odometry[index], truth, atol=1e-9)
        assert (placed.odometry_frame, placed.odometry_child) == ("map", "base_link")
        np.testing.assert_allclose(placed.odometry, truth, atol=1e-9)


@pytest.mark.parametrize("mode", TF_MODES)
def test_inverted_transforms_are_the_inverses(mode):
    known = fixed(base_link__eye=MOUNT, odom__base_link=matrix((1, 2, 0), Rotation.from_euler("z", 0.5)))
    upright, inverted = (Frames(FrameNames(mode, invert_tf=invert), known) for invert in (False, True))
    for index, pose in enumerate(stream_poses(base_poses(4))):
        pairs = zip(
            upright.place(pose, stamp(index * RATE), "eye").transforms,
            inverted.place(pose, stamp(index * RATE), "eye").transforms,
            strict=True,
        )
        both = list(pairs)
        for (parent, child, one), (above, below, other) in both:
            assert (parent, child) == (below, above)
            np.testing.assert_allclose(one @ other, np.eye(4), atol=1e-12)
        assert_one_parent_each([inverted_transform for _, inverted_transform in both])


# ------------------------------------------------------------------------------------------------------ corrections


def odom_mode(mount=MOUNT):
    return Frames(FrameNames("odom"), fixed(base_link__eye=mount))


@pytest.mark.parametrize("seed", range(5))
def test_odom_is_smooth_and_the_composition_is_the_corrected_pose(seed):
    random = np.random.default_rng(seed)
    base = base_poses(60, seed)
    cameras = stream_poses(base)
    jump = np.eye(4)
    placer, bound = odom_mode(), max(motion_between(a, b)[0] for a, b in itertools.pairwise(base))
    last, map_from_odom = None, None
    for index in range(len(base)):
        corrected = index in (10, 11, 30, 47)
        if corrected:
            jump = matrix(random.normal(size=3), Rotation.random(random_state=random)) @ jump
        pose = jump @ cameras[index]
        placed = placer.place(pose, stamp(100 + index * RATE), "eye", corrected=corrected)
        (world, odom, above), (same, child, below) = sorted(placed.transforms)
        assert (world, odom, same, child) == ("map", "odom", "odom", "base_link")
        assert_one_parent_each(placed.transforms)
        np.testing.assert_allclose(above @ below, placed.world_from_stream @ pose @ np.linalg.inv(MOUNT), atol=1e-9)
        np.testing.assert_array_equal(placed.odometry, below)
        assert (placed.odometry_frame, placed.odometry_child) == ("odom", "base_link")
        if last is not None:
            step, turn = motion_between(last, below)
            true_step, true_turn = motion_between(base[index - 1], base[index])
            if corrected:
                assert step < 1.2 * bound
                # The error of the constant-velocity extrapolation is the change of speed, not the whole step.
                assert abs(step - true_step) < 0.03 and abs(turn - true_turn) < 0.05
                assert motion_between(map_from_odom, above)[0] > 0.1
                assert placed.motion is None
            else:
                assert step == pytest.approx(true_step, abs=1e-9) and turn == pytest.approx(true_turn, abs=1e-7)
                np.testing.assert_allclose(above, map_from_odom, atol=1e-9)
                np.testing.assert_allclose(placed.motion, np.linalg.inv(base[index - 1]) @ base[index], atol=1e-9)
                assert placed.interval == pytest.approx(RATE)
        last, map_from_odom = below, above


def test_new_world_starts_at_the_base_and_odom_is_continuous():
    base, placer = base_poses(20), odom_mode()
    first, second = stream_poses(base[:10]), stream_poses(base[10:])
    odometry = []
    for index, pose in enumerate([*first, *second]):
        placed = placer.place(pose, stamp(index * RATE), "eye", new_world=index in (0, 10))
        odometry.append(placed.odometry)
        (_, _, below), (_, _, above) = placed.transforms
        start = base[0] if index < 10 else base[10]
        np.testing.assert_allclose(above @ below, np.linalg.inv(start) @ base[index], atol=1e-9)
    truth = np.linalg.inv(base[0]) @ base
    errors = [np.linalg.norm(a[:3, 3] - b[:3, 3]) for a, b in zip(odometry, truth, strict=True)]
    assert max(errors[:10]) < 1e-9
    assert max(errors) < 0.03  # on a path of about a metre, with one extrapolated step of 5 cm
    assert np.linalg.norm(truth[-1, :3, 3]) > 0.5


def test_bag_that_starts_again_does_not_move_odom():
    base, placer = base_poses(20), odom_mode()
    ends = []
    for loop in range(3):
        for index, pose in enumerate(stream_poses(base)):
            placed = placer.place(pose, stamp(50 + index * RATE), "eye", new_world=index == 0)
            if index == 0 and loop:
                assert motion_between(ends[-1], placed.odometry) == pytest.approx((0, 0), abs=1e-7)
                (_, _, below), (_, _, above) = placed.transforms
                np.testing.assert_allclose(above @ below, np.eye(4), atol=1e-9)
        ends.append(placed.odometry)
    one_loop = np.linalg.inv(base[0]) @ base[-1]
    np.testing.assert_allclose(ends[2], one_loop @ one_loop @ one_loop, atol=1e-8)


def test_motion_is_extrapolated_across_a_long_gap_for_two_images_only():
    placer = odom_mode()
    straight = np.array([matrix((0.1 * index, 0, 0)) for index in range(5)])
    for index, pose in enumerate(stream_poses(straight)):
        before = placer.place(pose, stamp(index * RATE), "eye")
    after = placer.place(stream_poses(straight)[0], stamp(60), "eye", new_world=True)
    assert motion_between(before.odometry, after.odometry)[0] == pytest.approx(0.2)


def test_change_of_scale_is_not_motion():
    base = base_poses(30)
    cameras = stream_poses(base)
    placer, scales, last = odom_mode(), [1.0] * 10 + [1.3] * 10 + [0.8] * 10, None
    for index, scale in enumerate(scales):
        pose = cameras[index].copy()
        pose[:3, 3] *= scale
        placed = placer.place(pose, stamp(index * RATE), "eye", scale=scale)
        (_, _, below), (_, _, above) = placed.transforms
        np.testing.assert_allclose(above @ below, placed.world_from_stream @ pose @ np.linalg.inv(MOUNT), atol=1e-9)
        if last is not None:
            # The camera's travel is scaled by the scale of this image, also right after a change of scale.
            travel = np.linalg.norm((last @ MOUNT)[:3, 3] - (placed.odometry @ MOUNT)[:3, 3])
            assert travel == pytest.approx(scale * np.linalg.norm(cameras[index, :3, 3] - cameras[index - 1, :3, 3]))
            assert placed.motion is not None
        last = placed.odometry


def test_head_that_pans_does_not_move_the_base():
    base = np.array([matrix((1, 2, 0))] * 10)
    mounts = [
        matrix((0.2, 0, 0.5)) @ matrix(rotation=Rotation.from_euler("z", 0.1 * index) * OPTICAL) for index in range(10)
    ]
    cameras = stream_poses(base, np.array(mounts))
    now = 0
    placer = Frames(FrameNames("odom"), lambda parent, child, stamp, age: mounts[now])
    for now, pose in enumerate(cameras):
        placed = placer.place(pose, stamp(now * RATE), "eye")
        np.testing.assert_allclose(placed.odometry, np.eye(4), atol=1e-9)
    assert motion_between(cameras[0], cameras[9])[1] == pytest.approx(0.9)


def test_float32_errors_do_not_accumulate():
    placer = odom_mode()
    turn = matrix((0.01, 0, 0), Rotation.from_euler("z", 0.02))
    pose = np.eye(4)
    for index in range(3000):
        pose = pose @ turn
        inexact = pose.copy()
        inexact[:3, :3] *= 1 + 1e-5  # not exactly a rotation, always with the same sign
        placed = placer.place(inexact, stamp(index * RATE), "eye", corrected=index % 2 == 0)
    below = placed.odometry[:3, :3]
    np.testing.assert_allclose(below @ below.T, np.eye(3), atol=1e-12)


# ------------------------------------------------------------------------------------------------ missing transforms


def test_changes_at_frames_without_a_mount_apply_to_the_next_placed_frame():
    base = base_poses(30)
    cameras = stream_poses(base)
    known = {}
    placer = Frames(FrameNames("odom"), lambda *query: fixed(**known)(*query))
    with pytest.raises(TransformError, match="no transform base_link -> eye"):
        placer.place(cameras[0], stamp(0), "eye", new_world=True)
    known["base_link__eye"] = MOUNT
    placed = placer.place(cameras[1], stamp(RATE), "eye")
    np.testing.assert_allclose(placed.odometry, np.eye(4), atol=1e-12)  # the world starts here
    before = placer.place(cameras[2], stamp(2 * RATE), "eye")
    jump = matrix((5, 5, 5))
    known.clear()
    with pytest.raises(TransformError):
        placer.place(jump @ cameras[3], stamp(3 * RATE), "eye", corrected=True)
    known["base_link__eye"] = MOUNT
    after = placer.place(jump @ cameras[4], stamp(4 * RATE), "eye")
    assert motion_between(before.odometry, after.odometry)[0] == pytest.approx(
        motion_between(base[2], base[4])[0], abs=0.02
    )
    assert after.motion is None


def test_slow_odometry_is_bridged_for_a_second_and_then_reported():
    base = base_poses(30)
    cameras = stream_poses(base)

    def look_up(parent, child, stamp, age):
        index = round((stamp.sec + stamp.nanosec * 1e-9) / RATE)
        if (parent, child) == ("odom", "base_link"):
            if index not in (0, 1, 14):
                raise TransformError("no transform odom -> base_link")
            return base[index]
        return MOUNT

    placer = Frames(FrameNames("map"), look_up)
    placed = [placer.place(pose, stamp(k * RATE), "eye", corrected=k == 17) for k, pose in enumerate(cameras[:18])]
    held = placed[1].transforms[0][2]
    for one in placed[2:12]:
        np.testing.assert_array_equal(one.transforms[0][2], held)
        assert one.problem == ""
    for index, one in enumerate(placed[12:14], 12):
        assert one.transforms == () and "odom -> base_link" in one.problem
        np.testing.assert_allclose(one.odometry, np.linalg.inv(base[0]) @ base[index], atol=1e-9)
    assert placed[14].problem == placed[15].problem == ""
    assert placed[17].transforms == ()  # a correction makes the previous transform invalid


# -------------------------------------------------------------------------------------------------------------- tf2


def transform(parent, child, seconds, pose):
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id, message.header.stamp = parent, stamp(seconds)
    t, r = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = (float(value) for value in pose[:3, 3])
    r.x, r.y, r.z, r.w = (float(value) for value in Rotation.from_matrix(pose[:3, :3]).as_quat())
    return message


@pytest.fixture
def buffer():
    return tf2_ros.Buffer()


def test_static_mount_is_valid_at_any_time(buffer):
    buffer.set_transform_static(transform("base_link", "eye", 1000, MOUNT), "test")
    for seconds in (1, 1000, 1e9):
        np.testing.assert_allclose(look_up(buffer, "base_link", "eye", stamp(seconds)), MOUNT, atol=1e-12)


def test_panning_head_is_looked_up_at_the_stamp_of_the_image(buffer):
    buffer.set_transform_static(transform("head", "eye", 0, matrix(rotation=OPTICAL)), "test")
    head = [matrix((0.2, 0, 0.5), Rotation.from_euler("z", 0.5 * seconds)) for seconds in range(4)]
    for seconds, pose in enumerate(head):
        buffer.set_transform(transform("base_link", "head", 10 + seconds, pose), "test")
    expected = matrix((0.2, 0, 0.5), Rotation.from_euler("z", 0.5 * 1.5) * OPTICAL)
    np.testing.assert_allclose(look_up(buffer, "base_link", "eye", stamp(11.5)), expected, atol=1e-9)
    # The newest transform, if it is recent enough.
    newest = head[-1] @ matrix(rotation=OPTICAL)
    np.testing.assert_allclose(look_up(buffer, "base_link", "eye", stamp(13.9), age=1.0), newest, atol=1e-9)
    with pytest.raises(TransformError, match=r"base_link -> eye at the image's stamp, the newest is 1\.100 s older"):
        look_up(buffer, "base_link", "eye", stamp(14.1), age=1.0)
    with pytest.raises(TransformError, match=r"newest is 0\.200 s older"):
        look_up(buffer, "base_link", "eye", stamp(13.2))
    with pytest.raises(TransformError, match="the known transforms begin later"):
        look_up(buffer, "base_link", "eye", stamp(9), age=1.0)


def test_missing_transform_is_reported_with_its_frames(buffer):
    with pytest.raises(TransformError, match=r"no transform base_link -> eye .*robot_state_publisher"):
        look_up(buffer, "base_link", "eye", stamp(1))
    buffer.set_transform_static(transform("base_link", "head", 1, MOUNT), "test")
    buffer.set_transform_static(transform("stand", "eye", 1, MOUNT), "test")
    with pytest.raises(TransformError, match="no transform base_link -> eye"):  # two trees
        look_up(buffer, "base_link", "eye", stamp(1))


def test_lookup_waits_for_a_transform_that_is_about_to_arrive(buffer, monkeypatch):
    buffer.set_transform(transform("odom", "base_link", 5.00, matrix((1, 0, 0))), "test")
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            buffer.set_transform(transform("odom", "base_link", 5.06, matrix((1.6, 0, 0))), "test")

    monkeypatch.setattr(tf_frames.time, "sleep", sleep)
    np.testing.assert_allclose(look_up(buffer, "odom", "base_link", stamp(5.03))[:3, 3], (1.3, 0, 0), atol=1e-9)
    assert len(waits) == 3
    with pytest.raises(TransformError):  # half a second behind: no wait
        look_up(buffer, "odom", "base_link", stamp(5.56))
    assert len(waits) == 3


def test_lookup_wait_is_bounded(buffer, monkeypatch):
    buffer.set_transform(transform("odom", "base_link", 5, matrix()), "test")
    clock = itertools.count(step=0.02)
    monkeypatch.setattr(tf_frames.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(tf_frames.time, "sleep", lambda seconds: None)
    with pytest.raises(TransformError, match="newest is"):
        look_up(buffer, "odom", "base_link", stamp(5.04))


def test_mount_that_is_published_slowly_is_used_for_a_second(buffer):
    placer = Frames(FrameNames("base"), lambda *query: look_up(buffer, *query))
    buffer.set_transform(transform("base_link", "eye", 10, MOUNT), "test")
    for seconds in (10, 10.9):
        placed = placer.place(np.eye(4), stamp(seconds), "eye")
        np.testing.assert_allclose(placed.odometry, np.eye(4), atol=1e-12)
    with pytest.raises(TransformError, match=r"base_link -> eye at the image's stamp, the newest is 1\.500 s older"):
        placer.place(np.eye(4), stamp(11.5), "eye")


def test_transforms_of_a_robot_in_tf2(buffer):
    """In mode odom, a tf2 buffer gives the camera poses of the stream, across corrections."""
    buffer.set_transform_static(transform("base_link", "eye", 0, MOUNT), "test")
    placer = Frames(FrameNames("odom"), lambda *query: look_up(buffer, *query))
    jump = matrix((1, -1, 0.3), Rotation.from_euler("xyz", [0.1, 0.2, 0.3]))
    for index, pose in enumerate(stream_poses(base_poses(12))):
        pose = pose if index < 6 else jump @ pose
        placed = placer.place(pose, stamp(7 + index * RATE), "eye", corrected=index == 6)
        for parent, child, value in placed.transforms:
            buffer.set_transform(transform(parent, child, 7 + index * RATE, value), "test")
        found = look_up(buffer, "map", "eye", stamp(7 + index * RATE))
        np.testing.assert_allclose(found, placed.world_from_stream @ pose, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("mode", "names", "text"),
    [
        ("camera", ("", "odom", "base", ""), "world_frame is empty"),
        ("camera", ("map", "odom", "base", "map"), "child_frame is 'map', as world_frame"),
        ("camera", ("/map", "odom", "base", ""), "world_frame is '/map'; allowed: names without a leading slash"),
        ("base", ("map", "odom", "", "eye"), "base_frame is empty; allowed with tf_mode base"),
        ("base", ("map", "odom", "map", "eye"), "base_frame is 'map', as world_frame"),
        ("base", ("map", "odom", "base", "base"), "child_frame is 'base', as base_frame"),
        ("odom", ("map", "map", "base", ""), "odom_frame is 'map', as world_frame"),
        ("odom", ("map", "", "base", ""), "odom_frame is empty"),
        ("map", ("map", "odom", "odom", ""), "base_frame is 'odom', as odom_frame"),
        ("map", ("map", "odom", "base", "odom"), "child_frame is 'odom', as odom_frame"),
        ("map", ("map", "odom", "base", "/eye"), "child_frame is '/eye'"),
        ("tree", ("map", "odom", "base", ""), "tf_mode is 'tree'; allowed values: camera, base, odom, map"),
    ],
)
def test_frame_names_that_cannot_form_a_tree_are_refused(mode, names, text):
    with pytest.raises(OptionError) as error:
        check_frames(mode, *names)
    assert text in str(error.value)


def test_frame_names_that_the_mode_does_not_use_are_not_checked():
    check_frames("camera", "odom", "odom", "", "eye")
    check_frames("base", "odom", "odom", "base", "")
    for mode in TF_MODES:
        check_frames(mode, "map", "odom", "base_link", "")


def test_frame_id_of_the_images_that_is_already_used_is_an_error():
    placer = Frames(FrameNames("base"), fixed())
    with pytest.raises(InputError, match=r"child_frame is 'base_link', as base_frame.*choose another child_frame"):
        placer.place(np.eye(4), stamp(0), "base_link")
    with pytest.raises(InputError, match="no frame_id: choose a child_frame"):
        placer.place(np.eye(4), stamp(0), "")
    with pytest.raises(InputError, match="not finite"):
        placer.place(np.full((4, 4), np.nan), stamp(0), "eye")
