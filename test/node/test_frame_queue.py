import threading
import time

from raymap3r_ros.node.frame_queue import QUEUE_DEPTH, FrameQueue, PutResult, WaitingFrame


def frame(number):
    return WaitingFrame(message=number, stamp=None, arrival=0.0, jumps=0)


def test_newest_frame_replaces_the_waiting_one():
    queue = FrameQueue()
    assert queue.put(frame(1)) is PutResult.WAITING
    assert queue.put(frame(2)) is PutResult.REPLACING
    assert queue.put(frame(3)) is PutResult.REPLACING
    assert len(queue) == 1
    assert queue.get().message == 3
    assert queue.put(frame(4)) is PutResult.WAITING


def test_frames_wait_in_order_and_overflow_is_reported():
    queue = FrameQueue(every_frame=True)
    assert all(queue.put(frame(number)) is PutResult.WAITING for number in range(QUEUE_DEPTH))
    assert queue.put(frame(QUEUE_DEPTH)) is PutResult.OVERFLOW
    assert [queue.get().message for _ in range(QUEUE_DEPTH)] == list(range(QUEUE_DEPTH))


def test_get_waits_for_a_frame():
    queue, got = FrameQueue(), []
    thread = threading.Thread(target=lambda: got.append(queue.get()))
    thread.start()
    queue.put(frame(7))
    thread.join(10)
    assert got[0].message == 7


def test_work_lasts_until_the_next_frame_is_taken():
    queue, begin = FrameQueue(every_frame=True), time.monotonic()
    assert queue.last_work < begin
    queue.put(frame(1))
    assert queue.last_work >= begin, "waiting"
    queue.get()
    assert queue.last_work >= begin, "processed"
    queue.close()
    queue.get()
    ended, now = queue.last_work, time.monotonic()
    assert begin < ended <= now and queue.last_work == ended, "the frame has been processed"


def test_close_ends_waiting_and_discards_waiting_frames():
    queue, got = FrameQueue(every_frame=True), []
    thread = threading.Thread(target=lambda: got.append(queue.get()))
    thread.start()
    assert queue.close() == 0
    thread.join(10)
    assert got == [None]

    queue = FrameQueue(every_frame=True)
    queue.put(frame(1))
    queue.put(frame(2))
    assert queue.close() == 2
    assert queue.get() is None
    assert queue.put(frame(3)) is PutResult.CLOSED
