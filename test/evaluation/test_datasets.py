"""A small copy of each data set, written in its own layout and units, and read back."""

import itertools
import logging
import math
import os
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.evaluation import datasets
from raymap3r_ros.evaluation.datasets import DATASETS, open_dataset
from raymap3r_ros.evaluation.datasets.files import read_image

H, W = 6, 8
COLOUR = (200, 100, 30)  # RGB


def write_image(path, size=(H, W), colour=COLOUR):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), colour, np.uint8)).save(path)


def write_depth(path, values):
    """16-bit grey PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.asarray(values, np.uint16))


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def matrix_text(matrix):
    return "\n".join(" ".join(repr(float(value)) for value in row) for row in matrix) + "\n"


def pose_at(x, angle=0.0):
    """Camera-to-world pose at `x`, rotated about z by `angle`."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array(((c, -s, 0, x), (s, c, 0, 2), (0, 0, 1, 3), (0, 0, 0, 1)), float)


def only(name, root, **options):
    (sequence,) = open_dataset(name, root, **options)
    frames = list(sequence.frames())
    assert len(frames) == sequence.length
    return sequence, frames


# ---------------------------------------------------------------------------------------------------------- Sintel

SINTEL_DEPTH = np.arange(1, H * W + 1, dtype="<f4").reshape(H, W)
SINTEL_K = np.array(((1120, 0, 511.5), (0, 1120, 217.5), (0, 0, 1)))


def write_sintel(root, frames=3):
    training = root / "training"
    for number in range(1, frames + 1):
        name = f"frame_{number:04d}"
        write_image(training / "final" / "alley_2" / f"{name}.png")
        camera = training / "camdata_left" / "alley_2" / f"{name}.cam"
        camera.parent.mkdir(parents=True, exist_ok=True)
        to_camera = np.linalg.inv(pose_at(number, 0.3))[:3]
        camera.write_bytes(struct.pack("<f9d12d", 202021.25, *SINTEL_K.ravel(), *to_camera.ravel()))
        depth = training / "depth" / "alley_2" / f"{name}.dpt"
        depth.parent.mkdir(parents=True, exist_ok=True)
        depth.write_bytes(struct.pack("<fii", 202021.25, W, H) + (SINTEL_DEPTH * number).tobytes())
    mask = np.zeros((H, W), np.uint8)
    mask[0, 1] = 255
    path = training / "dynamic_label_perfect" / "alley_2" / "frame_0001.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(mask).save(path)
    return training


def test_sintel(tmp_path, caplog):
    write_sintel(tmp_path)
    for file in list(tmp_path.rglob("*.*")):
        file.with_name(f"._{file.name}").write_bytes(bytes(4096))  # as macOS leaves them
    sequence, frames = only("sintel", tmp_path)
    assert (sequence.name, sequence.length) == ("alley_2", 3)
    assert "1 of 14 sequences; missing: ambush_4" in caplog.text
    assert frames[1].image.shape == (H, W, 3) and frames[1].image.dtype == np.uint8
    assert frames[1].image[0, 0].tolist() == list(COLOUR)
    assert np.array_equal(frames[1].depth, SINTEL_DEPTH * 2) and frames[1].depth.dtype == np.float32
    assert np.allclose(frames[1].pose, pose_at(2, 0.3))
    assert np.array_equal(frames[1].intrinsics, SINTEL_K)
    assert frames[0].moving.sum() == 1 and frames[0].moving[0, 1]
    assert frames[2].moving is None  # as for the last frame, which has no optical flow for a mask
    assert frames[2].stamp == pytest.approx(2 / 24)
    assert DATASETS["sintel"].depth_cap == 70


