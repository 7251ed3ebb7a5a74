"""Exports of results, each read by a program that has nothing to do with this package."""

import json

import cv2
import numpy as np
import pytest
from evo.tools.file_interface import read_kitti_poses_file

from raymap3r_ros.io.ply import read_ply
from raymap3r_ros.offline.export import export_results

pycolmap, trimesh = pytest.importorskip("pycolmap"), pytest.importorskip("trimesh")


@pytest.fixture(scope="module")
def exported(exact, tmp_path_factory):
    """Exports the exact results, once in each format."""
    folders = {}

    def export(name):
        if name not in folders:
            folders[name] = export_results(exact.results, name, tmp_path_factory.mktemp("exports") / name)
        return folders[name]

    return export


def gray(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope="module", params=["binary", "text"])
def model(request, exported):
    found = pycolmap.Reconstruction()
    getattr(found, f"read_{request.param}")(str(exported("colmap") / "sparse" / "0"))
    return found


def test_colmap_has_the_poses_and_intrinsics(exact, model):
    assert model.num_cameras() == 1 and sorted(model.images) == [1, 2, 3, 4, 5, 6]
    for number, frame in enumerate(exact.frames, 1):
        image = model.images[number]
        assert image.name == f"{number - 1:06d}.png"
        camera = model.cameras[image.camera_id]
        assert (camera.model.name, camera.width, camera.height) == ("PINHOLE", 128, 112)
        wanted = frame.intrinsics.copy()
        wanted[:2, 2] += 0.5  # the first pixel's centre is (0.5, 0.5)
        np.testing.assert_allclose(camera.calibration_matrix(), wanted, atol=1e-4)
        np.testing.assert_allclose(image.cam_from_world().inverse().matrix(), frame.pose[:3], atol=1e-6)


def test_colmap_points_reproject_to_the_pixels_they_came_from(exact, model):
    points = np.array([model.points3D[key].xyz for key in sorted(model.points3D)])
    colors = np.array([model.points3D[key].color for key in sorted(model.points3D)])
    assert len(points) > 5000
    errors = np.full(len(points), np.inf)
    for number, frame in enumerate(exact.frames, 1):
        image = model.images[number]
        seen = image.cam_from_world() * points
        pixels = model.cameras[image.camera_id].img_from_cam(seen)
        column, row = cells = np.floor(pixels.T).astype(int)
        inside = (column >= 0) & (column < 128) & (row >= 0) & (row < 112) & (seen[:, 2] > 0)
        column, row = np.where(inside, cells, 0)
        # The pixel's own point: it has the depth, the colour and does not move.
        same = inside & (np.abs(frame.depth[row, column] - seen[:, 2]) < 1e-4) & ~frame.moving[row, column]
        same &= (frame.image[row, column] == colors).all(axis=1)
        error = np.linalg.norm(pixels - np.floor(pixels) - 0.5, axis=1)
        errors = np.where(same, np.minimum(errors, error), errors)
    assert np.isfinite(errors).all() and errors.max() < 0.001


def test_colmap_images_and_masks_are_those_of_the_depth_maps(exact, exported):
    folder = exported("colmap")
    for index, frame in enumerate(exact.frames):
        np.testing.assert_array_equal(gray(folder / "images" / f"{index:06d}.png")[..., ::-1], frame.image)
        # COLMAP ignores what is black.
        mask = gray(folder / "masks" / f"{index:06d}.png.png")
        np.testing.assert_array_equal(mask, np.where(frame.moving, 0, 255))
    assert any(frame.moving.any() for frame in exact.frames)


def test_transforms_agree_with_colmap(exact, exported):
    folder = exported("nerfstudio")
    content = json.loads((folder / "transforms.json").read_text())
    model = pycolmap.Reconstruction(str(exported("colmap") / "sparse" / "0"))
    assert len(content["frames"]) == len(model.images) == 6
    camera = model.cameras[1]
    assert [content[name] for name in ("w", "h", "camera_model")] == [camera.width, camera.height, camera.model.name]
    np.testing.assert_allclose([content[name] for name in ("fl_x", "fl_y", "cx", "cy")], camera.params)
    for number, (frame, truth) in enumerate(zip(content["frames"], exact.frames, strict=True), 1):
        image = model.images[number]
        assert frame["file_path"] == f"images/{image.name}"
        to_world = image.cam_from_world().inverse().matrix()
        transform = np.array(frame["transform_matrix"])
        np.testing.assert_allclose(transform[:3, 3], to_world[:, 3], atol=1e-9)
        # z is forward and y down in OpenCV, z backward and y up in OpenGL.
        np.testing.assert_allclose(transform[:3, :3], to_world[:, :3] * [1, -1, -1], atol=1e-9)
        np.testing.assert_array_equal(gray(folder / frame["file_path"])[..., ::-1], truth.image)
        np.testing.assert_array_equal(gray(folder / frame["mask_path"]), np.where(truth.moving, 0, 255))
        depth = gray(folder / frame["depth_file_path"])
        assert depth.dtype == np.uint16
        np.testing.assert_allclose(depth * 1e-3, truth.depth, atol=0.00051)
    cloud = trimesh.load(folder / content["ply_file_path"])
    np.testing.assert_allclose(cloud.vertices, [model.points3D[key].xyz for key in sorted(model.points3D)], atol=1e-6)


