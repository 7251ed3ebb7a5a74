"""tf2_ros.Buffer against transforms computed with 4 x 4 matrices."""

import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest
import tf2_ros
from geometry_msgs.msg import TransformStamped
from rclpy.clock import ClockChange, TimeJump
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time


def rotation_matrix(axis, angle):
    """(3, 3) by Rodrigues' formula."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def matrix(axis, angle, translation):
    """(4, 4) child to parent."""
    result = np.eye(4)
    result[:3, :3] = rotation_matrix(axis, angle)
    result[:3, 3] = translation
    return result


def message(parent, child, stamp, axis=(0, 0, 1), angle=0.0, translation=(0, 0, 0), sign=1.0):
    """A TransformStamped; `stamp` in seconds. `sign` -1 gives the other quaternion of the same rotation."""
    msg = TransformStamped()
    msg.header.frame_id, msg.child_frame_id = parent, child
    msg.header.stamp = at(stamp).to_msg()
    t, r = msg.transform.translation, msg.transform.rotation
    t.x, t.y, t.z = (float(value) for value in translation)
    r.x, r.y, r.z = (float(v) for v in sign * np.sin(angle / 2) * np.asarray(axis) / np.linalg.norm(axis))
    r.w = float(sign * np.cos(angle / 2))
    return msg


def to_matrix(msg):
    """The (4, 4) matrix of a TransformStamped, from the three axes rotated by the quaternion."""
    r, t = msg.transform.rotation, msg.transform.translation
    q = np.array([r.x, r.y, r.z])
    result = np.eye(4)
    for column, v in enumerate(np.eye(3)):
        result[:3, column] = v + 2 * np.cross(q, np.cross(q, v) + r.w * v)
    result[:3, 3] = t.x, t.y, t.z
    return result


def at(seconds):
    return Time(nanoseconds=round(seconds * 1e9))


@pytest.fixture
def buffer():
    return tf2_ros.Buffer()


def test_every_pair_of_a_random_tree(buffer):
    random = np.random.default_rng(0)
    to_root = {"f0": np.eye(4)}
    for index in range(1, 12):
        parent = f"f{random.integers(index)}"
        axis, angle, translation = random.normal(size=3), random.uniform(-3, 3), random.normal(size=3) * 5
        to_root[f"f{index}"] = to_root[parent] @ matrix(axis, angle, translation)
        msg = message(parent, f"f{index}", 7, axis, angle, translation)
        (buffer.set_transform_static if index % 3 == 0 else buffer.set_transform)(msg, "test")
    for target in to_root:
        for source in to_root:
            expected = np.linalg.inv(to_root[target]) @ to_root[source]
            for stamp in (Time(), at(7)):
                found = buffer.lookup_transform(target, source, stamp)
                np.testing.assert_allclose(to_matrix(found), expected, atol=1e-9)
                assert (found.header.frame_id, found.child_frame_id) == (target, source)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_interpolates_between_stamps(buffer, ratio, sign):
    axis = (1, 2, -0.5)
    buffer.set_transform(message("a", "b", 10, axis, 0.4, (1, 0, 0)), "test")
    buffer.set_transform(message("a", "b", 12, axis, 2.0, (3, -4, 0), sign), "test")
    found = buffer.lookup_transform("a", "b", at(10 + 2 * ratio))
    expected = matrix(axis, 0.4 + 1.6 * ratio, (1 + 2 * ratio, -4 * ratio, 0))
    np.testing.assert_allclose(to_matrix(found), expected, atol=1e-9)
    assert Time.from_msg(found.header.stamp).nanoseconds == at(10 + 2 * ratio).nanoseconds


def test_interpolates_equal_and_nearly_equal_rotations(buffer):
    for stamp, angle in ((1, 0.3), (2, 0.3), (3, 0.3 + 1e-8)):
        buffer.set_transform(message("a", "b", stamp, angle=angle), "test")
    for stamp in (1.5, 2.5):
        found = to_matrix(buffer.lookup_transform("a", "b", at(stamp)))
        np.testing.assert_allclose(found, matrix((0, 0, 1), 0.3, (0, 0, 0)), atol=2e-8)


def test_stamps_may_arrive_in_any_order(buffer):
    for stamp in (5, 3, 4, 1, 2):
        buffer.set_transform(message("a", "b", stamp, translation=(stamp, 0, 0)), "test")
    for stamp in np.arange(1, 5.01, 0.25):
        assert buffer.lookup_transform("a", "b", at(stamp)).transform.translation.x == pytest.approx(stamp)


def test_time_zero_is_the_latest_common_time(buffer):
    for stamp in (1, 2, 3):
        buffer.set_transform(message("map", "odom", stamp, translation=(stamp, 0, 0)), "test")
    for stamp in (1, 2.5, 9):
        buffer.set_transform(message("odom", "base", stamp, translation=(0, stamp, 0)), "test")
    buffer.set_transform_static(message("base", "camera", 0, translation=(0, 0, 1)), "test")
    found = buffer.lookup_transform("map", "camera", Time())
    assert Time.from_msg(found.header.stamp).nanoseconds == 3_000_000_000
    t = found.transform.translation
    assert (t.x, t.y, t.z) == pytest.approx((3, 2.5 + 6.5 * 0.5 / 6.5, 1))
    assert buffer.get_latest_common_time("map", "camera") == at(3)
    assert buffer.get_latest_common_time("odom", "camera") == at(9)
    assert buffer.get_latest_common_time("base", "camera") == Time()


def test_a_message_time_is_accepted(buffer):
    buffer.set_transform(message("a", "b", 1.25, translation=(1, 0, 0)), "test")
    assert buffer.lookup_transform("a", "b", at(1.25).to_msg()).transform.translation.x == 1
    with pytest.raises(TypeError, match="time"):
        buffer.lookup_transform("a", "b", 1.25)


def test_static_transforms_are_valid_at_every_time_and_survive_clear(buffer):
    buffer.set_transform_static(message("base", "camera", 5, translation=(1, 2, 3)), "test")
    buffer.set_transform(message("map", "base", 5), "test")
    for stamp in (Time(), at(0.001), at(1e6)):
        assert buffer.lookup_transform("base", "camera", stamp).transform.translation.z == 3
    buffer.clear()
    assert buffer.can_transform("base", "camera", at(77))
    assert not buffer.can_transform("map", "base", Time())


def test_extrapolation_is_refused(buffer):
    buffer.set_transform(message("a", "b", 1), "test")
    with pytest.raises(tf2_ros.ExtrapolationException, match=r"only time 1\.0+ is in the buffer"):
        buffer.lookup_transform("a", "b", at(1.5))
    buffer.set_transform(message("a", "b", 2), "test")
    with pytest.raises(tf2_ros.ExtrapolationException, match=r"into the future.*frame \[b\] to frame \[a\]"):
        buffer.lookup_transform("a", "b", at(2.5))
    with pytest.raises(tf2_ros.ExtrapolationException, match=r"into the past.*frame \[a\] to frame \[b\]"):
        buffer.lookup_transform("b", "a", at(0.5))
    possible, why = buffer.can_transform("a", "b", at(2.5), return_debug_tuple=True)
    assert not possible and "future" in why


def test_transforms_above_the_common_frame_do_not_matter(buffer):
    buffer.set_transform(message("map", "base", 1), "test")
    buffer.set_transform(message("base", "left", 9, translation=(0, 1, 0)), "test")
    buffer.set_transform(message("base", "right", 9, translation=(0, -1, 0)), "test")
    assert buffer.lookup_transform("left", "right", at(9)).transform.translation.y == -2


def test_cache_time():
    for cache, buffer in ((10, tf2_ros.Buffer()), (2, tf2_ros.Buffer(cache_time=Duration(seconds=2)))):
        for stamp in range(100, 131):
            buffer.set_transform(message("a", "b", stamp), "test")
        assert buffer.can_transform("a", "b", at(130 - cache))
        assert not buffer.can_transform("a", "b", at(130 - cache - 1))
        buffer.set_transform(message("a", "b", 105), "test")  # older than the cache
        assert not buffer.can_transform("a", "b", at(105))


def test_frames_that_do_not_exist_or_do_not_connect(buffer):
    buffer.set_transform(message("a", "b", 1), "test")
    buffer.set_transform(message("c", "d", 1), "test")
    with pytest.raises(tf2_ros.LookupException, match=r'"nowhere".*source_frame does not exist'):
        buffer.lookup_transform("a", "nowhere", Time())
    with pytest.raises(tf2_ros.ConnectivityException, match="not part of the same tree"):
        buffer.lookup_transform("a", "d", Time())
    with pytest.raises(tf2_ros.ConnectivityException):
        buffer.lookup_transform("b", "d", at(1))
    for name in ("", "/a"):
        with pytest.raises(tf2_ros.InvalidArgumentException, match="frame_ids cannot"):
            buffer.lookup_transform(name, "b", Time())
    for error in ("Lookup", "Connectivity", "Extrapolation", "InvalidArgument", "Timeout"):
        assert issubclass(getattr(tf2_ros, f"{error}Exception"), tf2_ros.TransformException)


def test_a_loop_is_refused(buffer):
    for parent, child in (("a", "b"), ("b", "c"), ("c", "a"), ("x", "y")):
        buffer.set_transform(message(parent, child, 1), "test")
    for stamp in (Time(), at(1)):
        with pytest.raises(tf2_ros.LookupException, match="loop"):
            buffer.lookup_transform("y", "a", stamp)


@pytest.mark.parametrize(("length", "is_taken_for_a_loop"), [(990, False), (1010, True)])
def test_a_chain_of_more_than_a_thousand_frames_is_taken_for_a_loop(buffer, length, is_taken_for_a_loop):
    """As in tf2: a look-up for each image in a longer one would take most of the time between two of them."""
    for index in range(length):
        buffer.set_transform_static(message(f"frame{index}", f"frame{index + 1}", 1), "test")
    expected = pytest.raises(tf2_ros.LookupException, match="loop") if is_taken_for_a_loop else nullcontext()
    with expected:
        buffer.lookup_transform("frame0", f"frame{length}", Time())


@pytest.mark.parametrize(
    "wrong",
    [
        message("a", "a", 1),
        message("", "b", 1),
        message("a", "", 1),
        message("a", "b", 1, translation=(np.nan, 0, 0)),
        message("a", "b", 1, sign=1.1),
        message("a", "b", 1, sign=0.0),
    ],
    ids=["self", "no parent", "no child", "nan", "too long", "zero quaternion"],
)
def test_invalid_transforms_are_ignored(buffer, wrong):
    buffer.set_transform(wrong, "test")
    with pytest.raises(tf2_ros.LookupException):
        buffer.lookup_transform("a", "b", Time())


def test_leading_slashes_of_old_publishers_are_dropped(buffer):
    buffer.set_transform(message("/a", "/b", 1), "test")
    assert buffer.can_transform("a", "b", at(1))


def test_a_frame_may_change_its_parent(buffer):
    buffer.set_transform_static(message("map", "shelf", 0, translation=(10, 0, 0)), "test")
    buffer.set_transform(message("shelf", "cup", 1, translation=(1, 0, 0)), "test")
    buffer.set_transform(message("map", "cup", 3, translation=(5, 0, 0)), "test")
    for stamp, x in ((1, 11), (2, 11), (3, 5)):
        assert buffer.lookup_transform("map", "cup", at(stamp)).transform.translation.x == x


def test_from_one_time_to_another(buffer):
    for stamp in (1, 2):
        buffer.set_transform(message("odom", "base", stamp, translation=(stamp, 0, 0)), "test")
    moved = buffer.lookup_transform_full("base", at(2), "base", at(1), "odom")
    assert moved.transform.translation.x == -1
    assert not buffer.can_transform_full("base", at(3), "base", at(1), "odom")


def test_waits_for_a_transform(buffer):
    wait = Duration(seconds=5)
    timer = threading.Timer(0.2, lambda: buffer.set_transform(message("a", "b", 1, translation=(4, 0, 0)), "test"))
    timer.start()
    start = time.monotonic()
    assert buffer.lookup_transform("a", "b", at(1), wait).transform.translation.x == 4
    assert 0.1 < time.monotonic() - start < 4
    timer.join()


def test_waits_no_longer_than_the_timeout(buffer):
    start = time.monotonic()
    assert not buffer.can_transform("a", "b", Time(), Duration(seconds=0.2))
    with pytest.raises(tf2_ros.LookupException):
        buffer.lookup_transform("a", "b", Time(), timeout=Duration(seconds=0.2))
    assert 0.35 < time.monotonic() - start < 5


def test_clears_the_buffer_when_time_jumps_back(buffer):
    buffer.set_transform(message("a", "b", 5), "test")
    buffer.time_jump_callback(TimeJump(ClockChange.ROS_TIME_NO_CHANGE, Duration(seconds=-4)))
    assert not buffer.can_transform("a", "b", Time())
    buffer.set_transform(message("a", "b", 1), "test")
    assert buffer.can_transform("a", "b", at(1))


def test_jumps_one_after_another_are_one_line(buffer, capfd):
    """As of two clocks that alternate."""
    for _ in range(50):
        buffer.time_jump_callback(TimeJump(ClockChange.ROS_TIME_NO_CHANGE, Duration(seconds=-4)))
    assert capfd.readouterr().err.count("Detected jump back in time") == 1


def test_writers_and_readers_in_threads(buffer):
    buffer.set_transform(message("a", "b", 1), "test")
    failures = []

    def read():
        while writer.is_alive():
            try:
                found = buffer.lookup_transform("a", "b", Time())
                stamp = Time.from_msg(found.header.stamp).nanoseconds / 1e9
                assert found.transform.translation.x == pytest.approx(stamp - 1, abs=1e-6)
            except Exception as error:  # collected, because an exception in a thread does not fail a test
                failures.append(error)
                return

    def write():
        for index in range(3000):
            buffer.set_transform(message("a", "b", 1 + index / 100, translation=(index / 100, 0, 0)), "test")

    writer = threading.Thread(target=write)
    readers = [threading.Thread(target=read) for _ in range(3)]
    for thread in (writer, *readers):
        thread.start()
    for thread in (writer, *readers):
        thread.join(60)
    assert not failures


def test_a_lookup_is_fast(buffer):
    """A node looks up several transforms per frame, at 30 Hz."""
    for stamp in range(1000):
        buffer.set_transform(message("map", "odom", 100 + stamp / 100), "test")
        buffer.set_transform(message("odom", "base", 100 + stamp / 100), "test")
    start = time.perf_counter()
    for index in range(200):
        buffer.lookup_transform("map", "base", at(105.001 + index / 100))
    assert (time.perf_counter() - start) / 200 < 0.005


def test_future_is_done_when_the_transform_arrives(buffer):
    future = buffer.wait_for_transform_async("map", "camera", at(2))
    buffer.set_transform_static(message("base", "camera", 0, angle=0.3, translation=(1, 0, 0)), "test")
    buffer.set_transform(message("map", "base", 1, translation=(0, 1, 0)), "test")
    assert not future.done()
    called = []
    future.add_done_callback(lambda done: called.append(done.result()))
    buffer.set_transform(message("map", "base", 3, translation=(0, 3, 0)), "test")
    expected = matrix((0, 0, 1), 0.3, (1, 2, 0))
    np.testing.assert_allclose(to_matrix(future.result()), expected, atol=1e-12)
    assert called == [future.result()]
    # Available already: done at once.
    done = buffer.wait_for_transform_async("map", "camera", at(2))
    assert done.done() and done.result() == buffer.lookup_transform("map", "camera", at(2))
    full = buffer.wait_for_transform_full_async("base", at(1), "base", at(3), "map")
    np.testing.assert_allclose(to_matrix(full.result()), matrix((0, 0, 1), 0, (0, 2, 0)), atol=1e-12)


def test_cancelled_future_is_forgotten(buffer):
    future = buffer.wait_for_transform_async("map", "base", at(0))
    future.cancel()
    buffer.set_transform(message("map", "base", 1), "test")
    assert future.cancelled() and future.result() is None


def test_coroutine_waits_without_blocking_the_executor(ros, buffer):
    node = ros.create_node("waiting")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    task = executor.create_task(buffer.lookup_transform_async, "map", "base", at(2))
    full = executor.create_task(buffer.lookup_transform_full_async, "base", at(1), "base", at(2), "map")
    sent = []

    def send():
        sent.append(message("map", "base", len(sent), translation=(len(sent), 0, 0)))
        buffer.set_transform(sent[-1], "test")

    timer = node.create_timer(0.01, send)
    executor.spin_until_future_complete(task, 30)
    executor.spin_until_future_complete(full, 30)
    assert task.result().transform.translation.x == 2.0 and full.result().transform.translation.x == 1.0
    timer.cancel()
    executor.shutdown()
    node.destroy_node()