def test_damaged_sintel_files(tmp_path):
    training = write_sintel(tmp_path)
    camera = training / "camdata_left" / "alley_2" / "frame_0002.cam"
    whole = camera.read_bytes()
    camera.write_bytes(b"\0" + whole[1:])
    with pytest.raises(InputError, match=r"frame_0002\.cam: does not begin with the tag 202021.25"):
        only("sintel", tmp_path)
    camera.write_bytes(whole[:-8])
    with pytest.raises(InputError, match=r"frame_0002\.cam: 164 bytes; a .cam file has 172"):
        only("sintel", tmp_path)
    camera.write_bytes(whole)
    depth = training / "depth" / "alley_2" / "frame_0003.dpt"
    depth.write_bytes(depth.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"frame_0003\.dpt: .* do not hold a depth map of 8 x 6"):
        only("sintel", tmp_path)
    depth.unlink()
    with pytest.raises(InputError, match=r"frame_0003\.dpt: there is no such file"):
        only("sintel", tmp_path)


# --------------------------------------------------------------------------------------------------- TUM RGB-D, Bonn


def write_tum(folder, frames, rate=30.0, pose_rate=100.0, pose_from=0.0):
    """Images at `rate`, depth 10 ms later, poses at `pose_rate` from `pose_from` on with x = time in seconds."""
    rgb = ["# color images", "# file: 'sequence.bag'", "# timestamp filename"]
    depth = ["# depth maps"]
    for index in range(frames):
        stamp = 1000 + index / rate
        rgb.append(f"{stamp:.6f} rgb/{stamp:.6f}.png")
        write_image(folder / f"rgb/{stamp:.6f}.png", (2, 3), (index % 256, 0, 0))
        depth.append(f"{stamp + 0.01:.6f} depth/{stamp + 0.01:.6f}.png")
        write_depth(folder / f"depth/{stamp + 0.01:.6f}.png", np.full((2, 3), 5000 + index))
    write_text(folder / "rgb.txt", "\n".join(rgb) + "\n")
    write_text(folder / "depth.txt", "\n".join(depth) + "\n")
    times = np.arange(pose_from, frames / rate + 0.5, 1 / pose_rate)
    half = math.sqrt(0.5)
    poses = [f"{1000 + time:.4f} {time:.4f} 2 3 0 0 {half} {half}" for time in times]
    write_text(folder / "groundtruth.txt", "# timestamp tx ty tz qx qy qz qw\n" + "\n".join(poses) + "\n")


@pytest.mark.parametrize(("until", "text"), [(0.15, "4 of 10"), (0.0, "9 of 10 images have no pose")])
def test_images_without_a_pose_are_counted(tmp_path, caplog, until, text):
    write_tum(tmp_path, 10)
    lines = (tmp_path / "groundtruth.txt").read_text().splitlines()
    write_text(tmp_path / "groundtruth.txt", "\n".join(lines[: 2 + round(until * 100)]) + "\n")
    (sequence,) = open_dataset("tum_folder", tmp_path)
    (record,) = caplog.records
    assert text in record.getMessage() and ("one pose is no trajectory" in record.getMessage()) == (until == 0)
    assert sequence.length + sequence.unposed == 10 and f"{sequence.unposed} of 10" in text


@pytest.mark.parametrize(
    ("factor", "shift", "cause"),
    [(1, 3600, "the clocks differ"), (1e9, 0, "in nanoseconds"), (1e3, 0, "in milliseconds")],
)
def test_poses_of_another_time_are_refused_with_both_ranges(tmp_path, factor, shift, cause):
    write_tum(tmp_path, 4)
    poses = [f"{(1000 + index / 30) * factor + shift:.6f} 0 0 0 0 0 0 1" for index in range(4)]
    write_text(tmp_path / "groundtruth.txt", "\n".join(poses) + "\n")
    with pytest.raises(InputError, match=rf"the images are from 1000\.000 to 1000\.100 s, the poses from .*{cause}"):
        open_dataset("tum_folder", tmp_path)


