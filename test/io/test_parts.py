"""A part of a recording: `start` and `end` in each format."""

import sys
from pathlib import Path

import cv2
import pytest
from rosbags.rosbag2 import StoragePlugin

sys.path.insert(0, str(Path(__file__).parent))
from recordings import camera_bag, index_of, picture, write_video

from raymap3r_ros import cli
from raymap3r_ros.errors import InputError
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.bag_process import BagProcess

COUNT = 10


def images(folder):
    folder.mkdir()
    for index in range(COUNT):
        cv2.imwrite(str(folder / f"{index}.png"), picture(index)[..., ::-1])
    return folder


MAKERS = {  # and seconds from one image to the next
    "video": (lambda folder: write_video(folder / "clip.avi", COUNT, 20.0, "MJPG"), 0.05),
    "images": (lambda folder: images(folder / "images"), 0.2),
    "mcap": (lambda folder: camera_bag(folder / "mcap", count=COUNT), 1.0),
    "sqlite3": (lambda folder: camera_bag(folder / "sqlite3", count=COUNT, plugin=StoragePlugin.SQLITE3), 1.0),
}


@pytest.fixture(scope="module", params=MAKERS)
def recording(request, tmp_path_factory):
    make, step = MAKERS[request.param]
    return make(tmp_path_factory.mktemp(request.param)), step


def shown(path, **options):
    return [(index_of(frame.image), frame.nanoseconds) for frame in open_recording(path, rate=5, **options)]


def test_consecutive_parts_have_each_frame_once_with_its_stamp(recording):
    path, step = recording
    whole = shown(path)
    assert [index for index, _ in whole] == list(range(COUNT))
    parts = [shown(path, start=begin * step, end=(begin + 3) * step) for begin in (0, 3, 6)]
    assert [len(part) for part in parts] == [3, 3, 3]
    assert [*parts[0], *parts[1], *parts[2], *shown(path, start=9 * step)] == whole
    assert shown(path, start=0.5 * step, end=1.5 * step) == whole[1:2]


def test_stride_and_limit_count_from_the_start_of_the_part(recording):
    path, step = recording
    assert [index for index, _ in shown(path, start=3 * step, stride=2, end=8 * step)] == [3, 5, 7]
    assert [index for index, _ in shown(path, start=4 * step, max_frames=2)] == [4, 5]


def test_a_part_without_frames_is_an_error_that_names_it(recording):
    path, _ = recording
    with pytest.raises(InputError, match="no frame could be read from 1000 s to its end"):
        list(open_recording(path, rate=5, start=1000))


def test_a_part_that_ends_before_the_damage_is_complete(tmp_path):
    bag = camera_bag(tmp_path / "bag", count=COUNT)
    (file,) = bag.glob("*.mcap")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    whole, part = open_recording(bag), open_recording(bag, end=3)
    assert 3 < len(list(whole)) < COUNT and whole.ended
    assert len(list(part)) == 3 and not part.ended


def test_messages_before_the_start_of_a_bag_are_not_read(tmp_path, monkeypatch):
    received = []
    receive = BagProcess.next
    monkeypatch.setattr(BagProcess, "next", lambda self, number: received.append(number) or receive(self, number))
    recording = open_recording(camera_bag(tmp_path / "bag", count=COUNT), start=7, end=9)
    received.clear()
    assert len(list(recording)) == 2
    assert len(received) == 1 + 3  # the first stamp of the bag; two images, and the one at the end


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start", "-1"], "--start is -1.0; allowed: 0 and more"),
        (["--start", "nan"], "--start is nan; allowed: 0 and more"),
        (["--start", "3", "--end", "3"], "--end is 3.0; allowed: above the start, 3.0 s"),
    ],
)
def test_ranges_that_are_refused(tmp_path, capsys, arguments, message):
    path = write_video(tmp_path / "clip.avi", 2, 20.0, "MJPG")
    assert cli.main(["run", str(path), "--out", str(tmp_path / "out"), "--checkpoint", "mini", *arguments]) == 2
    assert message in capsys.readouterr().err