def test_kitti_is_read_by_evo(exact, exported):
    read = read_kitti_poses_file(str(exported("kitti") / "poses.txt"))
    np.testing.assert_allclose(read.poses_se3, [frame.pose for frame in exact.frames], atol=1e-6)
    times = np.loadtxt(exported("kitti") / "times.txt")
    np.testing.assert_allclose(times, [frame.stamp / 1e9 for frame in exact.frames])


def test_glb_shows_scene_and_path_with_y_up(exact, exported):
    scene = trimesh.load(exported("glb") / "scene.glb")
    points, colors = read_ply(exact.results / "static_scene.ply")
    cloud, path = scene.geometry["static_scene"], scene.geometry["camera_path"]
    np.testing.assert_allclose(cloud.vertices, points * [1, -1, -1], atol=1e-6)
    lab = cv2.cvtColor(np.float32(colors[None] / 255), cv2.COLOR_RGB2Lab)
    linear = 255 * cv2.cvtColor(lab, cv2.COLOR_Lab2LRGB)[0]  # glTF's colours are in proportion to light
    assert np.abs(linear - colors).max() > 40
    np.testing.assert_allclose(cloud.colors[:, :3], linear, atol=1.5)
    places = np.array([frame.pose[:3, 3] for frame in exact.frames]) * [1, -1, -1]
    np.testing.assert_allclose(path.vertices, np.repeat(places, 2, axis=0)[1:-1], atol=1e-6)
    assert path.length == pytest.approx(np.linalg.norm(np.diff(places, axis=0), axis=1).sum(), rel=1e-5)


def test_lerobot_has_the_documented_layout(exact, exported):
    av, parquet = pytest.importorskip("av"), pytest.importorskip("pyarrow.parquet")
    pandas = pytest.importorskip("pandas")
    root = exported("lerobot")
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"], info["splits"]) == (
        "v3.0", 10, 6, {"train": "0:1"},
    )  # fmt: skip
    assert pandas.read_parquet(root / "meta/tasks.parquet").loc["camera recording", "task_index"] == 0
    (episode,) = parquet.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert (episode["dataset_from_index"], episode["dataset_to_index"], episode["length"]) == (0, 6, 6)
    place = {"chunk_index": episode["data/chunk_index"], "file_index": episode["data/file_index"]}
    data = parquet.read_table(root / info["data_path"].format(**place))
    kinds = {name: data.schema.field(name).type for name in data.column_names}
    for name, feature in info["features"].items():
        if feature["dtype"] != "video":
            kind = kinds.pop(name)
            length = kind.list_size if feature["shape"] != [1] else 1
            assert [length] == feature["shape"] and feature["dtype"].startswith(str(getattr(kind, "value_type", kind)))
    assert not kinds
    state = np.array(data["observation.state"].to_pylist())
    np.testing.assert_allclose(state[:, :3], [frame.pose[:3, 3] for frame in exact.frames], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(state[:, 3:], axis=1), 1, atol=1e-6)
    assert data["stamp_ns"].to_pylist() == [frame.stamp for frame in exact.frames]
    np.testing.assert_allclose(data["timestamp"].to_pylist(), np.arange(6) / 10, atol=1e-6)
    statistics = json.loads((root / "meta/stats.json").read_text())
    np.testing.assert_allclose(statistics["observation.state"]["mean"], state.mean(axis=0), atol=1e-6)
    assert episode["stats/observation.state/max"] == pytest.approx(state.max(axis=0).tolist())
    for name in ("rgb", "dynamic_mask", "depth"):
        key = f"observation.images.{name}"
        assert (
            statistics[key].keys()
            == {"min", "max", "mean", "std", "count"}
            == {column.split("/")[-1] for column in episode if column.startswith(f"stats/{key}/")}
        )
        with av.open(str(root / info["video_path"].format(video_key=key, **place))) as container:
            shown = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        np.testing.assert_allclose([time for time, _ in shown], np.arange(6) / 10)
        pictures = np.array([picture for _, picture in shown])
        assert list(pictures.shape[1:]) == info["features"][key]["shape"]
        mean = np.reshape(statistics[key]["mean"], 3)
        np.testing.assert_allclose(mean, pictures.mean(axis=(0, 1, 2)) / 255, atol=0.01)
        check_pictures(name, pictures, exact.frames)


def check_pictures(name, pictures, frames):
    if name == "rgb":  # with losses
        errors = np.abs(pictures[:, None].astype(float) - [frame.image for frame in frames]).mean(axis=(2, 3, 4))
        assert errors.argmin(axis=1).tolist() == list(range(6)) and errors.diagonal().max() < 10
    elif name == "dynamic_mask":
        np.testing.assert_array_equal(pictures[..., 0], [np.where(frame.moving, 255, 0) for frame in frames])
    else:
        metres = 0.1 * 1000 ** ((pictures[..., 0].astype(float) - 1) / 254)
        np.testing.assert_allclose(metres, [frame.depth for frame in frames], rtol=0.0138)