def test_tum_uses_every_third_frame_with_a_pose(tmp_path, caplog):
    write_tum(tmp_path / "rgbd_dataset_freiburg3_walking_xyz", 300, pose_from=0.2)
    write_tum(tmp_path / "rgbd_dataset_freiburg1_desk", 3)  # not one of the eight sequences
    sequence, frames = only("tum", tmp_path)
    assert sequence.name == "rgbd_dataset_freiburg3_walking_xyz" and "1 of 8 sequences" in caplog.text
    assert sequence.length == 90
    first = 6  # 0.2 s; the frame at 0.1667 is more than 0.02 s away from the first pose
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [(first + 3 * n) % 256 for n in range(90)]
    for frame, index in zip(frames, itertools.count(first, 3), strict=False):
        assert frame.stamp == pytest.approx(1000 + index / 30, abs=1e-6)
        assert frame.pose[0, 3] == pytest.approx(index / 30, abs=0.0051)
        assert frame.depth[0, 0] == pytest.approx((5000 + index) / 5000)
    # A quarter turn about z, translation x 2 3.
    assert np.allclose(frames[0].pose @ (1, 0, 0, 1), (0.2, 3, 3, 1))
    assert frames[0].intrinsics.tolist() == [[535.4, 0, 320.1], [0, 539.2, 247.6], [0, 0, 1]]
    assert frames[0].moving is None and frames[0].static_depth is None
    long, _ = only("tum", tmp_path, long=True)
    assert long.length == 294


def test_long_tum_ends_at_a_thousand(tmp_path):
    folder = tmp_path / "rgbd_dataset_freiburg3_sitting_rpy"
    stamps = [f"{index / 30:.4f}" for index in range(1100)]
    write_text(folder / "rgb.txt", "".join(f"{stamp} rgb/{stamp}.png\n" for stamp in stamps))
    write_text(folder / "groundtruth.txt", "".join(f"{stamp} 0 0 0 0 0 0 1\n" for stamp in stamps))
    assert open_dataset("tum", tmp_path, long=True)[0].length == 1000


@pytest.mark.parametrize(("late", "has_depth"), [(0.019, True), (0.021, False)])
def test_stamps_within_two_hundredths_of_a_second_are_associated(tmp_path, late, has_depth):
    write_tum(tmp_path, 2, rate=1)
    lines = [f"{1000 + index + late:.3f} depth/{1000 + index + 0.01:.6f}.png" for index in (1, 0)]  # in any order
    write_text(tmp_path / "depth.txt", "\n".join(lines))
    _, frames = only("tum_folder", tmp_path)
    assert [frame.depth is not None for frame in frames] == [has_depth] * 2
    if has_depth:
        assert [frame.depth[0, 0] for frame in frames] == pytest.approx([1, 5001 / 5000])


def test_rendered_folders_have_masks_static_depth_and_intrinsics(tmp_path):
    for name in ("one_room-light-10", "one_room-light-02"):
        folder = tmp_path / name
        write_tum(folder, 4, rate=10, pose_rate=10)
        for extra in ("mask", "static_depth"):
            lines = [f"{1000 + index / 10:.6f} {extra}/{index}.png" for index in range(4)]
            write_text(folder / f"{extra}.txt", "# as rgb.txt\n" + "\n".join(lines) + "\n")
        for index in range(4):
            write_depth(folder / f"static_depth/{index}.png", np.full((2, 3), 10000))
            (folder / "mask").mkdir(exist_ok=True)
            Image.fromarray(np.array([[0, 255, 0], [0, 0, 255]], np.uint8)).save(folder / f"mask/{index}.png")
        write_text(folder / "camera.txt", "# fx fy cx cy\n100.5 101.5 1 0.5\n")
    second, first = open_dataset("tum_folder", tmp_path)
    assert (second.name, first.name) == ("one_room-light-02", "one_room-light-10")
    frame = list(first.frames())[3]
    assert frame.moving.tolist() == [[False, True, False], [False, False, True]]
    assert np.array_equal(frame.static_depth, np.full((2, 3), 2, np.float32))
    assert frame.depth[0, 0] == pytest.approx(5003 / 5000)
    assert frame.intrinsics.tolist() == [[100.5, 0, 1], [0, 101.5, 0.5], [0, 0, 1]]
    assert only("tum_folder", tmp_path / "one_room-light-02")[0].length == 4


def test_unusable_tum_folder(tmp_path):
    with pytest.raises(InputError, match=r"no rgb\.txt here or one folder below"):
        open_dataset("tum_folder", tmp_path)
    write_tum(tmp_path, 2)
    trajectory = (tmp_path / "groundtruth.txt").read_text()
    write_text(tmp_path / "groundtruth.txt", "1 0 0 0 0 0 0 1\n")
    with pytest.raises(InputError, match=r"none of 2 images of rgb\.txt lies within 0.02 s of a pose"):
        open_dataset("tum_folder", tmp_path)
    (tmp_path / "groundtruth.txt").unlink()
    with pytest.raises(InputError, match=r"groundtruth\.txt"):
        open_dataset("tum_folder", tmp_path)
    write_text(tmp_path / "groundtruth.txt", trajectory)
    write_text(tmp_path / "rgb.txt", "1000.0\n")
    with pytest.raises(InputError, match=r"rgb\.txt, line 1: expected `timestamp filename`"):
        open_dataset("tum_folder", tmp_path)


def test_bonn_uses_110_images_and_poses_of_the_camera_instead_of_the_markers(tmp_path):
    write_tum(tmp_path / "rgbd_bonn_balloon2", 150, pose_from=2.0)
    sequence, frames = only("bonn", tmp_path)
    # Images 30 to 139 of the list; those before 60 have no pose here.
    assert [int(frame.image[0, 0, 0]) for frame in frames] == list(range(60, 140))
    assert sequence.name == "rgbd_bonn_balloon2"
    assert frames[0].intrinsics[0, 0] == 542.822841
    assert frames[0].depth[0, 0] == pytest.approx(5060 / 5000)
    assert DATASETS["bonn"].depth_cap == 70
    rotation, position = frames[0].pose[:3, :3], frames[0].pose[:3, 3]
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4) and np.linalg.det(rotation) > 0
    # In the new convention (x, y, z) is (-x, z, y); the camera is 18 mm from the markers.
    assert np.linalg.norm(position - (-2.0, 3, 2)) == pytest.approx(0.0187, abs=5e-4)


def test_a_list_without_the_images_that_are_used(tmp_path):
    """The cause is not that no pose is near."""
    folder = tmp_path / "rgbd_bonn_crowd2"
    write_tum(folder, 30)
    with pytest.raises(InputError, match="lists 30 images; the images from number 30 on are used"):
        open_dataset("bonn", tmp_path)
    (folder / "rgb.txt").write_text("# timestamp filename\n")
    with pytest.raises(InputError, match=r"rgb.txt lists 0 images$"):
        open_dataset("tum_folder", tmp_path)


# --------------------------------------------------------------------------------------------------------- ScanNet


def write_scannet(folder, frames):
    for index in range(frames):
        write_image(folder / f"color/{index}.jpg", (4 * H, 4 * W))
        write_depth(folder / f"depth/{index}.png", np.full((H, W), 1500 + index))
        pose = pose_at(index) if index != 3 else np.full((4, 4), -np.inf)
        write_text(folder / f"pose/{index}.txt", matrix_text(pose))
    camera = np.eye(4)
    camera[:3, :3] = ((1170, 0, 15.5), (0, 1171, 11.5), (0, 0, 1))
    write_text(folder / "intrinsic/intrinsic_color.txt", matrix_text(camera))


def test_scannet(tmp_path):
    write_scannet(tmp_path / "scene0707_00", 20)
    write_scannet(tmp_path / "scene0706_00", 1)  # a training scene
    sequence, frames = only("scannet", tmp_path)
    assert sequence.name == "scene0707_00"
    # Every 3rd image in numerical order; number 3 has no pose.
    assert [frame.pose[0, 3] for frame in frames] == [0, 6, 9, 12, 15, 18]
    assert frames[1].depth[0, 0] == pytest.approx(1.506) and frames[1].depth.shape == (H, W)
    assert frames[1].image.shape == (H, W, 3) and np.abs(frames[1].image[0, 0].astype(int) - COLOUR).max() < 4
    # The principal point stays in the centre of 32 x 24 pixels.
    assert np.allclose(frames[1].intrinsics, ((292.5, 0, 3.5), (0, 292.75, 2.5), (0, 0, 1)))
    assert frames[1].stamp == pytest.approx(0.2)


@pytest.mark.parametrize(("long", "count"), [(False, 90), (True, 92)])
def test_scannet_sampling(tmp_path, long, count):
    for index in range(0, 276):
        folder = tmp_path / "scene0806_00"
        write_text(folder / f"color/{index}.jpg", "")
        write_text(folder / f"pose/{index}.txt", matrix_text(np.eye(4)))
    assert open_dataset("scannet", tmp_path, long=long)[0].length == count
    (tmp_path / "scene0806_00/pose/9.txt").unlink()
    with pytest.raises(InputError, match=r"9\.txt: .*: No such file"):
        open_dataset("scannet", tmp_path)


# ----------------------------------------------------------------------------------------------------------- KITTI


def test_kitti(tmp_path):
    drive = "2011_09_26_drive_0002_sync"
    values = np.zeros((H, W))
    values[1, 2] = 2560
    for index in range(5, 125):  # the ground truth omits the first and last five images
        write_depth(tmp_path / f"val/{drive}/proj_depth/groundtruth/image_02/{index:010d}.png", values)
    for index in range(130):
        write_image(tmp_path / f"2011_09_26/{drive}/image_02/data/{index:010d}.png", (H, W), (index, 0, 0))
    sequence, frames = only("kitti", tmp_path)
    assert (sequence.name, sequence.length) == (drive, 110)
    assert frames[0].image[0, 0, 0] == 5 and frames[0].stamp == pytest.approx(0.5)
    assert frames[0].depth[1, 2] == 10 and np.count_nonzero(frames[0].depth) == 1
    assert frames[0].intrinsics is None and frames[0].pose is None
    projection = "7.2e+02 0.0 6.1e+02 4.5e+01 0.0 7.3e+02 1.7e+02 2.2e-01 0.0 0.0 1.0 2.7e-03"
    calibration = tmp_path / "2011_09_26/calib_cam_to_cam.txt"
    write_text(calibration, f"calib_time: 09-Jan-2012\nP_rect_02: {projection}\n")
    assert only("kitti", tmp_path)[1][0].intrinsics.tolist() == [[720, 0, 610], [0, 730, 170], [0, 0, 1]]
    write_text(calibration, "P_rect_00: 1 2 3\n")
    with pytest.raises(InputError, match="no line `P_rect_02:`"):
        open_dataset("kitti", tmp_path)
    calibration.unlink()
    (tmp_path / f"2011_09_26/{drive}/image_02/data/{7:010d}.png").unlink()
    with pytest.raises(InputError, match=r"data/0000000007\.png: there is no such file"):
        open_dataset("kitti", tmp_path)


# -------------------------------------------------------------------------------------------------------- 7-Scenes


def test_seven_scenes(tmp_path):
    write_text(tmp_path / "chess/TestSplit.txt", "sequence3\r\nsequence5\r\n")
    values = np.full((H, W), 2500)
    values[0, 0], values[0, 1] = 65535, 0
    for number, frames in ((3, 5), (5, 410)):
        for index in range(frames):
            stem = tmp_path / f"chess/seq-{number:02d}/frame-{index:06d}"
            write_text(stem.with_suffix(".pose.txt"), matrix_text(pose_at(index)).replace(" ", "\t "))
            if number == 3:
                write_image(stem.with_suffix(".color.png"))
                write_depth(stem.with_suffix(".depth.proj.png"), values)
            else:
                write_text(stem.with_suffix(".color.png"), "")
    first, second = open_dataset("7scenes", tmp_path)
    assert (first.name, first.length, second.name, second.length) == ("chess-seq-03", 3, "chess-seq-05", 200)
    frame = list(first.frames())[2]
    assert frame.pose[0, 3] == 4 and frame.stamp == pytest.approx(4 / 30)
    assert frame.depth[0, :3].tolist() == [0, 0, 2.5]
    assert frame.intrinsics.tolist() == [[525, 0, 320], [0, 525, 240], [0, 0, 1]]
    with pytest.raises(InputError, match=r"frame-000000\.color\.png: is empty"):
        next(second.frames())
    (tmp_path / "chess/seq-03/frame-000002.depth.proj.png").unlink()
    with pytest.raises(InputError, match=r"frame-000002\.depth\.proj\.png: there is no such file"):
        list(first.frames())
    (tmp_path / "chess/TestSplit.txt").unlink()
    with pytest.raises(InputError, match=r"TestSplit\.txt"):
        open_dataset("7scenes", tmp_path)


# ----------------------------------------------------------------------------------------------------------- DAVIS


def write_davis(root, name, frames=2, labels=((0, 1, 2), (0, 0, 0))):
    for index in range(frames):
        write_image(root / f"JPEGImages/480p/{name}/{index:05d}.jpg", (2, 3))
        picture = Image.fromarray(np.array(labels, np.uint8), mode="P")
        picture.putpalette([0, 0, 0, 0, 0, 1, 0, 128, 0])  # label 1 is almost black and must be read by its index
        path = root / f"Annotations/480p/{name}/{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def test_davis(tmp_path, caplog):
    write_davis(tmp_path, "camel")
    write_davis(tmp_path, "bear")
    bear, camel = open_dataset("davis", tmp_path)
    assert (bear.name, camel.name) == ("bear", "camel")
    frames = list(camel.frames())
    assert len(frames) == camel.length == 2
    assert frames[1].moving.tolist() == [[False, True, True], [False, False, False]]
    assert frames[1].stamp == pytest.approx(1 / 24) and frames[1].depth is None and frames[1].pose is None
    # With the lists of the data set, only the listed sequences are used.
    write_text(tmp_path / "ImageSets/2017/train.txt", "bear\n")
    write_text(tmp_path / "ImageSets/2017/val.txt", "blackswan\n")
    assert [sequence.name for sequence in open_dataset("davis", tmp_path)] == ["bear"]
    assert "1 of 2 sequences; missing: blackswan" in caplog.text
    (tmp_path / "JPEGImages/480p/bear/00001.jpg").unlink()
    with pytest.raises(InputError, match=r"JPEGImages/480p/bear/00001\.jpg: there is no such file"):
        open_dataset("davis", tmp_path)


# ------------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("name", DATASETS)
def test_errors_for_missing_data_sets_describe_the_expected_layout(tmp_path, name):
    with pytest.raises(InputError, match="expected"):
        open_dataset(name, tmp_path)
    with pytest.raises(InputError, match="no such folder; expected the data set"):
        open_dataset(name, tmp_path / "nowhere")


def test_unknown_names_and_lengths():
    with pytest.raises(OptionError, match="dataset is 'coco'; allowed values: davis, kitti, scannet, 7scenes, sint"):
        open_dataset("coco", "x")
    with pytest.raises(OptionError, match=r"no long form; those that have one: scannet, tum$"):
        open_dataset("kitti", "x", long=True)


def test_a_new_data_set_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(
        "from raymap3r_ros.evaluation.dataset import Dataset\n"
        'TOY = Dataset("toy", "an empty folder", lambda root: [], has_mask=True)\n'
    )
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path)])
    found = datasets.find_datasets()
    assert found.keys() == {*DATASETS, "toy"} and found["toy"].load(tmp_path) == []


def test_frames_are_read_one_by_one_each_time(tmp_path):
    write_tum(tmp_path, 5)
    (sequence,) = open_dataset("tum_folder", tmp_path)
    next(sequence.frames())
    images = sorted((tmp_path / "rgb").glob("*.png"))
    for image in images[1:]:
        image.unlink()
    frames = sequence.frames()
    assert next(frames).image[0, 0, 0] == 0
    with pytest.raises(InputError, match="there is no such file"):
        next(frames)
    os.mkfifo(images[1])
    frames = sequence.frames()
    next(frames)
    with pytest.raises(InputError, match="is a FIFO; expected a file"):
        next(frames)


def test_maps_of_the_wrong_size_or_type_are_refused(tmp_path):
    write_tum(tmp_path, 1)
    (depth,) = (tmp_path / "depth").glob("*.png")
    write_depth(depth, np.ones((4, 6)))
    with pytest.raises(InputError, match=r"a map of shape \(4, 6\) for an image of \(2, 3\)"):
        only("tum_folder", tmp_path)
    Image.fromarray(np.ones((2, 3), np.uint8)).save(depth)
    with pytest.raises(InputError, match="uint8 values; expected a 16-bit PNG"):
        only("tum_folder", tmp_path)


@pytest.fixture(autouse=True)
def warnings_are_seen(caplog):
    caplog.set_level(logging.WARNING)


def test_images_whose_names_are_not_utf8(tmp_path):
    """OpenCV ends the process on such a name."""
    path = tmp_path / os.fsdecode(b"\xff.png")
    path.write_bytes(cv2.imencode(".png", np.full((4, 6, 3), 7, np.uint8))[1])
    assert read_image(path).shape == (4, 6, 3)
    path.write_bytes(b"no image")
    with pytest.raises(InputError, match="no image that can be decoded"):
        read_image(path)


def tum_folder(root, images):
    for number in (1, 2):
        write_image(root / f"rgb/{number}.png", size=(48, 64))
    (root / "rgb.txt").write_bytes(images if isinstance(images, bytes) else images.encode())
    write_text(root / "groundtruth.txt", "1 0 0 0 0 0 0 1\n2 0 0 0 0 0 0 1\n")
    return root


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff# images\r\n1 rgb/1.png\r\n2 rgb/2.png\r\n",
        "1,rgb/1.png\n2, rgb/2.png",
        "1.0e0\trgb/1.png\n20e-1\trgb/2.png",
        "2 rgb/2.png\n1 rgb/1.png\n1 rgb/gone.png",
    ],
    ids=["bom", "comma", "tab", "repeated"],
)
def test_lists_of_images_in_other_forms(tmp_path, text, caplog):
    _, frames = only("tum_folder", tum_folder(tmp_path, text))
    assert [frame.stamp for frame in frames] == [1, 2]
    repeated = "gone" in text
    assert ("1 lines repeat a stamp, the first is line 3" in caplog.text) == repeated


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        ("1 rgb/1.png\n".encode("utf-16"), "is not text in UTF-8"),
        ("1 rgb/1.png\nnan rgb/2.png\n", "line 2: expected `timestamp filename`: 'nan rgb"),
        ("1 rgb/1.png\n1e999 rgb/2.png\n", "line 2"),
        ("1\n", "line 1"),
    ],
)
def test_damaged_lists_of_images_are_refused(tmp_path, images, problem):
    with pytest.raises(InputError, match=problem):
        open_dataset("tum_folder", tum_folder(tmp_path, images))


def test_damaged_calibrations_and_images_are_input_errors(tmp_path):
    drive = "2011_09_26_drive_0001_sync"
    write_depth(tmp_path / "val" / drive / "proj_depth/groundtruth/image_02/0.png", np.ones((H, W)))
    write_image(tmp_path / "2011_09_26" / drive / "image_02/data/0.png")
    for text, problem in (("P_rect_02: " + "x " * 12, "could not convert string"), ("\0\xff", "no line `P_rect_02:`")):
        write_text(tmp_path / "2011_09_26" / "calib_cam_to_cam.txt", text)
        with pytest.raises(InputError, match=rf"calib_cam_to_cam\.txt: .*{problem}"):
            open_dataset("kitti", tmp_path)
    header = struct.pack(">I4sII", 13, b"IHDR", 60000, 60000)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"x" * 40)
    with pytest.raises(InputError, match=r"bomb\.png: .*60000x60000"):
        read_image(tmp_path / "bomb.png")
